"""A bridge as a TOML file describes it; `EXAMPLE` is one that runs on a machine with nothing attached to it.

Everything is read and checked before anything is connected: what is missing, unknown or does not fit together is
refused with the name of the file and the field. Paths are relative to the file. Secrets are never in it, only the names
of the variables or files that hold them.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forecasting.bundle import BundleError
from forecasting.runtime import LoadedBundle, load_bundle
from sensors.align import AlignConfig
from sensors.command_map import CommandMap, Where, check_command_map, parse_command_map, read_command_map
from sensors.hold import HoldTopic
from sensors.limits import Limits
from sensors.model_input import channels_of, rate_of
from sensors.motions import Pose
from sensors.person import Person
from sensors.realtime import default_cores
from sensors.recognise import Rules
from sensors.recogniser import Recogniser
from sensors.robot import Robot
from sensors.robots.open import open_robot
from sensors.safety_checks import SafetyConfig
from sensors.sources.open import open_source
from sensors.sources.settings import parse_settings
from sensors.stream import SensorError, Source, StreamInfo
from sensors.teach import GestureMemory

TABLES = ("source", "align", "recognition", "commands", "safety", "limits", "robot", "hold", "log", "cores")
NEEDED = ("source", "recognition", "commands", "safety", "limits", "robot")

EXAMPLE = """\
# A simulated hand, replayed for ever, drives a simulated arm. First, once:
#   mnemo train --data gestures_demo --model gru --set lookback=500 --set batch_size=8 --set max_epochs=16 \\
#     --set lags=10 --out bundles/gestures
# (lags: of the ridge that stands beside it in the report; all 500 would take it most of a minute)
# then: mnemo bridge --config THIS_FILE; press a to arm it, and hold the space bar to let it move.

[source]                          # or mqtt://, lsl:, serial:, ws://, ws-listen://
uri = "replay:gestures_demo"
series = "person_9/1"
loop = true

[recognition]
bundle = "bundles/gestures"       # its channels and its rate are those that the source has to have
none = ["rest"]                   # classes that mean no gesture
# person = "people/ana.npz"       # where what is learned of a person is kept
# memory = "memory"               # gestures that were taught: memory.npz and .json of `python -m sensors teach`
[recognition.rules]               # optional
threshold = 0.8
dwell = 5                         # frames

[commands]                        # which gesture does what
[commands.home]
panda_joint1 = 0.0
panda_joint2 = -0.785398
panda_joint3 = 0.0
panda_joint4 = -2.356194
panda_joint5 = 0.0
panda_joint6 = 1.570796
panda_joint7 = 0.785398
[commands.commands.halt]
gesture = "stop"
do = "stop"
confidence = 0.5
[commands.commands.close]
gesture = "grip"
do = "grip"
opening = 0.2
confidence = 0.8
[commands.commands.back]
gesture = "circle"
do = "home"
confidence = 0.8
[commands.jogs.drag]
gesture = "point"
confidence = 0.8
frame = "base"
[[commands.jogs.drag.axes]]
axis = "y"
channel = "x"
dead = 0.01                       # m
scale = 1.0                       # m/s for one m beyond
most = 0.2                        # m/s

[safety]
confidence = 0.7                  # of a gesture; below, the robot brakes
hold = []                         # gestures that hold; none: a key (the space bar), or a topic as below, does
watchdog_s = 0.1                  # 0.1 at most

[limits]                          # every one is needed
linear_velocity = 0.25            # m/s
linear_acceleration = 1.0
linear_jerk = 10.0
angular_velocity = 1.0            # rad/s
angular_acceleration = 4.0
angular_jerk = 40.0
joint_velocity = 2.0              # rad/s, as measured; more is a fault
gripper_speed = 1.0               # of its travel a second
singular = 0.05                   # manipulability below which it slows down
creep = 0.2                       # of the speed, that is left at a singularity
box_low = [0.2, -0.5, 0.05]       # m, where the tool may be
box_high = [0.8, 0.5, 0.8]

[robot]                           # or ros2:0, rosbridge://, mqtt://
uri = "simulated:panda"

# [hold]                          # a pedal that says 1 every 50 ms while it is pressed
# host = "127.0.0.1"
# topic = "pedal"

