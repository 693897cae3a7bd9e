"""How early and how surely gestures are decided, and the rules that decide as early as a wanted precision allows.

Chosen on people or recordings that the model was not trained on, and not on those that it is judged by. A map of
gestures to commands may ask for more than the rules do: a confidence, a dwell, a release. With one, a decision is what
passes its gate, at the frame where it does, and gestures that it does not name do nothing. What depends on the robot is
not judged: the bridge also drops what comes while a motion runs, and brakes below `safety.confidence`.

Shapes: T frames of one recording, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sensors.command_map import CommandMap
from sensors.gate import Gate
from sensors.recognise import Classes, Decider, Evidence, Rules
from sensors.stream import SensorError

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.995)
DWELLS = (1, 2, 3, 5, 8, 12, 20, 30, 50, 80, 120)
TEMPERATURES = (0.1, 10.0)


class Labelled(NamedTuple):
    """What a model said of a recording, and what it is."""

    probabilities: NDArray[np.float32]  # (T, K)
    truth: NDArray[np.int64]  # (T,) class of each frame, -1 where it is none that is known: a decision there is wrong


@dataclass(frozen=True)
class Judgement:
    """Decisions against the truth. A gesture is a run of frames of one class that is not among the no-gesture ones.

    With a map only its gestures count: in another one a decision is wrong, as one for another class is.
    """

    gestures: int
    decisions: int
    right: int  # first decisions of a gesture for its own class
    false_alarms: int  # decisions where there was no gesture
    rest_minutes: float
    earliness: float  # mean share of a gesture that was seen when it was rightly decided; NaN where none was
    onset_delay: float  # median frames from the beginning of a gesture to its onset, of those noticed; NaN if none was

    @property
    def precision(self) -> float:
        return self.right / self.decisions if self.decisions else math.nan

    @property
    def recall(self) -> float:
        return self.right / self.gestures if self.gestures else math.nan

    @property
    def false_per_minute(self) -> float:
        """Of rest; NaN where there is none."""
        return self.false_alarms / self.rest_minutes if self.rest_minutes else math.nan

    @property
    def precision_interval(self) -> tuple[float, float]:
        """95 %, Wilson's."""
        return wilson(self.right, self.decisions)

    @property
    def cost(self) -> float:
        """How many lengths of a gesture pass, on average, until it is rightly decided: a missed one is made again."""
        return 1 / self.recall - 1 + self.earliness if self.right else math.inf


class Calibrated(NamedTuple):
    rules: Rules
    judgement: Judgement  # on the recordings that chose the rules, so a little kind
    reached: bool  # whether the wanted precision is


def wilson(right: float, of: int, z: float = 1.96) -> tuple[float, float]:
    """The interval of a proportion (Wilson 1927), which stays within 0 and 1; the whole of it for no trials."""
    if not of:
        return 0.0, 1.0
    share, spread = right / of, z * z / of
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / of + spread / (4 * of))
    # Rounding must leave neither the share outside nor the bounds beyond 0 and 1.
    return max(0.0, min(middle - half, share)), min(1.0, max(middle + half, share))


def fit_temperature(recordings: Sequence[Labelled]) -> float:
    """The temperature of the least cross-entropy, by ternary search: it is convex in 1 / T."""
    logs = np.concatenate([np.log(np.clip(r.probabilities[r.truth >= 0], 1e-12, 1), dtype=float) for r in recordings])
    truth = np.concatenate([r.truth[r.truth >= 0] for r in recordings])
    finite = np.isfinite(logs).all(1)
    logs, truth = logs[finite], truth[finite]
    if not len(truth):
        raise SensorError("no frame has both a known class and probabilities; there is nothing to calibrate on.")

    def entropy(power: float) -> float:
        scaled = logs * power
        highest = scaled.max(1)
        total = np.log(np.exp(scaled - highest[:, None]).sum(1)) + highest
        return float((total - scaled[np.arange(len(truth)), truth]).mean())

    low, high = 1 / TEMPERATURES[1], 1 / TEMPERATURES[0]
    while high / low > 1.01:
        first, second = low * (high / low) ** (1 / 3), low * (high / low) ** (2 / 3)
        low, high = (low, second) if entropy(first) < entropy(second) else (first, high)
    return 1 / math.sqrt(low * high)


def judge(
    recordings: Sequence[Labelled],
    labels: Sequence[str],
    none: Sequence[str],
    rules: Rules,
    rate_hz: float,
    lag: int = 0,
    command_map: CommandMap | None = None,
) -> Judgement:
    """What the rules decide on the recordings.

    Args:
        lag: frames for which a gesture still counts as there after its last one, where the hand is behind the labels.
        command_map: whose gate decisions have to pass; None counts those of the rules alone.
    """
    classes = Classes(labels, none)
    evidence = [_evidence(recording, classes, rules.temperature) for recording in recordings]
    return _judge(evidence, recordings, classes, rules, rate_hz, lag, command_map)


