"""From recognised gestures to what the operator wants of the robot, frame by frame.

A gesture that is mapped to a command starts a motion once it has been shown long enough, and not again before it was
let go. One motion runs at a time; what comes meanwhile is dropped, except `stop`, which has priority over everything.
A gesture that is mapped to jogging lets the hand drive while it is shown. While a motion runs on its own, intents carry
the gesture that started it: `safety` asks for one. Whether the robot may move is `safety`'s decision alone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from data.frame import Channel
from sensors.command_map import AXES, Command, CommandMap, Jog, Where
from sensors.gate import Gate
from sensors.intent import STILL, Intent
from sensors.motions import GRIPPED, Motion, Pose, Thing, grip, home, pick, place, pour, tool
from sensors.robot import RobotState
from sensors.stream import Frame, SensorError


class Mapper:
    """Of one operator and one robot."""

    def __init__(self, command_map: CommandMap, channels: tuple[Channel, ...], where: Where | None = None) -> None:
        """
        Args:
            command_map: checked against what is there (`check_command_map`).
            channels: of the frames.
            where: measures things and places that the map has no position for.
        """
        self.map = command_map
        self.note = ""  # what happened last, for a person
        self.holding: Thing | None = None  # what the gripper is closed around
        self.motion: Motion | None = None
        self.finished = 0  # motions that came to their end
        self._where = where
        self._channels = {channel.name: index for index, channel in enumerate(channels)}
        self._gate = Gate(command_map)
        self._started: tuple[str, float] = ("", 0.0)  # gesture and confidence behind the motion
        self._taken: Thing | None = None  # what the motion is about to hold
        self._origin: NDArray[np.float32] | None = None  # (C,) where jogging began

    def reset(self) -> None:
        """Leave the motion; what is shown now counts as acted on. For when the robot was stopped, or is not armed."""
        if self.motion is not None:
            self.note = f"{self.motion.name}: left"
            self._end()
        self._gate.spend()
        self._origin = None

    def step(self, gesture: str | None, confidence: float, frame: Frame, state: RobotState) -> Intent:
        """
        Args:
            gesture: what is recognised in this frame; None for no gesture, "unknown" for a rejected one.
            confidence: 0 to 1.
            frame: the newest.
            state: the robot's, as last measured.
        """
        now = frame.received
        asked = self._gate.step(gesture, confidence, now)
        if isinstance(asked, Command):
            if asked.do == "stop":
                self.note = "stopped" if self.motion is None else f"{self.motion.name}: stopped"
                self._end()
            else:
                self._start(asked, confidence, state)
        if self.motion is not None:
            return self._move(gesture, confidence, state, now)
        self._feel(state)
        if not isinstance(asked, Jog):
            self._origin = None
            return Intent(now, gesture, confidence)
        return Intent(now, gesture, confidence, self._drive(asked, frame, state))

    def _start(self, command: Command, confidence: float, state: RobotState) -> None:
        if self.motion is not None:
            self.note = f"{command.gesture}: dropped, {self.motion.name} is not done"
            return
        try:
            self.motion = self._make(command, state)
        except SensorError as error:
            self.note = f"{command.gesture}: {error}"
            return
        self._started = (command.gesture, confidence)
        self.note = f"{self.motion.name}: started"

    def _make(self, command: Command, state: RobotState) -> Motion:
        pace = self.map.pace
        if command.do == "home":
            assert self.map.home is not None  # or the map were refused
            return home(self.map.home, pace)
        if command.do == "grip":
            return grip(command.opening, pace)
        if command.do == "pick":
            if self.holding is not None:
                raise SensorError(f"the gripper holds the {self.holding.name} already")
            self._taken = self.map.things[command.thing]
            return pick(self._taken, self._find(command.thing), pace)
        if self.holding is None:
            raise SensorError("the gripper holds nothing")
        if command.do == "place":
            if command.thing not in ("", self.holding.name):
                raise SensorError(f"the gripper holds the {self.holding.name}, not the {command.thing}")
            return place(self.holding, self._target(command.at), pace)
        if self.holding.rim is None:
            raise SensorError(f"the {self.holding.name} has no rim to pour from")
        mouth = self._target(command.into).position
        return pour(self.holding, self.holding.rim, mouth, command.tilt, command.seconds, pace)

    def _target(self, name: str) -> Pose:
        foot = self._find(name)
        return Pose(foot.position + self.map.places[name], foot.rotation)

    def _find(self, name: str) -> Pose:
        if name in self.map.taught:
            return self.map.taught[name]
        assert self._where is not None  # or the map were refused
        return self._where(name)

    def _move(self, gesture: str | None, confidence: float, state: RobotState, now: float) -> Intent:
        assert self.motion is not None
        wish = self.motion.wish(state, now)
        if wish is not None:
            shown = (gesture, confidence) if gesture is not None else self._started
            return Intent(now, *shown, wish.twist, wish.gripper, alone=gesture is None)
        self.note = self.motion.failure or f"{self.motion.name}: done"
        self.finished += not self.motion.failure
        self._end()
        self._feel(state)
        return Intent(now, gesture, confidence)

    def _end(self) -> None:
        self.holding = self._taken or self.holding  # if the gripper is closed around something: see `_feel`
        self.motion, self._taken = None, None

    def _feel(self, state: RobotState) -> None:
        """A gripper that is open, or closed all the way, holds nothing."""
        if not GRIPPED < state.gripper < 1 - GRIPPED:
            self.holding = None

    def _drive(self, jog: Jog, frame: Frame, state: RobotState) -> NDArray[np.float64]:
        """Twist (6,) of the tool in the base frame; an axis whose channel is not observed stands."""
        if self._origin is None:
            self._origin = np.full(len(frame.values), np.nan, np.float32)
        self._origin = np.where(np.isnan(self._origin) & frame.mask, frame.values, self._origin)
        twist = STILL.copy()
        for axis in jog.axes:
            index = self._channels[axis.channel]
            moved = float(frame.values[index] - self._origin[index])
            if frame.mask[index]:
                twist[AXES.index(axis.axis)] = axis.speed(moved)
        if jog.frame == "tool":
            rotation = tool(state).rotation
            twist = np.concatenate([rotation @ twist[:3], rotation @ twist[3:]])
        return twist
