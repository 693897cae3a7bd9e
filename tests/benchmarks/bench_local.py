"""Local models: equal to the library that fitted them, how fast they are fitted, and what a new observation costs.

    MNEMO_DATA_DIR=... python -m tests.benchmarks.bench_local [equal] [fit] [update] [settle]
        [--models ets,arima,theta,ces] [--sets m4/hourly,tourism/monthly,tourism/yearly,m3/monthly]
        [--every N] [--first K] [--repeats N]

equal: on every N-th series of each set from the K-th on, from 0, in float64: the largest difference of the point
    forecast and of the bounds of the 80 and 95 % intervals, relative to the series' largest bound, at the fit's end and
    after further points, against the library's own filter with the fitted parameters (`local_peers.py`). Of M4 hourly
    the last 100 values are held back and streamed; the others have fewer in their tests, all of which are. Rows are by
    form. The tolerance is 1e-6: both sides compute the same recursions in float64, whose rounding (1e-16 a step) a
    filter that forgets does not let grow, and one of CES that does not by its root to the power of the steps, at most
    1.1^100 = 1e4; the deviations of theta and CES divide differences of means by their size, which costs 1e-16 times
    that ratio again.
fit: M3 monthly by the library directly and by `fit_series`: processor seconds of one process, and wall seconds on all
    cores beside the library's own (`StatsForecast(n_jobs=-1).fit`), each the median of the repeats, taken in turn.
update: one observation for 10,000 monthly ETS models, states in to quantiles out, in torch and in onnxruntime, beside
    the library's refit and its `forward` over 130 and 2,000 values, with and without intervals; in processor time.
settle: of ARIMA on M3 monthly the share of series whose covariance still moves, and what a step costs, in processor
    time, after so many further values.
"""

from __future__ import annotations

import argparse
import os
import resource
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from statsforecast import StatsForecast
from statsforecast.models import AutoETS

from data.benchmark import M3_ORIGIN, M4_ORIGIN, TOURISM_ORIGIN
from data.files import shared_file
from data.frame import Channel
from forecasting.export import export_bundle
from forecasting.runtime import load_bundle
from forecasting.task import Task
from models.arima import Arima
from models.catalog import build
from models.contract import Fits, Signature, State
from models.ets import Ets
from models.linear_gaussian import LinearGaussian, fit_each
from tests.benchmarks.figures import machine, table
from tests.benchmarks.local_peers import FILTERS, LIBRARY, Values, fit, form_of

MANY = 10_000
LEVELS = (0.025, 0.1, 0.5, 0.9, 0.975)
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Collection:
    file: str
    origin: str
    season: int
    horizon: int
    held: int = 0  # of the last values, training and test together, how many are streamed; 0: the test

    def series(self, which: slice) -> dict[str, tuple[Values, Values]]:
        """unique_id -> what is fitted to, and the further points."""
        rows = pd.read_parquet(shared_file(self.file, self.origin)).iloc[which]
        pairs = {}
        for row in rows.itertuples():
            values = np.concatenate([row.train, row.test]).astype(np.float64)
            cut = len(values) - (self.held or len(row.test))
            pairs[str(row.id)] = (values[:cut], values[cut:])
        return pairs

    @property
    def signature(self) -> Signature:
        return Signature("forecast", 1, horizon=self.horizon, season=self.season, quantiles=LEVELS)


SETS = {
    "m4/hourly": Collection("m4/m4_hourly.parquet", M4_ORIGIN, 24, 48, held=100),
    "tourism/monthly": Collection("tourism/tourism_monthly.parquet", TOURISM_ORIGIN, 12, 24),
    "tourism/yearly": Collection("tourism/tourism_yearly.parquet", TOURISM_ORIGIN, 1, 4),
    "m3/monthly": Collection("m3/m3_monthly_a.parquet", M3_ORIGIN, 12, 18),
}


