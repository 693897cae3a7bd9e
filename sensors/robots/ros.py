"""A robot that ROS drives, whatever wire its messages go over.

Out: `geometry_msgs/TwistStamped` for a Cartesian servo such as MoveIt Servo, or `trajectory_msgs/JointTrajectory` for a
joint trajectory controller, one point ahead; `std_msgs/Float64` for a gripper. In: `sensor_msgs/JointState` and the
tool's `geometry_msgs/PoseStamped`.

Messages carry the time at which the command was issued: by it a servo drops what is older than its timeout, and a
trajectory controller what would end in the past. Stamps are of the system's clock, which the robot's machine must share
(NTP, PTP).

Shapes: J joints.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from data.frame import Channel
from sensors.robot import Command, Robot, RobotError, RobotInfo, RobotState
from sensors.robots.ros_messages import (
    Duration,
    Float64,
    Header,
    JointState,
    JointTrajectory,
    JointTrajectoryPoint,
    PoseStamped,
    Time,
    Twist,
    TwistStamped,
    Vector3,
    split_seconds,
)
from sensors.sources.settings import refuse_unless
from sensors.stream import Clock

Velocities = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]
"""(joints (J,) rad, twist (6,)) -> joint velocities (J,) rad/s: inverse kinematics."""


MOST_LEAD_S = 0.1


@dataclass(frozen=True)
class RosConfig:
    """Topics as ROS writes them, and what is known of the robot before it answers."""

    joints: tuple[Channel, ...]  # names as in JointState
    twist: str = "/servo_node/delta_twist_cmds"
    trajectory: str = ""  # of a joint trajectory controller; if given, it is used and not `twist`
    joint_states: str = "/joint_states"
    pose: str = "/tool_pose"
    gripper: str = ""  # Float64, 0 closed to 1 open; none if empty
    gripper_joint: str = ""  # the joint whose position tells the gripper's opening
    gripper_open: float = 1.0  # that position when open, in its unit; closed is 0
    frame_id: str = "base_link"
    lead_s: float = 0.1  # of a trajectory's point: where the joints would be after so long
    wait_s: float = 3.0  # for the first measurement

    def __post_init__(self) -> None:
        # A controller goes to the point whatever comes after it, so it may lie no further ahead than a command lives.
        refuse_unless(0 < self.lead_s <= MOST_LEAD_S, "ros", "lead_s", self.lead_s, f"above 0 to {MOST_LEAD_S:g} s")
        refuse_unless(0 < self.wait_s < math.inf, "ros", "wait_s", self.wait_s, "seconds above 0")
        fine = math.isfinite(self.gripper_open) and self.gripper_open != 0
        refuse_unless(fine, "ros", "gripper_open", self.gripper_open, "where the gripper's joint is when open, not 0")
        if self.gripper and not self.gripper_joint:
            raise RobotError(
                f"ros: gripper is {self.gripper}, but gripper_joint, which tells how far it is open, is not given; a "
                "robot is not armed without."
            )

    @property
    def command(self) -> str:
        return self.trajectory or self.twist


class Wire(Protocol):
    """How ROS messages come and go. Constructors only store."""

    uri: str
    remedy: str  # what to look at when nothing comes

    def open(self) -> None:
        """Raises RobotError where there is nobody to connect to."""

    def close(self) -> None: ...

    def advertise(self, topic: str, kind: type[Any]) -> None: ...

    def subscribe(self, topic: str, kind: type[Any], take: Callable[[Any], None]) -> None:
        """`take` gets each message as it comes, in a thread of the wire's."""

    def publish(self, topic: str, message: Any) -> None:
        """Send now or not at all; raises RobotError."""

    def heard(self, topic: str) -> bool:
        """Whether anybody listens, as far as can be known."""


