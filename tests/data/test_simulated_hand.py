import numpy as np
import pandas as pd
import pytest

from data.gesture import gestures_demo
from data.simulated_hand import CHANNELS, GESTURES, RATE_HZ, REST, Person, gesture, minimum_jerk, recorded

GLOVE = [channel.name for channel in CHANNELS[:10]]


def person(number=1):
    return Person.draw(np.random.default_rng(number))


def recording(number=1, seed=0):
    return recorded(person(number), np.random.default_rng(seed))


def test_the_same_seed_gives_the_same_recording_and_another_another():
    pd.testing.assert_frame_equal(recording(), recording())
    assert not np.array_equal(recording()[GLOVE].head(100), recording(seed=1)[GLOVE].head(100))


def test_every_gesture_is_there_between_rests_and_some_frames_are_lost():
    table = recording()
    runs = table["label"][table["label"] != table["label"].shift()]
    assert set(runs) == {REST, *GESTURES}
    assert ((runs == REST) != (runs == REST).shift(-1)).iloc[:-1].all()  # rest, gesture, rest ...
    gaps = np.diff(table["ds"]) * RATE_HZ
    assert 1 < gaps.max() < 10
    assert (gaps > 1.5).mean() < 0.01


def test_the_hand_moves_when_a_label_begins():
    table = recording().reset_index(drop=True)
    speed = table[["x", "y", "z"]].rolling(5, center=True).mean().diff().pow(2).sum(axis=1) ** 0.5 * RATE_HZ  # m/s
    begins = table.index[(table["label"] != REST) & (table["label"].shift() == REST)]
    fastest = [speed[i : i + RATE_HZ // 2].max() for i in begins]
    assert np.median(fastest) > 0.3
    assert speed[table["label"] == REST].median() < 0.1


def test_nobody_is_in_two_parts_however_many_people_there_are():
    data = gestures_demo(people=30, recordings=1)
    assert sorted(data.splits.entity) == sorted(f"person_{number}/1" for number in range(1, 31))
    parts = pd.Series(data.splits.entity)
    assert parts.value_counts().to_dict() == {"train": 24, "validation": 3, "test": 3}
    own = data.frame[data.frame["unique_id"] == "person_7/1"]
    few = gestures_demo(people=8, recordings=1).frame
    assert own.equals(few[few["unique_id"] == "person_7/1"].set_axis(own.index))


@pytest.mark.parametrize("name", GESTURES)
def test_a_gesture_is_made_otherwise_each_time_and_by_another_person(name):
    ana, ben = person(1), person(2)
    once, again, other = (gesture(name, who, np.random.default_rng(i)) for i, who in enumerate((ana, ana, ben)))
    assert not np.allclose(once[0], again[0], atol=0.5)
    assert not np.allclose(once[0, 10:13], other[0, 10:13], atol=0.5)


def test_left_is_left_and_pouring_turns_the_hand_and_back():
    rng = np.random.default_rng(0)
    x = gesture("swipe_left", person(), rng)[:, 13]
    assert x[-1] < x[0] - 0.3
    roll = gesture("pour", person(), rng)[:, 12]
    assert roll.min() < roll[0] - 90
    assert roll[-1] == pytest.approx(roll[0])
    path = gesture("circle", person(), rng)[:, [13, 15]]
    assert np.linalg.norm(path - (path.min(0) + path.max(0)) / 2, axis=1).std() < 0.001  # m, of the radius


def test_a_minimum_jerk_path_starts_and_ends_at_rest_half_way_at_half_time():
    way = minimum_jerk(201)
    assert (way[0], way[100], way[200]) == (0, pytest.approx(0.5), pytest.approx(1))
    assert np.abs(np.diff(way)[[0, -1]]).max() < 1e-5
    assert np.diff(way).max() == pytest.approx(1.875 / 200, rel=1e-3)
