import math

import numpy as np
import pytest

from sensors.calibrate import Labelled, calibrate, fit_temperature, judge, wilson
from sensors.command_map import CommandMap, parse_command_map
from sensors.mapping import Mapper
from sensors.recognise import Decider, Rules
from sensors.robot import RobotState
from sensors.stream import SensorError, StreamInfo
from tests.sensors.test_command_map import CHANNELS

LABELS = ("rest", "pick", "pour")
RULES = Rules(threshold=0.7, dwell=2, end_frames=2)


def recording(said, truth):
    """What is said with 0.8 of the probability, and what is true."""
    return Labelled((0.7 * np.eye(3)[said] + 0.1).astype(np.float32), np.array(truth))


def test_decisions_are_counted_against_the_gestures_that_are_there():
    truth = [0] * 60 + [1] * 10 + [0] * 60 + [2] * 10 + [1] * 10
    said = [0] * 60 + [0, 0, 0] + [1] * 7 + [0] * 50 + [2] * 6 + [0] * 4 + [1] * 10 + [0] * 10
    found = judge([recording(said, truth)], LABELS, ["rest"], RULES, rate_hz=60.0)
    assert (found.gestures, found.decisions, found.right, found.false_alarms) == (3, 3, 1, 1)
    assert found.earliness == 0.5  # the fifth frame of ten
    assert found.precision == found.recall == pytest.approx(1 / 3)
    assert found.false_per_minute == pytest.approx(1 / (2 / 60))
    assert found.onset_delay == 1.5  # frames: 3 late, and at once
    assert found.cost == pytest.approx(2 + 0.5)  # lengths: two of three times in vain, then half of it


def test_a_gesture_decided_twice_counts_once_and_costs_precision():
    found = judge([recording([1] * 4 + [0] * 3 + [1] * 4, [1] * 11)], LABELS, ["rest"], RULES, rate_hz=60.0)
    assert (found.decisions, found.right, found.false_alarms) == (2, 1, 0)
    assert math.isnan(found.false_per_minute)


def test_where_the_hand_lags_the_labels_a_late_decision_may_count():
    late = recording([0] * 10 + [1] * 5, [1] * 10 + [0] * 5)
    assert judge([late], LABELS, ["rest"], RULES, 60.0).right == 0
    assert judge([late], LABELS, ["rest"], RULES, 60.0, lag=3).right == 1


def noisy(seed, confidence=0.9, wrong=0.3):
    """Gestures whose first third is often taken for another one."""
    rng = np.random.default_rng(seed)
    truth, said = [], []
    for _ in range(30):
        label = int(rng.integers(1, 3))
        truth += [0] * 20 + [label] * 30
        early = rng.choice([label, 3 - label], 10, p=[1 - wrong, wrong])
        said += [0] * 20 + list(early) + [label] * 20
    share = (1 - confidence) / 2
    return Labelled(np.array((confidence - share) * np.eye(3)[said] + share, np.float32), np.array(truth))


def test_rules_are_chosen_for_the_precision_that_is_wanted_as_early_as_it_allows():
    parts = [noisy(0), noisy(1)]
    strict = calibrate(parts, LABELS, ["rest"], 50.0, target=0.98)
    loose = calibrate(parts, LABELS, ["rest"], 50.0, target=0.6)
    assert strict.reached
    assert loose.reached
    assert strict.judgement.precision >= 0.98
    assert strict.judgement == judge(parts, LABELS, ["rest"], strict.rules, 50.0)
    assert loose.judgement.earliness < strict.judgement.earliness
    assert judge([noisy(2)], LABELS, ["rest"], strict.rules, 50.0).precision >= 0.9  # of another recording
    low, high = strict.judgement.precision_interval
    assert low < strict.judgement.precision <= high + 1e-9


def test_a_precision_out_of_reach_is_said_to_be_so():
    rng = np.random.default_rng(0)
    guesses = recording(rng.integers(1, 3, 900), np.repeat(rng.integers(1, 3, 30), 30))
    found = calibrate([guesses], LABELS, ["rest"], 50.0)
    assert not found.reached


def test_the_temperature_is_that_of_the_model():
    rng = np.random.default_rng(0)
    sure = rng.dirichlet(np.ones(3), 20_000)
    truth = (sure.cumsum(1) < rng.random(len(sure))[:, None]).sum(1)
    overconfident = sure**3 / (sure**3).sum(1, keepdims=True)
    assert fit_temperature([Labelled(sure, truth)]) == pytest.approx(1.0, rel=0.05)
    assert fit_temperature([Labelled(overconfident, truth)]) == pytest.approx(3.0, rel=0.05)


def test_nothing_to_calibrate_on_is_refused():
    with pytest.raises(SensorError, match="no gesture in the recordings"):
        calibrate([recording([0] * 5, [0] * 5)], LABELS, ["rest"], 50.0)
    with pytest.raises(SensorError, match="no frame has both"):
        calibrate([recording([0] * 5, [-1] * 5)], LABELS, ["rest"], 50.0)


def test_the_interval_of_a_proportion_is_wilsons():
    low, high = wilson(95, 100)  # 0.9334 - 0.0451 and 0.9334 + 0.0451, by hand
    assert (low, high) == (pytest.approx(0.888, abs=1e-3), pytest.approx(0.978, abs=1e-3))
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(0, 1)[0] == 0
    assert wilson(3, 3)[1] == 1


