"""From frames to a simulated arm, with all parts real: what a stream does to the robot, and what stops it."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace
from subprocess import PIPE
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from data.frame import Dataset, Splits, check_frame
from forecasting.pipeline import train_bundle
from forecasting.runtime import load_bundle
from forecasting.task import Task
from sensors.align import AlignConfig, Aligner
from sensors.bridge import Bridge
from sensors.command_log import CommandLog, read_log
from sensors.command_map import parse_command_map
from sensors.limits import Limits
from sensors.mapping import Mapper
from sensors.person import Person
from sensors.recognise import Recognition, Rules
from sensors.recogniser import Recogniser, RecogniserError
from sensors.recording import Recorder, read_recording
from sensors.robot import RobotState
from sensors.robots.simulated import SimulatedArm, Simulation
from sensors.safety import Safety
from sensors.safety_checks import Fault, SafetyConfig
from sensors.safety_states import State
from sensors.stream import Source, SourceLost, StreamInfo
from tests.sensors.broker import free_port
from tests.sensors.bundles import CHANNELS, LABELS, RATE_HZ

INFO = StreamInfo("glove", CHANNELS, RATE_HZ)
RULES = Rules(threshold=0.5, dwell=2, margin=0.0, end_frames=2)
LIMITS = Limits(0.25, 1, 10, 1, 4, 40, 2, 1, 0.05, 0.2, (0.2, -0.5, 0.05), (0.8, 0.5, 0.9))
SAFETY = SafetyConfig(LIMITS, confidence=0.5)
MAP = {"commands": {"shut": {"gesture": "pick", "do": "grip", "opening": 0.2, "confidence": 0.5}}}
LONG = 10  # s; what a test waits for comes much sooner


POSES = {"rest": (0.0, 0.0), "pick": (90.0, 0.0), "pour": (0.0, 2.0)}


@pytest.fixture(scope="module")
def poses():
    return {label: np.array(values, np.float32) for label, values in POSES.items()}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """A model that knows the three poses."""
    rng, rows = np.random.default_rng(0), []
    for series in range(12):
        labels = [LABELS[k] for k in rng.integers(3, size=10) for _ in range(rng.integers(15, 40))]
        values = np.array([POSES[label] for label in labels]) + rng.normal(0, (3.0, 0.1), (len(labels), 2))
        rows += [
            (str(series), t / RATE_HZ, label, *row) for t, (label, row) in enumerate(zip(labels, values, strict=True))
        ]
    table = pd.DataFrame(rows, columns=["unique_id", "ds", "label", *(channel.name for channel in CHANNELS)])
    frame, _ = check_frame(table, source="poses", task="classify", channels=CHANNELS)
    dataset = Dataset("poses", frame, "classify", CHANNELS, 1 / RATE_HZ, 1, 1, Splits(), "label")
    place = tmp_path_factory.mktemp("poses") / "bundle"
    train_bundle(
        dataset, "gru", Task.of(dataset), place, settings={"hidden": 8, "max_epochs": 6, "learning_rate": 0.02}
    )
    return load_bundle(place)


class Hand(Source):
    """A hand that shows what `shown` says, at the stream's rate, until that is None."""

    def __init__(self, shown):
        super().__init__()
        self.info, self.shown = INFO, shown
        self.lag = 0.0  # s, that frames are on their way

    async def connect(self):
        self.connected = True

    async def close(self):
        self.connected = False

    async def __aiter__(self):
        start, count = time.monotonic(), 0
        while (values := self.shown) is not None:
            if isinstance(values, Exception):
                raise values
            yield self.info.frame(start + count / RATE_HZ - self.lag, time.monotonic(), values)
            count += 1
            await asyncio.sleep(max(0.0, start + count / RATE_HZ - time.monotonic()))


class Failing(Recogniser):
    fails = False

    def step(self, frame):
        if self.fails:
            raise RecogniserError("the model failed")
        return super().step(frame)


