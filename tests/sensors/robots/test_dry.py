import numpy as np
import pytest

from sensors.robot import Command, RobotError
from sensors.robots.dry import DryRobot
from tests.sensors.integrating_robot import Clock, IntegratingRobot


def test_it_shows_what_would_be_sent_and_moves_nothing():
    clock, shown = Clock(), []
    robot = IntegratingRobot(clock)
    dry = DryRobot(robot, shown.append, clock)
    command = Command(7, clock(), clock() + 0.1, np.array([0.1, 0, 0, 0, 0, 0.2]), 0.25)
    assert dry.send(command) is command
    dry.stop()
    assert shown[0].startswith("7: [0.1 ")
    assert shown[0].endswith("gripper 0.250, for 100 ms")
    assert shown[1:] == ["stop"]
    assert not robot.sent
    assert not robot.stops


def test_it_is_where_the_robot_is_measured_to_be_and_is_that_robot():
    robot = IntegratingRobot(Clock())
    robot.position = np.array([0.1, 0.2, 0.3])
    dry = DryRobot(robot, print)
    assert dry.state().position is robot.position
    assert dry.info.uri == robot.info.uri  # so that no other bridge has it meanwhile


def test_what_has_expired_is_refused():
    clock, shown = Clock(), []
    dry = DryRobot(IntegratingRobot(clock), shown.append, clock)
    with pytest.raises(RobotError, match="command 1 expired"):
        dry.send(Command(1, clock() - 0.1, clock(), np.zeros(6)))
    assert not shown