RATE_HZ = 16.0  # so that times are exact


def close(gesture, **more) -> dict:
    return {"gesture": gesture, "do": "grip", "opening": 0.2, "confidence": 0.5} | more


def a_map(*commands, jogs=()) -> CommandMap:
    named = {f"c{number}": command for number, command in enumerate(commands)}
    axes = [{"axis": "x", "channel": "hand_x", "dead": 0, "scale": 1, "most": 1}]
    driving = {
        f"j{number}": {"gesture": name, "confidence": 0.5, "frame": "base", "axes": axes}
        for number, name in enumerate(jogs)
    }
    return parse_command_map({"commands": named, "jogs": driving})


def judged(said, truth, command_map):
    return judge([recording(said, truth)], LABELS, ["rest"], RULES, RATE_HZ, command_map=command_map)


ONE = [0] * 8 + [1] * 10 + [0] * 8


def test_a_decision_counts_when_the_maps_dwell_is_over():
    assert judged(ONE, ONE, None).earliness == 0.2  # the second frame of ten
    assert judged(ONE, ONE, a_map(close("pick"))).earliness == 0.2
    assert judged(ONE, ONE, a_map(close("pick", dwell_s=0.125))).earliness == 0.4  # two frames later
    never = judged(ONE, ONE, a_map(close("pick", dwell_s=2.0)))
    assert (never.gestures, never.decisions, never.right) == (1, 0, 0)


def test_a_decision_below_the_maps_confidence_does_nothing():
    assert judged(ONE, ONE, a_map(close("pick", confidence=0.79))).right == 1  # 0.8 is said
    assert judged(ONE, ONE, a_map(close("pick", confidence=0.81))).decisions == 0


def test_gestures_that_a_map_does_not_name_do_nothing_and_none_of_its_own_is_right_there():
    truth = [0] * 8 + [1] * 8 + [0] * 8 + [2] * 8 + [0] * 8 + [2] * 8
    said = [0] * 8 + [1] * 8 + [0] * 8 + [2] * 8 + [0] * 8 + [1] * 8
    found = judged(said, truth, a_map(close("pick")))
    assert (found.gestures, found.decisions, found.right, found.false_alarms) == (1, 2, 1, 0)


def test_a_gesture_that_flickers_within_the_maps_release_is_one_decision():
    said, truth = [1] * 8 + [0] * 3 + [1] * 8, [1] * 19
    assert judged(said, truth, a_map(close("pick", release_s=0.125))).decisions == 2
    assert judged(said, truth, a_map(close("pick", release_s=1.0))).decisions == 1


def test_a_stop_and_a_jog_are_one_decision_for_as_long_as_they_go_on():
    assert judged(ONE, ONE, a_map({"gesture": "pick", "do": "stop", "confidence": 0.5})).decisions == 1
    assert judged(ONE, ONE, a_map(jogs=["pick"])).decisions == 1


def test_what_is_judged_is_what_a_bridges_mapper_does():
    command_map = a_map(close("pick", dwell_s=0.5, confidence=0.6), close("pour", release_s=1.0))
    rng = np.random.default_rng(0)
    said = np.repeat(rng.integers(0, 3, 200), rng.integers(1, 12, 200))
    probabilities = (rng.uniform(0.5, 0.9, (len(said), 1)) * np.eye(3)[said] + 0.05).astype(np.float32)
    decider, mapper = Decider(LABELS, ["rest"], RULES), Mapper(command_map, CHANNELS)
    info, still = StreamInfo("hand", CHANNELS, RATE_HZ), np.zeros(7)
    for t, row in enumerate(probabilities):
        now = t / RATE_HZ
        closed = RobotState(now, still, still, np.zeros(3), np.array([1.0, 0, 0, 0]), 0.2, 0.2)  # each motion is done
        recognition = decider.step(row)
        mapper.step(recognition.gesture, recognition.confidence, info.frame(now, now, (0, 0)), closed)
    of_recording = Labelled(probabilities, said)
    alone = judge([of_recording], LABELS, ["rest"], RULES, RATE_HZ)
    found = judge([of_recording], LABELS, ["rest"], RULES, RATE_HZ, command_map=command_map)
    assert found.decisions == mapper.finished
    assert 0 < found.decisions < alone.decisions


def test_rules_are_chosen_by_what_passes_the_map():
    """Early frames are often wrong, but the map waits them out: the rules need not."""
    parts = [noisy(0), noisy(1)]
    patient = a_map(*(close(name, dwell_s=0.4) for name in LABELS[1:]))
    alone = calibrate(parts, LABELS, ["rest"], 50.0, target=0.98)
    found = calibrate(parts, LABELS, ["rest"], 50.0, target=0.98, command_map=patient)
    assert found.judgement == judge(parts, LABELS, ["rest"], found.rules, 50.0, command_map=patient)
    assert found.judgement.cost < judge(parts, LABELS, ["rest"], alone.rules, 50.0, command_map=patient).cost
    assert found.rules.dwell < alone.rules.dwell


def test_a_map_without_a_gesture_of_the_recordings_is_refused():
    with pytest.raises(SensorError, match=r"no gesture that the map names \(pour\) in the recordings"):
        calibrate([recording(ONE, ONE)], LABELS, ["rest"], 50.0, command_map=a_map(close("pour")))
