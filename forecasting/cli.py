"""The command `mnemo`: parse, call, print. Every heavy import happens inside the command that needs it.

Results go to stdout, progress and remarks to stderr. Exit codes: 0 done, 1 some of the work failed, 2 bad input.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from forecasting.batch_cli import batch, schedule
from forecasting.cli_options import Covariates, Freq, IdColumn, Json, StoreUrl, TargetColumn, TaskKind, TimeColumn, Wide
from forecasting.store_cli import store as store_app

if TYPE_CHECKING:
    import pandas as pd

    from data.frame import Channel, Dataset
    from forecasting.backtest import Report
    from forecasting.task import Task

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Forecast time series and sensor streams with models that remember.",
    epilog="Try first: mnemo demo",
)

app.add_typer(batch, name="batch")
app.add_typer(store_app, name="store")
app.command(name="schedule", epilog="Example: mnemo schedule nightly.toml")(schedule)

MOST = 10**9  # steps; more is a slip of the finger
LONGEST_SEASON = 10**6  # every series keeps one in its state

# One place for what several commands take.
Data = Annotated[
    str,
    typer.Option(
        "--data",
        metavar="SOURCE",
        help="A name from `mnemo datasets`, a file (.csv, .csv.gz, .parquet) or a glob; store: what the store knows.",
    ),
]
Horizon = Annotated[
    int | None, typer.Option(min=1, max=MOST, help="Steps ahead to forecast; the data's own if left out.")
]
Season = Annotated[
    int | None,
    typer.Option(min=1, max=LONGEST_SEASON, help="Steps of a season, 1 for none; the data's own if left out."),
]
Quantiles = Annotated[str, typer.Option(help="Levels of the prediction's quantiles, rising.")]
Future = Annotated[
    str | None,
    typer.Option(
        help="Covariates that are known a horizon ahead, such as holidays: d,e. Models that take none so have them as "
        "--covariates."
    ),
]
Calendar = Annotated[
    str | None,
    typer.Option(
        metavar="auto|a,b",
        help="Features of the time stamps that enter as covariates known ahead, such as hour,dayofweek; auto: those "
        "that the step moves through. They need no column, then or when the bundle forecasts.",
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="A field of the model or its training; repeatable."),
]
Calibrate = Annotated[
    bool,
    typer.Option(
        "--calibrate/--no-calibrate",
        help="Widen or narrow forecast quantiles until they cover the validation part, which precedes the test, as "
        "often as they say; a model fitted per series is fitted twice for it.",
    ),
]
BundlePath = Annotated[Path, typer.Option("--bundle", metavar="BUNDLE", help="Folder of a trained bundle.")]
CAUSALITY = {
    True: "every prediction depends on the past alone",
    False: "a prediction depends on what comes after it",
    None: "reads whole sequences",
}
DECILES = "0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9"


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _say_of(report: Report, before: Sequence[str]) -> None:
    """Its notes but those that were said `before`, and what is missing of what was asked for."""
    for note in report.notes[len(before) :]:
        _say(f"note: {note}")
    for why in report.failures:
        _say(f"error: {why}")


def _print_json(value: Any) -> None:
    from forecasting.bundle import plain

    typer.echo(json.dumps(plain(value), indent=2))


def print_table(rows: Iterable[dict[str, Any]], columns: list[str]) -> None:
    """Rows to stdout, as wide as they need to be when nobody looks."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*(_cell(row.get(column)) for column in columns))
    width = None if sys.stdout.isatty() else 10_000
    Console(width=width, soft_wrap=False, highlight=False, markup=False).print(table)


def _cell(value: Any) -> str:
    if value is None or value != value:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def print_leaderboard(leaderboard: pd.DataFrame) -> None:
    """Best first, without the columns that do not apply."""
    shown = leaderboard.dropna(axis=1, how="all")
    rows = [{str(key): value for key, value in row.items()} for row in shown.to_dict("records")]
    print_table(rows, [str(column) for column in shown.columns])


