"""Rules are chosen and gestures are taught from files by two commands, with a model that reads two poses."""

import re
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from data import catalog
from data.frame import Channel, Splits
from forecasting.export import export_bundle
from forecasting.runtime import load_bundle
from forecasting.task import Task
from models.catalog import build
from models.contract import Batch
from sensors.__main__ import main
from sensors.calibrate import judge
from sensors.lessons import strangers
from sensors.recognise import Rules
from sensors.recording import Recorder
from sensors.stream import StreamInfo
from sensors.teach import GestureMemory
from tests.sensors.bundles import CHANNELS, LABELS, RATE_HZ
from tests.sensors.test_config import CONFIG

POSES = {"rest": (0.0, 0.0), "pick": (90.0, 0.0), "pour": (0.0, 3.0), "wave": (-90.0, -3.0)}
POINTING = (60.0, 2.0)  # between pick and pour
LENGTH = 25


def shown(*names, seed=0, poses=POSES):
    """(len(names) * LENGTH, 2) values and the name of each frame."""
    rng = np.random.default_rng(seed)
    label = np.repeat(names, LENGTH)
    return np.array([poses[name] for name in label]) + rng.normal(0, (10.0, 0.3), (len(label), 2)), label


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lessons")
    tables, values, labels = [], [], []
    for number in range(8):
        x, label = shown("rest", "pick", "rest", "pour", "rest", seed=number)
        ds = np.arange(len(x)) / RATE_HZ
        tables.append(pd.DataFrame({"unique_id": f"r{number:02d}", "ds": ds, "label": label, "bend": x[:, 0]}))
        tables[-1]["roll"] = x[:, 1]
        values.append(x)
        labels.append([LABELS.index(name) for name in label])
    pd.concat(tables, ignore_index=True).to_parquet(folder / "poses.parquet")
    tables[0].drop(columns="roll").to_parquet(folder / "bends.parquet")
    task = Task("classify", "label", CHANNELS, 1 / RATE_HZ, labels=LABELS)
    torch.manual_seed(0)
    model = build("gru", task.signature, hidden=16, embed=8)
    x = torch.tensor(np.stack(values), dtype=torch.float32)
    batch = Batch(x, torch.ones_like(x), torch.tensor(labels), torch.ones(len(x)))
    model.prepare([batch])
    optimiser = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(80):
        optimiser.zero_grad()
        model.loss(batch).backward()
        optimiser.step()
    export_bundle(model, task, folder / "bundle", name="gru", config={}, training={}, metrics=[])
    return folder


def told(capsys):
    said = capsys.readouterr()
    return said.out, said.err


def calibrate(place, *more):
    return main(["calibrate", "--bundle", str(place / "bundle"), "--data", str(place / "poses.parquet"), *more])


