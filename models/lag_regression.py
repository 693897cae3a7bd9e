"""Forecasts by regression on the past: XGBoost, random forests and linear quantile regression, shared over the series.

What they see is `models.lag_features`; what they forecast is, in scales of the series, the difference from one season
before. `direct` forecasts every lead from what is known now. `recursive` forecasts the next step, takes the forecast
for what came, and so on: one model serves every lead, and errors add up.

Quantiles are made honest by data that the regression did not learn from: each lead and level is shifted by that
quantile of its held-out errors (conformalised quantile regression: Romano, Patterson and Candès 2019, arXiv 1905.03222;
without the finite-sample correction, per lead), then the levels are sorted, which can only lower the pinball loss
(Chernozhukov, Fernández-Val and Galichon 2010, Econometrica 78).

Shapes: B series, T time, C channels, N buffer, H horizon, Q quantiles, F features, O outputs, n rows.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from models.contract import Batch, Fitted, ModelError, Signature, State, StepModel, known_to_the_end, observed
from models.lag_features import LIMIT, SMALLEST, LagFeatures, Past
from models.observation import NUMBERS_AT_ONCE, unit_where_still
from models.trees import ForestConfig, Rows, TreeEnsemble, XGBoostConfig, fit_forest, fit_xgboost

LEAST_ROWS = 50  # to learn from
HELD_OUT = 0.2  # of each training window, its end, where there is no validation part
CHECKED_POSITIONS = 2000  # at which the held-out errors of every lead are measured


@dataclass(frozen=True)
class LagConfig:
    """What all regressions on the past share."""

    lags: int = 96  # values that features are made of; two seasons at least are kept
    strategy: str = "direct"  # direct or recursive
    leads: int = 0  # steps of the horizon that share a direct model; 0: all do
    rows: int = 20_000  # a model learns from at most
    phase: bool = False  # whether the step modulo the season is a feature; for series that begin at one time of it

    def __post_init__(self) -> None:
        if self.lags < 2 or self.leads < 0 or self.rows < LEAST_ROWS:
            raise ModelError(
                f"a regression on the past needs at least 2 lags, leads of 0 or more and {LEAST_ROWS} rows, "
                f"got lags={self.lags}, leads={self.leads} and rows={self.rows}."
            )
        if self.strategy not in ("direct", "recursive"):
            raise ModelError(f"strategy is direct or recursive, not '{self.strategy}'.")


@dataclass(frozen=True)
class QuantileConfig:
    penalty: float = 0.0  # times the sum of the absolute weights of standardised features, beside a row's mean loss

    def __post_init__(self) -> None:
        if not 0 <= self.penalty < float("inf"):
            raise ModelError(f"quantile-regression needs a penalty of 0 or more, got {self.penalty}.")


class Sample(NamedTuple):
    """Rows to learn from."""

    features: Rows  # (n, F)
    target: Rows  # (n,) in scales, relative to one season before


class Learner(ABC):
    """A library that fits one part of a `LagForecaster`."""

    name: str  # in the catalog
    library: str  # what one imports
    by_level: bool = True  # whether it fits quantiles; else the mean
    rounded: bool = True  # whether its features are: whether it jumps where they cross a threshold

    @abstractmethod
    def part(self, features: int, outputs: int) -> nn.Module:
        """Unfitted: (n, F) -> (n, O)."""

    @abstractmethod
    def fit(self, part: Any, rows: Sample, checks: Sample, levels: Sequence[float], seed: int) -> None:
        """Fit what `part` made, an output per level; `checks` come later in time than `rows`."""


class XGBoost(Learner):
    name = "xgboost"
    library = "xgboost"

    def __init__(self, config: XGBoostConfig) -> None:
        self.config = config

    def part(self, features: int, outputs: int) -> TreeEnsemble:
        return TreeEnsemble(outputs)

    def fit(self, part: TreeEnsemble, rows: Sample, checks: Sample, levels: Sequence[float], seed: int) -> None:
        fit_xgboost(part, self.config, rows, checks, levels, seed)


class Forest(Learner):
    name = "random-forest"
    library = "sklearn"
    by_level = False

    def __init__(self, config: ForestConfig) -> None:
        self.config = config

    def part(self, features: int, outputs: int) -> TreeEnsemble:
        return TreeEnsemble(outputs)

    def fit(self, part: TreeEnsemble, rows: Sample, checks: Sample, levels: Sequence[float], seed: int) -> None:
        fit_forest(part, self.config, rows, seed)


class LinearMap(nn.Module):
    """(n, F) -> (n, O)."""

    weight: Tensor
    bias: Tensor

    def __init__(self, features: int, outputs: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(features, outputs))
        self.register_buffer("bias", torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class QuantileRegression(Learner):
    """Koenker and Bassett 1978, by the iteratively reweighted least squares of statsmodels.

    Its linear programme in scikit-learn took ten times longer for the same loss to five digits. The penalty is put in
    as two rows of data per feature, which between them lose as much for a weight as for its opposite.
    """

    name = "quantile-regression"
    library = "statsmodels"
    rounded = False

    def __init__(self, config: QuantileConfig) -> None:
        self.config = config

    def part(self, features: int, outputs: int) -> LinearMap:
        return LinearMap(features, outputs)

    def fit(self, part: LinearMap, rows: Sample, checks: Sample, levels: Sequence[float], seed: int) -> None:
        from statsmodels.regression.quantile_regression import QuantReg
        from statsmodels.tools.sm_exceptions import IterationLimitWarning

        x, y = rows.features.astype(np.float64), rows.target.astype(np.float64)
        centre, spread = x.mean(0), x.std(0)
        moves = spread > 0
        scaled = (x[:, moves] - centre[moves]) / spread[moves]
        design = np.column_stack([np.ones(len(scaled)), scaled])
        if self.config.penalty:
            pull = self.config.penalty * len(y) * np.eye(design.shape[1])[1:]
            design, y = np.concatenate([design, pull, -pull]), np.pad(y, (0, 2 * len(pull)))
        for output, level in enumerate(levels):
            with warnings.catch_warnings():
                # The last digits of the weights take many iterations and are below what the rows can tell.
                warnings.simplefilter("ignore", IterationLimitWarning)
                found = QuantReg(y, design).fit(q=level, max_iter=200).params
            weight = np.zeros(len(moves))
            weight[moves] = found[1:] / spread[moves]
            part.weight[:, output] = torch.from_numpy(weight).to(part.weight)
            part.bias[output] = float(found[0] - centre @ weight)


class LagForecaster(StepModel, Fitted):
    """Quantiles of the next H values by a learner's regression on `LagFeatures`.

    Direct: part k covers the leads [k m, (k + 1) m), m = `leads` (all H by default: the lead is a feature), of which
    every level is a model of its own. Recursive: one model, of the median or mean of the next step. Series that do not
    move are not learned from and are forecast to stay as they are. Where a covariate that counts as known ahead is not,
    there is no forecast: NaN. Others are held at their last value.
    """

    tasks = ("forecast",)
    shift: Tensor

    def __init__(self, signature: Signature, config: LagConfig, learner: Learner) -> None:
        super().__init__(signature)
        self.config = config
        self.learner = learner
        self.library = learner.library
        self.recursive = config.strategy == "recursive"
        self.levels = signature.quantiles if learner.by_level and not self.recursive else (0.5,)
        self.features = LagFeatures(signature, config.lags, config.phase, learner.rounded, self.recursive)
        self.context = self.features.length
        each = 1 if self.recursive else config.leads or signature.horizon
        last = 1 if self.recursive else signature.horizon
        self.blocks = [slice(first, min(first + each, last)) for first in range(0, last, each)]
        parts = [learner.part(self.features.features, len(self.levels)) for _ in self.blocks]
        self.parts = nn.ModuleList(parts)
        self.register_buffer("shift", torch.zeros(signature.horizon, len(signature.quantiles)))

    def initial_state(self, batch: int) -> State:
        return self.features.initial_state(batch)

    def step(self, x: Tensor, mask: Tensor, state: State, future: Tensor | None = None) -> tuple[Tensor, State]:
        past, after = self.features.step(x, mask, state, future)
        return self._predict(past), after

    def scan(self, x: Tensor, mask: Tensor, state: State, future: Tensor | None = None) -> tuple[Tensor, State]:
        windows, after = self.features.scan(x, mask, state, future)
        at_once = max(1, NUMBERS_AT_ONCE // (x.shape[0] * self.signature.horizon * self.features.features))
        pieces = range(0, x.shape[1], at_once)
        parts = [self._predict(windows.past((slice(None), slice(first, first + at_once)))) for first in pieces]
        return torch.cat(parts, 1), after

    def last(self, x: Tensor, mask: Tensor, state: State, future: Tensor | None = None) -> tuple[Tensor, State]:
        after = self.passed(torch.where(observed(x, mask), x, torch.nan), state)
        return self.predict(after, future), after

    def predict(self, state: State, future: Tensor | None = None) -> Tensor:
        """(B, *prediction_shape) from the state as it is, before another observation; future as of a step."""
        return self._predict(self.features.after(state, future))

    def passed(self, x: Tensor, state: State) -> State:
        """The state after the values x (B, T, C), NaN where missing; nothing is predicted on the way."""
        return self.features.scan(x, torch.ones_like(x), state)[1]

    def _predict(self, past: Past) -> Tensor:
        """(..., H, Q) in the data's unit."""
        centre, scale = self._centre(past), past.scale[..., None]
        quantiles = (centre + self.shift.double() * scale).sort(-1).values
        if past.ahead is not None:
            unknown = past.ahead.isnan().any(-1)
            unknown = unknown.cumsum(-1) > 0 if self.recursive else unknown
            quantiles = torch.where(unknown[..., None], torch.nan, quantiles)
        return (past.last[..., None] + quantiles).to(self.shift)

    def _centre(self, past: Past) -> Tensor:
        """(..., H, O) of each lead, relative to the last value, in the data's unit, float64."""
        if not self.recursive:
            outputs = [self._regress(part, past, block) for part, block in zip(self.parts, self.blocks, strict=True)]
            return self.features.references(past)[..., None] + torch.cat(outputs, -2) * past.scale[..., None]
        carried = (past.last, past.values, past.position, *(() if past.ahead is None else (past.ahead,)))
        path = repeated(self._one_ahead, carried, (past.scale, past.covariates), self.signature.horizon)
        return path - past.last[..., None, :]

    def _one_ahead(
        self, last: Tensor, values: Tensor, position: Tensor, *others: Tensor
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """What stands after one more step of a recursion, and its value in the data's unit, (..., 1).

        others: what is known ahead, where something is; scale and covariates.
        """
        *known, scale, covariates = others
        past = Past(last, values, scale, covariates, position, *known)
        ahead = self._regress(self.parts[0], past, slice(0, 1))[..., 0, :]
        past = self.features.extended(past, self.features.references(past)[..., :1] + ahead * past.scale)
        return (past.last, past.values, past.position, *(() if past.ahead is None else (past.ahead,))), past.last

    def _regress(self, part: nn.Module, past: Past, leads: slice) -> Tensor:
        """(..., h, O) in scales, relative to one season before."""
        features = self.features(past, leads)
        rows = features.flatten(0, -2).to(self.shift)
        return part(rows).unflatten(0, features.shape[:-1]).double()

    def fit(self, batches: Iterable[Batch], validation: Iterable[Batch] = ()) -> None:
        """Fit the parts to the training windows; stop growing and measure the errors on the validation windows.

        Without validation windows the last fifth of every training window is held out in their place.

        Raises:
            ModelError: nothing that moves, too few rows, or a covariate without a value.
        """
        self._calibrate(batches)
        seed = torch.initial_seed() % 2**32
        rng = np.random.default_rng(seed)
        known = any(bool(keep.any()) for _, keep in self._positions(validation, "all", whole=False))
        held_out = (validation, "all") if known else (batches, "tail")
        learned = self._draw(batches, "all" if known else "head", self.config.rows, rng)
        still = f"{learned.still} of {learned.still + len(learned.target)} drawn positions do not move: left out."
        self.remarks = (still,) if learned.still else ()
        checked = self._draw(*held_out, max(CHECKED_POSITIONS, self.config.rows // 4), rng)
        for part, block in zip(self.parts, self.blocks, strict=True):
            rows = self._rows(learned, block, self.config.rows, rng)
            checks = self._rows(checked, block, self.config.rows // 4, rng)
            if len(rows.target) < LEAST_ROWS or not len(checks.target):
                raise ModelError(
                    f"{self.learner.name} found {len(rows.target)} rows to learn from and {len(checks.target)} to "
                    f"check by, of series that move; it needs {LEAST_ROWS} and 1. Give it more or longer series "
                    "or a shorter horizon, or take the naive model."
                )
            self.learner.fit(part, rows, checks, self.levels, seed)
        self._measure(checked)

    def _calibrate(self, batches: Iterable[Batch]) -> None:
        """The covariates' mean and spread in the training data."""
        size = (3, self.signature.channels - 1)
        sums = torch.zeros(size, dtype=torch.float64)
        for batch in batches:
            seen = observed(batch.x, batch.mask)[..., 1:]
            values = torch.where(seen, batch.x[..., 1:], 0.0).double()
            sums += torch.stack([seen.double().sum((0, 1)), values.sum((0, 1)), values.square().sum((0, 1))])
        count, total, square = sums
        if bool((count == 0).any()):
            channel = int((count == 0).nonzero()[0]) + 1
            raise ModelError(
                f"channel {channel}, a covariate, has no value in the training data; leave it out of the covariates."
            )
        mean = total / count
        spread = (square / count - mean.square()).clamp(min=0).sqrt()
        self.features.calibrate(mean.float(), unit_where_still(spread, mean).float())

    def _positions(self, batches: Iterable[Batch], which: str, whole: bool = True) -> Iterator[tuple[Batch, Tensor]]:
        """Each batch and the positions (B, T) to use: all, or the head or the tail of each window.

        A position counts if its whole horizon is known, or all but gaps in it, and its buffer is what a stream's would
        be. The head ends a horizon before the tail, so that nothing held out is learned from.
        """
        for batch in batches:
            t = torch.arange(batch.x.shape[1])
            keep = known_to_the_end(batch.target, whole) & observed(batch.x[..., 0], batch.mask[..., 0])
            begins = torch.zeros(len(keep)) if batch.position is None else batch.position
            first = torch.where(begins == 0, self.signature.season, self.context - 1)[:, None]
            keep &= t >= first
            if batch.future is not None:
                keep &= batch.future.isfinite().flatten(2).all(-1)
            if which != "all":
                last = torch.where(keep, t, -1).amax(1, keepdim=True)
                cut = first + ((1 - HELD_OUT) * (last + 1 - first)).long()
                keep &= t >= cut if which == "tail" else t < cut - self.signature.horizon
            yield batch, keep

    def _draw(self, batches: Iterable[Batch], which: str, count: int, rng: np.random.Generator) -> _Drawn:
        """At most `count` positions of series that move.

        Where none knows its whole horizon, as with a gap in every week, those that know some of it.
        """
        whole = any(bool(keep.any()) for _, keep in self._positions(batches, which))
        total = sum(int(keep.sum()) for _, keep in self._positions(batches, which, whole))
        chosen = torch.from_numpy(np.sort(rng.choice(total, min(count, total), replace=False, shuffle=False)))
        pasts, targets, seen = [], [], 0
        for batch, keep in self._positions(batches, which, whole):
            here = chosen[(chosen >= seen) & (chosen < seen + int(keep.sum()))] - seen
            seen += int(keep.sum())
            if not len(here):
                continue
            state = self.initial_state(len(keep))
            if self.config.phase and batch.position is not None:
                state["phase.position"] = torch.remainder(batch.position[:, None], self.signature.season)
            windows, _ = self.features.scan(batch.x, batch.mask, state, batch.future)
            at = tuple(keep.nonzero()[here].T)
            pasts.append(windows.past(at))
            targets.append(batch.target[at].double() - pasts[-1].last)
        if not pasts:
            return _Drawn(self.features.nothing(), torch.zeros(0, self.signature.horizon, dtype=torch.float64))
        drawn = _Drawn(Past.joined(pasts), torch.cat(targets))
        moves = drawn.past.scale[:, 0] > SMALLEST
        return _Drawn(drawn.past.at(moves), drawn.target[moves], int((~moves).sum()))

    def _rows(self, drawn: _Drawn, leads: slice, count: int, rng: np.random.Generator) -> Sample:
        """At most `count` pairs of a position and one of the leads whose target is known."""
        width = leads.stop - leads.start
        known = drawn.target[:, leads].isfinite().flatten().nonzero()[:, 0]
        pairs = len(known)
        chosen = known[np.sort(rng.choice(pairs, min(count, pairs), replace=False, shuffle=False))]
        position, lead = chosen // width, chosen % width
        features = []
        for rows in torch.arange(len(chosen)).split(max(1, NUMBERS_AT_ONCE // (width * self.features.features))):
            of_leads = self.features(drawn.past.at(position[rows]), leads)
            features.append(of_leads[torch.arange(len(rows)), lead[rows]].float())
        past = drawn.past.at(position)
        reference = self.features.references(past).gather(1, (lead + leads.start)[:, None])[:, 0]
        target = (drawn.target[position, lead + leads.start] - reference) / past.scale[:, 0]
        return Sample(torch.cat(features).numpy(), target.clamp(-LIMIT, LIMIT).float().numpy())

    def _measure(self, drawn: _Drawn) -> None:
        """Set the shift of each lead and level to that quantile of the held-out errors."""
        at_once = max(1, NUMBERS_AT_ONCE // (self.signature.horizon * self.features.features))
        errors = []
        for rows in torch.arange(len(drawn.target))[:CHECKED_POSITIONS].split(at_once):
            past = drawn.past.at(rows)
            errors.append((drawn.target[rows][..., None] - self._centre(past)) / past.scale[..., None])
        found = torch.cat(errors)  # (n, H, O)
        for index, level in enumerate(self.signature.quantiles):
            errors_at = found[..., min(index, found.shape[-1] - 1)]
            self.shift[:, index] = torch.nanquantile(errors_at, level, dim=0).nan_to_num().float()  # 0 if none is known


def repeated(
    function: Callable[..., tuple[tuple[Tensor, ...], Tensor]],
    carried: tuple[Tensor, ...],
    constant: tuple[Tensor, ...],
    times: int,
) -> Tensor:
    """(..., times, O) results of function(*carried, *constant) -> what it carries on, result (..., O).

    In an export a Scan node with the function as its body: unrolled, 48 steps took minutes and ran slowly.
    """
    if torch.onnx.is_in_onnx_export():
        from torch._higher_order_ops.scan import scan

        def body(state: tuple[Tensor, ...], _: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
            after, result = function(*state, *constant)
            return tuple(map(_laid_out, after)), _laid_out(result)

        counter = torch.zeros(times, 1, dtype=carried[0].dtype)
        return scan(body, tuple(map(_laid_out, carried)), counter)[1].movedim(0, -2)
    results = []
    for _ in range(times):
        carried, result = function(*carried, *constant)
        results.append(result)
    return torch.stack(results, -2)


def _laid_out(value: Tensor) -> Tensor:
    """A copy in rows. A scan whose state changes its strides is not exported as one, but unrolled without a word."""
    return value.clone(memory_format=torch.contiguous_format)


class _Drawn(NamedTuple):
    """Positions to learn from or to check by: what was known there, and what came."""

    past: Past  # (n, ...)
    target: Tensor  # (n, H) less the last value, in the data's unit, float64
    still: int = 0  # positions drawn but left out, for their series does not move
