"""Sources whose frames come by themselves: how frames are handed over, and how a lost peer is found again.

A frame is stamped and handed over the moment it is here. Few wait for a consumer that is slow: when there are more, the
oldest is dropped and counted, so what the consumer gets next is never long ago.

While the peer of a `ReconnectingSource` is lost, `connected` is False, at once, and no frame comes: whoever drives a
robot stops it for either. The source looks for the peer again, at growing intervals, until `give_up_after_s`.
"""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod
from collections import deque
from collections.abc import AsyncIterator

from numpy.typing import ArrayLike

from sensors.sources.payload import Decode
from sensors.stream import Clock, Frame, SensorError, Source, SourceLost, StreamInfo

MOST_WAITING = 32  # frames
FIRST_RETRY_S, LONGEST_RETRY_S = 0.1, 5.0


class Unreachable(SensorError):
    """Nobody is there at this moment; it may help to try again."""


class LiveSource(Source):
    """Hands over what `take` is given. Subclasses call `_begin` in `connect`, and `_end` in `close`."""

    def __init__(self, info: StreamInfo, clock: Clock = time.monotonic) -> None:
        super().__init__()
        self.info = info
        self.clock = clock
        self._waiting: deque[Frame] = deque()
        self._arrived = asyncio.Event()
        self._lost = "is not connected; use it in `async with`."

    def __aiter__(self) -> AsyncIterator[Frame]:
        return self

    async def __anext__(self) -> Frame:
        while not self._waiting:
            if self._lost:
                raise SourceLost(f"{self.info.stream_id}: {self._lost}")
            self._arrived.clear()
            await self._arrived.wait()
        return self._waiting.popleft()

    def take(self, time: float, received: float, values: ArrayLike) -> None:
        """Hand over a frame of values (C,); one of another size is dropped. In the event loop's thread."""
        try:
            frame = self.info.frame(time, received, values)
        except SensorError as error:
            self.drop(str(error))
            return
        if len(self._waiting) >= MOST_WAITING:
            self._waiting.popleft()
            self.drop(f"{self.info.stream_id}: {MOST_WAITING} frames wait already, the consumer is too slow.")
        self._waiting.append(frame)
        self._arrived.set()

    def take_message(self, decode: Decode, message: bytes | str, received: float) -> None:
        """Hand over the frame of a message; one that holds none is dropped."""
        try:
            time, values = decode(message, len(self.info.channels))
        except SensorError as error:
            self.drop(f"{self.info.stream_id}: {error}")
            return
        self.take(time, received, values)

    def _begin(self) -> None:
        self._waiting.clear()
        self._lost = ""

    def _end(self, why: str) -> None:
        """End the iteration with SourceLost, once what waits has been taken."""
        self.connected = False
        self._lost = self._lost or why
        self._arrived.set()


class ReconnectingSource(LiveSource):
    """A source that finds its peer again."""

    def __init__(self, info: StreamInfo, give_up_after_s: float, clock: Clock = time.monotonic) -> None:
        super().__init__(info, clock)
        self.give_up_after_s = give_up_after_s
        self._task: asyncio.Task[None] | None = None
        self._first: asyncio.Future[None] | None = None
        self._was_open = False

    @abstractmethod
    async def _session(self) -> None:
        """Connect, call `_opened`, and hand over frames until the connection ends.

        Raises:
            Unreachable: nobody is there, or no longer.
            SensorError: trying again would not help.
        """

    async def connect(self) -> None:
        await self.close()
        self._begin()
        self._first = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._run())
        try:
            await self._first
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        if self._task is not None:
            task, self._task = self._task, None
            task.cancel()
            await asyncio.wait({task})
        self._end("was closed.")

    def _opened(self) -> None:
        self.connected = self._was_open = True
        if self._first is not None and not self._first.done():
            self._first.set_result(None)

    async def _run(self) -> None:
        """Sessions, one after another; ends with what makes another one useless."""
        lost_at, pause = self.clock(), FIRST_RETRY_S
        while True:
            final = False
            try:
                await self._session()
                raise Unreachable(f"{self.info.stream_id}: the connection was closed.")
            except Unreachable as problem:
                error: Exception = problem
            except Exception as problem:  # whatever it is, a consumer that waits must hear of it
                error, final = problem, True
            if self._first is not None and not self._first.done():
                self._first.set_exception(error)
                return
            self.connected = False
            if self._was_open:
                self._was_open = False
                lost_at, pause = self.clock(), FIRST_RETRY_S
            gone = self.clock() - lost_at
            if final or gone >= self.give_up_after_s:
                self._end(str(error) if final else f"not back after {gone:.1f} s, given up. {error}")
                return
            await asyncio.sleep(min(pause, self.give_up_after_s - gone))
            pause = min(2 * pause, LONGEST_RETRY_S)