def load_source(
    source: str, *, task: str | None, id: str, time: str, target: str | None, covariates: str | None, wide: bool,
    freq: str | int | float | None, channels: Sequence[Channel] | None = None, target_required: bool = True,
    future: str | None = None, calendar: str | None = None, store: str | None = None,
) -> Dataset:  # fmt: skip
    from dataclasses import replace

    from data.catalog import load
    from data.panel import auto_calendar

    asked = {
        "task": task,
        "id": None if id == "unique_id" else id,
        "time": None if time == "ds" else time,
        "target": target,
        "covariates": _covariates(covariates, future),
        "channels": channels,
        "target_required": None if target_required else False,
        "wide": wide or None,
        "freq": _step(freq),
        "store": store,
    }
    dataset = load(source, **{option: value for option, value in asked.items() if value is not None})
    for note in dataset.notes:
        _say(f"note: {note}")
    if calendar == "auto":
        dataset = replace(dataset, calendar=auto_calendar(dataset.freq))
        chosen = ", ".join(dataset.calendar) or "none, for its steps move through no calendar"
        _say(f"note: {dataset.name}: calendar features of a step of {dataset.freq}: {chosen}.")
    elif calendar is not None:
        dataset = replace(dataset, calendar=tuple(_names(calendar)))
    return dataset


def _covariates(covariates: str | None, future: str | None) -> list[str] | None:
    """All that enter beside the target, those that are known ahead last."""
    ahead = _names(future) if future else []
    past = _names(covariates) if covariates else []
    return [name for name in past if name not in ahead] + ahead if covariates or future else None


def _names(text: str) -> list[str]:
    """The names of a list with commas.

    Raises:
        TaskError: there is nothing before, after or between the commas.
    """
    from forecasting.task import TaskError

    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise TaskError(f"'{text}' has an empty name; give names with one comma between each two, such as a,b.")
    return names


def _step(freq: str | int | float | None) -> str | int | float | None:
    """A step, of text a whole number of cycles, seconds, or a pandas alias."""
    if not isinstance(freq, str):
        return freq
    for number in (int, float):
        try:
            return number(freq)
        except ValueError:
            continue
    return freq


