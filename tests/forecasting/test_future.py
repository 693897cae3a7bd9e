"""Covariates known ahead through the whole house: judged, bundled, streamed, by command and by sktime."""

import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from data.frame import Channel, Dataset, Splits
from data.panel import to_panel
from forecasting.backtest import backtest, compare
from forecasting.bundle import BundleError
from forecasting.certificate import certify
from forecasting.cli import app
from forecasting.runtime import LoadedBundle, load_bundle
from forecasting.sktime import MnemoForecaster
from forecasting.task import Task, TaskError
from forecasting.windows import split

LENGTH, HORIZON, TEST = 60, 3, 12
LEVEL = {"form": "local-level", "seasonal": "none"}
UNTIL = "2020-02-17"  # of the 60 days the 48th


def table(rows: int = LENGTH + HORIZON) -> pd.DataFrame:
    """Two series moved by a promotion, which is known ahead, and by noise; y ends a horizon before the promotions."""
    rng = np.random.default_rng(3)
    parts = []
    for name, level in (("a", 100.0), ("b", 20.0)):
        promotion = (rng.random(LENGTH + HORIZON) < 0.4).astype(float)
        y = level + 10 * promotion + 0.3 * rng.normal(size=len(promotion)).cumsum()
        y[LENGTH:] = np.nan
        warm = np.where(np.isnan(y), np.nan, rng.normal(size=len(y)))
        ds = pd.date_range("2020-01-01", periods=len(y), freq="D")
        parts.append(pd.DataFrame({"unique_id": name, "ds": ds, "y": y, "warm": warm, "promotion": promotion})[:rows])
    return pd.concat(parts, ignore_index=True)


def dataset(frame: pd.DataFrame | None = None) -> Dataset:
    channels = (Channel("y", ""), Channel("warm", ""), Channel("promotion", ""))
    frame = table() if frame is None else frame
    return Dataset("shop", frame, "forecast", channels, "D", 1, HORIZON, Splits(test_size=TEST), "y")


@pytest.fixture(scope="module")
def task() -> Task:
    return Task.of(dataset(), future=("promotion",))


ASKED = ["--horizon", "3", "--covariates", "promotion,warm", "--future", "promotion", "--no-calibrate"]
LEVEL_SET = ["--model", "components", "--set", "form=local-level", "--set", "seasonal=none"]


@pytest.fixture(scope="module")
def trainings(tmp_path_factory) -> dict[Path, Result]:
    """Two bundles, and what the command said of each: one takes what is known ahead, one does not. Of b that is missing
    once after the training part.
    """
    place = tmp_path_factory.mktemp("future")
    frame = table()
    frame.loc[frame["ds"].eq("2020-02-20") & frame["unique_id"].eq("b"), "promotion"] = np.nan
    frame.to_csv(place / "shop.csv", index=False)
    found = {}
    for name, chosen in (("components", LEVEL_SET), ("naive", ["--model", "naive"])):
        asked = ["--data", str(place / "shop.csv"), "--until", UNTIL, "--out", str(place / name)]
        found[place / name] = CliRunner().invoke(app, ["train", *asked, *chosen, *ASKED])
        assert (place / name / "card.json").exists(), found[place / name].output
    return found


@pytest.fixture(scope="module")
def bundles(trainings) -> dict[str, LoadedBundle]:
    return {path.name: load_bundle(path) for path in trainings}


def test_a_test_is_forecast_with_what_is_known_ahead_and_ends_where_the_values_do(task):
    report = backtest(dataset(), ["components"], task, settings=LEVEL, calibrated=False)
    board = report.leaderboard.set_index("model")
    assert board.loc["components", "mae"] < 0.3 * board.loc["naive", "mae"]
    assert report.forecasts["ds"].max() == pd.Timestamp("2020-02-29")
    assert report.history.groupby("unique_id").size().tolist() == [LENGTH, LENGTH]


