"""What keeps a loop's rhythm: cores of their own that do not sleep, a short switch of threads, a small garbage heap.

What was made before the loop begins is frozen out of the garbage collector, which then has little to look at; how long
it paused all the same is measured, never assumed.
"""

from __future__ import annotations

import gc
import os
import struct
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sensors.stream import SensorError
from sensors.telemetry import Durations

LATENCY = Path("/dev/cpu_dma_latency")
SWITCH = 5e-4  # s after which a thread that computes in Python has to let another one in; Python's own is 5e-3


def pin(core: int, thread: int | None = None) -> None:
    """Keep a thread on one core: the calling one, or that of the system's number.

    Raises:
        SensorError: this process may not use that core.
    """
    allowed = sorted(os.sched_getaffinity(0))
    try:
        os.sched_setaffinity(threading.get_native_id() if thread is None else thread, {core})
    except OSError as error:
        raise SensorError(f"core {core} cannot be had; this process may use {allowed}.") from error


def default_cores() -> tuple[int, int]:
    """One for the frames, another one, where there is one, for the robot."""
    allowed: Sequence[int] = sorted(os.sched_getaffinity(0))
    return allowed[0], allowed[-1]


@contextmanager
def awake() -> Iterator[bool]:
    """Keep idle cores from sleeping while it lasts, where this process may: to wake up takes longer than a step.

    The system's quality of service (Linux, Documentation/power/pm_qos_interface) holds for as long as its file is open,
    and for all cores, which use more power meanwhile. Gives whether it was granted.
    """
    try:
        file = LATENCY.open("r+b", buffering=0)  # which makes no file where there is none
    except OSError:
        yield False
        return
    with file:
        file.write(struct.pack("i", 0))  # microseconds that a core may take to wake up
        yield True


@contextmanager
def steady() -> Iterator[Durations]:
    """Gives the pauses of the garbage collector while it lasts."""
    pauses = Durations()
    began = 0.0

    def watch(phase: str, _: dict[str, int]) -> None:
        nonlocal began
        if phase == "start":
            began = time.perf_counter()
        else:
            pauses.add(time.perf_counter() - began)

    before = sys.getswitchinterval()
    gc.collect()
    gc.freeze()
    gc.callbacks.append(watch)
    sys.setswitchinterval(SWITCH)
    try:
        yield pauses
    finally:
        sys.setswitchinterval(before)
        gc.callbacks.remove(watch)
        gc.unfreeze()
