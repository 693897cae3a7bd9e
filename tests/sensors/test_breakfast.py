"""The breakfast task, from gestures to juice in the cup."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import av
import matplotlib.image
import numpy as np
import pytest

from data import simulated_hand
from sensors.__main__ import COMMANDS, main
from sensors.breakfast import (
    CUES,
    RULES,
    STREAM,
    TRIES,
    Cue,
    beads,
    breakfast_map,
    hand_recogniser,
    in_cup,
    operate,
    perform,
    scatter,
    wrong,
)
from sensors.mapping import Mapper
from sensors.motions import Pose
from sensors.recognise import Recognition
from sensors.robots.simulated import SimulatedArm, Simulation
from sensors.stream import Frame, SensorError, StreamInfo


def test_one_command_makes_breakfast_with_its_picture_and_its_film(tmp_path: Path, capsys):
    (tmp_path / "breakfast.json").write_text("before")
    (tmp_path / "other name").hardlink_to(tmp_path / "breakfast.json")
    assert main(["breakfast", "--out", str(tmp_path), "--scripted", "--seed", "3", "--speed-up", "200"]) == 0
    assert (tmp_path / "other name").read_text() == "before"  # it takes the place of another
    said = capsys.readouterr().out
    assert "run 3: success" in said
    assert "1 of 1 runs succeeded" in said
    (outcome,) = json.loads((tmp_path / "breakfast.json").read_text())
    assert outcome["success"] is True
    assert outcome["poured"] >= 0.75
    notes = outcome["notes"]
    stopped = notes.index("place jug: stopped")  # the operator's stop, and the same gesture again
    assert notes[stopped - 1] == "place jug: started"
    assert notes.index("place jug: done") > stopped
    commands = [json.loads(line) for line in (tmp_path / "commands.jsonl").read_text().splitlines()]
    states = [each["to"] for each in commands if each["what"] == "state"]
    assert states[:2] == ["armed", "moving"]
    assert {"fault", "estop"}.isdisjoint(states)
    assert sum(each["what"] == "command" for each in commands) > 1000
    assert matplotlib.image.imread(tmp_path / "breakfast.png").shape[:2] == (720, 960)
    with av.open(str(tmp_path / "breakfast.mp4")) as film:
        images = [image.to_ndarray(format="gray").astype(float) for image in film.decode(video=0)]
    assert len(images) == pytest.approx(outcome["seconds"] / 8, abs=2)
    assert np.abs(images[0] - images[len(images) // 2]).max() > 50  # something moves


def test_a_table_that_nobody_served_is_no_success():
    simulation = Simulation("breakfast")
    reasons = list(wrong(simulation, in_cup(simulation)))
    assert reasons[0] == "0% of the juice is in the cup, expected 75%"
    assert any("the jug is 16 cm beside" in reason for reason in reasons)
    assert any("the bread is 70 cm beside" in reason for reason in reasons)
    assert len(reasons) == 3  # the arm is at home, its gripper open, and everything upright


def test_juice_beside_the_cup_does_not_count():
    simulation = Simulation("breakfast")
    drops = beads(simulation)
    cup = simulation.body("cup")[0]
    for place, bead in enumerate(drops):
        over = np.array([0.0, 0.0, 0.01 * (1 + place % 6)]) if place < 6 else np.array([0.06, 0.0, 0.02])
        simulation.move(bead, cup + over - simulation.body(bead)[0])
    assert in_cup(simulation) == pytest.approx(6 / len(drops))


def test_the_table_is_laid_differently_and_the_juice_stays_in_the_jug():
    places = []
    for seed in (1, 2):
        simulation = Simulation("breakfast")
        scatter(simulation, np.random.default_rng(seed))
        jug, _ = simulation.body("jug")
        assert all(np.hypot(*(simulation.body(bead)[0] - jug)[:2]) < 0.03 for bead in beads(simulation))
        places.append(jug)
    assert np.abs(places[0] - places[1]).max() > 0.001


def test_an_operator_waits_until_the_arm_is_done():
    operator = operate(CUES[:2], np.random.default_rng(0))
    next(operator)
    while operator.send(False)[0] is None:  # the arm stands: the first gesture comes
        pass
    assert {operator.send(True)[0] for _ in range(500)} == {None, CUES[0].gesture}
    assert CUES[1].gesture in [operator.send(False)[0] for _ in range(60)]


def test_a_film_that_runs_backwards_is_refused(tmp_path: Path, capsys):
    assert main(["breakfast", "--out", str(tmp_path), "--scripted", "--speed-up", "-1"]) == 2
    assert "speed-up is -1.0, expected above 0" in capsys.readouterr().err


def test_no_run_is_no_success(tmp_path: Path, capsys):
    assert main(["breakfast", "--out", str(tmp_path / "none"), "--scripted", "--runs", "0"]) == 2
    assert "--runs is 0, expected 1 or more" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_a_bundle_that_is_none_is_refused(tmp_path: Path, capsys):
    assert main(["breakfast", "--out", str(tmp_path), "--bundle", str(tmp_path / "none")]) == 2
    assert str(tmp_path / "none") in capsys.readouterr().err


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path: Path, capsys):
    (tmp_path / "film").write_text("")
    assert main(["breakfast", "--out", str(tmp_path / "film"), "--scripted"]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'film'}: File exists.\n"


def test_ctrl_c_is_no_traceback(tmp_path: Path, capsys, monkeypatch):
    def interrupted(given):
        raise KeyboardInterrupt

    monkeypatch.setitem(COMMANDS, "calibrate", interrupted)
    assert main(["calibrate", "--bundle", str(tmp_path), "--data", "gestures_demo"]) == 1
    assert capsys.readouterr().err == "interrupted.\n"


def test_what_the_rules_decided_for_is_obeyed_at_once_however_its_probability_falls_after():
    """Two gates in a row once let a swipe pass that had been decided for: neither knew of the other's dwell."""
    simulation = Simulation("breakfast")
    command_map = breakfast_map(simulation)
    with SimulatedArm(simulation, real_time=False) as arm:
        for gesture in dict.fromkeys(cue.gesture for cue in CUES):
            mapper = Mapper(command_map, STREAM.channels, lambda name: Pose(*arm.place(name)))
            mapper.step(gesture, RULES.threshold, STREAM.frame(0.0, 0.0, [0.0]), arm.state())
            assert mapper.note  # started, or there is nothing in the gripper yet


