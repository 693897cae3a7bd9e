"""Which gesture makes the robot do what, as a TOML file says it.

    [pace]                          # optional, all of its fields too: see `motions.Pace`
    speed = 0.25

    [home]                          # for `home`: every joint of the arm, in rad
    panda_joint1 = 0.0

    [things.jug]                    # what can be taken: see `motions.Thing`
    grasp = [0, 0, 0.09]            # m, from its foot
    approach = [0, 1, 0]
    rim = [0.158, 0.032]            # m, if it can be poured from
    position = [0.4, 0.1, 0]        # m, if nothing tells where it is

    [places.plate]                  # where things go; `position` as above
    offset = [0, 0, 0.012]          # m, from its foot to where things are put or poured

    [commands.take_jug]
    gesture = "grasp"
    do = "pick"                     # pick, place, pour, grip, home or stop
    thing = "jug"                   # of pick; of place, if nothing else belongs there
    confidence = 0.8
    dwell_s = 0.2                   # optional: how long the gesture has to be shown
    release_s = 0.3                 # optional: for how long not, before it counts again

    [jogs.drag]                     # while the gesture is shown, the hand drives
    gesture = "point"
    confidence = 0.8
    frame = "base"                  # or "tool"

    [[jogs.drag.axes]]
    axis = "x"                      # x, y, z; rx, ry, rz about them
    channel = "hand_x"              # counted from where it was when the gesture began
    dead = 0.02                     # in the channel's unit: so much moves nothing
    scale = 0.5                     # m/s or rad/s for one of it beyond
    most = 0.2                      # m/s or rad/s

Whatever a file names that is not there, or leaves out, is found here, before anything moves.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.frame import Channel
from sensors.motions import Pace, Pose, Thing
from sensors.robots.kinematics import Arm, Kinematics
from sensors.sources.settings import parse_settings
from sensors.stream import SensorError

Where = Callable[[str], Pose]
"""A thing's or a place's foot now, by its name; raises SensorError for one that it does not see."""

AXES = ("x", "y", "z", "rx", "ry", "rz")
FRAMES = ("base", "tool")
NEEDS = {  # what a command takes besides its gesture
    "pick": ("thing",),
    "place": ("at",),
    "pour": ("into", "tilt", "seconds"),
    "grip": ("opening",),
    "home": (),
    "stop": (),
}
GRIPS = ("pick", "place", "pour", "grip")


@dataclass(frozen=True)
class Command:
    """A gesture that starts a motion, or stops one."""

    gesture: str
    do: str
    confidence: float  # of the gesture, at least
    dwell_s: float = 0.0
    release_s: float = 0.3
    thing: str = ""
    at: str = ""
    into: str = ""
    tilt: float = math.nan  # rad
    seconds: float = math.nan
    opening: float = math.nan  # 0 closed to 1 open


@dataclass(frozen=True)
class Axis:
    """How one channel drives one axis of the tool."""

    axis: str
    channel: str
    dead: float
    scale: float
    most: float

    def speed(self, moved: float) -> float:
        """m/s or rad/s, for a channel that has moved by so much."""
        beyond = math.copysign(max(abs(moved) - self.dead, 0.0), moved)
        return min(max(self.scale * beyond, -self.most), self.most)


@dataclass(frozen=True)
class Jog:
    """A gesture that lets the hand drive while it is shown."""

    gesture: str
    confidence: float
    frame: str
    axes: tuple[Axis, ...]


@dataclass(frozen=True)
class CommandMap:
    """A file that has been checked."""

    commands: Mapping[str, Command]
    jogs: Mapping[str, Jog]
    things: Mapping[str, Thing]
    places: Mapping[str, tuple[float, float, float]]  # offset in m from its foot
    taught: Mapping[str, Pose]  # of the things and places that have a position
    home: Pose | None
    pace: Pace

    @property
    def gestures(self) -> dict[str, str]:
        """Of each command and jog, by the place in the file that names it."""
        commands = {f"commands.{name}.gesture": command.gesture for name, command in self.commands.items()}
        return commands | {f"jogs.{name}.gesture": jog.gesture for name, jog in self.jogs.items()}


def read_command_map(path: Path, arm: Arm | None = None) -> CommandMap:
    """
    Args:
        path: of a TOML file.
        arm: whose joints `home` names; None where its kinematics are not known.

    Raises:
        SensorError: there is no such file, or it is not a map; the message names the file and the field.
    """
    try:
        with path.open("rb") as file:
            settings = tomllib.load(file)
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise SensorError(f"{path}: cannot be read as TOML ({error}).") from error
    try:
        return parse_command_map(settings, arm)
    except SensorError as error:
        raise SensorError(f"{path}: {error}") from error


def parse_command_map(settings: Mapping[str, Any], arm: Arm | None = None) -> CommandMap:
    """What `read_command_map` makes of a file's tables."""
    known = ("pace", "home", "things", "places", "commands", "jogs")
    _check_names(settings, known, "the map")
    tables = {name: _tables(settings.get(name, {}), name) for name in known[2:]}
    taught: dict[str, Pose] = {}
    things: dict[str, Thing] = {}
    places: dict[str, tuple[float, float, float]] = {}
    for name, table in tables["things"].items():
        rest = _take_position(f"things.{name}", name, table, taught)
        things[name] = parse_settings(Thing, {"name": name, **rest}, f"things.{name}")
        _check_finite(f"things.{name}", things[name])
        if not np.linalg.norm(things[name].approach) > 0:
            raise SensorError(f"things.{name}.approach: is {list(things[name].approach)}, expected a direction.")
    for name, table in tables["places"].items():
        if name in things:
            raise SensorError(f"places.{name}: is a thing too; give the place another name.")
        rest = _take_position(f"places.{name}", name, table, taught)
        place = parse_settings(_Place, rest, f"places.{name}")
        _check_finite(f"places.{name}", place)
        places[name] = place.offset
    commands = {name: parse_settings(Command, table, f"commands.{name}") for name, table in tables["commands"].items()}
    for name, command in commands.items():
        _check_command(f"commands.{name}", tables["commands"][name], command, things, places)
    jogs = {name: _jog(f"jogs.{name}", table) for name, table in tables["jogs"].items()}
    home = _home(settings["home"], arm) if "home" in settings else None
    if home is None:
        for name, command in commands.items():
            if command.do == "home":
                raise SensorError(f"commands.{name}.do: is 'home', but there is no [home] that says where it is.")
    pace = parse_settings(Pace, _table(settings.get("pace", {}), "pace"), "pace")
    for name, value in asdict(pace).items():
        _check_range(f"pace.{name}", value, 1e-6, 1e3)
    command_map = CommandMap(commands, jogs, things, places, taught, home, pace)
    taken: dict[str, str] = {}
    for where, gesture in command_map.gestures.items():
        if gesture in taken:
            raise SensorError(f"{where}: '{gesture}' is that of {taken[gesture]} already; one gesture, one meaning.")
        taken[gesture] = where
    return command_map


