"""Anomaly scores from a look inside a memory, beside the plain ones: |change| and the error of the last forecast.

A season of 24 steps with noise in which every 80 steps or so a value is off (spike) or the level moves for good
(shift). Noise has a standard deviation of 0.21, the season one of 1.5. Every score sees the same values and is asked at
each step whether it is the first of an anomaly; the 32 steps after one and the first 250 are left out. Nothing is tuned
on the anomalies: the model is trained on series without any.

AUC: how often an anomaly scores above a usual step. Found: share of anomalies above the 99th percentile of usual steps.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from figures import machine, table
from numpy.typing import NDArray

from forecasting.anomaly import AnomalyScore
from models.contract import DECILES, Batch, Signature
from models.memory.backbone import Inner, MemoryBackbone, MemoryConfig
from models.memory.miras import YAAD
from models.memory.titans import LMM
from models.network import Network, NetworkConfig

Array = NDArray[np.float64]

SEASON, HORIZON, LOOKBACK = 24, 4, 96
TRAIN, TEST, STEPS = 600, 3_000, 200
QUIET_START, QUIET_AFTER = 250, 32
MIDDLE = len(DECILES) // 2


def season_with_noise(rng: np.random.Generator, length: int) -> Array:
    t = np.arange(length)
    phase = rng.uniform(0, 2 * np.pi, 2)
    noise, jumps = np.zeros(length), rng.normal(0, 0.15, length)
    for i in range(1, length):
        noise[i] = 0.7 * noise[i - 1] + jumps[i]
    turn = 2 * np.pi * t / SEASON
    return 10 + 2 * np.sin(turn + phase[0]) + 0.8 * np.sin(2 * turn + phase[1]) + noise


def trained(inner: Inner, seed: int) -> Network:
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    config = MemoryConfig(width=32, heads=4, blocks=1, chunk=16)
    signature = Signature("forecast", 1, horizon=HORIZON, season=SEASON)
    model = Network(signature, NetworkConfig(embed=16), lambda width: MemoryBackbone(width, config, inner))
    known = np.stack([season_with_noise(rng, TRAIN) for _ in range(8)])

    def batch(size: int) -> Batch:
        rows, starts = rng.integers(0, len(known), size), rng.integers(0, TRAIN - LOOKBACK - HORIZON, size)
        windows = np.stack([known[r, s : s + LOOKBACK + HORIZON] for r, s in zip(rows, starts, strict=True)])
        x = torch.tensor(windows[:, :LOOKBACK, None], dtype=torch.float32)
        ahead = np.stack([windows[:, 1 + h : 1 + h + LOOKBACK] for h in range(HORIZON)], -1)
        target = torch.tensor(ahead, dtype=torch.float32)
        return Batch(x, torch.ones_like(x), target, torch.full((size,), float(known.std())))

    model.prepare([batch(64)])
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(STEPS):
        optimiser.zero_grad()
        model.loss(batch(16)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    return model.eval()


def with_anomalies(
    rng: np.random.Generator, kind: str, size: float
) -> tuple[Array, NDArray[np.bool_], NDArray[np.bool_]]:
    """Values, where an anomaly begins, and which steps are usual."""
    y = season_with_noise(rng, TEST)
    first = np.zeros(TEST, bool)
    usual = np.arange(TEST) >= QUIET_START
    for start in range(QUIET_START, TEST - 80, 80):
        place = start + int(rng.integers(0, 40))
        moved = size * rng.choice([-1, 1])
        if kind == "spike":
            y[place] += moved
        else:
            y[place:] += moved
        first[place] = True
        usual[place : place + 1 + QUIET_AFTER] = False
    return y, first, usual


def scores(model: Network, y: Array) -> dict[str, Array]:
    x = torch.tensor(y[None, :, None], dtype=torch.float32)
    with torch.no_grad():
        prediction, _, inside = model.look("scan", x, torch.ones_like(x), model.initial_state(1))
    look = {name: value[0].numpy() for name, value in inside.items()}
    middle = prediction[0, :-1, 0, MIDDLE].numpy()
    error = np.concatenate([[0.0], np.abs(y[1:] - middle)])
    change = np.concatenate([[0.0], np.abs(np.diff(y))])
    return {
        "look: surprise alone": streamed(AnomalyScore(gates=False), look),
        "look: surprise and gates": streamed(AnomalyScore(), look),
        "naive: |change| / its running scale": change / running_scale(change),
        "|forecast error| / its running scale": error / running_scale(error),
    }


def streamed(scorer: AnomalyScore, look: dict[str, Array]) -> Array:
    state, found = None, []
    for t in range(len(look["block0.surprise"])):
        score, state = scorer.step({name: value[t] for name, value in look.items()}, state)
        found.append(float(score))
    return np.array(found)


def running_scale(values: Array, window: int = 200) -> Array:
    """Root mean square of the values before each, exponentially weighted over `window`; anomalies count four times."""
    square, found = float(values[1:20].mean() ** 2), []
    for value in values:
        found.append(square**0.5)
        square += (min(value * value, 16 * square) - square) / window
    return np.array(found)


def judge(score: Array, first: NDArray[np.bool_], usual: NDArray[np.bool_]) -> tuple[float, float]:
    anomalies, rest = score[first], np.sort(score[usual])
    below = (np.searchsorted(rest, anomalies, "left") + np.searchsorted(rest, anomalies, "right")) / 2
    return float(below.mean() / len(rest)), float((anomalies > np.quantile(rest, 0.99)).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    seeds = range(parser.parse_args().seeds)
    print(machine())
    torch.set_num_threads(1)
    kinds: dict[str, Callable[[np.random.Generator], tuple[Array, NDArray[np.bool_], NDArray[np.bool_]]]] = {
        f"{kind} of {size:g}": lambda rng, kind=kind, size=size: with_anomalies(rng, kind, size)  # type: ignore[misc]
        for kind, size in (("spike", 1.0), ("spike", 2.0), ("spike", 6.0), ("shift", 2.0))
    }
    began, rows = time.perf_counter(), []
    for name, inner in (("titans-lmm", LMM), ("yaad", YAAD)):
        models = [trained(inner, seed) for seed in seeds]
        for kind, make in kinds.items():
            found: dict[str, list[tuple[float, float]]] = {}
            for seed, model in zip(seeds, models, strict=True):
                y, first, usual = make(np.random.default_rng(1_000 + seed))
                for score, values in scores(model, y).items():
                    found.setdefault(score, []).append(judge(values, first, usual))
            for score, judged in found.items():
                areas, shares = zip(*judged, strict=True)
                rows.append([name, kind, score, *(f"{statistics.median(v):.3f}" for v in (areas, shares))])
                rows[-1].append(" ".join(f"{area:.3f}" for area in areas))
    table(["memory", "anomaly", "score", "AUC", "found", "AUC of each seed"], rows)
    print(f"medians over {len(seeds)} seeds; {time.perf_counter() - began:.0f} s in all")


if __name__ == "__main__":
    main()