class Blank:
    """Recognises nothing, ever."""

    info = StreamInfo("simulated hand", simulated_hand.CHANNELS, simulated_hand.RATE_HZ)

    def step(self, frame: Frame) -> Recognition:
        assert frame.mask.all()
        return Recognition(None, 0.5, (), 0)


def frames(cue: Cue, moving: Callable[[int], bool]) -> int:
    """How many a hand shows until it has done, to an arm that moves at these frames."""
    operator = perform([cue], np.random.default_rng(0), Blank())
    next(operator)
    for count in range(1, 5000):
        try:
            operator.send(moving(count))
        except StopIteration:
            return count
    raise AssertionError("the hand does not come to an end")


def test_a_gesture_that_nothing_came_of_is_shown_again():
    once = frames(Cue("grip", 0.2), lambda frame: 30 < frame < 60)
    assert once < 200
    assert frames(Cue("grip", 0.2), lambda frame: False) > (TRIES - 1) * once


def test_a_hand_waits_until_the_arm_is_done_before_it_shows_something_and_before_it_goes():
    waited = frames(Cue("grip", 0.2), lambda frame: frame < 500)
    assert waited > 500
    assert frames(Cue("grip", 0.2), lambda frame: 30 < frame < 700) >= 700


def test_a_gesture_that_does_not_wait_is_shown_once_while_the_arm_moves():
    assert 600 <= frames(Cue("stop", 0.2, waits=False), lambda frame: frame < 600) < 630


def test_a_bundle_that_does_not_know_a_gesture_is_refused():
    bundle = SimpleNamespace(path="bundles/two", labels=("rest", "pinch"))
    with pytest.raises(SensorError, match=r"bundles/two: does not know grip, pour.*train it on gestures_demo"):
        hand_recogniser(bundle)
