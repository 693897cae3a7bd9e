"""Seasonal ARIMA by statsmodels' SARIMAX, run by the step of `models.arima`: missing values are never closed.

SARIMAX (Durbin and Koopman, Time Series Analysis by State Space Methods, 2012; Harvey's form) keeps differences of past
values, started diffuse, beside the same ARMA places as `models.arima`, which keeps the past values themselves: its
difference states are a matrix of ones and signs times those, so its filtered mean and covariance at the fit's end are
theirs by a linear map, and from there on both are one filter. A constant becomes an intercept or a drift.

Without a gap the exact diffuse likelihood is that of the differenced series (but for a constant), whose filter has the
ARMA places alone: so orders and parameters are found there, many times faster, and the whole model is filtered once.
With gaps between values its parameters are estimated again with the gaps skipped, for differencing would widen them.

On short series a maximum of the likelihood may lie where roots reach the unit circle; the initial variance has no end
there, AR and MA cancel to the last digits, and forecasts are of any size. So of several candidates those with a root
within 1.01 are dropped, as Hyndman and Khandakar do, and orders that were asked for are refused where one of their AR
roots is on the circle for all that can be told.

Shapes: T time, n places.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from models.arima import SeasonalArima
from models.contract import ModelError, Signature
from models.linear_gaussian import STATSMODELS, Fit, Values, filled, in_units, unit_of
from models.regressors import Regressors, parted

# p, q, P, Q: the four from which Hyndman and Khandakar (J. Stat. Software 27, 2008) search, and one between them.
CANDIDATES = ((0, 0, 0, 0), (1, 0, 1, 0), (0, 1, 0, 1), (1, 1, 0, 1), (2, 2, 1, 1))
TRENDS = {"auto": "auto", "none": "n", "constant": "c"}
ITERATIONS = 100  # of the optimiser
NEAR = 1.01  # modulus of a root, AR or MA, below which a candidate is not chosen (Hyndman and Khandakar)
ON = 1.0001  # modulus of an AR root below which a fit is none

Orders = tuple[int, int, int]


@dataclass(frozen=True)
class SarimaxConfig:
    """What is fixed; what is auto is chosen: differences by statsforecast's tests, all else by AICc."""

    order: str = "auto"  # p,d,q
    seasonal_order: str = "auto"  # P,D,Q
    trend: str = "auto"  # none or constant: an intercept, or of a series that is differenced once a drift

    def __post_init__(self) -> None:
        if self.trend not in TRENDS:
            raise ModelError(f"trend is one of {', '.join(TRENDS)}, not '{self.trend}'.")
        _ = orders_of("order", self.order), orders_of("seasonal_order", self.seasonal_order)


def orders_of(name: str, text: str) -> Orders | None:
    """The three numbers of `text`; None for auto."""
    if text == "auto":
        return None
    numbers = text.replace(" ", "").split(",")
    if len(numbers) != 3 or not all(number.isdecimal() for number in numbers):
        raise ModelError(f"{name} is auto or three whole numbers such as 1,1,1, not '{text}'.")
    return int(numbers[0]), int(numbers[1]), int(numbers[2])


class Sarimax(SeasonalArima):
    """Seasonal ARIMA by statsmodels' SARIMAX, one fit a series; gaps are skipped by the fit and by the filter."""

    library = "statsmodels"

    def __init__(self, signature: Signature, config: SarimaxConfig = SarimaxConfig()) -> None:
        super().__init__(signature)
        self.config = config

    def fitting(self) -> Callable[[Values], Fit]:
        import statsmodels.tsa.statespace.sarimax  # noqa: F401  before `fit_each` hushes the warnings it switches on

        return partial(fit_sarimax, season=self.signature.season, config=self.config)


def fit_sarimax(values: Values, season: int, config: SarimaxConfig) -> Fit:
    """SARIMAX on one series: its polynomials, and the filter's state after the last value.

    Raises:
        ModelError: too few values, none at all, or a constant after two differences.
    """
    y, covariates = parted(values)
    known = int(np.isfinite(y).sum())
    if known < 3:
        raise ModelError(f"{known} values are too few for an ARIMA model")
    notes = []
    if known < len(y):
        notes.append(f"{len(y) - known} of {len(y)} values are missing: skipped, and closed to choose the orders")
    if season > 1 and len(y) <= season:
        notes.append(f"fitted without a season: {len(y)} values are no more than one season of {season}")
        season = 1
    if np.nanmin(y) == np.nanmax(y):
        notes.append("constant: a mean with no spread")
        return constant(float(np.nanmin(y)), len(y), covariates.shape[1]) | {"note": "; ".join(notes)}
    unit = unit_of(y, *STATSMODELS)
    results, regressors = estimate(y / unit, season, config, covariates)
    if regressors.note:
        notes.append(regressors.note)
    if not getattr(results, "mle_retvals", {"converged": True})["converged"]:
        notes.append(f"the optimiser stopped after {ITERATIONS} iterations")
    return in_units(converted(results, regressors), unit) | {"note": "; ".join(notes)}


