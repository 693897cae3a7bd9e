"""What a bridge says of itself is right, and Prometheus can read it."""

import math
import urllib.request

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensors.stream import SensorError
from sensors.telemetry import STEP, Durations, Reading, serve


@given(st.lists(st.floats(1e-5, 50.0), min_size=1, max_size=200), st.floats(0.01, 1.0))
def test_a_quantile_of_durations_is_right_to_a_bucket(seconds: list[float], level: float) -> None:
    durations = Durations()
    for one in seconds:
        durations.add(one)
    exact = float(np.quantile(seconds, level, method="inverted_cdf"))
    assert exact / STEP <= durations.quantile(level) <= exact * STEP * (1 + 1e-9)
    assert durations.count == len(seconds)
    assert durations.longest == max(seconds)


def test_no_durations_have_no_quantile() -> None:
    assert math.isnan(Durations().quantile(0.5))


def test_a_duration_outside_the_buckets_is_kept_as_the_longest() -> None:
    durations = Durations()
    durations.add(1e6)
    assert durations.quantile(0.99) == 1e6


def test_prometheus_reads_counters_gauges_and_states_and_no_free_text() -> None:
    readings = [
        Reading("frames_total", "frames", "counter", 12),
        Reading("latency_p99_seconds", "latency", "gauge", 0.002, "s"),
        Reading("safety_state", "state", "state", "armed"),
        Reading("safety_why", "because", "text", "who knows"),
    ]
    end = serve(lambda: readings, 19464)
    try:
        with urllib.request.urlopen("http://127.0.0.1:19464/metrics") as answer:
            text = answer.read().decode()
    finally:
        end()
    assert "who knows" not in text
    assert "mnemo_bridge_frames_total 12.0" in text
    assert "mnemo_bridge_latency_p99_seconds 0.002" in text
    assert 'mnemo_bridge_safety_state{state="armed"} 1.0' in text


def test_a_port_that_is_taken_is_an_error_that_names_it() -> None:
    end = serve(list, 19465)
    try:
        with pytest.raises(SensorError, match="port 19465"):
            serve(list, 19465)
    finally:
        end()


def test_a_number_that_no_port_has_is_an_error_that_names_it() -> None:
    with pytest.raises(SensorError, match="port 99999"):
        serve(list, 99_999)
