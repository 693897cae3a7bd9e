"""A configured bridge, run: threads on their cores, the operator's keys, the panel, Prometheus, the recording.

One process. It begins disarmed; only what a person types arms it, and `quit`, the end of the input or of the stream, or
a signal ends it with the robot stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import signal
import sys
import time
from concurrent.futures import Future
from datetime import datetime
from pathlib import Path

from sensors.align import Aligner
from sensors.bridge import Bridge
from sensors.command_log import CommandLog
from sensors.config import BridgeConfig
from sensors.console import Operator, Panel
from sensors.hold import TopicHold
from sensors.mapping import Mapper
from sensors.realtime import awake, pin, steady
from sensors.recording import Recorder
from sensors.robots.dry import DryRobot
from sensors.safety import Safety
from sensors.safety_control import Answer
from sensors.stream import SourceLost
from sensors.telemetry import Durations, Reading, serve

RECORDING = "stream-%Y%m%dT%H%M%S.parquet"
SHOWN_S = 0.5  # between two commands that a dry run shows


class Session:
    """What a person can do to a running bridge."""

    def __init__(self, safety: Safety, quit: asyncio.Event, loop: asyncio.AbstractEventLoop) -> None:
        self.note = "type arm, disarm, estop, clear or quit"
        self._who = getpass.getuser()
        self._safety = safety
        self._quit, self._loop = quit, loop

    def command(self, word: str) -> None:
        """Of any thread."""
        safety, who = self._safety, self._who
        if word == "hold":
            safety.hold(time.monotonic())
        elif word == "quit":
            safety.disarm(who)
            self.tell("quit: it was typed, or the input has ended")  # at once, where the input is nothing
            self._loop.call_soon_threadsafe(self._quit.set)
        else:
            answer = {
                "arm": lambda: safety.arm(who),
                "disarm": lambda: safety.disarm(who),
                "estop": lambda: safety.estop(who, "typed"),
                "clear": lambda: safety.clear(who, "typed by the operator"),
            }[word]()
            # Told from the loop's thread: that of safety, which answers, must not wait for whoever reads.
            answer.add_done_callback(lambda done: self._loop.call_soon_threadsafe(self._tell, word, done))

    def unknown(self, word: str) -> None:
        self.tell(f"{word}: no command; expected arm, disarm, estop, clear or quit")

    def tell(self, text: str) -> None:
        self.note = text
        if not sys.stderr.isatty():  # a terminal has the panel
            print(text, file=sys.stderr, flush=True)  # noqa: T201

    def _tell(self, word: str, done: Future[Answer]) -> None:
        answer = done.result()
        self.tell(f"{word}: {answer.state}" + ("" if answer.accepted else f", refused: {answer.why}"))


class Shown:
    """What a dry run would send, some of it: a line each SHOWN_S, and every stop."""

    def __init__(self) -> None:
        self._next = 0.0

    def __call__(self, text: str) -> None:
        now = time.monotonic()
        if text == "stop" or now >= self._next:
            self._next = now + SHOWN_S
            print(f"dry run: {text}", flush=True)  # noqa: T201


async def run_bridge(
    config: BridgeConfig, *, dry_run: bool = False, record: Path | None = None, metrics: int | None = None
) -> None:
    """
    Args:
        record: a folder, for a recording named by the time.
        metrics: a port of this machine for Prometheus.

    Raises:
        SensorError: something could not be had at the start, or the source was lost for good.
    """
    robot = DryRobot(config.robot, Shown()) if dry_run else config.robot
    aligner = Aligner(config.source.info, config.align, config.source.real_time)
    mapper = Mapper(config.command_map, config.source.info.channels, config.where)
    loop, quit = asyncio.get_running_loop(), asyncio.Event()
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(CommandLog(config.commands_log))
        safety = stack.enter_context(Safety(robot, config.safety, log))
        recorder = None
        if record is not None:
            name = datetime.now().strftime(RECORDING)
            recorder = stack.enter_context(Recorder(record / name, config.source.info))
        bridge = Bridge(config.source, aligner, config.recogniser, mapper, safety, recorder)
        session = Session(safety, quit, loop)
        pauses = stack.enter_context(steady())
        granted = config.cores.awake and stack.enter_context(awake())

        def readings() -> list[Reading]:
            return [*bridge.readings(), *_own(pauses, granted, session)]

        if metrics is not None:
            stack.callback(serve(readings, metrics))
        title = f"{config.source.info.stream_id} to {robot.info.uri}" + (", dry run" if dry_run else "")
        stack.enter_context(Panel(title, readings))
        stack.enter_context(Operator(session.command, session.unknown, sys.stdin))
        for signal_ in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the last where the terminal is closed
            loop.add_signal_handler(signal_, quit.set)
            stack.callback(loop.remove_signal_handler, signal_)
        if config.hold is not None:
            stack.enter_context(TopicHold(config.hold, safety.hold, safety.release))
        _pin(config, safety)
        try:
            await _until(bridge, quit)
        finally:
            if config.person is not None:
                config.recogniser.person(config.person.stem).save(config.person)


async def _until(bridge: Bridge, quit: asyncio.Event) -> None:
    """Whichever comes first: the end of the stream, or the person's."""
    running, ended = asyncio.ensure_future(bridge.run()), asyncio.ensure_future(quit.wait())
    try:
        await asyncio.wait({running, ended}, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()
    finally:
        for task in (running, ended):
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError, SourceLost):
            await running


def _pin(config: BridgeConfig, safety: Safety) -> None:
    if config.cores.frames >= 0:
        pin(config.cores.frames)
    if config.cores.robot >= 0:
        for thread in safety.thread_ids.values():
            pin(config.cores.robot, thread)


def _own(pauses: Durations, granted: bool, session: Session) -> list[Reading]:
    return [
        Reading("gc_pauses_total", "garbage collections", "counter", pauses.count),
        Reading("gc_pause_max_seconds", "longest of them", "gauge", pauses.longest, "s"),
        Reading("cores_awake", "cores kept awake, 0 or 1", "gauge", float(granted)),
        Reading("operator_note", "said", "text", session.note),
    ]
