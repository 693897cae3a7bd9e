"""Every data set by name, and one door, `load`, for names, paths and patterns.

Embedded sets come with the package or its dependencies. The others are research data that we may not redistribute:
they are read from the folder that MNEMO_DATA_DIR names. Where each comes from and how to cite it is said by the file
of its domain.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data import battery, benchmark, gesture, stock
from data.files import DATA_DIR, package_file, shared_file, shared_folder
from data.frame import Channel, Dataset, FrameError, Task
from data.panel import canonical
from data.readers import default_horizon, default_season, read_source

NOT_STATED = "not stated by the source: for tests and research, not to be redistributed"
MIT = "MIT"
LGPL = "LGPL-3.0-or-later (of the package)"

STORE = "store:"
# Options that only files need; other data has their answers.
FILE_OPTIONS = {"id": "unique_id", "time": "ds", "wide": False}


@dataclass(frozen=True)
class Entry:
    """One line of the catalog."""

    name: str
    task: Task
    summary: str
    licence: str
    origin: str  # source and citation
    embedded: bool
    files: tuple[str, ...]  # below a package (embedded) or below MNEMO_DATA_DIR
    load: Callable[[], Dataset]

    def paths(self) -> list[Path | None]:
        """Where each file should be, None where its folder or package is not known."""
        if self.embedded:
            return [package_file(file) for file in self.files]
        folder = shared_folder()
        return [folder / file if folder else None for file in self.files]

    def available(self) -> bool:
        """Whether `load` will find its files."""
        return all(path is not None and path.is_file() for path in self.paths())

    @property
    def size_bytes(self) -> int | None:
        """The size of its files, None unless all are there."""
        paths = [path for path in self.paths() if path is not None and path.is_file()]
        return sum(path.stat().st_size for path in paths) if len(paths) == len(self.files) else None

    def how_to_get(self) -> str:
        """What to do to make it available, in a sentence."""
        files = ", ".join(self.files)
        if self.embedded:
            return f"Embedded ({files}): reinstall the package if it is missing."
        return f"Put {files} below the folder that {DATA_DIR} names. Origin: {self.origin}"


def entries() -> list[Entry]:
    """All known data sets, embedded ones first."""
    return list(_ENTRIES.values())


def load(source: str, **options: Any) -> Dataset:
    """The data set of a name, a path or a pattern of files, or what a store knows.

    Args:
        source: a name of `entries()`, else a `.csv`, `.csv.gz` or `.parquet` file or a glob of them; the prefixes
            `csv:` and `parquet:` mark a path. `store:` is every series of a store, `store:shop-*` those of such names.
        options: those of `readers.read_source`; an option of None counts as not given. A named data set takes
            `covariates`, `target` and `channels` (which choose among its columns) and `freq`; its task is fixed. What a
            store knows has the columns of a frame already. `store`: the URL of the store, else `store.store_url`.

    Raises:
        FrameError: an unknown name, an option or column that does not suit the data set, or what its reader found.
    """
    given = {name: value for name, value in options.items() if value is not None}
    url = given.pop("store", None)
    if source.startswith(STORE):
        from data.observations import load_known  # with SQLAlchemy, for those alone who have a store

        _refuse_file_options(source, given)
        return load_known(source, source.removeprefix(STORE) or "*", url, **given)
    path = path_of(source)
    if path is not None:
        return read_source(path, **given)
    entry = _ENTRIES.get(source)
    if entry is not None:
        _refuse_file_options(entry.name, given)
        _refuse_other_options(entry, given)
        return _with_options(entry.load(), given)
    near = difflib.get_close_matches(source, _ENTRIES, n=3, cutoff=0.5)
    close = f"Did you mean {' or '.join(near)}? " if near else ""
    known = ", ".join([*near, *(name for name in _ENTRIES if name not in near)])
    raise FrameError(f"{source}: no data set and no file of this name. {close}Known: {known}.")


def path_of(source: str) -> str | None:
    """The path or pattern of files that a source is; None where it is a name, or what a store knows."""
    if source.startswith(STORE):
        return None
    kind, _, path = source.partition(":")
    if kind in ("csv", "parquet") and path:
        return path
    return source if source not in _ENTRIES and _looks_like_a_path(source) else None


def _looks_like_a_path(source: str) -> bool:
    name = source.lower()
    return any(mark in name for mark in ("*", "?", "[", ".csv", ".parquet")) or Path(source).exists()


def _refuse_file_options(name: str, given: dict[str, Any]) -> None:
    for option, default in FILE_OPTIONS.items():
        if given.pop(option, default) != default:
            raise FrameError(f"{name}: {option} is an option for files; this data has columns of its own.")


def _refuse_other_options(entry: Entry, given: dict[str, Any]) -> None:
    known = {"task", "target", "covariates", "channels", "freq", "target_required"}
    unknown = sorted(set(given) - known)
    if unknown:
        raise FrameError(f"{entry.name}: unknown option {', '.join(unknown)}; known: {', '.join(sorted(known))}.")
    if given.get("task", entry.task) != entry.task:
        raise FrameError(f"{entry.name}: a data set for {entry.task}, not for {given['task']}.")


def _with_options(dataset: Dataset, given: dict[str, Any]) -> Dataset:
    if "target" in given:
        dataset = _with_target(dataset, given["target"])
    if "channels" in given:
        dataset = _with_channels(dataset, given["channels"])
    elif "covariates" in given:
        dataset = _with_covariates(dataset, given["covariates"])
    if "freq" in given:
        freq = canonical(given["freq"], dataset.name)
        dataset = dataclasses.replace(dataset, freq=freq, season=default_season(freq), horizon=default_horizon(freq))
    return dataset


def _columns(dataset: Dataset) -> dict[str, Channel]:
    """Every channel that can be asked for; the target of a forecast is not among them."""
    first = 1 if dataset.task == "forecast" else 0
    return {channel.name: channel for channel in (*dataset.channels[first:], *dataset.spare)}


def _find(dataset: Dataset, name: str, what: str) -> Channel:
    columns = _columns(dataset)
    if name not in columns:
        raise FrameError(f"{dataset.name}: no column {name} for {what}; known: {', '.join(columns) or 'none'}.")
    return columns[name]


def _with_covariates(dataset: Dataset, names: Sequence[str], what: str = "--covariates") -> Dataset:
    """The data set with these inputs, in this order; those it had before are spare."""
    inputs = [_find(dataset, name, what) for name in dict.fromkeys(names)]
    if dataset.task != "forecast" and not inputs:
        raise FrameError(f"{dataset.name}: {dataset.task} needs at least one channel.")
    chosen = (dataset.channels[0], *inputs) if dataset.task == "forecast" else tuple(inputs)
    spare = tuple(channel for channel in _columns(dataset).values() if channel not in chosen)
    return dataclasses.replace(dataset, channels=chosen, spare=spare)


def _with_target(dataset: Dataset, name: str) -> Dataset:
    """The data set with another column as the target `y` of its forecast; the old target is dropped."""
    if name == dataset.target:
        return dataset
    if dataset.task != "forecast":
        raise FrameError(f"{dataset.name}: the target of {dataset.task} is {dataset.target}, not {name}.")
    channel = _find(dataset, name, "--target")
    target = dataclasses.replace(channel, name=dataset.target)
    frame = dataset.frame.assign(**{dataset.target: dataset.frame[name]}).drop(columns=name)
    empty = frame[dataset.target].isna().groupby(frame["unique_id"]).all()
    if empty.any():
        raise FrameError(f"{dataset.name}: {name} is missing in all rows of series {empty.idxmax()}.")
    return dataclasses.replace(
        dataset,
        frame=frame,
        channels=(target, *(other for other in dataset.channels[1:] if other.name != name)),
        spare=tuple(other for other in dataset.spare if other.name != name),
    )


def _with_channels(dataset: Dataset, wanted: Sequence[Channel]) -> Dataset:
    """The data set with exactly these channels, those of a bundle for example; known units must agree."""
    first = 1 if dataset.task == "forecast" else 0
    chosen = _with_covariates(dataset, [channel.name for channel in wanted[first:]], "the model's input")
    for have, want in zip(chosen.channels, wanted, strict=True):
        unknown = not have.unit or not want.unit
        if have.name != want.name or (have.unit != want.unit and not unknown):
            raise FrameError(
                f"{dataset.name}: channel {have.name} is in {have.unit}, expected {want.name} in {want.unit}."
            )
    return chosen


def _shared(
    name: str, task: Task, summary: str, licence: str, origin: str, reader: Callable[..., Dataset], *files: str
) -> Entry:
    def read() -> Dataset:
        return reader(*[shared_file(file, origin) for file in files])

    return Entry(name, task, summary, licence, origin, embedded=False, files=files, load=read)


def _simulated() -> Dataset:
    path = package_file(SIMULATED_FILE)
    if path is None or not path.is_file():
        raise FrameError(f"battery_simulated: no {SIMULATED_FILE}. Make it: python -m data.samples.make_battery")
    return battery.simulated(path)


def _ltsf(stem: str, summary: str, licence: str, origin: str) -> Entry:
    return _shared(f"ltsf/{stem}", "forecast", summary, licence, origin, benchmark.ltsf, f"ltsf/{stem}.csv.gz")


def _competition(folder: str, stem: str, summary: str, licence: str, origin: str) -> Entry:
    file = f"{folder}/{folder}_{stem}.parquet"
    return _shared(f"{folder}/{stem}", "forecast", summary, licence, origin, benchmark.competition, file)


def _index(stem: str, summary: str) -> Entry:
    file = f"indices/{stem}.csv"
    return _shared(f"indices/{stem}", "forecast", summary, NOT_STATED, stock.INDICES_ORIGIN, stock.index, file)


def _ageing(stem: str, summary: str, reader: Callable[..., Dataset]) -> Entry:
    name = f"battery_aging/{stem}"
    return _shared(name, "forecast", summary, NOT_STATED, battery.PINN4SOH_ORIGIN, reader, f"{name}.parquet")


SIMULATED_FILE = "data/samples/battery_simulated.parquet"
SP500_FILE, NASDAQ_FILE = "arch/data/sp500/sp500.csv.gz", "arch/data/nasdaq/nasdaq.csv.gz"
MOTIONS = "sktime/datasets/data/BasicMotions/BasicMotions"
MOTION_FILES = (f"{MOTIONS}_TRAIN.ts", f"{MOTIONS}_TEST.ts")
SEVERSON_FILES = tuple(
    f"severson2019/{name}" for name in ("train.parquet", "cells_train.csv", "test1.parquet", "cells_test1.csv")
)
MOTION_SUMMARY = "80 samples of four motions, smart watch, 6 channels at 10 Hz"
# Short names keep the table below to a line a set.
B, G, K = battery, gesture, benchmark
ARCH = "NCSA (arch); prices from Yahoo Finance"
ISL = "free for research and education, citation asked"

_TABLE = (
    Entry(
        "sp500", "forecast", "S&P 500, daily close 1999-2018", ARCH, stock.ARCH_ORIGIN, True, (SP500_FILE,), stock.sp500
    ),
    Entry(
        "nasdaq",
        "forecast",
        "NASDAQ, daily close 1999-2018",
        ARCH,
        stock.ARCH_ORIGIN,
        True,
        (NASDAQ_FILE,),
        stock.nasdaq,
    ),
    Entry(
        "basic_motions",
        "classify",
        MOTION_SUMMARY,
        "BSD-3-Clause",
        G.BASIC_MOTIONS_ORIGIN,
        True,
        MOTION_FILES,
        G.basic_motions,
    ),
    Entry(
        "battery_simulated",
        "forecast",
        "SIMULATED: capacity of 24 ageing cells",
        "Apache-2.0",
        B.SIMULATED_ORIGIN,
        True,
        (SIMULATED_FILE,),
        _simulated,
    ),
    Entry(
        "gestures_demo",
        "classify",
        "SIMULATED: 8 gestures and rest, glove and tracker at 50 Hz, 10 people",
        "Apache-2.0",
        G.DEMO_ORIGIN,
        True,
        ("data/simulated_hand.py",),
        G.gestures_demo,
    ),
    _index("nifty50", "NIFTY 50, daily close 2000-2019"),
    _index("sensex", "BSE SENSEX, daily close 2000-2019"),
    _index("djia", "Dow Jones, daily close 2000-2019"),
    _index("n225", "Nikkei 225, daily close 2005-2019"),
    _shared(
        "stocknet",
        "forecast",
        "78 US stocks, adjusted close 2012-2015",
        MIT,
        stock.STOCKNET_ORIGIN,
        stock.stocknet,
        "stocknet/prices.parquet",
    ),
    _shared(
        "nasa_pcoe",
        "forecast",
        "capacity of 3 cells, 168 cycles",
        NOT_STATED,
        B.NASA_ORIGIN,
        B.nasa_pcoe,
        "nasa_pcoe/capacity.csv",
    ),
    _shared(
        "calce_cs2",
        "forecast",
        "capacity of 3 cells, 900 cycles",
        NOT_STATED,
        B.CALCE_ORIGIN,
        B.calce_cs2,
        "calce_cs2/cycles.csv.gz",
    ),
    _ageing("mit_lfp", "capacity of 89 LFP cells", B.mit_lfp),
    _ageing("xjtu_ncm", "capacity of 42 NCM cells", B.xjtu_ncm),
    _ageing("tju_1_nca", "capacity of 66 NCA cells", B.tju_1_nca),
    _shared(
        "severson2019",
        "regress",
        "cycle life of 84 LFP cells from cycles 2-100",
        MIT,
        B.SEVERSON_ORIGIN,
        B.severson2019,
        *SEVERSON_FILES,
    ),
    _shared(
        "uc2017_sg",
        "classify",
        "25 static hand shapes, data glove, 6 users",
        MIT,
        G.UC2017_ORIGIN,
        G.uc2017_sg,
        "uc2017_sg/sg25.parquet",
    ),
    _shared(
        "uc2017_dg",
        "classify",
        "10 dynamic gestures, data glove and tracker, 8 users",
        NOT_STATED,
        G.UC2017_ORIGIN,
        G.uc2017_dg,
        "uc2017_dg/DG10_dataset_euler.h5",
    ),
    _shared(
        "vmg30_glove",
        "classify",
        "6 grasps, data glove at 100 Hz",
        NOT_STATED,
        G.VMG30_ORIGIN,
        G.vmg30_glove,
        "vmg30_glove/recordings.parquet",
    ),
    _shared(
        "isl_myo",
        "classify",
        "26 letters of sign language, EMG armband at 200 Hz",
        ISL,
        G.ISL_ORIGIN,
        G.isl_myo,
        "isl_myo/samples.parquet",
    ),
    _shared(
        "myo_wrist",
        "classify",
        "8 wrist gestures, continuous EMG, 4 people",
        MIT,
        G.MYO_WRIST_ORIGIN,
        G.myo_wrist,
        "myo_wrist/sessions.parquet",
    ),
    _shared(
        "uea_hand/ering",
        "classify",
        "6 finger movements, 4 channels",
        "GPL-2",
        G.UEA_ORIGIN,
        G.ering,
        "uea_hand/ering.parquet",
    ),
    _shared(
        "uea_hand/libras",
        "classify",
        "15 hand movements, 2 channels",
        "GPL-2",
        G.UEA_ORIGIN,
        G.libras,
        "uea_hand/libras.parquet",
    ),
    _shared(
        "eth_ucy",
        "forecast",
        "pedestrian paths in 8 scenes, metres, 0.4 s",
        MIT,
        K.ETH_UCY_ORIGIN,
        K.eth_ucy,
        "eth_ucy/trajectories.parquet",
    ),
    _ltsf("ETTh1", "transformer temperature and loads, hourly", "CC BY-ND 4.0", K.ETT_ORIGIN),
    _ltsf("ETTm1", "transformer temperature and loads, 15 min", "CC BY-ND 4.0", K.ETT_ORIGIN),
    _ltsf("weather", "21 weather variables, 10 min", NOT_STATED, K.LTSF_ORIGIN),
    _ltsf("exchange_rate", "8 exchange rates, trading days", NOT_STATED, K.LTSF_ORIGIN),
    _ltsf("national_illness", "7 influenza counts, weekly", NOT_STATED, K.LTSF_ORIGIN),
    _competition("m4", "hourly", "414 hourly series", NOT_STATED, K.M4_ORIGIN),
    _competition("m3", "yearly", "645 yearly series", LGPL, K.M3_ORIGIN),
    _competition("m3", "quarterly", "756 quarterly series", LGPL, K.M3_ORIGIN),
    _competition("m3", "monthly_a", "714 monthly series", LGPL, K.M3_ORIGIN),
    _competition("m3", "other", "174 other series", LGPL, K.M3_ORIGIN),
    _competition("m1", "yearly", "181 yearly series", LGPL, K.M1_ORIGIN),
    _competition("m1", "quarterly", "203 quarterly series", LGPL, K.M1_ORIGIN),
    _competition("m1", "monthly", "617 monthly series", LGPL, K.M1_ORIGIN),
    _competition("tourism", "monthly", "366 monthly series", LGPL, K.TOURISM_ORIGIN),
    _competition("tourism", "yearly", "518 yearly series", LGPL, K.TOURISM_ORIGIN),
)
_ENTRIES = {entry.name: entry for entry in _TABLE}
