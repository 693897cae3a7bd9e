"""A serial line that damages what it carries, over a pseudo-terminal."""

import asyncio
import contextlib
import itertools
import os
import pty
import random
import struct
import time
import tty
import zlib
from collections.abc import Awaitable, Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("serial")

from data.frame import Channel
from sensors.sources.serial import PacketReader, SerialConfig, SerialSource, encode_packet, stuff, unstuff
from sensors.stream import SensorError, SourceLost, StreamInfo

INFO = StreamInfo("glove", (Channel("bend", "deg"), Channel("twist", "deg")), rate_hz=200.0)


def packet(index: int) -> bytes:
    return encode_packet(index, index * 5000, np.float32([index, -index]))


def read(data: bytes, cuts: list[int] | None = None) -> tuple[list[int], list[str], PacketReader]:
    """Numbers of the packets in `data`, fed in pieces; what was dropped; the reader."""
    drops: list[str] = []
    reader = PacketReader(2, drops.append)
    numbers = []
    places = [0, *sorted(cuts or []), len(data)]
    for start, end in itertools.pairwise(places):
        for got in reader.feed(data[start:end]):
            assert (got.time, got.values.tolist()) == (got.sequence * 5000 / 1e6, [got.sequence, -got.sequence])
            numbers.append(got.sequence)
    return numbers, drops, reader


@given(data=st.binary(max_size=600))
def test_stuffing_leaves_no_zero_and_is_undone(data):
    assert 0 not in stuff(data)
    assert unstuff(stuff(data)) == data


@pytest.mark.parametrize(
    ("plain", "stuffed"),
    [("00", "0101"), ("1100", "021101"), ("11220033", "0311220233"), ("01" * 253, "fe" + "01" * 253)],
)
def test_stuffing_is_the_published_one(plain, stuffed):
    assert stuff(bytes.fromhex(plain)).hex() == stuffed


def test_long_runs_end_with_or_without_the_last_code():
    run = bytes([7]) * 254
    assert unstuff(b"\xff" + run) == run  # as some encoders write it
    assert unstuff(b"\xff" + run + b"\x01") == run  # as others do
    assert unstuff(b"\xff" + run + b"\x01\x01") == run + b"\0"


def test_a_packet_is_what_the_layout_says():
    body = unstuff(encode_packet(513, 1_500_000, np.float32([1.0, -2.5]))[:-1])
    assert body[:-4].hex() == "01010260e31600000000000000803f000020c0"
    assert struct.unpack("<I", body[-4:])[0] == zlib.crc32(body[:-4])


@given(cuts=st.lists(st.integers(0, 28 * 20), max_size=12))
def test_packets_come_whole_however_the_bytes_are_cut(cuts):
    data = b"".join(map(packet, range(20)))
    numbers, drops, reader = read(data, [min(cut, len(data)) for cut in cuts])
    assert numbers == list(range(20))
    assert (drops, reader.lost) == ([], 0)


DAMAGE = st.tuples(
    st.sampled_from(["flip", "drop", "repeat", "insert", "cut", "zero"]), st.floats(0, 1), st.integers(0, 255)
)


@settings(max_examples=40)
@given(damages=st.lists(DAMAGE, min_size=1, max_size=12))
def test_damaged_packets_are_never_taken_and_the_good_ones_after_are(damages):
    """Of any packet only what was sent gets through, in order, and the stream is whole again after the damage."""
    data = bytearray(b"".join(map(packet, range(30))))
    for kind, where, byte in damages:
        place = int(where * (len(data) - 40))
        if kind == "flip":
            data[place] ^= 1 << byte % 8
        elif kind == "drop":
            del data[place]
        elif kind == "repeat":
            data[place:place] = data[place : place + byte % 40]
        elif kind == "insert":
            data[place:place] = random.Random(byte).randbytes(byte % 8)
        elif kind == "zero":
            data[place] = 0
        else:
            del data[place : place + byte % 60]
    data += b"\0" + b"".join(map(packet, range(30, 40)))
    numbers, _, _ = read(bytes(data), [int(where * len(data)) for _, where, _ in damages])
    assert set(numbers) <= set(range(40))
    assert numbers[-10:] == list(range(30, 40))


