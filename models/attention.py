"""Attention over a window of the past, streamed with a buffer of keys and values that does not grow.

A token at time t looks at itself and at the `window` - 1 tokens `dilation`, 2 `dilation`, ... steps before it. What it
needs of them is in the state: their keys and values in a shift buffer, and how many of its places are filled. Absolute
time is not in the state, so positions are relative: a learned bias for every head and age. Tokens of a learned
*persistent* prefix are seen at every t and have no age (Titans, arXiv 2501.00663, Eq. 19).

An observation that is missing is a token like any other, with the embedding that was imputed for it.

Shapes: B series, T time, E width of the embedding, D width of the network, P heads, W = D / P width of a head,
R rows that a time step adds, w window, p dilation, N = (w - 1) p places of the buffer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from models.blocks import Blocks, PatchEmbedding
from models.contract import Inside, ModelError, State

SMALLEST_BLOCK = 16  # queries of a block of the scan: fewer would be many small products
MOST_TOKENS = 65_536  # that a token may see: every series keeps the keys and values of all of them in its state


def check_window(name: str, tokens: int) -> None:
    """Raise ModelError unless so many tokens may be seen."""
    if not 1 <= tokens <= MOST_TOKENS:
        raise ModelError(
            f"{name} is at least 1 token{f' and at most {MOST_TOKENS}' if tokens > 1 else ''}, not {tokens}."
        )


@dataclass(frozen=True)
class TransformerConfig:
    """What every transformer has: blocks of attention and a gated feed-forward layer."""

    width: int = 64  # D
    heads: int = 4  # P
    blocks: int = 2
    feed_forward: int = 2  # width of the feed-forward layer in D; 0 leaves it out
    dropout: float = 0.0
    persistent: int = 0  # learned tokens that every token sees

    def __post_init__(self) -> None:
        for name in ("width", "heads", "blocks"):
            if getattr(self, name) < 1:
                raise ModelError(f"{name} is at least 1, not {getattr(self, name)}.")
        if self.width % self.heads:
            raise ModelError(f"heads must divide the width: {self.heads} does not divide {self.width}.")
        if self.feed_forward < 0 or self.persistent < 0 or not 0 <= self.dropout < 1:
            raise ModelError(
                "feed_forward and persistent are 0 or more and dropout lies in [0, 1); "
                f"got {self.feed_forward}, {self.persistent} and {self.dropout}."
            )


@dataclass(frozen=True)
class AttentionConfig(TransformerConfig):
    window: int = 96  # w: tokens that a token sees in a block, itself among them

    def __post_init__(self) -> None:
        super().__post_init__()
        check_window("window", self.window)


@dataclass(frozen=True)
class PatchConfig(TransformerConfig):
    blocks: int = 3
    patch: int = 16  # time steps of a patch
    patches: int = 21  # that a token sees in a block, its own among them

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.patch < 1 or self.patches < 1:
            raise ModelError(f"patch and patches are at least 1, got {self.patch} and {self.patches}.")
        check_window("patch * patches", self.patch * self.patches)


class SlidingWindowAttention(nn.Module):
    """Causal multi-head attention of every token to a window of the past, one token or T of them at a time.

    Args:
        window, dilation: w and p of the module's docstring; a window of 1 is the token itself, without a buffer.
        persistent: learned tokens that are always visible.
        rows: R, what a time step adds to the keys and values. The last row is the input, which asks; the others stand
            beside it at the same age (what Titans' MAC retrieved from its memory).
    """

    def __init__(
        self, width: int, heads: int, window: int, *, dilation: int = 1, persistent: int = 0, rows: int = 1
    ) -> None:
        super().__init__()
        self.heads, self.window, self.dilation, self.rows = heads, window, dilation, rows
        self.reach = (window - 1) * dilation  # N
        self.to_query = nn.Linear(width, width, bias=False)
        self.to_key_value = nn.Linear(width, 2 * width, bias=False)
        self.to_output = nn.Linear(width, width, bias=False)
        # At the start older tokens count less, in every head at another rate (ALiBi, arXiv 2108.12409).
        slopes = torch.tensor([2 ** (-8 * (head + 1) / heads) for head in range(heads)])
        start = -slopes[:, None, None] * torch.arange(window)
        self.bias = nn.Parameter(start.expand(heads, rows, window).clone())
        self.persistent = nn.Parameter(torch.randn(persistent, width)) if persistent else None

    def initial_state(self, batch: int) -> State:
        """Nothing was seen yet."""
        if self.reach == 0:
            return {}
        weight = self.to_output.weight
        places = weight.new_zeros(batch, self.heads, self.rows, self.reach, weight.shape[0] // self.heads)
        return {"keys": places, "values": places.clone(), "filled": weight.new_zeros(batch, 1)}

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """x: (B, D), or (B, R, D) where R > 1 -> (B, D)."""
        query, keys, values, after = self._project(x[:, None], state)
        bias = self.bias.flip(-1)  # the oldest first, as in the buffer
        if self.reach:
            ages = self.dilation * torch.arange(self.window - 1, -1, -1, device=x.device)
            seen = ages <= state["filled"]  # (B, w)
            bias = bias.masked_fill(~seen[:, None, None], -math.inf)  # (B, P, R, w)
            keys, values = keys[:, :, :, :: self.dilation], values[:, :, :, :: self.dilation]
        out = self._mix(query, keys.flatten(2, 3), values.flatten(2, 3), bias.flatten(-2)[..., None, :])
        return self.to_output(out.movedim(1, 2).flatten(-2))[:, 0], after

    def scan(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """x: (B, T, D), or (B, T, R, D) where R > 1 -> (B, T, D).

        Every phase of the dilation is a sequence of its own. A block of its queries sees the block's keys and the w - 1
        before it, so that time and memory grow with T w.
        """
        steps, w, p = x.shape[1], self.window, self.dilation
        phase = math.ceil(steps / p)
        block = min(phase, max(w, SMALLEST_BLOCK))
        blocks = math.ceil(phase / block)
        extra = blocks * block * p - steps  # tokens after the last one, which no other sees
        query, keys, values, after = self._project(x, state)

        def windows(rows: Tensor, beyond: float = 0.0) -> Tensor:
            """(..., N + T) -> (..., p, blocks, block + w - 1); `beyond` stands after the last token."""
            phases = pad(rows, (0, extra), value=beyond).unflatten(-1, (-1, p)).transpose(-1, -2)
            return phases.unfold(-1, block + w - 1, block)

        def seen(rows: Tensor) -> Tensor:
            """(B, P, R, N + T, W) -> (B, P, p, blocks, R (block + w - 1), W)."""
            return windows(rows.transpose(-1, -2)).permute(0, 1, 4, 5, 2, 6, 3).flatten(4, 5)

        query = pad(query, (0, 0, 0, extra)).unflatten(2, (blocks, block, p)).permute(0, 1, 4, 2, 3, 5)
        ages = torch.arange(block, device=x.device)[:, None] + w - 1 - torch.arange(block + w - 1, device=x.device)
        visible = (ages >= 0) & (ages < w)
        bias = self.bias[:, :, ages.clamp(0, w - 1)].movedim(1, 2)  # (P, block, R, block + w - 1)
        if self.reach:
            place = torch.arange(self.reach + steps, device=x.device)
            taken = (place >= self.reach - state["filled"]).to(x.dtype)
            # What stands after the last token sees itself: a softmax over nothing is NaN, and its gradient too.
            filled = windows(taken, beyond=1.0) > 0.5  # (B, p, blocks, block + w - 1)
            visible = visible[:, None] & filled[:, None, :, :, None, None]
        else:
            visible = visible[:, None]
        bias = bias[:, None, None].masked_fill(~visible, -math.inf).flatten(-2)
        out = self._mix(query, seen(keys), seen(values), bias)  # (B, P, p, blocks, block, W)
        out = out.permute(0, 3, 4, 2, 1, 5).flatten(1, 3).flatten(-2)
        return self.to_output(out[:, :steps]), after

    def _project(self, x: Tensor, state: State) -> tuple[Tensor, Tensor, Tensor, State]:
        """Query (B, P, T, W), keys and values with the buffer's before them (B, P, R, N + T, W), the next state."""
        x = x if x.dim() == 4 else x[:, :, None]
        query = self.to_query(x[:, :, -1]).unflatten(-1, (self.heads, -1)).movedim(2, 1)
        keys, values = self._keys_values(x)
        keys, values = keys.permute(0, 3, 2, 1, 4), values.permute(0, 3, 2, 1, 4)
        if self.reach == 0:
            return query, keys, values, {}
        steps = x.shape[1]
        keys, values = torch.cat([state["keys"], keys], 3), torch.cat([state["values"], values], 3)
        after = {
            "keys": keys[:, :, :, -self.reach :],
            "values": values[:, :, :, -self.reach :],
            "filled": (state["filled"] + steps).clamp(max=float(self.reach)),
        }
        return query, keys, values, after

    def _keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(..., D) -> (..., P, W) each."""
        keys, values = self.to_key_value(x).unflatten(-1, (2, self.heads, -1)).unbind(-3)
        return keys, values

    def _mix(self, query: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        """Softmax attention of (B, P, ..., Q, W) to (B, P, ..., K, W) and to the prefix; -inf in `bias` hides."""
        query = query / math.sqrt(query.shape[-1])
        scores = query @ keys.transpose(-1, -2) + bias
        if self.persistent is None:
            return scores.softmax(-1) @ values
        # (P, 1, ..., n, W), to stand beside any shape of the queries
        before, said = (
            rows.movedim(0, 1).unflatten(0, (self.heads,) + (1,) * (query.dim() - 4))
            for rows in self._keys_values(self.persistent)
        )
        count = self.persistent.shape[0]
        weights = torch.cat([query @ before.transpose(-1, -2), scores], -1).softmax(-1)
        return weights[..., :count] @ said + weights[..., count:] @ values


class AttentionMixer(nn.Module):
    """An attention as a mixer of `blocks`: it takes what was not present as it takes the rest."""

    def __init__(self, attention: SlidingWindowAttention) -> None:
        super().__init__()
        self.attention = attention

    def initial_state(self, batch: int) -> State:
        return self.attention.initial_state(batch)

    def step(self, x: Tensor, present: Tensor, state: State, look: bool = False) -> tuple[Tensor, State, Inside]:
        return *self.attention.step(x, state), {}

    def scan(self, x: Tensor, present: Tensor, state: State, look: bool = False) -> tuple[Tensor, State, Inside]:
        return *self.attention.scan(x, state), {}


class _Transformer(Blocks):
    def __init__(self, width: int, config: TransformerConfig, patch: int, window: int) -> None:
        attentions = [
            SlidingWindowAttention(config.width, config.heads, window, dilation=patch, persistent=config.persistent)
            for _ in range(config.blocks)
        ]
        enter = PatchEmbedding(width, config.width, patch)
        super().__init__(enter, map(AttentionMixer, attentions), config.width, config.feed_forward, config.dropout)
        self.config = config


class AttentionBackbone(_Transformer):
    """A transformer whose every block looks at the last `window` tokens: L blocks reach L (window - 1) steps back."""

    def __init__(self, width: int, config: AttentionConfig) -> None:
        super().__init__(width, config, patch=1, window=config.window)


class PatchBackbone(_Transformer):
    """A transformer over patches (PatchTST, arXiv 2211.14730), causal and at every t.

    A token is the patch of the last n observations, and looks at the patches n, 2 n, ... steps before it: at every t
    the first block sees the last n * `patches` observations as patches that do not overlap and end at t. So it streams,
    and every t of a window is supervised, where PatchTST has one forecast a window. Each further block reaches
    n (`patches` - 1) steps further back.
    """

    def __init__(self, width: int, config: PatchConfig) -> None:
        super().__init__(width, config, patch=config.patch, window=config.patches)
