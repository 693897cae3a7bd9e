import numpy as np
import pytest

from data.frame import Channel
from sensors.person import Person
from sensors.recognise import Decider, Rules
from sensors.recogniser import Recogniser, RecogniserError
from sensors.stream import SensorError, StreamInfo
from tests.sensors.bundles import CHANNELS, LABELS, RATE_HZ, altered, classifier

INFO = StreamInfo("glove", CHANNELS, RATE_HZ)
RULES = Rules(threshold=0.4, dwell=2, margin=0.0, end_frames=2)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return classifier(tmp_path_factory.mktemp("gru") / "b", hidden=8, prior=100)


def frames(count=60, seed=0, info=INFO):
    values = np.random.default_rng(seed).normal(0, 2, (count, 2)).cumsum(0).clip(-3.9, 3.9)
    return [info.frame(t / RATE_HZ, t / RATE_HZ, row) for t, row in enumerate(values)]


def test_a_recogniser_says_what_the_bundles_stream_and_the_rules_say(bundle):
    recogniser, stream = Recogniser(bundle, INFO, none=["rest"], rules=RULES), bundle.stream()
    decider = Decider(LABELS, ["rest"], RULES)
    found = [recogniser.step(frame) for frame in frames()]
    assert found == [decider.step(stream.step(frame.values[None])[0]) for frame in frames()]
    assert {event for each in found for event in each.events} >= {"onset", "decision"}


def test_a_value_that_is_not_observed_is_missing_whatever_stands_there(bundle):
    gap = [f._replace(mask=np.array([True, False])) if t % 3 else f for t, f in enumerate(frames())]
    other = [f if f.mask.all() else f._replace(values=np.array([f.values[0], 7e8], np.float32)) for f in gap]
    one, two = Recogniser(bundle, INFO), Recogniser(bundle, INFO)
    assert [one.step(frame) for frame in gap] == [two.step(frame) for frame in other]


@pytest.mark.parametrize(
    "channels",
    [
        (CHANNELS[1], CHANNELS[0]),
        (Channel("bend", "rad"), CHANNELS[1]),
        (Channel("thumb", "deg"), CHANNELS[1]),
        CHANNELS[:1],
    ],
    ids=["order", "unit", "name", "number"],
)
def test_a_bundle_of_other_channels_is_refused(bundle, channels):
    with pytest.raises(
        SensorError, match=r"glove: .*expects the channels bend \[deg\], roll \[rad\] in this order; got"
    ):
        Recogniser(bundle, StreamInfo("glove", channels, RATE_HZ))


@pytest.mark.parametrize(("rate", "found"), [(100.0, "100 Hz"), (49.0, "49 Hz"), (0.0, "no fixed rate")])
def test_a_bundle_of_another_rate_is_refused(bundle, rate, found):
    with pytest.raises(SensorError, match=f"has {found}; .* was trained at 50 Hz"):
        Recogniser(bundle, StreamInfo("glove", CHANNELS, rate))
    Recogniser(bundle, StreamInfo("glove", CHANNELS, 50.2))  # a clock that drifts


def test_a_bundle_that_does_not_classify_a_stream_is_refused(bundle):
    with pytest.raises(SensorError, match="is to regress; gestures need a bundle that classifies"):
        Recogniser(altered(bundle, kind="regress"), INFO)
    with pytest.raises(SensorError, match="labels complete sequences only"):
        Recogniser(altered(bundle, streams=False), INFO)
    with pytest.raises(SensorError, match="a step of 'h', which is a calendar's"):
        Recogniser(altered(bundle, task=bundle.task | {"freq": "h"}), INFO)


def test_a_frame_of_another_size_is_refused(bundle):
    frame = frames(1)[0]
    with pytest.raises(SensorError, match=r"glove: a frame of shape \(3,\), expected 2 values"):
        Recogniser(bundle, INFO).step(frame._replace(values=np.zeros(3, np.float32), mask=np.ones(3, bool)))


