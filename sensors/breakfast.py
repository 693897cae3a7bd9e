"""The breakfast task of Simao, Gibaru & Neto (IEEE Trans. Industrial Electronics 66(12), 9372-9382, 2019), simulated.

An operator's gestures make the arm take a jug, pour juice into a cup, put the jug down, and lay bread on a plate; in
between the operator stops the arm and sets it going again. Where things stand, who the operator is and how fast differ
from run to run. Whether it succeeded is read from the simulation, not from what the arm believes.

The way is the bridge's: a glove's frames (`data.simulated_hand`, people whom the model has not seen) are recognised one
by one, gestures become intents, and `safety`'s control holds the arm. Without a recogniser, `operate` says what is
shown, so that the arm can be tried by itself. Simulated time is stepped.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from data import simulated_hand
from data.frame import Channel
from forecasting.runtime import LoadedBundle
from sensors.command_log import CommandLog
from sensors.command_map import CommandMap, check_command_map, read_command_map
from sensors.intent import Intent
from sensors.limits import Limits
from sensors.mapping import Mapper
from sensors.motions import Pose
from sensors.recognise import Rules
from sensors.recogniser import Recogniser
from sensors.robots.picture import Camera, Film, save_picture
from sensors.robots.simulated import SimulatedArm, Simulation
from sensors.safety_checks import SafetyConfig
from sensors.safety_control import Control, Request
from sensors.safety_states import Event
from sensors.stream import SensorError, StreamInfo

MAP = Path(__file__).with_name("breakfast.toml")
STREAM = StreamInfo("breakfast", (Channel("hand", "m"),), 50.0)
FRAME_S = 0.02
IMAGES_HZ = 25
LONGEST_S = 150.0  # simulated, after which a run has failed

LIMITS = Limits(
    linear_velocity=0.5,
    linear_acceleration=3.0,
    linear_jerk=30.0,
    angular_velocity=2.5,
    angular_acceleration=12.0,
    angular_jerk=100.0,
    joint_velocity=2.5,
    gripper_speed=2.0,
    singular=0.05,
    creep=0.2,
    box_low=(0.15, -0.65, 0.01),
    box_high=(0.85, 0.65, 0.8),
)

LOOSE = ("jug", "cup", "bread", "plate")
CUP_RADIUS_M, CUP_HEIGHT_M = 0.045, 0.09
ENOUGH = 0.75  # share of the juice that shall be in the cup

Operator = Generator[tuple[str | None, float], bool, None]
"""Gives gesture and confidence of the next frame, and is sent whether the arm moves on its own."""

Submit = Callable[[Intent], None]
Watch = Callable[[Simulation], None]


class Cue(NamedTuple):
    """A gesture that the operator shows."""

    gesture: str
    after_s: float  # from when the arm was done, or from the last cue where it is not waited for
    waits: bool = True  # until the arm is done; and for the arm to follow, or the gesture is shown again


CUES = (
    Cue("grip", 0.5),
    Cue("pour", 0.5),
    Cue("swipe_right", 0.5),
    Cue("stop", 1.0, waits=False),
    Cue("swipe_right", 0.8),
    Cue("pinch", 0.5),
    Cue("swipe_left", 0.5),
    Cue("circle", 0.5),
)
CONFIDENCE = 0.95  # of a gesture that nobody had to recognise
TRIES = 3  # of a gesture that the arm does not follow
RULES = Rules(threshold=0.8, dwell=5)  # on people kept out of training 99 % of the decisions are right
SHOWN_S = 0.5  # how long a gesture is shown


@dataclass(frozen=True)
class Outcome:
    """Of one run."""

    poured: float  # share of the juice that is in the cup
    wrong: tuple[str, ...]  # what is not as it should be; none: it succeeded
    notes: tuple[str, ...]  # what the mapper said
    seconds: float  # simulated

    @property
    def success(self) -> bool:
        return not self.wrong


def breakfast_map(simulation: Simulation) -> CommandMap:
    """The task's map, checked against the scene."""
    command_map = read_command_map(MAP, simulation.arm)
    gestures = [*dict.fromkeys(cue.gesture for cue in CUES)]
    seen = (*LOOSE, "coaster")
    check_command_map(command_map, gestures, STREAM.channels, has_gripper=True, seen=seen)
    return command_map


