"""Frames of any times to steps of a fixed rate, without looking ahead further than the next frame.

Steps lie on a grid in the source's time that starts at the first frame. A step is given as soon as there is a frame at
or behind it, so it is late by one period of the source at most.

linear  joins the frames on both sides
cubic   the polynomial through these two and the two before them (Lagrange): no later than linear, exact for smooth
        motion, noise grows by 9 % at most; it may overshoot, up to the channels' limits

There is no low-pass filter: to halve a rate folds what is faster than half the new one.

Shapes: C channels.
"""

from __future__ import annotations

import itertools
import math
from collections import deque

import numpy as np
from numpy.typing import NDArray

from sensors.stream import Frame, StreamInfo

KINDS = ("linear", "cubic")
POINTS = 4
AT = 1e-6  # periods of the grid: a frame so near to a step is at it


class Resampler:
    """`masked` and `restarts` count steps without an observation and gaps that were not filled."""

    def __init__(self, rate_hz: float, kind: str, gap_s: float, longest_gap_s: float, info: StreamInfo) -> None:
        """gap_s: frames further apart are not joined; longest_gap_s: steps in longer gaps are not given at all."""
        self.masked = self.restarts = 0
        self._period = 1 / rate_hz
        self._cubic = kind == "cubic"
        self._gap_s, self._longest_gap_s = gap_s, longest_gap_s
        self._low, self._high = info.low, info.high
        self._start, self._count = 0.0, 0  # of the grid, and its next step
        self._last: deque[Frame] = deque(maxlen=POINTS)

    def push(self, frame: Frame) -> list[Frame]:
        """The steps up to a frame; times must rise, and values be finite where they were not observed too."""
        if self._last and frame.time - self._last[-1].time > self._longest_gap_s:
            self._last.clear()
            self.restarts += 1
        if not self._last:
            self._start, self._count = frame.time, 0
        self._last.append(frame)
        steps = []
        end = frame.time + AT * self._period
        while (time := self._start + self._count * self._period) <= end:
            values, mask = self._at(time)
            if not mask.any():
                self.masked += 1
            steps.append(Frame(frame.stream_id, time, frame.received, values, mask))
            self._count += 1
        return steps

    def _at(self, time: float) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """What is known of a time between the last two frames."""
        after = self._last[-1]
        if abs(after.time - time) <= AT * self._period:
            return after.values, after.mask
        before = self._last[-2]
        between = after.time - before.time
        if between > self._gap_s:
            return np.zeros_like(after.values), np.zeros_like(after.mask)
        part = (time - before.time) / between
        mask = before.mask & after.mask
        values = np.float32(1 - part) * before.values + np.float32(part) * after.values
        if self._cubic and len(self._last) == POINTS and self._joined():
            weights = _lagrange([frame.time for frame in self._last], time)
            smooth = sum(weight * frame.values for weight, frame in zip(weights, self._last, strict=True))
            known = mask & self._last[0].mask & self._last[1].mask
            values = np.where(known, np.clip(smooth, self._low, self._high), values)
        return (values, mask) if mask.all() else (np.where(mask, values, np.float32(0)), mask)

    def _joined(self) -> bool:
        times = [frame.time for frame in self._last]
        return all(later - earlier <= self._gap_s for earlier, later in itertools.pairwise(times))


def _lagrange(times: list[float], time: float) -> list[np.float32]:
    """The weight of each point in the polynomial through all of them."""
    return [np.float32(math.prod((time - other) / (own - other) for other in times if other != own)) for own in times]
