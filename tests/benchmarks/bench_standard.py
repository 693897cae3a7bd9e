"""The standard table: every baseline of the catalog and their ensembles on the M and tourism competitions.

    MNEMO_DATA_DIR=... python -m tests.benchmarks.bench_standard [--sets m3/yearly,...] [--models ets,theta,...]
        [--every N] [--first K] [--ago N] [--seeds 0,1] [--out out/standard.csv]

A set and seed is run whole, by `forecasting.backtest` as `mnemo backtest --ensemble mean,median` runs it, and its
rows are appended to the CSV; what the CSV already holds is not run again, so that a long run can be resumed. Without
--models all statistical and learned baselines of the catalog are run, and the naive family beside them; the ensembles
are of the former. --every N takes every N-th series of each set, from the K-th on. --ago N leaves out the last N
horizons of every series, so that those before them are the test: how far figures are of one period.

MASE, sMAPE (percent) and pinball (over the deciles, in units of the seasonal naive error before the test) are means
over all series and steps; `owa` is the mean of sMAPE and MASE relative to Naive2's, on M4's definition of both; `rel`
columns are relative to the seasonal naive forecast of the same series, with its quantiles as it gives them itself;
coverage is of the 80 % interval, as the model gives it and after calibration on the validation part; `pinball` is of
the calibrated quantiles. Series whose past is shorter than two horizons and a step cannot be validated and are left
out, so sets of short series are not whole.

PEERS are figures of issue 4, made with the peers' own code and not by this file. PUBLISHED are Naive2's in the
competitions' reports, for whole sets: only those that Naive2 here gives again.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from data.catalog import load
from data.frame import Dataset
from data.panel import to_panel
from forecasting import metrics
from forecasting.backtest import Report, compare
from forecasting.task import Task
from forecasting.windows import Parts, split
from models.catalog import MODELS
from tests.benchmarks.figures import machine, table

SETS = (
    "m4/hourly", "m3/monthly_a", "m3/quarterly", "m3/yearly", "m3/other", "tourism/monthly", "tourism/yearly",
)  # fmt: skip
NAIVE_FAMILY = ("naive", "drift", "seasonal-drift", "window-average", "historic-average")
NOT_HERE = ("garch", "egarch")  # models of the variance of prices, whose forecast is the random walk's
ENSEMBLES = ("mean", "median")
TARGET = (0.76, 0.84)  # of the calibrated 80 % interval's coverage

# set -> who: MASE and pinball relative to the seasonal naive forecast's
PEERS = {
    "m3/monthly_a": {"Theta": (0.850, 0.746), "AutoETS": (0.863, 0.739), "mean of four": (0.817, 0.705)},
    "m4/hourly": {"XGBoost on season differences": (0.979, 0.806), "MSTL-ARIMA": (1.041, 0.865)},
    "tourism/monthly": {"AutoCES": (1.511, 0.921), "median of three": (1.464, 0.898)},
}
# set -> sMAPE and MASE of Naive2 (None where the report does not give it)
PUBLISHED: dict[str, tuple[float, float | None]] = {
    "m3/yearly": (17.88, None),
    "m3/other": (6.30, None),
    "m4/hourly": (18.383, 2.395),
}


def baselines() -> list[str]:
    """What the catalog has beside networks and the naive family."""
    return [
        name
        for name, entry in MODELS.items()
        if "forecast" in entry.tasks and entry.learns != "gradient" and name not in (*NAIVE_FAMILY, *NOT_HERE)
    ]


def subset(dataset: Dataset, every: int, first: int, ago: int) -> Dataset:
    """Every so manieth series, without its last `ago` horizons; of those that then are no longer than two, none."""
    kept, horizon = set(dataset.frame["unique_id"].drop_duplicates().iloc[first::every]), Task.of(dataset).horizon
    frame = dataset.frame[dataset.frame["unique_id"].isin(kept)]
    rows = frame.groupby("unique_id", sort=False)["ds"]
    left = rows.cumcount(ascending=False) >= ago * horizon
    if ago:
        left &= rows.transform("size") > (ago + 2) * horizon
    return replace(dataset, frame=frame[left].reset_index(drop=True))


def naive2(history: np.ndarray, season: int, horizon: int) -> np.ndarray:
    """M4's Naive2: the last value of the series without its season, where it has one, times the season's indices.

    Seasonal if the autocorrelation at the season's lag is beyond its 90 % bound (Bartlett's formula) and there are
    three seasons; indices of the classical multiplicative decomposition (M4-methods on GitHub, 4Theta and ML
    benchmarks).
    """
    seasonal = season > 1 and len(history) >= 3 * season and (history > 0).all() and _is_seasonal(history, season)
    if not seasonal:
        return np.full(horizon, history[-1])
    from statsmodels.tsa.seasonal import seasonal_decompose

    indices = seasonal_decompose(history, model="multiplicative", period=season).seasonal
    steps = len(history) + np.arange(horizon)
    return np.asarray(history[-1] / indices[-1] * indices[steps % season])


def _is_seasonal(history: np.ndarray, season: int) -> bool:
    centred = history - history.mean()
    total = (centred**2).sum()
    if total == 0:
        return False
    own = np.array([(centred[lag:] * centred[:-lag]).sum() / total for lag in range(1, season + 1)])
    bound = 1.645 * np.sqrt((1 + 2 * (own[:-1] ** 2).sum()) / len(history))
    return bool(abs(own[-1]) > bound)


def naive2_figures(parts: Parts, task: Task) -> tuple[float, float]:
    """sMAPE and MASE of Naive2 on the test series."""
    actual, said, scale = [], [], []
    for span in parts.test:
        past = span.series.values[: span.begin, 0]
        actual.append(span.series.values[span.begin : span.begin + task.horizon, 0])
        said.append(naive2(past, task.season, task.horizon))
        scale.append(metrics.seasonal_scale(past, task.season))
    return metrics.smape(np.stack(actual), np.stack(said)), metrics.mase(np.stack(actual), np.stack(said), scale).value


def scaled_pinball(report: Report, parts: Parts) -> dict[str, float]:
    """Per model the mean pinball loss in units of each series' seasonal naive error before the test."""
    task, levels = report.task, report.task.quantiles
    scales = {
        span.series.unique_id: metrics.seasonal_scale(span.series.values[: span.begin, 0], task.season)
        for span in parts.test
    }
    found = {}
    for name, rows in report.forecasts.groupby("model", sort=False):
        values = rows[[f"q{level:g}" for level in levels]].to_numpy()
        losses = metrics.pinball_losses(rows["y"].to_numpy(), values, levels) / rows["unique_id"].map(scales).to_numpy()
        found[str(name)] = float(losses[np.isfinite(losses)].mean())
    return found


