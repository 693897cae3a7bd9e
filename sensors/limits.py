"""Limits that a robot's motion keeps: speed, acceleration, jerk, a box, singularities, the gripper.

A limit is a norm of the three linear or the three angular axes; each axis gets its share, norm / sqrt(3), so that the
norm holds whatever the axes do. Motion along one axis alone is therefore slower than the norm allows.

An axis holds a velocity v and an acceleration a. From any (v, a) with |v + a|a| / 2J| <= V, taking a to zero at the
jerk limit J ends within V, whatever the time steps are; each step picks the acceleration nearest to the wanted one
that keeps this true.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from sensors.robot import RobotState
from sensors.stream import SensorError

BISECTIONS = 16


@dataclass(frozen=True)
class Limits:
    """Every one is needed: there is no default for what a robot may do.

    Raises:
        SensorError: one is not a finite positive number, or the box is empty.
    """

    linear_velocity: float  # m/s
    linear_acceleration: float  # m/s^2
    linear_jerk: float  # m/s^3
    angular_velocity: float  # rad/s
    angular_acceleration: float  # rad/s^2
    angular_jerk: float  # rad/s^3
    joint_velocity: float  # rad/s, of the fastest joint as measured; more is a fault
    gripper_speed: float  # 1/s, of its travel
    singular: float  # manipulability below which motion slows down
    creep: float  # the part of the speed that is left at a singularity, or where manipulability is not known
    box_low: tuple[float, float, float]  # m, where the tool may be
    box_high: tuple[float, float, float]  # m

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.startswith("box_"):
                if not (len(value) == 3 and all(math.isfinite(number) for number in value)):
                    raise SensorError(f"limits: {field.name} is {value!r}, expected three finite positions in m.")
            elif isinstance(value, bool) or not isinstance(value, int | float) or not (0 < value < math.inf):
                raise SensorError(f"limits: {field.name} is {value!r}, expected a finite number above 0.")
        if not self.creep <= 1:
            raise SensorError(f"limits: creep is {self.creep!r}, expected at most 1.")
        if not all(low < high for low, high in zip(self.box_low, self.box_high, strict=True)):
            raise SensorError(f"limits: box_low {self.box_low} is not below box_high {self.box_high} on every axis.")

    @classmethod
    def parse(cls, settings: dict[str, object]) -> Limits:
        """Limits of a configuration's table.

        Raises:
            SensorError: one is missing, unknown or not a positive number.
        """
        known = [field.name for field in fields(cls)]
        for what, names in (
            ("lacks", [name for name in known if name not in settings]),
            ("does not know", [name for name in settings if name not in known]),
        ):
            if names:
                raise SensorError(f"limits: the configuration {what} {', '.join(names)}; expected {', '.join(known)}.")
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}
        for name in ("box_low", "box_high"):
            value = values[name]
            if not isinstance(value, tuple) or not all(isinstance(number, int | float) for number in value):
                raise SensorError(f"limits: {name} is {value!r}, expected three finite positions in m.")
        return cls(**values)  # type: ignore[arg-type]


def stopping(velocity: float, acceleration: float, most: float, jerk: float) -> float:
    """Distance in the direction of positive velocity until an axis stands, at most `most` and `jerk` used."""
    if acceleration > 0:
        ramp = acceleration / jerk
        travelled = velocity * ramp + acceleration**3 / (3 * jerk**2)
        velocity += acceleration**2 / (2 * jerk)
    else:
        travelled = 0.0
    if velocity <= 0:
        return max(travelled, 0.0)
    if velocity <= most**2 / jerk:
        return max(travelled, 0.0) + velocity * math.sqrt(velocity / jerk)
    return max(travelled, 0.0) + velocity / 2 * (velocity / most + most / jerk)


def towards(target: float, velocity: float, acceleration: float, most: float, jerk: float, dt: float) -> float:
    """The next acceleration of an axis that shall reach `target` without passing it."""
    error = target - velocity  # = a dt + a|a| / 2J, solved for a
    wanted = math.copysign(jerk * (math.sqrt(dt**2 + 2 * abs(error) / jerk) - dt), error)
    low, high = max(acceleration - jerk * dt, -most), min(acceleration + jerk * dt, most)
    return min(max(wanted, low), high)


class Limiter:
    """Twists within limits; it starts, and starts again, at a velocity that was measured."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        share = math.sqrt(3)
        self._axes = [
            (acceleration / share, jerk / share)
            for acceleration, jerk in (
                [(limits.linear_acceleration, limits.linear_jerk)] * 3
                + [(limits.angular_acceleration, limits.angular_jerk)] * 3
            )
        ]
        self.start()

    def start(self) -> None:
        """From standing; a robot is armed only where it was measured to stand."""
        self.velocity = np.zeros(6)
        self.acceleration = np.zeros(6)

    @property
    def still(self) -> bool:
        return bool((np.abs(self.velocity) < 1e-6).all())

    def step(self, wanted: NDArray[np.float64], state: RobotState, dt: float) -> NDArray[np.float64]:
        """The twist (6,) of the next `dt` seconds, for a wanted one (6,), where the robot is measured to be.

        Raises:
            SensorError: a number is not finite, or time does not run forward; the limiter is as it was.
        """
        limits = self.limits
        if not (0 < dt < math.inf and np.isfinite(wanted).all() and np.isfinite(state.position).all()):
            raise SensorError(
                f"limits: wanted {wanted} at {state.position} m for {dt} s, expected finite numbers and a time above 0."
            )
        target = wanted.astype(np.float64)
        for part, most in ((slice(0, 3), limits.linear_velocity), (slice(3, 6), limits.angular_velocity)):
            length = float(np.linalg.norm(target[part]))
            cap = most / math.sqrt(3)
            if length > cap:
                target[part] *= cap / length
        target *= self._slow(state.manipulability)
        for axis, (most, jerk) in enumerate(self._axes):
            velocity, before = float(self.velocity[axis]), float(self.acceleration[axis])
            after = towards(float(target[axis]), velocity, before, most, jerk, dt)
            if axis < 3:
                brake = towards(0.0, velocity, before, most, jerk, dt)
                for sign, room in (
                    (1, limits.box_high[axis] - float(state.position[axis])),
                    (-1, float(state.position[axis]) - limits.box_low[axis]),
                ):
                    after = self._within(sign * after, sign * brake, sign * velocity, room, most, jerk, dt) * sign
            self.acceleration[axis] = after
            self.velocity[axis] = velocity + after * dt
            if wanted[axis] == 0 and abs(self.velocity[axis]) < 1e-9:
                self.velocity[axis] = 0.0
        return self.velocity.copy()

    def _slow(self, manipulability: float) -> float:
        if not (manipulability > 0):  # NaN too
            return self.limits.creep
        return min(1.0, max(self.limits.creep, manipulability / self.limits.singular))

    @staticmethod
    def _within(after: float, brake: float, velocity: float, room: float, most: float, jerk: float, dt: float) -> float:
        """The largest acceleration, from `brake` to `after`, that can still stop before the wall in `room` metres."""

        def safe(acceleration: float) -> bool:
            speed = velocity + acceleration * dt
            ahead = max(speed, 0.0) * dt + stopping(speed, acceleration, most, jerk)
            return ahead <= max(room, 0.0)

        if after <= brake or safe(after):
            return after
        low, high = brake, after
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            low, high = (middle, high) if safe(middle) else (low, middle)
        return low


def gripper_step(now: float, wanted: float, speed: float, dt: float) -> float:
    """The next opening, 0 to 1, on the way from `now` to `wanted`.

    Raises:
        SensorError: either is not within 0 and 1, or time does not run forward.
    """
    if not (0 <= now <= 1 and 0 <= wanted <= 1 and 0 < dt < math.inf):
        raise SensorError(f"limits: gripper from {now} to {wanted} in {dt} s, expected 0 to 1 and a time above 0.")
    return min(max(now + min(max(wanted - now, -speed * dt), speed * dt), 0.0), 1.0)
