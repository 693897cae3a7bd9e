"""How well predictions did: each model's measures, its losses for the significance test, and the leaderboard of them.

Shapes: N cut-offs or rows of one series, H horizon, Q quantiles, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from forecasting import metrics
from forecasting.metrics import mean_of_quantiles
from forecasting.predictions import Rows, substituted
from forecasting.refit import is_refit
from forecasting.task import Task
from forecasting.windows import Span, is_known
from models.catalog import entry

CONFIDENCE, DWELL = 0.8, 3  # an early decision: this probability for so many frames in a row
LEADERBOARD = (
    "model", "task", "n_series", "n_cutoffs", "mase", "smape", "mae", "rmse", "mse", "pinball", "coverage_80",
    "skill_vs_naive", "dm_p_value", "fit_seconds", "predict_seconds", "peak_mb",
    "mape", "accuracy", "macro_f1", "earliness",
    "calibrated", "pinball_raw", "coverage_80_raw", "calibrate_seconds",
    "n_substituted",
)  # fmt: skip

Scores = dict[str, tuple[dict[str, float], np.ndarray]]
"""Per model its measures, and its losses as the Diebold-Mariano test wants them: the same units for every model."""


def actual_of(rows: Rows, horizon: int) -> np.ndarray:
    """(N, H) the values that came, NaN where none was observed."""
    steps = np.arange(1, horizon + 1)
    return rows.span.series.values[rows.positions[:, None] + steps, 0]


def score_forecasts(task: Task, rows: Mapping[str, list[Rows]]) -> Scores:
    """Per model its measures, and its scaled absolute error per cut-off (or per series, where those are more)."""
    levels = np.array(task.quantiles)
    scores = {}
    for name, everyone in rows.items():
        actual = np.concatenate([actual_of(row, task.horizon) for row in everyone])
        mean = np.concatenate([row.mean(levels) for row in everyone])
        scale = np.concatenate([np.full(len(row.positions), _in_sample_scale(row.span, task)) for row in everyone])
        measures = {
            "mase": metrics.mase(actual, mean, scale).value,
            "smape": metrics.smape(actual, mean),
            "mae": metrics.mae(actual, mean),
            "rmse": metrics.rmse(actual, mean),
            "mse": metrics.mse(actual, mean),
        }
        measures |= interval_scores(task, everyone)
        error = np.abs(actual - mean) / np.where(scale > 0, scale, np.nan)[:, None]
        known = np.isfinite(error)
        per_row = np.where(known, error, 0).sum(1) / np.where(known.any(1), known.sum(1), np.nan)
        scores[name] = measures, _by_time_or_series(per_row, [len(row.positions) for row in everyone])
    return scores


def interval_scores(task: Task, everyone: Sequence[Rows]) -> dict[str, float]:
    """The pinball loss and the coverage of the 80 % interval, of forecasts that have quantiles, and these levels."""
    if not all(row.has_quantiles for row in everyone):
        return {}
    levels = np.array(task.quantiles)
    actual = np.concatenate([actual_of(row, task.horizon) for row in everyone])
    quantiles = np.concatenate([row.values for row in everyone])
    measures = {"pinball": metrics.pinball(actual, quantiles, levels)}
    outer = [index for index, level in enumerate(levels) if np.isclose(level, 0.1) or np.isclose(level, 0.9)]
    if len(outer) == 2:
        measures["coverage_80"] = metrics.coverage(actual, quantiles[..., outer[0]], quantiles[..., outer[1]])
    return measures


def score_classes(task: Task, rows: Mapping[str, list[Rows]]) -> Scores:
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


def score_numbers(task: Task, rows: Mapping[str, list[Rows]]) -> Scores:
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


def leaderboard_of(
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
    return frame.sort_values(judged_by(frame), ascending=task.kind != "classify", kind="stable", ignore_index=True)


def judged_by(leaderboard: pd.DataFrame) -> str:
    """What it is sorted by: the accuracy, or the MASE, or the MAE where there is no MASE, as no series has a scale."""
    return next((measure for measure in ("accuracy", "mase") if leaderboard[measure].notna().any()), "mae")


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


def _error(task: Task, measures: Mapping[str, float]) -> float:
    """What skill compares: the error rate, the MAE, or the MASE (the MAE where no series has a scale)."""
    if task.kind == "classify":
        return 1 - measures["accuracy"]
    mase = measures.get("mase", np.nan)
    return mase if np.isfinite(mase) else measures["mae"]


def _judged(everyone: Sequence[Rows]) -> list[np.ndarray]:
    """Per series the indices of the rows whose class or number counts.

    Where each series has one answer, the last row with a known answer; where it changes along a series, every such row.
    """
    known = [np.flatnonzero(is_known(np.asarray(row.span.series.target)[row.positions])) for row in everyone]
    return known if changing(everyone) else [at[-1:] for at in known]


def changing(everyone: Sequence[Rows]) -> list[str]:
    """The series whose answer changes along the way."""
    answers = [np.asarray(row.span.series.target)[row.positions] for row in everyone]
    return [
        row.span.series.unique_id
        for row, answer in zip(everyone, answers, strict=True)
        if len(np.unique(answer[is_known(answer)])) > 1
    ]
