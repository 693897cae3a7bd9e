"""A gesture bridge with everything around it, each part so that it can be made to fail.

A *sender* process publishes frames to a real mosquitto; the bridge subscribes through a *proxy* process and drives a
*robot* process, which executes velocities, lets them expire by its own clock, and writes down what it did. In between
is the bridge as `mnemo bridge` runs it: `MqttSource`, `Aligner`, `Bridge`, `Safety`. Only its model is one that tells
two gestures apart by a rule, and its map takes the hand's numbers as velocities.

Processes talk through a small shared memory, so that telling one to fail takes no time.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import itertools
import multiprocessing as mp
import os
import random
import select
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.sharedctypes import RawValue
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.frame import Channel
from sensors.align import AlignConfig, Aligner
from sensors.bridge import Bridge
from sensors.command_log import CommandLog
from sensors.intent import Intent
from sensors.limits import Limits
from sensors.recognise import Recognition
from sensors.recogniser import RecogniserError
from sensors.robot import Command, Robot, RobotError, RobotInfo, RobotState
from sensors.safety import Safety
from sensors.safety_checks import SafetyConfig
from sensors.safety_states import State
from sensors.sources.mqtt import MqttConfig, MqttSource
from sensors.sources.payload import encode_binary
from sensors.stream import Clock, Frame, StreamInfo

RATE_HZ = 200.0
TOPIC = b"glove"
CHANNELS = tuple(
    [Channel(f"hand {name}", "m/s", -1.0, 1.0) for name in "xyz"]
    + [Channel(f"hand turn {name}", "rad/s", -3.0, 3.0) for name in "xyz"]
    + [Channel(f"finger {name}", "1", -2.0, 2.0) for name in "ab"]
)
INFO = StreamInfo("glove", CHANNELS, RATE_HZ)
POINT, REST = (1.0, 0.0), (0.0, 1.0)  # fingers
LIMITS = Limits(0.25, 2.0, 40.0, 1.0, 8.0, 160.0, 3.0, 2.0, 0.05, 0.1, (-0.2, -0.2, -0.2), (0.2, 0.2, 0.2))
CONFIG = SafetyConfig(LIMITS, confidence=0.8, hold=("point",))
LONG_S = 60.0  # what is waited for comes much sooner
SEGMENTS = 8192  # that the robot remembers


class Switches(ctypes.Structure):
    """What the processes share; each field is written by one of them."""

    _fields_ = (
        ("hold", ctypes.c_int),  # the operator points, or rests
        ("ahead", ctypes.c_double),  # m/s, what pointing asks for
        ("mode", ctypes.c_int),  # of the sender
        ("offset", ctypes.c_double),  # s, of the sender's clock
        ("cut", ctypes.c_int),  # the proxy forwards nothing
        ("proxy", ctypes.c_int),  # its port
        ("robot", ctypes.c_int),  # its port
        ("expired", ctypes.c_long),  # commands that came to the robot after their expiry; it executes none
        ("overdue", ctypes.c_long),  # commands that it was still executing a millisecond after their expiry
        ("segments", ctypes.c_long),  # that it executed
        ("starts", ctypes.c_double * SEGMENTS),  # s
        ("ends", ctypes.c_double * SEGMENTS),
    )


GOOD, DUPLICATE, REORDER, CORRUPT, NOT_A_NUMBER = range(5)


def quickly() -> None:
    """A robot's controller is a computer of its own: here it goes before everything else, where that is allowed."""
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))


# --- MQTT 3.1.1, as much as is needed: QoS 0


def packet(kind: int, body: bytes) -> bytes:
    length, left = b"", len(body)
    while True:
        left, digit = divmod(left, 128)
        length += bytes([digit | (0x80 if left else 0)])
        if not left:
            return bytes([kind]) + length + body


def text(value: bytes) -> bytes:
    return struct.pack("!H", len(value)) + value


def hello(name: str) -> bytes:
    return packet(0x10, text(b"MQTT") + bytes([4, 2]) + struct.pack("!H", 0) + text(name.encode()))


def publish(payload: bytes) -> bytes:
    return packet(0x30, text(TOPIC) + payload)


# --- the sender


