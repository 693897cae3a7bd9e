"""What a live stream is: frames, and sources that give them.

Two clocks never mix: a frame's `time` is the source's own, its `received` is this machine's monotonic clock. How the
one maps to the other is `align`'s work; how old something is, is asked of the second alone.

Shapes: C channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from data.frame import Channel

Clock = Callable[[], float]
"""Seconds that only run forward, such as `time.monotonic`."""


class SensorError(ValueError):
    """Something between a sensor and a robot that cannot go on; the message says what, where and what to do."""


class SourceLost(SensorError):
    """A source that ran is gone and does not come back by itself: unplugged, refused, ended by an error."""


class Frame(NamedTuple):
    """One observation of all channels of a stream."""

    stream_id: str
    time: float  # s, the source's own clock; NaN where it has none
    received: float  # s, this machine's monotonic clock, when the frame was here
    values: NDArray[np.float32]  # (C,), in the units of the channels; anything where not observed
    mask: NDArray[np.bool_]  # (C,), True where observed


@dataclass(frozen=True)
class StreamInfo:
    """What a source will give, known before it connects."""

    stream_id: str
    channels: tuple[Channel, ...]
    rate_hz: float  # nominal; 0 where frames come at no fixed rate
    low: NDArray[np.float32] = field(init=False, repr=False, compare=False)  # (C,) limits of the channels
    high: NDArray[np.float32] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.channels:
            raise SensorError(f"{self.stream_id}: a stream needs at least one channel.")
        most = np.finfo(np.float32).max  # where a limit is open, so that an infinity is never within
        for side in ("low", "high"):
            limits = np.array([getattr(channel, side) for channel in self.channels])
            object.__setattr__(self, side, limits.clip(-most, most).astype(np.float32))

    def frame(self, time: float, received: float, values: ArrayLike) -> Frame:
        """A frame of values (C,); what is NaN, infinite or outside its channel's limits is missing.

        Raises:
            SensorError: the number of values is not that of the channels.
        """
        numbers = np.asarray(values, np.float32)
        if numbers.shape != self.low.shape:
            raise SensorError(
                f"{self.stream_id}: a frame of shape {numbers.shape}, expected {len(self.channels)} values: "
                f"{', '.join(channel.name for channel in self.channels)}."
            )
        return Frame(self.stream_id, time, received, numbers, (numbers >= self.low) & (numbers <= self.high))


class Source(ABC):
    """An asynchronous iterator of frames: `async with source: async for frame in source: ...`.

    A constructor only stores; `connect` and `close` do the input and output. What a source drops (a corrupt packet, a
    frame of the wrong size) it counts in `dropped`; what ends it raises SourceLost out of the iteration. The end of
    a recording ends the iteration.
    """

    info: StreamInfo
    real_time = True  # False for a recording at another speed than its own: what was received when tells nothing

    def __init__(self) -> None:
        # Is told at once when the peer of a stream is lost, or let go; silence would tell later.
        self.on_lost: Callable[[str], object] = lambda why: None
        self._connected = False
        self.dropped = 0
        self.last_drop = ""  # why

    @property
    def connected(self) -> bool:
        """False too while a source that lost its peer looks for it."""
        return self._connected

    @connected.setter
    def connected(self, now: bool) -> None:
        lost, self._connected = self._connected and not now, now
        if lost:
            self.on_lost(f"{self.info.stream_id}: the connection has ended")

    @abstractmethod
    async def connect(self) -> None:
        """Open what has to be open.

        Raises:
            SensorError: it cannot be; the message says what to do.
        """

    @abstractmethod
    async def close(self) -> None:
        """Release everything; safe to call twice, and without `connect`."""

    @abstractmethod
    def __aiter__(self) -> AsyncIterator[Frame]: ...

    def drop(self, why: str) -> None:
        self.dropped += 1
        self.last_drop = why

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
