"""What a model sees of a stream with gaps: imputed values, running statistics and the last L values.

Each part here is a small state with a step and a scan that agree, so that a model made of them keeps the contract.

Shapes: B series, T time, C channels, L lags.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.contract import Batch, ModelError, State, observed


def linear_recurrence(keep: Tensor, add: Tensor, initial: Tensor) -> Tensor:
    """h_t = keep_t * h_{t-1} + add_t for all t at once, in log2(T) rounds.

    keep, add: (B, T, ...); initial: (B, ...). Hillis and Steele's doubling scan over the associative operator
    (k2, a2) after (k1, a1) = (k1 k2, k2 a1 + a2); exact in every term, so 0 <= keep <= 1 stays stable.
    """
    add = torch.cat([(add[:, :1] + keep[:, :1] * initial[:, None]), add[:, 1:]], 1)
    shift = 1
    while shift < add.shape[1]:
        add = torch.cat([add[:, :shift], add[:, shift:] + keep[:, shift:] * add[:, :-shift]], 1)
        keep = torch.cat([keep[:, :shift], keep[:, shift:] * keep[:, :-shift]], 1)
        shift *= 2
    return add


def fill_forward(x: Tensor, seen: Tensor, last: Tensor) -> Tensor:
    """Each missing value becomes the last observed one; `last` before the first. x, seen: (B, T, ...)."""
    shape = (1, -1) + (1,) * (x.dim() - 2)
    positions = torch.arange(1, x.shape[1] + 1, device=x.device).view(shape)
    newest = torch.where(seen, positions, torch.zeros_like(positions)).cummax(1).values
    return torch.cat([last[:, None], x], 1).gather(1, newest)


NUMBERS_AT_ONCE = 8_000_000  # that are made of a scan's lags in memory
STILL = 1e-7  # of a mean: a smaller spread is below what float32 tells apart


def channel_statistics(batches: Iterable[Batch], share: float) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variance and smallest scale of each channel, (C,) each; the last is `share` of the spread.

    Raises:
        ModelError: there are no batches.
    """
    total: Tensor | None = None
    for batch in batches:
        seen = observed(batch.x, batch.mask)
        x = torch.where(seen, batch.x, torch.zeros_like(batch.x)).double()
        moments = torch.stack([seen.double().sum((0, 1)), x.sum((0, 1)), (x * x).sum((0, 1))])
        total = moments if total is None else total + moments
    if total is None:
        raise ModelError("there are no training windows to prepare from.")
    count = total[0].clamp(min=1.0)
    mean = total[1] / count
    var = (total[2] / count - mean * mean).clamp(min=0.0)
    return mean.float(), var.float(), (share * unit_where_still(var.sqrt(), mean)).float()


def unit_where_still(spread: Tensor, mean: Tensor) -> Tensor:
    """The standard deviations (C,) to divide channels by: 1 in place of that of a channel that stands still."""
    return torch.where(spread <= STILL * mean.abs(), 1.0, spread)


LEAST_SCALE = 1e-15  # whose square float32 tells from 0
REACH = 100_000  # observations over which the statistics of who moves reach, at least


class Seen(NamedTuple):
    """A stream through the eyes of `RunningNormaliser`, each (B, C) or (B, T, C)."""

    value: Tensor  # imputed, in the data's units
    level: Tensor  # (value - running mean) / scale
    change: Tensor  # (value - previous value) / scale
    present: Tensor  # 1 where observed
    scale: Tensor  # running standard deviation, in the data's units
    observations: Tensor  # so far, at most the window


