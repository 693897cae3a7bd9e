"""A robot that is a point: it integrates the velocities that it is sent, lets them expire, and keeps what it did."""

import os
import threading
from typing import NamedTuple

import numpy as np

from data.frame import Channel
from sensors.limits import Limits
from sensors.robot import Command, Robot, RobotError, RobotInfo, RobotState
from sensors.safety_checks import SafetyConfig

LIMITS = Limits(0.25, 1.0, 10.0, 1.0, 4.0, 40.0, 3.0, 2.0, 0.05, 0.1, (-0.2, -0.2, -0.2), (0.2, 0.2, 0.2))
CONFIG = SafetyConfig(LIMITS, confidence=0.8)
URI = f"test:point:{os.getpid()}"  # of this test process alone: a robot is locked for the whole machine


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Motion(NamedTuple):
    """From `start` to `end`, in s, the robot did as a command told."""

    start: float
    end: float
    command: Command


class IntegratingRobot(Robot):
    def __init__(self, clock, uri=URI):
        joints = tuple(Channel(f"joint {n}", "rad", -3.0, 3.0) for n in range(6))
        self.info = RobotInfo("a point", uri, joints, has_gripper=True)
        self.clock = clock
        self.position = np.zeros(3)
        self.gripper = 0.5
        self.sent: list[Command] = []
        self.motions: list[Motion] = []
        self.stops: list[float] = []
        self.senders: set[int] = set()
        self.broken = ""  # what every call then raises
        self.changed = {}  # fields of what is measured
        self.command: Command | None = None
        self._since = clock()
        self._turn = threading.RLock()  # threads only tell it, never wait for it

    def connect(self):
        pass

    def close(self):
        self.stop()

    def state(self):
        with self._turn:
            self._raise()
            self.advance()
            twist = np.zeros(6) if self.command is None else self.command.twist
            state = RobotState(self.clock(), np.zeros(6), twist, self.position, np.eye(4)[0], self.gripper, 1.0)
            return state._replace(**self.changed)

    def send(self, command):
        with self._turn:
            self._raise()
            if not self.clock() < command.expires:
                raise RobotError(f"command {command.sequence} has expired")
            self.advance()
            self.senders.add(threading.get_ident())
            self.command = command
            self.sent.append(command)
            if command.gripper is not None:
                self.gripper = command.gripper
            return command

    def stop(self):
        with self._turn:
            self._raise()
            self.advance()
            self.command = None
            self.stops.append(self.clock())

    def advance(self):
        now, command = self.clock(), self.command
        if command is not None:
            end = min(now, command.expires)
            if end > self._since and command.twist.any():
                self.motions.append(Motion(self._since, end, command))
                self.position = self.position + command.twist[:3] * (end - self._since)
            if not now < command.expires:
                self.command = None
        self._since = now

    def _raise(self):
        if self.broken:
            raise RobotError(self.broken)
