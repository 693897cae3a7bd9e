"""Ageing of lithium-ion cells: capacity cycle by cycle, and the life to expect from the first hundred cycles.

Forecast sets hold one series a cell: `ds` is the cycle (or the row, where the source dropped cycles), `y` the capacity
in Ah. What a cycler measures besides is a spare channel, input only when asked for. `severson2019` is a regression:
features of each early cycle in, cycle life out.

The cells are few, so splits are by cell and `group` names the cell.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from data.files import shared_file
from data.frame import ID, TIME, Channel, Dataset, Splits, check_frame

SIMULATED_ORIGIN = "Simulated by data/samples/make_battery.py, ageing law of Xu et al. (2018); nothing was measured."
NASA_ORIGIN = (
    "Fcan1997/RUL on GitHub. Cite: Saha & Goebel, Battery Data Set, NASA Prognostics Data Repository (2007), cells "
    "B0005, B0006 and B0007."
)
CALCE_ORIGIN = (
    "XiuzeZhou/RUL on GitHub. Cite: He et al., J. Power Sources 196, 10314 (2011); Chen et al., IEEE Access 10, 19621 "
    "(2022), cells CS2_35, CS2_36 and CS2_37."
)
PINN4SOH_ORIGIN = (
    "wang-fujin/PINN4SOH on GitHub. Cite: Wang et al., Nature Communications 15, 4332 (2024), "
    "doi 10.1038/s41467-024-48779-z."
)
SEVERSON_ORIGIN = (
    "petermattia/revisit-severson-et-al on GitHub. Cite: Severson et al., Nature Energy 4, 383-391 (2019), doi "
    "10.1038/s41560-019-0356-8; Attia et al., J. Electrochem. Soc. 168, 120547 (2021), doi 10.1149/1945-7111/ac2704."
)

SEVERSON_REFERENCE_CYCLE = 10  # differences of curves are taken to this cycle
# A 1.1 Ah cell cannot discharge less than nothing or much more than that, nor take charge back while it discharges;
# the interpolation spikes of the source do all three.
SEVERSON_POSSIBLE_AH = (-0.05, 1.25)
SEVERSON_MOST_FALL_AH = 0.02  # from one voltage to the next

CAPACITY = Channel("y", "Ah", low=0.0)

# The 16 features that PINN4SOH takes from the end of each charge.
CHARGE_CHANNELS = (
    Channel("voltage_mean", "V", low=0.0),
    Channel("voltage_std", "V", low=0.0),
    Channel("voltage_kurtosis", ""),
    Channel("voltage_skewness", ""),
    Channel("cc_q", "Ah", low=0.0),
    Channel("cc_charge_time", "s", low=0.0),
    Channel("voltage_slope", "V/s"),
    Channel("voltage_entropy", ""),
    Channel("current_mean", "A"),
    Channel("current_std", "A", low=0.0),
    Channel("current_kurtosis", ""),
    Channel("current_skewness", ""),
    Channel("cv_q", "Ah", low=0.0),
    Channel("cv_charge_time", "s", low=0.0),
    Channel("current_slope", "A/s"),
    Channel("current_entropy", ""),
)

Part = Literal["train", "validation", "test"]


def simulated(path: Path) -> Dataset:
    """A *simulated* fleet: 24 cells of 2 Ah cycled to 80 % at five charging rates. Origin: `SIMULATED_ORIGIN`."""
    frame = pd.read_parquet(path)
    cells = sorted(frame[ID].unique())
    # Of each four cells the third validates and the fourth tests, so that every part has all charging rates.
    turn: tuple[Part, ...] = ("train", "train", "validation", "test")
    spare = (
        Channel("temperature", "degC", low=-273.15),
        Channel("charge_rate", "C", low=0.0),
        Channel("resistance", "mohm", low=0.0),
    )
    parts = {cell: turn[i % 4] for i, cell in enumerate(cells)}
    return _capacity("battery_simulated", frame, spare, parts, horizon=50)


def nasa_pcoe(path: Path) -> Dataset:
    """Three 18650 cells of NASA's ageing study, 2 Ah rated, 168 cycles; capacity regenerates after rests.

    End of life is 1.4 Ah. One cell trains, one validates, one tests. Origin: `NASA_ORIGIN`.
    """
    frame = pd.read_csv(path).rename(
        columns={
            "cell": ID,
            "cycle": TIME,
            "capacity_Ah": "y",
            "mean_discharge_voltage_V": "discharge_voltage",
            "mean_discharge_temperature_C": "discharge_temperature",
            "equal_voltage_drop_discharge_time_s": "voltage_drop_time",
        }
    )
    spare = (
        Channel("discharge_voltage", "V", low=0.0),
        Channel("discharge_temperature", "degC", low=-273.15),
        Channel("voltage_drop_time", "s", low=0.0),  # from 3.8 to 3.5 V
    )
    parts: dict[str, Part] = {"B0006": "train", "B0007": "validation", "B0005": "test"}
    return _capacity("nasa_pcoe", frame, spare, parts, horizon=20)


def calce_cs2(path: Path) -> Dataset:
    """Three prismatic cells of CALCE, 1.1 Ah rated, 1 C, with isolated dips of capacity.

    End of life is 0.77 Ah. One cell trains, one validates, one tests. Charge times of zero are recordings that
    failed, so they are missing. Origin: `CALCE_ORIGIN`.
    """
    frame = pd.read_csv(path).rename(
        columns={
            "cell": ID,
            "cycle": TIME,
            "capacity_Ah": "y",
            "resistance_ohm": "resistance",
            "cc_charge_time_s": "cc_charge_time",
            "cv_charge_time_s": "cv_charge_time",
        }
    )
    notes = []
    for column in ("cc_charge_time", "cv_charge_time"):
        failed = frame[column] <= 0
        if failed.any():
            frame[column] = frame[column].mask(failed)
            notes.append(f"calce_cs2: {failed.sum()} rows had a {column} of zero, which is now missing.")
    spare = (
        Channel("resistance", "ohm", low=0.0),
        Channel("cc_charge_time", "s", low=0.0),
        Channel("cv_charge_time", "s", low=0.0),
    )
    parts: dict[str, Part] = {"CS2_36": "train", "CS2_37": "validation", "CS2_35": "test"}
    return _capacity("calce_cs2", frame, spare, parts, horizon=50, notes=tuple(notes))


def mit_lfp(path: Path) -> Dataset:
    """89 LFP cells of the MIT fast-charging study, whole life; `ds` is the row, as the source dropped cycles.

    Every fifth battery of a batch tests, as in the paper; the ones before validate. Origin: `PINN4SOH_ORIGIN`.
    """
    frame = pd.read_parquet(path)
    turn: dict[int, Part] = {0: "test", 4: "validation"}
    parts = {cell: turn.get(number % 5, "train") for cell, number in _battery_cells(frame).items()}
    return _capacity("battery_aging/mit_lfp", frame, CHARGE_CHANNELS, parts, horizon=50)


def xjtu_ncm(path: Path) -> Dataset:
    """42 NCM cells of Xi'an Jiaotong University, 2 Ah, six strategies; `ds` is the row.

    The paper's test cells (4 and 8 of each batch) are not in this file. The last cell of each batch tests, the one
    before it validates. Origin: `PINN4SOH_ORIGIN`.
    """
    frame = pd.read_parquet(path)
    cells = _battery_cells(frame)
    by_batch: dict[str, list[str]] = {}
    for cell in cells:  # in the order of their numbers
        by_batch.setdefault(cell.split("/")[0], []).append(cell)
    parts: dict[str, Part] = dict.fromkeys(cells, "train")
    for batch in by_batch.values():
        parts[batch[-1]], parts[batch[-2]] = "test", "validation"
    return _capacity("battery_aging/xjtu_ncm", frame, CHARGE_CHANNELS, parts, horizon=50)


def tju_1_nca(path: Path) -> Dataset:
    """66 NCA cells of Tongji University, named by temperature and charging rate; `ds` is the row.

    Every fifth cell tests and the one before it validates, in the order of the file. Origin: `PINN4SOH_ORIGIN`.
    """
    frame = pd.read_parquet(path)
    frame[ID] = frame["cell"]
    turn: dict[int, Part] = {4: "test", 3: "validation"}
    parts = {str(cell): turn.get(i % 5, "train") for i, cell in enumerate(frame[ID].unique())}
    return _capacity("battery_aging/tju_1_nca", frame, CHARGE_CHANNELS, parts, horizon=20)


def _battery_cells(frame: pd.DataFrame) -> dict[str, int]:
    """Name the cells "batch/07" in a new column `unique_id`; return the number of each, in order."""
    frame[ID] = frame["batch"].astype(str) + "/" + frame["battery"].astype(str).str.zfill(2)
    cells = frame[[ID, "battery"]].drop_duplicates().sort_values(ID)
    return {str(cell): int(number) for cell, number in zip(cells[ID], cells["battery"], strict=True)}


def _capacity(
    name: str,
    frame: pd.DataFrame,
    spare: tuple[Channel, ...],
    parts: dict[str, Part],
    horizon: int,
    notes: tuple[str, ...] = (),
) -> Dataset:
    """A forecast of capacity by cycle; PINN4SOH's `row` and `capacity` are renamed, others come with our names."""
    frame = frame.rename(columns={"row": TIME, "capacity": "y"})
    checked, mended = check_frame(frame, source=name, task="forecast", channels=(CAPACITY, *spare))
    return Dataset(
        name=name,
        frame=checked,
        task="forecast",
        channels=(CAPACITY,),
        freq=1,
        season=1,
        horizon=horizon,
        splits=Splits(entity=parts, group={cell: cell for cell in parts}),
        target="y",
        notes=(*notes, *mended),
        spare=spare,
    )


