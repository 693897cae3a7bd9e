"""A recording as if it were live: at its own pace, faster, slower, or as fast as it is taken.

Each frame is due at a time counted from the start, so delays do not add up. A frame that was due while the consumer was
busy was `received` when it was due, and few of them wait, as with any live source (`live.MOST_WAITING`). At maximum
speed nothing is due and nothing is dropped.

asyncio's timers are up to 1 ms late; so are the frames, without drifting.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.catalog import entries, load
from data.frame import ID, TIME, Channel, FrameError
from sensors.recording import Recording, is_recording, read_recording
from sensors.sources.live import MOST_WAITING
from sensors.sources.settings import refuse_unless
from sensors.stream import Clock, Frame, SensorError, Source, StreamInfo

FRAMES_A_TURN = 64  # at maximum speed, between two chances for others to run
SHOWN = 5  # series named in a message


@dataclass(frozen=True)
class ReplayConfig:
    """Which recording, and how it plays."""

    source: str  # as `load_recording` takes it
    series: str = ""  # not needed where there is only one
    speed: float = 1.0  # inf: as fast as frames are taken
    loop: bool = False

    def __post_init__(self) -> None:
        refuse_unless(bool(self.source), "replay", "source", self.source, "a file or the name of a data set")
        refuse_unless(self.speed > 0, f"replay {self.source}", "speed", self.speed, "a number above 0, or inf")


class ReplaySource(Source):
    """Frames of a recording; the end of it ends the iteration, unless it loops.

    When it loops, time goes on: the next round starts one period after the last frame.
    """

    def __init__(
        self,
        recording: Recording,
        config: ReplayConfig,
        clock: Clock = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """
        Raises:
            SensorError: a loop of a recording without a rate.
        """
        super().__init__()
        if config.loop and not recording.info.rate_hz > 0:
            raise SensorError(f"{recording.info.stream_id}: has no rate, which a loop needs; give rate_hz.")
        self.info = recording.info
        self.recording = recording
        self.speed, self.loop = config.speed, config.loop
        self.real_time = config.speed == 1
        self._clock, self._sleep = clock, sleep

    async def connect(self) -> None:
        self.connected = True

    async def close(self) -> None:
        self.connected = False

    async def __aiter__(self) -> AsyncIterator[Frame]:
        times, pace = self.recording.times.tolist(), self.recording.pace.tolist()
        frame, count, start = self.info.frame, len(times), self._clock()
        pause = 1 / self.info.rate_hz if self.loop else 0.0
        round_s, time_s = pace[-1] + pause, times[-1] - times[0] + pause
        for lap in itertools.count() if self.loop else range(1):
            due = start + (lap * round_s + self.recording.pace) / self.speed  # (N,)
            for index, values in enumerate(self.recording.values):
                if math.isinf(self.speed):
                    if index % FRAMES_A_TURN == 0:
                        await self._sleep(0)
                    received = self._clock()
                else:
                    received, now = float(due[index]), self._clock()
                    if now < received:
                        await self._sleep(received - now)
                        received = self._clock()
                    elif index + MOST_WAITING < count and due[index + MOST_WAITING] <= now:
                        self.drop(f"{self.info.stream_id}: {MOST_WAITING} frames wait, the consumer is too slow.")
                        continue
                yield frame(times[index] + lap * time_s, received, values)


def load_recording(
    source: str,
    series: str | None = None,
    rate_hz: float | None = None,
    channels: Sequence[Channel] | None = None,
) -> Recording:
    """What a recording holds.

    Args:
        source: the path of a `Recorder`'s file, of another Parquet or CSV file in the long format (with every numeric
            column a channel), or the name of a data set.
        series: of which recording in it; not needed where there is only one.
        rate_hz: nominal; by default that of the source. Where times count steps it is needed.
        channels: those wanted, in this order; by default all.

    Raises:
        SensorError: no such recording, series or channel, or a rate that is not known.
    """
    path = Path(source)
    if is_recording(path):
        recording = read_recording(path)
        if series not in (None, recording.info.stream_id):
            raise SensorError(f"{source}: no series {series}; it holds {recording.info.stream_id}.")
    else:
        recording = _from_table(source, series, rate_hz, channels)
    info = recording.info
    if rate_hz is not None:
        info = dataclasses.replace(info, rate_hz=rate_hz)
    if channels is None:
        return dataclasses.replace(recording, info=info)
    columns = choose_channels(info.channels, channels, source)
    info = dataclasses.replace(info, channels=tuple(channels))
    return dataclasses.replace(recording, info=info, values=recording.values[:, columns])


def choose_channels(there: Sequence[Channel], wanted: Sequence[Channel], where: str) -> list[int]:
    """Where each wanted channel lies among those that are there.

    Raises:
        SensorError: one is missing, or in another unit.
    """
    place = {channel.name: index for index, channel in enumerate(there)}
    missing = [channel.name for channel in wanted if channel.name not in place]
    if missing:
        raise SensorError(f"{where}: no channel {', '.join(missing)}; there are {', '.join(place)}.")
    for channel in wanted:
        unit = there[place[channel.name]].unit
        if unit and channel.unit and unit != channel.unit:
            raise SensorError(f"{where}: channel {channel.name} is in {unit}, expected {channel.unit}.")
    return [place[channel.name] for channel in wanted]


def _from_table(
    source: str, series: str | None, rate_hz: float | None, channels: Sequence[Channel] | None
) -> Recording:
    try:
        # As for a classification, every numeric column is an input, and a label may be missing.
        of_file = {"task": "classify", "target_required": False, "channels": channels}
        named = any(entry.name == source for entry in entries())
        dataset = load(source, **{} if named else of_file)
    except FrameError as error:
        raise SensorError(str(error)) from error
    names = dataset.frame[ID].unique()
    if series is None and len(names) > 1:
        some = ", ".join(map(str, names[:SHOWN]))
        raise SensorError(f"{source}: {len(names)} series ({some}, ...); name one with series.")
    frame = dataset.frame if series is None else dataset.frame[dataset.frame[ID] == series]
    if frame.empty:
        raise SensorError(f"{source}: no series {series}; there are {', '.join(map(str, names[:SHOWN]))}, ...")
    seconds = _seconds(frame[TIME].to_numpy(), rate_hz, source)
    rate = 1 / float(np.median(np.diff(seconds))) if len(seconds) > 1 else 0.0
    values = frame[[channel.name for channel in dataset.channels]].to_numpy(np.float32)
    info = StreamInfo(series or str(names[0]), dataset.channels, round(rate, 6))
    return Recording(info, seconds, seconds - seconds[0], values)


def _seconds(times: NDArray[np.generic], rate_hz: float | None, source: str) -> NDArray[np.float64]:
    if np.issubdtype(times.dtype, np.datetime64):
        return times.astype("datetime64[ns]").astype(np.int64) / 1e9
    if np.issubdtype(times.dtype, np.integer):
        if not (rate_hz and rate_hz > 0):
            raise SensorError(f"{source}: its times count steps; give rate_hz, the steps a second.")
        return times.astype(np.float64) / rate_hz
    return times.astype(np.float64)
