"""Frames in the order of their source's clock, with a wait that is bounded and seldom there.

A frame that follows the last one at the source's period goes on at once. One behind a gap, or of a source without a
fixed rate, waits up to `window_s` for what may still come before it.
"""

from __future__ import annotations

import bisect
import math
from collections import deque

from sensors.stream import Frame

FOLLOWS = 1.5  # periods: further behind the last frame there is a gap
REMEMBERED = 64  # times of frames that went on, to tell copies from late ones


class Reorder:
    """`late` and `copies` count what was dropped."""

    def __init__(self, period_s: float, window_s: float) -> None:
        """period_s: the source's, 0 where it has none."""
        self.late = self.copies = 0
        self._near, self._window_s = FOLLOWS * period_s, window_s
        self._last = -math.inf
        self._gone: deque[float] = deque(maxlen=REMEMBERED)
        self._held: list[Frame] = []  # by time

    @property
    def deadline(self) -> float | None:
        """When a frame will have waited long enough."""
        return min(frame.received for frame in self._held) + self._window_s if self._held else None

    def push(self, frame: Frame) -> list[Frame]:
        """The frames that can go on now."""
        time = frame.time
        if time <= self._last:
            if time in self._gone:
                self.copies += 1
            else:
                self.late += 1
            return []
        if not self._held and (time - self._last <= self._near or not self._window_s or self._last == -math.inf):
            self._go(frame)
            return [frame]
        if any(time == held.time for held in self._held):
            self.copies += 1
            return []
        bisect.insort(self._held, frame, key=lambda held: held.time)
        return self.release(frame.received)

    def release(self, now: float) -> list[Frame]:
        """Those that have waited long enough, and those that now follow."""
        going = []
        while self._held:
            deadline = self.deadline
            if self._held[0].time - self._last > self._near and deadline is not None and now < deadline:
                break
            going.append(self._held.pop(0))
            self._go(going[-1])
        return going

    def _go(self, frame: Frame) -> None:
        self._last = frame.time
        self._gone.append(frame.time)
