"""Exponential smoothing as a step: every ETS form that statsforecast's AutoETS can choose, all in one graph.

The innovations state space of Hyndman, Koehler, Ord and Snyder, Forecasting with Exponential Smoothing (2008), chapters
2 and 6. Level l, trend b and the last m seasonal values s of a series, with q = l + phi b what level and trend expect:

    season additive or none:    mu = q + s      p = y - s      r = y - q
    season multiplicative:      mu = q s        p = y / s      r = y / q
    l' = q + alpha (p - q)      b' = phi b + beta (p - q)      s' = s + gamma (r - s)

These are the same for additive and multiplicative errors, which differ in the variance alone. Without a trend b and
beta are 0, without a season s and gamma: only the kinds of error and season are switches, one number a series each. So
one graph serves every form, and series of all forms share a batch. Where an observation is missing p = q and r = s. The
seasonal state is a shift, of any length.

The variance h steps ahead is a linear map of known powers of the state, whose coefficients depend on the parameters
alone. They are worked out once, in float64, when a series is fitted, and ride in the state (`ets.spread`).

Shapes: B series, H horizon, m season.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from models.contract import LARGEST, ModelError, Signature, State
from models.linear_gaussian import Fit, LinearGaussian, Values, filled, known_part

SEASON_LIMIT = 1e3  # of a multiplicative season: an outlier beyond it would overflow float32 in the variance
FEWEST = 4  # values, of which the library can fit a form at all
TINY = 1e-30  # what is divided by is at least this far from 0


@dataclass(frozen=True)
class EtsConfig:
    """Which forms are tried, and what a series does that was not fitted."""

    model: str = "ZZZ"  # error, trend and season: N, A, M, or Z, which chooses by AICc
    damped: str = "auto"  # whether a trend is damped: auto chooses by AICc, else yes or no
    unfitted_alpha: float = 0.2  # of a series that was not fitted: simple exponential smoothing from its first value

    def __post_init__(self) -> None:
        allowed = ("AMZ", "NAZ", "NAMZ")
        if len(self.model) != 3 or any(part not in known for part, known in zip(self.model, allowed, strict=True)):
            raise ModelError(
                f"model is error (A, M or Z), trend (N, A or Z) and season (N, A, M or Z), not '{self.model}'. "
                "A multiplicative trend has no finite variance, and AutoETS never chooses one."
            )
        if self.damped not in ("auto", "yes", "no"):
            raise ModelError(f"damped is auto, yes or no, not '{self.damped}'.")
        if not 0 < self.unfitted_alpha <= 1:
            raise ModelError(f"unfitted_alpha is above 0 and at most 1, not {self.unfitted_alpha}.")


class Ets(LinearGaussian):
    """Exponential smoothing, one fit a series.

    The state of one series, all but the last line constant once it is fitted:
        ets.sigma2: the variance of the (relative, where multiplicative) errors; ets.alpha, beta, gamma, phi
        ets.ramp (H,): phi + ... + phi^h, which the trend counts for h steps ahead
        ets.kind (2,): 1 where the errors, where the season is multiplicative
        ets.spread (3, H): the coefficients of the variance (`spread_of`)
        ets.started: 1 once there is a level
        ets.errors: how many errors `ets.sigma2` is the mean square of; below 0 where it was fitted and stays
        ets.season (m,): the next step's value first; ets.trend, ets.level

    Quantiles are a normal distribution's around the point forecast, as the library's: with a multiplicative season and
    beyond one season the point forecast is not quite the mean, of which it lacks terms of the order of alpha gamma
    sigma2 (Hyndman et al., 6.3).
    """

    library = "statsforecast"
    substitute = "simple exponential smoothing from the first value"
    phase: Tensor

    def __init__(self, signature: Signature, config: EtsConfig = EtsConfig()) -> None:
        super().__init__(signature)
        self.config = config
        self.register_buffer("phase", torch.arange(signature.horizon) % signature.season, persistent=False)

    def fitting(self) -> Callable[[Values], Fit]:
        """By AutoETS; gaps inside a series are closed by lines for the fit, and skipped by the filter."""
        return partial(fit_ets, season=self.signature.season, model=self.config.model, damped=self.config.damped)

    def unfitted(self) -> Fit:
        """Simple exponential smoothing from the first value, with a running variance."""
        return {
            "form": "ANN", "alpha": self.config.unfitted_alpha, "beta": 0.0, "gamma": 0.0, "phi": 1.0, "sigma2": 0.0,
            "started": 0.0, "errors": 0.0, "level": 0.0, "trend": 0.0, "season": np.zeros(self.signature.season),
        }  # fmt: skip

    def states(self, fits: Sequence[Fit]) -> State:
        return states_of(fits, self.signature)

    def advance(self, y: Tensor, seen: Tensor, state: State) -> State:
        level, trend, season = state["ets.level"], state["ets.trend"], state["ets.season"]
        started, multiplicative = state["ets.started"] > 0.5, state["ets.kind"][..., 1:] > 0.5
        damped = state["ets.phi"] * trend
        expected, first = level + damped, season[..., :1]
        divisible = (expected.abs() > TINY) & (first.abs() > TINY)
        usable = seen & started & (divisible | ~multiplicative)
        one = torch.ones_like(first)
        by_season, by_level = (torch.where(divisible, value, one) for value in (first, expected))
        adjusted = torch.where(multiplicative, (y / by_season).clamp(-LARGEST, LARGEST), y - first)
        ratio = (y / by_level).clamp(-SEASON_LIMIT, SEASON_LIMIT)
        seasonal = torch.where(multiplicative, ratio, y - expected)
        error = torch.where(usable, adjusted - expected, torch.zeros_like(y))
        surprise = torch.where(usable, seasonal - first, torch.zeros_like(y))
        begins = seen & ~started
        # The running variance of a series that was not fitted; a fitted one keeps its own.
        count = state["ets.errors"]
        learns = (usable & (count >= 0)).to(y.dtype)
        sigma2 = state["ets.sigma2"]
        return {
            "ets.level": torch.where(begins, y, expected + state["ets.alpha"] * error),
            "ets.trend": damped + state["ets.beta"] * error,
            "ets.season": torch.cat([season[..., 1:], first + state["ets.gamma"] * surprise], -1),
            "ets.started": torch.maximum(state["ets.started"], seen.to(y.dtype)),
            "ets.errors": count + learns,
            "ets.sigma2": sigma2 + learns * (error * error - sigma2) / (count + 1).clamp(min=1.0),
        }

    def outlook(self, state: State) -> tuple[Tensor, Tensor]:
        level, trend, sigma2 = state["ets.level"], state["ets.trend"], state["ets.sigma2"]
        relative, multiplicative = state["ets.kind"][..., :1] > 0.5, state["ets.kind"][..., 1:] > 0.5
        coefficients = state["ets.spread"]
        season = state["ets.season"][..., self.phase]
        expected = level + state["ets.ramp"] * trend
        mean = torch.where(multiplicative, expected * season, expected + season)
        # Class 1: sigma2 times a constant; the other two are computed for the series that are of them.
        variance = sigma2 * coefficients[..., 0, :]
        for member, of_class in ((relative & ~multiplicative, _class2), (relative & multiplicative, _class3)):
            rows = member[:, 0].nonzero()[:, 0]
            parts = (coefficients, sigma2, mean, level, trend)
            variance = variance.index_copy(0, rows, of_class(*(part[rows] for part in parts)))
        deviation = variance.clamp(min=0.0).sqrt()
        return mean, torch.where(relative & multiplicative, season.abs() * deviation, deviation)


def _class2(spread: Tensor, sigma2: Tensor, mean: Tensor, level: Tensor, trend: Tensor) -> Tensor:
    """(B, H): the errors of the way are relative to what was expected then."""
    square = mean * mean
    echo = torch.zeros_like(square)
    for lag in range(1, square.shape[1]):
        late = spread[:, 0, lag : lag + 1] * square[:, :-lag]
        echo = echo + torch.nn.functional.pad(late, (lag, 0))
    return sigma2 * square + (1 + sigma2) * echo


def _class3(spread: Tensor, sigma2: Tensor, mean: Tensor, level: Tensor, trend: Tensor) -> Tensor:
    """(B, H): a quadratic form of level and trend, still to be multiplied by the season's square."""
    powers = torch.stack([level * level, level * trend, trend * trend], -2)  # (B, 3, 1)
    return (spread * powers).sum(-2)


