"""Training throughput of a test-time memory: tokens/s of forward and backward, batch 8, width 64, one head.

Ours, the dual form with an update at every token, beside `titans-pytorch`'s NeuralMemory, which takes one gradient and
one update a chunk: its chunk of 1 is the paper's token-by-token rule, its chunk of 64 the coarse one. Whole layers on
both sides: projections, gates and output included; it has no convolution, so ours stands without and with one. Peers
run where they are installed: `pip install titans-pytorch==0.5.5` into an environment that has torch, and run this file
with it from the repository. LSTM, GRU and causal attention of the same width stand beside. Medians over repeats; peak
memory is of the process, in one of its own for each row, above what it held with torch alone: what the layer imports
and the compiled loops take counts on both sides, less the pages of the libraries' own code, which are shared. Loops
that this machine has not compiled yet are, before the first row.

The last table gives what the issue of the memories asks for: how many times the peer's tokens/s, its peak memory, how
time grows with T, and for depth 2 which share of this machine's single-precision matrix-product rate the operations of
the dual form alone make up (`operations`; forward and a backward of twice as many). A longer chunk of ours makes more
operations a token, in larger products: more of the rate, fewer tokens/s.

Options: --device cuda, --lengths 256,1024,4096, --threads 1, --memory-gb, --chunks 64,128: ours. --paired: in place of
the tables ours and the peer's chunk of 64 by turns in one process, on the CPU, and the median of the ratios of
neighbours: for a machine whose speed changes from one row to the next; as many passes as T leaves time for. A turn
ends with the dual form alone, of given tokens, without what projects and gates them, and with a matrix product of
torch's and one of OpenBLAS's: for the shares of these rates that the operations of the dual form make up of the layer's
time and of its own. Neither is what ours multiplies with; on processors that are not Intel's torch's MKL may be the
slower by half. Which kernels OpenBLAS takes is printed: OPENBLAS_CORETYPE in the environment may name older ones than
it would choose.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from multiprocessing.process import BaseProcess
from pathlib import Path
from queue import Empty

import numpy as np
import torch
from threadpoolctl import threadpool_info, threadpool_limits
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2]))
BATCH, WIDTH, EXPANSION = 8, 64, 4
WIDTHS = (16, 10, 12, 17, 8, 15, 8)  # of the columns of --paired


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part[:, None] for part in self.qkv(x).chunk(3, -1))
        return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)[:, 0]


def ours(depth: int, chunk: int, kernel: int = 1) -> Callable[[Tensor], Tensor]:
    from models.memory.backbone import Inner, MemoryConfig, MemoryLayer

    config = MemoryConfig(width=WIDTH, heads=1, chunk=chunk, kernel=kernel)
    layer = MemoryLayer(config, Inner(depth=depth, expansion=EXPANSION, optimiser="momentum"))
    return Run(layer)


class Run(nn.Module):
    """Our layer from its initial state."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer.scan(x, x.new_ones(x.shape[:2]), self.layer.initial_state(len(x)))[0]  # type: ignore[operator]


def peer(depth: int, chunk: int) -> Callable[[Tensor], Tensor]:
    from titans_pytorch import NeuralMemory

    memory = NeuralMemory(
        dim=WIDTH,
        chunk_size=chunk,
        heads=1,
        default_model_kwargs={"depth": depth, "expansion_factor": float(EXPANSION)},
    )

    class Peer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.memory = memory

        def forward(self, x: Tensor) -> Tensor:
            return self.memory(x)[0]

    return Peer()


def recurrent(kind: type[nn.RNNBase]) -> Callable[[Tensor], Tensor]:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = kind(WIDTH, WIDTH, batch_first=True)  # type: ignore[arg-type]

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)[0]

    return Recurrent()


