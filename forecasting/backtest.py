"""Every cut-off in one pass, with naive and ridge always beside.

Quantiles are calibrated before they are judged: on the forecasts that a model, fitted to the training part, makes of
the validation part, and one that is fitted per series by another fit of a horizon before it. Nothing of the test is
used.

A model scans each series once, from its beginning through the test: its state at a cut-off has seen everything up to
there and nothing after, so no refit, no new window and no look ahead is needed for the next cut-off.

Shapes: N cut-offs or rows of one series, T time, C channels, H horizon, Q quantiles, K classes.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial, reduce
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch

from data.frame import Dataset, show_time
from data.panel import Series, to_panel
from forecasting import metrics
from forecasting.conformal import Calibration, calibrate, length_weights, scores_needed
from forecasting.ensemble import check_ensembles, combined, ensemble_name
from forecasting.metrics import mean_of_quantiles
from forecasting.predictions import Rows, substituted
from forecasting.refit import Answer, RefitModel, is_refit, known_fields
from forecasting.task import Task, TaskError
from forecasting.training import Trained, TrainingConfig, fit_local, fit_model, parse_settings
from forecasting.windows import Parts, Span, split, stacked_known
from models.catalog import build, entry, field_defaults
from models.contract import Local, ModelError, Signature, StepModel

ALWAYS = ("naive", "ridge")
JUDGED_BY = {"forecast": "mase", "classify": "accuracy", "regress": "mae"}  # what the leaderboard is sorted by
CONFIDENCE, DWELL = 0.8, 3  # an early decision: this probability for so many frames in a row
VALUES_AT_ONCE = 8_000_000  # predictions held in memory by one scan
CALIBRATION_SCORES = 200_000  # outcomes of the validation part that a calibration rests on at most
LEADERBOARD = (
    "model", "task", "n_series", "n_cutoffs", "mase", "smape", "mae", "rmse", "mse", "pinball", "coverage_80",
    "skill_vs_naive", "dm_p_value", "fit_seconds", "predict_seconds", "peak_mb",
    "mape", "accuracy", "macro_f1", "earliness",
    "calibrated", "pinball_raw", "coverage_80_raw", "calibrate_seconds",
    "n_substituted",
)  # fmt: skip
SUBSTITUTES = ("model", "unique_id", "cutoff", "substitute", "reason")


Scores = dict[str, tuple[dict[str, float], np.ndarray]]
"""Per model its measures, and its losses as the Diebold-Mariano test wants them: the same units for every model."""


@dataclass(frozen=True)
class Report:
    task: Task
    # A row a model, columns LEADERBOARD: pinball and coverage_80 are of the quantiles in `forecasts`, which are
    # calibrated where `calibrated` says so; pinball_raw and coverage_80_raw are of those that the model itself gave.
    leaderboard: pd.DataFrame
    forecasts: pd.DataFrame
    history: pd.DataFrame  # what was known: unique_id, ds, and y or the channels
    models: dict[str, Trained | RefitModel]
    notes: tuple[str, ...]
    # A row a forecast that is not the model's own: model, unique_id, cutoff, substitute, reason.
    substitutes: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(SUBSTITUTES)))
    calibrations: dict[str, Calibration] = field(default_factory=dict)  # of the models, and ensembles, that have one

    def with_notes(self, notes: Sequence[str]) -> Report:
        return replace(self, notes=(*notes, *self.notes))


def cutoff_positions(span: Span, horizon: int, stride: int = 1) -> np.ndarray:
    """Positions t of the cut-offs whose next `horizon` steps all lie inside the span.

    A series that is new with the test shows one horizon of its past before it is judged.
    """
    return np.arange(span.begin - 1 if span.begin else horizon - 1, span.end - horizon, stride)


@torch.no_grad()
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
                said = values[row, torch.from_numpy(at - (end - 1))].cpu().numpy()
                rows[index] = Rows(spans[index], at, said, fitted=np.full(len(at), end))
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


def _refuse_missing_ahead(task: Task, spans: Sequence[Span], positions: Sequence[np.ndarray]) -> None:
    """
    Raises:
        TaskError: a covariate that counts as known ahead is not known at a step that is forecast.
    """
    for span, at in zip(spans, positions, strict=True):
        series, steps = span.series, np.unique(at[:, None] + np.arange(1, task.horizon + 1))
        missing = ~np.isfinite(series.values[steps, -len(task.future) :])
        if missing.any():
            said = [
                f"{name} at {', '.join(show_time(series.ds[step]) for step in steps[gaps][:5])}"
                + (f" and {gaps.sum() - 5} more" if gaps.sum() > 5 else "")
                for name, gaps in zip(task.future, missing.T, strict=True)
                if gaps.any()
            ]
            raise TaskError(
                f"{series.unique_id}: lacks {'; '.join(said)}, which should be known ahead. Fill them in, or take them "
                "as covariates that are not (--covariates)."
            )


def _tensor(series: Series) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(series.values, np.float32))


def backtest(
    dataset: Dataset,
    models: Sequence[str],
    task: Task,
    *,
    test_size: int | None = None,
    cutoff: Any = None,
    stride: int = 1,
    refit: int | None = None,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    progress: bool = False,
    calibrated: bool = True,
    ensembles: Sequence[str] = (),
) -> Report:
    """Train each model before the test and judge it at every cut-off of the test, beside naive and ridge.

    Args:
        models: names of the catalog, or of sktime's as `forecasting.refit` takes them; naive and ridge are added
            where they are not among them.
        test_size, cutoff: where the test begins; without either, the data set's own split.
        stride: steps from one cut-off to the next.
        refit: train anew after every so many cut-offs, on all that is known by then; None trains once.
        settings: fields of the models' configs; each is given to the models that have it.
        calibrated: whether forecast quantiles are calibrated on the validation part, once, before the test. A model
            that is fitted per series is then fitted a second time, to the training part alone, and where the
            validation part is shorter than two horizons a third time (`with_a_period_before`).
        ensembles: "mean", "median" or both: of the models named, as further rows such as mean(ets,arima).

    Raises:
        TaskError, ModelError: what cannot be done, before anything is trained.
    """
    panel = to_panel(dataset, task.labels or None)
    parts = split(dataset, panel, task, test_size=test_size, cutoff=cutoff)
    if not parts.test:
        raise TaskError(f"{dataset.name}: no series has a test part of at least {task.horizon} steps.")
    return compare(
        parts,
        models,
        task,
        stride=stride,
        refit=refit,
        seed=seed,
        settings=settings,
        progress=progress,
        calibrated=calibrated,
        ensembles=ensembles,
    ).with_notes(dataset.notes)


def compare(
    parts: Parts,
    models: Sequence[str],
    task: Task,
    *,
    stride: int = 1,
    refit: int | None = None,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    progress: bool = False,
    directory: Path | None = None,
    resume: Path | None = None,
    leave_out: bool = False,
    calibrated: bool = True,
    ensembles: Sequence[str] = (),
) -> Report:
    """Train on the parts' training, judge on their test; the arguments are those of `backtest` and `fit_model`.

    `directory` and `resume` are for the first model named. With `leave_out` a model that these data do not suit is left
    out with a note; without, what it says is raised.

    Where the validation part is also what is judged, calibrations are found, for a bundle, but the forecasts and
    figures of the report stay uncalibrated: their outcomes are what the factors were found on.
    """
    if stride < 1 or (refit is not None and refit < 1):
        raise TaskError(f"the stride and the refit interval are at least 1 cut-off, got {stride} and {refit}.")
    check_ensembles(ensembles, models, task.kind)
    names = list(dict.fromkeys((*ALWAYS, *models)))
    shared = _share(settings or {}, names, task)
    positions = _predicted(parts, task, stride)
    refits = {name: RefitModel(name, task, shared[name], seed) for name in names if is_refit(name)}
    trained: dict[str, Trained | RefitModel] = {}
    rows: dict[str, list[Rows]] = {}
    checks: dict[str, list[Rows]] = {}
    costs: dict[str, dict[str, float]] = {}
    notes = [*parts.notes]
    calibrated = calibrated and task.kind == "forecast"
    at_checks = _check_positions(parts, task) if calibrated else []
    if task.future and any("future" in entry(name).covariates for name in names if not is_refit(name)):
        _refuse_missing_ahead(task, parts.test, positions)
    for name in names:
        with _PeakMemory() as peak:
            if name in refits:
                trained[name], answer = refits[name], _refitted(refits[name], parts, positions, lambda: rows["naive"])
                rows[name], seconds = answer.rows, (answer.fit_seconds, answer.predict_seconds)
                notes += answer.notes
            else:
                fit = partial(fit_model, name, task, settings=shared[name], seed=seed, progress=progress)
                if name in models[:1]:
                    fit = partial(fit, directory=directory, resume=resume)
                try:
                    trained[name], rows[name], seconds = _run(fit, parts, positions, refit, stride)
                except (ModelError, TaskError) as error:
                    if not leave_out or name in ALWAYS:
                        raise
                    notes.append(f"{name} is left out: {error}")
                    continue
        costs[name] = {"fit_seconds": seconds[0], "predict_seconds": seconds[1], "peak_mb": peak.mb}
        if calibrated and any(row.has_quantiles for row in rows[name]):
            began = time.perf_counter()
            try:
                if parts.judges_validation:
                    chosen = _apart([row.positions for row in rows[name]], task, stride)
                    checks[name] = [row.at(at) for row, at in zip(rows[name], chosen, strict=True)]
                    one = trained[name]
                    if isinstance(one, Trained) and one.states is not None:
                        again = _fit_of(one, task, shared[name])
                        checks[name] = with_a_period_before(checks[name], again, task, parts)
                else:
                    checks[name] = _check(trained[name], task, parts, at_checks, shared[name], checks.get("naive", []))
            except TaskError as error:
                notes.append(f"{name}: is not calibrated: {error}")
            costs[name]["calibrate_seconds"] = time.perf_counter() - began
    for how in ensembles:
        members = [name for name in dict.fromkeys(models) if name in rows]
        name = ensemble_name(how, members)
        levels = np.array(task.quantiles)
        rows[name] = combined(how, [rows[member] for member in members], levels)
        costs[name] = {
            cost: sum(costs[member].get(cost, 0.0) for member in members) for cost in ("fit_seconds", "predict_seconds")
        }
        if all(member in checks for member in members):
            checks[name] = combined(how, _shared([checks[member] for member in members]), levels)
    calibrations, said = _calibrations(task, checks, rows) if calibrated else ({}, [])
    notes += said
    raw, judged = rows, {}
    if not parts.judges_validation:
        judged = calibrations
        rows = {name: _calibrated(task, rows[name], judged.get(name)) for name in rows}
    score = {"forecast": _score_forecasts, "classify": _score_classes, "regress": _score_numbers}[task.kind]
    scores = score(task, rows)
    if task.kind == "forecast":
        for name, (measures, _) in scores.items():
            own = _interval_scores(task, raw[name])
            measures |= {"calibrated": name in judged, **{f"{measure}_raw": value for measure, value in own.items()}}
    leaderboard = _leaderboard(task, rows, costs, scores, stride)
    frame = {"forecast": _forecast_frame, "classify": _class_frame, "regress": _number_frame}[task.kind](task, rows)
    for one in trained.values():
        if isinstance(one, Trained):
            notes += one.notes()
    instead = _substitutes(rows)
    notes += _substitute_notes(instead, rows)
    return Report(task, leaderboard, frame, _history(task, parts), trained, tuple(notes), instead, calibrations)


def _check_positions(parts: Parts, task: Task) -> list[np.ndarray]:
    """Per validation series the cut-offs to calibrate on."""
    return _apart([cutoff_positions(span, task.horizon) for span in parts.validation], task)


def _apart(positions: Sequence[np.ndarray], task: Task, stride: int = 1) -> list[np.ndarray]:
    """Of each series' cut-offs, `stride` steps from one to the next, those to calibrate on.

    They are a horizon apart, so that no outcome counts twice, with the last one, which is most like those to come. Of
    forecasts that overlap a long series has far more than a short one, and they err alike: its shocks would decide how
    wide the intervals of all series are. Where that leaves too few outcomes for the outermost quantiles all are taken,
    and fewer where outcomes are more than needed.
    """
    apart = [_every(-(-task.horizon // stride), at) for at in positions]
    outcomes = task.horizon * sum(map(len, apart))
    if outcomes < scores_needed(task.quantiles):
        return list(positions)
    return [_every(-(-outcomes // CALIBRATION_SCORES), at) for at in apart]


def _every(count: int, positions: np.ndarray) -> np.ndarray:
    return positions[::-count][::-1]


def _check(
    trained: Trained | RefitModel,
    task: Task,
    parts: Parts,
    positions: Sequence[np.ndarray],
    settings: Mapping[str, Any],
    naive: Sequence[Rows],
) -> list[Rows]:
    """Forecasts of the validation part by a model that was fitted to the training part alone."""
    if isinstance(trained, RefitModel):
        last = [at[-1:] for at in positions]  # every one more is a fit
        fallback = [row.at(at) for row, at in zip(naive, last, strict=True)]
        return trained.forecast(parts.validation, last, lambda: fallback).rows
    if trained.states is not None:
        fit = _fit_of(trained, task, settings)
        return with_a_period_before(validated(fit(replace(parts, validation=[])), task, parts), fit, task, parts)
    return validated(trained, task, parts)


def _fit_of(trained: Trained, task: Task, settings: Mapping[str, Any]) -> Callable[[Parts], Trained]:
    """How the local model was fitted."""
    model_settings, training = parse_settings(trained.name, settings)
    return partial(fit_local, trained.name, task, settings=model_settings, processes=training.threads)


def with_a_period_before(rows: Sequence[Rows], fit: Callable[[Parts], Trained], task: Task, parts: Parts) -> list[Rows]:
    """A local model's forecasts `rows` of the validation part, and those of a horizon before it by another fit.

    The fit is of the series whose validation part is shorter than two horizons, for one period's shocks would decide
    how wide the intervals of another's are. It ends a horizon before the training part, where that leaves more than a
    horizon to be fitted to. Where it can be fitted to none, or what should be known ahead is not, the validation part
    is all there is.
    """
    horizon = task.horizon
    before = {
        span.series.unique_id: Span(span.series, span.begin - horizon, span.begin)
        for span in parts.validation
        if span.end - span.begin < 2 * horizon and span.begin > 2 * horizon
    }
    train = [replace(span, end=span.end - horizon) for span in parts.train if span.series.unique_id in before]
    if not train:
        return list(rows)
    try:
        earlier = validated(fit(Parts(train, [], [])), task, Parts(train, list(before.values()), []))
    except TaskError:
        return list(rows)
    more = {row.span.series.unique_id: row for row in earlier}
    return [
        replace(more[name].then([row]), span=row.span) if (name := row.span.series.unique_id) in more else row
        for row in rows
    ]


def _shared(members: Sequence[Sequence[Rows]]) -> list[list[Rows]]:
    """Per model the forecasts at the cut-offs that all have: a model that is refitted has one a series."""
    both = [reduce(np.intersect1d, (row.positions for row in rows)) for rows in zip(*members, strict=True)]
    return [[row.at(at) for row, at in zip(rows, both, strict=True)] for rows in members]


def validated(trained: Trained, task: Task, parts: Parts) -> list[Rows]:
    """Forecasts of the validation part, as they are calibrated on, by a model that has not learned from it.

    Raises:
        TaskError: what should be known ahead is not.
    """
    positions = _check_positions(parts, task)
    if trained.model.signature.future:
        _refuse_missing_ahead(task, parts.validation, positions)
    return trained_pass(trained, parts.validation, positions)


def calibration_of(task: Task, everyone: Sequence[Rows], coming: Sequence[int] = ()) -> Calibration:
    """
    Args:
        coming: to how many values of each series the model is fitted that the calibration is for, where it is fitted
            per series: forecasts of fits to as many count most (`length_weights`).

    Raises:
        TaskError: there are too few outcomes for the outermost quantiles.
    """
    known, needed = [row for row in everyone if len(row.positions)], scores_needed(task.quantiles)
    actual = np.concatenate([np.empty((0, task.horizon)), *(_actual(row, task.horizon) for row in known)])
    scores = int(np.isfinite(actual).sum())
    if scores < needed:
        raise TaskError(
            f"the validation part gives {scores} outcomes, and quantiles at {task.quantiles[0]:g} and "
            f"{task.quantiles[-1]:g} need {needed}."
        )
    lengths = [row.fitted for row in known if row.fitted is not None]
    weights = length_weights(np.concatenate(lengths), coming) if len(coming) and len(lengths) == len(known) else None
    before = any(row.positions[0] < row.span.begin - 1 for row in known)
    on = "validation and a horizon before it" if before else "validation"
    return calibrate(actual, np.concatenate([row.values for row in known]), task.quantiles, on, weights)


def _calibrations(
    task: Task, checks: Mapping[str, list[Rows]], judged: Mapping[str, list[Rows]]
) -> tuple[dict[str, Calibration], list[str]]:
    """Per model its calibration, and who has none for what reason."""
    found, notes = {}, []
    for name, everyone in checks.items():
        if not all(row.has_quantiles for row in everyone if len(row.positions)):
            continue  # what forecasts points only says so in a note of its own
        coming = [int(row.fitted[0]) for row in judged[name] if row.fitted is not None and len(row.fitted)]
        try:
            found[name] = calibration_of(task, everyone, coming)
        except TaskError as error:
            notes.append(f"{name}: is not calibrated: {error}")
    return found, notes


def _calibrated(task: Task, everyone: Sequence[Rows], calibration: Calibration | None) -> list[Rows]:
    """The forecasts with calibrated quantiles; their means stay those of the model's own."""
    if calibration is None:
        return list(everyone)
    levels = np.array(task.quantiles)
    return [replace(row, values=calibration.apply(row.values), points=row.mean(levels)) for row in everyone]


