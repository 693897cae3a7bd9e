"""Streams in order and at the model's rate."""

import asyncio
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.frame import Channel
from sensors.align import AlignConfig, Aligner, RateError, aligned
from sensors.clocks import ClockJump
from sensors.stream import Frame, SensorError, StreamInfo

INFO = StreamInfo("glove", (Channel("bend", "deg", -100, 100), Channel("twist", "deg")), rate_hz=100.0)


def frame(time: float, delay: float = 0.0, values=None, info: StreamInfo = INFO) -> Frame:
    """Of a clock that is 1000 s behind ours."""
    return info.frame(time, time + 1000 + delay, [time, -time] if values is None else values)


def steps(frames: list[Frame], config: AlignConfig, info: StreamInfo = INFO, real_time: bool = True):
    aligner = Aligner(info, config, real_time)
    given_out = push_all(aligner, frames)
    return given_out + aligner.tick(math.inf), aligner


def push_all(aligner: Aligner, frames: list[Frame]) -> list[Frame]:
    return [step for each in frames for step in aligner.push(each)]


def times_of(given_out: list[Frame]) -> list[float]:
    return [round(step.time, 4) for step in given_out]


def test_at_the_models_rate_each_frame_goes_on_at_once_as_it_is():
    aligner = Aligner(INFO, AlignConfig(100.0))
    for index in range(500):
        sent = frame(index / 100 + (index % 3) * 0.002)  # stamps jitter
        (got,) = aligner.push(sent)
        assert got == sent
    assert aligner.counts.masked == 0
    assert aligner.deadline is None


def test_steps_that_no_frame_came_for_are_masked():
    given_out, aligner = steps([frame(t) for t in (0, 0.01, 0.04, 0.05)], AlignConfig(100.0, window_s=0))
    assert times_of(given_out) == [0, 0.01, 0.02, 0.03, 0.04, 0.05]
    assert [bool(step.mask.all()) for step in given_out] == [True, True, False, False, True, True]
    assert not any(step.mask.any() for step in given_out[2:4])
    assert aligner.counts.masked == 2
    assert given_out[2].received == 1000.04  # nobody knew before that it is missing


def test_a_gap_that_is_too_long_is_not_filled():
    given_out, aligner = steps([frame(t) for t in (0, 0.01, 2.5, 2.51)], AlignConfig(100.0, window_s=0))
    assert times_of(given_out) == [0, 0.01, 2.5, 2.51]
    assert aligner.counts.restarts == 1


def test_what_was_not_observed_is_zero_and_never_a_nan():
    given_out, _ = steps([frame(0, values=[math.nan, 1]), frame(0.01, values=[1e9, math.inf])], AlignConfig(100.0))
    assert [step.values.tolist() for step in given_out] == [[0, 1], [0, 0]]
    assert [step.mask.tolist() for step in given_out] == [[False, True], [False, False]]


def test_frames_out_of_order_are_put_in_order_within_the_window():
    aligner = Aligner(INFO, AlignConfig(100.0, window_s=0.03))
    order = [(0, 0), (0.02, 0), (0.03, 0), (0.01, 0.025), (0.04, 0)]
    got = [times_of(aligner.push(frame(time, delay))) for time, delay in order]
    assert got == [[0], [], [], [0.01, 0.02, 0.03], [0.04]]
    assert aligner.counts.masked == aligner.counts.late == 0


def test_a_frame_behind_a_gap_waits_no_longer_than_the_window():
    aligner = Aligner(INFO, AlignConfig(100.0, window_s=0.03))
    aligner.push(frame(0))
    assert aligner.push(frame(0.02)) == []
    assert aligner.deadline == pytest.approx(1000.05)
    assert aligner.tick(1000.049) == []
    assert times_of(aligner.tick(1000.0501)) == [0.01, 0.02]
    assert aligner.push(frame(0.01, 0.045)) == []
    assert aligner.counts.late == 1


def test_copies_are_dropped_and_counted():
    given_out, aligner = steps([frame(t) for t in (0, 0.01, 0.01, 0, 0.03, 0.03, 0.02)], AlignConfig(100.0))
    assert times_of(given_out) == [0, 0.01, 0.02, 0.03]
    assert (aligner.counts.copies, aligner.counts.late, aligner.counts.masked) == (3, 0, 0)