def scatter(simulation: Simulation, rng: np.random.Generator) -> None:
    """Things stand up to 2 cm from their places, the bread turned up to half a radian; then all comes to rest."""
    for name in LOOSE:
        by = np.array([*rng.uniform(-0.02, 0.02, 2), 0.0])
        simulation.move(name, by, rng.uniform(-0.5, 0.5) if name == "bread" else 0.0)
        for bead in beads(simulation) if name == "jug" else ():
            simulation.move(bead, by)
    for _ in range(50):
        simulation.step(None)


def operate(cues: Sequence[Cue], rng: np.random.Generator) -> Operator:
    """Gesture and confidence, frame by frame, of an operator who is sent whether the arm moves on its own."""
    moving = yield None, 0.0
    for cue in cues:
        while cue.waits and moving:
            moving = yield None, 0.0
        for _ in range(round((cue.after_s + rng.uniform(0, 0.4)) / FRAME_S)):
            moving = yield None, 0.0
        for _ in range(round(SHOWN_S / FRAME_S)):
            moving = yield cue.gesture, CONFIDENCE - rng.uniform(0, 0.1)
    while moving:
        moving = yield None, 0.0


def perform(cues: Sequence[Cue], rng: np.random.Generator, recogniser: Recogniser) -> Operator:
    """The same with a hand that somebody has to watch: what is recognised, of a person drawn for this run."""
    hand = simulated_hand.Hand(simulated_hand.Person.draw(rng), rng)
    info, count, moving = recogniser.info, 0, False

    def shown(values: NDArray[np.float64]) -> Generator[tuple[str | None, float], bool, bool]:
        nonlocal count, moving
        moved = False
        for row in values:
            count += 1
            said = recogniser.step(info.frame(count * FRAME_S, count * FRAME_S, row))
            moving = yield said.gesture, said.confidence
            moved |= moving
        return moved

    for cue in cues:
        for _ in range(TRIES):
            yield from shown(hand.rest(cue.after_s + rng.uniform(0, 0.4)))
            while cue.waits and moving:
                yield from shown(hand.rest(0.5))
            followed = yield from shown(hand.show(cue.gesture))
            if followed or not cue.waits:
                break
    while moving:
        yield from shown(hand.rest(0.5))


def hand_recogniser(bundle: LoadedBundle) -> Recogniser:
    """For `perform`.

    Raises:
        SensorError: the bundle is not for the simulated hand, or does not know a gesture that is shown.
    """
    info = StreamInfo("simulated hand", simulated_hand.CHANNELS, simulated_hand.RATE_HZ)
    unknown = [cue.gesture for cue in CUES if cue.gesture not in bundle.labels]
    if unknown:
        raise SensorError(f"{bundle.path}: does not know {', '.join(unknown)}; train it on gestures_demo.")
    return Recogniser(bundle, info, none=[simulated_hand.REST], rules=RULES)


def make_breakfast(
    arm: SimulatedArm, submit: Submit, operator: Operator, watch: Watch = lambda simulation: None
) -> Outcome:
    """One run, from an arm at home to the end of the last motion.

    Args:
        arm: connected, stepped by hand, in the scene `breakfast`.
        submit: takes the intent of each frame; what moves the arm is behind it.
        operator: has not begun.
        watch: is shown the simulation after each frame.
    """
    simulation, start = arm.simulation, arm.clock()
    mapper = Mapper(breakfast_map(simulation), STREAM.channels, lambda name: Pose(*arm.place(name)))
    notes = [mapper.note]
    gesture, confidence = next(operator)
    while arm.clock() - start < LONGEST_S:
        frame = STREAM.frame(arm.clock(), arm.clock(), [0.0])
        submit(mapper.step(gesture, confidence, frame, arm.state()))
        arm.advance(FRAME_S)
        watch(simulation)
        if mapper.note != notes[-1]:
            notes.append(mapper.note)
        try:
            gesture, confidence = operator.send(mapper.motion is not None)
        except StopIteration:
            break
    poured = in_cup(simulation)
    return Outcome(poured, tuple(wrong(simulation, poured)), tuple(notes[1:]), arm.clock() - start)


