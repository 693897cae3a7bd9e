"""Where an arm's tool is, and which joint velocities move it as wanted.

An arm is its Denavit-Hartenberg table in Craig's convention ("Introduction to Robotics", 1986, section 3.4): from joint
to joint, rotate alpha about x, go a along x, rotate theta about z, go d along z. The inverse is differential: damped
least squares (Nakamura and Hanafusa, "Inverse Kinematic Solutions with Singularity Robustness", 1986), where the
damping sets in near singularities alone, so that away from them a twist is followed exactly.

Shapes: J joints. Twists are of the tool, in the base frame: m/s, then rad/s.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.frame import Channel

Array = NDArray[np.float64]

SINGULAR = 0.04  # smallest singular value of the Jacobian below which damping sets in
DAMPING = 0.05  # at a singularity
BRAKE_PER_S = 8.0  # a joint nears its limit no faster than what is left, this many times a second
CENTRING = 0.3  # the most that a redundant arm's joints move towards the middle of their ranges, of how much they move


@dataclass(frozen=True)
class Link:
    """A row of the table: how the next joint's frame lies in the one before."""

    alpha: float  # rad
    a: float  # m
    d: float  # m


@dataclass(frozen=True)
class Arm:
    """A serial arm of revolute joints, as its maker describes it."""

    name: str
    joints: tuple[Channel, ...]  # rad, with the limits of each
    speeds: tuple[float, ...]  # rad/s, the most of each joint
    links: tuple[Link, ...]  # one a joint
    tool_distance: float  # m, from the last joint's frame along its z
    tool_turn: float  # rad, about that z
    home: tuple[float, ...]  # rad

    @property
    def low(self) -> Array:
        return np.array([joint.low for joint in self.joints])

    @property
    def high(self) -> Array:
        return np.array([joint.high for joint in self.joints])


class Kinematics:
    """Of one arm; holds no state, so any number of threads may share it."""

    def __init__(self, arm: Arm) -> None:
        self.arm = arm
        self._low, self._high, self._speeds = arm.low, arm.high, np.array(arm.speeds)
        # What of each link's transform does not depend on its joint's angle.
        self._fixed = np.array([_turn_x(link.alpha, link.a) @ _turn_z(0.0, link.d) for link in arm.links])  # (J, 4, 4)
        self._unturned = np.tile(np.eye(4), (len(arm.links), 1, 1))
        self._tool = _turn_z(arm.tool_turn, arm.tool_distance)

    def frames(self, joints: Array | Sequence[float]) -> Array:
        """(J + 1, 4, 4) transforms from the base to each joint's frame, and to the tool."""
        turns = self._unturned.copy()
        cos, sin = np.cos(joints), np.sin(joints)
        turns[:, 0, 0], turns[:, 0, 1], turns[:, 1, 0], turns[:, 1, 1] = cos, -sin, sin, cos
        here, frames = np.eye(4), np.empty((len(turns) + 1, 4, 4))
        for joint, link in enumerate(self._fixed @ turns):
            here = here @ link
            frames[joint] = here
        frames[-1] = here @ self._tool
        return frames

    def forward(self, joints: Array | Sequence[float]) -> tuple[Array, Array]:
        """The tool's position (3,) in m and its rotation (3, 3)."""
        tool = self.frames(joints)[-1]
        return tool[:3, 3].copy(), tool[:3, :3].copy()

    def jacobian(self, joints: Array | Sequence[float]) -> Array:
        """(6, J): the tool's twist for a velocity of 1 rad/s of each joint."""
        return self.jacobian_of(self.frames(joints))

    @staticmethod
    def jacobian_of(frames: Array) -> Array:
        """(6, J), from `frames`."""
        axes, origins, tool = frames[:-1, :3, 2], frames[:-1, :3, 3], frames[-1, :3, 3]
        x, y, z = axes.T
        along, across, up = (tool - origins).T
        return np.array([y * up - z * across, z * along - x * up, x * across - y * along, x, y, z])

    def manipulability(self, joints: Array | Sequence[float]) -> float:
        """The smallest singular value of the Jacobian: 0 where the tool cannot move in some direction."""
        return smallest(self.jacobian(joints))

    def velocities(self, joints: Array, twist: Array) -> Array:
        """Joint velocities (J,) in rad/s for a wanted twist (6,).

        Every joint keeps its speed and stays within its limits for as long as velocities are asked for anew at least
        every 1 / BRAKE_PER_S seconds. A joint that is held back by its limit leaves its part to the others; what is
        too fast is slowed down as a whole, so that its direction stays. What a redundant arm has left turns its joints
        towards the middle of their ranges, while the tool moves; a twist of zero moves nothing.
        """
        jacobian = self.jacobian(joints)
        low = np.minimum((self._low - joints) * BRAKE_PER_S, 0.0)
        high = np.maximum((self._high - joints) * BRAKE_PER_S, 0.0)
        free = np.ones(len(joints), dtype=bool)
        solution = np.zeros(len(joints))
        for _ in joints:
            held = np.where(free, 0.0, solution)
            part = self._damped(jacobian[:, free], twist - jacobian @ held, joints[free], free)
            if free.all():  # slowed first, or a joint far from its limit would be held for a speed that nobody gets
                slower = max(1.0, float((np.abs(part) / self._speeds).max()))
                twist, part = twist / slower, part / slower
            solution[free] = part
            passed = np.where(free, np.maximum(solution - high, low - solution), -1.0)
            worst = int(passed.argmax())
            if passed[worst] <= 0:
                break
            solution[worst] = min(max(solution[worst], low[worst]), high[worst])
            free[worst] = False
        solution = solution.clip(low, high)
        return solution / max(1.0, float((np.abs(solution) / self._speeds).max()))

    def _damped(self, jacobian: Array, twist: Array, joints: Array, free: NDArray[np.bool_]) -> Array:
        left, singular, right = np.linalg.svd(jacobian)
        smallest = float(singular[-1])
        damping = DAMPING * math.sqrt(max(0.0, 1 - (smallest / SINGULAR) ** 2))
        count = len(singular)
        solution = right[:count].T @ (singular / (singular**2 + damping**2) * (left.T @ twist)[:count])
        spare = right[count:]
        if not len(spare):
            return solution
        reach = self._high[free] - self._low[free]
        inward = spare.T @ (spare @ (((self._low[free] + self._high[free]) / 2 - joints) / reach))
        return solution + CENTRING * float(np.linalg.norm(solution)) * inward


def smallest(jacobian: Array) -> float:
    """The smallest singular value of a matrix."""
    return float(np.linalg.svd(jacobian, compute_uv=False)[-1])


def _turn_z(angle: float, distance: float) -> Array:
    """Rotate about z and go along it."""
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array([[cos, -sin, 0, 0], [sin, cos, 0, 0], [0, 0, 1, distance], [0, 0, 0, 1]])


def _turn_x(angle: float, distance: float) -> Array:
    """Rotate about x and go along it."""
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array([[1, 0, 0, distance], [0, cos, -sin, 0], [0, sin, cos, 0], [0, 0, 0, 1]])
