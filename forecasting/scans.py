"""Sequences of any lengths through a bundle's scan, as many at once as memory allows.

Shapes: B series, T time, C channels, H horizon, F covariates known ahead.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from forecasting.graphs import Array, State, as_input

if TYPE_CHECKING:
    from forecasting.runtime import LoadedBundle

SCAN_STEPS = 512  # steps in one run of a long scan
SCAN_ROWS = 1024  # series in one run
SCAN_NUMBERS = 2**23  # numbers in the predictions of one run, 32 MB


def scan_complete(bundle: LoadedBundle, sequences: list[Array]) -> Array:
    """The prediction at the end of complete sequences (T_b, C), those of equal length together."""
    lengths = np.array([len(values) for values in sequences])
    predictions = np.empty((len(sequences), *bundle.prediction_shape), np.float32)
    for length in np.unique(lengths):
        rows = np.flatnonzero(lengths == length)
        most = max(1, min(SCAN_ROWS, SCAN_NUMBERS // (int(length) * math.prod(bundle.prediction_shape))))
        for part in np.split(rows, range(most, len(rows), most)):
            x, mask = as_input(np.stack([sequences[row] for row in part]))
            predictions[part] = bundle.run_scan(x, mask, bundle.initial_state(len(part)))[0][:, -1]
    return predictions


def scan_ragged(
    bundle: LoadedBundle, sequences: list[Array], state: State, ahead: list[Array] | None = None
) -> tuple[Array, State]:
    """The prediction after the last step of sequences (T_b, C) of any lengths >= 1, and the states then.

    `ahead` are the covariates (T_b, H, F) that are known ahead of each step, where the bundle takes them.

    Runs end where a sequence ends, and the rest goes on without it: padding would change the states.
    """
    after = {name: value.copy() for name, value in state.items()}
    predictions = np.empty((len(sequences), *bundle.prediction_shape), np.float32)
    lengths = np.array([len(values) for values in sequences])
    longest_first = np.argsort(-lengths, kind="stable")
    for block in np.split(longest_first, range(SCAN_ROWS, len(sequences), SCAN_ROWS)):
        t = 0
        while len(block):
            most = max(1, SCAN_NUMBERS // (len(block) * _numbers_a_step(bundle)))
            end = min(int(lengths[block[-1]]), t + min(SCAN_STEPS, most))
            x, mask = as_input(np.stack([sequences[row][t:end] for row in block]))
            known = [] if ahead is None else [np.stack([ahead[row][t:end] for row in block])]
            carried = {name: value[block] for name, value in after.items()}
            prediction, carried = bundle.run_scan(x, mask, carried, *known)
            for name, value in carried.items():
                after[name][block] = value
            ended = lengths[block] == end
            predictions[block[ended]] = prediction[ended, -1]
            block, t = block[~ended], end
    return predictions, after


def _numbers_a_step(bundle: LoadedBundle) -> int:
    """The larger of what enters and leaves a graph beside the observation and the state."""
    return max(math.prod(bundle.prediction_shape), bundle.prediction_shape[0] * len(bundle.ahead))
