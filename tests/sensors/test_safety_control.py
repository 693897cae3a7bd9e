import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sensors.command_log import CommandLog
from sensors.intent import Intent
from sensors.robot import RobotError
from sensors.safety_checks import Fault, SafetyConfig
from sensors.safety_control import Control, Request
from sensors.safety_states import LIVE, Event, State
from sensors.stream import SensorError
from tests.sensors.integrating_robot import CONFIG, LIMITS, Clock, IntegratingRobot

AHEAD = np.array([0.1, 0.0, 0.0, 0.0, 0.0, 0.2])
TICK = 0.005


class Rig:
    """A bridge's control and its robot on a clock that the test turns."""

    def __init__(self, tmp_path, config=CONFIG):
        self.clock = Clock()
        self.robot = IntegratingRobot(self.clock)
        self.log = CommandLog(tmp_path / "unopened.jsonl")
        self.control = Control(self.robot, config, self.log, self.clock)
        self.held = -math.inf
        self.newest = None
        self.received = [-math.inf]  # frames of intents that were handed over
        self.wanted = []  # when somebody held, with a gesture that counts
        self.armed = []  # when a person did
        self.ended = []  # when it was disarmed, stopped, or a fault was there to be seen

    @property
    def state(self):
        return self.control.snapshot.state

    def intent(self, twist=AHEAD, gesture="point", confidence=0.9, **more):
        return Intent(self.clock(), gesture, confidence, twist)._replace(**more)

    def turn(self, intent=None, dt=TICK, held=None):
        """held: None leaves the hold as it is."""
        self.clock.now += dt
        now = self.clock()
        if held is not None:
            self.held = now if held else -math.inf
        if intent is not None:
            intent = intent._replace(received=intent.received + dt)
            if (
                self.received[-1] <= intent.received <= now
                and intent.twist is not None
                and np.isfinite(intent.twist).all()
            ):
                self.received.append(intent.received)
                self.newest = intent
        newest = self.newest
        if newest and newest.gesture == "point" and newest.confidence > 0.8 and now - self.held <= 0.1:
            self.wanted.append(now)
        self.control.turn(intent, self.held)

    def ask(self, event, why="", fault=None):
        request = Request(event, "a test", why, fault)
        self.clock.now += 1e-6  # so that one follows the other
        self.control.turn(requests=[request], held=self.held)
        answer = request.answer.result(0)
        if answer.accepted:
            (self.armed if event is Event.ARM else self.ended).append(self.clock())
        return answer

    def drive(self, turns=20, dt=TICK, **intent):
        for _ in range(turns):
            self.turn(self.intent(**intent), dt, held=True)
        return self

    def rest(self, turns=20, dt=TICK, **intent):
        for _ in range(turns):
            self.turn(self.intent(**intent), dt, held=False)
        return self

    def arm(self):
        self.rest(2)
        answer = self.ask(Event.ARM)
        assert answer.accepted, answer.why
        return self

    def moved(self, since=-math.inf):
        self.robot.advance()
        return [motion for motion in self.robot.motions if motion.end > since]


@pytest.fixture
def rig(tmp_path):
    return Rig(tmp_path)


def test_a_bridge_begins_disarmed_and_moves_nothing_whatever_is_wanted(rig):
    rig.drive(50)
    assert rig.state is State.DISARMED
    assert not rig.robot.sent


def test_armed_and_held_the_robot_goes_as_wanted(rig):
    rig.arm().drive(60)
    assert rig.state is State.MOVING
    assert rig.robot.sent[-1].twist == pytest.approx(AHEAD, abs=1e-3)
    assert [command.sequence for command in rig.robot.sent] == list(range(1, 61))


@pytest.mark.parametrize(
    "change",
    [
        {"gesture": None},
        {"gesture": "unknown"},
        {"confidence": 0.79},
        {"confidence": math.nan},
        {"held": False},
    ],
)
def test_an_ordinary_stop_brakes_within_the_limits_and_leaves_it_armed(rig, change):
    rig.arm().drive(60)
    if change.pop("held", True):
        rig.drive(60, **change)
    else:
        rig.rest(60)
    assert rig.state is State.ARMED
    speeds = np.array([command.twist for command in rig.robot.sent])
    assert speeds[60:, 0].max() <= 0.1 + 1e-6
    assert not rig.robot.sent[-1].twist.round(6).any()
    assert np.abs(np.diff(speeds[:, :3], axis=0)).max() <= 1.0 / math.sqrt(3) * TICK + 1e-9
    assert len(rig.robot.stops) == 0
    count = len(rig.robot.sent)
    rig.rest(30)
    assert len(rig.robot.sent) == count  # who stands is told nothing


