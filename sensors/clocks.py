"""How a source's clock runs against ours, seen from the frames alone.

A frame is received at received = time + offset + drift x (time - origin) + delay, with a delay that jitters and is
never less than the fastest way. So the offset (the fastest way's delay in it) and the drift are those of the line below
all frames: of each SLICE_S the frame with the least delay counts, the drift is the median slope between such frames
(Theil-Sen), and the offset lets the line touch the lowest of them. A frame's excess over the line is how much later it
is than frames can be.

A frame far below the line came before it was sent: the source's clock was set forward. Frames that stay far above it
were all delayed alike, or the clock was set back: either way they are not what happens now.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from typing import NamedTuple

from sensors.stream import SensorError

SLICE_S = 1.0
SLICES = 16  # what was longer ago does not count
DRIFT_AFTER = 8  # slices
MOST_DRIFT = 1e-3  # of two quartz clocks; more is jitter
SET_BACK_AFTER_S = 0.5


class ClockJump(SensorError):
    """A source's clock ran backwards, leapt ahead, or its frames stay far behind."""


class _Lowest(NamedTuple):
    """The frame with the least delay in a slice, from the origin."""

    elapsed: float
    delay: float
    slopes: list[float]  # from here to the later ones


class ClockMap:
    """The line below the frames of one source, in the order of their arrival."""

    def __init__(self, stream_id: str, jump_s: float) -> None:
        """jump_s: what a frame may be below the line, or stay above it."""
        self._stream_id, self._jump_s = stream_id, jump_s
        self._origin: tuple[float, float] | None = None  # (time, received) of the first frame
        self._offset = self.drift = 0.0
        self._lowest: deque[_Lowest] = deque(maxlen=SLICES)  # of each slice
        self._slice = (0.0, math.inf)  # (elapsed, delay) of the lowest of this one
        self._slice_ends = 0.0
        self._behind_since: float | None = None

    @property
    def offset_s(self) -> float:
        """What the source's clock lags behind ours, the fastest way's delay in it, at the first frame; NaN without."""
        if self._origin is None:
            return math.nan
        return self._origin[1] - self._origin[0] + self._offset

    def local(self, time: float) -> float:
        """The earliest that a frame of this source time can be received, by our clock; NaN without a frame."""
        return time + self.offset_s + (self.drift * (time - self._origin[0]) if self._origin else 0.0)

    def update(self, time: float, received: float) -> float:
        """A frame's excess delay, s.

        Raises:
            ClockJump: the frame came before it was sent, or frames have stayed behind for SET_BACK_AFTER_S.
        """
        if self._origin is None:
            self._origin = (time, received)
            self._slice_ends = received + SLICE_S
        elapsed = time - self._origin[0]
        delay = received - self._origin[1] - elapsed
        excess = delay - self._offset - self.drift * elapsed
        if excess < -self._jump_s:
            raise ClockJump(f"{self._stream_id}: the source's clock leapt ahead by {-excess:.3f} s.")
        if excess > self._jump_s:
            self._behind_since = received if self._behind_since is None else self._behind_since
            if received - self._behind_since >= SET_BACK_AFTER_S:
                raise ClockJump(
                    f"{self._stream_id}: frames have been {excess:.3f} s behind for {SET_BACK_AFTER_S:g} s: the "
                    "source's clock was set back, or all of them are delayed."
                )
            return excess
        self._behind_since = None
        if excess < 0:
            self._offset += excess
            excess = 0.0
        if delay - self.drift * elapsed < self._slice[1] - self.drift * self._slice[0]:
            self._slice = (elapsed, delay)
        if received >= self._slice_ends:
            self._fit()
            self._slice, self._slice_ends = (0.0, math.inf), received + SLICE_S
        return excess

    def _fit(self) -> None:
        end, late = self._slice
        for start, early, slopes in self._lowest:
            if end > start:
                slopes.append((late - early) / (end - start))
        self._lowest.append(_Lowest(end, late, []))
        if len(self._lowest) >= DRIFT_AFTER:
            slopes = [slope for point in self._lowest for slope in point.slopes]
            if slopes:
                self.drift = min(max(statistics.median(slopes), -MOST_DRIFT), MOST_DRIFT)
        self._offset = min(point.delay - self.drift * point.elapsed for point in self._lowest)
