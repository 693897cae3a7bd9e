"""Simple methods beside the naive one: drift, and averages of what was observed.

All they know is in the state, as running estimates, so they stream without ever being fitted. Means and h-step
variances are those of Hyndman and Athanasopoulos, Forecasting: Principles and Practice (3rd edition), sections 5.2 and
5.5; quantiles are a normal distribution's.

Shapes: B series, T time, H horizon, Q quantiles, S season, N seasons, W window.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor
from torch.nn.functional import pad

from models.contract import Batch, Fitted, Form, ModelError, Signature, State, StepModel, observed
from models.naive import NaiveConfig
from models.observation import RunningNormaliser, fill_forward

COUNTABLE = 2**24  # up to which float32 counts exactly


class _Simple(StepModel, Fitted):
    """A forecast with nothing to fit, and a normal distribution around it."""

    tasks = ("forecast",)
    normal: Tensor

    def __init__(self, signature: Signature) -> None:
        super().__init__(signature)
        normal = torch.tensor([NormalDist().inv_cdf(q) for q in signature.quantiles])
        self.register_buffer("normal", normal, persistent=False)  # (Q,)

    def fit(self, batches: Iterable[Batch], validation: Iterable[Batch] = ()) -> None:
        """Nothing to fit: all it knows is in the state."""

    def _flat(self, mean: Tensor, variance: Tensor) -> Tensor:
        """The same at every step ahead; mean, variance: (..., 1) give (..., H, Q)."""
        fan = mean + variance.sqrt() * self.normal
        return fan[..., None, :].expand(*fan.shape[:-1], self.signature.horizon, fan.shape[-1])


DRIFT = tuple(f"drift.{name}" for name in ("season", "age", "known", "changes", "seasons", "slope", "squares"))
AVERAGE = ("average.values", "average.count", "average.square")


class Drift(_Simple):
    """The value of one season ago and the mean change of a season; with a lag of 1 the random walk with drift.

    With changes d over m seasons (m > 1 where values are missing between) and M the sum of the m:
        drift c = sum d / M,   sigma^2 = sum m (d / m - c)^2 / (number of changes - 1),
    and k seasons ahead the mean is k c above the value and its variance sigma^2 (k + k^2 / M): of a random walk, and of
    the drift as it was estimated (5.5, table 5.2, where M = T - 1; with a season as in `fable::SNAIVE(y ~ drift())`).
    A gap counts as steps ahead: the forecast starts from the last value that was observed. Until a phase of the season
    was observed, the first value of the series stands for it.
    """

    phase: Tensor
    ahead: Tensor

    def __init__(self, signature: Signature, config: NaiveConfig, *, seasonal: bool = False) -> None:
        super().__init__(signature)
        self.lag = signature.season if seasonal else 1
        steps = torch.arange(signature.horizon)
        self.register_buffer("phase", steps % self.lag, persistent=False)
        self.register_buffer("ahead", (steps // self.lag + 1).float(), persistent=False)

    def initial_state(self, batch: int) -> State:
        return {
            "drift.season": self.zeros(batch, self.lag),  # oldest first
            "drift.age": self.zeros(batch, self.lag),  # how many seasons ago it was last observed
            "drift.known": self.zeros(batch, self.lag),  # 1 once it was
            "drift.changes": self.zeros(batch, 1),
            "drift.seasons": self.zeros(batch, 1),  # M
            "drift.slope": self.zeros(batch, 1),  # c
            "drift.squares": self.zeros(batch, 1),  # the sum in sigma^2
        }

    def _predict(
        self, season: Tensor, age: Tensor, changes: Tensor, seasons: Tensor, slope: Tensor, squares: Tensor
    ) -> Tensor:
        """season, age: (..., H) of the value one season before and more; the others (..., 1)."""
        ahead = self.ahead + age
        mean = season + ahead * slope
        variance = squares / (changes - 1).clamp(min=1.0) * (ahead + ahead * ahead / seasons.clamp(min=1.0))
        return mean[..., None] + variance.sqrt()[..., None] * self.normal

    def step(self, x: Tensor, mask: Tensor, state: State) -> tuple[Tensor, State]:
        season, age, known = state["drift.season"], state["drift.age"], state["drift.known"]
        seen = observed(x[:, :1], mask[:, :1])
        value = torch.where(seen, x[:, :1], season[:, :1])
        since = age[:, :1] + 1
        pair = seen.to(x.dtype) * known[:, :1]
        rate = (value - season[:, :1]) / since
        slope = state["drift.slope"]
        seasons = state["drift.seasons"] + pair * since
        surprise = pair * (rate - slope)
        slope = slope + since * surprise / seasons.clamp(min=1.0)
        squares = state["drift.squares"] + since * surprise * (rate - slope)
        changes = state["drift.changes"] + pair
        shifted = torch.cat([season[:, 1:], value], 1)
        season = torch.where(known.amax(1, keepdim=True) > 0.5, shifted, value.expand_as(shifted))
        age = torch.cat([age[:, 1:], torch.where(seen, torch.zeros_like(since), since * known[:, :1])], 1)
        known = torch.cat([known[:, 1:], torch.maximum(known[:, :1], seen.to(x.dtype))], 1)
        after = [season, age, known, changes, seasons, slope, squares]
        prediction = self._predict(season[:, self.phase], age[:, self.phase], changes, seasons, slope, squares)
        return prediction, dict(zip(DRIFT, after, strict=True))

    def scan(self, x: Tensor, mask: Tensor, state: State) -> tuple[Tensor, State]:
        y, steps, lag = x[..., 0], x.shape[1], self.lag
        seen = observed(y, mask[..., 0])
        present = seen.to(y.dtype)
        already, ages, known = state["drift.season"], state["drift.age"], state["drift.known"]
        started = torch.cat([known.amax(1, keepdim=True), present], 1).cummax(1).values  # (B, 1 + T)
        begins = y.gather(1, seen.to(torch.int8).argmax(1, keepdim=True))
        begins = torch.where(seen.any(1, keepdim=True), begins, torch.zeros_like(begins))
        opening = torch.where(started[:, :1] > 0.5, already, begins)  # (B, S)

        # One row per phase of the season: (B, N, S).
        def by_phase(values: Tensor) -> Tensor:
            return pad(values, (0, -steps % lag)).unflatten(1, (-1, lag))

        def over_time(first: Tensor, values: Tensor) -> Tensor:
            """What stood before, (B, S), and after every step, (B, T)."""
            return torch.cat([first, values.flatten(1)[:, :steps]], 1)

        shown = by_phase(seen)
        turn = torch.arange(1, shown.shape[1] + 1, device=x.device)[:, None]
        newest = torch.where(shown, turn, torch.zeros_like(turn)).cummax(1).values
        unseen = torch.where(newest > 0, (turn - newest).to(y.dtype), (ages[:, None] + turn) * known[:, None])
        filled = over_time(opening, fill_forward(by_phase(y), shown, opening))  # (B, S + T)
        age = over_time(ages, unseen)
        knew = over_time(known, torch.maximum(known[:, None], (newest > 0).to(y.dtype)))

        since = age[:, :steps] + 1
        pair = present * knew[:, :steps]
        difference = pair * (filled[:, lag:] - filled[:, :steps])
        before, slope = state["drift.seasons"], state["drift.slope"]
        seasons = before + (pair * since).cumsum(1)
        slopes = (slope * before + difference.cumsum(1)) / seasons.clamp(min=1.0)
        rate = difference / since
        surprise = pair * (rate - torch.cat([slope, slopes[:, :-1]], 1))
        squares = state["drift.squares"] + (since * surprise * (rate - slopes)).cumsum(1)
        changes = state["drift.changes"] + pair.cumsum(1)
        season = filled[:, 1:].unfold(1, lag, 1)  # (B, T, S), a view
        ahead, last = (
            torch.where(begun[..., None] > 0.5, part, torch.zeros_like(part))
            for begun, part in ((started[:, 1:], season[..., self.phase]), (started[:, -1], season[:, -1]))
        )
        running = [part[..., None] for part in (changes, seasons, slopes, squares)]
        prediction = self._predict(ahead, age[:, 1:].unfold(1, lag, 1)[..., self.phase], *running)
        after = [last, age[:, steps:], knew[:, steps:], *(part[:, -1] for part in running)]
        return prediction, dict(zip(DRIFT, after, strict=True))


@dataclass(frozen=True)
class AverageConfig:
    window: int = 10  # W, observed values that are averaged

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ModelError(f"window-average needs a window of at least 1 value, got {self.window}.")


class WindowAverage(_Simple):
    """The mean of the last W observed values; a missing value is not one of them.

    Of n independent values around one level (n = W once as many were observed) the mean misses the next by a variance
    of sigma^2 (1 + 1/n), at every step ahead. sigma^2 is the running mean of what it missed by, squared and divided by
    (1 + 1/n): the mean misses more where the level moves, and so its quantiles are wider there.
    """

    def __init__(self, signature: Signature, config: AverageConfig = AverageConfig()) -> None:
        super().__init__(signature)
        self.window = config.window

    def initial_state(self, batch: int) -> State:
        return {
            "average.values": self.zeros(batch, self.window),  # oldest first, 0 where there is none yet
            "average.count": self.zeros(batch, 1),
            "average.square": self.zeros(batch, 1),
        }

    def _mean(self, values: Tensor, count: Tensor) -> Tensor:
        """values: (..., W), count: (..., 1); relative to the newest, which loses no digits of a high level."""
        newest = values[..., -1:]
        there = torch.arange(self.window, 0, -1, device=values.device) <= count
        distance = torch.where(there, values - newest, torch.zeros_like(values))
        return newest + distance.sum(-1, keepdim=True) / self._size(count)

    def _size(self, count: Tensor) -> Tensor:
        return count.clamp(min=1.0, max=float(self.window))

    def _predict(self, mean: Tensor, count: Tensor, square: Tensor) -> Tensor:
        return self._flat(mean, square * (1 + 1 / self._size(count)))

    def _unexplained(self, value: Tensor, mean: Tensor, count: Tensor) -> Tensor:
        """What one value says of sigma^2, given the mean of `count` values before it."""
        return (value - mean) ** 2 / (1 + 1 / self._size(count))

    def step(self, x: Tensor, mask: Tensor, state: State) -> tuple[Tensor, State]:
        values, before, square = (state[name] for name in AVERAGE)
        seen = observed(x[:, :1], mask[:, :1])
        value = torch.where(seen, x[:, :1], values[:, -1:])
        count = before + seen.to(x.dtype)
        judged = seen.to(x.dtype) * before.clamp(max=1.0)  # the first value has no forecast to judge
        missed = self._unexplained(value, self._mean(values, before), before)
        square = square + judged * (missed - square) / (count - 1).clamp(min=1.0)
        values = torch.where(seen, torch.cat([values[:, 1:], value], 1), values)
        after = {"average.values": values, "average.count": count, "average.square": square}
        return self._predict(self._mean(values, count), count, square), after

    def scan(self, x: Tensor, mask: Tensor, state: State) -> tuple[Tensor, State]:
        y, (values, before, square) = x[..., 0], (state[name] for name in AVERAGE)
        seen = observed(y, mask[..., 0])
        present = seen.to(y.dtype)
        counts = torch.cat([before, present], 1).cumsum(1)  # (B, 1 + T)
        # The observed values side by side, behind those of the state: a window over them has no gaps.
        order = (~seen).to(torch.int8).argsort(stable=True, dim=1)
        side_by_side = torch.cat([values, torch.where(seen, y, torch.zeros_like(y)).gather(1, order)], 1)
        at = pad(seen.cumsum(1), (1, 0))  # how many of this scan's values stand in the window that ends at t
        offsets = torch.arange(self.window, device=x.device)
        windows = side_by_side[:, None].expand(-1, at.shape[1], -1).gather(2, at[..., None] + offsets)  # (B, 1 + T, W)
        means = self._mean(windows, counts[..., None])[..., 0]
        judged = present * counts[:, :-1].clamp(max=1.0)
        value = torch.where(seen, y, means[:, :-1])
        missed = judged * self._unexplained(value, means[:, :-1], counts[:, :-1])
        judgements = (counts - 1).clamp(min=0.0)
        total = square * judgements[:, :1] + missed.cumsum(1)
        squares = total / judgements[:, 1:].clamp(min=1.0)
        after = {"average.values": windows[:, -1], "average.count": counts[:, -1:], "average.square": squares[:, -1:]}
        running = [part[..., None] for part in (means[:, 1:], counts[:, 1:], squares)]
        return self._predict(*running), after


class HistoricAverage(_Simple):
    """The mean of all n observed values; their sample variance times (1 + 1/n) at every step ahead (5.5, table 5.2)."""

    def __init__(self, signature: Signature, config: NaiveConfig) -> None:
        super().__init__(signature)
        self.statistics = RunningNormaliser(1, COUNTABLE, name="history")
        # No floor but what keeps a division by the deviation finite: here the deviation is the answer.
        self.statistics.calibrate(torch.zeros(1), torch.ones(1), torch.zeros(1))

    def initial_state(self, batch: int) -> State:
        return self.statistics.initial_state(batch)

    def _run(self, form: Form, x: Tensor, mask: Tensor, state: State) -> tuple[Tensor, State]:
        seen, after = getattr(self.statistics, form)(x[..., :1], mask[..., :1], state)
        count = seen.observations.clamp(min=1.0)
        variance = seen.scale * seen.scale * count / (count - 1).clamp(min=1.0)
        return self._flat(seen.value - seen.level * seen.scale, variance * (1 + 1 / count)), after

    def step(self, x: Tensor, mask: Tensor, state: State) -> tuple[Tensor, State]:
        return self._run("step", x, mask, state)

    def scan(self, x: Tensor, mask: Tensor, state: State) -> tuple[Tensor, State]:
        return self._run("scan", x, mask, state)
