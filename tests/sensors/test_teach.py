import json

import numpy as np
import pytest

from sensors.recogniser import Recogniser
from sensors.stream import SensorError, StreamInfo
from sensors.teach import Demonstration, GestureMemory
from tests.sensors.bundles import CHANNELS, LABELS, RATE_HZ, altered, classifier

INFO = StreamInfo("glove", CHANNELS, RATE_HZ)
LEVELS = {"rest": (0.0, 0.0), "pick": (90.0, 0.0), "pour": (-90.0, 2.0), "wave": (0.0, -3.0), "knock": (60.0, 3.0)}
LENGTH = 20


def performed(name, seed, lead=0):
    """(lead + 20, 2) a pose with noise, behind a rest."""
    rng = np.random.default_rng([seed, len(name), ord(name[0])])
    pose = np.array(LEVELS[name]) + np.array([8.0, 0.2]) * rng.normal(size=2)
    rest = np.tile(LEVELS["rest"], (lead, 1))
    return np.concatenate([rest, np.tile(pose, (LENGTH, 1))]) + rng.normal(0, (2.0, 0.05), (lead + LENGTH, 2))


@pytest.fixture(scope="module", params=["gru", "rocket"])
def bundle(request, tmp_path_factory):
    config = {
        "gru": {"hidden": 16},
        "rocket": {"dilations": 1, "thresholds": 1, "levels": 8, "hidden": 4},
    }[request.param]
    return classifier(tmp_path_factory.mktemp(request.param) / "b", request.param, scale=(60.0, 2.0), **config)


@pytest.fixture(scope="module")
def memory(bundle):
    recordings = [(performed(name, i), np.full(LENGTH, k)) for k, name in enumerate(LABELS) for i in range(12)]
    return GestureMemory.of(bundle, recordings)


def shown(name, count=5, seed=100):
    return [Demonstration(performed(name, seed + i, lead=5), begin=5) for i in range(count)]


def said(memory, bundle, values):
    """(K + N,) after the last frame."""
    stream = bundle.stream()
    for row in values:
        probabilities = stream.step(row[None].astype(np.float32))
    return memory.answer(probabilities[0], stream.state)


def names(memory, bundle, name, seeds=range(200, 210)):
    return [memory.labels[int(said(memory, bundle, performed(name, seed)).argmax())] for seed in seeds]


def test_taught_gestures_are_recognised_and_told_apart_from_those_known(bundle, memory):
    both = memory.taught(bundle, "wave", shown("wave")).taught(bundle, "knock", shown("knock", 3))
    assert both.labels == (*LABELS, "wave", "knock")
    assert both.demonstrations == (5, 3)
    for name in ("wave", "knock"):
        assert names(both, bundle, name).count(name) >= 9
        old = [said(both, bundle, performed("pick", seed))[both.labels.index(name)] for seed in range(200, 210)]
        assert np.median(old) < 0.1


def test_what_is_not_taken_by_a_new_gesture_is_what_the_network_says(bundle, memory):
    taught = memory.taught(bundle, "wave", shown("wave"))
    stream = bundle.stream()
    for row in performed("pick", 300):
        network = stream.step(row[None].astype(np.float32))[0]
    answer = taught.answer(network, stream.state)
    assert answer.sum() == pytest.approx(1)
    np.testing.assert_allclose(answer[:3], network * (1 - answer[3]), rtol=1e-6)
    np.testing.assert_array_equal(memory.answer(network, stream.state), network)  # nothing taught, nothing changed
    np.testing.assert_array_equal(taught.means[:3], memory.means)


def test_what_is_taken_back_is_as_if_it_had_not_been_taught(bundle, memory):
    both = memory.taught(bundle, "wave", shown("wave")).taught(bundle, "knock", shown("knock"))
    left = both.without("wave")
    alone = memory.taught(bundle, "knock", shown("knock"))
    assert (left.labels, left.demonstrations) == (alone.labels, alone.demonstrations)
    np.testing.assert_array_equal(left.means, alone.means)
    with pytest.raises(SensorError, match="'pick' was not taught; taught: knock"):
        left.without("pick")


def test_a_memory_is_saved_and_loaded_and_a_recogniser_speaks_its_names(bundle, memory, tmp_path):
    taught = memory.taught(bundle, "wave", shown("wave"))
    taught.save(tmp_path / "memory")
    again = GestureMemory.load(tmp_path / "memory", bundle)
    recogniser = Recogniser(bundle, INFO, none=["rest"], memory=again)
    assert recogniser.labels == (*LABELS, "wave")
    values = performed("wave", 400)
    np.testing.assert_array_equal(said(again, bundle, values), said(taught, bundle, values))
    found = [recogniser.step(INFO.frame(0.0, 0.0, row)) for row in np.tile(values, (3, 1))]
    assert "wave" in {each.gesture for each in found}


def test_a_memory_that_was_changed_or_is_another_bundles_is_refused(bundle, memory, tmp_path):
    place = tmp_path / "memory"
    memory.save(place)
    card = json.loads((tmp_path / "memory.json").read_text())
    for change, message in (
        ({"step_sha256": "0" * 64}, "belongs to another bundle"),
        ({"npz_sha256": "0" * 64}, r"memory\.npz: is not the file"),
        ({"schema": 9}, "not a memory of schema 1"),
    ):
        (tmp_path / "memory.json").write_text(json.dumps(card | change))
        with pytest.raises(SensorError, match=message):
            GestureMemory.load(place, bundle)
    (tmp_path / "memory.json").write_text("{")
    with pytest.raises(SensorError, match="memory: is not a memory"):
        GestureMemory.load(place, bundle)
    with pytest.raises(SensorError, match=r"none\.npz: the memory cannot be read"):
        GestureMemory.load(tmp_path / "none", bundle)


@pytest.mark.parametrize(
    ("name", "demonstrations", "message"),
    [
        ("pick", shown("wave"), "'pick' cannot be taught: the name is taken; known: rest, pick, pour"),
        ("unknown", shown("wave"), "'unknown' cannot be taught"),
        ("wave", [], "wave: no demonstration; three to five"),
        ("wave", [Demonstration(np.zeros((4, 3)))], r"demonstration 1 has values of shape \(4, 3\)"),
        ("wave", [*shown("wave"), Demonstration(np.zeros((4, 2)), 4)], "demonstration 6 .* frames 4 to 4"),
        ("wave", [Demonstration(np.full((4, 2), np.nan))], "demonstration 1 lacks every value of a channel"),
    ],
)
def test_what_cannot_be_taught_is_refused(bundle, memory, name, demonstrations, message):
    with pytest.raises(SensorError, match=message):
        memory.taught(bundle, name, demonstrations)


def test_a_bundle_without_features_and_recordings_that_lack_a_class_are_refused(bundle):
    with pytest.raises(SensorError, match=r"keeps no features in its state .* take gru"):
        GestureMemory.of(altered(bundle, state_names=("norm.count",)), [])
    with pytest.raises(SensorError, match="does not classify a stream"):
        GestureMemory.of(altered(bundle, kind="regress"), [])
    with pytest.raises(SensorError, match="no recording shows pick, pour"):
        GestureMemory.of(bundle, [(performed("rest", 0), np.zeros(LENGTH, int))])
