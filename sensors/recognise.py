"""From class probabilities, frame by frame, to gestures: where one begins, which it is, as early as is safe, its end.

A gesture begins where the classes that mean *no gesture* lose their probability. It is decided once one class has been
above the threshold, and ahead of the next one by the margin, for some frames in a row: a lower threshold or a shorter
dwell decides earlier and errs more (`calibrate` chooses them). What is not decided in time is unknown. A decided
gesture is held, with hysteresis, until its probability has left it. Each gesture is decided at most once.

After Simao, Gibaru & Neto, IEEE Trans. Industrial Electronics 66(12), 9372-9382 (2019): reject below the threshold,
act before the gesture is complete. Probabilities are those of a model divided by a temperature (Guo et al., ICML 2017,
arXiv 1706.04599): p^(1/T), normalised. No arrays here: for some dozens of classes plain numbers are faster.

Shapes: K classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from sensors.stream import SensorError

Event = Literal["onset", "decision", "rejection", "end"]
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Rules:
    """When a gesture begins, is decided, is given up and ends. Frames are the model's.

    Raises:
        SensorError: a number out of its range.
    """

    threshold: float = 0.8  # of the best class's probability; below it nothing is decided
    dwell: int = 5  # frames in a row that it is reached by the same class
    margin: float = 0.1  # by which the best class is ahead of every other
    temperature: float = 1.0  # above 1 makes probabilities humbler
    onset: float = 0.5  # probability of any gesture at which one begins
    offset: float = 0.3  # and below which one that is not decided ends
    release: float = 0.3  # probability of the decided gesture below which it ends
    end_frames: int = 5  # frames in a row that it takes to end
    unknown_after: int = 400  # frames after the onset at which an undecided gesture is given up

    def __post_init__(self) -> None:
        for name, low, high in (
            ("threshold", 0.0, 1.0),
            ("margin", 0.0, 1.0),
            ("onset", 0.0, 1.0),
            ("offset", 0.0, 1.0),
            ("release", 0.0, 1.0),
            ("temperature", 0.01, 100.0),
            ("dwell", 1, math.inf),
            ("end_frames", 1, math.inf),
            ("unknown_after", 1, math.inf),
        ):
            value = getattr(self, name)
            whole = type(getattr(type(self), name)) is int
            right = isinstance(value, int) if whole else isinstance(value, int | float)
            if not right or isinstance(value, bool) or not low <= value <= high:
                kind = f"a whole number of at least {low}" if whole else f"a number from {low:g} to {high:g}"
                raise SensorError(f"rules of recognition: {name} is {value!r}, expected {kind}.")
        if self.offset > self.onset or self.release > self.threshold:
            raise SensorError(
                f"rules of recognition: offset {self.offset:g} must not be above onset {self.onset:g}, nor release "
                f"{self.release:g} above threshold {self.threshold:g}: a gesture would end as it begins."
            )

    @classmethod
    def parse(cls, settings: Mapping[str, Any]) -> Rules:
        """Rules of a configuration's table; what it leaves out has its default.

        Raises:
            SensorError: an unknown name, or a number out of its range.
        """
        known = [field.name for field in fields(cls)]
        unknown = [name for name in settings if name not in known]
        if unknown:
            raise SensorError(
                f"rules of recognition: the configuration does not know {', '.join(unknown)}; "
                f"expected {', '.join(known)}."
            )
        return cls(**settings)


class Recognition(NamedTuple):
    """What is known after one frame."""

    gesture: str | None  # decided and going on; None for no gesture or not decided yet, UNKNOWN for a rejected one
    confidence: float  # 0 to 1, the probability of that: of the gesture, of no gesture, of none that is known
    events: tuple[Event, ...]  # at this frame, in their order
    seen: int  # frames since the onset, this one too; 0 at rest


class Evidence(NamedTuple):
    """One frame's probabilities, looked at once."""

    best: int  # class, of those that are gestures
    top: float  # its probability
    margin: float  # to the next class of any kind
    none: float  # probability of no gesture
    row: list[float]  # (K,) all probabilities


