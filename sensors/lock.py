"""One bridge, one robot: a lock on the robot's URI, for all users of this machine, that ends with its process."""

from __future__ import annotations

import errno
import hashlib
import socket
import struct
from types import TracebackType
from typing import Self

from sensors.robot import RobotError

CREDENTIALS = struct.Struct("3i")  # process, user, group


class RobotLock:
    """`with RobotLock(uri): ...`; a second holder, in this process or another one, is refused.

    The lock is a socket's name in the kernel (unix(7), abstract), one for all whatever their users, folders and
    environments are; a process that dies leaves none behind. Containers with a network of their own do not share it.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._socket: socket.socket | None = None

    def acquire(self) -> None:
        """
        Raises:
            RobotError: another bridge has the robot; the message names its process.
        """
        name = f"\0mnemosyne-robot-{hashlib.sha256(self.uri.encode()).hexdigest()[:32]}"
        held = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            held.bind(name)
            held.listen()  # so that who is refused can ask which process this is
        except OSError as error:
            held.close()
            if error.errno != errno.EADDRINUSE:
                raise RobotError(f"{self.uri}: its lock is not to be had ({error.strerror}).") from error
            raise RobotError(
                f"{self.uri} is driven by another bridge, process {_holder(name)}: stop that one first."
            ) from error
        self._socket = held

    def release(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _holder(name: str) -> str:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.setblocking(False)
        try:
            asking.connect(name)
            credentials = asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
        except OSError:  # it has just gone, or too many have asked
            return "unknown"
    return str(CREDENTIALS.unpack(credentials)[0])
