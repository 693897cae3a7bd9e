"""Frames through the Lab Streaming Layer, from outlets of this process and of another one."""

import asyncio
import subprocess
import sys
import time
import uuid
from collections.abc import Awaitable, Callable

import numpy as np
import pytest

pytest.importorskip("pylsl")

import pylsl

from data.frame import Channel
from sensors.sources.lsl import LslConfig, LslSource
from sensors.stream import SensorError, SourceLost, StreamInfo

INFO = StreamInfo("glove", (Channel("bend", "deg"), Channel("twist", "")), rate_hz=200.0)
SENDER = """
import sys, time, pylsl
outlet = pylsl.StreamOutlet(pylsl.StreamInfo(sys.argv[1], "glove", 2, 200, "float32", sys.argv[1]))
while True:
    outlet.push_sample([1.0, 2.0])
    time.sleep(0.005)
"""


def outlet(name: str, channels: int = 2, rate: float = 200.0, kind: str = "float32", labels=(), units=(), source=""):
    info = pylsl.StreamInfo(name, "glove", channels, rate, kind, source)
    if labels:
        info.set_channel_labels(list(labels))
    if units:
        info.set_channel_units(list(units))
    return pylsl.StreamOutlet(info, max_buffered=1)


@pytest.fixture
def name() -> str:
    return f"glove {uuid.uuid4()}"


def within(seconds: float, work: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(work(), seconds))


def test_samples_come_with_stamps_of_this_machines_clock(name):
    async def work() -> None:
        sender = outlet(name, labels=["bend", "twist"], units=["deg", "m"])
        async with LslSource(LslConfig(name), INFO) as source:
            assert source.connected
            before = time.monotonic()
            sender.push_sample([1.5, np.nan])
            sender.push_sample([2.5, -3.0])
            first, second = await anext(source), await anext(source)
            assert first.mask.tolist() == [True, False]
            assert second.values.tolist() == [2.5, -3.0]
            assert before - 0.002 < first.time < first.received <= second.received <= time.monotonic()
        assert not source.connected

    within(20, work)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": 3}, "has 3 channels, expected 2: bend, twist"),
        ({"labels": ["twist", "bend"]}, "its channel 1 is twist, not bend"),
        ({"units": ["rad", ""]}, "channel bend is in rad, expected deg"),
        ({"rate": 10_000.0}, "comes at 10000 Hz, expected 200 Hz"),
        ({"kind": "string"}, "a stream of text, expected numbers"),
    ],
)
def test_a_stream_that_is_not_the_configured_one_is_refused(name, settings, message):
    async def work() -> None:
        sender = outlet(name, **settings)
        with pytest.raises(SensorError, match=message):
            await LslSource(LslConfig(name), INFO).connect()
        del sender

    within(20, work)


def test_two_streams_of_one_name_need_a_source_id(name):
    async def work() -> None:
        senders = [outlet(name, source=source) for source in ("left", "right")]
        for _ in range(50):  # liblsl answers as soon as it knows one
            if len(pylsl.resolve_byprop("name", name, 2, 0.1)) == 2:
                break
        async with LslSource(LslConfig(name, source_id="right"), INFO) as source:
            senders[0].push_sample([1, 1])
            senders[1].push_sample([2, 2])
            assert (await anext(source)).values.tolist() == [2, 2]

    within(20, work)


def test_a_stream_that_is_not_there_is_named(name):
    async def work() -> None:
        with pytest.raises(SensorError, match=f"no stream with name='{name}' answered within 0.2 s. Start its outlet"):
            await LslSource(LslConfig(name, resolve_s=0.2), INFO).connect()

    within(20, work)


def test_an_outlet_that_is_killed_is_noticed_at_once_and_found_again(name):
    def sender() -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", SENDER, name], stderr=subprocess.DEVNULL)

    async def work() -> None:
        process = sender()
        try:
            config = LslConfig(name, resolve_s=10.0, give_up_after_s=20.0)
            async with LslSource(config, INFO) as source:
                await anext(source)
                process.kill()
                killed = time.monotonic()
                while source.connected:
                    await asyncio.sleep(0.002)
                assert time.monotonic() - killed < 0.5
                process.wait()
                process = sender()
                while not source.connected:
                    await asyncio.sleep(0.01)
                again = time.monotonic()
                while (await anext(source)).received < again:
                    pass
        finally:
            process.kill()
            process.wait()

    within(30, work)


def test_an_outlet_that_does_not_come_back_is_given_up(name):
    async def work() -> None:
        sender = outlet(name)
        async with LslSource(LslConfig(name, resolve_s=0.1, give_up_after_s=0.2), INFO) as source:
            sender.push_sample([1, 1])
            await anext(source)
            del sender
            with pytest.raises(SourceLost, match=r"given up\. .*no stream with"):
                await anext(source)

    within(20, work)


@pytest.mark.parametrize("settings", [{"name": ""}, {"name": "it's"}, {"name": "a", "resolve_s": 0.0}])
def test_settings_that_cannot_be_are_refused(settings):
    with pytest.raises(SensorError, match="lsl"):
        LslConfig(**settings)
