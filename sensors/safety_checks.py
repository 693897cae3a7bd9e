"""What counts as a fault, written so that NaN, a stale value and a missing one all do.

Times are of this machine's monotonic clock, in s.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import NamedTuple

import numpy as np

from sensors.intent import Intent
from sensors.limits import Limits
from sensors.robot import RobotState
from sensors.stream import SensorError

STANDING = 0.01  # rad/s: what the joints of a robot that stands are measured to move, at most
BOX_MARGIN_M = 0.01  # beyond the box, as measured, before it is a fault; a robot follows its commands with a lag
WATCHDOG_S = 0.1  # the longest there may be


class Fault(StrEnum):
    SILENCE = "silence"  # no fresh intent
    NAN = "not a number"
    CLOCK = "clock"  # a clock jumped, or the control loop stood still
    MODEL = "model"  # the recogniser failed
    SOURCE = "source"  # the source or its broker is lost
    DRIVER = "driver"  # the robot's driver raised an error
    HANG = "hang"  # the robot's driver does not return
    STALE = "stale robot"  # no fresh measurement of the robot
    SPEED = "speed"  # a joint is measured to be too fast
    BOX = "box"  # the tool is measured to be where it may not
    LOG = "log"  # what is sent cannot be logged
    INTERNAL = "internal"  # a defect of this program


class Trouble(NamedTuple):
    fault: Fault
    why: str


@dataclass(frozen=True)
class SafetyConfig:
    """How a bridge is kept safe.

    Raises:
        SensorError: a field is out of its range; the watchdog may be shorter than 100 ms, never longer.
    """

    limits: Limits
    confidence: float  # of a gesture, above 0 to 1; below, it brakes
    hold: tuple[str, ...] = ()  # gestures that hold; none: a key or a topic holds, which calls `Safety.hold`
    watchdog_s: float = WATCHDOG_S  # how old an intent, a hold or a measurement may be, and how long a command lives
    period_s: float = 0.01  # of the control loop where no intent wakes it

    def __post_init__(self) -> None:
        if not 0 < self.confidence <= 1:
            raise SensorError(f"safety: confidence is {self.confidence!r}, expected above 0 to 1.")
        if not 0 < self.watchdog_s <= WATCHDOG_S:
            raise SensorError(f"safety: watchdog_s is {self.watchdog_s!r}, expected above 0 to {WATCHDOG_S} s.")
        if not 0 < self.period_s <= self.watchdog_s / 4:
            raise SensorError(
                f"safety: period_s is {self.period_s!r}, expected above 0 to a quarter of watchdog_s, "
                f"{self.watchdog_s / 4:g} s."
            )

    @classmethod
    def parse(cls, settings: dict[str, object], limits: Limits) -> SafetyConfig:
        """Of a configuration's table; which gestures there are is known to who knows the bundle.

        Raises:
            SensorError: a field is missing, unknown, or not what it should be.
        """
        known = {field.name for field in fields(cls)} - {"limits"}
        if unknown := sorted(settings.keys() - known):
            raise SensorError(
                f"safety: the configuration does not know {', '.join(unknown)}; expected {sorted(known)}."
            )
        if "confidence" not in settings:
            raise SensorError("safety: the configuration lacks confidence, below which the robot brakes.")
        values = dict(settings)
        for name in known - {"hold"}:
            value = values.get(name, 0.0)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise SensorError(f"safety: {name} is {value!r}, expected a number.")
        hold = values.get("hold", [])
        if not (isinstance(hold, list) and all(isinstance(name, str) and name for name in hold)):
            raise SensorError(f"safety: hold is {hold!r}, expected a list of gestures, empty for a key or a topic.")
        return cls(limits, **values | {"hold": tuple(hold)})  # type: ignore[arg-type]


def check_intent(intent: Intent, now: float) -> Trouble | None:
    """What is wrong with an intent that has just been taken."""
    if not (np.shape(intent.twist) == (6,) and np.isfinite(intent.twist).all()):
        return Trouble(Fault.NAN, f"an intent's twist is {intent.twist}, expected six finite numbers")
    if intent.gripper is not None and not 0 <= intent.gripper <= 1:
        return Trouble(Fault.NAN, f"an intent's gripper is {intent.gripper}, expected 0 to 1")
    if not 0 <= intent.late < math.inf:
        return Trouble(Fault.NAN, f"an intent is {intent.late} s late, expected at least 0")
    if not intent.received <= now:
        return Trouble(Fault.CLOCK, f"an intent was received at {intent.received} s, which is after now, {now} s")
    return None


def check_robot(state: RobotState, now: float, config: SafetyConfig) -> Trouble | None:
    """What is wrong with a robot as it is measured, wherever it is."""
    age = now - state.time
    if not age <= config.watchdog_s:
        return Trouble(Fault.STALE, f"the robot was last measured {age:.3f} s ago, expected {config.watchdog_s:g} s")
    if age < 0:
        return Trouble(Fault.CLOCK, f"the robot was measured at {state.time} s, which is after now, {now} s")
    for name in ("joints", "velocities", "position", "orientation"):
        if not np.isfinite(getattr(state, name)).all():
            return Trouble(Fault.NAN, f"the robot's {name} are measured as {getattr(state, name)}")
    fastest = float(np.abs(state.velocities).max(initial=0.0))
    if not fastest <= config.limits.joint_velocity:
        limit = config.limits.joint_velocity
        return Trouble(Fault.SPEED, f"a joint is measured to move at {fastest:.3f} rad/s, the limit is {limit:g}")
    return None


def outside(state: RobotState, limits: Limits) -> float:
    """How far the tool is out of its box, in m; below 0 within."""
    position = state.position
    excess = np.maximum(np.subtract(limits.box_low, position), np.subtract(position, limits.box_high)).max()
    return float(excess)


def authorised(intent: Intent | None, held: float, now: float, config: SafetyConfig) -> bool:
    """Whether the operator wants motion at this moment: a known gesture, with confidence, and the hold.

    A gesture holds while it is shown, not while a motion that it started goes on.

    held: s, when a key or a topic last held; -inf for never.
    """
    if intent is None or intent.gesture in (None, "unknown") or not intent.confidence >= config.confidence:
        return False
    if config.hold:
        return not intent.alone and intent.gesture in config.hold
    return 0 <= now - held <= config.watchdog_s


def standing(state: RobotState) -> bool:
    return bool((np.abs(state.velocities) <= STANDING).all())


def age(of: float | None, now: float) -> float:
    """s; infinite for what never was."""
    return math.inf if of is None else now - of
