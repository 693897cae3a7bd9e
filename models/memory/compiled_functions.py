"""The compiled loops beside autograd: the dual form of the commonest rules and what stands around it, on the CPU."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.memory import compiled
from models.memory.compiled import Kept, Shapes
from models.memory.core import Rule

WORTH_THREADS = 2**22  # multiplications, some tenths of a millisecond
ACTIVATION = 16  # what a sigmoid takes


class CompiledDual(torch.autograd.Function):
    """Of the rule, rows (key, value, residual, query), five gates and the memories: output, memories, anchors."""

    @staticmethod
    def forward(ctx: Any, rule: Rule, *tensors: Tensor) -> tuple[Tensor, ...]:
        key, value, residual, query, *gates = (part.contiguous() for part in tensors[:9])
        matrices, parts = tensors[9:], 1 + rule.has_momentum
        series, total = query.shape[:2]
        sizes = [matrix.shape[1:].numel() for matrix in matrices]
        begins = [sum(sizes[:place]) for place in range(0, len(sizes), parts)]
        layers = [(*matrix.shape[1:], begin) for matrix, begin in zip(matrices[::parts], begins, strict=True)]
        shapes = Shapes(np.array(layers), parts, rule.chunk, float(rule.radius), rule.depth > 0)
        ends = torch.cat([matrix.flatten(1) for matrix in matrices], 1)
        output = _empty(*value.shape)
        wanted = any(ctx.needs_input_grad)
        long = total if wanted else min(total, rule.chunk)
        hidden = (series, len(layers) - 1, long, matrices[-1].shape[1])
        kept = [
            _empty(series, -(-long // rule.chunk), sum(sizes)),
            _empty(series, -(-long // rule.chunk), len(layers), parts),
            _empty(series, len(layers), long * rule.chunk),
            *(_empty(*hidden) for _ in range(3)),
            _empty(series, long, value.shape[2]),
            _empty(series, long),
        ]
        if not residual.shape[1]:
            residual = value.new_empty(series, 0, value.shape[2])
        rows = (key, value, residual, query)
        entered = (shapes, *map(_arrays, (rows, gates)), ends.numpy())
        ctx.work = work = 6 * series * total * sum(sizes)
        _run(compiled.forward, series, work, *entered, Kept(*_arrays(kept)), wanted, output.numpy())
        ctx.save_for_backward(*rows, *gates, *kept)
        ctx.shapes, ctx.layout = shapes, [matrix.shape for matrix in matrices]
        ctx.residual_is_key = tensors[2] is tensors[0]
        ctx.set_materialize_grads(False)
        anchors = [anchor.clone() for anchor in _apart(kept[0][:, -1], ctx.layout)[::parts]]  # of all chunks' memories
        return output, *_apart(ends, ctx.layout), *anchors

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, output: Tensor | None, *rest: Tensor | None) -> tuple[Tensor | None, ...]:
        rows, gates, kept = ctx.saved_tensors[:4], ctx.saved_tensors[4:9], ctx.saved_tensors[9:]
        key, value, residual, _ = rows
        count, parts = len(ctx.layout), ctx.shapes.parts
        spaced = [anchor for each in rest[count:] for anchor in (each, None)[:parts]]
        anchored = any(grad is not None for grad in spaced)
        ended = anchored or any(grad is not None for grad in rest)
        begun = kept[0][:, 0]
        ends = _joined(begun, ctx.layout, rest[:count])
        anchors = _joined(begun, ctx.layout, spaced) if anchored else begun.new_empty(0, begun.shape[1])
        output = torch.zeros_like(value) if output is None else output.contiguous()
        d_rows, d_gates = [_empty(*part.shape) for part in rows], [_empty(*gate.shape) for gate in gates[:4]]
        entered = (ctx.shapes, *map(_arrays, (rows, gates)), Kept(*_arrays(kept)), output.numpy(), ended)
        _run(
            compiled.backward,
            len(key),
            2 * ctx.work,
            *entered,
            *_arrays((anchors, ends)),
            *map(_arrays, (d_rows, d_gates)),
        )
        if ctx.residual_is_key:
            d_rows[0] += d_rows[2]
        d_key, d_value, d_residual, d_query = d_rows
        own = None if ctx.residual_is_key or not residual.shape[1] else d_residual
        return None, d_key, d_value, own, d_query, *d_gates, None, *_apart(ends, ctx.layout)


class CompiledDirections(torch.autograd.Function):
    """`pointwise.unit_directions` of (B, T, 3 D)."""

    @staticmethod
    def forward(ctx: Any, mixed: Tensor, heads: int) -> tuple[Tensor, ...]:
        rows = mixed.contiguous().unflatten(-1, (3, heads, -1))
        batch, steps, _, _, width = rows.shape
        units, value = _empty(2, batch, heads, steps, width), _empty(batch, heads, steps, width)
        inverses = _empty(*units.shape[:-1])
        _run(compiled.directions, batch, ACTIVATION * mixed.numel(), *_arrays((rows, units, value, inverses)))
        ctx.save_for_backward(rows, units, inverses)
        return units[0], units[1], value

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        rows, *_ = saved = ctx.saved_tensors
        found = _empty(*rows.shape)
        entered = _arrays((*saved, *(grad.contiguous() for grad in grads), found))
        _run(compiled.directions_backward, len(rows), ACTIVATION * rows.numel(), *entered)
        return found.flatten(2), None


class CompiledGatedNorm(torch.autograd.Function):
    """`pointwise.gated_norm` of (B, P, T, W), (P, W) and (B, T, D)."""

    @staticmethod
    def forward(ctx: Any, answer: Tensor, gain: Tensor, gate: Tensor) -> Tensor:
        answer, gain, gate = answer.contiguous(), gain.contiguous(), gate.contiguous().unflatten(-1, gain.shape)
        found = _empty(*gate.shape)
        _run(compiled.gated_norm, len(answer), ACTIVATION * gate.numel(), *_arrays((answer, gain, gate, found)))
        ctx.save_for_backward(answer, gain, gate)
        return found.flatten(2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        answer, gain, gate = ctx.saved_tensors
        found = [_empty(*shape) for shape in (answer.shape, (len(answer), *gain.shape), gate.shape)]
        grad = grad.contiguous().view_as(gate)
        entered = _arrays((answer, gain, gate, grad, *found))
        _run(compiled.gated_norm_backward, len(answer), ACTIVATION * gate.numel(), *entered)
        d_answer, d_gain, d_gate = found
        return d_answer, d_gain.sum(0), d_gate.flatten(2)


class CompiledConvolution(torch.autograd.Function):
    """Each channel of a window (B, K - 1 + T, D) over K values, by weight (D, K): (B, T, D)."""

    @staticmethod
    def forward(ctx: Any, window: Tensor, weight: Tensor) -> Tensor:
        window, weight = window.contiguous(), weight.T.contiguous()
        found = _empty(len(window), window.shape[1] - len(weight) + 1, window.shape[2])
        _run(compiled.convolution, len(window), found.numel() * len(weight), *_arrays((window, weight, found)))
        ctx.save_for_backward(window, weight)
        return found

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        window, weight = ctx.saved_tensors
        found = [
            torch.from_numpy(np.zeros(shape, np.float32)) for shape in (window.shape, (len(window), *weight.shape))
        ]
        entered = _arrays((window, weight, grad.contiguous(), *found))
        _run(compiled.convolution_backward, len(window), 2 * grad.numel() * len(weight), *entered)
        return found[0], found[1].sum(0).T


class CompiledLinearMaps(torch.autograd.Function):
    """`projections.linear_maps` of (B, T, D)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *parts: Any) -> tuple[Tensor, ...]:
        rows, weights, found = x.flatten(0, 1).contiguous(), [weight.contiguous() for weight in parts[::2]], []
        for weight, bias in zip(weights, parts[1::2], strict=True):
            into = _empty(len(rows), len(weight))
            entered = (rows, weight, rows.new_empty(0) if bias is None else bias.contiguous(), into)
            _run(compiled.linear_map, len(rows), rows.numel() * len(weight), *_arrays(entered))
            found.append(into.view(*x.shape[:2], len(weight)))
        ctx.save_for_backward(rows, *weights)
        ctx.shape = x.shape
        ctx.set_materialize_grads(False)
        return tuple(found)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        rows, *weights = ctx.saved_tensors
        threads = torch.get_num_threads()
        d_x: Tensor | None = None
        found: list[Tensor | None] = []
        for place, (grad, weight) in enumerate(zip(grads, weights, strict=True)):
            wanted = ctx.needs_input_grad[1 + 2 * place :][:2]
            if grad is None:
                found += [None, None]
                continue
            more = d_x is not None
            if ctx.needs_input_grad[0] and d_x is None:
                d_x = _empty(*rows.shape)
            d_weight = rows.new_zeros(threads if wanted[0] else 0, *weight.shape)
            d_bias = rows.new_zeros(threads, len(weight) if wanted[1] else 0)
            entered = _arrays((rows, weight, grad.flatten(0, 1).contiguous()))
            left = rows.new_empty(0, rows.shape[1]) if d_x is None else d_x
            _run(
                compiled.linear_map_backward,
                threads,
                rows.numel() * len(weight),
                *entered,
                more,
                *_arrays((left, d_weight, d_bias)),
            )
            found += [d_weight.sum(0) if wanted[0] else None, d_bias.sum(0) if wanted[1] else None]
        return None if d_x is None else d_x.view(ctx.shape), *found


