"""Ridge on lags: linear, fitted in closed form, shared over the series; the hard floor beside the naive forecast.

A closed-form ridge on a few hundred lags beats most published deep models on the ETT sets (Toner and Darlow 2024,
arXiv 2403.14587), so whatever does not beat it has learned nothing.

Shapes: B series, T time, C channels, L lags, F features, H horizon, Q quantiles, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from models.contract import Batch, Fitted, Form, ModelError, Signature, State, StepModel, known_to_the_end, observed
from models.errors import LARGEST_RATE, LONGEST_SPAN, ErrorMemory
from models.observation import (
    Buffered,
    LagBuffer,
    RunningNormaliser,
    channel_statistics,
    linear_recurrence,
    unit_where_still,
)

ROWS_SORTED = 20_000
FEW_ROWS = 10  # a lag: below, a fit's own residuals are much smaller than its errors, and 0 with as many lags as rows
WELL_CONDITIONED = 1e9  # condition up to which float64 solves to the digits of a float32


@dataclass(frozen=True)
class RidgeConfig:
    lags: int = 96  # L
    penalty: float = 1e-5  # times the mean square of the features
    # P: lags that are whole periods apart share one coefficient, and only the `recent` newest have one of their own
    # beside it, so that a long look-back needs few; 0 leaves each its own. Forecasts only.
    period: int = 0
    recent: int = 0  # R
    # Observations of the running mean that lags and forecast are relative to; 1 is the last value. Forecasts only.
    level_window: int = 1
    # Of the memory of a stream's own errors (`models.errors`): the variance of its weights before any lesson, and so
    # how much one counts; 0 leaves it out; needs a level_window. 1 to 10 over the number of training rows is usual.
    error_rate: float = 0.0
    error_span: float = 4000.0  # steps after which 1 / e is left of what was learned
    error_keys: int = 64  # D: principal components of the forecast that a key is made of

    def __post_init__(self) -> None:
        if self.lags < 2 or not 0 <= self.penalty < math.inf or self.level_window < 1:
            raise ModelError(
                "ridge needs at least 2 lags, a penalty of 0 or more and a level_window of at least 1, "
                f"got lags={self.lags}, penalty={self.penalty} and level_window={self.level_window}."
            )
        if not 0 <= self.period < self.lags or not 0 <= self.recent <= (self.lags if self.period else 0):
            raise ModelError(
                "period is 0 or more and less than lags, recent at most lags and 0 without a period, "
                f"got lags={self.lags}, period={self.period} and recent={self.recent}."
            )
        if not 0 <= self.error_rate <= LARGEST_RATE or not 1 <= self.error_span <= LONGEST_SPAN or self.error_keys < 1:
            raise ModelError(
                f"error_rate is 0 to {LARGEST_RATE:g}, error_span 1 to {LONGEST_SPAN:g} and error_keys at least 1, "
                f"got error_rate={self.error_rate}, error_span={self.error_span} and error_keys={self.error_keys}."
            )
        if self.error_rate and self.level_window < 2:
            raise ModelError("error_rate needs a level_window of 2 or more: errors are told in spreads around a level.")


class SharedCoefficients:
    """Which lags of a ridge have their coefficients in common; `count` is F.

    Without a period every lag has its own. With one, P belong to the means of each phase over the whole look-back, and
    R to the newest lags.
    """

    def __init__(self, config: RidgeConfig) -> None:
        self.count = config.lags
        self._parts: Tensor | None = None  # (L, F) what a lag, oldest first, counts for
        if config.period:
            phase = torch.arange(config.lags - 1, -1, -1) % config.period
            means = torch.nn.functional.one_hot(phase, config.period).double()
            newest = torch.eye(config.lags, dtype=torch.float64)[:, config.lags - config.recent :]
            self._parts = torch.cat([means / means.sum(0), newest], 1)
            self.count = config.period + config.recent

    def features(self, lags: Tensor) -> Tensor:
        """(n, L) -> (n, F), float64."""
        return lags.double() if self._parts is None else lags.double() @ self._parts.to(lags.device)

    def of_lags(self, coefficients: Tensor) -> Tensor:
        """(F, outputs) -> (L, outputs), float32."""
        if self._parts is not None:
            coefficients = self._parts.to(coefficients.device) @ coefficients.double()
        return coefficients.float()


def solve_ridge(gram: Tensor, cross: Tensor, penalty: float) -> Tensor:
    """W (F, outputs) of min |Y - X W|^2 + penalty * mean(diag) |W|^2, from gram = X'X and cross = X'Y, in float64."""
    strength = penalty * gram.diagonal().mean().clamp(min=torch.finfo(gram.dtype).tiny)
    system = gram.clone()
    system.diagonal().add_(strength)
    # The condition is at most 1 + F / penalty. Where that is small a Cholesky factor gives the same digits as an
    # orthogonal one, which takes a hundred times longer for thousands of features.
    if gram.shape[0] < WELL_CONDITIONED * penalty:
        factor, failed = torch.linalg.cholesky_ex(system)
        if not failed:
            return torch.cholesky_solve(cross, factor)
    return torch.linalg.lstsq(system, cross, driver="gelsd" if gram.device.type == "cpu" else None).solution


class _NormalEquations:
    """X'X and X'Y, summed over batches."""

    def __init__(self) -> None:
        self.gram: Tensor | None = None
        self.cross: Tensor | None = None
        self.rows = 0

    def add(self, features: Tensor, targets: Tensor) -> None:
        if not len(features):
            return
        features, targets = features.double(), targets.double()
        gram, cross = features.T @ features, features.T @ targets
        self.rows += len(features)
        self.gram = gram if self.gram is None else self.gram + gram
        self.cross = cross if self.cross is None else self.cross + cross

    def solve(self, penalty: float) -> Tensor:
        """The least weights that do best: zeros where the features say nothing, as of constant series."""
        if self.gram is None or self.cross is None:
            raise ModelError(
                "ridge found nothing to learn from: no training window has a known target. Give longer series, or "
                "fewer lags."
            )
        return solve_ridge(self.gram, self.cross, penalty)

    def left_out(self, features: Tensor, targets: Tensor, penalty: float) -> Tensor:
        """(n, K) what rows that are part of the equations would miss by if each were not: exact, without a refit.

        features: (n, F); targets: (n, K), float64 both.
        """
        assert self.gram is not None
        assert self.cross is not None
        solved = solve_ridge(self.gram, torch.cat([self.cross, features.T], 1), penalty)
        weight, pulls = solved.split([self.cross.shape[1], len(features)], 1)
        leverage = (features * pulls.T).sum(1, keepdim=True)
        return (targets - features @ weight) / (1 - leverage).clamp(min=1e-9)

    def components(self, weight: Tensor, count: int) -> Tensor:
        """(F, count) features -> the principal components of X weight, each of mean square 1; 0 where there is none."""
        assert self.gram is not None
        values, vectors = torch.linalg.eigh(weight.T @ self.gram @ weight / self.rows)
        values, vectors = values.flip(0)[:count], vectors.flip(1)[:, :count]
        there = values > 1e-9 * values[0]
        sizes = torch.where(there, values, 1.0).sqrt()
        found = weight @ (vectors / sizes) * there
        return torch.nn.functional.pad(found, (0, count - found.shape[1]))


Step = tuple[slice, _NormalEquations]  # leads, and the equations that their weights solve


class _WindowEquations:
    """X'X, X'Y and their sums, where rows of X are windows over C channels that mostly move on by one step each.

    Row t is (z[t - L + 1], ..., z[t]), oldest first. Of rows a to b - 1 without a break, entries of X'X that lie one
    step apart, (p, q) and (p + C, q + C), are sums of the same products but for the first and the last:

        G[p, q] = G[p + C, q + C] + (x[a] x[a]')[p, q] - (x[b - 1] x[b - 1]')[p + C, q + C]

    So the last C columns and the ends of the runs give all of it, in n F C + F^2 operations in place of n F^2.
    """

    def __init__(self, channels: int) -> None:
        self.channels = channels
        self.rows = 0
        self.cross: Tensor  # (F, K)
        self.sums: tuple[Tensor, Tensor]  # of X (F,) and of Y (K,)
        self._last: Tensor  # (F, C) last columns of X'X
        self._ends: Tensor  # (F - C, F - C) what the ends of the runs add

    def add(self, features: Tensor, targets: Tensor, begins: Tensor) -> None:
        """features: (n, F); targets: (n, K); begins: (n,) whether a row is not the one before moved on by a step."""
        if not len(features):
            return
        features, targets, channels = features.double(), targets.double(), self.channels
        if not self.rows:
            size = features.shape[1]
            self.cross, self._last = features.new_zeros(size, targets.shape[1]), features.new_zeros(size, channels)
            self.sums = features.new_zeros(size), features.new_zeros(targets.shape[1])
            self._ends = features.new_zeros(size - channels, size - channels)
        self.rows += len(features)
        begins = begins.clone()
        begins[0] = True
        first, last = features[begins, :-channels], features[begins.roll(-1), channels:]
        self._ends.addmm_(first.T, first).addmm_(last.T, last, alpha=-1)
        self._last.addmm_(features.T, features[:, -channels:])
        self.cross.addmm_(features.T, targets)
        self.sums[0].add_(features.sum(0))
        self.sums[1].add_(targets.sum(0))

    def gram(self) -> Tensor:
        """(F, F)"""
        size, step = len(self._last), self.channels
        gram = self._last.new_empty(size, size)
        gram[:, -step:], gram[-step:] = self._last, self._last.T
        for row in range(size - 2 * step, -1, -step):
            gram[row : row + step, :-step] = gram[row + step : row + 2 * step, step:] + self._ends[row : row + step]
        return gram


class Lags(NamedTuple):
    """What a ridge forecast is made from."""

    values: Tensor  # (..., L) the last ones, oldest first
    offset: Tensor  # (..., 1) the last less the level
    correction: Tensor | None  # (..., H) what the memory of errors adds

    def at(self, index: Any) -> Lags:
        return Lags._make(None if part is None else part[index] for part in self)


def thinned_quantiles(rows: Tensor, levels: tuple[float, ...]) -> Tensor:
    """(n, outputs) -> (outputs, Q) quantiles of what is not NaN, of rows thinned evenly to what a sort can bear."""
    rows = rows[:: max(1, len(rows) // ROWS_SORTED)]
    return torch.nanquantile(rows, rows.new_tensor(levels), dim=0).T.contiguous()


class RidgeForecaster(StepModel, Fitted):
    """One linear map from the last L values to the next H, both relative to the series' level.

    The level is the last value or, with a `level_window`, the running mean of the stream: what the lags cannot know,
    and where a forecast far ahead returns to. It is fitted with the level as it was known at each time: the mean of the
    whole training part knows the future, and a map fitted with that trusts in the return too much.

    With an `error_rate` every stream has a linear memory of what its forecasts got wrong (`models.errors`), which
    starts empty and at every observation learns from the forecast made H steps ago.

    Training rows are weighted by 1 / scale^2 of their series, so that series of any size share the map; it has no
    intercept, so it is equivariant to each series' level and scale. Quantiles are the training residuals', of few rows
    those of each row left out, in units of the running root mean square of the one-step differences (exponential over
    the last 10 L).
    """

    tasks = ("forecast",)
    weight: Tensor
    spread: Tensor

    def __init__(self, signature: Signature, config: RidgeConfig = RidgeConfig()) -> None:
        super().__init__(signature)
        self.config = config
        self.window = 10.0 * config.lags
        self.errors: ErrorMemory | None = None
        if config.error_rate:
            sizes = (config.lags, signature.horizon, config.error_keys)
            self.errors = ErrorMemory(*sizes, config.error_rate, config.error_span)
        # A memory of errors also needs the values that came after the lags of the forecast made H steps ago.
        self.buffer = LagBuffer(1, config.lags + (signature.horizon if self.errors is not None else 0))
        self.level = RunningNormaliser(1, config.level_window, name="level") if config.level_window > 1 else None
        self.register_buffer("weight", torch.zeros(config.lags, signature.horizon))
        self.register_buffer("spread", torch.zeros(signature.horizon, len(signature.quantiles)))

    def initial_state(self, batch: int) -> State:
        statistics = {"ridge.count": self.zeros(batch, 1), "ridge.square": self.zeros(batch, 1)}
        return self.initial_lags(batch) | statistics

    def initial_lags(self, batch: int) -> State:
        """The part of the state that `read_lags` needs."""
        state = self.buffer.initial_state(batch)
        for part in (self.level, self.errors):
            if part is not None:
                state |= part.initial_state(batch)
        return state

    def known_level(self, batch: Batch) -> State:
        """What the state of a training window starts with: the level as a stream would know it there."""
        if self.level is None:
            return {}
        if batch.before is None:
            raise ModelError("a ridge with a level_window learns from batches that know what came before.")
        count, mean, spread = batch.before[:, :, None].unbind(1)
        return self.level.known(count, mean, spread.square())

    def read_lags(self, form: Form, x: Tensor, mask: Tensor, state: State, learn: bool = True) -> tuple[Lags, State]:
        """What a forecast is made from, by the named form ('step' or 'scan') of every part; x, mask: (..., C).

        With `learn` False the memory of errors stays as it is and says nothing, for windows too short to teach it.
        """
        buffered, after = getattr(self.buffer, form)(x[..., :1], mask[..., :1], state)
        window = buffered.values.squeeze(-1)
        values = window[..., -self.config.lags :]
        if self.level is None:
            return Lags(values, torch.zeros_like(values[..., -1:]), None), after
        seen, statistics = getattr(self.level, form)(x[..., :1], mask[..., :1], state)
        after, offset = after | statistics, seen.level * seen.scale
        if self.errors is None or not learn:
            return Lags(values, offset, None), after
        relative = (window - window[..., -1:] + offset) / seen.scale
        correction, learned = getattr(self.errors, form)(relative, seen.present, self.weight, state)
        return Lags(values, offset, seen.scale * correction), after | learned

    def step(self, x: Tensor, mask: Tensor, state: State) -> tuple[Tensor, State]:
        present = observed(x[:, :1], mask[:, :1]).to(x.dtype)
        before = state["lags.started"]
        lags, after = self.read_lags("step", x, mask, state)
        values = lags.values
        present = present * before  # the first value has no difference
        difference = (values[:, -1:] - state["lags.values"][:, -1]) * before
        count = (state["ridge.count"] + present).clamp(max=self.window)
        rate = present / count.clamp(min=1.0)
        square = state["ridge.square"] + rate * (difference * difference - state["ridge.square"])
        return self._predict(lags, square), after | {"ridge.count": count, "ridge.square": square}

    def scan(self, x: Tensor, mask: Tensor, state: State) -> tuple[Tensor, State]:
        lags, square, after = self._scan(x, mask, state)
        return self._predict(lags, square), after

    def last(self, x: Tensor, mask: Tensor, state: State) -> tuple[Tensor, State]:
        lags, square, after = self._scan(x, mask, state)
        return self._predict(lags.at((slice(None), -1)), square[:, -1]), after

    def _scan(self, x: Tensor, mask: Tensor, state: State, learn: bool = True) -> tuple[Lags, Tensor, State]:
        """At every t what a forecast is made from, and the mean square of the differences (B, T, 1)."""
        seen = observed(x[..., :1], mask[..., :1]).to(x.dtype)
        lags, after = self.read_lags("scan", x, mask, state, learn)
        values = lags.values
        started = torch.cat([state["lags.started"][:, None], seen], 1).cummax(1).values[:, :-1]
        present = seen * started
        last = torch.cat([state["lags.values"][:, -1:], values[..., -1:]], 1)  # (B, 1 + T, 1)
        difference = torch.diff(last, dim=1) * started
        count = torch.cat([state["ridge.count"][:, None], present], 1).cumsum(1)[:, 1:].clamp(max=self.window)
        rate = present / count.clamp(min=1.0)
        square = linear_recurrence(1 - rate, rate * difference * difference, state["ridge.square"])
        return lags, square, after | {"ridge.count": count[:, -1], "ridge.square": square[:, -1]}

    def deviation(self, lags: Lags) -> Tensor:
        """(..., H): how far the next values lie from the last."""
        ahead = (lags.values - lags.values[..., -1:] + lags.offset) @ self.weight - lags.offset
        return ahead if lags.correction is None else ahead + lags.correction

    def _predict(self, lags: Lags, square: Tensor) -> Tensor:
        """square: (..., 1)."""
        mean = lags.values[..., -1:] + self.deviation(lags)
        return mean[..., None] + square.sqrt()[..., None] * self.spread

    def fit(self, batches: Iterable[Batch], validation: Iterable[Batch] = ()) -> None:
        shared = SharedCoefficients(self.config)
        equations, steps, units = _NormalEquations(), [], []
        for lags, target, _, scale in self._examples(batches):
            equations.add(shared.features(lags / scale), target / scale)
            units.append(scale)
        whole = equations.rows >= shared.count
        if whole:
            steps = [(slice(0, self.signature.horizon), equations)]
            weight = equations.solve(self.config.penalty)
        else:
            equations, steps, units = self._equations_of_each_step(batches, shared)
            weight = torch.zeros(shared.count, self.signature.horizon, dtype=torch.float64)
            for leads, step in steps:  # of a step that no row knows the last value stands
                weight[:, leads] = step.solve(self.config.penalty).to(weight)
        self.weight.copy_(shared.of_lags(weight))
        if self.level is not None:
            zero = torch.zeros(1)
            self.level.calibrate(zero, zero + 1, 1e-4 * torch.cat(units).amin(0))  # a small series has a spread too
        if self.errors is not None:
            keys = equations.components(weight, self.config.error_keys)
            self.errors.to_key.copy_(shared.of_lags(keys))
        residuals = []
        few = FEW_ROWS * shared.count
        for lags, target, running, scale in self._examples(batches, whole):
            errors = target - lags @ self.weight
            for leads, step in steps:
                if step.rows < few:
                    x, y = shared.features(lags / scale), (target[:, leads] / scale).double()
                    errors[:, leads] = (step.left_out(x, y, self.config.penalty) * scale).float()
            residuals.append((errors / running.clamp(min=1e-30))[running[:, 0] > 0])
        rows = torch.cat(residuals)
        if any(step.rows < few for _, step in steps):
            rows = torch.cat([rows, -rows])  # the skew of few errors is chance, and one alone has no spread
        if not len(rows):  # every series is constant: there is no spread to learn
            return
        levels = torch.tensor(self.signature.quantiles)
        spread = thinned_quantiles(rows, self.signature.quantiles).nan_to_num()  # of a step that no row knows
        # The mean forecast is the middle of the fan: residuals of a least-squares fit are centred up to sampling noise.
        middle = (spread * _trapezoid(levels).to(spread)).sum(-1, keepdim=True)
        self.spread.copy_(spread - middle)

    def _equations_of_each_step(
        self, batches: Iterable[Batch], shared: SharedCoefficients
    ) -> tuple[_NormalEquations, list[Step], list[Tensor]]:
        """Those of the rows that know the target of a step, where few or none know all: a shop that is closed on
        Sundays has no two weeks without a gap.

        Returns:
            The equations of all rows, those of each step that some row knows, and the scale of each row.
        """
        everyone, units = _NormalEquations(), []
        steps = [_NormalEquations() for _ in range(self.signature.horizon)]
        for lags, target, _, scale in self._examples(batches, whole=False):
            known, features = target.isfinite(), shared.features(lags / scale)
            everyone.add(features, target.nan_to_num() / scale)
            units.append(scale)
            for h, step in enumerate(steps):
                rows = known[:, h]
                step.add(features[rows], target[rows, h : h + 1] / scale[rows])
        if not everyone.rows:
            everyone.solve(self.config.penalty)  # says that there is nothing to learn from
        return everyone, [(slice(h, h + 1), step) for h, step in enumerate(steps) if step.rows], units

    def _examples(
        self, batches: Iterable[Batch], whole: bool = True
    ) -> Iterable[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Per batch: features (n, L) and targets (n, H) relative to the level, running and series scale (n, 1); of the
        rows that know the whole target, or all of it but for gaps, which are NaN."""
        for batch in batches:
            start = self.initial_state(batch.x.shape[0]) | self.known_level(batch)
            lags, square, _ = self._scan(batch.x, batch.mask, start, learn=False)
            values, level = lags.values, lags.values[..., -1:] - lags.offset
            target = batch.target - level
            keep = known_to_the_end(target, whole) & observed(batch.x[..., 0], batch.mask[..., 0])
            keep[:, : min(self.config.lags, keep.shape[1]) - 1] = False
            scale = batch.scale[:, None, None].expand(*keep.shape, 1)
            yield (values - level)[keep], target[keep], square.sqrt()[keep], scale[keep]