def run(name: str, models: list[str], every: int, first: int, ago: int, seed: int) -> pd.DataFrame:
    """The rows of one set and seed."""
    dataset = subset(load(name), every, first, ago)
    task = Task.of(dataset)
    parts = split(dataset, to_panel(dataset), task)
    reports = [
        compare(parts, models, task, seed=seed, ensembles=ENSEMBLES if len(models) > 1 else (), leave_out=True),
        compare(parts, NAIVE_FAMILY, task, seed=seed, leave_out=True),
    ]
    plain = scaled_pinball(compare(parts, ("naive",), task, calibrated=False), parts)["naive"]
    smape2, mase2 = naive2_figures(parts, task)
    rows: dict[str, dict[str, object]] = {
        "Naive2": {"model": "Naive2", "mase": mase2, "smape": smape2, "owa": 1.0, "series": len(parts.test)}
    }
    for report in reports:
        for note in report.notes:
            print(f"  note: {note}")
        pinball = scaled_pinball(report, parts)
        board = report.leaderboard.set_index("model")
        reference = board.loc["naive"]
        for model, row in board.iterrows():
            spent = row["fit_seconds"] + row["predict_seconds"]
            rows.setdefault(str(model), {
                "model": model, "mase": row["mase"], "smape": row["smape"],
                "owa": (row["mase"] / mase2 + row["smape"] / smape2) / 2, "pinball": pinball[str(model)],
                "rel_mase": row["mase"] / reference["mase"], "rel_pinball": pinball[str(model)] / plain,
                "coverage_raw": row["coverage_80_raw"], "coverage": row["coverage_80"],
                "series_per_second": len(parts.test) / spent, "series": len(parts.test),
            })  # fmt: skip
    frame = pd.DataFrame(rows.values())
    frame.insert(0, "set", name)
    return frame.assign(every=every, first=first, ago=ago, seed=seed, machine=machine())