def send_frames(switches: Switches, port: int) -> None:
    """Publishes at RATE_HZ, and comes back if the broker does."""
    good = b""
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port)) as link:
                link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                link.sendall(hello(f"sender-{os.getpid()}"))
                if not link.recv(4):
                    raise OSError("the broker closed")
                backwards, due = 0.0, time.monotonic()
                while True:
                    due = max(due + 1 / RATE_HZ, time.monotonic())
                    time.sleep(max(0.0, due - time.monotonic()))
                    mode = switches.mode
                    backwards = backwards + 2 / RATE_HZ if mode == REORDER else 0.0
                    values = [0.0] * len(CHANNELS)
                    values[0] = float("nan") if mode == NOT_A_NUMBER else switches.ahead
                    values[5] = 0.2
                    values[6:] = POINT if switches.hold else REST
                    now = time.monotonic() + switches.offset - backwards
                    if mode != DUPLICATE or not good:
                        good = encode_binary(now, np.array(values))
                    # What is cut off; bytes that were changed on the way are TCP's to find.
                    link.sendall(publish(good[: random.randrange(len(good))] if mode == CORRUPT else good))
        except OSError:
            time.sleep(0.01)


def spawn_senders(orders: Connection, switches: Switches, port: int) -> None:
    """A process without threads, from which senders can be forked at any time; it answers each order with a pid."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the dead
    while orders.poll(None):
        try:
            orders.recv()
        except EOFError:
            return
        pid = os.fork()
        if pid == 0:
            send_frames(switches, port)
        orders.send(pid)


# --- the proxy


def forward(switches: Switches, port: int) -> None:
    """Between the bridge and the broker; a cut leaves connections open and forwards nothing."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                while switches.cut:
                    await asyncio.sleep(0.002)
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:  # a client waits here for a broker that is not back, instead of being turned away
            try:
                far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
                break
            except OSError:
                await asyncio.sleep(0.01)
        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))

    async def run() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        switches.proxy = server.sockets[0].getsockname()[1]
        await server.serve_forever()

    asyncio.run(run())


# --- the robot

ORDER = struct.Struct("!qd6d")  # sequence (-1 stops), expiry in s of the machine's monotonic clock, twist
MEASURED = struct.Struct("!3d6d")  # position in m, velocities


def execute(switches: Switches) -> None:
    """A point that moves as told until told otherwise or until the command expires; it measures itself at 200 Hz.

    What it writes down is when it really began and ended, its own lateness included.
    """
    quickly()
    link = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    link.bind(("127.0.0.1", 0))
    switches.robot = link.getsockname()[1]
    position, twist = np.zeros(3), np.zeros(6)
    expires, since, report, peer = 0.0, time.monotonic(), 0.0, None
    while True:
        now = time.monotonic()
        moving = bool(twist.any())
        wake = min(report, expires) if moving else report
        ready, _, _ = select.select([link], [], [], max(0.0, wake - now))
        message = link.recvfrom(1024) if ready else None
        now = time.monotonic()
        if moving:
            position += twist[:3] * (now - since)
            index = switches.segments % SEGMENTS
            switches.starts[index], switches.ends[index] = since, now
            switches.segments += 1
            switches.overdue += now > expires + 0.001
        since = now
        if moving and now >= expires:
            twist = np.zeros(6)
        if message:
            peer = message[1]
            if len(message[0]) == ORDER.size:
                sequence, until, *wanted = ORDER.unpack(message[0])
                if sequence < 0:
                    twist = np.zeros(6)
                elif not now < until <= now + CONFIG.watchdog_s + 0.001:
                    switches.expired += 1
                else:
                    twist, expires = np.array(wanted), until
        if now >= report:
            report = now + 1 / RATE_HZ
            if peer:
                link.sendto(MEASURED.pack(*position, *twist), peer)


