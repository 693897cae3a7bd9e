"""Files: what is read from them, and what is said when they cannot be read."""

import gzip
import re

import numpy as np
import pandas as pd
import pytest

from data.frame import Channel, FrameError
from data.readers import default_horizon, default_season, read_source


@pytest.fixture
def table() -> pd.DataFrame:
    days = pd.date_range("2024-01-01", periods=20)
    return pd.DataFrame(
        {"unique_id": np.repeat(["a", "b"], 20), "ds": np.tile(days, 2), "y": np.arange(40.0), "price": 2.0}
    )


@pytest.mark.parametrize("extension", ["csv", "csv.gz", "parquet"])
def test_every_format_gives_the_same_data_set(table, tmp_path, extension):
    path = tmp_path / f"sales.{extension}"
    table.to_parquet(path) if extension == "parquet" else table.to_csv(path, index=False)
    data = read_source(path)
    pd.testing.assert_frame_equal(data.frame, table[["unique_id", "ds", "y"]])
    assert (data.name, data.freq, data.season, data.horizon) == (path.name, "D", 7, 14)
    assert data.channels == (Channel("y", ""),)
    assert "price" in data.notes[0]


def test_columns_by_other_names_and_covariates(table, tmp_path):
    path = tmp_path / "sales.csv"
    # A column that has our name but another role must not be taken for the target.
    table.rename(columns={"unique_id": "shop", "ds": "day", "y": "sold", "price": "y"}).to_csv(path, index=False)
    data = read_source(path, id="shop", time="day", target="sold")
    assert data.frame["y"].tolist() == list(range(40))
    table.to_csv(path, index=False)
    data = read_source(str(path), target="price")
    assert (data.frame["y"] == 2.0).all()
    data = read_source(path, covariates=["price"])
    assert [channel.name for channel in data.channels] == ["y", "price"]
    with pytest.raises(FrameError, match=r"no column cost; found unique_id, ds, y, price\. .*--covariates"):
        read_source(path, covariates=["cost"])


def test_a_file_without_an_id_is_one_series_with_the_files_name(table, tmp_path):
    for name in ("oslo", "bergen"):
        table[:20].drop(columns="unique_id").to_csv(tmp_path / f"{name}.csv", index=False)
    assert read_source(tmp_path / "oslo.csv").frame["unique_id"].unique().tolist() == ["oslo"]
    both = read_source(str(tmp_path / "*.csv"))
    assert both.frame["unique_id"].unique().tolist() == ["bergen", "oslo"]
    with pytest.raises(FrameError, match="no column city; found"):
        read_source(tmp_path / "oslo.csv", id="city")


@pytest.mark.parametrize(("header", "wide"), [("unique_id,ds,y,y", False), ("ds,north,north", True)])
def test_two_columns_of_one_name_are_refused(tmp_path, header, wide):
    path = tmp_path / "twice.csv"
    path.write_text(f"{header}\n" + "a,2024-01-01,1,2\n"[0 if not wide else 2 :])
    with pytest.raises(
        FrameError, match=rf"{path}: column {header[-1] if not wide else 'north'} occurs more than once"
    ):
        read_source(path, wide=wide)


def test_columns_without_a_name_and_lines_before_the_header_are_passed_over(table, tmp_path):
    path = tmp_path / "exported.csv"
    body = table[["unique_id", "ds", "y"]].to_csv(index=False)
    path.write_text("\ufeff\n  \n" + body.replace("\n", ",,\n"), encoding="utf-8")
    pd.testing.assert_frame_equal(read_source(path).frame, table[["unique_id", "ds", "y"]])
    path.write_text("\n\n" + body.replace("39.0", "some"))
    with pytest.raises(FrameError, match="y is 'some' in line 43 "):  # two blank, the header, forty rows
        read_source(path)


@pytest.mark.parametrize("name", ["damaged.csv", "damaged.csv.gz"])
def test_a_nul_byte_is_an_error_not_the_end_of_a_number(table, tmp_path, name):
    path = tmp_path / name
    content = table.to_csv(index=False).encode().replace(b",12.0,", b",1\x002.0,")
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(FrameError, match=rf"{name}: line 14 holds a NUL byte.*Copy it anew"):
        read_source(path)


def test_a_covariate_that_has_our_name_for_the_target_is_to_be_renamed(table, tmp_path):
    path = tmp_path / "sales.csv"
    table.rename(columns={"y": "sold", "price": "y"}).to_csv(path, index=False)
    with pytest.raises(FrameError, match=r"y cannot be a covariate: our frames call a column of their own so.*rename"):
        read_source(path, target="sold", covariates=["y"])
    assert read_source(path, target="sold").notes[0].startswith("sales.csv: not used: y. ")


