"""What a bundle says of labelled recordings, to choose rules by and to teach from; and how that is told.

Shapes: T frames of one recording, C channels, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from forecasting.bundle import BundleError
from forecasting.runtime import LoadedBundle
from forecasting.scans import SCAN_STEPS
from sensors.calibrate import Calibrated, Judgement, Labelled
from sensors.recogniser import Memory
from sensors.recording import read_recording
from sensors.stream import SensorError
from sensors.teach import Demonstration

if TYPE_CHECKING:
    from data.frame import Dataset
    from data.panel import Series

PARTS = ("train", "validation", "test")


def series_of(bundle: LoadedBundle, dataset: Dataset, part: str, labels: Sequence[str] | None = None) -> list[Series]:
    """The recordings of one part of a data set, with the bundle's classes or `labels`; of one without parts, all.

    Raises:
        SensorError: the data set has no recording in this part, or is of other channels.
    """
    from data.panel import to_panel

    try:
        bundle.check_channels(dataset.channels)
    except BundleError as error:
        raise SensorError(f"{dataset.name}: {error}") from error
    parts = dataset.splits.entity
    chosen = [s for s in to_panel(dataset, labels or bundle.labels) if parts is None or parts[s.unique_id] == part]
    if not chosen:
        raise SensorError(f"{dataset.name}: has no recording to be the part '{part}'.")
    return chosen


def check_unlearned(bundle: LoadedBundle, dataset: Dataset, part: str) -> None:
    """Rules of a part that the model knows by heart would be of decisions surer than it makes on anything new.

    Raises:
        SensorError: the bundle learned from the validation part of this data set too (`learn_validation`).
    """
    learned = bundle.card["config"].get("learn_validation") and bundle.card["training"]["data_set"] == dataset.name
    if learned and part == "validation" and dataset.splits.entity is not None:
        raise SensorError(
            f"{bundle.path}: it learned from the validation part of {dataset.name} (learn_validation), so no rules can "
            "be chosen or judged there. Train the same without learn_validation, calibrate that bundle, and take its "
            "rules for this one."
        )


def labelled(bundle: LoadedBundle, panel: Iterable[Series], memory: Memory | None = None) -> Iterator[Labelled]:
    """What the bundle, with what it was taught, says after every frame of each recording, and what is true."""
    for series in panel:
        assert series.target is not None
        yield Labelled(_said(bundle, series.values, memory), series.target)


def strangers(bundle: LoadedBundle, paths: Iterable[Path], memory: Memory | None = None) -> Iterator[Labelled]:
    """The same of recordings of the bridge that show none of the gestures.

    Raises:
        SensorError: one is no recording, or was made of other channels.
    """
    for one in demonstrations(bundle, paths):
        yield Labelled(_said(bundle, one.values, memory), np.full(len(one.values), -1))


def _said(bundle: LoadedBundle, values: NDArray[Any], memory: Memory | None) -> NDArray[np.float32]:
    """Probabilities (T, K) after each frame (T, C); (T, K + N) with a memory, which needs the state after each."""
    x = values.astype(np.float32)[None]
    if memory is not None:
        stream = bundle.stream()
        answers = [memory.answer(stream.step(x[:, t])[0], stream.state) for t in range(x.shape[1])]
        return np.array(answers, np.float32)
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


RULES_ALONE = (
    "as the rules alone decide; a bridge's map that asks for a confidence, dwell_s or release_s of its own acts later "
    "and less often: --config BRIDGE judges what passes it"
)


def as_toml(found: Calibrated, wanted: float, judged: str = RULES_ALONE) -> str:
    """The rules as a bridge's table, with what they were measured to do as comments; `judged` says how."""
    lines = [f"# chosen for {wanted:.0%} precision: {told(found.judgement)}", f"# {judged}"]
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
