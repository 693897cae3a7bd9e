"""Unobserved components as a step: level, trend and season of statsmodels' UnobservedComponents, all in one graph.

The structural model of Harvey, Forecasting, Structural Time Series Models and the Kalman Filter (1989), 2.3:

    y_t = level_t + season_t + irregular,      level' = level + trend + noise,      trend' = trend + noise,
    season' = -(the last s - 1 seasons) + noise

whose filter is that of `models.kalman` with h the irregular's variance. What a form does not have is 0 in the mean and
in every variance and stays so: series of all forms share a batch. The season's transition is a shift and a sum, and
because Z T^h takes the level, h times the trend and one season (the sum or a single place), mean and variance h steps
ahead are read off the mean and the covariance: a season of 168 costs no matrix product.

    variance_h = sigma2 (h_irregular + h q_level + q_trend sum_{j<h} j^2 + q_season c_h + G_h P G_h')

with c_h the number of j < h for which j mod s is 0 or 1: what a season gains, the next one loses.

Shapes: B series, H horizon, n = 2 + s - 1 places (one, unused, for no season).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.contract import ModelError, Signature, State
from models.kalman import Kalman, effects_of
from models.linear_gaussian import STATSMODELS, Fit, Values, in_units, unit_of
from models.regressors import Regressors, parted

# As statsmodels calls them; of the last the level alone is noisy, and there is no irregular.
FORMS = {
    "local-level": "local level",
    "local-trend": "local linear trend",
    "smooth-trend": "smooth trend",
    "drift": "random walk with drift",
}
SEASONS = ("auto", "stochastic", "fixed", "none")
NOISES = ("irregular", "level", "trend", "seasonal")
ITERATIONS = 200  # of the optimiser


@dataclass(frozen=True)
class ComponentsConfig:
    """Which components there are; what is auto is chosen by AICc."""

    form: str = "auto"  # local-level, local-trend, smooth-trend or drift
    seasonal: str = "auto"  # stochastic, fixed or none

    def __post_init__(self) -> None:
        if self.form not in ("auto", *FORMS):
            raise ModelError(f"form is auto or one of {', '.join(FORMS)}, not '{self.form}'.")
        if self.seasonal not in SEASONS:
            raise ModelError(f"seasonal is one of {', '.join(SEASONS)}, not '{self.seasonal}'.")


class Components(Kalman):
    """Level, trend and season, one fit a series.

    The state of one series, all but the last line constant once it is fitted:
        components.noise (4,): the variances of the irregular, level, trend and season, in units of sigma2
        components.sigma2, started, errors; covariance (n, n), mean (n,): see `Kalman`; the mean's last places are the
        seasons of now and of the s - 2 steps before
    """

    family = "components"
    library = "statsmodels"
    substitute = "a random walk from the first value"
    phase: Tensor
    shocks: Tensor

    def __init__(self, signature: Signature, config: ComponentsConfig = ComponentsConfig()) -> None:
        super().__init__(signature)
        self.config = config
        season, steps = signature.season, torch.arange(signature.horizon)
        self.places = 2 + max(1, season - 1)
        self.register_buffer("phase", 2 + steps % season, persistent=False)  # which season is there h + 1 steps ahead
        shocks = 2 * ((steps + 1) // season) + ((steps + 1) % season).clamp(max=2) if season > 1 else 0 * steps
        self.register_buffer("shocks", shocks, persistent=False)

    def fitting(self) -> Callable[[Values], Fit]:
        """By UnobservedComponents; gaps are skipped by the fit and by the filter."""
        import statsmodels.tsa.statespace.structural  # noqa: F401  before `fit_each` hushes the warnings it switches on

        return partial(fit_components, season=self.signature.season, config=self.config)

    def unfitted(self) -> Fit:
        """A random walk from the first value, with a running variance."""
        return {
            "noise": np.array([0.0, 1.0, 0.0, 0.0]), "sigma2": 0.0, "started": 0, "errors": 0,
            "covariance": np.zeros((self.places, self.places)), "mean": np.zeros(self.places),
            "effects": np.zeros(self.signature.future),
        }  # fmt: skip

    def states(self, fits: Sequence[Fit]) -> State:
        return states_of(fits)

    def forward(self, x: Tensor, state: State) -> Tensor:
        level, trend, season = x[:, :1], x[:, 1:2], x[:, 2:]
        return torch.cat([level + trend, trend, -season.sum(1, keepdim=True), season[:, :-1]], 1)

    def observe(self, x: Tensor, state: State) -> Tensor:
        return x[..., 0] + x[..., 2]

    def disturbed(self, spread: Tensor, state: State) -> Tensor:
        noise = torch.nn.functional.pad(state["components.noise"][:, 1:], (0, self.places - 3))
        return spread + torch.diag_embed(noise)

    def measured(self, variance: Tensor, state: State) -> Tensor:
        return variance + state["components.noise"][:, :1]

    def first(self, z: Tensor) -> Tensor:
        return torch.nn.functional.pad(z, (0, self.places - 1))

    def outlook(self, state: State) -> tuple[Tensor, Tensor]:
        mean, covariance = state["components.mean"], state["components.covariance"]
        ahead = torch.arange(1, self.signature.horizon + 1, dtype=mean.dtype, device=mean.device)
        expected = _ahead(mean[..., None])[..., 0]
        means = expected[:, :1] + ahead * expected[:, 1:2] + expected[:, self.phase]
        spread = _ahead(_ahead(covariance).mT)
        width = spread.shape[-1]
        trend = spread[:, 0, :1] + ahead * (2 * spread[:, 0, 1:2] + ahead * spread[:, 1, 1:2])
        season = spread.flatten(1)[:, self.phase * (width + 1)]
        both = spread[:, 0, self.phase] + ahead * spread[:, 1, self.phase]
        unsure = (trend + season + 2 * both).clamp(min=0.0)
        squares = (ahead - 1) * ahead * (2 * ahead - 1) / 6
        irregular, level, slope, seasonal = state["components.noise"].split(1, -1)
        noise = irregular + level * ahead + slope * squares + seasonal * self.shocks.to(mean.dtype)
        return means, (state["components.sigma2"] * (noise + unsure)).sqrt()


def _ahead(x: Tensor) -> Tensor:
    """Level, trend and the next s seasons, (B, 2 + s, k), of places (B, n, k)."""
    season = x[:, 2:]
    return torch.cat([x[:, :2], -season.sum(1, keepdim=True), season.flip(1)], 1)


def fit_components(values: Values, season: int, config: ComponentsConfig) -> Fit:
    """UnobservedComponents on one series: its variances, and the filter's state after the last value.

    Raises:
        ModelError: too few values, or none at all.
    """
    y, covariates = parted(values)
    places = 2 + max(1, season - 1)
    known = int(np.isfinite(y).sum())
    notes = []
    if known < 3:
        raise ModelError(f"{known} values are too few for components")
    if np.nanmin(y) == np.nanmax(y):
        level = np.eye(places)[0] * np.nanmin(y)
        none = np.zeros(covariates.shape[1])
        return _fit(np.zeros(4), 0.0, level, np.zeros((places, places)), none, "constant: a level with no spread")
    if known < len(y):
        notes.append(f"{len(y) - known} of {len(y)} values are missing: skipped")
    if season > 1 and len(y) <= season and config.seasonal != "none":
        notes.append(f"fitted without a season: {len(y)} values are no more than one season of {season}")
        season = 1
    regressors = Regressors(covariates, np.ones(1), constant=True)  # a level takes up any constant
    unit = unit_of(y, *STATSMODELS)
    results = estimate(y / unit, season, config, regressors.values)
    if regressors.note:
        notes.append(regressors.note)
    if not results.mle_retvals["converged"]:
        notes.append(f"the optimiser stopped after {ITERATIONS} iterations")
    return in_units(converted(results, places, regressors, "; ".join(notes)), unit)


def estimate(y: Values, season: int, config: ComponentsConfig, covariates: Values | None = None) -> Any:
    """statsmodels' results for a series (T,) with NaN where missing, and covariates (T, F) or None.

    Likelihoods of forms with more places leave out more values at the start; here all leave out as many.

    Raises:
        ModelError: no model can be fitted to so few values.
    """
    forms = tuple(FORMS) if config.form == "auto" else (config.form,)
    asked = "none" if season == 1 else config.seasonal
    burn = min(2 + (season - 1 if asked != "none" else 0), len(y) - 1)
    first = "stochastic" if asked == "auto" else asked
    fits = {(form, first): _one(y, season, form, first, burn, covariates) for form in forms}
    if asked == "auto":
        form = _best(fits, y)[0]
        fits |= {(form, other): _one(y, season, form, other, burn, covariates) for other in ("fixed", "none")}
    return fits[_best(fits, y)]


def _best(fits: Mapping[tuple[str, str], Any], y: Values) -> tuple[str, str]:
    able = {name: fit for name, fit in fits.items() if fit is not None}
    if not able:
        raise ModelError(f"{len(y)} values, {int(np.isnan(y).sum())} of them missing, are too few for components")
    return min(able, key=lambda name: able[name].aicc)


def _one(y: Values, season: int, form: str, seasonal: str, burn: int, covariates: Values | None) -> Any:
    """One form's fit; None where it cannot be made, has too few values for an AICc, or never gets to know its level."""
    from statsmodels.tsa.statespace.structural import UnobservedComponents

    model = UnobservedComponents(
        y,
        level=FORMS[form],
        seasonal=None if seasonal == "none" else season,
        stochastic_seasonal=seasonal == "stochastic",
        exog=covariates,
        use_exact_diffuse=True,
        loglikelihood_burn=burn,
    )
    try:
        fit = model.fit(disp=0, maxiter=ITERATIONS, cov_type="none")
    except (ValueError, IndexError, np.linalg.LinAlgError):  # what statsmodels raises of too few values
        return None
    enough = fit.nobs_effective > fit.df_model + 1 and fit.filter_results.nobs_diffuse < len(y)
    return fit if enough and np.isfinite([fit.aicc, *fit.params]).all() else None


