"""New gestures from a few demonstrations: a memory over the frozen network, which is not trained again.

The encoder is what the bundle's state already holds: the hidden vector of a recurrent network, the running shares of
random kernels. A model that keeps neither is refused: its probabilities alone saturate, and say nothing of what it was
never shown. The memory keeps the mean of each class there
and one covariance within classes, and reads them as a linear discriminant (streaming linear discriminant analysis,
Hayes & Kanan 2020, arXiv 1909.01520). A new class is one more mean: the old ones, and the network, stay bit by bit what
they were, so nothing is forgotten but what a new class takes. The network goes on telling the old classes apart, and
the memory says how probably it is a new one:

    p(old k) = p_network(k) (1 - q),   p(new n) = q_n,   q = sum of q_n, the memory's posterior.

Shapes: B recordings, T frames, C channels, K classes of the network, N taught, D numbers of the encoder, E <= D kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from forecasting.bundle import STEP, BundleError, read_npz, write_atomic, write_npz
from forecasting.graphs import State
from forecasting.runtime import LoadedBundle
from sensors.calibrate import runs_of
from sensors.recognise import UNKNOWN
from sensors.stream import SensorError

Array = NDArray[np.float64]

MOST = 128  # E: directions of the encoder that are kept
SHRINK = 0.2  # share of the covariance that is the same in all directions
FRAMES = 7  # of each gesture, evenly from a quarter of it to its end
TOGETHER = 64  # recordings that are stepped at a time
LEAST_SPREAD = 0.1  # of a number of the encoder, as a share of their root mean square
SAMPLE = 2000  # rows from which the directions are found
SCHEMA = 1


class Demonstration(NamedTuple):
    """One performance. What lies before it, such as the rest, is stepped through too."""

    values: NDArray[Any]  # (T, C) in the channels' units, NaN where missing
    begin: int = 0  # its first frame
    end: int | None = None  # the frame after its last; None for the end of the values


@dataclass(frozen=True)
class GestureMemory:
    """The classes of one bundle and those taught beside them. Teaching gives another memory; this one stays."""

    bundle_name: str
    step_sha256: str
    labels: tuple[str, ...]  # the network's, then the taught, (K + N,)
    known: int  # K
    demonstrations: tuple[int, ...]  # of each taught class
    centre: Array  # (D,)
    directions: Array  # (D, E): to numbers whose covariance within classes is the identity
    means: Array  # (K + N, E)

    @classmethod
    def of(cls, bundle: LoadedBundle, recordings: Sequence[tuple[NDArray[Any], NDArray[np.int64]]]) -> GestureMemory:
        """What the encoder makes of the classes that the network knows.

        Args:
            recordings: values (T, C) and the class of each frame (T,), -1 where not known; some of each class, best
                those that the network was trained on.

        Raises:
            SensorError: a class of which there is nothing, or a bundle that does not classify a stream or keeps no
                features of it.
        """
        if bundle.kind != "classify" or not bundle.streams:
            raise SensorError(f"{bundle.path}: {bundle.name} does not classify a stream; there is nothing to teach.")
        if not _encoder(bundle.state_names):
            raise SensorError(
                f"{bundle.path}: {bundle.name} keeps no features in its state to teach new gestures by; take gru, "
                "lstm, conv-lstm or rocket."
            )
        runs = [runs_of(truth) for _, truth in recordings]
        wanted = [[_positions(begin, end) for begin, end, _ in run] for run in runs]
        places = [np.concatenate([*each, np.array([], int)]) for each in wanted]
        found = _encoded(bundle, [values for values, _ in recordings], places)
        labels = [
            np.repeat([label for *_, label in run], [len(part) for part in each]).astype(int)
            for run, each in zip(runs, wanted, strict=True)
        ]
        features, classes = np.concatenate(found), np.concatenate(labels)
        absent = [name for index, name in enumerate(bundle.labels) if not (classes == index).any()]
        if absent:
            raise SensorError(f"{bundle.path}: no recording shows {', '.join(absent)}; the memory needs every class.")
        centre, directions = _whitened(features, classes)
        seen = (features - centre) @ directions
        means = np.stack([seen[classes == index].mean(0) for index in range(len(bundle.labels))])
        sha = bundle.card["sha256"][STEP]
        return cls(bundle.name, sha, bundle.labels, len(bundle.labels), (), centre, directions, means)

    def taught(self, bundle: LoadedBundle, name: str, demonstrations: Sequence[Demonstration]) -> GestureMemory:
        """This memory and one more gesture; three to five demonstrations are a fair number.

        Raises:
            SensorError: a name that is taken, no demonstrations, one of the wrong size, or another bundle.
        """
        self.check(bundle)
        if name in self.labels or name == UNKNOWN or not name:
            raise SensorError(f"'{name}' cannot be taught: the name is taken; known: {', '.join(self.labels)}.")
        if not demonstrations:
            raise SensorError(f"{name}: no demonstration; three to five are a fair number.")
        places = []
        for number, one in enumerate(demonstrations, 1):
            shape, end = one.values.shape, len(one.values) if one.end is None else one.end
            if len(shape) != 2 or shape[1] != len(bundle.channels) or not 0 <= one.begin < end <= shape[0]:
                raise SensorError(
                    f"{name}: demonstration {number} has values of shape {shape}, frames {one.begin} to {end}; "
                    f"expected (frames, {len(bundle.channels)}) and a part of them."
                )
            if not np.isfinite(one.values[one.begin : end]).any(0).all():
                raise SensorError(f"{name}: demonstration {number} lacks every value of a channel; make it again.")
            places.append(_positions(one.begin, end))
        found = np.concatenate(_encoded(bundle, [one.values for one in demonstrations], places))
        mean = ((found - self.centre) @ self.directions).mean(0)
        return replace(
            self,
            labels=(*self.labels, name),
            demonstrations=(*self.demonstrations, len(demonstrations)),
            means=np.concatenate([self.means, mean[None]]),
        )

    def without(self, name: str) -> GestureMemory:
        """This memory without a taught gesture.

        Raises:
            SensorError: it was not taught.
        """
        if name not in self.labels[self.known :]:
            taught = ", ".join(self.labels[self.known :]) or "none"
            raise SensorError(f"'{name}' was not taught; taught: {taught}.")
        index = self.labels.index(name)
        counts = list(self.demonstrations)
        del counts[index - self.known]
        labels = tuple(label for label in self.labels if label != name)
        return replace(self, labels=labels, demonstrations=tuple(counts), means=np.delete(self.means, index, 0))

    def answer(self, probabilities: NDArray[Any], state: State) -> Array:
        """(K + N,) of all classes, from what the network says (K,) and its state (one series) after the frame."""
        return self.answers(probabilities[None], state)[0]

    def answers(self, probabilities: NDArray[Any], state: State) -> Array:
        """`answer` of several series: (B, K) give (B, K + N)."""
        seen = (_features(state) - self.centre) @ self.directions  # (B, E)
        scores = seen @ self.means.T - 0.5 * (self.means**2).sum(1)
        scores = np.exp(scores - scores.max(1, keepdims=True))
        new = scores[:, self.known :] / scores.sum(1, keepdims=True)
        return np.concatenate([probabilities * (1 - new.sum(1, keepdims=True)), new], 1)

    def check(self, bundle: LoadedBundle) -> None:
        """Raise SensorError unless this is a memory of the bundle."""
        if self.step_sha256 != bundle.card["sha256"][STEP]:
            raise SensorError(
                f"the memory belongs to another bundle ({self.bundle_name}) than {bundle.path}: its means lie in "
                "another network's space. Make it anew from recordings."
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `path`.npz and `path`.json, each whole or not at all; the latter names the former's content."""
        arrays = write_npz({"centre": self.centre, "directions": self.directions, "means": self.means})
        card = {
            "schema": SCHEMA,
            "bundle": self.bundle_name,
            "step_sha256": self.step_sha256,
            "known": list(self.labels[: self.known]),
            "taught": [
                {"label": label, "demonstrations": count}
                for label, count in zip(self.labels[self.known :], self.demonstrations, strict=True)
            ],
            "npz_sha256": hashlib.sha256(arrays).hexdigest(),
        }
        write_atomic(f"{os.fspath(path)}.npz", arrays)
        write_atomic(f"{os.fspath(path)}.json", json.dumps(card, indent=2).encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str], bundle: LoadedBundle) -> GestureMemory:
        """What `save` wrote, for the bundle that it was made with.

        Raises:
            SensorError: a file is missing, changed or of another version, or it is another bundle's.
        """
        where = os.fspath(path)
        try:
            content = Path(f"{where}.npz").read_bytes()
            card = json.loads(Path(f"{where}.json").read_bytes())
            arrays = read_npz(content, f"{where}.npz")
        except OSError as error:
            raise SensorError(f"{error.filename}: the memory cannot be read ({error.strerror}).") from error
        except (BundleError, ValueError) as error:
            raise SensorError(f"{where}: is not a memory ({error}).") from error
        if not isinstance(card, dict) or card.get("schema") != SCHEMA:
            raise SensorError(f"{where}.json: is not a memory of schema {SCHEMA}.")
        if card.get("npz_sha256") != hashlib.sha256(content).hexdigest():
            raise SensorError(f"{where}.npz: is not the file that {where}.json was written with; teach again.")
        labels = (*card["known"], *(one["label"] for one in card["taught"]))
        counts = tuple(one["demonstrations"] for one in card["taught"])
        memory = cls(card["bundle"], card["step_sha256"], labels, len(card["known"]), counts, **arrays)
        memory.check(bundle)
        return memory


