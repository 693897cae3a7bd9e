"""Random kernels as a step: what they see, and that they learn. The contract suite asks for parity and causality."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.catalog import build
from models.contract import Batch, ModelError, Signature
from models.rocket import Rocket, mean_weights, moving_channels, running_means

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


def trained(training: Batch | None = None, **settings) -> Rocket:
    training = batch(1) if training is None else training
    torch.manual_seed(0)
    model = build("rocket", replace(SIGNATURE, channels=training.x.shape[2]), **SMALL | settings)
    assert isinstance(model, Rocket)
    model.prepare([training])
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(40):
        optimiser.zero_grad()
        model.loss(training).backward()
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


def leaning(x: Tensor, level: Tensor) -> Tensor:
    """With a third channel that stands at the `level` (B,) of each series."""
    noise = torch.randn(x.shape[:2], generator=torch.Generator().manual_seed(9))
    return torch.cat([x, (level[:, None] + 0.1 * noise)[..., None]], -1)


def test_a_channel_moves_unless_the_means_of_its_windows_differ():
    x, label = waves(1)
    assert moving_channels([leaning(x, 2.0 * label)]).tolist() == [True, True, False]
    assert moving_channels([leaning(x, 0.0 * label)]).tolist() == [True, True, True]
    standing = torch.randn(5, 1, 2).expand(5, 9, 2)
    assert moving_channels([standing]).tolist() == [True, True]  # it must look at something


def test_the_second_eye_sees_no_level_and_nothing_of_what_stands():
    x, label = waves(1)
    training = batch(1)._replace(x=leaning(x, 2.0 * label), mask=torch.ones(24, 40, 3))
    model = trained(training, moving=True)
    after = []
    for offset, lean in ((0.0, 0.0), (1.5, 0.0), (0.0, 5.0)):
        moved = torch.cat([x + offset, torch.full((24, 40, 1), lean)], -1)
        with torch.no_grad():
            after.append(model.scan(moved, torch.ones_like(moved), model.initial_state(24))[1])
    plain, higher, leant = ({name: state[name] for name in state if name.startswith("moving")} for state in after)
    assert plain
    for name, shares in plain.items():
        torch.testing.assert_close(leant[name], shares)
    assert not torch.allclose(after[0]["shares0"], after[2]["shares0"], atol=0.1)
    # A kernel that sees the size of a channel does see on which side of 0 it lies; the others see its motion alone.
    signed = model.eyes[1].kernels0[:, 3:].abs().amax((1, 2)) == 0
    of_kernels = signed.repeat_interleave(SMALL["thresholds"])
    assert of_kernels.any()
    torch.testing.assert_close(higher["moving0"][:, of_kernels], plain["moving0"][:, of_kernels], atol=0.01, rtol=0)
    assert not torch.allclose(after[0]["shares0"], after[1]["shares0"], atol=0.1)


def test_the_second_eye_counts_once_a_kernel_has_its_whole_past():
    model = trained(moving=True)
    x, _ = waves(2)
    states = []
    with torch.no_grad():
        for length in (8, 9, 16, 17):
            states.append(model.scan(x[:, :length], torch.ones(24, length, 2), model.initial_state(24))[1])
    counted = [[bool(state[f"moving{index}"].any()) for index in range(2)] for state in states]
    assert counted == [[False, False], [True, False], [True, False], [True, True]]


def test_where_levels_have_drifted_a_second_eye_errs_less():
    x, label = waves(1)
    training = batch(1)._replace(x=leaning(x, 2.0 * label), mask=torch.ones(24, 40, 3))
    new, truth = waves(2, rows=60)
    drifted = leaning(new, 2.0 * ((truth + 1) % 3))
    right = []
    for moving in (False, True):
        model = trained(training, moving=moving)
        with torch.no_grad():
            said, _ = model.scan(drifted, torch.ones_like(drifted), model.initial_state(60))
        right.append((said[:, -1].argmax(-1) == truth).float().mean())
    assert right[1] > right[0] + 0.05


@pytest.mark.parametrize("setting", [{"dilations": 0}, {"dropout": 1.0}, {"levels": 0}])
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(ModelError, match=next(iter(setting))):
        build("rocket", SIGNATURE, **setting)
