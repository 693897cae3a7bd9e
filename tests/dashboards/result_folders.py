"""Small results on disk: a forecast, a regression, a gesture result with a really trained bundle, one with a memory."""

import shutil

import numpy as np
import pandas as pd

from data.frame import Channel
from forecasting.backtest import Report
from forecasting.results import write_report
from forecasting.task import Task

LEVELS = (0.1, 0.25, 0.5, 0.75, 0.9)
OFFSETS = (-2.0, -1.0, 0.0, 1.0, 2.0)
MODELS = ("gru", "ridge", "naive")


def quantile_rows(centre, width):
    return {f"q{level:g}": centre + width * offset for level, offset in zip(LEVELS, OFFSETS, strict=True)}


def forecast_frames(steps=60, horizon=4, series=("AAA", "BBB")):
    """History and forecasts of two series; forecasts of gru are half as wide as naive's."""
    histories, forecasts = [], []
    for number, name in enumerate(series):
        ds = pd.date_range("2024-01-01", periods=steps, freq="D")
        y = 100.0 + 10 * number + np.sin(np.arange(steps) / 3)
        histories.append(pd.DataFrame({"unique_id": name, "ds": ds, "y": y}))
        for cut in range(steps - 5 * horizon, steps - horizon, 2):
            ahead = slice(cut + 1, cut + 1 + horizon)
            for width, model in enumerate(MODELS, 1):
                forecasts.append(
                    pd.DataFrame({
                        "unique_id": name, "cutoff": ds[cut], "ds": ds[ahead], "model": model, "mean": y[cut] + width,
                        **quantile_rows(np.full(horizon, y[cut] + width), width), "y": y[ahead],
                    })
                )  # fmt: skip
    return pd.concat(histories, ignore_index=True), pd.concat(forecasts, ignore_index=True)


def write_forecast_result(folder, dataset="prices_simulated"):
    history, forecasts = forecast_frames()
    task = Task("forecast", "y", (Channel("y", "USD", low=0),), "D", horizon=4, season=1, quantiles=LEVELS)
    board = pd.DataFrame({
        "model": MODELS, "task": "forecast", "n_series": 2, "n_cutoffs": 8, "mase": [0.8, 0.9, 1.0],
        "smape": [1.0, 1.1, 1.2], "mae": [0.5, 0.6, 0.7], "coverage_80": [0.81, 0.7, 0.6],
        "skill_vs_naive": [0.2, 0.1, 0.0], "dm_p_value": [0.011, 0.2, np.nan], "fit_seconds": 1.0,
    })  # fmt: skip
    report = Report(
        task=task, leaderboard=board, forecasts=forecasts, history=history, models={}, notes=("Two rows were mended.",)
    )
    write_report(report, folder, dataset=dataset, seed=0, settings={})


def write_regress_result(folder):
    """Five cells; the truth is one number a cell, and each row says more about it."""
    rows, histories = [], []
    for number in range(5):
        life, cycles = 500.0 + 100 * number, np.arange(1, 7)
        histories.append(pd.DataFrame({"unique_id": f"cell_{number}", "ds": cycles, "capacity": 2 - cycles / 100}))
        for model in MODELS:
            rows.append(
                pd.DataFrame({
                    "unique_id": f"cell_{number}", "ds": cycles, "model": model, "mean": life + 60 / cycles,
                    **quantile_rows(life + 60 / cycles, 10.0), "y": life,
                })
            )  # fmt: skip
    task = Task("regress", "y", (Channel("capacity", "Ah", low=0),), 1, quantiles=LEVELS)
    board = pd.DataFrame({
        "model": MODELS, "task": "regress", "n_series": 5, "n_cutoffs": 5, "mae": [10.0, 20.0, 30.0],
        "skill_vs_naive": [0.6, 0.3, 0.0], "dm_p_value": [0.3, 0.4, np.nan],
    })  # fmt: skip
    report = Report(
        task=task, leaderboard=board, forecasts=pd.concat(rows), history=pd.concat(histories), models={}, notes=()
    )
    write_report(report, folder, dataset="cells", seed=0, settings={})


def write_gesture_result(folder):
    from data import catalog
    from forecasting.backtest import backtest
    from forecasting.export import export_bundle

    dataset = catalog.load("basic_motions")
    task = Task.of(dataset)
    settings = {"max_epochs": 2, "hidden": 16}
    report = backtest(dataset, ["gru"], task, settings=settings)
    gru = report.models["gru"]
    metrics = report.leaderboard.to_dict("records")
    training = {"data_set": dataset.name}
    export_bundle(gru.model, task, folder / "bundle", name="gru", config=gru.config, training=training, metrics=metrics)
    write_report(report, folder, dataset=dataset.name, seed=0, settings=settings, bundle="bundle")


def write_memory_result(folder, gesture):
    """The gesture result with the bundle of a memory that was prepared and not trained."""
    import torch

    from data import catalog
    from data.panel import to_panel
    from forecasting.export import export_bundle
    from forecasting.windows import split, window_loader
    from models.memory.backbone import MemoryBackbone, MemoryConfig
    from models.memory.titans import LMM
    from models.network import Network, NetworkConfig

    shutil.copytree(gesture, folder, ignore=shutil.ignore_patterns("bundle"))
    dataset = catalog.load("basic_motions")
    task = Task.of(dataset)
    torch.manual_seed(0)
    config = MemoryConfig(width=8, heads=2, blocks=1, chunk=4)
    model = Network(task.signature, NetworkConfig(embed=8), lambda width: MemoryBackbone(width, config, LMM))
    train = split(dataset, to_panel(dataset, task.labels), task).train
    model.prepare(window_loader(train, task, length=100, stride=100, context=0, batch_size=32))
    training = {"data_set": dataset.name}
    export_bundle(model, task, folder / "bundle", name="titans-lmm", config={}, training=training, metrics=[])


def write_number_bundle(path, channels):
    """A model that was not trained and that tells a number, of the same channels as a gesture."""
    from forecasting.export import export_bundle
    from models import catalog

    task = Task("regress", "y", channels, 1, quantiles=LEVELS)
    model = catalog.build("gru", task.signature, hidden=8)
    export_bundle(model, task, path, name="gru", config={}, training={"data_set": "numbers"}, metrics=[])
