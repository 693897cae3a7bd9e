"""When a recognised gesture does what it is mapped to: the map's own confidence, dwell and release.

The bridge's mapper asks it, and so does whoever judges what a bridge with this map would do (`calibrate`).
"""

from __future__ import annotations

import math

from sensors.command_map import Command, CommandMap, Jog

GAP_S = 0.1  # between two frames, after which a gesture counts as shown anew


class Gate:
    """Of one stream, whose frames all have to be taken, those without a gesture too."""

    def __init__(self, command_map: CommandMap) -> None:
        self._commands = {command.gesture: command for command in command_map.commands.values()}
        self._jogs = {jog.gesture: jog for jog in command_map.jogs.values()}
        self._shown: str | None = None
        self._since = self._last = -math.inf  # s, of the shown gesture; of the last frame
        self._spent: dict[str, float] = {}  # gesture that was acted on -> s, when it was seen last

    def spend(self) -> None:
        """What is shown now counts as acted on."""
        if self._shown is not None:
            self._spent[self._shown] = self._last

    def step(self, gesture: str | None, confidence: float, now: float) -> Command | Jog | None:
        """What this frame asks for: a command once for each time it is shown, but a stop and a jog at every frame.

        Args:
            gesture: what is recognised; None for no gesture.
            confidence: 0 to 1; NaN counts as none.
            now: s, when the frame was received.
        """
        if gesture != self._shown or now - self._last > GAP_S:
            self._shown, self._since = gesture, now
        self._last = now
        jog = self._jogs.get(gesture or "")
        if jog is not None:
            return jog if confidence >= jog.confidence else None
        command = self._commands.get(gesture or "")
        if command is None:
            return None
        if command.do != "stop":
            if now - self._spent.get(command.gesture, -math.inf) <= command.release_s:
                self._spent[command.gesture] = now
                return None
            self._spent.pop(command.gesture, None)
        if not confidence >= command.confidence:  # NaN neither
            self._since = now
            return None
        if now - self._since < command.dwell_s:
            return None
        self._spent[command.gesture] = now
        return command