def _substitutes(rows: Mapping[str, list[Rows]]) -> pd.DataFrame:
    """A row a prediction that is not the model's own, columns SUBSTITUTES."""
    table: list[tuple[Any, ...]] = []
    for name, everyone in rows.items():
        times = {row.span.series.unique_id: row.span.series.ds for row in everyone}
        table += [(name, uid, times[uid][at], one.name, one.reason) for uid, at, one in substituted(everyone)]
    return pd.DataFrame(table, columns=list(SUBSTITUTES))


def _substitute_notes(substitutes: pd.DataFrame, rows: Mapping[str, list[Rows]]) -> Iterator[str]:
    for name, cases in substitutes.groupby("model", sort=False):
        everyone, first = rows[str(name)], cases.iloc[0]
        total = sum(len(row.positions) for row in everyone)
        yield (
            f"{name}: {len(cases)} of {total} forecasts, of {cases['unique_id'].nunique()} of {len(everyone)} series, "
            f"are those of {', '.join(cases['substitute'].unique())} instead, first {first['unique_id']} at "
            f"{show_time(first['cutoff'])}: {first['reason']}"
        )


def _refitted(
    model: RefitModel, parts: Parts, positions: Sequence[np.ndarray], naive: Callable[[], Sequence[Rows]]
) -> Answer:
    """Forecasts at the same cut-offs as everybody's; classes of whole recordings, at their last row alone."""
    if model.task.kind == "classify":
        return model.classify(parts.train, parts.test)
    return model.forecast(parts.test, positions, naive)


