"""Intervals of stock prices, 5 days ahead at every cut-off of the test: GARCH and EGARCH beside naive and drift.

All are fitted before the validation part and then only stepped. Pinball is the mean over the deciles in units of each
series' mean one-step change before the test (as in MASE); skill and p (Diebold and Mariano, of the loss at each
cut-off) compare it with naive, whose intervals come from its running variance. Rows of choices: `shared` measures every
series by the training data's size instead of its own; `median` takes the median of the parameters that `arch` finds for
each series instead of one fit to all. `arch` is the peer: its own GARCH, filtered over the same closes with the
parameters of its fit, its analytic variance, and normal quantiles of the log price; one series only.

sp500 and nasdaq come with `arch`; `--data stocknet` (78 stocks) needs MNEMO_DATA_DIR.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

import numpy as np
from arch.univariate import EGARCH, GARCH, ConstantMean, Normal, StudentsT
from figures import machine, table

from data.catalog import load
from data.panel import to_panel
from forecasting import metrics
from forecasting.passes import cutoff_positions, one_pass
from forecasting.predictions import Rows
from forecasting.task import Task
from forecasting.training import fit_model
from forecasting.windows import Parts, Span, split
from models.contract import DECILES
from models.volatility import Volatility

HORIZON = 5
LEVELS = (0.025, *DECILES, 0.975)


@dataclass(frozen=True)
class Row:
    label: str
    name: str
    settings: dict[str, Any]
    median: bool = False


def asked(series: int) -> list[Row]:
    rows = [Row(name, name, {}) for name in ("naive", "drift")]
    for name in ("garch", "egarch"):
        for innovations in ("normal", "t"):
            settings = {"innovations": innovations}
            rows.append(Row(f"{name} {innovations}", name, settings))
            rows.append(Row(f"{name} {innovations}, shared", name, settings | {"size": "shared"}))
            if series > 1:
                rows.append(Row(f"{name} {innovations}, median", name, settings, median=True))
    return rows


def arch_fit(name: str, innovations: str, closes: np.ndarray) -> tuple[Any, float]:
    """arch's result for the log returns of one series before the test, in units of their size, and that size."""
    returns = np.diff(np.log(closes))
    size = float(np.sqrt(np.mean(returns**2)))
    process = GARCH(p=1, o=0, q=1) if name == "garch" else EGARCH(p=1, o=1, q=1)
    distribution = Normal() if innovations == "normal" else StudentsT()
    model = ConstantMean(returns / size, volatility=process, distribution=distribution, rescale=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.fit(disp="off", show_warning=False), size


def closes(span: Span, end: int) -> np.ndarray:
    values = span.series.values[:end, 0]
    return values[np.isfinite(values)]


def take_median(model: Volatility, row: Row, parts: Parts) -> str:
    """Replace the parameters by the median of the series' own; says of how many, for not every search ends."""
    results = [arch_fit(row.name, row.settings["innovations"], closes(span, span.end))[0] for span in parts.train]
    ended = [result.params for result in results if result.convergence_flag == 0]
    model.set_parameters({name: float(np.median([found[name] for found in ended])) for name in ended[0].index})
    return f" of {len(ended)}"


def arch_rows(parts: Parts) -> list[Rows]:
    """The peer's forecasts at every cut-off."""
    (train,), (test,) = parts.train, parts.test
    fitted, size = arch_fit("garch", "normal", closes(train, train.end))
    last = closes(test, test.end)
    fixed = ConstantMean(np.diff(np.log(last)) / size, volatility=GARCH(p=1, o=0, q=1), rescale=False)
    positions = cutoff_positions(test, HORIZON)
    seen = np.isfinite(test.series.values[:, 0]).cumsum()[positions] - 1  # of the closes, which one a cut-off ends with
    ahead = fixed.fix(fitted.params).forecast(horizon=HORIZON, start=0, method="analytic")
    variance = ahead.variance.to_numpy()[seen - 1].cumsum(1) * size**2  # a return earlier than its close
    mean = ahead.mean.to_numpy()[seen - 1].cumsum(1) * size
    normal = np.array([NormalDist().inv_cdf(level) for level in LEVELS])
    moved = mean[..., None] + np.sqrt(variance)[..., None] * normal
    return [Rows(test, positions, last[seen][:, None, None] * np.exp(moved))]


def losses(rows: Sequence[Rows]) -> tuple[np.ndarray, float, float]:
    """The pinball at every cut-off (mean over series), and the coverage of the 80 and the 95 % interval."""
    pinballs, actuals, quantiles = [], [], []
    for row in rows:
        actual = row.span.series.values[row.positions[:, None] + np.arange(1, HORIZON + 1), 0]
        scale = metrics.seasonal_scale(row.span.series.values[: row.span.begin, 0], 1)
        loss = metrics.pinball_losses(actual, row.values[..., 1:-1], DECILES)
        pinballs.append(np.nanmean(loss, axis=tuple(range(1, loss.ndim))) / scale)
        actuals.append(actual.ravel())
        quantiles.append(row.values.reshape(-1, len(LEVELS)))
    actual, quantile = np.concatenate(actuals), np.concatenate(quantiles)
    covered = [metrics.coverage(actual, quantile[:, low], quantile[:, -1 - low]) for low in (1, 0)]
    shortest = min(map(len, pinballs))  # the last cut-offs: stocks that were listed late have as many
    return np.mean([loss[-shortest:] for loss in pinballs], 0), covered[0], covered[1]


def measure(data: str) -> None:
    dataset = load(data)
    task = replace(Task.of(dataset, horizon=HORIZON), quantiles=LEVELS)
    parts = split(dataset, to_panel(dataset), task)
    positions = [cutoff_positions(span, HORIZON) for span in parts.test]
    lines, reference = [], None
    for row in asked(len(parts.train)):
        fitted = fit_model(row.name, task, parts, settings=row.settings)
        note = take_median(fitted.model, row, parts) if row.median else ""  # type: ignore[arg-type]
        began = time.perf_counter()
        rows = one_pass(fitted.model, parts.test, positions)
        seconds = [f"{fitted.seconds:.2f}", f"{time.perf_counter() - began:.2f}"]
        loss, inner, outer = losses(rows)
        reference = loss if reference is None else reference
        lines.append([row.label + note, *figures(loss, inner, outer, reference), *seconds])
    if len(parts.train) == 1:
        assert reference is not None
        lines.append(["arch, GARCH normal", *figures(*losses(arch_rows(parts)), reference), "", ""])
    print(f"\n{data}: {len(parts.test)} series, {max(map(len, positions))} cut-offs, {HORIZON} steps")
    table(["model", "pinball", "skill", "p", "80 %", "95 %", "fit s", "predict s"], lines)


def figures(loss: np.ndarray, inner: float, outer: float, reference: np.ndarray) -> list[str]:
    skill = f"{100 * metrics.skill(loss.mean(), reference.mean()):+.1f} %"
    p = "" if loss is reference else f"{metrics.diebold_mariano(loss, reference, HORIZON).p_value:.3f}"
    return [f"{loss.mean():.4f}", skill, p, f"{100 * inner:.1f}", f"{100 * outer:.1f}"]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", default="sp500,nasdaq")
    print(machine(), flush=True)
    for data in options.parse_args().data.split(","):
        measure(data)


if __name__ == "__main__":
    main()