class Rig:
    """A bridge that runs, a hand to show things with, and a person."""

    def __init__(self, bundle, poses, folder):
        self.hand = Hand(poses["rest"])
        self.arm = SimulatedArm(Simulation("panda"))
        self.log = folder / "log.jsonl"
        self.recogniser = Failing(bundle, INFO, none=["rest"], rules=RULES)
        self.mapper = Mapper(parse_command_map(MAP), CHANNELS)
        self.opened = CommandLog(self.log)
        self.safety = Safety(self.arm, SAFETY, self.opened)
        aligner = Aligner(INFO, AlignConfig(RATE_HZ))
        self.bridge = Bridge(self.hand, aligner, self.recogniser, self.mapper, self.safety)
        self.holds = False

    @contextlib.asynccontextmanager
    async def running(self):
        async def press():
            while True:
                if self.holds:
                    self.safety.hold(time.monotonic())
                await asyncio.sleep(0.02)

        with self.opened, self.safety:
            tasks = [asyncio.ensure_future(self.bridge.run()), asyncio.ensure_future(press())]
            try:
                yield tasks[0]
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def state(self):
        return self.safety.snapshot.state

    @property
    def opening(self):
        return self.arm.state().gripper

    async def arm_it(self):
        """As soon as may be: on a busy machine a frame comes late now and then."""
        end = time.monotonic() + LONG
        while not (answer := await asyncio.wrap_future(self.safety.arm("test"))).accepted:
            assert time.monotonic() < end, answer
            await asyncio.sleep(0.01)

    async def move(self, poses, to=0.9):
        """Arm, hold, show the gesture, and wait until the gripper moves; anew if a busy machine stops it."""
        end = time.monotonic() + LONG
        while self.opening >= to:
            assert time.monotonic() < end
            if self.state in (State.DISARMED, State.FAULT):
                self.holds, self.hand.shown = False, poses["rest"]
                await asyncio.sleep(0.4)  # until what was shown counts as let go
                await self.arm_it()
                self.holds, self.hand.shown = True, poses["pick"]
            await asyncio.sleep(0.002)


@pytest.fixture
def rig(bundle, poses, tmp_path):
    return Rig(bundle, poses, tmp_path)


async def until(true):
    end = time.monotonic() + LONG
    while not true():
        assert time.monotonic() < end
        await asyncio.sleep(0.002)


def commands(rig):
    return [record for record in read_log(rig.log) if record["what"] == "command"]


def test_a_gesture_moves_the_robot_while_it_is_armed_and_held_and_every_command_expires_with_its_frame(rig, poses):
    async def work():
        async with rig.running():
            await rig.move(poses)
            rig.holds = False
            await until(lambda: rig.state is State.ARMED)

    asyncio.run(work())
    sent = commands(rig)
    assert sent
    assert all(each["expires"] == pytest.approx(each["received"] - each["late"] + SAFETY.watchdog_s) for each in sent)
    assert all(each["sent"] < each["expires"] for each in sent)
    assert {each["gesture"] for each in sent if each["state"] == "moving"} == {"pick"}


def test_what_was_long_on_its_way_is_told_to_be_as_old_as_it_is(rig):
    async def work():
        async with rig.running():
            await until(lambda: rig.bridge.frames >= 10)
            rig.hand.lag = 0.06
            await until(lambda: rig.safety.snapshot.intent.late > 0.05)
            assert rig.safety.snapshot.intent_age > 0.05

    asyncio.run(work())


def test_nothing_is_sent_before_it_is_armed_and_what_was_shown_till_then_starts_nothing_later(rig, poses):
    async def work():
        async with rig.running():
            rig.holds, rig.hand.shown = True, poses["pick"]
            await until(lambda: rig.bridge.readings()[3].value == "pick")
            await asyncio.sleep(0.1)
            assert rig.state is State.DISARMED
            rig.holds = False
            await rig.arm_it()  # the gesture is still shown
            rig.holds = True
            await asyncio.sleep(0.3)
            assert rig.mapper.motion is None
            assert rig.opening > 0.95

    asyncio.run(work())
    assert not any(each["gripper"] for each in commands(rig))


def test_a_gesture_of_the_last_frame_before_it_is_armed_starts_nothing():
    """A person arms it between two frames: what the first of them started was never meant for an armed robot."""
    robot = RobotState(0.0, np.zeros(7), np.zeros(7), np.array([0.4, 0.0, 0.4]), np.array([1.0, 0, 0, 0]), 1.0)
    submitted = []
    safety = SimpleNamespace(snapshot=SimpleNamespace(state=State.DISARMED, robot=robot), submit=submitted.append)
    recogniser = SimpleNamespace()
    mapper = Mapper(parse_command_map(MAP), CHANNELS)
    bridge = Bridge(Hand(None), Aligner(INFO, AlignConfig(RATE_HZ)), recogniser, mapper, safety)

    def show(gesture, state, frame):
        at = frame / RATE_HZ
        safety.snapshot.state = state
        recogniser.step = lambda _: Recognition(gesture, 0.9, (), 1)
        bridge.follow(INFO.frame(at, at, [1.0, 0.0]))
        return submitted[-1]

    show(None, State.DISARMED, 0)
    assert show("pick", State.DISARMED, 1).gripper is None
    for frame in range(2, 20):
        assert show("pick", State.ARMED, frame).gripper is None
    assert show(None, State.ARMED, 20).gripper is None
    for frame in range(21, 60):
        show(None, State.ARMED, frame)
    assert show("pick", State.ARMED, 60).gripper == 0.2  # let go, and shown again