def test_old_frames_are_dropped_and_counted():
    sent = [frame(index / 100, delay=0.2 if index in (50, 51) else 0) for index in range(100)]
    given_out, aligner = steps(sent, AlignConfig(100.0, window_s=0))
    assert aligner.counts.old == 2
    assert aligner.counts.masked == 2
    assert len(given_out) == 100


def test_a_source_a_little_faster_or_slower_than_it_says_neither_loses_nor_gains_steps():
    for rate in (99.4, 100.6):
        sent = [frame(index / rate) for index in range(3000)]
        given_out, aligner = steps(sent, AlignConfig(100.0))
        assert len(given_out) == 3000
        assert aligner.counts.masked == aligner.counts.extra == 0


def test_a_second_frame_for_a_step_is_dropped():
    given_out, aligner = steps([frame(t) for t in (0, 0.01, 0.0105, 0.02)], AlignConfig(100.0))
    assert times_of(given_out) == [0, 0.01, 0.02]
    assert aligner.counts.extra == 1


def test_without_a_clock_of_its_own_a_frame_counts_by_when_it_was_received():
    sent = [frame(t)._replace(time=math.nan) for t in (0, 0.01, 0.02)]
    given_out, aligner = steps([*sent, frame(5)._replace(received=1000.03)], AlignConfig(100.0))
    assert times_of(given_out) == [1000, 1000.01, 1000.02, 1000.03]
    stamped, aligner = steps([frame(0), frame(0.01)._replace(time=math.nan), frame(0.01)], AlignConfig(100.0))
    assert times_of(stamped) == [0, 0.01]
    assert aligner.counts.unstamped == 1


def test_clock_jumps_are_raised_and_everything_starts_anew_behind_them():
    aligner = Aligner(INFO, AlignConfig(100.0))
    for index in range(100):
        aligner.push(frame(index / 100))
    with pytest.raises(ClockJump, match="leapt ahead"):
        aligner.push(frame(61, delay=-60))
    assert aligner.counts.jumps == 1
    assert times_of(aligner.push(frame(61.01, delay=-60))) == [61.01]


def test_a_clock_set_back_gives_no_steps_until_it_is_told():
    aligner = Aligner(INFO, AlignConfig(100.0))
    for index in range(100):
        aligner.push(frame(50 + index / 100))
    assert push_all(aligner, [frame(index / 100, delay=51) for index in range(50)]) == []
    assert aligner.counts.old == 50
    with pytest.raises(ClockJump, match="set back"):
        push_all(aligner, [frame(index / 100, delay=51) for index in range(50, 60)])


def test_ten_thousand_frames_a_second_where_two_hundred_are_expected_are_told_within_25_ms():
    info = StreamInfo("glove", INFO.channels, rate_hz=200.0)
    sent = [frame(index / 10_000, info=info) for index in range(1000)]
    aligner = Aligner(info, AlignConfig(200.0))
    with pytest.raises(RateError, match=r"glove: frames come at about 100\d\d Hz, expected 200 Hz. Set the source"):
        push_all(aligner, sent)
    assert aligner.counts.frames < 250
    replayed = Aligner(info, AlignConfig(200.0), real_time=False)  # as fast as it goes: nobody can tell
    push_all(replayed, sent)
    assert replayed.counts.frames == 1000


def test_a_source_that_says_no_rate_may_send_ten_times_the_models_but_no_flood():
    info = StreamInfo("clicks", INFO.channels, rate_hz=0.0)
    _, quick = steps([frame(index / 2000, info=info) for index in range(10_000)], AlignConfig(200.0), info)
    assert quick.counts.frames == 10_000
    flooded = Aligner(info, AlignConfig(200.0))
    with pytest.raises(RateError, match=r"about 100\d\d Hz, expected 2000 Hz at most, 10 times the model's 200\. Set"):
        push_all(flooded, [frame(index / 10_000, info=info) for index in range(10_000)])
    assert flooded.counts.frames < 5000


def test_a_burst_after_a_stall_is_not_too_much():
    sent = [frame(index / 100, delay=max(0, 0.9 - index / 100) if index < 90 else 0) for index in range(500)]
    _, aligner = steps([frame(-0.01), *sent], AlignConfig(100.0, old_s=2.0))
    assert aligner.counts.frames == 501


