"""Options that commands in several files take."""

from __future__ import annotations

from typing import Annotated

import typer

TaskKind = Annotated[
    str | None,
    typer.Option("--task", metavar="forecast|classify|regress", help="What is asked; the data's own if left out."),
]
Covariates = Annotated[str | None, typer.Option(help="Columns that enter beside the target: a,b,c.")]
IdColumn = Annotated[str, typer.Option("--id", help="Column that names the series.")]
TimeColumn = Annotated[str, typer.Option("--time", help="Column of times, cycles or seconds.")]
TargetColumn = Annotated[str | None, typer.Option("--target", help="Column to forecast, classify or regress.")]
Wide = Annotated[bool, typer.Option("--wide", help="One column a series instead of one row an observation.")]
Freq = Annotated[
    str | None,
    typer.Option(
        help="Step of the times: D, h, 15min and so on, or a number of cycles or seconds; inferred if left out."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
StoreUrl = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="URL",
        envvar="MNEMO_STORE",
        help="Where runs and observations are kept: sqlite:///FILE or postgresql+psycopg://HOST/NAME; a file of the "
        "user's if left out.",
    ),
]