def show(results: pd.DataFrame, name: str, ago: int) -> None:
    """One set's table, the mean over its seeds, best MASE first, and what others reached on its test beside it."""
    own = results[results["set"] == name]
    figures = own.groupby("model", sort=False).mean(numeric_only=True).sort_values("mase")
    print(
        f"\n{name}: {int(own['series'].max())} series, every {int(own['every'].max())}, seeds {own['seed'].nunique()}"
    )
    columns = {
        "mase": ".3f", "smape": ".2f", "owa": ".3f", "pinball": ".4f", "rel_mase": ".3f", "rel_pinball": ".3f",
        "coverage_raw": ".1%", "coverage": ".1%", "series_per_second": ",.1f",
    }  # fmt: skip
    table(
        ["model", *columns],
        [
            [str(model), *("" if np.isnan(row[c]) else f"{row[c]:{shape}}" for c, shape in columns.items())]
            for model, row in figures.iterrows()
        ],
    )
    covered = figures["coverage"].dropna()
    low, high = TARGET
    print(
        f"calibrated 80 % intervals cover {covered.min():.1%} to {covered.max():.1%}; "
        f"{int(covered.between(low, high).sum())} of {len(covered)} within {low:.0%} to {high:.0%}"
    )
    if ago:
        return
    for peer, (mase, pinball) in PEERS.get(name, {}).items():
        print(f"peer, relative to seasonal naive (issue 4): {peer}: MASE {mase:.3f}, pinball {pinball:.3f}")
    if name in PUBLISHED:
        smape, absolute = PUBLISHED[name]
        print(f"published, whole set: Naive2: sMAPE {smape:.2f}" + (f", MASE {absolute:.3f}" if absolute else ""))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--models", default=",".join(baselines()))
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--ago", type=int, default=0)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--out", type=Path, default=Path("out/standard.csv"))
    options = parser.parse_args()
    models, seeds = options.models.split(","), [int(seed) for seed in options.seeds.split(",")]
    print(machine())
    for name in options.sets.split(","):
        asked = {field: getattr(options, field) for field in ("every", "first", "ago")}
        same = {"set": name, **asked, "models": ",".join(models)}
        for seed in seeds:
            if not len(of_run(options.out, same | {"seed": seed})):
                began = time.perf_counter()
                rows = run(name, models, **asked, seed=seed).assign(models=same["models"])
                options.out.parent.mkdir(parents=True, exist_ok=True)
                rows.to_csv(options.out, mode="a", header=not options.out.exists(), index=False)
                print(f"{name}, seed {seed}: {time.perf_counter() - began:.0f} s")
        done = of_run(options.out, same)
        show(done[done["seed"].isin(seeds)], name, options.ago)


def of_run(path: Path, key: dict[str, object]) -> pd.DataFrame:
    """The rows of the CSV that belong to a run.

    Raises:
        SystemExit: the CSV has other columns, so its rows cannot be told apart nor new ones be appended.
    """
    if not path.exists():
        return pd.DataFrame()
    rows = pd.read_csv(path)
    if lacking := [column for column in key if column not in rows]:
        raise SystemExit(f"{path}: has no column {', '.join(lacking)}: it is of an older version. Give another --out.")
    return rows[np.logical_and.reduce([rows[column] == value for column, value in key.items()])]


if __name__ == "__main__":
    main()