def _check_place(path: Path) -> None:
    """Refuse a place that cannot be written before the work is done, not after it."""
    from forecasting.results import ResultError

    there = next((place for place in (path, *path.absolute().parents) if place.exists()), path)
    if not there.is_dir():
        raise ResultError(f"{there}: is a file, not a folder; give another --out.")
    if not os.access(there, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        raise ResultError(f"{there}: this user cannot write there; give another --out.")


def _keep_apart(data: str, out: Path | None, state: Path | None, save_state: Path | None) -> None:
    """Refuse to write a result over the data, or two results, or a state and a result, into one file."""
    from data.catalog import path_of
    from data.readers import find_files
    from forecasting.results import ResultError

    path = path_of(data)
    read = set() if path is None else {file.resolve() for file in find_files(path)}
    for option, file in (("--out", out), ("--save-state", save_state)):
        if file is not None and file.resolve() in read:
            raise ResultError(f"{file}: is the data; {option} would replace them. Give another file.")
    others = {file.resolve(): name for name, file in (("--state", state), ("--save-state", save_state)) if file}
    if out is not None and out.resolve() in others:
        raise ResultError(f"{out}: is the file of {others[out.resolve()]} too; give --out another one.")


def _task_of(dataset: Dataset, horizon: int | None, season: int | None, quantiles: str, future: str | None) -> Task:
    from forecasting.task import Task, TaskError

    try:
        levels = tuple(float(level) for level in quantiles.split(","))
    except ValueError as error:
        raise TaskError(
            f"--quantiles takes numbers between 0 and 1, such as 0.1,0.5,0.9; got '{quantiles}'."
        ) from error
    ahead = tuple(dict.fromkeys(_names(future))) if future else ()
    task = Task.of(dataset, horizon=horizon, season=season, quantiles=levels, future=ahead)
    if task.kind == "classify" and len(task.labels) < 2:
        raise TaskError(f"{dataset.name}: classification needs at least two labels, found {', '.join(task.labels)}.")
    return task


def _settings(pairs: list[str] | None) -> dict[str, str]:
    from forecasting.task import TaskError

    settings = {}
    for pair in pairs or []:
        field, equals, value = pair.partition("=")
        if not equals or not field:
            raise TaskError(f"--set takes FIELD=VALUE, such as hidden=64; got '{pair}'.")
        settings[field] = value
    return settings


@app.command(epilog="Example: mnemo datasets --json")
def datasets(as_json: Json = False) -> None:
    """What can be loaded here, with size, licence and origin; what is missing and how to get it."""
    from data.catalog import entries

    rows = [
        {
            "name": entry.name,
            "task": entry.task,
            "available": entry.available(),
            "embedded": entry.embedded,
            "size_bytes": entry.size_bytes,
            "summary": entry.summary,
            "licence": entry.licence,
            "origin": entry.origin,
            "how_to_get": None if entry.available() else entry.how_to_get(),
        }
        for entry in entries()
    ]
    if as_json:
        _print_json(rows)
        return
    for row in rows:
        size = row["size_bytes"]
        row["here"] = "yes" if row["available"] else "missing"
        row["size"] = f"{size / 1e6:.1f} MB" if isinstance(size, int) else ""
    print_table(rows, ["name", "task", "here", "size", "summary", "licence", "origin"])
    missing = [row for row in rows if not row["available"]]
    if missing:
        typer.echo(f"\n{len(missing)} missing. {missing[0]['how_to_get']}")


@app.command(epilog="Example: mnemo models --json")
def models(as_json: Json = False) -> None:
    """What can be trained, for which tasks; whether it streams and exports; the fields that --set takes."""
    from dataclasses import fields

    from forecasting.training import TrainingConfig
    from models.catalog import MODELS, field_defaults

    rows = [
        {
            "name": name,
            "tasks": list(entry.tasks),
            "covariates": list(entry.covariates),
            "streams": entry.streams,
            "exports": ["step.onnx", "scan.onnx"] if entry.streams else ["scan.onnx"],
            "learns": entry.learns,
            "fields": field_defaults(name),
            "summary": entry.summary,
        }
        for name, entry in MODELS.items()
    ]
    training = {field.name: field.default for field in fields(TrainingConfig)}
    if as_json:
        _print_json({"models": rows, "training": training})
        return
    for row in rows:
        for column in ("tasks", "covariates", "exports"):
            row[column] = ", ".join(row[column]) or "none"  # type: ignore[arg-type]
        row["streams"] = "yes" if row["streams"] else "no"
        row["fields"] = " ".join(f"{field}={value}" for field, value in row["fields"].items()) or "none"  # type: ignore[attr-defined]
    print_table(rows, ["name", "tasks", "covariates", "streams", "exports", "learns", "summary", "fields"])
    typer.echo("\ntraining fields: " + " ".join(f"{field}={value}" for field, value in training.items()))


@app.command(epilog="Example: mnemo doctor --json")
def doctor(as_json: Json = False) -> None:
    """Versions, devices and execution providers, data: what works here and what does not."""
    from forecasting.doctor import examine

    rows = examine()
    if as_json:
        _print_json(rows)
    else:
        print_table(rows, ["what", "works", "found", "remedy"])
    if any(row["works"] == "no" for row in rows):
        raise typer.Exit(1)


@app.command(epilog="Example: mnemo train --data sp500 --model gru --horizon 5 --out bundles/sp500 --set hidden=64")
def train(
    data: Data,
    model: Annotated[
        str,
        typer.Option(
            help="A name from `mnemo models`; auto: the best on validation; sktime:CLASS: fitted when it forecasts."
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="BUNDLE", help="Where the bundle is written.")],
    task: TaskKind = None,
    horizon: Horizon = None,
    season: Season = None,
    until: Annotated[
        str | None, typer.Option(metavar="CUTOFF", help="Train on nothing after; test on what follows.")
    ] = None,
    quantiles: Quantiles = DECILES,
    covariates: Covariates = None,
    future: Future = None,
    calendar: Calendar = None,
    seed: Seed = 0,
    settings: Settings = None,
    resume: Annotated[Path | None, typer.Option(metavar="CKPT", help="Go on from a last.ckpt, exactly.")] = None,
    calibrate: Calibrate = True,
    id: IdColumn = "unique_id",
    time: TimeColumn = "ds",
    target: TargetColumn = None,
    wide: Wide = False,
    freq: Freq = None,
    store: StoreUrl = None,
    as_json: Json = False,
) -> None:
    """Train a model, judge it beside naive and ridge, and write it as a bundle."""
    dataset = load_source(
        data, task=task, id=id, time=time, target=target, covariates=covariates, wide=wide, freq=freq, future=future,
        calendar=calendar, store=store,
    )  # fmt: skip
    asked = _task_of(dataset, horizon, season, quantiles, future)
    from forecasting.bundle import check_replaceable
    from forecasting.pipeline import train_bundle
    from forecasting.training import on_a_terminal

    check_replaceable(out)
    _check_place(out.parent)
    try:
        report, card = train_bundle(
            dataset, model, asked, out, until=until, seed=seed, settings=_settings(settings), resume=resume,
            progress=on_a_terminal(), calibrated=calibrate,
        )  # fmt: skip
    except KeyboardInterrupt:
        last = out.with_name(out.name + ".training") / "last.ckpt"
        again = f" Go on with: --resume {last}" if last.exists() else ""
        _say(f"interrupted: no bundle was written to {out}.{again}")
        raise typer.Exit(1) from None
    _say_of(report, dataset.notes)
    if as_json:
        _print_json({"bundle": str(out), "card": card})
    else:
        print_leaderboard(report.leaderboard)
        typer.echo(f"\n{card['name']} -> {out} (figures on {card['metrics'][0]['on']}; see {out / 'card.json'})")
    if report.failures:
        raise typer.Exit(1)


@app.command(
    epilog="Example: mnemo backtest --data sp500 --model gru,sktime:ThetaForecaster --horizon 5 --out out/sp500"
)
def backtest(
    data: Data,
    model: Annotated[
        str,
        typer.Option(
            help="Names from `mnemo models`, with commas; auto: the best on validation; sktime:CLASS: fitted at every "
            "cut-off; naive and ridge join."
        ),
    ],
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Where leaderboard.csv and forecasts.parquet are written.")
    ] = Path("out/backtest"),
    horizon: Horizon = None,
    task: TaskKind = None,
    season: Season = None,
    test_size: Annotated[
        int | None, typer.Option(min=1, max=MOST, help="Steps at the end of each series to test on.")
    ] = None,
    cutoff: Annotated[str | None, typer.Option(metavar="C", help="Test on what follows this time.")] = None,
    stride: Annotated[int, typer.Option(min=1, max=MOST, help="Steps from one cut-off to the next.")] = 1,
    refit: Annotated[str, typer.Option(metavar="never|K", help="Train anew after every K cut-offs.")] = "never",
    ensemble: Annotated[
        str | None,
        typer.Option(metavar="mean,median", help="Also judge the named models' ensembles, quantile by quantile."),
    ] = None,
    calibrate: Calibrate = True,
    quantiles: Quantiles = DECILES,
    covariates: Covariates = None,
    future: Future = None,
    calendar: Calendar = None,
    seed: Seed = 0,
    settings: Settings = None,
    id: IdColumn = "unique_id",
    time: TimeColumn = "ds",
    target: TargetColumn = None,
    wide: Wide = False,
    freq: Freq = None,
    store: StoreUrl = None,
    as_json: Json = False,
) -> None:
    """Judge models at every cut-off of a test period, beside naive and ridge.

    In the leaderboard pinball and coverage_80 are of the quantiles in forecasts.parquet, which are calibrated where
    the column calibrated says so; pinball_raw and coverage_80_raw are of those that the model itself gives.
    """
    from dataclasses import replace

    from forecasting.task import TaskError

    if test_size is not None and cutoff is not None:
        raise TaskError("give --test-size or --cutoff, not both.")
    if refit != "never" and not re.fullmatch(r"0*[1-9][0-9]{0,9}", refit):
        raise TaskError(f"--refit takes never or a number of cut-offs, not '{refit}'.")
    dataset = load_source(
        data, task=task, id=id, time=time, target=target, covariates=covariates, wide=wide, freq=freq, future=future,
        calendar=calendar, store=store,
    )  # fmt: skip
    asked = _task_of(dataset, horizon, season, quantiles, future)
    from forecasting import backtest as engine
    from forecasting.results import write_report
    from forecasting.training import on_a_terminal

    chosen: dict[str, Any] = dict(_settings(settings))
    _check_place(out)
    names = _names(model)
    notes: tuple[str, ...] = ()
    if "auto" in names:
        from forecasting.pipeline import with_auto

        names, chosen, notes = with_auto(
            dataset, names, asked, test_size=test_size, cutoff=cutoff, seed=seed, settings=chosen,
            progress=on_a_terminal(),
        )  # fmt: skip
        dataset = replace(dataset, notes=(*dataset.notes, *notes))
    report = engine.backtest(
        dataset, names, asked, test_size=test_size, cutoff=cutoff, stride=stride,
        refit=None if refit == "never" else int(refit), seed=seed, settings=chosen, progress=on_a_terminal(),
        calibrated=calibrate, ensembles=_names(ensemble) if ensemble else (),
    )  # fmt: skip
    write_report(report, out, dataset=dataset.name, seed=seed, settings=dict(chosen))
    for note in notes:
        _say(f"note: {note}")
    _say_of(report, dataset.notes)
    if as_json:
        _print_json({"out": str(out), "leaderboard": report.leaderboard.to_dict("records")})
    else:
        print_leaderboard(report.leaderboard)
        typer.echo(f"\n{out}: leaderboard.csv, forecasts.parquet. See them: mnemo dashboard --out {out}")
    if report.failures:
        raise typer.Exit(1)


