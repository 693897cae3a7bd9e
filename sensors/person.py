"""What a model has learned of one person's level and spread, kept apart from the gesture that is going on.

A model normalises by running statistics that are a part of its state (`models.observation.RunningNormaliser`), so it
adapts to whoever moves. Here that part is given a weight, saved for a person and given back when the person returns.
The rest of the state starts anew. A model that was trained with `known_owner` has learned from series that begin so.

Shapes: C channels.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forecasting.bundle import STEP, BundleError, read_npz, write_atomic, write_npz
from forecasting.graphs import State
from forecasting.runtime import LoadedBundle
from sensors.stream import SensorError

PARTS = ("norm.count", "norm.last", "norm.offset", "norm.var")


@dataclass(frozen=True)
class Person:
    """Running statistics of the named person's channels, of one bundle's normaliser."""

    name: str
    step_sha256: str  # of the bundle's step graph: to another one they mean nothing
    statistics: Mapping[str, NDArray[Any]]  # (1, C) each, by the names of `PARTS`

    @classmethod
    def new(cls, bundle: LoadedBundle, name: str, weight: int | None = None) -> Person:
        """Somebody of whom nothing is known but what the training people were like.

        Args:
            weight: how many frames of this person weigh as much as all of the training; fewer adapt faster, and pull
                more of what is a gesture into what is the person. None is the model's own `prior`.

        Raises:
            SensorError: the model has no running statistics, or the weight is below 1.
        """
        state = _initial(bundle)
        if weight is not None:
            if not weight >= 1:
                raise SensorError(f"{name}: a weight of {weight!r} frames, expected at least 1.")
            state["norm.count"] = np.minimum(state["norm.count"], np.float32(weight))
        return cls(name, bundle.card["sha256"][STEP], {part: state[part] for part in PARTS})

    @classmethod
    def after(cls, bundle: LoadedBundle, name: str, state: State) -> Person:
        """The person as a stream's state (one series) knows them."""
        _initial(bundle)
        # Relative to their own mean rather than to the last frame, which the next time does not follow on.
        mean = state["norm.last"] - state["norm.offset"]
        known = {"norm.count": state["norm.count"], "norm.last": mean, "norm.var": state["norm.var"]}
        return cls(name, bundle.card["sha256"][STEP], known | {"norm.offset": np.zeros_like(mean)})

    @classmethod
    def load(cls, path: str | os.PathLike[str], bundle: LoadedBundle) -> Person:
        """What `save` wrote.

        Raises:
            SensorError: the file cannot be read, is something else, or belongs to another bundle.
        """
        try:
            arrays = read_npz(Path(path).read_bytes(), str(path))
        except OSError as error:
            raise SensorError(f"{path}: the person cannot be read ({error.strerror}).") from error
        except BundleError as error:
            raise SensorError(str(error)) from error
        if set(arrays) != {"name", "step_sha256", *PARTS}:
            raise SensorError(f"{path}: is not a person's file; it holds {', '.join(sorted(arrays)) or 'nothing'}.")
        if str(arrays["step_sha256"]) != bundle.card["sha256"][STEP]:
            raise SensorError(f"{path}: belongs to another bundle than {bundle.path}; start the person anew.")
        return cls(str(arrays["name"]), str(arrays["step_sha256"]), {part: arrays[part] for part in PARTS})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to a file, whole or not at all."""
        own = {"name": np.array(self.name), "step_sha256": np.array(self.step_sha256)}
        write_atomic(path, write_npz(own | dict(self.statistics)))

    def state(self, bundle: LoadedBundle) -> State:
        """The state of a stream (one series) before the first frame of this person.

        Raises:
            SensorError: the statistics belong to another bundle.
        """
        if self.step_sha256 != bundle.card["sha256"][STEP]:
            raise SensorError(f"{self.name}: belongs to another bundle than {bundle.path}; start the person anew.")
        return _initial(bundle) | {part: np.array(value) for part, value in self.statistics.items()}


def _initial(bundle: LoadedBundle) -> State:
    missing = [part for part in PARTS if part not in bundle.state_names]
    if missing:
        raise SensorError(
            f"{bundle.path}: {bundle.name} keeps no running statistics of its channels, so there is nothing of a "
            "person to keep; take a model that normalises, such as gru or rocket."
        )
    return bundle.initial_state(1)
