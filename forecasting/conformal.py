"""Interval calibration: quantiles widened or narrowed until they cover as often as they say, once and online.

A model's quantile at level q and step h is moved to m + f (quantile - m), m being the forecast's median, which stays.
`calibrate` finds f from forecasts whose outcomes are known and that the model was not fitted to: split conformal
prediction (Vovk et al., Algorithmic Learning in a Random World, 2005; Lei et al., JASA 113, 1094-1111, 2018) on the
errors in units of each forecast's own distance from its median to that quantile, as conformalised quantile regression
does with the interval's width (Romano et al., NeurIPS 2019; Sesia and Candes, Stat 9, e261, 2020). A score has no unit,
so those of all series count together. `OnlineCalibration` goes on from there as outcomes arrive: adaptive conformal
inference (Gibbs and Candes, NeurIPS 2021) in the form that tracks the quantile itself (Angelopoulos et al., Conformal
PID Control, NeurIPS 2023).

The file needs numpy alone, for it runs where bundles run. Shapes: N forecasts, B series, H horizon, Q quantiles.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[Any]

# A step's own factor counts as much as that of all steps together where it rests on so many scores.
SHRINK_SCORES = 100
LARGEST_LOG_FACTOR = 10.0  # online: a factor of 22,000; what is still not covered then is not a matter of width
ONLINE = ("rate", "log_factor", "issued")  # the arrays of `OnlineCalibration.state`


class CalibrationError(ValueError):
    """Calibration that does not fit the forecasts, or a setting out of range; the message says what was expected."""


@dataclass(frozen=True)
class Calibration:
    """Factors (H, Q) on each quantile's distance from the median; `scores` is how many forecast values they rest on."""

    levels: tuple[float, ...]
    factors: Array
    scores: int
    on: str = "validation"  # the part of the data whose outcomes were used

    def apply(self, quantiles: ArrayLike) -> Array:
        """Calibrated quantiles (..., H, Q); the median stays, and none cross.

        Raises:
            CalibrationError: another horizon or other levels than the factors'.
        """
        values = np.asarray(quantiles)
        if values.shape[-2:] != self.factors.shape:
            raise CalibrationError(
                f"quantiles have shape {values.shape}, the calibration is of {self.factors.shape[0]} steps and "
                f"{self.factors.shape[1]} levels."
            )
        return stretched(values, self.levels, self.factors)

    def to_json(self) -> dict[str, Any]:
        return {
            "method": "split conformal, distance of each quantile from the median times a factor",
            "on": self.on,
            "scores": self.scores,
            "levels": list(self.levels),
            "factors": self.factors.tolist(),
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Calibration:
        """
        Raises:
            CalibrationError: a field is missing, or the factors are not one a step and level, each 0 or more.
        """
        try:
            levels, on = tuple(float(level) for level in fields["levels"]), str(fields["on"])
            factors, scores = np.array(fields["factors"], np.float64), int(fields["scores"])
        except (KeyError, TypeError, ValueError) as error:
            raise CalibrationError(f"the calibration is not readable ({error}).") from error
        if factors.ndim != 2 or factors.shape[1] != len(levels) or not (factors >= 0).all():
            raise CalibrationError(
                f"the calibration's factors have shape {factors.shape}; expected a row a step of {len(levels)} "
                "numbers, each 0 or more."
            )
        return cls(levels, factors, scores, on)


def calibrate(actual: ArrayLike, quantiles: ArrayLike, levels: Sequence[float], on: str = "validation") -> Calibration:
    """Factors with which these forecasts would have covered as often as their levels say.

    Args:
        actual: (N, H) outcomes, NaN where unknown.
        quantiles: (N, H, Q) forecasts of them; of any number of series and cut-offs.
        levels: (Q,), rising.

    The quantiles at q and 1 - q share a factor, so that it is intervals that are calibrated and the model's own skew
    stays: outcomes near each other in time err to the same side, and a side learned from them would be of that time.
    The factor is the finite-sample conformal quantile of the scores (the ceil((n + 1) p)-th smallest, p = |1 - 2 q| the
    interval's coverage), so that for exchangeable errors the interval covers with probability p at least. Below
    n = p / (1 - p) scores no finite factor does that; the largest score is taken. The scores of step h give its factor,
    drawn towards that of all steps together, which counts as `SHRINK_SCORES` scores. An outcome on a side where the
    quantile is the median has no score, for no width is there to be multiplied; a level without scores keeps its
    quantile, as does one without its opposite.

    Outcomes of one period share its shocks, however many series there are, and no count of scores makes up for that:
    where the period to come is harder or easier than the one learned from, coverage is off by the difference.

    Raises:
        CalibrationError: the shapes do not fit together.
    """
    y, values = np.asarray(actual, np.float64), np.asarray(quantiles, np.float64)
    if y.ndim != 2 or values.shape != (*y.shape, len(levels)):
        raise CalibrationError(
            f"outcomes have shape {y.shape} and quantiles {values.shape}, expected (N, H) and (N, H, {len(levels)})."
        )
    middle = median_of(values, levels)
    grid = np.asarray(levels)
    opposite = np.array([int(np.abs(grid - (1 - level)).argmin()) for level in grid])  # (Q,)
    paired = np.isclose(grid[opposite], 1 - grid) & (opposite != np.arange(len(grid)))
    error = y[..., None] - middle
    # The quantile of the pair that lies on the outcome's side.
    own_side = (error > 0) == (grid > 0.5)
    distance = np.where(own_side, values, values[..., opposite]) - middle
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        scores = np.where(error == 0, 0.0, error / distance)
    scores[~np.isfinite(scores) | ~paired] = np.nan
    inside = np.abs(1 - 2 * grid)
    pooled, _ = _conformal_quantiles(scores.reshape(-1, len(levels)), inside)
    own, count = _conformal_quantiles(scores, inside)
    weight = count / (count + SHRINK_SCORES)
    factors = np.where(count > 0, weight * own + (1 - weight) * pooled, pooled)
    return Calibration(tuple(levels), factors, int(np.isfinite(y).sum()), on)


def scores_needed(levels: Sequence[float]) -> int:
    """From how many scores on the outermost level has a finite factor with which it covers."""
    inside = max(abs(1 - 2 * level) for level in levels)
    return max(1, int(np.ceil(np.round(inside / (1 - inside), 9))))


def _conformal_quantiles(scores: Array, coverage: Array) -> tuple[Array, Array]:
    """Of scores (n, ..., Q) the factors (..., Q), at least 0 and 1 without scores, and how many scores each has."""
    ordered = np.sort(scores, axis=0)  # NaN last
    count = np.isfinite(scores).sum(0)
    # The rounding guards against (n + 1) p that is a whole number but for its last bit.
    rank = np.clip(np.ceil(np.round((count + 1) * coverage, 9)).astype(int), 1, np.maximum(count, 1))
    if not len(scores):
        return np.ones(scores.shape[1:]), count
    found = np.take_along_axis(ordered, rank[None] - 1, 0)[0]
    return np.where(count > 0, np.maximum(found, 0.0), 1.0), count


def median_of(quantiles: Array, levels: Sequence[float]) -> Array:
    """(..., Q) -> (..., 1): the quantile at 0.5, linear between the levels and the nearest outside them."""
    right = bisect_left(levels, 0.5)
    if right == len(levels) or right == 0 or levels[right] == 0.5:
        nearest = min(right, len(levels) - 1)
        return quantiles[..., nearest : nearest + 1]
    share = (0.5 - levels[right - 1]) / (levels[right] - levels[right - 1])
    low, high = quantiles[..., right - 1 : right], quantiles[..., right : right + 1]
    return np.asarray(low + quantiles.dtype.type(share) * (high - low))


def stretched(quantiles: Array, levels: Sequence[float], factors: Array) -> Array:
    """Quantiles (..., Q) with each distance from the median times its factor; outward none falls behind another."""
    middle = median_of(quantiles, levels)
    result = middle + factors.astype(quantiles.dtype, copy=False) * (quantiles - middle)
    right = bisect_right(levels, 0.5)
    left = bisect_left(levels, 0.5)
    result[..., left:right] = quantiles[..., left:right]
    upper, lower = result[..., right:], result[..., left - 1 :: -1] if left else result[..., :0]
    np.maximum.accumulate(np.maximum(upper, middle, out=upper), axis=-1, out=upper)
    np.minimum.accumulate(np.minimum(lower, middle, out=lower), axis=-1, out=lower)
    return np.asarray(result)


class OnlineCalibration:
    """Factors that follow the outcomes of a stream, per series, step and level.

    After every outcome, for each step h and level with the tail a = min(q, 1 - q): log factor += rate (missed - a),
    where `missed` says whether the outcome lay beyond the quantile that was issued h steps before. Summed up, the share
    of misses among T outcomes is a + (change of the log factor) / (rate T) whatever the data are, so it tends to a as
    long as the factor stays bounded. A missing outcome, or a quantile that equals its median, changes nothing.

    The state is three flat arrays, and `issued` is the large one: B H^2 Q numbers, for every step is judged when its
    outcome comes.
    """

    def __init__(
        self, series: int, horizon: int, levels: Sequence[float], rate: float, state: Mapping[str, Array] | None = None
    ) -> None:
        """
        Args:
            rate: how far one outcome moves a factor: after a miss at 0.9 by rate * 0.9, as a share of itself; 0.02 to
                0.1 is usual.
            state: what `state` gave, to go on from.

        Raises:
            CalibrationError: a rate that is not above 0 and below 1, or a state of another shape.
        """
        if not 0 < rate < 1:
            raise CalibrationError(f"the rate of adaptation is above 0 and below 1, got {rate}.")
        self.levels, self.rate = tuple(levels), float(rate)
        shape = (series, horizon, len(self.levels))
        self._tail = np.minimum(self.levels, 1 - np.asarray(self.levels))
        self._upper = np.asarray(self.levels) > 0.5
        self._steps = np.arange(horizon)
        self.log_factor: Array = np.zeros(shape)
        # (B, age, H, Q): the forecasts of the last H steps as they were issued, the newest first.
        self.issued: Array = np.full((series, horizon, *shape[1:]), np.nan, np.float32)
        if state is not None:
            for name in ("log_factor", "issued"):
                own, given = getattr(self, name), state[name]
                if given.shape != own.shape:
                    raise CalibrationError(
                        f"the state's {name} has shape {given.shape}, expected {own.shape}: series, steps and levels."
                    )
                setattr(self, name, given.astype(own.dtype))

    @property
    def state(self) -> dict[str, Array]:
        """The arrays of `ONLINE`."""
        return {"rate": np.array(self.rate), "log_factor": self.log_factor, "issued": self.issued}

    @property
    def current(self) -> Array:
        """(B, H, Q) the forecasts issued last, NaN before the first."""
        return self.issued[:, 0]

    def judge(self, rows: Array, actual: ArrayLike) -> None:
        """Move the factors of some series by the outcome (b,) of each, NaN where it is missing."""
        y = np.asarray(actual, np.float64)[:, None, None]
        said = self.issued[rows[:, None], self._steps, self._steps].astype(np.float64)  # (b, H, Q): step h, of h ago
        middle = median_of(said, self.levels)
        missed = np.where(self._upper, y > said, y < said)
        counts = np.isfinite(y) & np.isfinite(said) & (said != middle)
        moved = self.log_factor[rows] + np.where(counts, self.rate * (missed - self._tail), 0.0)
        self.log_factor[rows] = np.clip(moved, -LARGEST_LOG_FACTOR, LARGEST_LOG_FACTOR)

    def issue(self, rows: Array, quantiles: Array) -> Array:
        """Take the next forecasts (b, H, Q) of some series, and return them as they are to be issued."""
        said = stretched(np.asarray(quantiles), self.levels, np.exp(self.log_factor[rows]))
        self.issued[rows, 1:] = self.issued[rows, :-1]
        self.issued[rows, 0] = said
        return said


def joined(first: Mapping[str, Array], second: Mapping[str, Array]) -> dict[str, Array]:
    """The state of two groups of series as one; the rate is the first's."""
    return {name: np.concatenate([first[name], second[name]]) if first[name].ndim else first[name] for name in ONLINE}


def chosen(state: Mapping[str, Array], rows: Sequence[int]) -> dict[str, Array]:
    """The state of some of the series."""
    return {name: state[name][list(rows)] if state[name].ndim else state[name] for name in ONLINE}