def fit_ets(values: Values, season: int, model: str = "ZZZ", damped: str = "auto") -> Fit:
    """AutoETS on one series: the form, its parameters and the state after the last value.

    Raises:
        ModelError: too few values, none at all, or values that the asked form cannot have.
    """
    from statsforecast.models import AutoETS

    y = known_part(values)
    complete, notes = filled(y)
    gaps = bool(notes)
    if "M" in (model[0], model[2]) and complete.min() <= 0:
        raise ModelError(
            f"the form {model} takes values above 0 only, the lowest is {complete.min():g}; "
            "take an additive one, or Z, which chooses among those that can"
        )
    if season > 1 and len(complete) <= season and model[2] != "N":
        if model[2] != "Z":
            raise ModelError(f"its {len(complete)} values are no more than one season of {season}; take no season (N)")
        notes.append(f"fitted without a season: {len(complete)} values are no more than one season of {season}")
        model = f"{model[:2]}N"
    if np.ptp(complete) == 0:
        notes.append("constant: simple exponential smoothing with no spread")
    if len(complete) < FEWEST:
        raise ModelError(f"{len(complete)} values are too few for an ETS model of the form {model}")
    chosen = AutoETS(season_length=season, model=model, damped={"auto": None, "yes": True, "no": False}[damped])
    try:
        found = chosen.fit(complete).model_
    except NotImplementedError as error:
        raise ModelError(f"{len(complete)} values are too few for an ETS model of the form {model}") from error
    error_kind, trend_kind, season_kind, damping = found["components"]
    alpha, beta, gamma, phi = (float(value) for value in found["par"][:4])
    states = found["states"][0 if gaps else -1]
    trends = int(trend_kind != "N")
    seasonal = states[1 + trends :][::-1] if season_kind != "N" else np.zeros(season)
    if not np.isfinite(found["states"]).all() or not np.isfinite(found["sigma2"]):
        raise ModelError(f"the fit of {chosen.model} ended with numbers that are not finite")
    return {
        "form": f"{error_kind}{trend_kind}{'d' if damping == 'D' else ''}{season_kind}",
        "alpha": alpha,
        "beta": beta if trends else 0.0,
        "gamma": gamma if season_kind != "N" else 0.0,
        "phi": phi if damping == "D" else 1.0,
        "sigma2": max(float(found["sigma2"]), 0.0),
        "started": 1.0,
        "errors": -1.0,
        "level": float(states[0]),
        "trend": float(states[1]) if trends else 0.0,
        "season": np.ascontiguousarray(seasonal, np.float64),
        "history": y if gaps else None,
        "note": "; ".join(notes),
    }


