"""The long frame: what a table of series must look like, and the one check at the border.

A frame has one row for each observation of one series: `unique_id` (str), `ds` (a time stamp without zone, an integer
cycle or seconds as float), the target (`y`, or `label` for classification) and its channels (float64). Gaps are
allowed: a missing row or a NaN becomes a masked step later (see `panel`). Everything else that is wrong with a table
is found here, by `check_frame`, and said in a `FrameError`; code behind it trusts the frame.

This file knows nothing of files, grids or named data sets.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from pandas.tseries.offsets import Day, Tick

from data.calendar import CalendarError, calendar_channels

Task = Literal["forecast", "classify", "regress"]
Freq = str | int | float

ID = "unique_id"
TIME = "ds"
TARGETS: dict[str, str] = {"forecast": "y", "classify": "label", "regress": "y"}

# Models compute in float32 and take what is larger for missing (`models.contract`): said here, not hidden there.
LARGEST = 1e15

# A stream's clock keeps cycles as float64 (`forecasting.stream_clock`), which holds no larger integers one by one:
# epoch times in nanoseconds would be rounded, and so would the times of their forecasts.
LATEST_CYCLE = 2**53

# Below this share of equal steps the "most common" spacing is chance, and the grid would be mostly holes.
REGULAR_SHARE = 0.5
WHOLE_NUMBER = re.compile(r"[+-]?\d+(\.0)?")
WEEKDAYS = ("MON", "TUE", "WED", "THU", "FRI", "SAT", "SUN")
MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")


class FrameError(ValueError):
    """A table that is not a frame, or a source that gives none.

    The message names the source, the series, the row, what was found, what was expected and what to do.
    """


@dataclass(frozen=True)
class Channel:
    """One measured quantity; `low` and `high` are its physical limits, both allowed values, in `unit`."""

    name: str
    unit: str  # "V", "degC"; "" where the source does not state it
    low: float = -math.inf
    high: float = math.inf

    def __post_init__(self) -> None:
        if not self.low < self.high:  # NaN is never less, so it fails too
            raise FrameError(f"channel {self.name}: low must be less than high, found {self.low:g} and {self.high:g}.")

    def to_json(self) -> dict[str, Any]:
        """The channel as a dict for JSON, which has no infinity: an open limit becomes None."""
        return {
            "name": self.name,
            "unit": self.unit,
            "low": self.low if math.isfinite(self.low) else None,
            "high": self.high if math.isfinite(self.high) else None,
        }

    @staticmethod
    def from_json(fields: Mapping[str, Any]) -> Channel:
        """The channel that `to_json` wrote.

        Raises:
            FrameError: a field is missing, or a limit is no number.
        """
        try:
            low, high = fields.get("low"), fields.get("high")
            return Channel(
                name=str(fields["name"]),
                unit=str(fields["unit"]),
                low=-math.inf if low is None else float(low),
                high=math.inf if high is None else float(high),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise FrameError(
                f"channel: expected the fields name, unit, low and high, found {dict(fields)} ({error!r})."
            ) from error


@dataclass(frozen=True)
class Splits:
    """Which part of a data set trains, validates and tests. Fields that do not apply are None.

    By time: the last `ds` (inclusive) of each part, rows after `test_until` are not used.
    Competition style: the last `test_size` rows of every series are the test.
    By entity: a whole series is in one part. `group` tells whom a series belongs to (a person, a cell, a machine),
    so that a split can be made without the same one on both sides.
    """

    train_until: Any = None
    validation_until: Any = None
    test_until: Any = None
    test_size: int | None = None  # rows of each series
    entity: Mapping[str, str] | None = None  # unique_id -> "train" | "validation" | "test"
    group: Mapping[str, str] | None = None  # unique_id -> group


@dataclass(frozen=True)
class Dataset:
    """A checked frame and what it is for.

    forecast: `channels[0]` is the target, named `y` like its column; the others are past covariates.
    classify: the target is the column `label` (str, None where unknown); the channels are the inputs.
    regress: the target is the column `y` (per row, or the same in all rows of a series); the channels are the inputs.
    """

    name: str
    frame: pd.DataFrame  # sorted by unique_id and ds
    task: Task
    channels: tuple[Channel, ...]
    freq: Freq | None  # pandas alias, integer step, seconds; None: rows in order, without a grid
    season: int  # steps; 1 for none
    horizon: int  # steps, what is usually forecast
    splits: Splits
    target: str  # a column of the frame
    notes: tuple[str, ...] = ()  # what was mended, one sentence each
    spare: tuple[Channel, ...] = ()  # further columns of the frame, channels only when asked for
    calendar: tuple[str, ...] = ()  # features of `ds` (see `calendar`): of a forecast, inputs that are known ahead

    def __post_init__(self) -> None:
        wanted = [ID, TIME, self.target, *(c.name for c in self.channels)]
        missing = [name for name in wanted if name not in self.frame]
        if missing:
            raise FrameError(f"{self.name}: no column for {missing}; found {list(self.frame.columns)}.")
        if self.target != TARGETS[self.task]:
            raise FrameError(f"{self.name}: the target of {self.task} is {TARGETS[self.task]}, not {self.target}.")
        if self.calendar and self.task != "forecast":
            raise FrameError(f"{self.name}: calendar features are for forecasts, not to {self.task}; leave them out.")
        try:
            names = [channel.name for channel in self.inputs]
        except CalendarError as error:
            raise FrameError(f"{self.name}: {error}") from error
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise FrameError(f"{self.name}: {twice[0]} is a channel and a calendar feature; rename the column.")

    @property
    def inputs(self) -> tuple[Channel, ...]:
        """What enters a model: the channels, and behind them those that are computed from the calendar."""
        return (*self.channels, *(Channel(name, "", -1.0, 1.0) for name in calendar_channels(self.calendar)))


def check_frame(
    frame: pd.DataFrame,
    *,
    source: str,
    task: Task,
    channels: Sequence[Channel] | None = None,
    target_required: bool = True,
    leave_out_empty: bool = False,
    named: Mapping[str, str] | None = None,
    where: Callable[[int], str] | None = None,
    freq: Freq | None = None,
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Return the frame sorted and typed, or raise FrameError with what is wrong with it. The input is not changed.

    Args:
        frame: columns `unique_id`, `ds`, the target of the task and the channels, in any order.
        source: the file or data set that messages name.
        task: decides the target: `y` for forecast and regress, `label` for classify.
        channels: those to keep, in this order, with their limits; None keeps every other column, without limits.
            For a forecast the first one is the target `y`.
        target_required: False where labels or lives are still to be predicted; an absent column is then filled with
            missing values.
        leave_out_empty: whether a series without any value is left out with a note, where others have one, and not
            refused with all of them.
        named: what the source itself calls a column, where that differs, for messages.
        where: says where a row (0-based) lies in the source; default "row 1" for the first.
        freq: the step, where it is known: midnights in a time zone are dates, but for those of a shorter step.

    Returns:
        frame: columns [unique_id, ds, target, channels...], sorted by (unique_id, ds), RangeIndex; unique_id str;
            ds datetime64[ns] (UTC, without zone), int64 or float64 seconds; values float64, NaN where missing.
        notes: one sentence for each thing that was mended.

    Raises:
        FrameError: a missing column, wrong type, duplicate key, mixed time zones, an infinite value, a value outside
            its channel's limits, a series without any value, no rows, a missing key or a missing target.
    """
    check = _Check(source, named or {}, where or (lambda row: f"row {row + 1}"), not _is_within_a_day(freq))
    if task not in TARGETS:
        raise FrameError(f"{source}: no task {task!r}; the tasks are {', '.join(TARGETS)}.")
    target = TARGETS[task]
    inputs = _input_names(frame, task, target, channels)
    absent_target = target not in frame and not target_required and task != "forecast"
    check.columns(frame, [ID, TIME, *([] if absent_target else [target]), *inputs], target)
    if len(frame) == 0:
        raise FrameError(f"{source}: no rows under the header. A frame needs at least one observation.")

    notes: list[str] = []
    ids = check.ids(frame[ID])
    times, note = check.times(frame[TIME])
    if note:
        notes.append(note)

    columns: dict[str, np.ndarray] = {}
    if absent_target:
        columns[target] = np.full(len(frame), None if task == "classify" else np.nan)
    elif task == "classify":
        columns[target] = _labels(frame[target])
    else:
        columns[target] = check.numbers(frame[target], ids, times)
    for name in inputs:
        if name != target:
            columns[name] = check.numbers(frame[name], ids, times)
    for channel in channels or ():
        check.limits(channel, columns[channel.name], ids, times)

    codes, uniques = pd.factorize(ids, sort=True)
    order = np.lexsort((times, codes))
    check.duplicates(ids, times, codes, order)
    # Series may come in any order; that time runs backwards inside one of them is worth a word.
    moved = int((order != np.argsort(codes, kind="stable")).sum())
    if moved:
        notes.append(f"{source}: {moved} rows were out of order and have been sorted by time.")

    empty, said = check.without_value(task, columns, inputs, target, codes, uniques)
    if said and (empty.all() or not leave_out_empty):
        raise FrameError(f"{said} Leave the series out.")
    if target_required and not absent_target:
        check.some_target(task, columns[target], codes, uniques, target)
    result = pd.DataFrame({ID: ids, TIME: times, **columns}, copy=False)
    if (order[1:] < order[:-1]).any():
        result = result.iloc[order].reset_index(drop=True)
    if said:
        notes.append(f"{said} Left out.")
        result = result[~result[ID].isin(uniques[empty])].reset_index(drop=True)
    return result, tuple(notes)


