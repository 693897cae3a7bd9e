"""A backbone as an ONNX graph, beside itself."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from data.frame import Channel
from forecasting.export import export_bundle
from forecasting.runtime import load_bundle
from forecasting.task import Task
from models.contract import Signature
from models.network import Network, NetworkConfig


def graph_apart(make: Callable[[int], nn.Module], path: Path, steps: int = 100) -> float:
    """How far step.onnx of a network on this backbone is from the network itself, over steps of two series with gaps.

    Relative to the range of the predictions at that step; weights are random, and the bundle's certificate has passed.
    """
    signature = Signature("forecast", channels=1, horizon=3)
    model = Network(signature, NetworkConfig(embed=6, norm_window=12), make).eval()
    with torch.no_grad():  # weights that start at or near zero would hide what they multiply
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    task = Task("forecast", "y", (Channel("y", ""),), freq=1, horizon=3, quantiles=signature.quantiles)
    export_bundle(model, task, path, name=type(model.backbone).__name__, config={}, training={}, metrics=[])
    loaded = load_bundle(path)
    x, mask = torch.randn(2, steps, 1).cumsum(1), (torch.rand(2, steps, 1) > 0.1).float()
    state, graph_state, worst = model.initial_state(2), loaded.initial_state(2), 0.0
    for t in range(steps):
        with torch.no_grad():
            expected, state = model.step(x[:, t], mask[:, t], state)
        found, graph_state = loaded.run_step(x[:, t].numpy(), mask[:, t].numpy(), graph_state)
        worst = max(worst, float(np.abs(found - expected.numpy()).max() / np.ptp(expected.numpy())))
    return worst
