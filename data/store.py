"""Where observations and batch runs are kept: what jobs forecast, and the states that the next run goes on from.

SQLite, or PostgreSQL where several machines share it; the same tables in both. A job is kept whole, in one transaction;
readers see nothing of a run before it is published, which is one transaction too, and then all of it. One run of a plan
goes on at a time: it gives a sign of life now and then, and what it writes is refused once another took it over.

    runs        one row a run of a plan, with the plan as it was read
    jobs        what became of each job of a run: how many series, what failed and what stood in, and why
    forecasts   one row a row of an answer: the series, the times as text, the rest as JSON
    states      of each job whose model streams, the state after its last observation (an .npz file)
    observations, heard, forgotten: see `observations`
"""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import sqlalchemy as sql
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from data.frame import ID, TIME

VERSION = 1
VARIABLE = "MNEMO_STORE"
QUIET = timedelta(minutes=2)  # without a sign of life, after which a run counts as dead
BUSY_S = 30  # how long a writer waits for another one
RUNNING, DONE, PARTIAL, FAILED, INTERRUPTED, WAITING = "running", "done", "partial", "failed", "interrupted", "waiting"
CUTOFF = "cutoff"
MAKING, INGESTING = 0x6D6E656D6F, 0x6D6E656D70  # what one alone does at a time: keys of locks

_TABLES = sql.MetaData()
_ABOUT = sql.Table("about", _TABLES, sql.Column("version", sql.Integer, nullable=False))
_RUNS = sql.Table(
    "runs",
    _TABLES,
    sql.Column("id", sql.String(200), primary_key=True),
    sql.Column("plan", sql.String(200), nullable=False),
    sql.Column("spec", sql.Text, nullable=False),
    sql.Column("status", sql.String(20), nullable=False),
    sql.Column("owner", sql.String(40), nullable=False),
    sql.Column("host", sql.String(200), nullable=False),
    sql.Column("pid", sql.Integer, nullable=False),
    sql.Column("started", sql.String(40), nullable=False),
    sql.Column("alive", sql.String(40), nullable=False),
    sql.Column("ended", sql.String(40)),
)
sql.Index(
    "one_running_run_of_a_plan",
    _RUNS.c.plan,
    unique=True,
    sqlite_where=_RUNS.c.status == RUNNING,
    postgresql_where=_RUNS.c.status == RUNNING,
)


def _of_run() -> sql.Column[str]:
    return sql.Column("run", sql.String(200), sql.ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)


_NEWEST_FIRST = (_RUNS.c.started.desc(), _RUNS.c.id.desc())
_JOBS = sql.Table(
    "jobs",
    _TABLES,
    _of_run(),
    sql.Column("name", sql.String(200), primary_key=True),
    sql.Column("place", sql.Integer, nullable=False),
    sql.Column("status", sql.String(20), nullable=False),
    sql.Column("published", sql.Boolean, nullable=False),
    sql.Column("summary", sql.Text, nullable=False),
)
_FORECASTS = sql.Table(
    "forecasts",
    _TABLES,
    _of_run(),
    sql.Column("job", sql.String(200), primary_key=True),
    sql.Column("row", sql.Integer, primary_key=True),
    sql.Column(ID, sql.Text, nullable=False, index=True),
    sql.Column(CUTOFF, sql.Text),
    sql.Column(TIME, sql.Text, nullable=False),
    sql.Column("answer", sql.Text, nullable=False),
)
_STATES = sql.Table(
    "states",
    _TABLES,
    _of_run(),
    sql.Column("job", sql.String(200), primary_key=True),
    sql.Column("bundle", sql.String(200), nullable=False),
    sql.Column("content", sql.LargeBinary, nullable=False),
)
OBSERVATIONS = sql.Table(
    "observations",
    _TABLES,
    sql.Column(ID, sql.String(200), primary_key=True),
    sql.Column(TIME, sql.String(40), primary_key=True),
    sql.Column("known_at", sql.String(40), primary_key=True),
    sql.Column("kind", sql.String(1), nullable=False),  # of the time: M dates, i cycles, f seconds
    sql.Column("content", sql.Text, nullable=False),
    sqlite_with_rowid=False,  # rows lie in the order in which they are read
)
HEARD = sql.Table(
    "heard",
    _TABLES,
    sql.Column(ID, sql.String(200), primary_key=True),
    sql.Column("known_at", sql.String(40), nullable=False),
)
FORGOTTEN = sql.Table("forgotten", _TABLES, sql.Column("before", sql.String(40), primary_key=True))