def _input_names(frame: pd.DataFrame, task: Task, target: str, channels: Sequence[Channel] | None) -> list[str]:
    if channels is None:
        others = [str(name) for name in frame.columns if name not in (ID, TIME, target)]
        return [target, *others] if task == "forecast" else others
    names = [channel.name for channel in channels]
    if task == "forecast" and (not names or names[0] != target):
        raise FrameError(f"the first channel of a forecast is its target {target}, found {names}.")
    if task != "forecast" and target in names:
        raise FrameError(f"the target {target} of {task} cannot be an input channel too, found {names}.")
    if len(set(names)) < len(names):
        raise FrameError(f"two channels have the same name: {names}.")
    return names


def _labels(column: pd.Series) -> np.ndarray:
    """Labels as str without white space around them, None where missing; a class read or written as 3.0 because others
    were missing is "3" again."""
    labels = column.astype(str).str.strip()
    known = column.notna() & (labels != "")
    # Of the distinct texts, for a CSV holds them as texts: beside a file without missing ones, "3.0" were a class more.
    if all(WHOLE_NUMBER.fullmatch(label) for label in labels[known].unique()):
        labels = labels.str.removesuffix(".0")
    texts = labels.to_numpy(dtype=object)
    texts[~known.to_numpy()] = None
    return texts


