"""The command as users meet it: through `main`, so that exit codes and what is on which stream are tested too."""

import contextlib
import errno
import gzip
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import pytest

from forecasting import bundle as bundles
from forecasting import cli, stream
from forecasting.bundle import read_bundle, seal, write_bundle
from forecasting.results import find_results

COMMANDS = (
    "datasets", "models", "doctor", "train", "backtest", "forecast", "certify", "demo", "dashboard", "bridge",
    "batch", "schedule", "store", "stream",
)  # fmt: skip
SMALL = ("--set", "max_epochs=1", "--set", "hidden=8")
DECILES = [f"q{level / 10:g}" for level in range(1, 10)]
PROMISED = [
    "model", "task", "n_series", "n_cutoffs", "mase", "smape", "mae", "rmse", "mse", "pinball", "coverage_80",
    "skill_vs_naive", "dm_p_value", "fit_seconds", "predict_seconds", "peak_mb",
    "calibrated", "pinball_raw", "coverage_80_raw", "calibrate_seconds",
]  # fmt: skip
OF_OTHER_TASKS = {"accuracy", "macro_f1", "earliness", "mape"}


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """What a refusal says, after checking that it refuses as it should: exit code 2, one line, no result."""
        assert self.code == 2, self
        assert self.out == ""
        assert "Traceback" not in self.err
        line = self.err.splitlines()[-1]
        assert line.lower().startswith("error: ")
        return line


