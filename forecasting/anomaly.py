"""How unusual a step was, from a look inside the memory that took it: streaming, on numpy alone.

A score is the distance of a look (log surprise and gates of every head) from the running distribution of the looks
before it, in standard deviations: Mahalanobis' distance under an exponentially weighted mean and covariance. The
covariance is what makes it useful: surprise and gates move together as the seasons do, and what is unusual breaks
that. An unusual look moves the distribution by no more than `clip` standard deviations, so that one outlier does not
hide the next; after a change that stays, the scores fall back as the distribution follows.

What it is worth, `tests/benchmarks/bench_anomaly.py` measures: the surprise alone is a poor score, for a memory is
trained to help the forecast, not to foresee its own values; with the gates it is about as good as the size of the
change; the error of the forecast made one step before, over its running scale, is better than both.

Shapes: B series, F features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
State = dict[str, Array]

RIDGE = 1e-3  # share of each variance that is added to it, as the covariance of many features is known poorly
SMALLEST = 1e-12  # variance: a feature that never moved says nothing
LEAST_SURPRISE = 1e-6  # of which a logarithm is taken


class AnomalyError(ValueError):
    """A score that cannot be computed from what was given; the message says what is expected."""


@dataclass(frozen=True)
class AnomalyScore:
    """A state and a step: `step(look, state)` gives a score a series and the next state."""

    window: int = 200  # observations over which the running distribution reaches
    warm_up: int = 50  # observations before the first score
    clip: float = 4.0  # largest distance at which a look moves the distribution, in standard deviations
    gates: bool = True  # whether gates count beside the surprise

    def __post_init__(self) -> None:
        if not 2 <= self.warm_up <= self.window or not self.clip > 0:
            raise AnomalyError(
                f"warm_up is at least 2 and at most window, clip above 0; got warm_up={self.warm_up}, "
                f"window={self.window}, clip={self.clip}."
            )

    def step(self, look: Mapping[str, Array], state: State | None = None) -> tuple[Array, State]:
        """Score one look and learn from it.

        Args:
            look: what `Stream.look` or `LoadedBundle.run_look` gave: names such as block0.surprise, (B, heads) each, or
                (heads,) for one series.
            state: what the step before returned; None at the start. Flat arrays, so `numpy.savez` keeps it.

        Returns:
            score: (B,), or a number for one series. 1 is usual. NaN where nothing was observed, for what is missing is
                no anomaly, and during the warm-up: a comparison with a threshold is false for both.
            state: the next state; what it was, for a series where nothing was observed.

        Raises:
            AnomalyError: a look without a surprise, or a state of other series or another model.
        """
        features = self._features(look)  # (B, F)
        alone = features.ndim == 1
        features = np.atleast_2d(features)
        series, width = features.shape
        if state is None:
            state = {
                "count": np.zeros(series),
                "mean": np.zeros((series, width)),
                "covariance": np.zeros((series, width, width)),
            }
        if state["covariance"].shape != (series, width, width):
            raise AnomalyError(
                f"the look has {width} features of {series} series, the state was made by {state['mean'].shape[1]} of "
                f"{len(state['mean'])}: start without a state."
            )
        there = np.asarray(np.isfinite(features).all(1))
        known = there & (state["count"] >= self.warm_up)
        distance = self._distance(features, state)
        count = np.minimum(state["count"] + 1, self.window)
        limit = self.clip / np.maximum(distance, self.clip)
        moved = (features - state["mean"]) * np.where(known, limit, 1.0)[:, None]
        share = (1 / count)[:, None]
        mean = state["mean"] + share * moved
        product = moved[:, :, None] * moved[:, None, :]
        covariance = (1 - share[..., None]) * (state["covariance"] + share[..., None] * product)
        after = {
            "count": np.where(there, count, state["count"]),
            "mean": np.where(there[:, None], mean, state["mean"]),
            "covariance": np.where(there[:, None, None], covariance, state["covariance"]),
        }
        score = np.where(known, distance, np.nan)
        return (score[0] if alone else score), after

    def _features(self, look: Mapping[str, Array]) -> Array:
        """The surprise in logarithms, for a surprise of twice the usual is as unusual as one of half; gates as are."""
        surprises = [
            np.log(np.maximum(value, LEAST_SURPRISE)) for name, value in look.items() if _part(name) == "surprise"
        ]
        if not surprises:
            raise AnomalyError(f"the look has no surprise; it has {', '.join(look) or 'nothing'}.")
        gates = [value for name, value in look.items() if _part(name) not in ("surprise", "norm")]
        return np.concatenate([*surprises, *(gates if self.gates else [])], -1).astype(np.float64)

    def _distance(self, features: Array, state: State) -> Array:
        """(B,): root mean square of the features' deviations, each direction in its standard deviation."""
        deviation = np.nan_to_num(features - state["mean"])
        spread = np.sqrt(np.maximum(np.diagonal(state["covariance"], axis1=1, axis2=2), SMALLEST))
        correlation = state["covariance"] / (spread[:, :, None] * spread[:, None, :])
        correlation[:, range(features.shape[1]), range(features.shape[1])] = 1 + RIDGE
        standard = deviation / spread
        solved = np.linalg.solve(correlation, standard[..., None])[..., 0]
        return np.sqrt(np.maximum((standard * solved).mean(1), 0.0))


def _part(name: str) -> str:
    return name.rsplit(".", 1)[-1]
