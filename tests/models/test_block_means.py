"""Means over long windows from sums of blocks: by hand, in pieces, and to the last bit."""

import numpy as np
import pytest
import torch
from torch import Tensor

from models.block_means import BLOCKS, LARGEST, LONGEST, BlockMeans, counted
from models.lag_features import GRID

CHANNELS = 2


def sums(values: np.ndarray, started: np.ndarray | None = None) -> Tensor:
    """(T, C) -> (1, T, S), of channels whose centre is 0 and whose spread 1."""
    x = torch.from_numpy(values).float()[None]
    shown = torch.ones_like(x) if started is None else torch.from_numpy(started).float()[None]
    return counted(x, shown, torch.zeros(CHANNELS), torch.ones(CHANNELS))


def walk(steps: int) -> np.ndarray:
    return np.random.default_rng(3).normal(size=(steps, CHANNELS)).cumsum(0) / 4


@pytest.mark.parametrize("window", [1, 25, 70])
def test_a_window_is_its_last_whole_blocks_and_the_one_that_is_being_filled(window):
    values, block = np.round(walk(120) * GRID) / GRID, -(-window // BLOCKS)
    means = BlockMeans(CHANNELS, [window])
    found, _ = means.scan(sums(values), means.initial_state(1))
    for t in range(len(values)):
        first = max(0, t // block - (BLOCKS - 1)) * block
        past = values[first : t + 1]
        assert len(past) <= BLOCKS * block
        assert found[0, t].tolist() == pytest.approx([*past.mean(0), *np.abs(past).mean(0)], abs=1e-12)


@pytest.mark.parametrize("cuts", [(), (1,), (7, 8, 40), tuple(range(1, 150))])
def test_steps_and_scans_of_any_pieces_are_the_same_to_the_last_bit(cuts):
    started = np.ones((150, CHANNELS))
    started[:13] = 0
    started[:35, 1] = 0
    z = sums(walk(150), started)
    means = BlockMeans(CHANNELS, [10, 33, 400])
    state, stepped = means.initial_state(1), []
    for t in range(z.shape[1]):
        found, state = means.step(z[:, t], state)
        stepped.append(found)
    after, scanned = means.initial_state(1), []
    for piece in z.tensor_split(list(cuts), 1):
        found, after = means.scan(piece, after)
        scanned.append(found)
    assert torch.equal(torch.stack(stepped, 1), torch.cat(scanned, 1))
    assert all(torch.equal(state[name], after[name]) for name in state)


def test_sums_of_the_longest_window_are_exact():
    block = LONGEST // BLOCKS
    means = BlockMeans(CHANNELS, [LONGEST])
    z = sums(np.full((block + 1, CHANNELS), 1e9))
    z[:, :, :-1] -= 1.0  # odd, so that a float32 of fewer than 24 bits would lose them
    _, state = means.scan(z, means.initial_state(1))
    assert state["means.whole0"][0, -1, 0] == block * (LARGEST * GRID - 1)


def test_no_window_is_no_feature():
    means = BlockMeans(CHANNELS, [])
    found, state = means.scan(sums(walk(5)), means.initial_state(1))
    assert found.shape == (1, 5, 0)
    assert not state
