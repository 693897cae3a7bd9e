"""How a bundle's graphs are opened: an onnxruntime session on the execution provider that was asked for, or an error;
and the types and the form in which values enter one. What the graphs are for is `forecasting.runtime`'s to know."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from forecasting.bundle import BundleError

Array = NDArray[Any]
State = dict[str, Array]
Inside = dict[str, Array]

CPU = "CPUExecutionProvider"
SHORT_NAMES = {"cpu": CPU, "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}


def check_providers(asked: Sequence[str] | None) -> list[str]:
    """The full names of the providers asked for; those of a build without the device do not count as here."""
    wanted = [asked] if isinstance(asked, str) else list(asked or [CPU])
    names = [SHORT_NAMES.get(name.lower(), name) for name in wanted]
    here = {device.ep_name for device in onnxruntime.get_ep_devices()} | {CPU}
    absent = [name for name in names if name not in here]
    if absent:
        raise BundleError(
            f"the execution provider {', '.join(absent)} is not on this machine; here: {', '.join(sorted(here))}. "
            "For an NVIDIA GPU install the extra `gpu` instead of `cpu`."
        )
    return names


def open_graph(content: bytes, where: Path, providers: Sequence[str], threads: int) -> onnxruntime.InferenceSession:
    """A session of one graph, `where` it was read from.

    Raises:
        BundleError: the graph cannot be loaded, or the first provider did not start.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors; what matters is raised
    try:
        session = onnxruntime.InferenceSession(content, options, providers=providers)
    except Exception as error:  # onnxruntime's own exceptions share no base
        raise BundleError(f"{where}: onnxruntime cannot load the graph ({error}).") from error
    if session.get_providers()[0] != providers[0]:
        raise BundleError(
            f"{where}: {providers[0]} was asked for and did not start; "
            f"{session.get_providers()[0]} would run. Check its driver and libraries, or ask for 'cpu'."
        )
    return session


def as_float32(numbers: Array) -> Array:
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and so a missing value
        return numbers.astype(np.float32, copy=False)


def as_input(values: Array) -> tuple[Array, Array]:
    """Values with NaN where missing as x and mask."""
    x = as_float32(values)
    return x, np.isfinite(x).astype(np.float32)
