"""The states of a bridge and what leads from one to another: the whole machine, as a table and nothing else.

             arm          disarm       hold     rest      stood   fault      estop      clear
    disarmed armed+start  disarmed     .        .         .       .          estop+stop .
    armed    .            disarm.+stop moving   .         .       fault+stop estop+stop .
    moving   .            disarm.+stop moving   braking   .       fault+stop estop+stop .
    braking  .            disarm.+stop moving   braking   armed   fault+stop estop+stop .
    fault    armed+start  disarmed     .        .         .       .          estop+stop .
    estop    .            .            .        .         .       .          estop+stop disarmed

A dot: the event changes nothing and asks for nothing. `start` begins anew from the measured pose, `stop` tells the
robot to stop at once. Commands go out in `moving`, as wanted, and in `braking`, towards zero; in no other state.

A bridge begins disarmed. Whether it may be armed at this moment (a fresh intent, a robot that is measured to stand, the
hold let go, ...) is asked before the event: see `safety_control`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class State(StrEnum):
    DISARMED = "disarmed"  # the robot is nobody's; a fault changes nothing, for a person has to arm anyhow
    ARMED = "armed"  # stands, ready to move
    MOVING = "moving"  # held, and everything is fresh
    BRAKING = "braking"  # no longer held: slows down within its limits
    FAULT = "fault"  # stopped by itself; a person arms it again
    ESTOP = "estop"  # stopped by a person; a person clears it, then arms it again


class Event(StrEnum):
    ARM = "arm"  # a person's, and all conditions are met
    DISARM = "disarm"  # a person's
    HOLD = "hold"  # the hold is held, with confidence in a gesture that is known
    REST = "rest"  # it is not
    STOOD = "stood"  # the last command was to stand
    FAULT = "fault"
    ESTOP = "estop"  # a person's, or a switch's
    CLEAR = "clear"  # a person's


class Action(StrEnum):
    START = "start"
    STOP = "stop"


class Step(NamedTuple):
    state: State
    action: Action | None = None


LIVE = frozenset({State.ARMED, State.MOVING, State.BRAKING})
"""Where faults are looked for; reached from elsewhere by being armed alone."""

COMMANDING = frozenset({State.MOVING, State.BRAKING})

_ARM = Step(State.ARMED, Action.START)
_LEAVE = Step(State.DISARMED, Action.STOP)
_FAIL = Step(State.FAULT, Action.STOP)
_PRESS = Step(State.ESTOP, Action.STOP)

TABLE: dict[State, dict[Event, Step]] = {
    State.DISARMED: {
        Event.ARM: _ARM,
        Event.DISARM: Step(State.DISARMED),
        Event.ESTOP: _PRESS,
    },
    State.ARMED: {
        Event.DISARM: _LEAVE,
        Event.HOLD: Step(State.MOVING),
        Event.FAULT: _FAIL,
        Event.ESTOP: _PRESS,
    },
    State.MOVING: {
        Event.DISARM: _LEAVE,
        Event.HOLD: Step(State.MOVING),
        Event.REST: Step(State.BRAKING),
        Event.FAULT: _FAIL,
        Event.ESTOP: _PRESS,
    },
    State.BRAKING: {
        Event.DISARM: _LEAVE,
        Event.HOLD: Step(State.MOVING),
        Event.REST: Step(State.BRAKING),
        Event.STOOD: Step(State.ARMED),
        Event.FAULT: _FAIL,
        Event.ESTOP: _PRESS,
    },
    State.FAULT: {
        Event.ARM: _ARM,
        Event.DISARM: Step(State.DISARMED),
        Event.ESTOP: _PRESS,
    },
    State.ESTOP: {
        Event.ESTOP: _PRESS,
        Event.CLEAR: Step(State.DISARMED),
    },
}


def follow(state: State, event: Event) -> Step | None:
    """Where an event leads; None where it changes nothing and asks for nothing."""
    return TABLE[state].get(event)