class Classes:
    """The classes of a model, and which of them mean no gesture."""

    def __init__(self, labels: Sequence[str], none: Sequence[str]) -> None:
        strange = [name for name in none if name not in labels]
        if strange:
            raise SensorError(f"no-gesture classes: the model has no {', '.join(strange)}; it has {', '.join(labels)}.")
        if UNKNOWN in labels and UNKNOWN not in none:
            raise SensorError(f"classes: '{UNKNOWN}' is what a rejected gesture is called; rename the class.")
        self.labels = tuple(labels)
        self.none = frozenset(self.labels.index(name) for name in none)
        if len(self.none) == len(self.labels):
            raise SensorError(f"no-gesture classes: {', '.join(labels)} are all that the model has.")

    def evidence(self, row: list[float], temperature: float = 1.0) -> Evidence | None:
        """None where the numbers are no probabilities: NaN, infinite, negative or all 0."""
        total = sum(row)
        if not (0 < total < math.inf and min(row) >= 0):  # of a NaN the sum is NaN
            return None
        if temperature != 1.0:
            power, highest = 1 / temperature, max(row)
            row = [(value / highest) ** power for value in row]
            total = sum(row)
        best, top, second, none = -1, -1.0, 0.0, 0.0
        for index, value in enumerate(row):
            if index in self.none:
                none += value
                second = max(second, value)
            elif value > top:
                best, top, second = index, value, max(second, top)
            elif value > second:
                second = value
        return Evidence(best, top / total, (top - second) / total, none / total, [value / total for value in row])


AT_REST, OPEN, DECIDED, REJECTED = range(4)


class Decider:
    """Steps from frame to frame; holds where the present gesture stands. One person, one thread."""

    _phase: int
    _label: int  # the decided class
    _candidate: int  # best class of the last frame
    _seen: int  # frames of the gesture
    _run: int  # in a row of one class that is known
    _quiet: int  # in a row without the gesture

    def __init__(self, labels: Sequence[str], none: Sequence[str] = (), rules: Rules | None = None) -> None:
        """
        Args:
            labels: the classes in the order of the probabilities.
            none: those of them that mean no gesture, such as "rest". Without any, a gesture begins with the first
                frame, and the next one where the last ended.

        Raises:
            SensorError: a no-gesture class that the model lacks, or nothing but such classes.
        """
        self.classes = Classes(labels, none)
        self.rules = Rules() if rules is None else rules
        self._rest()

    def step(self, probabilities: ArrayLike) -> Recognition:
        """Take the probabilities (K,) of one frame; NaN counts as no gesture and ends what is going on.

        Raises:
            SensorError: the number of classes is another.
        """
        numbers = np.asarray(probabilities)
        if numbers.shape != (len(self.classes.labels),):
            raise SensorError(
                f"probabilities of shape {numbers.shape}, expected {len(self.classes.labels)}: "
                f"{', '.join(self.classes.labels)}."
            )
        return self.take(self.classes.evidence(numbers.tolist(), self.rules.temperature))

    def finish(self) -> Recognition:
        """End the gesture that is going on: the stream ended or is cut here."""
        return self._end(0.0)

    def take(self, evidence: Evidence | None) -> Recognition:
        """`step` for evidence at hand, its temperature applied."""
        if evidence is None:
            return self._end(0.0)
        best, top, margin, none, row = evidence
        rules = self.rules
        events: tuple[Event, ...] = ()
        if self._phase == AT_REST:
            if 1 - none < rules.onset:
                return Recognition(None, none, (), 0)
            self._phase, events = OPEN, ("onset",)
        self._seen += 1
        known = top >= rules.threshold and margin >= rules.margin
        self._run = (self._run + 1 if best == self._candidate else 1) if known else 0
        self._candidate = best
        decided = self._phase == DECIDED
        goes_on = row[self._label] >= rules.release if decided else 1 - none >= rules.offset
        self._quiet = 0 if goes_on else self._quiet + 1
        if self._quiet >= rules.end_frames or (self._phase == REJECTED and self._run >= rules.dwell):
            return self._end(none)  # of a rejected gesture also where one begins that is known
        if self._phase == OPEN:
            if self._run >= rules.dwell:
                self._phase, self._label, events, decided = DECIDED, best, (*events, "decision"), True
            elif self._seen >= rules.unknown_after:
                self._phase, events = REJECTED, (*events, "rejection")
        if decided:
            return Recognition(self.classes.labels[self._label], row[self._label], events, self._seen)
        if self._phase == REJECTED:
            return Recognition(UNKNOWN, 1 - top, events, self._seen)
        return Recognition(None, none, events, self._seen)

    def _end(self, none: float) -> Recognition:
        """What goes on ends here; it is rejected if it was long enough to be decided and was not."""
        phase, seen = self._phase, self._seen
        long_enough = seen - self._quiet >= self.rules.dwell
        self._rest()
        if phase == AT_REST:
            return Recognition(None, none, (), 0)
        if phase == OPEN and long_enough:
            return Recognition(UNKNOWN, none, ("rejection", "end"), seen)
        return Recognition(None, none, ("end",), seen)

    def _rest(self) -> None:
        self._phase, self._label, self._candidate = AT_REST, -1, -1
        self._seen = self._run = self._quiet = 0
