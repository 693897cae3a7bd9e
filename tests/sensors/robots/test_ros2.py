"""A driver of ROS 2 robots against a peer in another process, on DDS."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("cyclonedds")

from data.frame import Channel
from sensors.robot import Command, RobotError
from sensors.robots.ros import RosConfig, RosRobot, Velocities
from sensors.robots.ros2 import DdsWire
from sensors.robots.ros_messages import JointState, PoseStamped

JOINTS = (Channel("shoulder", "rad", -2.0, 2.0), Channel("elbow", "rad", -1.0, 1.0))
DOMAIN = 100 + os.getpid() % 100  # of this test process alone
CONFIG = RosConfig(
    joints=JOINTS,
    twist="/command",
    gripper="/gripper",
    gripper_joint="finger",
    gripper_open=0.04,
)


class Peer:
    """The robot's process."""

    def __init__(self, kind: str) -> None:
        command = [sys.executable, "-m", "tests.sensors.robots.ros_peer", str(DOMAIN), kind]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid = self._process.pid

    def end(self) -> list[dict[str, Any]]:
        """What it other."""
        return json.loads(self._process.communicate(timeout=20)[0])

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextmanager
def peer(kind: str = "twist") -> Iterator[Peer]:
    robot = Peer(kind)
    try:
        yield robot
    finally:
        robot.kill()


def ros2(config: RosConfig, velocities: Velocities | None = None) -> RosRobot:
    return RosRobot(DdsWire(DOMAIN), config, velocities)


def command(sequence: int, x: float, gripper: float | None = None, ttl_s: float = 0.1) -> Command:
    now = time.monotonic()
    return Command(sequence, now, now + ttl_s, np.array([x, 0, 0, 0, 0, 0.3]), gripper)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end, "the peer did not do it within 5 s"
        time.sleep(0.01)


def test_a_twist_moves_the_robot_in_the_other_process_and_its_state_comes_back():
    with peer() as other, ros2(CONFIG) as robot:
        before = robot.state()
        assert before.joints.tolist() == [0.1, -0.2]  # in the order of the driver's joints
        assert before.velocities.tolist() == [0.5, 0.6]
        assert before.orientation.tolist() == [1, 0, 0, 0]
        sent = robot.send(command(1, 2.0, gripper=0.5))
        assert (sent.sequence, sent.gripper) == (1, 0.5)
        until(lambda: robot.state().position[0] == pytest.approx(0.5 + 0.01 * 2.0))
        until(lambda: robot.state().gripper == pytest.approx(0.5))
        assert time.monotonic() - robot.state().time < 1
        robot.stop()
        until(lambda: robot.state().time > before.time + 0.05)
        assert other.end() == [{"linear": 2.0, "angular": 0.3}, {"linear": 0.0, "angular": 0.0}]


def test_a_joint_trajectory_holds_where_the_joints_would_be_within_their_limits():
    config = replace(CONFIG, trajectory="/command", gripper="")

    def inverse(joints: np.ndarray, twist: np.ndarray) -> np.ndarray:
        return np.array([twist[0], -10.0])  # the second would leave its limit

    with peer("trajectory") as other, ros2(config, inverse) as robot:
        assert robot.send(command(1, 1.0, gripper=1.0)).gripper is None  # it has none
        until(lambda: robot.state().joints.tolist() == [0.1 + 0.1 * 1.0, -1.0])
        robot.stop()
        stopped = time.monotonic()
        until(lambda: robot.state().time > stopped + 0.05)
        names = ["shoulder", "elbow"]
        assert other.end() == [{"names": names, "points": [[0.2, -1.0]]}, {"names": names, "points": []}]


def test_a_command_that_waited_on_the_way_is_thrown_away_there():
    with peer() as other, ros2(CONFIG) as robot:
        pid = other.pid
        os.kill(pid, signal.SIGSTOP)
        for sequence in range(5):  # of which one at most waits at all
            robot.send(command(sequence, 7.0, ttl_s=0.05))
        time.sleep(0.15)
        robot.send(command(5, 1.0, ttl_s=5))
        os.kill(pid, signal.SIGCONT)
        until(lambda: robot.state().position[0] > 0.5)
        assert other.end() == [{"linear": 1.0, "angular": 0.3}]


def test_a_command_that_has_expired_is_not_sent():
    with peer() as other, ros2(CONFIG) as robot:
        with pytest.raises(RobotError, match="command 4 expired"):
            robot.send(command(4, 1.0, ttl_s=-0.001))
        robot.close()
        assert [each["linear"] for each in other.end()] in ([], [0.0])  # at most the stop


def test_a_robot_that_is_not_there_is_named_with_what_is_missing():
    with pytest.raises(RobotError, match=r"no complete JointState on /joint_states and no PoseStamped .* 0.2 s"):
        ros2(replace(CONFIG, wait_s=0.2)).connect()


def test_a_robot_that_goes_away_takes_no_command():
    with peer() as other:
        robot = ros2(CONFIG)
        robot.connect()
        other.end()  # its process has ended, and said so to DDS

        def refuses() -> bool:
            try:
                robot.send(command(1, 0.0, ttl_s=10))
            except RobotError as error:
                return "nobody listens" in str(error)
            return False

        until(refuses)
        robot.close()


def test_a_trajectory_without_kinematics_is_refused():
    with pytest.raises(RobotError, match="needs the arm's kinematics"):
        ros2(replace(CONFIG, trajectory="/command"))


class BrokenWire:
    """Breaks where it is told to, with an error that a library throws."""

    uri = "test:wire"
    remedy = ""

    def __init__(self, breaks: str) -> None:
        self.breaks = breaks
        self.opened = False

    def open(self) -> None:
        self.opened = True

    def close(self) -> None:
        self.opened = False

    def advertise(self, topic: str, kind: type[Any]) -> None:
        self._break("advertise")

    def subscribe(self, topic: str, kind: type[Any], take: Callable[[Any], None]) -> None:
        joints = JointState(name=[joint.name for joint in JOINTS], position=[0.0] * len(JOINTS))
        take(joints if kind is JointState else PoseStamped())

    def publish(self, topic: str, message: Any) -> None:
        self._break("publish")

    def heard(self, topic: str) -> bool:
        return True

    def _break(self, where: str) -> None:
        if where == self.breaks:
            raise ValueError("broken")


@pytest.mark.parametrize("breaks", ["advertise", "publish"])
def test_an_error_of_the_library_leaves_no_wire_open(breaks):
    wire = BrokenWire(breaks)
    robot = RosRobot(wire, replace(CONFIG, gripper=""))

    def connect_and_close() -> None:
        robot.connect()
        assert wire.opened
        robot.close()

    with pytest.raises(ValueError, match="broken"):
        connect_and_close()
    assert not wire.opened
    robot.close()


def test_a_name_that_cannot_be_a_topic_is_refused():
    with pytest.raises(RobotError, match="'/my command' cannot be a topic"):
        ros2(replace(CONFIG, twist="/my command")).connect()
