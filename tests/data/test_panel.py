"""The grid: gaps become NaN, what lies between two steps is refused, and times are counted on it."""

import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.frame import Channel, Dataset, FrameError, Splits, check_frame
from data.panel import future_ds, labels_of, periods_between, to_panel


def dataset(frame: pd.DataFrame, freq, task="forecast") -> Dataset:
    frame, _ = check_frame(frame, source="test", task=task)
    target = {"forecast": "y", "classify": "label", "regress": "y"}[task]
    first = 2 if task == "forecast" else 3
    channels = tuple(Channel(name, "") for name in frame.columns[first:])
    return Dataset("test", frame, task, channels, freq, 1, 1, Splits(), target)


def series(ds, **columns) -> pd.DataFrame:
    return pd.DataFrame({"unique_id": "a", "ds": ds, **(columns or {"y": np.arange(len(ds), dtype=float)})})


def test_a_missing_row_becomes_a_step_of_nan():
    frame = series([1, 2, 5], y=[1.0, 2.0, 5.0], price=[10.0, np.nan, 50.0])
    (one,) = to_panel(dataset(frame, 1))
    assert one.ds.tolist() == [1, 2, 3, 4, 5]
    np.testing.assert_array_equal(one.values, [[1, 10], [2, np.nan], [np.nan] * 2, [np.nan] * 2, [5, 50]])
    assert one.target is None


STEPS = ["D", "B", "h", "15min", "W-SUN", "MS", "ME", "QS-FEB", "QE", "YS", "YE", "2MS"]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([*STEPS, 1, 7, 0.005, 0.4]), st.data())
def test_gaps_on_any_grid(freq, data):
    lengths = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=4))
    frames, whole = [], {}
    for number, length in enumerate(lengths):
        if isinstance(freq, str):
            times = pd.date_range("2001-01-01", periods=length, freq=freq).to_numpy()
        else:
            times = np.arange(length) * freq + 3 * freq
        keep = sorted({0, length - 1, *data.draw(st.sets(st.integers(0, length - 1)))})
        frames.append(pd.DataFrame({"unique_id": str(number), "ds": times[keep], "y": np.array(keep, dtype=float)}))
        whole[str(number)] = (times, keep)
    for one in to_panel(dataset(pd.concat(frames), freq)):
        times, keep = whole[one.unique_id]
        if isinstance(freq, float):
            np.testing.assert_allclose(one.ds, times, atol=1e-9)
        else:
            np.testing.assert_array_equal(one.ds, times)
        expected = np.full(len(times), np.nan)
        expected[keep] = keep
        np.testing.assert_array_equal(one.values[:, 0], expected)
        assert periods_between(one.ds[0], one.ds[-1], freq) == len(times) - 1
        assert periods_between(one.ds[-1], one.ds[0], freq) == 1 - len(times)


def test_an_observation_between_two_steps_is_refused():
    stamps = pd.to_datetime(["2024-01-01T00:00", "2024-01-02T00:00", "2024-01-03T06:00"])
    with pytest.raises(FrameError, match=r"1 of 3 observations are off the grid of 'D', first .*06:00:00 of series a"):
        to_panel(dataset(series(stamps), "D"))
    with pytest.raises(FrameError, match=r"off the grid of 10, first 15 of series a"):
        to_panel(dataset(series([0, 10, 15]), 10))
    with pytest.raises(FrameError, match=r"off the grid of 'MS', first 2024-01-02"):
        to_panel(dataset(series(stamps), "MS"))


def test_a_weekend_is_off_the_business_days_and_the_remedy_is_given():
    with pytest.raises(FrameError, match=r"first 2024-01-06 of series a\. This is a weekend: .*--freq D"):
        to_panel(dataset(series(pd.date_range("2024-01-05", periods=3)), "B"))


def test_a_jittering_clock_goes_to_the_nearest_step():
    (one,) = to_panel(dataset(series([0.0, 0.104, 0.198, 0.41]), 0.1))
    np.testing.assert_allclose(one.ds, [0, 0.1, 0.2, 0.3, 0.4])
    np.testing.assert_array_equal(one.values[:, 0], [0, 1, 2, np.nan, 3])