@dataclass(frozen=True)
class SeversonCurves:
    """Discharge curves Q(V) of the early cycles, as the source has them: artefacts included. N cells."""

    unique_id: tuple[str, ...]  # "train/01"
    voltage: np.ndarray  # (1000,) V, from 3.6 down to 2.0
    cycles: np.ndarray  # (99,) 2 to 100
    capacity: np.ndarray  # (N, 99, 1000) Ah discharged down to that voltage, float32
    cycle_life: np.ndarray  # (N,) first cycle under 0.88 Ah


def severson_curves(split: Literal["train", "test1"]) -> SeversonCurves:
    """The raw Q(V) curves of one split of Severson et al. (2019), 41 (train) or 43 (test1) cells.

    Origin: `SEVERSON_ORIGIN`. Read from MNEMO_DATA_DIR.

    Raises:
        FrameError: MNEMO_DATA_DIR is not set, or the files are not there.
    """
    curves = shared_file(f"severson2019/{split}.parquet", SEVERSON_ORIGIN)
    cells = shared_file(f"severson2019/cells_{split}.csv", SEVERSON_ORIGIN)
    return _read_curves(split, curves, cells)


def _read_curves(split: str, curves: Path, cells: Path) -> SeversonCurves:
    table = pd.read_parquet(curves)
    columns = [name for name in table.columns if name.startswith("c") and name != "cell"]
    life = pd.read_csv(cells).set_index("cell")["cycle_life"]
    numbers = table["cell"].unique()
    capacity = table[columns].to_numpy().reshape(len(numbers), -1, len(columns))
    return SeversonCurves(
        unique_id=tuple(f"{split}/{number:02d}" for number in numbers),
        voltage=table["voltage"].to_numpy(dtype="float64")[: capacity.shape[1]],
        cycles=np.array([int(name[1:]) for name in columns]),
        capacity=capacity.transpose(0, 2, 1),
        cycle_life=life.loc[numbers].to_numpy(dtype="float64"),
    )


