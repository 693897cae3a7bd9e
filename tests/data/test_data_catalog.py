"""Every named data set loads, passes its own check and has clean splits; `load` says what it does not know."""

import os

import numpy as np
import pandas as pd
import pytest

from data import catalog
from data.files import DATA_DIR
from data.frame import Channel, FrameError, check_frame
from data.panel import labels_of, to_panel

ENTRIES = catalog.entries()
# A million rows each: their reader is shared with smaller sets, so they are loaded once and checked less.
LARGE = ("ltsf/weather", "ltsf/ETTm1", "myo_wrist")

NOT_SHARED = ("uc2017_dg",)  # its reader is tested on files of its layout, in test_uc2017.py


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_every_data_set_loads_and_is_what_it_says(entry):
    if not entry.embedded and not os.environ.get(DATA_DIR):
        pytest.skip(f"{DATA_DIR} is not set: {entry.how_to_get()}")
    if entry.name in NOT_SHARED and not entry.available():
        pytest.skip(f"not among the shared data: {entry.how_to_get()}")
    assert entry.available(), entry.how_to_get()
    assert entry.size_bytes > 0
    data = catalog.load(entry.name)
    assert (data.name, data.task) == (entry.name, entry.task)
    if entry.name not in LARGE:
        again, notes = check_frame(data.frame, source=data.name, task=data.task, channels=data.channels)
        pd.testing.assert_frame_equal(again, data.frame[again.columns])
        assert notes == ()
    panel = to_panel(data)
    assert {one.unique_id for one in panel} == set(data.frame["unique_id"].unique())
    assert all(one.values.shape == (len(one.ds), len(data.channels)) for one in panel)
    if data.task == "classify":
        assert len(labels_of(data)) > 1
        assert all((one.target >= 0).any() for one in panel)
    assert {channel.name for channel in data.spare} <= set(data.frame.columns)
    check_splits(data, panel)


def check_splits(data, panel) -> None:
    splits = data.splits
    ids = {one.unique_id for one in panel}
    if splits.entity is not None:
        assert set(splits.entity) == ids
        assert set(splits.entity.values()) <= {"train", "validation", "test"}
        assert "train" in splits.entity.values()
    if splits.group is not None:
        assert set(splits.group) == ids
    if splits.entity is not None and splits.group is not None:
        groups = {(splits.group[name], part) for name, part in splits.entity.items()}
        assert len(groups) == len(set(splits.group.values())), "a group is in two parts"
    if splits.train_until is not None:
        ds = data.frame["ds"]
        assert (
            ds.min() < splits.train_until < splits.validation_until < splits.test_until <= ds.max() + pd.Timedelta("7D")
        )
        assert (ds > splits.validation_until).any()
    if splits.test_size is not None:
        assert min(len(one.ds) for one in panel) > splits.test_size
    assert any(part is not None for part in (splits.entity, splits.train_until, splits.test_size))


def needs(name: str):
    entry = next(entry for entry in ENTRIES if entry.name == name)
    return pytest.mark.skipif(not entry.available(), reason=f"{name} needs {DATA_DIR}")


@needs("ltsf/ETTh1")
def test_parts_of_the_long_tables_have_the_rows_of_the_literature():
    for name, sizes in {
        "ltsf/ETTh1": (8640, 2880, 2880),
        "ltsf/exchange_rate": (5311, 760, 1517),
        "ltsf/national_illness": (676, 97, 193),
    }.items():
        data = catalog.load(name)
        one = data.frame[data.frame["unique_id"] == "OT"]["ds"]
        ends = [data.splits.train_until, data.splits.validation_until, data.splits.test_until]
        assert np.diff([0, *(int((one <= end).sum()) for end in ends)]).tolist() == list(sizes), name


@needs("ltsf/weather")
def test_weather_is_mended_and_says_so():
    data = catalog.load("ltsf/weather")
    assert (data.frame["y"] > -9000).sum() == len(data.frame) - 81
    assert "SWDR (W/m2)" in set(data.frame["unique_id"])
    assert "PAR (umol/m2/s)" in set(data.frame["unique_id"])
    assert any("81 values of -9999" in note for note in data.notes)
    assert any("1 repeated time(s)" in note for note in data.notes)


@needs("m4/hourly")
def test_a_competition_series_ends_with_its_test_part():
    data = catalog.load("m4/hourly")
    source = pd.read_parquet(next(e for e in ENTRIES if e.name == "m4/hourly").paths()[0]).set_index("id")
    y = data.frame.loc[data.frame["unique_id"] == "H7", "y"].to_numpy()
    np.testing.assert_array_equal(y[-data.splits.test_size :], source.loc["H7", "test"])
    np.testing.assert_array_equal(y[: -data.splits.test_size], source.loc["H7", "train"])


