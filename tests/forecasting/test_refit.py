import json
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
from sktime.forecasting.theta import ThetaForecaster

from data.frame import Channel, Dataset, Splits
from data.panel import to_panel
from forecasting.backtest import backtest
from forecasting.pipeline import train_bundle
from forecasting.refit import RefitModel
from forecasting.results import find_results, write_report
from forecasting.runtime import load_bundle
from forecasting.task import Task, TaskError
from forecasting.windows import Span

NAIVE, THETA, CROSTON = "sktime:NaiveForecaster", "sktime:ThetaForecaster", "sktime:sktime.forecasting.croston.Croston"
SMOOTHING = "sktime:sktime.forecasting.exp_smoothing.ExponentialSmoothing"


def walk(length, seed=0):
    return 50 + np.random.default_rng(seed).normal(size=length).cumsum()


def sales(*series, freq="MS", season=1, horizon=3):
    """Months, or integers where freq is a number."""
    frames = []
    for name, values in zip("abcdefgh", series, strict=False):
        ds = (
            pd.date_range("2001-01-01", periods=len(values), freq=freq) if isinstance(freq, str) else range(len(values))
        )
        frames.append(pd.DataFrame({"unique_id": name, "ds": ds, "y": values}))
    frame = pd.concat(frames, ignore_index=True)
    return Dataset("sales", frame, "forecast", (Channel("y", ""),), freq, season, horizon, Splits(test_size=6), "y")


def run(data, *models, settings=None, **options):
    return backtest(data, models, Task.of(data), settings=settings, **options)


def forecasts_of(report, model):
    rows = report.forecasts[report.forecasts["model"] == model]
    return rows.drop(columns="model").reset_index(drop=True)


@pytest.mark.parametrize("freq", ["MS", "2ME", "QS-NOV", "YE-JUN", "h", "B", "W-SUN", 1], ids=str)
def test_sktimes_seasonal_naive_forecasts_what_ours_does_at_every_cutoff(freq):
    data = sales(walk(40), walk(36, 1), freq=freq, season=4)
    report = run(data, NAIVE)
    ours, theirs = forecasts_of(report, "naive"), forecasts_of(report, NAIVE)
    keys = ["unique_id", "cutoff", "ds", "y"]
    pd.testing.assert_frame_equal(ours[keys], theirs[keys])
    np.testing.assert_allclose(theirs["mean"], ours["mean"], rtol=1e-6)
    board = report.leaderboard.set_index("model")
    assert board.loc[NAIVE, "mase"] == pytest.approx(board.loc["naive", "mase"], rel=1e-5)
    assert (
        board.loc[NAIVE, ["n_series", "n_cutoffs"]].tolist() == board.loc["naive", ["n_series", "n_cutoffs"]].tolist()
    )
    assert not len(report.substitutes)