SEVERSON_CHANNELS = (
    Channel("capacity", "Ah", low=0.0, high=1.25),
    Channel("half_voltage", "V", low=2.0, high=3.6),
    Channel("difference_log_var", "log10 Ah2"),
    Channel("difference_log_min", "log10 Ah"),
    Channel("difference_mean", "Ah"),
)


def severson2019(train: Path, cells_train: Path, test1: Path, cells_test1: Path) -> Dataset:
    """Cycle life from the discharge curves of cycles 2 to 100: one series a cell, `y` is its life in cycles.

    The channels are `early_features` of each cycle. train is the paper's training set (41 cells), test its primary
    test set (43; test1/22 with a life of 148 is an outlier that is usually left out). Origin: `SEVERSON_ORIGIN`.
    """
    notes: list[str] = []
    tables = []
    parts: dict[str, Part] = {}
    sources: tuple[tuple[str, Part, Path, Path], ...] = (
        ("test1", "test", test1, cells_test1),
        ("train", "train", train, cells_train),
    )
    for split, part, curves_file, cells_file in sources:
        curves = _read_curves(split, curves_file, cells_file)
        features, broken = early_features(curves)
        n_cells, n_cycles = broken.shape
        tables.append(
            pd.DataFrame(
                {
                    ID: np.repeat(np.array(curves.unique_id, dtype=object), n_cycles),
                    TIME: np.tile(curves.cycles, n_cells),
                    "y": np.repeat(curves.cycle_life, n_cycles),
                    **{name: values.ravel() for name, values in features.items()},
                }
            )
        )
        parts.update(dict.fromkeys(curves.unique_id, part))
        if broken.any():
            where = ", ".join(f"{curves.unique_id[i]} cycle {curves.cycles[j]}" for i, j in np.argwhere(broken))
            notes.append(f"severson2019: curves with impossible capacities are missing: {where}.")
    frame, mended = check_frame(
        pd.concat(tables, ignore_index=True), source="severson2019", task="regress", channels=SEVERSON_CHANNELS
    )
    return Dataset(
        name="severson2019",
        frame=frame,
        task="regress",
        channels=SEVERSON_CHANNELS,
        freq=1,
        season=1,
        horizon=1,
        splits=Splits(entity=parts, group={cell: cell for cell in parts}),
        target="y",
        notes=(*notes, *mended),
    )


