"""Complex exponential smoothing as a step: the four forms of statsforecast's AutoCES, all series in one tensor step.

The model of Svetunkov, Kourentzes and Ord (Naval Research Logistics 69, 2022, "Complex exponential smoothing") keeps
with a level l its information potential c, and is linear in both. A form without a season, N, has one such pair, a
simple seasonal one, S, has one for each of the m seasons; the partial, P, and the full, F, add a seasonal pair to the
plain one, in P of a real number alone. So with x the plain pair and s the seasonal one of m steps before, either of
them 0 in a form that lacks it, every form is

    mu = x_1 + s_1,  e = y - mu;     x' = T x + g e,  s' = S s + k e
    T = [[1, a1 - 1], [1, 1 - a0]],  g = (a0 - a1, a0 + a1)

where S and k are the same of b0 and b1 in F, of a0 and a1 in S, and [[1, 0], [0, 0]] and (b0, 0) in P. So one graph
serves all forms. A missing observation is a step with e = 0; the seasonal state is a shift. The h-step mean is linear
in the state and its variance depends on the parameters alone, so the coefficients of both are worked out once, in
float64, when a series is fitted:

    mean_h = (T^(h-1) x)_1 + (S^i s_h)_1,  i = (h-1) div m;     v_h = sigma2 (1 + r_1^2 + ... + r_(h-1)^2)
    r_j = (T^(j-1) g)_1 + (S^(j/m-1) k)_1, the latter where m divides j

The library's intervals are others: it adds one normal error to every number of the state at once, 5,000 times, and
none on the way. That gives sqrt(2) sigma one step ahead of P and F, where the model has sigma, and hardly grows with
the horizon (`tests/models/test_ces.py`).

The library looks for the parameters in a box, in which the filter need not forget: of more than half of the fits of P
and F to monthly series a root of the filter, T - g w' with the season's part, lies above 1. Most often it is by less
than .005, and level and season drift apart for hundreds of steps before a forecast shows it. Such a fit is kept as it
is, and its note says how fast it drifts; no number of the state leaves the range of values, so it stays finite.

Shapes: B series, H horizon, m season.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.contract import LARGEST, ModelError, Signature, State
from models.linear_gaussian import Fit, LinearGaussian, Values, filled, known_part

FORMS = ("N", "S", "P", "F")  # no season, simple, partial, full
FEWEST = 5  # values, from which the variance of a form without a season has a divisor above 0
ORDER = ("transition", "gain", "weights", "spread", "sigma2", "started", "errors", "season", "pair")


@dataclass(frozen=True)
class CesConfig:
    """Which forms are tried, and what a series does that was not fitted."""

    form: str = "auto"  # N, S, P, F, or auto, which chooses by AICc
    unfitted_alpha: float = 0.2  # of a series that was not fitted: simple exponential smoothing from its first value

    def __post_init__(self) -> None:
        if self.form not in ("auto", *FORMS):
            raise ModelError(f"form is auto or one of {', '.join(FORMS)}, not '{self.form}'.")
        if not 0 < self.unfitted_alpha <= 1:
            raise ModelError(f"unfitted_alpha is above 0 and at most 1, not {self.unfitted_alpha}.")


class Ces(LinearGaussian):
    """Complex exponential smoothing, one fit a series.

    The state of one series, all but the last line constant once it is fitted:
        ces.transition (2, 2, 2) = T, S; ces.gain (2, 2) = g, k
        ces.weights (H, 2, 2): what the mean h steps ahead takes of the plain and of the seasonal pair
        ces.spread (H,): v_h in units of ces.sigma2; ces.started, ces.errors: as those of `Ets`
        ces.season (m, 2): the next step's pair first; ces.pair (2,)
    """

    library = "statsforecast"
    substitute = "simple exponential smoothing from the first value"
    phase: Tensor

    def __init__(self, signature: Signature, config: CesConfig = CesConfig()) -> None:
        super().__init__(signature)
        self.config = config
        self.register_buffer("phase", torch.arange(signature.horizon) % signature.season, persistent=False)

    def fitting(self) -> Callable[[Values], Fit]:
        """By AutoCES; gaps inside a series are closed by lines for the fit, and skipped by the filter."""
        return partial(fit_ces, season=self.signature.season, form=self.config.form)

    def unfitted(self) -> Fit:
        """N with a1 = 1, whose level is smoothed by a0 - 1, and a running variance."""
        return {
            "form": "N", "parameters": (1 + self.config.unfitted_alpha, 1.0, np.nan, np.nan), "sigma2": 0.0,
            "started": 0, "errors": 0, "season": np.zeros((self.signature.season, 2)), "pair": np.zeros(2),
        }  # fmt: skip

    def states(self, fits: Sequence[Fit]) -> State:
        return states_of(fits, self.signature)

    def advance(self, y: Tensor, seen: Tensor, state: State) -> State:
        pair, season, started = state["ces.pair"], state["ces.season"], state["ces.started"] > 0.5
        pairs = torch.stack([pair, season[:, 0]], 1)  # (B, 2, 2), plain and seasonal
        usable, begins = seen & started, seen & ~started
        error = torch.where(usable, y - pairs[..., 0].sum(-1, keepdim=True), torch.zeros_like(y))
        moved = (state["ces.transition"] @ pairs[..., None])[..., 0] + state["ces.gain"] * error[..., None]
        moved = moved.clamp(-LARGEST, LARGEST)
        count, sigma2 = state["ces.errors"], state["ces.sigma2"]
        learns = (usable & (count >= 0)).to(y.dtype)
        return {
            "ces.pair": torch.where(begins, torch.cat([y, torch.zeros_like(y)], -1), moved[:, 0]),
            "ces.season": torch.cat([season[:, 1:], moved[:, 1:]], 1),
            "ces.started": torch.maximum(state["ces.started"], seen.to(y.dtype)),
            "ces.errors": count + learns,
            "ces.sigma2": sigma2 + learns * (error * error - sigma2) / (count + 1).clamp(min=1.0),
        }

    def outlook(self, state: State) -> tuple[Tensor, Tensor]:
        weights = state["ces.weights"]
        plain = (weights[:, :, 0] * state["ces.pair"][:, None]).sum(-1)
        seasonal = (weights[:, :, 1] * state["ces.season"][:, self.phase]).sum(-1)
        return plain + seasonal, (state["ces.sigma2"] * state["ces.spread"]).sqrt()


def fit_ces(values: Values, season: int, form: str = "auto") -> Fit:
    """AutoCES on one series: the form, its parameters and the state after the last value.

    Raises:
        ModelError: too few values, none at all, nothing but one value, or no whole seasons for an asked seasonal form.
    """
    from statsforecast.models import AutoCES

    y = known_part(values)
    complete, notes = filled(y)
    gaps = bool(notes)
    length = len(complete)
    if length < FEWEST:
        raise ModelError(f"{length} values are too few for complex exponential smoothing, which takes {FEWEST} or more")
    if np.ptp(complete) == 0:
        raise ModelError("it is constant, and has nothing to fit")
    if season > 1 and length < 2 * season and form != "N":
        if form != "auto":
            raise ModelError(f"its {length} values are fewer than two seasons of {season}; take no season (N)")
        notes.append(f"fitted without a season: {length} values are fewer than two seasons of {season}")
    try:
        found: dict[str, Any] = (
            AutoCES(season_length=season, model="Z" if form == "auto" else form).fit(complete).model_
        )
    except Exception as error:
        if "no model able to be fitted" not in str(error):
            raise
        raise ModelError(
            f"AutoCES could fit none of its forms to its {length} values, as of one that repeats itself exactly; "
            "take no season (N)"
        ) from error
    chosen, states, rows = found["seasontype"], np.asarray(found["states"], np.float64), found["m"]
    begin = 0 if gaps else length  # the last `rows` states are known then, the oldest first
    known = states[begin : begin + rows]
    pair, seasonal = np.zeros(2), np.zeros((season, 2))
    if chosen != "S":
        pair = known[-1, :2]
    if chosen != "N":
        kept = known if chosen == "S" else known[:, 2:]
        seasonal[:, : kept.shape[1]] = kept
    result: Fit = {
        "form": chosen,
        "parameters": tuple(float(found["par"][name]) for name in ("alpha_0", "alpha_1", "beta_0", "beta_1")),
        "sigma2": float(found["sigma2"]),
        "started": 1,
        "errors": -1,
        "season": seasonal,
        "pair": pair,
        "history": y if gaps else None,
    }
    if not (np.isfinite(states).all() and np.isfinite(result["sigma2"])):
        raise ModelError("the fit of AutoCES ended with numbers that are not finite")
    if result["sigma2"] < 0:
        raise ModelError(f"{length} values are too few for the form {chosen}; take no season (N)")
    root = largest_root(chosen, result["parameters"], 1 if chosen == "N" else season)
    if root > 1 + 1e-6:
        notes.append(
            "its filter does not forget: what is wrong in its state doubles in "
            f"{np.log(2) / np.log(root):,.0f} steps; fit it again before then"
        )
    return result | {"note": "; ".join(notes)}


def matrices_of(form: str, parameters: Sequence[float]) -> tuple[Values, Values]:
    """(2, 2, 2) T and S, and (2, 2) g and k, of a form and its a0, a1, b0, b1."""
    transition, gain = np.zeros((2, 2, 2)), np.zeros((2, 2))
    for place, (zero, one) in enumerate((parameters[:2], parameters[2:])):
        matrix, step = np.array([[1, one - 1], [1, 1 - zero]]), np.array([zero - one, zero + one])
        if place == 0:
            place = 1 if form == "S" else 0
        elif form == "P":
            matrix, step = np.array([[1.0, 0.0], [0.0, 0.0]]), np.array([zero, 0.0])
        elif form != "F":
            continue
        transition[place], gain[place] = matrix, step
    return transition, gain


def largest_root(form: str, parameters: Sequence[float], season: int) -> float:
    """Of the filter: by how much a step multiplies what is wrong in its state, in the long run."""
    (plain, seasonal), (gain, step) = matrices_of(form, parameters)
    places = 2 + 2 * season
    matrix = np.zeros((places, places))  # of the plain pair and the seasonal ones, the next step's first
    matrix[:2, :2] = plain
    matrix[2:-2, 4:] = np.eye(places - 4)
    matrix[-2:, 2:4] = seasonal
    error = np.concatenate([gain, np.zeros(places - 4), step])
    matrix[:, [0, 2]] -= error[:, None]
    return float(np.abs(np.linalg.eigvals(matrix)).max())


def states_of(fits: Sequence[Fit], signature: Signature) -> State:
    """The fits of `fit_ces` as one state, float64."""
    matrices = [matrices_of(fit["form"], fit["parameters"]) for fit in fits]
    transition, gain = (np.stack(parts) for parts in zip(*matrices, strict=True))
    weights, spread = _ahead(transition, gain, signature)
    arrays = {"transition": transition, "gain": gain, "weights": weights, "spread": spread}
    for name in ("sigma2", "started", "errors"):
        arrays[name] = np.array([[float(fit[name])] for fit in fits])
    for name in ("season", "pair"):
        arrays[name] = np.stack([fit[name] for fit in fits])
    return {f"ces.{name}": torch.from_numpy(arrays[name]) for name in ORDER}


def _ahead(transition: Values, gain: Values, signature: Signature) -> tuple[Values, Values]:
    """The first rows of the powers of T and S, (B, H, 2, 2), and v_h / sigma2, (B, H)."""
    row = np.zeros_like(gain)  # first rows of T^(h-1) and S^i
    row[..., 0] = 1
    rows, spread = [], [np.ones(len(gain))]
    for step in range(1, signature.horizon + 1):
        rows.append(row)
        response = (row * gain).sum(-1)
        whole = step % signature.season == 0
        spread.append(spread[-1] + np.square(response[:, 0] + response[:, 1] * whole))
        after = (row[:, :, None] @ transition)[:, :, 0]
        row = np.stack([after[:, 0], after[:, 1] if whole else row[:, 1]], 1)
    return np.stack(rows, 1), np.stack(spread[:-1], 1)
