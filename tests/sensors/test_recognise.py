import math
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensors.recognise import UNKNOWN, Decider, Rules
from sensors.stream import SensorError

LABELS = ("rest", "pick", "pour")
REST, PICK, POUR = np.eye(3)
UNSURE = np.array([0.0, 0.5, 0.5])
RULES = Rules(threshold=0.8, dwell=3, margin=0.1, end_frames=2, unknown_after=6)


def run(frames, rules=RULES, none=("rest",)):
    decider = Decider(LABELS, none, rules)
    return [decider.step(frame) for frame in frames]


def events(recognitions):
    return [(t, event) for t, r in enumerate(recognitions) for event in r.events]


def test_a_gesture_begins_is_decided_while_it_goes_on_and_ends():
    said = run([REST] * 2 + [PICK] * 5 + [REST] * 3)
    assert events(said) == [(2, "onset"), (4, "decision"), (8, "end")]
    assert [r.gesture for r in said] == [None] * 4 + ["pick"] * 4 + [None] * 2
    assert [r.seen for r in said] == [0, 0, 1, 2, 3, 4, 5, 6, 7, 0]


def test_one_frame_may_be_onset_and_decision():
    assert run([PICK], Rules(dwell=1))[0].events == ("onset", "decision")


@pytest.mark.parametrize(("rules", "at"), [({"dwell": 1}, 1), ({"dwell": 4}, 4), ({"threshold": 0.95, "dwell": 1}, 4)])
def test_a_lower_threshold_and_a_shorter_dwell_decide_earlier(rules, at):
    rising = [[1 - p, p, 0] for p in (0.0, 0.81, 0.85, 0.9, 0.96, 0.99)]
    said = run(rising, Rules(**{"threshold": 0.8, "dwell": 3} | rules))
    assert [t for t, event in events(said) if event == "decision"] == [at]


def test_frames_of_different_classes_do_not_add_up_to_a_dwell():
    assert "decision" not in {event for _, event in events(run([PICK, POUR] * 2))}


def test_what_is_not_ahead_of_the_next_class_by_the_margin_is_not_decided():
    near = [[0.0, 0.52, 0.48]] * 5
    assert events(run(near, Rules(threshold=0.5, dwell=2, margin=0.1))) == [(0, "onset")]
    assert (1, "decision") in events(run(near, Rules(threshold=0.5, dwell=2, margin=0.01)))


def test_a_gesture_that_is_not_decided_in_time_is_unknown_until_it_ends():
    said = run([UNSURE] * 8 + [REST] * 3)
    assert events(said) == [(0, "onset"), (5, "rejection"), (9, "end")]
    assert [r.gesture for r in said[4:10]] == [None] + [UNKNOWN] * 4 + [None]


def test_a_gesture_that_ends_undecided_is_rejected_and_a_glitch_is_not():
    assert events(run([UNSURE] * 4 + [REST] * 2)) == [(0, "onset"), (5, "rejection"), (5, "end")]
    assert events(run([UNSURE] + [REST] * 2)) == [(0, "onset"), (2, "end")]


def test_a_known_gesture_ends_an_unknown_one_without_a_rest_between():
    said = run([UNSURE] * 6 + [PICK] * 7)
    assert events(said) == [(0, "onset"), (5, "rejection"), (8, "end"), (9, "onset"), (11, "decision")]


def test_a_decided_gesture_is_held_over_a_dip_and_gives_way_to_another():
    dip = [[0.1, 0.4, 0.5]] * 4  # below the threshold and not best, above the release
    assert [r.gesture for r in run([PICK] * 3 + dip)][2:] == ["pick"] * 5
    said = run([PICK] * 3 + [POUR] * 6)
    assert events(said) == [(0, "onset"), (2, "decision"), (4, "end"), (5, "onset"), (7, "decision")]
    assert [r.gesture for r in said[4:]] == [None] * 3 + ["pour"] * 2


