"""Covariates known ahead as the fit of one series takes them.

Shapes: T time, F covariates.
"""

from __future__ import annotations

import numpy as np

from models.linear_gaussian import Values, known_part

FLAT = 1e-12  # of a covariate's size: a spread below that is rounding
DEPENDENT = 1e-8  # of a column's length: what is left of a column beside others below that is rounding


def parted(values: Values) -> tuple[Values, Values]:
    """The target (T',) from its first known value on, and the covariates (T', F) beside it, of (T,) or (T, 1 + F).

    Where a covariate is missing the target is NaN, for the covariate's part in it is unknown; one that is never known
    has no part.

    Raises:
        ModelError: nothing was observed.
    """
    table = np.asarray(values, np.float64)
    table = table[:, None] if table.ndim == 1 else table
    known = np.isfinite(table[:, 1:])
    y = known_part(np.where(known[:, known.any(0)].all(1), table[:, 0], np.nan))
    return y, table[len(table) - len(y) :, 1:]


class Regressors:
    """Those covariates that can have an effect, each of mean 0 and deviation 1, 0 where missing: `values` (T, kept).

    A likelihood is climbed badly where a covariate is far from 0 or much larger than the target.
    """

    def __init__(self, covariates: Values, polynomial: Values, constant: bool) -> None:
        """
        Args:
            covariates: (T, F), NaN where missing.
            polynomial: (1 - L) and so on, as coefficients, by which the model differences them with the target.
            constant: whether the model has a constant beside them after that.
        """
        self.count = covariates.shape[1]
        known = np.isfinite(covariates)
        shown = np.where(known, covariates, 0.0)
        seen = np.maximum(known.sum(0), 1)
        self.mean = shown.sum(0) / seen
        away = np.where(known, covariates - self.mean, 0.0)
        deviation = np.sqrt((away**2).sum(0) / seen)
        self.scale = np.where(deviation > FLAT * np.abs(shown).max(0, initial=0.0), deviation, np.inf)
        scaled = away / self.scale
        basis = [np.ones(len(scaled) - len(polynomial) + 1)] if constant else []
        self.kept: list[int] = []
        for index, whole in enumerate(scaled.T):
            column = np.convolve(whole, polynomial, "valid")
            together = np.stack([*basis, column], 1)
            if np.linalg.matrix_rank(together, tol=DEPENDENT * np.sqrt(len(column))) > len(basis):
                basis.append(column)
                self.kept.append(index)
        self.values = scaled[:, self.kept] if self.kept else None

    @property
    def note(self) -> str:
        """Which are left out, by their number; empty if none is."""
        out = [str(index + 1) for index in range(self.count) if index not in self.kept]
        if not out:
            return ""
        return f"left out of {self.count} covariates known ahead, for constant or told by others: {', '.join(out)}"

    def effects(self, estimates: Values) -> Values:
        """The effects (F,) of the covariates as they are, from those (kept,) of `values`."""
        effects = np.zeros(self.count)
        effects[self.kept] = estimates / self.scale[self.kept]
        return effects
