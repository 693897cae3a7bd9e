"""A map of gestures to commands: what it names has to be there."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.frame import Channel
from sensors.breakfast import MAP
from sensors.command_map import CommandMap, check_command_map, parse_command_map, read_command_map
from sensors.robots.kinematics import Kinematics
from sensors.robots.panda import PANDA
from sensors.stream import SensorError

SETTINGS: dict[str, Any] = {
    "home": dict(zip([joint.name for joint in PANDA.joints], PANDA.home, strict=True)),
    "things": {"jug": {"grasp": [0, 0, 0.09], "approach": [0, 1, 0], "position": [0.4, 0.1, 0]}},
    "places": {"cup": {"offset": [0, 0, 0.12]}},
    "commands": {
        "take": {"gesture": "grasp", "do": "pick", "thing": "jug", "confidence": 0.8},
        "pour": {"gesture": "tilt", "do": "pour", "into": "cup", "tilt": 2, "seconds": 1.5, "confidence": 0.8},
        "home": {"gesture": "wave", "do": "home", "confidence": 0.8, "dwell_s": 0.2},
        "stop": {"gesture": "fist", "do": "stop", "confidence": 0.5},
    },
    "jogs": {
        "drag": {
            "gesture": "point",
            "confidence": 0.8,
            "frame": "base",
            "axes": [{"axis": "x", "channel": "hand_x", "dead": 0.02, "scale": 0.5, "most": 0.2}],
        }
    },
}
LABELS = ("grasp", "tilt", "wave", "fist", "point", "none")
CHANNELS = (Channel("hand_x", "m"), Channel("hand_y", "m"))


def changed(path: str, value: Any) -> dict[str, Any]:
    """The settings, with one changed; ... takes it away."""
    settings = copy.deepcopy(SETTINGS)
    *way, last = path.split(".")
    table: Any = settings
    for step in way:
        table = table[int(step)] if isinstance(table, list) else table.setdefault(step, {})
    if value is ...:
        del table[last]
    else:
        table[last] = value
    return settings


def check(command_map: CommandMap, **other: Any) -> None:
    what = {"labels": LABELS, "channels": CHANNELS, "has_gripper": True, "seen": ("cup",)} | other
    check_command_map(command_map, **what)


def test_a_map_is_read_as_it_is_written():
    command_map = parse_command_map(SETTINGS, PANDA)
    check(command_map)
    assert command_map.commands["take"].thing == "jug"
    assert command_map.commands["home"].dwell_s == 0.2
    assert command_map.things["jug"].grasp == (0, 0, 0.09)
    assert command_map.taught["jug"].position.tolist() == [0.4, 0.1, 0]
    assert command_map.home.position == pytest.approx(Kinematics(PANDA).forward(PANDA.home)[0])
    assert command_map.jogs["drag"].axes[0].most == 0.2
    assert command_map.pace.speed == 0.25


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("robot", {}, "the map: does not know 'robot'; expected pace, home"),
        ("commands", [], r"commands: is \[\], expected a table \[commands\]"),
        ("commands.take", "grasp", r"commands.take: is 'grasp', expected a table \[commands.take\]"),
        ("commands.take.gesture", ..., "commands.take: lacks gesture"),
        ("commands.take.gesture", 5, "commands.take: gesture is 5, expected text"),
        ("commands.take.do", "throw", "commands.take.do: is 'throw', expected one of pick, place, pour, grip"),
        ("commands.take.thing", ..., "commands.take.thing: is missing where `do` is 'pick'"),
        ("commands.take.thing", "vase", "commands.take.thing: there is no 'vase'; expected one of jug"),
        ("commands.take.tilt", 1.0, "commands.take.tilt: means nothing where `do` is 'pick'"),
        ("commands.take.speed", 1.0, "commands.take: does not know speed; expected gesture, do"),
        ("commands.take.confidence", ..., "commands.take: lacks confidence"),
        ("commands.take.confidence", 80, r"commands.take.confidence: is 80\.0, expected 0 to 1"),
        ("commands.take.confidence", float("nan"), "commands.take.confidence: is nan, expected 0 to 1"),
        ("commands.take.dwell_s", -1, "commands.take.dwell_s: is -1"),
        ("commands.pour.into", "sink", "commands.pour.into: there is no 'sink'; expected one of cup"),
        ("commands.pour.tilt", 4, r"commands.pour.tilt: is 4\.0, expected 0 to 3\.1"),
        ("commands.stop.gesture", "wave", "commands.stop.gesture: 'wave' is that of commands.home.gesture already"),
        ("jogs.drag.gesture", "fist", "jogs.drag.gesture: 'fist' is that of commands.stop.gesture already"),
        ("jogs.drag.frame", "world", "jogs.drag.frame: is 'world', expected one of base, tool"),
        ("jogs.drag.axes", [], "jogs.drag.axes: expected at least one table"),
        ("jogs.drag.axes.0.axis", "elbow", r"jogs.drag.axes\[0\].axis: is 'elbow', expected one of x, y, z, rx"),
        ("jogs.drag.axes.0.most", ..., r"jogs.drag.axes\[0\]: lacks most"),
        ("jogs.drag.axes.0.scale", float("inf"), r"jogs.drag.axes\[0\].scale: is inf, expected finite numbers"),
        ("home.panda_joint3", ..., "home.panda_joint3: is missing; every joint of the panda is needed"),
        ("home.elbow", 0.0, "home: does not know 'elbow'; expected panda_joint1"),
        ("home.panda_joint4", 0.5, "home.panda_joint4: is 0.5, expected -3.0718 to -0.0698"),
        ("home.panda_joint4", "low", "home.panda_joint4: is 'low'"),
        ("home", ..., r"commands.home.do: is 'home', but there is no \[home\]"),
        ("things.jug.grasp", [0, 0], r"things.jug: grasp is \[0, 0\], expected a list of 3"),
        ("things.jug.grasp", [0, 0, "high"], r"things.jug: grasp\[2\] is 'high', expected a number"),
        ("things.jug.approach", [0, 0, 0], "things.jug.approach: is .*, expected a direction"),
        ("things.jug.rim", [0.1, float("nan")], "things.jug.rim: is .*, expected finite numbers"),
        ("places.cup.position", [0, 0, float("inf")], "places.cup.position: is .*, expected finite numbers"),
        ("places.jug", {}, "places.jug: is a thing too"),
        ("pace.speed", 0, "pace.speed: is 0.0"),
        ("pace.hurry", 1, "pace: does not know hurry; expected speed"),
    ],
)
def test_what_a_map_gets_wrong_is_refused_by_its_field(path, value, message):
    with pytest.raises(SensorError, match=message):
        parse_command_map(changed(path, value), PANDA)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"labels": ("grasp", "tilt", "wave", "point")}, "commands.stop.gesture: the model knows no gesture 'fist'"),
        ({"labels": LABELS[:4]}, "jogs.drag.gesture: the model knows no gesture 'point'; expected one of grasp, tilt"),
        ({"channels": CHANNELS[1:]}, r"jogs.drag.axes\[0\].channel: the stream has no channel 'hand_x'.*hand_y"),
        ({"has_gripper": False}, "commands.take.do: is 'pick', but the robot has no gripper"),
        ({"seen": ()}, r"places.cup: has no position, and nothing measures where it is; give it one\."),
        ({"seen": ("mug",)}, r"places.cup: has no position.*or name one of mug\."),
    ],
)
def test_a_map_that_does_not_fit_what_is_there_is_refused_by_its_field(other, message):
    with pytest.raises(SensorError, match=message):
        check(parse_command_map(SETTINGS, PANDA), **other)


def test_home_is_refused_where_the_arms_kinematics_are_not_known():
    with pytest.raises(SensorError, match="home: names joints, but the kinematics of this robot are not known"):
        parse_command_map(SETTINGS)


def test_errors_name_the_file(tmp_path: Path):
    path = tmp_path / "map.toml"
    with pytest.raises(SensorError, match=r"map.toml: cannot be read as TOML"):
        read_command_map(path)
    path.write_text("[commands.x]\ngesture = 'a'\ndo = 'fly'\nconfidence = 1\n")
    with pytest.raises(SensorError, match=r"map.toml: commands.x.do: is 'fly'"):
        read_command_map(path)


def test_the_breakfast_map_is_one_and_its_home_is_the_arms():
    command_map = read_command_map(MAP, PANDA)
    assert {command.do for command in command_map.commands.values()} == {"pick", "pour", "place", "home", "stop"}
    assert command_map.home.position == pytest.approx(Kinematics(PANDA).forward(np.array(PANDA.home))[0], abs=1e-5)