def test_a_forecast_is_that_of_the_class_fitted_up_to_the_cutoff_alone():
    y = walk(40)
    report = run(sales(y), THETA, stride=2)
    rows = forecasts_of(report, THETA)
    series = pd.Series(y, pd.period_range("2001-01", periods=40, freq="M"))
    for cutoff, part in rows.groupby("cutoff"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of sktime's, about its own next default
            theta = ThetaForecaster().fit(series[: pd.Period(cutoff, "M")], fh=[1, 2, 3])
        np.testing.assert_allclose(part["mean"], theta.predict())
        np.testing.assert_allclose(part["q0.1"], theta.predict_quantiles(alpha=[0.1]).iloc[:, 0])
    future = y.copy()
    future[36:] += 1000
    changed = forecasts_of(run(sales(future), THETA, stride=2), THETA)
    first = rows["cutoff"] == rows["cutoff"].min()
    pd.testing.assert_series_equal(changed.loc[first, "mean"], rows.loc[first, "mean"])


def test_its_quantiles_are_calibrated_by_one_fit_a_series_before_the_test():
    data = sales(*(walk(40, seed) for seed in range(4)))
    report, raw = run(data, THETA), run(data, THETA, calibrated=False)
    factors, scores = report.calibrations[THETA].factors, report.calibrations[THETA].scores
    assert scores == 4 * 3
    middle = forecasts_of(raw, THETA)["q0.5"]
    for column, level in (("q0.1", 0), ("q0.9", 8)):
        width = forecasts_of(raw, THETA)[column] - middle
        told = middle + np.tile(factors[:, level], len(width) // 3) * width
        np.testing.assert_allclose(forecasts_of(report, THETA)[column], told)
    assert not np.allclose(factors, 1, atol=0.05)
    board = report.leaderboard.set_index("model").loc[THETA]
    assert board["pinball_raw"] == pytest.approx(raw.leaderboard.set_index("model")["pinball"][THETA])
    assert len(report.substitutes) == 0


def test_in_an_ensemble_it_is_calibrated_at_the_one_cutoff_a_series_that_it_shares_with_the_others():
    report = run(sales(*(walk(60, seed) for seed in range(4))), THETA, "ridge", ensembles=["mean"])
    scores = {name: calibration.scores for name, calibration in report.calibrations.items()}
    assert scores == {"naive": 4 * 9, "ridge": 4 * 9, THETA: 4 * 3, f"mean({THETA},ridge)": 4 * 3}


def test_a_forecaster_of_points_has_no_quantiles_and_says_so():
    report = run(sales(walk(40)), CROSTON)
    row = report.leaderboard.set_index("model").loc[CROSTON]
    assert np.isfinite(row["mase"])
    assert np.isnan(row["pinball"])
    assert np.isnan(row["coverage_80"])
    assert forecasts_of(report, CROSTON)["q0.5"].isna().all()
    assert CROSTON not in report.calibrations
    assert any(note.startswith(f"{CROSTON}: forecasts points only") for note in report.notes)


class Loud(ThetaForecaster):
    """Prints at every fit, as networks of sktime's do."""

    def _fit(self, y, X=None, fh=None):
        sys.stdout.write("epoch 1")
        return super()._fit(y, X, fh)


def test_what_a_fit_prints_is_not_among_the_results(capsys):
    run(sales(walk(40)), f"sktime:{__name__}.Loud", calibrated=False)
    said = capsys.readouterr()
    assert "epoch 1" not in said.out
    assert "epoch 1" in said.err


def test_a_forecaster_made_of_others_is_named_by_theirs():
    steps = '[["trend", {"class": "Detrender"}], ["rest", {"class": "NaiveForecaster", "strategy": "mean"}]]'
    y, piped = walk(40), "sktime:TransformedTargetForecaster"
    rows = forecasts_of(run(sales(y), piped, settings={"steps": steps}, calibrated=False), piped)
    (first,) = (part for cutoff, part in rows.groupby("cutoff") if cutoff == rows["cutoff"].min())
    known = y[: list(pd.date_range("2001-01-01", periods=40, freq="MS")).index(first["cutoff"].iloc[0]) + 1]
    t = np.arange(len(known) + 3)
    line = np.polynomial.Polynomial.fit(t[:-3], known, 1)  # and the mean of what is left of it is 0
    np.testing.assert_allclose(first["mean"], line(t[-3:]))


def test_a_forecaster_on_a_regressor_of_scikit_learn_is_kept_in_a_bundle(tmp_path):
    regressor = '{"class": "sklearn.linear_model.Ridge", "alpha": 0.5}'
    settings = {"estimator": regressor, "window_length": 5}
    data = sales(walk(40))
    reducer = "sktime:RecursiveTabularRegressionForecaster"
    _, card = train_bundle(data, reducer, Task.of(data), tmp_path / "b", settings=settings)
    assert card["config"]["parameters"]["estimator"] == json.loads(regressor)
    found = load_bundle(tmp_path / "b").forecast(data.frame)
    assert found["substitute"].eq("").all()
    assert found["mean"].notna().all()


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"class": "NaiveForecater"}, "sktime has no estimator of this name. Similar: NaiveForecaster"),
        ({"class": "sklearn.linear_model.Rigde"}, "cannot be imported"),
        ({"class": "pathlib.Path"}, "pathlib.Path: is no estimator"),
        ({"class": "NaiveForecaster", "strategie": "mean"}, "unexpected keyword argument 'strategie'"),
    ],
)
def test_a_part_that_is_not_there_is_named(part, message):
    data = sales(walk(40))
    with pytest.raises(TaskError, match=message):
        RefitModel("sktime:NaiveVariance", Task.of(data), {"forecaster": part})