class StoreError(ValueError):
    """The store cannot be opened, or what is asked of it cannot be done; the message says what to do."""


@dataclass(frozen=True)
class Job:
    """What became of a job of a run."""

    name: str
    status: str  # waiting, done or failed
    published: bool
    summary: dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One run of a plan; `jobs` in the plan's order."""

    id: str
    plan: str
    spec: dict[str, Any]
    status: str  # running, done, partial (some failed), failed (all did) or interrupted
    host: str
    pid: int
    started: str
    alive: str
    ended: str | None
    jobs: tuple[Job, ...]


@dataclass(frozen=True)
class Left:
    """The state that a job left, and what it is of: the digest of a bundle."""

    content: bytes
    bundle: str


@dataclass(frozen=True)
class Hold:
    """The right to write to a run."""

    run: str
    owner: str


def store_url() -> str:
    """That of MNEMO_STORE, else SQLite under the user's data directory."""
    home = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return os.environ.get(VARIABLE) or f"sqlite:///{home / 'mnemo' / 'store.db'}"


def file_of(url: str) -> Path | None:
    """Where SQLite keeps a store; None of others, and of what is no URL."""
    try:
        parts = sql.make_url(url)
    except SQLAlchemyError:
        return None
    return Path(parts.database) if parts.get_backend_name() == "sqlite" and parts.database else None


