"""Predictions of a live stream: source, alignment, one step of the model, a line of JSON; what `mnemo stream` does.

A line has `stream_id`, `time` (s, the source's clock), `observed` (false where a step stands for a gap), and what the
model says after the step: `label` and `probabilities` by class; `quantiles` by level, of a forecast a list, the next
step first. What is not known yet is null.

Shapes: H horizon, Q quantiles, K classes.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forecasting.runtime import LoadedBundle
from forecasting.stream import Stream
from sensors.align import AlignConfig, Aligner, ClockJump, RateError, aligned
from sensors.model_input import channels_of, check_input, rate_of
from sensors.sinks import Sink
from sensors.sources.open import open_source
from sensors.stream import Clock, Frame, SensorError, Source, StreamInfo

NO_STEP = ("old", "late", "copies", "extra", "unstamped")  # frames that the alignment drops, as its counts call them


class Predictions:
    """From a source's frames, brought to the model's rate, to lines; owns nothing."""

    def __init__(
        self,
        bundle: LoadedBundle,
        source: Source,
        tell: Callable[[str], object] = lambda why: None,
        clock: Clock = time.monotonic,
    ) -> None:
        """
        Args:
            tell: hears at once of a jump of the clock, or a flood, behind which the alignment began anew.

        Raises:
            SensorError: the bundle does not stream, needs what no stream tells, or was trained on other channels or on
                a calendar's step.
        """
        if not bundle.streams:
            raise SensorError(f"{bundle.path}: {bundle.name} needs the end of a sequence. Take a model that streams.")
        if bundle.future:
            raise SensorError(
                f"{bundle.path}: needs to know {', '.join(bundle.future)} ahead, which a stream does not tell. Train "
                "without covariates known ahead."
            )
        self.bundle, self.source, self._tell, self._clock = bundle, source, tell, clock
        rate = rate_of(bundle) or source.info.rate_hz
        self.aligner = Aligner(source.info, AlignConfig(rate), source.real_time) if rate else None
        self.info = StreamInfo(source.info.stream_id, source.info.channels, rate)
        check_input(bundle, self.info)
        self.steps = 0
        self._values = np.empty((1, len(self.info.channels)), np.float32)
        self._stream: Stream = bundle.stream(series=[self.info.stream_id])

    async def run(self, sink: Sink) -> None:
        """Until the source ends.

        Raises:
            SourceLost: source or sink is gone.
            BundleError: the model cannot take a step.
        """
        frames = aiter(self.source)
        if self.aligner is None:  # rows in order, of a source without a rate
            async for frame in frames:
                await sink.write(self.line(frame))
            return
        while True:
            try:
                async for step in aligned(frames, self.aligner, self._clock):
                    await sink.write(self.line(step))
                return
            except (ClockJump, RateError) as error:
                self._tell(f"began anew: {error}")

    def summary(self) -> str:
        """How many steps there were, and which frames became none."""
        lost = [f"{self.source.dropped} dropped ({self.source.last_drop})"] if self.source.dropped else []
        if self.aligner is not None:
            counts = asdict(self.aligner.counts)
            lost += [f"{counts[name]} {name}" for name in ("masked", *NO_STEP) if counts[name]]
        return ", ".join([f"{self.steps} steps of {self.info.stream_id}", *lost])

    def line(self, step: Frame) -> str:
        """What the model says after a step of the aligned stream."""
        self._values[0] = np.where(step.mask, step.values, np.float32(np.nan))
        said = self._stream.step(self._values)[0]
        self.steps += 1
        told = {"stream_id": step.stream_id, "time": _number(step.time), "observed": bool(step.mask.any())}
        return json.dumps(told | self._told(said), allow_nan=False)

    def _told(self, said: NDArray[np.float32]) -> dict[str, Any]:
        bundle = self.bundle
        if bundle.kind == "classify":
            known = bool(np.isfinite(said).all())
            return {
                "label": bundle.labels[int(said.argmax())] if known else None,
                "probabilities": dict(zip(bundle.labels, map(_number, said.tolist()), strict=True)),
            }
        levels = [f"{level:g}" for level in bundle.quantiles]
        if bundle.kind == "regress":
            return {"quantiles": dict(zip(levels, map(_number, said.tolist()), strict=True))}
        return {"quantiles": {level: [*map(_number, row)] for level, row in zip(levels, said.T.tolist(), strict=True)}}


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def open_predictions(bundle: LoadedBundle, uri: str, tell: Callable[[str], object]) -> Predictions:
    """Of a source's URI; its channels and rate are the bundle's where the URI does not say.

    Raises:
        SensorError: see `Predictions` and `open_source`.
    """
    return Predictions(bundle, open_source(uri, channels_of(bundle), rate_of(bundle)), tell)