def test_seconds_keep_their_digits_wherever_a_series_begins():
    times = np.arange(90) * 0.02
    for begin in (0, 17, 30):
        (one,) = to_panel(dataset(series(times[begin:]), 0.02))
        assert one.ds.tolist() == times[begin:].tolist()


def test_two_samples_in_one_step_are_refused():
    with pytest.raises(FrameError, match=r"1 observations share their step of 0.1 s .*first 0.1 and 0.12 s"):
        to_panel(dataset(series([0.0, 0.1, 0.12]), 0.1))


def test_a_step_that_does_not_suit_the_times_is_refused():
    with pytest.raises(FrameError, match="time stamps need a pandas alias"):
        to_panel(dataset(series(pd.date_range("2024-01-01", periods=3)), 1))
    with pytest.raises(FrameError, match="integers need an integer"):
        to_panel(dataset(series([1, 2]), "D"))
    with pytest.raises(FrameError, match="'fortnight' is no step"):
        to_panel(dataset(series(pd.date_range("2024-01-01", periods=3)), "fortnight"))
    with pytest.raises(FrameError, match="must be positive"):
        to_panel(dataset(series([1, 2]), 0))


def test_a_grid_that_is_nearly_empty_is_refused():
    with pytest.raises(FrameError, match=r"series a has 2 observations on 1000000001 steps of 1"):
        to_panel(dataset(series([0, 1_000_000_000]), 1))


def test_class_indices_follow_the_labels_and_gaps_are_unknown():
    frame = series([0, 1, 3], x=1.0, label=["rest", "fist", None])
    data = dataset(frame, 1, task="classify")
    assert labels_of(data) == ("fist", "rest")
    assert to_panel(data)[0].target.tolist() == [1, 0, -1, -1]
    assert to_panel(data, ["rest", "wave", "fist"])[0].target.tolist() == [0, 2, -1, -1]
    with pytest.raises(FrameError, match=r"label 'fist' of series a is not among the classes \['rest'\]"):
        to_panel(data, ["rest"])
    with pytest.raises(FrameError, match="has no labels"):
        labels_of(dataset(series([1]), 1))


def test_a_regression_target_is_carried_to_the_grid():
    (one,) = to_panel(dataset(series([0, 2], x=[1.0, 2.0], y=[7.0, 7.0]), 1, task="regress"))
    np.testing.assert_array_equal(one.target, [7, np.nan, 7])
    assert one.values.shape == (3, 1)


def test_without_a_step_rows_stay_as_they_are():
    (one,) = to_panel(dataset(series([3, 4, 9]), None))
    assert one.ds.tolist() == [3, 4, 9]


@pytest.mark.parametrize("freq", STEPS)
def test_future_times_continue_the_calendar(freq):
    times = pd.date_range("2024-01-01", periods=12, freq=freq)
    np.testing.assert_array_equal(future_ds(times[4], freq, 7), times[5:].to_numpy())


def test_future_times_of_numbers_and_of_days_with_an_hour():
    assert future_ds(10, 5, 3).tolist() == [15, 20, 25]
    np.testing.assert_allclose(future_ds(0.5, 0.1, 2), [0.6, 0.7])
    assert future_ds("2024-01-05T16:00", "B", 1)[0] == np.datetime64("2024-01-08T16:00")


def test_times_off_the_grid_have_no_future_and_no_distance():
    with pytest.raises(FrameError, match=r"2024-01-06 is not on the grid of 'B'\. .*--freq D"):
        future_ds(pd.Timestamp("2024-01-06"), "B", 3)
    with pytest.raises(FrameError, match="not on the grid of 'h'"):
        periods_between("2024-01-01", "2024-01-01T00:30", "h")
    assert periods_between("2024-01-05", "2024-01-08", "B") == 1
    assert periods_between(0.0, 0.31, 0.1) == 3


def test_many_hourly_series_and_long_frames_take_well_under_a_second():
    hours = pd.date_range("2024-01-01", periods=1000, freq="h")
    many = pd.DataFrame({"unique_id": np.repeat([f"s{i:03d}" for i in range(414)], 1000), "ds": np.tile(hours, 414)})
    data = dataset(many.assign(y=1.0), "h")
    start = time.perf_counter()
    assert len(to_panel(data)) == 414
    assert time.perf_counter() - start < 1.0
