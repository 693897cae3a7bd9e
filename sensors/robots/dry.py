"""A robot that is read, and told nothing: what would be sent is shown."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from sensors.robot import Command, Robot, RobotError, RobotState
from sensors.stream import Clock


class DryRobot(Robot):
    """Stands in for the robot it is made of; measurements are that robot's.

    `close` lets that robot go, which drivers do by telling it to stop: the one thing that it is ever told.
    """

    def __init__(self, robot: Robot, show: Callable[[str], None], clock: Clock = time.monotonic) -> None:
        self.info = robot.info
        self._robot = robot
        self._show = show
        self._clock = clock

    def connect(self) -> None:
        self._robot.connect()

    def close(self) -> None:
        self._robot.close()

    def state(self) -> RobotState:
        return self._robot.state()

    def send(self, command: Command) -> Command:
        left = command.expires - self._clock()
        if not left > 0:
            raise RobotError(f"{self.info.uri}: command {command.sequence} expired {-left:.3f} s ago; not shown.")
        twist = np.array2string(command.twist, precision=4, suppress_small=True)
        gripper = "" if command.gripper is None else f", gripper {command.gripper:.3f}"
        self._show(f"{command.sequence}: {twist} m/s and rad/s{gripper}, for {left * 1000:.0f} ms")
        return command

    def stop(self) -> None:
        self._show("stop")
