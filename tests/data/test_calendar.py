"""Calendar features: values by hand, all of them beside pandas' own fields, and on the grids of series."""

import numpy as np
import pandas as pd
import pytest

from data.calendar import CYCLES, FEATURES, FLAGS, CalendarError, calendar_channels, calendar_values
from data.frame import Channel, Dataset, FrameError, Splits, check_frame
from data.panel import auto_calendar, to_panel

HALF = np.sqrt(0.5)


def values(time: str, *features: str) -> list[float]:
    return calendar_values(np.array([time], "datetime64[ns]"), features)[0].round(12).tolist()


def dataset(times: pd.Series | list, freq: str | int, calendar: tuple[str, ...], **columns) -> Dataset:
    table = pd.DataFrame({"unique_id": "a", "ds": times, "y": 1.0, **columns})
    frame, _ = check_frame(table, source="toy", task="forecast")
    channels = tuple(Channel(name, "") for name in ("y", *columns))
    return Dataset("toy", frame, "forecast", channels, freq, 1, 1, Splits(), "y", calendar=calendar)


def test_a_place_in_a_cycle_is_its_sine_and_cosine():
    assert values("2024-03-01T06:45", "hour") == [1.0, 0.0]  # a quarter of the day
    assert values("2024-03-01T18:45", "hour", "minute") == [-1.0, 0.0, -1.0, 0.0]
    assert values("2024-03-01T03:00", "hour") == pytest.approx([HALF, HALF])
    assert values("2024-01-01", "dayofweek", "month", "quarter", "dayofyear", "day", "week") == [0.0, 1.0] * 6  # Monday
    assert values("2024-10-01", "quarter", "month") == [-1.0, 0.0, -1.0, 0.0]


def test_a_cycle_is_as_long_as_it_is_at_the_time():
    assert values("2023-02-15", "day") == [0.0, -1.0]  # 14 of 28 days
    assert values("2024-02-15", "day")[1] > -1.0  # of 29
    assert values("2020-12-28", "week") == values("2020-12-31", "week") != values("2019-12-29", "week")  # 53 and 52