def kinds(chunks: tuple[int, ...]) -> dict[str, Callable[[], Callable[[Tensor], Tensor]]]:
    """The layers to measure; chunks: ours."""
    found: dict[str, Callable[[], Callable[[Tensor], Tensor]]] = {}
    for depth in (1, 2):
        for chunk in chunks:
            found[mine(depth, chunk)] = partial(ours, depth, chunk)
        found[f"ours, depth {depth}, with convolution"] = partial(ours, depth, chunks[0], kernel=4)
        for chunk in (1, 64):
            found[theirs(depth, chunk)] = partial(peer, depth, chunk)
    return found | {
        "LSTM": partial(recurrent, nn.LSTM),
        "GRU": partial(recurrent, nn.GRU),
        "causal attention": Attention,
    }


def mine(depth: int, chunk: int) -> str:
    return f"ours, depth {depth}, b = {chunk}"


def theirs(depth: int, chunk: int) -> str:
    return f"titans-pytorch, depth {depth}, chunk {chunk}"


def operations(depth: int, chunk: int) -> int:
    """Multiplications and additions of the dual form for one token, forward: of a memory with momentum, at T >> b.

    A layer (I, O): its output and, but for the first, its error passed back; the read of W and S, scores and their
    product with the errors; W and S at the end of the chunk. And the product of the coefficients.
    """
    widths = [(WIDTH, WIDTH)] if depth == 1 else [(WIDTH, EXPANSION * WIDTH), (EXPANSION * WIDTH, WIDTH)]
    total = chunk * chunk
    for layer, (i, o) in enumerate(widths):
        total += (1 + (layer > 0) + 2 + 2) * i * o + chunk * (i + o)
    return 2 * total


def status_mb(field: str) -> float:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return int(lines[field].split()[0]) / 1024


def measure(
    make: Callable[[], Callable[[Tensor], Tensor]], length: int, device: str, threads: int, repeats: int, limit_s: float
) -> tuple[float, float]:
    """Median seconds of forward and backward, and peak MB above the start; as many repeats as the limit allows."""
    before = torch.cuda.memory_allocated() / 2**20 if device == "cuda" else status_mb("VmRSS") - status_mb("RssFile")
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = make().to(device)  # type: ignore[attr-defined]
    x = torch.randn(BATCH, length, WIDTH, device=device, requires_grad=True)
    spent: list[float] = []
    for turn in range(repeats + 1):
        began = time.perf_counter()
        model(x).square().mean().backward()
        if device == "cuda":
            torch.cuda.synchronize()
        if turn or repeats == 0:
            spent.append(time.perf_counter() - began)
        elif time.perf_counter() - began > limit_s:
            spent.append(time.perf_counter() - began)  # too slow to repeat: the first pass stands
            break
    peak = torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else status_mb("VmHWM") - status_mb("RssFile")
    return statistics.median(spent), peak - before


