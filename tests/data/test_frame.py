"""The border: what `check_frame` refuses and mends, and the step that `infer_freq` finds."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.frame import Channel, Dataset, FrameError, Splits, check_frame, infer_freq, show_time


def sales(rows: int = 6) -> pd.DataFrame:
    return pd.DataFrame(
        {"unique_id": "shop", "ds": pd.date_range("2024-01-01", periods=rows), "y": np.arange(rows, dtype=float)}
    )


def forecast(frame: pd.DataFrame, **options) -> tuple[pd.DataFrame, tuple[str, ...]]:
    return check_frame(frame, source="sales.csv", task="forecast", **options)


def test_a_good_frame_comes_back_unchanged_and_without_notes():
    frame = sales()
    before = frame.copy()
    checked, notes = forecast(frame)
    pd.testing.assert_frame_equal(checked, before)
    pd.testing.assert_frame_equal(frame, before)
    assert notes == ()


def test_types_are_those_of_the_contract():
    frame = pd.DataFrame({"price": [1, 2], "y": [3, 4], "ds": [1, 2], "unique_id": [7, 7]})
    checked, _ = forecast(frame)
    assert list(checked.columns) == ["unique_id", "ds", "y", "price"]
    assert checked["unique_id"].tolist() == ["7", "7"]
    assert [str(kind) for kind in checked.dtypes] == ["object", "int64", "float64", "float64"]


def test_missing_columns_are_named_with_those_found_and_the_option():
    with pytest.raises(FrameError, match=r"sales\.csv: no column y; found unique_id, ds, price\. .*--target"):
        forecast(sales().rename(columns={"y": "price"}))
    with pytest.raises(FrameError, match=r"no column unique_id, ds; found y\. .*--id, --time"):
        forecast(sales()[["y"]])


def test_messages_use_the_names_and_rows_of_the_source():
    frame = sales().astype({"y": object})
    frame.loc[3, "y"] = "12,5"
    with pytest.raises(FrameError, match=r"close is '12,5' in line 5 \(series shop, 1 of 6 rows like this\)"):
        forecast(frame, named={"y": "close"}, where=lambda row: f"line {row + 2}")


def test_a_date_among_the_values_is_refused():
    with pytest.raises(FrameError, match="y holds times; expected numbers"):
        forecast(sales().assign(y=pd.Timestamp("2024-01-01")))


def test_duplicate_keys_name_both_rows():
    frame = sales()
    frame.loc[4, "ds"] = frame.loc[1, "ds"]
    with pytest.raises(FrameError, match=r"series shop has 1 repeated time.*2024-01-02 in row 2 and row 5"):
        forecast(frame)


@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_infinite_values_are_refused(value):
    frame = sales()
    frame.loc[2, "y"] = value
    with pytest.raises(FrameError, match=r"y is infinite in 1 of 6 rows, first in row 3 \(series shop at 2024-01-03\)"):
        forecast(frame)


def test_values_outside_a_channels_limits_are_counted_and_shown():
    frame = sales()
    frame.loc[[3, 5], "y"] = [178.2, -9.0]
    with pytest.raises(
        FrameError,
        match=r"y leaves \[-3\.15, 50\] rad in 2 of 6 rows, first in series shop at 2024-01-04, row 4 "
        r"\(value 178\.2\)\. Check the unit or the channel's limits\.",
    ):
        forecast(frame, channels=[Channel("y", "rad", -3.15, 50)])


def test_the_limits_themselves_and_gaps_are_within_the_limits():
    frame = sales()
    frame.loc[2, "y"] = np.nan
    checked, _ = forecast(frame, channels=[Channel("y", "V", 0, 5)])
    assert checked["y"].isna().sum() == 1


def test_a_series_without_any_value_is_refused_and_a_constant_one_is_not():
    empty = sales().assign(unique_id="closed", y=np.nan)
    with pytest.raises(FrameError, match=r"y is missing in all rows of 1 of 2 series: closed\. Leave the series out"):
        forecast(pd.concat([sales(), empty]))
    forecast(sales().assign(y=3.0))


def test_a_series_without_any_value_is_left_out_with_a_note_where_asked_and_others_have_one():
    empty = sales().assign(unique_id="closed", y=np.nan)
    checked, notes = forecast(pd.concat([empty, sales()]), leave_out_empty=True)
    pd.testing.assert_frame_equal(checked, forecast(sales())[0])
    assert notes[-1].endswith("y is missing in all rows of 1 of 2 series: closed. Left out.")
    with pytest.raises(FrameError, match=r"all rows of 1 of 1 series: closed\. Leave the series out"):
        forecast(empty, leave_out_empty=True)


def test_no_rows_and_no_keys_are_refused():
    with pytest.raises(FrameError, match="no rows"):
        forecast(sales(0))
    with pytest.raises(FrameError, match=r"unique_id is missing in 1 of 6 rows, first in row 3"):
        forecast(sales().assign(unique_id=["a", "a", None, "a", "a", "a"]))
    with pytest.raises(FrameError, match=r"ds is missing in 1 of 6 rows, first in row 1"):
        forecast(sales().assign(ds=[pd.NaT, *sales()["ds"][1:]]))


def test_a_time_that_is_no_iso_time_is_shown():
    with pytest.raises(FrameError, match=r"ds is '13/01/2024' in row 2 \(1 of 2 rows .*expected an ISO 8601"):
        forecast(sales(2).assign(ds=["2024-01-12", "13/01/2024"]))
    with pytest.raises(FrameError, match="looks like dates written as integers"):
        forecast(sales(2).assign(ds=[20240131, 20240201]))
    with pytest.raises(FrameError, match="ds is true/false"):
        forecast(sales(2).assign(ds=[True, False]))
    with pytest.raises(FrameError, match="ds is infinite in row 2"):
        forecast(sales(2).assign(ds=[0.0, np.inf]))
    with pytest.raises(FrameError, match="leaves the years 1678 to 2261"):
        forecast(sales(2).assign(ds=np.array(["1066-10-14", "1066-10-15"], dtype="datetime64[s]")))


def test_one_time_zone_becomes_utc_and_is_said():
    for stamps in (
        ["2024-01-01T01:00:00+02:00", "2024-01-01T02:00:00+02:00"],
        pd.to_datetime(["2024-01-01T01:00:00", "2024-01-01T02:00:00"]).tz_localize("Europe/Athens"),
    ):
        checked, notes = forecast(sales(2).assign(ds=stamps))
        assert checked["ds"].tolist() == [pd.Timestamp("2023-12-31T23:00"), pd.Timestamp("2024-01-01")]
        assert len(notes) == 1
        assert "converted to UTC" in notes[0]


def test_utc_written_in_two_ways_is_one_zone():
    checked, notes = forecast(sales(2).assign(ds=["2024-01-01T01:00:00Z", "2024-01-01T02:00:00+00:00"]))
    assert checked["ds"].iloc[0] == pd.Timestamp("2024-01-01T01:00")
    assert notes == ()


def test_midnights_across_summer_time_stay_dates():
    days = pd.date_range("2024-03-29", periods=6, tz="Europe/Berlin")
    checked, notes = forecast(sales().assign(ds=days))
    assert checked["ds"].tolist() == days.tz_localize(None).tolist()
    assert "taken as dates" in notes[0]


def test_midnights_in_a_zone_are_dates_in_every_part_of_the_year_and_by_the_step_else():
    winter = pd.date_range("2024-01-08", periods=6, tz="Europe/Berlin")  # a Monday: in UTC the Sunday before
    for step in (None, "D", "W-MON", "MS", "24h"):
        checked, _ = forecast(sales().assign(ds=winter), freq=step)
        assert checked["ds"].tolist() == winter.tz_localize(None).tolist()
    checked, _ = forecast(sales().assign(ds=winter), freq="h")  # of hours these are some
    assert checked["ds"].tolist() == winter.tz_convert("UTC").tz_localize(None).tolist()
    _, notes = forecast(sales().assign(ds=winter.tz_localize(None).tz_localize("UTC")))
    assert notes == ()


def test_mixed_time_zones_are_refused():
    with pytest.raises(FrameError, match=r"mixes time zones: 2024-01-01T01:00:00\+02:00 in row 1, .*in row 2\. .*UTC"):
        forecast(sales(2).assign(ds=["2024-01-01T01:00:00+02:00", "2024-01-01T02:00:00+03:00"]))


def test_mixed_naive_and_aware_times_are_refused():
    with pytest.raises(FrameError, match=r"no time zone in row 2 .*one in row 1 .*naive and aware times are mixed"):
        forecast(sales(2).assign(ds=["2024-01-01T01:00:00Z", "2024-01-01T02:00:00"]))


@pytest.mark.parametrize(
    ("labels", "read"),
    [
        (["1.0", "2.0", ""], ["1", "2", None]),  # as pandas writes integers of which some are missing
        (["1", "2.0", None], ["1", "2", None]),  # two files of one pattern, of which one has none missing
        ([1, "2.0", np.nan], ["1", "2", None]),
        (["01", "1", "-2"], ["01", "1", "-2"]),
        (["1.0", "1.5", "2"], ["1.0", "1.5", "2"]),  # numbers that are no integers are names as they are written
        (["1.0", "up", "2"], ["1.0", "up", "2"]),
        ([True, False, None], ["True", "False", None]),
        (["a", " a\t", " "], ["a", "a", None]),  # as a hand or a spreadsheet leaves white space around them
    ],
)
def test_integer_labels_are_the_same_however_they_are_written(labels, read):
    frame = pd.DataFrame({"unique_id": "a", "ds": range(3), "x": 1.0, "label": pd.Series(labels, dtype=object)})
    checked, _ = check_frame(frame, source="s", task="classify")
    assert checked["label"].tolist() == read


def test_labels_are_texts_and_unknown_ones_none():
    frame = pd.DataFrame({"unique_id": "a", "ds": range(3), "x": 1.0, "label": [3.0, np.nan, 12.0]})
    checked, _ = check_frame(frame, source="s", task="classify")
    assert checked["label"].tolist() == ["3", None, "12"]


def test_targets_must_be_there_unless_they_are_to_be_predicted():
    frame = pd.DataFrame({"unique_id": ["a", "b"], "ds": 0, "x": 1.0, "label": None, "y": [1.0, np.nan]})
    inputs = [Channel("x", "V")]
    with pytest.raises(FrameError, match="label is missing in all rows"):
        check_frame(frame, source="s", task="classify", channels=inputs)
    with pytest.raises(FrameError, match="y is missing in all rows of 1 of 2 series, first b"):
        check_frame(frame, source="s", task="regress", channels=inputs)
    checked, _ = check_frame(
        frame.drop(columns="y"), source="s", task="regress", channels=inputs, target_required=False
    )
    assert checked["y"].isna().all()


def test_a_classify_series_whose_every_channel_is_missing_is_refused():
    frame = pd.DataFrame({"unique_id": ["a", "b"], "ds": 0, "x": [1.0, np.nan], "z": [np.nan, np.nan], "label": "k"})
    with pytest.raises(FrameError, match=r"every channel is missing in all rows of 1 of 2 series: b\. Leave"):
        check_frame(frame, source="s", task="classify")


def test_channels_survive_json():
    for channel in (Channel("y", "Ah", low=0.0), Channel("x", "", -1.5, 2.0)):
        assert Channel.from_json(json.loads(json.dumps(channel.to_json()))) == channel
    assert Channel("y", "Ah", low=0.0).to_json()["high"] is None
    with pytest.raises(FrameError, match="expected the fields name, unit, low and high"):
        Channel.from_json({"name": "y"})
    with pytest.raises(FrameError, match="low must be less than high"):
        Channel("y", "Ah", math.nan)


def test_a_data_set_without_its_channels_is_refused():
    with pytest.raises(FrameError, match=r"s: no column for \['price'\]"):
        Dataset("s", sales(), "forecast", (Channel("y", ""), Channel("price", "")), "D", 7, 14, Splits(), "y")


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_shuffling_the_rows_changes_nothing(data):
    ids = data.draw(st.lists(st.sampled_from(["a", "b", "10", "9"]), min_size=1, max_size=30))
    frame = pd.DataFrame({"unique_id": ids})
    frame["ds"] = frame.groupby("unique_id").cumcount()
    frame["y"] = np.arange(len(ids), dtype=float)
    order = data.draw(st.permutations(range(len(ids))))
    whole, _ = forecast(frame)
    shuffled, _ = forecast(frame.iloc[list(order)])
    pd.testing.assert_frame_equal(shuffled, whole)
    assert whole.equals(whole.sort_values(["unique_id", "ds"]))


def test_sorting_is_noted_where_time_ran_backwards():
    two = pd.concat([sales().assign(unique_id="b"), sales().assign(unique_id="a")])
    checked, notes = forecast(two)
    assert checked["unique_id"].is_monotonic_increasing
    assert notes == ()
    _, notes = forecast(sales().iloc[[1, 0, 2, 3, 4, 5]])
    assert notes == ("sales.csv: 2 rows were out of order and have been sorted by time.",)


TICKS = ["D", "B", "h", "min", "s", "15min", "10min", "250ms", "3D", "W-SUN", "W-TUE", "2W-SUN"]
MONTHS = ["MS", "ME", "2MS", "6MS", "QS", "QS-FEB", "QS-MAR", "QE", "QE-OCT", "QE-NOV", "YS", "YE", "YS-APR", "YE-MAR"]


@pytest.mark.parametrize("alias", TICKS + MONTHS)
def test_the_step_is_inferred_from_stamps_with_gaps(alias):
    frame = pd.DataFrame({"unique_id": "a", "ds": pd.date_range("2001-01-01", periods=60, freq=alias), "y": 1.0})
    checked, _ = forecast(frame.drop(index=[5, 6, 17, 29]))
    assert infer_freq(checked, "s") == alias


def test_business_days_need_a_weekend_that_is_never_seen():
    assert infer_freq(forecast(sales(5))[0], "s") == "D"  # Monday to Friday: no weekend was passed
    assert infer_freq(forecast(sales(8).drop(index=[5, 6]))[0], "s") == "B"


@pytest.mark.parametrize(("times", "step"), [([1, 2, 3, 7], 1), ([10, 20, 30, 50], 10), ([0.0, 0.1, 0.2, 0.5], 0.1)])
def test_the_step_is_inferred_from_numbers(times, step):
    assert infer_freq(forecast(sales(4).assign(ds=times))[0], "s") == step


@pytest.mark.parametrize(("hertz", "step"), [(60, 1 / 60), (50, 0.02), (59.94, 1 / 59.94)])
def test_the_step_of_a_recording_of_hours_keeps_its_frames_apart(hertz, step):
    clock = np.arange(1_000_000) / hertz + np.random.default_rng(0).uniform(-0.1, 0.1, 1_000_000) / hertz
    frame = pd.DataFrame({"unique_id": "a", "ds": clock, "y": 1.0})
    found = infer_freq(frame, "s")
    assert found == pytest.approx(step, rel=3e-7)
    np.testing.assert_array_equal(np.rint((clock - clock[0]) / found), np.arange(len(clock)))


def test_the_step_of_a_jittering_clock_is_its_median():
    clock = np.arange(500) * 0.01 + np.random.default_rng(0).uniform(-0.002, 0.002, 500)
    assert infer_freq(forecast(sales(500).assign(ds=clock))[0], "s") == pytest.approx(0.01, rel=0.05)


@pytest.mark.parametrize(
    "times", [[1, 2, 4, 8, 16], pd.to_datetime(["2024-01-01", "2024-01-02", "2024-01-05", "2024-02-01"])]
)
def test_an_irregular_series_has_no_step(times):
    with pytest.raises(FrameError, match=r"the step cannot be inferred: .*--freq"):
        infer_freq(forecast(sales(len(times)).assign(ds=times))[0], "s")
    with pytest.raises(FrameError, match=r"no series has two rows. Give it with --freq"):
        infer_freq(forecast(sales(1))[0], "s")


@pytest.mark.parametrize(
    ("time", "shown"),
    [
        (np.datetime64("2024-01-31"), "2024-01-31"),
        (np.datetime64("2024-01-31T06:30"), "2024-01-31 06:30:00"),
        (np.int64(1_000_000), "1000000"),
        (0.1 + 0.2, "0.3"),
        (1 / 30, "0.033333333"),
        (np.float64(1_700_000_000.25), "1700000000.25"),
    ],
)
def test_a_time_is_shown_whole_and_without_noise(time, shown):
    assert show_time(time) == shown


@pytest.mark.parametrize("start", [0.0, 10_000.0, 1_700_000_000.0])
def test_no_two_seconds_of_a_sensor_are_shown_alike(start):
    assert len({show_time(time) for time in start + np.arange(2000) / 200}) == 2000
