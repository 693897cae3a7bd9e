"""The command `mnemo store`: parse, call, print; as `forecasting.cli` does."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from forecasting.cli_options import (
    Covariates,
    Freq,
    IdColumn,
    Json,
    StoreUrl,
    TargetColumn,
    TaskKind,
    TimeColumn,
    Wide,
)

store = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Keep observations as they become known, corrections beside what they correct.",
    epilog="Example: mnemo store ingest 'shops/*.csv'; then --data store: is what it knows.",
)

Moment = Annotated[
    str, typer.Argument(metavar="TIME", help="now, or as 2026-03-01T02:30; UTC where it names no time zone.")
]


@store.command("init", epilog="Example: mnemo store init --store sqlite:///observations.db")
def init(url: StoreUrl = None) -> None:
    """Make the store, where there is none; say where it is. Every other command does so by itself."""
    from data.store import Store

    opened = Store(url)
    typer.echo(f"{opened.name}: is there.")
    opened.close()


@store.command("ingest", epilog="Example: mnemo store ingest sales.csv --known-at 2026-03-01T02:30")
def ingest(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="As --data of other commands.")],
    known_at: Annotated[
        str, typer.Option(metavar="TIME", help="When it became known: a time as of `as-of`, until now.")
    ] = "now",
    task: TaskKind = None,
    id: IdColumn = "unique_id",
    time: TimeColumn = "ds",
    target: TargetColumn = None,
    covariates: Covariates = None,
    wide: Wide = False,
    freq: Freq = None,
    url: StoreUrl = None,
    as_json: Json = False,
) -> None:
    """Keep what is new in SOURCE or differs from what was known, all of it or nothing; the rest is left as it is.

    Every numeric column beside the target is kept, or those of --covariates.
    """
    from data.catalog import path_of
    from data.observations import record
    from data.readers import EVERY
    from data.store import Store
    from forecasting.cli import load_source

    columns = ",".join(EVERY) if covariates is None and path_of(source) is not None and not wide else covariates
    at = None if known_at == "now" else _moment(known_at)
    dataset = load_source(
        source, task=task, id=id, time=time, target=target, covariates=columns, wide=wide, freq=freq, store=url,
        target_required=False,
    )  # fmt: skip
    opened = Store(url)
    done = record(opened, dataset.frame, at)
    count = dataset.frame["unique_id"].nunique()
    if as_json:
        typer.echo(json.dumps({"store": opened.name, "series": count} | vars(done)))
    else:
        typer.echo(
            f"{opened.name}: {count} series; {done.new:,} observations are new, {done.corrected:,} corrected, "
            f"{done.unchanged:,} were known."
        )
    opened.close()


@store.command("as-of", epilog="Example: mnemo store as-of 2026-03-01T02:30 --out known.parquet")
def as_of(
    at: Moment,
    series: Annotated[str, typer.Option(metavar="PATTERN", help="Only series of such names: shop-*.")] = "*",
    out: Annotated[str, typer.Option(metavar="FILE|-", help="A .parquet or .csv file, or - for CSV on stdout.")] = "-",
    url: StoreUrl = None,
    as_json: Json = False,
) -> None:
    """What was known at a time, as a long table that every other command takes as --data."""
    from data.observations import as_of as known
    from data.store import Store
    from forecasting.results import ResultError, write_answer

    place = None if out == "-" else Path(out)
    if place is not None and (place.suffix not in (".parquet", ".csv") or place.is_dir()):
        raise ResultError(f"{out}: --out takes a .parquet or .csv file, or - for CSV on stdout.")
    opened = Store(url)
    table = known(opened, None if at == "now" else _moment(at), series)
    opened.close()
    if as_json:
        typer.echo(table.to_json(orient="records", date_format="iso", double_precision=15))
    elif place is None:
        table.to_csv(sys.stdout, index=False)
    if place is not None:
        write_answer(table, place)
        typer.echo(f"{place}: {table['unique_id'].nunique()} series, {len(table):,} rows", err=True)


@store.command("vacuum", epilog="Example: mnemo store vacuum --before 2025-01-01")
def vacuum(
    before: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Also drop what had been corrected until then; what was known earlier can no longer be asked for.",
        ),
    ] = None,
    url: StoreUrl = None,
    as_json: Json = False,
) -> None:
    """Drop what interrupted runs left behind and no one can go on with, and give the room back."""
    from data.observations import forget
    from data.store import Store

    moment = None if before is None else datetime.now(UTC) if before == "now" else _moment(before)
    opened = Store(url)
    corrected = 0 if moment is None else forget(opened, moment)
    rows = opened.vacuum()
    if as_json:
        typer.echo(json.dumps({"store": opened.name, "corrected": corrected, "of_runs": rows}))
    else:
        typer.echo(f"{opened.name}: dropped {corrected:,} corrected observations and {rows:,} rows of runs.")
    opened.close()


def _moment(text: str) -> datetime:
    from data.store import StoreError

    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise StoreError(
            f"{text}: is no time; expected now, or as 2026-03-01T02:30, in UTC or with its zone."
        ) from error
    return found if found.tzinfo else found.replace(tzinfo=UTC)
