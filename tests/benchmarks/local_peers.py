"""What statsforecast's own filters say after more values than it was fitted to, with the parameters that it found.

Each peer takes the library's fitted model and a history that begins as the fit's, and gives the mean (H,) and the
standard deviation (H,) of the next values. Where the library's own interval is not that of its model, the deviation
comes of the library's filter instead: the models are linear, so what a unit error changes later on is found by
filtering on along the expected path with and without it (`tests/models/test_ets.py`, `test_ces.py`, `test_theta.py`
say where the library departs, and by how much).

Shapes: T time, H horizon, m season.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from statsforecast.ces import cescalc, forecast_ces, switch_ces
from statsforecast.ets import forecast_ets, forward_ets, simulate_ets
from statsforecast.models import AutoARIMA, AutoCES, AutoETS, AutoTheta
from statsforecast.theta import forecast_theta, thetamodel

from models.arima import ArimaConfig
from tests.models.ets_book import by_the_book

Values = NDArray[np.float64]
Normal = tuple[Values, Values]  # mean and standard deviation, (H,) each

LIBRARY: dict[str, Any] = {"ets": AutoETS, "arima": AutoARIMA, "theta": AutoTheta, "ces": AutoCES}
Z95 = 1.959963984540054


def fit(name: str, season: int, values: Values) -> dict[str, Any]:
    """The library's fitted model, as it keeps it; an ARIMA is searched for by the rule that ours has."""
    asked = {"approximation": ArimaConfig().approximates(len(values), season)} if name == "arima" else {}
    return {"model": LIBRARY[name](season_length=season, **asked).fit(values).model_}


def form_of(name: str, found: dict[str, Any]) -> str:
    if name == "ets":
        error, trend, season, damped = found["components"]
        return f"{error}{trend}{'d' if damped == 'D' else ''}{season}"
    if name == "arima":
        return "seasonal" if found["arma"][2] + found["arma"][3] + found["arma"][6] else "no season"
    if name == "theta":
        return found["modeltype"] + (f", {found['decomposition_type'][:4]}. season" if found.get("decompose") else "")
    return str(found["seasontype"])


def ets(found: dict[str, Any], history: Values, season: int, horizon: int) -> Normal:
    """Of a damped trend the mean of the simulator's path without errors: the point forecast counts phi twice.

    The deviation is the library's where it follows the book (each step by its own horizon, as it counts seasons by the
    last one), else the book's of the state that its filter is in.
    """
    form = form_of("ets", found)
    after = forward_ets(found, history) | {"sigma2": found["sigma2"]}
    damped = "d" in form
    mean = simulate_ets(after | {"sigma2": 0}, horizon, 1)[0] if damped else forecast_ets(after, horizon)["mean"]
    if not damped and form[-1] != "M" and form != "MAA":
        ends = [forecast_ets(after, step + 1, level=[95]) for step in range(horizon)]
        return np.asarray(mean), np.array([(end["hi-95"][-1] - end["mean"][-1]) / Z95 for end in ends])
    alpha, beta, gamma, phi = after["par"][:4]
    trends, seasonal = int(form[1] != "N"), form[-1] != "N"
    parameters = {"alpha": alpha, "beta": beta if trends else 0.0, "gamma": gamma if seasonal else 0.0}
    parameters |= {"phi": phi if damped else 1.0, "sigma2": found["sigma2"]}
    state = after["states"][-1]
    seasons = state[1 + trends : 1 + trends + season][::-1] if seasonal else np.zeros(1)
    variance = by_the_book(form, parameters, state[0], state[1] if trends else 0.0, seasons, horizon)
    return np.asarray(mean), np.sqrt(variance)


def arima(found: dict[str, Any], history: Values, season: int, horizon: int) -> Normal:
    library = AutoARIMA(season_length=season)
    library.model_ = found
    answer = library.forward(history, horizon, level=[95])
    mean, high = (np.asarray(answer[name], np.float64) for name in ("mean", "hi-95"))
    return mean, (high - mean) / Z95


