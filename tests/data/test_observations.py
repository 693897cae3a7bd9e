from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import observations
from data import store as stores
from data.catalog import load
from data.frame import FrameError
from data.observations import Recorded, as_of, forget, record
from data.store import Store, StoreError

FIRST, SECOND, THIRD = (datetime(2024, month, 1, tzinfo=UTC) for month in (2, 3, 4))
SALES = pd.DataFrame({
    "unique_id": ["a", "a", "a", "ü'; drop"],
    "ds": pd.to_datetime(["2024-01-01", "2024-01-02", "2024-01-03 04:05:06.789", "2024-01-01"], format="ISO8601"),
    "y": [1 / 3, np.nan, -1e14, 4.0],
    "temp": [3.0, 4.0, np.nan, 6.0],
})  # fmt: skip


OBSERVED = st.tuples(st.sampled_from("ab"), st.integers(0, 2))  # a series and a time


def changed(frame, row, **values):
    other = frame.copy()
    for name, value in values.items():
        other.loc[row, name] = value
    return other


def test_what_was_known_at_each_time_comes_back_to_the_digit(store):
    assert record(store, SALES, FIRST) == Recorded(4, 0, 0)
    assert record(store, SALES, SECOND) == Recorded(0, 0, 4)
    corrected = changed(SALES, 1, y=2.5)
    assert record(store, corrected, THIRD) == Recorded(0, 1, 3)
    pd.testing.assert_frame_equal(as_of(store, FIRST), SALES)
    pd.testing.assert_frame_equal(as_of(store, THIRD - timedelta(microseconds=1)), SALES)
    for moment in (THIRD, None):
        pd.testing.assert_frame_equal(as_of(store, moment), corrected)
    with pytest.raises(
        FrameError, match=r"nothing is known of such series at 2024-01-31.*it holds 2 series, such as a"
    ):
        as_of(store, FIRST - timedelta(hours=1))


def test_what_became_known_late_does_not_hide_what_is_known_since(store):
    later = changed(SALES, 0, y=9.0)
    record(store, later, THIRD)
    assert record(store, SALES, FIRST) == Recorded(4, 0, 0)
    pd.testing.assert_frame_equal(as_of(store, SECOND), SALES)
    pd.testing.assert_frame_equal(as_of(store), later)


def test_a_correction_to_missing_and_a_new_column_are_kept(store):
    record(store, SALES, FIRST)
    record(store, changed(SALES, 0, y=np.nan).assign(price=[1.0, 2.0, 3.0, np.nan]), SECOND)
    known = as_of(store)
    assert list(known) == ["unique_id", "ds", "y", "price", "temp"]
    assert np.isnan(known["y"][0])
    assert "price" not in as_of(store, FIRST)


@pytest.mark.parametrize("times", [[3, 20, 100], [0.1, 1 / 3, 20.0]], ids=["cycles", "seconds"])
def test_times_that_are_no_dates_come_back_in_their_order(store, times):
    frame = pd.DataFrame({"unique_id": "cell", "ds": times, "label": ["left", None, "right"], "volt": [1.0, 2.0, 3.0]})
    record(store, frame)
    pd.testing.assert_frame_equal(as_of(store), frame)


def test_times_of_two_kinds_are_told_apart_by_the_names_of_series(store):
    record(store, SALES)
    cycles = pd.DataFrame({"unique_id": ["cell"], "ds": [1], "y": [2.0]})
    record(store, cycles)
    with pytest.raises(
        FrameError, match=r"the times are dates for a and cycles for cell\. Choose series with a pattern"
    ):
        as_of(store)
    pd.testing.assert_frame_equal(as_of(store, series="c?ll"), cycles)
    with pytest.raises(FrameError, match=r"series a: the store knows its times as dates, here they are cycles"):
        record(store, cycles.assign(unique_id="a"))


def test_a_time_to_come_is_refused_and_so_is_a_correction_behind_what_was_heard_since(store):
    with pytest.raises(StoreError, match="is to come; give a time until now"):
        record(store, SALES, datetime.now(UTC) + timedelta(hours=1))
    with pytest.raises(StoreError, match="is to come"):
        as_of(store, datetime.now(UTC) + timedelta(hours=1))
    record(store, SALES, FIRST)
    corrected = changed(SALES, 3, y=5.0)
    refusal = (
        r"series ü'; drop: was heard of as of 2024-0[23]-01.*known by 2024-02-01.*not correct it, as at 2024-01-01"
    )
    with pytest.raises(StoreError, match=refusal):
        record(store, corrected, FIRST)
    record(store, SALES, SECOND)  # which makes no row
    with pytest.raises(StoreError, match=refusal):
        record(store, corrected, FIRST)
    pd.testing.assert_frame_equal(as_of(store), SALES)


def test_of_many_series_all_are_kept_or_none(store, monkeypatch):
    monkeypatch.setattr(observations, "MANY", 2)
    many = pd.DataFrame({"unique_id": list("aabbccddde"), "ds": [0, 1] * 3 + [0, 1, 2, 0], "y": np.arange(10.0)})
    record(store, many[8:], FIRST)
    with pytest.raises(StoreError, match="series d: was heard of"):
        record(store, changed(many, 8, y=-1.0), FIRST)
    assert len(as_of(store)) == 2
    assert record(store, many) == Recorded(8, 0, 2)
    pd.testing.assert_frame_equal(as_of(store), many)


