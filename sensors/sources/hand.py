"""The landmarks of a hand as camera trackers give them: 21 points, each x, y, z.

The order is that of MediaPipe's hand model, which other trackers follow. A tracker runs as its own process and sends
frames through a websocket or MQTT (`payload`, "hand").
"""

from __future__ import annotations

from data.frame import Channel

FINGERS = ("index", "middle", "ring", "pinky")
LANDMARKS = (
    "wrist",
    *(f"thumb_{joint}" for joint in ("cmc", "mcp", "ip", "tip")),
    *(f"{finger}_{joint}" for finger in FINGERS for joint in ("mcp", "pip", "dip", "tip")),
)


def hand_channels(unit: str = "m") -> tuple[Channel, ...]:
    """The 63 channels wrist_x, wrist_y, wrist_z, thumb_cmc_x, ...; unit "" for positions in the picture, 0 to 1."""
    return tuple(Channel(f"{landmark}_{axis}", unit) for landmark in LANDMARKS for axis in "xyz")
