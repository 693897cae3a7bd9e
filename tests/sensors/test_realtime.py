"""The loop's thread stays on its core, and pauses of the garbage collector are seen."""

import gc
import os
import sys
import threading
from pathlib import Path

import pytest

from sensors import realtime
from sensors.realtime import awake, default_cores, pin, steady
from sensors.stream import SensorError


def test_a_pinned_thread_runs_on_its_core_and_leaves_others_alone() -> None:
    found: list[set[int]] = []
    core = default_cores()[1]

    def run() -> None:
        pin(core)
        found.append(os.sched_getaffinity(threading.get_native_id()))

    before = os.sched_getaffinity(0)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [{core}]
    assert os.sched_getaffinity(0) == before


def test_a_core_that_is_not_there_is_refused_by_name() -> None:
    with pytest.raises(SensorError, match="core 1000"):
        pin(1000)


def test_pauses_of_the_collector_are_measured_and_everything_is_as_before_afterwards() -> None:
    interval, callbacks = sys.getswitchinterval(), list(gc.callbacks)
    with steady() as pauses:
        frozen = gc.get_freeze_count()
        gc.collect()
    assert frozen > 0
    assert pauses.count == 1
    assert pauses.longest > 0
    assert (sys.getswitchinterval(), gc.callbacks) == (interval, callbacks)


def test_cores_are_asked_to_stay_awake_while_it_lasts_where_that_is_granted(tmp_path, monkeypatch) -> None:
    file = tmp_path / "latency"
    monkeypatch.setattr(realtime, "LATENCY", file)
    with awake() as granted:
        assert not granted
    assert not file.exists()  # a system without it, on which root could make a file of that name
    file.touch()
    with awake() as granted:
        held = [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink() and link.exists()]
        assert granted
        assert str(file) in held
        assert file.read_bytes() == bytes(4)
