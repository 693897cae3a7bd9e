"""Recurrent backbones: RNN, LSTM and GRU of any depth, and their bidirectional variants.

The scan runs the library's sequence kernel; the step is the cell's formula, written out so that it exports as plain
matrix products (Lipton et al. 2015, arXiv 1506.00019; gate order i, f, g, o and r, z, n as in PyTorch).
A bidirectional network reads a sequence from its end as well: it labels complete sequences and cannot stream.

Shapes: B series, T time, E width of the embedding, D width of the hidden state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from models.contract import ModelError, State

CELLS: dict[str, Callable[..., nn.RNNBase]] = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


@dataclass(frozen=True)
class RecurrentConfig:
    hidden: int = 64  # D
    layers: int = 1
    dropout: float = 0.0  # between layers and before the head, in training only

    def __post_init__(self) -> None:
        if self.hidden < 1 or self.layers < 1 or not 0 <= self.dropout < 1:
            raise ModelError(
                f"hidden and layers are at least 1 and dropout lies in [0, 1); "
                f"got hidden={self.hidden}, layers={self.layers}, dropout={self.dropout}."
            )


class Recurrent(nn.Module):
    """(B, T, E) -> (B, T, D), one observation or a whole sequence at a time."""

    streams: ClassVar[bool] = True

    def __init__(self, width: int, cell: str, config: RecurrentConfig) -> None:
        super().__init__()
        self.cell = cell
        self.config = config
        self.features = config.hidden
        between = config.dropout if config.layers > 1 else 0.0
        self.net = CELLS[cell](width, config.hidden, config.layers, batch_first=True, dropout=between)
        self.dropout = nn.Dropout(config.dropout)

    def initial_state(self, batch: int) -> State:
        zeros = next(self.net.parameters()).new_zeros(batch, self.config.hidden)
        names = ("h", "c") if self.cell == "lstm" else ("h",)
        return {f"rnn.{name}{layer}": zeros.clone() for layer in range(self.config.layers) for name in names}

    def step(self, e: Tensor, state: State, present: Tensor | None = None) -> tuple[Tensor, State]:
        """e: (B, E) gives (B, D)."""
        after: State = {}
        for layer in range(self.config.layers):
            w_in, w_hidden = getattr(self.net, f"weight_ih_l{layer}"), getattr(self.net, f"weight_hh_l{layer}")
            b_in, b_hidden = getattr(self.net, f"bias_ih_l{layer}"), getattr(self.net, f"bias_hh_l{layer}")
            h = state[f"rnn.h{layer}"]
            if self.cell == "rnn":
                h = torch.tanh(linear(e, w_in, b_in) + linear(h, w_hidden, b_hidden))
            elif self.cell == "lstm":
                i, f, g, o = (linear(e, w_in, b_in) + linear(h, w_hidden, b_hidden)).chunk(4, -1)
                c = torch.sigmoid(f) * state[f"rnn.c{layer}"] + torch.sigmoid(i) * torch.tanh(g)
                h = torch.sigmoid(o) * torch.tanh(c)
            else:
                d = self.config.hidden
                into_gates, into_new = linear(e, w_in, b_in).split([2 * d, d], -1)
                from_gates, from_new = linear(h, w_hidden, b_hidden).split([2 * d, d], -1)
                r, z = torch.sigmoid(into_gates + from_gates).chunk(2, -1)
                new = torch.tanh(into_new + r * from_new)
                h = new + z * (h - new)
            after[f"rnn.h{layer}"] = e = h
            if self.cell == "lstm":
                after[f"rnn.c{layer}"] = c
        return self.dropout(e), after

    def scan(self, e: Tensor, state: State, present: Tensor | None = None) -> tuple[Tensor, State]:
        """e: (B, T, E) gives (B, T, D)."""
        layers = range(self.config.layers)
        h = torch.stack([state[f"rnn.h{layer}"] for layer in layers])
        if self.cell == "lstm":
            out, (h, c) = self.net(e, (h, torch.stack([state[f"rnn.c{layer}"] for layer in layers])))
            after = {}
            for layer in layers:
                after[f"rnn.h{layer}"], after[f"rnn.c{layer}"] = h[layer], c[layer]
        else:
            out, h = self.net(e, h)
            after = {f"rnn.h{layer}": h[layer] for layer in layers}
        return self.dropout(out), after


class Bidirectional(nn.Module):
    """(B, T, E) -> (B, T, 2 D) over whole sequences: every position sees all of its sequence, so it does not stream."""

    streams: ClassVar[bool] = False

    def __init__(self, width: int, cell: str, config: RecurrentConfig) -> None:
        super().__init__()
        self.cell = cell
        self.config = config
        self.features = 2 * config.hidden
        between = config.dropout if config.layers > 1 else 0.0
        self.net = CELLS[cell](
            width, config.hidden, config.layers, batch_first=True, dropout=between, bidirectional=True
        )
        self.dropout = nn.Dropout(config.dropout)

    def initial_state(self, batch: int) -> State:
        return {}

    def step(self, e: Tensor, state: State, present: Tensor | None = None) -> tuple[Tensor, State]:
        raise ModelError("a bidirectional network needs the whole sequence and does not stream; use gru or lstm.")

    def scan(self, e: Tensor, state: State, present: Tensor | None = None) -> tuple[Tensor, State]:
        out, _ = self.net(e)
        return self.dropout(out), {}
