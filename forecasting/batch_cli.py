"""The commands `mnemo batch` and `mnemo schedule`: parse, call, print; as `forecasting.cli` does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from forecasting.cli_options import Json, StoreUrl

if TYPE_CHECKING:
    from data.store import Run, Store
    from forecasting.plan import Plan

batch = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Run a plan of forecasts, whole or not at all; see what ran.",
    epilog="Example: mnemo batch run nightly.toml",
)

PlanFile = Annotated[Path, typer.Argument(metavar="PLAN.toml", help="What to forecast: see `mnemo batch run --help`.")]
EXAMPLE = """Example of a plan:

\b
[[job]]
name = "shops"
data = "shops/*.csv"
bundle = "bundles/shops"
out = "forecasts/shops.parquet"

\b
[[job]]
name = "reference"
data = "shops/*.csv"
model = "sktime:ThetaForecaster"
horizon = 14

Paths are relative to the plan. Above its jobs a plan takes name, at, every, and keep: the forecasts of how many runs. A
job takes id, time, target and wide as `mnemo forecast` does; with a bundle adapt, and carry (false: step the whole
history anew); with a model horizon, season, freq, set, and learn: what a classifier learns from.
"""


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _open(url: str | None) -> Store:
    from data.store import Store

    return Store(url)


@batch.command("run", epilog=EXAMPLE)
def run(plan: PlanFile, store: StoreUrl = None, as_json: Json = False) -> None:
    """Run every job of a plan now. Nobody sees a run's forecasts before its end, and then all of them."""
    from forecasting.batch import run_plan
    from forecasting.plan import read_plan

    read = read_plan(plan)
    _end(run_plan(read, _open(store), _say), as_json)


@batch.command("resume", epilog="Example: mnemo batch resume nightly-20260301T023000-1a2b3c")
def resume(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Its name: `mnemo batch status` lists them.")],
    store: StoreUrl = None,
    as_json: Json = False,
) -> None:
    """Do what a run that was cut off did not do, or what failed in it; what it did stays."""
    from forecasting.batch import resume as go_on

    _end(go_on(run, _open(store), _say), as_json)


@batch.command("status", epilog="Example: mnemo batch status")
def status(
    run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="One run, job by job; the last runs if left out.")]
    = None,
    plan: Annotated[str | None, typer.Option(metavar="NAME", help="Runs of this plan alone.")] = None,
    last: Annotated[int, typer.Option(min=1, help="How many runs.")] = 10,
    store: StoreUrl = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """What ran, and what became of it."""
    from forecasting.cli import print_table

    opened = _open(store)
    if run is not None:
        _show(opened.run(run), as_json)
        return
    runs = opened.runs(plan, last)
    if as_json:
        typer.echo(json.dumps([as_table(each) for each in runs], indent=2))
        return
    if not runs:
        typer.echo(f"{opened.name}: no runs yet.")
        return
    print_table(
        [
            {
                "run": each.id,
                "status": each.status,
                "started": each.started[:19],
                "ended": (each.ended or "")[:19],
                "jobs": f"{sum(job.status == 'done' for job in each.jobs)} of {len(each.jobs)}",
                "series": sum(job.summary.get("series", 0) for job in each.jobs),
                "failed": sum(len(job.summary.get("failures", {})) for job in each.jobs),
            }
            for each in runs
        ],
        ["run", "status", "started", "ended", "jobs", "series", "failed"],
    )


def schedule(
    plans: Annotated[list[Path], typer.Argument(metavar="PLAN.toml ...", help="Plans that say at or every.")],
    store: StoreUrl = None,
) -> None:
    """Run plans at their times, in the foreground, until Ctrl-C; a run that fails is said and does not end it."""
    from data.store import StoreError
    from forecasting.batch import run_plan
    from forecasting.plan import read_plan
    from forecasting.results import ResultError
    from forecasting.schedule import check_times, keep_to

    read = [read_plan(plan) for plan in plans]
    check_times(read)
    opened = _open(store)

    def carry_out(plan: Plan) -> None:
        try:
            _say(f"{plan.name}: {run_plan(plan, opened, _say).status}")
        except (StoreError, ResultError) as error:
            _say(f"error: {plan.name}: {error}")

    keep_to(read, carry_out, say=_say)


def _end(run: Run, as_json: bool) -> None:
    """Show a run; exit with 1 where some of it failed."""
    _show(run, as_json)
    failed = [job.name for job in run.jobs if job.status != "done"]
    if failed:
        _say(f"{', '.join(failed)} failed; once that is mended: mnemo batch resume {run.id}")
    if failed or any(job.summary.get("failures") for job in run.jobs):
        raise typer.Exit(1)


def _show(run: Run, as_json: bool) -> None:
    from forecasting.cli import print_table

    if as_json:
        typer.echo(json.dumps(as_table(run), indent=2))
        return
    typer.echo(f"{run.id}: {run.status}, {run.started[:19]} to {(run.ended or '')[:19] or 'now'} (UTC)")
    print_table(
        [
            {
                "job": job.name,
                "status": job.status,
                "model": job.summary.get("model"),
                "series": job.summary.get("series"),
                "rows": job.summary.get("rows"),
                "failed": len(job.summary.get("failures", {})),
                "substitutes": len(job.summary.get("substitutes", {})),
                "seconds": job.summary.get("seconds"),
                "reason": job.summary.get("reason"),
            }
            for job in run.jobs
        ],
        ["job", "status", "model", "series", "rows", "failed", "substitutes", "seconds", "reason"],
    )


def as_table(run: Run) -> dict[str, Any]:
    """For programs."""
    jobs = [
        {"job": job.name, "status": job.status, "published": job.published}
        | {key: value for key, value in job.summary.items() if key != "form"}
        for job in run.jobs
    ]
    return {
        "run": run.id, "plan": run.plan, "status": run.status, "started": run.started, "ended": run.ended,
        "host": run.host, "jobs": jobs,
    }  # fmt: skip
