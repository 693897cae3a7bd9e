"""A robot behind a real broker, in another process whose clock is not ours."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.frame import Channel
from sensors.mqtt_broker import MqttBroker
from sensors.robot import Command, RobotError, RobotState
from sensors.robots.mqtt import SILENT_S, MqttRobot
from sensors.robots.mqtt_host import MqttHost
from sensors.robots.mqtt_link import MqttLink
from sensors.robots.mqtt_messages import (
    DRIFT,
    ClockOffset,
    Control,
    Report,
    Welcome,
    read_command,
    read_control,
    read_report,
    read_welcome,
    write_command,
    write_control,
    write_report,
    write_welcome,
)
from sensors.robots.panda import PANDA
from sensors.stream import SensorError
from tests.sensors.broker import Broker, free_port
from tests.sensors.integrating_robot import IntegratingRobot

TOPIC = "robots/test"
STANDS = 0.02  # rad/s
LATE_S = 0.15  # from when nothing moves it any more until it is seen to stand, on a busy machine


BRIDGE = """
import sys, time
import numpy as np
from sensors.mqtt_broker import MqttBroker
from sensors.robot import Command
from sensors.robots.mqtt import MqttRobot
from sensors.robots.panda import PANDA

robot = MqttRobot(MqttBroker("127.0.0.1", int(sys.argv[1])), sys.argv[2], PANDA.joints, has_gripper=True)
robot.connect()
print("on", flush=True)
for number in range(1, 10000):
    now = time.monotonic()
    robot.send(Command(number, now, now + 0.1, np.array([0, 0.1, 0, 0, 0, 0])))
    time.sleep(0.01)
"""


class Host:
    """The robot's process."""

    def __init__(self, port: int) -> None:
        command = [sys.executable, "-m", "tests.sensors.robots.mqtt_peer", str(port), TOPIC]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid = self._process.pid
        self._read = self._process.stdout
        self._counted: Counter[str] = Counter()

    def wait(self) -> None:
        assert self._read is not None
        assert self._read.readline() == "ready\n"

    def happened(self) -> dict[str, Any]:
        """Since it was asked last."""
        assert self._process.stdin is not None
        assert self._read is not None
        print(file=self._process.stdin, flush=True)
        happened = json.loads(self._read.readline())
        counted = Counter(happened["counts"])
        happened["counts"], self._counted = counted - self._counted, counted
        return happened

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextmanager
def running(port: int) -> Iterator[Host]:
    process = Host(port)
    try:
        process.wait()
        yield process
    finally:
        process.kill()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A broker that no test stops."""
    with Broker(tmp_path_factory.mktemp("broker"), "allow_anonymous true") as broker:
        yield broker


@pytest.fixture(scope="module")
def lasting(shared: Broker) -> Iterator[Host]:
    with running(shared.port) as process:
        yield process


@pytest.fixture
def host(lasting: Host) -> Host:
    """A robot at that broker, that stands and of whom nothing has happened yet."""
    lasting.happened()
    until(lambda: fastest(lasting.happened(), 0) < STANDS)
    return lasting


def mqtt(port: int, joints: tuple[Channel, ...] = PANDA.joints) -> MqttRobot:
    return MqttRobot(MqttBroker("127.0.0.1", port), TOPIC, joints, has_gripper=True)


def command(sequence: int, ttl_s: float = 0.1, speed: float = 0.1) -> Command:
    now = time.monotonic()
    return Command(sequence, now, now + ttl_s, np.array([0, speed, 0, 0, 0, 0]), 0.5)


def drive(robot: MqttRobot, first: int, seconds: float, insist: bool = True) -> int:
    """Send for so long; the next number. A busy machine holds up reports, and who insists goes on behind that."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            robot.send(command(first))
        except RobotError:
            if not insist:
                raise
        first += 1
        time.sleep(0.01)
    return first


def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"it did not happen within {seconds:g} s"
        time.sleep(0.01)


def after(host: Host, commands: int) -> dict[str, Any]:
    """What has happened by the time so many commands have come: two connections' arrive in either order."""
    counts: Counter[str] = Counter()
    speeds: list[tuple[float, float]] = []
    refusal = ""

    def come() -> bool:
        nonlocal refusal
        happened = host.happened()
        counts.update(happened["counts"])
        speeds.extend(happened["speeds"])
        refusal = happened["refusal"]
        return counts.total() >= commands and bool(speeds)

    until(come)
    return {"counts": counts, "refusal": refusal, "speeds": speeds}


def fastest(happened: dict[str, Any], since: float, till: float = np.inf) -> float:
    """rad/s."""
    return max((speed for at, speed in happened["speeds"] if since < at < till), default=np.inf)


