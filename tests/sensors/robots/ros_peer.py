"""A robot on the other side of DDS, in a process of its own: integrates what it is told, tells where it is.

Prints what it heard, a line each, when its standard input closes.
"""

import json
import sys
import threading
import time
from typing import Any

from cyclonedds.core import Policy, Qos
from cyclonedds.domain import DomainParticipant
from cyclonedds.internal import InvalidSample
from cyclonedds.pub import DataWriter
from cyclonedds.sub import DataReader
from cyclonedds.topic import Topic
from cyclonedds.util import duration

from sensors.robots.ros_messages import (
    Float64,
    Header,
    JointState,
    JointTrajectory,
    Point,
    Pose,
    PoseStamped,
    Quaternion,
    Time,
    TwistStamped,
    split_seconds,
)

PERIOD_S = 0.01
TIMEOUT_S = 0.1  # as a servo drops what is older


def main(domain: int, kind: str) -> None:
    participant = DomainParticipant(domain)
    qos = Qos(Policy.Reliability.Reliable(duration(seconds=1)), Policy.History.KeepLast(1))

    def topic(name: str, message: Any) -> Topic:
        return Topic(participant, f"rt/{name}", message)

    commands: Any = DataReader(
        participant, topic("command", JointTrajectory if kind == "trajectory" else TwistStamped), qos
    )
    grippers: Any = DataReader(participant, topic("gripper", Float64), qos)
    joint_states = DataWriter(participant, topic("joint_states", JointState), qos)
    poses = DataWriter(participant, topic("tool_pose", PoseStamped), qos)
    closed = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), closed.set()), daemon=True).start()
    heard: list[dict[str, Any]] = []
    x, joints, gripper = 0.5, [0.1, -0.2, 0.04], 0.0
    while not closed.is_set():
        for message in commands.take(N=10):
            if isinstance(message, InvalidSample):  # the bridge has left
                continue
            if time.time() - (message.header.stamp.sec + message.header.stamp.nanosec / 1e9) > TIMEOUT_S:
                continue
            if isinstance(message, TwistStamped):
                x += PERIOD_S * message.twist.linear.x
                heard.append({"linear": message.twist.linear.x, "angular": message.twist.angular.z})
            else:
                points = [list(point.positions) for point in message.points]
                joints[:2] = points[0] if points else joints[:2]
                heard.append({"names": list(message.joint_names), "points": points})
        for message in grippers.take(N=10):
            gripper = gripper if isinstance(message, InvalidSample) else message.data
        now = Header(Time(*split_seconds(time.time())), "base_link")
        # In another order than the driver's, and with a finger that it has as its gripper.
        order = ["finger", "shoulder", "elbow"]
        joint_states.write(JointState(now, order, [0.04 * gripper, joints[0], joints[1]], [0.0, 0.5, 0.6]))
        poses.write(PoseStamped(now, Pose(Point(x, 0.1, 0.2), Quaternion(0.0, 0.0, 0.0, 1.0))))
        time.sleep(PERIOD_S)
    print(json.dumps(heard))  # noqa: T201


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