class WireRobot(Robot):
    """The driver of that robot, over UDP; `ails` is what is wrong with it."""

    def __init__(self, switches: Switches, uri: str, clock: Clock) -> None:
        joints = tuple(Channel(f"joint {n}", "rad", -3.0, 3.0) for n in range(6))
        self.info = RobotInfo("a point", uri, joints, has_gripper=False)
        self.ails = ""
        self.well = threading.Event()
        self.well.set()
        self._switches = switches
        self._clock = clock
        self._link = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._state: RobotState | None = None
        self._closing = False

    def connect(self) -> None:
        self._link.connect(("127.0.0.1", self._switches.robot))
        self._link.settimeout(0.2)
        self._link.send(b"?")
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        while self._state is None:
            time.sleep(0.001)

    def close(self) -> None:
        self.stop()
        self._closing = True
        self._thread.join()
        self._link.close()

    def state(self) -> RobotState:
        self._suffer()
        assert self._state is not None
        return self._state

    def send(self, command: Command) -> Command:
        left = command.expires - self._clock()
        if not left > 0:
            raise RobotError(f"command {command.sequence} has expired")
        order = ORDER.pack(command.sequence, time.monotonic() + left, *command.twist)
        self._suffer(sending=True)  # after the check: a driver that hangs delivers late
        if self.ails != "mute":
            self._link.send(order)
        return command

    def stop(self) -> None:
        self._suffer()
        if self.ails != "mute":
            self._link.send(ORDER.pack(-1, 0.0, *[0.0] * 6))

    def _suffer(self, sending: bool = False) -> None:
        if self.ails == "hang" or (sending and self.ails == "hang sending"):
            self.well.wait()
        elif self.ails == "error":
            raise RobotError("the driver lost its controller")

    def _listen(self) -> None:
        while not self._closing:
            try:
                measured = MEASURED.unpack(self._link.recv(1024))
            except TimeoutError:
                continue
            if self.ails not in ("mute", "hang"):
                self._state = RobotState(
                    self._clock(),
                    np.zeros(6),
                    np.array(measured[3:]),
                    np.array(measured[:3]),
                    np.eye(4)[0],
                    float("nan"),
                    1.0,
                )


# --- the bridge


class Rule:
    """Stands in for a recogniser: which finger is stretched tells the gesture."""

    def __init__(self) -> None:
        self.poison: Callable[[], None] = lambda: None  # what it does first, with every frame
        self.newest = 0.0  # s, when a frame last got as far

    def step(self, frame: Frame) -> Recognition:
        try:
            self.poison()
        except ValueError as error:
            raise RecogniserError(str(error)) from error
        self.newest = time.monotonic()
        closeness = np.exp(-4 * np.square(frame.values[6:] - np.array([POINT, REST])).sum(1))
        return Recognition(("point", None)[int(closeness.argmax())], float(closeness.max() / closeness.sum()), (), 0)

    def restart(self) -> None:
        pass


class Hand:
    """Stands in for a map: the hand's numbers are velocities."""

    note = ""

    def step(self, gesture: str | None, confidence: float, frame: Frame, state: RobotState) -> Intent:
        return Intent(frame.received, gesture, confidence, frame.values[:6].astype(np.float64))

    def reset(self) -> None:
        pass


class Bridged:
    """The bridge with its robot, log and loop."""

    def __init__(self, switches: Switches, folder: Path) -> None:
        self.skew = 0.0  # s, by which this machine's clock is made to jump
        self.rule = Rule()
        self._switches = switches
        self.robot = WireRobot(switches, f"faults:{folder.name}", self.clock)
        self.log = CommandLog(folder / "commands.jsonl")
        self.safety = Safety(self.robot, CONFIG, self.log, self.clock)

    def clock(self) -> float:
        return time.monotonic() + self.skew

    def open(self) -> None:
        self.log.open()
        self.safety.open()
        self.start()

    def start(self) -> None:
        """Start the loop, after the last one died too."""
        threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True).start()

    async def _run(self) -> None:
        config = MqttConfig("127.0.0.1", self._switches.proxy, topic=TOPIC.decode(), payload="binary")
        source = MqttSource(config, INFO, self.clock)
        aligner = Aligner(INFO, AlignConfig(RATE_HZ))
        await Bridge(source, aligner, self.rule, Hand(), self.safety, clock=self.clock).run()


class Stopped(NamedTuple):
    """What the robot did after a fault."""

    after_s: float  # from the fault to the end of the last motion before it was armed again
    motions: int  # that began after it had stood, before it was armed again
    state: str  # of the bridge, when frames came again


