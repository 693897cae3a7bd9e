"""What a bundle asks of the data that it is to forecast from: its task, step and channels."""

from __future__ import annotations

from typing import Any

from data.frame import Channel
from forecasting.runtime import LoadedBundle


def asked_by(loaded: LoadedBundle) -> dict[str, Any]:
    """Options of `data.catalog.load`."""
    channels = [Channel.from_json(channel) for channel in loaded.channels]
    asked = {"task": loaded.kind, "freq": loaded.task["freq"], "channels": channels}
    return asked if loaded.kind == "forecast" else asked | {"target_required": False}