def test_commands_move_the_arm_in_the_other_process_and_its_state_comes_back(shared, host):
    with mqtt(shared.port) as robot:
        before = robot.state()
        assert before.joints.shape == (7,)
        assert time.monotonic() - before.time < 1  # of our clock
        sent = command(1)
        assert robot.send(sent) == sent
        drive(robot, 2, 0.5)
        until(lambda: robot.state().position[1] > before.position[1] + 0.02)
        until(lambda: robot.state().gripper < 0.6)
        drive(robot, 100, 0.1)
        robot.stop()
        stopped = time.monotonic()
        time.sleep(LATE_S + 0.1)
    happened = host.happened()
    assert happened["counts"].keys() == {"executed"}
    assert happened["counts"]["executed"] > 20
    assert fastest(happened, stopped + LATE_S) < STANDS


def test_when_commands_end_the_arm_stands_at_the_last_ones_expiry(shared, host):
    with mqtt(shared.port) as robot:
        drive(robot, 1, 0.3)
        last = command(1000)
        robot.send(last)
        time.sleep(0.4)
    happened = host.happened()
    assert fastest(happened, last.expires - 0.1, last.expires) > STANDS
    assert fastest(happened, last.expires + LATE_S) < STANDS


def test_what_a_frozen_robot_gets_when_it_wakes_is_not_executed(shared, host):
    with mqtt(shared.port) as robot:
        number = drive(robot, 1, 0.3)
        os.kill(host.pid, signal.SIGSTOP)
        with pytest.raises(RobotError, match="has been silent for"):
            drive(robot, number, 2 * SILENT_S + 0.5, insist=False)
        time.sleep(0.2)
        woken = time.monotonic()
        os.kill(host.pid, signal.SIGCONT)
        time.sleep(0.4)
    happened = host.happened()
    assert happened["counts"]["expired"] > 0
    assert fastest(happened, woken + LATE_S) < STANDS


def test_a_lost_broker_stops_the_arm_and_its_return_moves_nothing(tmp_path):
    with Broker(tmp_path, "allow_anonymous true") as broker, running(broker.port) as host, mqtt(broker.port) as robot:
        number = drive(robot, 1, 0.3)
        lost = time.monotonic()
        broker.kill()
        with pytest.raises(RobotError, match=GONE):
            drive(robot, number, 1, insist=False)
        with pytest.raises(RobotError, match=GONE):
            robot.stop()
        broker.start()
        returned = time.monotonic()
        until(lambda: _sends(robot, 5000), 10)  # both came back by themselves, and the robot is ours again
        happened = host.happened()
    assert fastest(happened, lost - 0.1, lost) > STANDS
    assert fastest(happened, lost + LATE_S) < STANDS
    assert max(at for at, _ in happened["speeds"]) > returned


GONE = "is gone|has been silent|is not ours any more"


def _sends(robot: MqttRobot, sequence: int) -> bool:
    try:
        robot.send(command(sequence, speed=0.0))
    except RobotError:
        return False
    return True


def test_a_bridge_that_dies_stops_the_arm_and_lets_another_one_have_it(shared, host):
    bridge = subprocess.Popen(
        [sys.executable, "-c", BRIDGE, str(shared.port), TOPIC], stdout=subprocess.PIPE, text=True
    )
    assert bridge.stdout is not None
    assert bridge.stdout.readline() == "on\n"
    time.sleep(0.3)
    with pytest.raises(RobotError, match=r"is driven by another bridge, session [0-9a-f]+: stop that first"):
        mqtt(shared.port).connect()
    killed = time.monotonic()
    bridge.kill()
    bridge.communicate()
    time.sleep(0.3)
    freed = time.monotonic()
    with mqtt(shared.port) as robot:
        drive(robot, 1, 0.1)
    happened = host.happened()
    assert fastest(happened, killed - 0.1, killed) > STANDS
    assert fastest(happened, killed + LATE_S, freed) < STANDS


