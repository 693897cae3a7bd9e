"""ROS 2 on its own wire, DDS, without an installation of ROS.

DDS keeps one command at most, for no longer than LIFESPAN_S, which some vendors count from a sample's arrival: what
waited on the way is told by its stamp (`ros`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from cyclonedds.core import DDSException, Listener, Policy, Qos
from cyclonedds.domain import DomainParticipant
from cyclonedds.internal import InvalidSample
from cyclonedds.pub import DataWriter
from cyclonedds.sub import DataReader
from cyclonedds.topic import Topic
from cyclonedds.util import duration

from sensors.robot import RobotError

LIFESPAN_S = 0.1
RELIABLE = (Policy.Reliability.Reliable(duration(milliseconds=2)), Policy.History.KeepLast(1))


class DdsWire:
    """A participant in a ROS 2 domain."""

    def __init__(self, domain: int = 0) -> None:
        """domain: ROS_DOMAIN_ID."""
        self.uri = f"ros2:{domain}"
        self.remedy = f"in ROS domain {domain}"
        self._domain = domain
        self._participant: DomainParticipant | None = None
        self._writers: dict[str, DataWriter] = {}
        self._readers: list[DataReader] = []  # they live as long as they are held

    def open(self) -> None:
        try:
            self._participant = DomainParticipant(self._domain)
        except DDSException as error:
            raise RobotError(f"{self.uri}: DDS cannot start ({error}). Is a network interface up?") from error

    def close(self) -> None:
        for writer in self._writers.values():
            writer.wait_for_acks(duration(milliseconds=100))
        self._writers, self._readers, self._participant = {}, [], None

    def advertise(self, topic: str, kind: type[Any]) -> None:
        qos = Qos(*RELIABLE, Policy.Lifespan(duration(seconds=LIFESPAN_S)))
        with self._naming(topic):
            self._writers[topic] = DataWriter(self._there(), self._topic(topic, kind), qos)

    def subscribe(self, topic: str, kind: type[Any], take: Callable[[Any], None]) -> None:
        with self._naming(topic):
            reader: DataReader = DataReader(
                self._there(), self._topic(topic, kind), Qos(*RELIABLE), listener=_Newest(take)
            )
        self._readers.append(reader)

    def publish(self, topic: str, message: Any) -> None:
        try:
            self._writers[topic].write(message)
        except DDSException as error:
            raise RobotError(f"{self.uri}{topic}: the message could not be handed over ({error}).") from error

    def heard(self, topic: str) -> bool:
        return self._writers[topic].get_publication_matched_status().current_count > 0

    @contextmanager
    def _naming(self, topic: str) -> Iterator[None]:
        try:
            yield
        except DDSException as error:
            raise RobotError(
                f"{self.uri}: '{topic}' cannot be a topic here ({error}). ROS names are letters, digits, _ and /, and "
                "one name carries one type."
            ) from error

    def _topic(self, name: str, kind: type[Any]) -> Topic:
        return Topic(self._there(), f"rt/{name.lstrip('/')}", kind)

    def _there(self) -> DomainParticipant:
        if self._participant is None:
            raise RobotError(f"{self.uri}: is not connected.")
        return self._participant


class _Newest(Listener):
    """Hands samples on, from DDS' own thread."""

    def __init__(self, take: Callable[[Any], None]) -> None:
        super().__init__()
        self._take = take

    def on_data_available(self, reader: DataReader) -> None:
        for sample in reader.take(N=8):
            if not isinstance(sample, InvalidSample):
                self._take(sample)
