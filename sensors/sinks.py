"""Where lines go: to the standard output, a file, or an MQTT 5 broker, a message each.

    -                                       the standard output
    file:PATH, or PATH                      a new file; a line is there as soon as it is written
    mqtt://[USER@]HOST[:PORT]/TOPIC         password_env or password_file, ...; mqtts:// with TLS

Settings follow a URI as a query, as those of a source (`sources.open`).
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from sensors.sources.open import mqtt_address, refuse_secrets, split_uri
from sensors.sources.settings import parse_settings, shown
from sensors.stream import SensorError


class Sink(ABC):
    """`async with sink: await sink.write(line)`."""

    @abstractmethod
    async def write(self, line: str) -> None:
        """
        Raises:
            SourceLost: whoever took the lines is gone.
        """

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(  # noqa: B027
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class TextSink(Sink):
    """The standard output, or a file that is not there yet."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._file: TextIO = sys.stdout

    async def write(self, line: str) -> None:
        self._file.write(line + "\n")
        self._file.flush()

    async def __aenter__(self) -> Self:
        if self.path is not None:
            try:
                self._file = self.path.open("x", encoding="utf-8")
            except FileExistsError as error:
                raise SensorError(f"{self.path} is there already: move it away, or name another file.") from error
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.path is not None:
            self._file.close()


def open_sink(to: str) -> Sink:
    """The sink of a URI, not opened yet.

    Raises:
        SensorError: an unknown kind or setting, one that is missing or cannot be, or a secret in the URI.
    """
    if to == "-":
        return TextSink(None)
    scheme = to.partition(":")[0]
    if scheme in ("mqtt", "mqtts"):
        address, given = split_uri(to, "?")
        refuse_secrets(given, address)
        try:
            from sensors.mqtt_sink import MqttSink, MqttTarget

            return MqttSink(parse_settings(MqttTarget, mqtt_address(address) | given, address))
        except ImportError as error:
            raise SensorError(
                f"{address}: {error.name} is not installed; install mnemosyne-forecast[robot]."
            ) from error
    if "://" in to:
        raise SensorError(f"{shown(to)}: nothing is sent to '{scheme}'; expected -, a file, mqtt:// or mqtts://.")
    path = Path(to.removeprefix("file:"))
    if not path.name:
        raise SensorError(f"{to}: names no file.")
    return TextSink(path)