def test_commands_of_others_doubles_and_of_too_long_a_life_are_not_executed(shared, host):
    with mqtt(shared.port) as robot:
        robot.send(command(7, ttl_s=0.4, speed=0.0))
        robot.send(command(7, ttl_s=0.4, speed=0.0))
        robot.send(command(3, ttl_s=0.4, speed=0.0))
        robot.send(command(8, ttl_s=60))
        with pytest.raises(RobotError, match=r"command 9 expired 1\.0\d\d s ago; not sent"):
            robot.send(command(9, ttl_s=-1))
        ours = after(host, commands=4)
        stranger = MqttLink(MqttBroker("127.0.0.1", shared.port), ["x"], print, lambda: None, lambda: None)
        stranger.open()
        stranger.publish(f"{TOPIC}/command", write_command("somebody", command(20)))
        stranger.publish(f"{TOPIC}/command", b"nonsense")
        stranger.close()
        others = after(host, commands=2)
        time.sleep(0.3)  # in which the arm would be seen to move, and more than was sent to be counted
        later = host.happened()
    assert ours["counts"] == {"executed": 1, "out of order": 2, "refused": 1}
    assert re.fullmatch(r"command 8 would last \d\d\.\d{3} s, expected 0\.5 at most\.", ours["refusal"])
    assert others["counts"] == {"refused": 1, "not the holder's": 1}
    assert others["refusal"] == "command: is no JSON (Expecting value: line 1 column 1 (char 0))."
    assert fastest(ours, 0) < STANDS
    assert fastest(others, 0) < STANDS
    assert later["counts"] == {}
    assert fastest(later, 0) < STANDS


def test_a_stop_that_overtakes_the_command_it_stops_is_obeyed(shared, host, monkeypatch):
    with mqtt(shared.port) as robot:
        publish = MqttLink.publish

        def hang(link: MqttLink, topic: str, payload: bytes) -> None:
            if topic.endswith("/command"):
                robot.stop()  # as the watchdog does while who sends hangs here
            publish(link, topic, payload)

        monkeypatch.setattr(MqttLink, "publish", hang)
        robot.send(command(1, ttl_s=0.4))
        monkeypatch.undo()
        happened = after(host, commands=1)
    assert happened["counts"] == {"out of order": 1}
    assert fastest(happened, 0) < STANDS


class Odd(IntegratingRobot):
    """Refuses its first command with an error that is not a robot's."""

    def send(self, command: Command) -> Command:
        if command.sequence == 1:
            raise ValueError("odd")
        return super().send(command)


def test_a_driver_that_fails_in_a_way_of_its_own_leaves_the_host_listening(shared):
    robot, ending = Odd(time.monotonic), threading.Event()
    broker, topic = MqttBroker("127.0.0.1", shared.port), "robots/odd"
    with MqttHost(robot, broker, topic, time.monotonic) as host:
        threading.Thread(target=host.run, args=[ending], daemon=True).start()
        with MqttRobot(broker, topic, robot.info.joints, has_gripper=True) as bridge:
            until(lambda: _sends(bridge, 1))
            until(lambda: host.counts["refused"] == 1)
            assert host.last_refusal == "odd"
            until(lambda: _sends(bridge, 2) and host.counts["executed"] > 0)
        ending.set()


def test_a_robot_with_other_joints_is_refused_by_name(shared, host):
    with pytest.raises(RobotError, match=r"has the joints panda_joint1, .*expected elbow, panda_joint2"):
        mqtt(shared.port, (Channel("elbow", "rad"), *PANDA.joints[1:])).connect()
    with mqtt(shared.port) as robot:  # the refused bridge let it go
        robot.state()


def test_nobody_there_is_told_apart():
    with pytest.raises(RobotError, match=r"no MQTT broker answers .*Start it"):
        mqtt(free_port()).connect()
    unconnected = mqtt(1)
    with pytest.raises(RobotError, match="nothing has been measured yet"):
        unconnected.state()
    with pytest.raises(RobotError, match="is not connected"):
        unconnected.send(command(1))
    unconnected.stop()
    unconnected.close()


@pytest.mark.parametrize("topic", ["robots/+", "robots/#", ""])
def test_a_topic_of_several_robots_or_none_is_refused_by_name(topic):
    broker = MqttBroker("127.0.0.1", 1)
    with pytest.raises(SensorError, match=f"topic is {re.escape(repr(topic))}, expected one topic"):
        MqttRobot(broker, topic, PANDA.joints, True)
    with pytest.raises(SensorError, match=f"topic is {re.escape(repr(topic))}, expected one topic"):
        MqttHost(IntegratingRobot(time.monotonic), broker, topic, time.monotonic)


def test_a_broker_without_a_robot_is_told_apart(shared, monkeypatch):
    monkeypatch.setattr("sensors.robots.mqtt.WAIT_S", 0.2)
    elsewhere = MqttRobot(MqttBroker("127.0.0.1", shared.port), "robots/none", PANDA.joints, has_gripper=True)
    with pytest.raises(RobotError, match=r"no robot reported within 0\.2 s. Start its host"):
        elsewhere.connect()


def test_a_password_that_is_not_there_is_named(shared):
    broker = MqttBroker("127.0.0.1", shared.port, user="robot", password_env="MNEMO_NO_SUCH_PASSWORD")
    with pytest.raises(RobotError, match="environment variable MNEMO_NO_SUCH_PASSWORD"):
        MqttRobot(broker, TOPIC, PANDA.joints, True).connect()