class RosRobot(Robot):
    """Sends what `safety` gives as it comes; keeps the newest measurement."""

    def __init__(
        self,
        wire: Wire,
        config: RosConfig,
        velocities: Velocities | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        """velocities: inverse kinematics, for a joint trajectory controller.

        Raises:
            RobotError: a trajectory topic without them.
        """
        if config.trajectory and velocities is None:
            raise RobotError(
                f"{config.trajectory}: a joint trajectory needs the arm's kinematics; name the arm, or give a `twist` "
                "topic of a Cartesian servo instead."
            )
        self.config = config
        self.info = RobotInfo(
            name="ROS", uri=wire.uri + config.command, joints=config.joints, has_gripper=bool(config.gripper)
        )
        self._wire = wire
        self._inverse = velocities
        self._clock = clock
        self._open = False
        self._joints: tuple[float, NDArray[np.float64], NDArray[np.float64], float] | None = None
        self._pose: tuple[float, NDArray[np.float64], NDArray[np.float64]] | None = None

    def connect(self) -> None:
        self._joints = self._pose = None  # of the last time
        self._wire.open()
        try:
            self._meet()
        except BaseException:
            self._wire.close()
            raise
        self._open = True

    def _meet(self) -> None:
        """Name the topics and wait for whoever is on them."""
        config, wire = self.config, self._wire
        wire.advertise(config.command, JointTrajectory if config.trajectory else TwistStamped)
        if config.gripper:
            wire.advertise(config.gripper, Float64)
        wire.subscribe(config.joint_states, JointState, self._take_joints)
        wire.subscribe(config.pose, PoseStamped, self._take_pose)
        end = time.monotonic() + config.wait_s
        while time.monotonic() < end and not (self._joints and self._pose and wire.heard(config.command)):
            time.sleep(0.01)
        missing = [
            text
            for text, there in (
                (f"no complete JointState on {config.joint_states}", self._joints),
                (f"no PoseStamped on {config.pose}", self._pose),
                (f"nobody listens on {config.command}", wire.heard(config.command)),
            )
            if not there
        ]
        if missing:
            names = ", ".join(joint.name for joint in config.joints)
            raise RobotError(
                f"{self.info.uri}: {' and '.join(missing)} within {config.wait_s:g} s. Is the robot's driver running, "
                f"{wire.remedy}, with these topics and the joints {names}?"
            )

    def close(self) -> None:
        if self._open:
            try:
                with contextlib.suppress(RobotError):  # whom nobody reaches stands when its last command expires
                    self.stop()
            finally:
                self._open = False
                self._wire.close()

    def state(self) -> RobotState:
        joints, pose = self._joints, self._pose
        if joints is None or pose is None:
            raise RobotError(f"{self.info.uri}: nothing has been measured yet; connect first.")
        return RobotState(min(joints[0], pose[0]), joints[1], joints[2], pose[1], pose[2], joints[3])

    def send(self, command: Command) -> Command:
        late = self._clock() - command.expires
        if not late < 0:
            raise RobotError(f"{self.info.uri}: command {command.sequence} expired {late:.3f} s ago; not sent.")
        if not self._open:
            raise RobotError(f"{self.info.uri}: is not connected.")
        if not self._wire.heard(self.config.command):
            raise RobotError(f"{self.info.uri}: nobody listens on {self.config.command} any more.")
        self._wire.publish(self.config.command, self._message(command))
        if not self.config.gripper:
            return command._replace(gripper=None)
        if command.gripper is not None:
            self._wire.publish(self.config.gripper, Float64(command.gripper))
        return command

    def stop(self) -> None:
        if not self._open:
            return
        # A trajectory without points is how a controller is told to hold; a twist of zero is how a servo is.
        now = self._header(self._clock())
        still = JointTrajectory(now, self._names()) if self.config.trajectory else TwistStamped(now)
        self._wire.publish(self.config.command, still)

    def _message(self, command: Command) -> JointTrajectory | TwistStamped:
        header = self._header(command.issued)
        if self._inverse is None or not self.config.trajectory:
            x, y, z, roll, pitch, yaw = command.twist.tolist()
            return TwistStamped(header, Twist(Vector3(x, y, z), Vector3(roll, pitch, yaw)))
        joints, lead = self.state().joints, self.config.lead_s
        low, high = (np.array([getattr(joint, side) for joint in self.info.joints]) for side in ("low", "high"))
        ahead = (joints + lead * self._inverse(joints, command.twist)).clip(low, high)
        # At rest there, so that the arm stands if nothing follows.
        point = JointTrajectoryPoint(ahead.tolist(), [0.0] * len(ahead), time_from_start=Duration(*split_seconds(lead)))
        return JointTrajectory(header, self._names(), [point])

    def _names(self) -> list[str]:
        return [joint.name for joint in self.info.joints]

    def _header(self, issued: float) -> Header:
        """issued: s, of the monotonic clock."""
        return Header(Time(*split_seconds(time.time() - (self._clock() - issued))), self.config.frame_id)

    def _take_joints(self, message: JointState) -> None:
        place = {name: index for index, name in enumerate(message.name)}
        complete = len(message.position) == len(place) and len(message.velocity) in (0, len(place))
        if not complete or not set(self._names()) <= place.keys():
            return  # of other joints; ROS lets several publishers share the topic
        wanted = [place[name] for name in self._names()]
        positions = np.array(message.position)
        velocities = np.array(message.velocity or np.full(len(place), np.nan))
        gripper = np.nan
        if self.config.gripper_joint in place:
            gripper = float(np.clip(positions[place[self.config.gripper_joint]] / self.config.gripper_open, 0, 1))
        self._joints = (self._clock(), positions[wanted], velocities[wanted], gripper)

    def _take_pose(self, message: PoseStamped) -> None:
        position, orientation = message.pose.position, message.pose.orientation
        self._pose = (
            self._clock(),
            np.array([position.x, position.y, position.z]),
            np.array([orientation.w, orientation.x, orientation.y, orientation.z]),
        )