@app.command(epilog="Example: mnemo forecast --bundle bundles/sp500 --data sp500 --out forecasts.parquet")
def forecast(
    bundle: BundlePath,
    data: Data,
    out: Annotated[str, typer.Option(metavar="FILE|-", help="A .parquet or .csv file, or - for CSV on stdout.")],
    state: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A saved state: only what is new is stepped.")
    ] = None,
    save_state: Annotated[Path | None, typer.Option(metavar="FILE", help="Save the state after the last row.")] = None,
    adapt: Annotated[
        float | None,
        typer.Option(
            metavar="RATE",
            help="Go on calibrating quantiles as outcomes arrive, such as 0.05; a saved state that does goes on so.",
        ),
    ] = None,
    id: IdColumn = "unique_id",
    time: TimeColumn = "ds",
    target: TargetColumn = None,
    wide: Wide = False,
    freq: Freq = None,
    store: StoreUrl = None,
    as_json: Json = False,
) -> None:
    """Forecast from the end of each series; classify and regress bundles answer with the same command."""
    from forecasting.inputs import asked_by
    from forecasting.results import ResultError, write_answer

    place = None if out == "-" else Path(out)
    if place is not None and place.suffix not in (".parquet", ".csv"):
        raise ResultError(f"{out}: --out takes a .parquet or .csv file, or - for CSV on stdout.")
    from forecasting.runtime import load_bundle

    loaded = load_bundle(bundle)
    step, asked = loaded.task["freq"], _step(freq)
    if asked is not None:
        from data.panel import canonical

        if asked != step and canonical(asked, "--freq") != step:
            raise ResultError(f"{bundle}: made for a step of {step}, it cannot take another; leave out --freq {freq}.")
    for option, file in (("--out", place), ("--save-state", save_state)):
        if file is not None:
            if file.is_dir():
                raise ResultError(f"{file}: is a folder; {option} takes a file.")
            _check_place(file.parent)
    _keep_apart(data, place, state, save_state)
    dataset = load_source(
        data, id=id, time=time, target=target, covariates=None, wide=wide, store=store, **asked_by(loaded)
    )
    answer = loaded.forecast(dataset, state=state, save_state=save_state, adapt=adapt)
    if as_json:
        typer.echo(answer.to_json(orient="records", date_format="iso", double_precision=15))
    elif place is None:
        answer.to_csv(sys.stdout, index=False)
    if place is not None:
        write_answer(answer, place)
        _say(f"{place}: {answer['unique_id'].nunique()} series, {len(answer)} rows, by {loaded.name}")
    for note in loaded.notes:
        _say(f"note: {note}")
    for why in loaded.failures.values():
        _say(f"error: {why}")
    instead = [name for name in answer["unique_id"].unique() if name in loaded.substitutes]
    if instead:
        first = loaded.substitutes[instead[0]]
        _say(
            f"note: {loaded.name}: {len(instead)} of {answer['unique_id'].nunique()} series are forecast by a "
            f"substitute, first {instead[0]} by {first['substitute']}: {first['reason']}"
        )
    if loaded.failures:
        raise typer.Exit(1)


