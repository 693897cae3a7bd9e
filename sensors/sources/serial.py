"""Frames over a serial line: a small protocol that notices corruption and finds its feet again.

    packet   COBS(body) 0x00
    body     little-endian: version uint8 = 1 | sequence uint16 | time uint64 | C times float32 | CRC-32 uint32

`sequence` rises by one a frame and wraps; what is missing in it was lost on the line. `time` is the device's own
clock, in microseconds, of any origin. NaN marks a channel that was not observed. The CRC (that of zlib and Ethernet) is
over the body before it. COBS (Cheshire & Baker, Consistent overhead byte stuffing, IEEE/ACM Trans. Networking 7(2),
1999) leaves no zero inside a packet, so after any damage the next zero is where a packet ends. A frame is handed on
only if its length, version and CRC are right; of damaged ones a CRC lets one in 2^32 pass.

Devices in Python send `encode_packet`; others follow the layout above.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import serial
from numpy.typing import NDArray

from sensors.sources.live import LiveSource
from sensors.sources.settings import refuse_unless
from sensors.stream import Clock, SensorError, StreamInfo

VERSION = 1
HEAD = struct.Struct("<BHQ")
CHECK = struct.Struct("<I")
READ_BYTES = 4096
FURTHEST = 1024  # a sequence that is further ahead is of a device that started anew


class Packet(NamedTuple):
    sequence: int  # 0 to 65535
    time: float  # s
    values: NDArray[np.float32]  # (C,)


def encode_packet(sequence: int, time_us: int, values: NDArray[np.float32]) -> bytes:
    body = HEAD.pack(VERSION, sequence & 0xFFFF, time_us) + values.astype("<f4").tobytes()
    return stuff(body + CHECK.pack(zlib.crc32(body))) + b"\0"


def stuff(data: bytes) -> bytes:
    """COBS: the same bytes without a zero; one more byte for each 254."""
    stuffed = bytearray()
    for run in data.split(b"\0"):
        while len(run) >= 254:
            stuffed += b"\xff" + run[:254]
            run = run[254:]
        stuffed.append(len(run) + 1)
        stuffed += run
    return bytes(stuffed)


def unstuff(data: bytes) -> bytes | None:
    """What `stuff` was given; None if this is not of its making."""
    plain, place = bytearray(), 0
    while place < len(data):
        code = data[place]
        run = data[place + 1 : place + code]
        if code == 0 or len(run) != code - 1:
            return None
        plain += run
        place += code
        if code < 255 and place < len(data):
            plain.append(0)
    return bytes(plain)


class PacketReader:
    """Packets out of a stream of bytes that may be damaged in any way. `drop` hears of what was lost, and why."""

    def __init__(self, channels: int, drop: Callable[[str], None]) -> None:
        self.channels = channels
        self._drop = drop
        self._length = HEAD.size + 4 * channels + CHECK.size
        self._longest = self._length + self._length // 254 + 1  # stuffed
        self._kept = b""
        self._skipping = False  # until the next zero: what there was is too long for a packet
        self._last: Packet | None = None
        self.lost = 0  # frames that never came, by the sequence

    def feed(self, data: bytes) -> list[Packet]:
        """The good packets that end in `data`."""
        *ended, rest = (self._kept + data).split(b"\0")
        packets = []
        for stuffed in ended:
            packet = None if self._skipping else self._packet(stuffed)
            self._skipping = False
            if packet is not None:
                packets.append(packet)
        if len(rest) > self._longest:
            if not self._skipping:
                self._drop(f"{len(rest)} bytes without an end, expected packets of at most {self._longest}.")
            self._skipping, rest = True, b""
        self._kept = rest
        return packets

    def _packet(self, stuffed: bytes) -> Packet | None:
        if not stuffed:
            return None  # two zeros: a device may send one first, to end what noise began
        body = unstuff(stuffed)
        if body is None or len(body) != self._length:
            what = "bytes that are no COBS" if body is None else f"a packet of {len(body)} bytes"
            self._drop(f"{what}, expected {self._length} bytes: {self.channels} channels.")
            return None
        (check,) = CHECK.unpack_from(body, self._length - CHECK.size)
        if zlib.crc32(body[: -CHECK.size]) != check:
            self._drop("a packet with a wrong CRC.")
            return None
        version, sequence, time_us = HEAD.unpack_from(body)
        if version != VERSION:
            self._drop(f"a packet of version {version}, expected {VERSION}.")
            return None
        packet = Packet(sequence, time_us / 1e6, np.frombuffer(body, "<f4", self.channels, HEAD.size))
        if self._last is not None:
            missing = (sequence - self._last.sequence - 1) % 65536
            if missing == 65535 and packet.time == self._last.time:
                self._drop("a packet that came twice.")
                return None
            if missing < FURTHEST:
                self.lost += missing
        self._last = packet
        return packet


@dataclass(frozen=True)
class SerialConfig:
    """A serial port, 8 data bits, no parity, one stop bit."""

    port: str  # such as /dev/ttyUSB0
    baud: int = 115_200

    def __post_init__(self) -> None:
        refuse_unless(bool(self.port), "serial", "port", self.port, "a device such as /dev/ttyUSB0")
        refuse_unless(self.baud > 0, f"serial {self.port}", "baud", self.baud, "bits a second, above 0")


class SerialSource(LiveSource):
    """Reads packets from a serial port that no other process has; needs the event loop of a POSIX system."""

    def __init__(self, config: SerialConfig, info: StreamInfo, clock: Clock = time.monotonic) -> None:
        super().__init__(info, clock)
        self.config = config
        self._port: serial.Serial | None = None
        self._reader = self._new_reader()

    @property
    def lost(self) -> int:
        """Frames that never came, as their sequence numbers tell."""
        return self._reader.lost

    async def connect(self) -> None:
        await self.close()
        port, baud = self.config.port, self.config.baud
        try:
            opened = await asyncio.to_thread(_open, port, baud)
        except (serial.SerialException, ValueError, OSError) as error:
            raise SensorError(
                f"serial {port}: cannot be opened at {baud} baud ({error}). Is the device plugged in, may this user "
                "read it (group dialout), and has no other program got it?"
            ) from error
        self._port, self._reader = opened, self._new_reader()
        self._begin()
        asyncio.get_running_loop().add_reader(opened.fileno(), self._read)
        self.connected = True

    async def close(self) -> None:
        self._shut("was closed.")

    def _new_reader(self) -> PacketReader:
        return PacketReader(len(self.info.channels), lambda why: self.drop(f"serial {self.config.port}: {why}"))

    def _read(self) -> None:
        if self._port is None:
            return
        received = self.clock()
        try:
            data = os.read(self._port.fileno(), READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._shut(f"serial {self.config.port}: is gone ({error}). Plug the device in again, then connect again.")
            return
        if not data:
            self._shut(f"serial {self.config.port}: hung up. Plug the device in again, then connect again.")
            return
        for packet in self._reader.feed(data):
            self.take(packet.time, received, packet.values)

    def _shut(self, why: str) -> None:
        if self._port is not None:
            asyncio.get_running_loop().remove_reader(self._port.fileno())
            with contextlib.suppress(OSError):
                self._port.close()
            self._port = None
        self._end(why)


def _open(port: str, baud: int) -> serial.Serial:
    """The port, with nothing of what came before in its buffer."""
    opened = serial.Serial(port, baud, timeout=0, exclusive=True)
    with contextlib.suppress(ValueError, NotImplementedError, AttributeError):  # not every driver keeps bytes back
        opened.set_low_latency_mode(True)
    return opened