@dataclass(frozen=True)
class _Check:
    """The single checks of `check_frame`, with what their messages share."""

    source: str
    named: Mapping[str, str]
    where: Callable[[int], str]
    dates: bool  # whether midnights in a time zone are dates

    def name(self, column: str) -> str:
        return self.named.get(column, column)

    def columns(self, frame: pd.DataFrame, wanted: Sequence[str], target: str) -> None:
        missing = [self.name(name) for name in dict.fromkeys(wanted) if name not in frame]
        if missing:
            options = {ID: "--id", TIME: "--time", target: "--target"}
            hints = [options.get(name, "--covariates") for name in dict.fromkeys(wanted) if name not in frame]
            # Found columns are given the source's own names again, or the list would not match the file.
            found = [self.name(str(name)) for name in frame.columns]
            raise FrameError(
                f"{self.source}: no column {', '.join(missing)}; found {', '.join(found) or 'none'}. "
                f"Name the right one with {', '.join(dict.fromkeys(hints))}."
            )
        twice = frame.columns[frame.columns.duplicated()]
        if len(twice):
            raise FrameError(f"{self.source}: column {twice[0]} occurs more than once. Rename one of them.")

    def given(self, column: pd.Series, name: str, need: str) -> None:
        """Raise FrameError where a row has no value in a column that it cannot do without."""
        missing = (column.isna() | (column.astype(object) == "")).to_numpy()
        if missing.any():
            raise FrameError(
                f"{self.source}: {self.name(name)} is missing in {missing.sum()} of {len(column)} rows, "
                f"first in {self.where(int(missing.argmax()))}. {need}"
            )

    def ids(self, column: pd.Series) -> np.ndarray:
        self.given(column, ID, "Every row must name its series.")
        # Converting the few distinct names is much faster than converting every row.
        codes, uniques = pd.factorize(column)
        return np.array([str(value) for value in uniques], dtype=object)[codes]

    def times(self, column: pd.Series) -> tuple[np.ndarray, str | None]:
        """The times as datetime64[ns], int64 or float64, and what was converted."""
        self.given(column, TIME, "Every observation needs its time.")
        kind = column.dtype
        if isinstance(kind, pd.PeriodDtype):
            column = column.dt.to_timestamp()
        elif pd.api.types.is_bool_dtype(kind):
            raise FrameError(f"{self.source}: {self.name(TIME)} is true/false; expected a time stamp or a number.")
        if pd.api.types.is_datetime64_any_dtype(column.dtype):
            return self._stamps(column)
        if not pd.api.types.is_numeric_dtype(kind):
            numbers = pd.to_numeric(column, errors="coerce")
            if numbers.isna().any():
                return self._texts(column)
            column = numbers
        if pd.api.types.is_integer_dtype(column.dtype):
            beyond = ((column > LATEST_CYCLE) | (column < -LATEST_CYCLE)).to_numpy(dtype=bool)
            if beyond.any():
                row = int(beyond.argmax())
                raise FrameError(
                    f"{self.source}: {self.name(TIME)} is {column.iloc[row]} in {self.where(row)}, beyond "
                    f"{LATEST_CYCLE}: the clock of a stream would round it. Count cycles from a later one, or write "
                    "time stamps."
                )
            steps = column.to_numpy(dtype="int64")
            self._no_compact_dates(steps)
            return steps, None
        seconds = column.to_numpy(dtype="float64")
        if not np.isfinite(seconds).all():
            row = int((~np.isfinite(seconds)).argmax())
            raise FrameError(f"{self.source}: {self.name(TIME)} is infinite in {self.where(row)}. Expected seconds.")
        return seconds, None

    def _stamps(self, column: pd.Series) -> tuple[np.ndarray, str | None]:
        note = None
        zone = column.dt.tz
        if zone is not None:
            local = column.dt.tz_localize(None)
            # Of all data of a step of days or longer, whatever part of the year a file holds: in UTC the days would
            # be those before, and jump with summer time.
            if self.dates and str(zone) != "UTC" and (local == local.dt.normalize()).all():
                column = local
                note = f"{self.source}: {self.name(TIME)} holds midnights in {zone}; they are taken as dates."
            else:
                column = column.dt.tz_convert("UTC").dt.tz_localize(None)
                if str(zone) != "UTC":
                    note = f"{self.source}: {self.name(TIME)} was in {zone} and has been converted to UTC."
        try:
            # Not astype: numpy would wrap a year out of range around without a word.
            return column.dt.as_unit("ns").to_numpy().copy(), note
        except (pd.errors.OutOfBoundsDatetime, OverflowError) as error:
            raise FrameError(f"{self.source}: {self.name(TIME)} leaves the years 1678 to 2261 ({error}).") from error

    def _texts(self, column: pd.Series) -> tuple[np.ndarray, str | None]:
        text = column.astype(str)
        parsed = pd.to_datetime(text, format="ISO8601", utc=True, errors="coerce")
        bad = parsed.isna().to_numpy()
        if bad.any():
            row = int(bad.argmax())
            raise FrameError(
                f"{self.source}: {self.name(TIME)} is {text.iloc[row]!r} in {self.where(row)} "
                f"({bad.sum()} of {len(text)} rows like this); expected an ISO 8601 time such as 2024-01-31 or "
                "2024-01-31T12:00:00, an integer or a number of seconds. Rewrite the column."
            )
        zones = text.str.slice(10).str.extract(r"([Zz]|[+-]\d{2}(?::?\d{2})?)$", expand=False)
        aware = zones.notna().to_numpy()
        if not aware.any():
            return self._stamps(parsed.dt.tz_localize(None))
        if not aware.all():
            row, other = int(aware.argmin()), int(aware.argmax())
            raise FrameError(
                f"{self.source}: {self.name(TIME)} has no time zone in {self.where(row)} ({text.iloc[row]}) but one in "
                f"{self.where(other)} ({text.iloc[other]}): naive and aware times are mixed. Write all of them in UTC."
            )
        offsets = zones.str.replace(":", "").str.replace(r"^(?:[Zz]|[+-]00(?:00)?)$", "+0000", regex=True)
        offsets = offsets.str.ljust(5, "0")  # "+05" is "+0500"
        other_zone = (offsets != offsets.iloc[0]).to_numpy()
        if other_zone.any():
            row = int(other_zone.argmax())
            raise FrameError(
                f"{self.source}: {self.name(TIME)} mixes time zones: {text.iloc[0]} in {self.where(0)}, "
                f"{text.iloc[row]} in {self.where(row)}. Write all of them in UTC."
            )
        return self._stamps(parsed.dt.tz_convert(pd.Timestamp(text.iloc[0]).tz))

    def _no_compact_dates(self, steps: np.ndarray) -> None:
        # Read as integers, 20240131 and 20240201 would lie 70 steps apart without a word.
        if len(steps) < 2 or steps.min() < 19000101 or steps.max() > 21001231:
            return
        distinct = pd.Series(np.unique(steps)).astype(str)
        if len(distinct) > 1 and pd.to_datetime(distinct, format="%Y%m%d", errors="coerce").notna().all():
            raise FrameError(
                f"{self.source}: {self.name(TIME)} looks like dates written as integers ({steps[0]}). "
                "Write them as ISO 8601, such as 2024-01-31."
            )

    def numbers(self, column: pd.Series, ids: np.ndarray, times: np.ndarray) -> np.ndarray:
        """The column as float64, (rows,), finite or NaN."""
        name = self.name(str(column.name))
        if pd.api.types.is_datetime64_any_dtype(column.dtype):
            raise FrameError(f"{self.source}: {name} holds times; expected numbers. Take it out of the channels.")
        if pd.api.types.is_numeric_dtype(column.dtype) and not pd.api.types.is_complex_dtype(column.dtype):
            values = column.to_numpy(dtype="float64", na_value=np.nan)
        else:
            converted = pd.to_numeric(column.astype(object).where(column.astype(object) != ""), errors="coerce")
            values = converted.to_numpy(dtype="float64", na_value=np.nan)
            bad = np.isnan(values) & column.notna().to_numpy() & (column.astype(object) != "").to_numpy()
            if bad.any():
                row = int(bad.argmax())
                raise FrameError(
                    f"{self.source}: {name} is {column.iloc[row]!r} in {self.where(row)} (series {ids[row]}, "
                    f"{bad.sum()} of {len(bad)} rows like this); expected a number, or nothing where it is missing."
                )
        infinite = np.isinf(values)
        if infinite.any():
            row = int(infinite.argmax())
            raise FrameError(
                f"{self.source}: {name} is infinite in {infinite.sum()} of {len(infinite)} rows, first in "
                f"{self.where(row)} (series {ids[row]} at {show_time(times[row])}). Leave it empty where it is missing."
            )
        too_large = np.abs(values) > LARGEST
        if too_large.any():
            row = int(too_large.argmax())
            raise FrameError(
                f"{self.source}: {name} is {values[row]:g} in {self.where(row)} (series {ids[row]} at "
                f"{show_time(times[row])}); models take more than {LARGEST:g} for missing. Rescale the column, or "
                "leave it empty there."
            )
        return values

    def limits(self, channel: Channel, values: np.ndarray, ids: np.ndarray, times: np.ndarray) -> None:
        bad = (values < channel.low) | (values > channel.high)  # NaN is a gap, not an outlier
        if bad.any():
            row = int(bad.argmax())
            raise FrameError(
                f"{self.source}: {self.name(channel.name)} leaves [{channel.low:g}, {channel.high:g}] {channel.unit} "
                f"in {bad.sum()} of {len(bad)} rows, first in series {ids[row]} at {show_time(times[row])}, "
                f"{self.where(row)} (value {values[row]:g}). Check the unit or the channel's limits."
            )

    def duplicates(self, ids: np.ndarray, times: np.ndarray, codes: np.ndarray, order: np.ndarray) -> None:
        same = (codes[order][1:] == codes[order][:-1]) & (times[order][1:] == times[order][:-1])
        if same.any():
            place = int(same.argmax())
            first, second = sorted((int(order[place]), int(order[place + 1])))
            raise FrameError(
                f"{self.source}: series {ids[first]} has {same.sum()} repeated time(s), first "
                f"{show_time(times[first])} in {self.where(first)} and {self.where(second)}. "
                f"Keep one row for each {self.name(ID)} and {self.name(TIME)}."
            )

    def without_value(
        self,
        task: Task,
        columns: Mapping[str, np.ndarray],
        inputs: Sequence[str],
        target: str,
        codes: np.ndarray,
        uniques: np.ndarray,
    ) -> tuple[np.ndarray, str]:
        """Which series' target (forecast) or every channel (classify, regress) is always missing, and a sentence."""
        judged = [target] if task == "forecast" else list(inputs)
        if not judged:
            raise FrameError(f"{self.source}: no channels: {task} needs at least one numeric column beside {target}.")
        seen = np.zeros(len(codes), dtype=bool)
        for name in judged:
            seen |= ~np.isnan(columns[name])
        empty = np.bincount(codes[seen], minlength=len(uniques)) == 0
        if not empty.any():
            return empty, ""
        what = self.name(target) if task == "forecast" else "every channel"
        named = ", ".join(map(str, uniques[empty][:5])) + (" and others" if empty.sum() > 5 else "")
        of = f"{empty.sum()} of {len(uniques)} series"
        return empty, f"{self.source}: {what} is missing in all rows of {of}: {named}."

    def some_target(self, task: Task, values: np.ndarray, codes: np.ndarray, uniques: np.ndarray, target: str) -> None:
        known = ~pd.isna(values)
        if task == "classify" and not known.any():
            raise FrameError(f"{self.source}: {self.name(target)} is missing in all rows. Give at least one label.")
        if task == "regress":
            unknown = np.bincount(codes[known], minlength=len(uniques)) == 0
            if unknown.any():
                raise FrameError(
                    f"{self.source}: {self.name(target)} is missing in all rows of {unknown.sum()} of {len(uniques)} "
                    f"series, first {uniques[unknown.argmax()]}. Give its value in at least one row."
                )


