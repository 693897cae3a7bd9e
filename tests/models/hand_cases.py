"""Forecasts of models that know all in their state, for numbers worked out by hand.

Shapes: T time, H horizon, Q quantiles.
"""

from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from models.catalog import build
from models.contract import Signature

Z = NormalDist().inv_cdf(0.9)


def signature(horizon: int, season: int = 1) -> Signature:
    return Signature("forecast", channels=1, horizon=horizon, season=season, quantiles=(0.1, 0.5, 0.9))


def run(name: str, asked: Signature, *values: float, **settings: Any) -> Tensor:
    """(T, H, Q) forecasts along one series; NaN is a gap. The steps, once the scan has been seen to agree."""
    model = build(name, asked, **settings).double()
    x = torch.tensor(values, dtype=torch.float64)[None, :, None]
    mask = x.isfinite().double()
    scanned, _ = model.scan(x, mask, model.initial_state(1))
    state, predictions = model.initial_state(1), []
    for t in range(len(values)):
        prediction, state = model.step(x[:, t], mask[:, t], state)
        predictions.append(prediction)
    torch.testing.assert_close(scanned, torch.stack(predictions, 1), rtol=1e-9, atol=1e-9)
    return scanned[0]


def middle_and_sigma(forecast: Tensor) -> tuple[list[float], list[float]]:
    """Of a forecast (H, 3) at the levels 0.1, 0.5, 0.9: the median, and the deviation that the fan stands for."""
    return forecast[:, 1].tolist(), ((forecast[:, 2] - forecast[:, 0]) / (2 * Z)).tolist()