# [align]                         # see sensors/align.py
# [log]
# commands = "bridge.jsonl"       # what was really sent
# [cores]                         # of the two loops; -1 leaves one where the system puts it
# frames = 0
# robot = 1
# awake = true                    # no core sleeps, where the system lets this process ask for that; takes power
"""


@dataclass(frozen=True)
class RecognitionConfig:
    """What recognises."""

    bundle: str
    person: str = ""
    memory: str = ""


@dataclass(frozen=True)
class LogConfig:
    """Where what was really sent is written."""

    commands: str = "bridge.jsonl"


@dataclass(frozen=True)
class CoresConfig:
    """Which cores the two loops stay on; -1 leaves a thread where the system puts it."""

    frames: int
    robot: int
    awake: bool = True


@dataclass(frozen=True)
class BridgeConfig:
    """All parts, made but not connected."""

    path: Path
    source: Source
    align: AlignConfig
    recogniser: Recogniser
    command_map: CommandMap
    safety: SafetyConfig
    robot: Robot
    commands_log: Path
    cores: CoresConfig
    hold: HoldTopic | None  # what holds beside the space bar
    person: Path | None  # kept when the bridge ends
    where: Where | None  # things are, if anything measures it


def read_config(path: Path) -> BridgeConfig:
    """
    Raises:
        SensorError: what is wrong, with the file and the field.
    """
    settings = _tables(path)
    try:
        return _read(path, settings)
    except (SensorError, BundleError) as error:
        raise SensorError(f"{path}: {error}") from error


def read_source(path: Path) -> Source:
    """The source of a bridge's configuration, or of a file with nothing else in it; not connected yet.

    Its channels and rate are those that [source] gives, or else those of the bundle that [recognition] names.

    Raises:
        SensorError: what is wrong, with the file and the field.
    """
    settings = _tables(path)
    try:
        table = settings.get("source")
        if not isinstance(table, dict):
            raise SensorError("lacks [source].")
        recognition = settings.get("recognition", {})
        place = recognition.get("bundle") if isinstance(recognition, dict) else None
        if "channels" in table or place is None:
            return open_source(_relative(table, path.parent))
        bundle = load_bundle(path.parent / str(place))
        return open_source(_relative(table, path.parent), channels_of(bundle), rate_of(bundle))
    except (SensorError, BundleError) as error:
        raise SensorError(f"{path}: {error}") from error


def _tables(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except (OSError, ValueError) as error:  # what is no TOML, or no UTF-8
        raise SensorError(f"{path}: cannot be read as TOML ({error}). `mnemo bridge --example` prints one.") from error


def _read(path: Path, settings: Mapping[str, Any]) -> BridgeConfig:
    unknown = [name for name in settings if name not in TABLES]
    missing = [name for name in NEEDED if name not in settings]
    wrong = [name for name, table in settings.items() if not isinstance(table, dict)]
    for what, names in (("does not know", unknown), ("lacks", missing), ("expected a table, not a value, as", wrong)):
        if names:
            raise SensorError(f"{what} [{'], ['.join(names)}]; a bridge has [{'], ['.join(TABLES)}].")
    # What needs nothing else first, so that a limit that is missing is told even where no bundle is there yet.
    limits = Limits.parse(settings["limits"])
    safety = SafetyConfig.parse(settings["safety"], limits)
    robot, arm = open_robot(settings["robot"])
    table = dict(settings["commands"])
    file = table.pop("file", None)
    if file is not None and (table or not isinstance(file, str)):
        raise SensorError("commands: `file` names a map of its own, as text; nothing else belongs beside it.")
    try:
        command_map = parse_command_map(table, arm) if file is None else read_command_map(path.parent / file, arm)
    except SensorError as error:
        raise SensorError(f"commands: {error}") from error
    hold = parse_settings(HoldTopic, settings["hold"], "hold") if "hold" in settings else None
    if hold is not None and safety.hold:
        raise SensorError("hold: a topic cannot hold where gestures do; leave out [hold] or empty safety.hold.")
    log = parse_settings(LogConfig, settings.get("log", {}), "log")
    cores = settings.get("cores", {})
    defaults = dict(zip(("frames", "robot"), default_cores(), strict=True))
    recogniser, source, align, person = _recognition(path, settings)
    if not align.rate_hz * safety.watchdog_s > 1:
        raise SensorError(
            f"recognition.bundle: gives {align.rate_hz:g} answers a second, further apart than the "
            f"{safety.watchdog_s:g} s of safety.watchdog_s, after which the robot is stopped; train on data of a "
            "higher rate."
        )
    where, seen = _eyes(robot)
    gestures = [label for label in recogniser.labels if label not in recogniser.none]
    check_command_map(command_map, gestures, recogniser.info.channels, robot.info.has_gripper, seen)
    _check_confidences(command_map, safety)
    strange = [name for name in safety.hold if name not in gestures]
    if strange:
        raise SensorError(
            f"safety.hold: the model knows no gesture {', '.join(strange)}; expected some of {', '.join(gestures)}."
        )
    return BridgeConfig(
        path=path,
        source=source,
        align=align,
        recogniser=recogniser,
        command_map=command_map,
        safety=safety,
        robot=robot,
        commands_log=path.parent / log.commands,
        cores=parse_settings(CoresConfig, defaults | cores, "cores"),
        hold=hold,
        person=person,
        where=where,
    )


def _check_confidences(command_map: CommandMap, safety: SafetyConfig) -> None:
    """What starts below the confidence that safety asks for is braked at once; only a stop needs none."""
    asked = [(f"commands.{name}", each.confidence) for name, each in command_map.commands.items() if each.do != "stop"]
    asked += [(f"jogs.{name}", jog.confidence) for name, jog in command_map.jogs.items()]
    for where, confidence in asked:
        if confidence < safety.confidence:
            raise SensorError(
                f"{where}.confidence: is {confidence:g}, below safety.confidence, {safety.confidence:g}, under which "
                "the robot brakes; raise the one or lower the other."
            )


def _eyes(robot: Robot) -> tuple[Where | None, tuple[str, ...]]:
    """Who tells where things are: a simulated arm's scene; of other robots the command map has to."""
    from sensors.robots.simulated import SimulatedArm

    if not isinstance(robot, SimulatedArm):
        return None, ()
    return lambda name: Pose(*robot.place(name)), robot.simulation.bodies