def _share(settings: Mapping[str, Any], names: Sequence[str], task: Task) -> dict[str, dict[str, Any]]:
    """Each setting to the models that have such a field; what can be refused is refused before any training."""
    training = {field.name for field in fields(TrainingConfig)}
    known = {
        name: set(known_fields(name, task)) if is_refit(name) else set(field_defaults(name)) | training
        for name in names
    }
    for asked in settings:
        if not any(asked in of_model for of_model in known.values()):
            everything = sorted(set().union(*known.values()))
            raise TaskError(f"no model here has a field '{asked}'; known: {', '.join(everything)}.")
    shared = {name: {f: v for f, v in settings.items() if f in known[name]} for name in names}
    for name, own in shared.items():
        if not is_refit(name):
            build(name, task.signature, **parse_settings(name, own)[0])
    return shared


def _predicted(parts: Parts, task: Task, stride: int) -> list[np.ndarray]:
    """Per test series the positions to predict at: forecasts at every cut-off, classes and numbers at every row."""
    if task.kind == "forecast":
        return [cutoff_positions(span, task.horizon, stride) for span in parts.test]
    # Counted from the end, for the last row is the one that a recording is judged by.
    return [np.arange(span.end - 1, span.begin - 1, -stride)[::-1] for span in parts.test]


