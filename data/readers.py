"""Files of series: CSV and Parquet, one or many, long or wide, to a checked data set.

What is unusual here: a file without an id column is one series named after the file, and row numbers in messages
are those of the file (line 1 of a CSV is its header). What a frame must look like is `frame`'s business.
"""

from __future__ import annotations

import bisect
import codecs
import difflib
import glob
import gzip
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from io import BufferedReader
from pathlib import Path

import numpy as np
import pandas as pd

from data.frame import ID, TARGETS, TIME, Channel, Dataset, FrameError, Freq, Splits, Task, check_frame, infer_freq
from data.panel import canonical, own_step, steps_apart, to_panel

EXTENSIONS = (".csv", ".csv.gz", ".parquet")
EVERY = ("*",)  # as covariates: every numeric column but the target

# Step -> (steps of a season, steps that are usually forecast). Horizons are those of the M4 competition where it had
# the step, and so is the season of business days: prices have none, and their naive forecast is the random walk.
SEASON_AND_HORIZON: dict[str, tuple[int, int]] = {
    "Y": (1, 6),
    "Q": (4, 8),
    "M": (12, 18),
    "W": (52, 13),
    "D": (7, 14),
    "B": (1, 5),
    "h": (24, 48),
    "30min": (48, 48),
    "15min": (96, 96),
    "10min": (144, 144),
    "5min": (288, 288),
    "min": (60, 60),
}
OTHER_SEASON_AND_HORIZON = (1, 10)


def read_source(
    path: str | Path,
    *,
    task: Task = "forecast",
    id: str = ID,
    time: str = TIME,
    target: str | None = None,
    covariates: Sequence[str] | None = None,
    wide: bool = False,
    freq: Freq | None = None,
    channels: Sequence[Channel] | None = None,
    target_required: bool = True,
) -> Dataset:
    """Read a `.csv`, `.csv.gz` or `.parquet` file, or a glob of them, as a data set.

    Args:
        path: a file or a glob pattern; the files of a glob are read in the order of their names, one behind another.
        task: decides the target.
        id: column of series names; a file without the default one is one series, named after the file.
        time: column of times: ISO 8601 stamps, integers, or seconds.
        target: column to predict; default `y`, for classify `label`.
        covariates: further input columns, or `EVERY`; default none for a forecast, every other numeric column else.
        wide: one column per series beside the time column (the first one, where `time` is not there).
        freq: the step; inferred when not given.
        channels: units and limits, in order, those of a bundle for example; they also choose the columns.
        target_required: False where labels or lives are still to be predicted.

    Raises:
        FrameError: no such file, an extension or content that cannot be read, or a table that is no frame.
    """
    if task not in TARGETS:
        raise FrameError(f"{path}: no task {task!r}; the tasks are {', '.join(TARGETS)}.")
    if wide and (task != "forecast" or (covariates and tuple(covariates) != EVERY) or len(channels or ()) > 1):
        raise FrameError(f"{path}: a wide table holds one target per series: no covariates, and forecast only.")
    files = find_files(str(path))
    target_name = target or TARGETS[task]
    parts = [_read(file, as_text=(id, target_name) if task == "classify" else (id,)) for file in files]
    names, found = _series_names(files), list(parts[0].table.columns)
    if wide:
        parts = [_melt(part, time) for part in parts]
    else:
        parts = [_with_id(part, id, name) for part, name in zip(parts, names, strict=True)]
    _refuse_differing(parts)

    source = files[0].name if len(files) == 1 else str(path)
    table, where = _stack(parts, source)
    own = {ID: ID, TIME: TIME, "y": "y"} if wide else {ID: id, TIME: time, TARGETS[task]: target_name}
    return _checked(
        table, source, where, own, found, task=task, covariates=() if wide else covariates, freq=freq,
        channels=channels, target_required=target_required,
    )  # fmt: skip


def read_table(
    table: pd.DataFrame,
    source: str,
    where: Callable[[int], str],
    *,
    task: Task = "forecast",
    target: str | None = None,
    covariates: Sequence[str] | None = None,
    freq: Freq | None = None,
    channels: Sequence[Channel] | None = None,
    target_required: bool = True,
) -> Dataset:
    """A long table that is no file as a data set; where: says where a row comes from, for messages.

    The other arguments, and what is raised, are those of `read_source`.
    """
    if task not in TARGETS:
        raise FrameError(f"{source}: no task {task!r}; the tasks are {', '.join(TARGETS)}.")
    own = {ID: ID, TIME: TIME, TARGETS[task]: target or TARGETS[task]}
    return _checked(
        table, source, where, own, list(table.columns), task=task, covariates=covariates, freq=freq,
        channels=channels, target_required=target_required,
    )  # fmt: skip


