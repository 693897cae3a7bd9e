"""The mean of ridges that look back over spans of several lengths and learn from their errors at several rates.

One more may share its coefficients over periods, and look back over several: it has few of them, and so other errors
than a ridge with one for every lag. Which span and rate will be best is not known beforehand, and what was best before
need not be again; the mean of several is near the best of them (Bates and Granger 1969; N-BEATS, arXiv 1905.10437, 3.4,
takes it over look-backs).

Shapes: B series, H horizon, Q quantiles.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor, nn

from models.contract import Batch, Fitted, ModelError, Signature, State, StepModel
from models.lagged import RidgeConfig, RidgeForecaster

SHORTER, SLOWER = 2 / 3, 1 / 3


@dataclass(frozen=True)
class RidgesConfig(RidgeConfig):
    """Of the ridge that looks back farthest, and how many others there are; `lags` is its L.

    `period` and `recent` are of one more ridge, which looks back over so many `periods`; without a period it is not
    there.
    """

    lookbacks: int = 3  # each is two thirds of the one before
    rates: int = 1  # of a memory of errors, for every look-back: each is a third of the one before
    periods: int = 3

    def __post_init__(self) -> None:
        if self.lookbacks < 1 or self.rates < 1:
            raise ModelError(f"lookbacks and rates are at least 1, got {self.lookbacks} and {self.rates}.")
        if self.rates > 1 and not self.error_rate:
            raise ModelError(f"rates={self.rates} needs an error_rate: there is nothing to divide.")
        if self.period < 0 or (self.recent and not self.period) or self.periods < 2:
            raise ModelError(
                "period is 0 or more, recent 0 without a period, and periods at least 2, "
                f"got period={self.period}, recent={self.recent} and periods={self.periods}."
            )
        _ = self.members  # each says what is wrong with it

    @property
    def members(self) -> list[RidgeConfig]:
        """Of few lags several are the same, and one then."""
        shorter = (max(2, round(self.lags * SHORTER**place)) for place in range(1, self.lookbacks))
        own = RidgeConfig(
            penalty=self.penalty, level_window=self.level_window, error_span=self.error_span, error_keys=self.error_keys
        )
        spans = [replace(own, lags=count) for count in dict.fromkeys([self.lags, *shorter])]
        if self.period:
            spans.append(replace(own, lags=self.periods * self.period, period=self.period, recent=self.recent))
        rates = [self.error_rate * SLOWER**place for place in range(self.rates)]
        return [replace(span, error_rate=rate) for span, rate in product(spans, rates)]


class Ridges(StepModel, Fitted):
    """The mean of the quantiles of `RidgesConfig.members`, each with a state of its own."""

    tasks = ("forecast",)

    def __init__(self, signature: Signature, config: RidgesConfig = RidgesConfig()) -> None:
        super().__init__(signature)
        self.config = config
        self.members = nn.ModuleList(RidgeForecaster(signature, member) for member in config.members)
        self.context = max(member.lags for member in config.members)

    def initial_state(self, batch: int) -> State:
        return _joined([member.initial_state(batch) for member in self._ridges])

    def fit(self, batches: Iterable[Batch], validation: Iterable[Batch] = ()) -> None:
        first: dict[RidgeConfig, RidgeForecaster] = {}  # of those that differ in the rate alone, which no fit looks at
        for member in self._ridges:
            alike = first.setdefault(replace(member.config, error_rate=self.config.error_rate), member)
            if alike is member:
                member.fit(batches, validation)
            else:
                member.load_state_dict(alike.state_dict())

    def step(self, x: Tensor, mask: Tensor, state: State) -> tuple[Tensor, State]:
        return self._mean("step", x, mask, state)

    def scan(self, x: Tensor, mask: Tensor, state: State) -> tuple[Tensor, State]:
        return self._mean("scan", x, mask, state)

    def last(self, x: Tensor, mask: Tensor, state: State) -> tuple[Tensor, State]:
        return self._mean("last", x, mask, state)

    def _mean(self, form: str, x: Tensor, mask: Tensor, state: State) -> tuple[Tensor, State]:
        predictions, states = [], []
        for place, member in enumerate(self._ridges):
            own = {name.removeprefix(_of(place)): part for name, part in state.items() if name.startswith(_of(place))}
            prediction, after = getattr(member, form)(x, mask, own)
            predictions.append(prediction)
            states.append(after)
        return torch.stack(predictions).mean(0), _joined(states)

    @property
    def _ridges(self) -> list[RidgeForecaster]:
        return list(self.members)  # type: ignore[arg-type]


def _of(place: int) -> str:
    return f"member{place}."


def _joined(states: Sequence[State]) -> State:
    return {_of(place) + name: part for place, state in enumerate(states) for name, part in state.items()}