@pytest.mark.parametrize("strategy", ["direct", "recursive"])
def test_a_regression_on_the_past_takes_them_too(task, strategy):
    """To whom they are covariates like any other, promotions a horizon ahead are chance."""
    later = table().dropna()
    earlier = later.assign(ds=later["ds"] - pd.Timedelta(days=LENGTH))
    data = dataset(pd.concat([earlier, later]).sort_values(["unique_id", "ds"], ignore_index=True))
    settings = {"lags": 14, "trees": 40, "strategy": strategy}
    known, past = (
        backtest(data, ["xgboost"], asked, settings=settings, calibrated=False).leaderboard.set_index("model")["mae"]
        for asked in (task, replace(task, future=()))
    )
    assert known["xgboost"] < 0.6 * past["xgboost"]
    assert known["naive"] == past["naive"]


def test_other_promotions_after_the_cutoff_change_its_forecast_by_their_effect(task):
    other = table()
    other.loc[other["ds"].eq("2020-02-20"), "promotion"] += 2
    one, two = (
        backtest(dataset(frame), ["components"], task, settings=LEVEL, calibrated=False, stride=20).forecasts
        for frame in (table(), other)
    )
    moved = two.loc[two["model"].eq("components"), "mean"] - one.loc[one["model"].eq("components"), "mean"]
    first = moved.to_numpy().reshape(2, -1, HORIZON)[:, 0]  # the cut-off on the 17th
    assert first[:, :2] == pytest.approx(0, abs=1e-4)
    assert first[:, 2] == pytest.approx(20, rel=0.1)


def test_a_series_of_which_a_covariate_is_missing_ahead_is_named_and_the_others_are_judged(task):
    frame = table()
    frame.loc[frame["ds"].eq("2020-02-20") & frame["unique_id"].eq("b"), "promotion"] = np.nan
    report = backtest(dataset(frame), ["components", "drift"], task, settings=LEVEL)
    assert len(report.failures) == 1
    assert re.match(r"b: lacks promotion at 2020-02-20, which should be known ahead", report.failures[0])
    assert set(report.forecasts["unique_id"]) == {"a"}
    assert report.leaderboard["n_series"].eq(1).all()
    assert not backtest(dataset(frame), ["drift"], task).failures  # which takes none
    frame.loc[frame["ds"].eq("2020-02-20"), "promotion"] = np.nan
    with pytest.raises(TaskError, match=r"a: lacks promotion at 2020-02-20.*which should be known ahead"):
        backtest(dataset(frame), ["components"], task, settings=LEVEL)


def test_training_says_which_series_lacks_what_is_ahead_and_fails_beside_a_whole_bundle(trainings, bundles):
    lacking, whole = trainings.values()
    assert lacking.exit_code == 1
    assert "error: b: lacks promotion at 2020-02-20, which should be known ahead" in lacking.stderr
    assert bundles["components"].card["metrics"][0]["n_series"] == 1
    assert whole.exit_code == 0  # which takes nothing ahead
    assert bundles["naive"].card["metrics"][0]["n_series"] == 2


def test_a_report_says_which_covariates_a_model_does_not_take(task):
    report = backtest(dataset(), ["components", "drift"], task, settings=LEVEL, calibrated=False, stride=4)
    said = [note for note in report.notes if "left out: " in note]
    assert said == [
        "components: takes no covariates but those known ahead; left out: warm.",
        "drift: takes no covariates; left out: warm, promotion.",
    ]


def test_a_covariate_that_is_missing_in_the_validation_part_leaves_the_quantiles_as_they_are(task):
    frame = table()
    frame.loc[frame["ds"].eq("2020-02-14") & frame["unique_id"].eq("b"), "promotion"] = np.nan
    report = backtest(dataset(frame), ["components"], replace(task, quantiles=(0.3, 0.5, 0.7)), settings=LEVEL)
    assert any("components: is not calibrated: b: lacks promotion at 2020-02-14" in note for note in report.notes)
    assert not report.leaderboard.set_index("model")["calibrated"]["components"]


def test_what_is_known_ahead_must_be_the_last_covariates():
    with pytest.raises(
        TaskError, match="the last covariates of a forecast, in order; got warm of the channels y, warm"
    ):
        Task.of(dataset(), future=("warm",))


