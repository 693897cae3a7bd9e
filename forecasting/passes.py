"""A model's predictions at chosen positions of every series, each scanned once; and the long way, for comparison.

A model scans each series once, from its beginning through the test: its state at a cut-off has seen everything up to
there and nothing after, so no refit, no new window and no look ahead is needed for the next cut-off.

Shapes: B series, T time, C channels, H horizon, F covariates known ahead.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import torch

from data.panel import Series
from forecasting.predictions import Rows
from forecasting.task import TaskError
from forecasting.training import Trained
from forecasting.windows import Span, stacked_known
from models.contract import Local, Signature, StepModel
from models.subnormals import without_subnormals

VALUES_AT_ONCE = 8_000_000  # predictions held in memory by one scan


def cutoff_positions(span: Span, horizon: int, stride: int = 1) -> np.ndarray:
    """Positions t of the cut-offs whose next `horizon` steps all lie inside the span.

    A series that is new with the test shows one horizon of its past before it is judged.
    """
    return np.arange(span.begin - 1 if span.begin else horizon - 1, span.end - horizon, stride)


@torch.no_grad()
@without_subnormals()
def one_pass(model: StepModel, spans: Sequence[Span], positions: Sequence[np.ndarray]) -> list[Rows]:
    """Predictions at the chosen positions of every series, each series scanned once.

    Series that end at the same position share a batch; long series run in pieces with the state carried, so memory
    does not grow with their length.
    """
    rows: list[Rows | None] = [None] * len(spans)
    together: dict[int, list[int]] = defaultdict(list)
    for index, chosen in enumerate(positions):
        length = int(chosen[-1]) + 1 if len(chosen) and model.streams else len(spans[index].series.ds)
        together[length].append(index)
    size = int(np.prod(model.signature.prediction_shape))
    for length, everyone in together.items():
        for first in range(0, len(everyone), 64):
            members = everyone[first : first + 64]
            x = torch.stack([_tensor(spans[index].series)[:length] for index in members]).to(model.device)
            future: list[torch.Tensor] = []  # (B, length, H, F) where the model takes it
            if model.signature.future:
                future = [_ahead([(spans[i].series, 0) for i in members], length, model.signature).to(model.device)]
            kept: list[list[np.ndarray]] = [[] for _ in members]
            owners = stacked_known([spans[index] for index in members])
            state = model.initial_state(len(members)) if owners is None else model.state_of_known(owners.to(x))
            piece = max(1, VALUES_AT_ONCE // (size * len(members))) if model.streams else length
            for begin in range(0, length, piece):
                part = x[:, begin : begin + piece]
                inside = [at[(at >= begin) & (at < begin + piece)] for at in (positions[index] for index in members)]
                known, ahead = part.isfinite().to(part.dtype), [told[:, begin : begin + piece] for told in future]
                at_end = [told[:, -1] for told in ahead]
                if begin + piece < length and not any(map(len, inside)):  # the past: only the state is wanted
                    _, state = model.last(part, known, state, *at_end)
                    continue
                if all(at.tolist() == [begin + part.shape[1] - 1] for at in inside):  # only what is said at the end
                    values, state = model.last(part, known, state, *at_end)
                    for row, value in enumerate(values.cpu().numpy()):
                        kept[row].append(value[None])
                    continue
                values, state = model.scan(part, known, state, *ahead)
                for row, at in enumerate(inside):
                    kept[row].append(values[row, torch.from_numpy(at - begin)].cpu().numpy())
            for row, index in enumerate(members):
                rows[index] = Rows(spans[index], positions[index], np.concatenate(kept[row]))
    return [row for row in rows if row is not None]


def trained_pass(trained: Trained, spans: Sequence[Span], positions: Sequence[np.ndarray]) -> list[Rows]:
    """`one_pass`, or `local_pass` of a local model; a series of which the model could learn nothing says so."""
    if trained.states is None:
        rows = one_pass(trained.model, spans, positions)
    else:
        rows = local_pass(trained, spans, positions)
    instead = trained.substitutes
    return [
        replace(row, instead=dict.fromkeys(row.positions.tolist(), instead[row.span.series.unique_id]))
        if row.span.series.unique_id in instead
        else row
        for row in rows
    ]


@torch.no_grad()
def local_pass(trained: Trained, spans: Sequence[Span], positions: Sequence[np.ndarray]) -> list[Rows]:
    """`one_pass` of a local model: every series goes on from the state that it was fitted to.

    Raises:
        TaskError: a series that has no past to be fitted to, or a position before the end of that.
    """
    model, states = trained.model, trained.states
    assert states is not None
    local = cast(Local, model)
    rows: list[Rows | None] = [None] * len(spans)
    together: dict[int, list[int]] = defaultdict(list)
    for index, (span, chosen) in enumerate(zip(spans, positions, strict=True)):
        end = states.ends.get(span.series.unique_id)
        if end is None or (len(chosen) and chosen[0] < end - 1):
            raise TaskError(
                f"{trained.name} is fitted per series: series {span.series.unique_id} has no past of its own before "
                "the test. Split by time, or take a model that is shared over the series, such as ridge."
            )
        together[max(0, int(chosen[-1]) + 1 - end) if len(chosen) else 0].append(index)
    for length, everyone in together.items():
        for first in range(0, len(everyone), 64):
            members = everyone[first : first + 64]
            names = [spans[index].series.unique_id for index in members]
            ends = [states.ends[name] for name in names]
            state = states.fits.state_of(names)
            ahead: list[torch.Tensor] = []  # (B, 1 + length, H, F) where the model takes it
            if model.signature.future:
                begins = [(spans[i].series, end - 1) for i, end in zip(members, ends, strict=True)]
                ahead = [_ahead(begins, length + 1, model.signature)]
            values = local.predict(state, *(known[:, 0] for known in ahead))[:, None]
            if length:
                parts = [_tensor(spans[i].series)[end : end + length] for i, end in zip(members, ends, strict=True)]
                x = torch.stack(parts).to(model.device)
                known = [known[:, 1:] for known in ahead]
                values = torch.cat([values, model.scan(x, x.isfinite().to(x.dtype), state, *known)[0]], 1)
            for row, (index, end) in enumerate(zip(members, ends, strict=True)):
                at = positions[index]
                rows[index] = Rows(spans[index], at, values[row, torch.from_numpy(at - (end - 1))].cpu().numpy())
    return [row for row in rows if row is not None]


@torch.no_grad()
def rewindowed(
    model: StepModel, span: Span, positions: np.ndarray, lookback: int | None = None, batch: int = 256
) -> Rows:
    """The same predictions the long way: at every cut-off a new window, scanned from the initial state.

    With `lookback` None the window is the whole past, and the numbers are `one_pass`'s; with a number it is the last so
    many steps, the usual protocol of the long-horizon benchmarks.
    """
    x = _tensor(span.series).to(model.device)
    values = []
    if lookback is None:
        for position in positions:
            window = x[None, : position + 1]
            prediction, _ = model.last(window, window.isfinite().to(x.dtype), model.initial_state(1))
            values.append(prediction.cpu().numpy())
    else:
        windows = x.unfold(0, lookback, 1).transpose(1, 2)  # (n, lookback, C), the n-th ends at n + lookback - 1
        for first in range(0, len(positions), batch):
            window = windows[torch.from_numpy(positions[first : first + batch] - lookback + 1)]
            prediction, _ = model.last(window, window.isfinite().to(x.dtype), model.initial_state(len(window)))
            values.append(prediction.cpu().numpy())
    return Rows(span, positions, np.concatenate(values))


def _ahead(begins: Sequence[tuple[Series, int]], steps: int, signature: Signature) -> torch.Tensor:
    """(B, steps, H, F) what is known ahead of so many positions of each series, a view; NaN beyond it."""
    length, parts = steps + signature.horizon - 1, []
    for series, begin in begins:
        values = series.values[begin + 1 : begin + 1 + length, -signature.future :].astype(np.float32)
        parts.append(np.pad(values, [(0, length - len(values)), (0, 0)], constant_values=np.nan))
    return torch.from_numpy(np.stack(parts)).unfold(1, signature.horizon, 1).transpose(2, 3)


def _tensor(series: Series) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(series.values, np.float32))
