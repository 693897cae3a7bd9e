"""Every named memory, alone and beside attention, at every length of a chunk: what leaves as ONNX is what was trained?

The step graph runs beside the model over a thousand steps, in float32. The difference is the largest of any
prediction, relative to the range of its series' predictions.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from figures import machine, table

from data.frame import Channel
from forecasting.export import export_bundle
from forecasting.runtime import load_bundle
from forecasting.task import Task
from models.catalog import build
from models.contract import Batch, Signature
from models.memory import MEMORIES

SERIES, STEPS = 2, 1000
NAMES = (*MEMORIES, "titans-mac", "titans-mag", "titans-mal")
LIMIT = 1e-4


def difference(name: str, chunk: int, width: int, folder: Path) -> tuple[float, float]:
    """Largest relative difference, and seconds of the export."""
    signature = Signature("forecast", channels=2, horizon=6)
    torch.manual_seed(0)
    model = build(name, signature, width=width, heads=2, blocks=1, chunk=chunk).eval()
    x = torch.sin(torch.arange(STEPS) / 4)[None, :, None] + 0.3 * torch.randn(SERIES, STEPS, 2)
    mask = (torch.rand_like(x) > 0.1).float()
    model.prepare([Batch(x, mask, x[..., :1].expand(-1, -1, 6), torch.ones(SERIES))])  # type: ignore[operator]
    with torch.no_grad():
        for parameter in model.parameters():  # a new head says nothing
            parameter.add_(0.1 * torch.randn_like(parameter))
        expected, _ = model.scan(x, mask, model.initial_state(SERIES))
    channels = (Channel("a", ""), Channel("b", ""))
    task = Task(kind="forecast", target="a", channels=channels, freq=1, horizon=6, season=1)
    begin = time.perf_counter()
    export_bundle(model, task, folder / f"{name}-{chunk}", name=name, config={}, training={}, metrics=[])
    seconds = time.perf_counter() - begin
    loaded = load_bundle(folder / f"{name}-{chunk}")
    state, worst = loaded.initial_state(SERIES), torch.zeros(SERIES)
    for t in range(STEPS):
        found, state = loaded.run_step(x[:, t], mask[:, t], state)
        worst = torch.maximum(worst, (torch.from_numpy(found) - expected[:, t]).abs().flatten(1).amax(1))
    flat = expected.flatten(1)
    return (worst / (flat.amax(1) - flat.amin(1))).max().item(), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=NAMES, action="append", help="all of them unless given")
    parser.add_argument("--chunk", type=int, action="append", help="1, 4, 16 and 64 unless given")
    parser.add_argument("--width", type=int, default=16)
    chosen = parser.parse_args()
    print(machine())
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in chosen.model or NAMES:
            for chunk in chosen.chunk or (1, 4, 16, 64):
                worst, seconds = difference(name, chunk, chosen.width, Path(folder))
                rows.append([name, str(chunk), f"{worst:.1e}", "yes" if worst <= LIMIT else "NO", f"{seconds:.1f}"])
    table(["memory", "chunk", "difference", f"within {LIMIT:g}", "export, seconds"], rows)


if __name__ == "__main__":
    main()