def _is_within_a_day(freq: Freq | None) -> bool:
    """Whether a step is shorter than a day; one that is not known is not, for where all times are midnights it will be
    inferred to be a day or longer."""
    if not isinstance(freq, str):
        return False
    offset = pd.tseries.frequencies.to_offset(freq)
    return isinstance(offset, Tick) and offset.nanos < Day(1).nanos


def show_time(time: Any) -> str:
    """A time as messages show it: a day without its midnight, seconds to the nanosecond, so without noise."""
    if isinstance(time, np.datetime64):
        return str(pd.Timestamp(time)).removesuffix(" 00:00:00")
    return f"{round(time, 9):.15g}" if isinstance(time, float) else str(time)


def infer_freq(frame: pd.DataFrame, source: str) -> Freq:
    """The step of the grid, from the most common spacing inside the series; gaps do not disturb it.

    Args:
        frame: a checked frame: sorted by (unique_id, ds).
        source: what messages name.

    Returns:
        A pandas alias for time stamps ("D", "B", "h", "15min", "W-SUN", "MS", "QE"), the integer step for integers,
        seconds for floats.

    Raises:
        FrameError: no series has two rows, or no spacing is common enough to be the step.
    """
    times = frame[TIME].to_numpy()
    ids = frame[ID].to_numpy()
    steps = np.diff(times)[ids[1:] == ids[:-1]]
    if len(steps) == 0:
        raise FrameError(f"{source}: the step cannot be inferred, no series has two rows. Give it with --freq.")
    if times.dtype.kind == "f":
        first = np.flatnonzero(np.r_[True, ids[1:] != ids[:-1]])
        longest = (times[np.r_[first[1:], len(ids)] - 1] - times[first]).max()
        return _float_step(steps, longest, source)
    if times.dtype.kind != "M":
        return int(_most_common(steps, source, ""))
    return _alias(pd.DatetimeIndex(times), steps, source)


