"""From a frame to the robot: source, alignment, recogniser, command map, safety; one frame at a time, none waits.

All but safety runs in one thread, that of the event loop. What goes wrong there is told to `safety`, which stops the
robot; and should nothing be told, its watchdog stops it for silence. A frame that cannot be trusted makes no intent:

- a number in it is not finite: a fault;
- it stands for a gap in the stream, or a channel is outside its limits: no intent, so that a gap of 100 ms is silence;
- the model fails: a fault, and the recogniser starts anew with the next frame.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Protocol

import numpy as np

from sensors.intent import Intent
from sensors.recognise import Recognition
from sensors.recogniser import Recogniser, RecogniserError
from sensors.recording import Recorder
from sensors.robot import RobotState
from sensors.safety import Safety
from sensors.safety_checks import Fault
from sensors.stream import Clock, Frame, SensorError, Source, SourceLost
from sensors.telemetry import Durations, Reading

NEWEST = 2000  # latencies that the quantiles of a reading are of


class Aligner(Protocol):
    """Frames as they came into frames at the model's rate."""

    def push(self, frame: Frame) -> Iterable[Frame]: ...

    def readings(self) -> Iterable[Reading]: ...


class Commands(Protocol):
    """What a recognised gesture, or the hand itself, wants of the robot."""

    def intent(self, recognition: Recognition, frame: Frame, state: RobotState | None) -> Intent: ...

    @property
    def doing(self) -> str: ...


class Bridge:
    """Owns nothing: whoever made the parts opens and closes them, but for the source, which `run` does."""

    def __init__(
        self,
        source: Source,
        aligner: Aligner,
        recogniser: Recogniser,
        commands: Commands,
        safety: Safety,
        recorder: Recorder | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self.source, self.aligner, self.recogniser = source, aligner, recogniser
        self.commands, self.safety, self.recorder = commands, safety, recorder
        self.frames = 0  # as they came
        self.missing = 0  # after alignment, with a channel that was not observed
        self.steps = Durations()  # s, of the alignment, recogniser and command map for one frame
        self._clock = clock
        self._recognition = Recognition(None, 0.0, (), 0)
        self._rated = (clock(), 0)

    async def run(self) -> None:
        """Until the source ends; the robot is stopped then.

        Raises:
            SourceLost: the source is gone and does not come back.
            SensorError: it could not be connected, or the recording cannot be written.
        """
        try:
            async with self.source:
                async for frame in self.source:
                    self.take(frame)
        except SourceLost as error:
            self.safety.report(Fault.SOURCE, str(error))
            raise
        except Exception as error:
            self.safety.report(Fault.INTERNAL, f"{type(error).__name__}: {error}")
            raise
        finally:
            self.safety.report(Fault.SOURCE, f"{self.source.info.stream_id}: the stream has ended")

    def take(self, frame: Frame) -> None:
        """Follow one frame to `safety`.

        Raises:
            SensorError: the recording cannot be written any more.
        """
        began = self._clock()
        self.frames += 1
        if self.recorder is not None:
            self.recorder.append(frame)
        if not np.isfinite(frame.values).all():
            names = [
                channel.name
                for channel, value in zip(self.source.info.channels, frame.values, strict=True)
                if not np.isfinite(value)
            ]
            self.safety.report(Fault.NAN, f"{frame.stream_id}: no number in {', '.join(names)}")
        try:
            for aligned in self.aligner.push(frame):
                self._follow(aligned)
        except RecogniserError as error:
            self.recogniser.restart()
            self.safety.report(Fault.MODEL, str(error))
        except SensorError as error:
            self.safety.report(Fault.CLOCK, str(error))
        self.steps.add(self._clock() - began)

    def _follow(self, frame: Frame) -> None:
        self._recognition = self.recogniser.step(frame)
        if not frame.mask.all():
            self.missing += 1
            return
        self.safety.submit(self.commands.intent(self._recognition, frame, self.safety.snapshot.robot))

    def readings(self) -> list[Reading]:
        """What a panel and a meter show; asked a few times a second, by one thread."""
        now, (then, frames) = self._clock(), self._rated
        self._rated = (now, self.frames)
        rate = (self.frames - frames) / (now - then) if now > then else 0.0
        safe, recognition = self.safety.snapshot, self._recognition
        latencies = self.safety.latencies()
        median, late = np.quantile(latencies[-NEWEST:], (0.5, 0.99)) if latencies else (np.nan, np.nan)
        most = max(latencies, default=np.nan)
        return [
            Reading("safety_state", "state", "text", safe.state),
            Reading("safety_why", "because", "text", safe.why),
            Reading("armable_why", "can be armed", "text", safe.not_ready or "yes"),
            Reading("recognised_gesture", "gesture", "text", recognition.gesture or "none"),
            Reading("confidence", "confidence", "gauge", recognition.confidence),
            Reading("commanded_motion", "motion", "text", self.commands.doing or "none"),
            Reading("frames_total", "frames", "counter", self.frames),
            Reading("rate_hertz", "rate", "gauge", rate, "Hz"),
            Reading("frame_dropped_total", "dropped by the source", "counter", self.source.dropped),
            Reading("frame_missing_total", "not whole after alignment", "counter", self.missing),
            *self.aligner.readings(),
            Reading("step_p50_seconds", "a frame's work, median", "gauge", self.steps.quantile(0.5), "s"),
            Reading("step_p99_seconds", "a frame's work, 99 %", "gauge", self.steps.quantile(0.99), "s"),
            Reading("latency_p50_seconds", "frame to command, median", "gauge", float(median), "s"),
            Reading("latency_p99_seconds", "frame to command, 99 %", "gauge", float(late), "s"),
            Reading("latency_max_seconds", "frame to command, longest", "gauge", float(most), "s"),
            *(
                Reading(f"safety_{name.replace(' ', '_')}_total", name, "counter", count)
                for name, count in safe.counts.items()
            ),
        ]