@pytest.mark.parametrize("kind", ["linear", "cubic"])
@pytest.mark.parametrize("rates", [(50.0, 200.0), (1000.0, 100.0), (60.0, 100.0)])
def test_resampled_steps_are_those_of_the_motion(kind, rates):
    source, model = rates
    info = StreamInfo("glove", INFO.channels, rate_hz=source)

    def motion(time):
        return [10 + 20 * time - 30 * time**2 + 10 * time**3, math.sin(2 * time)]

    sent = [frame(index / source, values=motion(index / source), info=info) for index in range(int(source) + 1)]
    given_out, aligner = steps(sent, AlignConfig(model, kind), info)
    assert [step.time for step in given_out] == pytest.approx([index / model for index in range(int(model) + 1)])
    got = np.array([step.values for step in given_out])
    exact = np.array([motion(step.time) for step in given_out])
    straight = np.stack([np.interp([s.time for s in given_out], [f.time for f in sent], [f.values[c] for f in sent])
                         for c in range(2)], 1)  # fmt: skip
    if kind == "linear":
        assert got == pytest.approx(straight, abs=2e-5)
    else:
        start = 4 * max(1, int(model / source))  # until there are four frames, it is linear
        assert got[start:, 0] == pytest.approx(exact[start:, 0], abs=2e-5)
        assert np.abs(got[start:, 1] - exact[start:, 1]).max() <= np.abs(straight - exact)[start:, 1].max() + 2e-6
    assert aligner.counts.masked == 0


def test_a_step_is_given_with_the_first_frame_at_or_behind_it():
    info = StreamInfo("glove", INFO.channels, rate_hz=50.0)
    for kind in ("linear", "cubic"):
        aligner = Aligner(info, AlignConfig(200.0, kind))
        got = [times_of(aligner.push(frame(index / 50, info=info))) for index in range(3)]
        assert got == [[0], [0.005, 0.01, 0.015, 0.02], [0.025, 0.03, 0.035, 0.04]]


def test_gaps_are_masked_where_frames_are_resampled():
    info = StreamInfo("glove", INFO.channels, rate_hz=50.0)
    sent = [frame(t, info=info) for t in (0, 0.02, 0.1, 0.12)]
    for kind in ("linear", "cubic"):
        given_out, aligner = steps(sent, AlignConfig(100.0, kind, window_s=0), info)
        assert times_of(given_out) == [index / 100 for index in range(13)]
        seen = [bool(step.mask.all()) for step in given_out]
        assert seen == [True] * 3 + [False] * 7 + [True] * 3
        assert aligner.counts.masked == 7
        assert not any(step.values.any() for step in given_out[3:10])


def test_a_channel_that_is_missing_on_one_side_is_masked_between():
    info = StreamInfo("glove", INFO.channels, rate_hz=50.0)
    sent = [frame(0, values=[1, 1], info=info), frame(0.02, values=[3, math.nan], info=info)]
    given_out, _ = steps(sent, AlignConfig(100.0), info)
    assert [step.values.tolist() for step in given_out] == [[1, 1], [2, 0], [3, 0]]
    assert [step.mask.tolist() for step in given_out] == [[True, True], [True, False], [True, False]]


def test_the_cubic_needs_all_its_points_of_a_channel():
    info = StreamInfo("glove", INFO.channels, rate_hz=50.0)
    values = [[math.nan, 0], [1, 1], [4, 4], [9, 9]]
    sent = [frame(index / 50, values=each, info=info) for index, each in enumerate(values)]
    given_out, _ = steps(sent, AlignConfig(100.0, "cubic"), info)
    assert given_out[5].values.tolist() == [6.5, 6.25]  # a straight line, and the parabola


def test_the_cubic_stays_within_a_channels_limits():
    info = StreamInfo("glove", INFO.channels, rate_hz=50.0)
    values = [-100, -100, 100, 100, 100, -100, 100]
    sent = [frame(index / 50, values=[value, value], info=info) for index, value in enumerate(values)]
    given_out, _ = steps(sent, AlignConfig(400.0, "cubic"), info)
    got = np.array([step.values for step in given_out])
    assert np.abs(got[:, 0]).max() == 100
    assert np.abs(got[:, 1]).max() > 101  # this one has none