def test_what_was_corrected_before_a_time_can_be_forgotten_and_is_refused_from_then_on(store):
    for moment, value in ((FIRST, 1.0), (SECOND, 2.0), (THIRD, 3.0)):
        record(store, changed(SALES, 0, y=value), moment)
    after, now = as_of(store, SECOND), as_of(store)
    assert forget(store, SECOND) == 1
    pd.testing.assert_frame_equal(as_of(store, SECOND), after)
    pd.testing.assert_frame_equal(as_of(store), now)
    with pytest.raises(StoreError, match=r"what was known at 2024-02-01.* was forgotten.*ask for 2024-03-01"):
        as_of(store, FIRST)
    assert forget(store, FIRST) == 0
    with pytest.raises(StoreError, match=r"ask for 2024-03-01"):
        as_of(store, FIRST)


def test_several_that_ingest_at_once_are_taken_one_after_another(store):
    def ingest(number):
        opened = Store(store.url)
        try:
            return record(opened, SALES.assign(y=float(number)))
        finally:
            opened.close()

    with ThreadPoolExecutor(6) as pool:
        done = list(pool.map(ingest, range(6)))
    assert sorted((one.new, one.corrected) for one in done) == [(0, 4)] * 5 + [(4, 0)]
    assert as_of(store)["y"].nunique() == 1


def test_who_reads_does_not_wait_for_who_ingests(store):
    record(store, SALES)
    with store.writing() as connection:
        store.one_at_a_time(connection, stores.INGESTING)
        other = Store(store.url)
        pd.testing.assert_frame_equal(as_of(other), SALES)
        other.close()


@settings(max_examples=25)
@given(data=st.data())
def test_the_newest_row_until_a_time_stands_whatever_the_order_of_arrival(data, tmp_path_factory):
    place = tmp_path_factory.mktemp("store") / "s.db"
    versions = data.draw(
        st.lists(
            st.tuples(st.integers(0, 9), st.dictionaries(OBSERVED, st.integers(0, 3), min_size=1)),
            min_size=1,
            max_size=6,
            unique_by=lambda version: version[0],
        )
    )
    store = Store(f"sqlite:///{place}")
    moments, refused = [FIRST + timedelta(days=day) for day in range(10)], set()
    for day, values in versions:
        rows = sorted((series, time, float(value)) for (series, time), value in values.items())
        try:
            record(store, pd.DataFrame(rows, columns=["unique_id", "ds", "y"]), moments[day])
        except StoreError:
            refused.add(day)
            assert any(other > day for other, _ in versions)
    for day in range(10):
        expected = {}
        for _, values in sorted(version for version in versions if version[0] <= day and version[0] not in refused):
            expected |= values
        if expected:
            known = as_of(store, moments[day])
            assert dict(zip(zip(known["unique_id"], known["ds"], strict=True), known["y"], strict=True)) == expected
    store.close()


def test_a_store_is_a_source(tmp_path, monkeypatch):
    url = f"sqlite:///{tmp_path / 's.db'}"
    days = pd.date_range("2024-01-01", periods=40)
    frame = pd.concat(
        pd.DataFrame({"unique_id": name, "ds": days, "y": np.arange(40.0), "temp": 1.0})
        for name in ("shop-1", "till-1")
    )
    with pytest.raises(
        FrameError, match=r"store:\*: nothing is known of such series in .*; it holds none\. `mnemo store"
    ):
        load("store:", store=url)
    record(Store(url), frame)
    monkeypatch.setenv("MNEMO_STORE", url)
    whole, shops = load("store:"), load("store:shop-*", covariates=["temp"])
    assert (whole.freq, whole.season, len(whole.frame)) == ("D", 7, 80)
    assert [channel.name for channel in whole.channels] == ["y"]
    assert [channel.name for channel in shops.channels] == ["y", "temp"]
    assert set(shops.frame["unique_id"]) == {"shop-1"}
    with pytest.raises(FrameError, match="store:: wide is an option for files"):
        load("store:", wide=True)
    with pytest.raises(FrameError, match=r"store:: no column sold; found unique_id, ds, y, temp\..*--target"):
        load("store:", target="sold")
    with pytest.raises(
        FrameError, match=r"nothing is known of such series in .*it holds 2 series, such as shop-1, till-1"
    ):
        load("store:shop")


def test_a_store_that_does_not_open_is_a_source_that_is_not_there(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(FrameError, match=r"store:a\*: sqlite:///.*file/s\.db: cannot be opened"):
        load("store:a*", store=f"sqlite:///{tmp_path / 'file' / 's.db'}")


def test_where_a_value_of_a_store_is_wrong_is_said_by_its_series_and_time(tmp_path):
    url = f"sqlite:///{tmp_path / 's.db'}"
    frame = pd.DataFrame(
        {"unique_id": "a", "ds": pd.date_range("2024-01-01", periods=3), "y": 1.0, "size": ["1", "x", "2"]}
    )
    record(Store(url), frame)
    with pytest.raises(FrameError, match="size is 'x' in the observation of a at 2024-01-02"):
        load("store:", covariates=["size"], store=url)
