"""The robot's side of MQTT: runs any driver behind a broker.

It has one holder at a time. Whatever goes wrong on the way, commands expire by this machine's clock; a lost broker and
a holder that leaves, or that the broker lost, stop the robot at once.
"""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections import Counter

from sensors.mqtt_broker import MqttBroker, refuse_bad_topic
from sensors.robot import Robot, RobotError
from sensors.robots.mqtt_link import MqttLink
from sensors.robots.mqtt_messages import (
    Report,
    Welcome,
    read_command,
    read_control,
    write_report,
    write_welcome,
)
from sensors.stream import Clock

RATE_HZ = 100.0
LONGEST_S = 0.5  # that a command may live from when it is here: what would last longer is a mistake


class MqttHost:
    """`with MqttHost(robot, broker, topic, clock) as host: host.run(ending)`."""

    def __init__(self, robot: Robot, broker: MqttBroker, topic: str, clock: Clock, rate_hz: float = RATE_HZ) -> None:
        """
        Args:
            robot: not connected; from here on nobody else's.
            topic: the robot's, such as robots/arm.
            clock: the one by which the robot's commands expire.

        Raises:
            SensorError: a topic with wildcards, or none.
        """
        refuse_bad_topic(broker.uri, topic)
        self.counts: Counter[str] = Counter()  # commands that were executed, and others by why not
        self.last_refusal = ""
        self._robot = robot
        self._topic = topic
        self._clock = clock
        self._period_s = 1 / rate_hz
        self._host = uuid.uuid4().hex
        self._busy = threading.Lock()
        self._holder = ""
        self._sequence = 0  # of the holder's last command or stop
        self._link = MqttLink(
            broker, [f"{topic}/control", f"{topic}/command"], self._take, up=lambda: None, down=self._release
        )

    def run(self, ending: threading.Event) -> None:
        """Report the robot's state until `ending`."""
        while not ending.wait(self._period_s):
            state = self._robot.state()
            with contextlib.suppress(RobotError):  # there is no broker: who is not heard counts as gone
                self._link.publish(
                    f"{self._topic}/state", write_report(Report(self._host, self._holder, self._clock(), state))
                )

    def _take(self, topic: str, payload: bytes) -> None:
        """In paho's thread."""
        try:
            if topic.endswith("/control"):
                self._control(payload)
            else:
                self._command(payload)
        except Exception as error:  # of any driver; it would end paho's thread, and no stop would be heard any more
            self.counts["refused"] += 1
            self.last_refusal = str(error)

    def _control(self, payload: bytes) -> None:
        control = read_control(payload)
        with self._busy:
            if control.kind == "take":
                if not self._holder:
                    self._holder, self._sequence = control.session, 0
                names = tuple(joint.name for joint in self._robot.info.joints)
                welcome = Welcome(control.session, self._holder, names, self._robot.info.has_gripper)
                self._link.publish(f"{self._topic}/welcome", write_welcome(welcome))
            elif control.session == self._holder:
                self._robot.stop()
                self._sequence = max(self._sequence, control.sequence)
                if control.kind == "leave":
                    self._holder = ""

    def _command(self, payload: bytes) -> None:
        session, command = read_command(payload)
        with self._busy:
            left = command.expires - self._clock()
            if session != self._holder:
                self.counts["not the holder's"] += 1
            elif command.sequence <= self._sequence:
                self.counts["out of order"] += 1
            elif not left > 0:
                self.counts["expired"] += 1
            elif left > LONGEST_S:
                raise RobotError(f"command {command.sequence} would last {left:.3f} s, expected {LONGEST_S:g} at most.")
            else:
                self._robot.send(command)
                self._sequence = command.sequence
                self.counts["executed"] += 1

    def _release(self) -> None:
        with self._busy:
            self._holder = ""
            with contextlib.suppress(RobotError):  # what it was sent expires
                self._robot.stop()

    def __enter__(self) -> MqttHost:
        self._robot.connect()
        try:
            self._link.open()
        except BaseException:
            self._robot.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._link.close()
        finally:
            self._robot.close()