def _run(kernel: Callable[..., None], series: int, work: int, *arguments: Any) -> None:
    """As many threads as torch has, each with series of its own; work: about how many multiplications it is."""
    threads = min(torch.get_num_threads(), series) if work > WORTH_THREADS else 1
    if threads <= 1:
        _without_subnormals(kernel, *arguments, 0, series)
        return
    borders = [series * part // threads for part in range(threads + 1)]
    parts = _pool(os.getpid(), threads).map(
        lambda ends: _without_subnormals(kernel, *arguments, *ends), pairwise(borders)
    )
    list(parts)


def _without_subnormals(kernel: Callable[..., None], *arguments: Any) -> None:
    before = compiled.swap_control_word(compiled.NO_SUBNORMALS)
    try:
        kernel(*arguments)
    finally:
        compiled.swap_control_word(before)


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Its threads stay, for to start some takes longer than small work; a fork of the process has none of them."""
    return ThreadPoolExecutor(threads)


def _empty(*shape: int) -> Tensor:
    """By numpy, which asks for large pages: new ones of the usual size for every pass took an eighth of its time.

    At the beginning of a line of the cache, where numpy does not begin.
    """
    numbers = math.prod(shape)
    room = np.empty(numbers + compiled.LINE, np.float32)
    skipped = -room.ctypes.data % (4 * compiled.LINE) // 4
    return torch.from_numpy(room[skipped : skipped + numbers].reshape(shape))


def _arrays(parts: Sequence[Tensor]) -> tuple[np.ndarray, ...]:
    return tuple(part.detach().numpy() for part in parts)


def _apart(flat: Tensor, layout: Sequence[torch.Size]) -> list[Tensor]:
    """(N, M) as matrices."""
    parts = flat.split([shape[1:].numel() for shape in layout], 1)
    return [part.unflatten(1, shape[1:]) for part, shape in zip(parts, layout, strict=True)]


def _joined(like: Tensor, layout: Sequence[torch.Size], parts: Sequence[Tensor | None]) -> Tensor:
    """Matrices as (N, M); None is 0."""
    flat = torch.zeros_like(like, memory_format=torch.contiguous_format)
    for into, part in zip(flat.split([shape[1:].numel() for shape in layout], 1), parts, strict=True):
        if part is not None:
            into.copy_(part.flatten(1))
    return flat