def early_features(curves: SeversonCurves) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Features of every early cycle, each known once that cycle is over.

    capacity: the whole discharge; half_voltage: the voltage at which half of it is discharged; and of the difference
    Q_n(V) - Q_10(V) over the voltages: log10 of its variance (the paper's best single feature at n = 100), log10 of
    the size of its least value, and its mean. Up to cycle 10 the differences are missing: they would look ahead, or
    be zero.

    Returns:
        features: name -> (N, 99) in the units of `SEVERSON_CHANNELS`, NaN where missing.
        broken: (N, 99) bool, cycles with impossible capacities; all their features are missing.
    """
    low, high = SEVERSON_POSSIBLE_AH
    possible = (curves.capacity >= low) & (curves.capacity <= high)  # NaN is not possible either
    falls = np.diff(curves.capacity, axis=2) < -SEVERSON_MOST_FALL_AH
    broken = np.logical_or(~possible.all(axis=2), falls.any(axis=2))
    whole = np.where(broken[:, :, None], np.nan, curves.capacity.astype("float64"))
    capacity = whole.max(axis=2)
    # Capacity grows as the voltage falls, so the first voltage past the half is where the curve crosses it.
    crossing = (whole >= capacity[:, :, None] / 2).argmax(axis=2)
    half_voltage = np.where(broken, np.nan, curves.voltage[crossing])

    reference = int(np.flatnonzero(curves.cycles == SEVERSON_REFERENCE_CYCLE)[0])
    later = np.where(curves.cycles > SEVERSON_REFERENCE_CYCLE, 1.0, np.nan)
    difference = whole - whole[:, reference : reference + 1, :]
    with np.errstate(divide="ignore"):  # the difference of cycle 10 to itself, which is masked
        log_var = np.log10(difference.var(axis=2, ddof=1))
        log_min = np.log10(np.abs(difference.min(axis=2)))
    features = {
        "capacity": capacity,
        "half_voltage": half_voltage,
        "difference_log_var": np.where(np.isfinite(log_var), log_var, np.nan) * later,
        "difference_log_min": np.where(np.isfinite(log_min), log_min, np.nan) * later,
        "difference_mean": difference.mean(axis=2) * later,
    }
    return features, broken
