"""From a frame to the robot: source, alignment, recogniser, command map, safety; one frame at a time, none waits.

All but safety runs in one thread, that of the event loop. What goes wrong there is told to `safety`, which stops the
robot; and should nothing be told, its watchdog stops it for silence. A frame that cannot be trusted makes no intent:

- a number in it is not finite: a fault;
- it stands for a gap in the stream, or a channel is outside its limits: no intent, so that a gap of 100 ms is silence;
- the model fails: a fault, and the recogniser starts anew with the next frame.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import AsyncIterator

import numpy as np

from sensors.align import Aligner, ClockJump, RateError, aligned
from sensors.intent import STILL
from sensors.mapping import Mapper
from sensors.recognise import UNKNOWN, Recognition
from sensors.recogniser import Recogniser, RecogniserError
from sensors.recording import Recorder
from sensors.safety import Safety
from sensors.safety_checks import Fault
from sensors.safety_states import LIVE
from sensors.stream import Clock, Frame, Source, SourceLost
from sensors.telemetry import Durations, Reading

NEWEST = 2000  # latencies that the quantiles of a reading are of
RATED_S = 0.4  # over which frames are counted, at least


class Bridge:
    """Owns nothing: whoever made the parts opens and closes them, but for the source, which `run` does."""

    def __init__(
        self,
        source: Source,
        aligner: Aligner,
        recogniser: Recogniser,
        mapper: Mapper,
        safety: Safety,
        recorder: Recorder | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self.source, self.aligner, self.recogniser = source, aligner, recogniser
        self.mapper, self.safety, self.recorder = mapper, safety, recorder
        self.frames = 0  # as they came
        self.missing = 0  # after alignment, with a channel that was not observed
        self.steps = Durations()  # s, of the recogniser and the command map, for one frame
        self._clock = clock
        self._recognition = Recognition(None, 0.0, (), 0)
        self._last_gesture = "none"  # that was decided or rejected
        self._rated = (clock(), 0, 0.0)  # when, frames until then, frames a second before that

    async def run(self) -> None:
        """Until the source ends; the robot is stopped then.

        Raises:
            SourceLost: the source is gone and does not come back.
            SensorError: it could not be connected, or the recording cannot be written.
        """
        self.source.on_lost = lambda why: self.safety.report(Fault.SOURCE, why)
        async with self.source:
            try:  # inside, for closing a source may take its time
                frames = self._watched(aiter(self.source))
                while await self._pass(frames):
                    pass
            except SourceLost as error:
                self.safety.report(Fault.SOURCE, str(error))
                raise
            except Exception as error:
                self.safety.report(Fault.INTERNAL, f"{type(error).__name__}: {error}")
                raise
            finally:
                self.safety.report(Fault.SOURCE, f"{self.source.info.stream_id}: the stream has ended")

    async def _pass(self, frames: AsyncIterator[Frame]) -> bool:
        """Follow steps until the stream ends, which gives False, or has to be taken up anew."""
        try:
            async for step in aligned(frames, self.aligner, self._clock):
                try:
                    self.follow(step)
                except RecogniserError as error:
                    self.recogniser.restart()
                    self.safety.report(Fault.MODEL, str(error))
        except ClockJump as error:
            self.safety.report(Fault.CLOCK, str(error))
        except RateError as error:
            self.safety.report(Fault.SOURCE, str(error))
        else:
            return False
        return True

    async def _watched(self, frames: AsyncIterator[Frame]) -> AsyncIterator[Frame]:
        """Frames as they came: counted, recorded, and reported where a number in them is none."""
        async for frame in frames:
            self.frames += 1
            if self.recorder is not None:
                self.recorder.append(frame)
            finite = np.isfinite(frame.values)
            if not finite.all():
                names = [
                    channel.name for channel, fine in zip(self.source.info.channels, finite, strict=True) if not fine
                ]
                self.safety.report(Fault.NAN, f"{frame.stream_id}: no number in {', '.join(names)}")
            yield frame

    def follow(self, step: Frame) -> None:
        """Take a step of the aligned stream to `safety`.

        Raises:
            RecogniserError: the model failed.
        """
        began = self._clock()
        self._recognition = self.recogniser.step(step)
        if "decision" in self._recognition.events or "rejection" in self._recognition.events:
            self._last_gesture = self._recognition.gesture or UNKNOWN
        safe, intent = self.safety.snapshot, None
        if not step.mask.all():
            self.missing += 1
        elif safe.robot is not None:
            gesture, confidence = self._recognition.gesture, self._recognition.confidence
            intent = self.mapper.step(gesture, confidence, step, safe.robot)
        if safe.state not in LIVE:  # what was shown while nothing could move, this frame too, shall not move it later
            self.mapper.reset()
            intent = intent and intent._replace(twist=STILL, gripper=None)
        if intent is not None:
            late = step.received - self.aligner.clock.local(step.time)
            self.safety.submit(intent._replace(late=late if late > 0 else 0.0))  # NaN where the source has no clock
        self.steps.add(self._clock() - began)

    def readings(self) -> list[Reading]:
        """What a panel and a meter show; asked a few times a second."""
        now, (then, frames, rate) = self._clock(), self._rated
        if now - then >= RATED_S:  # who asks in between gets what the last one got
            rate = (self.frames - frames) / (now - then)
            self._rated = (now, self.frames, rate)
        safe, recognition = self.safety.snapshot, self._recognition
        latencies = self.safety.latencies(NEWEST)
        median, late = np.quantile(latencies, (0.5, 0.99)) if latencies else (np.nan, np.nan)
        return [
            Reading("safety_state", "state", "state", safe.state),
            Reading("safety_why", "because", "text", safe.why),
            Reading("armable_why", "can be armed", "text", safe.not_ready or "yes"),
            Reading("recognised_gesture", "gesture", "state", recognition.gesture or "none"),
            Reading("last_gesture", "last gesture", "text", self._last_gesture),
            Reading("confidence", "confidence", "gauge", recognition.confidence),
            Reading("commanded_motion", "motion", "text", self.mapper.note or "none"),
            *self._measured(),
            Reading("frames_total", "frames", "counter", self.frames),
            Reading("rate_hertz", "rate", "gauge", rate, "Hz"),
            Reading("source_connected", "source connected, 0 or 1", "gauge", float(self.source.connected)),
            Reading("frame_dropped_total", "dropped by the source", "counter", self.source.dropped),
            Reading("frame_missing_total", "not whole after alignment", "counter", self.missing),
            *(
                Reading(f"align_{name}_total", f"alignment: {name}", "counter", count)
                for name, count in dataclasses.asdict(self.aligner.counts).items()
            ),
            Reading("step_p50_seconds", "a frame's work, median", "gauge", self.steps.quantile(0.5), "s"),
            Reading("step_p99_seconds", "a frame's work, 99 %", "gauge", self.steps.quantile(0.99), "s"),
            Reading("latency_p50_seconds", "frame to command, median", "gauge", float(median), "s"),
            Reading("latency_p99_seconds", "frame to command, 99 %", "gauge", float(late), "s"),
            Reading("latency_max_seconds", "frame to command, longest", "gauge", safe.slowest, "s"),
            *(
                Reading(f"safety_{name.replace(' ', '_')}_total", name, "counter", count)
                for name, count in safe.counts.items()
            ),
        ]

    def _measured(self) -> list[Reading]:
        robot = self.safety.snapshot.robot
        if robot is None:
            return []
        places = [
            Reading(f"robot_{axis}_meters", f"tool, {axis}", "gauge", float(value), "m")
            for axis, value in zip("xyz", robot.position, strict=True)
        ]
        return [*places, Reading("robot_gripper", "gripper, 0 closed to 1 open", "gauge", robot.gripper)]
