"""Small bundles that classify, for tests of what stands on them."""

import copy

import torch

from data.frame import Channel
from forecasting.export import export_bundle
from forecasting.runtime import LoadedBundle, load_bundle
from forecasting.task import Task
from models.catalog import build

CHANNELS = (Channel("bend", "deg", -180, 180), Channel("roll", "rad", -4, 4))
RATE_HZ = 50.0
LABELS = ("rest", "pick", "pour")


def classifier(place, name="gru", seed=0, scale=(1.0, 1.0), **config) -> LoadedBundle:
    """Not trained, so that what it says moves with all that it is fed; `scale` is what it takes for usual."""
    task = Task("classify", "label", CHANNELS, 1 / RATE_HZ, labels=LABELS)
    torch.manual_seed(seed)
    model = build(name, task.signature, **config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 3
    if hasattr(model, "normaliser"):
        spread = torch.tensor(scale)
        model.normaliser.calibrate(torch.zeros(2), spread**2, 1e-2 * spread)
    export_bundle(model, task, place, name=name, config=config, training={}, metrics=[])
    return load_bundle(place)


def altered(bundle: LoadedBundle, **fields) -> LoadedBundle:
    """The bundle, had its card said something else."""
    other = copy.copy(bundle)
    for name, value in fields.items():
        setattr(other, name, value)
    return other
