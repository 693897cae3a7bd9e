"""What keeps a loop's rhythm in one process: cores of their own, a short switch of threads, a small garbage heap.

What was made before the loop begins is frozen out of the garbage collector, which then has little to look at; how long
it paused all the same is measured, never assumed.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from sensors.stream import SensorError
from sensors.telemetry import Durations

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
