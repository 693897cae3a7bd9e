import builtins
import json

import numpy as np
import pandas as pd
import pytest
from sktime.forecasting.naive import NaiveForecaster
from sktime.forecasting.theta import ThetaForecaster

from data.frame import Channel, Dataset, Splits
from forecasting import load_bundle
from forecasting.bundle import BundleError, read_bundle, write_bundle
from forecasting.certificate import certify
from forecasting.pipeline import train_bundle
from forecasting.task import Task, TaskError
from tests.forecasting.test_refit import CROSTON, NAIVE, SMOOTHING, THETA, moves, sales, walk

pytestmark = pytest.mark.filterwarnings("ignore:The default of config:FutureWarning")  # sktime's, of its own next
NEIGHBOURS = "sktime:sktime.classification.distance_based.KNeighborsTimeSeriesClassifier"


def train(data, model, place, **options):
    report, card = train_bundle(data, model, Task.of(data), place, **options)
    return report, card, load_bundle(place)


@pytest.fixture(scope="module")
def theta(tmp_path_factory):
    place = tmp_path_factory.mktemp("refit") / "theta"
    data = sales(walk(40), walk(36, 1))
    return data, *train(data, THETA, place, settings={"deseasonalize": "false"})


def test_a_bundle_holds_the_spec_alone_and_forecasts_what_the_class_fitted_on_the_frame_does(theta):
    data, _, card, bundle = theta
    assert [file.name for file in bundle.path.iterdir()] == ["card.json"]
    assert card["config"]["parameters"] == {"deseasonalize": False, "sp": 1}
    assert {"sktime", "statsmodels"} <= set(card["training"]["libraries"])
    answer = bundle.forecast(data.frame)
    for name, rows in answer.groupby("unique_id"):
        known = data.frame[data.frame["unique_id"] == name]
        y = pd.Series(known["y"].to_numpy(), pd.PeriodIndex(known["ds"], freq="M"))
        fitted = ThetaForecaster(deseasonalize=False).fit(y, fh=[1, 2, 3])
        np.testing.assert_allclose(rows["mean"], fitted.predict(), rtol=1e-9)
        raw = np.sort(fitted.predict_quantiles(alpha=list(bundle.quantiles)).to_numpy(), -1)
        np.testing.assert_allclose(rows.filter(regex="^q"), bundle.calibrated(raw), rtol=1e-9)
        assert rows["cutoff"].unique() == known["ds"].max()
    assert set(answer["model"]) == {THETA}
    assert set(answer["substitute"]) == {""}
    assert bundle.calibration is not None  # as the backtest calibrates it


def test_its_card_holds_figures_beside_naive_and_ridge_at_every_horizonth_cutoff(theta):
    data, _, card, _ = theta
    assert {row["model"] for row in card["metrics"]} == {"naive", "ridge", THETA}
    assert {row["n_cutoffs"] for row in card["metrics"]} == {2}  # of 6 steps to test on, horizon 3
    assert card["training"]["n_series"] == 2
    assert card["training"]["data_set"] == data.name


def test_it_can_neither_be_streamed_nor_certified_nor_keep_a_state_and_says_why(theta, tmp_path):
    *_, bundle = theta
    for call in (lambda: bundle.stream(["a"]), lambda: certify(bundle.path), lambda: bundle.run_step(0, 0, {})):
        with pytest.raises(
            BundleError, match=r"ThetaForecaster has no step: it is fitted anew .* such as ets or ridge"
        ):
            call()
    for options in ({"state": b""}, {"save_state": tmp_path / "s"}, {"adapt": 0.05}):
        with pytest.raises(BundleError, match="fitted anew on the whole history, so it has no state"):
            bundle.forecast(theta[0], **options)
    with pytest.raises(BundleError, match="has no step"):
        _ = bundle.look_session


def test_a_series_that_it_cannot_be_fitted_to_is_forecast_by_naive_and_named(tmp_path):
    sinking = walk(40, 1) - 100
    data = sales(walk(40), sinking)
    *_, bundle = train(data, SMOOTHING, tmp_path / "b", settings={"trend": "mul"})
    answer = bundle.forecast(sales(walk(40), sinking, np.full(40, 7.0), sinking[:2], np.full(40, np.nan)))
    instead = answer.groupby("unique_id")["substitute"].unique().map(list).to_dict()
    assert instead == {"a": [""], "b": ["naive"], "c": [""], "d": ["naive"]}
    assert set(bundle.substitutes) == {"b", "d"}
    assert any("missing in all rows of 1 of 5 series: e. Left out." in note for note in bundle.notes)
    assert "positive" in bundle.substitutes["b"]["reason"]
    values = answer.set_index("unique_id")
    np.testing.assert_allclose(values.loc["b", "mean"], sinking[-1], rtol=0.2)
    assert np.isfinite(answer["mean"]).all()
    bundle.forecast(sales(walk(40)))
    assert bundle.substitutes == {}  # they are of the last forecast
    with pytest.raises(TaskError, match="failed at every cut-off of every series"):
        bundle.forecast(sales(sinking))


def test_rows_after_the_last_value_are_said_to_move_the_forecast_on(theta):
    *_, bundle = theta
    open_end = np.r_[walk(40), np.nan, np.nan]
    bundle.forecast(sales(walk(40), open_end))
    assert any("1 of 2 series have rows after their last y, first b" in note for note in bundle.notes)


