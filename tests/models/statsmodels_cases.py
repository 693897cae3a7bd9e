"""Series, and what statsmodels forecasts of them, for the models that it fits.

Shapes: T time, H horizon, Q quantiles.
"""

from typing import Any

import numpy as np
import torch

from models.contract import Signature, State
from models.linear_gaussian import LinearGaussian
from models.regressors import Regressors

SEASON, HORIZON, LENGTH, MORE = 4, 11, 80, 100
LEVELS = (0.025, 0.1, 0.5, 0.9, 0.975)
SIGNATURE = Signature("forecast", 1, horizon=HORIZON, season=SEASON, quantiles=LEVELS)
NONE = Regressors(np.empty((LENGTH, 0)), np.ones(1), constant=True)


def series(seed: int = 5, gaps: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """A trend, a season and noise that add up: the past (T,), and the 100 values that come after it."""
    rng = np.random.default_rng(seed)
    t = np.arange(LENGTH + MORE)
    y = (
        100
        + 0.3 * t
        + 8 * np.sin(2 * np.pi * t / SEASON)
        + 0.5 * rng.normal(size=len(t)).cumsum()
        + rng.normal(size=len(t))
    )
    if gaps:
        y[rng.random(len(t)) < 0.15] = np.nan
        y[[LENGTH - 2, LENGTH - 1, LENGTH]] = np.nan
    return y[:LENGTH], y[LENGTH:]


def explained(gaps: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The target and two covariates, far from 0 and of other sizes, as the past (T, 3), the 100 values that come after
    it, and the covariates of the horizon after that (H, 2)."""
    rng = np.random.default_rng(9)
    past, further = series(gaps=gaps)
    covariates = np.stack(
        [1000 + 30 * rng.normal(size=LENGTH + MORE + HORIZON), rng.random(LENGTH + MORE + HORIZON) < 0.3], 1
    )
    y = np.concatenate([past, further]) + covariates[: LENGTH + MORE] @ np.array([0.05, 4.0])
    if gaps:
        covariates[[3, 40, LENGTH + 9], 1] = np.nan
    table = np.column_stack([y, covariates[: LENGTH + MORE]])
    return table[:LENGTH], table[LENGTH:], covariates[LENGTH + MORE :]


def forecast_explained(results: Any, regressors: Regressors, future: np.ndarray) -> np.ndarray:
    """`forecast` with the covariates (H, F) of the horizon."""
    return forecast(results, ((future - regressors.mean) / regressors.scale)[:, regressors.kept])


def appended_explained(results: Any, regressors: Regressors, further: np.ndarray) -> Any:
    """`appended` with covariates (T, 1 + F); where one is missing the library takes neither it nor the target."""
    known = np.isfinite(further[:, 1:]).all(1)
    exog = ((further[:, 1:] - regressors.mean) / regressors.scale)[:, regressors.kept]
    y = np.where(known, further[:, 0], np.nan)
    return results.append(y, exog=np.where(known[:, None], exog, 0.0), use_exact_diffuse=True)


def forecast(results: Any, exog: np.ndarray | None = None) -> np.ndarray:
    """(H, Q) mean and bounds of the 80 and 95 % intervals."""
    ahead = results.get_forecast(HORIZON, exog=exog)
    wide, narrow = ahead.conf_int(alpha=0.05), ahead.conf_int(alpha=0.2)
    return np.stack([wide[:, 0], narrow[:, 0], ahead.predicted_mean, narrow[:, 1], wide[:, 1]], -1)


def appended(results: Any, values: np.ndarray) -> Any:
    """The library's results after further values; of itself it would forget how its filter was started."""
    return results.append(values, use_exact_diffuse=True)


def after(model: LinearGaussian, state: State, further: np.ndarray) -> np.ndarray:
    """(H, Q) after the further values, NaN where missing."""
    x = torch.from_numpy(further).view(1, -1, 1)
    with torch.no_grad():
        return model.scan(x, x.isfinite().to(x.dtype), state)[0][0, -1].numpy()


def at_the_end(model: LinearGaussian, state: State) -> np.ndarray:
    with torch.no_grad():
        return model.predict(state)[0].numpy()


def assert_equal(found: np.ndarray, expected: np.ndarray, relative: float = 1e-9) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=relative * np.abs(expected).max())
