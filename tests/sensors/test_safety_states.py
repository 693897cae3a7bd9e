from itertools import product

import pytest

from sensors import safety_states
from sensors.safety_states import COMMANDING, LIVE, Action, Event, State, Step, follow

ALL = list(product(State, Event))


def rules(state, event):
    """The rules as an operator is told them, written without a look at the table."""
    if event is Event.ESTOP:
        return Step(State.ESTOP, Action.STOP)  # always, and a second press stops again
    if state is State.ESTOP:
        return Step(State.DISARMED) if event is Event.CLEAR else None  # nothing else leads out
    if event is Event.CLEAR:
        return None
    powered = state in {State.ARMED, State.MOVING, State.BRAKING}
    if event is Event.ARM:
        return None if powered else Step(State.ARMED, Action.START)
    if event is Event.DISARM:
        return Step(State.DISARMED, Action.STOP if powered else None)
    if not powered:
        return None  # who is not armed neither moves nor fails
    if event is Event.FAULT:
        return Step(State.FAULT, Action.STOP)
    if event is Event.HOLD:
        return Step(State.MOVING)
    if state is State.ARMED:
        return None  # stands already
    if event is Event.REST:
        return Step(State.BRAKING)
    return Step(State.ARMED) if state is State.BRAKING else None


@pytest.mark.parametrize(("state", "event"), ALL)
def test_every_event_in_every_state_does_what_the_rules_say(state, event):
    assert follow(state, event) == rules(state, event)


@pytest.mark.parametrize(("state", "event"), ALL)
def test_the_table_in_the_docstring_is_the_table(state, event):
    head, *rows = [line.split() for line in safety_states.__doc__.splitlines() if line.startswith("    ")]
    written = {row[0]: dict(zip(head, row[1:], strict=True)) for row in rows}
    step = follow(state, event)
    cell = written[state][event].replace("disarm.", "disarmed")
    assert cell == ("." if step is None else "+".join(part for part in step if part))


def reached(start, without):
    """States that can be reached by any sequence of events but these."""
    found, open_ends = set(start), list(start)
    while open_ends:
        state = open_ends.pop()
        for event in set(Event) - set(without):
            step = follow(state, event)
            if step and step.state not in found:
                found.add(step.state)
                open_ends.append(step.state)
    return found


def test_without_being_armed_no_sequence_of_events_leads_to_commands():
    assert not reached(set(State) - LIVE, {Event.ARM}) & (LIVE | COMMANDING)


def test_without_being_held_no_sequence_of_events_leads_to_commands():
    assert not reached(set(State) - COMMANDING, {Event.HOLD}) & COMMANDING


def test_an_emergency_stop_is_left_by_clearing_alone_and_then_it_is_not_armed():
    assert reached({State.ESTOP}, {Event.CLEAR}) == {State.ESTOP}
    assert follow(State.ESTOP, Event.CLEAR) == Step(State.DISARMED)


@pytest.mark.parametrize(("state", "event"), ALL)
def test_whoever_leaves_a_state_that_commands_for_one_that_is_not_armed_stops_the_robot(state, event):
    step = follow(state, event)
    if step and state in LIVE and step.state not in LIVE:
        assert step.action is Action.STOP


@pytest.mark.parametrize(("state", "event"), ALL)
def test_whoever_is_armed_starts_from_what_is_measured(state, event):
    step = follow(state, event)
    if step and state not in LIVE and step.state in LIVE:
        assert step == Step(State.ARMED, Action.START)
