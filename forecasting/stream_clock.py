"""When each series of a stream took its last step: times as the card's step counts them, forward only.

A step is a number of seconds or cycles, or a pandas alias: of a fixed length, which needs numpy alone, or of a calendar
(B, MS, W-SUN), for which `data.panel` is imported when it is met.

Shapes: B series, b of them.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from forecasting.bundle import BundleError
from forecasting.graphs import Array

if TYPE_CHECKING:
    from data.panel import Series

Time = str | int | float | datetime | np.datetime64

MOST_MISSING = 100_000  # periods that a stream may skip; more is taken for a wrong unit of time

# Pandas aliases of a fixed length, in ns; other steps (B, MS, W-SUN) follow a calendar and need pandas.
FIXED_NS = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9, "min": 60 * 10**9, "h": 3600 * 10**9, "D": 86400 * 10**9}


class StreamClock:
    """For each series the last time that it was given, NaT or NaN before (`last`), and the steps since (`since`)."""

    def __init__(
        self, series: list[str], freq: str | int | float, last: Array | None = None, since: Array | None = None
    ) -> None:
        self.series = series
        self.freq = freq
        unknown = np.datetime64("NaT", "ns") if isinstance(freq, str) else np.nan
        self.last: Array = np.full(len(series), unknown) if last is None else last.copy()
        self.since: Array = np.zeros(len(series), np.int64) if since is None else since.copy()

    def time_of(self, row: int) -> Any:
        """The time of a series' last step; NaT or NaN if never told."""
        if self.since[row] == 0 or np.isnan(self.last[row]):
            return self.last[row]
        return self.times(np.array([row]), 0)[0, 0]

    def times(self, rows: Array, steps: int) -> Array:
        """(b, 1 + steps) when some series took their last step, which must be known, and of so many periods after."""
        last, since = self.last[rows], self.since[rows]
        if self._period is not None:
            return last[:, None] + (since[:, None] + np.arange(1 + steps)) * self._period
        from data.panel import future_ds

        distinct = dict.fromkeys(zip(last, since.tolist(), strict=True))
        known = {
            (time, count): np.append(time, future_ds(time, self.freq, count + steps))[count:]
            for time, count in distinct
        }
        return np.stack([known[key] for key in zip(last, since.tolist(), strict=True)])

    def set(self, rows: Any, time: Any) -> None:
        """Let some series have taken their last step at `time`, one for all or one each."""
        self.last[rows], self.since[rows] = time, 0

    def until(self, rows: Array, at: Time) -> tuple[Any, Array]:
        """`at` as the clock keeps time, and the periods (b,) between it and the last steps of some series.

        Raises:
            BundleError: `at` is no time of this clock, is not later than a last step, or so late that it is in doubt.
        """
        time = self._time(at)
        last = self.last[rows]
        told = ~np.isnan(last)
        periods = np.ones(len(rows), np.int64)
        if told.any():
            periods[told] = self._periods(last[told], time) - self.since[rows[told]]
            # Clocks jitter: less than half a period later is still the next step.
            periods[told & (periods == 0) & (time > last) & (self.since[rows] == 0)] = 1
            if (periods < 1).any():
                early = rows[(periods < 1).argmax()]
                raise BundleError(
                    f"{self.series[early]}: at={at} is not later than its last step at {self.time_of(early)}. Time "
                    "only runs forward: drop what comes late, or reorder it before."
                )
        missing = periods - 1
        if missing.any():
            self._refuse_long_gap(self.series[rows[missing.argmax()]], int(missing.max()))
        return time, missing

    def news(self, series: Series, row: int) -> tuple[int, int]:
        """The place of a series' first time that is new here, and how many periods are missing before it.

        Raises:
            BundleError: its times do not go on from its last step, or so late that the step is in doubt.
        """
        from data.frame import FrameError

        name = series.unique_id
        if np.isnan(self.last[row]):
            if self.since[row]:
                raise BundleError(
                    f"{name}: the state was stepped without times, so it is not known which rows are new. Give `at` "
                    "when stepping, or start without a state."
                )
            return 0, 0
        try:
            ahead = int(self._periods(self.last[row : row + 1], self._time(series.ds[0]))[0] - self.since[row])
        except (BundleError, FrameError) as error:
            raise BundleError(f"{name}: does not go on from its last step at {self.time_of(row)}: {error}") from error
        self._refuse_long_gap(name, ahead - 1)
        return max(0, 1 - ahead), max(0, ahead - 1)

    def _refuse_long_gap(self, name: str, missing: int) -> None:
        if missing > MOST_MISSING:
            raise BundleError(
                f"{name}: {missing} periods of {self.freq!r} lie between its last step and this one, more than "
                f"{MOST_MISSING}. Check the unit of the time, or start without a state."
            )

    def _time(self, at: Any) -> Any:
        """`at` as this stream keeps time: datetime64[ns] without zone (UTC), or float."""
        if not isinstance(self.freq, str):
            number = None if isinstance(at, str | bool | datetime | np.datetime64) else at
            try:
                time = float(number)  # type: ignore[arg-type]
            except (TypeError, ValueError):
                time = math.nan
            if not math.isfinite(time):
                raise BundleError(f"at={at!r}: expected a number, as the card's step is {self.freq!r}.")
            return time
        try:
            if isinstance(at, str) and at[10:]:
                at = datetime.fromisoformat(at)  # numpy knows no time zones
            if isinstance(at, datetime) and at.tzinfo is not None:
                at = at.astimezone(UTC).replace(tzinfo=None)
            if not isinstance(at, str | datetime | np.datetime64):
                raise ValueError("not a time stamp")
            given = np.datetime64(at)
            stamp = given.astype("datetime64[ns]")
            if stamp.astype(given.dtype) != given:  # numpy takes 20240131 for a year, and wraps it around
                raise ValueError("beyond the years of nanoseconds")
        except ValueError:
            stamp = np.datetime64("NaT")
        if np.isnat(stamp):
            raise BundleError(
                f"at={at!r}: expected a time stamp such as 2024-01-31T12:00:00, as the card's step is {self.freq!r}."
            )
        return stamp

    @cached_property
    def _period(self) -> Any:
        """The step as a number or a timedelta64; None where it follows a calendar."""
        if not isinstance(self.freq, str):
            return float(self.freq)
        match = re.fullmatch(r"(\d*)(\w+)", self.freq)
        if match is None or match[2] not in FIXED_NS:
            return None
        return np.timedelta64(int(match[1] or 1) * FIXED_NS[match[2]], "ns")

    def _periods(self, last: Array, time: Any) -> Array:
        """How many steps `time` lies after each of `last`."""
        if self._period is None:
            from data.panel import periods_between

            unique, where = np.unique(last, return_inverse=True)
            return np.array([periods_between(a, time, self.freq) for a in unique], np.int64)[where]
        ratio = (time - last) / self._period
        periods = np.rint(ratio)
        seconds = isinstance(self.freq, float) or (isinstance(self.freq, int) and time % 1 != 0)
        if not seconds and (periods != ratio).any():
            raise BundleError(
                f"at={time}: is not a whole number of steps of {self.freq!r} after {last[(periods != ratio).argmax()]}."
            )
        return periods.astype(np.int64)
