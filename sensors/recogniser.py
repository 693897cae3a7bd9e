"""A bundle that classifies, stepped frame by frame into gestures: what stands between a stream and an intent.

It knows the stream that it was made for, and refuses one of other channels or another rate before the first frame. It
starts no thread; what goes wrong inside the model leaves `step` as a RecogniserError, for `safety` to stop on.

Shapes: C channels, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from forecasting.graphs import State
from forecasting.runtime import LoadedBundle
from forecasting.stream import ANONYMOUS, Stream
from sensors.model_input import check_input
from sensors.person import Person
from sensors.recognise import Decider, Recognition, Rules
from sensors.stream import Frame, SensorError, StreamInfo


class RecogniserError(SensorError):
    """The model failed while it ran; what it said before does not count any more."""


class Memory(Protocol):
    """Gestures beside those of the network, as `sensors.teach` keeps them."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The network's and the taught ones, (K + N,)."""
        ...

    def answer(self, probabilities: NDArray[np.float32], state: State) -> NDArray[np.float64]:
        """(K + N,) from what the network says (K,) and its state (one series) after the frame."""
        ...


class Recogniser:
    """One person's stream through one bundle."""

    def __init__(
        self,
        bundle: LoadedBundle,
        info: StreamInfo,
        *,
        none: Sequence[str] = (),
        rules: Rules | None = None,
        person: Person | None = None,
        memory: Memory | None = None,
    ) -> None:
        """
        Args:
            info: the stream that is to be recognised, at the model's rate.
            none: classes that mean no gesture; see `Decider`.
            person: whose statistics the model starts from; None takes those of the training people.
            memory: gestures that were taught.

        Raises:
            SensorError: the bundle does not classify or does not stream, or it was trained on other channels or at
                another rate.
        """
        if bundle.kind != "classify" or not bundle.streams:
            what = f"is to {bundle.kind}" if bundle.kind != "classify" else "labels complete sequences only"
            raise SensorError(f"{bundle.path}: {bundle.name} {what}; gestures need a bundle that classifies a stream.")
        check_input(bundle, info)
        self.bundle = bundle
        self.info = info
        self.memory = memory
        self.labels = bundle.labels if memory is None else memory.labels
        self.decider = Decider(self.labels, none, rules)
        self._values = np.empty((1, len(info.channels)), np.float32)
        self._person = person
        self.restart()

    def step(self, frame: Frame) -> Recognition:
        """Take one frame.

        Raises:
            RecogniserError: the model failed; the recogniser has to be restarted.
            SensorError: the frame is of another size.
        """
        if frame.values.shape != self._values.shape[1:]:
            raise SensorError(
                f"{self.info.stream_id}: a frame of shape {frame.values.shape}, expected "
                f"{self._values.shape[1]} values."
            )
        values = self._values[0]
        values.fill(np.nan)
        np.copyto(values, frame.values, where=frame.mask)
        try:
            probabilities = self._stream.step(self._values)[0]
            if self.memory is not None:
                probabilities = self.memory.answer(probabilities, self._stream.state)
        except Exception as error:  # onnxruntime's own exceptions share no base
            raise RecogniserError(f"{self.bundle.path}: {self.bundle.name} failed on a frame ({error}).") from error
        return self.decider.step(probabilities)

    @property
    def none(self) -> tuple[str, ...]:
        """The classes that mean no gesture."""
        return tuple(self.labels[index] for index in sorted(self.decider.classes.none))

    @property
    def rules(self) -> Rules:
        """When a gesture is decided."""
        return self.decider.rules

    def restart(self, person: Person | None = None) -> None:
        """Forget the frames so far, and a gesture that goes on; the next frame is the first of this person.

        Without one it is of who began the last time, as they were then.
        """
        self._person = person or self._person
        state = None if self._person is None else self._person.state(self.bundle)
        self._stream = Stream(self.bundle, [ANONYMOUS], state)
        self.decider.finish()

    def person(self, name: str) -> Person:
        """Who moves, as the model has come to know them."""
        return Person.after(self.bundle, name, self._stream.state)
