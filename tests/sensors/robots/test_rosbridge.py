"""A driver of ROS robots through the rosbridge protocol, against a server that speaks it."""

import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

pytest.importorskip("roslibpy")

from data.frame import Channel
from sensors.robot import Command, RobotError
from sensors.robots.ros import RosConfig, RosRobot
from sensors.robots.rosbridge import RosbridgeWire
from tests.sensors.robots.rosbridge_server import RosbridgeServer

JOINTS = (Channel("shoulder", "rad"), Channel("elbow", "rad"))
CONFIG = RosConfig(JOINTS, gripper="/gripper", gripper_joint="finger", wait_s=5)


@pytest.fixture
def server() -> Iterator[RosbridgeServer]:
    running = RosbridgeServer()
    yield running
    running.close()


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end, "it did not happen within 5 s"
        time.sleep(0.01)


def command(ttl_s: float = 0.1) -> Command:
    now = time.monotonic()
    return Command(3, now, now + ttl_s, np.array([0.1, 0, 0, 0, 0, 0.3]), 0.25)


def test_commands_and_measurements_pass_as_ros_messages(server):
    before = time.time()
    with RosRobot(RosbridgeWire("127.0.0.1", server.port), CONFIG) as robot:
        state = robot.state()
        assert state.joints.tolist() == [0.1, -0.2]
        assert state.velocities.tolist() == [0.5, 0.6]
        assert state.position.tolist() == [0.5, 0.1, 0.2]
        assert robot.send(command()).gripper == 0.25
        until(lambda: len(server.published) == 2)
        assert server.advertised == {
            "/servo_node/delta_twist_cmds": "geometry_msgs/TwistStamped",
            "/gripper": "std_msgs/Float64",
        }
        (topic, twist), gripper = server.published
        assert topic == "/servo_node/delta_twist_cmds"
        assert twist["twist"] == {
            "linear": {"x": 0.1, "y": 0.0, "z": 0.0},
            "angular": {"x": 0.0, "y": 0.0, "z": 0.3},
        }
        stamp = twist["header"]["stamp"]
        assert before <= stamp["sec"] + stamp["nanosec"] / 1e9 <= time.time()
        assert gripper == ("/gripper", {"data": 0.25})
    until(lambda: server.published[-1][1].get("twist", {}).get("linear") == {"x": 0.0, "y": 0.0, "z": 0.0})


def test_a_server_that_goes_away_takes_no_command():
    server = RosbridgeServer()
    robot = RosRobot(RosbridgeWire("127.0.0.1", server.port), CONFIG)
    robot.connect()
    server.close()

    def refuses() -> bool:
        try:
            robot.send(command(ttl_s=10))
        except RobotError as error:
            return "nobody listens" in str(error)
        return False

    until(refuses)
    robot.close()


def test_a_server_that_is_not_there_is_named():
    with pytest.raises(RobotError, match=r"rosbridge:127.0.0.1:9: no rosbridge server answered within 0.3 s"):
        RosbridgeWire("127.0.0.1", 9, wait_s=0.3).open()
