"""One turn of the loop that holds a robot: what was asked, what is measured, what follows, what is sent.

It runs in one thread and has no lock; `safety` calls `turn` and owns the threads. Every turn measures first and asks
the clock after that, so that nothing it looks at is from the future.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sensors.command_log import CommandLog
from sensors.intent import STILL, Intent
from sensors.limits import Limiter, gripper_step
from sensors.robot import Command, Robot, RobotError, RobotState
from sensors.safety_checks import (
    BOX_MARGIN_M,
    Fault,
    SafetyConfig,
    Trouble,
    age,
    authorised,
    check_intent,
    check_robot,
    outside,
    standing,
)
from sensors.safety_states import COMMANDING, LIVE, Action, Event, State, follow
from sensors.stream import Clock

LATENCIES = 100_000  # that are remembered
UNIT = 0.01  # what a quaternion's length may be off 1
FAILED = "the loop failed; see the fault"


class Answer(NamedTuple):
    """What became of a request."""

    accepted: bool
    state: State
    why: str  # if it was not accepted


@dataclass(frozen=True)
class Request:
    """What another thread asks for."""

    event: Event
    who: str
    why: str = ""
    fault: Fault | None = None  # of Event.FAULT
    answer: Future[Answer] = field(default_factory=Future)

    def __post_init__(self) -> None:
        self.answer.set_running_or_notify_cancel()  # from here on who waits may give up, but not undo it


@dataclass(frozen=True)
class Snapshot:
    """What a panel and a meter show; a new one every turn."""

    time: float  # s
    state: State
    why: str  # it is in this state
    fault: Trouble | None  # the last one, whatever came after
    intent: Intent | None  # the newest
    intent_age: float  # s; infinite before the first
    held: bool
    robot: RobotState | None
    robot_age: float  # s
    sent: Command | None  # the last command, as the driver sent it
    slowest: float  # s, of all `latencies`
    counts: dict[str, int]
    not_ready: str  # why it could not be armed now; empty if it could


class Control:
    """Holds the robot; begins disarmed."""

    def __init__(self, robot: Robot, config: SafetyConfig, log: CommandLog, clock: Clock = time.monotonic) -> None:
        """robot: connected by who calls `turn`."""
        self._robot = robot
        self._config = config
        self._log = log
        self._clock = clock
        self._limiter = Limiter(config.limits)
        self._state = State.DISARMED
        self._why = "it has not been armed yet"
        self._fault: Trouble | None = None
        self._intent: Intent | None = None
        self._fresh = False  # the newest intent has not led to a command yet
        self._held = -math.inf
        self._measured: RobotState | None = None
        self._now = clock()
        self._commanded = -math.inf  # s, when
        self._sequence = 0
        self._sent: Command | None = None
        self._latencies = np.zeros(LATENCIES)  # s, a ring
        self._timed = 0  # latencies so far
        self._slowest = 0.0
        self._gripper = math.nan
        self._excess = 0.0  # m, how far out of its box the tool may be
        self._log_drops = 0  # records that the log had lost when it was armed
        self._stopping = False  # the robot could not be told to stop yet
        self._counts: Counter[str] = Counter(
            dict.fromkeys(("intents", "late", "refused", "commands", "faults", "overruns", "stops failed"), 0)
        )
        self.snapshot = self._show("nothing has been measured yet")

    def turn(self, intent: Intent | None = None, held: float = -math.inf, requests: Sequence[Request] = ()) -> None:
        """
        Args:
            intent: the newest since the last turn.
            held: s, when a key or a topic last held.
            requests: in the order in which they came; each is answered.
        """
        self._held = held
        not_ready = FAILED
        follows = self._state in COMMANDING  # what is sent now follows what was sent before
        try:
            trouble = self._look(intent)
            not_ready = self._not_ready(trouble)
            if trouble is not None:
                self._fail(trouble)
            for request in requests:
                self._answer(request, not_ready)
            wish = self._intent and f"{self._intent.gesture} with confidence {self._intent.confidence:.2f}"
            self._follow(Event.HOLD if self._authorised else Event.REST, wish or "")
            if self._state in COMMANDING:
                self._command(follows)
        except Exception as error:  # whatever it is, the robot stops and the loop goes on
            self._fail(Trouble(Fault.INTERNAL, f"{type(error).__name__}: {error}"))
            for request in requests:  # an emergency stop counts all the same; nobody is armed
                if not request.answer.done():
                    self._answer(request, FAILED)
        if self._stopping:
            self._stop()
        self.snapshot = self._show(not_ready)

    def latencies(self, newest: int = LATENCIES) -> NDArray[np.float64]:
        """s, from the reception of an intent's frame to when its first command was sent; the oldest first."""
        timed = self._timed
        return self._latencies[np.arange(timed - min(newest, timed, LATENCIES), timed) % LATENCIES]

    @property
    def _authorised(self) -> bool:
        return authorised(self._intent, self._held, self._now, self._config)

    def _look(self, intent: Intent | None) -> Trouble | None:
        """Take what is new, and say what is wrong."""
        troubles: list[Trouble | None] = []
        known, self._measured = self._measured, None
        try:
            measured = self._robot.state()
            if abs(np.linalg.norm(measured.orientation) - 1) > UNIT:  # nobody can turn by it; a NaN is looked at below
                raise RobotError(f"orientation is {measured.orientation}, expected a quaternion of unit length")
            self._measured = measured
        except Exception as error:
            troubles.append(Trouble(Fault.DRIVER, f"the robot's state: {error or type(error).__name__}"))
        before, self._now = self._now, self._clock()
        troubles.append(self._check_clock(before))
        if self._measured is not None:
            troubles.append(check_robot(self._measured, self._now, self._config))
            unseen = self._measured.time - known.time if known else 0.0
            if self._state in LIVE and not unseen <= self._config.watchdog_s:
                # Fresh again before the loop looked; what the robot did meanwhile, nobody knows.
                troubles.append(Trouble(Fault.STALE, f"the robot was not measured for {unseen:.3f} s"))
            excess = outside(self._measured, self._config.limits)
            if self._state in LIVE and not excess <= self._excess:
                where = np.array2string(self._measured.position, precision=3)
                troubles.append(Trouble(Fault.BOX, f"the tool is measured at {where} m, {excess:.3f} m out of its box"))
        if intent is not None:
            troubles.append(self._take(intent))
        if self._state in LIVE and (unlogged := self._unlogged()):
            troubles.append(Trouble(Fault.LOG, f"commands cannot be logged: {unlogged}"))
        silent = age(self._intent and self._intent.since, self._now)
        if not silent <= self._config.watchdog_s:
            troubles.append(Trouble(Fault.SILENCE, f"the newest intent is {silent:.3f} s old"))
        if self._state in COMMANDING:
            troubles.append(self._check_expiry(self._now))
        return next((trouble for trouble in troubles if trouble is not None), None)

    def _check_clock(self, before: float) -> Trouble | None:
        gap = self._now - before
        if self._state in LIVE and gap > 2 * self._config.period_s:
            self._counts["overruns"] += 1
        if not gap >= 0:
            self._intent = None  # its age means nothing any more
        if not 0 <= gap <= self._config.watchdog_s:
            return Trouble(Fault.CLOCK, f"{gap:.3f} s from one turn of the control loop to the next")
        return None

    def _check_expiry(self, now: float) -> Trouble | None:
        """Of the command before: then the robot stands, and would jump to the speed that the limiter is at."""
        if self._sent is None or now < self._sent.expires:
            return None
        return Trouble(Fault.SILENCE, f"command {self._sent.sequence} expired before another followed")

    def _take(self, intent: Intent) -> Trouble | None:
        trouble = check_intent(intent, self._now)
        if trouble is not None:
            self._counts["refused"] += 1
        elif self._intent is not None and intent.received < self._intent.received:
            self._counts["late"] += 1
        else:
            self._counts["intents"] += 1
            self._intent, self._fresh = intent, True
        return trouble

    def _not_ready(self, trouble: Trouble | None) -> str:
        """Why the robot may not be armed now."""
        if trouble is not None:
            return trouble.why
        measured = self._measured
        assert measured is not None  # or there were trouble
        if not standing(measured):
            return "the robot is measured to move; wait until it stands"
        if self._authorised:
            return "the hold is held; let it go first"
        if self._robot.info.has_gripper and not 0 <= measured.gripper <= 1:
            return f"the gripper's opening is measured as {measured.gripper}, expected 0 to 1"
        if self._log.failure is not None:
            return f"commands cannot be logged: {self._log.failure}"
        if self._stopping:
            return "the robot could not be told to stop yet"
        return ""

    def _unlogged(self) -> str:
        """Why not all that is sent since it was armed is in the log; empty if it is."""
        if self._log.failure is not None:
            return self._log.failure
        dropped = self._log.dropped - self._log_drops
        return f"{dropped} records found no room" if dropped else ""

    def _answer(self, request: Request, not_ready: str) -> None:
        why = ""
        if request.event is Event.FAULT:
            assert request.fault is not None
            changed = self._fail(Trouble(request.fault, request.why))
        elif request.event is Event.ARM and self._state not in LIVE and not_ready:
            changed, why = False, not_ready
        else:
            changed = self._follow(request.event, f"{request.who}: {request.why}" if request.why else request.who)
        if not changed:
            why = why or f"{request.event} does nothing where the state is {self._state}"
            if request.event is not Event.FAULT:  # where nothing is armed one may come with every frame
                asked = {"event": request.event, "who": request.who, "asked": request.why}
                self._log.write({"what": "refused", "time": self._now, **asked, "why": why})
        request.answer.set_result(Answer(changed, self._state, why))

    def _fail(self, trouble: Trouble) -> bool:
        changed = self._follow(Event.FAULT, f"{trouble.fault}: {trouble.why}")
        if changed:
            self._fault = trouble
            self._counts["faults"] += 1
        return changed

    def _follow(self, event: Event, why: str) -> bool:
        """Take the event to where it leads; False if it changes nothing."""
        step = follow(self._state, event)
        if step is None:
            return False
        before, self._state = self._state, step.state
        if step.action is Action.STOP:
            self._stop()
        elif step.action is Action.START:
            self._start()
        if before is not step.state or step.action is not None:
            self._why = why
            self._log.write(
                {
                    "what": "state",
                    "time": self._now,
                    "from": before,
                    "to": step.state,
                    "event": event,
                    "action": step.action,
                    "why": why,
                }
            )
        return True

    def _start(self) -> None:
        assert self._measured is not None  # or it were not ready
        self._limiter.start()
        self._commanded = -math.inf
        self._gripper = self._measured.gripper
        self._log_drops = self._log.dropped
        # Where it stands it may be, so that a person can bring a tool back that is out of its box.
        self._excess = max(0.0, outside(self._measured, self._config.limits)) + BOX_MARGIN_M

    def _stop(self) -> None:
        """A robot that cannot be told is told again every turn; what it was sent expires meanwhile."""
        try:
            self._robot.stop()
            self._stopping = False
        except Exception as error:
            if not self._stopping:
                self._log.write({"what": "stop failed", "time": self._now, "why": f"{type(error).__name__}: {error}"})
            self._counts["stops failed"] += 1
            self._stopping = True

    def _command(self, follows: bool) -> None:
        intent, measured, config = self._intent, self._measured, self._config
        assert intent is not None
        assert measured is not None
        # After a pause it is as if one period had passed: the limiter must not make up for lost time at once.
        dt = min(self._now - self._commanded, 2 * config.period_s)
        if not dt > 0:
            return
        moving = self._state is State.MOVING
        twist = self._limiter.step(intent.twist if moving else STILL, measured, dt)
        gripper = None
        if moving and intent.gripper is not None and self._robot.info.has_gripper:
            gripper = gripper_step(self._gripper, intent.gripper, config.limits.gripper_speed, dt)
            self._gripper = gripper
        self._sequence += 1
        command = Command(self._sequence, self._now, intent.since + config.watchdog_s, twist, gripper)
        if follows and (trouble := self._check_expiry(self._clock())):  # while this loop waited for the processor
            self._fail(trouble)
            return
        try:
            self._sent = self._robot.send(command)
        except Exception as error:
            self._fail(Trouble(Fault.DRIVER, f"command {command.sequence}: {error or type(error).__name__}"))
            return
        self._commanded = self._now
        self._counts["commands"] += 1
        sent_at = self._clock()
        if self._fresh:
            self._fresh = False
            self._time(sent_at - intent.received)
        record = {
            "what": "command",
            **self._sent._asdict(),
            "sent": sent_at,
            "received": intent.received,
            "late": intent.late,
        }
        self._log.write(record | {"state": self._state, "gesture": intent.gesture, "confidence": intent.confidence})
        if self._state is State.BRAKING and self._limiter.still:
            self._follow(Event.STOOD, "it stands")

    def _time(self, latency: float) -> None:
        self._latencies[self._timed % LATENCIES] = latency
        self._timed += 1
        self._slowest = max(self._slowest, latency)

    def _show(self, not_ready: str) -> Snapshot:
        now, intent, measured = self._now, self._intent, self._measured
        return Snapshot(
            time=now,
            state=self._state,
            why=self._why,
            fault=self._fault,
            intent=intent,
            intent_age=age(intent and intent.since, now),
            held=self._authorised,
            robot=measured,
            robot_age=age(measured and measured.time, now),
            sent=self._sent,
            slowest=self._slowest,
            counts=dict(self._counts) | {"log drops": self._log.dropped},
            not_ready=not_ready,
        )
