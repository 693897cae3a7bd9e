"""A mosquitto of a test's own: starts, dies and comes back at will."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

START_S = 10


def mosquitto() -> str:
    """Its path; skips the test, or fails it where services are required."""
    path = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if path is None:
        reason = "mosquitto is not installed; apt-get install mosquitto"
        if os.environ.get("MNEMO_REQUIRE_SERVICES") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Broker:
    """On one port of this machine; `lines` are of its configuration."""

    def __init__(self, folder: Path, *lines: str) -> None:
        self.port = free_port()
        self._command = [mosquitto(), "-c", str(folder / "mosquitto.conf")]
        # Started by root it would become another user, who may not read the test's folder.
        settings = [f"user {getpass.getuser()}", f"listener {self.port} 127.0.0.1", "set_tcp_nodelay true"]
        settings += ["persistence false", *lines]
        (folder / "mosquitto.conf").write_text("\n".join(settings) + "\n")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + START_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                assert self._process.poll() is None, "mosquitto ended at once"
                assert time.monotonic() < end, f"mosquitto did not listen within {START_S} s"
                time.sleep(0.01)

    def pause(self) -> None:
        """Frozen, until it goes on: it holds its connections and says nothing."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __enter__(self) -> Broker:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