def _judged(everyone: Sequence[Rows]) -> list[np.ndarray]:
    """Per series the indices of the rows whose class or number counts.

    Where each series has one answer, the last row with a known answer; where it changes along a series, every such row.
    """
    known = [np.flatnonzero(_is_known(np.asarray(row.span.series.target)[row.positions])) for row in everyone]
    answers = [np.asarray(row.span.series.target)[row.positions[at]] for row, at in zip(everyone, known, strict=True)]
    if all(len(np.unique(answer)) <= 1 for answer in answers):
        return [at[-1:] for at in known]
    return known


def _is_known(target: np.ndarray) -> np.ndarray:
    return target >= 0 if target.dtype.kind in "iu" else np.isfinite(target)


def _run(
    fit: Callable[..., Trained], parts: Parts, positions: Sequence[np.ndarray], refit: int | None, stride: int
) -> tuple[Trained, list[Rows], tuple[float, float]]:
    """The model as first trained, its predictions, and the seconds of fitting and of predicting."""
    fit_seconds = predict_seconds = 0.0
    first: Trained | None = None
    pieces: list[list[Rows]] = []
    for known, chosen in _refits(parts, positions, refit, stride):
        trained = fit(known)
        first = first or trained
        fit_seconds += trained.seconds
        began = time.perf_counter()
        pieces.append(trained_pass(trained, known.test, chosen))
        predict_seconds += time.perf_counter() - began
    assert first is not None
    together = [replace(mine[0].then(mine[1:]), span=span) for span, *mine in zip(parts.test, *pieces, strict=True)]
    return first, together, (fit_seconds, predict_seconds)


