"""From recognised gestures to intents, frame by frame."""

import copy
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from sensors.command_map import parse_command_map
from sensors.gate import GAP_S
from sensors.intent import Intent
from sensors.mapping import Mapper
from sensors.robot import RobotState
from sensors.robots.panda import PANDA
from sensors.stream import StreamInfo
from tests.sensors.test_command_map import CHANNELS, SETTINGS

FRAME_S = 0.02
INFO = StreamInfo("hand", CHANNELS, 50.0)
HOME = parse_command_map(SETTINGS, PANDA).home
DOWN = Rotation.from_matrix(HOME.rotation).as_quat(scalar_first=True)


class Operator:
    """Shows gestures to a mapper, and has a robot that stands where it is told."""

    def __init__(self, **settings: Any) -> None:
        tables = copy.deepcopy(SETTINGS) | settings
        tables["places"]["cup"]["position"] = [0.6, 0.1, 0]
        self.mapper = Mapper(parse_command_map(tables, PANDA), CHANNELS)
        self.now = 10.0
        self.position, self.orientation, self.gripper = np.array([0.4, 0, 0.4]), DOWN, 1.0

    def show(
        self, gesture: str | None, seconds: float = FRAME_S, confidence: float = 0.9, hand: tuple[float, float] = (0, 0)
    ) -> Intent:
        """The intent of the last frame."""
        for _ in range(round(seconds / FRAME_S)):
            self.now += FRAME_S
            state = RobotState(self.now, np.zeros(7), np.zeros(7), self.position, self.orientation, self.gripper, 0.2)
            intent = self.mapper.step(gesture, confidence, INFO.frame(self.now, self.now, hand), state)
        return intent

    def take_the_jug(self) -> None:
        """Picking is left by a stop as soon as the gripper is around it."""
        self.show("grasp")
        self.show(None)
        self.gripper = 0.8
        self.show("fist")
        self.show(None, 1.0)


@pytest.fixture
def operator() -> Operator:
    return Operator()


def moves(intent: Intent) -> bool:
    return bool(intent.twist.any())


def test_nothing_shown_wants_nothing(operator):
    intent = operator.show(None, confidence=0.97)
    assert (intent.gesture, intent.confidence, intent.gripper) == (None, 0.97, None)
    assert intent.received == operator.now
    assert not moves(intent)


def test_a_gesture_starts_a_motion_once_it_has_been_shown_long_enough(operator):
    assert not moves(operator.show("wave", 0.18))  # dwell_s is 0.2
    assert moves(operator.show("wave", 0.08))
    assert operator.mapper.motion.name == "home"


def test_a_motion_goes_on_when_the_gesture_is_over_and_carries_its_name(operator):
    operator.show("wave", 0.3, confidence=0.93)
    intent = operator.show(None, confidence=0.5)
    assert moves(intent)
    assert (intent.gesture, intent.confidence, intent.alone) == ("wave", 0.93, True)
    assert not operator.show("wave").alone


def test_what_is_shown_during_a_motion_is_what_the_intent_says(operator):
    operator.show("wave", 0.3)
    intent = operator.show("unknown", confidence=0.4)  # so that safety brakes
    assert (intent.gesture, intent.confidence) == ("unknown", 0.4)


@pytest.mark.parametrize("confidence", [0.79, np.nan])
def test_a_gesture_below_its_confidence_starts_nothing(operator, confidence):
    operator.show("wave", 1.0, confidence=confidence)
    assert operator.mapper.motion is None


def test_time_below_the_confidence_does_not_count(operator):
    operator.show("wave", 0.18)
    operator.show("wave", confidence=0.5)
    operator.show("wave", 0.18)
    assert operator.mapper.motion is None


def test_a_gap_in_the_stream_does_not_count_as_time_shown(operator):
    operator.show("wave")
    operator.now += 2 * GAP_S
    operator.show("wave")
    assert operator.mapper.motion is None


def test_a_gesture_that_is_still_shown_does_not_start_again_until_it_was_let_go(operator):
    operator.show("wave", 0.3)
    operator.position, operator.orientation = HOME.position, DOWN
    operator.show("wave", 1.0)
    assert (operator.mapper.motion, operator.mapper.finished) == (None, 1)
    operator.show(None, 0.2)  # shorter than release_s: a flicker
    operator.show("wave", 0.5)
    assert operator.mapper.finished == 1
    operator.show(None, 0.5)
    operator.show("wave", 0.5)
    assert operator.mapper.finished == 2
    assert operator.mapper.note == "home: done"


def test_what_comes_while_a_motion_runs_is_dropped_not_queued(operator):
    operator.show("wave", 0.3)
    operator.show("grasp")
    assert operator.mapper.note == "grasp: dropped, home is not done"
    operator.position = HOME.position
    operator.show(None, 1.0)
    assert operator.mapper.motion is None


def test_stop_ends_a_motion_at_its_first_frame_and_at_its_own_confidence(operator):
    operator.show("wave", 0.3)
    intent = operator.show("fist", confidence=0.5)
    assert not moves(intent)
    assert intent.gripper is None
    assert operator.mapper.note == "home: stopped"
    assert not moves(operator.show(None, 1.0))


def test_stop_has_no_hysteresis(operator):
    operator.show("fist")
    operator.show("grasp")
    assert operator.mapper.motion is not None
    operator.show("fist")
    assert operator.mapper.motion is None


