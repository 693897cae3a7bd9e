"""What a bundle says of labelled recordings, to choose rules by and to teach from; and how that is told.

Shapes: T frames of one recording, C channels, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from data.frame import Channel
from forecasting.bundle import BundleError
from forecasting.runtime import LoadedBundle
from forecasting.scans import SCAN_STEPS
from sensors.calibrate import Calibrated, Judgement, Labelled
from sensors.recording import read_recording
from sensors.stream import SensorError
from sensors.teach import Demonstration

if TYPE_CHECKING:
    from data.frame import Dataset
    from data.panel import Series

PARTS = ("train", "validation", "test")


def channels_of(bundle: LoadedBundle) -> list[Channel]:
    """What the bundle reads, in order."""
    return [Channel.from_json(channel) for channel in bundle.channels]


def series_of(bundle: LoadedBundle, dataset: Dataset, part: str) -> list[Series]:
    """The recordings of one part of a data set, with the bundle's classes; of one without parts, all.

    Raises:
        SensorError: the data set has no recording in this part, or is of other channels.
    """
    from data.panel import to_panel

    try:
        bundle.check_channels(dataset.channels)
    except BundleError as error:
        raise SensorError(f"{dataset.name}: {error}") from error
    parts = dataset.splits.entity
    chosen = [s for s in to_panel(dataset, bundle.labels) if parts is None or parts[s.unique_id] == part]
    if not chosen:
        raise SensorError(f"{dataset.name}: has no recording to be the part '{part}'.")
    return chosen


def labelled(bundle: LoadedBundle, panel: Iterable[Series]) -> Iterator[Labelled]:
    """What the bundle says after every frame of each recording, and what is true."""
    for series in panel:
        assert series.target is not None
        yield Labelled(_said(bundle, series.values), series.target)


def strangers(bundle: LoadedBundle, paths: Iterable[Path]) -> Iterator[Labelled]:
    """The same of recordings of the bridge that show none of the bundle's gestures.

    Raises:
        SensorError: one is no recording, or was made of other channels.
    """
    for one in demonstrations(bundle, paths):
        yield Labelled(_said(bundle, one.values), np.full(len(one.values), -1))


def _said(bundle: LoadedBundle, values: NDArray[Any]) -> NDArray[np.float32]:
    """Probabilities (T, K) after each frame (T, C)."""
    x = values.astype(np.float32)[None]
    state, said = bundle.initial_state(1), []
    for begin in range(0, x.shape[1], SCAN_STEPS):
        piece = x[:, begin : begin + SCAN_STEPS]
        probabilities, state = bundle.run_scan(piece, np.isfinite(piece), state)
        said.append(probabilities[0])
    return np.concatenate(said)


def demonstrations(bundle: LoadedBundle, paths: Iterable[Path]) -> list[Demonstration]:
    """Recordings of the bridge (`--record`), each one performance from its first frame to its last.

    Raises:
        SensorError: one is no recording, or was made of other channels.
    """
    found = []
    for path in paths:
        recording = read_recording(path)
        try:
            bundle.check_channels(recording.info.channels)
        except BundleError as error:
            raise SensorError(f"{path}: {error}") from error
        found.append(Demonstration(recording.values))
    return found


def as_toml(found: Calibrated, wanted: float) -> str:
    """The rules as a bridge's table, with what they were measured to do as comments."""
    lines = [f"# chosen for {wanted:.0%} precision: {told(found.judgement)}"]
    if not found.reached:
        lines.append(f"# no rules reach {wanted:.0%} precision; these are the most precise ones")
    lines.append("[recognition.rules]")
    lines += [f"{name} = {round(value, 4)}" for name, value in vars(found.rules).items()]
    return "\n".join(lines)


def told(judgement: Judgement) -> str:
    """One line of figures."""
    low, high = judgement.precision_interval
    line = (
        f"{judgement.decisions} decisions on {judgement.gestures} gestures, precision {judgement.precision:.1%} "
        f"(95 % interval {low:.1%} to {high:.1%}), recall {judgement.recall:.1%}, decided after "
        f"{judgement.earliness:.0%} of a gesture"
    )
    if judgement.rest_minutes:
        line += f", {judgement.false_per_minute:.2f} false activations a minute of rest"
    return line
