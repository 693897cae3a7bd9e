"""The states of many series behind one trained model, in torch: stepped over what is new, whose cost does not grow with
the history. What a bundle keeps of its series, without torch, is `forecasting.stream`.

Letters: N series, T time, C channels, F covariates known ahead, H horizon, Q quantiles.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor

from data.panel import Series
from forecasting.passes import VALUES_AT_ONCE
from forecasting.training import Trained
from models.contract import Local, State, StepModel, concat, take


@torch.no_grad()
def advance(model: StepModel, state: State, values: Sequence[np.ndarray]) -> tuple[Tensor, State]:
    """Step N series over their new values; those with the same number of them share a batch.

    Args:
        state: of the N series, in the order of `values`.
        values: (T_i, C) each, T_i at least 1, NaN where missing.

    Returns:
        What the model says after each series' last value, (N, *prediction_shape), and the next state.
    """
    together: dict[int, list[int]] = defaultdict(list)
    for row, new in enumerate(values):
        together[len(new)].append(row)
    size = int(np.prod(model.signature.prediction_shape))
    order, predictions, states = [], [], []
    for length, everyone in together.items():
        for first in range(0, len(everyone), 64):
            members = everyone[first : first + 64]
            x = torch.from_numpy(np.stack([values[row] for row in members]).astype(np.float32))
            known = x.isfinite().to(x.dtype)
            part = take(state, torch.tensor(members))
            if model.signature.future:  # a forecast waits for what is known ahead
                part = cast(Local, model).passed(x, part)
                order += members
                states.append(part)
                predictions.append(unknown(model, len(members)))
                continue
            piece = max(1, VALUES_AT_ONCE // (size * len(members))) if model.streams else length
            for begin in range(0, length, piece):
                steps = slice(begin, begin + piece)
                prediction, part = model.last(x[:, steps], known[:, steps], part)
            order += members
            predictions.append(prediction)
            states.append(part)
    back = torch.argsort(torch.tensor(order))
    return torch.cat(predictions)[back], take(concat(states), back)


def unknown(model: StepModel, rows: int) -> Tensor:
    """In the place of predictions of a model that has not been told what is known ahead."""
    return torch.full((rows, *model.signature.prediction_shape), torch.nan)


@dataclass(eq=False)
class Streams:
    """Series behind one trained model: the state of each, and what the model said after its last observation."""

    model: StepModel
    rows: dict[str, int]  # unique_id -> its place in all that follows
    state: State
    prediction: Tensor  # (N, *prediction_shape)
    ends: np.ndarray  # (N,) time of the last step

    @classmethod
    def of(cls, trained: Trained, panel: Sequence[Series]) -> Streams:
        """Behind the panel that the model was trained on: a local model has seen it, another one reads it now."""
        if trained.states is None:
            return cls.read(trained.model, panel)
        names = [series.unique_id for series in panel]
        state = trained.states.fits.state_of(names)
        rows = {name: row for row, name in enumerate(names)}
        ends = np.array([series.ds[-1] for series in panel])
        if trained.model.signature.future:
            return cls(trained.model, rows, state, unknown(trained.model, len(names)), ends)
        with torch.no_grad():
            return cls(trained.model, rows, state, cast(Local, trained.model).predict(state), ends)

    @classmethod
    def read(cls, model: StepModel, panel: Sequence[Series]) -> Streams:
        """From its beginning, by a model that is shared by all series."""
        prediction, state = advance(model, model.initial_state(len(panel)), [series.values for series in panel])
        rows = {series.unique_id: row for row, series in enumerate(panel)}
        return cls(model, rows, state, prediction, np.array([series.ds[-1] for series in panel]))

    @torch.no_grad()
    def look_ahead(self, rows: np.ndarray, future: np.ndarray) -> Tensor:
        """What some series say, (n, H, Q), where future (n, H, F) is known ahead of their last observation."""
        state = take(self.state, torch.from_numpy(rows))
        return cast(Local, self.model).predict(state, torch.from_numpy(future.astype(np.float32)))

    def update(self, panel: Sequence[Series]) -> None:
        """Step over what is new; each series of `panel` begins after its last step here, or is new altogether."""
        known = [series for series in panel if series.unique_id in self.rows]
        fresh = [series for series in panel if series.unique_id not in self.rows]
        if fresh:
            more = Streams.read(self.model, fresh)
            self.rows |= {name: len(self.rows) + row for name, row in more.rows.items()}
            self.state = concat([self.state, more.state])
            self.prediction = torch.cat([self.prediction, more.prediction])
            self.ends = np.concatenate([self.ends, more.ends])
        if known:
            rows = torch.tensor([self.rows[series.unique_id] for series in known])
            prediction, after = advance(self.model, take(self.state, rows), [series.values for series in known])
            self.state = {name: value.index_copy(0, rows, after[name]) for name, value in self.state.items()}
            self.prediction = self.prediction.index_copy(0, rows, prediction)
            self.ends[rows.numpy()] = [series.ds[-1] for series in known]
