"""One bridge, one robot: a lock on the robot's URI that ends with the process that holds it."""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from sensors.robot import RobotError


def runtime_directory() -> Path:
    """This user's folder for what lives as long as a login."""
    given = os.environ.get("XDG_RUNTIME_DIR")
    path = Path(given) / "mnemosyne" if given else Path(tempfile.gettempdir()) / f"mnemosyne-{os.getuid()}"
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.stat().st_uid != os.getuid():
        raise RobotError(f"{path} belongs to another user: set XDG_RUNTIME_DIR to a folder of yours.")
    return path


class RobotLock:
    """`with RobotLock(uri): ...`; a second holder, in this process or another one, is refused.

    The lock is the kernel's (flock), so a process that dies leaves none behind.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._file: int | None = None

    def acquire(self) -> None:
        """
        Raises:
            RobotError: another bridge has the robot; the message names its process.
        """
        path = runtime_directory() / f"{hashlib.sha256(self.uri.encode()).hexdigest()[:32]}.lock"
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(file, 64).decode(errors="replace").strip() or "unknown"
            os.close(file)
            raise RobotError(
                f"{self.uri} is driven by another bridge, process {holder}: stop that one first."
            ) from error
        os.ftruncate(file, 0)
        os.write(file, str(os.getpid()).encode())
        self._file = file

    def release(self) -> None:
        if self._file is not None:
            os.close(self._file)  # which unlocks it
            self._file = None

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
