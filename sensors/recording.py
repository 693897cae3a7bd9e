"""A live stream kept as Parquet, so that a crash costs its last second at most.

While it runs, `NAME.parquet.segments/` gets one whole Parquet file each FLUSH_S, written beside and renamed. At the
end they are merged to `NAME.parquet`; after a crash `merge_segments` does that, and `read_recording` reads them as they
are.

Columns: `unique_id` (the stream's id), `ds` (s, the source's clock; null where it has none), `received` (s, the
monotonic clock of the machine that recorded), then the channels as float32, null where not observed. The schema's
metadata hold the channels with units and limits, the nominal rate, and both clocks of this machine at the start.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data.frame import ID, TIME, Channel
from forecasting.writing import replacing
from sensors.ending import until_told
from sensors.stream import Frame, SensorError, Source, StreamInfo

FLUSH_S = 0.5
METADATA = b"mnemosyne.stream"
RECEIVED = "received"
MOST_UNWRITTEN = 100_000  # frames; the disk cannot follow
ROW_GROUP = 65_536  # rows, of a merged recording


@dataclass(frozen=True)
class Recording:
    """Frames that were. N frames, C channels."""

    info: StreamInfo
    times: NDArray[np.float64]  # (N,) s, the source's clock; NaN where it had none
    pace: NDArray[np.float64]  # (N,) s, when each was there, counted from the first; never falls
    values: NDArray[np.float32]  # (N, C), NaN where not observed


class Recorder:
    """`with Recorder(path, info) as recorder: recorder.append(frame)`; a thread of its own writes.

    Raises:
        SensorError: there is a recording of this name already, or its folder cannot be written.
    """

    def __init__(self, path: Path, info: StreamInfo) -> None:
        self.path = path
        self.info = info
        self._frames: deque[Frame] = deque()
        self._written = 0
        self._held = contextlib.ExitStack()
        self._stop = threading.Event()
        self._problem: Exception | None = None
        self._thread = threading.Thread(target=self._run, name=f"record {path.name}", daemon=True)

    def start(self) -> None:
        if self.path.suffix != ".parquet":
            raise SensorError(f"{self.path}: a recording's name ends with .parquet.")
        names = [ID, TIME, RECEIVED, *(channel.name for channel in self.info.channels)]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise SensorError(f"{self.path}: two columns would have the name {twice[0]}; rename the channel.")
        if self.path.exists():
            raise SensorError(f"{self.path} is there already: name another file, or move it away.")
        folder = segments_folder(self.path)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SensorError(f"{self.path}: cannot be written here ({error.strerror}).") from error
        with contextlib.ExitStack() as held:
            held.enter_context(_held(self.path))
            if any(folder.glob("*.parquet")):
                raise SensorError(
                    f"{folder} is there already, of a recording that broke off: merge it (python -m sensors.recording "
                    f"{self.path}), or name another file."
                )
            self._schema = _schema(self.info)
            self._thread.start()
            self._held = held.pop_all()

    def append(self, frame: Frame) -> None:
        """Hand a frame to the writer; takes no time worth naming.

        Raises:
            SensorError: earlier frames could not be written.
        """
        if self._problem is not None:
            raise SensorError(f"{self.path}: cannot be written any more ({self._problem}).") from self._problem
        if len(self._frames) >= MOST_UNWRITTEN:
            raise SensorError(f"{self.path}: {MOST_UNWRITTEN} frames wait to be written; the disk cannot follow.")
        self._frames.append(frame)

    def finish(self) -> Path:
        """Write what is left and merge the segments; safe to call twice."""
        if self._thread.is_alive():
            self._stop.set()
            self._thread.join()
        self._held.close()
        if self._problem is not None:
            raise SensorError(
                f"{self.path}: could not be written ({self._problem}); what was, is in {segments_folder(self.path)}."
            ) from self._problem
        if not self.path.exists():
            if self._written == 0:
                _write_segment(self.path, 0, _table(self._schema, []))
            merge_segments(self.path)
        return self.path

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish()

    def _run(self) -> None:
        try:
            while not self._stop.wait(FLUSH_S):
                self._flush()
            self._flush()
        except Exception as error:  # told to whoever appends or finishes
            self._problem = error

    def _flush(self) -> None:
        frames = [self._frames.popleft() for _ in range(len(self._frames))]
        if frames:
            _write_segment(self.path, self._written, _table(self._schema, frames))
            self._written += 1


async def record(source: Source, path: Path, seconds: float | None = None) -> int:
    """Keep a source's frames until it ends, for so many seconds, or until SIGINT or SIGTERM; gives their number.

    Raises:
        SensorError: it cannot be connected or is lost, or the recording cannot be written; what came is kept.
    """
    count = 0

    async def keep() -> None:
        nonlocal count
        async for frame in source:
            recorder.append(frame)
            count += 1

    async with source:  # first, so that one that is not there leaves no empty recording
        with Recorder(path, source.info) as recorder:
            await until_told(keep(), seconds)
    return count


def segments_folder(path: Path) -> Path:
    return path.with_name(path.name + ".segments")


def merge_segments(path: Path) -> Path:
    """Make one Parquet file of a recording's segments, and remove them.

    Raises:
        SensorError: there are none, one cannot be read, or the recording still runs.
    """
    folder = segments_folder(path)
    if path.exists():
        if not folder.exists():
            raise SensorError(f"{path}: is whole, for no segments of it are left; there is nothing to merge.")
        raise SensorError(f"{path} is there already: move it away before {folder} is merged.")
    files = _segments(path)
    with _held(path):
        with replacing(path) as part, pq.ParquetWriter(part, _read(files[0]).schema) as writer:
            for table in _batches(files):
                writer.write_table(table)
        shutil.rmtree(folder)
    return path


def is_recording(path: Path) -> bool:
    """Whether a `Recorder` wrote this, whole or still in segments."""
    if path.is_file():
        with contextlib.suppress(pa.ArrowInvalid, OSError):
            return METADATA in (pq.read_schema(path).metadata or {})
        return False
    return segments_folder(path).is_dir()


def read_recording(path: Path) -> Recording:
    """A whole recording, or what there is of one that broke off.

    Raises:
        SensorError: it is not there, was not written by a `Recorder`, or holds no frame.
    """
    files = [path] if path.is_file() else _segments(path)
    table = pa.concat_tables([_read(file) for file in files])
    info = _info(table.schema, path)
    if table.num_rows == 0:
        raise SensorError(f"{path}: holds no frame.")
    received = table[RECEIVED].to_numpy()
    columns = [table[channel.name].to_numpy() for channel in info.channels]  # null becomes NaN
    return Recording(info, table[TIME].to_numpy(), received - received[0], np.stack(columns, 1).astype(np.float32))


def _schema(info: StreamInfo) -> pa.Schema:
    described = {
        "version": 1,
        "stream_id": info.stream_id,
        "rate_hz": info.rate_hz,
        "channels": [channel.to_json() for channel in info.channels],
        "started": datetime.now(UTC).isoformat(),
        "started_monotonic": time.monotonic(),
    }
    fields = [(ID, pa.string()), (TIME, pa.float64()), (RECEIVED, pa.float64())]
    return pa.schema(
        [*fields, *((channel.name, pa.float32()) for channel in info.channels)],
        metadata={METADATA: json.dumps(described).encode()},
    )


def _info(schema: pa.Schema, path: Path) -> StreamInfo:
    try:
        described: dict[str, Any] = json.loads((schema.metadata or {})[METADATA])
        channels = tuple(Channel.from_json(channel) for channel in described["channels"])
        return StreamInfo(described["stream_id"], channels, float(described["rate_hz"]))
    except (KeyError, TypeError, ValueError) as error:
        raise SensorError(f"{path}: its metadata are not those of a recording ({error!r}).") from error


def _table(schema: pa.Schema, frames: list[Frame]) -> pa.Table:
    count, channels = len(frames), len(schema) - 3
    values = np.array([frame.values for frame in frames], np.float32).reshape(count, channels)
    missing = ~np.array([frame.mask for frame in frames], bool).reshape(count, channels)
    times = np.array([frame.time for frame in frames], np.float64)
    columns = [
        pa.array([frame.stream_id for frame in frames], pa.string()),
        pa.array(times, mask=np.isnan(times)),
        pa.array(np.array([frame.received for frame in frames], np.float64)),
        *(pa.array(values[:, index], mask=missing[:, index]) for index in range(channels)),
    ]
    return pa.table(columns, schema=schema)


def _write_segment(path: Path, number: int, table: pa.Table) -> None:
    with replacing(segments_folder(path) / f"{number:08d}.parquet") as part:
        pq.write_table(table, part)


@contextlib.contextmanager
def _held(path: Path) -> Iterator[None]:
    """A recording's segments are one's alone, whoever writes or merges them; a process that dies lets go of them."""
    folder = os.open(segments_folder(path), os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SensorError(f"{path}: is being recorded or merged; wait until that ends.") from error
        yield
    finally:
        os.close(folder)


def _segments(path: Path) -> list[Path]:
    files = sorted(segments_folder(path).glob("*.parquet"))
    if not files:
        raise SensorError(f"{path}: no recording of this name, and no segments of one beside it.")
    return files


def _read(file: Path) -> pa.Table:
    try:
        with pq.ParquetFile(file) as opened:  # there are many small ones, and read_table is slow to start
            return opened.read(use_threads=False)
    except (pa.ArrowInvalid, OSError) as error:
        raise SensorError(f"{file}: cannot be read ({error}). Move it away to go on without it.") from error


def _batches(files: list[Path]) -> Iterator[pa.Table]:
    held: list[pa.Table] = []
    for file in files:
        held.append(_read(file))
        if sum(table.num_rows for table in held) >= ROW_GROUP:
            yield pa.concat_tables(held).combine_chunks()
            held = []
    if held:
        yield pa.concat_tables(held).combine_chunks()


def main(arguments: list[str]) -> None:
    if len(arguments) != 1:
        sys.exit("python -m sensors.recording NAME.parquet: merges the segments of a recording that broke off")
    try:
        path = merge_segments(Path(arguments[0]))
    except SensorError as error:
        sys.exit(str(error))
    print(f"wrote {path}")  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1:])