def states_of(fits: Sequence[Fit], signature: Signature) -> State:
    """The fits of `fit_ets` as one state, float64."""

    def column(name: str) -> Tensor:
        return torch.tensor([fit[name] for fit in fits], dtype=torch.float64)

    kinds = torch.tensor([[fit["form"][0] == "M", fit["form"][-1] == "M"] for fit in fits], dtype=torch.float64)
    parameters = {name: column(name) for name in ("sigma2", "alpha", "beta", "gamma", "phi")}
    return parameters_of(parameters, kinds, signature) | {
        "ets.started": column("started")[:, None],
        "ets.errors": column("errors")[:, None],
        "ets.season": torch.from_numpy(np.stack([fit["season"] for fit in fits])),
        "ets.trend": column("trend")[:, None],
        "ets.level": column("level")[:, None],
    }


def parameters_of(parameters: Mapping[str, Tensor], kind: Tensor, signature: Signature) -> State:
    """The part of the state that says which model each series has.

    Args:
        parameters: sigma2, alpha, beta, gamma and phi, each (B,).
        kind: (B, 2), 1 where the errors, where the season is multiplicative.
    """
    state = {f"ets.{name}": parameters[name][:, None] for name in ("sigma2", "alpha", "beta", "gamma", "phi")}
    steps = torch.arange(1, signature.horizon + 1).to(parameters["phi"])
    ramp = (parameters["phi"][:, None] ** steps).cumsum(-1)
    return state | {"ets.ramp": ramp, "ets.kind": kind, "ets.spread": spread_of(parameters, kind, signature)}


