"""Simulates hands in data gloves that make gestures. Nothing here was measured.

The same seed gives the same frame, so no file is kept. It is for demonstrations and replay, where a whole stream with
its rests, its people and its truth is wanted; how well a recogniser works on people is for measured data to say.

A hand goes from pose to pose along minimum-jerk paths (Flash & Hogan, J. Neuroscience 5(7), 1688-1703, 1985): the
share of the way at u of the time is 10 u^3 - 15 u^4 + 6 u^5. Poses are held (stop, grip, point, pinch) or moved through
(swipe_left, swipe_right, pour, circle). Several begin alike, so that one has to wait to tell them apart. People differ
in how the glove fits (gain and offset of each sensor), in their resting hand, their speed, their reach and how they
hold the wrist; each gesture is made a little otherwise each time. Between gestures the hand rests and sometimes does
something else that is no gesture. Sensors add noise, and a frame is lost now and then.

Labels begin when the hand leaves its rest and end when it starts back.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from data.frame import ID, TIME, Channel

Array = NDArray[np.float64]

SEED = 20190509
RATE_HZ = 50
PEOPLE = 10
RECORDINGS = 2  # of each person
SECONDS = 60.0
LOST = 0.002  # share of the frames

FINGERS = ("thumb", "index", "middle", "ring", "little")
CHANNELS = (
    *(Channel(f"{finger}_{joint}", "deg", low=-30, high=150) for finger in FINGERS for joint in (1, 2)),
    *(Channel(name, "deg", low=-180, high=180) for name in ("yaw", "pitch", "roll")),
    *(Channel(name, "m", low=-2, high=2) for name in "xyz"),  # right, ahead, up from where the hand rests
)
STRAIGHT, FIST, BEND_DEG = 0.05, 0.95, 90.0  # shares of a finger's bend, and the whole of it


@dataclass(frozen=True)
class Pose:
    fingers: tuple[float, float, float, float, float]  # thumb first, 0 straight to 1 bent
    turn: tuple[float, float, float] = (0.0, 0.0, 0.0)  # deg: yaw, pitch, roll
    place: tuple[float, float, float] = (0.0, 0.0, 0.0)  # m

    def vector(self) -> Array:
        """(16,) in the order of CHANNELS, in their units."""
        return np.array([*np.repeat(self.fingers, 2) * BEND_DEG, *self.turn, *self.place])


POINTING = (0.7, STRAIGHT, FIST, FIST, FIST)
FLAT = (0.15, STRAIGHT, STRAIGHT, STRAIGHT, STRAIGHT)
HOLDING = (0.5, 0.55, 0.55, 0.6, 0.6)
UP = (0.0, 0.25, 0.12)
RADIUS_M = 0.12

HELD = {
    "stop": Pose(FLAT, (0, 70, 0), (0.0, 0.3, 0.2)),
    "grip": Pose((0.8, FIST, FIST, FIST, FIST), (0, 0, 0), (0.0, 0.25, 0.05)),
    "point": Pose(POINTING, (0, 0, 0), UP),
    "pinch": Pose((0.55, 0.6, 0.2, 0.15, 0.1), (0, 15, 0), (0.0, 0.25, 0.08)),
}
# From where the movement begins to where it ends; a circle ends where it began.
MOVED = {
    "swipe_left": (Pose(FLAT, (0, 0, 90), (0.15, 0.25, 0.1)), Pose(FLAT, (30, 0, 90), (-0.3, 0.25, 0.1))),
    "swipe_right": (Pose(FLAT, (0, 0, 90), (-0.05, 0.25, 0.1)), Pose(FLAT, (-30, 0, 90), (0.4, 0.25, 0.1))),
    "pour": (Pose(HOLDING, (0, 0, 60), UP), Pose(HOLDING, (0, 0, -60), UP)),
    "circle": (Pose(POINTING, (0, 0, 0), UP), Pose(POINTING, (0, 0, 0), UP)),
}
REST = "rest"
GESTURES = (*HELD, *MOVED)
LABELS = (REST, *GESTURES)


@dataclass(frozen=True)
class Person:
    gain: Array  # (10,) of the glove's sensors on this hand
    offset: Array  # (10,) deg
    relaxed: Pose
    wrist: Array  # (3,) deg by which this wrist turns otherwise
    speed: float  # 1 is usual
    reach: float
    tremor_m: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Person:
        curl = rng.uniform(0.25, 0.45)
        fingers = np.clip(curl + rng.normal(0, 0.05, 5), 0, 1)
        return cls(
            gain=rng.normal(1.0, 0.08, 10),
            offset=rng.normal(0.0, 4.0, 10),
            relaxed=Pose(tuple(fingers), (0, rng.normal(-15, 6), rng.normal(20, 10))),
            wrist=rng.normal(0.0, 8.0, 3),
            speed=rng.uniform(0.8, 1.25),
            reach=rng.uniform(0.8, 1.2),
            tremor_m=rng.uniform(0.0005, 0.002),
        )


def simulated_hands(seed: int = SEED, people: int = PEOPLE, recordings: int = RECORDINGS) -> pd.DataFrame:
    """All recordings in the long format: unique_id such as person_1/2, ds in seconds, label, the channels.

    Of more people, or more recordings of each, those of fewer are a part.
    """
    tables = []
    for number in range(1, people + 1):
        person = Person.draw(np.random.default_rng([seed, number]))
        for recording in range(1, recordings + 1):
            table = recorded(person, np.random.default_rng([seed, number, recording]))
            table.insert(0, ID, f"person_{number}/{recording}")
            tables.append(table)
    return pd.concat(tables, ignore_index=True)


def recorded(person: Person, rng: np.random.Generator) -> pd.DataFrame:
    """One recording: ds, label, the channels; every gesture about twice, in random order, with rests."""
    steps = round(SECONDS * RATE_HZ)
    path, labels = [_rest(person, rng)], [REST]
    while sum(map(len, path)) < steps:
        for name in rng.permutation(GESTURES):
            made = gesture(str(name), person, rng)
            back = _go(made[-1], _relaxed(person, rng), rng.uniform(0.4, 0.7) / person.speed)
            path += [_go(_end(path), made[0], rng.uniform(0.3, 0.55) / person.speed), made, back, _rest(person, rng)]
            labels += [str(name), str(name), REST, REST]
            if rng.random() < 0.25:
                path.append(_distraction(_end(path), person, rng))
                labels.append(REST)
    values = _joined(path)[:steps]
    label = np.repeat(np.array(labels, object), [len(part) for part in path])[:steps]
    measured = _measured(values, person, rng)
    kept = rng.random(steps) >= LOST
    table = pd.DataFrame(measured, columns=[channel.name for channel in CHANNELS])
    table.insert(0, TIME, np.arange(steps) / RATE_HZ)
    table.insert(1, "label", label)
    return table[kept]


class Hand:
    """A hand asked for one thing after another, for as long as somebody asks. Shapes: T frames of `RATE_HZ`."""

    def __init__(self, person: Person, rng: np.random.Generator) -> None:
        self._person, self._rng = person, rng
        self._last = _relaxed(person, rng)

    def rest(self, seconds: float) -> Array:
        """(T, 16) measured, of a hand that rests."""
        return self._measure([_go(self._last, _relaxed(self._person, self._rng), seconds)])

    def show(self, name: str) -> Array:
        """(T, 16) measured: from where the hand is into a gesture and back to rest."""
        person, rng = self._person, self._rng
        made = gesture(name, person, rng)
        there = _go(self._last, made[0], rng.uniform(0.3, 0.55) / person.speed)
        return self._measure([there, made, _go(made[-1], _relaxed(person, rng), rng.uniform(0.4, 0.7) / person.speed)])

    def _measure(self, path: list[Array]) -> Array:
        values = np.concatenate(path)
        self._last = values[-1]
        return _measured(values, self._person, self._rng)


def gesture(name: str, person: Person, rng: np.random.Generator) -> Array:
    """(T, 16) one performance, from its first pose to its last."""
    variation = np.r_[rng.normal(0, 3, 10), rng.normal(0, 5, 3), rng.normal(0, 0.015, 3)]
    if name in HELD:
        pose = _of(HELD[name], person) + variation
        return np.repeat(pose[None], round(rng.uniform(0.8, 2.0) * RATE_HZ), 0)
    first, last = (_of(pose, person) + variation for pose in MOVED[name])
    way = _go(first, last, rng.uniform(0.6, 1.0) / person.speed)
    if name == "pour":
        return np.concatenate([way, np.repeat(way[-1:], round(0.4 * RATE_HZ), 0), way[::-1]])
    if name == "circle":
        turn = 2 * np.pi * minimum_jerk(2 * len(way))
        way = np.repeat(first[None], len(turn), 0)
        way[:, 13] += person.reach * RADIUS_M * np.sin(turn)
        way[:, 15] += person.reach * RADIUS_M * (np.cos(turn) - 1)
    return way


def minimum_jerk(steps: int) -> Array:
    """(steps,) share of the way, from 0 to 1."""
    u = np.linspace(0, 1, steps)
    return 10 * u**3 - 15 * u**4 + 6 * u**5


def _go(a: Array, b: Array, seconds: float) -> Array:
    steps = max(2, round(seconds * RATE_HZ))
    return a + (b - a) * minimum_jerk(steps)[:, None]


def _of(pose: Pose, person: Person) -> Array:
    vector = pose.vector()
    vector[10:13] += person.wrist
    vector[13:] *= person.reach
    return vector


def _relaxed(person: Person, rng: np.random.Generator) -> Array:
    vector = _of(person.relaxed, person)
    return vector + np.r_[rng.normal(0, 4, 10), rng.normal(0, 4, 3), rng.normal(0, 0.01, 3)]


def _rest(person: Person, rng: np.random.Generator) -> Array:
    first, last = _relaxed(person, rng), _relaxed(person, rng)
    return _go(first, last, rng.uniform(0.8, 2.5))


def _distraction(start: Array, person: Person, rng: np.random.Generator) -> Array:
    """Something else with the hand, such as reaching for a pen: out and back, to no pose of a gesture."""
    there = _relaxed(person, rng)
    there += np.r_[rng.normal(0, 15, 10), rng.normal(0, 20, 3), rng.normal(0, 0.1, 3)]
    seconds = rng.uniform(0.4, 0.8)
    return np.concatenate([_go(start, there, seconds), _go(there, _relaxed(person, rng), seconds)])


def _end(path: list[Array]) -> Array:
    return path[-1][-1]


def _joined(path: list[Array]) -> Array:
    """The parts one after the other; where a rest begins elsewhere than the hand is, it glides there."""
    joined = [path[0]]
    for part in path[1:]:
        gap = joined[-1][-1] - part[0]
        fade = 1 - minimum_jerk(len(part))
        joined.append(part + gap * fade[:, None])
    return np.concatenate(joined)


def _measured(values: Array, person: Person, rng: np.random.Generator) -> Array:
    """What the sensors say: the glove's fit, tremor of the hand, noise, whole degrees of the glove."""
    steps = len(values)
    tremor = np.sin(2 * np.pi * rng.uniform(8, 10, 3) * np.arange(steps)[:, None] / RATE_HZ + rng.uniform(0, 6, 3))
    found = values.copy()
    found[:, :10] = np.rint(person.gain * values[:, :10] + person.offset + rng.normal(0, 1.5, (steps, 10)))
    found[:, 10:13] += rng.normal(0, 0.8, (steps, 3))
    found[:, 13:] += person.tremor_m * tremor + rng.normal(0, 0.001, (steps, 3))
    return found.clip([c.low for c in CHANNELS], [c.high for c in CHANNELS]).round(4)
