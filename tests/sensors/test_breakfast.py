"""The breakfast task, from gestures to juice in the cup."""

import json
from pathlib import Path

import av
import matplotlib.image
import numpy as np
import pytest

from sensors.__main__ import main
from sensors.breakfast import CUES, FRAME_S, beads, in_cup, operate, scatter, wrong
from sensors.robots.simulated import Simulation


def test_one_command_makes_breakfast_with_its_picture_and_its_film(tmp_path: Path, capsys):
    assert main(["breakfast", "--out", str(tmp_path), "--seed", "3", "--speed-up", "200"]) == 0
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
    assert CUES[1].gesture in [operator.send(False)[0] for _ in range(round(1.5 / FRAME_S))]


def test_a_film_that_runs_backwards_is_refused(tmp_path: Path, capsys):
    assert main(["breakfast", "--out", str(tmp_path), "--speed-up", "-1"]) == 2
    assert "speed-up is -1.0, expected above 0" in capsys.readouterr().err