@app.command(epilog="Example: mnemo certify --bundle bundles/sp500")
def certify(bundle: BundlePath, as_json: Json = False) -> None:
    """Parity, causality and latency of a bundle, measured on this machine."""
    from forecasting.certificate import certify as measure
    from forecasting.certificate import explain

    certificate = measure(bundle)
    if as_json:
        _print_json(certificate)
    else:
        parity, causality = certificate["parity"], certificate["causality"]
        worst = max(parity[check] for check in ("split", "steps", "rows", "missing", "look") if check in parity)
        rows = [
            {"what": "parity", "measured": f"{worst:.1e} relative, {parity['tolerance']:g} allowed"},
            {"what": "causality", "measured": CAUSALITY[causality and causality["passed"]]},
            *(
                {"what": name, "measured": f"p50 {spent['p50']} µs, p99 {spent['p99']} µs, max {spent['max']} µs"}
                for name, spent in certificate["latency"].items()
                if isinstance(spent, dict)
            ),
            {"what": "ran on", "measured": f"{', '.join(certificate['providers'])}; {certificate['machine']['cpu']}"},
        ]
        print_table(rows, ["what", "measured"])
    if not certificate["passed"]:
        _say(f"error: {bundle}: {explain(certificate)}")
        raise typer.Exit(1)


