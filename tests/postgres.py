"""A PostgreSQL of a test's own: a cluster in a folder, listening on a socket there alone."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def programs() -> Path:
    """The folder of its programs; skips the test, or fails it where services are required."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    here = shutil.which("pg_ctl")
    if not found and here is None:
        reason = "PostgreSQL is not installed; apt-get install postgresql"
        if os.environ.get("MNEMO_REQUIRE_SERVICES") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return found[-1].parent if found else Path(str(here)).parent


@contextmanager
def server() -> Iterator[str]:
    """The URL of an empty database, as long as the block lasts."""
    place = programs()
    folder = Path(tempfile.mkdtemp(prefix="pg"))  # a socket's path is short
    user = "postgres" if os.getuid() == 0 else None  # it refuses to run as root
    if user is not None:
        os.chown(folder, pwd.getpwnam(user).pw_uid, -1)

    def call(program: str, *options: str) -> None:
        subprocess.run([place / program, *options], check=True, capture_output=True, user=user, cwd=folder, timeout=60)

    try:
        call("initdb", "-D", str(folder / "data"), "-A", "trust", "-U", "mnemo", "-E", "UTF8", "--no-sync")
        settings = f"-k {folder} -c listen_addresses='' -c fsync=off"
        call("pg_ctl", "-D", str(folder / "data"), "-l", str(folder / "log"), "-o", settings, "-w", "start")
        try:
            yield f"postgresql+psycopg://mnemo@/postgres?host={folder}"
        finally:
            call("pg_ctl", "-D", str(folder / "data"), "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(folder)