def test_each_damage_is_counted_with_its_reason():
    good = packet(1)
    wrong = bytearray(good)
    wrong[12] ^= 4
    other = encode_packet(2, 0, np.float32([1, 2, 3]))
    version = bytes([9]) + unstuff(good[:-1])[1:-4]
    version = stuff(version + struct.pack("<I", zlib.crc32(version))) + b"\0"
    numbers, drops, _ = read(b"\x05\x01\0" + bytes(wrong) + other + version + packet(3))
    assert numbers == [3]
    assert drops == [
        "bytes that are no COBS, expected 23 bytes: 2 channels.",
        "a packet with a wrong CRC.",
        "a packet of 27 bytes, expected 23 bytes: 2 channels.",
        "a packet of version 9, expected 1.",
    ]


def test_what_never_ends_is_dropped_as_one_and_the_next_packet_is_taken():
    drops: list[str] = []
    reader = PacketReader(2, drops.append)
    for _ in range(1000):
        reader.feed(bytes([3]) * 1000)
    assert drops == ["1000 bytes without an end, expected packets of at most 24."]
    assert len(reader.feed(b"\0" + packet(1))) == 1


def test_packets_that_never_came_or_came_twice_are_counted():
    data = packet(65534 % 65536) + b"".join(packet(index) for index in (3, 4, 4, 8))
    drops: list[str] = []
    reader = PacketReader(2, drops.append)
    assert [got.sequence for got in reader.feed(data)] == [65534, 3, 4, 8]
    assert reader.lost == 4 + 3  # 65535, 0, 1, 2 and 5, 6, 7
    assert drops == ["a packet that came twice."]
    reader.feed(packet(40_000))  # the device started anew
    assert reader.lost == 7


@pytest.fixture
def line():
    """A pseudo-terminal: the device's end, and the name of ours."""
    device, ours = pty.openpty()
    tty.setraw(ours)
    yield device, os.ttyname(ours)
    os.close(ours)
    with contextlib.suppress(OSError):
        os.close(device)


def within(seconds: float, work: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(work(), seconds))


def test_frames_come_through_a_terminal_that_damages_some(line):
    device, name = line

    async def work() -> None:
        before = time.monotonic()
        async with SerialSource(SerialConfig(name), INFO) as source:
            os.write(device, b"\x07noise\0" + packet(1) + packet(2)[:9] + b"\0" + packet(3))
            first, second = await anext(source), await anext(source)
            assert [first.time, second.time] == [0.005, 0.015]
            assert second.values.tolist() == [3, -3]
            assert before < first.received <= time.monotonic()
            assert (source.dropped, source.lost) == (2, 1)
            assert source.last_drop.startswith(f"serial {name}: ")

    within(5, work)


def test_what_came_before_connecting_is_not_taken(line):
    device, name = line

    async def work() -> None:
        os.write(device, packet(1))
        await asyncio.sleep(0.02)
        async with SerialSource(SerialConfig(name), INFO) as source:
            os.write(device, packet(2))
            assert (await anext(source)).time == 0.01

    within(5, work)


def test_a_device_that_is_unplugged_ends_the_stream(line):
    device, name = line

    async def work() -> None:
        async with SerialSource(SerialConfig(name), INFO) as source:
            os.write(device, packet(1))
            await anext(source)
            os.close(device)
            with pytest.raises(SourceLost, match=f"serial {name}: (is gone|hung up).*Plug"):
                await anext(source)
            assert not source.connected

    within(5, work)


def test_a_port_that_is_not_there_or_taken_is_named(line):
    _, name = line

    async def work() -> None:
        with pytest.raises(SensorError, match=r"serial /dev/nowhere: cannot be opened .*plugged in"):
            await SerialSource(SerialConfig("/dev/nowhere"), INFO).connect()
        async with SerialSource(SerialConfig(name), INFO):
            with pytest.raises(SensorError, match="no other program"):
                await SerialSource(SerialConfig(name), INFO).connect()

    within(5, work)


@pytest.mark.parametrize(
    ("settings", "message"), [({"port": ""}, "port is ''"), ({"port": "a", "baud": 0}, "baud is 0")]
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(SensorError, match=message):
        SerialConfig(**settings)
