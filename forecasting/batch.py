"""Run a plan: every job's forecasts into the store, seen all at once or not at all; a run that was cut off goes on.

A job that fails takes nothing of the others with it. A bundle that streams goes on from the state that the run before
left, so a night costs what is new. What a plan's jobs name as `out` is written after the run is published.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from data.catalog import load
from data.panel import to_panel
from data.store import DONE, Hold, Left, Run, Store, StoreError
from forecasting.inputs import asked_by
from forecasting.plan import Plan, PlannedJob, of_spec
from forecasting.results import write_answer
from forecasting.runtime import LoadedBundle, load_bundle
from forecasting.task import Task
from forecasting.windows import Span

SIGN_S = 20.0  # between two signs of life


def run_plan(plan: Plan, store: Store, say: Callable[[str], object] = lambda text: None) -> Run:
    """Begin a run and carry it through.

    Args:
        say: is told what happens, a line at a time.

    Raises:
        StoreError: another run of the plan goes on, or the store cannot be written.
        ResultError: a file of `out` cannot be written; the run is published then.
    """
    return _go_on(plan, store, store.begin(plan.name, plan.spec, [job.name for job in plan.jobs]), say)


def resume(run: str, store: Store, say: Callable[[str], object] = lambda text: None) -> Run:
    """Do what a run has not done, or what failed in it, by the plan as the run read it; over the data of now.

    Raises:
        StoreError: there is no such run, or it goes on, or what `run_plan` raises.
    """
    plan = of_spec(store.run(run).spec)
    return _go_on(plan, store, store.take_over(run), say)


def _go_on(plan: Plan, store: Store, hold: Hold, say: Callable[[str], object]) -> Run:
    done = {job.name for job in store.run(hold.run).jobs if job.status == DONE}
    say(f"run {hold.run}")
    try:
        with _signs_of_life(store, hold):
            for job in plan.jobs:
                if job.name not in done:
                    _do(plan, job, store, hold, say)
            run = store.publish(hold, plan.keep)
    except KeyboardInterrupt:
        store.interrupt(hold)
        say(f"interrupted: mnemo batch resume {hold.run}")
        raise
    for job in plan.jobs:
        if job.out is not None and any(each.published for each in run.jobs if each.name == job.name):
            write_answer(store.forecasts(run.id, job.name), Path(job.out))
    return run


def _do(plan: Plan, job: PlannedJob, store: Store, hold: Hold, say: Callable[[str], object]) -> None:
    """One job, into the store: what it gave, or why it gave nothing."""
    began = time.perf_counter()
    before = store.state(plan.name, job.name) if job.carry else None
    try:
        answer, state, summary = _answer(job, store.url, before)
    except Exception as error:  # of one job; the others are none the worse for it
        text = " ".join(str(error).split())
        kind = "" if isinstance(error, (ValueError, OSError)) else f"unexpected {type(error).__name__}: "
        store.fail(hold, job.name, f"{kind}{text[:2000]}")
        say(f"error: {job.name}: {kind}{text}")
        return
    summary["seconds"] = round(time.perf_counter() - began, 3)
    store.keep(hold, job.name, answer, state, summary)
    say(f"{job.name}: {summary['series']} series, {len(answer)} rows, {summary['from']}, {summary['seconds']} s")
    for note in summary["notes"]:
        say(f"note: {job.name}: {note}")
    for why in summary["failures"].values():
        say(f"error: {job.name}: {why}")
    if summary["substitutes"]:
        name, one = next(iter(summary["substitutes"].items()))
        say(
            f"note: {job.name}: {len(summary['substitutes'])} of {summary['series']} series are forecast by a "
            f"substitute, first {name} by {one['substitute']}: {one['reason']}"
        )


def _answer(job: PlannedJob, url: str, before: Left | None) -> tuple[pd.DataFrame, Left | None, dict[str, Any]]:
    """What a job forecasts, the state after it where there is one, and what is to be known of it."""
    notes: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        if job.bundle is not None:
            loaded = load_bundle(job.bundle)
        else:
            loaded = _fitted_in_the_run(job, url, Path(folder) / "bundle")
        dataset = load(job.data, **(job.columns | asked_by(loaded)), store=url)
        notes += dataset.notes
        streams, bundle, state = loaded.streams and job.carry, _digest(loaded), None
        if not streams:
            began = "on the whole history"
        elif before is None:
            began = "from the initial state"
        elif before.bundle != bundle:
            began = "from the initial state"
            notes.append(f"{job.bundle} is another bundle than in the run before, whose state is not for it.")
        else:
            began, state = "from the state of the run before", before.content
        after = Path(folder) / "state.npz" if streams else None
        answer = loaded.forecast(dataset, state=state, save_state=after, adapt=job.adapt)
        left = None if after is None else Left(after.read_bytes(), bundle)
    told = set(answer["unique_id"])
    summary = {
        "series": len(told),
        "model": loaded.name,
        "from": began,
        "notes": [*notes, *loaded.notes],
        "failures": dict(loaded.failures),
        "substitutes": {name: one for name, one in loaded.substitutes.items() if name in told},
    }
    return answer, left, summary


def _digest(loaded: LoadedBundle) -> str:
    """Of all files: a model that was fitted to each series anew has the same graph, and its state other parameters."""
    return hashlib.sha256(json.dumps(loaded.card.get("sha256"), sort_keys=True).encode()).hexdigest()


def _fitted_in_the_run(job: PlannedJob, url: str, place: Path) -> LoadedBundle:
    """The bundle of a refit model, which is its spec and, of a classifier, what it learns from."""
    from forecasting.refit import RefitModel
    from forecasting.refit_bundle import export_refit

    assert job.model is not None
    asked: dict[str, Any] = {"task": "classify"} if job.learn else {}
    learned = load(job.learn or job.data, **job.columns, **asked, store=url)
    task = Task.of(learned, horizon=job.horizon, season=job.season)
    model = RefitModel(job.model, task, job.set)
    spans = [Span(series, 0, len(series.ds)) for series in to_panel(learned)] if job.learn else []
    export_refit(model, place, training={"data_set": learned.name}, metrics=[], recordings=spans)
    return load_bundle(place)


@contextmanager
def _signs_of_life(store: Store, hold: Hold) -> Iterator[None]:
    """Give them from a thread of their own, for a job may take hours."""
    over = threading.Event()

    def give() -> None:
        while not over.wait(SIGN_S):
            try:
                store.beat(hold)
            except StoreError:
                continue  # whatever it is, the next thing that is kept meets it too, and ends the run

    thread = threading.Thread(target=give, name="signs of life", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
