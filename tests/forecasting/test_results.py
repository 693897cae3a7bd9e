import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from data.frame import Channel, Dataset, Splits
from forecasting.backtest import Report, backtest
from forecasting.results import ResultError, find_results, write_report, write_whole
from forecasting.task import Task

FILES = ["leaderboard.csv", "forecasts.parquet", "history.parquet", "run.json"]  # in the order they are written


@pytest.fixture(scope="module")
def report() -> Report:
    frame = pd.DataFrame({"unique_id": "a", "ds": pd.date_range("2024-01-01", periods=60, freq="D")})
    frame["y"] = np.random.default_rng(0).normal(size=60).cumsum()
    data = Dataset("toy", frame, "forecast", (Channel("y", "EUR"),), "D", 7, 3, Splits(), "y")
    return backtest(data, [], Task.of(data), test_size=10).with_notes(["one row was mended."])


def write(report, folder, **more) -> None:
    write_report(report, folder, dataset="toy", seed=3, settings={"lags": "12"}, **more)


def names_in(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# One file


def test_a_file_is_written_whole(tmp_path):
    write_whole(tmp_path / "a.txt", lambda path: path.write_text("new"))
    assert (tmp_path / "a.txt").read_text() == "new"
    assert names_in(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("problem", [OSError(28, "No space left on device"), RuntimeError("bug"), KeyboardInterrupt()])
def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, problem):
    (tmp_path / "a.txt").write_text("old")

    def half(path):
        path.write_text("ne")
        raise problem

    expected = ResultError if isinstance(problem, OSError) else type(problem)
    with pytest.raises(expected) as caught:
        write_whole(tmp_path / "a.txt", half)
    if expected is ResultError:
        assert str(caught.value) == (
            f"{tmp_path / 'a.txt'}: could not be written (No space left on device); nothing was changed there."
        )
    assert (tmp_path / "a.txt").read_text() == "old"
    assert names_in(tmp_path) == ["a.txt"]


def test_the_file_appears_only_once_it_is_complete(tmp_path):
    def looking(path):
        path.write_text("half")
        assert not (tmp_path / "a.txt").exists()
        path.write_text("whole")

    write_whole(tmp_path / "a.txt", looking)
    assert (tmp_path / "a.txt").read_text() == "whole"


# A report


def test_what_was_written_is_found_again(report, tmp_path):
    write(report, tmp_path / "new" / "run", bundle="best")
    assert names_in(tmp_path / "new" / "run") == sorted(FILES)
    (found,) = find_results(tmp_path / "new")
    assert (found.name, found.task, found.bundle) == ("run", report.task, tmp_path / "new" / "run" / "best")
    pd.testing.assert_frame_equal(found.leaderboard(), report.leaderboard, check_dtype=False)
    pd.testing.assert_frame_equal(found.forecasts(), report.forecasts)
    pd.testing.assert_frame_equal(found.history(), report.history)
    run = found.run
    assert (run["dataset"], run["seed"], run["settings"], run["schema_version"]) == ("toy", 3, {"lags": "12"}, 1)
    assert run["models"]["ridge"] == report.models["ridge"].config
    assert run["notes"] == ["one row was mended."]


def test_a_run_without_a_bundle_says_so(report, tmp_path):
    write(report, tmp_path)
    assert find_results(tmp_path)[0].bundle is None


def test_a_bundle_that_was_put_beside_a_run_is_its_bundle(report, tmp_path):
    write(report, tmp_path)
    (tmp_path / "bundle").mkdir()
    assert find_results(tmp_path)[0].bundle is None
    (tmp_path / "bundle" / "card.json").write_text("{}")
    assert find_results(tmp_path)[0].bundle == tmp_path / "bundle"


def test_a_newest_forecast_that_was_put_beside_a_run_is_read(report, tmp_path):
    write(report, tmp_path)
    assert find_results(tmp_path)[0].latest() is None
    report.forecasts.to_parquet(tmp_path / "forecast.parquet")
    pd.testing.assert_frame_equal(find_results(tmp_path)[0].latest(), report.forecasts)


def test_runs_that_cannot_be_read_are_collected_beside_those_that_can(report, tmp_path):
    write(report, tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "run.json").write_text("{")
    broken = []
    assert [found.folder for found in find_results(tmp_path, broken)] == [tmp_path / "a"]
    assert [str(tmp_path / "b" / "run.json") in said for said in broken] == [True]


def test_run_json_goes_first_and_comes_last(report, tmp_path, monkeypatch):
    order, replace = [], os.replace

    def watching(part, path):
        assert not (tmp_path / "run.json").exists()
        order.append(path.name)
        replace(part, path)

    monkeypatch.setattr(os, "replace", watching)
    write(report, tmp_path)
    assert order == FILES
    order.clear()
    write(report, tmp_path)
    assert order == FILES


@pytest.mark.parametrize("problem", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("last", FILES)
def test_a_write_that_breaks_off_leaves_the_result_of_before(report, tmp_path, monkeypatch, last, problem):
    write(report, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def half(path):
        path.write_bytes(b"half")
        if path.name == f".{last}.part":
            raise problem

    for writer in ("to_csv", "to_parquet"):
        monkeypatch.setattr(pd.DataFrame, writer, lambda frame, path, **_: half(path))
    monkeypatch.setattr(Path, "write_text", lambda path, text: half(path))
    with pytest.raises(ResultError if isinstance(problem, OSError) else KeyboardInterrupt):
        write(report, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("last", FILES)
def test_a_rename_that_is_interrupted_leaves_no_result(report, tmp_path, monkeypatch, last):
    write(report, tmp_path)
    replace = os.replace

    def interrupted(part, path):
        if path.name == last:
            raise KeyboardInterrupt
        replace(part, path)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(report, tmp_path)
    assert not find_results(tmp_path)
    assert names_in(tmp_path) == sorted(FILES[:3])


@pytest.mark.parametrize("writer", ["to_csv", "to_parquet"])
def test_a_full_disk_is_an_error_that_names_the_file(report, tmp_path, monkeypatch, writer):
    def full(frame, path, **_):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, writer, full)
    with pytest.raises(ResultError, match=r"(leaderboard.csv|forecasts.parquet): could not be written \(No space left"):
        write(report, tmp_path)
    assert not names_in(tmp_path)


def test_a_folder_that_cannot_be_is_named(report, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultError, match=r"file/run: cannot be written \(.*\); give another --out"):
        write(report, tmp_path / "file" / "run")


# Finding


def test_results_are_found_in_a_folder_and_one_below_it_by_name(report, tmp_path):
    for name in ("b", "a", "a/deep", "."):
        write(report, tmp_path / name)
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "leaderboard.csv").write_text("model\n")
    assert [found.folder for found in find_results(tmp_path)] == [tmp_path / "a", tmp_path / "b", tmp_path]
    assert find_results(tmp_path / "nowhere") == []


def test_a_newer_schema_is_refused(report, tmp_path):
    write(report, tmp_path)
    run = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(run | {"schema_version": 2}))
    with pytest.raises(ResultError, match=r"run.json: of schema 2, this program reads up to 1; upgrade mnemosyne"):
        find_results(tmp_path)


@pytest.mark.parametrize("broken", [{"dataset": None}, {"task": None}, {"task": {}}, {"task": {"channels": 3}}])
def test_a_run_whose_fields_are_not_what_they_were_is_named(report, tmp_path, broken):
    write(report, tmp_path)
    path = tmp_path / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | broken))
    with pytest.raises(ResultError, match=r"run.json: not a readable run \(.*\); run the backtest again"):
        find_results(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "3", '"text"', "{}", '{"schema_version": null}', '{"schema_version": "new"}', "\udcff"],
)
def test_a_run_that_cannot_be_read_is_named(tmp_path, text):
    (tmp_path / "run.json").write_bytes(text.encode("utf-8", "surrogateescape") or b"")
    with pytest.raises(ResultError, match=r"run.json: not a readable run \(.*\); run the backtest again"):
        find_results(tmp_path)