class Store:
    """Opened once, by one thread or several."""

    def __init__(self, url: str | None = None) -> None:
        """
        Args:
            url: as SQLAlchemy takes it, such as sqlite:///runs.db or postgresql+psycopg://host/name; default
                `store_url`. What is not there of SQLite and of the tables is made.

        Raises:
            StoreError: it cannot be opened, or is of another version.
        """
        try:
            self._url = sql.make_url(url or store_url())
        except SQLAlchemyError as error:
            raise StoreError(
                f"{url}: is no URL of a store, such as sqlite:///runs.db or postgresql+psycopg://host/name."
            ) from error
        if self._url.drivername in ("postgres", "postgresql"):
            self._url = self._url.set(drivername="postgresql+psycopg")
        self.url, self.name = (self._url.render_as_string(hide_password=hidden) for hidden in (False, True))
        try:
            self._engine = self._open()
            with self.asking() as connection:  # a writer may be at work for long
                whole = set(_TABLES.tables) <= set(sql.inspect(connection).get_table_names())
                found = connection.execute(sql.select(_ABOUT.c.version)).scalar() if whole else None
            if found is None:
                with self.writing() as connection:
                    self.one_at_a_time(connection, MAKING)
                    _TABLES.create_all(connection)
                    found = connection.execute(sql.select(_ABOUT.c.version)).scalar()
                    if found is None:
                        connection.execute(_ABOUT.insert().values(version=VERSION))
        except (ImportError, OSError, SQLAlchemyError) as error:
            raise StoreError(f"{self.name}: cannot be opened ({error}).{_hint(self._url)}") from error
        if found not in (None, VERSION):
            raise StoreError(f"{self.name}: is of version {found}, this is {VERSION}. Give another store.")

    def _open(self) -> sql.Engine:
        if self._url.get_backend_name() != "sqlite":
            return sql.create_engine(self._url, pool_pre_ping=True)
        if self._url.database not in (None, "", ":memory:"):
            Path(self._url.database).parent.mkdir(parents=True, exist_ok=True)
        engine = sql.create_engine(self._url, connect_args={"timeout": BUSY_S})

        @sql.event.listens_for(engine, "connect")
        def prepare(connection: Any, _: object) -> None:
            connection.isolation_level = None  # transactions are begun below, for writing at once
            for setting in ("journal_mode=WAL", "foreign_keys=ON"):
                connection.execute(f"PRAGMA {setting}")

        @sql.event.listens_for(engine, "begin")
        def begin(connection: sql.Connection) -> None:
            # A reader that would write later could be refused then.
            connection.exec_driver_sql(
                "BEGIN IMMEDIATE" if connection.get_execution_options().get("writes") else "BEGIN"
            )

        return engine

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def writing(self) -> Iterator[sql.Connection]:
        with self.asking(writes=True) as connection:
            yield connection

    @contextmanager
    def asking(self, writes: bool = False) -> Iterator[sql.Connection]:
        """A transaction.

        Raises:
            StoreError: of what the database says.
        """
        try:
            with self._engine.connect().execution_options(writes=writes) as connection, connection.begin():
                yield connection
        except IntegrityError:
            raise
        except SQLAlchemyError as error:
            why = " ".join(str(getattr(error, "orig", None) or error).split())
            raise StoreError(f"{self.name}: {why}.{_hint(self._url)}") from error

    def one_at_a_time(self, connection: sql.Connection, what: int) -> None:
        """Let nobody else do so in this store until the transaction ends; in SQLite nobody else writes anyway."""
        if self._url.get_backend_name() == "postgresql":
            connection.execute(sql.select(sql.func.pg_advisory_xact_lock(what)))

    # --- a run ---

    def begin(self, plan: str, spec: Mapping[str, Any], jobs: Sequence[str]) -> Hold:
        """A new run of a plan, its jobs waiting. Runs of it that died before their end are marked as interrupted.

        Raises:
            StoreError: another run of the plan goes on.
        """
        now = _now()
        hold = Hold(f"{plan}-{now:%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}", uuid.uuid4().hex)
        waiting = {"run": hold.run, "status": WAITING, "published": False, "summary": "{}"}
        with self.writing() as connection:
            self._end_the_dead(connection, plan)
            row = {"id": hold.run, "plan": plan, "spec": json.dumps(spec), "started": text_of(now)} | _sign(hold)
            try:
                connection.execute(_RUNS.insert().values(row))
            except IntegrityError as error:
                raise StoreError(f"another run of {plan} has just begun; wait for its end.") from error
            connection.execute(
                _JOBS.insert(), [waiting | {"name": name, "place": place} for place, name in enumerate(jobs)]
            )
        return hold

    def take_over(self, run: str) -> Hold:
        """The right to write to a run that is not going on, which goes on from here.

        Raises:
            StoreError: there is none of this name, it goes on or another run of its plan does, or what a newer one gave
                is published.
        """
        old, hold = self.run(run), Hold(run, uuid.uuid4().hex)
        with self.writing() as connection:
            self._end_the_dead(connection, old.plan)
            newer = sql.select(_RUNS.c.id).join(_JOBS, _JOBS.c.run == _RUNS.c.id)
            newer = newer.where(_RUNS.c.plan == old.plan, _RUNS.c.started > old.started, _JOBS.c.published)
            if other := connection.execute(newer.limit(1)).scalar():
                raise StoreError(f"{run}: is out of date, for {other} came after it. Begin a new run.")
            connection.execute(_RUNS.update().where(_RUNS.c.id == run).values(_sign(hold) | {"ended": None}))
        return hold

    def beat(self, hold: Hold) -> None:
        """A sign of life."""
        with self.writing() as connection:
            self._check(connection, hold)

    def keep(self, hold: Hold, job: str, answer: pd.DataFrame, state: Left | None, summary: Mapping[str, Any]) -> None:
        """What a job gave, in place of what it gave before; nobody sees it before `publish`."""
        kinds = {column: answer[column].to_numpy().dtype.kind for column in (TIME, CUTOFF) if column in answer}
        rest = [column for column in answer.columns if column not in (ID, *kinds)]
        wide = answer[rest].astype(object).where(answer[rest].notna(), None).to_dict("records")
        texts = {column: as_text(answer[column]) for column in kinds}
        rows = [
            {
                "run": hold.run, "job": job, "row": row, ID: str(series), TIME: texts[TIME][row],
                CUTOFF: texts[CUTOFF][row] if CUTOFF in texts else None, "answer": json.dumps(wide[row]),
            }
            for row, series in enumerate(answer[ID])
        ]  # fmt: skip
        form = {column: kinds.get(column, answer[column].dtype.kind) for column in answer.columns}
        known = dict(summary) | {"form": form, "rows": len(rows)}
        with self.writing() as connection:
            self._check(connection, hold)
            self._forget(connection, hold.run, job)
            if rows:
                connection.execute(_FORECASTS.insert(), rows)
            if state is not None:
                connection.execute(_STATES.insert().values(run=hold.run, job=job, **vars(state)))
            self._set(connection, hold.run, job, DONE, known)

    def fail(self, hold: Hold, job: str, reason: str, summary: Mapping[str, Any] | None = None) -> None:
        """A job gave nothing."""
        with self.writing() as connection:
            self._check(connection, hold)
            self._forget(connection, hold.run, job)
            self._set(connection, hold.run, job, FAILED, dict(summary or {}) | {"reason": reason})

    def publish(self, hold: Hold, keep: int | None = None) -> Run:
        """Let everybody see what the run's jobs gave, all at once, and end it.

        The states of the runs before, of the same jobs, are no longer needed and go; so do the forecasts of all but the
        last `keep` runs of the plan, where that is given. What became of their jobs stays.
        """
        with self.writing() as connection:
            self._check(connection, hold)
            jobs = connection.execute(sql.select(_JOBS.c.name, _JOBS.c.status).where(_JOBS.c.run == hold.run)).all()
            done = [name for name, status in jobs if status == DONE]
            status = DONE if len(done) == len(jobs) else PARTIAL if done else FAILED
            connection.execute(
                _JOBS.update().where(_JOBS.c.run == hold.run, _JOBS.c.name.in_(done)).values(published=True)
            )
            plan = connection.execute(sql.select(_RUNS.c.plan).where(_RUNS.c.id == hold.run)).scalar()
            same = sql.select(_RUNS.c.id).where(_RUNS.c.plan == plan, _RUNS.c.id != hold.run)
            connection.execute(_STATES.delete().where(_STATES.c.run.in_(same), _STATES.c.job.in_(done)))
            connection.execute(_RUNS.update().where(_RUNS.c.id == hold.run).values(status=status, ended=text_of()))
            if keep is not None:
                of_plan = sql.select(_RUNS.c.id).where(_RUNS.c.plan == plan, _RUNS.c.status != RUNNING)
                runs = connection.execute(of_plan.order_by(*_NEWEST_FIRST)).scalars().all()
                connection.execute(_FORECASTS.delete().where(_FORECASTS.c.run.in_(runs[keep:])))
                connection.execute(_JOBS.update().where(_JOBS.c.run.in_(runs[keep:])).values(published=False))
        return self.run(hold.run)

    def interrupt(self, hold: Hold) -> None:
        """The run ends before its time; what its jobs gave stays, unseen, for `take_over`."""
        with self.writing() as connection:
            self._check(connection, hold)
            connection.execute(_RUNS.update().where(_RUNS.c.id == hold.run).values(status=INTERRUPTED, ended=text_of()))

    # --- what is there ---

    def runs(self, plan: str | None = None, last: int = 10) -> list[Run]:
        """The last runs, the newest first."""
        chosen = sql.select(_RUNS.c.id).order_by(*_NEWEST_FIRST).limit(last)
        with self.asking() as connection:
            ids = connection.execute(chosen if plan is None else chosen.where(_RUNS.c.plan == plan)).scalars().all()
        return [self.run(each) for each in ids]

    def run(self, run: str) -> Run:
        """
        Raises:
            StoreError: there is none of this name.
        """
        with self.asking() as connection:
            row = connection.execute(sql.select(_RUNS).where(_RUNS.c.id == run)).mappings().first()
            if row is None:
                raise StoreError(f"{run}: no run of this name in {self.name}; `mnemo batch status` lists them.")
            jobs = connection.execute(sql.select(_JOBS).where(_JOBS.c.run == run).order_by(_JOBS.c.place)).mappings()
            told = tuple(
                Job(job["name"], job["status"], bool(job["published"]), json.loads(job["summary"])) for job in jobs
            )
        return Run(
            row["id"], row["plan"], json.loads(row["spec"]), row["status"], row["host"], row["pid"], row["started"],
            row["alive"], row["ended"], told,
        )  # fmt: skip

    def forecasts(self, run: str, job: str) -> pd.DataFrame:
        """What a job of a published run gave, as it gave it.

        Raises:
            StoreError: there is no such job, or it is not published.
        """
        found = next((each for each in self.run(run).jobs if each.name == job), None)
        if found is None or not found.published:
            raise StoreError(f"{run}: has published nothing of a job {job}.")
        return self._read(run, found)

    def latest(self, plan: str, job: str) -> pd.DataFrame | None:
        """What the newest run that published this job of a plan gave."""
        chosen = (
            sql.select(_RUNS.c.id)
            .join(_JOBS, _JOBS.c.run == _RUNS.c.id)
            .where(_RUNS.c.plan == plan, _JOBS.c.name == job, _JOBS.c.published)
            .order_by(*_NEWEST_FIRST)
        )
        with self.asking() as connection:
            run = connection.execute(chosen.limit(1)).scalar()
        return None if run is None else self.forecasts(run, job)

    def state(self, plan: str, job: str) -> Left | None:
        """The state that the newest run that published this job of a plan left."""
        chosen = (
            sql.select(_STATES.c.content, _STATES.c.bundle)
            .join(_RUNS, _RUNS.c.id == _STATES.c.run)
            .join(_JOBS, sql.and_(_JOBS.c.run == _STATES.c.run, _JOBS.c.name == _STATES.c.job))
            .where(_RUNS.c.plan == plan, _STATES.c.job == job, _JOBS.c.published)
            .order_by(*_NEWEST_FIRST)
        )
        with self.asking() as connection:
            row = connection.execute(chosen.limit(1)).first()
        return None if row is None else Left(bytes(row[0]), row[1])

    def vacuum(self) -> int:
        """Drop what runs left that no one can see or go on with, and give the room back; how many rows went."""
        published = sql.select(_RUNS.c.plan, sql.func.max(_RUNS.c.started)).join(_JOBS, _JOBS.c.run == _RUNS.c.id)
        published = published.where(_JOBS.c.published).group_by(_RUNS.c.plan)
        ended = sql.select(_RUNS.c.id, _RUNS.c.plan, _RUNS.c.started).where(_RUNS.c.status != RUNNING)
        with self.writing() as connection:
            last = {row[0]: row[1] for row in connection.execute(published)}
            overtaken = [run for run, plan, started in connection.execute(ended) if started < last.get(plan, "")]
            unseen = sql.select(_JOBS.c.run, _JOBS.c.name).where(_JOBS.c.run.in_(overtaken), ~_JOBS.c.published)
            gone = 0
            for run, job in connection.execute(unseen).all():
                for table in (_FORECASTS, _STATES):
                    gone += connection.execute(table.delete().where(table.c.run == run, table.c.job == job)).rowcount
        self._give_room_back()
        return gone

    def _give_room_back(self) -> None:
        try:
            if self._url.get_backend_name() != "sqlite":
                with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                    connection.exec_driver_sql("VACUUM")
                return
            raw = self._engine.raw_connection()
            try:
                for command in ("VACUUM", "PRAGMA wal_checkpoint(TRUNCATE)"):
                    raw.cursor().execute(command)
            finally:
                raw.close()
        except (SQLAlchemyError, sqlite3.Error) as error:
            raise StoreError(f"{self.name}: {' '.join(str(error).split())}.{_hint(self._url)}") from error

    # --- within a transaction ---

    def _end_the_dead(self, connection: sql.Connection, plan: str) -> None:
        """Mark runs of a plan that died as interrupted.

        Raises:
            StoreError: one lives.
        """
        running = sql.select(_RUNS).where(_RUNS.c.plan == plan, _RUNS.c.status == RUNNING)
        for row in connection.execute(running).mappings().all():
            quiet = _now() - datetime.fromisoformat(row["alive"])
            gone = row["host"] == socket.gethostname() and not _is_alive(row["pid"])
            if not gone and quiet < QUIET:
                raise StoreError(
                    f"{plan}: its run {row['id']} goes on, on {row['host']} as process {row['pid']}, which gave a sign "
                    f"of life {quiet.total_seconds():.0f} s ago. Wait for its end."
                )
            connection.execute(
                _RUNS.update().where(_RUNS.c.id == row["id"]).values(status=INTERRUPTED, ended=row["alive"])
            )

    def _check(self, connection: sql.Connection, hold: Hold) -> None:
        """A sign of life of who holds the run.

        Raises:
            StoreError: somebody else does.
        """
        mine = sql.and_(_RUNS.c.id == hold.run, _RUNS.c.owner == hold.owner, _RUNS.c.status == RUNNING)
        if not connection.execute(_RUNS.update().where(mine).values(alive=text_of())).rowcount:
            raise StoreError(f"{hold.run}: was given no sign of life in time and counts as dead, or was taken over.")

    def _forget(self, connection: sql.Connection, run: str, job: str) -> None:
        for table in (_FORECASTS, _STATES):
            connection.execute(table.delete().where(table.c.run == run, table.c.job == job))

    def _set(self, connection: sql.Connection, run: str, job: str, status: str, summary: Mapping[str, Any]) -> None:
        here = sql.and_(_JOBS.c.run == run, _JOBS.c.name == job)
        connection.execute(_JOBS.update().where(here).values(status=status, summary=json.dumps(summary)))

    def _read(self, run: str, job: Job) -> pd.DataFrame:
        columns = (_FORECASTS.c[ID], _FORECASTS.c[TIME], _FORECASTS.c[CUTOFF], _FORECASTS.c.answer)
        here = sql.and_(_FORECASTS.c.run == run, _FORECASTS.c.job == job.name)
        with self.asking() as connection:
            rows = connection.execute(sql.select(*columns).where(here).order_by(_FORECASTS.c.row)).all()
        form: dict[str, str] = job.summary["form"]
        rest = [json.loads(row[3]) for row in rows]
        read: dict[str, Any] = {ID: [row[0] for row in rows]}
        for column, place in ((TIME, 1), (CUTOFF, 2)):
            if column in form:
                read[column] = from_text([row[place] for row in rows], form[column])
        for column in form:
            if column not in read:
                values = [row[column] for row in rest]
                read[column] = np.array(values, np.float64) if form[column] == "f" else values
        return pd.DataFrame({column: read[column] for column in form})