def _refits(
    parts: Parts, positions: Sequence[np.ndarray], refit: int | None, stride: int
) -> Iterator[tuple[Parts, list[np.ndarray]]]:
    """What is known at each refit, and the positions predicted until the next one."""
    if refit is None:
        yield parts, list(positions)
        return
    room = {span.series.unique_id: span.end - span.begin for span in parts.test}  # a series may end before others
    if any(span.begin == 0 for span in parts.test):
        raise TaskError(
            "this data set is split by series, not by time: there is nothing newer to refit on; --refit never."
        )
    for first in range(0, max(map(len, positions)), refit):
        shift = {name: min(first * stride, steps) for name, steps in room.items()}
        later = [(span, shift.get(span.series.unique_id, 0)) for span in parts.train]
        checks = [(span, shift.get(span.series.unique_id, 0)) for span in parts.validation]
        known = replace(
            parts,
            train=[replace(span, end=span.end + steps) for span, steps in later],
            validation=[replace(span, begin=span.begin + steps, end=span.end + steps) for span, steps in checks],
        )
        yield known, [at[first : first + refit] for at in positions]


class _PeakMemory:
    """Peak resident memory of this process between entering and leaving, in MB, as Linux counts it."""

    mb: float = float("nan")

    def __enter__(self) -> _PeakMemory:
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            self._status: Path | None = None
        else:
            self._status = Path("/proc/self/status")
        return self

    def __exit__(self, *error: object) -> None:
        if self._status is not None:
            lines = dict(line.split(":", 1) for line in self._status.read_text().splitlines() if ":" in line)
            self.mb = int(lines["VmHWM"].split()[0]) / 1024


