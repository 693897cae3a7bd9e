"""What a model said of one series, wherever it comes from: one scan, single windows, or a fit at every cut-off.

Shapes: N positions of one series, H horizon.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from forecasting.metrics import mean_of_quantiles
from forecasting.windows import Span


@dataclass(frozen=True)
class Rows:
    """Predictions for one series: at `positions` (N,), `values` (N, *prediction shape)."""

    span: Span
    positions: np.ndarray
    values: np.ndarray  # all NaN where a model forecasts points only
    points: np.ndarray | None = None  # (N, H) a forecast's own mean; None takes the mean of its quantiles

    @property
    def has_quantiles(self) -> bool:
        return not np.isnan(self.values).all()

    def mean(self, levels: np.ndarray) -> np.ndarray:
        """Of a forecast, (N, H); of a number, (N,)."""
        return mean_of_quantiles(self.values, levels) if self.points is None else self.points