def equal(name: str, place: str, which: slice) -> None:
    collection = SETS[place]
    everyone = collection.series(which)
    past = {key: values for key, (values, _) in everyone.items()}
    further = [len(more) for _, more in everyone.values()]
    model = cast(LinearGaussian, build(name, collection.signature)).double()
    began = time.perf_counter()
    fits = model.fit_series(past)
    seconds = time.perf_counter() - began
    libraries, _ = fit_each(partial(fit, name, collection.season), {key: past[key] for key in fits.series})
    print(
        f"\n{name} on {place}: {len(fits.series)} of {len(past)} series fitted in {seconds:.0f} s; "
        f"{min(further)} to {max(further)} further points"
    )
    for what, reasons in (("not fitted, and so substituted", fits.failures), ("fitted with a note", fits.notes)):
        for reason, count in Counter(map(kind_of, reasons.values())).most_common():
            print(f"  {what}: {count} of {len(past)}: {reason}")
    rows: dict[str, list[list[float]]] = defaultdict(list)
    for key in fits.series:
        values, more = everyone[key]
        found, state = libraries[key]["model"], fits.state_of([key])
        row = []
        for history, after in ((values, state), (np.concatenate([values, more]), passed(model, state, more))):
            mean, deviation = FILTERS[name](found, history, collection.season, collection.horizon)
            expected = mean[:, None] + deviation[:, None] * model.normal.numpy()
            with torch.no_grad():
                difference = np.abs(model.predict(after)[0].numpy() - expected) / np.abs(expected).max()
            row += [difference[:, 2].max(), difference.max()]
        rows[form_of(name, found)].append(row)
    head = ["form", "series", "mean", "bounds", "mean, later", "bounds, later", f"series beyond {TOLERANCE:.0e}"]
    table(head, [[form, *summary(rows[form])] for form in sorted(rows)])
    if len(rows) > 1:
        table(head, [["all", *summary([row for some in rows.values() for row in some])]])


def kind_of(reason: str) -> str:
    """A note without its numbers, so that the same ones are counted together."""
    return "".join("#" if letter.isdigit() else letter for letter in reason).replace("##", "#").replace("##", "#")


def summary(rows: list[list[float]]) -> list[str]:
    values = np.array(rows)
    beyond = int((~(values <= TOLERANCE)).any(1).sum())  # NaN too
    return [str(len(rows)), *(f"{value:.1e}" for value in values.max(0)), str(beyond)]


def passed(model: LinearGaussian, state: State, values: Values) -> State:
    return model.passed(torch.from_numpy(values)[None], state)


def fitting(name: str, which: slice, repeats: int) -> None:
    collection = SETS["m3/monthly"]
    past = {key: values for key, (values, _) in collection.series(which).items()}
    rows = [pd.DataFrame({"unique_id": key, "ds": np.arange(len(y)), "y": y}) for key, y in past.items()]
    frame = pd.concat(rows, ignore_index=True)
    model = cast(LinearGaussian, build(name, collection.signature)).double()

    def alone() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for values in past.values():
                LIBRARY[name](season_length=collection.season).fit(values)

    def its_own() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            StatsForecast([LIBRARY[name](season_length=collection.season)], freq=1, n_jobs=-1).fit(frame)

    alone()  # compiles and imports
    spent: dict[str, list[float]] = defaultdict(list)
    for _ in range(repeats):
        for what, clock, call in (
            ("one process, library", time.process_time, alone),
            ("one process, ours", time.process_time, partial(model.fit_series, past, 1)),
            ("all cores, library", time.perf_counter, its_own),
            ("all cores, ours", time.perf_counter, partial(model.fit_series, past)),
        ):
            spent[what].append(timed(call, clock))
    took = {what: median(values) for what, values in spent.items()}
    print(f"\n{name}: {len(past)} series of m3/monthly, median of {repeats}, {os.cpu_count()} cores")
    rows_ = []
    for where, unit in (("one process", "processor s"), ("all cores", "wall s")):
        library, ours = took[f"{where}, library"], took[f"{where}, ours"]
        rows_.append([where, unit, f"{library:.2f}", f"{ours:.2f}", f"{ours / library - 1:+.1%}"])
    table(["", "", "library", "fit_series", "ours against it"], rows_)


def processor_s(call: Callable[[], Any], repeats: int) -> float:
    return median(timed(call, time.process_time) for _ in range(repeats))


def timed(call: Callable[[], Any], clock: Callable[[], float]) -> float:
    began = clock()
    call()
    return clock() - began


