"""A backtest's predictions as long frames: forecasts, classes, numbers, what entered the models, what was substituted.

Shapes: N cut-offs or rows of one series, H horizon, Q quantiles, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from forecasting.metrics import quantile_column
from forecasting.predictions import Rows, substituted
from forecasting.scores import actual_of
from forecasting.task import Task
from forecasting.windows import Parts

SUBSTITUTES = ("model", "unique_id", "cutoff", "substitute", "reason")


def forecast_frame(task: Task, rows: Mapping[str, list[Rows]]) -> pd.DataFrame:
    """unique_id, cutoff, ds, model, mean, q..., y, substitute: a row per series, cut-off, step and model."""
    levels = np.array(task.quantiles)
    frames = []
    for name, everyone in rows.items():
        for row in everyone:
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
            frame["y"] = actual_of(row, task.horizon).ravel()
            frame["substitute"] = np.repeat(np.array(row.names(), object), task.horizon)
            frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def class_frame(task: Task, rows: Mapping[str, list[Rows]]) -> pd.DataFrame:
    """unique_id, ds, model, label, p_<label>..., y: a row per series, time and model; `label` is the likeliest."""
    labels = np.array([*task.labels, None], object)  # the last stands for unknown, index -1

    def columns(row: Rows) -> dict[str, Any]:
        probabilities = {f"p_{label}": row.values[:, index] for index, label in enumerate(task.labels)}
        return {"label": labels[row.values.argmax(-1)], **probabilities, "y": labels[_target(row)]}

    return _answers(rows, columns)


def number_frame(task: Task, rows: Mapping[str, list[Rows]]) -> pd.DataFrame:
    """unique_id, ds, model, mean, q..., y: a row per series, time and model."""
    levels = np.array(task.quantiles)

    def columns(row: Rows) -> dict[str, Any]:
        quantiles = {quantile_column(level): row.values[:, index] for index, level in enumerate(levels)}
        return {"mean": row.mean(levels), **quantiles, "y": _target(row)}

    return _answers(rows, columns)


def history_frame(task: Task, parts: Parts) -> pd.DataFrame:
    """What entered the models: unique_id, ds and the channels, up to the end of the test; series of the test only."""
    frames = []
    for span in parts.test:
        frame = pd.DataFrame(span.series.values[: span.end], columns=[channel.name for channel in task.channels])
        frame.insert(0, "ds", span.series.ds[: span.end])
        frame.insert(0, "unique_id", span.series.unique_id)
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def substitutes_frame(rows: Mapping[str, list[Rows]]) -> pd.DataFrame:
    """A row a prediction that is not the model's own, columns SUBSTITUTES."""
    table: list[tuple[Any, ...]] = []
    for name, everyone in rows.items():
        times = {row.span.series.unique_id: row.span.series.ds for row in everyone}
        table += [(name, uid, times[uid][at], one.name, one.reason) for uid, at, one in substituted(everyone)]
    return pd.DataFrame(table, columns=list(SUBSTITUTES))


def _answers(rows: Mapping[str, list[Rows]], columns: Callable[[Rows], dict[str, Any]]) -> pd.DataFrame:
    """unique_id, ds, model and the columns of every series' answers, one each time."""
    frames = [
        pd.DataFrame({
            "unique_id": row.span.series.unique_id,
            "ds": row.span.series.ds[row.positions],
            "model": name,
            **columns(row),
        })
        for name, everyone in rows.items()
        for row in everyone
    ]  # fmt: skip
    return pd.concat(frames, ignore_index=True)


def _target(row: Rows) -> np.ndarray:
    """What came at the row's positions: class indices or numbers."""
    return np.asarray(row.span.series.target)[row.positions]
