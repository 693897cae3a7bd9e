"""What a running bridge says of itself: named readings, and durations in a histogram.

One list of readings serves the text panel and the Prometheus endpoint, so that both say the same.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, NamedTuple

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from sensors.stream import SensorError

STEP = 1.05  # ratio of a bucket's edges: quantiles are right to 5 %
SHORTEST, LONGEST = 1e-6, 100.0  # s
EDGES = tuple(SHORTEST * STEP**i for i in range(math.ceil(math.log(LONGEST / SHORTEST, STEP)) + 1))


class Reading(NamedTuple):
    """One thing that can be asked at any time."""

    name: str  # as Prometheus wants it, without the prefix: frames_total, latency_p99_seconds
    title: str  # for a person
    kind: Literal["counter", "gauge", "state", "text"]
    value: float | str  # a state is one of a few words, and the label of a gauge that is 1; a text is for people alone
    unit: str = ""  # for a person: seconds are shown in ms


class Durations:
    """A histogram in constant memory; one thread adds, any thread asks."""

    def __init__(self) -> None:
        self._counts = [0] * (len(EDGES) + 1)
        self.count = 0
        self.longest = 0.0  # s

    def add(self, seconds: float) -> None:
        self._counts[bisect_right(EDGES, seconds)] += 1
        self.count += 1
        self.longest = max(self.longest, seconds)

    def quantile(self, level: float) -> float:
        """The upper edge of the bucket in which the quantile lies, s; NaN before the first."""
        counts = list(self._counts)
        remaining = level * sum(counts)
        if not any(counts):
            return math.nan
        for edge, count in zip(EDGES, counts, strict=False):
            remaining -= count
            if remaining <= 0:
                return min(edge, self.longest)
        return self.longest


class _Exporter(Collector):
    def __init__(self, read: Callable[[], Iterable[Reading]]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        for reading in self._read():
            name = f"mnemo_bridge_{reading.name}"
            if reading.kind == "text":  # each new one would be a new series for Prometheus to keep
                continue
            if reading.kind == "state":
                label = reading.name.rpartition("_")[2]
                gauge = GaugeMetricFamily(name, reading.title, labels=[label])
                gauge.add_metric([str(reading.value)], 1)
                yield gauge
            elif reading.kind == "counter":
                yield CounterMetricFamily(name, reading.title, value=float(reading.value))
            else:
                yield GaugeMetricFamily(name, reading.title, value=float(reading.value))


def serve(read: Callable[[], Iterable[Reading]], port: int, host: str = "127.0.0.1") -> Callable[[], None]:
    """Answer Prometheus at http://host:port/metrics from a thread of its own; what is returned ends it.

    Raises:
        SensorError: the port is taken or not to be had.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Exporter(read))
    try:
        server, thread = start_http_server(port, addr=host, registry=registry)
    except (OSError, OverflowError) as error:  # the latter of a number that no port has
        raise SensorError(f"metrics: port {port} of {host} is not to be had ({error}); name another one.") from error

    def end() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return end
