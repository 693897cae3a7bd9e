"""What a reader of gestures sees of the past of all channels, however much of it there is yet.

`statistics`: mean and mean magnitude of each tenth of the past; mean, deviation, least and largest of all of it.
`path`: UC2017's features of an incomplete gesture (Simão, Gibaru and Neto 2019, arXiv 2304.06777), the past resampled
to 20 frames by cubic interpolation and the principal axis of its frames. The paper asks for the gesture's end first;
here the past ends now, so that there is an answer at every frame.

The past is that since the stream's first value, its last N frames at most. As in `models.lag_features` all comes from a
ring buffer, in float64, and is rounded to 1 / GRID, so that a tree decides the same in a step, a scan and a graph.

Shapes: B series, T time, C channels, N buffer, F features.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from models.contract import State
from models.lag_features import GRID, LIMIT
from models.observation import LagBuffer

KINDS = ("statistics", "path")
PARTS = 10  # of the past, for statistics
FRAMES = 20  # that the past is resampled to
NEIGHBOURS = 4  # that a frame in between is interpolated from
LEAST_FRAMES = 3  # that have a principal axis
SQUARINGS = 12  # of the covariance: its largest direction to the power of 4096 is all that is left
TIES = 2.0**20  # components of an axis that differ by less than 1 / TIES are of one size


class Window(NamedTuple):
    """What is known of each stream at one time; leading dimensions as of the call."""

    values: Tensor  # (..., N, C) oldest first, in the data's units
    started: Tensor  # (..., C) whether the channel has spoken
    age: Tensor  # (..., 1) frames since the first value, at most N; 0 before it

    def at(self, index: Any) -> Window:
        return Window._make(part[index] for part in self)


class PathFeatures(nn.Module):
    """(B, F) at every step."""

    centre: Tensor
    spread: Tensor

    def __init__(self, channels: int, lags: int, kind: str) -> None:
        super().__init__()
        self.channels, self.length, self.kind = channels, max(lags, NEIGHBOURS), kind
        self.buffer = LagBuffer(channels, self.length)
        self.register_buffer("centre", torch.zeros(channels))
        self.register_buffer("spread", torch.ones(channels))

    @property
    def features(self) -> int:
        """F."""
        return self.channels * (2 * PARTS + 4 if self.kind == "statistics" else FRAMES + 1)

    def calibrate(self, centre: Tensor, spread: Tensor) -> None:
        """Mean and standard deviation of the channels in the training data, each (C,)."""
        self.centre.copy_(centre)
        self.spread.copy_(spread)

    def initial_state(self, batch: int) -> State:
        state = self.buffer.initial_state(batch)
        return {"path.age": torch.zeros_like(state["lags.started"][:, :1])} | state

    def step(self, x: Tensor, mask: Tensor, state: State) -> tuple[Window, State]:
        """x, mask: (B, C)."""
        lags, after = self.buffer.step(x, mask, state)
        age = (state["path.age"] + lags.started.amax(-1, keepdim=True)).clamp(max=self.length)
        return Window(*lags, age), {"path.age": age} | after

    def scan(self, x: Tensor, mask: Tensor, state: State) -> tuple[Window, State]:
        """x, mask: (B, T, C); the windows are a view where memory allows: read them a few at a time."""
        lags, after = self.buffer.scan(x, mask, state)
        age = state["path.age"][:, None] + lags.started.amax(-1, keepdim=True).cumsum(1)
        age = age.clamp(max=self.length)
        return Window(*lags, age), {"path.age": age[:, -1]} | after

    def forward(self, window: Window) -> Tensor:
        """(..., F), multiples of 1 / GRID of a channel's spread, as float64; a channel that never spoke is at 0."""
        values = (window.values.double() - self.centre.double()) / self.spread.double()
        values = values * window.started[..., None, :].double()
        age = window.age.double().clamp(min=1.0)
        found = self._statistics(values, age) if self.kind == "statistics" else self._path(values, age)
        return (found.clamp(-LIMIT, LIMIT) * GRID).round() / GRID

    def _statistics(self, values: Tensor, age: Tensor) -> Tensor:
        edges = torch.arange(PARTS + 1, dtype=age.dtype, device=age.device) / PARTS
        low = torch.minimum((age * edges[:-1]).floor(), age - 1)
        high = torch.maximum((age * edges[1:]).floor(), low + 1)  # a part of less than a frame is that frame
        sums = torch.cat([values, values.abs(), values.square()], -1).cumsum(-2)
        sums = torch.cat([torch.zeros_like(sums[..., :1, :]), sums], -2)  # (..., N + 1, 3 C)

        def mean(first: Tensor, last: Tensor) -> Tensor:
            """Between places of the past, (..., n) each -> (..., n, 3 C)."""
            ends = [(self.length - age + place).long()[..., None].expand(*place.shape, sums.shape[-1])
                    for place in (first, last)]  # fmt: skip
            return (sums.gather(-2, ends[1]) - sums.gather(-2, ends[0])) / (last - first)[..., None]

        parts = mean(low, high)[..., : 2 * self.channels]
        whole = mean(torch.zeros_like(age), age)[..., 0, :]
        average, square = whole[..., : self.channels], whole[..., 2 * self.channels :]
        deviation = (square - average.square()).clamp(min=0.0).sqrt()
        # What stands in the buffer before the first value is that value: it changes no extreme.
        return torch.cat([parts.flatten(-2), average, deviation, values.amin(-2), values.amax(-2)], -1)

    def _path(self, values: Tensor, age: Tensor) -> Tensor:
        places = torch.linspace(0, 1, FRAMES, dtype=age.dtype, device=age.device) * (age - 1)  # (..., 20)
        first = torch.minimum(torch.maximum(places.floor() - 1, torch.zeros_like(age)), age - NEIGHBOURS)
        at = places - first  # of four frames beside each other; before the first value stands that value
        near = [(self.length - age + first + i).long() for i in range(NEIGHBOURS)]
        weights = [
            -(at - 1) * (at - 2) * (at - 3) / 6,
            at * (at - 2) * (at - 3) / 2,
            -at * (at - 1) * (at - 3) / 2,
            at * (at - 1) * (at - 2) / 6,
        ]  # Lagrange's: a cubic path is given exactly
        frames = torch.zeros_like(values[..., :1, :])
        for weight, place in zip(weights, near, strict=True):
            index = place[..., None].expand(*place.shape, self.channels)
            frames = frames + weight[..., None] * values.gather(-2, index)
        return torch.cat([frames.flatten(-2), self._axis(values, age)], -1)

    def _axis(self, values: Tensor, age: Tensor) -> Tensor:
        """(..., C) the direction in which the frames spread most, its largest component positive; 0 where none does."""
        place = torch.arange(self.length, dtype=age.dtype, device=age.device)
        inside = (place >= self.length - age).to(age.dtype)[..., None]  # (..., N, 1)
        centred = (values - (values * inside).sum(-2, keepdim=True) / age[..., None]) * inside
        power = centred.transpose(-1, -2) @ centred
        total = power.diagonal(dim1=-2, dim2=-1).sum(-1)
        moves = (total > 1 / GRID**2) & (age[..., 0] >= LEAST_FRAMES)
        for _ in range(SQUARINGS):
            power = power / power.diagonal(dim1=-2, dim2=-1).sum(-1).clamp(min=1e-30)[..., None, None]
            power = power @ power
        largest = ((power.diagonal(dim1=-2, dim2=-1)) * TIES).round().argmax(-1)
        axis = power.gather(-1, largest[..., None, None].expand(*power.shape[:-1], 1))[..., 0]
        axis = axis / torch.linalg.vector_norm(axis, dim=-1, keepdim=True).clamp(min=1e-30)
        sizes = (axis.abs() * TIES).round()
        sign = axis.gather(-1, sizes.argmax(-1, keepdim=True)).sign()
        return torch.where(moves[..., None], axis * sign, torch.zeros_like(axis))