def _now() -> datetime:
    return datetime.now(UTC)


def text_of(at: datetime | None = None) -> str:
    return (at or _now()).isoformat(timespec="microseconds")


def _sign(hold: Hold) -> dict[str, Any]:
    """What marks a run as going on, by whom."""
    here = {"host": socket.gethostname(), "pid": os.getpid()}
    return here | {"status": RUNNING, "owner": hold.owner, "alive": text_of()}


def _is_alive(pid: int) -> bool:
    if os.name != "posix":
        return True  # where signal 0 is none that asks; signs of life have to do
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def as_text(times: pd.Series) -> list[str]:
    """Times as text that sorts as they do where they are dates, and is read back exactly."""
    values = times.to_numpy()
    if values.dtype.kind == "M":
        return np.datetime_as_string(values.astype("datetime64[ns]")).tolist()
    return [repr(value) for value in values.tolist()]


def from_text(texts: Sequence[str], kind: str) -> np.ndarray:
    if kind == "M":
        return np.array(texts, dtype="datetime64[ns]")
    return np.array(texts, dtype=object).astype(np.int64 if kind in "iu" else np.float64)


def _hint(url: sql.URL) -> str:
    if url.get_backend_name() == "sqlite":
        return " Is its folder there, and may this user write to it?"
    return " Is the server up, and is psycopg here (the extra `postgres`)?"
