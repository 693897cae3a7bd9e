"""What a bundle reads of a stream: its channels and its rate, and whether a stream is such a one."""

from __future__ import annotations

from data.frame import Channel
from forecasting.bundle import BundleError
from forecasting.runtime import LoadedBundle
from sensors.stream import SensorError, StreamInfo

RATE_TOLERANCE = 0.01  # share by which a stream's rate may differ from the model's; clocks drift far less


def channels_of(bundle: LoadedBundle) -> list[Channel]:
    """In order."""
    return [Channel.from_json(channel) for channel in bundle.channels]


def rate_of(bundle: LoadedBundle) -> float | None:
    """Hz; None of a bundle that was trained on rows in order."""
    freq = bundle.task["freq"]
    return 1 / freq if isinstance(freq, float) else None


def check_input(bundle: LoadedBundle, info: StreamInfo) -> None:
    """
    Raises:
        SensorError: the bundle was trained on other channels, at another rate, or on a calendar's step.
    """
    try:
        bundle.check_channels(info.channels)
    except BundleError as error:
        raise SensorError(f"{info.stream_id}: {error}") from error
    freq, wanted = bundle.task["freq"], rate_of(bundle)
    if isinstance(freq, str):
        raise SensorError(f"{bundle.path}: was trained on a step of {freq!r}, which is a calendar's and no sensor's.")
    if wanted is not None and not abs(info.rate_hz - wanted) <= RATE_TOLERANCE * wanted:
        found = f"{info.rate_hz:g} Hz" if info.rate_hz else "no fixed rate"
        raise SensorError(
            f"{info.stream_id}: has {found}; {bundle.path} was trained at {wanted:g} Hz. Resample the stream to it "
            "(`align`), or train on data of its rate."
        )
