import numpy as np
import pytest

from dashboards.replay import LONGEST_TICK_S, Replay


class Counter:
    """A model of two classes that remembers how many frames it saw."""

    def __init__(self):
        self.seen = []

    def step(self, values, at=None):
        self.seen.append(float(values[0, 0]))
        return np.array([[len(self.seen) / 100, 1 - len(self.seen) / 100]])


class Rememberer(Counter):
    """One with a memory of two heads, which are surprised by the frame and by twice as much."""

    def look(self, values, at=None):
        surprise = np.array([[1.0, 2.0]]) * values[0, 0]
        return self.step(values), {"block0.surprise": surprise, "block0.norm": surprise + len(self.seen)}


def replay(frames=50, period_s=0.1):
    return Replay(Counter, np.arange(frames, dtype=float)[:, None], ["wave"] * frames, 2, period_s)


def test_frames_go_through_at_the_rate_of_the_recording_however_late_the_ticks_are():
    play = replay()
    play.play()
    for now in (100.0, 100.25, 100.3, 100.99):
        play.tick(now)
    assert play.position == 9  # 0.99 s at ten frames a second
    assert play.stream.seen == list(range(9))
    assert play.probabilities[8].tolist() == [0.09, 0.91]
    assert np.isnan(play.probabilities[9]).all()


@pytest.mark.parametrize(("speed", "frames"), [(1, 5), (2, 10), (5, 25)])
def test_speed_multiplies_the_rate(speed, frames):
    play = replay()
    play.play()
    play.tick(7.0, speed)
    assert play.tick(7.5, speed) == frames


def test_a_pause_costs_no_frames_and_a_page_that_slept_does_not_leap():
    play = replay()
    play.play()
    play.tick(0.0)
    play.tick(0.5)
    play.pause()
    assert play.tick(3.0) == 0
    play.play()
    assert play.tick(10.0) == 0
    assert play.tick(60.0) == LONGEST_TICK_S / play.period_s


def test_the_end_stops_it_and_playing_again_begins_from_the_initial_state():
    play = replay(frames=8)
    play.play()
    play.tick(0.0)
    play.tick(1.0)
    assert (play.position, play.done, play.playing) == (8, True, False)
    play.play()
    assert (play.position, play.stream.seen, play.latency_us) == (0, [], None)


def test_a_look_inside_is_kept_beside_the_prediction_as_the_mean_of_the_heads():
    frames = np.arange(6, dtype=float)[:, None]
    frames[2] = np.nan
    play = Replay(Rememberer, frames, ["wave"] * 6, 2, 0.1, ["block0.surprise", "block0.norm"])
    play.advance(4)
    np.testing.assert_array_equal(play.looks["block0.surprise"], [0, 1.5, np.nan, 4.5, np.nan, np.nan])
    np.testing.assert_array_equal(play.looks["block0.norm"], [1, 3.5, np.nan, 8.5, np.nan, np.nan])
    assert play.probabilities[3].tolist() == [0.04, 0.96]
    assert len(play.latencies_us) == 4
    play.reset()
    assert np.isnan(play.looks["block0.surprise"]).all()


def test_a_model_without_a_memory_is_stepped_and_never_looked_into():
    play = replay()
    play.advance(3)
    assert play.looks == {}
    assert play.stream.seen == [0, 1, 2]


def test_latency_is_measured_for_every_step():
    play = replay()
    assert play.latency_us is None
    play.advance(20)
    median, slow = play.latency_us
    assert 0 < median <= slow
    assert len(play.latencies_us) == 20
