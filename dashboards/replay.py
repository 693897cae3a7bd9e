"""A recording played back at its own rate through a bundle's step, as if it came from the sensor.

Knows nothing of pages: the clock's reading is passed in, so that a test can turn it.

Shapes: T frames, C channels, K classes, P heads of a memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

LONGEST_TICK_S = 1.0  # a page that slept longer goes on from where it was, it does not leap
RECENT = 200  # steps over which latency is reported


class Stepper(Protocol):
    """What is played through: `forecasting.stream.Stream` of one series."""

    def step(self, values: Any, at: Any = None) -> Any: ...
    def look(self, values: Any, at: Any = None) -> tuple[Any, Any]: ...


class Replay:
    """Where a playback stands: the frames that went through the model, what it said of each, what its memory did."""

    def __init__(
        self,
        open_stream: Callable[[], Stepper],
        frames: NDArray[Any],  # (T, C)
        truth: Sequence[str | None],  # T labels, None where unknown
        classes: int,
        period_s: float,
        look_names: Sequence[str] = (),  # of the look inside; empty where the model has none
    ) -> None:
        self.frames = frames
        self.truth = truth
        self.classes = classes
        self.period_s = period_s
        self.look_names = tuple(look_names)
        self._open_stream = open_stream
        self.reset()

    def reset(self) -> None:
        """Back to the first frame and the model's initial state."""
        self.stream = self._open_stream()
        self.position = 0  # frames that went through
        self.probabilities = np.full((len(self.frames), self.classes), np.nan)  # (T, K)
        self.looks = {name: np.full(len(self.frames), np.nan) for name in self.look_names}  # (T,), mean over heads
        self.latencies_us: list[float] = []
        self.playing = False
        self._clock_s: float | None = None  # at the last tick
        self._owed = 0.0  # frames that are due and did not go through yet

    @property
    def done(self) -> bool:
        return self.position >= len(self.frames)

    @property
    def latency_us(self) -> tuple[float, float] | None:
        """Median and 99th percentile of the recent steps; None before the first."""
        if not self.latencies_us:
            return None
        median, slow = np.percentile(self.latencies_us[-RECENT:], [50, 99])
        return float(median), float(slow)

    def play(self) -> None:
        """Go on, or begin again where the end was reached."""
        if self.done:
            self.reset()
        self.playing = True
        self._clock_s = None

    def pause(self) -> None:
        self.playing = False

    def tick(self, now_s: float, speed: float = 1.0) -> int:
        """Let through the frames that are due by the clock, and return how many; at the end it stops playing."""
        if not self.playing:
            return 0
        if self._clock_s is not None:
            self._owed += min(max(now_s - self._clock_s, 0.0), LONGEST_TICK_S) * speed / self.period_s
        self._clock_s = now_s
        due = int(self._owed + 1e-9)
        self._owed -= due
        moved = self.advance(due)
        if self.done:
            self.playing = False
        return moved

    def advance(self, count: int) -> int:
        """Step the model over the next `count` frames, fewer at the end."""
        end = min(self.position + count, len(self.frames))
        moved = end - self.position
        for position in range(self.position, end):
            frame = self.frames[position][None]
            look: Mapping[str, NDArray[Any]] = {}
            began = time.perf_counter_ns()
            if self.look_names:
                prediction, look = self.stream.look(frame)  # look: (1, P) each
            else:
                prediction = self.stream.step(frame)
            self.latencies_us.append((time.perf_counter_ns() - began) / 1000)
            self.probabilities[position] = prediction[0]
            for name, values in self.looks.items():
                values[position] = look[name][0].mean()
        self.position = end
        return moved
