"""Random kernels as a step: what they see, and that they learn. The contract suite asks for parity and causality."""

import pytest
import torch
from torch import Tensor

from models.catalog import build
from models.contract import Batch, ModelError, Signature
from models.rocket import Rocket, mean_weights, running_means

SIGNATURE = Signature("classify", channels=2, classes=3)
SMALL = {"dilations": 3, "thresholds": 2, "levels": 4, "hidden": 16, "short": 8, "long": 64, "positions": 4}


def waves(seed: int, rows: int = 24, steps: int = 40) -> tuple[Tensor, Tensor]:
    """Three classes: slow, fast, and fast with the second channel strong; each at its own phase."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.arange(rows) % 3
    phase = 6.3 * torch.rand(rows, 1, generator=generator)
    t = torch.arange(steps)[None, :]
    first = torch.sin(torch.where(label > 0, 1.5, 0.3)[:, None] * t + phase)
    second = torch.where(label == 2, 3.0, 0.5)[:, None] * torch.randn(rows, steps, generator=generator)
    return torch.stack([first, second], -1), label


def batch(seed: int) -> Batch:
    x, label = waves(seed)
    return Batch(x, torch.ones_like(x), label[:, None].expand(x.shape[:2]), torch.ones(len(x)))


def trained() -> Rocket:
    torch.manual_seed(0)
    model = build("rocket", SIGNATURE, **SMALL)
    assert isinstance(model, Rocket)
    model.prepare([batch(1)])
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(40):
        optimiser.zero_grad()
        model.loss(batch(1)).backward()
        optimiser.step()
    return model.eval()


def test_frequency_and_power_are_told_apart_on_new_series_and_better_the_longer_they_are():
    model = trained()
    x, label = waves(2, rows=60)
    with torch.no_grad():
        said, _ = model.scan(x, torch.ones_like(x), model.initial_state(len(x)))
    right = (said.argmax(-1) == label[:, None]).float().mean(0)
    assert right[-1] > 0.9
    assert right[-1] > right[0]


def test_that_a_channel_is_missing_tells_classes_apart_and_one_that_never_was_may_fail_later():
    torch.manual_seed(0)
    model = build("rocket", SIGNATURE, **SMALL)
    x, label = torch.randn(24, 20, 2), torch.arange(24) % 2
    mask = torch.ones_like(x)
    mask[label == 1, ::2, 0] = 0
    training = Batch(x, mask, label[:, None].expand(24, 20), torch.ones(24))
    model.prepare([training])
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(30):
        optimiser.zero_grad()
        model.loss(training).backward()
        optimiser.step()
    model.eval()
    with torch.no_grad():
        said, _ = model.scan(x, mask, model.initial_state(24))
        usual, whole = model.normaliser.prior_mean.expand(1, 20, 2), torch.ones(1, 20, 2)
        expected, _ = model.scan(usual, whole, model.initial_state(1))
        failed, _ = model.scan(usual, whole * torch.tensor([1.0, 0.0]), model.initial_state(1))
    assert (said[:, -1].argmax(-1) == label).float().mean() > 0.95
    torch.testing.assert_close(failed, expected, atol=1e-4, rtol=0)


def test_windows_without_a_label_teach_nothing():
    model = build("rocket", SIGNATURE, **SMALL)
    model.prepare([batch(1)])
    loss = model.loss(batch(1)._replace(target=torch.full_like(batch(1).target, -1)))
    loss.backward()
    assert loss.item() == 0
    assert all(part.grad is None or not part.grad.any() for part in model.parameters())


def test_the_units_of_the_channels_do_not_matter():
    """Statistics and thresholds come from the training data."""
    said = []
    for unit, offset in ((1.0, 0.0), (1024.0, 5000.0)):
        torch.manual_seed(0)
        model = build("rocket", SIGNATURE, **SMALL)
        training = batch(1)
        model.prepare([training._replace(x=unit * training.x + offset)])
        x = unit * waves(2)[0] + offset
        with torch.no_grad():
            said.append(model.eval().scan(x, torch.ones_like(x), model.initial_state(len(x)))[0])
    torch.testing.assert_close(said[0], said[1], rtol=1e-2, atol=1e-3)
    assert said[0].std(0).max() > 0.01  # it does say different things of different series


def test_a_running_mean_is_plain_until_its_window_and_exponential_after():
    values = torch.tensor([1.0, 3.0, 8.0])[None, :, None]
    rates = [torch.tensor([1.0, 1 / 2, 1 / 2])[None, :, None]]  # a window of two
    found, last = running_means(values, rates, torch.zeros(1, 1))
    assert found.flatten().tolist() == [1.0, 2.0, 5.0]
    assert last.flatten().tolist() == [5.0]


def test_weights_of_the_means_give_the_running_means_where_they_are_asked_for():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(2, 9, 3, generator=generator)
    there = (torch.rand(2, 9, 1, generator=generator) > 0.3).float()  # gaps weigh nothing
    rates = [there / there.cumsum(1).clamp(1, window) for window in (2.0, 5.0)]
    found, _ = running_means(values, rates, torch.zeros(2, 6))
    positions = torch.tensor([0, 4, 4, 7])
    weights = mean_weights(rates, positions)
    assert weights.shape == (2, 4, 2, 9)
    torch.testing.assert_close((weights @ values[:, None]).flatten(2), found[:, positions])


@pytest.mark.parametrize("setting", [{"dilations": 0}, {"dropout": 1.0}, {"levels": 0}])
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(ModelError, match=next(iter(setting))):
        build("rocket", SIGNATURE, **setting)
