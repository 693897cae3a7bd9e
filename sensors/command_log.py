"""What a robot was really told, one JSON object a line, written beside the control loop and never in its way.

The loop leaves records in a bounded room; a thread writes them and flushes them to the disk some twenty times a second,
so that a crash of the process loses what was left after the last time, and at worst cuts the last line in two. What
finds no room is dropped, counted, and the count is written.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any, Self, TextIO

import numpy as np

from sensors.stream import SensorError

Record = dict[str, Any]
"""`what` says which kind; times are of this machine's monotonic clock, in s."""

FLUSH_S = 0.05


class CommandLog:
    """`with CommandLog(path) as log: log.write({"what": ...})`; a log that exists is continued."""

    def __init__(self, path: Path, room: int = 20_000) -> None:
        self.path = path
        self.dropped = 0
        self.failure: str | None = None  # why nothing is written any more
        self._room = room
        self._waiting: deque[Record] = deque()
        self._file: TextIO | None = None
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()

    def open(self) -> None:
        """
        Raises:
            SensorError: the file cannot be written.
        """
        try:
            torn = self.path.exists() and _last_byte(self.path) not in (b"", b"\n")
            self._file = self.path.open("a", encoding="utf-8")
        except OSError as error:
            raise SensorError(
                f"{self.path}: the log of commands cannot be written ({error}); name a file that can be."
            ) from error
        if torn:
            self._file.write("\n")
        self._closing.clear()
        # What places the monotonic times of the records on the calendar.
        self.write({"what": "open", "time": time.monotonic(), "wall": time.time(), "process": os.getpid()})
        thread = threading.Thread(target=self._run, name="command log", daemon=True)
        thread.start()
        self._thread = thread

    def close(self) -> None:
        """Write what waits; safe to call twice."""
        if self._thread is not None:
            self._closing.set()
            self._thread.join()
            self._thread = None
        if self._file is not None:
            try:
                self._file.close()
            except OSError as error:  # of what a full disk did not take before, and still does not
                self.failure = self.failure or f"{self.path}: {error}"
            self._file = None

    def write(self, record: Record) -> None:
        """Leave a record to be written; from one thread, or a few, and without waiting."""
        if len(self._waiting) >= self._room or self.failure is not None:
            self.dropped += 1
        else:
            self._waiting.append(record)

    def _run(self) -> None:
        told = 0
        while True:
            last = self._closing.wait(FLUSH_S)
            if self.dropped > told:
                told = self.dropped
                self._waiting.append({"what": "dropped", "time": time.monotonic(), "count": told})
            try:
                self._flush()
            except Exception as error:  # whatever it is, nothing is logged from here on, and the robot stops for that
                self.failure = f"{self.path}: {error}"
                return
            if last:
                return

    def _flush(self) -> None:
        assert self._file is not None
        if not self._waiting:
            return
        while self._waiting:
            self._file.write(json.dumps(self._waiting.popleft(), default=_plain, separators=(",", ":")) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _last_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
        return file.read(1)


def read_log(path: Path) -> list[Record]:
    """All records; a line that a crash cut in two, the last one of a run, is left out.

    Raises:
        SensorError: another line is not a record.
    """
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    records: list[Record] = []
    broken: int | None = None
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            record = json.loads(line)
            what = record["what"]
        except (ValueError, TypeError, KeyError):
            what = None
        if broken is not None and what != "open":
            raise SensorError(f"{path}: line {broken} is not a record of a bridge's log, which is JSON with `what`.")
        broken = number if what is None else None
        if what is not None:
            records.append(record)
    return records


def _plain(value: object) -> object:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return str(value)
