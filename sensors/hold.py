"""Hold-to-run by an MQTT topic: a pedal or a switch that says, again and again, that it is pressed.

A message `1` holds, `0` lets go. A hold ages like everything else that moves a robot: a switch has to repeat itself at
least every 50 ms or so, and one that falls silent has let go, as has one whose broker is lost.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from sensors.mqtt_broker import MqttBroker, refuse_bad_topic
from sensors.robots.mqtt_link import MqttLink
from sensors.stream import Clock

HOLDS, LETS_GO = b"1", b"0"


@dataclass(frozen=True)
class HoldTopic(MqttBroker):
    """Where the switch is heard."""

    topic: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_bad_topic(f"hold, {self.uri}", self.topic)


class TopicHold:
    """Calls `hold(received)` and `release()` from the connection's thread."""

    def __init__(
        self,
        where: HoldTopic,
        hold: Callable[[float], None],
        release: Callable[[], None],
        clock: Clock = time.monotonic,
    ) -> None:
        self.refused = 0  # messages that are neither
        self._hold, self._release, self._clock = hold, release, clock
        self._link = MqttLink(where, [where.topic], self._take, up=_nothing, down=release)

    def _take(self, topic: str, payload: bytes) -> None:
        if payload == HOLDS:
            self._hold(self._clock())
        else:  # what is not understood does not hold
            self.refused += payload != LETS_GO
            self._release()

    def __enter__(self) -> Self:
        """Raises RobotError: no broker answers, or it refuses."""
        self._link.open()
        return self

    def __exit__(self, *_: object) -> None:
        self._link.close()
        self._release()


def _nothing() -> None:
    """A new connection holds nothing."""
