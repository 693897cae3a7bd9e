"""A source's clock, as its frames tell it."""

import numpy as np
import pytest

from sensors.clocks import ClockJump, ClockMap


def stream(seconds: float, drift: float = 0.0, jitter_s: float = 0.003, rate: float = 100.0, seed: int = 0):
    """(source times, when they were received): 2 ms at least, and a delay that jitters, by a clock 1000 s behind."""
    rng = np.random.default_rng(seed)
    ours = np.arange(int(seconds * rate)) / rate
    times = 50 + ours * (1 - drift)
    return times, 1050 + ours + 0.002 + rng.exponential(jitter_s, len(ours))


@pytest.mark.parametrize("drift", [0.0, 2e-4, -2e-4])
def test_offset_and_drift_are_found_in_spite_of_jitter(drift):
    times, received = stream(60, drift)
    clock = ClockMap("glove", 0.1)
    for time, at in zip(times.tolist(), received.tolist(), strict=True):
        clock.update(time, at)
    assert clock.drift == pytest.approx(drift, abs=3e-5)
    fastest = 1050 + (times - 50) / (1 - drift) + 0.002
    found = np.array([clock.local(time) for time in times[-500:]])
    assert np.abs(found - fastest[-500:]).max() < 0.001


def test_the_excess_is_how_much_later_a_frame_is_than_it_can_be():
    clock = ClockMap("glove", 0.1)
    excess = [clock.update(time, time + 7 + delay) for time, delay in enumerate([0.004, 0.002, 0.012, 0.003])]
    assert excess == pytest.approx([0, 0, 0.010, 0.001])


def test_a_slower_way_is_forgotten_no_later_than_it_counts():
    """The way gets 20 ms longer: after SLICES seconds this is the fastest way there is."""
    clock = ClockMap("glove", 0.1)
    for index in range(1000):
        clock.update(index / 10, index / 10)
    excess = [clock.update(index / 10, index / 10 + 0.02) for index in range(1000, 1300)]
    assert excess[:50] == pytest.approx([0.02] * 50, abs=1e-6)
    assert excess[-1] < 0.001


def test_a_clock_that_leaps_ahead_is_told_with_the_first_frame():
    clock = ClockMap("glove", 0.1)
    for time in np.arange(0, 5, 0.01).tolist():
        clock.update(time, time + 3)
    with pytest.raises(ClockJump, match=r"glove: the source's clock leapt ahead by 0\.[45]\d\d s"):
        clock.update(5.0 + 0.5, 5.0 + 3)


def test_a_clock_that_is_set_back_is_told_after_half_a_second_of_old_frames():
    clock = ClockMap("glove", 0.1)
    for time in np.arange(0, 5, 0.01).tolist():
        clock.update(time, time + 3)
    for step in range(50):
        assert clock.update(4 + step / 100, 8 + step / 100) == pytest.approx(1, abs=0.01)
    with pytest.raises(ClockJump, match="set back"):
        clock.update(4.51, 8.51)


def test_single_frames_that_are_late_are_no_jump():
    clock = ClockMap("glove", 0.1)
    late = [index / 100 for index in range(0, 500, 30)]
    excess = [clock.update(index / 100, index / 100 + 0.4 * (index / 100 in late)) for index in range(1, 500)]
    assert sum(each > 0.1 for each in excess) == len(late) - 1


@pytest.mark.parametrize("stall_s", [0.3, 0.9])
def test_a_stall_that_ends_in_a_burst_is_no_jump(stall_s):
    clock = ClockMap("glove", 0.1)
    times = np.arange(0, 5, 0.01)
    stalled = (times > 2) & (times < 2 + stall_s)
    received = np.where(stalled, 2 + stall_s, times)
    excess = [clock.update(time, at) for time, at in zip(times.tolist(), received.tolist(), strict=True)]
    assert max(excess) == pytest.approx(stall_s - 0.01, abs=0.001)
    assert excess[-1] == pytest.approx(0, abs=1e-6)