def _positions(begin: int, end: int) -> NDArray[np.int64]:
    """Frames of a gesture that its class is learned from."""
    return np.unique(begin + np.ceil((end - 1 - begin) * np.linspace(0.25, 1, FRAMES)).astype(int))


def _encoder(names: Iterable[str]) -> list[str]:
    """The parts of a state that say what was seen: the last layer's hidden vector, or the shares of all kernels."""
    hidden = sorted((name for name in names if re.fullmatch(r"rnn\.h\d+", name)), key=lambda name: int(name[5:]))
    return hidden[-1:] or [name for name in names if re.fullmatch(r"shares\d+", name)]


def _features(state: State) -> Array:
    """(B, D): what the network makes of the frames so far."""
    return np.concatenate([state[name] for name in _encoder(state)], 1).astype(np.float64)


def _encoded(
    bundle: LoadedBundle, sequences: Sequence[NDArray[Any]], positions: Sequence[NDArray[np.int64]]
) -> list[Array]:
    """Features at the chosen frames of each sequence (T, C): (n, D) each."""
    found: list[dict[int, Array]] = [{} for _ in sequences]
    for first in range(0, len(sequences), TOGETHER):
        group = range(first, min(first + TOGETHER, len(sequences)))
        wanted: dict[int, list[int]] = {}
        for index in group:
            for t in positions[index]:
                wanted.setdefault(int(t), []).append(index)
        x = np.full((len(group), 1 + max(wanted, default=-1), len(bundle.channels)), np.nan, np.float32)
        for row, index in enumerate(group):
            part = sequences[index][: x.shape[1]]
            x[row, : len(part)] = part
        seen = np.isfinite(x).astype(np.float32)
        state = bundle.initial_state(len(group))
        for t in range(x.shape[1]):
            _, state = bundle.run_step(x[:, t], seen[:, t], state)
            if t in wanted:
                features = _features(state)
                for index in wanted[t]:
                    found[index][t] = features[index - first]
    size = _features(bundle.initial_state(1)).shape[1]
    return [np.array([each[int(t)] for t in at]).reshape(-1, size) for each, at in zip(found, positions, strict=True)]