def test_what_is_classified_has_nothing_known_ahead():
    frame = pd.DataFrame({"unique_id": "a", "ds": [0, 1], "x": 1.0, "label": ["up", "down"]})
    data = Dataset("moves", frame, "classify", (Channel("x", "g"),), 1, 1, 1, Splits(), "label")
    with pytest.raises(TaskError, match=r"moves: only a forecast has .* this is to classify\. Name x in --covariates"):
        Task.of(data, future=("x",))


def test_the_graphs_take_it_and_certify(bundles):
    loaded = bundles["components"]
    inputs = {entry["name"]: entry["shape"] for entry in loaded.card["graphs"]["step.onnx"]["inputs"]}
    assert inputs["future"] == ["batch", HORIZON, 1]
    scan = {entry["name"]: entry["shape"] for entry in loaded.card["graphs"]["scan.onnx"]["inputs"]}
    assert scan["future"] == ["batch", "time", HORIZON, 1]
    assert loaded.card["task"]["future"] == ["promotion"]
    assert certify(loaded, steps=20, budget_s=0.2)["passed"]


def test_a_model_that_takes_none_keeps_its_graphs(bundles):
    names = [entry["name"] for entry in bundles["naive"].card["graphs"]["step.onnx"]["inputs"]]
    assert "future" not in names
    cutoffs = bundles["naive"].forecast(table())["cutoff"].unique()
    assert list(cutoffs) == [pd.Timestamp("2020-02-29")]  # where the values end


def test_a_frame_a_stream_and_a_saved_state_say_the_same(bundles, tmp_path):
    loaded, frame = bundles["components"], table()
    whole = loaded.forecast(frame, save_state=tmp_path / "state.npz")
    assert (whole["cutoff"] == pd.Timestamp("2020-02-29")).all()
    stream = loaded.stream(["a", "b"])
    assert np.isnan(stream.predictions).all()  # nobody has said what is ahead
    by_day = frame.set_index(["unique_id", "ds"])
    for day in pd.date_range(UNTIL, "2020-02-29")[1:]:
        ahead = pd.date_range(day, periods=HORIZON + 1)[1:]
        told = stream.step(
            {uid: by_day.loc[(uid, day)].tolist() for uid in ("b", "a")},
            at=day.to_pydatetime(),
            future={uid: by_day.loc[uid].loc[ahead, "promotion"].to_numpy() for uid in ("a", "b")},
        )
    for uid, values in told.items():
        found = whole[whole["unique_id"] == uid].filter(regex="^q").to_numpy()
        np.testing.assert_allclose(found, values, rtol=1e-5)
    again = loaded.forecast(frame, state=tmp_path / "state.npz")
    pd.testing.assert_frame_equal(again, whole)
    adapting = loaded.forecast(frame, adapt=0.05)
    assert not np.allclose(adapting["q0.1"], whole["q0.1"])
    np.testing.assert_allclose(adapting["mean"], whole["mean"], rtol=1e-5)


@pytest.mark.parametrize("from_the_fit", [False, True])
@pytest.mark.parametrize("adapt", [None, 0.05])
def test_another_plan_without_a_new_observation_is_not_told_as_the_old_one(bundles, tmp_path, adapt, from_the_fit):
    loaded, frame = bundles["components"], table()
    if from_the_fit:
        frame.loc[frame["ds"] > UNTIL, ["y", "warm"]] = np.nan
    other = frame.copy()
    first = other["unique_id"].eq("a") & other["ds"].eq("2020-02-18" if from_the_fit else "2020-03-02")
    other.loc[first, "promotion"] = 1 - other.loc[first, "promotion"]
    path = tmp_path / "state.npz"
    expected = loaded.forecast(frame, save_state=path, adapt=adapt)
    found = loaded.forecast(other, state=path, adapt=adapt)
    assert list(loaded.failures) == ["a"]
    assert loaded.failures["a"].startswith("a: promotion ahead of its last observation is not what it was when")
    pd.testing.assert_frame_equal(found, expected[expected["unique_id"] == "b"].reset_index(drop=True))
    pd.testing.assert_frame_equal(loaded.forecast(frame, state=path, adapt=adapt), expected)
    assert not loaded.failures
    loaded.forecast(other[other["unique_id"] == "a"], adapt=adapt)  # from the history it can be told
    assert not loaded.failures