def broken(rig, poses):
    rig.hand.shown = np.array([np.nan, poses["pick"][1]], np.float32)


def gone(rig, poses):
    rig.hand.shown = SourceLost("glove: unplugged")


def ended(rig, poses):
    rig.hand.shown = None


def outside(rig, poses):
    rig.hand.shown = np.array([170.0 + 20, 0], np.float32)  # a bend that no hand has


def unable(rig, poses):
    rig.recogniser.fails = True


@pytest.mark.parametrize(
    ("breaks", "fault", "why"),
    [
        (broken, Fault.NAN, "glove: no number in bend"),
        (gone, Fault.SOURCE, "glove: unplugged"),
        (ended, Fault.SOURCE, "glove: the stream has ended"),
        (outside, Fault.SILENCE, "the newest intent is"),
        (unable, Fault.MODEL, "the model failed"),
    ],
)
def test_what_breaks_on_the_way_stops_the_robot_until_a_person_arms_it_again(rig, poses, breaks, fault, why):
    async def work():
        async with rig.running() as running:
            await rig.move(poses)
            breaks(rig, poses)
            await until(lambda: rig.state is State.FAULT)
            stopped = len(rig.safety.latencies())
            found = rig.safety.snapshot.fault
            assert (found.fault, why in found.why) == (fault, True), found
            await asyncio.sleep(0.15)
            opening = rig.opening
            if breaks not in (gone, ended):
                rig.hand.shown, rig.recogniser.fails = poses["pick"], False  # all is well again
            await asyncio.sleep(0.3)
            assert rig.state is State.FAULT
            assert rig.opening == pytest.approx(opening, abs=2e-3)
            assert len(rig.safety.latencies()) == stopped
            assert running.done() == (breaks in (gone, ended))
            if breaks is gone:
                assert isinstance(running.exception(), SourceLost)

    asyncio.run(work())


def test_a_bridge_that_was_stopped_by_a_fault_can_be_armed_and_moved_again(rig, poses):
    async def work():
        async with rig.running():
            await rig.move(poses)
            unable(rig, poses)
            await until(lambda: rig.state is State.FAULT)
            rig.recogniser.fails = False
            await rig.move(poses, rig.opening - 0.1)

    asyncio.run(work())


def test_a_model_that_failed_goes_on_with_the_person_whom_it_knew(rig, poses, bundle):
    ana = Person.new(bundle, "Ana", weight=7)  # frames, far fewer than the training's
    rig.recogniser.restart(ana)

    async def work():
        async with rig.running():
            unable(rig, poses)
            await until(lambda: rig.bridge.frames >= 10)
            rig.recogniser.fails = False
            await until(lambda: rig.bridge.steps.count >= 3)

    asyncio.run(work())
    known = rig.recogniser.person("Ana").statistics["norm.count"]
    assert known.max() < Person.new(bundle, "a stranger").statistics["norm.count"].min()


def test_readings_count_what_came_and_what_was_lost(rig, poses):
    async def work():
        async with rig.running():
            await until(lambda: rig.bridge.frames >= 10)
            rig.hand.shown = np.array([500, 0], np.float32)
            await until(lambda: rig.bridge.missing >= 3)

    asyncio.run(work())
    found = {reading.name: reading for reading in rig.bridge.readings()}
    assert len(found) == len(rig.bridge.readings())  # no name twice
    assert found["frames_total"].value == found["align_frames_total"].value >= 13
    assert found["frame_missing_total"].value >= 3
    assert 0 < found["step_p50_seconds"].value < 1


def test_readings_name_the_last_gesture_when_it_is_over_and_one_rate_to_all_who_ask(rig, poses):
    async def work():
        async with rig.running():
            await until(lambda: rig.bridge.frames >= 10)
            rig.hand.shown = poses["pick"]
            await until(lambda: rig.bridge.frames >= 35)
            rig.hand.shown = poses["rest"]
            await until(lambda: rig.bridge.frames >= 60)
            panel, meter = ({each.name: each.value for each in rig.bridge.readings()} for _ in range(2))
            assert (panel["recognised_gesture"], panel["last_gesture"]) == ("none", "pick")
            assert panel["rate_hertz"] == meter["rate_hertz"] > RATE_HZ / 4

    asyncio.run(work())


def test_a_shorter_watchdog_makes_commands_expire_sooner(bundle, poses, tmp_path):
    rig = Rig(bundle, poses, tmp_path)
    rig.safety = Safety(rig.arm, replace(SAFETY, watchdog_s=0.08), rig.opened)
    rig.bridge.safety = rig.safety

    async def work():
        async with rig.running():
            await rig.move(poses)

    asyncio.run(work())
    assert all(each["expires"] == pytest.approx(each["received"] - each["late"] + 0.08) for each in commands(rig))


# `mnemo bridge`, as its own process