def converted(results: Any, places: int, regressors: Regressors, note: str) -> Fit:
    """The library's filter after the last value, with `places` in the mean, and the effects of its regressors.

    Raises:
        ModelError: numbers that are not finite.
    """
    model = results.model
    parameters = dict(zip(model.param_names, np.asarray(results.params, np.float64), strict=True))
    noise = np.array([parameters.get(f"sigma2.{name}", 0.0) for name in NOISES])
    sigma2 = float(noise.sum())
    seasons = model.seasonal_periods - 1 if model.seasonal else 0
    at = np.concatenate([np.arange(1 + int(model.trend)), 2 + np.arange(seasons)])
    mean, covariance = np.zeros(places), np.zeros((places, places))
    mean[at] = results.filter_results.filtered_state[:, -1]
    covariance[np.ix_(at, at)] = results.filter_results.filtered_state_cov[:, :, -1]
    effects = regressors.effects(np.array([parameters[f"beta.{name}"] for name in model.exog_names or ()]))
    mean[0] -= effects @ regressors.mean
    scale = sigma2 or 1.0
    if not all(np.isfinite(part).all() for part in (noise, mean, covariance, effects)):
        raise ModelError("the fit of UnobservedComponents ended with numbers that are not finite")
    return _fit(noise / scale, sigma2, mean, covariance / scale, effects, note)


def _fit(noise: Values, sigma2: float, mean: Values, covariance: Values, effects: Values, note: str) -> Fit:
    return {
        "effects": effects, "noise": noise, "sigma2": sigma2, "started": 1, "errors": -1, "covariance": covariance,
        "mean": mean, "note": note,
    }  # fmt: skip


def states_of(fits: Sequence[Fit]) -> State:
    """The fits of `fit_components` as one state, float64."""
    names = ("noise", "sigma2", "started", "errors", "covariance", "mean")
    columns = effects_of(fits) | {name: np.array([np.atleast_1d(fit[name]) for fit in fits]) for name in names}
    return {f"components.{name}": torch.from_numpy(column.astype(np.float64)) for name, column in columns.items()}
