"""Where lines go: to the standard output, a file, or an MQTT 5 broker, a message each.

    -                                       the standard output
    file:PATH, or PATH                      a new file; a line is there as soon as it is written
    mqtt://[USER@]HOST[:PORT]/TOPIC         password_env or password_file, ...; mqtts:// with TLS

Settings follow a URI as a query, as those of a source (`sources.open`).
"""

from __future__ import annotations

import asyncio
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from sensors.mqtt_broker import MqttBroker, refuse_bad_topic
from sensors.sources.open import mqtt_address, refuse_secrets, split_uri
from sensors.sources.settings import parse_settings, shown
from sensors.stream import SensorError, SourceLost

CONNECT_S = 5.0


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


@dataclass(frozen=True)
class MqttTarget(MqttBroker):
    """Where lines are published."""

    topic: str = field(kw_only=True)
    qos: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_bad_topic(f"mqtt {self.host}", self.topic)
        if self.qos not in (0, 1, 2):
            raise SensorError(f"mqtt {self.host}: qos is {self.qos!r}, expected 0, 1 or 2.")


class MqttSink(Sink):
    """Publishes; nothing is retained. A broker that is lost ends it, for lines that are kept for later are old then."""

    def __init__(self, target: MqttTarget) -> None:
        self.target = target

    async def __aenter__(self) -> Self:
        import aiomqtt

        target = self.target
        self._client = aiomqtt.Client(
            target.host,
            target.port,
            username=target.user or None,
            password=target.password(),
            protocol=aiomqtt.ProtocolVersion.V5,
            clean_start=True,
            timeout=CONNECT_S,
            tls_context=await asyncio.to_thread(target.context),
        )
        try:
            await self._client.__aenter__()
        except aiomqtt.MqttError as error:
            raise SensorError(
                f"{target.uri}/{target.topic}: the broker at {target.host}, port {target.port}, does not let us in "
                f"({error}). Start it (mosquitto), or check address, user and password."
            ) from error
        return self

    async def write(self, line: str) -> None:
        import aiomqtt

        try:
            await self._client.publish(self.target.topic, line.encode(), qos=self.target.qos)
        except aiomqtt.MqttError as error:
            raise SourceLost(f"{self.target.uri}/{self.target.topic}: the broker is lost ({error}).") from error

    async def __aexit__(self, *_: object) -> None:
        import contextlib

        import aiomqtt

        with contextlib.suppress(aiomqtt.MqttError):  # what is broken needs no farewell
            await self._client.__aexit__(None, None, None)


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
