"""From a data set to a bundle: train, judge beside naive and ridge, export."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from data.frame import Dataset
from data.panel import to_panel
from forecasting.backtest import ALWAYS, Report, compare
from forecasting.export import FittedSeries, export_bundle
from forecasting.refit import RefitModel, is_refit
from forecasting.refit_bundle import export_refit
from forecasting.scores import judged_by
from forecasting.task import Task, TaskError
from forecasting.training import Trained, TrainingConfig, begins_known
from forecasting.windows import Parts, split
from models.catalog import MODELS, entry, field_defaults


def train_bundle(
    dataset: Dataset,
    model: str,
    task: Task,
    out: Path,
    *,
    until: Any = None,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    resume: Path | None = None,
    progress: bool = False,
    calibrated: bool = True,
) -> tuple[Report, dict[str, Any]]:
    """Train `model`, write its bundle to `out`, and return how it did and the bundle's card.

    Training sees nothing after `until`; what follows it is the test. Without it, a data set with its own split keeps
    that; any other forecast is trained on the whole, and the figures are those of the validation part, which also
    chose the epoch: the card says which. Of recordings to classify or regress a fifth is always kept for the test.
    Its quantiles are calibrated on the validation part if `calibrated`; the bundle's card keeps the factors.
    `model` may be "auto": the best of the catalog on the validation part is trained. One of sktime's is judged at every
    horizon-th cut-off, for each is a fit, and its bundle says what is to be fitted when it forecasts.

    Checkpoints and the log stay in a folder named like the bundle with `.training` behind it.
    """
    if is_refit(model) and resume is not None:
        raise TaskError(f"{model} is fitted when it forecasts, so there is no training that --resume could go on with.")
    panel = to_panel(dataset, task.labels or None)
    parts = split(dataset, panel, task, cutoff=until, hold_out=False, known_owner=begins_known(settings))
    notes: tuple[str, ...] = dataset.notes
    if model == "auto":
        if resume is not None:
            raise TaskError("--resume goes on with one model: name it instead of auto.")
        model, note = select(parts, task, seed=seed, settings=settings, progress=progress)
        settings = settings_of((*ALWAYS, model), settings or {})
        notes = (*notes, note)
    judged_on = "test" if parts.test else "validation"
    if not parts.test:
        parts = Parts(parts.train, parts.validation, parts.validation, parts.notes)
    refit = is_refit(model)
    home = out.with_name(out.name + ".training") if not refit and entry(model).learns == "gradient" else None
    report = compare(
        parts,
        [model],
        task,
        stride=task.horizon if refit and task.kind == "forecast" else 1,
        seed=seed,
        settings=settings,
        progress=progress,
        directory=home,
        resume=resume,
        calibrated=calibrated,
    ).with_notes(notes)
    return report, export_winner(report, model, dataset, parts, out, seed=seed, judged_on=judged_on)


def with_auto(
    dataset: Dataset,
    models: Sequence[str],
    task: Task,
    *,
    test_size: int | None = None,
    cutoff: Any = None,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> tuple[list[str], dict[str, Any], tuple[str, ...]]:
    """The models with the catalog's best on validation in the place of "auto", the settings that they have, and a note.

    The arguments are those of `backtest`; nothing of its test is looked at.
    """
    panel, known = to_panel(dataset, task.labels or None), begins_known(settings)
    parts = split(dataset, panel, task, test_size=test_size, cutoff=cutoff, known_owner=known)
    best, note = select(parts, task, seed=seed, settings=settings, progress=progress)
    names = list(dict.fromkeys(best if name == "auto" else name for name in models))
    given = dict(settings or {})
    if not any(map(is_refit, names)):
        given = settings_of((*ALWAYS, *names), given)
    return names, given, (note,)


def settings_of(models: Sequence[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that one of these models has; the others were for models that were not chosen."""
    known = {field.name for field in fields(TrainingConfig)}.union(*map(field_defaults, models))
    return {field: value for field, value in settings.items() if field in known}


