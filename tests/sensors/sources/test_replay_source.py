"""Recordings that come as if they were live."""

import asyncio
import math
import time

import numpy as np
import pandas as pd
import pytest

from data.frame import Channel
from sensors.recording import Recording
from sensors.sources.live import MOST_WAITING
from sensors.sources.replay import ReplayConfig, ReplaySource, load_recording
from sensors.stream import Frame, SensorError, StreamInfo

INFO = StreamInfo("glove", (Channel("bend", "deg"), Channel("twist", "deg")), rate_hz=100.0)


class Time:
    """A clock that only `sleep` and the consumer move; each sleep is a little late, as asyncio's are."""

    def __init__(self, late_s: float = 0.0) -> None:
        self.now, self.late_s = 50.0, late_s

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds + self.late_s


def replay(of: Recording, clock: Time | None = None, **settings) -> ReplaySource:
    config = ReplayConfig("a recording", **settings)
    return ReplaySource(of, config) if clock is None else ReplaySource(of, config, clock, clock.sleep)


def recording(frames: int, start: float = 7.0) -> Recording:
    pace = np.arange(frames) / 100
    values = np.arange(2 * frames, dtype=np.float32).reshape(frames, 2)
    return Recording(INFO, start + pace, pace, values)


def play(source: ReplaySource, most: int = 10**9, busy_s: dict[int, float] | None = None, clock: Time | None = None):
    async def run() -> list[Frame]:
        frames = []
        async with source:
            async for frame in source:
                frames.append(frame)
                if clock is not None and busy_s:
                    clock.now += busy_s.get(len(frames), 0.0)
                if len(frames) == most:
                    break
        return frames

    return asyncio.run(run())


@pytest.mark.parametrize("speed", [0.5, 1.0, 4.0])
def test_frames_come_at_their_times_and_late_timers_do_not_add_up(speed):
    clock = Time(late_s=0.0008)
    frames = play(replay(recording(1000), clock, speed=speed))
    due = 50 + np.arange(1000) / 100 / speed
    late = np.array([frame.received for frame in frames]) - due
    assert len(frames) == 1000
    assert late.min() >= -1e-9
    assert late.max() < 0.001
    assert [frame.time for frame in frames[:2]] == [7.0, 7.01]
    assert frames[-1].values.tolist() == [1998.0, 1999.0]


def test_at_maximum_speed_nothing_waits_or_is_dropped_and_others_still_run():
    source = replay(recording(500), speed=math.inf)
    ran = []

    async def run() -> int:
        other = asyncio.create_task(asyncio.sleep(0))
        async with source:
            count = 0
            async for _ in source:
                count += 1
                if other.done():
                    ran.append(count)
        return count

    began = time.monotonic()
    assert asyncio.run(run()) == 500
    assert time.monotonic() - began < 4  # the recording takes 5 s
    assert ran
    assert source.dropped == 0


def test_a_real_clock_is_kept():
    frames = play(replay(recording(21), speed=2.0))
    assert frames[-1].received - frames[0].received >= 0.1 - 0.002


def test_a_loop_goes_on_in_time():
    clock = Time()
    frames = play(replay(recording(3), clock, loop=True), most=7)
    assert [frame.time for frame in frames] == pytest.approx([7 + index / 100 for index in range(7)])
    assert [frame.received for frame in frames] == pytest.approx([50 + index / 100 for index in range(7)])
    assert frames[3].values.tolist() == frames[0].values.tolist()


def test_a_slow_consumer_gets_frames_that_were_due_and_misses_the_oldest():
    clock = Time()
    source = replay(recording(200), clock)
    frames = play(source, busy_s={10: 1.0}, clock=clock)  # 100 frames long
    assert source.dropped == 200 - len(frames) == 100 - MOST_WAITING
    assert "too slow" in source.last_drop
    received = np.array([frame.received for frame in frames])
    assert received == pytest.approx([50 + frame.time - 7.0 for frame in frames])  # none is younger than it was due


@pytest.mark.parametrize("speed", [0.0, -1.0, math.nan])
def test_a_speed_that_is_none_is_refused(speed):
    with pytest.raises(SensorError, match="expected a number above 0, or inf"):
        ReplayConfig("a recording", speed=speed)


