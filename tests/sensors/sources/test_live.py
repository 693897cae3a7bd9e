"""How a source looks for a peer that it lost."""

import asyncio
import time

import numpy as np
import pytest

from data.frame import Channel
from sensors.sources.live import ReconnectingSource, Unreachable
from sensors.stream import Clock, SensorError, SourceLost, StreamInfo

INFO = StreamInfo("glove", (Channel("bend", "deg"),), rate_hz=100.0)


class Peer(ReconnectingSource):
    """There in its first session and in those that `there` names; each gives one frame and ends as `end` says."""

    def __init__(
        self,
        give_up_after_s: float,
        there: tuple[int, ...] = (),
        end: Exception | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        super().__init__(INFO, give_up_after_s, clock)
        self.tries: list[float] = []
        self._there, self._end_with = (0, *there), end

    async def _session(self) -> None:
        self.tries.append(self.clock())
        number = len(self.tries) - 1
        if number not in self._there:
            raise Unreachable("glove: nobody there.")
        self._opened()
        self.take(float(number), time.monotonic(), np.float32([number]))
        await asyncio.sleep(0)
        if self._end_with is not None:
            raise self._end_with


async def times(source: Peer, until: int) -> list[float]:
    async with source:
        return [(await anext(source)).time for _ in range(until)]


@pytest.fixture
def clock(monkeypatch):
    """Goes on by what is slept, and by nothing else: a busy machine changes no interval."""
    now, sleep = [0.0], asyncio.sleep

    async def pass_by(seconds: float) -> None:
        now[0] += seconds
        await sleep(0)

    monkeypatch.setattr(asyncio, "sleep", pass_by)
    return lambda: now[0]


def test_it_tries_at_growing_intervals_and_gives_up_in_time(clock):
    source = Peer(give_up_after_s=0.5, clock=clock)
    with pytest.raises(SourceLost, match=r"glove: not back after 0\.5 s, given up\. glove: nobody there"):
        asyncio.run(asyncio.wait_for(times(source, 2), 5))
    assert source.tries == pytest.approx([0, 0.1, 0.3, 0.5])  # the last pause ends when it gives up
    assert not source.connected


def test_a_lost_peer_is_told_at_once_each_time_and_before_it_is_looked_for(clock):
    source, told = Peer(give_up_after_s=0.25, there=(2, 4), clock=clock), []
    source.on_lost = lambda why: told.append((why, len(source.tries)))
    asyncio.run(asyncio.wait_for(times(source, 3), 5))
    assert told == [("glove: the connection has ended", tries) for tries in (1, 3, 5)]


def test_each_return_gives_it_its_whole_time_again(clock):
    source = Peer(give_up_after_s=0.25, there=(2, 4), clock=clock)
    assert asyncio.run(asyncio.wait_for(times(source, 3), 5)) == [0, 2, 4]
    assert source.tries[4] - source.tries[0] > 0.25


@pytest.mark.parametrize("error", [SensorError("glove: refused."), KeyError("a mistake")])
def test_what_no_other_try_would_mend_ends_it_at_once(error):
    source = Peer(give_up_after_s=60.0, there=(1, 2), end=error)
    with pytest.raises(SourceLost, match=r"refused|a mistake"):
        asyncio.run(asyncio.wait_for(times(source, 2), 5))
    assert len(source.tries) == 1


def test_a_consumer_that_waits_while_another_closes_is_told():
    async def run() -> None:
        source = Peer(give_up_after_s=60.0)
        await source.connect()
        await anext(source)
        waiting = asyncio.ensure_future(anext(source))
        await asyncio.sleep(0.01)
        await source.close()
        with pytest.raises(SourceLost, match="was closed"):
            await waiting
        await source.close()

    asyncio.run(asyncio.wait_for(run(), 5))


def test_without_a_connection_nothing_can_be_waited_for():
    async def run() -> None:
        await anext(Peer(give_up_after_s=1.0))

    with pytest.raises(SourceLost, match="glove: is not connected; use it in `async with`"):
        asyncio.run(run())