def _recognition(path: Path, settings: Mapping[str, Any]) -> tuple[Recogniser, Source, AlignConfig, Path | None]:
    table = dict(settings["recognition"])
    none, rules = table.pop("none", []), table.pop("rules", {})
    if not (isinstance(none, list) and all(isinstance(name, str) for name in none)):
        raise SensorError(f"recognition: none is {none!r}, expected a list of classes that mean no gesture.")
    if not isinstance(rules, dict):
        raise SensorError(f"recognition: rules is {rules!r}, expected a table.")
    config = parse_settings(RecognitionConfig, table, "recognition")
    bundle = load_bundle(path.parent / config.bundle)
    rate = rate_of(bundle)
    source = open_source(_relative(settings["source"], path.parent), channels_of(bundle), rate)
    wanted = rate or source.info.rate_hz
    align = parse_settings(AlignConfig, {"rate_hz": wanted} | settings.get("align", {}), "align")
    person_path = path.parent / config.person if config.person else None
    person = None if person_path is None else _person(person_path, bundle)
    recogniser = Recogniser(
        bundle,
        StreamInfo(source.info.stream_id, source.info.channels, align.rate_hz),
        none=none,
        rules=Rules.parse(rules),
        person=person,
        memory=GestureMemory.load(path.parent / config.memory, bundle) if config.memory else None,
    )
    return recogniser, source, align, person_path


def _person(path: Path, bundle: LoadedBundle) -> Person:
    """As they were left, or somebody new; so that what cannot be kept at the end is refused at the start."""
    if path.exists():
        return Person.load(path, bundle)
    if not path.parent.is_dir():
        raise SensorError(f"recognition.person: there is no folder {path.parent} to keep {path.name} in; make it.")
    return Person.new(bundle, path.stem)


def _relative(source: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A recording beside the configuration is found from wherever the bridge is started."""
    kind, _, place = str(source.get("uri")).partition(":")
    if kind == "replay" and (folder / place).exists():
        return {**source, "uri": f"replay:{folder / place}"}
    return dict(source)