def test_a_series_it_cannot_be_fitted_on_is_forecast_by_naive_and_named(tmp_path):
    sinking = walk(40, 1) - 100  # a multiplicative trend needs positive values
    report = run(sales(walk(40), sinking), SMOOTHING, settings={"trend": "mul"})
    failed = report.substitutes
    assert set(failed["unique_id"]) == {"b"}
    assert set(failed["substitute"]) == {"naive"}
    assert len(failed) == 4
    assert forecasts_of(report, SMOOTHING).groupby("unique_id")["substitute"].unique().map(list).to_dict() == {
        "a": [""], "b": ["naive"],
    }  # fmt: skip
    assert failed["reason"].str.contains("positive").all()
    mine, naive = forecasts_of(report, SMOOTHING), forecasts_of(report, "naive")
    there = mine["unique_id"] == "b"
    np.testing.assert_array_equal(mine.loc[there, "mean"], naive.loc[there, "mean"])
    assert (mine.loc[~there, "mean"] != naive.loc[~there, "mean"]).any()
    assert any("4 of 8 forecasts, of 1 of 2 series, are those of naive instead, first b" in n for n in report.notes)

    write_report(report, tmp_path / "run", dataset="sales", seed=0, settings={})
    assert len(pd.read_csv(tmp_path / "run" / "substitutes.csv")) == 4
    ran = find_results(tmp_path)[0].run
    assert ran["substituted"] == {SMOOTHING: {"series": 1, "forecasts": 4}}
    assert ran["models"][SMOOTHING]["parameters"] == {"trend": "mul", "sp": 1, "random_state": 0}
    write_report(run(sales(walk(40))), tmp_path / "run", dataset="sales", seed=0, settings={})
    assert not (tmp_path / "run" / "substitutes.csv").exists()


def test_one_that_fails_everywhere_is_no_result():
    with pytest.raises(TaskError, match=r"failed at every cut-off of every series, first with ValueError: .*positive"):
        run(sales(walk(40) - 200), SMOOTHING, settings={"trend": "mul"})


def test_settings_are_read_as_json_and_the_season_is_the_tasks():
    task = Task.of(sales(walk(40), season=4))
    assert RefitModel(NAIVE, task, {"strategy": "mean", "window_length": "6"}).parameters == {
        "strategy": "mean", "window_length": 6, "sp": 4,
    }  # fmt: skip
    assert RefitModel(NAIVE, task, {"sp": 1}).parameters == {"sp": 1}
    spec = RefitModel(THETA, task, {"deseasonalize": "false"}).config
    assert json.loads(json.dumps(spec))["parameters"] == {"deseasonalize": False, "sp": 4}
    again = "sktime:" + spec["class"]
    assert RefitModel(again, task, spec["parameters"]).parameters == spec["parameters"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sktime:ThetaForcaster", r"no forecaster of this name. Similar: ThetaForecaster"),
        ("sktime:nowhere.Forecaster", r"cannot be imported \(No module named 'nowhere'\)"),
        ("sktime:sktime.forecasting.theta.Thet", r"cannot be imported .*has no attribute 'Thet'"),
        ("sktime:os.path.join", r"is no sktime forecaster, which this task to forecast needs"),
        ("sktime:subprocess.Popen", r"is no sktime forecaster"),
        ("sktime:sktime.classification.dummy.DummyClassifier", r"is no sktime forecaster"),
    ],
)
def test_a_name_that_is_no_forecaster_is_refused_before_anything_is_trained(name, message):
    with pytest.raises(TaskError, match=message):
        run(sales(walk(40)), name)


def test_other_refusals():
    data = sales(walk(40))
    with pytest.raises(TaskError, match=r"no model here has a field 'spp'; known: .*\bsp\b"):
        run(data, NAIVE, settings={"spp": 3})


# --- classes ---


def moves(count=24, length=12):
    random = np.random.default_rng(0)
    frames = []
    for place in range(count):
        label = ("left", "right")[place % 2]
        values = np.linspace(0, 1 if label == "right" else -1, length) + random.normal(0, 0.1, length)
        frames.append(pd.DataFrame({"unique_id": f"m{place:02d}", "ds": range(length), "label": label, "x": values}))
    frame = pd.concat(frames, ignore_index=True)
    return Dataset("moves", frame, "classify", (Channel("x", ""),), None, 1, 1, Splits(), "label")


@pytest.mark.filterwarnings("ignore")  # of numba, while sktime's distances are imported
def test_a_classifier_is_fitted_on_whole_series_and_judged_beside_ours():
    name = "sktime:sktime.classification.distance_based.KNeighborsTimeSeriesClassifier"
    report = run(moves(), name, settings={"distance": "euclidean"})
    board = report.leaderboard.set_index("model")
    assert board.loc[name, "accuracy"] == 1.0
    assert board.loc[name, "n_cutoffs"] == board.loc["naive", "n_cutoffs"]
    rows = forecasts_of(report, name)
    assert (rows["ds"] == 11).all()
    np.testing.assert_allclose(rows["p_left"] + rows["p_right"], 1)


def test_a_classifier_refuses_labels_that_change_along_a_series():
    data = moves()
    data.frame.loc[3, "label"] = "right"
    task = Task.of(data)
    model = RefitModel("sktime:DummyClassifier", task, {})
    spans = [Span(series, 0, 12) for series in to_panel(data, task.labels)]
    with pytest.raises(TaskError, match="labels whole series, but series m00 changes its label"):
        model.classify(spans, spans)