CONFIG = """
[source]
uri = "replay:hand.parquet"
loop = true
[recognition]
bundle = "{bundle}"
none = ["rest"]
person = "ana.npz"
[commands.commands.shut]
gesture = "pick"
do = "grip"
opening = 0.2
confidence = 0.5
[safety]
confidence = 0.5
hold = {hold}
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
box_high = [0.8, 0.5, 0.9]
[robot]
uri = "simulated:panda"
"""


@pytest.fixture
def folder(bundle, poses, tmp_path):
    """A configuration whose recording rests, picks and rests again, for ever."""
    with Recorder(tmp_path / "hand.parquet", INFO) as recorder:
        for t in range(150):
            values = poses["pick" if 50 <= t < 100 else "rest"]
            recorder.append(INFO.frame(t / RATE_HZ, t / RATE_HZ, values))
    (tmp_path / "bridge.toml").write_text(CONFIG.format(bundle=bundle.path, hold='["pick"]'))
    return tmp_path


class Process:
    """`mnemo bridge` with pipes."""

    def __init__(self, folder, *options):
        command = [sys.executable, "-m", "forecasting.cli", "bridge", "--config", folder / "bridge.toml", *options]
        self.process = subprocess.Popen(
            [str(each) for each in command], stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True, cwd=folder,
            env=os.environ | {"PYTHONPATH": os.getcwd()},
        )  # fmt: skip

    def say(self, word):
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()

    def hear(self, text):
        """Lines of stderr up to one that holds the text."""
        for line in self.process.stderr:
            if text in line:
                return line
        raise AssertionError(f"{text} was not said; exit code {self.process.wait()}")

    def arm(self):
        """As soon as may be: frames do not come yet at first."""
        while True:
            self.say("arm")
            if "refused" not in self.hear("arm:"):
                return
            time.sleep(0.05)

    def end(self):
        out, err = self.process.communicate(timeout=30)
        return self.process.returncode, out, err


def records(folder, what):
    return [record for record in read_log(folder / "bridge.jsonl") if record["what"] == what]


def until_log(folder):
    """Until a command was sent that moves the gripper."""
    end = time.monotonic() + LONG
    while not any(each["gripper"] for each in records(folder, "command")):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_bridge_runs_as_a_command_records_answers_prometheus_and_ends_disarmed(folder):
    port = free_port()
    bridge = Process(folder, "--record", folder / "kept", "--metrics", port)
    bridge.arm()
    until_log(folder)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        assert "mnemo_bridge_frames_total" in answer.read().decode()
    bridge.say("fly")
    assert "no command" in bridge.hear("fly")
    bridge.say("quit")
    code, _, err = bridge.end()
    assert (code, "Traceback" in err) == (0, False), err
    assert records(folder, "state")[-1]["to"] == "disarmed"
    (kept,) = (folder / "kept").glob("*.parquet")
    assert len(read_recording(kept).values) > 50
    assert (folder / "ana.npz").exists()


def test_a_bridge_whose_input_is_nothing_says_why_it_ends(folder):
    code, _, err = Process(folder).end()
    assert (code, err) == (0, "quit: it was typed, or the input has ended\n")


def test_a_dry_run_shows_what_would_be_sent_and_moves_nothing(folder):
    port = free_port()
    bridge = Process(folder, "--dry-run", "--metrics", port)
    bridge.arm()
    until_log(folder)
    time.sleep(0.5)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        (measured,) = [
            line for line in answer.read().decode().splitlines() if line.startswith("mnemo_bridge_robot_gripper")
        ]
    bridge.say("quit")
    code, out, _ = bridge.end()
    assert code == 0
    assert "dry run: " in out
    assert "gripper" in out
    assert min(each["gripper"] or 1.0 for each in records(folder, "command")) < 0.9
    assert float(measured.split()[1]) > 0.99


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_bridge_with_the_robot_disarmed(folder, number):
    bridge = Process(folder)
    bridge.arm()
    bridge.process.send_signal(number)
    code, _, err = bridge.end()
    assert (code, "Traceback" in err) == (0, False), err
    assert records(folder, "state")[-1]["to"] == "disarmed"


def test_a_configuration_that_is_wrong_is_exit_code_2_and_one_line(folder):
    text = (folder / "bridge.toml").read_text()
    (folder / "bridge.toml").write_text(text.replace("linear_jerk = 10.0\n", ""))
    code, _, err = Process(folder).end()
    assert code == 2
    assert err.count("\n") == 1
    assert "bridge.toml" in err
    assert "linear_jerk" in err
    assert not (folder / "bridge.jsonl").exists()


def test_the_end_of_the_input_ends_the_bridge(folder):
    bridge = Process(folder)
    bridge.process.stdin.close()
    bridge.process.stdin = None
    assert bridge.end()[0] == 0
