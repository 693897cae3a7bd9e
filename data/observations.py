"""Observations as they became known, in the store: a forecast that was made can be made again, of what was known then.

A row is what was known of a series at a time `ds` from `known_at` on: its values, as JSON. A correction is a new row
with a later `known_at`, which stands in place of the whole older one; nothing is overwritten, and what is known already
as it is makes no row. What was known at a time is, of each series and `ds`, the newest row until then. Of each series
the store keeps as of when it was last heard of: what became known before can be added later, but corrects nothing, for
it would hide a row that was confirmed since.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import sqlalchemy as sql

from data.frame import ID, TARGETS, TIME, Dataset, FrameError, show_time
from data.readers import read_table
from data.store import FORGOTTEN, HEARD, INGESTING, OBSERVATIONS, Store, StoreError, as_text, from_text, text_of

MANY = 500  # series, or times, at a time
KINDS = {"M": "dates", "i": "cycles", "f": "seconds"}


@dataclass(frozen=True)
class Recorded:
    """How many observations were new, corrected an older row, or were known already as they are."""

    new: int
    corrected: int
    unchanged: int


def record(store: Store, frame: pd.DataFrame, known_at: datetime | None = None) -> Recorded:
    """Keep a checked frame, all columns of it, as what became known at a time; all of it or nothing.

    Args:
        known_at: with a time zone; now where it is left out.

    Raises:
        StoreError: that time is to come, a series was heard of since and this would correct it, or the store cannot be
            written.
        FrameError: the times of a series are of another kind than those that are known of it.
    """
    _past(known_at)
    kind = frame[TIME].to_numpy().dtype.kind
    contents = _contents(frame.drop(columns=[ID, TIME]))
    rows = pd.DataFrame({ID: frame[ID].to_numpy(), TIME: as_text(frame[TIME]), "content": contents})
    counts = {"new": 0, "corrected": 0, "unchanged": 0}
    with store.writing() as connection:
        store.one_at_a_time(connection, INGESTING)
        at = text_of(_past(known_at))  # after what another has just ingested
        for part in _parts(rows):
            names = part[ID].unique().tolist()
            _refuse_other_kinds(connection, names, kind)
            of_these = HEARD.c[ID].in_(names)
            last = connection.execute(sql.select(HEARD.c[ID], HEARD.c.known_at).where(of_these))
            heard = {row[0]: row[1] for row in last}
            times = part[TIME].unique().tolist()
            newest = _known(connection, at, names, times if len(times) <= MANY else ())  # all, rather than so many
            known = {(row[0], row[1]): row[3] for row in newest}
            fresh = []
            for series, time, content in part.itertuples(index=False):
                before = known.get((series, time))
                counts["new" if before is None else "unchanged" if before == content else "corrected"] += 1
                if before is not None and before != content and at <= heard[series]:
                    raise StoreError(
                        f"series {series}: was heard of as of {heard[series]}; what became known by {at} can be added, "
                        f"but not correct it, as at {time}. Ingest versions in the order in which they became known."
                    )
                if before != content:
                    fresh.append({ID: series, TIME: time, "known_at": at, "kind": kind, "content": content})
            if fresh:
                connection.execute(OBSERVATIONS.insert(), fresh)
            connection.execute(HEARD.delete().where(of_these))
            latest = [{ID: name, "known_at": max(at, heard.get(name, at))} for name in names]
            connection.execute(HEARD.insert(), latest)
    return Recorded(**counts)


def as_of(store: Store, at: datetime | None = None, series: str = "*") -> pd.DataFrame:
    """What was known at a time, now by default, of the series whose names match a pattern.

    Returns:
        unique_id, ds, the target and a column for every other value that any row has, NaN or None where one has it
        not; sorted by series and time.

    Raises:
        StoreError: what was known then has been forgotten (see `forget`).
        FrameError: nothing of such series was known, or the times of some are dates and of others numbers.
    """
    moment = _past(at)
    with store.asking() as connection:
        forgotten = connection.execute(sql.select(sql.func.max(FORGOTTEN.c.before))).scalar()
        if forgotten is not None and text_of(moment) < forgotten:
            raise StoreError(
                f"{store.name}: what was known at {text_of(moment)} was forgotten by a vacuum; ask for {forgotten} or "
                "later."
            )
        names = connection.execute(sql.select(OBSERVATIONS.c[ID]).distinct().order_by(OBSERVATIONS.c[ID])).scalars()
        every = names.all()
        chosen = [name for name in every if fnmatchcase(name, series)]
        firsts: dict[str, str] = {}  # a series of each kind of time
        parts = []
        for first in range(0, len(chosen), MANY):
            rows = _known(connection, text_of(moment), chosen[first : first + MANY])
            firsts = {row[2]: row[0] for row in reversed(rows)} | firsts
            if rows:
                parts.append(_table(rows))
    if not parts:
        there = f"it holds {len(every)} series, such as {', '.join(every[:3])}" if every else "it holds none"
        when = "" if at is None else f" at {text_of(moment)}"
        raise FrameError(
            f"store:{series}: nothing is known of such series{when} in {store.name}; {there}. `mnemo store ingest` "
            "puts observations there."
        )
    if len(firsts) > 1:
        said = " and ".join(f"{KINDS[kind]} for {name}" for kind, name in sorted(firsts.items()))
        raise FrameError(f"store:{series}: the times are {said}. Choose series with a pattern, such as store:shop-*.")
    found = pd.concat(parts, ignore_index=True)
    values = found.columns.difference([ID, TIME])
    texts = found[values].select_dtypes(exclude="number").columns
    found[texts] = found[texts].astype(object).where(found[texts].notna(), None)
    found[TIME] = from_text(found[TIME].tolist(), next(iter(firsts)))
    targets = [name for name in dict.fromkeys(TARGETS.values()) if name in values]
    found = found[[ID, TIME, *targets, *(name for name in sorted(values) if name not in targets)]]
    return found.sort_values([ID, TIME], ignore_index=True)


def load_known(source: str, series: str, url: str | None, **options: Any) -> Dataset:
    """What is known now, as a data set; options: those of `readers.read_table`.

    Raises:
        FrameError: the store cannot be read, or as `as_of` and `read_table` say.
    """
    try:
        store = Store(url)
        try:
            table = as_of(store, series=series)
        finally:
            store.close()
    except StoreError as error:
        raise FrameError(f"{source}: {error}") from error
    names, times = table[ID].to_numpy(), table[TIME].to_numpy()

    def where(row: int) -> str:
        return f"the observation of {names[row]} at {show_time(times[row])}"

    return read_table(table, source, where, **options)


def forget(store: Store, before: datetime) -> int:
    """Drop what had been corrected before a time: what was known earlier than that can no longer be asked for.

    Returns:
        How many rows went.

    Raises:
        StoreError: that time is to come, or the store cannot be written.
    """
    at, later = text_of(_past(before)), OBSERVATIONS.alias()
    same = sql.and_(later.c[ID] == OBSERVATIONS.c[ID], later.c[TIME] == OBSERVATIONS.c[TIME])
    newest = sql.select(sql.func.max(later.c.known_at)).where(same, later.c.known_at <= at).scalar_subquery()
    with store.writing() as connection:
        gone = connection.execute(OBSERVATIONS.delete().where(OBSERVATIONS.c.known_at < newest)).rowcount
        known = connection.execute(sql.select(sql.func.max(FORGOTTEN.c.before))).scalar()
        connection.execute(FORGOTTEN.delete())
        connection.execute(FORGOTTEN.insert().values(before=max(at, known or at)))
    return gone


def _past(at: datetime | None) -> datetime:
    now = datetime.now(UTC)
    moment = now if at is None else at.astimezone(UTC)
    if moment > now:
        raise StoreError(f"{text_of(moment)}: is to come; give a time until now, {text_of(now)}.")
    return moment


def _table(rows: Sequence[Any]) -> pd.DataFrame:
    """Of rows as of `_known`; times as text."""
    values = pd.DataFrame(json.loads(f"[{','.join(row[3] for row in rows)}]"))
    values.insert(0, ID, [row[0] for row in rows])
    values.insert(1, TIME, [row[1] for row in rows])
    return values


def _known(connection: sql.Connection, at: str, names: Sequence[str], times: Sequence[str] = ()) -> list[Any]:
    """The newest row until then of each series and time, of some times alone where they are given: series, time, kind,
    content.
    """
    row = OBSERVATIONS.c
    until = sql.select(row[ID], row[TIME], row.kind, row.content).where(row.known_at <= at, row[ID].in_(names))
    if times:
        until = until.where(row[TIME].in_(times))
    # In the order of the key: half the time of asking the database for the newest.
    every = connection.execute(until.order_by(row[ID], row[TIME], row.known_at)).all()
    return list({(found[0], found[1]): found for found in every}.values())


def _refuse_other_kinds(connection: sql.Connection, names: Sequence[str], kind: str) -> None:
    other = sql.select(OBSERVATIONS.c[ID], OBSERVATIONS.c.kind).where(
        OBSERVATIONS.c[ID].in_(names), OBSERVATIONS.c.kind != kind
    )
    if row := connection.execute(other.limit(1)).first():
        raise FrameError(
            f"series {row[0]}: the store knows its times as {KINDS[row[1]]}, here they are {KINDS[kind]}. Name the "
            "series differently, or write its times as before."
        )


def _contents(values: pd.DataFrame) -> list[str]:
    """Each row as JSON without what is missing, the same text for the same values."""
    columns = sorted(map(str, values.columns))
    parts = [values[column].astype(object).where(values[column].notna(), None).tolist() for column in columns]
    return [
        json.dumps({column: value for column, value in zip(columns, row, strict=True) if value is not None})
        for row in zip(*parts, strict=True)
    ]


def _parts(rows: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """The rows of MANY series at a time; a frame is sorted by series."""
    series = rows[ID].to_numpy()
    begins = np.flatnonzero(np.r_[True, series[1:] != series[:-1]])
    borders = [*begins[::MANY].tolist(), len(rows)]
    for first, last in pairwise(borders):
        yield rows.iloc[first:last]
