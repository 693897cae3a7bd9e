"""The only holder of a robot: opinions come in, limited commands that expire go out, and whatever goes wrong stops it.

Two threads. *Control* wakes with every intent, at the latest every period, and is the only one that changes the state
(`safety_states`) or sends commands (`safety_control`). *Watchdog* looks on: if control does not come back from the
robot's driver, it tells the robot to stop. Should that fail too, the last command expires, 100 ms after the frame that
it comes from.

An intent waits in one place; a newer one takes it. Nothing is queued but requests of people and reports of faults.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from concurrent.futures import Future
from dataclasses import replace
from typing import Self

from sensors.command_log import CommandLog
from sensors.intent import Intent
from sensors.lock import RobotLock
from sensors.robot import Robot, RobotError
from sensors.safety_checks import Fault, SafetyConfig, Trouble
from sensors.safety_control import LATENCIES, Answer, Control, Request, Snapshot
from sensors.safety_states import LIVE, Event, State
from sensors.stream import Clock, SensorError

HANG_LOOKS = 5  # of the watchdog, without a sign of control between them
LOOK_S = 0.01
JOIN_S = 1.0


class Safety:
    """`with Safety(robot, config, log) as safety: ...`, disarmed at first; all methods are for any thread.

    Requests (`arm`, `disarm`, `estop`, `clear`, `report`) return at once; their answer comes with the next turn of the
    loop: `safety.arm("Ana").result(1)`. Each names who asks. None waits for a bridge to be opened: it is refused.
    """

    def __init__(self, robot: Robot, config: SafetyConfig, log: CommandLog, clock: Clock = time.monotonic) -> None:
        """robot: not connected; from here on nobody else's."""
        self.config = config
        self.superseded = 0  # intents that a newer one replaced before they were looked at
        self._robot = robot
        self._log = log
        self._control = Control(robot, config, log, clock)
        self._lock = RobotLock(robot.info.uri)
        self._news = threading.Condition()
        self._intent: Intent | None = None
        self._held = -math.inf
        self._requests: list[Request] = []
        self._turns = 0
        self._hung = False
        self._open = False  # requests are taken
        self._closing = False  # threads shall end
        self._threads: list[threading.Thread] = []
        self._taken = contextlib.ExitStack()  # what has to be let go

    def submit(self, intent: Intent) -> None:
        with self._news:
            if self._intent is not None:
                self.superseded += 1
            self._intent = intent
            self._news.notify()

    def hold(self, received: float) -> None:
        """A key or a topic holds; to be repeated, for a hold ages as an intent does.

        received: s, monotonic: when this machine had it.
        """
        with self._news:
            self._held = received

    def release(self) -> None:
        """The key or the topic lets go."""
        with self._news:
            self._held = -math.inf
            self._news.notify()

    def arm(self, who: str) -> Future[Answer]:
        """Accepted if an intent is fresh, the robot is measured to stand and the hold is let go."""
        return self._ask(Request(Event.ARM, _named(who)))

    def disarm(self, who: str) -> Future[Answer]:
        return self._ask(Request(Event.DISARM, _named(who)))

    def estop(self, who: str, why: str = "") -> Future[Answer]:
        """Stop and stay so, until a person clears it."""
        return self._ask(Request(Event.ESTOP, _named(who), why))

    def clear(self, who: str, why: str) -> Future[Answer]:
        """A person says why the emergency is over; the bridge is disarmed then.

        Raises:
            SensorError: no reason is given.
        """
        if not why.strip():
            raise SensorError("safety: an emergency stop is cleared with a reason; say why it is over.")
        return self._ask(Request(Event.CLEAR, _named(who), why))

    def report(self, fault: Fault, why: str, who: str = "bridge") -> Future[Answer]:
        """What another part of the bridge found wrong; not accepted where nothing is armed."""
        return self._ask(Request(Event.FAULT, who, why, fault))

    @property
    def snapshot(self) -> Snapshot:
        snapshot = self._control.snapshot
        counts = snapshot.counts | {"superseded": self.superseded}
        if self._hung and snapshot.state in LIVE:
            trouble = Trouble(Fault.HANG, "the robot's driver does not return")
            return replace(snapshot, state=State.FAULT, why=trouble.why, fault=trouble, counts=counts)
        return replace(snapshot, counts=counts)

    def latencies(self, newest: int = LATENCIES) -> list[float]:
        """s, from the reception of a frame to the moment its first command was sent; the oldest first.

        To look at a few is cheap; to look at all holds up the other threads for a millisecond.
        """
        return self._control.latencies(newest).tolist()

    @property
    def thread_ids(self) -> dict[str, int]:
        """The system's, by name, for pinning them to cores."""
        return {thread.name: thread.native_id for thread in self._threads if thread.native_id is not None}

    def open(self) -> None:
        """Take the robot and begin, disarmed. The log is opened by who made it.

        Raises:
            RobotError: another bridge has the robot, or it is not to be had.
        """
        with contextlib.ExitStack() as taken:
            self._lock.acquire()
            taken.callback(self._lock.release)
            if any(thread.is_alive() for thread in self._threads):  # it would go on beside the new one
                raise RobotError(
                    f"{self._robot.info.uri}: its driver has not returned since this bridge was closed; begin anew in "
                    "another process."
                )
            self._robot.connect()
            taken.callback(self._robot.close)
            taken.callback(self._end)
            self._closing, self._open, self._threads = False, True, []
            for target, name in ((self._run, "safety control"), (self._watch, "safety watchdog")):
                thread = threading.Thread(target=target, name=name, daemon=True)
                thread.start()
                self._threads.append(thread)
            self._taken = taken.pop_all()

    def close(self) -> None:
        """Stop the robot and let it go; safe to call twice."""
        with self._taken:  # of which a person's Ctrl-C in between leaves nothing out
            with self._news:  # nobody arms it once more after this
                answer = self.disarm("close")
                self._open = False
            with contextlib.suppress(TimeoutError):  # control hangs in the driver
                answer.result(JOIN_S)

    def _end(self) -> None:
        """End the threads, but for one that hangs in the driver, and answer what nobody looks at any more."""
        with self._news:
            self._open, self._closing = False, True
            self._news.notify()
        for thread in self._threads:
            thread.join(JOIN_S)
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        with self._news:
            left, self._requests = self._requests, []
        for request in left:
            self._refuse(request)

    def _ask(self, request: Request) -> Future[Answer]:
        with self._news:
            taken = self._open
            if taken:
                self._requests.append(request)
                self._news.notify()
        if not taken:
            self._refuse(request)
        return request.answer

    def _refuse(self, request: Request) -> None:
        request.answer.set_result(Answer(False, self.snapshot.state, "the bridge is not open"))

    def _run(self) -> None:
        while True:
            with self._news:
                if not (self._intent or self._requests or self._closing):
                    self._news.wait(self.config.period_s)
                if self._closing:
                    return
                intent, self._intent = self._intent, None
                requests, self._requests = self._requests, []
                held = self._held
            self._control.turn(intent, held, requests)
            self._turns += 1

    def _watch(self) -> None:
        """Looks are counted, not time: a process that as a whole stood still has not hung."""
        seen, looks = -1, 0
        while not self._closing:
            time.sleep(LOOK_S)
            if self._turns != seen:
                seen, looks, self._hung = self._turns, 0, False
                continue
            looks += 1
            if looks == HANG_LOOKS:
                self._hung = True
                self.report(Fault.HANG, "the robot's driver did not return", "watchdog")
                with contextlib.suppress(Exception):  # then what it was sent last expires
                    self._robot.stop()

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _named(who: str) -> str:
    if not who.strip():
        raise SensorError("safety: a request needs the name of who asks.")
    return who
