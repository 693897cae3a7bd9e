"""One step of a whole network with one memory block, batch 1, one core: d = 64, convolution, gates, feed forward, head.

Imputation, normalisation and its inverse, and the quantile head (5 steps, 9 levels) are inside the graph. Targets for
titans-lmm, a memory of two layers: p50 80 us and p99 200 us inside onnxruntime. Beside it stand other memories, the
same network with a GRU(64), PyTorch eager, and one token through titans-pytorch's NeuralMemory (the memory alone, with
its state carried: chunk_size=1, depth 2, dim 64), for which --peer names the Python of an environment that has torch
and `titans-pytorch==0.5.5`; it runs there in a process of its own.

The kinds take turns, so that what else the machine does meets all of them; the figures are medians over the turns.

Options: --peer PYTHON, --repeats 5, --steps 10000, --models TEXT.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from figures import machine, percentiles_us, table

from data.frame import Channel
from forecasting.export import export_bundle
from forecasting.runtime import load_bundle
from forecasting.task import Task
from models.contract import StepModel
from models.memory.atlas import ATLAS
from models.memory.backbone import Inner, MemoryBackbone, MemoryConfig
from models.memory.miras import YAAD
from models.memory.titans import DELTANET, LMM
from models.network import Network, NetworkConfig
from models.recurrent import Recurrent, RecurrentConfig

WIDTH = 64
TASK = Task("forecast", "y", (Channel("y", "points"),), "D", horizon=5)

PEER = """
import json, sys, time, torch
from titans_pytorch import NeuralMemory
torch.set_num_threads(1)
torch.manual_seed(0)
memory = NeuralMemory(dim=WIDTH, chunk_size=1, heads=HEADS, dim_head=WIDTH // HEADS,
                      default_model_kwargs={"depth": 2, "expansion_factor": 2.0}).eval()
token, state, spent = torch.randn(1, 1, WIDTH), None, []
with torch.no_grad():
    for turn in range(50 + STEPS):
        began = time.perf_counter_ns()
        _, state = memory(token, state=state)
        spent.append((time.perf_counter_ns() - began) / 1e3)
spent = sorted(spent[50:])
print(json.dumps([spent[len(spent) // 2], spent[int(0.99 * len(spent))], spent[-1]]))
"""


def memory(inner: Inner, heads: int, chunk: int) -> Callable[[], StepModel]:
    config = MemoryConfig(width=WIDTH, heads=heads, blocks=1, chunk=chunk)
    return lambda: Network(TASK.signature, NetworkConfig(), lambda width: MemoryBackbone(width, config, inner))


def recurrent(cell: str) -> StepModel:
    config = RecurrentConfig(hidden=WIDTH)
    return Network(TASK.signature, NetworkConfig(), lambda width: Recurrent(width, cell, config))


MODELS: dict[str, Callable[[], StepModel]] = {
    **{
        f"titans-lmm, {heads} {'head' if heads == 1 else 'heads'}, chunk {chunk}": memory(LMM, heads, chunk)
        for heads in (1, 4)
        for chunk in (1, 16)
    },
    "yaad, 4 heads, chunk 16": memory(YAAD, 4, 16),
    "deltanet, 4 heads, chunk 1": memory(DELTANET, 4, 1),
    "atlas, 4 heads, chunk 16": memory(ATLAS, 4, 16),
    "gru": partial(recurrent, "gru"),
}


def calls(model: StepModel) -> tuple[dict[str, Callable[[], object]], int]:
    """The ways to take one step, and how many nodes step.onnx has."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "bundle"
        export_bundle(model, TASK, place, name="latency", config={}, training={}, metrics=[])
        bundle = load_bundle(place)
        nodes = len(onnx.load(place / "step.onnx").graph.node)
    values = np.random.default_rng(0).normal(size=1000).cumsum().tolist()
    feed: Iterator[float] = (values[turn % len(values)] for turn in count())
    bound, stream = bundle.stream(series=["a"]), bundle.stream(series=["a"])
    for value in values:  # to a state that a running stream would have
        bound.step({"a": value})
    step, state = torch.inference_mode()(model.step), model.initial_state(1)
    x, mask = torch.zeros(1, 1), torch.ones(1, 1)

    def eager() -> None:
        nonlocal state
        _, state = step(x, mask, state)

    return {
        "onnxruntime, bound memory": bound.run,
        "stream.step({'a': value})": lambda: stream.step({"a": next(feed)}),
        "PyTorch eager": eager,
    }, nodes


def peer(python: str, heads: int, steps: int) -> tuple[float, float, float] | str:
    """Median, 99th percentile and maximum of titans-pytorch's step in us, or why there are none."""
    source = PEER.replace("WIDTH", str(WIDTH)).replace("HEADS", str(heads)).replace("STEPS", str(steps))
    try:
        done = subprocess.run([python, "-W", "ignore", "-c", source], capture_output=True, text=True, check=False)
    except OSError as error:
        return f"{python} does not run ({error.strerror})"
    if done.returncode:
        return done.stderr.strip().splitlines()[-1]
    p50, p99, longest = json.loads(done.stdout.splitlines()[-1])
    return p50, p99, longest


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--peer", help="the Python of an environment with torch and titans-pytorch")
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--steps", type=int, default=10_000)
    options.add_argument("--models", default="", help="only those whose name holds this text")
    chosen = options.parse_args()
    print(machine())
    torch.set_num_threads(1)
    kinds: list[tuple[str, str, str, Callable[[], object]]] = []
    for name, build in MODELS.items():
        if chosen.models in name:
            torch.manual_seed(0)
            ways, nodes = calls(build().eval())
            kinds += [(name, way, str(nodes), call) for way, call in ways.items()]
    found: dict[tuple[str, str], list[Any]] = {(name, way): [] for name, way, _, _ in kinds}
    for _ in range(chosen.repeats):
        for name, way, _, call in kinds:
            steps = chosen.steps // (20 if "eager" in way else 1)
            found[name, way].append(percentiles_us(call, steps, warm=min(500, steps)))
    rows = [
        [name, way, nodes if "onnx" in way else "", *(f"{x:.1f}" for x in np.median(found[name, way], 0))]
        for name, way, nodes, _ in kinds
    ]
    for heads in (1, 4):
        label = f"titans-pytorch NeuralMemory, heads {heads}"
        if chosen.peer is None:
            print(f"{label}: left out, no --peer given")
            continue
        turns = [peer(chosen.peer, heads, chosen.steps // 20) for _ in range(chosen.repeats)]
        why = [turn for turn in turns if isinstance(turn, str)]
        if why:
            print(f"{label}: left out, {why[0]}")
        else:
            rows.append([label, "PyTorch eager", "", *(f"{x:.1f}" for x in np.median(np.array(turns), 0))])
    table(["network", "step", "nodes", "p50 us", "p99 us", "max us"], rows)
    print(f"medians over {chosen.repeats} runs of {chosen.steps} steps (eager: {chosen.steps // 20})")


if __name__ == "__main__":
    main()