def spread_of(parameters: Mapping[str, Tensor], kind: Tensor, signature: Signature) -> Tensor:
    """(B, 3, H): what makes the variance v_h of the h-step forecast out of the state (Hyndman et al. 2008, chapter 6).

    With c_j = alpha + beta (phi + ... + phi^j) + gamma [m divides j], the response j steps after an error:
    additive errors (class 1, 6.1): v_h = sigma2 K_h with K_h = 1 + c_1^2 + ... + c_{h-1}^2; (K_h, 0, 0).
    relative errors, additive season (class 2, 6.2): v_h = (1 + sigma2) theta_h - mu_h^2 with theta_h = mu_h^2 + sigma2
        sum_j c_j^2 theta_{h-j}. Solved for theta it is theta_h = sum_j L_j mu_{h-j}^2; (L_{h-1}, 0, 0), with L_0 = 1.
    relative errors, multiplicative season (class 3, 6.3): v_h = s_h^2 K_h (l^2, l b, b^2); `_product_spread`.
    """
    alpha, beta, gamma, phi, sigma2 = (parameters[name] for name in ("alpha", "beta", "gamma", "phi", "sigma2"))
    relative, multiplicative = kind[:, 0] > 0.5, kind[:, 1] > 0.5
    steps = torch.arange(1, signature.horizon + 1, device=alpha.device)
    powers = phi[:, None] ** steps
    response = alpha[:, None] + beta[:, None] * powers.cumsum(-1)
    response = (response + gamma[:, None] * (steps % signature.season == 0))[:, :-1].square()  # c_1^2 ... c_{H-1}^2
    one = torch.ones_like(alpha)[:, None]
    constant = torch.cat([one, 1 + response.cumsum(-1)], -1)
    echoes = [one[:, 0]]
    for step in range(1, signature.horizon):
        earlier = torch.stack(echoes[::-1], -1)
        echoes.append(sigma2 * (response[:, :step] * earlier).sum(-1))
    first = torch.where(relative[:, None], torch.stack(echoes, -1), constant)
    spread = torch.stack([first, torch.zeros_like(first), torch.zeros_like(first)], -2)
    products = (relative & multiplicative).nonzero()[:, 0]
    if len(products):
        spread[products] = _product_spread({name: value[products] for name, value in parameters.items()}, signature)
    return spread


def _product_spread(parameters: Mapping[str, Tensor], signature: Signature) -> Tensor:
    """(B, 3, H): the variance of y_h = q_h s_h (1 + e_h) as a quadratic form of level and trend, times s_h^2.

    Level and trend follow x' = (A + g w e) x with A = [[1, phi], [0, phi]], g = (alpha, beta), w = (1, phi), q = w x; a
    season that comes back has been multiplied by (1 + gamma e) of each time that it was there. So for every season
    the first two moments of x times that product are carried along: exact up to the fourth moment of a normal error,
    and the same as the Kronecker products of Hyndman et al., 6.3, whose matrices have (2 m)^2 numbers.
    """
    a, b, c, f, v = (parameters[name][:, None, None] for name in ("alpha", "beta", "gamma", "phi", "sigma2"))
    horizon = signature.horizon
    phases = min(signature.season, horizon)
    unit = torch.eye(3).to(a).expand(len(a), phases, 3, 3)
    ll, lb, bb = unit.unbind(-1)  # second moments (B, phases, 3), as functions of (l^2, l b, b^2) of now
    unit = torch.eye(2).to(a).expand(len(a), phases, 2, 2)
    l, t = unit.unbind(-1)  # first moments (B, phases, 2), as functions of (l, b) of now  # noqa: E741
    result = []
    for step in range(horizon):
        phase = step % signature.season
        q, r = ll + 2 * f * lb + f * f * bb, f * (lb + f * bb)
        mean = l + f * t
        now = mean[:, phase]
        square = torch.stack([now[:, 0] ** 2, 2 * now[:, 0] * now[:, 1], now[:, 1] ** 2], -1)
        result.append((1 + v[:, 0]) * q[:, phase] - square)
        own = torch.zeros(1, phases, 1).to(a)
        own[:, phase] = 1
        w = own * c  # gamma for the season that is there now, 0 for the others
        even, odd, fourth = 1 + w * w * v, 2 * w * v, v + 3 * w * w * v * v
        ll, lb, bb = (
            even * q + odd * 2 * a * q + fourth * a * a * q,
            even * r + odd * (b * q + a * r) + fourth * a * b * q,
            even * f * f * bb + odd * 2 * b * r + fourth * b * b * q,
        )
        l, t = mean + w * v * a * mean, f * t + w * v * b * mean  # noqa: E741
    return torch.stack(result, -1)