def test_from_the_end_of_the_fit_what_is_ahead_is_enough(bundles):
    loaded, frame = bundles["components"], table()
    old = frame.copy()
    old.loc[old["ds"] > UNTIL, ["y", "warm"]] = np.nan
    found = loaded.forecast(old)
    assert (found["cutoff"] == pd.Timestamp(UNTIL)).all()
    own = frame.set_index(["unique_id", "ds"])["promotion"]
    for uid, rows in found.groupby("unique_id"):
        promoted = own[uid].loc[rows["ds"]].to_numpy() > 0
        means = rows["mean"].to_numpy()
        assert np.ptp(means - 10 * promoted) < 2
    adapting = loaded.forecast(old, adapt=0.05)
    np.testing.assert_allclose(adapting["mean"], found["mean"], rtol=1e-6)


def test_a_frame_that_lacks_what_is_ahead_names_series_column_and_dates(bundles):
    loaded, short = bundles["components"], table(LENGTH + 1)
    with pytest.raises(
        BundleError,
        match=r"a: to forecast 3 steps after 2020-02-29\S* needs promotion at 2020-03-02.*2020-03-03\. Give rows",
    ):
        loaded.forecast(short)
    with pytest.raises(BundleError, match="no column for the channels promotion"):
        loaded.forecast(table().drop(columns="promotion"))


def test_a_series_that_lacks_what_is_ahead_is_named_and_the_others_are_forecast(bundles, tmp_path):
    loaded, whole = bundles["components"], table()
    gap = whole.copy()
    gap.loc[gap["unique_id"].eq("b") & gap["ds"].eq("2020-03-02"), "promotion"] = np.nan
    for adapt in (None, 0.05):
        expected = loaded.forecast(whole, adapt=adapt)
        found = loaded.forecast(gap, adapt=adapt)
        pd.testing.assert_frame_equal(found, expected[expected["unique_id"] == "a"].reset_index(drop=True))
        assert list(loaded.failures) == ["b"]
        assert "b: to forecast 3 steps after 2020-02-29 needs promotion at 2020-03-02. Give" in loaded.failures["b"]
    gap.to_csv(tmp_path / "gap.csv", index=False)
    asked = ["forecast", "--bundle", str(loaded.path), "--data", str(tmp_path / "gap.csv"), "--out", "-"]
    said = CliRunner().invoke(app, asked)
    assert said.exit_code == 1
    assert "error: b: to forecast 3 steps after 2020-02-29 needs promotion at 2020-03-02" in said.stderr
    assert set(pd.read_csv(io.StringIO(said.stdout))["unique_id"]) == {"a"}


def test_a_stream_refuses_a_step_without_what_is_ahead_and_stays_where_it_was(bundles):
    stream = bundles["components"].stream(["a", "b"])
    before = stream.state
    values = {"a": [100.0, 0.0, 1.0]}
    with pytest.raises(BundleError, match="give `future`, what promotion will be at the 3 steps ahead"):
        stream.step(values)
    with pytest.raises(BundleError, match=r"a: future is \(3, 1\) known numbers, for promotion; got shape \(2, 1\)"):
        stream.step(values, future={"a": [0.0, 1.0]})
    with pytest.raises(BundleError, match=r"a: future is .*got shape \(3, 1\) with missing ones"):
        stream.step(values, future={"a": [0.0, 1.0, np.nan]})
    with pytest.raises(BundleError, match=r"a: future is .*got nothing"):
        stream.step(values, future={"b": [0.0, 1.0, 0.0]})
    with pytest.raises(BundleError, match="naive takes no covariates known ahead; leave out future"):
        bundles["naive"].stream(["a"]).step(values, future={"a": [0.0, 1.0, 0.0]})
    for name, value in stream.state.items():
        np.testing.assert_array_equal(value, before[name])
    told = stream.step(np.array([[100.0, 0.0, 1.0], [20.0, 0.0, 0.0]]), future=np.zeros((2, HORIZON, 1)))
    assert np.isfinite(told).all()