def check_command_map(
    command_map: CommandMap,
    labels: Iterable[str],
    channels: Sequence[Channel],
    has_gripper: bool,
    seen: Iterable[str] = (),
) -> None:
    """That a map fits what is there.

    Args:
        labels: the gestures that the recogniser knows.
        channels: of the frames.
        has_gripper: whether the robot has one.
        seen: the things and places whose positions are measured.

    Raises:
        SensorError: it does not; the message names the field.
    """
    labels, names, seen = list(labels), [channel.name for channel in channels], set(seen)
    for where, gesture in command_map.gestures.items():
        if gesture not in labels:
            raise SensorError(f"{where}: the model knows no gesture '{gesture}'; expected one of {', '.join(labels)}.")
    for name, jog in command_map.jogs.items():
        for number, axis in enumerate(jog.axes):
            if axis.channel not in names:
                raise SensorError(
                    f"jogs.{name}.axes[{number}].channel: the stream has no channel '{axis.channel}'; expected one of "
                    f"{', '.join(names)}."
                )
    for name, command in command_map.commands.items():
        if command.do in GRIPS and not has_gripper:
            raise SensorError(f"commands.{name}.do: is '{command.do}', but the robot has no gripper.")
    for kind, entries in (("things", command_map.things), ("places", command_map.places)):
        for name in entries:
            if name not in command_map.taught and name not in seen:
                raise SensorError(
                    f"{kind}.{name}: has no position, and nothing measures where it is; give it one"
                    + (f", or name one of {', '.join(sorted(seen))}." if seen else ".")
                )


@dataclass(frozen=True)
class _Shown:
    """Of a jog's table, without its axes."""

    gesture: str
    confidence: float
    frame: str


@dataclass(frozen=True)
class _Position:
    position: tuple[float, float, float]


@dataclass(frozen=True)
class _Place:
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)


