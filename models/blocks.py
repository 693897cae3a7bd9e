"""What backbones made of blocks share: normalise, mix over time, add; normalise, feed forward, add.

A *mixer* is a layer that sees other times than its own: an attention, a memory. It has `initial_state(batch)` and, as
`step` for one token and `scan` for T of them, `(x, present, state, look=False) -> (out, state, inside)`: x and out
(B, [T,] D), present (B, [T,]), `inside` what there is to see of it, empty unless asked for.

Shapes: B series, T time, E width of the embedding, D width of the blocks.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import conv1d, linear, silu

from models.contract import LARGEST, Form, Inside, ModelError, State

Shapes = dict[str, tuple[int, ...]]


def prefixed(name: str, state: State) -> State:
    return {f"{name}.{key}": value for key, value in state.items()}


def part(name: str, state: State) -> State:
    """The state of one part: the inverse of `prefixed`."""
    return {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}


def shapes_of(state: State) -> Shapes:
    """Of one series."""
    return {name: tuple(value.shape[1:]) for name, value in state.items()}


def check_state(shapes: Shapes, state: State, batch: int) -> None:
    """ModelError unless a network's state is of its configuration, and of so many series.

    Plain Python, and sizes that a graph leaves open are not compared: nothing of the check enters a graph.
    """
    _refuse_other(shapes, {name: state[name] for name in shapes if name in state})
    rows = {value.shape[0] for value in state.values() if isinstance(value.shape[0], int)}
    if isinstance(batch, int) and rows - {batch}:
        raise ModelError(
            f"the state is that of {min(rows - {batch})} series, the observations are of {batch}. A state has a row a "
            "series: start from initial_state of as many, or take the rows that you step."
        )


def own_state(shapes: Shapes, state: State) -> State:
    """A backbone's part of a network's state; ModelError unless it is of its configuration.

    Plain Python: nothing of the check enters a graph.
    """
    _refuse_other(shapes, {name: value for name, value in state.items() if name in shapes or name.startswith("block")})
    return {name: state[name] for name in shapes}


def _refuse_other(shapes: Shapes, state: State) -> None:
    found = shapes_of(state)
    names = [name for name in {**shapes, **found} if found.get(name) != shapes.get(name)]
    differ = [f"{name} is {found.get(name, 'absent')}, not {shapes.get(name, 'known')}" for name in names]
    if differ:
        raise ModelError(
            f"the state is of another configuration: {'; '.join(differ[:3])}. "
            "Start from initial_state, or build the model as it was."
        )


def full_precision(x: Tensor) -> AbstractContextManager:
    """No autocast inside: for what is too large for float16, and for what stays in a state and would grow."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


class FeedForward(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.enter = nn.Linear(width, 2 * hidden, bias=False)
        self.leave = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 2:  # of a single token two maps cost less than to take one's result apart
            weight, hidden = self.enter.weight, self.leave.in_features
            gate, value = linear(x, weight[:hidden]), linear(x, weight[hidden:])
        else:
            gate, value = self.enter(x).chunk(2, -1)
        return self.leave(silu(gate) * value)


class PatchEmbedding(nn.Module):
    """The last n embedded observations at every t -> (B, [T,] D); before a stream they are 0. n = 1: a linear map."""

    def __init__(self, width: int, features: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.linear = nn.Linear(patch * width, features)  # of a patch, oldest observation first

    def initial_state(self, batch: int) -> State:
        if self.patch == 1:
            return {}
        return {"past": self.linear.weight.new_zeros(batch, self.patch - 1, self.linear.in_features // self.patch)}

    def step(self, e: Tensor, state: State) -> tuple[Tensor, State]:
        """e: (B, E)."""
        e = e.to(self.linear.weight.dtype)
        if self.patch == 1:
            return self.linear(e), {}
        rows = torch.cat([state["past"], e[:, None]], 1)
        return self.linear(rows.flatten(1)), {"past": rows[:, 1:]}

    def scan(self, e: Tensor, state: State) -> tuple[Tensor, State]:
        """e: (B, T, E)."""
        e = e.to(self.linear.weight.dtype)
        if self.patch == 1:
            return self.linear(e), {}
        rows = torch.cat([state["past"], e], 1)
        kernel = self.linear.weight.unflatten(1, (self.patch, -1)).transpose(1, 2)  # (D, E, n)
        out = conv1d(rows.transpose(1, 2), kernel, self.linear.bias).transpose(1, 2)
        return out, {"past": rows[:, -(self.patch - 1) :]}


def numbers(e: Tensor, present: Tensor | None) -> Tensor:
    """What is not present may be anything, NaN too; the mixers would carry it to later tokens."""
    return e if present is None else torch.where((present[..., None] > 0.5) | (e.abs() <= LARGEST), e, 0.0)


class Blocks(nn.Module):
    """A backbone: (B, [T,] E) -> (B, [T,] D) through one block a mixer.

    feed_forward: width of the feed-forward layer in D; 0 leaves it out.
    """

    streams: ClassVar[bool] = True

    def __init__(
        self, enter: nn.Module, mixers: Iterable[nn.Module], width: int, feed_forward: int, dropout: float
    ) -> None:
        super().__init__()
        self.features = width
        self.enter = enter
        self.layers = nn.ModuleList(mixers)
        self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in self.layers)
        hidden = feed_forward * width
        self.forwards = nn.ModuleList(FeedForward(width, hidden) for _ in self.layers if hidden)
        self.forward_norms = nn.ModuleList(nn.RMSNorm(width) for _ in self.forwards)
        self.last_norm = nn.RMSNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.shapes = shapes_of(self.initial_state(1))

    def initial_state(self, batch: int) -> State:
        state: State = prefixed("enter", self.enter.initial_state(batch))  # type: ignore[operator]
        for index, layer in enumerate(self.layers):
            state |= prefixed(f"block{index}", layer.initial_state(batch))  # type: ignore[operator]
        return state

    def step(self, e: Tensor, state: State, present: Tensor | None = None) -> tuple[Tensor, State]:
        return self.run("step", numbers(e, present), state, present)[:2]

    def scan(self, e: Tensor, state: State, present: Tensor | None = None) -> tuple[Tensor, State]:
        return self.run("scan", numbers(e, present), state, present)[:2]

    def run(
        self, form: Form, e: Tensor, state: State, present: Tensor | None, look: bool = False
    ) -> tuple[Tensor, State, Inside]:
        """The named form, with what there is to see of the mixers if asked for; e holds numbers up to LARGEST."""
        state = own_state(self.shapes, state)
        if form == "scan" and e.shape[1] == 0:
            return e.new_zeros(len(e), 0, self.features), state, {}
        present = torch.ones_like(e[..., 0]) if present is None else present
        with full_precision(e):
            x, own = getattr(self.enter, form)(e, part("enter", state))
        after, inside = prefixed("enter", own), Inside()
        for index, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
            out, own, seen = getattr(layer, form)(norm(x), present, part(f"block{index}", state), look)
            after |= prefixed(f"block{index}", own)
            inside |= prefixed(f"block{index}", seen)
            x = x + self.dropout(out)
            if self.forwards:
                x = x + self.dropout(self.forwards[index](self.forward_norms[index](x)))
        return self.last_norm(x), {name: after[name] for name in state}, inside
