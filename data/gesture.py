"""Gestures and motions: gloves, armbands, rings and watches, each sample a series with one class or one a row.

`ds` is seconds since the start of a recording where the rate is known, else the step. Splits are by recording,
repetition or person, as the source documents them; `group` names the person where there is one.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from data import simulated_hand, uc2017
from data.frame import ID, TIME, Channel, Dataset, Freq, Splits, check_frame

BASIC_MOTIONS_ORIGIN = (
    "UEA archive, as packaged in sktime (BSD 3-Clause). Cite: Bagnall et al., The UEA multivariate time series "
    "classification archive, arXiv 1811.00075 (2018)."
)
UC2017_ORIGIN = (
    "MiguelSimao/UC2017_Classification on GitHub; full set: Zenodo record 1319659. Cite: Simao, Neto & Gibaru, "
    "Improving novelty detection with generative adversarial networks on hand gesture data."
)
VMG30_ORIGIN = "LucaPalumbo/dataglove on GitHub."
ISL_ORIGIN = (
    "airtlab/An-EMG-and-IMU-Dataset-for-the-Italian-Sign-Language-Alphabet on GitHub. Cite: Pacifici et al., Data in "
    "Brief 33, 106455 (2020)."
)
MYO_WRIST_ORIGIN = "aljazfrancic/myo-readings-dataset on GitHub."
UEA_ORIGIN = "cran/mlmts on GitHub, from the UEA archive. Cite: Bagnall et al., arXiv 1811.00075 (2018)."

DEMO_ORIGIN = "Simulated for this project by data/simulated_hand.py; nothing in it was measured."

MYO_RATE_HZ = 200
EMG = tuple(Channel(f"emg{i}", "", low=-128, high=127) for i in range(1, 9))  # int8 as the armband sends it

WRIST_LABELS = ("rest", "flexion", "extension", "radial", "ulnar", "pronation", "supination", "fist")


def basic_motions() -> Dataset:
    """Standing, running, walking and badminton with a smart watch: 80 samples of 10 s, 10 Hz, six channels.

    The archive's train and test halves; every fourth training sample validates. The source does not state units.
    Origin: `BASIC_MOTIONS_ORIGIN`.
    """
    from sktime.datasets import load_basic_motions

    channels = tuple(Channel(f"{sensor}_{axis}", "") for sensor in ("accel", "gyro") for axis in "xyz")
    tables = []
    parts: dict[str, str] = {}
    for part in ("test", "train"):  # in the order of the series' names
        values, labels = load_basic_motions(split=part, return_X_y=True, return_type="numpy3d")  # (40, 6, 100)
        samples, _, steps = values.shape
        names = [f"{part}_{i + 1:02d}" for i in range(samples)]
        table = pd.DataFrame(values.transpose(0, 2, 1).reshape(-1, len(channels)), columns=[c.name for c in channels])
        table[ID] = np.repeat(names, steps)
        table[TIME] = np.tile(np.arange(steps) / 10, samples)
        table["label"] = np.repeat(labels, steps)
        tables.append(table)
        for i, name in enumerate(names):
            parts[name] = "validation" if part == "train" and i % 4 == 3 else part
    frame = pd.concat(tables, ignore_index=True)
    return _classify("basic_motions", frame, channels, 0.1, Splits(entity=parts))


def gestures_demo(people: int = simulated_hand.PEOPLE, recordings: int = simulated_hand.RECORDINGS) -> Dataset:
    """SIMULATED: eight gestures and the rests between, people with a data glove and a tracker, 50 Hz.

    Continuous recordings of a minute with a label a row. Split by person: of ten, 1 to 6 train, 7 and 8 validate, 9
    and 10 test; of twenty or more a tenth validates and a tenth tests. Origin: `DEMO_ORIGIN`.
    """
    table = simulated_hand.simulated_hands(people=people, recordings=recordings)
    group = {str(name): str(name).split("/")[0] for name in table[ID].unique()}
    kept = max(2, people // 10)
    parts = ["train"] * (people - 2 * kept) + ["validation"] * kept + ["test"] * kept
    part = {f"person_{number}": part for number, part in enumerate(parts, 1)}
    splits = Splits(entity={name: part[person] for name, person in group.items()}, group=group)
    return _classify("gestures_demo", table, simulated_hand.CHANNELS, 1 / simulated_hand.RATE_HZ, splits)


def uc2017_sg(path: Path) -> Dataset:
    """UC2017 static gestures: 25 hand shapes of six users, one row each, a CyberGlove II and the hand's pitch.

    Users 1 to 4 train, 5 validates, 6 tests, so that figures are for people who were not seen. Class 20 has no pitch.
    Origin: `UC2017_ORIGIN`.
    """
    table = pd.read_parquet(path)
    user = "user_" + table["user"].astype(str)
    table[ID] = user + "/" + (table.groupby("user").cumcount() + 1).astype(str).str.zfill(3)
    table[TIME] = 0
    table["label"] = table["target_sg25"]
    glove = tuple(Channel(f"g{i:02d}", "", low=0, high=255) for i in range(1, 23))
    channels = (Channel("pitch_deg", "deg", low=-90, high=90), *glove)
    parts = {"user_5": "validation", "user_6": "test"}
    group = dict(zip(table[ID], user, strict=True))
    splits = Splits(entity={name: parts.get(person, "train") for name, person in group.items()}, group=group)
    return _classify("uc2017_sg", table, channels, 1, splits)


def uc2017_dg(path: Path) -> Dataset:
    """UC2017 dynamic gestures: ten, of eight users, a CyberGlove II and a tracker; of the file that Zenodo has.

    Every sample is in the frame of its first one (`uc2017.in_base_frame`). Users 1 to 6 train, 7 validates and 8
    tests, the paper's other user. Origin: `UC2017_ORIGIN`.
    """
    table = uc2017.read_dynamic(path)
    group = {str(name): str(name).split("/")[0] for name in table[ID].unique()}
    people = {"user_7": "validation", "user_8": "test"}
    splits = Splits(entity={name: people.get(person, "train") for name, person in group.items()}, group=group)
    return _classify("uc2017_dg", table, uc2017.CHANNELS, 1, splits)


def vmg30_glove(path: Path) -> Dataset:
    """Grasps with a VMG30 data glove, 129 recordings of 2 to 7 s at 100 Hz, 23 sensors and two quaternions.

    `ds` counts the glove's own 10 ms ticks; the host's clock, also in the file, jitters. The source documents a train
    and a validation part, and no test. Origin: `VMG30_ORIGIN`.
    """
    table = pd.read_parquet(path).rename(columns={"recording": ID})
    ticks = table["tick_ms"]
    table[TIME] = (ticks - ticks.groupby(table[ID]).transform("min")) / 1000
    quaternions = [name for name in table.columns if name.startswith(("hand_q", "forearm_q"))]
    keys = {ID, TIME, "label", "split", "tick_ms", "t", *quaternions}
    sensors = [name for name in table.columns if name not in keys]
    channels = (
        *(Channel(name, "", low=0, high=1000) for name in sensors),  # calibrated by the glove's own software
        *(Channel(name, "", low=-1.001, high=1.001) for name in quaternions),  # unit length, float32
    )
    return _classify("vmg30_glove", table, channels, 0.01, Splits(entity=_parts(table, "split")))


def isl_myo(path: Path) -> Dataset:
    """26 letters of the Italian Sign Language with a Myo armband: 520 samples of 2 s at 200 Hz.

    Split by repetition, in the order of time: 1 to 14 train, 15 to 17 validate, 18 to 20 test. Origin: `ISL_ORIGIN`.
    """
    table = pd.read_parquet(path).rename(columns={"letter": "label"})
    table[ID] = table["label"].astype(str) + "/" + table["rep"].astype(str).str.zfill(2)
    table[TIME] = table["i"] / MYO_RATE_HZ
    channels = (
        *EMG,
        *(Channel(f"gyr{i}", "deg/s", low=-2000, high=2000) for i in range(1, 4)),
        *(Channel(f"acc{i}", "g", low=-16, high=16) for i in range(1, 4)),
        *(Channel(f"q{i}", "", low=-1.001, high=1.001) for i in range(1, 5)),
    )
    table["part"] = np.select([table["rep"] <= 14, table["rep"] <= 17], ["train", "validation"], "test")
    return _classify("isl_myo", table, channels, 1 / MYO_RATE_HZ, Splits(entity=_parts(table, "part")))


def myo_wrist(path: Path) -> Dataset:
    """Wrist gestures of four people, one-minute recordings of eight EMG channels, about 200 Hz, a label per row.

    Split by person: 12345 and 45612 train, 21547 validates, 78945 tests. Labels follow the prompt, so they lead the
    hand at every transition. Origin: `MYO_WRIST_ORIGIN`.
    """
    table = pd.read_parquet(path).rename(columns={"recording": ID})
    table[TIME] = table["i"] / MYO_RATE_HZ
    table["label"] = np.array(WRIST_LABELS, dtype=object)[table["label"]]
    table["subject"] = table["subject"].astype(str)
    group = {str(name): str(person) for name, person in _per_series(table, "subject").items()}
    people = {"21547": "validation", "78945": "test"}
    splits = Splits(entity={name: people.get(person, "train") for name, person in group.items()}, group=group)
    return _classify("myo_wrist", table, EMG, 1 / MYO_RATE_HZ, splits)


def ering(path: Path) -> Dataset:
    """Six finger movements with a ring that measures the electric field, 300 samples of 65 steps, z-normalised.

    The archive's 30 training and 270 test samples. Origin: `UEA_ORIGIN`.
    """
    return _uea("uea_hand/ering", path, tuple(Channel(f"ch{i}", "") for i in range(1, 5)))


def libras(path: Path) -> Dataset:
    """15 hand movements of the Brazilian sign language in video, 360 samples of 45 steps, hand position 0 to 1.

    The archive's 180 training and 180 test samples. Origin: `UEA_ORIGIN`.
    """
    return _uea("uea_hand/libras", path, (Channel("x", "", low=0, high=1), Channel("y", "", low=0, high=1)))


def _uea(name: str, path: Path, channels: tuple[Channel, ...]) -> Dataset:
    table = pd.read_parquet(path).rename(columns={"i": TIME})
    table[ID] = table["split"].astype(str) + "_" + table["sample"].astype(str).str.zfill(3)
    return _classify(name, table, channels, 1, Splits(entity=_parts(table, "split")))


def _per_series(table: pd.DataFrame, column: str) -> pd.Series:
    return table.drop_duplicates(ID).set_index(ID)[column]


def _parts(table: pd.DataFrame, column: str) -> dict[str, str]:
    return {str(name): str(part) for name, part in _per_series(table, column).items()}


def _classify(name: str, table: pd.DataFrame, channels: tuple[Channel, ...], freq: Freq, splits: Splits) -> Dataset:
    frame, notes = check_frame(table, source=name, task="classify", channels=channels)
    return Dataset(
        name=name,
        frame=frame,
        task="classify",
        channels=channels,
        freq=freq,
        season=1,
        horizon=1,
        splits=splits,
        target="label",
        notes=notes,
    )