def beads(simulation: Simulation) -> list[str]:
    """The juice."""
    names = [simulation.model.body(index).name for index in range(simulation.model.nbody)]
    return [name for name in names if name.startswith("bead")]


def in_cup(simulation: Simulation) -> float:
    """The share of the juice."""
    foot, rotation = simulation.body("cup")
    inside = 0
    for bead in beads(simulation):
        x, y, z = rotation.T @ (simulation.body(bead)[0] - foot)
        inside += np.hypot(x, y) < CUP_RADIUS_M and 0 < z < CUP_HEIGHT_M
    return inside / len(beads(simulation))


def wrong(simulation: Simulation, poured: float) -> Iterator[str]:
    """What is not as it should be at the end."""
    if poured < ENOUGH:
        yield f"{poured:.0%} of the juice is in the cup, expected {ENOUGH:.0%}"
    for name in ("jug", "cup"):
        upright = simulation.body(name)[1][2, 2]
        if upright < 0.99:
            yield f"the {name} leans by {np.degrees(np.arccos(upright)):.0f} degrees"
    for name, place in (("jug", "coaster"), ("bread", "plate")):
        there, foot = simulation.body(name)[0], simulation.body(place)[0]
        apart = float(np.hypot(*(there - foot)[:2]))
        if apart > 0.03 or not -0.005 < there[2] - foot[2] < 0.03:
            yield f"the {name} is {apart * 100:.0f} cm beside and {there[2] - foot[2]:.3f} m above the {place}"
    off = np.abs(simulation.measure(0.0).position - simulation.kinematics.forward(simulation.arm.home)[0]).max()
    if off > 0.02:
        yield f"the arm is {off * 100:.0f} cm from home"
    if simulation.gripper() < 0.9:
        yield f"the gripper is open by {simulation.gripper():.0%}"


def run(
    seed: int, log: CommandLog, watch: Watch = lambda simulation: None, recogniser: Recogniser | None = None
) -> Outcome:
    """Lay the table and make breakfast; `safety`'s control holds the arm, and the operator holds a key throughout.

    Args:
        log: open; of what the arm was really sent.
        recogniser: of the operator's hand, `data.simulated_hand`; none: gestures are taken as they are shown.
    """
    rng = np.random.default_rng(seed)
    simulation = Simulation("breakfast")
    scatter(simulation, rng)
    with SimulatedArm(simulation, real_time=False) as arm:
        control = Control(arm, SafetyConfig(LIMITS, confidence=0.5), log, arm.clock)
        control.turn(Intent(arm.clock(), None, 1.0), requests=[Request(Event.ARM, "operator")])
        operator = operate(CUES, rng) if recogniser is None else perform(CUES, rng, recogniser)
        outcome = make_breakfast(arm, lambda intent: control.turn(intent, held=arm.clock()), operator, watch)
        fault = control.snapshot.fault
    stopped = () if fault is None else (f"safety stopped the arm: {fault.why}",)
    return replace(outcome, wrong=stopped + outcome.wrong)


class Filming:
    """Watches a run: a film of it, and a picture of its end. `with Filming(folder) as watch: run(seed, log, watch)`."""

    def __init__(self, folder: Path, speed_up: float = 5.0) -> None:
        """
        Args:
            folder: for breakfast.mp4 and breakfast.png.
            speed_up: how much faster than life the film is.
        """
        if not speed_up > 0:
            raise SensorError(f"breakfast: the film's speed-up is {speed_up}, expected above 0.")
        self._picture = folder / "breakfast.png"
        self._film = Film(folder / "breakfast.mp4", IMAGES_HZ)
        self._camera = Camera(480, 360)
        self._every_s = speed_up / IMAGES_HZ
        self._due_s = 0.0
        self._simulation: Simulation | None = None

    def __call__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        if simulation.time >= self._due_s:
            self._due_s = simulation.time + self._every_s
            self._film.add(self._camera.take(simulation))

    def __enter__(self) -> Self:
        self._film.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._film.__exit__(kind, error, trace)
        if self._simulation is not None:
            save_picture(Camera(960, 720).take(self._simulation), self._picture)
