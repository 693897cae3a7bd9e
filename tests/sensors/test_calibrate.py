import math

import numpy as np
import pytest

from sensors.calibrate import Labelled, calibrate, fit_temperature, judge, wilson
from sensors.recognise import Rules
from sensors.stream import SensorError

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
