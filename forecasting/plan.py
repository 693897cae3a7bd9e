"""A plan of forecasts, as a TOML file says it: which bundles, or models that are fitted when they forecast, over which
data, and when.

    name = "nightly"                      # the file's own name if left out
    at = ["02:30"]                        # local times of `mnemo schedule`, or every = "15min"
    keep = 90                             # forecasts of so many runs, of all if left out

    [[job]]
    name = "shops"
    data = "shops/*.csv"                  # a SOURCE; paths are relative to the plan
    bundle = "bundles/shops"
    out = "forecasts/shops.parquet"       # written too, whole, once the run is published

    [[job]]
    name = "reference"
    data = "shops/*.csv"
    model = "sktime:ThetaForecaster"      # any forecaster or classifier of sktime's, fitted anew in every run
    horizon = 14
    set = { deseasonalize = true }

A run keeps the plan as it was read, so that it can be resumed when the file has changed or gone.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import time, timedelta
from pathlib import Path
from typing import Any

from data.catalog import path_of
from forecasting.refit import is_refit

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
STEP = re.compile(r"(\d+) ?(s|min|h|d)")
UNITS = {"s": "seconds", "min": "minutes", "h": "hours", "d": "days"}


class PlanError(ValueError):
    """A plan that cannot be carried out; the message names the file, the job and the key, and says what to do."""


@dataclass(frozen=True)
class PlannedJob:
    """One job: exactly one of `bundle` and `model`."""

    name: str
    data: str
    bundle: str | None = None
    model: str | None = None
    out: str | None = None
    carry: bool = True  # whether a bundle goes on from the state that the run before left
    adapt: float | None = None  # as of `mnemo forecast`
    horizon: int | None = None  # this and the next three: of a model
    season: int | None = None
    set: dict[str, Any] = field(default_factory=dict)
    learn: str | None = None  # the labelled recordings of a classifier
    id: str | None = None  # this and the rest: of the data, as the options of the same names
    time: str | None = None
    target: str | None = None
    wide: bool = False
    freq: str | int | float | None = None

    @property
    def columns(self) -> dict[str, Any]:
        """The options of its data that were given."""
        asked = {name: getattr(self, name) for name in ("id", "time", "target", "wide", "freq")}
        return {name: value for name, value in asked.items() if value not in (None, False)}


@dataclass(frozen=True)
class Plan:
    """Jobs and when they are due."""

    name: str
    spec: dict[str, Any]  # what `of_spec` makes it of again
    jobs: tuple[PlannedJob, ...]
    at: tuple[time, ...] = ()
    every: timedelta | None = None
    keep: int | None = None


def read_plan(path: Path) -> Plan:
    """
    Raises:
        PlanError: it cannot be read, or asks for what cannot be done.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PlanError(f"{path}: cannot be read ({error.strerror}).") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PlanError(f"{path}: is no TOML ({error}).") from error
    return of_spec({"plan": table, "path": str(path.absolute())})


def of_spec(spec: dict[str, Any]) -> Plan:
    """The plan of a table and the path where it was read.

    Raises:
        PlanError: it asks for what cannot be done.
    """
    path, table = Path(spec["path"]), spec["plan"]
    _refuse_unknown(table, {"name", "at", "every", "keep", "job"}, str(path))
    name = table.get("name", path.stem)
    _check_name(name, f"{path}: name")
    at, every = table.get("at", []), table.get("every")
    if at and every is not None:
        raise PlanError(f"{path}: at and every are both given; a plan is due at times of the day or at a step.")
    keep = table.get("keep")
    if keep is not None and (type(keep) is not int or keep < 1):
        raise PlanError(f"{path}: keep is a number of runs, at least 1; got {keep!r}.")
    raw = table.get("job")
    if not isinstance(raw, list) or not raw or not all(isinstance(job, dict) for job in raw):
        raise PlanError(f"{path}: a plan has one [[job]] or more, each with a name, data, and a bundle or a model.")
    jobs = tuple(_job(job, place, path) for place, job in enumerate(raw, 1))
    for kind, values in (("name", [job.name for job in jobs]), ("out", [job.out for job in jobs if job.out])):
        twice = [value for value in values if values.count(value) > 1]
        if twice:
            raise PlanError(f"{path}: two jobs have the {kind} {twice[0]}; each needs its own.")
    times = at if isinstance(at, list) else [at]
    return Plan(name, spec, jobs, tuple(_time(text, path) for text in times), _step(every, path), keep)