@settings(max_examples=50, deadline=None)
@given(
    st.floats(-1e4, 1e4),
    st.floats(-DRIFT / 2, DRIFT / 2),
    st.lists(st.tuples(st.floats(0.001, 100), st.floats(0, 2)), min_size=1, max_size=20),
)
def test_an_expiry_in_the_robots_clock_is_never_later_than_it_was_meant(ahead, drift, reports):
    """Whatever the delays, and however the clocks drift within the bound."""

    def theirs(ours: float) -> float:
        return ours * (1 + drift) + ahead

    offset, now = ClockOffset(), 0.0
    for pause, delay in reports:
        left = now + pause
        now = left + delay
        offset.take(theirs(left), now)
        assert now + offset.at(now) <= theirs(now) + 1e-6
        later = now + 0.05
        assert later + offset.at(later) <= theirs(later) + 1e-6


def test_an_offset_is_that_of_the_fastest_report():
    offset = ClockOffset()
    for sent, received in ((100.0, 0.5), (101.0, 1.001), (102.0, 2.3)):
        offset.take(sent, received)
    assert offset.at(2.3) == pytest.approx(99.999, abs=2 * DRIFT)


STATE = RobotState(5.0, np.arange(7.0), -np.arange(7.0), np.array([1.0, 2, 3]), np.array([1.0, 0, 0, 0]), 0.5)


def test_messages_say_what_was_written():
    assert read_control(write_control(Control("stop", "a", 7))) == Control("stop", "a", 7)
    welcome = Welcome("a", "b", ("x", "y"), True)
    assert read_welcome(write_welcome(welcome)) == welcome
    session, read = read_command(write_command("a", Command(3, 1.5, 2.5, np.arange(6.0), None)))
    assert (session, read.sequence, read.issued, read.expires, read.gripper) == ("a", 3, 1.5, 2.5, None)
    assert read.twist.tolist() == [0, 1, 2, 3, 4, 5]
    report = read_report(write_report(Report("h", "", 5.1, STATE)), 7)
    assert (report.host, report.holder, report.sent, report.state.gripper) == ("h", "", 5.1, 0.5)
    assert np.isnan(report.state.manipulability)
    assert report.state.velocities.tolist() == STATE.velocities.tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"twist": [0, 0, 0]}, r"command: twist is \[0, 0, 0\], expected 6 finite numbers"),
        ({"twist": [float("nan")] * 6}, "command: twist is .*expected 6 finite numbers"),
        ({"twist": [True] * 6}, "command: twist is .*expected 6 finite numbers"),
        ({"expires": float("inf")}, "command: expires is inf, expected a finite number"),
        ({"expires": "soon"}, "command: expires is 'soon'"),
        ({"sequence": 1.5}, r"command: sequence is 1\.5, expected a whole number"),
        ({"session": 5}, "command: session is 5, expected text"),
        ({"gripper": "open"}, "command: gripper is 'open'"),
        ({"twist": [10**400] * 6}, "command: twist is .*expected 6 finite numbers"),
        ({"issued": 10**400}, "command: issued is 1000*, expected a finite number"),
    ],
)
def test_a_command_that_cannot_be_read_is_refused_by_its_field(change, message):
    whole = json.loads(write_command("a", Command(3, 1.5, 2.5, np.zeros(6), 0.5)))
    with pytest.raises(RobotError, match=message):
        read_command(json.dumps(whole | change).encode())


@pytest.mark.parametrize(
    ("read", "payload", "message"),
    [
        (read_command, b"[]", "command: is list, expected an object"),
        (read_command, b"{}", "command: lacks session"),
        (read_control, b'{"kind": "go", "session": "a", "sequence": 1}', "control: kind is 'go', expected one of take"),
        (read_control, b"\xff", "control: is no JSON"),
        (read_control, b"[" * 100_000, "control: is no JSON"),
        (read_welcome, write_welcome(Welcome("a", "b", 5, True)), "welcome: joints is 5, expected a list of names"),
        (read_welcome, write_welcome(Welcome("a", "b", (1,), True)), r"welcome: joints is \[1\], expected a list"),
        (read_welcome, write_welcome(Welcome("a", "b", ("x",), "no")), "welcome: gripper is 'no', expected true or"),
        (lambda payload: read_report(payload, 6), write_report(Report("h", "", 5.1, STATE)), "state: joints is"),
    ],
)
def test_what_is_no_message_is_refused(read, payload, message):
    with pytest.raises(RobotError, match=message):
        read(payload)