def _most_common(steps: np.ndarray, source: str, unit: str) -> Any:
    values, counts = np.unique(steps, return_counts=True)
    best = counts.argmax()
    if counts[best] < REGULAR_SHARE * len(steps):
        shown = pd.Timedelta(values[best]) if steps.dtype.kind == "m" else values[best]
        raise FrameError(
            f"{source}: the step cannot be inferred: the most common one, {shown}{unit}, makes up only "
            f"{100 * counts[best] / len(steps):.0f} % of {len(steps)}. Give it with --freq, or resample the series."
        )
    return values[best]


def _float_step(steps: np.ndarray, longest: float, source: str) -> float:
    # Device clocks jitter, so equal steps are rare and the median stands for them. Six digits remove the noise of
    # binary fractions.
    step = float(f"{np.median(steps):.6g}")
    near = np.abs(steps - step) < 0.5 * step
    if near.mean() < REGULAR_SHARE:
        raise FrameError(
            f"{source}: the step cannot be inferred: only {100 * near.mean():.0f} % of {len(steps)} steps lie within "
            f"half of the median one, {step:g} s. Give it with --freq, or resample the series."
        )
    # Within hours 1/60 s of six digits is a step off: there the mean is taken, with as many digits as it needs.
    mean, digits = float(steps[near].mean()), 6
    while longest / step * abs(step - mean) > 0.25 * step and digits < 17:
        step, digits = float(f"{mean:.{digits}g}"), digits + 1
    return step


