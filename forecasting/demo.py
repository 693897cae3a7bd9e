"""The main job end to end on embedded data: train, compare, export, certify, forecast, picture."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from data.catalog import load
from data.frame import Dataset
from data.panel import to_panel
from forecasting.backtest import compare
from forecasting.metrics import quantile_column
from forecasting.pictures import ForecastPanel, picture_forecast, picture_probabilities
from forecasting.pipeline import export_winner, winner
from forecasting.results import write_report, write_whole
from forecasting.runtime import LoadedBundle, load_bundle
from forecasting.task import Task
from forecasting.windows import Parts, split

MODELS = ("gru", "lstm")


@dataclass(frozen=True)
class Scene:
    """One of the three streams, and how much work the demo does on it."""

    name: str
    title: str
    dataset: str
    horizon: int | None
    settings: dict[str, Any]


SCENES = (
    Scene("stock", "S&P 500, daily close", "sp500", 5, {}),
    Scene("battery", "Capacity of simulated ageing cells", "battery_simulated", 30, {"skip_lags": 48}),
    Scene("gesture", "Wrist movements, recognised frame by frame", "basic_motions", None, {"dropout": 0.1}),
)


def run(out: Path, *, seed: int = 0, say: Callable[[str], object], show: Callable[[pd.DataFrame], object]) -> None:
    """Leave in `out`, per scene, what a backtest writes, a certified bundle, its forecasts and a picture."""
    began = time.perf_counter()
    for scene in SCENES:
        _play(scene, out / scene.name, seed, say, show)
    say(f"\nDone in {time.perf_counter() - began:.0f} s. In {out}/stock, {out}/battery and {out}/gesture:")
    say("  leaderboard.csv  forecasts.parquet  forecast.parquet  certificate.json  picture.png  bundle/")
    say("Try next:")
    say(f"  mnemo dashboard --out {out}")
    say(f"  mnemo forecast --bundle {out}/stock/bundle --data sp500 --out -")
    say("  mnemo backtest --data nasdaq --model lstm,gru --horizon 5 --out out/nasdaq")
    say("  mnemo train --data YOUR.csv --model auto --horizon 7 --out bundles/yours")


def _play(
    scene: Scene, folder: Path, seed: int, say: Callable[[str], object], show: Callable[[pd.DataFrame], object]
) -> None:
    dataset = load(scene.dataset)
    task = Task.of(dataset, horizon=scene.horizon)
    parts = split(dataset, to_panel(dataset, task.labels or None), task)
    say(f"\n{scene.title} ({scene.dataset}): {task.kind}, {len(parts.test)} test series")
    report = compare(parts, MODELS, task, seed=seed, settings=scene.settings).with_notes(dataset.notes)
    show(report.leaderboard)
    best = winner(report)
    # The bundle comes first: a result that names a bundle has one.
    folder.mkdir(parents=True, exist_ok=True)
    card = export_winner(report, best, dataset, parts, folder / "bundle", seed=seed)
    write_report(report, folder, dataset=dataset.name, seed=seed, settings=scene.settings, bundle="bundle")
    certificate = json.dumps(card["certificate"], indent=2) + "\n"
    write_whole(folder / "certificate.json", lambda path: path.write_text(certificate))
    bundle = load_bundle(folder / "bundle")
    if task.kind == "forecast":
        answer = _forecast(scene, dataset, task, parts, bundle, folder / "picture.png")
    else:
        answer = _recognise(scene, dataset, task, parts, bundle, folder / "picture.png")
    write_whole(folder / "forecast.parquet", lambda path: answer.to_parquet(path, index=False))
    latency = card["certificate"]["latency"]["step_us"]["p50"]
    say(f"{best} exported and certified: a step takes {latency:.0f} µs (median). Picture: {folder}/picture.png")


def _forecast(
    scene: Scene, dataset: Dataset, task: Task, parts: Parts, bundle: LoadedBundle, picture: Path
) -> pd.DataFrame:
    """Forecast from the end of the data, and from one horizon before it so that the picture can show what came."""
    shown = [span.series for span in parts.test[:4]]
    before = pd.concat(
        dataset.frame[
            (dataset.frame["unique_id"] == series.unique_id) & (dataset.frame["ds"] <= series.ds[-1 - task.horizon])
        ]
        for series in shown
    )
    past = bundle.forecast(before)
    columns = [quantile_column(level) for level in task.quantiles]
    panels = []
    for series in shown:
        rows = past[past["unique_id"] == series.unique_id]
        begin = max(0, len(series.ds) - 13 * task.horizon)
        panels.append(
            ForecastPanel(
                title=series.unique_id,
                history_ds=series.ds[begin : -task.horizon],
                history_y=series.values[begin : -task.horizon, 0],
                forecast_ds=rows["ds"].to_numpy(),
                quantiles=rows[columns].to_numpy(),
                levels=np.array(task.quantiles),
                actual_y=series.values[-task.horizon :, 0],
                unit=task.channels[0].unit,
            )
        )
    picture_forecast(picture, f"{scene.title}: {bundle.name}, {task.horizon} steps ahead", panels)
    return pd.concat([past, bundle.forecast(dataset)], ignore_index=True)


def _recognise(
    scene: Scene, dataset: Dataset, task: Task, parts: Parts, bundle: LoadedBundle, picture: Path
) -> pd.DataFrame:
    """Step one test recording frame by frame for the picture; answer for every recording."""
    series = parts.test[0].series
    stream = bundle.stream(series=[series.unique_id])
    probabilities = np.array([stream.step(values[None])[0] for values in series.values.astype(np.float32)])
    assert series.target is not None
    picture_probabilities(
        picture,
        f"{scene.title}: {bundle.name}",
        series.ds.astype(float),
        series.values,
        [channel.name for channel in task.channels],
        probabilities,
        task.labels,
        truth=task.labels[series.target[-1]],
        unit=task.channels[0].unit,
    )
    return bundle.forecast(dataset)