EVENTS = st.lists(
    st.tuples(
        st.integers(1, 4),  # periods since the last frame
        st.floats(0, 0.04),  # delay
        st.booleans(),  # twice
        st.lists(st.one_of(st.floats(-1e3, 1e3), st.just(math.nan)), min_size=2, max_size=2),
    ),
    min_size=3,
    max_size=40,
)


@given(events=EVENTS, rate=st.sampled_from([40.0, 100.0, 130.0]), kind=st.sampled_from(["linear", "cubic"]))
def test_whatever_comes_steps_are_in_order_finite_and_never_changed_by_what_follows(events, rate, kind):
    sent, index = [], 0
    for periods, delay, twice, values in events:
        index += periods
        sent += [frame(index / 100, delay, values)] * (1 + twice)
    sent.sort(key=lambda each: each.received)
    config = AlignConfig(rate, kind)
    whole, aligner = steps(sent, config)
    times = np.array([step.time for step in whole])
    assert (np.diff(times) > 0).all()
    if rate != 100:
        assert np.diff(times) * rate == pytest.approx(1, abs=1e-6)
    assert all(np.isfinite(step.values).all() for step in whole)
    assert not any(step.values[~step.mask].any() for step in whole)
    assert all(step.received >= 1000 + sent[0].time for step in whole)

    half = Aligner(INFO, config)
    before = push_all(half, sent[: len(sent) // 2])
    for first, second in zip(before, whole, strict=False):
        assert (first.time, first.received) == (second.time, second.received)
        assert np.array_equal(first.values, second.values)
        assert np.array_equal(first.mask, second.mask)

    counts = aligner.counts
    if rate == 100:
        kept = counts.frames - counts.old - counts.late - counts.copies - counts.extra
        assert len(whole) == kept + counts.masked


def test_frames_in_order_come_out_in_order_whatever_the_jitter():
    rng = np.random.default_rng(3)
    sent = [frame(index / 100, delay) for index, delay in enumerate(rng.uniform(0, 0.008, 500))]
    given_out, _ = steps(sent, AlignConfig(100.0))
    assert [step.time for step in given_out] == [each.time for each in sent]


def test_a_source_without_a_rate_is_resampled_after_its_window():
    info = StreamInfo("clicks", INFO.channels, rate_hz=0.0)
    sent = [frame(t, info=info) for t in (0, 0.013, 0.02, 0.031, 0.04)]
    given_out, aligner = steps(sent, AlignConfig(100.0), info)
    assert times_of(given_out) == [0, 0.01, 0.02, 0.03, 0.04]
    assert [step.values[0] for step in given_out] == pytest.approx([0, 0.01, 0.02, 0.03, 0.04], abs=1e-6)
    assert not aligner.passes


def test_a_source_that_falls_silent_still_gives_what_waits():
    """The frame behind the gap goes on when its time is up, though nothing more comes."""

    async def source():
        now = asyncio.get_running_loop().time
        yield INFO.frame(0.0, now(), [1, 1])
        yield INFO.frame(0.03, now(), [2, 2])
        await asyncio.sleep(5)

    async def run() -> list[float]:
        aligner = Aligner(INFO, AlignConfig(100.0, window_s=0.02))
        got = []
        async for step in aligned(source(), aligner):
            got.append(step)
            if len(got) == 4:
                break
        return times_of(got)

    assert asyncio.run(asyncio.wait_for(run(), 3)) == [0, 0.01, 0.02, 0.03]


def test_the_end_of_a_source_gives_what_waits():
    async def source():
        for each in (frame(0), frame(0.03)):
            yield each

    async def run() -> list[float]:
        aligner = Aligner(INFO, AlignConfig(100.0, window_s=10.0), real_time=False)
        return times_of([step async for step in aligned(source(), aligner)])

    assert asyncio.run(asyncio.wait_for(run(), 3)) == [0, 0.01, 0.02, 0.03]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rate_hz": 0.0}, "rate_hz is 0.0"),
        ({"rate_hz": math.nan}, "rate_hz is nan"),
        ({"window_s": -1.0}, "window_s is -1.0"),
        ({"old_s": math.inf}, "old_s is inf"),
        ({"kind": "spline"}, "kind is 'spline', expected linear or cubic"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(SensorError, match=message):
        AlignConfig(**{"rate_hz": 100.0} | settings)
