"""Motions that a gesture starts: take a thing, put it down, pour from it, go home.

A motion is a closed loop, not a trajectory: in every frame it says which velocity is wanted now, from where the robot
is measured to be. It can be left at any moment, nothing is queued behind it, and one that gets no further, because
something is in the way or the robot is held back, gives up: it is not taken up again much later.

Positions are in the robot's base frame, in m. A tool points along its z, its fingers open along its y.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from sensors.intent import STILL
from sensors.robot import RobotState

Array = NDArray[np.float64]

UP = np.array([0.0, 0.0, 1.0])
STEEP = 0.9  # of a direction's vertical part, from which it counts as vertical
TINY = 1e-9  # m or rad
LEAN = 1.2  # rad, to which a vessel is tilted before it is low over another: little runs out yet, and it clears the rim
GRIPPED = 0.02  # of the gripper's travel: what is no movement, and what is near enough
GRIPPED_S = 0.15  # without movement, after which there is something between the fingers


class Pose(NamedTuple):
    position: Array  # (3,) m
    rotation: Array  # (3, 3)


class Wish(NamedTuple):
    """What a motion wants now."""

    twist: Array  # (6,) m/s, rad/s
    gripper: float | None = None  # 0 closed to 1 open; None leaves it


@dataclass(frozen=True)
class Pace:
    """How motions move; the limits of `safety` hold besides."""

    speed: float = 0.25  # m/s
    turn: float = 1.2  # rad/s
    braking: float = 0.4  # m/s^2, with which it slows down before it is there
    near: float = 0.004  # m, what counts as there
    aligned: float = 0.03  # rad
    gain: float = 4.0  # 1/s, of the last stretch
    travel_m: float = 0.3  # m above the base, where nothing is in the way
    clearance_m: float = 0.12  # m, from which a thing is approached, and to which the tool retreats
    stall_s: float = 5.0  # without getting further, after which a motion gives up


class Stage(Protocol):
    """A part of a motion."""

    def wish(self, state: RobotState) -> Wish | None:
        """What it wants, or None when it is done."""

    def left(self, state: RobotState) -> float:
        """How far it is from done; the unit is its own."""


Then = Callable[[RobotState], Stage]
"""Makes a stage when it begins, from where the robot is then."""


class Motion:
    """Stages, one after the other."""

    def __init__(self, name: str, stages: Sequence[Then], pace: Pace) -> None:
        self.name = name
        self.failure = ""  # why it gave up, if it did
        self._stages: Iterator[Then] = iter(stages)
        self._pace = pace
        self._stage: Stage | None = None
        self._best, self._since = math.inf, 0.0

    def wish(self, state: RobotState, now: float) -> Wish | None:
        """What it wants of the robot as it is measured, or None when it is done or has given up.

        now: s, monotonic.
        """
        while True:
            if self._stage is None:
                make = next(self._stages, None)
                if make is None:
                    return None
                self._stage = make(state)
                self._best, self._since = math.inf, now
            wish = self._stage.wish(state)
            if wish is not None:
                break
            self._stage = None
        left = self._stage.left(state)
        if left < self._best - 1e-4:
            self._best, self._since = left, now
        if not now - self._since < self._pace.stall_s:
            self.failure = f"{self.name}: no further for {self._pace.stall_s:g} s; something is in the way"
            return None
        return wish


class Reach:
    """Bring a point of the tool to where it shall be."""

    def __init__(
        self,
        goal: Pose,
        pace: Pace,
        gripper: float | None = None,
        lever: Array | None = None,
        turn: float = math.inf,
    ) -> None:
        """
        Args:
            goal: where the point shall be, and how the tool shall be turned.
            gripper: what it is kept at on the way: closed around what is carried, which a pause may have kept it from.
            lever: (3,) m, the point in the tool's frame; the tool itself if None.
            turn: rad/s, if slower than the pace's.
        """
        self._goal, self._pace, self._gripper = goal, pace, gripper
        self._lever = np.zeros(3) if lever is None else lever
        self._turn = min(turn, pace.turn)

    def wish(self, state: RobotState) -> Wish | None:
        offset, turning, arm = self._errors(state)
        distance, angle = float(np.linalg.norm(offset)), float(np.linalg.norm(turning))
        pace = self._pace
        if distance < pace.near and angle < pace.aligned:
            return None
        speed = min(pace.speed, pace.gain * distance, math.sqrt(2 * pace.braking * distance))
        rate = min(self._turn, pace.gain * angle)
        linear, angular = offset * (speed / max(distance, TINY)), turning * (rate / max(angle, TINY))
        # Turning about the tool would carry the point along; it shall go straight.
        return Wish(np.concatenate([linear - np.cross(angular, arm), angular]), self._gripper)

    def left(self, state: RobotState) -> float:
        offset, turning, _ = self._errors(state)
        return float(np.linalg.norm(offset)) + 0.1 * float(np.linalg.norm(turning))

    def _errors(self, state: RobotState) -> tuple[Array, Array, Array]:
        """Way to go (3,) in m, turn to make (3,) in rad about its axis, the lever (3,) in the base frame."""
        rotation = tool(state).rotation
        arm = rotation @ self._lever
        turning = Rotation.from_matrix(self._goal.rotation @ rotation.T).as_rotvec()
        return self._goal.position - state.position - arm, turning, arm


class Grip:
    """Open or close, until it is so, or until the fingers stand because there is something between them."""

    def __init__(self, opening: float, state: RobotState) -> None:
        self._opening = opening
        self._first = state.gripper
        self._last, self._since = state.gripper, state.time

    def wish(self, state: RobotState) -> Wish | None:
        if self.left(state) < GRIPPED:
            return None
        if abs(state.gripper - self._last) > GRIPPED:
            self._last, self._since = state.gripper, state.time
        if state.time - self._since > GRIPPED_S and abs(state.gripper - self._first) > GRIPPED:
            return None
        return Wish(STILL, self._opening)

    def left(self, state: RobotState) -> float:
        return abs(state.gripper - self._opening)


class Wait:
    """Stand still for so long."""

    def __init__(self, seconds: float, gripper: float | None, state: RobotState) -> None:
        self._until, self._gripper = state.time + seconds, gripper

    def wish(self, state: RobotState) -> Wish | None:
        return Wish(STILL, self._gripper) if self.left(state) > 0 else None

    def left(self, state: RobotState) -> float:
        return self._until - state.time


@dataclass(frozen=True)
class Thing:
    """How a thing is taken and poured from."""

    name: str
    grasp: tuple[float, float, float]  # m, where the fingers take it, from its foot, upright
    approach: tuple[float, float, float]  # the tool's direction then, in the base frame
    follows: bool = False  # whether the fingers turn with it about the vertical; not what is round
    rim: tuple[float, float] | None = None  # m, height above its foot and radius of where it is poured from

    def held(self, where: Pose) -> Pose:
        """The tool's pose when the fingers are around it."""
        approach = np.array(self.approach) / np.linalg.norm(self.approach)
        if abs(approach[2]) < STEEP:
            along = UP - approach * approach[2]
        else:
            ahead = where.rotation[:, 0] if self.follows else np.array([1.0, 0, 0])
            if ahead[0] < 0:  # the fingers are alike: take the shorter turn
                ahead = -ahead
            along = ahead - approach * (approach @ ahead)
        along = along / np.linalg.norm(along)
        turn = np.column_stack([along, np.cross(approach, along), approach])
        grasp = np.array(self.grasp)
        return Pose(where.position + (where.rotation @ grasp if self.follows else grasp), turn)


