"""sarimax and components: equal to statsmodels, which fitted them, and what a new observation costs beside `append`.

    MNEMO_DATA_DIR=... python tests/benchmarks/bench_statsmodels.py [equal] [update] [--every N] [--models sarimax]

equal: every N-th series of M3 monthly (part a) and tourism monthly that has at least 140 values, fitted to all but the
    last 100, which are then streamed: the largest difference of mean and of the 80 and 95 % bounds, relative to the
    largest bound of the series, at the fit's end and after the 100 points against the library's own `append`. Again
    with a tenth of all values missing, and with two covariates known ahead: a random one, and whether the month has 31
    days.
update: one observation of one series, states in to quantiles out, in torch and in onnxruntime, many series at once,
    beside the library's `append` of one point without a refit, which filters the whole series again.

Of `append` this uses `use_exact_diffuse=True`: of itself it forgets how the filter was started, and differs.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from figures import machine, median_s, table

from data.catalog import load
from data.frame import Channel
from data.panel import to_panel
from forecasting.export import export_bundle
from forecasting.runtime import load_bundle
from forecasting.task import Task
from models import components, sarimax
from models.catalog import build
from models.components import ComponentsConfig
from models.contract import Signature, State
from models.linear_gaussian import LinearGaussian
from models.regressors import Regressors, parted
from models.sarimax import SarimaxConfig

HORIZON, SEASON, STREAMED, MANY = 12, 12, 100, 10_000
LEVELS = (0.025, 0.1, 0.5, 0.9, 0.975)
LONG_MONTHS = (0, 2, 4, 6, 7, 9, 11)
KINDS = ("whole", "gaps", "covariates")


def tables(name: str, every: int, kind: str) -> dict[str, np.ndarray]:
    """unique_id -> (T + H, 1 + F), the last H rows for the covariates alone."""
    long = [series for series in to_panel(load(name)) if len(series.values) >= STREAMED + 40][::every]
    rng, result = np.random.default_rng(0), {}
    for series in long:
        y = np.append(series.values[:, 0], np.full(HORIZON, np.nan))
        if kind == "gaps":
            y[rng.random(len(y)) < 0.1] = np.nan
        days = np.isin(np.arange(len(y)) % 12, LONG_MONTHS)
        covariates = np.stack([rng.normal(size=len(y)), days], 1) if kind == "covariates" else np.empty((len(y), 0))
        result[series.unique_id] = np.column_stack([y, covariates])
    return result


def library(name: str, past: np.ndarray) -> tuple[Any, Regressors]:
    """statsmodels' results, and how its covariates come from ours."""
    y, covariates = parted(past)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if name == "sarimax":
            return sarimax.estimate(y, SEASON, SarimaxConfig(), covariates)
        regressors = Regressors(covariates, np.ones(1), constant=True)
        return components.estimate(y, SEASON, ComponentsConfig(), regressors.values), regressors


def bounds(results: Any, regressors: Regressors, ahead: np.ndarray) -> np.ndarray:
    """(H, Q) of what the library forecasts."""
    said = results.get_forecast(HORIZON, exog=exog(regressors, ahead))
    wide, narrow = said.conf_int(alpha=0.05), said.conf_int(alpha=0.2)
    return np.stack([wide[:, 0], narrow[:, 0], said.predicted_mean, narrow[:, 1], wide[:, 1]], -1)


def exog(regressors: Regressors, covariates: np.ndarray) -> np.ndarray | None:
    if not regressors.kept:
        return None
    return ((covariates - regressors.mean) / regressors.scale)[:, regressors.kept]


def appended(results: Any, regressors: Regressors, further: np.ndarray) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return results.append(further[:, 0], exog=exog(regressors, further[:, 1:]), use_exact_diffuse=True)