def _checked(
    table: pd.DataFrame, source: str, where: Callable[[int], str], own: dict[str, str], found: Sequence[object], *,
    task: Task, covariates: Sequence[str] | None, freq: Freq | None, channels: Sequence[Channel] | None,
    target_required: bool,
) -> Dataset:  # fmt: skip
    """own: what the source calls our columns; found: the columns that it has."""
    of_a_bundle = channels is not None
    if channels is not None:
        first = 1 if task == "forecast" else 0
        covariates = [channel.name for channel in channels[first:]]
    _refuse_roles(source, table, found, own, target_required=target_required)
    table, renamed = _rename(table, own)
    if channels is not None:
        lacking = [channel.name for channel in channels if channel.name not in (*table.columns, TARGETS[task])]
        if lacking:
            raise FrameError(
                f"{source}: no column {', '.join(lacking)}, which the model takes as input; found "
                f"{', '.join(map(str, found))}. Its channels are "
                f"{', '.join(channel.name for channel in channels)}."
            )
    notes: list[str] = []
    if covariates is not None and tuple(covariates) == EVERY:
        covariates = _numeric(table, TARGETS[task])
    taken = [name for name in covariates or () if name in own or name in own.values()]
    if taken:
        why = (
            "it is an id, the time or the target"
            if taken[0] in own.values()
            else "our frames call a column of their own so"
        )
        raise FrameError(f"{source}: column {taken[0]} cannot be a covariate: {why}. Leave it out, or rename it.")
    inputs = _choose(table, task, covariates)
    unused = [str(name) for name in found if name not in (*own.values(), *inputs)]
    if unused and covariates is None:
        notes.append(f"{source}: not used: {', '.join(unused)}. Name columns in --covariates to use them.")
    if channels is None:
        channels = [Channel(name, "") for name in ([TARGETS[task]] if task == "forecast" else []) + inputs]
    given = freq is not None
    if freq is not None:
        freq = canonical(freq, source)
    frame, mended = check_frame(
        table,
        source=source,
        task=task,
        channels=channels,
        target_required=target_required,
        leave_out_empty=True,
        named=renamed,
        where=where,
        freq=freq,
    )
    if not given and (task == "forecast" or not _single_rows(frame)):
        freq = infer_freq(frame, source)
    dataset = Dataset(
        name=source,
        frame=frame,
        task=task,
        channels=tuple(channels),
        freq=freq,
        season=default_season(freq),
        horizon=default_horizon(freq),
        splits=Splits(),
        target=TARGETS[task],
        notes=(*notes, *mended),
    )
    if task == "forecast" and not of_a_bundle:
        _refuse_other_steps(dataset, given)
    return dataset


def _refuse_other_steps(dataset: Dataset, given: bool) -> None:
    """Raise FrameError where series are of another step than the data set: months would be days, most of them missing.

    Where the step was given that is meant, unless it suits no series at all.
    """
    if isinstance(dataset.freq, float):
        return  # a device may drop every other frame
    ids, times = dataset.frame[ID].to_numpy(), dataset.frame[TIME].to_numpy()
    steps, inside = np.diff(times), ids[1:] == ids[:-1]
    if not given and len(steps):
        nearest = pd.Series(steps[inside]).groupby(ids[1:][inside], sort=False).min()
        if not (nearest > 1.6 * np.median(steps[inside])).any():  # months are of 28 to 31 days
            return
    apart = steps_apart(dataset, to_panel(dataset))
    if apart and min(apart.values()) > 1:
        raise FrameError(
            f"{dataset.name}: no two rows of a series are less than {min(apart.values())} steps of {dataset.freq!r} "
            "apart. Give the real step with --freq, or leave it to be inferred."
        )
    for name in () if given else (name for name, steps in apart.items() if steps > 1):
        own = own_step(replace(dataset, frame=dataset.frame[dataset.frame[ID] == name]))
        if own is not None:
            raise FrameError(
                f"{dataset.name}: series {name} is every {own!r}, most others are every {dataset.freq!r}. A model has "
                "one step: give series of another step in a file of their own, resample them, or give --freq "
                f"{dataset.freq} if they are to be steps of it of which most are missing."
            )


