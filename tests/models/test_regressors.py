"""Covariates that are known ahead: equal to the library's regressions, and a part of predictions alone."""

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from statsmodels_cases import (
    HORIZON,
    LENGTH,
    SEASON,
    SIGNATURE,
    appended_explained,
    assert_equal,
    explained,
    forecast_explained,
    series,
)  # fmt: skip
from torch import Tensor

from models import components, sarimax
from models.catalog import MODELS, build
from models.components import Components, ComponentsConfig
from models.contract import Fits, ModelError, Signature
from models.kalman import Kalman
from models.regressors import Regressors, parted
from models.sarimax import Sarimax, SarimaxConfig

pytestmark = pytest.mark.filterwarnings("ignore::statsmodels.tools.sm_exceptions.ModelWarning")
AHEAD = replace(SIGNATURE, channels=3, future=2)
KINDS = ("intercept", "drift", "airline", "level", "trend")
CONFIGS: dict[str, Any] = {
    "intercept": SarimaxConfig("1,0,0", "0,0,0"),
    "drift": SarimaxConfig("0,1,1", "1,0,0", "constant"),
    "airline": SarimaxConfig("0,1,1", "0,1,1"),
    "level": ComponentsConfig("local-level", "stochastic"),
    "trend": ComponentsConfig("smooth-trend", "fixed"),
}


def unfitted(kind: str) -> Kalman:
    config = CONFIGS[kind]
    return (Sarimax(AHEAD, config) if isinstance(config, SarimaxConfig) else Components(AHEAD, config)).double()


@cache
def fitted(kind: str, gaps: bool = False) -> tuple[Kalman, Fits]:
    model = unfitted(kind)
    fits = model.fit_series({"a": explained(gaps)[0]})
    assert not fits.failures
    return model, fits


@cache
def library(kind: str, gaps: bool) -> tuple[Any, Regressors]:
    config, (y, covariates) = CONFIGS[kind], parted(explained(gaps)[0])
    if isinstance(config, SarimaxConfig):
        return sarimax.estimate(y, SEASON, config, covariates)
    regressors = Regressors(covariates, np.ones(1), constant=True)
    return components.estimate(y, SEASON, config, regressors.values), regressors


def tensors(table: np.ndarray) -> tuple[Tensor, Tensor]:
    x = torch.from_numpy(table)[None]
    return x, x.isfinite().double()


@pytest.mark.parametrize("gaps", [False, True], ids=["whole", "gaps"])
@pytest.mark.parametrize("kind", KINDS)
def test_forecasts_are_the_librarys_regression_at_the_fits_end_and_after_100_points(kind, gaps):
    (model, fits), (results, regressors) = fitted(kind, gaps), library(kind, gaps)
    _, further, future = explained(gaps)
    ahead = torch.from_numpy(future)[None]
    with torch.no_grad():
        found = model.predict(fits.state, ahead)[0].numpy()
        assert_equal(found, forecast_explained(results, regressors, future))
        found = model.last(*tensors(further), fits.state, ahead)[0][0].numpy()
    assert_equal(found, forecast_explained(appended_explained(results, regressors, further), regressors, future))


@pytest.mark.parametrize("kind", ["airline", "level", "trend"])  # those that have a season, as the series does
def test_the_effects_are_found(kind):
    effects = next(value for name, value in fitted(kind)[1].state.items() if name.endswith("effects"))
    assert effects[0, 0].item() == pytest.approx(0.05, abs=0.02)
    assert effects[0, 1].item() == pytest.approx(4.0, abs=1.5)


@pytest.mark.parametrize("kind", ["drift", "trend"])
def test_a_scan_is_its_steps_and_the_last_of_it(kind):
    model, fits = fitted(kind)
    _, further, _ = explained(gaps=True)
    x, mask = tensors(further[:20])
    future = torch.randn(1, 20, HORIZON, 2, dtype=torch.float64)
    with torch.no_grad():
        whole, after = model.scan(x, mask, fits.state, future)
        head, between = model.scan(x[:, :7], mask[:, :7], fits.state, future[:, :7])
        tail, end = model.scan(x[:, 7:], mask[:, 7:], between, future[:, 7:])
        last, after_last = model.last(x, mask, fits.state, future[:, -1])
    torch.testing.assert_close(torch.cat([head, tail], 1), whole)
    torch.testing.assert_close(last, whole[:, -1])
    for states in (end, after_last, model.passed(torch.from_numpy(further[:20])[None], fits.state)):
        torch.testing.assert_close(states, after)