def test_held_again_while_it_brakes_it_goes_on_from_the_speed_it_has(rig):
    rig.arm().drive(60).rest(8).drive(60)
    speeds = np.array([command.twist[0] for command in rig.robot.sent])
    assert speeds.min() > 0.01 or speeds.argmin() < 60
    assert np.abs(np.diff(speeds)).max() <= 1.0 / math.sqrt(3) * TICK + 1e-9


def inject(rig, fault):
    """Bring a fault about; returns what ends it."""
    robot, changed = rig.robot, rig.robot.changed
    if fault is Fault.SILENCE:
        for _ in range(11):
            rig.turn(dt=0.01)
    elif fault is Fault.NAN:
        rig.turn(rig.intent(np.full(6, np.nan)))
    elif fault is Fault.CLOCK:
        rig.turn(rig.intent(received=rig.clock() + 1))
    elif fault in (Fault.MODEL, Fault.SOURCE, Fault.HANG, Fault.INTERNAL):
        rig.ask(Event.FAULT, "reported", fault)
    elif fault is Fault.DRIVER:
        robot.broken = "no answer"
        rig.drive(1)
    elif fault is Fault.STALE:
        changed["time"] = rig.clock()
        rig.drive(25)
    elif fault is Fault.SPEED:
        changed["velocities"] = np.full(6, 3.1)
        rig.drive(1)
    elif fault is Fault.LOG:
        rig.log.failure = "no space left"
        rig.drive(1)
    else:
        changed["position"] = np.array([0.0, 0.0, 0.211])
        rig.drive(1)

    def heal():
        robot.broken, rig.log.failure = "", None
        changed.clear()

    return heal


@pytest.mark.parametrize("before", [State.ARMED, State.MOVING, State.BRAKING])
@pytest.mark.parametrize("fault", Fault)
def test_a_fault_stops_the_robot_and_only_who_arms_it_moves_it_again(rig, fault, before):
    rig.arm()
    if before is not State.ARMED:
        rig.drive(40)
    if before is State.BRAKING:
        rig.rest(2)
    assert rig.state is before
    heal = inject(rig, fault)
    assert rig.state is State.FAULT
    assert rig.control.snapshot.fault.fault is fault
    heal()
    rig.turn()
    assert rig.robot.stops
    stopped = rig.robot.stops[-1]
    rig.drive(40).rest(10).drive(20)
    assert not rig.moved(since=stopped + 1e-9)
    assert rig.state is State.FAULT
    rig.arm().drive(40)
    assert rig.moved(since=stopped + 1e-9)


@pytest.mark.parametrize("fault", [Fault.DRIVER, Fault.SPEED, Fault.STALE, Fault.LOG])
def test_who_arms_while_the_fault_lasts_is_told_why_not(rig, fault):
    rig.arm().drive(20)
    inject(rig, fault)
    rig.rest(2)
    answer = rig.ask(Event.ARM)
    assert not answer.accepted
    why = {Fault.DRIVER: "no answer", Fault.SPEED: "3.100 rad/s", Fault.STALE: "last measured", Fault.LOG: "no space"}
    assert why[fault] in answer.why


def test_an_orientation_that_is_none_is_a_fault_and_nobody_is_shown_it(rig):
    rig.arm().drive(20)
    rig.robot.changed["orientation"] = np.zeros(4)  # as a message that nobody filled in has it
    rig.turn(rig.intent(), held=True)
    assert rig.control.snapshot.fault.fault is Fault.DRIVER
    assert "expected a quaternion of unit length" in rig.control.snapshot.not_ready
    assert rig.control.snapshot.robot is None


@pytest.mark.parametrize("field", ["joints", "velocities", "position", "orientation", "time"])
def test_a_measurement_that_is_not_a_number_is_a_fault(rig, field):
    rig.arm().drive(10)
    good = getattr(rig.robot.state(), field)
    rig.robot.changed[field] = np.full(np.shape(good), np.nan) if np.shape(good) else math.nan
    rig.drive(1)
    assert rig.state is State.FAULT


