"""What a backtest leaves on disk, and how the dashboard finds it again.

A result is a folder: leaderboard.csv, forecasts.parquet, history.parquet, substitutes.csv where something stood in for
a model that could not forecast, and, put there last, run.json, which says what ran. All files are written beside, then
the old run.json goes, and they are renamed: a folder with a run.json is whole, and a full disk or Ctrl-C while they are
written leaves the result of before. What `mnemo forecast` puts beside them as forecast.parquet, from the end of the
data, and what `mnemo train` puts there as bundle belong to the result too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from forecasting.bundle import CARD
from forecasting.task import Task

if TYPE_CHECKING:
    from forecasting.backtest import Report

SCHEMA_VERSION = 1
RUN, LEADERBOARD, FORECASTS, HISTORY = "run.json", "leaderboard.csv", "forecasts.parquet", "history.parquet"
SUBSTITUTES, LATEST, BUNDLE = "substitutes.csv", "forecast.parquet", "bundle"


class ResultError(ValueError):
    """A result that cannot be written or read; the message names the file and what to do."""


@dataclass(frozen=True)
class Result:
    """A finished run in a folder; the frames are read when asked for."""

    folder: Path
    run: dict[str, Any]

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def task(self) -> Task:
        return Task.from_json(self.run["task"])

    @property
    def bundle(self) -> Path | None:
        """The winner's bundle, where the run exported one, or the one that `mnemo train` put beside."""
        if self.run.get("bundle"):
            return self.folder / self.run["bundle"]
        beside = self.folder / BUNDLE
        return beside if (beside / CARD).is_file() else None

    def leaderboard(self) -> pd.DataFrame:
        return pd.read_csv(self.folder / LEADERBOARD)

    def forecasts(self) -> pd.DataFrame:
        return pd.read_parquet(self.folder / FORECASTS)

    def history(self) -> pd.DataFrame:
        return pd.read_parquet(self.folder / HISTORY)

    def latest(self) -> pd.DataFrame | None:
        """What was forecast from the end of the data, where that was put beside; its outcome may not be known yet."""
        path = self.folder / LATEST
        return pd.read_parquet(path) if path.exists() else None


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file beside, then rename it to `path`; on failure nothing is left behind.

    Raises:
        ResultError: the disk is full or the folder cannot be written.
    """
    write_together({path: write})


def write_answer(answer: pd.DataFrame, path: Path) -> None:
    """A frame of forecasts as a .csv or .parquet file, whole or not at all.

    Raises:
        ResultError: the disk is full or the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write = answer.to_csv if path.suffix == ".csv" else answer.to_parquet
    write_whole(path, lambda beside: write(beside, index=False))


def write_together(files: Mapping[Path, Callable[[Path], object]], gone: Iterable[Path] = ()) -> None:
    """Let all be made beside; once each is whole, remove what shall be gone and rename them, in their order.

    Raises:
        ResultError: the disk is full or a folder cannot be written; it names the file.
    """
    beside = {path: path.with_name(f".{path.name}.part") for path in files}
    at = next(iter(files))
    try:
        for at, write in files.items():
            write(beside[at])
        for at in gone:
            at.unlink(missing_ok=True)
        for at in files:
            os.replace(beside[at], at)
    except OSError as error:
        raise ResultError(
            f"{at}: could not be written ({error.strerror or error}); nothing was changed there."
        ) from error
    finally:
        for part in beside.values():
            part.unlink(missing_ok=True)


def write_report(
    report: Report, folder: Path, *, dataset: str, seed: int, settings: dict[str, Any], bundle: str | None = None
) -> None:
    """Write a backtest's report; see the module's docstring for what is left and in which order."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResultError(f"{folder}: cannot be written ({error.strerror}); give another --out.") from error
    instead = report.substitutes.groupby("model")["unique_id"].agg(["nunique", "size"])
    run = {
        "schema_version": SCHEMA_VERSION,
        "dataset": dataset,
        "task": report.task.to_json(),
        "models": {name: trained.config for name, trained in report.models.items()},
        "seed": seed,
        "settings": settings,
        "substituted": {str(n): {"series": int(s), "forecasts": int(f)} for n, s, f in instead.itertuples()},
        "notes": [*report.notes, *report.failures],
        "bundle": bundle,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    files: dict[Path, Callable[[Path], object]] = {
        folder / LEADERBOARD: lambda path: report.leaderboard.to_csv(path, index=False),
        folder / FORECASTS: lambda path: report.forecasts.to_parquet(path, index=False),
        folder / HISTORY: lambda path: report.history.to_parquet(path, index=False),
    }
    if len(report.substitutes):
        files[folder / SUBSTITUTES] = lambda path: report.substitutes.to_csv(path, index=False)
    files[folder / RUN] = lambda path: path.write_text(json.dumps(run, indent=2) + "\n")
    write_together(files, gone=(folder / RUN, folder / SUBSTITUTES))


def find_results(root: Path, broken: list[str] | None = None) -> list[Result]:
    """Every whole result in `root` or one folder below it, by name.

    Args:
        broken: takes what is wrong with each run that cannot be read; without it the first one is raised.

    Raises:
        ResultError: a run.json that cannot be read, or of a newer schema.
    """
    found = []
    for path in sorted([*root.glob(RUN), *root.glob(f"*/{RUN}")]):
        try:
            found.append(_read_run(path))
        except ResultError as error:
            if broken is None:
                raise
            broken.append(str(error))
    return found


def _read_run(path: Path) -> Result:
    try:
        run = json.loads(path.read_text())
        version = int(run["schema_version"])
        if version > SCHEMA_VERSION:
            raise ResultError(
                f"{path}: of schema {version}, this program reads up to {SCHEMA_VERSION}; upgrade mnemosyne."
            )
        if not isinstance(run["dataset"], str):
            raise TypeError("its dataset is no name")
        _ = Result(path.parent, run).task
    except ResultError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ResultError(f"{path}: not a readable run ({error}); run the backtest again.") from error
    return Result(path.parent, run)