def _actual(rows: Rows, horizon: int) -> np.ndarray:
    """(N, H) the values that came, NaN where none was observed."""
    steps = np.arange(1, horizon + 1)
    return rows.span.series.values[rows.positions[:, None] + steps, 0]


def _score_forecasts(task: Task, rows: Mapping[str, list[Rows]]) -> Scores:
    """Per model its measures, and its scaled absolute error per cut-off (or per series, where those are more)."""
    levels = np.array(task.quantiles)
    scores = {}
    for name, everyone in rows.items():
        actual = np.concatenate([_actual(row, task.horizon) for row in everyone])
        mean = np.concatenate([row.mean(levels) for row in everyone])
        scale = np.concatenate([np.full(len(row.positions), _in_sample_scale(row.span, task)) for row in everyone])
        measures = {
            "mase": metrics.mase(actual, mean, scale).value,
            "smape": metrics.smape(actual, mean),
            "mae": metrics.mae(actual, mean),
            "rmse": metrics.rmse(actual, mean),
            "mse": metrics.mse(actual, mean),
        }
        measures |= _interval_scores(task, everyone)
        error = np.abs(actual - mean) / np.where(scale > 0, scale, np.nan)[:, None]
        known = np.isfinite(error)
        per_row = np.where(known, error, 0).sum(1) / np.where(known.any(1), known.sum(1), np.nan)
        scores[name] = measures, _by_time_or_series(per_row, [len(row.positions) for row in everyone])
    return scores


