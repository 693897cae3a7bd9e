"""What a model said of one series, wherever it comes from: one scan, single windows, or a fit at every cut-off.

Shapes: N positions of one series, H horizon.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from forecasting.metrics import mean_of_quantiles
from forecasting.windows import Span


@dataclass(frozen=True)
class Substitute:
    """What stands in for a model where that cannot forecast, by name, and why the model could not."""

    name: str
    reason: str


@dataclass(frozen=True)
class Rows:
    """Predictions for one series: at `positions` (N,), `values` (N, *prediction shape)."""

    span: Span
    positions: np.ndarray
    values: np.ndarray  # all NaN where a model forecasts points only
    points: np.ndarray | None = None  # (N, H) a forecast's own mean; None takes the mean of its quantiles
    instead: Mapping[int, Substitute] = field(default_factory=dict)  # position -> whose forecast it is, if not its own

    @property
    def has_quantiles(self) -> bool:
        return not np.isnan(self.values).all()

    def at(self, positions: np.ndarray) -> Rows:
        """Its predictions at those of its positions that are among these."""
        kept = np.isin(self.positions, positions)
        points = None if self.points is None else self.points[kept]
        instead = {at: one for at, one in self.instead.items() if at in positions}
        return Rows(self.span, self.positions[kept], self.values[kept], points, instead)

    def mean(self, levels: np.ndarray) -> np.ndarray:
        """Of a forecast, (N, H); of a number, (N,)."""
        return mean_of_quantiles(self.values, levels) if self.points is None else self.points

    def names(self) -> list[str]:
        """Per position the substitute that forecasts there, "" where it is the model itself."""
        return [self.instead[at].name if at in self.instead else "" for at in self.positions.tolist()]


def substituted(everyone: Sequence[Rows]) -> list[tuple[str, int, Substitute]]:
    """Series, position and substitute of every prediction that is not the model's own, in order."""
    return [
        (row.span.series.unique_id, at, row.instead[at])
        for row in everyone
        for at in row.positions.tolist()
        if at in row.instead
    ]