@app.command(epilog="Example: mnemo demo --out out --headless")
def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where all results are left.")] = Path("out"),
    headless: Annotated[bool, typer.Option("--headless", help="End before the dashboard opens.")] = False,
    seed: Seed = 0,
) -> None:
    """The main job end to end on embedded data: train, compare, export, forecast, show."""
    from forecasting.demo import run

    _check_place(out)
    run(out, seed=seed, say=typer.echo, show=print_leaderboard)
    if not headless:
        dashboard(out=out)


@app.command(epilog="Example: mnemo dashboard --out out --port 8501")
def dashboard(
    out: Annotated[Path, typer.Option(metavar="DIR", help="What a demo or a backtest wrote.")] = Path("out"),
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port on this machine; 8501 or the next free one if left out.")
    ] = None,
    headless: Annotated[bool, typer.Option("--headless", help="Do not open a browser.")] = False,
) -> None:
    """Look at results and watch a recorded stream go through a bundle, in the browser."""
    # A process of its own: this room may not import that one.
    command = [sys.executable, "-m", "dashboards", "--out", str(out)]
    command += [] if port is None else ["--port", str(port)]
    try:
        code = subprocess.call([*command, "--headless"] if headless else command)
    except KeyboardInterrupt:
        code = 0
    if code:
        raise typer.Exit(2 if code == 2 else 1)