def test_rules_are_printed_as_a_bridge_reads_them_with_what_they_do(place, capsys):
    assert calibrate(place, "--none", "rest") == 0
    out, _ = told(capsys)
    rules = Rules.parse(tomllib.loads(out)["recognition"]["rules"])
    assert rules.temperature != 1
    assert "16 decisions on 16 gestures, precision 100.0%" in out
    assert "0.00 false activations a minute of rest" in out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--none", "idle"], "the model has no idle"),
        (["--precision", "1.5"], "--precision is 1.5"),
        (["--bundle", "nowhere"], "nowhere: there is no such directory"),
        (["--data", "nothing"], "no data set and no file of this name"),
        (["--data", "bends.parquet"], "roll"),
        (["--unknown", "poses.parquet"], "poses.parquet: its metadata are not those of a recording"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(place, capsys, monkeypatch, more, message):
    monkeypatch.chdir(place)
    assert calibrate(place, *more) == 2
    assert re.search(message, told(capsys)[1])


def test_no_rules_are_chosen_or_judged_where_the_model_learned(place, capsys, monkeypatch):
    split = Splits(entity={f"r{number:02d}": ("train", "validation", "test")[number % 3] for number in range(8)})

    read = catalog.load

    def load(name, **given):
        return replace(read(str(place / "poses.parquet"), **given), name=name, splits=split)

    monkeypatch.setattr("data.catalog.load", load)
    bundle = load_bundle(place / "bundle")
    monkeypatch.setitem(bundle.card, "config", {"learn_validation": True})
    monkeypatch.setitem(bundle.card, "training", {"data_set": "poses"})
    monkeypatch.setattr("forecasting.runtime.load_bundle", lambda path: bundle)
    learned = r"bundle: it learned from the validation part of poses \(learn_validation\), so no rules can be chosen"
    for more in ([], ["--part", "test", "--judge", "validation"]):
        assert main(["calibrate", "--bundle", "bundle", "--data", "poses", "--none", "rest", *more]) == 2
        assert re.search(learned, told(capsys)[1])
    for data, more in (("poses", ["--part", "test", "--judge", "test"]), ("others", [])):
        assert main(["calibrate", "--bundle", "bundle", "--data", data, "--none", "rest", *more]) == 0
    bundle.card["config"] = {"learn_validation": False}
    assert main(["calibrate", "--bundle", "bundle", "--data", "poses", "--none", "rest"]) == 0


def bridge(place, name, recognition="", **shut):
    """A bridge's configuration whose map names pick only."""
    shut = {"gesture": "'pick'", "do": "'grip'", "opening": 0.2, "confidence": 0.5} | shut
    table = "".join(f"{field} = {value}\n" for field, value in shut.items())
    before, _, rest = CONFIG.partition("[commands.commands.shut]")
    path = place / f"{name}.toml"
    rest = rest[rest.index("[safety]") :].replace("confidence = 0.7", "confidence = 0.5")
    text = before + "[commands.commands.shut]\n" + table + rest
    path.write_text(text.replace('none = ["rest"]\n', 'none = ["rest"]\n' + recognition))
    return path


def calibrate_bridge(place, path, *more):
    return main(["calibrate", "--config", str(path), "--data", str(place / "poses.parquet"), *more])


def test_with_a_bridges_configuration_decisions_are_those_that_pass_its_map(place, capsys):
    assert calibrate(place, "--none", "rest") == 0
    alone, _ = told(capsys)
    assert "--config BRIDGE judges what passes it" in alone
    path = bridge(place, "slow", "[recognition.rules]\nmargin = 0.15\n", dwell_s=0.2)
    assert calibrate_bridge(place, path) == 0
    slow, _ = told(capsys)
    assert re.search(r"as decisions pass the map of \S*slow\.toml", slow)
    assert "8 decisions on 8 gestures" in slow  # of the 16, those that the map names
    assert tomllib.loads(slow)["recognition"]["rules"]["margin"] == 0.15
    shares = [int(re.search(r"decided after (\d+)% of a gesture", out)[1]) for out in (alone, slow)]
    assert shares[1] >= shares[0] + 100 * 0.2 * RATE_HZ / LENGTH
    assert calibrate_bridge(place, bridge(place, "never", dwell_s=2)) == 1  # a gesture is shown for 0.5 s
    assert "no rules reach 95% precision" in told(capsys)[0]


def test_a_bridges_taught_gestures_are_judged_as_its_own(place, tmp_path, capsys):
    waves = [recorded(place, "wave", seed) for seed in range(70, 74)]
    lesson = ["teach", "--bundle", str(place / "bundle"), "--memory", str(place / "taught"), "--name", "wave"]
    assert main([*lesson, "--data", str(place / "poses.parquet"), *waves]) == 0
    tables = []
    for number, name in enumerate(("wave", "pick", "wave")):
        x = shown(name, seed=80 + number)[0].clip([-180, -4], [180, 4])  # the channels' limits
        ds = np.arange(len(x)) / RATE_HZ
        tables.append(
            pd.DataFrame({"unique_id": str(number), "ds": ds, "label": name, "bend": x[:, 0], "roll": x[:, 1]})
        )
    pd.concat(tables, ignore_index=True).to_parquet(tmp_path / "waves.parquet")
    path = bridge(place, "taught", 'memory = "taught"\n', gesture="'wave'")
    told(capsys)
    assert main(["calibrate", "--config", str(path), "--data", str(tmp_path / "waves.parquet")]) == 0
    assert "2 decisions on 2 gestures, precision 100.0%" in told(capsys)[0]


def test_what_a_bridge_says_is_not_said_twice(place, capsys):
    assert calibrate_bridge(place, bridge(place, "quick"), "--none", "rest") == 2
    assert "quick.toml says which classes mean no gesture" in told(capsys)[1]
    with pytest.raises(SystemExit):
        calibrate_bridge(place, bridge(place, "quick"), "--bundle", str(place / "bundle"))
    assert "not allowed with argument" in told(capsys)[1]


def recorded(folder, name, seed, channels=CHANNELS, poses=POSES):
    path = folder / f"{name}{seed}.parquet"
    info = StreamInfo("glove", channels, RATE_HZ)
    with Recorder(path, info) as recorder:
        for t, row in enumerate(shown(name, seed=seed, poses=poses)[0]):
            recorder.append(info.frame(t / RATE_HZ, t / RATE_HZ, row))
    return str(path)


def test_rules_learn_to_reject_what_the_model_was_never_shown(place, tmp_path, capsys):
    """The model has no word for pointing, and takes it for one of its own gestures now and then."""
    points = [recorded(tmp_path, "point", seed, poses={"point": POINTING}) for seed in range(60, 80)]
    code = calibrate(place, "--none", "rest", "--unknown", *points)
    aware, _ = told(capsys)
    calibrate(place, "--none", "rest")
    unaware, _ = told(capsys)
    taken = int(re.search(r"# (\d+) decisions on 20 recordings of other movements", aware)[1])
    chosen, kind = (Rules.parse(tomllib.loads(out)["recognition"]["rules"]) for out in (aware, unaware))
    bundle = load_bundle(place / "bundle")
    strange = list(strangers(bundle, map(Path, points)))
    assert judge(strange, LABELS, ["rest"], chosen, RATE_HZ).decisions == taken
    assert judge(strange, LABELS, ["rest"], kind, RATE_HZ).decisions > taken
    assert code == (0 if taken == 0 else 1)


def test_a_gesture_is_taught_from_recordings_and_forgotten_again(place, tmp_path, capsys):
    common = ["teach", "--bundle", str(place / "bundle"), "--memory", str(tmp_path / "memory"), "--name", "wave"]
    waves = [recorded(tmp_path, "wave", seed) for seed in range(50, 54)]
    assert main([*common, "--data", str(place / "poses.parquet"), *waves]) == 0
    assert "taught: wave" in told(capsys)[0]
    bundle = load_bundle(place / "bundle")
    memory = GestureMemory.load(tmp_path / "memory", bundle)
    for name in POSES:
        x, stream = shown(name, seed=99)[0].astype(np.float32), bundle.stream()
        said = [memory.answer(stream.step(row[None])[0], stream.state).argmax() for row in x]
        assert memory.labels[int(np.bincount(said).argmax())] == name
    assert main([*common, *waves]) == 2
    assert "'wave' cannot be taught: the name is taken" in told(capsys)[1]
    assert main(common) == 0
    assert "taught: none" in told(capsys)[0]


def test_a_lesson_that_cannot_be_given_is_refused(place, tmp_path, capsys):
    common = ["teach", "--bundle", str(place / "bundle"), "--memory", str(tmp_path / "memory"), "--name", "wave"]
    wave = recorded(tmp_path, "wave", 1)
    assert main([*common, wave]) == 2
    assert "memory.npz is not there yet, so --data" in told(capsys)[1]
    strange = recorded(tmp_path, "wave", 2, (Channel("bend", "rad"), CHANNELS[1]))
    assert main([*common, "--data", str(place / "poses.parquet"), strange]) == 2
    assert "wave2.parquet: " in told(capsys)[1]
