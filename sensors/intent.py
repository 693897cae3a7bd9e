"""What the operator wants at this moment, as the recogniser's side tells `safety`.

An intent is an opinion, not a command: `safety` ages it, limits it or ignores it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

STILL: NDArray[np.float64] = np.zeros(6)
STILL.flags.writeable = False


class Intent(NamedTuple):
    """Made of one frame."""

    received: float  # s, monotonic: when the frame that it comes from was here
    gesture: str | None  # what was recognised; None for no gesture, "unknown" for one that is rejected
    confidence: float  # 0 to 1; NaN counts as none
    twist: NDArray[np.float64] = STILL  # (6,) wanted velocity of the tool, m/s and rad/s, in the robot's base frame
    gripper: float | None = None  # 0 closed to 1 open; None leaves it
    alone: bool = False  # nothing is shown now; `gesture` is the one that started a motion, which goes on by itself
    late: float = 0.0  # s, at least 0: how much longer than the fastest ones that frame was on its way

    @property
    def since(self) -> float:
        """s, monotonic: from when on it ages; what waited on its way is as old as if it had waited here."""
        return self.received - self.late