@app.command(epilog="Example: mnemo stream --bundle bundles/gestures --from 'replay:gestures_demo?series=person_9/1'")
def stream(
    bundle: Annotated[Path, typer.Option(metavar="BUNDLE", help="What `mnemo train` wrote, of a model that streams.")],
    source: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="URI",
            help="Where frames come from: replay:, mqtt://, lsl:, serial:, ws://, ws-listen://.",
        ),
    ],
    to: Annotated[
        str, typer.Option(metavar="URI", help="Where lines of JSON go: - for here, a new file, or mqtt://.")
    ] = "-",
) -> None:
    """Frames of a live stream in, predictions out, until it ends or Ctrl-C."""
    arguments = ["--bundle", str(bundle), "--from", source, "--to", to]
    os.execv(sys.executable, [sys.executable, "-m", "sensors", "stream", *arguments])


@app.command(epilog="Example: mnemo bridge --config bridge.toml --dry-run")
def bridge(
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A bridge's TOML; `--example` prints one with every field.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be sent; the robot is not moved.")
    ] = False,
    record: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep the stream as it comes, as Parquet, safe from a crash.")
    ] = None,
    metrics: Annotated[
        int | None, typer.Option(metavar="PORT", min=1, max=65535, help="Answer Prometheus on this port.")
    ] = None,
    example: Annotated[bool, typer.Option("--example", help="Print a configuration that runs as it is.")] = False,
) -> None:
    """Let a live stream of gestures drive a robot: never armed at the start, stopped when anything goes quiet."""
    arguments = ["--example"] if example else []
    arguments += [] if config is None else ["--config", str(config)]
    arguments += ["--dry-run"] if dry_run else []
    arguments += [] if record is None else ["--record", str(record)]
    arguments += [] if metrics is None else ["--metrics", str(metrics)]
    # This process becomes the bridge's: nothing stands between the operator's signals and the robot.
    os.execv(sys.executable, [sys.executable, "-m", "sensors", "bridge", *arguments])


def main() -> None:
    """Run the command; errors of our own are one line on stderr and exit code 2, never a traceback."""
    # What shells leave alone in --out=~/bundle, and services and other programs everywhere.
    sys.argv[1:] = [
        re.sub(r"^(--[\w-]+=)?(~(?=/).*)", _at_home, argument, flags=re.DOTALL) for argument in sys.argv[1:]
    ]
    try:
        app(prog_name="mnemo", standalone_mode=True)
    except SystemExit as ended:
        if ended.code == 130:  # what typer makes of Ctrl-C
            _say("interrupted.")
            sys.exit(1)
        raise
    except BrokenPipeError:
        # Whoever read our output has gone; say nothing more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if _was_interrupted(error):
            _say("interrupted.")
            sys.exit(1)
        code, message = _explain(error)
        if code == 1 and os.environ.get("MNEMO_DEBUG"):
            raise
        _say(f"error: {message}")
        sys.exit(code)


def _at_home(found: re.Match[str]) -> str:
    return (found[1] or "") + os.path.expanduser(found[2])


def _was_interrupted(error: BaseException | None) -> bool:
    """Whether Ctrl-C is behind an error: a compiled module that it hits while it is imported calls that ImportError."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


def _explain(error: Exception) -> tuple[int, str]:
    """The exit code and the line for an error that no command has caught."""
    text = " ".join(str(error).split())
    if isinstance(error, OSError):
        return 2, f"{error.filename}: {error.strerror}." if error.filename and error.strerror else text
    if isinstance(error, ValueError) and type(error).__module__.partition(".")[0] in ("data", "models", "forecasting"):
        return 2, str(error)
    if isinstance(error, MemoryError) or re.search("allocate memory|out of memory|size calculation overflowed", text):
        return (
            1,
            f"not enough memory ({text[:200]}). Take fewer series, or smaller settings such as batch_size or lags.",
        )
    return 1, f"unexpected {type(error).__name__}: {text[:300]}. A defect of mnemo: MNEMO_DEBUG=1 shows where."


if __name__ == "__main__":
    main()