def update(which: slice, repeats: int) -> None:
    collection = SETS["m3/monthly"]
    everyone, season, horizon = collection.series(which), collection.season, collection.horizon
    model = Ets(collection.signature)
    some = dict(list(everyone.items())[:64])
    fits: Fits = model.double().fit_series({key: train for key, (train, _) in some.items()})
    model = model.float()
    rows = torch.arange(MANY) % len(fits.series)
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    state = {name: value[rows].float() for name, value in fits.state.items()}
    size = sum(value.numel() for value in state.values()) * 4 / MANY
    x = torch.tensor([test[0] for _, test in some.values()], dtype=torch.float32)[rows % len(some)][:, None]
    mask = torch.ones_like(x)
    with torch.no_grad():
        by_torch = processor_s(lambda: model.step(x, mask, state), repeats)
    task = Task("forecast", "y", (Channel("y", ""),), 1, horizon=horizon, season=season, quantiles=LEVELS)
    with TemporaryDirectory() as folder:
        export_bundle(model, task, Path(folder) / "ets", name="ets", config={}, training={}, metrics=[])
        loaded = load_bundle(Path(folder) / "ets")
    arrays = {name: value.numpy() for name, value in state.items()}
    by_graph = processor_s(lambda: loaded.run_step(x.numpy(), mask.numpy(), arrays), repeats)
    with torch.no_grad():
        expected = model.step(x, mask, state)[0].numpy()
    difference = np.abs(loaded.run_step(x.numpy(), mask.numpy(), arrays)[0] - expected).max() / np.abs(expected).max()
    histories = [train for train, _ in some.values()]
    libraries = [AutoETS(season_length=season).fit(train) for train in histories]
    refit = processor_s(lambda: [AutoETS(season_length=season).fit(train) for train in histories], 1) / len(some)
    costs = {"the library's refit": refit}
    for length in (130, 2000):
        pairs = [(library, np.resize(train, length)) for library, train in zip(libraries, histories, strict=True)]
        for what, level in (("mean", None), ("mean and interval", [80])):
            spent = processor_s(lambda p=pairs, lv=level: [lib.forward(y, horizon, level=lv) for lib, y in p], 3)
            costs[f"its forward over {length:,} values, {what}"] = spent / len(some)
    print(f"\nets: one observation for {MANY:,} monthly models, {size:.0f} bytes of state each, all forms in a batch")
    costs |= {"our step, torch": by_torch / MANY, "our step, onnxruntime": by_graph / MANY}
    best = min(by_torch, by_graph) / MANY
    table(
        ["", "us a series", "times our best"],
        [[name, f"{cost * 1e6:,.2f}", f"{cost / best:,.0f}"] for name, cost in costs.items()],
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"onnxruntime against torch: {difference:.1e} of the largest bound; peak memory of this process {peak:.0f} MB, "
        f"{peak - held:.0f} MB above what the libraries and the fits took"
    )


def settle(which: slice, repeats: int) -> None:
    collection = SETS["m3/monthly"]
    model = Arima(collection.signature)
    fits = model.double().fit_series({key: values for key, (values, _) in collection.series(which).items()})
    copies = -(-2_000 // len(fits.series))
    state = {name: value.float().repeat(copies, *[1] * (value.dim() - 1)) for name, value in fits.state.items()}
    model, x, rows = model.float(), torch.zeros(copies * len(fits.series), 1), []
    for steps in range(1001):
        if steps in (0, 1, 10, 100, 1000):
            moving = state["arima.covariance"].flatten(1).any(1).double().mean().item()
            spent = median(
                timed(partial(model.step, x, torch.ones_like(x), state), time.process_time) for _ in range(repeats)
            )
            rows.append([f"{steps:,}", f"{moving:.0%}", f"{spent / len(x) * 1e6:.2f}"])
        state = state | model.advance(x, torch.ones_like(x) > 0, state)
    places = state["arima.mean"].shape[1]
    print(f"\narima: {len(fits.series)} series of m3/monthly, {places} places each, {len(x):,} in a batch")
    table(["values after the fit", "covariance moves", "us a series and step"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["equal", "update"], help="equal, fit, update, settle")
    parser.add_argument("--models", default="ets,arima,theta,ces")
    parser.add_argument("--sets", default=",".join(SETS), help="of equal")
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    unknown = set(options.parts) - {"equal", "fit", "update", "settle"}
    if unknown:
        parser.error(f"the parts are equal, fit, update and settle, not {', '.join(sorted(unknown))}")
    which = slice(options.first, None, options.every)
    torch.set_num_threads(1)
    print(machine())
    for name in options.models.split(","):
        if "equal" in options.parts:
            for place in options.sets.split(","):
                equal(name, place, which)
        if "fit" in options.parts:
            fitting(name, which, options.repeats)
    if "update" in options.parts:
        update(which, options.repeats)
    if "settle" in options.parts:
        with torch.no_grad():
            settle(which, options.repeats)


if __name__ == "__main__":
    main()