def constant(value: float, length: int, covariates: int) -> Fit:
    nothing = np.zeros(0)
    return {
        "phi": nothing, "theta": nothing, "delta": nothing, "mean": np.zeros(1), "covariance": np.zeros((1, 1)),
        "time": length, "started": 1, "errors": -1, "sigma2": 0.0, "intercept": value, "drift": 0.0,
        "effects": np.zeros(covariates),
    }  # fmt: skip


def estimate(y: Values, season: int, config: SarimaxConfig, covariates: Values) -> tuple[Any, Regressors]:
    """statsmodels' results for a series (T,) with NaN where missing and its covariates (T, F), by the whole model.

    Raises:
        ModelError: no model can be fitted to so few values, a constant after two differences, or an AR root on the
            unit circle.
    """
    from statsmodels.tsa.statespace.sarimax import SARIMAX

    complete, missing = filled(y)[0], int(np.isnan(y).sum())
    past = len(complete)
    order, seasonal = orders_of("order", config.order), orders_of("seasonal_order", config.seasonal_order)
    if season == 1:
        seasonal = (0, 0, 0)
    differences = _differences(_unexplained(complete, covariates[:past]), season, order, seasonal)
    if config.trend == "constant" and sum(differences) > 1:
        raise ModelError(
            f"a constant after {sum(differences)} differences is a trend that bends without end; take trend=none"
        )
    trend = _trend(config, differences)
    regressors = Regressors(covariates, _difference_states(*differences, season)[0], constant=trend == "c")
    exog = regressors.values
    told = None if exog is None else exog[:past]
    fits: list[Any] = []
    for p, q, seasonal_p, seasonal_q in _candidates(order, seasonal):
        orders = (p, differences[0], q), (seasonal_p, differences[1], seasonal_q, season if season > 1 else 0)
        fits.append(_differenced(complete, told, *orders, trend))
    fits = [fit for fit in fits if fit is not None]
    # Where none is left all are, and what was asked for is refused below.
    best = min([fit for fit in fits if _least_root(fit) >= NEAR] or fits, key=lambda fit: fit.aicc, default=None)
    if best is None:
        raise ModelError(f"{len(y)} values are too few for an ARIMA model of {_spelt(order, seasonal, season)}")
    if config.trend == "auto" and sum(differences) == 1:
        without = _differenced(complete, told, best.model.order, best.model.seasonal_order, "n")
        if without is not None and without.aicc < best.aicc and _least_root(without) >= NEAR:
            best = without
    model = SARIMAX(
        y, exog=exog, order=best.model.order, seasonal_order=best.model.seasonal_order, trend=best.model.trend,
        use_exact_diffuse=True,
    )  # fmt: skip
    if not np.isnan(y[:past]).any():
        results = model.filter(best.params, cov_type="none")
        results.mle_retvals = best.mle_retvals
    else:
        results = model.fit(disp=0, maxiter=ITERATIONS, cov_type="none")
    if _least_root(results, moving_average=False) < ON:
        raise ModelError(
            f"an AR root of order {best.model.order}, seasonal order {best.model.seasonal_order[:3]} is on the unit "
            "circle, where forecasts are of any size; take more differences or fewer AR terms"
        )
    if results.filter_results.nobs_diffuse >= len(y):
        raise ModelError(f"{len(y)} values with {missing} missing are too few to start its differences")
    return results, regressors


def _least_root(fit: Any, moving_average: bool = True) -> float:
    """The least modulus of the roots of the AR, and of the MA, polynomial; infinite where there is none."""
    roots = [fit.arroots, *([fit.maroots] if moving_average else [])]
    return float(np.abs(np.concatenate(roots)).min(initial=np.inf))


def _unexplained(y: Values, covariates: Values) -> Values:
    """What a plain regression on the covariates leaves of the series, from which its differences are chosen."""
    regressors = Regressors(covariates, np.ones(1), constant=True)
    if regressors.values is None:
        return y
    basis = np.column_stack([np.ones(len(y)), regressors.values])
    return np.asarray(y - regressors.values @ np.linalg.lstsq(basis, y)[0][1:])


def _spelt(order: Orders | None, seasonal: Orders | None, season: int) -> str:
    return f"order {order or 'auto'}, seasonal order {seasonal or 'auto'} and season {season}"


def _trend(config: SarimaxConfig, differences: tuple[int, int]) -> str:
    return ("c" if sum(differences) < 2 else "n") if config.trend == "auto" else TRENDS[config.trend]


def _differences(y: Values, season: int, order: Orders | None, seasonal: Orders | None) -> tuple[int, int]:
    """d and D: as asked, or as statsforecast's AutoARIMA chooses them."""
    from statsforecast.arima import ndiffs, nsdiffs

    of_seasons = seasonal[1] if seasonal else int(nsdiffs(y, period=season))
    rest = y
    for _ in range(of_seasons):
        rest = rest[season:] - rest[:-season]
    of_steps = order[1] if order else int(ndiffs(rest)) if len(rest) > 3 else 0
    return of_steps, of_seasons


