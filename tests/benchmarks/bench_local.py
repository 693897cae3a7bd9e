"""Local models: equal to the library that fitted them, how fast they are fitted, and what a new observation costs.

    MNEMO_DATA_DIR=... python -m tests.benchmarks.bench_local [equal] [fit] [update] [--models ets,arima] [--every N]

equal: on M3 monthly (part a), every N-th series: the largest difference of point forecast and of the 80 and 95 %
    interval bounds, relative to the largest bound of the series, at the fit's end and after the test values against the
    library's `forward` with the fitted variance (for ETS `forward` estimates it anew). Per form, as the library's
    departures from the book are by form (tests/models/test_ets.py).
fit: seconds for the same series, the library alone and `fit_series`, one process each.
update: one observation for 10,000 monthly ETS models, states in to quantiles out, in torch and in onnxruntime, beside
    the library's refit and its `forward` over 130 and 2,000 values.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import torch
from statsforecast.ets import forecast_ets, forward_ets
from statsforecast.models import AutoARIMA, AutoETS

from data.benchmark import M3_ORIGIN
from data.files import shared_file
from data.frame import Channel
from forecasting.export import export_bundle
from forecasting.runtime import load_bundle
from forecasting.task import Task
from models.arima import Arima
from models.contract import Fits, Signature, State
from models.ets import Ets
from models.linear_gaussian import LinearGaussian
from tests.benchmarks.figures import machine, median_s, table

HORIZON, SEASON, MANY = 18, 12, 10_000
LEVELS = (0.025, 0.1, 0.5, 0.9, 0.975)
SIGNATURE = Signature("forecast", 1, horizon=HORIZON, season=SEASON, quantiles=LEVELS)
BOUNDS = ("lo-95", "lo-80", "mean", "hi-80", "hi-95")
MODELS: dict[str, tuple[Any, Any]] = {"ets": (Ets, AutoETS), "arima": (Arima, AutoARIMA)}
Series = dict[str, tuple[np.ndarray, np.ndarray]]


def m3_monthly(every: int) -> Series:
    """unique_id -> training and test values."""
    rows = pd.read_parquet(shared_file("m3/m3_monthly_a.parquet", M3_ORIGIN)).iloc[::every]
    return {row.id: (np.array(row.train, float), np.array(row.test, float)) for row in rows.itertuples()}


def bounds(found: dict[str, Any]) -> np.ndarray:
    """(H, Q) of what the library forecasts."""
    return np.stack([found[name] for name in BOUNDS], -1)


def library_forecast(library: Any, values: np.ndarray) -> np.ndarray:
    """(H, Q) after the values, by the fitted parameters; of seasonal ETS of class 1 each step by its own horizon.

    At a longer horizon the library counts whole seasons of the horizon instead of the step's.
    """
    if not isinstance(library, AutoETS):
        return bounds(library.forward(values, HORIZON, level=[80, 95]))
    found = forward_ets(library.model_, values) | {"sigma2": library.model_["sigma2"]}
    if found["components"][0] == "A" and found["components"][2] == "A":
        return np.stack([bounds(forecast_ets(found, step + 1, level=[80, 95]))[step] for step in range(HORIZON)])
    return bounds(forecast_ets(found, HORIZON, level=[80, 95]))


def form_of(library: Any) -> str:
    if isinstance(library, AutoETS):
        error, trend, season, damped = library.model_["components"]
        return f"{error}{trend}{'d' if damped == 'D' else ''}{season}"
    return "all orders"


def run(name: str, everyone: Series, compare: bool) -> None:
    ours, auto = MODELS[name]
    model: LinearGaussian = ours(SIGNATURE).double()
    auto(season_length=SEASON).fit(next(iter(everyone.values()))[0])  # compiles and imports
    began = time.perf_counter()
    libraries = {key: auto(season_length=SEASON).fit(train) for key, (train, _) in everyone.items()}
    alone = time.perf_counter() - began
    began = time.perf_counter()
    fits: Fits = model.fit_series({key: train for key, (train, _) in everyone.items()}, processes=1)
    seconds = time.perf_counter() - began
    print(
        f"\n{name}: {len(everyone)} series; the library alone {alone:.1f} s, fit_series {seconds:.1f} s "
        f"({seconds / alone - 1:+.1%}), {len(fits.failures)} failed, {len(fits.notes)} notes"
    )
    if not compare:
        return
    worst: dict[str, list[np.ndarray]] = defaultdict(list)
    for key, (train, test) in everyone.items():
        state = fits.state_of([key])
        row = []
        for values, after in ((train, state), (np.concatenate([train, test]), passed(model, state, test))):
            expected = library_forecast(libraries[key], values)
            with torch.no_grad():
                found = model.predict(after)[0].numpy()
            difference = np.abs(found - expected) / np.abs(expected).max()
            row += [difference[:, 2].max(), difference.max()]
        worst[form_of(libraries[key])].append(np.array(row))
    head = ["form", "series", "mean", "bounds", "mean, after the test", "bounds, after the test"]
    table(
        head,
        [
            [form, str(len(rows)), *(f"{value:.1e}" for value in np.max(rows, 0))]
            for form, rows in sorted(worst.items())
        ],
    )


def passed(model: LinearGaussian, state: State, values: np.ndarray) -> State:
    return model.passed(torch.from_numpy(values)[None], state)


def update(everyone: Series, repeats: int) -> None:
    model = Ets(SIGNATURE)
    some = dict(list(everyone.items())[:64])
    fits = model.double().fit_series({key: train for key, (train, _) in some.items()})
    model = model.float()
    rows = torch.arange(MANY) % len(fits.series)
    state = {name: value[rows].float() for name, value in fits.state.items()}
    size = sum(value.numel() for value in state.values()) * 4 / MANY
    x = torch.tensor([test[0] for _, test in some.values()], dtype=torch.float32)[rows % len(some)][:, None]
    mask = torch.ones_like(x)
    with torch.no_grad():
        by_torch = median_s(lambda: model.step(x, mask, state), repeats)
    task = Task("forecast", "y", (Channel("y", ""),), 1, horizon=HORIZON, season=SEASON, quantiles=LEVELS)
    with TemporaryDirectory() as folder:
        export_bundle(model, task, Path(folder) / "ets", name="ets", config={}, training={}, metrics=[])
        loaded = load_bundle(Path(folder) / "ets")
    arrays = {name: value.numpy() for name, value in state.items()}
    by_graph = median_s(lambda: loaded.run_step(x.numpy(), mask.numpy(), arrays), repeats)
    with torch.no_grad():
        expected = model.step(x, mask, state)[0].numpy()
    difference = np.abs(loaded.run_step(x.numpy(), mask.numpy(), arrays)[0] - expected).max() / np.abs(expected).max()
    histories = [train for train, _ in some.values()]
    libraries = [AutoETS(season_length=SEASON).fit(train) for train in histories]
    refit = median_s(lambda: [AutoETS(season_length=SEASON).fit(train) for train in histories], 1) / len(some)
    costs = {"the library's refit": refit}
    for length in (130, 2000):
        pairs = [(library, np.resize(train, length)) for library, train in zip(libraries, histories, strict=True)]
        for what, level in (("mean", None), ("mean and interval", [80])):
            spent = median_s(lambda p=pairs, lv=level: [lib.forward(y, HORIZON, level=lv) for lib, y in p], 3)
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
        f"onnxruntime against torch: {difference:.1e} of the largest bound; peak memory of this process {peak:.0f} MB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=["equal", "fit", "update"], default=["equal", "update"])
    parser.add_argument("--models", default="ets,arima")
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(machine())
    everyone = m3_monthly(options.every)
    for name in options.models.split(","):
        if {"equal", "fit"} & set(options.parts):
            run(name, everyone, compare="equal" in options.parts)
    if "update" in options.parts:
        update(everyone, options.repeats)


if __name__ == "__main__":
    main()
