"""A bridge's configuration is read whole or refused with the file and the field, before anything is connected."""

import numpy as np
import pytest

from sensors.config import EXAMPLE, read_config, read_source
from sensors.stream import SensorError
from tests.sensors.bundles import classifier

CONFIG = """
[source]
uri = "mqtt://127.0.0.1/glove"

[recognition]
bundle = "bundle"
none = ["rest"]

[commands.commands.shut]
gesture = "pick"
do = "grip"
opening = 0.2
confidence = 0.8

[safety]
confidence = 0.7

[limits]
linear_velocity = 0.25
linear_acceleration = 1.0
linear_jerk = 10.0
angular_velocity = 1.0
angular_acceleration = 4.0
angular_jerk = 40.0
joint_velocity = 2.0
gripper_speed = 1.0
singular = 0.05
creep = 0.2
box_low = [0.2, -0.5, 0.05]
box_high = [0.8, 0.5, 0.8]

[robot]
uri = "simulated:panda"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("config")
    classifier(place / "bundle", hidden=8)
    classifier(place / "flat", "ridge", lags=3)
    return place


def read(folder, text):
    path = folder / "bridge.toml"
    path.write_text(text)
    return read_config(path)


def test_what_a_file_leaves_out_comes_from_the_bundle_or_is_the_default(folder):
    config = read(folder, CONFIG)
    assert [channel.name for channel in config.source.info.channels] == ["bend", "roll"]
    assert config.source.info.rate_hz == config.align.rate_hz == 50
    assert config.safety.watchdog_s == 0.1
    assert config.safety.hold == ()
    assert config.commands_log == folder / "bridge.jsonl"
    assert config.hold is None


def test_a_map_may_be_a_file_of_its_own(folder):
    (folder / "map.toml").write_text('[commands.halt]\ngesture = "pour"\ndo = "stop"\nconfidence = 0.5\n')
    before, _, rest = CONFIG.partition("[commands.commands.shut]")
    text = before + '[commands]\nfile = "map.toml"\n' + rest[rest.index("[safety]") :]
    assert list(read(folder, text).command_map.commands) == ["halt"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('[robot]\nuri = "simulated:panda"', "", r"lacks \[robot\]"),
        ("[safety]", "[safty]", r"does not know \[safty\]"),
        ("linear_jerk = 10.0\n", "", "lacks linear_jerk"),
        ("gripper_speed = 1.0", "gripper_speed = 0", "gripper_speed is 0"),
        ('gesture = "pick"', 'gesture = "fly"', "commands.shut.gesture: the model knows no gesture 'fly'"),
        ('gesture = "pick"', 'gesture = "rest"', "the model knows no gesture 'rest'; expected one of pick, pour"),
        ("confidence = 0.7", 'confidence = 0.7\nhold = ["rest"]', "safety.hold: the model knows no gesture rest"),
        ("confidence = 0.8", "confidence = 0.6", r"commands.shut.confidence: is 0\.6, below safety.confidence, 0\.7"),
        ('none = ["rest"]', 'none = ["sleep"]', "the model has no sleep"),
        ('none = ["rest"]', 'none = "rest"', "none is 'rest'"),
        ('bundle = "bundle"', 'bundle = "nowhere"', "nowhere"),
        ('bundle = "bundle"', 'bundle = "bundle"\nperson = "people/ana.npz"', "person: there is no folder .*people"),
        ('bundle = "bundle"', 'bundle = "flat"\nperson = "ana.npz"', "keeps no running statistics"),
        ("confidence = 0.7", "confidence = 0.7\nwatchdog_s = 0.02\nperiod_s = 0.005", "gives 50 answers a second"),
        ('bundle = "bundle"', 'bundel = "bundle"', "recognition: does not know bundel"),
        ("confidence = 0.7", 'confidence = 0.7\nhold = ["wave"]', "safety.hold: the model knows no gesture wave"),
        ("confidence = 0.7", "confidence = 0.7\nwatchdog_s = 0.5", "watchdog_s is 0.5"),
        ('uri = "mqtt://127.0.0.1/glove"', 'uri = "carrier-pigeon:glove"', "no source of kind 'carrier-pigeon'"),
        ('uri = "mqtt://127.0.0.1/glove"', 'uri = "mqtt://me:secret@127.0.0.1/glove"', "password is in the settings"),
        (
            'uri = "mqtt://127.0.0.1/glove"',
            'uri = "mqtt://127.0.0.1/glove"\nchannels = [{name = "roll", unit = "rad"}, {name = "bend", unit = "deg"}]',
            "its channels are roll, bend, but bend, roll are expected",
        ),
        ("[limits]", "[align]\nrate_hz = 100\n[limits]", "trained at 50 Hz"),
        ('uri = "simulated:panda"', 'uri = "simulated:moon"', "there is no scene 'moon'"),
        ('uri = "simulated:panda"', 'uri = "tank:1"', "no robot of kind 'tank'"),
        ('uri = "simulated:panda"', 'uri = "ros2:0"', "joints is None"),
        ('uri = "simulated:panda"', 'uri = "ros2:home"\narm = "panda"', "expected a ROS domain"),
        ('uri = "simulated:panda"', 'uri = "ros2:0"\narm = "panda"\ntwits = "/t"', "does not know twits"),
        (
            'uri = "simulated:panda"',
            'uri = "ros2:0"\narm = "panda"\nlead_s = 1',
            "lead_s is 1.0, expected above 0 to 0.1",
        ),
        ('uri = "simulated:panda"', 'uri = "ros2:0"\narm = "panda"\nwait_s = nan', "wait_s is nan, expected seconds"),
        ('uri = "simulated:panda"', 'uri = "ros2:0"\narm = "panda"\ngripper_open = 0', "gripper_open is 0.0, expected"),
        (
            'uri = "simulated:panda"',
            'uri = "ros2:0"\narm = "panda"\ngripper = "/grip"',
            "gripper_joint, which tells how",
        ),
        ('uri = "simulated:panda"', 'uri = "mqtt://h/arm"\narm = "panda"\ngripper = 1', "gripper is 1"),
        ('uri = "simulated:panda"', 'uri = "mqtt://h/arm"\narm = "kuka"', "arm is 'kuka'"),
        ('uri = "simulated:panda"', 'uri = "mqtt://me:secret@h/arm"\narm = "panda"', "password is in the address"),
        ("[limits]", '[hold]\nhost = "h"\n[limits]', "topic"),
        ("[limits]", "[cores]\nframes = 1.5\n[limits]", "frames is 1.5"),
        ("[limits]", "[limits", "cannot be read as TOML"),
    ],
)
def test_what_is_wrong_is_refused_with_its_field_and_its_file(folder, old, new, message):
    assert old in CONFIG
    with pytest.raises(SensorError, match=message) as refused:
        read(folder, CONFIG.replace(old, new))
    assert "bridge.toml" in str(refused.value)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("content", [b"PAR1\xff\xfe", "# Grüße\n".encode("latin-1"), "[source]".encode("utf-16")])
def test_a_file_that_is_no_text_is_refused(folder, content):
    (folder / "bridge.toml").write_bytes(content)
    for reader in (read_config, read_source):
        with pytest.raises(SensorError, match=r"bridge\.toml: cannot be read as TOML \(.*utf-8.*\)\. `mnemo bridge"):
            reader(folder / "bridge.toml")


def test_a_topic_and_gestures_cannot_both_hold(folder):
    text = CONFIG.replace("[limits]", '[hold]\nhost = "h"\ntopic = "pedal"\n[limits]')
    assert read(folder, text).hold.topic == "pedal"
    with pytest.raises(SensorError, match="a topic cannot hold where gestures do"):
        read(folder, text.replace("confidence = 0.7", 'confidence = 0.7\nhold = ["pick"]'))


def test_a_robot_may_be_anything_that_is_known_and_is_not_connected_yet(folder):
    text = CONFIG.replace('do = "grip"\nopening = 0.2', 'do = "stop"')  # a robot without a gripper will do
    for uri, name in (
        ('"ros2:0"\narm = "panda"', "ros2:0"),
        ('"rosbridge://h:9090"\njoints = ["a", "b"]\ngripper = "/grip"\ngripper_joint = "finger"', "rosbridge:h:9090"),
        ('"mqtts://h/robots/arm"\njoints = ["a"]\ngripper = true', "mqtts://h:8883/robots/arm"),
        ('"simulated:breakfast"', "simulated:breakfast"),
    ):
        robot = read(folder, text.replace('"simulated:panda"', uri)).robot
        assert robot.info.uri.startswith(name)


def test_things_of_a_simulated_scene_need_no_position_and_those_that_are_not_there_do(folder):
    cup = '[commands.places.cup]\n[commands.commands.shut]\ngesture = "pick"\n'
    cup += 'do = "place"\nat = "cup"\nconfidence = 0.8\n'
    before, _, rest = CONFIG.partition("[commands.commands.shut]")
    text = before + cup + rest[rest.index("[safety]") :]
    config = read(folder, text.replace("simulated:panda", "simulated:breakfast"))
    assert config.where is not None
    with config.robot:
        np.testing.assert_allclose(config.where("cup").position, config.robot.place("cup")[0], atol=1e-3)
    with pytest.raises(SensorError, match=r"places\.cup: has no position"):
        read(folder, text)


def test_no_file_says_how_to_get_one(tmp_path):
    with pytest.raises(SensorError, match="mnemo bridge --example"):
        read_config(tmp_path / "none.toml")


def test_the_example_asks_for_nothing_but_its_bundle(tmp_path):
    path = tmp_path / "bridge.toml"
    path.write_text(EXAMPLE)
    with pytest.raises(SensorError, match="bundles/gestures"):
        read_config(path)
