"""The pointwise work around a memory: activation and unit length before it, norm and gate after it.

Of whole sequences, forward and backward written out: in single precision on the CPU in loops that numba compiles
(`compiled`), else a block of tokens at a time. Autograd would make some forty passes over all of them, each from main
memory and back: nearly half of what a layer's training took. A block stays in a core's cache, and what the backward
pass needs is made again there.

Shapes: B series, T tokens, P heads, W width of a head, D = P W.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu

from models.memory.dispatch import can_be_compiled

silu_backward = torch.ops.aten.silu_backward

BLOCK = 2**18  # numbers of one operand: a megabyte in single precision
SHORTEST = 1e-12  # a length below it is not divided by, as in `normalize`
SMALLEST = 1e-6  # added to a mean square


def unit_directions(mixed: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (B, P, [T,] W) of their mixed projections (B, [T,] 3 D); the first two of length 1."""
    if mixed.dim() == 3:
        if can_be_compiled(mixed):
            from models.memory.compiled_functions import CompiledDirections

            return CompiledDirections.apply(mixed, heads)
        return _UnitDirections.apply(mixed, heads)
    rows = silu(mixed).unflatten(-1, (3 * heads, 1, -1))
    lengths = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    # All rows at once; a value is divided by max(0 |v|, 1).
    is_value = (torch.arange(3 * heads, device=rows.device) >= 2 * heads).to(rows.dtype)[:, None, None]
    rows = rows / torch.maximum(lengths * (1 - is_value), is_value.clamp(min=SHORTEST))
    query, key, value = (part.squeeze(2) for part in rows.split(heads, 1))
    return query, key, value


def gated_norm(answer: Tensor, gain: Tensor, gate: Tensor) -> Tensor:
    """Answers (B, P, [T,] W) over the root of their mean square, times gain (P, W), times the sigmoid of a gate.

    gate and result: (B, [T,] D); a single token's answers may have a T of 1.
    """
    if gate.dim() == 3:
        if can_be_compiled(answer, gain, gate):
            from models.memory.compiled_functions import CompiledGatedNorm

            return CompiledGatedNorm.apply(answer, gain, gate)
        return _GatedNorm.apply(answer, gain, gate)
    gain = gain[:, None] if answer.dim() == 4 else gain
    return (answer * _inverse(answer) * gain).flatten(1) * gate.sigmoid()


def _inverse(rows: Tensor) -> Tensor:
    return torch.rsqrt(rows.square().mean(-1, keepdim=True) + SMALLEST)


def _blocks(rows: Tensor) -> Iterator[slice]:
    """Of the tokens of (B, T, ...)."""
    length = max(1, BLOCK // max(1, rows[:, :1].numel()))
    return (slice(first, first + length) for first in range(0, rows.shape[1], length))


class _UnitDirections(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mixed: Tensor, heads: int) -> tuple[Tensor, ...]:
        rows = mixed.unflatten(-1, (3, heads, -1))
        batch, steps, _, _, width = rows.shape
        found = tuple(mixed.new_empty(batch, heads, steps, width) for _ in range(3))
        scale = mixed.new_empty(batch, steps, 2, heads, 1)
        for block in _blocks(mixed):
            active = silu(rows[:, block])
            lengths = torch.linalg.vector_norm(active[:, :, :2], dim=-1, keepdim=True).clamp_(min=SHORTEST)
            active[:, :, :2] *= torch.reciprocal(lengths, out=scale[:, block])
            for whole, part in zip(found, active.unbind(2), strict=True):
                whole[:, :, block] = part.transpose(1, 2)
        ctx.save_for_backward(mixed, scale, *found[:2])
        return found

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        mixed, scale, *units = ctx.saved_tensors
        rows = mixed.unflatten(-1, (3, scale.shape[3], -1))
        found = torch.empty_like(rows, memory_format=torch.contiguous_format)
        for block in _blocks(mixed):
            for place, grad in enumerate(grads):
                across = grad[:, :, block].transpose(1, 2)
                if place < len(units):
                    unit, inverse = units[place][:, :, block].transpose(1, 2), scale[:, block, place]
                    along = (across * unit).sum(-1, keepdim=True).mul_(inverse < 1 / SHORTEST)
                    across = torch.addcmul(across, unit, along, value=-1).mul_(inverse)
                silu_backward(across, rows[:, block, place], grad_input=found[:, block, place])
        return found.flatten(2), None


class _GatedNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, answer: Tensor, gain: Tensor, gate: Tensor) -> Tensor:
        found = answer.new_empty(gate.shape)  # the gate may be in half precision
        for block in _blocks(gate):
            rows = answer[:, :, block].transpose(1, 2)
            torch.mul((rows * _inverse(rows)).mul_(gain).flatten(2), gate[:, block].sigmoid(), out=found[:, block])
        ctx.save_for_backward(answer, gain, gate)
        return found

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        answer, gain, gate = ctx.saved_tensors
        d_answer, d_gain, d_gate = (torch.empty_like(answer), torch.zeros_like(gain), torch.empty_like(gate))
        for block in _blocks(gate):
            rows = answer[:, :, block].transpose(1, 2)
            inverse = _inverse(rows)
            unit = rows * inverse
            opened = gate[:, block].sigmoid()
            d_rows = (grad[:, block] * opened).unflatten(-1, gain.shape)
            d_opened = (d_rows * unit).mul_(gain).flatten(2)
            torch.mul(d_opened, 1 - opened, out=d_gate[:, block])
            d_gain += (d_rows * unit).sum((0, 1))
            d_rows *= gain
            along = (d_rows * unit).mean(-1, keepdim=True)
            torch.mul(d_rows.addcmul_(unit, along, value=-1), inverse, out=d_answer[:, :, block].transpose(1, 2))
        return d_answer, d_gain, d_gate
