"""Plans are run through the command, as users run them, but for what only a caller can do."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pandas as pd
import pytest

from data.store import Store
from forecasting import batch, load_bundle
from forecasting.batch import resume, run_plan
from forecasting.plan import read_plan
from tests.forecasting.test_cli import mnemo

pytestmark = pytest.mark.filterwarnings("ignore:The default of config:FutureWarning")  # sktime's, of its own next

SHOPS = """
[[job]]
name = "shops"
data = "shops.csv"
bundle = "ets"
out = "out/shops.parquet"
"""
REFERENCE = """
[[job]]
name = "reference"
data = "shops.csv"
model = "sktime:NaiveForecaster"
horizon = 3
set = { strategy = "drift" }
"""
PLAN = SHOPS + REFERENCE


def shops(length: int, names: str = "abc") -> pd.DataFrame:
    parts = []
    for row, name in enumerate(names):
        y = 100 + np.random.default_rng(row).normal(size=60).cumsum()[:length]
        parts.append(pd.DataFrame({"unique_id": name, "ds": pd.date_range("2024-01-01", periods=length), "y": y}))
    return pd.concat(parts)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    place = tmp_path_factory.mktemp("batch")
    shops(40).to_csv(place / "shops.csv", index=False)
    done = mnemo("train", "--data", place / "shops.csv", "--model", "ets", "--horizon", 3, "--out", place / "ets")
    assert done.code == 0, done.err
    return place


@pytest.fixture
def folder(trained, tmp_path, monkeypatch):
    os.symlink(trained / "ets", tmp_path / "ets")
    shops(40).to_csv(tmp_path / "shops.csv", index=False)
    (tmp_path / "plan.toml").write_text(PLAN)
    monkeypatch.setenv("MNEMO_STORE", f"sqlite:///{tmp_path / 'store.db'}")
    return tmp_path


@pytest.fixture
def store(folder):
    opened = Store(os.environ["MNEMO_STORE"])
    yield opened
    opened.close()


def told(outcome):
    assert outcome.code in (0, 1), outcome
    return json.loads(outcome.out)


def job(run, name):
    return next(each for each in run["jobs"] if each["job"] == name)


def test_a_run_keeps_what_every_job_forecasts_and_writes_what_is_asked_for(folder, store):
    run = told(mnemo("batch", "run", folder / "plan.toml", "--json"))
    assert (run["status"], run["plan"]) == ("done", "plan")
    assert [(each["job"], each["series"], each["rows"]) for each in run["jobs"]] == [
        ("shops", 3, 9),
        ("reference", 3, 9),
    ]
    expected = load_bundle(folder / "ets").forecast(shops(40))
    pd.testing.assert_frame_equal(store.latest("plan", "shops"), expected, check_dtype=False)
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "out" / "shops.parquet"), expected, check_dtype=False)
    drift = store.latest("plan", "reference")
    a = shops(40).query("unique_id == 'a'")["y"].to_numpy()
    np.testing.assert_allclose(drift["mean"][:3], a[-1] + np.arange(1, 4) * (a[-1] - a[0]) / 39)
    assert set(drift["model"]) == {"sktime:NaiveForecaster"}
    assert store.state("plan", "shops") is not None
    assert store.state("plan", "reference") is None


def test_the_next_run_steps_what_is_new_alone_and_gives_what_the_whole_history_gives(folder, store):
    mnemo("batch", "run", folder / "plan.toml")
    whole = shops(45)
    whole[whole["ds"] > "2024-02-05"].to_csv(folder / "shops.csv", index=False)  # the state knows what came before
    run = told(mnemo("batch", "run", folder / "plan.toml", "--json"))
    assert job(run, "shops")["from"] == "from the state of the run before"
    assert job(run, "reference")["from"] == "on the whole history"
    expected = load_bundle(folder / "ets").forecast(whole)
    found = store.latest("plan", "shops")
    assert set(found["cutoff"]) == {pd.Timestamp("2024-02-14")}
    np.testing.assert_allclose(found["mean"], expected["mean"], rtol=1e-6)


def test_without_carry_the_whole_history_is_stepped(folder):
    (folder / "plan.toml").write_text(PLAN.replace('bundle = "ets"', 'bundle = "ets"\ncarry = false'))
    for _ in range(2):
        run = told(mnemo("batch", "run", folder / "plan.toml", "--json"))
        assert job(run, "shops")["from"] == "on the whole history"


def test_a_bundle_that_was_fitted_anew_starts_anew_and_says_so_though_its_graph_is_the_same(folder, store):
    mnemo("batch", "run", folder / "plan.toml")
    graph = load_bundle(folder / "ets").card["sha256"]["step.onnx"]
    os.unlink(folder / "ets")
    calm = shops(40)
    calm["y"] = 50 + (calm["y"] - 100) / 10
    calm.to_csv(folder / "shops.csv", index=False)
    again = mnemo("train", "--data", folder / "shops.csv", "--model", "ets", "--horizon", 3, "--out", folder / "ets")
    assert again.code == 0
    assert load_bundle(folder / "ets").card["sha256"]["step.onnx"] == graph
    run = told(mnemo("batch", "run", folder / "plan.toml", "--json"))
    assert job(run, "shops")["from"] == "from the initial state"
    assert "is another bundle than in the run before" in job(run, "shops")["notes"][-1]
    expected = load_bundle(folder / "ets").forecast(calm)
    np.testing.assert_allclose(store.latest("plan", "shops")["mean"], expected["mean"])


def test_what_fails_is_said_and_kept_apart_and_can_be_done_later(folder, store):
    (folder / "plan.toml").write_text(PLAN + '\n[[job]]\nname = "late"\ndata = "late.csv"\nbundle = "ets"\n')
    first = mnemo("batch", "run", folder / "plan.toml", "--json")
    run = told(first)
    assert (first.code, run["status"]) == (1, "partial")
    assert "late.csv: no such file" in job(run, "late")["reason"]
    assert "error: late: " in first.err
    assert f"mnemo batch resume {run['run']}" in first.err
    assert len(store.latest("plan", "shops")) == 9
    shops(40).to_csv(folder / "late.csv", index=False)
    (folder / "plan.toml").unlink()  # a run knows its plan
    again = mnemo("batch", "resume", run["run"], "--json")
    assert (again.code, told(again)["status"]) == (0, "done")
    assert "shops:" not in again.err  # was done
    assert len(store.latest("plan", "late")) == 9


def test_series_that_fail_are_named_and_the_others_stay(folder, store):
    shops(40, "abcd").to_csv(folder / "shops.csv", index=False)  # ets was not fitted to d
    outcome = mnemo("batch", "run", folder / "plan.toml", "--json")
    run = told(outcome)
    assert outcome.code == 1
    assert list(job(run, "shops")["failures"]) == ["d"]
    assert set(store.latest("plan", "shops")["unique_id"]) == {"a", "b", "c"}
    assert set(store.latest("plan", "reference")["unique_id"]) == {"a", "b", "c", "d"}


def test_a_substitute_is_counted(folder, store):
    pd.concat([shops(40), shops(5, "z")]).to_csv(folder / "shops.csv", index=False)
    (folder / "plan.toml").write_text(PLAN.replace('"drift"', '"mean", window_length = 20, sp = 1'))
    outcome = mnemo("batch", "run", folder / "plan.toml", "--json")
    assert {
        name: one["substitute"] for name, one in job(told(outcome), "reference")["substitutes"].items()
    } == {"z": "naive"}  # fmt: skip
    assert "1 of 4 series are forecast by a substitute, first z by naive" in outcome.err
    answer = store.latest("plan", "reference")
    assert set(answer[answer["substitute"] == "naive"]["unique_id"]) == {"z"}


def test_a_job_that_has_nothing_but_failures_leaves_no_forecast_of_the_plan(folder, store):
    (folder / "shops.csv").write_text("unique_id,ds,y\na,yesterday,1\n")
    outcome = mnemo("batch", "run", folder / "plan.toml", "--json")
    run = told(outcome)
    assert (outcome.code, run["status"]) == (1, "failed")
    assert "shops.csv" in job(run, "shops")["reason"]
    assert store.latest("plan", "shops") is None
    assert not (folder / "out").exists()


def test_a_classifier_named_in_a_plan_learns_in_the_run(folder, store):
    rng = np.random.default_rng(0)
    rows = []
    for number in range(12):
        for t in range(20):
            up = number % 2
            rows.append(
                (
                    f"r{number}",
                    t,
                    ("down", "up")[up],
                    (2 * up - 1) * t + rng.normal(),
                )
            )
    frame = pd.DataFrame(rows, columns=["unique_id", "ds", "label", "x"])
    frame[frame["unique_id"] < "r7"].to_csv(folder / "known.csv", index=False)
    frame[frame["unique_id"] >= "r7"].drop(columns="label").to_csv(folder / "new.csv", index=False)
    (folder / "plan.toml").write_text(
        '[[job]]\nname = "gestures"\ndata = "new.csv"\nlearn = "known.csv"\n'
        'model = "sktime:KNeighborsTimeSeriesClassifier"\n'
    )
    run = told(mnemo("batch", "run", folder / "plan.toml", "--json"))
    assert run["status"] == "done", run
    assert store.latest("plan", "gestures").set_index("unique_id")["label"].to_dict() == {
        "r7": "up", "r8": "down", "r9": "up"
    }  # fmt: skip


def test_status_lists_runs_and_shows_one(folder):
    assert "no runs yet" in mnemo("batch", "status").out
    run = told(mnemo("batch", "run", folder / "plan.toml", "--json"))["run"]
    assert run in mnemo("batch", "status").out
    assert "NaiveForecaster" in mnemo("batch", "status", run).out
    assert [each["run"] for each in json.loads(mnemo("batch", "status", "--json").out)] == [run]
    assert json.loads(mnemo("batch", "status", "--plan", "other", "--json").out) == []
    assert "x: no run of this name" in mnemo("batch", "status", "x").error


def test_a_plan_or_store_that_is_wrong_is_refused_before_anything_is_written(folder):
    (folder / "plan.toml").write_text("[[job]]\nname = 3\n")
    assert "plan.toml: job 3: name is text, got 3" in mnemo("batch", "run", folder / "plan.toml").error
    (folder / "plan.toml").write_text(PLAN)
    assert "is no URL of a store" in mnemo("batch", "run", folder / "plan.toml", "--store", "nonsense").error


def test_a_run_that_is_killed_leaves_nothing_to_be_seen_and_goes_on_where_it_was(folder, store):
    slow = (
        '[[job]]\nname = "slow"\ndata = "shops.csv"\nmodel = "sktime:tests.forecasting.waiting_forecaster.Waiting"\n'
        f'horizon = 3\nset = {{ until = "{folder / "now"}" }}\n'
    )
    (folder / "plan.toml").write_text(PLAN + slow)
    process = subprocess.Popen(
        [sys.executable, "-m", "forecasting.cli", "batch", "run", str(folder / "plan.toml")],
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("reference:"):
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()
    (dead,) = store.runs()
    assert [each.status for each in dead.jobs] == ["done", "done", "waiting"]
    assert store.latest("plan", "shops") is None
    assert not (folder / "out").exists()
    (folder / "now").touch()
    again = mnemo("batch", "resume", dead.id, "--json")
    assert (again.code, told(again)["status"]) == (0, "done")
    assert len(store.latest("plan", "shops")) == len(store.latest("plan", "slow")) == 9
    assert (folder / "out" / "shops.parquet").is_file()


def test_ctrl_c_interrupts_a_run_which_another_then_need_not_wait_for(folder, store, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    said: list[str] = []
    plan = read_plan(folder / "plan.toml")
    with monkeypatch.context() as patch:
        patch.setattr(batch, "_fitted_in_the_run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_plan(plan, store, said.append)
    (run,) = store.runs()
    assert run.status == "interrupted"
    assert said[-1] == f"interrupted: mnemo batch resume {run.id}"
    assert resume(run.id, store).status == "done"


def test_signs_of_life_are_given_while_a_job_takes_long(folder, store, monkeypatch):
    monkeypatch.setattr(batch, "SIGN_S", 0.01)
    seen = []
    fitted = batch._fitted_in_the_run

    def slowly(*arguments):
        for _ in range(2):
            seen.append(store.runs()[0].alive)
            time.sleep(0.3)
        return fitted(*arguments)

    monkeypatch.setattr(batch, "_fitted_in_the_run", slowly)
    run_plan(read_plan(folder / "plan.toml"), store)
    assert seen[0] < seen[1]


def test_schedule_runs_a_plan_again_and_again_until_it_is_interrupted(folder, store):
    (folder / "plan.toml").write_text(f'every = "1s"\nkeep = 1\n{SHOPS}')
    command = [sys.executable, "-m", "forecasting.cli", "schedule", str(folder / "plan.toml")]
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # which who starts tests in the background may not
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heed)
    assert process.stderr is not None
    lines = []
    try:
        for line in process.stderr:
            lines.append(line)
            if lines.count("plan: done\n") == 2:
                break
        assert lines.count("plan: done\n") == 2, lines
        process.send_signal(signal.SIGINT)
        rest = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode == 1
    assert rest.endswith("interrupted.\n")
    assert lines[0].startswith("plan: next at ")
    assert any("from the state of the run before" in line for line in lines)
    done = [run for run in store.runs() if run.status == "done"]
    assert len(done) >= 2
    assert len(store.latest("plan", "shops")) == 9


def test_schedule_refuses_a_plan_without_a_time(folder):
    assert "does not say when it is due" in mnemo("schedule", folder / "plan.toml").error
