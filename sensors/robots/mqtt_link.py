"""A connection to an MQTT 5 broker as robots need it: nothing old comes or goes.

The session is clean and ends with the connection, messages are QoS 0 and never retained, and what cannot be sent now is
not sent: so neither the broker nor the client keeps a command for later. paho's own thread reads; a lost broker is
tried again until `close`.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode

from sensors.mqtt_broker import MqttBroker
from sensors.robot import RobotError
from sensors.stream import SensorError

KEEPALIVE_S = 2
WAIT_S = 5.0  # for the broker's answer
RETRY_S = 1


class MqttLink:
    """Subscribes to some topics; hands over what comes, and tells when the broker is there and when it is not."""

    def __init__(
        self,
        broker: MqttBroker,
        topics: list[str],
        take: Callable[[str, bytes], None],
        up: Callable[[], None],
        down: Callable[[], None],
        will: tuple[str, bytes] | None = None,
    ) -> None:
        """
        Args:
            take: gets topic and payload, in paho's thread.
            up: is called whenever the topics are subscribed to.
            down: is called when the broker is lost.
            will: topic and payload that the broker sends for us when it loses us.
        """
        self.broker = broker
        self._topics, self._take, self._up, self._down, self._will = topics, take, up, down, will
        self._client: mqtt.Client | None = None
        self._ready = threading.Event()
        self._refused = ""

    @property
    def connected(self) -> bool:
        return self._client is not None and self._ready.is_set()

    def open(self) -> None:
        """
        Raises:
            RobotError: no broker answers, or it refuses.
        """
        broker = self.broker
        client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        client.on_connect, client.on_disconnect = self._on_connect, self._on_disconnect
        client.on_subscribe, client.on_message = self._on_subscribe, self._on_message
        client.on_socket_open = _without_delay
        client.reconnect_delay_set(RETRY_S, RETRY_S)
        if self._will is not None:
            client.will_set(*self._will)
        self._ready.clear()
        self._refused = ""
        try:
            if broker.user:
                client.username_pw_set(broker.user, broker.password())
            if context := broker.context():
                client.tls_set_context(context)
            client.connect(broker.host, broker.port, keepalive=KEEPALIVE_S, clean_start=True)
        except SensorError as error:
            raise RobotError(str(error)) from error
        except OSError as error:
            raise RobotError(
                f"{broker.uri}: no MQTT broker answers ({error}). Start it (mosquitto), or check the address."
            ) from error
        self._client = client
        client.loop_start()
        if not self._ready.wait(WAIT_S) or self._refused:
            self.close()
            why = self._refused or f"no answer within {WAIT_S:g} s"
            raise RobotError(f"{broker.uri}: the broker does not let us in ({why}). Check user, password and access.")

    def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.disconnect()
            client.loop_stop()

    def publish(self, topic: str, payload: bytes) -> None:
        """Now, or not at all.

        Raises:
            RobotError: the broker is not there.
        """
        client = self._client
        if client is None or not self._ready.is_set():
            raise RobotError(f"{self.broker.uri}: the broker is gone.")
        answer = client.publish(topic, payload, qos=0, retain=False)
        if answer.rc is not MQTTErrorCode.MQTT_ERR_SUCCESS:
            raise RobotError(f"{self.broker.uri}: the broker is gone ({answer.rc.name}).")

    def _on_connect(self, client: mqtt.Client, _: Any, __: Any, reason: Any, ___: Any) -> None:
        if reason.is_failure:
            self._refused = str(reason)
            self._ready.set()
            return
        client.subscribe([(topic, mqtt.SubscribeOptions(qos=0, retainHandling=2)) for topic in self._topics])

    def _on_subscribe(self, _: mqtt.Client, __: Any, ___: int, reasons: list[Any], ____: Any) -> None:
        failures = [str(reason) for reason in reasons if reason.is_failure]
        if failures:
            self._refused = f"{', '.join(self._topics)}: {failures[0]}"
        self._ready.set()
        if not failures:
            self._up()

    def _on_disconnect(self, *_: Any) -> None:
        self._ready.clear()
        self._down()

    def _on_message(self, _: mqtt.Client, __: Any, message: mqtt.MQTTMessage) -> None:
        if not message.retain:  # a retained one may be of any time
            self._take(message.topic, bytes(message.payload))


def _without_delay(_: Any, __: Any, connection: Any) -> None:
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
