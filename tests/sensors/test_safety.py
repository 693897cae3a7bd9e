import _thread
import random
import signal
import threading
import time
from itertools import pairwise

import numpy as np
import pytest

from sensors.command_log import CommandLog, read_log
from sensors.intent import Intent
from sensors.robot import RobotError
from sensors.safety import Safety
from sensors.safety_checks import Fault
from sensors.safety_states import COMMANDING, Event, State, follow
from sensors.stream import SensorError
from tests.sensors.integrating_robot import CONFIG, IntegratingRobot

AHEAD = np.array([0.02, 0.0, 0.0, 0.0, 0.0, 0.2])
LONG = 10  # s; what a test waits for comes much sooner


class Operator:
    """Frames at some 200 Hz from a thread, and a hand that holds."""

    def __init__(self, safety):
        self.safety = safety
        self.holds = False
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self):
        while not self._end.wait(0.005):
            now = time.monotonic()
            if self.holds:
                self.safety.hold(now)
            self.safety.submit(Intent(now, "point", 0.9, AHEAD))

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._end.set()
        self._thread.join()


def until(true):
    end = time.monotonic() + LONG
    while not true():
        assert time.monotonic() < end
        time.sleep(0.001)


def go(safety, operator, true):
    """Arm and hold until it is so; anew where a busy machine stops it."""

    def is_so():
        if safety.snapshot.state in (State.DISARMED, State.FAULT):
            operator.holds = False
            operator.holds = safety.arm("a test").result(LONG).accepted
        return true()

    until(is_so)


@pytest.fixture
def robot():
    return IntegratingRobot(time.monotonic)


@pytest.fixture
def log(tmp_path):
    with CommandLog(tmp_path / "commands.jsonl") as log:
        yield log


def test_an_intent_becomes_a_command_and_the_log_has_what_was_sent(robot, log):
    with Safety(robot, CONFIG, log) as safety, Operator(safety) as operator:
        assert safety.snapshot.state is State.DISARMED
        go(safety, operator, lambda: len(robot.sent) > 20)
        assert safety.snapshot.sent.sequence >= 20
        assert len(safety.latencies()) >= 5
        assert safety.thread_ids.keys() == {"safety control", "safety watchdog"}
    log.close()
    logged = [record for record in read_log(log.path) if record["what"] == "command"]
    assert [record["twist"] for record in logged] == [command.twist.tolist() for command in robot.sent]
    assert all(record["received"] <= record["issued"] <= record["sent"] for record in logged)
    assert robot.stops  # closing lets go of a robot that stands


def test_a_newer_intent_takes_the_place_of_one_that_waits_and_it_is_counted(robot, log):
    safety = Safety(robot, CONFIG, log)
    for _ in range(5):
        safety.submit(Intent(time.monotonic(), None, 0.0))
    assert safety.superseded == 4
    with safety:
        until(lambda: safety.snapshot.counts["intents"] == 1)


def test_two_bridges_on_a_robot_are_refused(robot, log):
    with Safety(robot, CONFIG, log), pytest.raises(RobotError, match="driven by another bridge"):
        Safety(IntegratingRobot(time.monotonic), CONFIG, log).open()
    with Safety(robot, CONFIG, log):
        pass


def test_a_robot_that_cannot_be_had_is_let_go(robot, log, monkeypatch):
    def refuse():
        raise RobotError("no robot there")

    monkeypatch.setattr(robot, "connect", refuse)
    with pytest.raises(RobotError, match="no robot there"):
        Safety(robot, CONFIG, log).open()
    monkeypatch.undo()
    with Safety(robot, CONFIG, log):
        pass


def test_a_driver_that_does_not_return_is_stopped_by_the_watchdog_and_the_fault_stays(robot, log, monkeypatch):
    hanging, let_go = threading.Event(), threading.Event()
    send = robot.send

    def hang(command):
        hanging.set()
        let_go.wait(LONG)
        return send(command)

    with Safety(robot, CONFIG, log) as safety, Operator(safety) as operator:
        go(safety, operator, lambda: len(robot.sent) > 5)
        monkeypatch.setattr(robot, "send", hang)
        go(safety, operator, hanging.is_set)
        until(lambda: safety.snapshot.state is State.FAULT and robot.stops)
        assert safety.snapshot.fault.fault is Fault.HANG
        monkeypatch.undo()
        let_go.set()  # by then the command has expired or not; either way it is over
        answer = safety.report(Fault.MODEL, "too late to change a thing").result(LONG)
        assert answer.state is State.FAULT
        count = len(robot.sent)
        time.sleep(0.05)
        assert len(robot.sent) == count
        assert safety.snapshot.state is State.FAULT
        go(safety, operator, lambda: len(robot.sent) > count)


def opened_and_hung(robot, log, monkeypatch):
    """An open bridge whose driver does not return, and the event that lets it go."""
    hanging, let_go = threading.Event(), threading.Event()

    def hang():
        hanging.set()
        let_go.wait(LONG)
        raise RobotError("too late")

    safety = Safety(robot, CONFIG, log)
    safety.open()
    monkeypatch.setattr(robot, "state", hang)
    assert hanging.wait(LONG)
    return safety, let_go


