"""sktime: its own checks over the whole catalog, and what a panel of 1,000 series costs through its interface.

The panel is M1 monthly and the first part of M3 monthly, 18 months ahead. Beside ours, in the same run: the same model
by our own functions on the long frame (target: sktime's interface costs at most 1.2 times that), and sktime's own
NaiveForecaster, which it fits one by one. The checks of all models take about half an hour; `--checks NAMES` runs those
of some, and no panel.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import pandas as pd
import torch
from figures import machine, table
from sktime.forecasting.naive import NaiveForecaster
from sktime.utils.estimator_checks import check_estimator

from data.catalog import load
from data.frame import ID, TIME, Dataset, Splits, check_frame
from data.panel import to_panel
from forecasting.metrics import mean_of_quantiles
from forecasting.panel_states import advance
from forecasting.passes import one_pass
from forecasting.sktime import LEVELS, MnemoClassifier, MnemoForecaster, parts_to_learn_from
from forecasting.task import Task
from forecasting.training import TrainingConfig, fit_model
from forecasting.windows import Span
from models.catalog import MODELS, field_defaults

SERIES, HORIZON, REPEATS = 1000, 18, 5
SMALL = {
    "hidden": 4, "embed": 4, "width": 8, "heads": 2, "blocks": 1, "feed_forward": 1, "chunk": 4, "window": 5,
    "patch": 3, "patches": 3, "lags": 5, "max_epochs": 1, "batch_size": 256,
    "order": "1,0,0", "seasonal_order": "0,0,0",
}  # fmt: skip
PANEL: dict[str, dict[str, Any]] = {
    "naive": {},
    "ridge": {"lags": 24},
    "gru": {"hidden": 16, "max_epochs": 1, "batch_size": 128},
}


def checks(names: list[str]) -> None:
    rows = []
    for name in names:
        known = set(field_defaults(name)) | set(vars(TrainingConfig()))
        own = {field: value for field, value in SMALL.items() if field in known}
        for kind, estimator in (("forecast", MnemoForecaster), ("classify", MnemoClassifier)):
            if kind not in MODELS[name].tasks:
                continue
            began = time.process_time()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                results = check_estimator(estimator(name, settings=own), verbose=False)
            failed = [check for check, result in results.items() if result != "PASSED"]
            seconds = time.process_time() - began
            rows.append([name, kind, str(len(results)), str(len(failed)), f"{seconds:.0f}", ", ".join(failed[:2])])
            print(*rows[-1], flush=True)
    table(["model", "task", "checks", "failed", "CPU s", "first failures"], rows)


def monthly() -> pd.DataFrame:
    """unique_id, ds, y of the first 1,000 series of both sets."""
    frames = [load(name).frame.assign(source=name) for name in ("m3/monthly_a", "m1/monthly")]
    frame = pd.concat(frames, ignore_index=True)
    frame[ID] = frame["source"] + " " + frame[ID]
    frame = frame.sort_values([ID, TIME])
    chosen = frame[ID].unique()[:SERIES]
    return frame.loc[frame[ID].isin(chosen), [ID, TIME, "y"]].reset_index(drop=True)


def dataset_of(frame: pd.DataFrame, shape: Dataset) -> Dataset:
    checked, _ = check_frame(frame, source="panel", task="forecast", channels=shape.channels)
    return Dataset("panel", checked, "forecast", shape.channels, shape.freq, 12, HORIZON, Splits(), "y")


def ours(name: str, frame: pd.DataFrame, shape: Dataset) -> np.ndarray:
    """Fit and forecast from every end, from the long frame to (N, H) means."""
    dataset = dataset_of(frame, shape)
    panel = to_panel(dataset)
    task = Task.of(dataset, quantiles=LEVELS)
    trained = fit_model(name, task, parts_to_learn_from(dataset, panel, task, name), settings=PANEL[name])
    spans = [Span(series, 0, len(series.ds)) for series in panel]
    rows = one_pass(trained.model, spans, [np.array([len(series.ds) - 1]) for series in panel])
    return mean_of_quantiles(np.concatenate([row.values for row in rows]), np.array(LEVELS))


def theirs(forecaster: Any, y: pd.DataFrame) -> tuple[Any, np.ndarray]:
    fitted = forecaster.fit(y, fh=np.arange(1, HORIZON + 1))
    return fitted, fitted.predict()["y"].to_numpy().reshape(SERIES, HORIZON)


def panel() -> None:
    frame, shape = monthly(), load("m1/monthly")
    last = frame.groupby(ID)[TIME].transform("max") == frame[TIME]
    known, new = frame[~last], frame[last]
    y, newest = (part.set_index([ID, TIME])[["y"]] for part in (known, new))
    print(f"{SERIES} series, {len(known)} observations, horizon {HORIZON}; medians over {REPEATS}, CPU time")
    rows = []
    for name in PANEL:
        forecaster = MnemoForecaster(name, season=12, settings=PANEL[name])
        fitted, means = theirs(forecaster, y)
        scale = np.abs(means).max()
        apart = np.abs(means - ours(name, known, shape)).max() / scale
        own, through = fair(lambda: ours(name, known, shape), lambda: theirs(forecaster, y))  # noqa: B023
        # Each update starts from the same states: a copy of what was fitted, made outside the clock.
        copies = [deepcopy(fitted) for _ in range(2 * REPEATS + 2)]
        state, model = fitted.streams_.state, fitted.trained_.model

        def step() -> None:
            series = to_panel(dataset_of(new, shape))
            advance(model, state, [one.values for one in series])  # noqa: B023

        step_own, step_through = fair(step, lambda: copies.pop().update(newest).predict())  # noqa: B023
        rows.append([
            name, f"{own:.2f}", f"{through:.2f}", f"{through / own:.2f}", f"{apart:.1e}",
            f"{step_own * 1e3:.0f}", f"{step_through * 1e3:.0f}", f"{through / step_through:.0f}",
        ])  # fmt: skip
        print(*rows[-1], flush=True)
    peer = NaiveForecaster(sp=12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        began = time.process_time()
        theirs(peer, y)
        fitted_at = time.process_time()
        peer.update(newest, update_params=False).predict()
        through, step_through = fitted_at - began, time.process_time() - fitted_at
    rows.append([
        "sktime's NaiveForecaster", "", f"{through:.2f}", "", "", "", f"{step_through * 1e3:.0f}",
        f"{through / step_through:.0f}",
    ])  # fmt: skip
    head = ["model", "ours s", "sktime s", "ratio", "apart", "step: ours ms", "update ms", "fit / update"]
    table(head, rows)


def fair(ours: Callable[[], object], through: Callable[[], object]) -> tuple[float, float]:
    """Medians of both in CPU seconds, in turns, after one call of each to warm up."""
    spent = np.empty((1 + REPEATS, 2))
    for turn in range(1 + REPEATS):
        for which, call in enumerate((ours, through)):
            began = time.process_time()
            call()
            spent[turn, which] = time.process_time() - began
    first, second = np.median(spent[1:], 0)
    return float(first), float(second)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--checks", nargs="+", choices=list(MODELS))
    asked = arguments.parse_args()
    print(machine())
    torch.set_num_threads(1)
    if not asked.checks:
        panel()
    checks(asked.checks or list(MODELS))


if __name__ == "__main__":
    main()
