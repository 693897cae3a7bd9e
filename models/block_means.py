"""Means over windows of any length from a few sums: what a long past was like, without keeping it.

A window of L steps is ten blocks of L / 10: the sums of nine whole blocks and of the one that is being filled are the
state, so a window covers between nine tenths of L and L, or the whole past where that is shorter. What is summed are
whole numbers, multiples of 1 / GRID of a channel's spread, few enough to be exact in float32: a step, a scan and a
graph give the same bits, and a tree behind them decides the same.

Shapes: B series, T time, C channels, S = 2 C + 1 sums, W windows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.contract import State
from models.lag_features import GRID

BLOCKS = 10  # of a window, the last of them being filled
LARGEST = 32.0  # in spreads; a value beyond it counts as one at it
LONGEST = BLOCKS * 2**24 // int(GRID * LARGEST)  # steps: the sums of a block are exact in float32


class BlockMeans(nn.Module):
    """Mean and mean magnitude of every channel over each window, (B, 2 C W) at every step."""

    _anchor: Tensor

    def __init__(self, channels: int, windows: Sequence[int]) -> None:
        """
        Args:
            windows: each of 1 to `LONGEST` steps.
        """
        super().__init__()
        self.channels = channels
        self.register_buffer("_anchor", torch.zeros(()), persistent=False)
        self.blocks = [-(-window // BLOCKS) for window in windows]  # steps

    @property
    def features(self) -> int:
        return 2 * self.channels * len(self.blocks)

    def initial_state(self, batch: int) -> State:
        sums = 2 * self.channels + 1
        state = {}
        for index in range(len(self.blocks)):
            state[f"means.now{index}"] = self._anchor.new_zeros(batch, sums)
            state[f"means.whole{index}"] = self._anchor.new_zeros(batch, BLOCKS - 1, sums)
        return state

    def step(self, z: Tensor, state: State) -> tuple[Tensor, State]:
        """z: (B, S) of `counted`, at one step."""
        found: list[Tensor] = [z[..., :0].double()]
        after: State = {}
        for index, block in enumerate(self.blocks):
            now, whole = state[f"means.now{index}"], state[f"means.whole{index}"]
            full = now[:, -1:] > block - 0.5
            shifted = torch.cat([whole[:, 1:], now[:, None]], 1)
            whole = torch.where(full[:, None], shifted, whole)
            now = torch.where(full, torch.zeros_like(now), now) + z
            after |= {f"means.now{index}": now, f"means.whole{index}": whole}
            found.append(_means(whole.double().sum(1) + now.double()))
        return torch.cat(found, -1), after

    def scan(self, z: Tensor, state: State) -> tuple[Tensor, State]:
        """z: (B, T, S) of `counted`."""
        found: list[Tensor] = [z[..., :0].double()]
        after: State = {}
        steps = torch.arange(z.shape[1], device=z.device)
        for index, block in enumerate(self.blocks):
            now, whole = state[f"means.now{index}"], state[f"means.whole{index}"]
            # One row of sums: the whole blocks, the one that is being filled, then every step. What lies between two
            # places of it is a difference of the sums up to there.
            upto = torch.cat([torch.zeros_like(whole[:, :1]), whole, now[:, None], z], 1).double().cumsum(1)
            count = now[:, None, -1] + z[..., -1].cumsum(1)  # (B, T) steps since the filled block began
            idle = (z[..., -1] < 0.5).sum(1, keepdim=True)  # (B, 1) steps before the series begins, which count nothing
            of = ((count - 1).clamp(min=0.0) / block).floor().long()  # (B, T) which block each step is in
            first = self._place(of - (BLOCKS - 1), block, now, idle)
            found.append(_means(upto[:, BLOCKS + 1 + steps] - _at(upto, first)))
            last = of[:, -1:] + torch.arange(1 - BLOCKS, 1, device=z.device)  # the blocks of the window at the end
            begins = _at(upto, self._place(last, block, now, idle))  # (B, BLOCKS, S)
            sums = torch.diff(torch.cat([begins, upto[:, -1:]], 1), dim=1).to(z.dtype)
            after |= {f"means.now{index}": sums[:, -1], f"means.whole{index}": sums[:, :-1]}
        return torch.cat(found, -1), after

    @staticmethod
    def _place(of: Tensor, block: int, now: Tensor, idle: Tensor) -> Tensor:
        """Where block `of`, counted from the one that was being filled, begins in the row of sums; of: (B, n)."""
        later = BLOCKS + idle + (of * block - now[:, -1:].long())
        return torch.where(of > 0, later, of + BLOCKS - 1)


def counted(value: Tensor, started: Tensor, centre: Tensor, spread: Tensor) -> Tensor:
    """(..., S) whole numbers to be summed: values, their magnitudes and 1, from the first value of any channel on.

    Args:
        value: (..., C) imputed, in the data's units.
        started: (..., C) whether a channel has spoken; until then it counts as at its centre.
        centre, spread: (C,).
    """
    z = (value.double() - centre.double()) / spread.double() * started.double()
    z = (z.clamp(-LARGEST, LARGEST) * GRID).round()
    return torch.cat([z, z.abs(), started.amax(-1, keepdim=True).double()], -1).to(value.dtype)


def _means(sums: Tensor) -> Tensor:
    """(..., S) -> (..., 2 C) in spreads; 0 of no steps."""
    return sums[..., :-1] / sums[..., -1:].clamp(min=1.0) / GRID


def _at(upto: Tensor, places: Tensor) -> Tensor:
    """(B, N, S) at (B, n) -> (B, n, S)."""
    return upto.gather(1, places[..., None].expand(*places.shape, upto.shape[-1]))