def test_files_of_a_glob_that_share_a_name_keep_apart(table, tmp_path):
    for year in ("2023", "2024"):
        (tmp_path / year).mkdir()
        table[:20].drop(columns="unique_id").to_parquet(tmp_path / year / "oslo.parquet")
    data = read_source(str(tmp_path / "*" / "oslo.parquet"))
    assert [name.split("/")[-2:] for name in data.frame["unique_id"].unique()] == [["2023", "oslo"], ["2024", "oslo"]]


@pytest.mark.parametrize("pattern", ["*.csv", "a.csv"])
def test_a_link_to_nowhere_is_named_and_not_left_out(table, tmp_path, pattern):
    table.to_csv(tmp_path / "b.csv", index=False)
    (tmp_path / "a.csv").symlink_to("nowhere.csv")
    with pytest.raises(
        FrameError, match=r"a\.csv: is listed but not there: a link to nowhere, or a file that has just"
    ):
        read_source(tmp_path / pattern)


def test_files_of_a_glob_need_the_same_columns_and_errors_name_the_file(table, tmp_path):
    table[:20].to_csv(tmp_path / "a.csv", index=False)
    table[20:].drop(columns="price").to_csv(tmp_path / "b.csv", index=False)
    with pytest.raises(FrameError, match=r"b\.csv: its columns are unique_id, ds, y, but those of .*a\.csv are"):
        read_source(str(tmp_path / "*.csv"))
    table[:20].to_csv(tmp_path / "b.csv", index=False)
    with pytest.raises(FrameError, match=r"first 2024-01-01 in a\.csv, line 2 and b\.csv, line 2"):
        read_source(str(tmp_path / "*.csv"))


def test_a_wide_table_has_a_series_per_column(tmp_path):
    path = tmp_path / "wide.csv"
    path.write_text("date,oslo,bergen\n2024-01-01,1,2\n2024-01-02,3,\n2024-01-03,5,6\n")
    data = read_source(path, wide=True)
    assert data.frame["unique_id"].tolist() == ["bergen"] * 3 + ["oslo"] * 3
    np.testing.assert_array_equal(data.frame["y"], [2, np.nan, 6, 1, 3, 5])
    path.write_text("date,oslo,bergen\n2024-01-01,1,2\n2024-01-02,3,x\n")
    with pytest.raises(FrameError, match=r"y is 'x' in line 3 \(series bergen"):
        read_source(path, wide=True)
    with pytest.raises(FrameError, match=r"no column when; found date, oslo, bergen\. .*--time"):
        read_source(path, wide=True, time="when")
    with pytest.raises(FrameError, match="no covariates"):
        read_source(path, wide=True, covariates=["oslo"])


def test_classification_takes_all_numeric_columns_and_keeps_names_as_text(tmp_path):
    path = tmp_path / "gestures.csv"
    path.write_text("unique_id,ds,x,z,who,label\n007,0.0,1,2,ann,NA\n007,0.1,1,2,ann,NA\nNA,0.0,1,,bob,None\n")
    data = read_source(path, task="classify")
    assert [channel.name for channel in data.channels] == ["x", "z"]
    assert data.frame["unique_id"].tolist() == ["007", "007", "NA"]
    assert data.frame["label"].tolist() == ["NA", "NA", "None"]
    assert data.freq == pytest.approx(0.1)
    assert "who" in data.notes[0]


def test_one_bad_cell_of_a_sensor_is_an_error_and_not_a_lost_channel(tmp_path):
    path = tmp_path / "gestures.csv"
    path.write_text("unique_id,ds,x,label\na,0,1,k\na,1,oops,k\na,2,1,k\n")
    with pytest.raises(FrameError, match="x is 'oops' in line 3"):
        read_source(path, task="classify")


def test_series_of_one_row_have_no_step(tmp_path):
    path = tmp_path / "shapes.csv"
    path.write_text("unique_id,ds,x,label\na,0,1,k\nb,0,2,m\n")
    assert read_source(path, task="classify").freq is None


def test_columns_that_are_missing_are_named_beside_those_that_the_file_has(tmp_path):
    frame = pd.DataFrame({"take": ["a", "b"], "t": 0, "x": 1.0, "gesture": ["up", "down"]})
    frame.to_csv(tmp_path / "takes.csv", index=False)
    with pytest.raises(
        FrameError,
        match=r"takes\.csv: no column ds, label; found take, t, x, gesture\. Name the right one with --time, --target",
    ):
        read_source(tmp_path / "takes.csv", task="classify")


def test_labels_are_not_needed_for_a_prediction(tmp_path):
    path = tmp_path / "new.csv"
    path.write_text("unique_id,ds,x\na,0,1\na,1,2\n")
    with pytest.raises(FrameError, match="no column label"):
        read_source(path, task="classify")
    data = read_source(path, task="classify", target_required=False, channels=[Channel("x", "V", 0, 5)])
    assert data.frame["label"].isna().all()