def test_another_frequency_is_refused(bundles):
    stream = bundles["components"].stream(["a"])
    with pytest.raises(BundleError, match="not a whole number of steps of 'D'"):
        stream.step({"a": [1.0, 0.0, 0.0]}, at="2020-02-18T07:00:00", future={"a": [0.0] * HORIZON})


def test_the_commands_train_judge_and_forecast_with_it(bundles, tmp_path):
    loaded, data = bundles["components"], str(bundles["components"].path.parent / "shop.csv")
    run = CliRunner()
    assert [channel["name"] for channel in loaded.channels] == ["y", "warm", "promotion"]
    said = run.invoke(app, ["forecast", "--bundle", str(loaded.path), "--data", data, "--out", "-"])
    assert said.exit_code == 0, said.output
    answer = pd.read_csv(io.StringIO(said.stdout))
    assert answer["ds"].unique().tolist() == ["2020-03-01", "2020-03-02", "2020-03-03"]
    asked = ["backtest", "--data", data, *LEVEL_SET, *ASKED, "--test-size", "6", "--out", str(tmp_path)]
    said = run.invoke(app, asked)
    assert said.exit_code == 0, said.output
    board = pd.read_csv(tmp_path / "leaderboard.csv").set_index("model")
    assert board.loc["components", "mae"] < 0.5 * board.loc["naive", "mae"]
    said = run.invoke(app, [*asked, "--future", "pomotion"])
    assert "pomotion" in str(said.exception)


def test_the_fit_sees_no_further_than_the_values(task):
    parts = split(dataset(), to_panel(dataset()), task, hold_out=False)
    assert {len(span.series.ds) for span in parts.train} == {LENGTH}
    report = compare(replace(parts, test=parts.validation), ["components"], task, settings=LEVEL, calibrated=False)
    assert report.leaderboard["mae"].notna().all()


def test_sktime_gives_what_is_known_ahead_to_predict():
    wide = table()[lambda frame: frame["unique_id"].eq("a")].set_index("ds").asfreq("D")
    y, promotions = wide["y"][:LENGTH], wide[["promotion"]]
    model = MnemoForecaster("components", horizon=HORIZON, season=1, settings=LEVEL)
    model.fit(y[:50], X=promotions[:50])
    model.update(y[50:], X=promotions[50:LENGTH])
    with_it = model.predict(fh=[1, 3], X=promotions[LENGTH:])
    without = model.predict(fh=[1, 3], X=0 * promotions[LENGTH:])
    effect = promotions["promotion"].to_numpy()[[LENGTH, LENGTH + 2]]
    assert (with_it - without).to_numpy().ravel() == pytest.approx(10 * effect, abs=0.7)
    with pytest.raises(TaskError, match="predict needs X, known ahead, with the columns promotion; found none"):
        model.predict(fh=[1])
    with pytest.raises(TaskError, match=r"X of predict lacks promotion of y at 2020-03-02"):
        model.predict(fh=[1, 2], X=promotions[LENGTH : LENGTH + 1])
    alone = model.predict(fh=[3], X=promotions[LENGTH + 2 : LENGTH + 3])  # what is not asked for need not be known
    assert alone.to_numpy() == pytest.approx(with_it.to_numpy()[1:])


def test_a_state_of_double_digits_and_the_bundle_agree_on_the_fit_end(bundles, task):
    """The effects that a bundle keeps are those of the model."""
    loaded = bundles["components"]
    effects = loaded._effects
    assert effects is not None
    state = torch.from_numpy(loaded._initial["components.effects"])
    torch.testing.assert_close(torch.from_numpy(effects), state, rtol=1e-5, atol=1e-6)
