"""Ensembles: quantile by quantile, named, calibrated as any model, and refused where they make no sense."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.frame import Channel, Dataset, Splits
from data.panel import Series
from forecasting.backtest import backtest
from forecasting.ensemble import combined
from forecasting.pipeline import winner
from forecasting.predictions import Rows, Substitute
from forecasting.task import Task, TaskError
from forecasting.windows import Span

SPAN = Span(Series("a", np.arange(9), np.zeros((9, 1)), None), 5, 9)
LEVELS = np.array([0.1, 0.5, 0.9])


def dataset(*lengths) -> Dataset:
    """A random walk of each length."""
    walks = [np.random.default_rng(seed).normal(size=length).cumsum() for seed, length in enumerate(lengths)]
    frames = [pd.DataFrame({"unique_id": f"s{i}", "ds": np.arange(len(y)), "y": y}) for i, y in enumerate(walks)]
    frame = pd.concat(frames, ignore_index=True)
    return Dataset("toy", frame, "forecast", (Channel("y", "1"),), 1, 1, 3, Splits(), "y")


def rows_of(values, points=None) -> list[Rows]:
    return [Rows(SPAN, np.array([4]), np.array(values, float)[None, None], points)]


def test_each_quantile_is_the_members_mean_or_median():
    members = [rows_of([0, 1, 2]), rows_of([1, 4, 10]), rows_of([2, 7, 9])]
    np.testing.assert_allclose(combined("mean", members, LEVELS)[0].values, [[[1, 4, 7]]])
    np.testing.assert_allclose(combined("median", members, LEVELS)[0].values, [[[1, 4, 9]]])


def test_a_members_substitute_is_the_ensembles_too_where_it_stands():
    positions, values = np.array([4, 5]), np.zeros((2, 1, 3))
    walk, flat = Substitute("a walk", "too short"), Substitute("naive", "too wild")
    members = [
        [Rows(SPAN, positions, values, instead={5: walk})],
        [Rows(SPAN, positions, values)],
        [Rows(SPAN, positions, values, instead={5: flat})],
    ]
    (row,) = combined("median", members, LEVELS)
    assert row.names() == ["", "a walk; naive"]
    assert row.instead[5].reason == "too short; too wild"


def test_a_member_without_quantiles_leaves_points_alone():
    points = [rows_of([np.nan] * 3, np.array([[4.0]])), rows_of([0, 1, 2], np.array([[2.0]]))]
    (row,) = combined("mean", points, LEVELS)
    assert not row.has_quantiles
    np.testing.assert_array_equal(row.mean(LEVELS), [[3.0]])


@given(st.integers(0, 999), st.integers(2, 5), st.sampled_from(["mean", "median"]))
@settings(max_examples=30)
def test_members_in_order_give_an_ensemble_in_order(seed, count, how):
    values = np.sort(np.random.default_rng(seed).normal(size=(count, 3)), -1)
    assert (np.diff(combined(how, [rows_of(v) for v in values], LEVELS)[0].values, axis=-1) >= 0).all()


@pytest.fixture(scope="module")
def report():
    data = dataset(90, 80)
    names = ["naive", "drift", "ridge"]
    return backtest(data, names, Task.of(data), test_size=20, ensembles=["mean", "median"], calibrated=False)


def test_a_backtest_names_its_ensembles_and_judges_what_they_say(report):
    frame = report.forecasts.pivot(index=["unique_id", "cutoff", "ds"], columns="model")
    for how in ("mean", "median"):
        name = f"{how}(naive,drift,ridge)"
        for column in ("q0.1", "q0.5", "q0.9", "mean"):
            members = frame[column][["naive", "drift", "ridge"]]
            np.testing.assert_allclose(frame[column][name], getattr(members, how)(axis=1), rtol=1e-5)
        row = report.leaderboard.set_index("model").loc[name]
        own = report.forecasts[report.forecasts["model"] == name]
        assert row["mae"] == pytest.approx((own["y"] - own["mean"]).abs().mean())
        assert row["fit_seconds"] > 0


def test_an_ensemble_is_calibrated_on_its_own_forecasts_and_never_the_winner_that_is_exported():
    data = dataset(90, 80)
    names = ["naive", "ridge"]
    found = backtest(data, names, Task.of(data), test_size=20, ensembles=["mean"])
    name = "mean(naive,ridge)"
    assert set(found.calibrations) == {"naive", "ridge", name}
    own = np.mean([found.calibrations[member].factors for member in names], 0)
    assert not np.allclose(found.calibrations[name].factors, own)
    assert winner(found) in names


@pytest.mark.parametrize(
    ("models", "ensembles", "message"),
    [
        (["naive", "ridge"], ["mode"], "no ensemble is called 'mode'; known: mean, median"),
        (["naive"], ["mean"], "needs at least two models, got naive"),
        (["naive", "naive"], ["mean"], "needs at least two models"),
    ],
)
def test_what_is_no_ensemble_is_refused_before_anything_is_trained(models, ensembles, message):
    data = dataset(60)
    with pytest.raises(TaskError, match=message):
        backtest(data, models, Task.of(data), test_size=10, ensembles=ensembles)


def test_classes_have_no_ensemble():
    frame = dataset(30).frame.assign(label=lambda table: np.where(table["ds"] % 2 == 0, "even", "odd"))
    data = Dataset("toy", frame, "classify", (Channel("y", "1"),), 1, 1, 1, Splits(), "label")
    with pytest.raises(TaskError, match="combine forecasts, and this task is to classify"):
        backtest(data, ["naive", "ridge"], Task.of(data), test_size=10, ensembles=["mean"])
