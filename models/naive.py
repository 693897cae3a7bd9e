"""The naive forecast of every task: the floor that stands in every leaderboard.

Shapes: B series, T time, C channels, H horizon, Q quantiles, S season, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from models.contract import Batch, Fitted, ModelError, Signature, State, StepModel, observed
from models.lagged import thinned_quantiles
from models.observation import fill_forward


@dataclass(frozen=True)
class NaiveConfig:
    pass


class SeasonalNaive(StepModel, Fitted):
    """The value of one season ago; with a season of 1, the last value (the random walk).

    Quantiles are a normal distribution's around it, of variance sigma^2 * ceil(h / S), with sigma^2 the running mean
    square of the seasonal differences (Hyndman and Athanasopoulos, Forecasting: Principles and Practice, 5.5).
    A missing value is taken from one season before; the first observation fills the whole season.
    """

    tasks = ("forecast",)
    phase: Tensor
    spread: Tensor

    def __init__(self, signature: Signature, config: NaiveConfig = NaiveConfig()) -> None:
        super().__init__(signature)
        steps = torch.arange(signature.horizon)
        normal = torch.tensor([NormalDist().inv_cdf(q) for q in signature.quantiles])
        seasons = (steps // signature.season + 1).sqrt()
        self.register_buffer("phase", steps % signature.season, persistent=False)
        self.register_buffer("spread", seasons[:, None] * normal, persistent=False)  # (H, Q)

    def fit(self, batches: Iterable[Batch], validation: Iterable[Batch] = ()) -> None:
        """Nothing to fit: all it knows is in the state."""

    def initial_state(self, batch: int) -> State:
        return {
            "naive.season": self.zeros(batch, self.signature.season),
            "naive.seen": self.zeros(batch, 1),
            "naive.square": self.zeros(batch, 1),
        }

    def _predict(self, ahead: Tensor, square: Tensor) -> Tensor:
        """ahead: (..., H) values of one season before; square: (..., 1)."""
        return ahead[..., None] + square.sqrt()[..., None] * self.spread

    def step(self, x: Tensor, mask: Tensor, state: State) -> tuple[Tensor, State]:
        seen = observed(x[:, :1], mask[:, :1])
        before, present = state["naive.seen"], seen.to(x.dtype)
        value = torch.where(seen, x[:, :1], state["naive.season"][:, :1])
        difference = (value - state["naive.season"][:, :1]) * before.clamp(max=1.0)
        shifted = torch.cat([state["naive.season"][:, 1:], value], 1)
        season = torch.where(before > 0.5, shifted, value.expand_as(shifted))
        # The first value has no difference to average.
        count = (before + present - 1).clamp(min=1.0)
        square = state["naive.square"] + present * (difference * difference - state["naive.square"]) / count
        after = {"naive.season": season, "naive.seen": before + present, "naive.square": square}
        return self._predict(season[:, self.phase], square), after

    def scan(self, x: Tensor, mask: Tensor, state: State) -> tuple[Tensor, State]:
        ahead, square, after = self._read(x, mask, state)
        return self._predict(ahead, square), after

    def last(self, x: Tensor, mask: Tensor, state: State) -> tuple[Tensor, State]:
        ahead, square, after = self._read(x, mask, state)
        return self._predict(ahead[:, -1], square[:, -1]), after

    def _read(self, x: Tensor, mask: Tensor, state: State) -> tuple[Tensor, Tensor, State]:
        """After every observation the values of one season before the next H (B, T, H), without its whole season in
        memory, and the mean square (B, T, 1); and the state after the last."""
        y, steps, lag = x[..., 0], x.shape[1], self.signature.season
        seen = observed(y, mask[..., 0])
        present = seen.to(y.dtype)
        counts = torch.cat([state["naive.seen"], present], 1).cumsum(1)  # (B, 1 + T)
        first = seen.to(torch.int8).argmax(1, keepdim=True)
        begins = torch.where(seen.any(1, keepdim=True), y.gather(1, first), torch.zeros_like(y[:, :1]))
        opening = torch.where(state["naive.seen"] > 0.5, state["naive.season"], begins)  # (B, S)
        # One row per phase of the season: a missing value comes from the row's last one.
        padding = -steps % lag
        by_phase = torch.nn.functional.pad(y, (0, padding)).unflatten(1, (-1, lag))
        known = torch.nn.functional.pad(seen, (0, padding)).unflatten(1, (-1, lag))
        filled = fill_forward(by_phase, known, opening).flatten(1)[:, :steps]
        everything = torch.cat([opening, filled], 1)  # (B, S + T)
        season = everything[:, 1:].unfold(1, lag, 1)  # (B, T, S), a view
        ahead, last = (
            torch.where(begun[..., None] > 0.5, part, torch.zeros_like(part))
            for begun, part in ((counts[:, 1:], season[..., self.phase]), (counts[:, -1], season[:, -1]))
        )
        difference = (filled - everything[:, :steps]) * counts[:, :-1].clamp(max=1.0)
        # Differences so far: one fewer than values, for the first has none.
        pairs = (counts - 1).clamp(min=0.0)
        total = torch.cat([state["naive.square"] * pairs[:, :1], present * difference * difference], 1).cumsum(1)
        square = total[:, 1:] / pairs[:, 1:].clamp(min=1.0)
        after = {
            "naive.season": last,
            "naive.seen": counts[:, -1:],
            "naive.square": square[:, -1:],
        }
        return ahead, square[..., None], after


class Prior(StepModel, Fitted):
    """Says the same whatever it sees: the class frequencies, or the target's quantiles, of the training data."""

    tasks = ("classify", "regress")
    answer: Tensor

    def __init__(self, signature: Signature, config: NaiveConfig = NaiveConfig()) -> None:
        super().__init__(signature)
        shape = signature.prediction_shape
        self.register_buffer(
            "answer", torch.full(shape, 1.0 / shape[0]) if signature.task == "classify" else torch.zeros(shape)
        )

    def fit(self, batches: Iterable[Batch], validation: Iterable[Batch] = ()) -> None:
        targets = torch.cat([batch.target.flatten() for batch in batches])
        if self.signature.task == "classify":
            counts = torch.bincount(targets[targets >= 0], minlength=self.signature.classes).float()
            if counts.sum() == 0:
                raise ModelError("there is no label in the training data.")
            self.answer.copy_(counts / counts.sum())
        else:
            known = targets[targets.isfinite()]
            if known.numel() == 0:
                raise ModelError("there is no target value in the training data.")
            self.answer.copy_(thinned_quantiles(known[:, None], self.signature.quantiles)[0])

    def initial_state(self, batch: int) -> State:
        return {}

    def step(self, x: Tensor, mask: Tensor, state: State) -> tuple[Tensor, State]:
        return self.answer.expand(x.shape[0], *self.answer.shape), {}

    def scan(self, x: Tensor, mask: Tensor, state: State) -> tuple[Tensor, State]:
        return self.answer.expand(*x.shape[:2], *self.answer.shape), {}
