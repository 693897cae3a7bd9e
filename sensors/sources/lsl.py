"""Frames from the Lab Streaming Layer, with pylsl.

Stamps are mapped to this machine's clock with LSL's own correction (liblsl measures it in the background), so a
frame's `time` is of the clock that LSL shares with `time.monotonic`. What the stream says of its channels is checked
against those that are configured. A thread pulls samples, for liblsl blocks; nothing waits in it. Streams of text are
refused.
"""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import dataclass

import pylsl
from pylsl.util import LostError
from pylsl.util import TimeoutError as LslTimeoutError

from sensors.sources.live import ReconnectingSource, Unreachable
from sensors.sources.settings import refuse_bad_time, refuse_unless
from sensors.stream import Clock, SensorError, StreamInfo

PULL_S = 0.1  # the thread looks whether it shall end
ANSWER_S = 5.0  # for a stream's description and first clock correction
CORRECT_S = 1.0  # between two looks at the clock correction
BUFFER_S = 1  # in liblsl; what is older is lost there
MOST_PULLED = 256  # samples at once
SAME_RATE = 0.01  # relative


@dataclass(frozen=True)
class LslConfig:
    """Which stream."""

    name: str
    source_id: str = ""  # where several have the name
    resolve_s: float = 3.0  # how long to look for it
    give_up_after_s: float = 30.0

    def __post_init__(self) -> None:
        for field in ("name", "source_id"):
            value = getattr(self, field)
            fine = not set(value) & set("'\"") and (bool(value) or field != "name")
            refuse_unless(fine, "lsl", field, value, "a name without quotes")
        for field in ("resolve_s", "give_up_after_s"):
            refuse_bad_time(f"lsl {self.name}", field, getattr(self, field))

    @property
    def predicate(self) -> str:
        return f"name='{self.name}'" + (f" and source_id='{self.source_id}'" if self.source_id else "")


class LslSource(ReconnectingSource):
    """Pulls one numeric stream."""

    def __init__(self, config: LslConfig, info: StreamInfo, clock: Clock = time.monotonic) -> None:
        super().__init__(info, config.give_up_after_s, clock)
        self.config = config

    async def _session(self) -> None:
        inlet = await asyncio.to_thread(self._open)
        stop = threading.Event()
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[Exception | None] = loop.create_future()
        thread = threading.Thread(target=self._pull, args=(inlet, stop, loop, ended), name=f"lsl {self.config.name}")
        self._opened()
        thread.start()
        try:
            problem = await ended
        finally:
            self.connected = False
            stop.set()
            await asyncio.to_thread(thread.join)
        if isinstance(problem, LostError):
            raise Unreachable(f"lsl {self.config.name}: the stream's outlet is gone.") from problem
        if problem is not None:
            raise problem

    def _open(self) -> pylsl.StreamInlet:
        config = self.config
        found = pylsl.resolve_bypred(config.predicate, 1, config.resolve_s)
        if not found:
            raise Unreachable(
                f"lsl {config.name}: no stream with {config.predicate} answered within {config.resolve_s:g} s. Start "
                "its outlet, or check the name and that multicast reaches this machine."
            )
        if len(found) > 1:
            sources = ", ".join(sorted(repr(stream.source_id()) for stream in found))
            raise SensorError(f"lsl {config.name}: {len(found)} streams have this name; name a source_id: {sources}.")
        inlet = pylsl.StreamInlet(found[0], max_buflen=BUFFER_S, recover=False)
        try:
            self._check(inlet.info(ANSWER_S))
            inlet.open_stream(ANSWER_S)
            inlet.time_correction(ANSWER_S)
        except (LostError, LslTimeoutError) as error:
            raise Unreachable(f"lsl {config.name}: is announced, but does not answer ({error}).") from error
        return inlet

    def _check(self, there: pylsl.StreamInfo) -> None:
        """Refuse a stream that is not the configured one."""
        where, channels = f"lsl {self.config.name}", self.info.channels
        if there.channel_format() == pylsl.cf_string:
            raise SensorError(f"{where}: is a stream of text, expected numbers.")
        expected = f"expected {len(channels)}: {', '.join(channel.name for channel in channels)}"
        if there.channel_count() != len(channels):
            raise SensorError(f"{where}: has {there.channel_count()} channels, {expected}.")
        labels, units = there.get_channel_labels(), there.get_channel_units()
        for index, channel in enumerate(channels):
            label = labels[index] if labels else None
            if label and label != channel.name:
                raise SensorError(f"{where}: its channel {index + 1} is {label}, not {channel.name}; {expected}.")
            unit = units[index] if units else None
            if unit and channel.unit and unit != channel.unit:
                raise SensorError(f"{where}: channel {channel.name} is in {unit}, expected {channel.unit}.")
        rate, wanted = there.nominal_srate(), self.info.rate_hz
        if rate and wanted and abs(rate - wanted) > SAME_RATE * wanted:
            raise SensorError(f"{where}: comes at {rate:g} Hz, expected {wanted:g} Hz.")

    def _pull(
        self,
        inlet: pylsl.StreamInlet,
        stop: threading.Event,
        loop: asyncio.AbstractEventLoop,
        ended: asyncio.Future[Exception | None],
    ) -> None:
        """In the thread: hand samples to the loop until told to stop, or until there are no more."""
        problem: Exception | None = None
        correction, look_again = 0.0, 0.0
        try:
            while not stop.is_set():
                if time.monotonic() >= look_again:
                    correction = inlet.time_correction(ANSWER_S)
                    look_again = time.monotonic() + CORRECT_S
                samples, stamps = inlet.pull_chunk(PULL_S, MOST_PULLED, min_samples=1)
                if stamps:
                    loop.call_soon_threadsafe(self._take_all, samples, stamps, correction, self.clock())
        except Exception as error:  # raised in the loop's thread
            problem = error
        finally:
            inlet.close_stream()
        loop.call_soon_threadsafe(lambda: None if ended.done() else ended.set_result(problem))

    def _take_all(self, samples: list[list[float]], stamps: list[float], correction: float, received: float) -> None:
        for sample, stamp in zip(samples, stamps, strict=True):
            self.take(stamp + correction, received, sample)
