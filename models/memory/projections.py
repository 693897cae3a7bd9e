"""Several linear maps of the same rows.

By autograd each map of a sequence would send its own gradient back to the rows, which are then added: two passes over
memory for each map. Here the product of each adds to those of the others.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from models.memory.dispatch import can_be_compiled


def linear_maps(x: Tensor, *maps: tuple[Tensor, Tensor | None]) -> tuple[Tensor, ...]:
    """x (B, [T,] D) by each pair of a weight (out, D) and a bias (out) or none: (B, [T,] out) each."""
    if x.dim() == 3:
        parts = [part for pair in maps for part in pair]
        if can_be_compiled(x, *(part for part in parts if part is not None)):
            from models.memory.compiled_functions import CompiledLinearMaps

            return CompiledLinearMaps.apply(x, *parts)
        return _LinearMaps.apply(x, *parts)
    return tuple(linear(x, *pair) for pair in maps)


class _LinearMaps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *parts: Any) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x, *parts[::2])
        return tuple(linear(x, weight, bias) for weight, bias in zip(parts[::2], parts[1::2], strict=True))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        rows, across = x.flatten(0, 1), [grad.flatten(0, 1) for grad in grads]
        d_x = across[0] @ weights[0] if ctx.needs_input_grad[0] else None
        found: list[Tensor | None] = []
        for place, (grad, weight) in enumerate(zip(across, weights, strict=True)):
            if d_x is not None and place:
                d_x.addmm_(grad, weight)
            needed = ctx.needs_input_grad[1 + 2 * place :][:2]
            found += [grad.T @ rows if needed[0] else None, grad.sum(0) if needed[1] else None]
        return None if d_x is None else d_x.view_as(x), *found
