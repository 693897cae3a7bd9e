"""Lines to an MQTT 5 broker, a message each."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import Self

import aiomqtt

from sensors.mqtt_broker import MqttBroker, refuse_bad_topic
from sensors.sinks import Sink
from sensors.stream import SensorError, SourceLost

CONNECT_S = 5.0


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
        try:
            await self._client.publish(self.target.topic, line.encode(), qos=self.target.qos)
        except aiomqtt.MqttError as error:
            raise SourceLost(f"{self.target.uri}/{self.target.topic}: the broker is lost ({error}).") from error

    async def __aexit__(self, *_: object) -> None:
        with contextlib.suppress(aiomqtt.MqttError):  # what is broken needs no farewell
            await self._client.__aexit__(None, None, None)