def test_the_index_is_the_close_in_points():
    data = catalog.load("sp500")
    assert data.channels == (Channel("y", "points", low=0.0),)
    assert (data.freq, data.season, data.horizon) == ("B", 1, 5)
    first = data.frame.iloc[0]
    assert (first["ds"], first["y"]) == (pd.Timestamp("1999-01-04"), pytest.approx(1228.099976))


def test_basic_motions_keeps_the_archives_halves():
    data = catalog.load("basic_motions")
    parts = pd.Series(data.splits.entity).value_counts()
    assert parts.to_dict() == {"train": 30, "validation": 10, "test": 40}
    assert len(data.channels) == 6
    assert labels_of(data) == ("badminton", "running", "standing", "walking")


@pytest.mark.parametrize("name", ["battery_simulated", "gestures_demo"])
def test_simulated_data_is_called_simulated(name):
    entry = next(entry for entry in ENTRIES if entry.name == name)
    assert "SIMULATED" in entry.summary
    assert "Simulated" in entry.origin


def test_covariates_are_chosen_by_name():
    data = catalog.load("sp500", covariates=["volume", "high"], id="unique_id", target=None)
    assert [channel.name for channel in data.channels] == ["y", "volume", "high"]
    assert to_panel(data)[0].values.shape[1] == 3
    with pytest.raises(FrameError, match=r"no column hihg for --covariates; known: open, high, low, close"):
        catalog.load("sp500", covariates=["hihg"])
    motions = catalog.load("basic_motions", covariates=["gyro_x"])
    assert [channel.name for channel in motions.channels] == ["gyro_x"]


def test_another_column_can_be_the_target():
    data = catalog.load("battery_simulated", target="resistance", covariates=["temperature"])
    assert data.channels[0] == Channel("y", "mohm", low=0.0)
    assert data.frame["y"].between(30, 70).all()
    assert catalog.load("sp500", target="y").frame.equals(catalog.load("sp500").frame)
    with pytest.raises(FrameError, match="the target of classify is label"):
        catalog.load("basic_motions", target="gyro_x")


def test_channels_of_a_bundle_must_agree_in_unit():
    wanted = [Channel("y", "Ah"), Channel("temperature", "degC")]
    assert len(catalog.load("battery_simulated", channels=wanted).channels) == 2
    with pytest.raises(FrameError, match=r"channel temperature is in degC, expected temperature in K"):
        catalog.load("battery_simulated", channels=[wanted[0], Channel("temperature", "K")])


def test_options_that_do_not_suit_a_named_set_are_refused():
    with pytest.raises(FrameError, match="wide is an option for files"):
        catalog.load("sp500", wide=True)
    with pytest.raises(FrameError, match="a data set for forecast, not for classify"):
        catalog.load("sp500", task="classify")
    with pytest.raises(FrameError, match="unknown option season"):
        catalog.load("sp500", season=3)
    assert catalog.load("sp500", freq="D").season == 7


def test_an_unknown_name_lists_the_known_ones_close_ones_first():
    with pytest.raises(FrameError, match=r"sp50: no data set .*Did you mean sp500\? Known: sp500, .*nasdaq"):
        catalog.load("sp50")


def test_paths_and_prefixes_are_read_as_files(tmp_path):
    path = tmp_path / "sales.csv"
    path.write_text("ds,y\n1,2\n2,4\n")
    for source in (str(path), f"csv:{path}", str(tmp_path / "*.csv")):
        assert catalog.load(source).frame["y"].tolist() == [2, 4]
    with pytest.raises(FrameError, match="no such file"):
        catalog.load(str(tmp_path / "purchases.csv"))


def test_shared_sets_say_how_to_get_them(monkeypatch, tmp_path):
    entry = next(entry for entry in ENTRIES if entry.name == "nasa_pcoe")
    monkeypatch.delenv(DATA_DIR, raising=False)
    assert not entry.available()
    assert entry.size_bytes is None
    with pytest.raises(FrameError, match=r"MNEMO_DATA_DIR is not set\. .*nasa_pcoe/capacity\.csv\. .*Saha & Goebel"):
        catalog.load("nasa_pcoe")
    monkeypatch.setenv(DATA_DIR, str(tmp_path))
    with pytest.raises(FrameError, match=r"no file .*capacity\.csv \(MNEMO_DATA_DIR is .*Saha & Goebel"):
        catalog.load("nasa_pcoe")
    assert "Saha & Goebel" in entry.how_to_get()


def test_names_are_unique_and_each_says_where_it_is_from():
    names = [entry.name for entry in ENTRIES]
    assert len(names) == len(set(names)) == 39
    assert all(entry.summary and entry.licence and entry.origin for entry in ENTRIES)