def test_rows_are_counted_as_in_the_file(tmp_path):
    path = tmp_path / "sales.csv"
    path.write_text("ds,y\n2024-01-01,1\n\n2024-01-02,many\n\n")
    with pytest.raises(FrameError, match=r"sales\.csv: y is 'many' in line 4 \(series sales, 1 of 2 rows"):
        read_source(path)


def test_no_such_file_suggests_similar_ones(table, tmp_path):
    table.to_csv(tmp_path / "sales.csv", index=False)
    with pytest.raises(FrameError, match=r"sale\.csv: no such file\. Similar: sales\.csv\. `mnemo datasets`"):
        read_source(tmp_path / "sale.csv")
    with pytest.raises(FrameError, match="no file matches this pattern"):
        read_source(str(tmp_path / "x*.parquet"))
    with pytest.raises(FrameError, match=r"this is a folder\. Give a file, or a pattern"):
        read_source(tmp_path)


def test_an_unknown_extension_lists_the_known_ones(tmp_path):
    (tmp_path / "sales.xlsx").write_text("x")
    with pytest.raises(FrameError, match=r"cannot read \.xlsx; known: \.csv, \.csv\.gz, \.parquet"):
        read_source(tmp_path / "sales.xlsx")


@pytest.mark.parametrize("name", ["sales.csv", "sales.csv.gz", "sales.parquet"])
def test_an_empty_file(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(FrameError, match="the file is empty"):
        read_source(tmp_path / name)


def test_a_header_without_rows(tmp_path):
    (tmp_path / "sales.csv").write_text("ds,y\n")
    with pytest.raises(FrameError, match=r"sales\.csv: no rows"):
        read_source(tmp_path / "sales.csv")


def test_a_truncated_parquet_and_a_truncated_gzip(table, tmp_path):
    path = tmp_path / "sales.parquet"
    table.to_parquet(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(FrameError, match=r"sales\.parquet: not a whole Parquet file .*truncated or damaged"):
        read_source(path)
    path = tmp_path / "sales.csv.gz"
    path.write_bytes(gzip.compress(table.to_csv(index=False).encode())[:-40])
    with pytest.raises(FrameError, match="not a whole gzip file"):
        read_source(path)
    path.write_bytes(b"ds,y\n1,2\n")
    with pytest.raises(FrameError, match="not a whole gzip file"):
        read_source(path)


def test_a_csv_that_is_not_utf8_or_not_a_table(tmp_path):
    path = tmp_path / "sales.csv"
    rows = "".join(f"{day},1\n" for day in pd.date_range("1900-01-01", periods=30_000, freq="D").date)  # some pieces
    for text, said in (
        ("ds,y\n2024-01-01,1\n2024-01-02,3 µm\n", "line 3 holds the byte 0xb5 after '2024-01-02,3 ', which is not"),
        (f"ds,y\n{rows}2024-01-02,é\n", "line 30002 holds the byte 0xe9 after '2024-01-02,', which is not UTF-8. Save"),
        ("ds,µ\n2024-01-01,1\n", "line 1 holds the byte 0xb5 after 'ds,', which is not UTF-8"),
    ):
        path.write_bytes(text.encode("latin-1"))
        with pytest.raises(FrameError, match=re.escape(said)):
            read_source(path)
    path.write_text("ds,y\n1,2\n3,4,5\n")
    with pytest.raises(FrameError, match="not a table with commas"):
        read_source(path)
    path.write_text("ds,y\n1,2,3\n3,4,5\n")
    with pytest.raises(FrameError, match=r"more fields than the header \(2\)"):
        read_source(path)


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path):
    (tmp_path / "sales.csv").write_text("\ufeffds,y\n1,2\n2,4\n", encoding="utf-8")
    assert read_source(tmp_path / "sales.csv").freq == 1


def test_a_parquet_written_with_its_keys_as_index(table, tmp_path):
    table.set_index(["unique_id", "ds"]).to_parquet(tmp_path / "sales.parquet")
    assert len(read_source(tmp_path / "sales.parquet").frame) == 40


STEPS = {
    "h": (24, 48), "D": (7, 14), "B": (1, 5), "W-TUE": (52, 13), "MS": (12, 18), "ME": (12, 18), "BME": (12, 18),
    "QE-OCT": (4, 8), "YS-APR": (1, 6), "15min": (96, 96), "10min": (144, 144), "7s": (1, 10),
    1: (1, 10), 0.1: (1, 10), None: (1, 10),
}  # fmt: skip


@pytest.mark.parametrize(("freq", "expected"), STEPS.items(), ids=str)
def test_seasons_and_horizons(freq, expected):
    assert (default_season(freq), default_horizon(freq)) == expected