@pytest.mark.parametrize("jump", [-0.001, -50.0, 0.101, 50.0])
def test_a_clock_that_jumps_is_a_fault(rig, jump):
    rig.arm().drive(10)
    rig.clock.now += jump
    rig.control.turn(rig.intent(), rig.clock())
    assert rig.state is State.FAULT
    assert rig.control.snapshot.fault.fault is Fault.CLOCK
    rig.robot.advance()
    rig.newest, rig.received, rig.held = None, [-math.inf], -math.inf
    count = len(rig.robot.sent)
    rig.arm().drive(10)  # by the clock as it is now
    assert len(rig.robot.sent) == count + 10


@pytest.mark.parametrize("twist", [np.zeros(3), np.array([0, 0, 0, 0, 0, np.inf]), None])
def test_a_twist_that_is_not_six_finite_numbers_is_a_fault(rig, twist):
    rig.arm().drive(10)
    rig.turn(rig.intent(twist))
    assert rig.state is State.FAULT


@pytest.mark.parametrize("gripper", [math.nan, -0.1, 1.1])
def test_a_gripper_that_is_not_within_its_travel_is_a_fault(rig, gripper):
    rig.arm().drive(10)
    rig.turn(rig.intent(gripper=gripper))
    assert rig.state is State.FAULT


@pytest.mark.parametrize(
    ("prepare", "why"),
    [
        (lambda rig: [rig.turn(dt=0.05) for _ in range(4)], "newest intent"),
        (lambda rig: rig.robot.changed.update(velocities=np.full(6, 0.02)), "measured to move"),
        (lambda rig: rig.robot.changed.update(velocities=np.full(6, np.nan)), "velocities are measured as"),
        (lambda rig: rig.robot.changed.update(gripper=math.nan), "gripper's opening"),
        (lambda rig: rig.robot.changed.update(time=rig.clock() - 0.2), "last measured"),
        (lambda rig: rig.drive(1), "let it go first"),
        (lambda rig: setattr(rig.log, "failure", "disk full"), "disk full"),
    ],
)
def test_what_is_not_fresh_known_and_still_is_not_armed(rig, prepare, why):
    rig.rest(3)
    prepare(rig)
    answer = rig.ask(Event.ARM)
    assert not answer.accepted
    assert why in answer.why
    assert rig.state is State.DISARMED


def test_an_emergency_stop_stays_until_it_is_cleared_and_is_not_armed_then(rig):
    rig.arm().drive(40)
    assert rig.ask(Event.ESTOP).accepted
    stopped = rig.robot.stops[-1]
    rig.drive(10).rest(10)
    for event in (Event.ARM, Event.DISARM):
        assert not rig.ask(event).accepted
    assert rig.ask(Event.CLEAR, "seen to").state is State.DISARMED
    rig.drive(20)
    assert not rig.moved(since=stopped + 1e-9)


def test_after_a_stop_at_speed_it_starts_from_standing_where_it_is(rig):
    rig.arm().drive(60)
    rig.ask(Event.FAULT, "reported", Fault.MODEL)
    rig.rest(2)
    rig.robot.position, rig.robot.gripper = np.array([0.1, 0.1, 0.0]), 0.9  # as if moved by hand
    count = len(rig.robot.sent)
    rig.arm().drive(10, gripper=0.0)
    speeds = [0.0, *(command.twist[0] for command in rig.robot.sent[count:])]
    assert np.abs(np.diff(speeds)).max() <= 1.0 / math.sqrt(3) * TICK + 1e-9
    assert rig.robot.sent[count].gripper == pytest.approx(0.9 - 2.0 * 0.02)


def test_a_tool_out_of_its_box_can_be_brought_back_and_gets_no_further_out(rig):
    rig.robot.position = np.array([0.25, 0.0, 0.0])
    rig.arm().drive(100)
    assert rig.robot.position[0] <= 0.25
    rig.drive(400, twist=-AHEAD)
    assert rig.state is State.MOVING
    assert rig.robot.position[0] < 0.2


def test_an_intent_older_than_the_one_before_is_left_out_and_counted(rig):
    rig.arm().drive(30)
    rig.turn(rig.intent(received=rig.clock() - 0.02, gesture=None))
    assert rig.state is State.MOVING
    assert rig.control.snapshot.counts["late"] == 1


