"""A live stream in order and at the model's rate. Nothing that was given out is ever changed by what comes later.

1. Clocks (`clocks`): a frame that comes more than `old_s` later than frames can is old and dropped. A clock that jumps
   raises ClockJump, too many frames raise RateError; everything starts anew behind them. Frames without a clock of
   their own count by when they were received.
2. Order (`reorder`): copies and frames that come too late for their place are dropped.
3. Rate. Where the source's rate is the model's, frames go on as they are, one a step and without any wait, and steps
   that none came for are masked. Otherwise they are resampled (`resample`).

A gap longer than `longest_gap_s` is not filled with masked steps; the steps start anew behind it (`restarts`).
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import numpy as np

from sensors.clocks import ClockJump, ClockMap
from sensors.reorder import Reorder
from sensors.resample import KINDS, Resampler
from sensors.stream import Clock, Frame, SensorError, StreamInfo

SAME_RATE = 0.01  # relative; closer rates are one
TRACKING = 0.1  # how fast the steps follow a source that is a little faster or slower than it says
NEXT, EXTRA = 1.75, 0.25  # periods behind the last step: from there one is missing, up to there one is too many
MOST_RATE = 2.0  # times the source's; faster is a fault
UNSAID_RATE = 10.0  # times the model's: what a source that says none is taken to send at most
BURST_S = 1.0  # what may come at once after a stall


class RateError(SensorError):
    """Far more frames come than the source was said to send."""


@dataclass(frozen=True)
class AlignConfig:
    """How a stream is brought to a model's rate."""

    rate_hz: float  # the model's
    kind: str = "linear"  # or cubic: how frames are resampled where the rates differ
    window_s: float = 0.02  # how long a frame behind a gap waits for what may come before it
    gap_s: float = 0.0  # frames further apart are not joined; 0: 2.5 periods of the slower of source and model
    longest_gap_s: float = 1.0  # is filled with masked steps
    old_s: float = 0.1  # a frame that comes so much later than frames can is old; so does a clock jump

    def __post_init__(self) -> None:
        for name in ("rate_hz", "longest_gap_s", "old_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise SensorError(f"align: {name} is {getattr(self, name)!r}, expected a number above 0.")
        for name in ("window_s", "gap_s"):
            if not 0 <= getattr(self, name) < math.inf:
                raise SensorError(f"align: {name} is {getattr(self, name)!r}, expected a number of at least 0.")
        if self.kind not in KINDS:
            raise SensorError(f"align: kind is {self.kind!r}, expected {' or '.join(KINDS)}.")


@dataclass
class Counts:
    """What became of frames and steps."""

    frames: int = 0  # that came
    old: int = 0  # dropped: long on the way
    late: int = 0  # dropped: what follows them was given out already
    copies: int = 0  # dropped
    extra: int = 0  # dropped: a second one for the same step
    unstamped: int = 0  # dropped: without a time, of a source that gives times
    masked: int = 0  # steps without an observation
    restarts: int = 0  # gaps that were too long to be filled
    jumps: int = 0  # of the source's clock


class Aligner:
    """Frames in, steps out. Values (C,) are 0 where they were not observed, never NaN.

    A step's `time` is of the source's clock; its `received` is that of the newest frame in it.
    """

    def __init__(self, info: StreamInfo, config: AlignConfig, real_time: bool = True) -> None:
        """real_time: whether `received` tells anything (`Source.real_time`); if not, clocks are not looked at."""
        self.info, self.config = info, config
        self.counts = Counts()
        self.passes = info.rate_hz > 0 and abs(info.rate_hz - config.rate_hz) <= SAME_RATE * config.rate_hz
        self._real_time = real_time
        self._empty = np.zeros(len(info.channels), np.float32)
        self._unseen = np.zeros(len(info.channels), bool)
        self._empty.flags.writeable = self._unseen.flags.writeable = False
        self._level, self._level_at, self._since, self._came = 0.0, -math.inf, 0.0, 0
        self.restart()

    def restart(self) -> None:
        """Forget the stream's past; the counts stay."""
        config, info = self.config, self.info
        period = 1 / info.rate_hz if info.rate_hz else 0.0
        self.clock = ClockMap(info.stream_id, config.old_s)
        self._unstamped: bool | None = None
        self._order = Reorder(period, config.window_s)
        self._step: float | None = None  # s, source time of the last step, when frames pass
        gap_s = config.gap_s or 2.5 * max(period, 1 / config.rate_hz)
        self._resampler = Resampler(config.rate_hz, config.kind, gap_s, config.longest_gap_s, info)

    def push(self, frame: Frame) -> list[Frame]:
        """The steps that a frame completes.

        Raises:
            ClockJump, RateError: the stream's past is forgotten; it may go on.
        """
        self.counts.frames += 1
        stamp = self._stamp(frame)
        if math.isnan(stamp):
            return []
        if self._real_time:
            self._watch_rate(frame.received)
            if not self._unstamped and self._is_old(stamp, frame.received):
                return []
        if frame.time != stamp:
            frame = frame._replace(time=stamp)
        if not frame.mask.all():
            frame = frame._replace(values=np.where(frame.mask, frame.values, np.float32(0)))
        return self._steps(self._order.push(frame))

    def tick(self, now: float) -> list[Frame]:
        """The steps of frames that have waited long enough, s; to be called at `deadline`."""
        return self._steps(self._order.release(now))

    @property
    def deadline(self) -> float | None:
        """When `tick` will have something; None if no frame waits."""
        return self._order.deadline

    def _stamp(self, frame: Frame) -> float:
        if self._unstamped is None:
            self._unstamped = math.isnan(frame.time)
        if self._unstamped:
            return frame.received
        if math.isnan(frame.time):
            self.counts.unstamped += 1
        return frame.time

    def _is_old(self, stamp: float, received: float) -> bool:
        try:
            excess = self.clock.update(stamp, received)
        except ClockJump:
            self.counts.jumps += 1
            self.restart()
            raise
        if excess <= self.config.old_s:
            return False
        self.counts.old += 1
        return True

    def _watch_rate(self, received: float) -> None:
        """A bucket that leaks at MOST_RATE times the rate, and overflows when more comes for long."""
        rate = self.info.rate_hz or UNSAID_RATE * self.config.rate_hz
        level = self._level - (received - self._level_at) * MOST_RATE * rate
        self._level_at = received
        if level <= 0:
            level, self._since, self._came = 0.0, received, 0
        self._level = level + 1
        self._came += 1
        if self._level > BURST_S * rate + 1 and received > self._since:
            found = self._came / (received - self._since)
            self._level = 0.0
            self.restart()
            unsaid = "" if self.info.rate_hz else f" at most, {UNSAID_RATE:g} times the model's {self.config.rate_hz:g}"
            raise RateError(
                f"{self.info.stream_id}: frames come at about {found:.0f} Hz, expected {rate:g} Hz{unsaid}. Set the "
                "source's rate_hz to what it sends, or the source to what was agreed."
            )

    def _steps(self, frames: list[Frame]) -> list[Frame]:
        counts, order = self.counts, self._order
        counts.late, counts.copies = counts.late + order.late, counts.copies + order.copies
        order.late = order.copies = 0
        if self.passes:
            return [step for frame in frames for step in self._pass(frame)]
        steps = [step for frame in frames for step in self._resampler.push(frame)]
        counts.masked, counts.restarts = (
            counts.masked + self._resampler.masked,
            counts.restarts + self._resampler.restarts,
        )
        self._resampler.masked = self._resampler.restarts = 0
        return steps

    def _pass(self, frame: Frame) -> list[Frame]:
        """The frame itself, behind masked steps for those that are missing."""
        if self._step is None:
            self._step = frame.time
            return [frame]
        period = 1 / self.info.rate_hz
        periods = (frame.time - self._step) / period
        if periods < EXTRA:
            self.counts.extra += 1
            return []
        count = 1 if periods < NEXT else round(periods)
        if (count - 1) * period > self.config.longest_gap_s:
            self._step = frame.time
            self.counts.restarts += 1
            return [frame]
        # The last step's place, not its frame's time: so that jitter does not count twice.
        missing = [
            Frame(frame.stream_id, self._step + index * period, frame.received, self._empty, self._unseen)
            for index in range(1, count)
        ]
        self._step += count * period
        self._step += TRACKING * (frame.time - self._step)
        self.counts.masked += len(missing)
        return [*missing, frame]


async def aligned(
    frames: AsyncIterator[Frame], aligner: Aligner, clock: Clock = time.monotonic
) -> AsyncIterator[Frame]:
    """The steps of a connected source's iterator, as they are complete.

    Raises:
        SourceLost, ClockJump, RateError: of the source and the aligner; after the last two, call it with them again.
    """
    coming: asyncio.Future[Frame] | None = None
    try:
        while True:
            try:
                if aligner.deadline is None and coming is None:
                    frame = await anext(frames)  # without a task, which costs more than the rest
                else:
                    coming = coming or asyncio.ensure_future(anext(frames))
                    wait_s = None if aligner.deadline is None else max(aligner.deadline - clock(), 0.0)
                    await asyncio.wait({coming}, timeout=wait_s)
                    if not coming.done():
                        for step in aligner.tick(clock()):
                            yield step
                        continue
                    frame, coming = coming.result(), None
            except StopAsyncIteration:
                break
            for step in aligner.push(frame):
                yield step
        for step in aligner.tick(math.inf):
            yield step
    finally:
        if coming is not None:
            coming.cancel()