def test_a_flag_is_one_or_zero():
    assert values("2024-02-29T23:00", *FLAGS) == [0.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    assert values("2024-01-01", *FLAGS) == [1.0, 0.0, 1.0, 0.0, 1.0, 0.0]
    assert values("2023-12-31", *FLAGS) == [0.0, 1.0, 0.0, 1.0, 0.0, 1.0]
    assert values("2024-04-01", *FLAGS) == [1.0, 0.0, 1.0, 0.0, 0.0, 0.0]


def test_every_feature_is_the_field_that_pandas_calls_so():
    times = pd.date_range("1890-01-01", "2105-12-31", freq="211h13min")  # before 1970 too
    lengths = {"hour": 24, "minute": 60, "dayofweek": 7, "month": 12, "quarter": 4, "day": times.days_in_month}
    lengths |= {"dayofyear": 365 + times.is_leap_year, "week": 52}
    for name in CYCLES:
        field = times.isocalendar().week.to_numpy(int) if name == "week" else getattr(times, name).to_numpy()
        place, length = CYCLES[name](times.to_numpy())
        np.testing.assert_array_equal(place, field - (name not in ("hour", "minute", "dayofweek")), err_msg=name)
        if name != "week":
            np.testing.assert_array_equal(length, lengths[name], err_msg=name)
        else:
            assert set(length) == {52, 53}
            assert (length[place == 52] == 53).all()
        angles = calendar_values(times.to_numpy(), (name,))
        np.testing.assert_allclose(angles[:, 0], np.sin(2 * np.pi * place / length), atol=1e-12)
        np.testing.assert_allclose(angles[:, 1], np.cos(2 * np.pi * place / length), atol=1e-12)
    for name in FLAGS:
        np.testing.assert_array_equal(calendar_values(times.to_numpy(), (name,))[:, 0], getattr(times, name))


def test_channels_are_named_in_the_order_of_their_values():
    assert calendar_channels(("is_month_end", "hour")) == ("is_month_end", "hour_sin", "hour_cos")
    assert values("2024-01-31T06:00", "is_month_end", "hour") == [1.0, 1.0, 0.0]
    times = pd.date_range("2024-01-01", periods=6, freq="h").to_numpy().reshape(2, 3)
    assert calendar_values(times, FEATURES).shape == (2, 3, len(calendar_channels(FEATURES)))


def test_what_is_no_feature_names_those_there_are():
    with pytest.raises(CalendarError, match=r"no calendar feature weekday; known: minute, hour, dayofweek, day, "):
        calendar_channels(("hour", "weekday"))
    with pytest.raises(CalendarError, match="named once each, got hour, hour"):
        calendar_channels(("hour", "hour"))
    with pytest.raises(CalendarError, match=r"hour need time stamps, but ds holds numbers. Write it as ISO 8601"):
        calendar_values(np.arange(3), ("hour",))


@pytest.mark.parametrize(
    ("freq", "features"),
    [
        ("15min", ("minute", "hour", "dayofweek")),
        ("10ms", ("minute", "hour", "dayofweek")),
        ("h", ("hour", "dayofweek")),
        ("H", ("hour", "dayofweek")),
        ("12h", ("hour", "dayofweek")),
        ("24h", ("dayofweek", "month")),
        ("D", ("dayofweek", "month")),
        ("B", ("dayofweek", "month")),
        ("W-TUE", ("week",)),
        ("7D", ("week",)),
        ("MS", ("month",)),
        ("QE-OCT", ("month",)),
        ("YS", ()),
        ("12MS", ()),
        (1, ()),
        (0.02, ()),
        (None, ()),
    ],
)
def test_auto_is_what_a_step_moves_through(freq, features):
    assert auto_calendar(freq) == features


def test_auto_of_no_step_says_what_a_step_is():
    with pytest.raises(FrameError, match="'hourly' is no step; expected a pandas alias"):
        auto_calendar("hourly")


def test_a_series_has_them_on_its_whole_grid_gaps_included():
    days = pd.to_datetime(["2024-01-04", "2024-01-09"])  # Thursday and Tuesday, with two business days between them
    (series,) = to_panel(dataset(days, "B", ("dayofweek",), warm=[1.0, 2.0]))
    assert [str(day)[:10] for day in series.ds] == ["2024-01-04", "2024-01-05", "2024-01-08", "2024-01-09"]
    np.testing.assert_array_equal(series.values[:, :2], [[1, 1], [np.nan] * 2, [np.nan] * 2, [1, 2]])
    angles = 2 * np.pi * np.array([3, 4, 0, 1]) / 7
    np.testing.assert_allclose(series.values[:, 2:], np.stack([np.sin(angles), np.cos(angles)], 1), atol=1e-12)


def test_every_series_has_those_of_its_own_times():
    table = pd.DataFrame({"unique_id": ["a", "a", "b"], "ds": ["2024-01-30", "2024-01-31", "2024-01-31"], "y": 1.0})
    frame, _ = check_frame(table, source="toy", task="forecast")
    one = Dataset("toy", frame, "forecast", (Channel("y", ""),), "D", 1, 1, Splits(), "y", calendar=("is_month_end",))
    assert [series.values[:, 1].tolist() for series in to_panel(one)] == [[0.0, 1.0], [1.0]]
    assert [channel.name for channel in one.inputs] == ["y", "is_month_end"]


def test_times_in_a_zone_have_the_hours_of_utc_and_naive_ones_their_own():
    """Two hours around the night on which clocks go forward: a step of UTC, and an hour that is missing without."""
    local = ["2024-03-31T01:00", "2024-03-31T03:00"]
    aware = [f"{local[0]}+01:00", f"{local[1]}+02:00"]
    aware_times = pd.to_datetime(aware, utc=True).tz_convert("Europe/Berlin")
    (utc,) = to_panel(dataset(aware_times, "h", ("hour",)))
    (naive,) = to_panel(dataset(pd.to_datetime(local), "h", ("hour",)))
    np.testing.assert_allclose(utc.values[:, 1], np.sin(2 * np.pi * np.array([0, 1]) / 24), atol=1e-12)
    np.testing.assert_allclose(naive.values[:, 1], np.sin(2 * np.pi * np.array([1, 2, 3]) / 24), atol=1e-12)


def test_a_data_set_refuses_what_cannot_be():
    with pytest.raises(FrameError, match=r"toy: no calendar feature hours; known: minute"):
        dataset(["2024-01-01"], "D", ("hours",))
    with pytest.raises(FrameError, match="toy: hour_sin is a channel and a calendar feature; rename the column"):
        dataset(["2024-01-01"], "h", ("hour",), hour_sin=[0.0])
    with pytest.raises(FrameError, match=r"toy: the calendar features hour need time stamps, but ds holds numbers"):
        to_panel(dataset([1, 2], 1, ("hour",)))
    table = pd.DataFrame({"unique_id": "a", "ds": pd.date_range("2024-01-01", periods=2), "v": 1.0, "label": "x"})
    frame, _ = check_frame(table, source="toy", task="classify")
    with pytest.raises(FrameError, match="calendar features are for forecasts, not to classify"):
        Dataset("toy", frame, "classify", (Channel("v", ""),), "D", 1, 1, Splits(), "label", calendar=("hour",))