def default_season(freq: Freq | None) -> int:
    """Steps of a season for a step; 1 where none is usual."""
    return _season_and_horizon(freq)[0]


def default_horizon(freq: Freq | None) -> int:
    """Steps that are usually forecast for a step."""
    return _season_and_horizon(freq)[1]


def _season_and_horizon(freq: Freq | None) -> tuple[int, int]:
    if not isinstance(freq, str):
        return OTHER_SEASON_AND_HORIZON
    # "QS-OCT" and "BQE" are quarters, "W-SUN" is a week: the anchor, the edge and the business mark do not matter.
    unit = re.sub(r"^B?([YQM])[SE]?$", r"\1", freq.split("-")[0])
    return SEASON_AND_HORIZON.get(unit, OTHER_SEASON_AND_HORIZON)


def find_files(pattern: str) -> list[Path]:
    """The files of a path or a glob pattern, sorted.

    Raises:
        FrameError: there is none (similar names are suggested), one is a link to nowhere, or one has an extension that
            cannot be read.
    """
    path = Path(pattern)
    if path.is_dir():
        raise FrameError(f"{pattern}: this is a folder. Give a file, or a pattern such as {path / '*.parquet'}.")
    files = [path] if path.is_file() else sorted(Path(name) for name in glob.glob(pattern, recursive=True))
    gone = [file for file in files if not file.exists()]
    if gone:  # left out, their series would be missing without a word
        raise FrameError(
            f"{gone[0]}: is listed but not there: a link to nowhere, or a file that has just gone. Put it back, or "
            "give a path or pattern without it."
        )
    files = [file for file in files if file.is_file()]
    if not files:
        folder = path.parent
        there = [file.name for file in folder.iterdir() if _extension(file)] if folder.is_dir() else []
        similar = difflib.get_close_matches(path.name, there, n=3, cutoff=0.4)
        hint = f" Similar: {', '.join(similar)}." if similar else ""
        what = "no file matches this pattern" if glob.has_magic(pattern) else "no such file"
        raise FrameError(f"{pattern}: {what}.{hint} `mnemo datasets` lists the named data sets.")
    for file in files:
        if not _extension(file):
            raise FrameError(f"{file}: cannot read {file.suffix or 'it'}; known: {', '.join(EXTENSIONS)}.")
    return files


def _extension(file: Path) -> str | None:
    return next((extension for extension in EXTENSIONS if file.name.lower().endswith(extension)), None)


def _series_names(files: Sequence[Path]) -> list[str]:
    """Each file's name without extension; with its folders where two files would share a name."""

    def cut(text: str, file: Path) -> str:
        return text[: -len(_extension(file) or "")]

    names = [cut(file.name, file) for file in files]
    return names if len(set(names)) == len(names) else [cut(str(file), file) for file in files]


@dataclass(frozen=True)
class _Part:
    """The table of one file, and where its rows lie in it."""

    file: Path
    table: pd.DataFrame
    lines: np.ndarray  # (rows,) the line (CSV) or row (Parquet) of each row, counted from 1
    unit: str  # "line" or "row"


def _read(file: Path, as_text: Sequence[str]) -> _Part:
    if file.stat().st_size == 0:
        raise FrameError(f"{file}: the file is empty (0 bytes).")
    if _extension(file) == ".parquet":
        table = _read_parquet(file)
        return _Part(file, table, np.arange(1, len(table) + 1), "row")
    table, header = _read_csv(file, as_text)
    blank = (table.isna() | (table == "")).all(axis="columns").to_numpy()
    lines = np.arange(header + 1, header + 1 + len(table))
    return _Part(file, table[~blank], lines[~blank], "line")


