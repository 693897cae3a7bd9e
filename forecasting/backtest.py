"""Every cut-off in one pass, with naive and ridge always beside.

Quantiles are calibrated before they are judged: on the forecasts that a model makes of the validation
part, or the last horizon of it, fitted to what precedes that. Nothing of the test is used.

How each series is scanned once is `forecasting.passes`, how predictions are judged `forecasting.scores`, and the frames
of a report are `forecasting.report_frames`; here is what is fitted, calibrated and predicted when.

Shapes: N cut-offs or rows of one series, T time, C channels, H horizon, Q quantiles, K classes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial, reduce
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from data.frame import Dataset, show_time
from data.panel import to_panel
from forecasting.conformal import Calibration, calibrate, scores_needed
from forecasting.ensemble import check_ensembles, combined, ensemble_name
from forecasting.listing import shorten
from forecasting.passes import cutoff_positions, trained_pass
from forecasting.predictions import Rows
from forecasting.refit import Answer, RefitModel, is_refit, known_fields
from forecasting.report_frames import (
    SUBSTITUTES,
    class_frame,
    forecast_frame,
    history_frame,
    number_frame,
    substitutes_frame,
)
from forecasting.scores import (
    actual_of,
    changing,
    interval_scores,
    leaderboard_of,
    score_classes,
    score_forecasts,
    score_numbers,
)
from forecasting.task import Task, TaskError
from forecasting.training import Trained, TrainingConfig, begins_known, fit_local, fit_model, parse_settings
from forecasting.windows import Parts, Span, split
from models.catalog import build, entry, field_defaults
from models.contract import ModelError, StepModel

ALWAYS = ("naive", "ridge")
MANY_SERIES = 100  # from how many on the last horizon of each is enough to calibrate a model on that is fitted to each
CALIBRATION_SCORES = 200_000  # outcomes of the validation part that a calibration rests on at most


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
    failures: tuple[str, ...] = ()  # what is missing of what was asked for, models and series, and why

    def with_notes(self, notes: Sequence[str]) -> Report:
        return replace(self, notes=(*notes, *self.notes))


def _lack_ahead(task: Task, spans: Sequence[Span], positions: Sequence[np.ndarray]) -> dict[str, str]:
    """Series of which a covariate that counts as known ahead is not known at a step that is forecast -> which, when."""
    lacking = {}
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
            lacking[series.unique_id] = (
                f"{series.unique_id}: lacks {'; '.join(said)}, which should be known ahead. Fill them in, or take them "
                "as covariates that are not (--covariates)."
            )
    return lacking


def _lopsided(task: Task) -> Iterator[str]:
    """A note where the mean of the quantiles is no middle."""
    levels = np.array(task.quantiles)
    lacking = [f"{1 - level:g}" for level in levels if not np.isclose(levels, 1 - level).any()]
    if task.kind != "classify" and lacking:
        yield (
            f"the mean is that of the quantiles at {', '.join(f'{level:g}' for level in levels)}, and no middle of the "
            f"forecast, though all measures but pinball judge it: add the levels {', '.join(lacking)} or go by pinball."
        )


def _not_taken(task: Task, models: Sequence[str]) -> Iterator[str]:
    """Which of the named models leave covariates out that were given."""
    past = [channel.name for channel in task.channels[1:] if channel.name not in task.future]
    if task.kind != "forecast":
        return
    for name in dict.fromkeys(models):
        taken = ("past", "future") if is_refit(name) else entry(name).covariates  # a refit model says it itself
        left = [] if "past" in taken else past if "future" in taken else [*past, *task.future]
        if left:
            what = "no covariates but those known ahead" if "future" in taken else "no covariates"
            yield f"{name}: takes {what}; left out: {', '.join(left)}."


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
            that is fitted per series is then fitted a second time, to the training part alone, or, where there are many
            series, to all but their last horizon before the test.
        ensembles: "mean", "median" or both: of the models named, as further rows such as mean(ets,arima).

    A model that these data do not suit is left out of the report, as is a series of which a covariate is missing ahead:
    `failures` says why, and the others are finished.

    Raises:
        TaskError, ModelError: what cannot be done, before anything is trained; or nothing of what was named could be.
    """
    panel = to_panel(dataset, task.labels or None)
    known = begins_known(settings)
    parts = split(dataset, panel, task, test_size=test_size, cutoff=cutoff, known_owner=known)
    if not parts.test and task.kind != "forecast" and test_size is None and cutoff is None:
        enough = "three of each class" if task.kind == "classify" else "five"
        raise TaskError(
            f"{dataset.name}: no series is left to test on. Of series that are in no part yet a fifth is the test: "
            f"give at least {enough}, each with an answer."
        )
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
        leave_out=True,
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
    out, unless it is the last of those named; without, what it says is raised.

    Where the validation part is also what is judged, calibrations are found, for a bundle, but the forecasts and
    figures of the report stay uncalibrated: their outcomes are what the factors were found on.
    """
    if stride < 1 or (refit is not None and refit < 1):
        raise TaskError(f"the stride and the refit interval are at least 1 cut-off, got {stride} and {refit}.")
    check_ensembles(ensembles, models, task.kind)
    names = list(dict.fromkeys((*ALWAYS, *models)))
    shared = _share(settings or {}, names, task)
    _refuse_silent_channels(parts, task)
    positions = _predicted(parts, task, stride)
    short = [span.series.unique_id for span, at in zip(parts.test, positions, strict=True) if not len(at)]
    too_short = (
        f"{len(short)} of {len(parts.test)} test series are too short to be judged and are left out: {shorten(short)}. "
        f"One that is new with the test shows a horizon of its past first, so it needs {2 * task.horizon} steps."
    )
    parts, positions = _without(short, parts, positions, too_short)
    failures: list[str] = []
    if task.future and any("future" in entry(name).covariates for name in names if not is_refit(name)):
        lacking = _lack_ahead(task, parts.test, positions)
        parts, positions = _without(lacking, parts, positions, next(iter(lacking.values()), ""))
        failures += lacking.values()
    refits = {name: RefitModel(name, task, shared[name], seed) for name in names if is_refit(name)}
    trained: dict[str, Trained | RefitModel] = {}
    rows: dict[str, list[Rows]] = {}
    checks: dict[str, list[Rows]] = {}
    costs: dict[str, dict[str, float]] = {}
    notes = [*parts.notes, *([too_short] if short else [])]
    calibrated = calibrated and task.kind == "forecast"
    at_checks = _check_positions(parts, task) if calibrated else []
    notes += [*_not_taken(task, models), *_lopsided(task)]
    for name in names:
        with _PeakMemory() as peak:
            try:
                if name in refits:
                    answer = _refitted(refits[name], parts, positions, lambda: rows["naive"])
                    trained[name], rows[name] = refits[name], answer.rows
                    seconds = (answer.fit_seconds, answer.predict_seconds)
                    notes += answer.notes
                else:
                    fit = partial(fit_model, name, task, settings=shared[name], seed=seed, progress=progress)
                    if name in models[:1]:
                        fit = partial(fit, directory=directory, resume=resume)
                    trained[name], rows[name], seconds = _run(fit, parts, positions, refit, stride)
            except (ModelError, TaskError) as error:
                left_out = f"{name} is left out: {error}"
                if name not in models and name != "naive":  # nobody asked for it
                    notes.append(left_out)
                    continue
                nothing_else = name == names[-1] and not set(models) & set(trained)
                if not leave_out or name in ALWAYS or nothing_else:
                    raise
                failures.append(left_out)
                continue
        costs[name] = {"fit_seconds": seconds[0], "predict_seconds": seconds[1], "peak_mb": peak.mb}
        if calibrated and any(row.has_quantiles for row in rows[name]):
            began = time.perf_counter()
            try:
                if parts.judges_validation:
                    chosen = _apart([row.positions for row in rows[name]], task, stride)
                    checks[name] = [row.at(at) for row, at in zip(rows[name], chosen, strict=True)]
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
    calibrations, said = _calibrations(task, checks) if calibrated else ({}, [])
    notes += said
    raw, judged = rows, {}
    if not parts.judges_validation:
        judged = calibrations
        rows = {name: _calibrated(task, rows[name], judged.get(name)) for name in rows}
    score = {"forecast": score_forecasts, "classify": score_classes, "regress": score_numbers}[task.kind]
    scores = score(task, rows)
    if task.kind == "forecast":
        for name, (measures, _) in scores.items():
            own = interval_scores(task, raw[name])
            measures |= {"calibrated": name in judged, **{f"{measure}_raw": value for measure, value in own.items()}}
    leaderboard = leaderboard_of(task, rows, costs, scores, stride)
    frame = {"forecast": forecast_frame, "classify": class_frame, "regress": number_frame}[task.kind](task, rows)
    for name, one in trained.items():
        if isinstance(one, Trained):
            notes += one.notes()
        if name in models and begins_known(settings) and not _has_owner(one):
            notes.append(f"{name}: keeps no statistics of an owner, so known_owner changes nothing.")
    if task.kind == "forecast" and not any(np.isfinite(actual_of(row, task.horizon)).any() for row in rows["naive"]):
        notes.append(
            f"no {task.target} is known after any cut-off of the test, so nothing is judged. Begin it earlier."
        )
    if task.kind != "forecast" and 0 < 2 * len(several := changing(rows["naive"])) < len(rows["naive"]):
        notes.append(
            f"{len(several)} of {len(rows['naive'])} test series have more than one {task.target}: {shorten(several)}; "
            "so all are judged at every row, where each would be once, at its end. Mend them if that is not meant."
        )
    instead = substitutes_frame(rows)
    notes += _substitute_notes(instead, rows)
    history = history_frame(task, parts)
    return Report(task, leaderboard, frame, history, trained, tuple(notes), instead, calibrations, tuple(failures))


def _without(
    names: Collection[str], parts: Parts, positions: Sequence[np.ndarray], why: str
) -> tuple[Parts, list[np.ndarray]]:
    """The parts, and the positions per test series, without the named test series.

    Raises:
        TaskError: no other is left; it says why.
    """
    kept = [index for index, span in enumerate(parts.test) if span.series.unique_id not in names]
    if not kept:
        raise TaskError(why)
    return replace(parts, test=[parts.test[index] for index in kept]), [positions[index] for index in kept]


def _refuse_silent_channels(parts: Parts, task: Task) -> None:
    """Raise TaskError where a channel that is classified or regressed on has no value to learn from."""
    if task.kind == "forecast":
        return  # its covariates may be missing: each model says what it makes of them
    heard = np.any([np.isfinite(span.series.values[: span.end]).any(0) for span in parts.train], axis=0)
    names = np.array([channel.name for channel in task.channels], dtype=object)
    if not heard.all():
        raise TaskError(
            f"{shorten(list(names[~heard]))} is missing in all rows of the training part, so nothing can be learned "
            f"from it. Leave it out: --covariates {','.join(names[heard])}."
        )


def _has_owner(trained: Trained | RefitModel) -> bool:
    return isinstance(trained, Trained) and type(trained.model).state_of_known is not StepModel.state_of_known


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
    """Forecasts of the validation part by a model whose weights learned from nothing that it forecasts.

    Networks and trees have stopped by that part, and trees have measured their errors on it: theirs may look better
    than what follows, and what calibration makes of them is near 1.
    """
    if isinstance(trained, RefitModel):
        last = [at[-1:] for at in positions]  # every one more is a fit
        fallback = [row.at(at) for row, at in zip(naive, last, strict=True)]
        return trained.forecast(parts.validation, last, lambda: fallback).rows
    if trained.states is not None:
        model_settings, training = parse_settings(trained.name, settings)
        parts = _held_back(parts, task)
        trained = fit_local(trained.name, task, replace(parts, validation=[]), model_settings, training.threads)
    return validated(trained, task, parts)


def _held_back(parts: Parts, task: Task) -> Parts:
    """The parts for a calibration of models that are fitted per series: where there are many series, one horizon each.

    What a fit says of its errors is true of its own time: parameters that are older by much of a series' past, or come
    of much less of it, give narrower intervals beside the errors than those that will be issued.
    """
    if len(parts.validation) < MANY_SERIES:
        return parts
    begins = {span.series.unique_id: span.end - task.horizon for span in parts.validation}
    return replace(
        parts,
        train=[replace(span, end=begins.get(span.series.unique_id, span.end)) for span in parts.train],
        validation=[replace(span, begin=begins[span.series.unique_id]) for span in parts.validation],
    )


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
    if trained.model.signature.future and (lacking := _lack_ahead(task, parts.validation, positions)):
        raise TaskError(next(iter(lacking.values())))
    unseen = trained if trained.before_validation is None else replace(trained, model=trained.before_validation)
    return trained_pass(unseen, parts.validation, positions)


def calibration_of(task: Task, everyone: Sequence[Rows]) -> Calibration:
    """
    Raises:
        TaskError: there are too few outcomes for the outermost quantiles.
    """
    known, needed = [row for row in everyone if len(row.positions)], scores_needed(task.quantiles)
    actual = np.concatenate([np.empty((0, task.horizon)), *(actual_of(row, task.horizon) for row in known)])
    scores = int(np.isfinite(actual).sum())
    if scores < needed:
        raise TaskError(
            f"the validation part gives {scores} outcomes, and quantiles at {task.quantiles[0]:g} and "
            f"{task.quantiles[-1]:g} need {needed}."
        )
    return calibrate(actual, np.concatenate([row.values for row in known]), task.quantiles)


def _calibrations(task: Task, checks: Mapping[str, list[Rows]]) -> tuple[dict[str, Calibration], list[str]]:
    """Per model its calibration, and who has none for what reason."""
    found, notes = {}, []
    for name, everyone in checks.items():
        if not all(row.has_quantiles for row in everyone if len(row.positions)):
            continue  # what forecasts points only says so in a note of its own
        try:
            found[name] = calibration_of(task, everyone)
        except TaskError as error:
            notes.append(f"{name}: is not calibrated: {error}")
    return found, notes


def _calibrated(task: Task, everyone: Sequence[Rows], calibration: Calibration | None) -> list[Rows]:
    """The forecasts with calibrated quantiles; their means stay those of the model's own."""
    if calibration is None:
        return list(everyone)
    levels = np.array(task.quantiles)
    return [replace(row, values=calibration.apply(row.values), points=row.mean(levels)) for row in everyone]


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
    rows = []
    for index, (span, at) in enumerate(zip(parts.test, positions, strict=True)):
        mine = [piece[index] for piece in pieces]
        instead = {position: one for row in mine for position, one in row.instead.items()}
        rows.append(Rows(span, at, np.concatenate([row.values for row in mine]), instead=instead))
    return first, rows, (fit_seconds, predict_seconds)


def _refits(
    parts: Parts, positions: Sequence[np.ndarray], refit: int | None, stride: int
) -> Iterator[tuple[Parts, list[np.ndarray]]]:
    """What is known at each refit, what is then left of the test, and the positions predicted until the next one."""
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
        train, validation, test = (
            [(span, shift.get(span.series.unique_id, 0)) for span in spans]
            for spans in (parts.train, parts.validation, parts.test)
        )
        known = replace(
            parts,
            train=[replace(span, end=span.end + steps) for span, steps in train],
            validation=[replace(span, begin=span.begin + steps, end=span.end + steps) for span, steps in validation],
            test=[replace(span, begin=span.begin + steps) for span, steps in test],
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
