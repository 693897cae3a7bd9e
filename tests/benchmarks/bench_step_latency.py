"""One step of a GRU(64) and an LSTM(64), batch 1, one core: onnxruntime, `stream.step`, and PyTorch eager beside.

Imputation, normalisation and its inverse, and the quantile head (5 steps, 9 levels) are inside the graph. Targets for
the GRU: p50 25 us and p99 60 us inside onnxruntime, p50 60 us through `stream.step`.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from figures import machine, percentiles_us, table

from data.frame import Channel
from forecasting.export import export_bundle
from forecasting.runtime import load_bundle
from forecasting.task import Task
from models.catalog import build

STEPS, REPEATS = 10_000, 5


def main() -> None:
    print(machine())
    torch.set_num_threads(1)
    task = Task("forecast", "y", (Channel("y", "points"),), "D", horizon=5)
    rows = []
    for name in ("gru", "lstm"):
        torch.manual_seed(0)
        model = build(name, task.signature, hidden=64).eval()
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / "bundle"
            export_bundle(model, task, place, name=name, config={}, training={}, metrics=[])
            bundle = load_bundle(place)
        stream = bundle.stream(series=["a"])
        values = np.random.default_rng(0).normal(size=STEPS).cumsum().tolist()
        feed = iter(values * (3 * REPEATS))
        x, mask, state = torch.zeros(1, 1), torch.ones(1, 1), model.initial_state(1)

        step = torch.inference_mode()(model.step)
        kinds = {
            "onnxruntime, bound memory": stream.run,
            "stream.step({'a': value})": lambda stream=stream, feed=feed: stream.step({"a": next(feed)}),  # type: ignore[misc]
            "PyTorch eager": partial(step, x, mask, state),
        }
        for kind, call in kinds.items():
            runs = np.array(
                [percentiles_us(call, STEPS if "eager" not in kind else STEPS // 5) for _ in range(REPEATS)]
            )
            p50, p99, longest = np.median(runs, 0)
            rows.append([name, kind, f"{p50:.1f}", f"{p99:.1f}", f"{longest:.0f}"])
    table(["model", "step", "p50 us", "p99 us", "max us"], rows)
    print(f"medians over {REPEATS} runs of {STEPS} steps (eager: {STEPS // 5})")


if __name__ == "__main__":
    main()