def ces(found: dict[str, Any], history: Values, season: int, horizon: int) -> Normal:
    """From the fitted start: `forward` would look for a new one in the whole history."""
    parameters = [found["par"][name] for name in ("alpha_0", "alpha_1", "beta_0", "beta_1")]
    rows, kind = found["m"], switch_ces(found["seasontype"])

    def mean(values: Values) -> Values:
        states = np.zeros((len(values) + 2 * rows, found["states"].shape[1]))
        states[:rows] = found["states"][:rows]
        cescalc(values, states, rows, kind, *parameters, np.zeros(len(values)), np.zeros(3), 3, 0)
        return np.asarray(forecast_ces(found | {"states": states, "n": len(values)}, horizon)["mean"])

    now = mean(history)
    return now, np.sqrt(found["sigma2"] * variance_of(mean, history, now, every_step=False))


def theta(found: dict[str, Any], history: Values, season: int, horizon: int) -> Normal:
    """Of the adjusted series, whose seasonal factors stay those of the fit: `forward` would work out new ones.

    Standard models keep their line while they look ahead, so of those the level alone follows the errors. Their
    variance is that of the library's residuals; those of an additive season it adds the season to, which is no noise.
    """
    count, adjusted = found["n"], history
    factors = np.zeros(1)
    if found.get("decompose"):
        factors = np.asarray(found["seas_forecast"]["mean"])
        past = np.resize(np.roll(factors, count % len(factors)), len(history))
        adjusted = history / past if found["decomposition_type"] == "multiplicative" else history - past
    parameters = [found["par"][name] for name in ("initial_smoothed", "alpha", "theta")]

    def filtered(values: Values) -> dict[str, Any]:
        return thetamodel(values, season, found["modeltype"], *parameters, 3)

    def mean(values: Values) -> Values:
        return np.asarray(forecast_theta(filtered(values), horizon)["mean"])

    additive = found.get("decompose") and found["decomposition_type"] == "additive"
    residuals = filtered(adjusted[:count])["residuals"] if additive else found["residuals"]
    sigma2 = np.var(residuals[3:] if count > 4 else residuals, ddof=1)
    now = mean(adjusted)
    if found["modeltype"].startswith("D"):
        relative = variance_of(mean, adjusted, now, every_step=True)
    else:
        relative = 1 + found["par"]["alpha"] ** 2 * np.arange(horizon)
    deviation = np.sqrt(sigma2 * relative)
    if not found.get("decompose"):
        return now, deviation
    ahead = np.resize(np.roll(factors, count - len(history)), horizon)
    if additive:
        return now + ahead, deviation
    return now * ahead, deviation * np.abs(ahead)


def variance_of(mean: Callable[[Values], Values], history: Values, path: Values, every_step: bool) -> Values:
    """(H,) of the h-step forecast, in units of the errors' variance, by the filter `mean` (history -> next H means).

    Along the expected path every later mean stays as it was; one unit above it at step k it moves by the response.
    every_step: for filters that change with time; else the response to the first step's error is every one's.
    """
    horizon, unit = len(path), float(np.abs(history).max())  # large beside the rounding of what it is added to
    variance = np.ones(horizon)
    for k in range(horizon - 1 if every_step else 1):
        along = np.concatenate([history, path[: k + 1]])
        above = along.copy()
        above[-1] += unit
        response = ((mean(above) - mean(along)) / unit)[: horizon - 1 - k]
        if every_step:
            variance[k + 1 :] += np.square(response)
        else:
            variance[1:] += np.square(response).cumsum()
    return variance


FILTERS: dict[str, Callable[[dict[str, Any], Values, int, int], Normal]] = {
    "ets": ets, "arima": arima, "theta": theta, "ces": ces,
}  # fmt: skip