def _read_parquet(file: Path) -> pd.DataFrame:
    try:
        table = pd.read_parquet(file)
    except (OSError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
        _refuse_unreadable(file, error)
        raise FrameError(
            f"{file}: not a whole Parquet file ({_first_line(error)}). It is truncated or damaged: copy it anew."
        ) from error
    if isinstance(table.index, pd.RangeIndex) and table.index.name is None:
        return table
    return table.reset_index()  # keys that were written as the index are columns here


def _read_csv(file: Path, as_text: Sequence[str]) -> tuple[pd.DataFrame, int]:
    """The table, and the line of its header."""
    try:
        header, blank = _header(file)
        # In names and labels "NA" and "None" are values: Namibia and the class None are not missing.
        missing = ["", "NA", "N/A", "NaN", "nan", "null", "NULL", "None", "<NA>", "n/a"]
        table = pd.read_csv(
            file,
            encoding="utf-8-sig",
            names=header,
            header=0,
            skiprows=blank,
            dtype={name: str for name in as_text if name in header},
            keep_default_na=False,
            na_values={name: missing for name in header if name not in as_text},
            skip_blank_lines=False,
            low_memory=False,
        )
        if not isinstance(table.index, pd.RangeIndex):  # pandas takes a surplus first field for an index
            raise FrameError(f"{file}: its rows have more fields than the header ({len(header)}). Complete the header.")
        return table, blank + 1
    except UnicodeDecodeError as error:
        raise FrameError(f"{file}: {_not_utf8(file)}. Save the file as UTF-8.") from error
    except pd.errors.EmptyDataError as error:
        raise FrameError(f"{file}: the file has no header line.") from error
    except (pd.errors.ParserError, pd.errors.ParserWarning) as error:
        raise FrameError(
            f"{file}: not a table with commas ({_first_line(error)}). Check the separators and quotes."
        ) from error
    except (EOFError, OSError, zlib.error) as error:
        _refuse_unreadable(file, error)
        raise FrameError(f"{file}: not a whole gzip file ({_first_line(error)}). Write or copy it anew.") from error


def _header(file: Path) -> tuple[list[str], int]:
    """The names of a CSV's columns, and how many blank lines precede them."""
    written = pd.read_csv(file, header=None, nrows=1, dtype=str, na_filter=False, encoding="utf-8-sig").iloc[0]
    names = [name or f"Unnamed: {place}" for place, name in enumerate(written)]
    if len(names) == 1 and (mark := next((mark for mark in ";\t|" if mark in names[0]), None)):
        raise FrameError(
            f"{file}: not a table with commas: its first line seems to be separated by {mark!r}. Save it with "
            "commas between the fields and points in the numbers."
        )
    twice = [name for name in names if names.count(name) > 1]
    if twice:  # pandas would number them, and one of them would be taken without a word
        raise FrameError(f"{file}: column {twice[0]} occurs more than once in the header. Rename one of them.")
    blank, line = 0, 1
    with _bytes_of(file) as stream:
        for text in stream:
            if text.removeprefix(codecs.BOM_UTF8).strip():
                break
            blank += 1
        stream.seek(0)
        while chunk := stream.read(2**20):
            before, nul, _ = chunk.partition(b"\0")
            line += before.count(b"\n")
            if nul:  # pandas would end the field there, and read a smaller number
                raise FrameError(
                    f"{file}: line {line} holds a NUL byte, as damaged files and those in UTF-16 do. Copy it anew, or "
                    "save it as UTF-8."
                )
    return names, blank


def _bytes_of(file: Path) -> gzip.GzipFile | BufferedReader:
    return gzip.open(file, "rb") if file.name.lower().endswith(".gz") else open(file, "rb")


def _not_utf8(file: Path) -> str:
    """Where a file is not UTF-8; pandas counts from the beginning of the piece that it reads."""
    with _bytes_of(file) as stream:
        for number, text in enumerate(stream, 1):
            try:
                text.decode()
            except UnicodeDecodeError as error:
                before = text[: error.start].decode()[-20:]
                return f"line {number} holds the byte 0x{text[error.start]:02x} after {before!r}, which is not UTF-8"
    return "it is not UTF-8"


def _refuse_unreadable(file: Path, error: Exception) -> None:
    if isinstance(error, OSError) and error.errno:  # the system's word; the formats' own errors have no number
        raise FrameError(f"{file}: cannot be read ({error.strerror}).") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _with_id(part: _Part, id: str, name: str) -> _Part:
    # Only the default name may be absent: an id that was asked for and is not there is a mistake.
    if id != ID or id in part.table:
        return part
    return _Part(part.file, part.table.assign(**{ID: name}), part.lines, part.unit)


def _melt(part: _Part, time: str) -> _Part:
    """One row per series and time, from a column per series."""
    table = part.table
    if len(table.columns) < 2:
        raise FrameError(
            f"{part.file.name}: a wide table has a time column and a column per series; found {list(table.columns)}."
        )
    key = time if time in table else table.columns[0]
    if time != TIME and time not in table:
        raise FrameError(
            f"{part.file.name}: no column {time}; found {', '.join(map(str, table.columns))}. Name it with --time."
        )
    series = [column for column in table.columns if column != key]
    long = pd.DataFrame(
        {
            ID: np.repeat(np.array([str(name) for name in series], dtype=object), len(table)),
            TIME: pd.concat([table[key]] * len(series), ignore_index=True),
            "y": pd.concat([table[name] for name in series], ignore_index=True),
        }
    )
    return _Part(part.file, long, np.tile(part.lines, len(series)), part.unit)


def _refuse_differing(parts: Sequence[_Part]) -> None:
    first = parts[0]
    for part in parts[1:]:
        other = set(first.table.columns) ^ set(part.table.columns)
        if other:
            raise FrameError(
                f"{part.file}: its columns are {', '.join(map(str, part.table.columns))}, but those of {first.file} "
                f"are {', '.join(map(str, first.table.columns))}. Files of one pattern need the same columns."
            )


def _stack(parts: Sequence[_Part], source: str) -> tuple[pd.DataFrame, Callable[[int], str]]:
    """All rows behind one another, and a function that says where one of them came from."""
    starts = np.cumsum([0, *(len(part.table) for part in parts)]).tolist()

    def where(row: int) -> str:
        part = bisect.bisect_right(starts, row) - 1
        place = f"{parts[part].unit} {parts[part].lines[row - starts[part]]}"
        return place if len(parts) == 1 else f"{parts[part].file.name}, {place}"

    filled = [part.table for part in parts if len(part.table)]
    table = pd.concat(filled, ignore_index=True) if filled else parts[0].table
    return table.reset_index(drop=True), where


def _refuse_roles(
    source: str, table: pd.DataFrame, found: Sequence[object], own: dict[str, str], *, target_required: bool
) -> None:
    """One column for two roles, or a name that is not there; `found` are the columns of the source itself."""
    options = {ID: "--id", TIME: "--time"}
    missing: dict[str, str] = {}
    for house, name in own.items():
        option = options.get(house, "--target")
        twin = next((options[other] for other in (ID, TIME) if other != house and own[other] == name), None)
        if twin is not None:
            raise FrameError(f"{source}: column {name} cannot be both {twin} and {option}. Name another one.")
        if name not in table and (target_required or house in options):
            missing[name] = option
    if missing:
        raise FrameError(
            f"{source}: no column {', '.join(missing)}; found {', '.join(map(str, found)) or 'none'}. "
            f"Name the right one with {', '.join(missing.values())}."
        )


def _rename(table: pd.DataFrame, names: dict[str, str]) -> tuple[pd.DataFrame, dict[str, str]]:
    """The table with the house's names for its keys and target, and a dict from those to the source's own."""
    renamed = {house: own for house, own in names.items() if house != own}
    clash = [house for house in renamed if house in table]
    # The column that has our name but another role would be taken for the one that was asked for.
    table = table.drop(columns=clash)
    return table.rename(columns={own: house for house, own in renamed.items()}), renamed


def _choose(table: pd.DataFrame, task: Task, covariates: Sequence[str] | None) -> list[str]:
    """The names of the columns that enter beside the target of a forecast, or from which is classified or regressed."""
    if covariates is not None or task == "forecast":
        return list(dict.fromkeys(covariates or ()))
    return _numeric(table, TARGETS[task])


def _numeric(table: pd.DataFrame, target: str) -> list[str]:
    return [str(name) for name in table if name not in (ID, TIME, target) and _is_numeric(table[name])]


def _is_numeric(column: pd.Series) -> bool:
    # One bad cell turns a column of a CSV into text; where most are numbers, the cell is the error.
    if pd.api.types.is_numeric_dtype(column.dtype):
        return True
    if pd.api.types.is_datetime64_any_dtype(column.dtype) or len(column) == 0:
        return False
    return bool(pd.to_numeric(column, errors="coerce").notna().mean() > 0.5)


def _single_rows(frame: pd.DataFrame) -> bool:
    return not bool(frame[ID].duplicated().any())
