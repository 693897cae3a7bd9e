"""Recurrent backbones: RNN, LSTM and GRU of any depth, behind causal convolutions, and their bidirectional variants.

The scan runs the library's sequence kernel; the step is the cell's formula, written out so that it exports as plain
matrix products (Lipton et al. 2015, arXiv 1506.00019; gate order i, f, g, o and r, z, n as in PyTorch).
Convolutions before an LSTM find short patterns, whose order it remembers (after LRCN, Donahue et al. 2015, arXiv
1411.4389, with convolutions over time in place of those over a picture).
A bidirectional network reads a sequence from its end as well: it labels complete sequences and cannot stream.

Shapes: B series, T time, E width of the embedding, D width of the hidden state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import conv1d, gelu, linear

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


@dataclass(frozen=True)
class ConvolutionalConfig(RecurrentConfig):
    filters: int = 64  # F, of every convolution
    kernel: int = 5  # steps that a convolution sees, the present one last
    convolutions: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.filters < 1 or self.kernel < 2 or self.convolutions < 1:
            raise ModelError(
                f"filters and convolutions are at least 1 and kernel at least 2; got filters={self.filters}, "
                f"kernel={self.kernel}, convolutions={self.convolutions}."
            )


class Convolutional(nn.Module):
    """(B, T, E) -> (B, T, D): convolutions over the steps so far, zeros before the first, then a recurrent network."""

    streams: ClassVar[bool] = True

    def __init__(self, width: int, cell: str, config: ConvolutionalConfig) -> None:
        super().__init__()
        self.config = config
        self.features = config.hidden
        widths = [width] + [config.filters] * config.convolutions
        self.convolutions = nn.ModuleList(nn.Conv1d(a, b, config.kernel) for a, b in pairwise(widths))
        self.recurrent = Recurrent(config.filters, cell, config)

    def initial_state(self, batch: int) -> State:
        pasts = {
            f"conv.past{index}": layer.weight.new_zeros(batch, self.config.kernel - 1, layer.in_channels)
            for index, layer in enumerate(self._layers())
        }
        return pasts | self.recurrent.initial_state(batch)

    def step(self, e: Tensor, state: State, present: Tensor | None = None) -> tuple[Tensor, State]:
        """e: (B, E) gives (B, D)."""
        after: State = {}
        for index, layer in enumerate(self._layers()):
            window = torch.cat([state[f"conv.past{index}"], e[:, None]], 1)
            after[f"conv.past{index}"] = window[:, 1:]
            e = gelu(linear(window.transpose(1, 2).flatten(1), layer.weight.flatten(1), layer.bias))
        out, hidden = self.recurrent.step(e, state)
        return out, after | hidden

    def scan(self, e: Tensor, state: State, present: Tensor | None = None) -> tuple[Tensor, State]:
        """e: (B, T, E) gives (B, T, D)."""
        after: State = {}
        for index, layer in enumerate(self._layers()):
            window = torch.cat([state[f"conv.past{index}"], e], 1)
            after[f"conv.past{index}"] = window[:, 1 - self.config.kernel :]
            e = gelu(conv1d(window.transpose(1, 2), layer.weight, layer.bias).transpose(1, 2))
        out, hidden = self.recurrent.scan(e, state)
        return out, after | hidden

    def _layers(self) -> list[nn.Conv1d]:
        return list(self.convolutions)  # type: ignore[arg-type]


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