def _job(raw: Mapping[str, Any], place: int, path: Path) -> PlannedJob:
    where = f"{path}: job {raw.get('name', place)}"
    _refuse_unknown(raw, {each.name for each in fields(PlannedJob)}, where)
    for key, kinds in _KINDS.items():
        if key in raw and (not isinstance(raw[key], kinds) or (bool not in kinds and isinstance(raw[key], bool))):
            raise PlanError(f"{where}: {key} is {' or '.join(_SPOKEN[kind] for kind in kinds)}, got {raw[key]!r}.")
    lacking = [key for key in ("name", "data") if not raw.get(key)]
    if lacking:
        raise PlanError(f"{where}: lacks {' and '.join(lacking)}.")
    _check_name(raw["name"], f"{where}: name")
    if ("bundle" in raw) == ("model" in raw):
        raise PlanError(f"{where}: needs a bundle or a model, one of them.")
    if "model" in raw and not is_refit(raw["model"]):
        raise PlanError(
            f"{where}: {raw['model']} is trained before it forecasts: `mnemo train` it and name its bundle. A model "
            "that is fitted in every run is one of sktime's, such as sktime:ThetaForecaster."
        )
    others = ("horizon", "season", "set", "learn", "freq") if "bundle" in raw else ("carry", "adapt")
    wrong = [key for key in others if key in raw]
    if wrong:
        raise PlanError(f"{where}: {wrong[0]} is for a {'model' if 'bundle' in raw else 'bundle'}; leave it out.")
    for key in ("horizon", "season"):
        if raw.get(key, 1) < 1:
            raise PlanError(f"{where}: {key} is at least 1, got {raw[key]}.")
    if "out" in raw and Path(raw["out"]).suffix not in (".parquet", ".csv"):
        raise PlanError(f"{where}: out is a .parquet or .csv file, got {raw['out']}.")
    folder, found = path.parent, dict(raw)
    for key in ("bundle", "out"):
        if key in found:
            found[key] = str(folder / Path(found[key]).expanduser())
    for key in ("data", "learn"):
        if key in found:
            found[key] = _source(found[key], folder)
    files = path_of(found["data"])
    if "out" in found and files is not None and Path(found["out"]).match(files):
        raise PlanError(f"{where}: out, {raw['out']}, is among its data, which it would replace or be read with.")
    return PlannedJob(**found)


_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("name", "data", "bundle", "model", "out", "learn", "id", "time", "target"), (str,)),
    **dict.fromkeys(("horizon", "season"), (int,)),
    **dict.fromkeys(("carry", "wide"), (bool,)),
    "adapt": (int, float),
    "set": (dict,),
    "freq": (str, int, float),
}
_SPOKEN = {str: "text", int: "a whole number", float: "a number", bool: "true or false", dict: "a table"}


def _source(source: str, folder: Path) -> str:
    """A path, or pattern of paths, from the plan's folder; a name of a data set as it is."""
    path = path_of(source)
    if path is None:
        return source
    return source.removesuffix(path) + str(folder / Path(path).expanduser())


def _refuse_unknown(table: Mapping[str, Any], known: set[str], where: str) -> None:
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f" Did you mean {near[0]}?" if near else f" Known: {', '.join(sorted(known))}."
            raise PlanError(f"{where}: unknown key {key}.{hint}")


def _check_name(name: Any, where: str) -> None:
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise PlanError(f"{where} is letters, digits, and . _ - between them, at most 100; got {name!r}.")


def _time(text: Any, path: Path) -> time:
    try:
        found = time.fromisoformat(text)
    except (TypeError, ValueError) as error:
        raise PlanError(f'{path}: at is a time of the day or a list of them, such as "02:30"; got {text!r}.') from error
    if found.tzinfo is not None:
        raise PlanError(f"{path}: at is in the machine's own time zone; leave the offset of {text} out.")
    return found


def _step(text: Any, path: Path) -> timedelta | None:
    if text is None:
        return None
    match = STEP.fullmatch(text) if isinstance(text, str) else None
    if match is None or not int(match[1]):
        raise PlanError(f'{path}: every is a step such as "15min", "6h" or "1d"; got {text!r}.')
    return timedelta(**{UNITS[match[2]]: int(match[1])})
