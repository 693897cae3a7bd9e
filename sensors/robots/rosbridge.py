"""ROS through a rosbridge server: JSON over a websocket, with roslibpy.

The messages are those of ROS 2 (`sec`, `nanosec`). A server does not say who listens, so `heard` is that the server is.
roslibpy would keep messages until a lost server is back; nothing is handed to it while there is none.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import asdict, fields
from typing import Any

import roslibpy

from sensors.robot import RobotError


class RosbridgeWire:
    """A connection to a rosbridge server."""

    def __init__(self, host: str, port: int = 9090, secure: bool = False, wait_s: float = 3.0) -> None:
        self.uri = f"rosbridge:{host}:{port}"
        self.remedy = "and the server connected to it"
        self._ros: roslibpy.Ros | None = None
        self._address = (host, port, secure)
        self._wait_s = wait_s
        self._topics: dict[str, roslibpy.Topic] = {}

    def open(self) -> None:
        host, port, secure = self._address
        ros = roslibpy.Ros(host, port, is_secure=secure, transport="asyncio")  # the other one starts once a process
        try:
            ros.run(timeout=self._wait_s)
        except Exception as error:  # roslibpy has an exception of its own, and lets those of its transport through
            ros.terminate()
            raise RobotError(
                f"{self.uri}: no rosbridge server answered within {self._wait_s:g} s ({error}). Start it "
                "(rosbridge_server), or check the address."
            ) from error
        self._ros = ros

    def close(self) -> None:
        if self._ros is not None:
            closed = threading.Event()
            self._ros.on("close", lambda _: closed.set())
            if self._ros.is_connected:
                self._ros.close(timeout=self._wait_s)
                closed.wait(self._wait_s)
            self._ros.terminate()
        self._topics, self._ros = {}, None

    def advertise(self, topic: str, kind: type[Any]) -> None:
        self._topics[topic] = roslibpy.Topic(self._ros, topic, _type_name(kind), queue_size=1)
        self._topics[topic].advertise()

    def subscribe(self, topic: str, kind: type[Any], take: Callable[[Any], None]) -> None:
        self._topics[topic] = roslibpy.Topic(self._ros, topic, _type_name(kind), queue_length=1)
        self._topics[topic].subscribe(lambda message: take(from_json(kind, message)))

    def publish(self, topic: str, message: Any) -> None:
        if not self.heard(topic):
            raise RobotError(f"{self.uri}: the rosbridge server is gone.")
        self._topics[topic].publish(roslibpy.Message(asdict(message)))

    def heard(self, topic: str) -> bool:
        return self._ros is not None and bool(self._ros.is_connected)


def from_json(kind: type[Any], message: dict[str, Any]) -> Any:
    """A message as rosbridge writes it; fields that it has besides are left."""
    values = {}
    for each in fields(kind):
        if each.name in message:
            value = message[each.name]
            values[each.name] = from_json(each.type, value) if isinstance(value, dict) else value  # type: ignore[arg-type]
    return kind(**values)


def _type_name(kind: type[Any]) -> str:
    """Such as geometry_msgs/TwistStamped."""
    package, _, name = kind.__idl_typename__.partition("::msg::dds_::")
    return f"{package}/{name.rstrip('_')}"