def calibrate(
    recordings: Sequence[Labelled],
    labels: Sequence[str],
    none: Sequence[str],
    rate_hz: float,
    *,
    target: float = 0.95,
    rules: Rules | None = None,
    lag: int = 0,
    command_map: CommandMap | None = None,
) -> Calibrated:
    """Temperature, threshold and dwell of the earliest decisions whose precision reaches the target.

    Earliest by `Judgement.cost`, which counts the gestures that are missed. Where nothing reaches the target the most
    precise rules are returned, and `reached` is False. Recordings of movements that the model was never shown (-1 all
    through) teach the rules to reject such: without them an early decision for one costs nothing.

    Args:
        rules: what the others are taken from.
        lag, command_map: of `judge`.

    Raises:
        SensorError: there is no gesture (that the map names), or not one frame to learn from.
    """
    classes = Classes(labels, none)
    base = replace(rules or Rules(), temperature=fit_temperature(recordings))
    evidence = [_evidence(recording, classes, base.temperature) for recording in recordings]
    lengths = [end - begin for r in recordings for begin, end, _ in gestures_of(r.truth, classes, command_map)]
    if not lengths:
        of_map = "" if command_map is None else f" that the map names ({', '.join(command_map.gestures.values())})"
        raise SensorError(f"there is no gesture{of_map} in the recordings; there is nothing to calibrate on.")
    found = []
    for threshold in THRESHOLDS:
        for dwell in [frames for frames in DWELLS if frames <= max(1, np.median(lengths) / 2)]:
            tried = replace(base, threshold=threshold, dwell=dwell, release=min(base.release, threshold))
            judged = _judge(evidence, recordings, classes, tried, rate_hz, lag, command_map)
            found.append(Calibrated(tried, judged, judged.precision >= target))
    reached = [each for each in found if each.reached]
    if reached:
        return min(reached, key=lambda each: each.judgement.cost)
    return max(found, key=lambda each: (np.nan_to_num(each.judgement.precision), -each.judgement.cost))


def runs_of(truth: NDArray[np.int64]) -> list[tuple[int, int, int]]:
    """(first frame, frame after the last, class) of each run of frames of one known class."""
    edges = np.flatnonzero(np.diff(truth, prepend=-2, append=-2))
    return [(int(a), int(b), int(truth[a])) for a, b in pairwise(edges) if truth[a] >= 0]


def gestures_of(
    truth: NDArray[np.int64], classes: Classes, command_map: CommandMap | None = None
) -> list[tuple[int, int, int]]:
    """The runs that are gestures, of the map if there is one."""
    named = None if command_map is None else set(command_map.gestures.values())
    return [
        run
        for run in runs_of(truth)
        if run[2] not in classes.none and (named is None or classes.labels[run[2]] in named)
    ]


def _evidence(recording: Labelled, classes: Classes, temperature: float) -> list[Evidence | None]:
    return [classes.evidence(row, temperature) for row in recording.probabilities.tolist()]


def _judge(
    evidence: Sequence[list[Evidence | None]],
    recordings: Sequence[Labelled],
    classes: Classes,
    rules: Rules,
    rate_hz: float,
    lag: int,
    command_map: CommandMap | None,
) -> Judgement:
    none = [classes.labels[index] for index in classes.none]
    index = {label: place for place, label in enumerate(classes.labels)}
    gestures = decisions = right = false_alarms = 0
    rest, shares, delays = 0, [], []
    for frames, recording in zip(evidence, recordings, strict=True):
        decider = Decider(classes.labels, none, rules)
        gate = None if command_map is None else Gate(command_map)
        said = []  # (frame, class) of each decision
        onsets = []
        waits = False  # whether there is a decision that has not passed the gate yet
        for t, frame in enumerate(frames):
            recognition = decider.take(frame)
            if recognition.events:
                if "onset" in recognition.events:
                    onsets.append(t)
                waits = "decision" in recognition.events or (waits and "end" not in recognition.events)
            passes = gate is None or gate.step(recognition.gesture, recognition.confidence, t / rate_hz) is not None
            if waits and passes:
                said.append((t, index[str(recognition.gesture)]))
                waits = False
        there = gestures_of(recording.truth, classes, command_map)
        gestures += len(there)
        decisions += len(said)
        rest += int(np.isin(recording.truth, list(classes.none)).sum())
        taken = set()
        for t, label in said:
            own = [g for g in there if g[0] <= t < g[1] + lag and g[2] == label and g not in taken]
            if own:
                begin, end, _ = own[0]
                taken.add(own[0])
                right += 1
                shares.append(min(1.0, (t - begin + 1) / (end - begin)))
            elif recording.truth[t] in classes.none:
                false_alarms += 1
        for begin, end, _ in there:
            delays += [t - begin for t in onsets if begin <= t < end][:1]
    return Judgement(
        gestures,
        decisions,
        right,
        false_alarms,
        rest / rate_hz / 60,
        float(np.mean(shares)) if shares else math.nan,
        float(np.median(delays)) if delays else math.nan,
    )