def test_a_motion_that_gets_no_further_is_given_up(operator):
    operator.show("wave", 0.3)
    intent = operator.show(None, 5.1)
    assert not moves(intent)
    assert operator.mapper.note == "home: no further for 5 s; something is in the way"
    assert operator.mapper.finished == 0


def test_reset_leaves_the_motion_and_takes_what_is_shown_as_done(operator):
    operator.show("wave", 0.3)
    operator.mapper.reset()
    assert operator.mapper.note == "home: left"
    assert not moves(operator.show("wave", 2.0))
    operator.show(None, 0.5)
    assert moves(operator.show("wave", 0.3))


def test_what_was_shown_at_a_reset_does_not_start_a_motion_later(operator):
    operator.show("wave", 0.1)
    operator.mapper.reset()
    operator.show("wave", 2.0)
    assert operator.mapper.motion is None


def test_nothing_is_poured_from_an_empty_gripper(operator):
    operator.show("tilt")
    assert (operator.mapper.motion, operator.mapper.note) == (None, "tilt: the gripper holds nothing")


def test_what_the_gripper_has_closed_around_is_held_until_it_opens(operator):
    operator.take_the_jug()
    assert operator.mapper.holding.name == "jug"
    operator.show("grasp")
    assert operator.mapper.note == "grasp: the gripper holds the jug already"
    operator.gripper = 1.0
    operator.show(None)
    assert operator.mapper.holding is None


def test_a_gripper_that_closed_all_the_way_holds_nothing(operator):
    operator.take_the_jug()
    operator.gripper = 0.0  # it slipped out
    operator.show(None)
    assert operator.mapper.holding is None


def test_nothing_is_poured_from_what_has_no_rim(operator):
    operator.take_the_jug()
    operator.show("tilt")
    assert operator.mapper.note == "tilt: the jug has no rim to pour from"


def test_a_thing_is_not_put_where_another_one_belongs():
    things = copy.deepcopy(SETTINGS["things"])
    things["bread"] = things["jug"]
    commands = copy.deepcopy(SETTINGS["commands"])
    commands["serve"] = {"gesture": "swipe", "do": "place", "thing": "bread", "at": "cup", "confidence": 0.8}
    operator = Operator(things=things, commands=commands)
    operator.take_the_jug()
    operator.show("swipe")
    assert (operator.mapper.motion, operator.mapper.note) == (None, "swipe: the gripper holds the jug, not the bread")


def test_what_has_a_rim_is_poured_from():
    things = copy.deepcopy(SETTINGS["things"])
    things["jug"]["rim"] = [0.158, 0.032]
    operator = Operator(things=things)
    operator.take_the_jug()
    intent = operator.show("tilt")
    assert operator.mapper.motion.name == "pour from jug"
    assert intent.gripper == 0.0  # it is kept closed


def test_while_its_gesture_is_shown_the_hand_drives(operator):
    assert not moves(operator.show("point", hand=(0.3, 0)))  # where it began is zero
    assert not moves(operator.show("point", hand=(0.32, 0)))  # dead zone
    assert operator.show("point", hand=(0.42, 0)).twist == pytest.approx([0.05, 0, 0, 0, 0, 0])
    assert operator.show("point", hand=(0.18, 0)).twist == pytest.approx([-0.05, 0, 0, 0, 0, 0])
    assert operator.show("point", hand=(5.0, 0)).twist[0] == pytest.approx(0.2)  # most
    assert not moves(operator.show(None, hand=(5.0, 0)))
    assert not moves(operator.show("point", hand=(5.0, 0)))  # it begins anew, there


def test_the_hand_does_not_drive_below_the_confidence(operator):
    operator.show("point", hand=(0, 0))
    assert not moves(operator.show("point", hand=(1, 0), confidence=0.7))


def test_a_channel_that_is_not_observed_does_not_drive(operator):
    operator.show("point", hand=(0, 0))
    assert not moves(operator.show("point", hand=(np.nan, 0)))
    assert moves(operator.show("point", hand=(1, 0)))


def test_a_channel_that_was_not_observed_at_first_counts_from_where_it_was_seen_first(operator):
    operator.show("point", hand=(np.nan, 0))
    assert not moves(operator.show("point", hand=(3, 0)))
    assert operator.show("point", hand=(3.12, 0)).twist[0] == pytest.approx(0.05, rel=1e-5)


def test_jogging_in_the_tools_frame_turns_with_the_tool():
    jogs = copy.deepcopy(SETTINGS["jogs"])
    jogs["drag"]["frame"] = "tool"
    jogs["drag"]["axes"].append({"axis": "rz", "channel": "hand_y", "dead": 0, "scale": 1, "most": 1})
    operator = Operator(jogs=jogs)
    operator.orientation = Rotation.from_rotvec([0, 0, np.pi / 2]).as_quat(scalar_first=True)
    operator.show("point", hand=(0, 0))
    assert operator.show("point", hand=(0.12, 0.3)).twist == pytest.approx([0, 0.05, 0, 0, 0, 0.3], abs=1e-6)


def test_the_hand_does_not_drive_while_a_motion_runs(operator):
    operator.show("wave", 0.3)
    before = operator.show(None).twist
    operator.show("point", hand=(0, 0))
    assert operator.show("point", hand=(1, 0)).twist == pytest.approx(before)