def paired(lengths: list[int], chunks: tuple[int, ...], threads: int) -> None:
    """Prints how many times the tokens/s of the peer's chunk of 64 ours has, each pass beside one of the peer's."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    print(f"OpenBLAS's kernels: {openblas_kernels()}")
    heads = zip(("ours, tokens/s", "chunk 64", "x chunk 64", "of torch's rate", "alone", "of OpenBLAS's", "alone"),
                WIDTHS, strict=True)  # fmt: skip
    print(f"{'':24}{'T':>6}" + "".join(f"{head:>{width}}" for head, width in heads))
    for depth, chunk, length in product((1, 2), chunks, lengths):
        models = (ours(depth, chunk), peer(depth, 64))
        x = torch.randn(BATCH, length, WIDTH, requires_grad=True)
        passes = [*(partial(whole_pass, model, x) for model in models), dual_form(depth, chunk, length)]
        for each in passes:
            each()
        spent: list[list[float]] = [[] for _ in passes]
        rates: list[list[float]] = [[], []]
        for _ in range(max(10, 40 * 1024 // length // depth)):
            for each, times in zip(passes, spent, strict=True):
                began = time.perf_counter()
                each()
                times.append(time.perf_counter() - began)
            for rate, found in zip((matrix_rate, openblas_rate), rates, strict=True):
                found.append(rate())
        speeds = [BATCH * length / statistics.median(times) for times in spent]
        ratio = statistics.median(other / own for own, other in zip(*spent[:2], strict=True))
        needed = 3 * operations(depth, chunk) * BATCH * length
        shares = [
            statistics.median(needed / took / rate for took, rate in zip(spent[whose], found, strict=True))
            for found, whose in product(rates, (0, 2))
        ]
        numbers = f"{speeds[0]:16.0f}{speeds[1]:10.0f}{ratio:12.2f}"
        numbers += "".join(f"{share:{width}.0%}" for share, width in zip(shares, WIDTHS[3:], strict=True))
        print(f"{mine(depth, chunk):24}{length:6}{numbers}", flush=True)


def whole_pass(model: Callable[[Tensor], Tensor], x: Tensor) -> None:
    model(x).square().mean().backward()


def dual_form(depth: int, chunk: int, length: int) -> Callable[[], object]:
    """Forward and backward of ours with tokens in place of what makes them."""
    from models.memory.chunks import chunked
    from models.memory.core import Tokens

    layer = ours(depth, chunk).layer  # type: ignore[attr-defined]
    shape = (BATCH, 1, length)
    key, query, value = (torch.randn(*shape, WIDTH) for _ in range(3))
    key, query = nn.functional.normalize(key, dim=-1), nn.functional.normalize(query, dim=-1)
    leaves = [part.requires_grad_() for part in (key, query, value, *(torch.rand(shape) for _ in range(3)))]
    key, query, value, keep, momentum, rate = leaves
    there = torch.ones(shape)
    residuals = (key, query) if depth else (None, None)
    tokens = Tokens(
        key=key, value=value, query=query, keep=keep, momentum=momentum, rate=rate, importance=there, clip=there,
        present=there, key_residual=residuals[0], query_residual=residuals[1],
    )  # fmt: skip
    state = layer.initial_state(BATCH)
    return lambda: torch.autograd.grad(chunked(layer.rule, tokens, state)[0].square().mean(), leaves)


def matrix_rate() -> float:
    """Operations a second of a product of two matrices of 1024 x 1024, the second time."""
    a = torch.ones(1024, 1024)
    a @ a
    began = time.perf_counter()
    a @ a
    return 2 * 1024**3 / (time.perf_counter() - began)


def openblas_rate() -> float:
    """The same of scipy's OpenBLAS."""
    from scipy.linalg.blas import sgemm

    a = np.ones((1024, 1024), np.float32, order="F")
    with threadpool_limits(torch.get_num_threads()):
        sgemm(1.0, a, a)
        began = time.perf_counter()
        sgemm(1.0, a, a)
        return 2 * 1024**3 / (time.perf_counter() - began)


def openblas_kernels() -> str:
    import scipy.linalg  # noqa: F401  (which loads it)

    pools = (pool for pool in threadpool_info() if "scipy.libs" in pool["filepath"])
    return next((pool["architecture"] for pool in pools), "unknown")


def physical_gb() -> float:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30


def _child(queue: multiprocessing.Queue, memory_gb: float | None, *arguments: object) -> None:
    """Puts into the queue what `measure` gives, or why it does not; an address space without end would end in swap."""
    if memory_gb is not None:
        resource.setrlimit(resource.RLIMIT_AS, (int(memory_gb * 2**30),) * 2)
    try:
        queue.put(measure(*arguments))  # type: ignore[arg-type]
    except Exception as error:
        no_memory = isinstance(error, MemoryError) or "alloc" in str(error)  # torch raises RuntimeError, of any depth
        text = f"{type(error).__name__}: {error}".splitlines()[0][:60]
        queue.put(f"out of memory, of {memory_gb:.1f} GB" if no_memory and memory_gb is not None else text)