def _whitened(features: Array, classes: NDArray[np.int64]) -> tuple[Array, Array]:
    """Centre (D,) and directions (D, E) after which the covariance within classes is the identity, shrunk."""
    centre, spread = features.mean(0), features.std(0)
    # A number that hardly changes among the known classes must not drown the others when a new one moves it.
    spread = np.hypot(spread, LEAST_SPREAD * np.sqrt((spread**2).mean()))
    standard = (features - centre) / spread
    if standard.shape[1] > MOST:
        some = standard[:: max(1, len(standard) // SAMPLE)]  # D may be thousands: by the Gram matrix of the rows
        strengths, rows = np.linalg.eigh(some @ some.T)
        strong = strengths[-MOST:] > 1e-9 * strengths[-1]
        kept = some.T @ (rows[:, -MOST:][:, strong] / np.sqrt(strengths[-MOST:][strong]))
    else:
        kept = np.eye(standard.shape[1])
    seen = standard @ kept
    within = np.concatenate([seen[classes == label] - seen[classes == label].mean(0) for label in np.unique(classes)])
    covariance = within.T @ within / len(within)
    covariance = (1 - SHRINK) * covariance + SHRINK * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    values, vectors = np.linalg.eigh(covariance)
    return centre, (kept / spread[:, None]) @ (vectors / np.sqrt(np.maximum(values, 1e-12)))