def _alias(times: pd.DatetimeIndex, steps: np.ndarray, source: str) -> str:
    day = np.timedelta64(1, "D")
    if np.median(steps) >= 28 * day:
        alias = _month_alias(times, steps)
        if alias:
            return alias
    step = _most_common(steps, source, "")
    if step == day and not (times.dayofweek >= 5).any() and (steps == 3 * day).any():
        return "B"  # a Friday is followed by a Monday, and no weekend is ever seen
    if step % (7 * day) == np.timedelta64(0):
        weeks = int(step // (7 * day))
        weekday = WEEKDAYS[int(np.bincount(times.dayofweek).argmax())]
        return f"{weeks if weeks > 1 else ''}W-{weekday}"
    return pd.tseries.frequencies.to_offset(pd.Timedelta(step)).freqstr


def _month_alias(times: pd.DatetimeIndex, steps: np.ndarray) -> str | None:
    """ "MS", "QE-OCT", "2ME"... where all times begin or end a month, else None."""
    if times.is_month_start.all():
        edge = "S"
    elif times.is_month_end.all():
        edge = "E"
    else:
        return None
    values, counts = np.unique(np.round(steps / np.timedelta64(1, "D") / 30.44).astype(int), return_counts=True)
    months = int(values[counts.argmax()])
    month = int(np.bincount(times.month).argmax())
    if months == 12:
        # A year's start is named by its month and defaults to January, its end to December.
        return f"Y{edge}" if month == (1 if edge == "S" else 12) else f"Y{edge}-{MONTHS[month - 1]}"
    if months == 3:
        phase = (month - 1) % 3 if edge == "S" else month % 3
        if phase == 0:
            return f"Q{edge}"
        return f"Q{edge}-{MONTHS[phase] if edge == 'S' else MONTHS[8 + phase]}"
    return f"{months if months > 1 else ''}M{edge}"