def _candidates(order: Orders | None, seasonal: Orders | None) -> list[tuple[int, int, int, int]]:
    """p, q, P, Q of the models to be compared, each once."""
    chosen = []
    for p, q, seasonal_p, seasonal_q in CANDIDATES:
        first = (order[0], order[2]) if order else (p, q)
        second = (seasonal[0], seasonal[2]) if seasonal else (seasonal_p, seasonal_q)
        chosen.append((*first, *second))
    return list(dict.fromkeys(chosen))


def _differenced(y: Values, exog: Values | None, order: Orders, seasonal_order: tuple[int, ...], trend: str) -> Any:
    """The fit to the differenced series; None where it cannot be made, or has too few values for an AICc."""
    from statsmodels.tsa.statespace.sarimax import SARIMAX

    try:
        model = SARIMAX(y, exog=exog, order=order, seasonal_order=seasonal_order, trend=trend, simple_differencing=True)
        fit = model.fit(disp=0, maxiter=ITERATIONS, cov_type="none")
    except (ValueError, IndexError, np.linalg.LinAlgError):  # what statsmodels raises of too few values
        return None
    return fit if fit.nobs_effective > fit.df_model + 1 and np.isfinite([fit.aicc, *fit.params]).all() else None


def converted(results: Any, regressors: Regressors) -> Fit:
    """What `models.arima.states_of` takes, from the library's filter after the last value.

    The library's covariates have the mean 0, ours have not: what that adds is a part of the intercept.

    Raises:
        ModelError: numbers that are not finite.
    """
    model, length = results.model, int(results.nobs)
    parameters = dict(zip(model.param_names, np.asarray(results.params, np.float64), strict=True))
    phi = -np.asarray(results.polynomial_reduced_ar, np.float64)[1:]
    theta = np.asarray(results.polynomial_reduced_ma, np.float64)[1:]
    places = max(len(phi), len(theta) + 1)
    d, big_d, season = model.k_diff, model.k_seasonal_diff, model.seasonal_periods
    differences, of_states = _difference_states(d, big_d, season)
    lags = len(differences) - 1
    # A constant c in the first ARMA place moves all of them by (I - T)^-1 (c, 0, ...), T their own transition.
    transition = np.eye(places, k=1)
    transition[: len(phi), 0] = phi
    impulse = np.eye(places)[0] * parameters.get("intercept", 0.0)
    moved = np.linalg.solve(np.eye(places) - transition, impulse)
    drift = moved[0] / (season if big_d else 1) if lags else 0.0
    intercept = 0.0 if lags else moved[0]
    back = np.zeros((places + lags, places + lags))  # from the library's places, differences first, to ours
    back[:places, lags:] = np.eye(places)
    back[places:, :lags] = np.linalg.inv(of_states)
    filtered, covariance = results.filter_results.filtered_state[:, -1], results.filter_results.filtered_state_cov
    effects = regressors.effects(np.array([parameters[name] for name in model.exog_names or ()]))
    behind = length - np.arange(1, lags + 1)
    sigma2 = parameters["sigma2"]
    result: Fit = {
        "phi": phi,
        "theta": theta,
        "delta": -differences[1:],
        "mean": back @ filtered - np.concatenate([moved, intercept + drift * behind]),
        "covariance": back @ covariance[:, :, -1] @ back.T / sigma2,
        "time": length,
        "started": 1,
        "errors": -1,
        "sigma2": sigma2,
        "intercept": intercept - effects @ regressors.mean,
        "effects": effects,
        "drift": drift,
    }
    numbers = ("phi", "theta", "mean", "covariance", "sigma2", "intercept", "drift", "effects")
    if not all(np.isfinite(result[name]).all() for name in numbers):
        raise ModelError("the fit of SARIMAX ended with numbers that are not finite")
    return result


def _difference_states(d: int, big_d: int, season: int) -> tuple[Values, Values]:
    """(1 - L)^d (1 - L^s)^D as coefficients (1 + nd,), and the library's difference states as rows over y_{t-1} ...

    The first d are (1 - L)^k y_{t-1}; then of each seasonal difference the last s values of what it differences.
    """
    once, seasonal = np.array([1.0, -1.0]), np.zeros(season + 1)
    seasonal[0] = 1.0
    seasonal[-1] -= 1.0
    rows, polynomial = [], np.ones(1)
    for _ in range(d):
        rows.append(polynomial)
        polynomial = np.convolve(polynomial, once)
    for _ in range(big_d):
        rows += [np.concatenate([np.zeros(lag), polynomial]) for lag in range(season)]
        polynomial = np.convolve(polynomial, seasonal)
    width = len(polynomial) - 1
    return polynomial, np.array([np.pad(row, (0, width - len(row))) for row in rows]).reshape(width, width)