def _interval_scores(task: Task, everyone: Sequence[Rows]) -> dict[str, float]:
    """The pinball loss and the coverage of the 80 % interval, of forecasts that have quantiles, and these levels."""
    if not all(row.has_quantiles for row in everyone):
        return {}
    levels = np.array(task.quantiles)
    actual = np.concatenate([_actual(row, task.horizon) for row in everyone])
    quantiles = np.concatenate([row.values for row in everyone])
    measures = {"pinball": metrics.pinball(actual, quantiles, levels)}
    outer = [index for index, level in enumerate(levels) if np.isclose(level, 0.1) or np.isclose(level, 0.9)]
    if len(outer) == 2:
        measures["coverage_80"] = metrics.coverage(actual, quantiles[..., outer[0]], quantiles[..., outer[1]])
    return measures


def _in_sample_scale(span: Span, task: Task) -> float:
    """The seasonal naive error before the test; of a series that is new with the test, over all of it."""
    return metrics.seasonal_scale(span.series.values[: span.begin or span.end, 0], task.season)


def _by_time_or_series(loss: np.ndarray, lengths: Sequence[int]) -> np.ndarray:
    """Losses (N,) of series after series -> one per cut-off (mean over the series), or per series if those are more."""
    series = np.split(loss, np.cumsum(lengths)[:-1])
    if len(series) > max(lengths):
        return np.array([np.nanmean(losses) if np.isfinite(losses).any() else np.nan for losses in series])
    padded = np.full((len(series), max(lengths)), np.nan)
    for row, losses in enumerate(series):
        padded[row, : len(losses)] = losses
    known = np.isfinite(padded)
    return np.where(known, padded, 0).sum(0) / np.where(known.any(0), known.sum(0), np.nan)


def _judge(everyone: Sequence[Rows]) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """The true answers and the predictions of the rows that count, and how many of them each series has."""
    judged = _judged(everyone)
    truth = [np.asarray(row.span.series.target)[row.positions[at]] for row, at in zip(everyone, judged, strict=True)]
    values = [row.values[at] for row, at in zip(everyone, judged, strict=True)]
    return np.concatenate(truth), np.concatenate(values), [len(at) for at in judged]


def _per_series(loss: np.ndarray, lengths: Sequence[int]) -> np.ndarray:
    """One mean loss a series: rows of one series are not independent."""
    return np.array([part.mean() if len(part) else np.nan for part in np.split(loss, np.cumsum(lengths)[:-1])])


def _score_classes(task: Task, rows: Mapping[str, list[Rows]]) -> Scores:
    scores = {}
    for name, everyone in rows.items():
        truth, probabilities, lengths = _judge(everyone)
        predicted = probabilities.argmax(-1)
        measures = {
            "accuracy": metrics.accuracy(truth, predicted),
            "macro_f1": metrics.macro_f1(truth, predicted, len(task.labels)),
        }
        if len(truth) == len(everyone) and not is_refit(name) and entry(name).streams:
            decided = [metrics.earliness(row.values, CONFIDENCE, DWELL) for row in everyone]
            measures["earliness"] = float(np.mean(decided))
        scores[name] = measures, _per_series((truth != predicted).astype(float), lengths)
    return scores


def _score_numbers(task: Task, rows: Mapping[str, list[Rows]]) -> Scores:
    levels = np.array(task.quantiles)
    scores = {}
    for name, everyone in rows.items():
        truth, quantiles, lengths = _judge(everyone)
        mean = mean_of_quantiles(quantiles, levels)
        measures = {
            "mae": metrics.mae(truth, mean),
            "rmse": metrics.rmse(truth, mean),
            "mse": metrics.mse(truth, mean),
            "mape": metrics.mape(truth, mean),
            "pinball": metrics.pinball(truth, quantiles, levels),
        }
        scores[name] = measures, _per_series(np.abs(truth - mean), lengths)
    return scores


