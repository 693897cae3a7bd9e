"""Regressions on the past beside seasonal naive and ridge: M4 hourly and M3 monthly, error, intervals and speed.

Every model is trained once on the same random series and forecasts the last horizon of each, as the competitions did.
MASE and coverage as in the leaderboard; pinball is twice the mean over the levels, in units of each series' seasonal
naive error (MASE's scale), so that the two can be compared. `rel.` columns are relative to the seasonal naive forecast.
Series per second are forecasts with the fitted model, each from its whole past, in torch on one thread. Medians over
the seeds, which choose the series and what is random in a fit. Needs MNEMO_DATA_DIR.

The part `compare` does that; the part `export` writes each model of the first data set as a bundle and prints what its
certificate measured. `--models` names some of them, such as "xgboost, recursive"; naive is always among them.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from figures import machine, table

from data.catalog import load
from data.panel import to_panel
from forecasting import metrics
from forecasting.export import export_bundle
from forecasting.metrics import mean_of_quantiles, seasonal_scale
from forecasting.task import Task
from forecasting.training import fit_model
from forecasting.windows import Parts, Span, split
from models.contract import StepModel

SETS = {"m4/hourly": 414, "m3/monthly_a": 714}  # and how many series there are
MODELS: dict[str, tuple[str, dict[str, str]]] = {
    "naive": ("naive", {}),
    "ridge": ("ridge", {}),
    **{
        f"{name}, {strategy}": (name, {"strategy": strategy})
        for name in ("quantile-regression", "random-forest", "xgboost")
        for strategy in ("direct", "recursive")
    },
}


def sampled(name: str, count: int, seed: int) -> tuple[Task, Parts]:
    dataset = load(name)
    panel = to_panel(dataset)
    chosen = np.random.default_rng(seed).permutation(len(panel))[:count]
    task = Task.of(dataset)
    return task, split(dataset, [panel[index] for index in chosen], task)


@torch.no_grad()
def forecasts(model: StepModel, spans: Sequence[Span]) -> np.ndarray:
    """(N, H, Q) of each series at the end of what comes before its test."""
    found = np.empty((len(spans), model.signature.horizon, len(model.signature.quantiles)))
    together: dict[int, list[int]] = defaultdict(list)
    for index, span in enumerate(spans):
        together[span.begin].append(index)
    for length, members in together.items():
        x = torch.from_numpy(np.stack([spans[index].series.values[:length] for index in members])).float()
        found[members] = model.last(x, x.isfinite().float(), model.initial_state(len(x)))[0].numpy()
    return found


def measure(name: str, settings: dict[str, str], task: Task, parts: Parts, seed: int) -> dict[str, float]:
    began = time.perf_counter()
    model = fit_model(name, task, parts, settings=settings, seed=seed).model
    fitted = time.perf_counter()
    found = forecasts(model, parts.test)
    seconds = time.perf_counter() - fitted
    actual = np.stack([span.series.values[span.begin : span.begin + task.horizon, 0] for span in parts.test])
    scale = np.array([seasonal_scale(span.series.values[: span.begin, 0], task.season) for span in parts.test])
    moves = scale > 0
    levels = np.array(task.quantiles)
    mean = mean_of_quantiles(found, levels)
    unit = np.where(moves, scale, np.nan)[:, None]
    losses = [metrics.pinball(a / s, q / s, levels) for a, q, s in zip(actual, found, scale, strict=True) if s > 0]
    return {
        "mase": metrics.mase(actual, mean, unit[:, 0]).value,
        "pinball": 2 * float(np.mean(losses)),
        "coverage": metrics.coverage(actual, found[..., 0], found[..., -1]),
        "fit": fitted - began,
        "rate": len(parts.test) / seconds,
    }


def compare(name: str, count: int, seeds: int, labels: Sequence[str]) -> None:
    results: dict[str, list[dict[str, float]]] = defaultdict(list)
    for seed in range(seeds):
        task, parts = sampled(name, count, seed)
        for label in labels:
            results[label].append(measure(*MODELS[label], task, parts, seed))
            print(f"{name}, seed {seed}, {label}: {results[label][-1]}", flush=True)
    middle = {
        label: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for label, runs in results.items()
    }
    floor = middle["naive"]
    rows = [
        [label, f"{m['mase']:.3f}", f"{m['mase'] / floor['mase']:.3f}", f"{m['pinball']:.3f}",
         f"{m['pinball'] / floor['pinball']:.3f}", f"{100 * m['coverage']:.1f} %", f"{m['fit']:.1f}",
         f"{m['rate']:.0f}"]
        for label, m in middle.items()
    ]  # fmt: skip
    print(f"\n{name}: {min(count, SETS[name])} of {SETS[name]} series, {seeds} seeds")
    table(["model", "MASE", "rel.", "pinball", "rel.", "80 % covers", "fit s", "series/s"], rows)


def exported(name: str, count: int, labels: Sequence[str]) -> None:
    task, parts = sampled(name, count, 0)
    rows = []
    for label in labels:
        model, settings = MODELS[label]
        trained = fit_model(model, task, parts, settings=settings)
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            card = export_bundle(
                trained.model, task, Path(folder) / "bundle", name=model, config=trained.config, training={}, metrics=[]
            )
            seconds = time.perf_counter() - began
            size = (Path(folder) / "bundle" / "step.onnx").stat().st_size
        certificate = card["certificate"]
        step = certificate["latency"]["step_us"]
        rows.append([label, f"{certificate['parity']['torch']:.1e}", f"{step['p50']:.0f}", f"{step['p99']:.0f}",
                     f"{size / 1e3:.0f}", f"{seconds:.0f}"])  # fmt: skip
        print(*rows[-1], flush=True)
    print(f"\n{name}: the exported step of one series")
    table(["model", "torch - graph", "step p50 us", "p99 us", "step.onnx kB", "export s"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", type=int, default=100, help="of each data set")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("parts", nargs="*", choices=["compare", "export"], help="without any: compare")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    arguments = parser.parse_args()
    print(machine())
    torch.set_num_threads(1)
    labels = list(dict.fromkeys(["naive", *arguments.models]))
    if "compare" in (arguments.parts or ["compare"]):
        for name in arguments.data:
            compare(name, arguments.series, arguments.seeds, labels)
    if "export" in arguments.parts:
        exported(arguments.data[0], arguments.series, labels)


if __name__ == "__main__":
    main()
