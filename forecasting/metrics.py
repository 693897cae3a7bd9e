"""How good a forecast was: accuracy measures as plain functions from arrays to numbers.

An actual that is NaN was never observed, so it is left out and counts nowhere. A *forecast* that is NaN where an
actual is known is a failure of the model: it makes the whole measure NaN instead of quietly disappearing. A measure
with nothing to measure is NaN too, and one of a forecast that ran off to infinity is infinite or NaN. Nothing is
broadcast between actuals and forecasts: their shapes must be equal.

The file knows numpy only; statsmodels and scipy are imported by the one test that needs them.

Shapes: N cases, T time steps, H forecast steps, Q quantiles, K classes; `...` is any shape, such as (B, H).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SMALLEST_PROBABILITY = 1e-15  # a class ruled out wrongly costs log_loss 34.5 nats, not infinity


@dataclass(frozen=True)
class MASEResult:
    value: float
    n_rows: int  # rows of y with a scale
    n_excluded: int  # rows whose scale was NaN or zero, so that their errors are not in `value`


@dataclass(frozen=True)
class DMResult:
    statistic: float  # negative: the model loses less than the reference
    p_value: float  # two-sided
    n: int  # pairs of losses compared


# Point forecasts


def mae(y: ArrayLike, forecast: ArrayLike) -> float:
    """Mean absolute error, in the unit of `y`. y, forecast: (...)."""
    return _mean(np.abs(_errors(y, forecast)))


def mse(y: ArrayLike, forecast: ArrayLike) -> float:
    """Mean squared error, in the squared unit of `y`. y, forecast: (...)."""
    with np.errstate(over="ignore"):
        return _mean(np.square(_errors(y, forecast)))


def rmse(y: ArrayLike, forecast: ArrayLike) -> float:
    """Root of the mean squared error, in the unit of `y`. y, forecast: (...)."""
    return float(np.sqrt(mse(y, forecast)))


def mape(y: ArrayLike, forecast: ArrayLike) -> float:
    """Mean absolute error in percent of the actual. y, forecast: (...).

    An actual of exactly 0 has no percentage and is left out, like an unknown one.
    """
    actual, predicted = _known(y, forecast)
    some = actual != 0
    return _mean(100 * np.abs((actual - predicted)[some] / actual[some]))


def smape(y: ArrayLike, forecast: ArrayLike) -> float:
    """Mean of 200 |y - f| / (|y| + |f|), in percent from 0 to 200; 0/0 is a perfect forecast. y, forecast: (...)."""
    actual, predicted = _known(y, forecast)
    size = np.abs(actual) + np.abs(predicted)
    with np.errstate(invalid="ignore"):  # inf / inf
        return _mean(200 * np.abs(actual - predicted) / np.where(size == 0, 1, size))


def seasonal_scale(history: ArrayLike, season: int) -> float:
    """What MASE divides by: the in-sample mean of |y_t - y_(t-season)|, as in the M4 competition.

    history: (T,), evenly spaced up to the cut-off, gaps as NaN; a pair with a NaN is ignored.

    Returns NaN when no pair is known, and when every pair is equal (a constant series): no error can be measured in
    units of zero. `mase` excludes such a series and counts it.
    """
    if season < 1:
        raise ValueError(f"season is {season} time steps, it must be at least 1.")
    values = np.asarray(history, dtype=np.float64)
    if values.ndim != 1:
        raise ValueError(f"history has shape {values.shape}, expected one series (T,).")
    changes = np.abs(values[season:] - values[:-season])
    scale = _mean(changes[~np.isnan(changes)])
    return scale if scale > 0 else np.nan


def mase(y: ArrayLike, forecast: ArrayLike, scale: ArrayLike) -> MASEResult:
    """Mean of |y - f| / scale: below 1 is better than the seasonal naive forecast was in-sample.

    Args:
        y, forecast: (..., H), for example (B, H).
        scale: (...), the `seasonal_scale` of each row. Rows whose scale is NaN or 0 are excluded and counted.

    Every known value weighs the same; where all rows know equally many, that is M4's mean over the series.
    """
    actual, predicted, scales = (np.asarray(values, dtype=np.float64) for values in (y, forecast, scale))
    if scales.shape != actual.shape[:-1]:
        raise ValueError(f"scale has shape {scales.shape}, expected one a row of y {actual.shape}.")
    usable = (scales > 0) & (scales < np.inf)  # NaN is neither
    actual, predicted, divisor = _known(
        np.where(usable[..., None], actual, np.nan),
        predicted,
        np.broadcast_to(scales[..., None], actual.shape),
    )
    return MASEResult(_mean(np.abs(actual - predicted) / divisor), int(usable.sum()), int((~usable).sum()))


def skill(loss_model: float, loss_reference: float) -> float:
    """1 - model / reference: the part of the reference's loss that the model saves; negative when it is worse.

    NaN when the reference lost nothing, since no part of zero can be saved.
    """
    if loss_reference == 0:
        return np.nan
    return float(1 - loss_model / loss_reference)


# Quantile forecasts


def quantile_column(level: float) -> str:
    """How frames name the quantile of this level."""
    return f"q{level:g}"


def mean_of_quantiles(quantiles: ArrayLike, levels: ArrayLike) -> Floats:
    """The mean of a forecast known by its quantiles: (..., Q), (Q,) -> (...).

    The quantile function is taken as linear between the levels and flat outside them, and integrated. That is exact
    for a symmetric distribution at symmetric levels (it gives the centre); a skewed one has a tail beyond the
    outermost level that is not seen, so its mean is pulled towards the median. The weights sum to 1, and a single
    level is its own mean.
    """
    grid, values = _levels(levels), np.asarray(quantiles, dtype=np.float64)
    _check_last_axis(values, grid)
    edges = np.concatenate([[0.0], (grid[1:] + grid[:-1]) / 2, [1.0]])  # each quantile speaks for half-way to the next
    return np.asarray(values @ np.diff(edges))


def pinball_losses(y: ArrayLike, quantiles: ArrayLike, levels: ArrayLike) -> Floats:
    """max(q e, (q - 1) e) with e = y - quantile, averaged over the levels; NaN where y is.

    y: (...); quantiles: (..., Q); levels: (Q,). Returns (...): the losses that `diebold_mariano` compares.
    """
    grid, values, actual = _levels(levels), np.asarray(quantiles, np.float64), np.asarray(y, np.float64)
    _check_last_axis(values, grid)
    if values.shape[:-1] != actual.shape:
        raise ValueError(f"quantiles have shape {values.shape}, expected {(*actual.shape, grid.size)}.")
    error = actual[..., None] - values
    return np.asarray(np.maximum(grid * error, (grid - 1) * error).mean(axis=-1))


def pinball(y: ArrayLike, quantiles: ArrayLike, levels: ArrayLike) -> float:
    """Mean pinball loss over actuals and levels, in the unit of `y`; at the level 0.5 it is half the MAE.

    y: (...); quantiles: (..., Q); levels: (Q,).
    """
    return _mean(pinball_losses(y, quantiles, levels)[~np.isnan(np.asarray(y, np.float64))])


def coverage(y: ArrayLike, low: ArrayLike, high: ArrayLike) -> float:
    """The fraction of actuals inside [low, high], bounds included. y, low, high: (...).

    `coverage_80` is this between the quantiles at 0.1 and 0.9, and should be 0.8.
    """
    actual, lower, upper = _known(y, low, high)
    if np.isnan(lower).any() or np.isnan(upper).any():
        return np.nan
    return _mean(((lower <= actual) & (actual <= upper)).astype(np.float64))


# Classification


def accuracy(labels: ArrayLike, predicted: ArrayLike) -> float:
    """The fraction predicted rightly. labels, predicted: (N,), class indices."""
    truth, guess = _classes(labels, predicted)
    return _mean((truth == guess).astype(np.float64))


def macro_f1(labels: ArrayLike, predicted: ArrayLike, n_classes: int) -> float:
    """The mean over classes of 2 TP / (2 TP + FP + FN). labels, predicted: (N,), indices below `n_classes`.

    A class that is neither a label nor ever predicted says nothing and is left out; one that is predicted without
    being there, or there without being predicted, scores 0.
    """
    truth, guess = _classes(labels, predicted, n_classes)
    hits = np.bincount(truth[truth == guess], minlength=n_classes)
    seen = np.bincount(truth, minlength=n_classes) + np.bincount(guess, minlength=n_classes)  # 2 TP + FP + FN
    return _mean(2 * hits[seen > 0] / seen[seen > 0])


def log_loss(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """Mean of -ln p(label), in nats. labels: (N,), class indices; probabilities: (N, K), rows that sum to 1."""
    chances = np.asarray(probabilities, dtype=np.float64)
    if chances.ndim != 2:
        raise ValueError(f"probabilities have shape {chances.shape}, expected (N, K).")
    truth, rows = _classes(labels, np.arange(len(chances)))
    _check_range(truth, chances.shape[1], "labels")
    return _mean(-np.log(np.clip(chances[rows, truth], SMALLEST_PROBABILITY, 1)))


def earliness(probabilities: ArrayLike, threshold: float, dwell: int) -> float:
    """The fraction of a sequence that was seen when its class was first decided; smaller is earlier.

    Args:
        probabilities: (T, K), the class probabilities after each frame.
        threshold: the probability that the most probable class must reach.
        dwell: for how many frames in a row the same class must reach it.

    Returns:
        (t + 1) / T, t being the last frame of the first such run: above 0, and 1.0 when the decision falls only at
        the end, with or without such a run. Whether the decision was right is for `accuracy` to say. A NaN ends a run.
    """
    chances = np.asarray(probabilities, dtype=np.float64)
    if chances.ndim != 2 or 0 in chances.shape:
        raise ValueError(f"probabilities have shape {chances.shape}, expected (T, K) with a frame and a class.")
    if dwell < 1:
        raise ValueError(f"dwell is {dwell} frames, it must be at least 1.")
    run, previous = 0, -1
    for t, frame in enumerate(chances):
        best = int(frame.argmax())  # of a NaN, where there is one
        if not frame[best] >= threshold:
            run = 0
            continue
        run = run + 1 if run and best == previous else 1
        previous = best
        if run == dwell:
            return (t + 1) / len(chances)
    return 1.0


# Is the difference more than luck?


def diebold_mariano(loss_model: ArrayLike, loss_reference: ArrayLike, horizon: int) -> DMResult:
    """Test whether two forecasts lose the same on average (Diebold and Mariano 1995, two-sided).

    Args:
        loss_model, loss_reference: (N,), the losses of the same cut-offs in order of time, one a cut-off (average over
            the series and steps of a cut-off first). A pair with a NaN is dropped.
        horizon: in cut-offs, H >= 1. Errors of forecasts H steps ahead overlap, so their differences may be
            correlated up to lag H - 1.

    Returns:
        A statistic below 0 when the model is better. Statistic and p-value are NaN when nothing can be tested: no
        more than H pairs (so fewer than 2), differences that do not vary (all zero, for one), or an infinite loss.

    The variance of the mean takes every autocovariance up to lag H - 1 in full, as the original test does. Unlike
    Bartlett's weights, which shrink them, it can come out non-positive; then Bartlett's are used (Harvey, Leybourne
    and Whitehouse 2017). With the correction of Harvey, Leybourne and Newbold (1997) and Student's t with N - 1
    degrees of freedom. For differences that are a moving average of H terms, a test at 5 % was measured to reject 6 to
    8 % at N >= 16 H (Bartlett's weights alone: 12 to 14 %), but 12 to 15 % at N = 5 H: take few cut-offs with care.
    """
    if horizon < 1:
        raise ValueError(f"horizon is {horizon} cut-offs, it must be at least 1.")
    model, reference = (np.asarray(loss, dtype=np.float64) for loss in (loss_model, loss_reference))
    if model.ndim != 1 or model.shape != reference.shape:
        raise ValueError(f"losses have shapes {model.shape} and {reference.shape}, expected (N,) twice.")
    known = ~(np.isnan(model) | np.isnan(reference))
    with np.errstate(invalid="ignore"):  # inf - inf
        difference = model[known] - reference[known]
    n = difference.size
    if n <= horizon or not np.isfinite(difference).all() or np.ptp(difference) == 0:
        return DMResult(np.nan, np.nan, n)

    from scipy.stats import t as student
    from statsmodels.regression.linear_model import OLS

    mean_only = OLS(difference, np.ones((n, 1)))
    for kernel in ("uniform", "bartlett"):
        lags = {"maxlags": horizon - 1, "kernel": kernel, "use_correction": False}
        variance = float(mean_only.fit(cov_type="HAC", cov_kwds=lags).cov_params()[0, 0])
        if variance > 0:
            break
    else:
        return DMResult(np.nan, np.nan, n)
    correction = (n + 1 - 2 * horizon + horizon * (horizon - 1) / n) / n
    statistic = float(difference.mean() / np.sqrt(variance) * np.sqrt(correction))
    return DMResult(statistic, float(2 * student.sf(abs(statistic), n - 1)), n)


# What they share


def _mean(values: Floats) -> float:
    return float(values.mean()) if values.size else np.nan


def _known(y: ArrayLike, *others: ArrayLike) -> list[Floats]:
    """y and what was said about it, flat, where y is known."""
    actual = np.asarray(y, dtype=np.float64)
    arrays = [np.asarray(other, dtype=np.float64) for other in others]
    for array in arrays:
        if array.shape != actual.shape:
            raise ValueError(f"y has shape {actual.shape}, its forecast {array.shape}; they must be equal.")
    known = ~np.isnan(actual)
    return [actual[known], *(array[known] for array in arrays)]


def _errors(y: ArrayLike, forecast: ArrayLike) -> Floats:
    actual, predicted = _known(y, forecast)
    return actual - predicted


def _levels(levels: ArrayLike) -> Floats:
    grid = np.asarray(levels, dtype=np.float64)
    if grid.ndim != 1 or not grid.size or not (np.diff(grid, prepend=0, append=1) > 0).all():
        raise ValueError(f"levels are {grid.tolist()}, expected increasing numbers between 0 and 1.")
    return grid


def _check_last_axis(quantiles: Floats, levels: Floats) -> None:
    if quantiles.ndim < 1 or quantiles.shape[-1] != levels.size:
        raise ValueError(f"quantiles have shape {quantiles.shape}, expected {levels.size} levels on the last axis.")


def _classes(labels: ArrayLike, predicted: ArrayLike, n_classes: int | None = None) -> tuple[Ints, Ints]:
    """Labels and predictions as indices, without the cases whose label is NaN."""
    truth, guess = _known(labels, predicted)
    if np.isnan(guess).any():
        raise ValueError(f"predicted is NaN in {np.isnan(guess).sum()} of {guess.size} cases; a class is an index.")
    result = truth.astype(np.int64), guess.astype(np.int64)
    if n_classes is not None:
        _check_range(result[0], n_classes, "labels")
        _check_range(result[1], n_classes, "predicted")
    return result


def _check_range(indices: Ints, n_classes: int, name: str) -> None:
    if (indices < 0).any() or (indices >= n_classes).any():
        raise ValueError(
            f"{name} run from {indices.min()} to {indices.max()}, expected class indices from 0 to {n_classes - 1}."
        )