def test_a_named_data_set_and_one_of_its_series():
    there = load_recording("battery_simulated", series="sim_02", rate_hz=4)
    assert (there.info.stream_id, there.info.rate_hz) == ("sim_02", 4)
    assert (there.times[0], there.pace[1]) == (0.25, 0.25)  # of cycle 1, as steps count
    assert [channel.unit for channel in there.info.channels] == ["Ah"]


def test_channels_are_chosen_by_name(tmp_path):
    pd.DataFrame({"ds": [0.0, 0.1], "a": [1, 2], "b": [3, 4], "c": [5, 6]}).to_csv(tmp_path / "take.csv", index=False)
    chosen = load_recording(str(tmp_path / "take.csv"), channels=(Channel("c", "V"), Channel("a", "V")))
    assert chosen.values.tolist() == [[5, 1], [6, 2]]
    assert [channel.name for channel in chosen.info.channels] == ["c", "a"]


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_file_in_the_long_format(tmp_path, ending):
    table = pd.DataFrame({"unique_id": "a", "ds": [0, 1, 2, 3], "bend": [1.0, 2.0, None, 4.0], "label": "fist"})
    path = tmp_path / f"take.{ending}"
    table.to_csv(path, index=False) if ending == "csv" else table.to_parquet(path)
    read = load_recording(str(path), rate_hz=50)
    assert [channel.name for channel in read.info.channels] == ["bend"]
    assert read.info.stream_id == "a"
    assert read.times.tolist() == [0, 0.02, 0.04, 0.06]
    frames = play(replay(read, speed=math.inf))
    assert [frame.mask.tolist() for frame in frames] == [[True], [True], [False], [True]]


def test_times_that_are_stamps(tmp_path):
    table = pd.DataFrame({"ds": pd.date_range("2026-01-01", periods=3, freq="20ms"), "bend": [1.0, 2.0, 3.0]})
    table.to_csv(tmp_path / "take.csv", index=False)
    read = load_recording(str(tmp_path / "take.csv"))
    assert read.info.rate_hz == pytest.approx(50)
    assert read.times[0] == pd.Timestamp("2026-01-01").timestamp()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "battery_simulated", "rate_hz": 1}, r"24 series \(sim_01, .*name one with series"),
        ({"source": "battery_simulated", "series": "nobody"}, "no series nobody; there are sim_01"),
        ({"source": "no_such_set"}, "no data set and no file of this name"),
        (
            {"source": "battery_simulated", "series": "sim_01", "rate_hz": 1, "channels": (Channel("bend", ""),)},
            "no channel bend; there are y",
        ),
    ],
)
def test_what_is_not_there_is_named(options, message):
    with pytest.raises(SensorError, match=message):
        load_recording(**options)


def test_steps_without_a_rate_and_a_loop_without_one_are_refused(tmp_path):
    pd.DataFrame({"ds": [0, 1], "bend": [1.0, 2.0]}).to_csv(tmp_path / "take.csv", index=False)
    with pytest.raises(SensorError, match="count steps; give rate_hz"):
        load_recording(str(tmp_path / "take.csv"))
    pd.DataFrame({"ds": [0.0], "bend": [1.0]}).to_csv(tmp_path / "one.csv", index=False)
    with pytest.raises(SensorError, match="no rate, which a loop needs"):
        replay(load_recording(str(tmp_path / "one.csv")), loop=True)


def test_text_in_a_file_is_named_with_its_row(tmp_path):
    (tmp_path / "take.csv").write_text("ds,bend\n0.0,1\n0.1,2\n0.2,much\n0.3,4\n")
    with pytest.raises(SensorError, match=r"take\.csv: .*line 4"):
        load_recording(str(tmp_path / "take.csv"))


def test_a_channel_in_another_unit_is_refused(tmp_path):
    from sensors.recording import Recorder

    with Recorder(tmp_path / "take.parquet", INFO) as recorder:
        recorder.append(INFO.frame(0.0, 1.0, [1.0, 2.0]))
    with pytest.raises(SensorError, match="channel bend is in deg, expected rad"):
        load_recording(str(tmp_path / "take.parquet"), channels=(Channel("bend", "rad"),))