def test_a_command_expires_the_watchdogs_time_after_the_frame_it_comes_from(tmp_path):
    rig = Rig(tmp_path, SafetyConfig(LIMITS, 0.8, watchdog_s=0.06))
    rig.arm().drive(10)
    received = rig.clock()
    for _ in range(12):
        rig.held = rig.clock()
        rig.turn(dt=0.01)
    assert {round(command.expires - received, 9) for command in rig.robot.sent[-5:]} == {0.06}
    assert rig.robot.sent[-1].issued <= received + 0.06
    assert rig.state is State.FAULT


def test_a_frame_that_waited_on_its_way_is_as_old_as_if_it_had_waited_here(rig):
    rig.arm().drive(30)
    rig.turn(rig.intent(late=0.07), held=True)
    assert rig.robot.sent[-1].expires == pytest.approx(rig.clock() + 0.03)
    rig.turn(rig.intent(late=0.11), held=True)
    assert rig.state is State.FAULT
    assert rig.control.snapshot.fault.fault is Fault.SILENCE


@pytest.mark.parametrize("late", [math.nan, -0.001, math.inf])
def test_an_intent_that_is_not_known_to_be_how_late_is_a_fault(rig, late):
    rig.arm().drive(10)
    rig.turn(rig.intent(late=late), held=True)
    assert rig.state is State.FAULT
    assert rig.control.snapshot.fault.fault is Fault.NAN


def test_a_silence_that_was_over_before_the_loop_looked_is_a_fault_all_the_same(rig):
    rig.arm().drive(60)
    for _ in range(9):
        rig.turn(dt=0.01)
    assert rig.state is State.MOVING
    rig.turn(rig.intent(), dt=0.03, held=True)
    assert rig.state is State.FAULT
    assert rig.control.snapshot.fault.fault is Fault.SILENCE


def test_a_command_that_expires_while_the_loop_makes_the_next_is_not_followed_by_it(rig, monkeypatch):
    """A loop that waits for the processor just then: the robot has stood, and would move once more."""
    rig.arm().drive(60)
    for _ in range(19):
        rig.turn()
    assert rig.state is State.MOVING
    sent, step = len(rig.robot.sent), rig.control._limiter.step

    def slow(*arguments):
        rig.clock.now += 0.01
        return step(*arguments)

    monkeypatch.setattr(rig.control._limiter, "step", slow)
    rig.turn(rig.intent(), dt=0.004, held=True)
    assert rig.control.snapshot.fault.fault is Fault.SILENCE
    assert len(rig.robot.sent) == sent


def test_held_again_after_a_rest_it_moves_though_the_last_command_has_expired_long_ago(rig):
    rig.arm().drive(60).rest(200)
    assert rig.state is State.ARMED
    rig.drive(5)
    assert rig.state is State.MOVING
    assert rig.moved(rig.clock() - TICK)


def test_a_robot_that_was_measured_again_before_the_loop_looked_is_a_fault_all_the_same(rig):
    rig.arm().drive(30)
    rig.robot.changed["time"] = rig.clock()
    rig.drive(19)  # 95 ms
    assert rig.state is State.MOVING
    rig.robot.changed.clear()
    rig.drive(1, dt=0.02)
    assert rig.state is State.FAULT
    assert rig.control.snapshot.fault.fault is Fault.STALE


def test_latencies_are_those_of_each_intents_first_command_the_newest_kept(rig, monkeypatch):
    rig.arm()
    monkeypatch.setattr("sensors.safety_control.LATENCIES", 5)
    for delay in range(1, 8):
        rig.held = rig.clock()
        rig.turn(rig.intent(received=rig.clock() - 0.001 * delay))
        rig.held = rig.clock()
        rig.turn()  # another command of the same intent
    assert rig.control.latencies() == pytest.approx([0.003, 0.004, 0.005, 0.006, 0.007])
    assert rig.control.latencies(2) == pytest.approx([0.006, 0.007])
    assert rig.control.snapshot.slowest == pytest.approx(0.007)


def test_a_hold_ages_like_an_intent(rig):
    rig.arm().drive(40)
    held = rig.held
    while rig.state is State.MOVING:
        rig.turn(rig.intent())
    assert rig.state is State.BRAKING
    assert rig.clock() - held == pytest.approx(0.1, abs=2 * TICK)


def test_gestures_can_be_the_hold(tmp_path):
    rig = Rig(tmp_path, SafetyConfig(LIMITS, 0.8, hold=("fist",)))
    rig.arm().drive(10)
    assert rig.state is State.ARMED
    rig.rest(10, gesture="fist")
    assert rig.state is State.MOVING