def _leaderboard(
    task: Task, rows: Mapping[str, list[Rows]], costs: Mapping[str, Mapping[str, float]], scores: Scores, stride: int
) -> pd.DataFrame:
    """Best first. Skill is the share of the naive forecast's loss that is saved; p is Diebold and Mariano's."""
    lead = -(-task.horizon // stride) if task.kind == "forecast" else 1
    reference = scores["naive"][1]
    table = []
    for name, (measures, loss) in scores.items():
        everyone = rows[name]
        over_series = task.kind != "forecast" or len(everyone) > max(len(row.positions) for row in everyone)
        skill = metrics.skill(_error(task, measures), _error(task, scores["naive"][0]))
        beside: dict[str, Any] = {"skill_vs_naive": skill, "dm_p_value": np.nan}
        if name != "naive":
            beside["dm_p_value"] = metrics.diebold_mariano(loss, reference, 1 if over_series else lead).p_value
        judged = max(len(row.positions) for row in everyone) if task.kind == "forecast" else len(_judge(everyone)[0])
        table.append({
            "model": name, "task": task.kind, "n_series": len(everyone), "n_cutoffs": judged,
            **measures, **beside, **costs[name], "n_substituted": len(substituted(everyone)),
        })  # fmt: skip
    frame = pd.DataFrame(table).reindex(columns=list(LEADERBOARD))
    return frame.sort_values(JUDGED_BY[task.kind], ascending=task.kind != "classify", kind="stable", ignore_index=True)


def _error(task: Task, measures: Mapping[str, float]) -> float:
    """What skill compares: the error rate, the MAE, or the MASE (the MAE where no series has a scale)."""
    if task.kind == "classify":
        return 1 - measures["accuracy"]
    mase = measures.get("mase", np.nan)
    return mase if np.isfinite(mase) else measures["mae"]


def quantile_column(level: float) -> str:
    return f"q{level:g}"


def _forecast_frame(task: Task, rows: Mapping[str, list[Rows]]) -> pd.DataFrame:
    """unique_id, cutoff, ds, model, mean, q..., y, substitute: a row per series, cut-off, step and model."""
    levels = np.array(task.quantiles)
    frames = []
    for name, everyone in rows.items():
        for row in everyone:
            if not len(row.positions):
                continue
            series, steps = row.span.series, np.arange(1, task.horizon + 1)
            quantiles = row.values.reshape(-1, len(levels))
            frame = pd.DataFrame({
                "unique_id": series.unique_id,
                "cutoff": np.repeat(series.ds[row.positions], task.horizon),
                "ds": series.ds[row.positions[:, None] + steps].ravel(),
                "model": name,
                "mean": row.mean(levels).ravel(),
            })  # fmt: skip
            if row.has_quantiles:  # pandas fills in the column for those that have none
                for index, level in enumerate(levels):
                    frame[quantile_column(level)] = quantiles[:, index]
            frame["y"] = _actual(row, task.horizon).ravel()
            frame["substitute"] = np.repeat(np.array(row.names(), object), task.horizon)
            frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def _class_frame(task: Task, rows: Mapping[str, list[Rows]]) -> pd.DataFrame:
    """unique_id, ds, model, label, p_<label>..., y: a row per series, time and model; `label` is the likeliest."""
    labels = np.array([*task.labels, None], object)  # the last stands for unknown, index -1
    frames = []
    for name, everyone in rows.items():
        for row in everyone:
            frame = pd.DataFrame({
                "unique_id": row.span.series.unique_id,
                "ds": row.span.series.ds[row.positions],
                "model": name,
                "label": labels[row.values.argmax(-1)],
            })  # fmt: skip
            for index, label in enumerate(task.labels):
                frame[f"p_{label}"] = row.values[:, index]
            frame["y"] = labels[np.asarray(row.span.series.target)[row.positions]]
            frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def _number_frame(task: Task, rows: Mapping[str, list[Rows]]) -> pd.DataFrame:
    """unique_id, ds, model, mean, q..., y: a row per series, time and model."""
    levels = np.array(task.quantiles)
    frames = []
    for name, everyone in rows.items():
        for row in everyone:
            frame = pd.DataFrame({
                "unique_id": row.span.series.unique_id,
                "ds": row.span.series.ds[row.positions],
                "model": name,
                "mean": row.mean(levels),
            })  # fmt: skip
            for index, level in enumerate(levels):
                frame[quantile_column(level)] = row.values[:, index]
            frame["y"] = np.asarray(row.span.series.target)[row.positions]
            frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def _history(task: Task, parts: Parts) -> pd.DataFrame:
    """What entered the models: unique_id, ds and the channels, up to the end of the test; series of the test only."""
    frames = []
    for span in parts.test:
        frame = pd.DataFrame(span.series.values[: span.end], columns=[channel.name for channel in task.channels])
        frame.insert(0, "ds", span.series.ds[: span.end])
        frame.insert(0, "unique_id", span.series.unique_id)
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)