class Rig:
    """All of it; `with Rig(folder) as rig`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.switches = RawValue(Switches)
        self._context = mp.get_context("fork")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self._orders, far = self._context.Pipe()
        self._processes = [
            self._context.Process(target=target, args=arguments, daemon=True)
            for target, arguments in (
                (execute, (self.switches,)),
                (forward, (self.switches, self._port)),
                (spawn_senders, (far, self.switches, self._port)),
            )
        ]
        self._broker: subprocess.Popen[bytes] | None = None
        self.sender = 0

    def __enter__(self) -> Rig:
        (self.folder / "mosquitto.conf").write_text(
            f"listener {self._port} 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\nmax_queued_messages 0\n"
        )
        for process in self._processes:
            process.start()
        self.start_broker()
        wait(lambda: self.switches.proxy and self.switches.robot, "the proxy and the robot to start")
        self.bridge = Bridged(self.switches, self.folder)
        self.bridge.open()
        self.start_sender()
        return self

    def __exit__(self, *_: object) -> None:
        self.bridge.safety.close()
        self.bridge.log.close()
        self.kill_sender()
        for process in self._processes:
            process.kill()
        self.kill_broker()

    def start_broker(self) -> None:
        self._broker = subprocess.Popen(
            ["mosquitto", "-c", str(self.folder / "mosquitto.conf")],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait(self._answers, "the broker to start")

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self._port)) == 0

    def kill_broker(self) -> None:
        if self._broker is not None:
            self._broker.kill()
            self._broker.wait()

    def start_sender(self) -> None:
        self._orders.send("another")
        self.sender = self._orders.recv()

    def kill_sender(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.sender, signal.SIGKILL)

    def measured(self) -> float:
        """m, where the robot is."""
        robot = self.bridge.safety.snapshot.robot
        return 0.0 if robot is None else float(robot.position[0])

    def segments(self, since: float) -> list[tuple[float, float]]:
        """What the robot did that ended after `since`, oldest first."""
        switches, found = self.switches, []
        for index in range(switches.segments - 1, max(-1, switches.segments - SEGMENTS), -1):
            start, end = switches.starts[index % SEGMENTS], switches.ends[index % SEGMENTS]
            if end <= since:
                break
            found.append((start, end))
        return found[::-1]

    def go(self) -> None:
        """Arm, as a person would, and point until the robot moves; again if a busy machine stops it before."""
        switches, safety = self.switches, self.bridge.safety
        safety.disarm("benchmark").result(LONG_S)  # should it not have stopped, that is counted, and this goes on
        before = switches.segments

        def moves() -> bool:
            if safety.snapshot.state in (State.DISARMED, State.FAULT):
                switches.hold = 0
                switches.ahead = -0.1 if self.measured() > 0 else 0.1
                if safety.arm("benchmark").result(LONG_S).accepted:
                    switches.hold = 1
            return switches.segments > before + 5

        wait(moves, lambda: f"the robot to move: {safety.snapshot.why}; {safety.snapshot.not_ready}")

    def fault(self, inject: Callable[[], None], heal: Callable[[], None], watch_s: float) -> Stopped | None:
        """One fault, from motion to standing; None if the robot stood already, so that it says nothing."""
        self.go()
        time.sleep(random.uniform(0.01, 0.03))
        began = time.monotonic()
        inject()
        time.sleep(max(0.0, began + watch_s - time.monotonic()))
        heal()
        healed = time.monotonic()
        # The operator still points: frames come again, and nothing may move.
        wait(lambda: self.bridge.rule.newest > healed, "frames to come again")
        time.sleep(0.02)
        state = self.bridge.safety.snapshot.state
        segments = self.segments(began)
        if not segments:
            return None
        pauses = [later[0] - earlier[1] > 1e-4 for earlier, later in itertools.pairwise(segments)]
        return Stopped(segments[-1][1] - began, sum(pauses), str(state))


def wait(true: Callable[[], object], what: str | Callable[[], str], limit_s: float = LONG_S) -> None:
    end = time.monotonic() + limit_s
    while not true():
        if time.monotonic() > end:
            raise TimeoutError(f"{limit_s:g} s are over, waiting for {what if isinstance(what, str) else what()}")
        time.sleep(0.002)