def _check_command(
    where: str, table: Mapping[str, Any], command: Command, things: Mapping[str, Thing], places: Mapping[str, Any]
) -> None:
    if command.do not in NEEDS:
        raise SensorError(f"{where}.do: is '{command.do}', expected one of {', '.join(NEEDS)}.")
    needs = NEEDS[command.do]
    for name in {name for names in NEEDS.values() for name in names}:
        if command.do == "place" and name == "thing":  # it may name the only one that belongs there
            continue
        if (name in needs) != (name in table):
            what = "is missing" if name in needs else "means nothing"
            raise SensorError(f"{where}.{name}: {what} where `do` is '{command.do}'.")
    _check_range(f"{where}.confidence", command.confidence, 0, 1)
    _check_range(f"{where}.dwell_s", command.dwell_s, 0, 10)
    _check_range(f"{where}.release_s", command.release_s, 0, 10)
    if command.do == "pour":
        _check_range(f"{where}.tilt", command.tilt, 0, math.pi)
        _check_range(f"{where}.seconds", command.seconds, 0, 60)
    if command.do == "grip":
        _check_range(f"{where}.opening", command.opening, 0, 1)
    for name, known in (("thing", things), ("at", places), ("into", places)):
        if name in table and getattr(command, name) not in known:
            raise SensorError(
                f"{where}.{name}: there is no '{getattr(command, name)}'; expected one of {', '.join(known)}."
            )


def _jog(where: str, table: Mapping[str, Any]) -> Jog:
    rows = table.get("axes", [])
    if not (isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows)):
        raise SensorError(f"{where}.axes: expected at least one table [[{where}.axes]].")
    axes = tuple(parse_settings(Axis, row, f"{where}.axes[{number}]") for number, row in enumerate(rows))
    for number, axis in enumerate(axes):
        _check_finite(f"{where}.axes[{number}]", axis)
        if axis.axis not in AXES:
            raise SensorError(f"{where}.axes[{number}].axis: is '{axis.axis}', expected one of {', '.join(AXES)}.")
        if axis.axis in [other.axis for other in axes[:number]]:
            raise SensorError(f"{where}.axes[{number}].axis: '{axis.axis}' has a channel already.")
        _check_range(f"{where}.axes[{number}].dead", axis.dead, 0, math.inf)
        _check_range(f"{where}.axes[{number}].most", axis.most, 0, math.inf)
    shown = parse_settings(_Shown, {name: value for name, value in table.items() if name != "axes"}, where)
    jog = Jog(shown.gesture, shown.confidence, shown.frame, axes)
    _check_range(f"{where}.confidence", jog.confidence, 0, 1)
    if jog.frame not in FRAMES:
        raise SensorError(f"{where}.frame: is '{jog.frame}', expected one of {', '.join(FRAMES)}.")
    return jog


def _home(table: Any, arm: Arm | None) -> Pose:
    if arm is None:
        raise SensorError("home: names joints, but the kinematics of this robot are not known; leave it out.")
    names = [joint.name for joint in arm.joints]
    _check_names(_table(table, "home"), names, "home")
    for joint in arm.joints:
        if joint.name not in table:
            raise SensorError(f"home.{joint.name}: is missing; every joint of the {arm.name} is needed.")
        _check_range(f"home.{joint.name}", table[joint.name], joint.low, joint.high)
    return Pose(*Kinematics(arm).forward([table[name] for name in names]))


def _take_position(where: str, name: str, table: Mapping[str, Any], taught: dict[str, Pose]) -> dict[str, Any]:
    """The rest of a table."""
    rest = dict(table)
    if "position" in rest:
        given = parse_settings(_Position, {"position": rest.pop("position")}, where)
        _check_finite(where, given)
        taught[name] = Pose(np.array(given.position), np.eye(3))
    return rest


def _table(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise SensorError(f"{where}: is {value!r}, expected a table [{where}].")
    return value


def _tables(value: Any, where: str) -> dict[str, dict[str, Any]]:
    return {name: _table(table, f"{where}.{name}") for name, table in _table(value, where).items()}


def _check_names(table: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for name in table:
        if name not in known:
            raise SensorError(f"{where}: does not know '{name}'; expected {', '.join(known)}.")


def _check_range(where: str, value: Any, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise SensorError(f"{where}: is {value!r}, expected {low:g} to {high:g}.")


def _check_finite(where: str, settings: Any) -> None:
    """Every number of a dataclass, and of its lists."""
    for name, value in asdict(settings).items():
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                raise SensorError(f"{where}.{name}: is {value!r}, expected finite numbers.")