def of_ours(model: LinearGaussian, state: State, ahead: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model.predict(state, torch.from_numpy(ahead)[None] if ahead.size else None)[0].numpy()


def equal(every: int, models: list[str]) -> None:
    rows = []
    for data in ("m3/monthly_a", "tourism/monthly"):
        for kind in KINDS:
            series = tables(data, every, kind)
            count = next(iter(series.values())).shape[1] - 1
            signature = Signature("forecast", 1 + count, HORIZON, SEASON, LEVELS, future=count)
            for name in models:
                model = build(name, signature).double()
                began = time.perf_counter()
                fits = model.fit_series({uid: rows[: -STREAMED - HORIZON] for uid, rows in series.items()}, 1)
                seconds = (time.perf_counter() - began) / len(series)
                worst = np.zeros(4)
                for uid in fits.series:
                    past, further, ahead = np.split(series[uid], [-STREAMED - HORIZON, -HORIZON])
                    results, regressors = library(name, past)
                    state = fits.state_of([uid])
                    after = model.passed(torch.from_numpy(further)[None], state)
                    pairs = ((results, state), (appended(results, regressors, further), after))
                    here = further[:HORIZON, 1:], ahead[:, 1:]
                    found = []
                    for (theirs, ours), covariates in zip(pairs, here, strict=True):
                        expected = bounds(theirs, regressors, covariates)
                        difference = np.abs(of_ours(model, ours, covariates) - expected) / np.abs(expected).max()
                        found += [difference[:, 2].max(), difference.max()]
                    worst = np.maximum(worst, found)
                rows.append(
                    [
                        data,
                        kind,
                        name,
                        f"{len(fits.series)} of {len(series)}",
                        f"{seconds:.2f}",
                        *(f"{w:.0e}" for w in worst),
                    ]
                )
                print(*rows[-1], flush=True)
    head = ["data", "kind", "model", "fitted", "s a fit", "mean", "bounds", "mean, 100 later", "bounds, 100 later"]
    table(head, rows)


def update(every: int, repeats: int, models: list[str]) -> None:
    rows = []
    for count in (0, 1):
        kind = "covariates" if count else "whole"
        some = {uid: rows[:, : 1 + count] for uid, rows in list(tables("tourism/monthly", every, kind).items())[:8]}
        signature = Signature("forecast", 1 + count, HORIZON, SEASON, LEVELS, future=count)
        future = tuple(f"known{index}" for index in range(count))
        channels = tuple(Channel(name, "") for name in ("y", *future))
        task = Task("forecast", "y", channels, 1, HORIZON, SEASON, LEVELS, future=future)
        for name in models:
            model = build(name, signature).double()
            fits = model.fit_series({uid: rows[:-HORIZON] for uid, rows in some.items()}, 1)
            which = torch.arange(MANY) % len(fits.series)
            model, state = model.float(), {name: value[which].float() for name, value in fits.state.items()}
            x = torch.ones(MANY, 1 + count)
            ahead = [torch.zeros(MANY, HORIZON, count)] if count else []
            with torch.no_grad():
                by_torch = median_s(lambda m=model, s=state, a=ahead, x=x: m.step(x, x, s, *a), repeats) / MANY
            with TemporaryDirectory() as folder:
                place = Path(folder) / name
                card = export_bundle(model, task, place, name=name, config={}, training={}, metrics=[])
                loaded = load_bundle(place)
            arrays = {key: value.numpy() for key, value in state.items()}
            known = [value.numpy() for value in ahead]
            by_graph = (
                median_s(lambda b=loaded, s=arrays, a=known, x=x: b.run_step(x.numpy(), x.numpy(), s, *a), repeats)
                / MANY
            )
            spent, lengths = [], []
            for values in some.values():
                results, regressors = library(name, values[:-HORIZON])
                one = values[:1]
                none = np.zeros((HORIZON, count))
                spent.append(
                    median_s(lambda r=results, g=regressors, o=one, n=none: bounds(appended(r, g, o), g, n), 3)
                )
                lengths.append(len(values))
            theirs = float(np.median(spent))
            size = sum(value.numel() for value in state.values()) * 4 / MANY
            parity = max(card["certificate"]["parity"][form] for form in ("split", "steps", "rows", "missing", "torch"))
            rows.append([
                name, str(count), f"{size:,.0f}", f"{theirs * 1e6:,.0f}", f"{by_torch * 1e6:.1f}",
                f"{by_graph * 1e6:.1f}", f"{theirs / min(by_torch, by_graph):,.0f}", f"{parity:.0e}",
            ])  # fmt: skip
            print(f"append over {np.median(lengths):.0f} values (median)", *rows[-1], flush=True)
    table(
        ["model", "known ahead", "bytes of state", "append us", "torch us", "onnx us", "times append", "worst parity"],
        rows,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=["equal", "update"], help="without any: both")
    parser.add_argument("--every", type=int, default=20)
    parser.add_argument("--models", default="sarimax,components")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(machine())
    if "equal" in (options.parts or ["equal"]):
        equal(options.every, options.models.split(","))
    if "update" in (options.parts or ["update"]):
        update(options.every, options.repeats, options.models.split(","))


if __name__ == "__main__":
    main()
