"""Seasonal ARIMA with drift as a step: the Kalman filter of statsforecast's AutoARIMA, all series in one tensor step.

The state space of Gardner, Harvey and Phillips (1980) that R and statsforecast use: z_t = y_t - intercept - drift t is
an ARMA process after differencing, phi(L) delta(L) z = theta(L) e. The mean has r places for the ARMA part and nd for
the last values of z that the differences need. Multiplying by the transition matrix T is a shift of both and two
rank-one terms, so a season of 12 costs what its places cost, never a dense product.

The filter is that of `models.kalman` with Q = R R', R = (1, theta, 0), Z = (1, 0, delta) and h = 0. Where the moving
average is invertible the covariance P (in units of sigma2) converges to 0, K to R and F to 1: the filter then knows all
of its state. With a seasonal root near 1 that takes decades of months, and a missing value raises P again, so it has a
place in the state. But once it is as small as rounding it is set to 0, and from then on a step that has an observation
leaves it alone: the products with P, nearly all of the work, are those of the series whose P moves. Forecasts h steps
ahead need G_h = Z T^h and the psi weights Z T^j R, which depend on the parameters alone, are worked out once in float64
and ride in the state:

    mean_h = intercept + drift (t + h) + G_h a,   variance_h = sigma2 (sum_{j<h} psi_j^2 + G_h P G_h')

Shapes: B series, H horizon, n = r + nd places.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.contract import ModelError, Signature, State
from models.kalman import Kalman, effects_of
from models.linear_gaussian import Fit, Values, filled, in_units, known_part, unit_of

SETTLED = 16  # roundings of 1: a covariance below them is 0; of float32 they are 1e-6 of the errors' deviation
LEAST = 1e-12  # the same in double digits, whose roundings gather above 16 of them and do not go away
SMALL = 1e-3  # the deviation below which AutoARIMA, which starts from a variance of 1e-10 at least, loses its way
ORDER = (
    "effects", "phi", "response", "delta", "intercept", "drift", "weights", "psi", "sigma2", "started", "errors",
    "time", "covariance", "mean",
)  # fmt: skip


SEARCHES = ("auto", "exact", "approximate")
EXACT_VALUES, EXACT_SEASON = 150, 12  # up to which R's auto.arima searches by maximum likelihood


@dataclass(frozen=True)
class ArimaConfig:
    """How AutoARIMA searches; the largest orders are its own.

    `search` is by maximum likelihood of every candidate (exact), or by conditional sums of squares, with maximum
    likelihood for the chosen one alone (approximate), which takes about a tenth of the time; auto is the rule of R's
    auto.arima (Hyndman and Khandakar, J. Stat. Software 27, 2008): approximate beyond 150 values or a season of 12.
    """

    max_p: int = 5
    max_q: int = 5
    max_seasonal_p: int = 2
    max_seasonal_q: int = 2
    max_differences: int = 2
    max_seasonal_differences: int = 1
    search: str = "auto"

    def __post_init__(self) -> None:
        if self.search not in SEARCHES:
            raise ModelError(f"search is one of {', '.join(SEARCHES)}, not '{self.search}'.")
        for name, value in vars(self).items():
            if name != "search" and value < 0:
                raise ModelError(f"{name} is 0 or more, not {value}.")

    def approximates(self, values: int, season: int) -> bool:
        return self.search == "approximate" or (
            self.search == "auto" and (values > EXACT_VALUES or season > EXACT_SEASON)
        )


class SeasonalArima(Kalman):
    """Seasonal ARIMA, one fit a series; all have as many places as the largest so far, see `states`.

    The state of one series, all but the last line constant once it is fitted:
        arima.phi (r,), arima.response (r,) = R, arima.delta (nd,); arima.intercept, arima.drift
        arima.weights (H, n) = G; arima.psi (H,): sums of psi^2
        arima.sigma2, arima.started, arima.errors: as those of `Ets`
        arima.time: steps since the drift's origin; arima.covariance (n, n), arima.mean (n,)
    """

    family = "arima"
    substitute = "a random walk from the first value"

    def __init__(self, signature: Signature) -> None:
        super().__init__(signature)
        self.places, self.lags = 1, 1  # r and nd

    def unfitted(self) -> Fit:
        """A random walk from the first value, with a running variance."""
        nothing = np.zeros(0)
        return {
            "phi": nothing, "theta": nothing, "delta": np.ones(1), "mean": np.zeros(2), "covariance": np.zeros((2, 2)),
            "time": 0, "started": 0, "errors": 0, "sigma2": 0.0, "intercept": 0.0, "drift": 0.0,
            "effects": np.zeros(self.signature.future),
        }  # fmt: skip

    def states(self, fits: Sequence[Fit]) -> State:
        self.places = max(self.places, *(max(len(fit["phi"]), len(fit["theta"]) + 1) for fit in fits))
        self.lags = max(self.lags, *(len(fit["delta"]) for fit in fits))
        return states_of(fits, self.signature, self.places, self.lags)

    def advance(self, y: Tensor, seen: Tensor, state: State) -> State:
        time = state["arima.time"] + 1
        known = state["arima.intercept"] + state["arima.drift"] * time
        return super().advance(y - known, seen, state) | {"arima.time": time}

    def corrected(self, usable: Tensor, state: State) -> tuple[Tensor, Tensor, Tensor]:
        """Of the series whose covariance moves; of the others it is 0, K = R and F = 1."""
        response = torch.nn.functional.pad(state["arima.response"], (0, self.lags))
        rows = (~usable[:, 0] | _unsettled(state["arima.covariance"])).nonzero()[:, 0]
        moving = {f"arima.{name}": state[f"arima.{name}"][rows] for name in ("phi", "response", "delta", "covariance")}
        gain, variance, after = super().corrected(usable[rows], moving)
        settled = (after.abs() < max(SETTLED * torch.finfo(after.dtype).eps, LEAST)).all(2).all(1)
        after = torch.where(settled[:, None, None], torch.zeros_like(after), after)
        return (
            response.index_copy(0, rows, gain),
            torch.ones_like(response[:, :1]).index_copy(0, rows, variance),
            torch.zeros_like(state["arima.covariance"]).index_copy(0, rows, after),
        )

    def forward(self, x: Tensor, state: State) -> Tensor:
        now = x[:, : self.places]
        moved = torch.cat([now[:, 1:], torch.zeros_like(now[:, :1])], 1) + state["arima.phi"][..., None] * now[:, :1]
        lags = x[:, self.places :]
        newest = now[:, :1] + (state["arima.delta"][..., None] * lags).sum(1, keepdim=True)
        return torch.cat([moved, newest, lags[:, :-1]], 1)

    def observe(self, x: Tensor, state: State) -> Tensor:
        return x[..., 0] + (x[..., self.places :] * state["arima.delta"][:, None]).sum(-1)

    def disturbed(self, spread: Tensor, state: State) -> Tensor:
        response = torch.nn.functional.pad(state["arima.response"], (0, self.lags))
        return spread + response[:, :, None] * response[:, None, :]

    def first(self, z: Tensor) -> Tensor:
        return torch.nn.functional.pad(z, (self.places, self.lags - 1))  # in the place of the last value

    def outlook(self, state: State) -> tuple[Tensor, Tensor]:
        weights = state["arima.weights"]
        ahead = torch.arange(1, self.signature.horizon + 1, dtype=weights.dtype, device=weights.device)
        known = state["arima.intercept"] + state["arima.drift"] * (state["arima.time"] + ahead)
        mean = known + (weights * state["arima.mean"][:, None]).sum(-1)
        rows = _unsettled(state["arima.covariance"]).nonzero()[:, 0]
        known_of = weights[rows]
        unsure = ((known_of @ state["arima.covariance"][rows]) * known_of).sum(-1).clamp(min=0.0)
        spread = torch.zeros_like(state["arima.psi"]).index_copy(0, rows, unsure)
        return mean, (state["arima.sigma2"] * (state["arima.psi"] + spread)).sqrt()


class Arima(SeasonalArima):
    """Seasonal ARIMA by statsforecast's AutoARIMA; gaps inside a series are closed by lines for the fit, and skipped
    by the filter."""

    library = "statsforecast"

    def __init__(self, signature: Signature, config: ArimaConfig = ArimaConfig()) -> None:
        super().__init__(signature)
        self.config = config

    def fitting(self) -> Callable[[Values], Fit]:
        return partial(fit_arima, season=self.signature.season, config=self.config)


def _unsettled(covariance: Tensor) -> Tensor:
    """(B,), True unless all of it is 0, which it is where the variances are."""
    return (covariance.diagonal(dim1=1, dim2=2) != 0).any(1)


def fit_arima(values: Values, season: int, config: ArimaConfig) -> Fit:
    """AutoARIMA on one series: its polynomials, and the filter's state after the last value.

    Raises:
        ModelError: too few values, or none at all.
    """
    from statsforecast.arima import forward_arima
    from statsforecast.models import AutoARIMA

    y = known_part(values)
    complete, notes = filled(y)
    gaps = bool(notes)
    if len(complete) < 3:
        raise ModelError(f"{len(complete)} values are too few for an ARIMA model")
    if season > 1 and len(complete) <= season:
        notes.append(f"fitted without a season: {len(complete)} values are no more than one season of {season}")
        season = 1
    if np.ptp(complete) == 0:
        notes.append("constant: a mean with no spread")
    chosen = AutoARIMA(
        season_length=season,
        max_p=config.max_p,
        max_q=config.max_q,
        max_P=config.max_seasonal_p,
        max_Q=config.max_seasonal_q,
        max_d=config.max_differences,
        max_D=config.max_seasonal_differences,
        approximation=config.approximates(len(complete), season),
    )
    unit = unit_of(complete, SMALL, np.inf)
    found: dict[str, Any] = chosen.fit(complete / unit).model_
    filtered = forward_arima(found, y / unit) if gaps else found
    space, coefficients = filtered["model"], found["coef"]
    result: Fit = {
        "phi": np.asarray(space["phi"], np.float64),
        "theta": np.asarray(space["theta"], np.float64),
        "delta": np.asarray(space["delta"], np.float64),
        "mean": np.asarray(space["a"], np.float64),
        "covariance": np.asarray(space["P"], np.float64),
        "time": len(y),
        "started": 1,
        "errors": -1,
        "sigma2": float(found["sigma2"]),
        "intercept": float(coefficients.get("intercept", 0.0)),
        "drift": float(coefficients.get("drift", 0.0)),
        "note": "; ".join(notes),
    }
    numbers = ("phi", "theta", "mean", "covariance", "sigma2", "intercept", "drift")
    if not all(np.isfinite(result[name]).all() for name in numbers):
        raise ModelError("the fit of AutoARIMA ended with numbers that are not finite")
    return in_units(result, unit)


def states_of(fits: Sequence[Fit], signature: Signature, places: int, lags: int) -> State:
    """The fits of `fit_arima` as one state, float64, with `places` of the ARMA part and `lags` of the differences.

    What a shorter model does not need is 0 and stays without influence.
    """
    count, n = len(fits), places + lags
    arrays = {
        "mean": np.zeros((count, n)), "covariance": np.zeros((count, n, n)),
        "phi": np.zeros((count, places)), "response": np.zeros((count, places)), "delta": np.zeros((count, lags)),
    }  # fmt: skip
    for row, fit in enumerate(fits):
        own_lags = len(fit["delta"])
        own_places = len(fit["mean"]) - own_lags
        at = np.concatenate([np.arange(own_places), places + np.arange(own_lags)])
        arrays["mean"][row, at] = fit["mean"]
        arrays["covariance"][row][np.ix_(at, at)] = fit["covariance"]
        arrays["phi"][row, : len(fit["phi"])] = fit["phi"]
        theta = np.concatenate([[1.0], fit["theta"]])[:own_places]
        arrays["response"][row, : len(theta)] = theta
        arrays["delta"][row, :own_lags] = fit["delta"]
    weights, psi = _ahead(arrays["phi"], arrays["response"], arrays["delta"], signature.horizon)
    arrays |= {"weights": weights, "psi": psi}
    for name in ("intercept", "drift", "sigma2", "started", "errors", "time"):
        arrays[name] = np.array([[float(fit[name])] for fit in fits])
    arrays |= effects_of(fits)
    return {f"arima.{name}": torch.from_numpy(arrays[name]) for name in ORDER if name in arrays}


def _ahead(phi: Values, response: Values, delta: Values, horizon: int) -> tuple[Values, Values]:
    """G_h = Z T^h (B, H, n), and the sums of the squared psi weights (B, H); arguments (B, r), (B, r), (B, nd)."""
    count, places = phi.shape
    row = np.concatenate([np.ones((count, 1)), np.zeros((count, places - 1)), delta], 1)  # Z
    impulse = np.concatenate([response, np.zeros_like(delta)], 1)
    rows, psi = [], []
    observed = row.copy()
    for _ in range(horizon):
        psi.append((row * impulse).sum(1))
        now, lags = row[:, :places], row[:, places:]
        # x T: what the columns of T give, T's first column being phi, its lag rows Z and a shift.
        first = (now * phi).sum(1, keepdims=True)
        arma = np.concatenate([first, now[:, :-1]], 1)
        back = np.concatenate([lags[:, 1:], np.zeros((count, 1))], 1)
        row = np.concatenate([arma, back], 1) + lags[:, :1] * observed
        rows.append(row)
    return np.stack(rows, 1), np.square(np.stack(psi, 1)).cumsum(1)