def select(
    parts: Parts, task: Task, *, seed: int, settings: Mapping[str, Any] | None, progress: bool
) -> tuple[str, str]:
    """The best streaming model of the catalog on the validation part, and a sentence that says so."""
    if not parts.validation:
        raise TaskError("there is no validation part to select on: the series are too short; name a model.")
    able = [name for name, model in MODELS.items() if task.kind in model.tasks and model.streams]
    trained = {span.series.unique_id for span in parts.train}
    if any(span.series.unique_id not in trained for span in parts.validation):
        able = [
            name for name in able if MODELS[name].learns != "per series"
        ]  # these know only what they were fitted to
    costly = [name for name in able if MODELS[name].costly]
    able = [name for name in able if name not in costly]
    inside = Parts(parts.train, parts.validation, parts.validation)
    own = {**(settings or {}), "learn_validation": False}  # what is judged here is no one's to learn
    report = compare(inside, able, task, seed=seed, settings=own, progress=progress, leave_out=True, calibrated=False)
    board = report.leaderboard
    column, best = judged_by(board), str(board["model"][0])
    figures = ", ".join(f"{name} {value:.4g}" for name, value in zip(board["model"], board[column], strict=True))
    left_out = "".join(f" {failure}" for failure in report.failures)
    left_out += "".join(f" {name} is left out: a fit takes seconds a series; name it to try it." for name in costly)
    return best, f"auto chose {best} by {column} on validation: {figures}.{left_out}"


def winner(report: Report) -> str:
    """The best model of the leaderboard, which is sorted, that can be streamed; an ensemble is no model."""
    able = {name for name in report.models if not is_refit(name) and entry(name).streams}
    return next(str(name) for name in report.leaderboard["model"] if name in able)


def export_winner(
    report: Report, model: str, dataset: Dataset, parts: Parts, out: Path, *, seed: int, judged_on: str = "test"
) -> dict[str, Any]:
    """Export one model of a report as a bundle; the card holds the figures of all models beside it."""
    board = report.leaderboard.astype(object).where(report.leaderboard.notna(), None)
    metrics = [{"on": judged_on, **{str(k): v for k, v in row.items()}} for row in board.to_dict("records")]
    trained, calibration = report.models[model], report.calibrations.get(model)
    of_both = isinstance(trained, Trained) and (trained.states is not None or trained.before_validation is not None)
    learned = (parts.before_judgement() if of_both else parts).train
    ends = [(span.series.ds[span.begin], span.series.ds[span.end - 1]) for span in learned]
    training: dict[str, Any] = {
        "data_set": dataset.name,
        "fingerprint": fingerprint(dataset.frame),
        "period": [str(min(begin for begin, _ in ends)), str(max(end for _, end in ends))],
        "n_series": len(learned),
        "seed": seed,
    }
    if isinstance(trained, RefitModel):
        return export_refit(
            trained, out, training=training, metrics=metrics, calibration=calibration, recordings=parts.train
        )
    values = np.concatenate([span.series.values[: span.end] for span in learned])
    known = [column[np.isfinite(column)] for column in values.T]
    steps = np.concatenate([np.diff(span.series.values[: span.end], axis=0) for span in learned])
    moves = [column[np.isfinite(column)] for column in steps.T]
    training |= {
        "epochs": trained.epochs,
        "seconds": trained.seconds,
        "device": trained.device,
        "typical": {
            "level": [float(np.median(column)) if len(column) else 0.0 for column in known],
            "scale": [float(np.std(column)) if len(column) else 1.0 for column in known],
            "step": [float(np.std(column)) if len(column) else 1.0 for column in moves],
        },
    }
    training["substitutes"] = {
        series: {"substitute": one.name, "reason": one.reason} for series, one in trained.substitutes.items()
    }
    fitted = None
    if trained.states is not None:
        states = trained.states
        training["remarks"] = states.fits.notes
        fitted = FittedSeries(states.fits.series, states.fits.state, states.last)
    return export_bundle(
        trained.model,
        report.task,
        out,
        name=model,
        config=trained.config,
        training=training,
        metrics=metrics,
        fitted=fitted,
        calibration=calibration,
    )


def fingerprint(frame: pd.DataFrame) -> str:
    """sha256 over the frame's column names and values, in order."""
    digest = hashlib.sha256(",".join(map(str, frame.columns)).encode())
    digest.update(pd.util.hash_pandas_object(frame, index=False).to_numpy().tobytes())
    return digest.hexdigest()