def mnemo(*arguments: object) -> Outcome:
    out, err = io.StringIO(), io.StringIO()
    before = sys.argv
    sys.argv = ["mnemo", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
            cli.main()
    finally:
        sys.argv = before
    return Outcome(int(ended.value.code or 0), out.getvalue(), err.getvalue())


def done(*arguments: object) -> Outcome:
    outcome = mnemo(*arguments)
    assert outcome.code == 0, outcome.err
    return outcome


def sales(days: int = 60) -> pd.DataFrame:
    """Two shops with a week's rhythm, and whether there was a promotion."""
    rng = np.random.default_rng(0)
    t = np.arange(days)
    ds = pd.date_range("2024-01-01", periods=days, freq="D").strftime("%Y-%m-%d")
    shops = [
        pd.DataFrame({
            "unique_id": shop, "ds": ds, "y": level + 5 * np.sin(2 * np.pi * t / 7) + rng.normal(size=days),
            "promo": rng.integers(0, 2, days),
        })
        for shop, level in (("north", 100), ("south", 40))
    ]  # fmt: skip
    return pd.concat(shops, ignore_index=True)


def moves() -> pd.DataFrame:
    """Recordings of two movements, the label in every row."""
    rng = np.random.default_rng(1)
    parts = []
    for number in range(10):
        side = ("left", "right")[number % 2]
        x = rng.normal(size=12) + (1 if side == "left" else -1)
        ds = np.arange(12) * 0.1
        parts.append(pd.DataFrame({"unique_id": f"rec{number}", "ds": ds, "label": side, "ax": x, "ay": -x}))
    return pd.concat(parts, ignore_index=True)


def cells() -> pd.DataFrame:
    """Cells whose state y follows from the voltage, by cycle."""
    rng = np.random.default_rng(2)
    parts = []
    for number in range(10):
        voltage = 3 + rng.normal(size=12).cumsum() / 10
        cycle = np.arange(12)
        parts.append(pd.DataFrame({"unique_id": f"c{number}", "ds": cycle, "y": 2 * voltage, "voltage": voltage}))
    return pd.concat(parts, ignore_index=True)


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.fixture(autouse=True)
def _no_shared_data(monkeypatch):
    monkeypatch.delenv("MNEMO_DATA_DIR", raising=False)
    monkeypatch.delenv("MNEMO_DEBUG", raising=False)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty folder to work in, with a file of sales."""
    monkeypatch.chdir(tmp_path)
    sales().to_csv("sales.csv", index=False)
    return tmp_path


@dataclass(frozen=True)
class Trained:
    bundle: Path
    data: Path
    said: Outcome

    @property
    def card(self) -> dict:
        return json.loads(self.said.out)["card"]


def train(home: Path, frame: pd.DataFrame, *arguments: object) -> Trained:
    data = home / "data.csv"
    frame.to_csv(data, index=False)
    said = done("train", "--data", data, "--out", home / "bundle", "--json", *arguments)
    return Trained(home / "bundle", data, said)


@pytest.fixture(scope="module")
def forecaster(tmp_path_factory):
    home = tmp_path_factory.mktemp("forecaster")
    return train(home, sales(), "--model", "gru", "--horizon", 3, "--covariates", "promo", *SMALL)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return train(tmp_path_factory.mktemp("classifier"), moves(), "--model", "gru", "--task", "classify", *SMALL)


@pytest.fixture(scope="module")
def regressor(tmp_path_factory):
    return train(tmp_path_factory.mktemp("regressor"), cells(), "--model", "ridge", "--task", "regress")


# Help, streams and exit codes


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command):
    said = done(command, "--help")
    assert f"Usage: mnemo {command}" in said.out
    assert f"Example: mnemo {command}" in said.out
    assert said.err == ""


def test_help_lists_every_command_and_names_the_first_one_to_try():
    said = done("--help").out
    assert all(re.search(rf"^  {command} ", said, re.MULTILINE) for command in COMMANDS)
    assert "mnemo demo" in said


def test_help_imports_nothing_heavy():
    program = (
        "import contextlib, io, sys\n"
        "from forecasting.cli import main\n"
        f"for command in {[[], *([command] for command in COMMANDS)]}:\n"
        "    sys.argv = ['mnemo', *command, '--help']\n"
        "    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        "        main()\n"
        "heavy = {'torch', 'pandas', 'numpy', 'onnxruntime', 'pytorch_lightning', 'streamlit', 'matplotlib', 'rich'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert said.stdout == "[]\n"


@pytest.mark.parametrize("command", ["datasets", "models", "doctor"])
def test_json_is_alone_on_stdout(command):
    said = mnemo(command, "--json")
    assert json.loads(said.out)
    assert said.err == ""


def test_datasets_say_what_is_missing_and_how_to_get_it():
    rows = {row["name"]: row for row in json.loads(done("datasets", "--json").out)}
    assert rows["sp500"]["available"]
    assert rows["sp500"]["size_bytes"] > 1000
    assert rows["sp500"]["how_to_get"] is None
    assert not rows["ltsf/ETTh1"]["available"]
    assert "MNEMO_DATA_DIR" in rows["ltsf/ETTh1"]["how_to_get"]
    assert all(row["licence"] and row["origin"] for row in rows.values())
    assert re.search(r"\d+ missing\. Put .* below the folder that MNEMO_DATA_DIR names", done("datasets").out)


def test_models_say_what_they_do_and_every_field_that_set_takes():
    models = json.loads(done("models", "--json").out)
    rows = {row["name"]: row for row in models["models"]}
    assert {"naive", "ridge", "rnn", "lstm", "gru", "birnn", "bilstm", "bigru"} <= set(rows)
    assert rows["gru"]["streams"]
    assert rows["gru"]["exports"] == ["step.onnx", "scan.onnx"]
    assert not rows["bigru"]["streams"]
    assert rows["bigru"]["exports"] == ["scan.onnx"]
    assert rows["bigru"]["tasks"] == ["classify", "regress"]
    assert rows["gru"]["fields"]["hidden"] == 64
    assert models["training"]["gradient_noise"] == 0
    assert "hidden=64" in done("models").out


def test_in_a_process_of_its_own_a_refusal_is_one_line_and_exit_code_2(place):
    ended = subprocess.run(
        [sys.executable, "-m", "forecasting.cli", "backtest", "--data", "nope", "--model", "gru"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[1])},
    )
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert re.fullmatch(r"error: nope: no data set and no file of this name\. Known: sp500, .*\n", ended.stderr)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a file that is always full")
def test_results_that_nobody_can_take_are_no_traceback():
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "forecasting.cli", "datasets"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert ended.returncode == 2
    assert "No space left" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_defect_is_a_line_too_and_its_traceback_is_kept_for_those_who_ask(place, monkeypatch):
    def broken(*arguments, **options):
        raise RuntimeError("two\nlines")

    monkeypatch.setattr("data.catalog.load", broken)
    said = mnemo("backtest", "--data", "sales.csv", "--model", "naive")
    assert said.code == 1
    assert said.err == "error: unexpected RuntimeError: two lines. A defect of mnemo: MNEMO_DEBUG=1 shows where.\n"
    monkeypatch.setenv("MNEMO_DEBUG", "1")
    monkeypatch.setattr(sys, "argv", ["mnemo", "backtest", "--data", "sales.csv", "--model", "naive"])
    with pytest.raises(RuntimeError, match="two"):
        cli.main()


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("no room"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("Storage size calculation overflowed with sizes=[3000000000, 1000000000]"),
    ],
)
def test_too_little_memory_is_said_with_a_remedy(place, monkeypatch, error):
    def hungry(*arguments, **options):
        raise error

    monkeypatch.setattr("data.catalog.load", hungry)
    said = mnemo("backtest", "--data", "sales.csv", "--model", "naive")
    assert said.code == 1
    assert re.match(r"error: not enough memory \(.*\)\. Take fewer series", said.err)


# Backtest


def test_backtest_writes_the_promised_files_with_the_promised_columns(place):
    said = done("backtest", "--data", "sales.csv", "--model", "gru, rnn", "--horizon", 3, "--out", "runs/a", *SMALL)
    leaderboard = pd.read_csv("runs/a/leaderboard.csv")
    assert [column for column in leaderboard if column in PROMISED] == PROMISED
    assert set(leaderboard) - set(PROMISED) == OF_OTHER_TASKS | {"n_substituted"}
    assert (leaderboard["n_substituted"] == 0).all()
    assert leaderboard[list(OF_OTHER_TASKS)].isna().all(axis=None)
    assert set(leaderboard["model"]) == {"naive", "ridge", "gru", "rnn"}
    assert leaderboard["mase"].is_monotonic_increasing
    forecasts = pd.read_parquet("runs/a/forecasts.parquet")
    assert list(forecasts) == ["unique_id", "cutoff", "ds", "model", "mean", *DECILES, "y", "substitute"]
    assert set(forecasts["model"]) == {"naive", "ridge", "gru", "rnn"}
    assert (forecasts["ds"] > forecasts["cutoff"]).all()
    assert [result.folder for result in find_results(Path("runs"))] == [Path("runs/a")]
    assert "not used: promo" in said.err
    assert "note" not in said.out
    assert re.search(r"^naive +forecast", said.out, re.MULTILINE)


def test_backtest_judges_ensembles_and_leaves_calibration_out_where_asked(place):
    asked = ["--data", "sales.csv", "--model", "naive,ridge", "--horizon", 3, "--ensemble", "mean, median"]
    done("backtest", *asked, "--out", "runs/a")
    done("backtest", *asked, "--out", "runs/b", "--no-calibrate")
    ensembles = {"mean(naive,ridge)", "median(naive,ridge)"}
    for out, calibrated in (("runs/a", True), ("runs/b", False)):
        board = pd.read_csv(f"{out}/leaderboard.csv")
        assert set(board["model"]) == {"naive", "ridge"} | ensembles
        assert set(board["calibrated"]) == {calibrated}
        assert board["pinball"].eq(board["pinball_raw"]).all() != calibrated
        assert set(pd.read_parquet(f"{out}/forecasts.parquet")["model"]) == set(board["model"])
    said = mnemo("backtest", *asked[:-1], "mode")
    assert said.code == 2
    assert "no ensemble is called 'mode'" in said.err


def test_backtest_sets_a_forecaster_of_sktimes_beside_ours(place):
    croston = "sktime:sktime.forecasting.croston.Croston"
    asked = ["--horizon", 3, "--stride", 4, "--set", "smoothing=0.3", "--out", "out"]
    said = done("backtest", "--data", "sales.csv", "--model", f"ridge,{croston}", *asked)
    assert set(pd.read_csv("out/leaderboard.csv")["model"]) == {"naive", "ridge", croston}
    assert f"note: {croston}: forecasts points only" in said.err
    assert json.loads(Path("out/run.json").read_text())["models"][croston]["parameters"] == {"smoothing": 0.3}
    assert "Similar: ThetaForecaster" in mnemo("backtest", "--data", "sales.csv", "--model", "sktime:Theta").error


def test_a_model_of_sktimes_is_trained_to_a_bundle_that_forecasts_and_says_what_stood_in(place):
    smoothing = "sktime:sktime.forecasting.exp_smoothing.ExponentialSmoothing"
    done("train", "--data", "sales.csv", "--model", smoothing, "--horizon", 3, "--out", "b", "--set", "trend=mul")
    frame = pd.read_csv("sales.csv")
    sinking = frame[frame["unique_id"] == frame["unique_id"][0]].assign(unique_id="sinking")
    pd.concat([frame, sinking.assign(y=-sinking["y"])]).to_csv("more.csv", index=False)
    said = done("forecast", "--bundle", "b", "--data", "more.csv", "--out", "f.csv")
    instead = pd.read_csv("f.csv").groupby("unique_id")["substitute"].first()
    assert instead.dropna().to_dict() == {"sinking": "naive"}
    assert "1 of 3 series are forecast by a substitute, first sinking by naive: ValueError" in said.err
    assert "has no step: it is fitted anew" in mnemo("certify", "--bundle", "b").error
    assert "has no state to start from" in mnemo(
        "forecast", "--bundle", "b", "--data", "more.csv", "--out", "g.csv", "--save-state", "s.npz"
    ).error  # fmt: skip


def test_backtest_json_is_alone_on_stdout_and_holds_the_leaderboard(place):
    said = done("backtest", "--data", "sales.csv", "--model", "naive", "--horizon", 3, "--out", "out", "--json")
    board = json.loads(said.out)["leaderboard"]
    assert [list(row) for row in board] == [list(pd.read_csv("out/leaderboard.csv"))] * 2
    assert next(row["dm_p_value"] for row in board if row["model"] == "naive") is None


def test_backtest_of_classes_and_of_numbers_has_their_measures(place):
    moves().to_csv("moves.csv", index=False)
    cells().to_csv("cells.csv", index=False)
    done("backtest", "--data", "moves.csv", "--task", "classify", "--model", "naive", "--out", "classes")
    done("backtest", "--data", "cells.csv", "--task", "regress", "--model", "naive", "--out", "numbers")
    classes, numbers = pd.read_csv("classes/leaderboard.csv"), pd.read_csv("numbers/leaderboard.csv")
    assert classes[["accuracy", "macro_f1", "earliness"]].notna().all(axis=None)
    assert numbers[["mae", "rmse", "mape"]].notna().all(axis=None)


def test_refit_stride_season_and_test_size_are_taken(place):
    plain = ["backtest", "--data", "sales.csv", "--model", "naive", "--horizon", 3, "--out", "out", "--json"]
    board = json.loads(done(*plain, "--test-size", 9, "--season", 1).out)["leaderboard"]
    assert [row["n_cutoffs"] for row in board] == [7, 7]
    board = json.loads(done(*plain, "--test-size", 9, "--stride", 3, "--refit", 1).out)["leaderboard"]
    assert [row["n_cutoffs"] for row in board] == [3, 3]
    board = json.loads(done(*plain, "--cutoff", "2024-02-23").out)["leaderboard"]
    assert [row["n_cutoffs"] for row in board] == [4, 4]


def test_every_form_of_a_source_gives_the_same_result(place):
    frame = sales().drop(columns="promo")
    frame.to_csv("plain.csv", index=False)
    frame.to_csv("packed.csv.gz", index=False)
    frame.assign(ds=pd.to_datetime(frame["ds"])).to_parquet("typed.parquet", index=False)
    for shop, rows in frame.groupby("unique_id"):
        rows.to_csv(f"part-{shop}.csv", index=False)
    frame.rename(columns={"unique_id": "shop", "ds": "day", "y": "units"}).to_csv("renamed.csv", index=False)
    frame.pivot(index="ds", columns="unique_id", values="y").reset_index().to_csv("wide.csv", index=False)
    forms = [
        ["plain.csv"],
        ["packed.csv.gz"],
        ["typed.parquet"],
        ["part-*.csv"],
        ["renamed.csv", "--id", "shop", "--time", "day", "--target", "units"],
        ["wide.csv", "--wide"],
        ["plain.csv", "--freq", "D"],
    ]
    results = []
    for form in forms:
        done("backtest", "--model", "naive", "--horizon", 3, "--out", "out", "--data", *form)
        results.append(pd.read_parquet("out/forecasts.parquet"))
    for result in results[1:]:
        pd.testing.assert_frame_equal(result, results[0])


def test_another_name_of_a_step_is_the_same_step(place):
    """Its season too, and so the naive forecast that all are judged by."""
    boards = []
    for step in (None, "D", "d", "1D", "24h"):
        given = [] if step is None else ["--freq", step]
        done("backtest", "--data", "sales.csv", "--model", "naive", "--horizon", 3, "--out", "out", *given)
        boards.append(pd.read_csv("out/leaderboard.csv").set_index("model")["mae"])
        assert find_results(Path("out"))[0].task.freq == "D"
        assert find_results(Path("out"))[0].task.season == 7
    for board in boards[1:]:
        pd.testing.assert_series_equal(board, boards[0])
    done("train", "--data", "sales.csv", "--model", "naive", "--horizon", 3, "--out", "b", "--freq", "24h")
    assert done("forecast", "--bundle", "b", "--data", "sales.csv", "--out", "-", "--freq", "d").out


def test_a_coarser_series_is_taken_where_its_step_is_given(place):
    weekly = sales(80).groupby("unique_id").nth[::7].assign(unique_id=lambda f: f["unique_id"] + " weekly")
    pd.concat([sales(80), weekly]).to_csv("both.csv", index=False)
    arguments = ("backtest", "--data", "both.csv", "--model", "naive", "--horizon", 3, "--out", "out")
    assert "series north weekly is every 'W-MON', most others are every 'D'" in mnemo(*arguments).error
    done(*arguments, "--freq", "D")
    assert pd.read_parquet("out/forecasts.parquet")["unique_id"].nunique() == 4


def test_a_step_of_cycles_or_seconds_is_a_number(place):
    cells().to_csv("cells.csv", index=False)
    for freq in ("1", "1.0"):
        done("backtest", "--data", "cells.csv", "--model", "naive", "--horizon", 2, "--out", "out", "--freq", freq)
    moves().to_csv("moves.csv", index=False)
    taken = ["--target", "ax", "--horizon", 2, "--out", "out", "--freq", "0.1"]
    done("backtest", "--data", "moves.csv", "--model", "naive", *taken)


def test_a_named_data_set_can_have_another_target_and_covariates(place):
    asked = ["--target", "close", "--covariates", "volume", "--horizon", 2, "--test-size", 20, "--out", "out"]
    done("backtest", "--data", "sp500", "--model", "naive", *asked)
    assert list(pd.read_parquet("out/history.parquet"))[2:] == ["y", "volume"]


def test_one_constant_series_among_others_is_forecast(place):
    frame = sales()
    frame.loc[frame["unique_id"] == "south", "y"] = 5.0
    frame.to_csv("sales.csv", index=False)
    done("backtest", "--data", "sales.csv", "--model", "gru", "--horizon", 3, "--out", "out", *SMALL)
    forecasts = pd.read_parquet("out/forecasts.parquet")
    assert np.isfinite(forecasts[["mean", *DECILES]]).all(axis=None)
    assert (forecasts[(forecasts["unique_id"] == "south") & (forecasts["model"] == "naive")]["mean"] == 5).all()


# Bad data: each with a clear error, and nothing half-written


def spoilt(**changes: object) -> pd.DataFrame:
    """Sales with other values in row 7 of the frame, line 9 of its file."""
    frame = sales().astype(dict.fromkeys(changes, object))
    for column, value in changes.items():
        frame.loc[7, column] = value
    return frame


BAD_TABLES = {
    "a column is missing": (sales().drop(columns="y"), r"no column y; found unique_id, ds, promo.*--target"),
    "no time": (sales().drop(columns="ds"), r"no column ds; found unique_id, y, promo.*--time"),
    "a wrong type": (spoilt(y="abc"), r"y is 'abc' in line 9 .*expected a number"),
    "no time stamp": (spoilt(ds="Tuesday"), r"ds is 'Tuesday' in line 9 .*ISO 8601"),
    "no name": (spoilt(unique_id=None), r"unique_id is missing in 1 of 120 rows, first in line 9"),
    "a key twice": (spoilt(ds="2024-01-07"), r"series north has 1 repeated time\(s\), first 2024-01-07 in line 8 and"),
    "zones mixed": (
        sales().assign(ds=lambda f: f["ds"] + "T00:00:00" + np.where(np.arange(len(f)) % 2, "+02:00", "+00:00")),
        r"ds mixes time zones.*Write all of them in UTC",
    ),
    "zones and none": (spoilt(ds="2024-01-08T00:00:00Z"), r"naive and aware times are mixed.*UTC"),
    "all missing": (sales().assign(y=np.nan), r"y is missing in all rows of 2 of 2 series: north, south. Leave"),
    "too short": (sales(days=5), r"the longest has 5 steps, .*horizon of 3 need at least 10"),
    "one row": (sales(days=1), r"no series has two rows.*--freq"),
    "infinite": (spoilt(y=np.inf), r"y is infinite in 1 of 120 rows, first in line 9"),
    "beyond float32": (spoilt(y=-1e16), r"y is -1e\+16 in line 9 .*more than 1e\+15 for missing. Rescale"),
    "only a header": (sales(days=0), r"no rows under the header"),
    "dates as numbers": (sales().assign(ds=lambda f: f["ds"].str.replace("-", "")), r"dates written as integers"),
    "a cycle beyond 64 bits": (
        sales().assign(ds=lambda f: f.groupby("unique_id").cumcount().to_numpy().astype(np.uint64) + np.uint64(2**63)),
        r"ds is 9223372036854775808 in line 2, beyond 9007199254740992: .*would round it",
    ),
    "epoch times in nanoseconds": (
        sales().assign(ds=lambda f: pd.to_datetime(f["ds"]).astype("int64")),
        r"ds is 1704067200000000000 in line 2, beyond 9007199254740992: .*write time stamps",
    ),
    "months among days": (
        pd.concat([sales(), sales(24).assign(unique_id="m", ds=[*pd.date_range("2022-01", periods=24, freq="MS")] * 2)])
        .drop_duplicates(["unique_id", "ds"])
        .assign(ds=lambda f: pd.to_datetime(f["ds"]).dt.strftime("%Y-%m-%d")),
        r"series m is every 'MS', most others are every 'D'.*a file of their own.*--freq D if",
    ),
    "hours and days": (
        pd.concat([sales(), sales().assign(unique_id="h", ds=pd.date_range("2024", periods=120, freq="h"))]).assign(
            ds=lambda f: pd.to_datetime(f["ds"]).dt.strftime("%Y-%m-%d %H:%M")
        ),
        r"series north is every 'D', most others are every 'h'|off the grid of 'D', first .* of series h",
    ),
    "no common step": (
        sales().assign(ds=lambda f: pd.to_datetime(f["ds"]) + pd.to_timedelta(np.arange(len(f)) ** 2 % 9999, "min")),
        r"the step cannot be inferred.*--freq",
    ),
}


def test_a_series_without_a_value_is_named_and_the_others_are_trained_on_and_forecast(place):
    half = sales().assign(y=lambda f: f["y"].where(f["unique_id"] == "north"))
    half.to_csv("half.csv", index=False)
    said = done("train", "--data", "half.csv", "--model", "naive", "--horizon", 3, "--out", "b")
    assert "y is missing in all rows of 1 of 2 series: south. Left out." in said.err
    said = done("forecast", "--bundle", "b", "--data", "half.csv", "--out", "f.csv")
    assert "1 of 2 series: south. Left out." in said.err
    assert list(pd.read_csv("f.csv")["unique_id"].unique()) == ["north"]


@pytest.mark.parametrize("what", BAD_TABLES)
def test_a_bad_table_is_refused_and_nothing_is_written(place, what):
    table, message = BAD_TABLES[what]
    table.to_csv("bad.csv", index=False)
    before = tree(place)
    for command in (["backtest"], ["train"]):
        said = mnemo(*command, "--data", "bad.csv", "--model", "gru", "--horizon", 3, "--out", "out/x", *SMALL)
        assert re.search(message, said.error)
        assert "bad.csv" in said.error
    assert tree(place) == before


def parquet(frame: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    return buffer.getvalue()


JUNK = bytes(np.random.default_rng(0).integers(128, 256, 3000, dtype=np.uint8))
PACKED = gzip.compress(sales().to_csv(index=False).encode())
BAD_FILES = {
    "empty.csv": (b"", r"the file is empty"),
    "empty.parquet": (b"", r"the file is empty"),
    "blank.csv": (b"\n\n\n", r"no header line"),
    "junk.csv": (JUNK, r"is not UTF-8"),
    "junk.csv.gz": (JUNK, r"not a whole gzip file"),
    "junk.parquet": (JUNK, r"not a whole Parquet file"),
    "nul.csv": (bytes(500), r"line 1 holds a NUL byte"),
    "cut.csv.gz": (PACKED[: len(PACKED) // 2], r"not a whole gzip file"),
    "cut.parquet": (parquet(sales())[:900], r"not a whole Parquet file .*truncated or damaged"),
    "utf16.csv": (sales().to_csv(index=False).encode("utf-16"), r"is not UTF-8"),
    "quote.csv": (b'unique_id,ds,y\n"a,2024-01-01,1\n', r"Check the separators and quotes"),
    "semicolons.csv": (
        sales().to_csv(index=False, sep=";", decimal=",").encode(),
        r"its first line seems to be separated by ';'\. Save it with commas",
    ),
    "tabs.csv": (sales().to_csv(index=False, sep="\t").encode(), r"separated by '\\t'"),
    "ragged.csv": (b"unique_id,ds,y\na,2024-01-01,1,2,3\n", r"more fields than the header|not a table with commas"),
    "notes.txt": (b"hello", r"cannot read \.txt; known: \.csv, \.csv\.gz, \.parquet"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_refused_and_nothing_is_written(place, name):
    content, message = BAD_FILES[name]
    Path(name).write_bytes(content)
    before = tree(place)
    said = mnemo("backtest", "--data", name, "--model", "naive", "--horizon", 3, "--out", "out")
    assert re.search(message, said.error)
    assert name in said.error
    assert tree(place) == before


def test_a_table_out_of_order_is_sorted_and_that_is_said(place):
    sales().sample(frac=1, random_state=0).to_csv("mixed.csv", index=False)
    said = done("backtest", "--data", "mixed.csv", "--model", "naive", "--horizon", 3, "--out", "mixed")
    assert re.search(r"note: mixed\.csv: \d+ rows were out of order and have been sorted", said.err)
    done("backtest", "--data", "sales.csv", "--model", "naive", "--horizon", 3, "--out", "straight")
    found, expected = (pd.read_parquet(f"{name}/forecasts.parquet") for name in ("mixed", "straight"))
    pd.testing.assert_frame_equal(found, expected)


def test_one_zone_for_all_is_converted_and_that_is_said(place):
    sales().assign(ds=lambda f: f["ds"] + "T05:00:00+02:00").to_csv("zoned.csv", index=False)
    said = done("backtest", "--data", "zoned.csv", "--model", "naive", "--horizon", 3, "--out", "out")
    assert "was in UTC+02:00 and has been converted to UTC" in said.err
    assert pd.read_parquet("out/history.parquet")["ds"][0] == pd.Timestamp("2024-01-01T03:00")


def test_a_value_outside_its_channels_limits_is_refused_with_its_line(place):
    done("train", "--data", "battery_simulated", "--model", "naive", "--horizon", 2, "--out", "bundle")
    cycles = pd.DataFrame({"unique_id": "cell", "ds": range(10), "y": [1.1] * 9 + [-3.0]})
    cycles.to_csv("cycles.csv", index=False)
    before = tree(place)
    said = mnemo("forecast", "--bundle", "bundle", "--data", "cycles.csv", "--out", "f.csv", "--save-state", "s.npz")
    assert re.search(r"cycles\.csv: y leaves \[0, inf\] Ah in 1 of 10 rows, .*line 11 \(value -3\)", said.error)
    assert tree(place) == before


SOURCES = {
    "nope": r"no data set and no file of this name.*Known: sp500,",
    "sp50": r"Did you mean sp500",
    "nope.csv": r"no such file",
    "sale.csv": r"no such file.*Similar: sales\.csv",
    "*.parquet": r"no file matches this pattern",
    ".": r"this is a folder",
    "sales.csv/x.csv": r"no such file",
    "ltsf/ETTh1": r"MNEMO_DATA_DIR is not set.*Origin",
    "store:": r"store:\*: nothing is known of such series in .*it holds none\. `mnemo store ingest`",
}


@pytest.mark.parametrize("source", SOURCES)
def test_a_source_that_is_not_there_is_named_with_what_is(place, source, monkeypatch):
    monkeypatch.setenv("MNEMO_STORE", "sqlite:///store.db")
    assert re.search(SOURCES[source], mnemo("backtest", "--data", source, "--model", "naive").error)


def test_a_file_that_may_not_be_read_is_refused_as_that():
    if os.geteuid() != 0:
        pytest.skip("needs root to step down to a user without rights")
    with tempfile.TemporaryDirectory() as home:
        os.chmod(home, 0o755)
        good = pd.DataFrame({"unique_id": "a", "ds": range(60), "y": np.sin(np.arange(60.0))})
        for kind, write in {"csv": good.to_csv, "parquet": good.to_parquet}.items():
            write(f"{home}/open.{kind}", index=False)
            # While we may: the other user may not even read the packages that this imports.
            done(
                "backtest",
                "--data",
                f"{home}/open.{kind}",
                "--model",
                "naive",
                "--horizon",
                3,
                "--out",
                f"{home}/{kind}",
            )
            secret = Path(home, f"secret.{kind}")
            secret.write_bytes(b"x")
            secret.chmod(0o600)
        os.seteuid(65534)
        try:
            said = [
                mnemo("backtest", "--data", f"{home}/secret.{kind}", "--model", "naive") for kind in ("csv", "parquet")
            ]
            place = mnemo("backtest", "--data", f"{home}/open.csv", "--model", "naive", "--out", f"{home}/out")
        finally:
            os.seteuid(0)
        assert all("cannot be read (Permission denied)" in outcome.error for outcome in said)
        assert f"{home}: this user cannot write there; give another --out" in place.error


# Options


OPTIONS = {
    "--model nope": r"unknown model 'nope'; known: naive, ridge, .*rnn, lstm, gru",
    "--model gru,": r"'gru,' has an empty name; give names with one comma between each two, such as a,b",
    "--model bigru": r"bigru does not forecast; these do: naive, ridge",
    "--horizon 0": r"'--horizon'",
    "--horizon x": r"'--horizon'",
    "--horizon 1000": r"no series is long enough.*Shorten --horizon",
    "--season 0": r"'--season'",
    "--season 99999999999999999999": r"'--season'.*less than or equal to 1000000",
    "--stride 99999999999999999999": r"'--stride'.*less than or equal to",
    "--test-size 2": r"a test of 2 steps is shorter than the horizon of 3",
    "--test-size 5000": r"before the test",
    "--test-size 9 --cutoff 2024-02-01": r"give --test-size or --cutoff, not both",
    "--cutoff x": r"'x' is not a cut-off .*time stamp such as",
    "--cutoff 1990-01-01": r"before the test",
    "--cutoff 2090-01-01": r"no series has a test part",
    "--stride 0": r"'--stride'",
    "--refit 0": r"--refit takes never or a number",
    "--refit ²": r"--refit takes never or a number",
    "--refit x": r"--refit takes never or a number",
    "--quantiles x": r"--quantiles takes numbers between 0 and 1, such as 0\.1,0\.5,0\.9; got 'x'",
    "--quantiles 0.5,": r"--quantiles takes numbers",
    "--quantiles 0.9,0.1": r"quantiles are rising numbers between 0 and 1, got 0\.9, 0\.1",
    "--quantiles 0,1": r"quantiles are rising numbers between 0 and 1",
    "--quantiles nan": r"quantiles are rising numbers between 0 and 1",
    "--covariates nope": r"no column nope; found unique_id, ds, y, promo.*--covariates",
    "--covariates promo,": r"'promo,' has an empty name",
    "--future ,promo": r"',promo' has an empty name",
    "--covariates y": r"column y cannot be a covariate",
    "--covariates ds": r"column ds cannot be a covariate",
    "--id nope": r"no column nope; found unique_id, ds, y, promo.*--id",
    "--time nope": r"no column nope; found unique_id, ds, y, promo.*--time",
    "--target nope": r"no column nope; found unique_id, ds, y, promo.*--target",
    "--target ds": r"column ds cannot be both --time and --target",
    "--id promo --time promo": r"column promo cannot be both",
    "--freq nope": r"'nope' is no step; expected a pandas alias",
    "--freq 0D": r"must be positive",
    "--freq 0B": r"must be positive",
    "--freq=-1D": r"must be positive",
    "--freq h": r"no two rows of a series are less than 24 steps of 'h' apart. Give the real step",
    "--freq 3": r"time stamps need a pandas alias",
    "--freq MS": r"off the grid of 'MS'",
    "--task nope": r"no task 'nope'; the tasks are forecast, classify, regress",
    "--task classify": r"no column label",
    "--seed -1": r"the seed is a whole number from 0",
    "--seed x": r"'--seed'",
    "--set nope=1": r"no model here has a field 'nope'; known: batch_size, .*hidden.*lags.*threads",
    "--set nope": r"--set takes FIELD=VALUE, such as hidden=64; got 'nope'",
    "--set =1": r"--set takes FIELD=VALUE",
    "--set hidden=x": r"hidden takes a value of type int, not 'x'",
    "--set hidden=99999999999999999999": r"hidden takes a value of type int, not '99999999999999999999'",
    "--set hidden=-1": r"hidden and layers are at least 1",
    "--set dropout=nan": r"dropout lies in \[0, 1\)",
    "--set learning_rate=nan": r"learning_rate is above 0, not nan",
    "--set device=tpu": r"device is one of auto, cpu, gpu, not 'tpu'",
    "--set lookback=1000": r"shorter than lookback \+ horizon = 1000 \+ 3: the longest has \d+ steps",
    "--set lags=0": r"ridge needs at least 2 lags",
    "--model titans-lmm --set chunk=0": r"chunk is at least 1, not 0",
    "--model titans-lmm --set chunk=2.5": r"chunk takes a value of type int, not '2\.5'",
    "--model atlas --set heads=5": r"heads must divide the width: 5 does not divide 64",
    "--model yaad --set rate=nan": r"rate and radius are finite and above 0, not nan",
    "--model yaad --set hidden=8": r"no model here has a field 'hidden'; known: .*chunk.*heads.*rate",
    "--nope": r"No such option: --nope",
}


@pytest.mark.parametrize("options", OPTIONS)
def test_a_bad_option_is_refused_with_what_would_do_and_nothing_is_written(place, options):
    before = tree(place)
    given = {"--data": "sales.csv", "--model": "gru", "--horizon": 3, "--out": "out"}
    plain = [part for pair in given.items() if pair[0] not in options.split() for part in pair]
    assert re.search(OPTIONS[options], mnemo("backtest", *plain, *options.split()).error)
    assert tree(place) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("nope", r"No such command 'nope'"),
        ("train --data sales.csv", r"Missing option '--model'"),
        ("forecast", r"Missing option '--bundle'"),
        ("dashboard --port 0", r"'--port'"),
        ("backtest --data sp500 --model naive --wide", r"sp500: wide is an option for files"),
        ("backtest --data sp500 --model naive --task regress", r"sp500: a data set for forecast, not for regress"),
        ("backtest --data sp500 --model naive --covariates nope", r"known: open, high, low, close"),
        ("train --data sales.csv --model gru --out b --horizon 3 --until x", r"'x' is not a cut-off"),
        (
            "train --data sales.csv --model gru --out b --horizon 3 --resume nope",
            r"nope: .*--resume takes a last\.ckpt",
        ),
        ("train --data sales.csv --model gru --out b --horizon 3 --resume sales.csv", r"not a readable checkpoint"),
        ("train --data sales.csv --model auto --out b --horizon 3 --resume x", r"name it instead of auto"),
        ("train --data sales.csv --model ridge --out b --horizon 3 --resume x", r"nothing to resume"),
        ("certify --bundle nope", r"there is no such directory"),
        ("certify --bundle sales.csv", r"a bundle is the directory that `mnemo train` writes"),
    ],
)
def test_other_bad_arguments_are_refused(place, arguments, message):
    before = tree(place)
    assert re.search(message, mnemo(*arguments.split()).error)
    assert tree(place) == before


def test_a_classification_needs_two_labels(place):
    moves().assign(label="left").to_csv("moves.csv", index=False)
    said = mnemo("train", "--data", "moves.csv", "--task", "classify", "--model", "gru", "--out", "b")
    assert "moves.csv: classification needs at least two labels, found left" in said.error


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("sales.csv", r"sales\.csv: is a file"),
        ("sales.csv/x", r"sales\.csv: is a file, not a folder"),
        ("/proc/mnemo", r"error: /proc"),
    ],
)
@pytest.mark.parametrize("command", ["train", "backtest"])
def test_a_place_that_cannot_be_written_is_refused_before_the_work(place, monkeypatch, command, out, message):
    if not out.startswith("/proc"):
        monkeypatch.setattr("forecasting.backtest.fit_model", None)
    said = mnemo(command, "--data", "sales.csv", "--model", "ridge", "--horizon", 3, "--out", out)
    assert re.search(message, said.error)
    assert tree(place) == {"sales.csv"}


def test_a_folder_of_something_else_is_not_replaced_by_a_bundle(place, monkeypatch):
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("years of work")
    monkeypatch.setattr("forecasting.backtest.fit_model", None)
    said = mnemo("train", "--data", "sales.csv", "--model", "ridge", "--horizon", 3, "--out", "mine")
    assert "holds files that are not a bundle, so it is not replaced" in said.error
    assert Path("mine/thesis.txt").read_text() == "years of work"


# Train


def test_train_writes_a_whole_bundle_and_json_alone(forecaster):
    assert read_bundle(forecaster.bundle).card == forecaster.card
    assert forecaster.card["name"] == "gru"
    assert forecaster.card["certificate"]["passed"]
    assert [channel["name"] for channel in forecaster.card["task"]["channels"]] == ["y", "promo"]
    assert {row["model"] for row in forecaster.card["metrics"]} == {"naive", "ridge", "gru"}
    assert {row["on"] for row in forecaster.card["metrics"]} == {"validation"}
    home = forecaster.bundle.parent
    assert {path.name for path in home.iterdir()} == {"data.csv", "bundle", "bundle.training"}
    assert (home / "bundle.training" / "last.ckpt").is_file()


def test_train_until_learns_nothing_after_and_is_judged_on_what_follows(place):
    asked = ["--model", "naive", "--horizon", 3, "--out", "deep/er/b", "--until", "2024-02-10"]
    said = done("train", "--data", "sales.csv", *asked)
    card = read_bundle("deep/er/b").card
    assert {row["on"] for row in card["metrics"]} == {"test"}
    assert card["training"]["period"][1] <= "2024-02-10"
    assert said.out.splitlines()[-1].startswith("naive -> deep/er/b (figures on test; see ")


def test_a_backtest_finishes_the_models_that_can_be_fitted_and_says_which_could_not(place):
    """A constant has no slope to fit: that is no matter to the other models of an hour's run."""
    table = sales()
    table.loc[table["unique_id"] == table["unique_id"].iloc[0]].assign(y=7.0).to_csv("flat.csv", index=False)
    asked = ["backtest", "--data", "flat.csv", "--horizon", 3, "--out", "run", "--no-calibrate", "--model"]
    said = mnemo(*asked, "theta,drift,sktime:ThetaForecaster")
    assert said.code == 1
    assert "error: theta is left out: theta could be fitted to none of 1 series" in said.err
    board = pd.read_csv("run/leaderboard.csv")
    assert {"drift", "naive", "sktime:ThetaForecaster"} <= set(board["model"])
    assert "theta" not in set(board["model"])
    run = json.loads(Path("run/run.json").read_text())
    assert any(note.startswith("theta is left out") for note in run["notes"])
    alone = mnemo(*asked, "theta")
    assert alone.code == 2
    assert "theta could be fitted to none of 1 series" in alone.err


def test_train_auto_says_what_it_chose_and_takes_settings_of_any_model(place):
    asked = ["--model", "auto", "--horizon", 3, "--out", "b", *SMALL, "--set", "lags=8"]
    said = done("train", "--data", "sales.csv", *asked)
    assert re.search(r"note: auto chose [\w-]+ by mase on validation: .*naive .*", said.err)
    assert "garch is left out: garch needs at least 100 returns" in said.err
    chosen = re.search(r"auto chose ([\w-]+)", said.err)
    assert read_bundle("b").card["name"] == chosen[1]
    assert "'nope'" in mnemo("train", "--data", "sales.csv", *asked, "--set", "nope=1").error


def test_a_backtest_of_auto_judges_what_was_the_best_before_the_test(place, monkeypatch):
    from forecasting import pipeline

    few = {name: pipeline.MODELS[name] for name in ("naive", "ridge", "drift", "window-average", "gru")}
    monkeypatch.setattr(pipeline, "MODELS", few)
    asked = ["backtest", "--data", "sales.csv", "--model", "window-average,auto", "--horizon", 3, "--test-size", 9]
    given = [*SMALL, "--set", "lags=8"]
    said = done(*asked, "--out", "first", *given)
    chosen = re.search(r"note: auto chose ([\w-]+) by mase on validation: .*gru ", said.err)
    assert chosen is not None
    board, run = pd.read_csv("first/leaderboard.csv"), json.loads(Path("first/run.json").read_text())
    assert set(board["model"]) == {"naive", "ridge", "window-average", chosen[1]}
    assert any(note.startswith("auto chose") for note in run["notes"])
    # What the test holds decides nothing.
    frame = sales()
    last = frame.groupby("unique_id").cumcount() >= 51
    frame.assign(y=frame["y"].where(~last, 1000 - frame["y"])).to_csv("sales.csv", index=False)
    assert f"auto chose {chosen[1]} by" in done(*asked, "--out", "second", *given).err


def test_train_resumes_with_its_checkpoint_and_refuses_those_of_other_runs(forecaster, place):
    last = forecaster.bundle.with_name("bundle.training") / "last.ckpt"
    asked = ["--data", forecaster.data, "--horizon", 3, "--covariates", "promo", "--out", "b", *SMALL]
    before = tree(place)
    assert "last.ckpt" in mnemo("train", *asked, "--model", "lstm", "--resume", last).error
    assert "last.ckpt" in mnemo("train", *asked, "--model", "gru", "--seed", 1, "--resume", last).error
    assert "--resume takes a last.ckpt" in mnemo("train", *asked, "--model", "gru", "--resume", forecaster.data).error
    assert tree(place) == before
    done("train", *asked, "--model", "gru", "--resume", last)
    again, first = read_bundle("b"), read_bundle(forecaster.bundle)
    assert again.card["sha256"]["step.onnx"] == first.card["sha256"]["step.onnx"]


def interrupted(*arguments: object, **options: object) -> None:
    raise KeyboardInterrupt


def test_ctrl_c_during_training_leaves_no_bundle_and_says_how_to_go_on(place, monkeypatch):
    monkeypatch.setattr("forecasting.pipeline.compare", interrupted)
    asked = ["train", "--data", "sales.csv", "--model", "gru", "--horizon", 3, "--out", "b"]
    said = mnemo(*asked)
    assert (said.code, said.out) == (1, "")
    assert said.err.endswith("interrupted: no bundle was written to b.\n")
    Path("b.training").mkdir()
    Path("b.training/last.ckpt").touch()
    assert mnemo(*asked).err.endswith("no bundle was written to b. Go on with: --resume b.training/last.ckpt\n")
    assert not Path("b").exists()


def test_ctrl_c_elsewhere_is_one_line_too(place, monkeypatch):
    monkeypatch.setattr("forecasting.backtest.backtest", interrupted)
    said = mnemo("backtest", "--data", "sales.csv", "--model", "gru", "--horizon", 3, "--out", "out")
    assert (said.code, said.out) == (1, "")
    assert said.err.endswith("interrupted.\n")
    assert not Path("out").exists()


def test_ctrl_c_that_a_compiled_module_calls_an_import_error_is_ctrl_c(place, monkeypatch):
    def while_imported(*arguments, **options):
        raise ImportError("initialization failed") from KeyboardInterrupt()

    monkeypatch.setattr("forecasting.backtest.backtest", while_imported)
    said = mnemo("backtest", "--data", "sales.csv", "--model", "gru", "--horizon", 3, "--out", "out")
    assert said.code == 1
    assert said.err.endswith("interrupted.\n")
    assert "defect" not in said.err


# Forecast


def test_forecasts_go_to_stdout_alone_or_to_a_file_of_either_kind(forecaster, place):
    asked = ["forecast", "--bundle", forecaster.bundle, "--data", forecaster.data]
    said = done(*asked, "--out", "-")
    assert said.err == ""
    table = pd.read_csv(io.StringIO(said.out), parse_dates=["cutoff", "ds"])
    assert list(table) == ["unique_id", "cutoff", "ds", "model", "mean", *DECILES, "substitute"]
    table["substitute"] = table["substitute"].fillna("")  # what pandas makes of an empty field
    assert (table["substitute"] == "").all()
    assert table["ds"].min() == pd.Timestamp("2024-03-01")  # the data end with February
    assert len(table) == 2 * 3
    said = done(*asked, "--out", "new/f.parquet")
    assert (said.out, said.err) == ("", "new/f.parquet: 2 series, 6 rows, by gru\n")
    pd.testing.assert_frame_equal(pd.read_parquet("new/f.parquet"), table, check_dtype=False)
    done(*asked, "--out", "f.csv")
    assert Path("f.csv").read_text() == done(*asked, "--out", "-").out
    rows = json.loads(done(*asked, "--out", "-", "--json").out)
    np.testing.assert_allclose([row["q0.9"] for row in rows], table["q0.9"])


def test_a_saved_state_steps_only_what_is_new_and_gives_the_same(forecaster, place, monkeypatch):
    frame = sales()
    early = frame["ds"] <= "2024-02-24"
    frame[early].to_csv("old.csv", index=False)
    frame[frame["ds"] >= "2024-02-20"].to_csv("overlapping.csv", index=False)
    frame[frame["ds"] == "2024-02-29"].to_csv("one.csv", index=False)
    frame[(frame["ds"] < "2024-02-29") & ~early].to_csv("between.csv", index=False)
    steps: list[int] = []
    scan = stream.scan_ragged

    def spy(bundle, sequences, state, *future):
        steps.extend(map(len, sequences))
        return scan(bundle, sequences, state, *future)

    monkeypatch.setattr(stream, "scan_ragged", spy)
    asked = ["forecast", "--bundle", forecaster.bundle]
    whole = done(*asked, "--data", forecaster.data, "--out", "-").out
    assert steps == [60, 60]
    done(*asked, "--data", "old.csv", "--out", "old.parquet", "--save-state", "s.npz")
    steps.clear()
    said = done(*asked, "--data", "overlapping.csv", "--out", "-", "--state", "s.npz").out
    assert steps == [5, 5]
    assert_same_forecasts(said, whole)
    steps.clear()
    done(*asked, "--data", "between.csv", "--out", "x.csv", "--state", "s.npz", "--save-state", "s.npz")
    assert_same_forecasts(done(*asked, "--data", "one.csv", "--out", "-", "--state", "s.npz").out, whole)
    assert steps == [4, 4, 1, 1]


def assert_same_forecasts(found: str, expected: str) -> None:
    a, b = (pd.read_csv(io.StringIO(text)) for text in (found, expected))
    pd.testing.assert_frame_equal(a, b, rtol=1e-5)


def test_classes_are_told_with_labels_or_without(classifier, place):
    moves().drop(columns="label").to_csv("unknown.csv", index=False)
    asked = ["forecast", "--bundle", classifier.bundle, "--out", "-", "--data"]
    said = done(*asked, classifier.data).out
    table = pd.read_csv(io.StringIO(said))
    assert list(table) == ["unique_id", "ds", "model", "label", "p_left", "p_right"]
    assert len(table) == 10
    np.testing.assert_allclose(table["p_left"] + table["p_right"], 1, rtol=1e-5)
    assert done(*asked, "unknown.csv").out == said


def test_numbers_are_told_with_the_truth_or_without(regressor, place):
    cells().drop(columns="y").to_csv("unknown.csv", index=False)
    asked = ["forecast", "--bundle", regressor.bundle, "--out", "-", "--data"]
    said = done(*asked, regressor.data).out
    assert list(pd.read_csv(io.StringIO(said))) == ["unique_id", "ds", "model", "mean", *DECILES]
    assert done(*asked, "unknown.csv").out == said


def test_a_channel_that_the_data_lack_is_named(forecaster, classifier, place):
    sales().drop(columns="promo").to_csv("bare.csv", index=False)
    said = mnemo("forecast", "--bundle", forecaster.bundle, "--data", "bare.csv", "--out", "f.csv")
    assert "bare.csv: no column promo, which the model takes as input; found unique_id, ds, y." in said.error
    said = mnemo("forecast", "--bundle", forecaster.bundle, "--data", "sp500", "--out", "f.csv")
    assert "sp500: no column promo for the model's input; known: open, high" in said.error
    said = mnemo("forecast", "--bundle", classifier.bundle, "--data", forecaster.data, "--out", "f.csv")
    assert "no column ax, ay, which the model takes as input" in said.error
    assert tree(place) == {"sales.csv", "bare.csv"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--out f.txt", r"f\.txt: --out takes a \.parquet or \.csv file, or -"),
        ("--out folder.csv", r"folder\.csv: is a folder; --out takes a file"),
        ("--out sales.csv/f.csv", r"sales\.csv: is a file, not a folder"),
        ("--out f.csv --state none.npz", r"none\.npz: the state cannot be read \(No such file"),
        ("--out f.csv --state sales.csv", r"sales\.csv: not a readable \.npz file"),
        ("--out f.csv --state folder.csv", r"folder\.csv: the state cannot be read"),
        ("--out f.csv --save-state none/s.npz", r"s\.npz: cannot be written"),
        ("--out f.csv --freq h", r"made for a step of D, it cannot take another; leave out --freq h"),
        ("--out f.csv --wide", r"a wide table holds one target per series"),
        ("--out f.csv --target nope", r"no column nope; found unique_id, ds, y, promo.*--target"),
    ],
)
def test_a_forecast_that_cannot_be_is_refused_and_leaves_nothing(forecaster, place, options, message):
    Path("folder.csv").mkdir()
    before = tree(place)
    said = mnemo("forecast", "--bundle", forecaster.bundle, "--data", "sales.csv", *options.split())
    assert re.search(message, said.error)
    assert tree(place) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--data sales.csv --out sales.csv", r"sales\.csv: is the data; --out would replace them"),
        ("--data sal*.csv --out ./sales.csv", r"sales\.csv: is the data; --out would replace them"),
        ("--data **/sales.csv --out deep/er/sales.csv", r"sales\.csv: is the data; --out would replace them"),
        ("--data odd[1].csv --out odd[1].csv", r"odd\[1\]\.csv: is the data; --out would replace them"),
        ("--data sales.csv --out f.csv --save-state sales.csv", r"sales\.csv: is the data; --save-state would"),
        ("--data sales.csv --out f.csv --save-state f.csv", r"f\.csv: is the file of --save-state too"),
        ("--data sales.csv --out old.csv --state old.csv", r"old\.csv: is the file of --state too"),
        ("--data sales.csv --out f.csv --save-state folder", r"folder: is a folder; --save-state takes a file"),
        ("--data sales.csv --out f.csv --save-state sales.csv/s.npz", r"sales\.csv: is a file, not a folder"),
    ],
)
def test_no_result_is_written_over_the_data_or_over_another(forecaster, place, options, message):
    sales().to_csv("sales.csv", index=False)
    Path("folder").mkdir()
    Path("deep/er").mkdir(parents=True)
    sales().assign(unique_id="deep").to_csv("deep/er/sales.csv", index=False)
    sales().to_csv("odd[1].csv", index=False)
    before, content = tree(place), Path("sales.csv").read_bytes()
    assert re.search(message, mnemo("forecast", "--bundle", forecaster.bundle, *options.split()).error)
    assert tree(place) == before
    assert Path("sales.csv").read_bytes() == content