def pick(thing: Thing, where: Pose, pace: Pace) -> Motion:
    """Take a thing that stands at `where`, and lift it."""
    held = thing.held(where)
    before = Pose(held.position - pace.clearance_m * held.rotation[:, 2], held.rotation)
    return Motion(
        f"pick {thing.name}",
        [
            lambda state: Reach(_raised(tool(state), pace), pace),
            lambda state: Grip(1.0, state),
            lambda state: Reach(_raised(before, pace), pace),
            lambda state: Reach(before, pace),
            lambda state: Reach(held, pace),
            lambda state: Grip(0.0, state),
            lambda state: Reach(_raised(tool(state), pace), pace, gripper=0.0),
        ],
        pace,
    )


def place(thing: Thing, where: Pose, pace: Pace) -> Motion:
    """Put the thing that is held with its foot at `where`, and retreat."""
    held = thing.held(where)
    after = Pose(held.position - pace.clearance_m * held.rotation[:, 2], held.rotation)
    return Motion(
        f"place {thing.name}",
        [
            lambda state: Reach(_raised(tool(state), pace), pace, gripper=0.0),
            lambda state: Reach(_raised(held, pace), pace, gripper=0.0),
            lambda state: Reach(held, pace, gripper=0.0),
            lambda state: Grip(1.0, state),
            lambda state: Reach(after, pace),
            lambda state: Reach(_raised(after, pace), pace),
        ],
        pace,
    )


def pour(thing: Thing, rim: tuple[float, float], mouth: Array, tilt: float, seconds: float, pace: Pace) -> Motion:
    """Pour from the thing that is held.

    Args:
        rim: m, height above its foot and radius of where it is poured from.
        mouth: (3,) m, where what is poured shall go down.
        tilt: rad, how far it is tilted about the tool's axis.
        seconds: how long it stays tilted.
    """
    upright = thing.held(Pose(np.zeros(3), np.eye(3))).rotation
    lever = np.array([rim[0] - thing.grasp[2], rim[1], 0.0])  # the tool's x is up, and it turns towards its y

    def rim_at(height: float, tilted: float) -> Then:
        turn = Rotation.from_rotvec([0, 0, tilted]).as_matrix()
        goal = Pose(np.array([mouth[0], mouth[1], height]), upright @ turn)
        return lambda state: Reach(goal, pace, gripper=0.0, lever=lever)

    low, high = float(mouth[2]), max(float(mouth[2]), pace.travel_m)
    lean = min(tilt, LEAN)
    return Motion(
        f"pour from {thing.name}",
        [
            lambda state: Reach(_raised(tool(state), pace), pace, gripper=0.0),
            rim_at(high, 0.0),
            rim_at(high, lean),
            rim_at(low, lean),
            rim_at(low, tilt),
            lambda state: Wait(seconds, 0.0, state),
            rim_at(low, lean),
            rim_at(high, lean),
            rim_at(high, 0.0),
        ],
        pace,
    )


def home(pose: Pose, pace: Pace) -> Motion:
    return Motion(
        "home", [lambda state: Reach(_raised(tool(state), pace), pace), lambda state: Reach(pose, pace)], pace
    )


def grip(opening: float, pace: Pace) -> Motion:
    return Motion("open" if opening else "close", [lambda state: Grip(opening, state)], pace)


def tool(state: RobotState) -> Pose:
    """Where the tool is measured to be."""
    return Pose(state.position, Rotation.from_quat(state.orientation, scalar_first=True).as_matrix())


def _raised(pose: Pose, pace: Pace) -> Pose:
    """The same pose where nothing is in the way."""
    return Pose(np.array([pose.position[0], pose.position[1], max(pose.position[2], pace.travel_m)]), pose.rotation)
