"""UC2017 dynamic gestures (DG10): their file, their base frame, and the features of the paper.

Simao, Gibaru & Neto, "Online Recognition of Incomplete Gesture Data to Interface Collaborative Robots", IEEE Trans.
Industrial Electronics 66(12), 9372-9382 (2019), arXiv 2304.06777. A sample is moved into the frame of its first one:
its origin and yaw are removed, while pitch and roll keep where gravity is. Features: CI, the complete gesture
resampled; PV, the principal axis of its frames; PV-TS, the same of the frames so far. CI needs the end of a gesture and
cannot be had online; the axis of fewer than three frames says nothing.

Shapes: T frames of one sample, C channels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from data.frame import ID, TIME, Channel, FrameError

Array = NDArray[np.float64]

CHANNELS = (
    *(Channel(name, "") for name in ("x", "y", "z")),  # the source does not state the unit
    *(Channel(name, "rad") for name in ("yaw", "pitch", "roll")),
    *(Channel(f"g{i:02d}", "") for i in range(1, 23)),
)
PLACE, ANGLES, YAW = slice(0, 3), slice(3, 6), 3
FRAMES = 20  # of CI
LEAST_FRAMES = 3  # of a principal axis


def read_dynamic(path: Path) -> pd.DataFrame:
    """The samples in the long format, each in the frame of its first one: unique_id, ds (frame), label, the channels.

    The file: HDF5 with `Predictors` (frames, 28, samples), zero-padded at the end, `Target` and `User` (1, samples).
    The channels are x y z, yaw pitch roll in degrees, 22 glove sensors.

    Raises:
        FrameError: h5py is not installed, the file is not of this layout, or a sample is empty or not finite.
    """
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise FrameError(f"{path.name}: reading HDF5 needs h5py; install the extra 'robot'.") from error
    try:
        with h5py.File(path, "r") as file:
            missing = [name for name in ("Predictors", "Target", "User") if name not in file]
            if missing:
                raise FrameError(
                    f"{path.name}: no data set {', '.join(missing)}; found {', '.join(file) or 'none'}. Expected the "
                    "layout of DG10: Predictors (frames, 28, samples), Target and User (1, samples)."
                )
            predictors, target, user = (np.asarray(file[name]) for name in ("Predictors", "Target", "User"))
    except OSError as error:
        raise FrameError(f"{path.name}: not a readable HDF5 file ({error}).") from error
    _check(path.name, predictors, target, user)
    counts: dict[int, int] = {}
    tables = []
    for index, (label, person) in enumerate(zip(target.ravel().astype(int), user.ravel().astype(int), strict=True)):
        sample = predictors[:, :, index].astype(np.float64)
        length = frames_of(sample)
        if not length or not np.isfinite(sample).all():
            what = "has no frame but padding" if not length else "has a value that is not finite"
            raise FrameError(f"{path.name}: sample {index + 1} of Predictors (user {person}) {what}.")
        counts[person] = counts.get(person, 0) + 1
        table = pd.DataFrame(in_base_frame(in_radians(sample[:length])), columns=[c.name for c in CHANNELS])
        table.insert(0, ID, f"user_{person}/{counts[person]:03d}")
        table.insert(1, TIME, np.arange(length))
        table.insert(2, "label", str(label))
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def _check(name: str, predictors: NDArray[Any], target: NDArray[Any], user: NDArray[Any]) -> None:
    shape = predictors.shape
    if len(shape) != 3 or shape[1] != len(CHANNELS) or not shape[2]:
        raise FrameError(f"{name}: Predictors is of shape {shape}, expected (frames, {len(CHANNELS)}, samples).")
    for what, numbers in (("Target", target), ("User", user)):
        if numbers.size != shape[2]:
            raise FrameError(f"{name}: {what} has {numbers.size} numbers for {shape[2]} samples of Predictors.")
        if not (np.isfinite(numbers).all() and (numbers == np.rint(numbers)).all()):
            raise FrameError(f"{name}: {what} holds something else than whole numbers.")


def frames_of(sample: Array) -> int:
    """How many frames of a padded sample (T, C) are its own: up to the last that is not all 0.

    A frame of zeros in the midst of a gesture is one.
    """
    return int(np.flatnonzero(sample.any(1)).max(initial=-1)) + 1


def in_radians(sample: Array) -> Array:
    """Angles in degrees as continuous radians: no jump of 2 pi is left."""
    moved = sample.copy()
    moved[:, ANGLES] = np.unwrap(np.deg2rad(sample[:, ANGLES]), axis=0)
    return moved


def in_base_frame(sample: Array) -> Array:
    """(T, 28) with the first frame's origin and yaw removed: p <- Rz(yaw_0)^-1 (p - p_0), yaw <- yaw - yaw_0."""
    moved, yaw = sample.copy(), sample[0, YAW]
    turn = np.array([[np.cos(yaw), -np.sin(yaw), 0.0], [np.sin(yaw), np.cos(yaw), 0.0], [0.0, 0.0, 1.0]])
    moved[:, PLACE] = (sample[:, PLACE] - sample[0, PLACE]) @ turn  # row vectors: p R = R^-1 p
    moved[:, YAW] -= yaw
    return moved


def resampled(sample: Array, frames: int = FRAMES) -> Array:
    """CI: (T, C) -> (frames, C), time normalised to [0, 1], cubic; of less than four frames what those allow."""
    from scipy.interpolate import make_interp_spline

    if len(sample) == 1:
        return np.repeat(sample, frames, 0)
    curve = make_interp_spline(np.linspace(0, 1, len(sample)), sample, k=min(3, len(sample) - 1))
    return curve(np.linspace(0, 1, frames))


def principal_axis(sample: Array) -> Array:
    """PV: (C,) the direction in which the frames (T, C) spread most, its largest component positive.

    Raises:
        ValueError: fewer than three frames.
    """
    if len(sample) < LEAST_FRAMES:
        raise ValueError(f"a principal axis needs {LEAST_FRAMES} frames, got {len(sample)}.")
    return _signed(np.linalg.svd(sample - sample.mean(0), full_matrices=False)[2][0])


def principal_axes(sample: Array) -> Array:
    """PV-TS: (T - 2, C), the principal axis of the frames 0 to j for j = 2 .. T - 1; none looks ahead."""
    if len(sample) < LEAST_FRAMES:
        return np.empty((0, sample.shape[1]))
    return np.stack([principal_axis(sample[: j + 1]) for j in range(LEAST_FRAMES - 1, len(sample))])


def _signed(axis: Array) -> Array:
    return axis * np.sign(axis[np.abs(axis).argmax()])