@pytest.mark.parametrize("kind", ["drift", "trend"])
def test_what_is_known_ahead_changes_its_own_prediction_and_no_state(kind):
    model, fits = fitted(kind)
    x, mask = tensors(explained()[1][:9])
    future = torch.zeros(1, 9, HORIZON, 2, dtype=torch.float64)
    other = future.clone()
    other[:, 5, 3, 1] = 1.0
    with torch.no_grad():
        one, after = model.scan(x, mask, fits.state, future)
        two, after_other = model.scan(x, mask, fits.state, other)
    changed = (one != two).any(-1)[0]
    assert changed.nonzero().tolist() == [[5, 3]]
    effects = next(value for name, value in fits.state.items() if name.endswith("effects"))
    torch.testing.assert_close((two - one)[0, 5, 3], effects[0, 1].expand(5))
    torch.testing.assert_close(after, after_other)


@pytest.mark.parametrize("kind", ["drift", "level"])
def test_where_a_covariate_is_missing_the_target_teaches_nothing(kind):
    model, fits = fitted(kind)
    x, mask = tensors(explained()[1][:4])
    future = torch.zeros(1, 4, HORIZON, 2, dtype=torch.float64)
    hidden, shown = x.clone(), mask.clone()
    hidden[0, 2, 2] = float("nan")
    shown[0, 2, 2] = 0
    gone = shown.clone()
    gone[0, 2, 0] = 0
    with torch.no_grad():
        without, after = model.scan(hidden, shown, fits.state, future)
        expected, after_gap = model.scan(x, gone, fits.state, future)
    torch.testing.assert_close(without, expected)
    torch.testing.assert_close(after, after_gap)
    assert all(value.isfinite().all() for value in after.values())


@pytest.mark.parametrize("kind", ["airline", "level"])
def test_what_cannot_have_an_effect_is_left_out_by_number_and_its_gaps_do_not_count(kind):
    past, further, future = explained()
    past, further = past.copy(), further.copy()
    past[:, 1] = 1000.1  # constant
    further[:, 1] = np.nan
    everyone = {"constant": past, "copy": np.column_stack([past[:, 0], 2 * past[:, 2] - 7, past[:, 2]])}
    everyone["unknown"] = np.column_stack([past[:, 0], np.full(LENGTH, np.nan), past[:, 2]])
    model = unfitted(kind)
    fits = model.fit_series(everyone)
    said = "left out of 2 covariates known ahead, for constant or told by others: "
    assert fits.notes == {"constant": said + "1", "copy": said + "2", "unknown": said + "1"}
    name = next(name for name in fits.state if name.endswith("effects"))
    assert (fits.state[name] == 0).tolist() == [[True, False], [False, True], [True, False]]
    x, mask = tensors(further)
    with torch.no_grad():
        stepped, _ = model.last(x, mask, fits.state_of(["constant"]), torch.from_numpy(future)[None])
        kept, _ = model.last(
            x.nan_to_num(5.0), torch.ones_like(mask), fits.state_of(["constant"]), torch.from_numpy(future)[None]
        )
    torch.testing.assert_close(stepped, kept)


def test_one_bad_series_of_several_is_named():
    past, _, _ = explained()
    late = past.copy()
    late[:, 0] = np.nan
    fits = unfitted("level").fit_series({"good": past, "missing": late})
    assert fits.series == ("good",)
    assert "all of its 80 values are missing" in fits.failures["missing"]


@pytest.mark.parametrize("kind", ["airline", "level"])
def test_a_series_that_was_not_fitted_knows_no_effects(kind):
    model = unfitted(kind)
    x, mask = tensors(np.column_stack([series()[1][:5], np.full((5, 2), np.nan)]))
    prediction, _ = model.last(x, mask, model.initial_state(1), torch.full((1, HORIZON, 2), 3.0).double())
    torch.testing.assert_close(prediction[0, :, 2], x[0, -1, :1].expand(HORIZON))


def test_what_is_known_ahead_must_be_given_and_only_where_it_is_taken():
    model, fits = fitted("level")
    with pytest.raises(ModelError, match="takes 2 covariates known ahead, and none were given"):
        model.predict(fits.state)
    plain = Components(SIGNATURE)
    with pytest.raises(ModelError, match="takes 0 covariates known ahead, and some were given"):
        plain.predict(plain.initial_state(1), torch.zeros(1, HORIZON, 2))


def test_a_model_that_takes_none_ahead_has_them_as_channels():
    assert build("ridge", AHEAD).signature == replace(AHEAD, future=0)
    assert build("sarimax", AHEAD).signature == AHEAD
    able = ["sarimax", "components", "quantile-regression", "random-forest", "xgboost"]
    assert [name for name, entry in MODELS.items() if "future" in entry.covariates] == able


@pytest.mark.parametrize(("channels", "future", "task"), [(2, 2, "forecast"), (2, -1, "forecast"), (2, 1, "regress")])
def test_a_signature_that_knows_too_much_ahead_is_refused(channels, future, task):
    with pytest.raises(ModelError, match=f"at most 1 are known ahead, and only to forecast; got {future} to {task}"):
        Signature(task, channels, future=future)