class RunningNormaliser(nn.Module):
    """Imputes by the last value and normalises by running statistics, which are part of the state and so stream.

    The mean and variance are exact over the first `window` observations and exponential with rate 1 / window after
    that. They are kept relative to the last value (offset = last - mean), which loses no digits when the level is far
    larger than the spread. With a `prior` of n observations a series starts from the statistics of the training data,
    as if it had seen n observations of them; with 0 it starts from its own first value.

    Statistics, with a_t = 1 / count_t where x_t is observed and 0 where not, d_t = x_t - x_{t-1}:
        offset_t = (1 - a_t) (d_t + offset_{t-1}),   var_t = (1 - a_t) var_{t-1} + a_t (d_t + offset_{t-1}) offset_t.
    """

    floor: Tensor
    prior_mean: Tensor
    prior_var: Tensor

    def __init__(self, channels: int, window: int, prior: int = 0, name: str = "norm") -> None:
        super().__init__()
        self.name = name  # of its part of the state
        self.window = float(window)
        self.prior = float(min(prior, window))
        self.register_buffer("floor", torch.full((channels,), 1e-6))
        self.register_buffer("prior_mean", torch.zeros(channels))
        self.register_buffer("prior_var", torch.ones(channels))

    def calibrate(self, mean: Tensor, var: Tensor, floor: Tensor) -> None:
        """Set the prior statistics and the smallest scale, each (C,); floor keeps constant stretches from exploding."""
        self.prior_mean.copy_(mean)
        self.prior_var.copy_(var)
        self.floor.copy_(floor.clamp(min=LEAST_SCALE))

    def initial_state(self, batch: int) -> State:
        channels = self.floor.shape[0]
        count = self.floor.new_full((batch, channels), self.prior)
        known = count.clamp(max=1.0)
        return self._named(count, known * self.prior_mean, torch.zeros_like(count), known * self.prior_var)

    def _named(self, count: Tensor, last: Tensor, offset: Tensor, var: Tensor) -> State:
        return {
            f"{self.name}.count": count,
            f"{self.name}.last": last,
            f"{self.name}.offset": offset,
            f"{self.name}.var": var,
        }

    def _parts(self, state: State) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return tuple(state[f"{self.name}.{part}"] for part in ("count", "last", "offset", "var"))  # type: ignore[return-value]

    def known(self, count: Tensor, mean: Tensor, var: Tensor) -> State:
        """The state of series of which `count` values have been seen, at their mean; each (B, C)."""
        return self._named(count.clamp(max=self.window), mean, torch.zeros_like(mean), var)

    def after(self, known: Tensor) -> State:
        """The state of series after the prior and so many values of this mean and variance; known: (B, 3, C)."""
        count, mean, var = known.unbind(1)
        share = count / (self.prior + count).clamp(min=1.0)
        away = mean - self.prior_mean
        mixed = (1 - share) * self.prior_var + share * var + share * (1 - share) * away * away
        return self.known(self.prior + count, self.prior_mean + share * away, mixed)

    def step(self, x: Tensor, mask: Tensor, state: State) -> tuple[Seen, State]:
        """x, mask: (B, C)."""
        seen = observed(x, mask)
        present = seen.to(x.dtype)
        before, last, deviation, spread = self._parts(state)
        value = torch.where(seen, x, last)
        change = (value - last) * before.clamp(max=1.0)
        count = (before + present).clamp(max=self.window)
        rate = present / count.clamp(min=1.0)
        surprise = change + deviation
        offset = surprise - rate * surprise
        var = spread + rate * (surprise * offset - spread)
        scale = torch.sqrt(var + self.floor * self.floor)
        view = Seen(value, offset / scale, change / scale, present, scale, count)
        return view, self._named(count, value, offset, var)

    def scan(self, x: Tensor, mask: Tensor, state: State) -> tuple[Seen, State]:
        """x, mask: (B, T, C)."""
        seen = observed(x, mask)
        present = seen.to(x.dtype)
        counted, last, deviation, spread = self._parts(state)
        value = fill_forward(x, seen, last)
        before = torch.cat([counted[:, None], present], 1).cumsum(1)[:, :-1].clamp(max=self.window)
        change = torch.diff(value, dim=1, prepend=last[:, None]) * before.clamp(max=1.0)
        count = (before + present).clamp(max=self.window)
        rate = present / count.clamp(min=1.0)
        offset = linear_recurrence(1 - rate, (1 - rate) * change, deviation)
        surprise = change + torch.cat([deviation[:, None], offset[:, :-1]], 1)
        var = linear_recurrence(1 - rate, rate * surprise * offset, spread)
        scale = torch.sqrt(var + self.floor * self.floor)
        view = Seen(value, offset / scale, change / scale, present, scale, count)
        return view, self._named(count[:, -1], value[:, -1], offset[:, -1], var[:, -1])


class Buffered(NamedTuple):
    """A stream through the eyes of `LagBuffer`; leading dimensions (B,) or (B, T)."""

    values: Tensor  # (..., L, C) imputed, oldest first, in the data's units
    started: Tensor  # (..., C) 1 where the channel has spoken


class LagBuffer(nn.Module):
    """The last L imputed values of every channel, oldest first.

    A gap repeats the last value; the first observation fills the whole buffer, so that a short history looks flat
    rather than like a jump from zero.
    """

    _anchor: Tensor

    def __init__(self, channels: int, lags: int) -> None:
        super().__init__()
        self.channels = channels
        self.lags = lags
        self.register_buffer("_anchor", torch.zeros(()), persistent=False)

    def initial_state(self, batch: int) -> State:
        return {
            "lags.started": self._anchor.new_zeros(batch, self.channels),
            "lags.values": self._anchor.new_zeros(batch, self.lags, self.channels),
        }

    def step(self, x: Tensor, mask: Tensor, state: State) -> tuple[Buffered, State]:
        """x, mask: (B, C)."""
        seen = observed(x, mask)
        started, values = state["lags.started"], state["lags.values"]
        value = torch.where(seen, x, values[:, -1])[:, None]  # (B, 1, C)
        shifted = torch.cat([values[:, 1:], value], 1)
        values = torch.where(started[:, None] > 0.5, shifted, value.expand_as(shifted))
        started = torch.maximum(started, seen.to(x.dtype))
        return Buffered(values, started), {"lags.started": started, "lags.values": values}

    def scan(self, x: Tensor, mask: Tensor, state: State) -> tuple[Buffered, State]:
        """x, mask: (B, T, C); the values are a view where memory allows: read them `NUMBERS_AT_ONCE`."""
        seen = observed(x, mask)
        started, values = state["lags.started"], state["lags.values"]
        started_at = torch.cat([started[:, None], seen.to(x.dtype)], 1).cummax(1).values[:, 1:]  # (B, T, C)
        first = seen.to(torch.int8).argmax(1, keepdim=True)  # (B, 1, C), 0 where nothing was seen
        begins = x.gather(1, first).where(seen.any(1, keepdim=True), values[:, -1:])
        opening = torch.where(started[:, None] > 0.5, values, begins)  # what stands before this scan
        filled = fill_forward(x, seen, opening[:, -1])
        windows = torch.cat([opening, filled], 1)[:, 1:].unfold(1, self.lags, 1).transpose(2, 3)  # (B, T, L, C)
        # Before a series starts its buffer is the initial one: nothing of its first value may show early.
        windows = torch.where(started_at[:, :, None] > 0.5, windows, values[:, None])
        after = {"lags.started": started_at[:, -1], "lags.values": windows[:, -1].contiguous()}
        return Buffered(windows, started_at), after