def test_a_gesture_that_started_a_motion_holds_only_while_it_is_shown(tmp_path):
    rig = Rig(tmp_path, SafetyConfig(LIMITS, 0.8, hold=("fist",)))
    rig.arm().rest(10, gesture="fist")
    rig.rest(1, gesture="fist", alone=True)  # let go; the motion that it started goes on wanting
    assert rig.state is State.BRAKING
    rig.rest(60, gesture="fist", alone=True)
    assert rig.state is State.ARMED


def test_a_robot_is_stopped_when_the_log_has_no_room_and_may_be_armed_when_it_has(tmp_path):
    rig = Rig(tmp_path)
    rig.arm().drive(20)
    rig.log.dropped += 1
    rig.drive(1)
    assert rig.control.snapshot.fault == (Fault.LOG, "commands cannot be logged: 1 records found no room")
    rig.arm().drive(20)
    assert rig.state is State.MOVING


def test_the_gripper_goes_no_faster_than_its_limit(rig):
    rig.arm().drive(30, gripper=1.0)
    openings = [command.gripper for command in rig.robot.sent]
    assert np.diff(openings).max() <= 2.0 * TICK + 1e-9
    assert openings[-1] == pytest.approx(0.5 + 2.0 * (0.02 + 29 * TICK))


def test_a_robot_that_could_not_be_told_to_stop_is_told_until_it_can(rig):
    rig.arm().drive(20)
    rig.robot.broken = "no answer"
    rig.drive(5)
    assert not rig.robot.stops
    assert rig.control.snapshot.counts["stops failed"] >= 5
    rig.robot.broken = ""
    rig.drive(5)
    assert len(rig.robot.stops) == 1


def test_a_robot_that_cannot_be_told_to_stop_is_not_armed(rig, monkeypatch):
    def refuse():
        raise RobotError("no stop")

    rig.arm().drive(20)
    monkeypatch.setattr(rig.robot, "stop", refuse)  # and takes commands all the same
    assert rig.ask(Event.ESTOP).accepted
    rig.rest(30)
    assert rig.ask(Event.CLEAR, "all is well").accepted
    rig.rest(2)
    answer = rig.ask(Event.ARM)
    assert (answer.accepted, answer.state) == (False, State.DISARMED)
    assert answer.why == "the robot could not be told to stop yet"
    monkeypatch.undo()
    rig.arm()


def test_a_defect_of_the_loop_itself_stops_the_robot_and_the_loop_goes_on(rig, monkeypatch):
    rig.arm().drive(20)
    monkeypatch.setattr(rig.control, "_command", lambda: 1 / 0)
    rig.drive(1)
    assert rig.state is State.FAULT
    assert rig.control.snapshot.fault.fault is Fault.INTERNAL
    assert len(rig.robot.stops) == 1
    monkeypatch.undo()
    rig.arm().drive(3)
    assert rig.state is State.MOVING


def test_an_emergency_stop_counts_while_the_loop_fails_and_nobody_is_armed(rig, monkeypatch):
    rig.arm().drive(20)
    monkeypatch.setattr(rig.control, "_look", lambda intent: 1 / 0)
    assert rig.ask(Event.ESTOP).accepted
    assert rig.state is State.ESTOP
    assert rig.ask(Event.CLEAR, "why").accepted
    answer = rig.ask(Event.ARM)
    assert (answer.accepted, answer.why) == (False, "the loop failed; see the fault")
    monkeypatch.undo()
    rig.arm().drive(3)
    assert rig.state is State.MOVING


@pytest.mark.parametrize(
    "change",
    [
        {"watchdog_s": 0.1001},
        {"watchdog_s": 0.0},
        {"watchdog_s": math.nan},
        {"watchdog_s": True},
        {"period_s": 0.03},
        {"period_s": 0},
        {"confidence": 0.0},
        {"confidence": 1.01},
        {"confidence": math.nan},
        {"confidence": "high"},
        {"hold": "fist"},
        {"hold": [1]},
        {"whatchdog_s": 0.1},
    ],
)
def test_a_configuration_that_is_not_safe_is_refused_by_name(change):
    with pytest.raises(SensorError, match=next(iter(change))):
        SafetyConfig.parse({"confidence": 0.8} | change, LIMITS)


def test_a_configuration_without_a_confidence_is_refused():
    with pytest.raises(SensorError, match="lacks confidence"):
        SafetyConfig.parse({}, LIMITS)
    assert SafetyConfig.parse({"confidence": 0.8, "hold": ["fist"]}, LIMITS).hold == ("fist",)