def answer(queue: multiprocessing.Queue, process: BaseProcess) -> tuple[float, float] | str:
    """What a child says, or how it died."""
    while True:
        try:
            seen = queue.get(timeout=1.0)
        except Empty:
            if process.is_alive():
                continue
            return f"ended without a result, exit code {process.exitcode}: out of memory?"
        process.join()
        return seen


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    options.add_argument("--lengths", default="256,1024,4096")
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--chunks", default="64")
    options.add_argument("--memory-gb", type=float, default=0.7 * physical_gb(), help="of a row on the CPU, at most")
    options.add_argument("--kinds", default="", help="only those whose name holds this text")
    options.add_argument("--paired", action="store_true")
    chosen = options.parse_args()
    lengths = [int(length) for length in chosen.lengths.split(",")]
    chunks = tuple(int(chunk) for chunk in chosen.chunks.split(","))
    if chosen.paired:
        if chosen.device != "cpu" or chosen.kinds:
            options.error("--paired measures both depths on the CPU: leave --device and --kinds out")
        paired(lengths, chunks, chosen.threads)
        return
    torch.set_num_threads(chosen.threads)
    rate = statistics.median(matrix_rate() for _ in range(7))
    print(f"torch {torch.__version__}, {chosen.device}, {chosen.threads} threads; float32 matrix product "
          f"{rate / 1e9:.0f} GFLOP/s on the CPU")  # fmt: skip
    print(f"{'layer':36}{'T':>6}{'tokens/s':>12}{'peak MB':>10}")
    ours(1, chunks[0])(torch.randn(1, 1, WIDTH, requires_grad=True)).sum().backward()  # compiles where nobody has
    context = multiprocessing.get_context("spawn")
    limit = chosen.memory_gb if chosen.device == "cpu" else None  # CUDA reserves addresses that it does not use
    found: dict[tuple[str, int], tuple[float, float]] = {}  # tokens/s, peak MB
    for length in lengths:
        for kind, make in kinds(chunks).items():
            if chosen.kinds not in kind:
                continue
            queue = context.Queue()
            arguments = (make, length, chosen.device, chosen.threads, chosen.repeats, 20.0)
            process = context.Process(target=_child, args=(queue, limit, *arguments))
            process.start()
            seen = answer(queue, process)
            if isinstance(seen, str):
                print(f"{kind:36}{length:6}  {seen}", flush=True)
                continue
            found[kind, length] = (BATCH * length / seen[0], seen[1])
            print(f"{kind:36}{length:6}{found[kind, length][0]:12.0f}{seen[1]:10.0f}", flush=True)
    summary(found, lengths, chunks, rate)


def summary(
    found: dict[tuple[str, int], tuple[float, float]], lengths: list[int], chunks: tuple[int, ...], rate: float
) -> None:
    """Ours beside the peer, from what was measured in this run; rate: of a matrix product, in operations a second."""
    print(f"\n{'depth':>5}{'b':>5}{'T':>6}{'x chunk 1':>11}{'x chunk 64':>12}{'MB':>6}{'chunk 1':>9}{'chunk 64':>10}"
          f"{'s per T, rel.':>15}{'of the matrix rate':>20}")  # fmt: skip
    nothing = (math.nan, math.nan)
    for depth, chunk in product((1, 2), chunks):
        first = found.get((mine(depth, chunk), lengths[0]), nothing)[0]
        for length in lengths:
            speed, peak = found.get((mine(depth, chunk), length), nothing)
            fine, coarse = (found.get((theirs(depth, other), length), nothing) for other in (1, 64))
            share = 3 * operations(depth, chunk) * speed / rate
            print(f"{depth:5}{chunk:5}{length:6}{speed / fine[0]:11.1f}{speed / coarse[0]:12.2f}{peak:6.0f}"
                  f"{fine[1]:9.0f}{coarse[1]:10.0f}{first / speed:15.2f}{share:20.0%}")  # fmt: skip


if __name__ == "__main__":
    main()