def test_a_bridge_whose_driver_never_returns_can_be_closed_all_the_same(robot, log, monkeypatch):
    monkeypatch.setattr("sensors.safety.JOIN_S", 0.05)
    safety, let_go = opened_and_hung(robot, log, monkeypatch)
    answer = safety.arm("a test")
    safety.close()
    assert robot.stops
    assert answer.result(0) == (False, State.DISARMED, "the bridge is not open")
    with Safety(IntegratingRobot(time.monotonic), CONFIG, log):  # and the robot is free
        pass
    with pytest.raises(RobotError, match="has not returned since this bridge was closed"):
        safety.open()  # what hangs would go on beside the new threads
    let_go.set()
    monkeypatch.undo()
    until(lambda: not any(thread.name == "safety control" for thread in threading.enumerate()))
    with safety:
        assert safety.disarm("Ana").result(LONG).accepted


def test_a_bridge_that_is_not_open_refuses_at_once_and_keeps_no_request_for_later(robot, log):
    safety = Safety(robot, CONFIG, log)
    refused = (False, State.DISARMED, "the bridge is not open")
    assert safety.arm("Ana").result(0) == refused
    with safety:
        assert safety.disarm("Ana").result(LONG).accepted
    assert safety.arm("Ana").result(0) == refused
    assert safety.report(Fault.MODEL, "too late").result(0) == refused
    with safety, Operator(safety):
        until(lambda: not safety.snapshot.not_ready)
        assert safety.report(Fault.MODEL, "an answer to wait for").result(LONG).state is State.DISARMED


@pytest.mark.parametrize("started", [0, 1])
def test_a_thread_that_cannot_start_leaves_no_robot_taken(robot, log, monkeypatch, started):
    start, left = threading.Thread.start, [started]

    def refuse(thread):
        if not left[0]:
            raise RuntimeError("can't start new thread")
        left[0] -= 1
        start(thread)

    safety = Safety(robot, CONFIG, log)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        safety.open()
    monkeypatch.undo()
    assert robot.stops  # it was let go
    assert not safety.thread_ids
    with safety:
        assert safety.disarm("Ana").result(LONG).accepted


def test_an_interrupt_while_it_is_closed_leaves_no_robot_taken(robot, log, monkeypatch):
    safety, let_go = opened_and_hung(robot, log, monkeypatch)

    def interrupted():
        threading.Timer(0.3, _thread.interrupt_main).start()
        safety.close()

    # A shell that runs the tests in the background has them ignore Ctrl-C.
    heeds = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            interrupted()
    finally:
        signal.signal(signal.SIGINT, heeds)
    let_go.set()
    assert robot.stops
    with Safety(IntegratingRobot(time.monotonic), CONFIG, log):  # and the robot is free
        pass


def test_an_emergency_is_cleared_by_name_and_with_a_reason(robot, log):
    with Safety(robot, CONFIG, log) as safety:
        assert safety.estop("Ana", "smoke").result(LONG).accepted
        with pytest.raises(SensorError, match="reason"):
            safety.clear("Ana", " ")
        with pytest.raises(SensorError, match="name"):
            safety.clear(" ", "no more smoke")
        assert safety.clear("Ana", "no more smoke").result(LONG) == (True, State.DISARMED, "")
    log.close()
    whys = [record["why"] for record in read_log(log.path) if record["what"] == "state"]
    assert whys[:2] == ["Ana: smoke", "Ana: no more smoke"]


def test_the_log_has_what_people_were_refused_and_not_every_fault_of_a_bridge_that_is_disarmed(robot, log):
    with Safety(robot, CONFIG, log) as safety:
        for _ in range(3):
            assert not safety.report(Fault.NAN, "no number in bend").result(LONG).accepted
        assert not safety.clear("Ana", "all is well").result(LONG).accepted
    log.close()
    refused = [record for record in read_log(log.path) if record["what"] == "refused"]
    assert [(record["event"], record["who"], record["asked"]) for record in refused] == [
        ("clear", "Ana", "all is well")
    ]


def test_who_waits_for_an_answer_may_give_up(robot, log, monkeypatch):
    safety, let_go = opened_and_hung(robot, log, monkeypatch)
    answer = safety.estop("Ana")
    assert not answer.cancel()
    let_go.set()
    assert answer.result(LONG).accepted
    safety.close()


def test_many_threads_at_once_get_their_answers_and_the_states_follow_the_table(robot, log):
    answers = []
    with Safety(robot, CONFIG, log) as safety, Operator(safety) as operator:

        def disturb(seed):
            draw = random.Random(seed)
            for _ in range(40):
                ask = draw.choice(
                    [
                        lambda: safety.arm("a thread"),
                        lambda: safety.arm("a thread"),
                        lambda: safety.disarm("a thread"),
                        lambda: safety.estop("a thread"),
                        lambda: safety.clear("a thread", "a reason"),
                        lambda: safety.report(Fault.MODEL, "a thread says so"),
                    ]
                )
                answers.append(ask())
                operator.holds = draw.random() < 0.5
                if not operator.holds:
                    safety.release()
                time.sleep(draw.random() * 0.02)

        threads = [threading.Thread(target=disturb, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(isinstance(answer.result(LONG).state, State) for answer in answers)
        until(lambda: safety.clear("a test", "end").result(LONG) and safety.disarm("a test").result(LONG).accepted)
        safety.release()
        go(safety, operator, lambda: safety.snapshot.state is State.MOVING)
    log.close()
    records = read_log(log.path)
    state = State.DISARMED
    for record in records:
        if record["what"] == "state":
            assert record["from"] == state
            assert follow(State(record["from"]), Event(record["event"])).state == record["to"]
            state = record["to"]
        elif record["what"] == "command":
            assert state in COMMANDING
    sequences = [record["sequence"] for record in records if record["what"] == "command"]
    assert all(before < after for before, after in pairwise(sequences))
    assert len(robot.senders) == 1
