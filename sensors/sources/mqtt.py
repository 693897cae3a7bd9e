"""Frames from an MQTT 5 broker, one a message (`payload`), with aiomqtt.

Nothing old comes: the session is clean, so that the broker keeps nothing while we are away, and retained messages,
which are marked as such, are dropped. A broker that closes the connection is noticed at once; one that falls silent
after one and a half `keepalive_s`, which is late: it is the silence of the stream that tells a robot to stop.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from dataclasses import dataclass, field

import aiomqtt
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from sensors.mqtt_broker import MqttBroker, refuse_bad_topic
from sensors.sources.live import ReconnectingSource, Unreachable
from sensors.sources.payload import DECODERS
from sensors.sources.settings import refuse_bad_time, refuse_unless
from sensors.stream import Clock, SensorError, StreamInfo

CONNECT_S = 5.0
REFUSED = 0x80  # reason codes from here on are errors
NO_ACCESS = (0x86, 0x87, 0x8C)  # bad user name or password, not authorised, bad authentication method


@dataclass(frozen=True)
class MqttConfig(MqttBroker):
    """Where the frames are published."""

    topic: str = field(kw_only=True)
    payload: str = "json"  # or hand, binary
    qos: int = 0
    client_id: str = ""  # the broker gives one if empty
    keepalive_s: int = 5
    give_up_after_s: float = 30.0

    def __post_init__(self) -> None:
        super().__post_init__()
        where = f"mqtt {self.host}"
        refuse_bad_topic(where, self.topic)
        refuse_unless(self.payload in DECODERS, where, "payload", self.payload, " or ".join(DECODERS))
        refuse_unless(self.qos in (0, 1, 2), where, "qos", self.qos, "0, 1 or 2")
        refuse_unless(0 < self.keepalive_s < 65536, where, "keepalive_s", self.keepalive_s, "1 to 65535")
        refuse_bad_time(where, "give_up_after_s", self.give_up_after_s)

    @property
    def uri(self) -> str:
        return f"{super().uri}/{self.topic}"


class MqttSource(ReconnectingSource):
    """Subscribes to one topic."""

    def __init__(self, config: MqttConfig, info: StreamInfo, clock: Clock = time.monotonic) -> None:
        super().__init__(info, config.give_up_after_s, clock)
        self.config = config
        self._decode = DECODERS[config.payload]
        self._tls: ssl.SSLContext | None = None

    async def connect(self) -> None:
        config = self.config
        self._tls = await asyncio.to_thread(config.context)
        await super().connect()

    async def _session(self) -> None:
        config = self.config
        client = self._client(config.password())
        try:
            await client.__aenter__()
        except aiomqtt.MqttError as error:
            raise self._explained(error) from error
        try:
            answers = await client.subscribe(config.topic, options=SubscribeOptions(qos=config.qos))
            refused = [answer for answer in answers if isinstance(answer, ReasonCode) and answer.value >= REFUSED]
            if refused:
                raise SensorError(
                    f"{config.uri}: the broker does not let {config.user or 'an anonymous client'} subscribe "
                    f"to {config.topic} ({refused[0]}). Check its access list."
                )
            self._opened()
            async for _ in client.messages:  # none comes this way; it ends when the connection does
                pass
        except aiomqtt.MqttError as error:
            raise self._explained(error) from error
        finally:
            self.connected = False
            with contextlib.suppress(aiomqtt.MqttError):  # what is broken needs no farewell
                await client.__aexit__(None, None, None)

    def _client(self, password: str | None) -> aiomqtt.Client:
        config, receive = self.config, self._receive

        class Straight(asyncio.Queue[aiomqtt.Message]):
            """Not a queue: what comes is handed over at once, not when a task gets round to it."""

            def put_nowait(self, item: aiomqtt.Message) -> None:
                receive(item)

        return aiomqtt.Client(
            config.host,
            config.port,
            username=config.user or None,
            password=password,
            identifier=config.client_id or None,
            protocol=aiomqtt.ProtocolVersion.V5,
            clean_start=True,
            keepalive=config.keepalive_s,
            timeout=CONNECT_S,
            tls_context=self._tls,
            queue_type=Straight,
        )

    def _receive(self, message: aiomqtt.Message) -> None:
        received = self.clock()
        if message.retain:
            self.drop(f"{self.info.stream_id}: a retained message, which may be of any time.")
        else:
            self.take_message(self._decode, bytes(message.payload), received)

    def _explained(self, error: aiomqtt.MqttError) -> SensorError:
        config = self.config
        reason = error.rc if isinstance(error, aiomqtt.MqttCodeError) else None
        if isinstance(reason, ReasonCode) and reason.value in NO_ACCESS:
            who = f"user {config.user}" if config.user else "a client without a user"
            return SensorError(f"{config.uri}: the broker refuses {who} ({reason}). Check user and password.")
        if isinstance(error.__context__, ssl.SSLCertVerificationError):
            return SensorError(
                f"{config.uri}: the broker's certificate is not trusted ({error}). Check host and ca_file."
            )
        return Unreachable(
            f"{config.uri}: no MQTT 5 broker answers at {config.host}, port {config.port} ({error}). Start it "
            f"(mosquitto), or check the address{' and that this port speaks TLS' if config.tls else ''}."
        )