# Random sequences. BRAKES_S bounds how long the fastest robot takes to stand within LIMITS: until the acceleration is
# turned round, down from the highest speed, and out; axes get their share of the norm.
BRAKES_S = 0.25 / 1.0 + 3 * 1.0 / 10.0 + 0.05

WANTED = st.sampled_from([AHEAD, -AHEAD, np.array([0, 9.0, -9.0, 3.0, 0, 0]), np.zeros(6)])
DT = st.sampled_from([0.0005, 0.003, 0.01, 0.02])
TURNS = st.sampled_from([1, 4, 15, 80])
STEPS = st.one_of(
    st.tuples(st.just("drive"), TURNS, DT, WANTED),
    st.tuples(st.just("rest"), TURNS, DT, WANTED),
    st.tuples(st.just("arm")),
    st.tuples(st.just("go"), TURNS, DT, WANTED),
    st.tuples(st.just("doubt"), TURNS, DT, st.sampled_from([("unknown", 0.9), ("point", 0.1), (None, 1.0)])),
    st.tuples(st.just("lapse"), TURNS, DT),
    st.tuples(st.just("quiet"), TURNS, DT),
    st.tuples(st.just("hang"), st.floats(0.001, 0.3)),
    st.tuples(st.just("fault"), st.sampled_from(list(Fault))),
    st.tuples(st.just("old"), st.floats(0.0, 0.3)),
    st.tuples(st.sampled_from(["disarm", "estop", "clear"])),
)


@settings(max_examples=150)
@given(st.lists(STEPS, max_size=25))
def test_no_path_moves_the_robot_unless_armed_held_and_fresh_and_nothing_jumps(tmp_path_factory, steps):
    rig = Rig(tmp_path_factory.getbasetemp())
    for kind, *values in steps:
        if kind == "drive":
            rig.drive(values[0], values[1], twist=values[2])
        elif kind == "rest":
            rig.rest(values[0], values[1], twist=values[2])
        elif kind == "go":
            rig.ask(Event.CLEAR, "why")
            rig.rest(3)
            rig.ask(Event.ARM)
            rig.drive(values[0], values[1], twist=values[2])
        elif kind == "doubt":
            rig.drive(values[0], values[1], gesture=values[2][0], confidence=values[2][1])
        elif kind == "lapse":
            for _ in range(values[0]):
                rig.turn(rig.intent(), values[1])  # and nobody says a thing about the hold
        elif kind == "quiet":
            for _ in range(values[0]):
                rig.turn(dt=values[1])
        elif kind == "hang":
            rig.clock.now += values[0]  # and whatever the loop would do, it does not
        elif kind == "old":
            rig.turn(rig.intent(received=rig.clock() - values[0]))
        elif kind == "fault":
            live = rig.state in LIVE
            heal = inject(rig, values[0])
            if live:
                assert rig.state is State.FAULT
                rig.ended.append(rig.clock())
            heal()
            rig.turn()
        else:
            rig.ask(Event(kind), "why")
    rig.clock.now += 0.2

    commands = rig.robot.sent
    assert all(earlier.sequence < later.sequence for earlier, later in pairwise(commands))
    end, twist = -math.inf, np.zeros(6)  # of the motion before
    for motion in rig.moved():
        at, command = motion.command.issued, motion.command
        step = np.abs(command.twist - (twist if motion.start <= end + 1e-9 else 0.0))
        assert step[:3].max() <= LIMITS.linear_acceleration / math.sqrt(3) * 2 * CONFIG.period_s + 1e-9
        assert step[3:].max() <= LIMITS.angular_acceleration / math.sqrt(3) * 2 * CONFIG.period_s + 1e-9
        end, twist = motion.end, command.twist
        assert motion.end <= max(time for time in rig.received if time <= at + 1e-9) + 0.1 + 1e-9
        last_end = max((time for time in rig.ended if time <= motion.start + 1e-9), default=-math.inf)
        assert any(last_end < time <= at for time in rig.armed)
        assert any(at - BRAKES_S <= time <= at for time in rig.wanted)
        assert np.linalg.norm(command.twist[:3]) <= LIMITS.linear_velocity + 1e-9
        assert np.linalg.norm(command.twist[3:]) <= LIMITS.angular_velocity + 1e-9