def test_a_bundle_without_units_takes_a_data_set_with_them(place):
    done("train", "--data", "sales.csv", "--model", "naive", "--horizon", 2, "--out", "b")
    said = done("forecast", "--bundle", "b", "--data", "sp500", "--out", "-")
    assert len(said.out.splitlines()) == 3


def test_a_file_of_new_rows_that_names_no_series_is_not_taken_for_the_one_of_the_state_in_silence(place):
    rows = sales()[sales()["unique_id"] == "north"][["ds", "y"]]
    rows[:40].to_csv("shop.csv", index=False)
    rows[40:].to_csv("new.csv", index=False)
    done("train", "--data", "shop.csv", "--model", "ridge", "--horizon", 3, "--out", "b")
    said = done("forecast", "--bundle", "b", "--data", "shop.csv", "--out", "f.csv", "--save-state", "s.npz")
    assert "the state knows" not in said.err
    said = done("forecast", "--bundle", "b", "--data", "new.csv", "--out", "f.csv", "--state", "s.npz")
    assert "note: the state knows the 1 series shop, and not new: forecast from these rows alone" in said.err


def test_a_shop_that_is_closed_on_sundays_is_forecast_over_two_weeks(place):
    days = pd.date_range("2024-01-01", periods=120)
    shop = pd.DataFrame({"ds": days, "y": 50 + 10 * np.sin(days.dayofweek * 0.9) + np.arange(120) % 5})
    shop[days.dayofweek != 6].to_csv("shop.csv", index=False)
    assert "error" not in done("train", "--data", "shop.csv", "--model", "naive", "--horizon", 14, "--out", "b").err
    done("forecast", "--bundle", "b", "--data", "shop.csv", "--out", "f.csv")
    assert pd.read_csv("f.csv")["mean"].notna().all()


