"""A robot of a configuration's table.

simulated:SCENE                     panda or breakfast, in this process
ros2:DOMAIN                         DDS; joints, and topics as in `ros.RosConfig`; arm, for a joint trajectory
rosbridge://HOST[:PORT], rosbridges://...   the same through a rosbridge server
mqtt://[USER@]HOST[:PORT]/TOPIC     joints, gripper, password_env, ca_file; mqtts:// with TLS

[robot]
uri = "ros2:0"
joints = ["panda_joint1", "panda_joint2"]
twist = "/servo_node/delta_twist_cmds"
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from data.frame import Channel
from sensors.robot import Robot, RobotError
from sensors.robots.kinematics import Arm, Kinematics
from sensors.robots.panda import PANDA
from sensors.sources.settings import parse_settings, shown
from sensors.stream import SensorError

Settings = dict[str, Any]
ARMS = {"panda": PANDA}


def open_robot(settings: Mapping[str, Any]) -> tuple[Robot, Arm | None]:
    """The robot, not connected yet, and its kinematics where they are known.

    Raises:
        SensorError: an unknown kind or setting, or one that is missing or cannot be.
    """
    given = dict(settings)
    uri = given.pop("uri", None)
    if not isinstance(uri, str):
        raise SensorError(f"robot: uri is {uri!r}, expected one of {', '.join(_KINDS)} with an address.")
    scheme, colon, _ = uri.partition(":")
    if not colon or scheme not in _KINDS:
        raise SensorError(f"{shown(uri)}: no robot of kind '{scheme}'; expected one of {', '.join(_KINDS)}.")
    try:
        return _KINDS[scheme](uri, given)
    except ImportError as error:
        raise SensorError(f"{uri}: {error.name} is not installed; install mnemosyne-forecast[robot].") from error
    except ValueError as error:
        if isinstance(error, SensorError):
            raise
        raise SensorError(shown(f"{uri}: {error}.")) from error


def _simulated(uri: str, given: Settings) -> tuple[Robot, Arm | None]:
    from sensors.robots.simulated import SimulatedArm, Simulation

    if given:
        raise SensorError(f"{uri}: does not know {', '.join(given)}; a simulated arm has no settings.")
    simulation = Simulation(uri.partition(":")[2])
    return SimulatedArm(simulation), simulation.arm


def _ros(uri: str, given: Settings) -> tuple[Robot, Arm | None]:
    from sensors.robots.ros import RosConfig, RosRobot, Wire

    arm = _arm(uri, given)
    joints = arm.joints if arm is not None and "joints" not in given else _joints(uri, given)
    config = parse_settings(RosConfig, given, uri, joints=joints)
    wire: Wire
    if uri.startswith("ros2:"):
        from sensors.robots.ros2 import DdsWire

        domain = uri.partition(":")[2]
        if not domain.isdecimal():
            raise RobotError(f"{uri}: expected a ROS domain, a whole number, as in ros2:0.")
        wire = DdsWire(int(domain))
    else:
        from sensors.robots.rosbridge import RosbridgeWire

        parts = urlsplit(uri)
        if not parts.hostname:
            raise RobotError(f"{uri}: lacks a host, as in rosbridge://127.0.0.1:9090.")
        wire = RosbridgeWire(parts.hostname, parts.port or 9090, secure=parts.scheme == "rosbridges")
    return RosRobot(wire, config, None if arm is None else Kinematics(arm).velocities), arm


def _mqtt(uri: str, given: Settings) -> tuple[Robot, Arm | None]:
    from sensors.mqtt_broker import MqttBroker
    from sensors.robots.mqtt import MqttRobot

    parts = urlsplit(uri)
    topic = parts.path.strip("/")
    if not parts.hostname or not topic:
        raise RobotError(f"{uri}: lacks a host or a topic, as in mqtt://127.0.0.1/robots/arm.")
    if parts.password is not None:
        raise SensorError(
            f"mqtt://{parts.hostname}: a password is in the address, which others may read. Name the environment "
            "variable that holds it, as password_env."
        )
    arm = _arm(uri, given)
    joints = arm.joints if arm is not None and "joints" not in given else _joints(uri, given)
    gripper = given.pop("gripper", False)
    if not isinstance(gripper, bool):
        raise RobotError(f"{uri}: gripper is {gripper!r}, expected true or false.")
    tls = parts.scheme == "mqtts"
    made = {"host": parts.hostname, "port": parts.port or 0, "user": parts.username or ""}
    broker = parse_settings(MqttBroker, given, uri, tls=tls, **made)
    return MqttRobot(broker, topic, joints, gripper), arm


def _arm(uri: str, given: Settings) -> Arm | None:
    name = given.pop("arm", None)
    if name is not None and name not in ARMS:
        raise RobotError(f"{uri}: arm is {name!r}, expected one of {', '.join(ARMS)}, or none.")
    return None if name is None else ARMS[name]


def _joints(uri: str, given: Settings) -> tuple[Channel, ...]:
    names = given.pop("joints", None)
    if not (isinstance(names, list) and names and all(isinstance(name, str) and name for name in names)):
        raise RobotError(f"{uri}: joints is {names!r}, expected the names of the robot's joints in their order.")
    return tuple(Channel(name, "rad") for name in names)


_KINDS: dict[str, Callable[[str, Settings], tuple[Robot, Arm | None]]] = {
    "simulated": _simulated,
    "ros2": _ros,
    "rosbridge": _ros,
    "rosbridges": _ros,
    "mqtt": _mqtt,
    "mqtts": _mqtt,
}