@pytest.mark.parametrize("broken", [[math.nan] * 3, [0.2, math.nan, 0.8], [0, math.inf, 0], [-1, 1, 1], [0, 0, 0]])
def test_what_is_no_probability_is_no_gesture_and_ends_the_one_that_goes_on(broken):
    said = run([PICK] * 4 + [broken] * 2 + [PICK] * 3)
    assert said[4][:3] == (None, 0.0, ("end",))
    assert said[5] == (None, 0.0, (), 0)
    assert events(said)[-2:] == [(6, "onset"), (8, "decision")]


def test_the_temperature_humbles_what_the_model_says():
    frame = [[0.1, 0.9, 0.0]]
    assert run(frame, Rules(dwell=1))[0].confidence == pytest.approx(0.9)
    assert run(frame, Rules(dwell=1, threshold=0.7, temperature=2.0))[0].confidence == pytest.approx(0.75)  # 3 : 1


def test_without_a_class_for_no_gesture_one_begins_with_the_first_frame_and_finish_ends_it():
    decider = Decider(LABELS, (), RULES)
    assert decider.step(REST).events == ("onset",)
    decider.step(REST)
    assert decider.step(REST).gesture == "rest"
    assert decider.finish().events == ("end",)
    assert decider.finish().events == ()


@given(
    st.lists(
        st.tuples(
            st.lists(st.one_of(st.floats(0, 1), st.just(math.nan)), min_size=3, max_size=3),
            st.integers(1, 6),
        ),
        max_size=40,
    ),
    st.integers(1, 4),
    st.floats(0.3, 0.95),
    st.booleans(),
)
def test_no_event_comes_without_an_onset_and_a_gesture_is_decided_at_most_once(pieces, dwell, threshold, names_rest):
    decider = Decider(LABELS, ("rest",) if names_rest else (), Rules(threshold, dwell, unknown_after=7))
    going, verdicts = False, 0
    for values, times in pieces:
        for _ in range(times):
            said = decider.step(values)
            for event in said.events:
                assert going == (event != "onset")
                going, verdicts = event != "end", 0 if event == "onset" else verdicts + (event != "end")
                assert verdicts <= 1
            assert going == (said.seen > 0 and "end" not in said.events)
            assert 0 <= said.confidence <= 1 + 1e-9
            if said.gesture is not None and "end" not in said.events:
                assert going
                assert verdicts == 1
            if np.isnan(values).any():
                assert not going
                assert said.gesture in (None, UNKNOWN)


@pytest.mark.parametrize(
    ("name", "value"),
    [("threshold", 1.1), ("threshold", math.nan), ("dwell", 0), ("dwell", 2.5), ("margin", "wide"), ("temperature", 0)],
)
def test_a_rule_out_of_range_is_refused_by_name(name, value):
    with pytest.raises(SensorError, match=f"{name} is {value!r}"):
        Rules.parse({name: value})


def test_rules_that_contradict_each_other_and_unknown_ones_are_refused():
    with pytest.raises(SensorError, match=r"release 0\.9 above threshold 0\.8"):
        Rules(release=0.9)
    with pytest.raises(SensorError, match="does not know tau; expected threshold"):
        Rules.parse({"tau": 0.5})
    assert Rules.parse(asdict(RULES)) == RULES


def test_classes_that_the_model_lacks_and_wrong_numbers_of_them_are_refused():
    with pytest.raises(SensorError, match="has no idle; it has rest, pick, pour"):
        Decider(LABELS, ["idle"])
    with pytest.raises(SensorError, match="all that the model has"):
        Decider(LABELS, LABELS)
    with pytest.raises(SensorError, match="rename the class"):
        Decider(["rest", UNKNOWN], ["rest"])
    with pytest.raises(SensorError, match=r"shape \(2,\), expected 3: rest, pick, pour"):
        Decider(LABELS).step([0.5, 0.5])
