"""Observations in a store, two thousand daily series of two years, beside the same table as one Parquet file.

A file holds what is known now alone; the store holds what was known at any time. Rows: the whole history into a new
store; the same once more, which changes nothing; a new day of every series, given alone; a correction of that day; what
is known now, and what was known before the correction, read. Beside them the file: written with the history, written
anew with the day (it cannot be added to), read. With SQLite in a file, and with PostgreSQL on this machine where it is
installed. Seconds, medians over the repeats, each with a store of its own; then the size.

    .venv/bin/python tests/benchmarks/bench_store.py [--series 2000] [--days 730] [--repeats 3]
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import pandas as pd

from data.observations import as_of, record
from data.store import Store
from tests.benchmarks.bench_batch import series
from tests.benchmarks.figures import machine, table
from tests.postgres import server


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def of_store(url: str, frame: pd.DataFrame, night: pd.DataFrame) -> Iterator[tuple[str, float]]:
    store = Store(url)
    yield "history in", timed(lambda: record(store, frame))
    yield "history once more", timed(lambda: record(store, frame))
    yield "a new day in", timed(lambda: record(store, night))
    before = datetime.now(UTC)
    yield "a correction of it in", timed(lambda: record(store, night.assign(y=night["y"] + 1)))
    found = [pd.DataFrame(), pd.DataFrame()]
    yield "known now, read", timed(lambda: found.__setitem__(0, as_of(store)))
    yield "known before, read", timed(lambda: found.__setitem__(1, as_of(store, before)))
    assert len(found[0]) == len(found[1]) == len(frame) + len(night)
    assert np.isclose((found[0]["y"] - found[1]["y"]).sum(), len(night))
    store.close()


def of_file(path: Path, frame: pd.DataFrame, night: pd.DataFrame) -> Iterator[tuple[str, float]]:
    whole = pd.concat([frame, night]).sort_values(["unique_id", "ds"], ignore_index=True)
    yield "history in", timed(lambda: frame.to_parquet(path, index=False))
    yield "a new day in", timed(lambda: whole.to_parquet(path, index=False))
    yield "known now, read", timed(lambda: pd.read_parquet(path))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--series", type=int, default=2000)
    options.add_argument("--days", type=int, default=730)
    options.add_argument("--repeats", type=int, default=3)
    chosen = options.parse_args()
    print(f"{machine()}; {chosen.series} series, {chosen.days} days, medians of {chosen.repeats}")
    whole = series(chosen.series, chosen.days + 1)
    last = whole["ds"] == whole["ds"].max()
    frame, night = whole[~last].reset_index(drop=True), whole[last].reset_index(drop=True)
    found: dict[str, dict[str, list[float]]] = {}

    def keep(kind: str, spent: Iterator[tuple[str, float]]) -> None:
        for what, seconds in spent:
            found.setdefault(what, {}).setdefault(kind, []).append(seconds)

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        postgres = bool(shutil.which("pg_ctlcluster") or shutil.which("pg_ctl"))
        if not postgres:
            print("left out, for it is not installed: PostgreSQL")
        for _ in range(chosen.repeats):
            (folder / "store.db").unlink(missing_ok=True)
            keep("SQLite", of_store(f"sqlite:///{folder / 'store.db'}", frame, night))
            keep("Parquet", of_file(folder / "file.parquet", frame, night))
            if postgres:
                with server() as url:
                    keep("PostgreSQL", of_store(url, frame, night))
        sizes = {kind: (folder / file).stat().st_size for kind, file in FILES.items()}
    columns = ["SQLite", *(["PostgreSQL"] if postgres else []), "Parquet"]
    table(
        ["seconds", *columns],
        [[what, *(f"{np.median(each[kind]):.3g}" if kind in each else "" for kind in columns)]
         for what, each in found.items()],
    )  # fmt: skip
    print(", ".join(f"{kind} {size / 1e6:.0f} MB" for kind, size in sizes.items()))


FILES = {"SQLite": "store.db", "Parquet": "file.parquet"}


if __name__ == "__main__":
    main()
