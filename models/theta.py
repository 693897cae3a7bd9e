"""The theta method as a step: the four forms of statsforecast's AutoTheta, all series in one tensor step.

Simple exponential smoothing with drift, as Fiorucci, Pellegrini, Louzada, Petropoulos and Koehler (Int. J. Forecasting
32, 2016, "Models for optimising the theta method") write it. After n values with mean M, least-squares slope b and
intercept a = M - b (n + 1) / 2, and with q = 1 - alpha and w = 1 - 1 / theta, the next value is

    mu = l + w (a q^n + b (1 - q^(n+1)) / alpha),      l' = l + alpha (y - l)

The standard and the optimised theta model keep a and b while they look ahead, the dynamic ones go on fitting the line
to what they expect. Line and level are updated with every observation either way: the regression's recursion is exact,
so after new points a standard model is what the library computes from the whole series. A missing value is one more
step ahead. The library removes a season before and puts it back after; its m values are kept as they were fitted.

The forecast is linear in the state z = (l, M, b), so its variance is exact: with mu = c z, z' = F z + g e,
v_h = sigma2 (1 + c P c'), P' = F P F' + g g' from P = 0. Standard models: sigma2 (1 + (h - 1) alpha^2).

All of it moves with the series: with o added to the values, o to M and o (1 - w q^n) to l, mu becomes mu + o, and the
next l and M are again so moved. So the state holds what lies above an origin, the first value of a stream or the level
at a fit's end, and 32 bits keep changes of .001 at a height of 10,000.

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

FORMS = ("STM", "OTM", "DSTM", "DOTM")  # standard and optimised, the latter two dynamic
SHORTEST_SEASON = 4  # that the library removes
TINY = 1e-30  # what is divided by is at least this far from 0
CONSTANT = ("sigma2", "alpha", "weight", "dynamic", "multiplicative")


@dataclass(frozen=True)
class ThetaConfig:
    """Which forms are tried, how a season is removed, and what a series does that was not fitted."""

    form: str = "auto"  # STM, OTM, DSTM, DOTM, or auto, which chooses by the squared error
    decomposition: str = "multiplicative"  # or additive; the library turns to additive where values are not positive
    unfitted_smoothing: float = 0.5  # alpha of a series that was not fitted: the standard form from its first value

    def __post_init__(self) -> None:
        if self.form not in ("auto", *FORMS):
            raise ModelError(f"form is auto or one of {', '.join(FORMS)}, not '{self.form}'.")
        if self.decomposition not in ("multiplicative", "additive"):
            raise ModelError(f"decomposition is multiplicative or additive, not '{self.decomposition}'.")
        if not 0 < self.unfitted_smoothing < 1:
            raise ModelError(f"unfitted_smoothing lies between 0 and 1, not {self.unfitted_smoothing}.")


class Theta(LinearGaussian):
    """The theta method, one fit a series.

    The state of one series, all but the last line constant once it is fitted:
        theta.sigma2, theta.alpha, theta.weight = w; theta.dynamic: 1 where the line goes on being fitted ahead;
        theta.multiplicative: 1 where the season is
        theta.errors: how many errors theta.sigma2 is the mean square of; below 0 where it was fitted and stays
        theta.count = n, theta.season (m,): the next step's value first; theta.origin = o; theta.line (2,): M - o and b;
        theta.level: l - o (1 - w q^n)
    """

    library = "statsforecast"
    substitute = "the standard theta model from the first value"
    phase: Tensor

    def __init__(self, signature: Signature, config: ThetaConfig = ThetaConfig()) -> None:
        super().__init__(signature)
        self.config = config
        self.register_buffer("phase", torch.arange(signature.horizon) % signature.season, persistent=False)

    def fitting(self) -> Callable[[Values], Fit]:
        """By AutoTheta; gaps inside a series are closed by lines."""
        config = self.config
        return partial(fit_theta, season=self.signature.season, form=config.form, decomposition=config.decomposition)

    def unfitted(self) -> Fit:
        """The standard model without a season, with a running variance."""
        return {
            "sigma2": 0.0, "alpha": self.config.unfitted_smoothing, "weight": 0.5, "dynamic": 0, "multiplicative": 0,
            "errors": 0, "count": 0, "season": np.zeros(self.signature.season), "origin": 0.0, "line": np.zeros(2),
            "level": 0.0,
        }  # fmt: skip

    def states(self, fits: Sequence[Fit]) -> State:
        return states_of(fits)

    def advance(self, y: Tensor, seen: Tensor, state: State) -> State:
        season, count = state["theta.season"], state["theta.count"]
        multiplicative, started = state["theta.multiplicative"] > 0.5, count > 0.5
        first = season[:, :1]
        divisible = first.abs() > TINY
        usable = seen & (divisible | ~multiplicative)
        by = torch.where(divisible, first, torch.ones_like(first))
        value = torch.where(multiplicative, (y / by).clamp(-LARGEST, LARGEST), y - first)
        begins = usable & ~started
        # The first value becomes the origin, on which level and line lie, and is expected again.
        origin = torch.where(begins, value, state["theta.origin"])
        z = _stacked(state)
        looking, transition, gain = self._coefficients(state, 1)
        expected = (looking[:, 0] * z).sum(-1, keepdim=True)
        error = torch.where(usable & started, value - origin - expected, torch.zeros_like(y))
        after = (transition[:, 0] @ z[..., None]).squeeze(-1) + gain[:, 0] * error
        # Missing: what was expected takes its place, and a line that is kept ahead is kept now.
        mean, slope = z[:, 1:2] + z[:, 2:] / 2, z[:, 2:]
        kept = ~usable & (state["theta.dynamic"] < 0.5)
        after = torch.where(kept, torch.cat([after[:, :1], mean, slope], -1), after)
        after = torch.where(started, after, z)
        seen_errors, sigma2 = state["theta.errors"], state["theta.sigma2"]
        learns = (usable & started & (seen_errors >= 0)).to(y.dtype)
        mean_square = sigma2 + learns * (error * error - sigma2) / (seen_errors + 1).clamp(min=1.0)
        return {
            "theta.sigma2": mean_square,
            "theta.errors": seen_errors + learns,
            "theta.count": count + (started | begins).to(y.dtype),
            "theta.season": torch.cat([season[:, 1:], first], 1),
            "theta.origin": origin,
            "theta.line": after[:, 1:],
            "theta.level": after[:, :1],
        }

    def _coefficients(self, state: State, steps: int) -> tuple[Tensor, Tensor, Tensor]:
        """c (B, steps, 3), F (B, steps, 3, 3) and g (B, steps, 3) of the next steps, the line fitted on."""
        alpha, weight = state["theta.alpha"], state["theta.weight"]
        n = state["theta.count"] + torch.arange(steps, dtype=alpha.dtype, device=alpha.device)
        n = n.clamp(min=1.0)  # before the first value nothing is computed from it
        fading = (1 - alpha) ** n
        ramp = (1 - (1 - alpha) * fading) / alpha
        one, none = torch.ones_like(n), torch.zeros_like(n)
        looking = torch.stack([one, weight * fading, weight * (ramp - (n + 1) / 2 * fading)], -1)
        # Expanded, not multiplied by ones: the exporter leaves such a product out, and its shape with it.
        gain = torch.stack([alpha.expand_as(n), 1 / (n + 1), 6 / ((n + 1) * (n + 2))], -1)
        rows = (
            ((1 - alpha).expand_as(n), none, none),
            (none, n / (n + 1), none),
            (none, -6 / ((n + 1) * (n + 2)), (n - 1) / (n + 2)),
        )
        without = torch.stack([torch.stack(row, -1) for row in rows], -2)
        return looking, without + gain[..., :, None] * looking[..., None, :], gain

    def outlook(self, state: State) -> tuple[Tensor, Tensor]:
        horizon = self.signature.horizon
        looking, transition, gain = self._coefficients(state, horizon)
        z, spread = _stacked(state)[..., None], torch.zeros_like(transition[:, 0])
        moving, varying = [], []
        for step in range(horizon):
            c = looking[:, step, None]
            moving.append((c @ z)[:, 0])
            varying.append(1 + (c @ spread @ c.mT)[:, 0])
            z = transition[:, step] @ z
            spread = transition[:, step] @ spread @ transition[:, step].mT
            spread = spread + gain[:, step, :, None] * gain[:, step, None, :]
        # Without a new fit of the line the level alone moves, by alpha times what it lacked.
        alpha, weight = state["theta.alpha"], state["theta.weight"]
        mean, slope = state["theta.line"][:, :1], state["theta.line"][:, 1:]
        n = state["theta.count"] + torch.arange(horizon, dtype=alpha.dtype, device=alpha.device)
        fading = (1 - alpha) ** n
        intercept = mean - slope * (state["theta.count"] + 1) / 2
        line = weight * (intercept * fading + slope * (1 - (1 - alpha) * fading) / alpha)
        still = state["theta.level"] + line + alpha * (line.cumsum(-1) - line)
        ahead = torch.arange(horizon, dtype=alpha.dtype, device=alpha.device)
        dynamic, multiplicative = state["theta.dynamic"] > 0.5, state["theta.multiplicative"] > 0.5
        expected = state["theta.origin"] + torch.where(dynamic, torch.cat(moving, -1), still)
        variance = torch.where(dynamic, torch.cat(varying, -1), 1 + alpha * alpha * ahead)
        deviation = (state["theta.sigma2"] * variance).sqrt()
        season = state["theta.season"][:, self.phase]
        return (
            torch.where(multiplicative, expected * season, expected + season),
            torch.where(multiplicative, deviation * season.abs(), deviation),
        )


def _stacked(state: State) -> Tensor:
    return torch.cat([state["theta.level"], state["theta.line"]], -1)


def fit_theta(values: Values, season: int, form: str = "auto", decomposition: str = "multiplicative") -> Fit:
    """AutoTheta on one series: the form, its parameters and the state after the last value.

    Raises:
        ModelError: too few values, or none at all.
    """
    from statsforecast.models import AutoTheta

    y = known_part(values)
    complete, notes = filled(y, "closed by straight lines")
    length = len(complete)
    if length <= 3:
        raise ModelError(f"{length} values are too few for a theta model")
    if np.ptp(complete) == 0:
        raise ModelError("it is constant, and has neither a season nor a slope to fit")
    if 1 < season < SHORTEST_SEASON:
        notes.append(f"fitted without a season: one of {season} steps is shorter than the library removes")
    elif season > 1 and length < 2 * season:
        notes.append(f"fitted without a season: {length} values are fewer than two seasons of {season}")
    chosen = AutoTheta(season_length=season, decomposition_type=decomposition, model=None if form == "auto" else form)
    found: dict[str, Any] = chosen.fit(complete).model_
    seasonal = np.zeros(season)
    residuals = np.asarray(found["residuals"], np.float64)
    multiplicative = False
    if found.get("decompose", False):
        multiplicative = found["decomposition_type"] == "multiplicative"
        seasonal = np.asarray(found["seas_forecast"]["mean"], np.float64)
        if decomposition == "multiplicative" and not multiplicative:
            notes.append("its season is removed by subtraction: not all of its values or factors are above 0")
        if not multiplicative:
            # The library adds the season to these residuals, which would then count as noise.
            residuals = residuals - np.resize(np.roll(seasonal, -(-length % season)), length)
    settled = residuals[3:] if len(residuals) > 4 else residuals
    level, mean, _, slope, _ = (float(value) for value in found["states"][-1])
    alpha, weight = float(found["par"]["alpha"]), 1 - 1 / float(found["par"]["theta"])
    result: Fit = {
        "form": found["modeltype"],
        "sigma2": float(np.var(settled, ddof=1)),
        "alpha": alpha,
        "weight": weight,
        "dynamic": int(found["modeltype"].startswith("D")),
        "multiplicative": int(multiplicative),
        "errors": -1,
        "count": length,
        "season": seasonal,
        "origin": level,
        "line": np.array([mean - level, slope]),
        "level": level * weight * (1 - alpha) ** length,
        "history": y[length:] if length < len(y) else None,
        "note": "; ".join(notes),
    }
    if not all(np.isfinite(result[name]).all() for name in ("sigma2", "alpha", "weight", "season", "origin", "line")):
        raise ModelError("the fit of AutoTheta ended with numbers that are not finite")
    return result


def states_of(fits: Sequence[Fit]) -> State:
    """The fits of `fit_theta` as one state, float64."""
    names = (*CONSTANT, "errors", "count", "season", "origin", "line", "level")
    columns = {name: np.array([np.atleast_1d(fit[name]) for fit in fits], np.float64) for name in names}
    return {f"theta.{name}": torch.from_numpy(column) for name, column in columns.items()}
