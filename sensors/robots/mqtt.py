"""A robot behind an MQTT broker: commands out, its state back. Its host is `mqtt_host`, or anything that speaks so.

What is sent carries its expiry in the robot's own clock; how far that one is ahead is learned from the robot's reports.
Nothing is sent to a robot that is silent, or that another bridge has.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
import uuid

from data.frame import Channel
from sensors.mqtt_broker import MqttBroker, refuse_bad_topic
from sensors.robot import Command, Robot, RobotError, RobotInfo, RobotState
from sensors.robots.mqtt_link import MqttLink
from sensors.robots.mqtt_messages import (
    ClockOffset,
    Control,
    Report,
    Welcome,
    read_report,
    read_welcome,
    write_command,
    write_control,
)
from sensors.stream import Clock

SILENT_S = 0.1  # without a report, after which a robot counts as gone
REPORTS = 5  # that a connection waits for, so that the clocks' offset is known well
WAIT_S = 3.0
ASK_S = 0.2  # from one asking for the robot to the next, for as long as nobody has it


class MqttRobot(Robot):
    """Sends what `safety` gives as it comes; keeps the newest report."""

    def __init__(
        self,
        broker: MqttBroker,
        topic: str,
        joints: tuple[Channel, ...],
        has_gripper: bool,
        clock: Clock = time.monotonic,
    ) -> None:
        """
        Args:
            topic: the robot's, such as robots/arm.
            joints: that it shall have; a robot with others is refused.

        Raises:
            SensorError: a topic with wildcards, or none.
        """
        refuse_bad_topic(broker.uri, topic)
        self.info = RobotInfo("MQTT", f"{broker.uri}/{topic}", joints, has_gripper)
        self.refused = 0  # messages that could not be read
        self.last_refusal = ""
        self._topic = topic
        self._clock = clock
        self._session = uuid.uuid4().hex
        leave = write_control(Control("leave", self._session))
        self._link = MqttLink(
            broker,
            [f"{topic}/welcome", f"{topic}/state"],
            self._take,
            up=self._ask,
            down=self._forget,
            will=(f"{topic}/control", leave),
        )
        self._news = threading.Condition()
        self._open = False
        self._wanted = False  # whether the robot shall be ours
        self._asked = -math.inf  # s, when we asked for it last
        self._welcome: Welcome | None = None
        self._report: Report | None = None
        self._state: RobotState | None = None
        self._reports = 0  # since the host or the connection is new
        self._offset = ClockOffset()
        self._heard = -math.inf  # s, when the newest report was here
        self._sequence = 0

    def connect(self) -> None:
        self._wanted, self._sequence = True, 0
        self._link.open()
        try:
            self._meet()
        except BaseException:
            self._leave()
            raise
        self._open = True

    def close(self) -> None:
        self._open = False
        self._leave()

    def state(self) -> RobotState:
        state = self._state
        if state is None:
            raise RobotError(f"{self.info.uri}: nothing has been measured yet; connect first.")
        return state

    def send(self, command: Command) -> Command:
        now = self._clock()
        late = now - command.expires
        if not late < 0:
            raise RobotError(f"{self.info.uri}: command {command.sequence} expired {late:.3f} s ago; not sent.")
        if not self._open:
            raise RobotError(f"{self.info.uri}: is not connected.")
        report = self._report
        silence = now - self._heard
        if report is None or not silence < SILENT_S:
            raise RobotError(f"{self.info.uri}: the robot has been silent for {silence:.3f} s.")
        if report.holder != self._session:
            raise RobotError(f"{self.info.uri}: the robot is not ours any more; connect anew.")
        ahead = self._offset.at(now)
        sent = command if self.info.has_gripper else command._replace(gripper=None)
        theirs = sent._replace(issued=sent.issued + ahead, expires=sent.expires + ahead)
        self._sequence = command.sequence  # first, so that a stop of another thread is of this one too
        self._link.publish(f"{self._topic}/command", write_command(self._session, theirs))
        return sent

    def stop(self) -> None:
        if self._open:
            self._tell("stop")

    def _meet(self) -> None:
        """Wait until the robot is ours and has reported."""
        with self._news:
            self._news.wait_for(lambda: self._welcome is not None and self._reports >= REPORTS, WAIT_S)
            welcome = self._welcome
            if welcome is None or self._reports < REPORTS:
                raise RobotError(
                    f"{self.info.uri}: no robot reported within {WAIT_S:g} s. Start its host, and check the topic."
                )
        if welcome.holder != self._session:
            raise RobotError(f"{self.info.uri} is driven by another bridge, session {welcome.holder}: stop that first.")
        names = tuple(joint.name for joint in self.info.joints)
        if welcome.joints != names:
            raise RobotError(
                f"{self.info.uri}: the robot has the joints {', '.join(welcome.joints)}, expected {', '.join(names)}."
            )
        if self.info.has_gripper and not welcome.gripper:
            raise RobotError(f"{self.info.uri}: the robot has no gripper.")

    def _leave(self) -> None:
        self._wanted = False
        with contextlib.suppress(RobotError):  # whom nobody reaches any more stands when its last command expires
            self._tell("leave")
        self._link.close()
        self._forget()

    def _ask(self) -> None:
        """For the robot: when the broker is there, and again until the host has heard it."""
        self._asked = self._clock()
        with contextlib.suppress(RobotError):  # the broker is gone again
            self._tell("take")

    def _tell(self, kind: str) -> None:
        self._link.publish(f"{self._topic}/control", write_control(Control(kind, self._session, self._sequence)))

    def _forget(self) -> None:
        with self._news:
            self._welcome, self._report, self._reports = None, None, 0

    def _take(self, topic: str, payload: bytes) -> None:
        now = self._clock()
        try:
            if topic.endswith("/welcome"):
                welcome = read_welcome(payload)
                if welcome.session == self._session:
                    with self._news:
                        self._welcome = welcome
                        self._news.notify_all()
            else:
                self._measure(read_report(payload, len(self.info.joints)), now)
        except RobotError as error:
            self.refused += 1
            self.last_refusal = str(error)

    def _measure(self, report: Report, now: float) -> None:
        with self._news:
            if self._report is None or report.host != self._report.host:
                self._offset, self._reports = ClockOffset(), 0
            self._offset.take(report.sent, now)
            measured = min(now, report.state.time - self._offset.value)
            self._state, self._report, self._heard = report.state._replace(time=measured), report, now
            self._reports += 1
            self._news.notify_all()
        if self._wanted and not report.holder and now - self._asked > ASK_S:
            self._ask()