def _trapezoid(levels: Tensor) -> Tensor:
    """Weights of the mean of a piecewise-linear quantile function with flat tails; they sum to 1."""
    middles = (levels[1:] + levels[:-1]) / 2
    edges = torch.cat([levels.new_zeros(1), middles, levels.new_ones(1)])
    return torch.diff(edges)


class RidgeReader(StepModel, Fitted):
    """Classes or a number from the last L values of every channel, by one linear map.

    Channels are standardised by the training data. Classes: least squares on one-hot targets, turned into
    probabilities by a softmax whose temperature is fitted to the training labels; a class that lies between two others
    is beyond it. Numbers: least squares, with the training residuals' quantiles.
    """

    tasks = ("classify", "regress")
    centre: Tensor
    spread: Tensor
    weight: Tensor
    bias: Tensor
    sharpness: Tensor
    offsets: Tensor

    def __init__(self, signature: Signature, config: RidgeConfig = RidgeConfig()) -> None:
        super().__init__(signature)
        self.config = config
        outputs = signature.classes if signature.task == "classify" else 1
        self.buffer = LagBuffer(signature.channels, config.lags)
        self.register_buffer("centre", torch.zeros(signature.channels))
        self.register_buffer("spread", torch.ones(signature.channels))
        self.register_buffer("weight", torch.zeros(config.lags * signature.channels, outputs))
        self.register_buffer("bias", torch.zeros(outputs))
        self.register_buffer("sharpness", torch.ones(()))
        self.register_buffer("offsets", torch.zeros(len(signature.quantiles)))

    def initial_state(self, batch: int) -> State:
        return self.buffer.initial_state(batch)

    def step(self, x: Tensor, mask: Tensor, state: State) -> tuple[Tensor, State]:
        lags, after = self.buffer.step(x, mask, state)
        return self._predict(self._features(lags)), after

    def scan(self, x: Tensor, mask: Tensor, state: State) -> tuple[Tensor, State]:
        lags, after = self.buffer.scan(x, mask, state)
        return self._predict(self._features(lags)), after

    def _features(self, lags: Buffered) -> Tensor:
        """(..., L * C); a channel that never spoke is at its mean."""
        return ((lags.values - self.centre) / self.spread * lags.started[..., None, :]).flatten(-2)

    def _predict(self, features: Tensor) -> Tensor:
        score = features @ self.weight + self.bias
        if self.signature.task == "classify":
            return (self.sharpness * score).softmax(-1)
        return score + self.offsets

    def fit(self, batches: Iterable[Batch], validation: Iterable[Batch] = ()) -> None:
        if not any(observed(batch.x, batch.mask).any() for batch in batches):
            raise ModelError("ridge found no value in the training data.")
        mean, variance, _ = channel_statistics(batches, 0.0)
        self.centre.copy_(mean)
        self.spread.copy_(unit_where_still(variance.sqrt(), mean))
        equations = _WindowEquations(self.signature.channels)
        for features, target, begins in self._examples(batches):
            equations.add(features, target, begins)
        if not equations.rows:
            raise ModelError("ridge found no position with a known target in the training data.")
        mean_features, mean_targets = (total / equations.rows for total in equations.sums)
        # Centring the normal equations leaves the intercept unpenalised.
        gram = equations.gram().addr_(mean_features, mean_features, alpha=-equations.rows)
        cross = equations.cross.addr_(mean_features, mean_targets, alpha=-equations.rows)
        weight = solve_ridge(gram, cross, self.config.penalty).float()
        self.weight.copy_(weight)
        self.bias.copy_((mean_targets - mean_features @ weight.double()).float())
        if self.signature.task == "classify":
            self._fit_sharpness(batches)
        else:
            examples = self._examples(batches)
            residuals = [target - features @ self.weight - self.bias for features, target, _ in examples]
            self.offsets.copy_(thinned_quantiles(torch.cat(residuals), self.signature.quantiles)[0])

    def _fit_sharpness(self, batches: Iterable[Batch]) -> None:
        scores, labels = [], []
        for features, target, _ in self._examples(batches):
            scores.append(features @ self.weight + self.bias)
            labels.append(target.argmax(-1))
        score, label = torch.cat(scores), torch.cat(labels)
        grid = torch.logspace(-1, 2, 31, device=score.device)
        losses = torch.stack([torch.nn.functional.cross_entropy(value * score, label) for value in grid])
        self.sharpness.copy_(grid[losses.argmin()])

    def _examples(self, batches: Iterable[Batch]) -> Iterable[tuple[Tensor, Tensor, Tensor]]:
        """Per batch: features (n, L * C), targets (n, K) one-hot or (n, 1), and `begins` of `_WindowEquations` (n,)."""
        for batch in batches:
            state = self.initial_state(batch.x.shape[0])
            lags = self.buffer.scan(batch.x, batch.mask, state)[0]
            classes = self.signature.task == "classify"
            known = batch.target >= 0 if classes else batch.target.isfinite()
            # A channel that begins to speak fills its past, and so breaks the run.
            breaks = torch.ones_like(known)
            breaks[:, 1:] = ~known[:, :-1] | (lags.started[:, 1:] != lags.started[:, :-1]).any(-1)
            target = batch.target[known]
            if classes:
                target = torch.nn.functional.one_hot(target, self.signature.classes).to(batch.x.dtype)
            else:
                target = target[:, None]
            yield self._features(Buffered(lags.values[known], lags.started[known])), target, breaks[known]
