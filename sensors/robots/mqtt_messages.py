"""What a bridge and a robot's host say to each other over MQTT: JSON, one object a message.

Under a robot's topic, such as `robots/arm`:

    /control   bridge to host    {"kind": "take" | "leave" | "stop", "session": text, "sequence": number}
    /command   bridge to host    {"session", "sequence", "issued", "expires", "twist": [6], "gripper": number or null}
    /welcome   host to bridges   {"session": whom it answers, "holder": who has the robot, "joints": [names], "gripper"}
    /state     host to bridges   {"host": text, "holder", "sent", "time", "joints", "velocities", "position",
                                  "orientation", "gripper", "manipulability"}

A session is one bridge. All times are of the robot's clock, in s: the bridge converts (`ClockOffset`), so that whatever
a message meets on its way, the robot alone decides whether it has expired. A bridge's last will is to leave, which
stops the robot. Numbers that are not known are null.
"""

from __future__ import annotations

import json
import math
import sys
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sensors.robot import Command, RobotError, RobotState

KINDS = ("take", "leave", "stop")
MOST = sys.float_info.max
DRIFT = 2e-4  # s/s, the most that two clocks run apart


class Control(NamedTuple):
    kind: str
    session: str
    sequence: int = 0  # of stop: commands up to this one are not to be executed any more


class Welcome(NamedTuple):
    session: str
    holder: str  # a session; empty: nobody
    joints: tuple[str, ...]
    gripper: bool


class Report(NamedTuple):
    host: str  # one life of the host, and so of its clock
    holder: str
    sent: float  # s, when it left
    state: RobotState


class ClockOffset:
    """How far the robot's clock is ahead of ours: a bound that is never above the truth.

    A report that left at t by the robot's clock, and is here at t' by ours, took some time: the robot's clock is ahead
    by at least t - t'. The largest of these counts, less what the clocks may have drifted since. So an expiry that is
    converted with it is never later than it was meant.
    """

    def __init__(self) -> None:
        self.value = -math.inf  # s
        self._at = 0.0

    def take(self, theirs: float, ours: float) -> None:
        kept = self.value - DRIFT * (ours - self._at)
        self.value, self._at = max(theirs - ours, kept), ours

    def at(self, ours: float) -> float:
        """s, now."""
        return self.value - DRIFT * (ours - self._at)


def write_control(control: Control) -> bytes:
    return json.dumps(control._asdict()).encode()


def read_control(payload: bytes) -> Control:
    message = _object(payload, "control", Control._fields)
    if message["kind"] not in KINDS:
        raise RobotError(f"control: kind is {message['kind']!r}, expected one of {', '.join(KINDS)}.")
    return Control(message["kind"], _text("control", message, "session"), _whole("control", message, "sequence"))


def write_command(session: str, command: Command) -> bytes:
    """command: its times of the robot's clock."""
    return json.dumps({"session": session, **command._asdict(), "twist": command.twist.tolist()}).encode()


def read_command(payload: bytes) -> tuple[str, Command]:
    """The session that it comes from, and the command."""
    message = _object(payload, "command", ("session", *Command._fields))
    issued, expires = (_number("command", message, name) for name in ("issued", "expires"))
    gripper = None if message["gripper"] is None else _number("command", message, "gripper")
    return _text("command", message, "session"), Command(
        _whole("command", message, "sequence"), issued, expires, _numbers("command", message, "twist", 6), gripper
    )


def write_welcome(welcome: Welcome) -> bytes:
    return json.dumps(welcome._asdict()).encode()


def read_welcome(payload: bytes) -> Welcome:
    message = _object(payload, "welcome", Welcome._fields)
    session, holder = _text("welcome", message, "session"), _text("welcome", message, "holder")
    joints, gripper = message["joints"], message["gripper"]
    if not (isinstance(joints, list) and all(isinstance(name, str) for name in joints)):
        raise RobotError(f"welcome: joints is {joints!r}, expected a list of names.")
    if not isinstance(gripper, bool):
        raise RobotError(f"welcome: gripper is {gripper!r}, expected true or false.")
    return Welcome(session, holder, tuple(joints), gripper)


def write_report(report: Report) -> bytes:
    state = report.state
    return json.dumps(
        {
            "host": report.host,
            "holder": report.holder,
            "sent": report.sent,
            "time": state.time,
            **{name: getattr(state, name).tolist() for name in ("joints", "velocities", "position", "orientation")},
            **{name: _known(getattr(state, name)) for name in ("gripper", "manipulability")},
        }
    ).encode()


def read_report(payload: bytes, joints: int) -> Report:
    """Its state's time of the robot's clock."""
    message = _object(payload, "state", ("host", "holder", "sent", *RobotState._fields))

    def vector(name: str, length: int) -> NDArray[np.float64]:
        return _numbers("state", message, name, length)

    def scalar(name: str) -> float:
        return math.nan if message[name] is None else _number("state", message, name)

    state = RobotState(
        _number("state", message, "time"),
        vector("joints", joints),
        vector("velocities", joints),
        vector("position", 3),
        vector("orientation", 4),
        scalar("gripper"),
        scalar("manipulability"),
    )
    host, holder = _text("state", message, "host"), _text("state", message, "holder")
    return Report(host, holder, _number("state", message, "sent"), state)


def _object(payload: bytes, what: str, names: tuple[str, ...]) -> dict[str, Any]:
    try:
        message = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise RobotError(f"{what}: is no JSON ({error}).") from error
    if not isinstance(message, dict):
        raise RobotError(f"{what}: is {type(message).__name__}, expected an object.")
    for name in names:
        if name not in message:
            raise RobotError(f"{what}: lacks {name}.")
    return message


def _text(what: str, message: dict[str, Any], name: str) -> str:
    if not isinstance(message[name], str):
        raise RobotError(f"{what}: {name} is {message[name]!r}, expected text.")
    return message[name]


def _whole(what: str, message: dict[str, Any], name: str) -> int:
    if type(message[name]) is not int:
        raise RobotError(f"{what}: {name} is {message[name]!r}, expected a whole number.")
    return message[name]


def _number(what: str, message: dict[str, Any], name: str) -> float:
    value = message[name]
    if not _finite(value):
        raise RobotError(f"{what}: {name} is {value!r}, expected a finite number.")
    return float(value)


def _finite(value: Any) -> bool:
    return type(value) in (int, float) and -MOST <= value <= MOST  # an integer may be too large for a float


def _numbers(what: str, message: dict[str, Any], name: str, length: int) -> NDArray[np.float64]:
    values = message[name]
    if not (isinstance(values, list) and len(values) == length and all(map(_finite, values))):
        raise RobotError(f"{what}: {name} is {values!r}, expected {length} finite numbers.")
    return np.array(values, np.float64)


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