def test_the_state_of_another_bundle_is_refused(forecaster, classifier, place):
    asked = ["--data", forecaster.data, "--out", "f.csv"]
    done("forecast", "--bundle", forecaster.bundle, *asked, "--save-state", "s.npz")
    said = mnemo("forecast", "--bundle", classifier.bundle, "--data", classifier.data, "--out", "-", "--state", "s.npz")
    assert "the state belongs to another bundle" in said.error


# Bundles that are not what they were


def with_changed_byte(bundle: Path) -> str:
    content = bytearray((bundle / "step.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / "step.onnx").write_bytes(content)
    return r"step\.onnx: the file was changed since the bundle was written"


def with_changed_card(bundle: Path) -> str:
    card = bundle / "card.json"
    card.write_text(card.read_text().replace('"horizon": 3', '"horizon": 4', 1))
    return r"card\.json: the card was changed"


def of_a_newer_schema(bundle: Path) -> str:
    card = json.loads((bundle / "card.json").read_text())
    (bundle / "card.json").write_text(json.dumps(card | {"schema_version": 99}))
    return r"schema version 99; this program reads up to version 1\. Upgrade"


def without_its_card(bundle: Path) -> str:
    (bundle / "card.json").unlink()
    return r"card\.json: the file is missing"


def without_a_graph(bundle: Path) -> str:
    (bundle / "scan.onnx").unlink()
    return r"scan\.onnx: the file is missing"


def with_junk_for_a_card(bundle: Path) -> str:
    (bundle / "card.json").write_bytes(JUNK)
    return r"card\.json: is not readable JSON"


@pytest.mark.parametrize(
    "spoil",
    [
        with_changed_byte,
        with_changed_card,
        of_a_newer_schema,
        without_its_card,
        without_a_graph,
        with_junk_for_a_card,
    ],
)
def test_a_spoilt_bundle_is_refused_by_every_command_that_reads_it(forecaster, place, spoil):
    shutil.copytree(forecaster.bundle, "b")
    message = spoil(Path("b"))
    before = tree(place)
    said = mnemo("forecast", "--bundle", "b", "--data", "sales.csv", "--out", "f.csv", "--save-state", "s.npz")
    assert re.search(message, said.error)
    assert re.search(message, mnemo("certify", "--bundle", "b").error)
    assert tree(place) == before


def test_certify_measures_and_says_so(forecaster):
    said = done("certify", "--bundle", forecaster.bundle)
    assert re.search(r"^parity +\S+ relative, 0.0001 allowed", said.out, re.MULTILINE)
    assert "every prediction depends on the past alone" in said.out
    assert re.search(r"^stream_step_us +p50 ", said.out, re.MULTILINE)
    certificate = json.loads(done("certify", "--bundle", forecaster.bundle, "--json").out)
    assert certificate["passed"]
    assert certificate["parity"]["steps"] <= 1e-4


def test_certify_ends_with_1_where_step_and_scan_are_not_one_computation(forecaster, place):
    """Tampered with and sealed anew: every hash is right, the weights of the step are others."""
    bundle = read_bundle(forecaster.bundle)
    graph = onnx.load_from_string(bundle.files["step.onnx"])
    for tensor in graph.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.size > 8:
            tensor.CopyFrom(onnx.numpy_helper.from_array(values * np.float32(1.5), tensor.name))
    files = bundle.files | {"step.onnx": graph.SerializeToString()}
    write_bundle("b", files, seal(files, bundle.card))
    said = mnemo("certify", "--bundle", "b", "--json")
    assert said.code == 1
    assert not json.loads(said.out)["passed"]
    assert re.fullmatch(r"error: b: single steps differ from a scan by .*\n", said.err)


# Full disks


def disk_full(*arguments: object, **options: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_that_is_full_while_exporting_leaves_the_bundle_of_before(forecaster, place, monkeypatch):
    shutil.copytree(forecaster.bundle, "b")
    card, before = Path("b/card.json").read_bytes(), tree(place)
    written = bundles._write_synced

    def half(path, content):
        if path.name == "scan.onnx":
            path.write_bytes(content[: len(content) // 2])
            disk_full()
        written(path, content)

    monkeypatch.setattr(bundles, "_write_synced", half)
    said = mnemo("train", "--data", "sales.csv", "--model", "naive", "--horizon", 3, "--out", "b")
    assert re.search(r"b: the disk is full; the bundle needs .* Nothing was changed; make room", said.error)
    assert tree(place) == before
    assert Path("b/card.json").read_bytes() == card


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_disk_that_is_full_while_forecasting_leaves_the_file_of_before(forecaster, place, monkeypatch, kind):
    def half(self, path, **options):
        Path(path).write_text("unique_id,cut")
        disk_full()

    Path(f"f.{kind}").write_text("before")
    before = tree(place)
    monkeypatch.setattr(pd.DataFrame, f"to_{kind}", half)
    said = mnemo("forecast", "--bundle", forecaster.bundle, "--data", "sales.csv", "--out", f"f.{kind}")
    assert re.search(r"could not be written \(No space left on device\); nothing was changed there", said.error)
    assert tree(place) == before
    assert Path(f"f.{kind}").read_text() == "before"


def test_a_backtest_on_a_full_disk_leaves_the_result_of_before(place, monkeypatch):
    asked = ["backtest", "--data", "sales.csv", "--model", "naive", "--horizon", 3, "--out", "runs/a"]
    done(*asked)
    before, run = tree(place), find_results(Path("runs"))[0].run
    monkeypatch.setattr(pd.DataFrame, "to_parquet", disk_full)
    assert "No space left" in mnemo(*asked).error
    assert find_results(Path("runs"))[0].run == run
    assert tree(place) == before


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 24 kB, where this user may make one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24k", "tmpfs", disk], capture_output=True)
    if made.returncode:
        pytest.skip("a small file system can be mounted by root only")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)  # a failed writer may not be collected yet


def test_a_real_full_disk_is_refused_and_left_clean(forecaster, small_disk, place):
    (small_disk / "fill").write_bytes(bytes(20_000))
    before = tree(small_disk)
    said = mnemo("train", "--data", "sales.csv", "--model", "naive", "--horizon", 3, "--out", small_disk / "b")
    assert re.search(r"the disk is full; the bundle needs \S+ kB and \S+ kB free", said.error)
    assert tree(small_disk) == before
    (small_disk / "more").write_bytes(bytes(4096))
    before = tree(small_disk)
    for out in ("f.csv", "f.parquet"):
        asked = ["--data", forecaster.data, "--out", small_disk / out]
        assert "No space left" in mnemo("forecast", "--bundle", forecaster.bundle, *asked).error
        state = ["--save-state", small_disk / "s.npz"]
        assert "No space left" in mnemo("forecast", "--bundle", forecaster.bundle, *asked, *state).error
    assert tree(small_disk) == before


# Demo and dashboard


def test_the_dashboard_is_a_process_of_its_own(monkeypatch):
    calls: list[list[str]] = []

    def call(command):
        calls.append(command[1:])
        return 0

    monkeypatch.setattr(cli.subprocess, "call", call)
    done("dashboard")
    done("dashboard", "--out", "runs", "--port", 8600, "--headless")
    assert calls == [
        ["-m", "dashboards", "--out", "out"],
        ["-m", "dashboards", "--out", "runs", "--port", "8600", "--headless"],
    ]


@pytest.mark.parametrize(("theirs", "ours"), [(0, 0), (2, 2), (1, 1), (-9, 1), (137, 1)])
def test_the_dashboards_exit_code_becomes_one_of_ours(monkeypatch, theirs, ours):
    monkeypatch.setattr(cli.subprocess, "call", lambda command: theirs)
    assert mnemo("dashboard").code == ours


def test_ctrl_c_ends_the_dashboard_well(monkeypatch):
    monkeypatch.setattr(cli.subprocess, "call", interrupted)
    assert mnemo("dashboard").code == 0


def test_the_bridge_takes_the_place_of_the_command_with_every_option(monkeypatch):
    calls: list[list[str]] = []
    monkeypatch.setattr(cli.os, "execv", lambda program, arguments: calls.append(arguments[1:]))
    done("bridge", "--example")
    done("bridge", "--config", "b.toml", "--dry-run", "--record", "kept", "--metrics", 9464)
    assert calls == [
        ["-m", "sensors", "bridge", "--example"],
        ["-m", "sensors", "bridge", "--config", "b.toml", "--dry-run", "--record", "kept", "--metrics", "9464"],
    ]


def test_a_stream_takes_the_place_of_the_command_with_every_option(monkeypatch):
    calls: list[list[str]] = []
    monkeypatch.setattr(cli.os, "execv", lambda program, arguments: calls.append(arguments[1:]))
    done("stream", "--bundle", "b", "--from", "lsl:glove")
    done("stream", "--bundle", "b", "--from", "lsl:glove", "--to", "mqtt://here/said")
    common = ["-m", "sensors", "stream", "--bundle", "b", "--from", "lsl:glove", "--to"]
    assert calls == [[*common, "-"], [*common, "mqtt://here/said"]]


def test_a_dashboard_of_nothing_says_which_command_fills_it(tmp_path):
    ended = subprocess.run(
        [sys.executable, "-m", "forecasting.cli", "dashboard", "--out", tmp_path, "--headless"],
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert re.fullmatch(r"error: .*no results\. `mnemo demo .*\n", ended.stderr)


def test_the_demo_opens_the_dashboard_unless_headless(place, monkeypatch):
    shown: list[list[str]] = []
    monkeypatch.setattr(cli.subprocess, "call", lambda command: shown.append(command[1:]) or 0)
    monkeypatch.setattr("forecasting.demo.run", lambda out, seed, say, show: say(f"{out} {seed}"))
    assert done("demo", "--headless", "--out", "here", "--seed", 3).out == "here 3\n"
    assert shown == []
    done("demo", "--out", "here")
    assert shown == [["-m", "dashboards", "--out", "here"]]
    assert "sales.csv: is a file, not a folder" in mnemo("demo", "--out", "sales.csv").error


@pytest.mark.parametrize("joined", [False, True], ids=["apart", "joined"])
def test_a_path_that_begins_at_home_is_found_there(tmp_path, monkeypatch, joined):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    pd.DataFrame({"unique_id": "a", "ds": range(60), "y": np.arange(60.0) % 7}).to_csv(home / "d.csv", index=False)
    paths = ["--data=~/d.csv", "--out=~/out"] if joined else ["--data", "~/d.csv", "--out", "~/out"]
    assert mnemo("backtest", *paths, "--model", "drift", "--horizon", 2).code == 0
    assert (home / "out" / "leaderboard.csv").exists()
    assert not (tmp_path / "~").exists()
