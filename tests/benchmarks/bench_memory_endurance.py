"""A million steps of every named memory, alone and beside attention, on streams that break memories.

Is all finite, and how large does it grow? One series of each kind runs in the same batch, in float32: constant,
periodic, random, spikes of 1e15, zero, a scale of 1e15, and gaps of 950 in 1,000 steps whose values are NaN.
"""

from __future__ import annotations

import argparse
import math
import re
import time
from typing import Any

import torch
from figures import machine, table
from torch import Tensor

from models.memory import MEMORIES
from models.memory.backbone import MemoryBackbone, MemoryConfig
from models.memory.hybrid import ContextConfig, MacBackbone, MagBackbone, MalBackbone, WindowConfig

KINDS = ("constant", "periodic", "random", "spikes", "zero", "huge", "gaps")
WIDTH = 3  # of what enters
BESIDE: dict[str, tuple[type[MemoryBackbone], type[MemoryConfig]]] = {
    "titans-mac": (MacBackbone, ContextConfig),
    "titans-mag": (MagBackbone, WindowConfig),
    "titans-mal": (MalBackbone, WindowConfig),
}
NAMES = (*MEMORIES, *BESIDE)
WEIGHTS = re.compile(r"\.memory\d+$")  # of a state
PIECE = 10_000  # steps at a time


def piece(begin: int, steps: int) -> tuple[Tensor, Tensor]:
    """e (kinds, steps, WIDTH) and present (kinds, steps) from step `begin` on."""
    at = torch.arange(begin, begin + steps)[:, None]
    random = torch.randn(steps, WIDTH)
    there = at % 1000 < 50
    spikes = torch.where(torch.rand(steps, 1) < 0.01, 1e15 * random.sign(), random)
    e = [
        torch.ones(steps, WIDTH),
        torch.sin(2 * math.pi * (at % 24) / 24 + torch.arange(WIDTH)),
        random,
        spikes,
        torch.zeros(steps, WIDTH),
        1e15 * random,
        torch.where(there, random, torch.full_like(random, math.nan)),
    ]
    present = torch.ones(len(KINDS), steps)
    present[-1] = there[:, 0].float()
    return torch.stack(e), present


def backbone(name: str, width: int, chunk: int) -> MemoryBackbone:
    settings: dict[str, Any] = {"width": width, "heads": 2, "blocks": 1, "feed_forward": 0, "chunk": chunk}
    if name in BESIDE:
        kind, config = BESIDE[name]
        return kind(WIDTH, config(**settings))  # type: ignore[call-arg]
    return MemoryBackbone(WIDTH, MemoryConfig(**settings), MEMORIES[name])


def endure(name: str, width: int, chunk: int, steps: int) -> tuple[Tensor, Tensor, Tensor, float]:
    """Per kind: largest norm of the memory where a piece ends, largest output, whether all was finite; and seconds."""
    torch.manual_seed(0)
    net = backbone(name, width, chunk).eval()
    state = net.initial_state(len(KINDS))
    largest, loudest = torch.zeros(len(KINDS)), torch.zeros(len(KINDS))
    finite = torch.ones(len(KINDS), dtype=torch.bool)
    begin = time.perf_counter()
    with torch.inference_mode():
        for start in range(0, steps, PIECE):
            e, present = piece(start, min(PIECE, steps - start))
            out, state = net.scan(e, state, present)
            finite &= out.isfinite().all(-1).all(-1)
            loudest = torch.maximum(loudest, out.abs().amax((1, 2)))
            squares = torch.zeros(len(KINDS))
            for name, value in state.items():
                finite &= value.flatten(1).isfinite().all(-1)
                if WEIGHTS.search(name):
                    squares += value.flatten(1).square().sum(-1)
            largest = torch.maximum(largest, squares.sqrt())
    return largest, loudest, finite, time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--chunk", type=int, default=64)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--model", choices=NAMES, action="append", help="all of them unless given")
    chosen = parser.parse_args()
    print(machine())
    torch.set_num_threads(1)
    rows = []
    for name in chosen.model or NAMES:
        largest, loudest, finite, seconds = endure(name, chosen.width, chosen.chunk, chosen.steps)
        for index, kind in enumerate(KINDS):
            rows.append(
                [
                    name,
                    kind,
                    f"{largest[index]:.1f}",
                    f"{loudest[index]:.2f}",
                    "yes" if finite[index] else "NO",
                    f"{seconds:.0f}" if index == 0 else "",
                ]
            )
    table(["memory", "input", "largest norm", "largest output", "all finite", "seconds, all inputs"], rows)
    print(f"{chosen.steps:,} steps, chunks of {chosen.chunk}, width {chosen.width}, float32, one thread")


if __name__ == "__main__":
    main()
