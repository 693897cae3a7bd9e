"""A night of `mnemo batch`: two thousand daily series, one new day each, a ridge's bundle, two weeks ahead.

Rows: the first run, which steps the whole history; a night that goes on from the state and is given the new day alone;
and the same night without the state (`carry = false`), which steps the whole history again. Seconds are of a whole run,
from the plan to the published forecasts; `store` is the part that keeps them there and reads them again. With SQLite in
a file, and with PostgreSQL on this machine where it is installed. Medians over the repeats, each with a store of its
own.

    .venv/bin/python tests/benchmarks/bench_batch.py [--series 2000] [--days 730] [--repeats 3]
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd

from data.readers import read_source
from data.store import Store
from forecasting.batch import run_plan
from forecasting.pipeline import train_bundle
from forecasting.plan import read_plan
from forecasting.task import Task
from tests.benchmarks.figures import machine, table
from tests.postgres import server

HORIZON = 14
PLAN = """
[[job]]
name = "shops"
data = "{data}"
bundle = "bundle"
carry = {carry}
"""


def series(count: int, days: int) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    week = 10 * np.sin(2 * np.pi * np.arange(days) / 7)
    y = 100 + week + rng.normal(size=(count, days)).cumsum(1)
    names = np.repeat([f"s{number:05}" for number in range(count)], days)
    ds = np.tile(pd.date_range("2024-01-01", periods=days), count)
    return pd.DataFrame({"unique_id": names, "ds": ds, "y": y.ravel()})


def prepare(folder: Path, count: int, days: int) -> None:
    """The bundle, and the data before the night, after it, and of the new day alone."""
    frame = series(count, days + 1)
    last = frame["ds"].max()
    frame[frame["ds"] < last].to_parquet(folder / "before.parquet", index=False)
    frame.to_parquet(folder / "after.parquet", index=False)
    frame[frame["ds"] == last].to_parquet(folder / "night.parquet", index=False)
    some = frame[frame["unique_id"] < "s00200"]
    some.to_parquet(folder / "some.parquet", index=False)
    dataset = read_source(folder / "some.parquet")
    train_bundle(dataset, "ridge", Task.of(dataset, horizon=HORIZON), folder / "bundle", settings={"lags": "28"})


def run(folder: Path, store: Store, data: str, carry: bool) -> float:
    place = folder / "nightly.toml"
    place.write_text(PLAN.format(data=data, carry=str(carry).lower()))
    began = time.perf_counter()
    done = run_plan(read_plan(place), store)
    spent = time.perf_counter() - began
    assert done.status == "done", done
    return spent


def nights(folder: Path, url: str) -> Iterator[tuple[str, float]]:
    store = Store(url)
    yield "first run, the whole history", run(folder, store, "before.parquet", True)
    yield "a night, given the new day", run(folder, store, "night.parquet", True)
    answer = store.latest("nightly", "shops")
    yield "a night without the state", run(folder, store, "after.parquet", False)
    again = store.latest("nightly", "shops")
    assert answer is not None
    assert again is not None
    apart = float((answer["mean"] - again["mean"]).abs().max())
    yield "  these two differ by at most (not seconds)", apart
    hold = store.begin("alone", {}, ["shops"])
    began = time.perf_counter()
    store.keep(hold, "shops", answer, None, {})
    yield "store: keep", time.perf_counter() - began
    began = time.perf_counter()
    store.publish(hold)
    yield "store: publish", time.perf_counter() - began
    began = time.perf_counter()
    store.latest("alone", "shops")
    yield "store: read", time.perf_counter() - began
    store.close()


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--series", type=int, default=2000)
    options.add_argument("--days", type=int, default=730)
    options.add_argument("--repeats", type=int, default=3)
    chosen = options.parse_args()
    print(f"{machine()}; {chosen.series} series, {chosen.days} days, {HORIZON} ahead, medians of {chosen.repeats}")
    found: dict[str, dict[str, list[float]]] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        prepare(folder, chosen.series, chosen.days)
        postgres = bool(shutil.which("pg_ctlcluster") or shutil.which("pg_ctl"))
        if not postgres:
            print("left out, for it is not installed: PostgreSQL")
        for repeat in range(chosen.repeats):
            for what, spent in nights(folder, f"sqlite:///{folder / f'{repeat}.db'}"):
                found.setdefault(what, {}).setdefault("SQLite", []).append(spent)
            if postgres:
                with server() as url:
                    for what, spent in nights(folder, url):
                        found.setdefault(what, {}).setdefault("PostgreSQL", []).append(spent)
    columns = ["SQLite", "PostgreSQL"][: 1 + postgres]
    table(
        ["seconds", *columns],
        [[what, *(f"{np.median(each[column]):.3g}" for column in columns)] for what, each in found.items()],
    )


if __name__ == "__main__":
    main()