def test_what_fails_inside_comes_out_as_the_recognisers_error(bundle):
    class Broken:
        labels = LABELS

        def answer(self, probabilities, state):
            raise MemoryError("no room")

    with pytest.raises(RecogniserError, match=r"gru failed on a frame .*no room"):
        Recogniser(bundle, INFO, memory=Broken()).step(frames(1)[0])


def test_a_restart_forgets_frames_and_gesture(bundle):
    recogniser = Recogniser(bundle, INFO, none=["rest"], rules=RULES)
    first = [recogniser.step(frame) for frame in frames()]
    recogniser.restart()
    assert [recogniser.step(frame) for frame in frames()] == first


def test_a_person_who_returns_is_met_as_they_were_left(bundle, tmp_path):
    recogniser = Recogniser(bundle, INFO, none=["rest"], person=Person.new(bundle, "Ana", weight=5))
    shown = frames(300, seed=1)
    for frame in shown:
        recogniser.step(frame)
    ana = recogniser.person("Ana")
    ana.save(tmp_path / "ana.npz")
    again = Person.load(tmp_path / "ana.npz", bundle)
    assert again.name == "Ana"
    for part, value in ana.statistics.items():
        np.testing.assert_array_equal(again.statistics[part], value)
    confidences = []
    for person in (ana, again, None):
        recogniser.restart(person)
        confidences.append(recogniser.step(frames(1, seed=2)[0]).confidence)
    stranger = Recogniser(bundle, INFO, none=["rest"]).step(frames(1, seed=2)[0]).confidence
    assert confidences == [confidences[0]] * 3 != [stranger] * 3


def test_the_fewer_frames_training_weighs_the_nearer_the_person_comes_to_their_own_mean(bundle):
    around = np.array([100.0, 3.0]) + np.random.default_rng(0).normal(0, 0.1, (60, 2))

    def distance(weight):
        recogniser = Recogniser(bundle, INFO, person=Person.new(bundle, "Ana", weight))
        for values in around:
            recogniser.step(INFO.frame(0.0, 0.0, values))
        return np.abs(recogniser.person("Ana").statistics["norm.last"][0] - around.mean(0)).max()

    assert distance(1) == pytest.approx(100 / 61, rel=1e-2)  # as one frame of what training is like, of level 0
    assert distance(20) == pytest.approx(100 * 20 / 80, rel=1e-2)
    assert distance(None) == pytest.approx(100 * 100 / 160, rel=1e-2)  # the model's own prior of 100 frames


def test_a_person_of_another_bundle_a_broken_file_and_a_model_without_statistics_are_refused(bundle, tmp_path):
    sha = bundle.card["sha256"] | {"step.onnx": "0" * 64}
    other = altered(bundle, card=bundle.card | {"sha256": sha})
    Person.new(other, "Ana").save(tmp_path / "ana.npz")
    with pytest.raises(SensorError, match="belongs to another bundle"):
        Person.load(tmp_path / "ana.npz", bundle)
    with pytest.raises(SensorError, match="Ana: belongs to another bundle"):
        Recogniser(bundle, INFO, person=Person.new(other, "Ana"))
    with pytest.raises(SensorError, match=r"none\.npz: the person cannot be read"):
        Person.load(tmp_path / "none.npz", bundle)
    (tmp_path / "text.npz").write_text("Ana")
    with pytest.raises(SensorError, match=r"not a readable \.npz"):
        Person.load(tmp_path / "text.npz", bundle)
    bundle.stream().save(tmp_path / "state.npz")
    with pytest.raises(SensorError, match="is not a person's file; it holds last"):
        Person.load(tmp_path / "state.npz", bundle)
    with pytest.raises(SensorError, match="a weight of 0 frames"):
        Person.new(bundle, "Ana", 0)
    with pytest.raises(SensorError, match="keeps no running statistics"):
        Person.new(altered(bundle, state_names=("count",)), "Ana")


def test_a_restarted_person_keeps_only_what_is_theirs(bundle):
    recogniser = Recogniser(bundle, INFO)
    for frame in frames(20):
        recogniser.step(frame)
    state = recogniser.person("Ana").state(bundle)
    assert set(state) == set(bundle.state_names)
    assert not state["rnn.h0"].any()
    assert not state["norm.offset"].any()
