"""The indices of sktime's data: the same times as a frame has them, and what names the series of a panel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import pandas as pd

from data.frame import Freq
from data.readers import default_season
from forecasting.task import TaskError


@dataclass(frozen=True, eq=False)
class Clock:
    """The time index of sktime's data, and the same times as a frame has them: integers, seconds or stamps in UTC."""

    kind: pd.Index  # empty, of the index's type, time zone and period
    step: Freq | None  # what the index itself says; None where the times must be looked at

    @classmethod
    def of(cls, index: pd.Index) -> Clock:
        """
        Raises:
            TaskError: an index of another type.
        """
        if isinstance(index, pd.PeriodIndex):
            return cls(index[:0], index.freq.n)  # type: ignore[union-attr]
        if isinstance(index, pd.DatetimeIndex):
            return cls(index[:0], index.freqstr)
        if pd.api.types.is_integer_dtype(index.dtype):
            return cls(index[:0].astype("int64"), 1)  # sktime counts an integer index in ones
        raise TaskError(f"the time index holds {index.dtype}; it can be integers, periods or time stamps.")

    def times(self, index: pd.Index) -> np.ndarray:
        """The times as a frame has them."""
        if index.dtype != self.kind.dtype and (
            index.dtype.kind != self.kind.dtype.kind or index.dtype.kind not in "iM"
        ):
            raise TaskError(f"the time index holds {index.dtype}, but {self.kind.dtype} in fit.")
        if isinstance(index, pd.PeriodIndex):
            return index.asi8.copy()
        if isinstance(index, pd.DatetimeIndex):
            return (index if index.tz is None else index.tz_convert(None)).as_unit("ns").to_numpy()
        return index.to_numpy(dtype="int64")

    def index(self, times: np.ndarray) -> pd.Index:
        """The same times as sktime has them."""
        if isinstance(self.kind, pd.PeriodIndex):
            return pd.PeriodIndex.from_ordinals(times, freq=self.kind.freq, name=self.kind.name)  # type: ignore[attr-defined]
        if isinstance(self.kind, pd.DatetimeIndex):
            stamps = pd.DatetimeIndex(times, name=self.kind.name).as_unit(self.kind.unit)
            return stamps if self.kind.tz is None else stamps.tz_localize("UTC").tz_convert(self.kind.tz)
        return pd.Index(times, name=self.kind.name)

    def stamps(self, times: np.ndarray) -> np.ndarray:
        """The time stamps that these times stand for, of a period its beginning; integers stay what they are."""
        if isinstance(self.kind, pd.PeriodIndex):
            return cast(pd.PeriodIndex, self.index(times)).to_timestamp().to_numpy()
        return times

    @property
    def named_step(self) -> Freq | None:
        """`step`, where the index has one by name: of periods an alias."""
        return self.kind.freqstr if isinstance(self.kind, pd.PeriodIndex) else self.step

    @property
    def season(self) -> int:
        """What is usual for the step that the index itself names."""
        return default_season(self.named_step)


def instances_of(index: pd.Index) -> pd.Index | None:
    """What names the series of a panel or hierarchy, each once, in order; None for a single series."""
    if not isinstance(index, pd.MultiIndex):
        return None
    return index.unique(level=0) if index.nlevels == 2 else index.droplevel(-1).unique()