def test_a_frame_of_another_step_is_refused(theta):
    *_, bundle = theta
    with pytest.raises(ValueError, match=r"off the grid of 'MS'"):
        bundle.forecast(sales(walk(40), freq="W-SUN").frame)


def test_a_forecaster_of_points_has_a_mean_and_empty_quantiles(tmp_path):
    *_, bundle = train(sales(walk(40)), CROSTON, tmp_path / "b")
    answer = bundle.forecast(sales(walk(40)))
    assert np.isfinite(answer["mean"]).all()
    assert answer["q0.5"].isna().all()
    assert any("forecasts points only" in note for note in bundle.notes)


def test_it_needs_the_target_alone(tmp_path):
    data = sales(walk(40))
    data.frame["price"] = 1.0
    data = Dataset(
        "sales", data.frame, "forecast", (Channel("y", ""), Channel("price", "")), "MS", 1, 3, data.splits, "y"
    )
    report, card, bundle = train(data, NAIVE, tmp_path / "b")
    assert [channel["name"] for channel in card["task"]["channels"]] == ["y"]
    assert any("is fitted on the target alone" in note for note in report.notes)
    expected = NaiveForecaster().fit(pd.Series(walk(40)), fh=[1]).predict().iloc[0]
    assert bundle.forecast(sales(walk(40)))["mean"].iloc[0] == pytest.approx(expected)


def test_without_a_split_the_validation_part_is_judged(tmp_path):
    data = sales(walk(40))
    data = Dataset("sales", data.frame, "forecast", data.channels, "MS", 1, 3, Splits(), "y")
    _, card, _ = train(data, NAIVE, tmp_path / "b")
    assert {row["on"] for row in card["metrics"]} == {"validation"}


def test_a_parameter_that_json_cannot_hold_is_refused_before_anything_is_written(tmp_path):
    place = tmp_path / "b"
    with pytest.raises(TaskError, match=r"forecaster=.* cannot be kept in a bundle, whose spec is JSON"):
        train(sales(walk(40)), "sktime:UpdateRefitsEvery", place, settings={"forecaster": NaiveForecaster()})
    assert not place.exists()


def test_training_cannot_be_resumed_for_there_is_none(tmp_path):
    with pytest.raises(TaskError, match="is fitted when it forecasts, so there is no training"):
        train(sales(walk(40)), NAIVE, tmp_path / "b", resume=tmp_path / "last.ckpt")


@pytest.mark.filterwarnings("ignore")  # of numba, while sktime's distances are imported
def test_a_classifiers_bundle_holds_its_recordings_and_says_what_its_backtest_said(tmp_path):
    data = moves()
    report, _, bundle = train(data, NEIGHBOURS, tmp_path / "b", settings={"distance": "euclidean"})
    assert sorted(file.name for file in bundle.path.iterdir()) == ["card.json", "recordings.npz"]
    judged = report.forecasts[report.forecasts["model"] == NEIGHBOURS].set_index("unique_id")
    answer = bundle.forecast(data.frame.drop(columns="label")).set_index("unique_id")
    assert list(answer.columns) == ["ds", "model", "label", "p_left", "p_right"]
    pd.testing.assert_series_equal(answer.loc[judged.index, "p_left"], judged["p_left"])
    assert len(answer) == 24
    with pytest.raises(TaskError, match="cannot classify these series"):
        bundle.forecast(data.frame.assign(x=data.frame["x"].where(data.frame["ds"] != 3)))  # it cannot take a gap


def test_what_cannot_be_fitted_here_says_so(theta, tmp_path, monkeypatch):
    *_, card, bundle = theta
    write_bundle(tmp_path / "gone", {}, card | {"config": card["config"] | {"class": "nowhere.Theta"}})
    with pytest.raises(BundleError, match="No module named 'nowhere'"):
        load_bundle(tmp_path / "gone")
    write_bundle(tmp_path / "odd", {}, card | {"config": {}})
    with pytest.raises(BundleError, match="does not say what is to be fitted"):
        load_bundle(tmp_path / "odd")
    write_bundle(tmp_path / "future", {}, card | {"kind": "oracle"})
    with pytest.raises(BundleError, match="kind 'oracle'; this program knows graphs and refit"):
        read_bundle(tmp_path / "future")
    write_bundle(tmp_path / "older", {}, card | {"config": card["config"] | {"sktime": "0.1"}})
    older = load_bundle(tmp_path / "older")
    older.forecast(theta[0])
    assert any("written with sktime 0.1, fitted with" in note for note in older.notes)
    real = builtins.__import__

    def without_sktime(name, *rest):
        if name.startswith("sktime"):
            raise ImportError("No module named 'sktime'")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_sktime)
    with pytest.raises(BundleError, match="what fits it is not installed here"):
        load_bundle(bundle.path)


def test_a_card_of_a_classifier_without_its_recordings_is_refused(theta, tmp_path):
    card = theta[2]
    task = json.loads(json.dumps(card["task"])) | {"kind": "classify", "labels": ["a", "b"]}
    write_bundle(tmp_path / "b", {}, card | {"task": task, "calibration": None})
    with pytest.raises(BundleError, match=r"no sha256 of recordings\.npz"):
        load_bundle(tmp_path / "b")
