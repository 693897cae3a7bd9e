"""What a robot is to the bridge: it says where it is, and takes velocities that expire.

Every motion, jogging or a scripted one, is a stream of short-lived velocities. A robot that hears nothing new stands
still when the last one expires, whatever happened to whoever sent it; nothing is ever queued.

Positions are in the robot's base frame, in m; quaternions are unit length, w first; times are of this machine's
monotonic clock. Shapes: J joints.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from data.frame import Channel
from sensors.stream import SensorError


class RobotError(SensorError):
    """A robot that cannot be reached, does not answer or refuses; the message says what to do."""


class RobotState(NamedTuple):
    """What was measured, last."""

    time: float  # s, when this machine had it
    joints: NDArray[np.float64]  # (J,) rad
    velocities: NDArray[np.float64]  # (J,) rad/s
    position: NDArray[np.float64]  # (3,) m, of the tool
    orientation: NDArray[np.float64]  # (4,)
    gripper: float  # 0 closed, 1 open; NaN where there is none or it is not known
    manipulability: float = float("nan")  # the smallest singular value of the Jacobian; NaN where it is not known


class Command(NamedTuple):
    """What a robot shall do until it expires; made by `safety` alone."""

    sequence: int  # rises by at least one with every command of a bridge
    issued: float  # s
    expires: float  # s; not to be executed from then on
    twist: NDArray[np.float64]  # (6,) velocity of the tool in the base frame: m/s, then rad/s
    gripper: float | None = None  # 0 closed to 1 open; None leaves it


@dataclass(frozen=True)
class RobotInfo:
    """What is known of a robot before it connects."""

    name: str
    uri: str  # one robot, one URI: what two bridges must not share
    joints: tuple[Channel, ...]  # rad
    has_gripper: bool


class Robot(ABC):
    """A driver. Constructors only store; `connect` and `close` do the input and output.

    `state`, `send` and `stop` may be called from any thread and none of them blocks for longer than a few
    milliseconds: a driver that cannot send at once raises RobotError.
    """

    info: RobotInfo

    @abstractmethod
    def connect(self) -> None:
        """Raises RobotError where there is no robot, or where it is not to be had."""

    @abstractmethod
    def close(self) -> None:
        """Stop the robot and let it go; safe to call twice."""

    @abstractmethod
    def state(self) -> RobotState:
        """The last measurement, however old: its `time` tells. Raises RobotError if there was none yet."""

    @abstractmethod
    def send(self, command: Command) -> Command:
        """Send now, and return what was really sent."""

    @abstractmethod
    def stop(self) -> None:
        """Stop now and forget what was sent."""

    def __enter__(self) -> Self:
        self.connect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
