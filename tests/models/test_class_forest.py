"""A forest that says a class at every step. The contract suite asks for parity and causality."""

import pytest
import torch

from models.catalog import build
from models.class_forest import ClassForest
from models.contract import Batch, ModelError, Signature
from tests.models.test_rocket import SIGNATURE, batch, waves

SMALL = {"lags": 30, "trees": 25, "rows": 600, "column_share": 0.3}


def trained(learned: Batch, signature: Signature = SIGNATURE, **settings: object) -> ClassForest:
    torch.manual_seed(0)
    model = build("class-forest", signature, **(SMALL | settings))
    assert isinstance(model, ClassForest)
    model.fit([learned])
    return model.eval()


@pytest.mark.parametrize("features", ["statistics", "path"])
def test_new_series_are_told_apart_and_better_the_longer_they_are(features):
    model = trained(batch(1), features=features)
    x, label = waves(2, rows=60)
    said, _ = model.scan(x, torch.ones_like(x), model.initial_state(len(x)))
    assert said.sum(-1) == pytest.approx(1.0, abs=1e-5)
    right = (said.argmax(-1) == label[:, None]).float().mean(0)
    assert right[-1] > (0.9 if features == "statistics" else 0.6)
    assert right[-1] > right[0]


def test_a_class_that_was_never_shown_is_never_said():
    shown = batch(1)
    model = trained(shown._replace(target=torch.where(shown.target == 1, -1, shown.target)))
    x, _ = waves(2)
    said, _ = model.scan(x, torch.ones_like(x), model.initial_state(len(x)))
    assert not said[..., 1].any()
    assert said[:, -1, 0].min() < 0.5 < said[:, -1, 0].max()


def test_two_fits_with_one_seed_are_the_same():
    x, _ = waves(3)
    first, second = (model.scan(x, torch.ones_like(x), model.initial_state(len(x)))[0]
                     for model in (trained(batch(1)), trained(batch(1))))  # fmt: skip
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("kept", "message"), [((), "no position with a label"), ((2,), "two classes to tell apart, .* hold one")]
)
def test_nothing_to_tell_apart_is_said(kept, message):
    shown = batch(1)
    known = torch.isin(shown.target, torch.tensor(kept, dtype=shown.target.dtype))
    with pytest.raises(ModelError, match=message):
        trained(shown._replace(target=torch.where(known, shown.target, -1)))


def test_a_longer_past_tells_what_the_last_frames_do_not():
    """A loud second or a quiet one: which it was counts after the frames of it have gone."""
    torch.manual_seed(5)
    label = torch.arange(40) % 2
    x = torch.randn(40, 60, 1)
    x[:, :20] *= 1 + 4 * label[:, None, None]
    target = label[:, None].expand(40, 60)
    shown = Batch(x, torch.ones_like(x), target, torch.ones(40), torch.zeros(40, 3))
    signature = Signature("classify", channels=1, classes=2)

    def right(**settings: object) -> float:
        model = trained(Batch._make(part if part is None else part[:20] for part in shown), signature, **settings)
        said, _ = model.scan(x[20:], torch.ones_like(x[20:]), model.initial_state(20))
        return float((said[:, -1].argmax(-1) == label[20:]).float().mean())

    assert right() < 0.8
    assert right(longer="60") > 0.95


@pytest.mark.parametrize("wrong", ["500,-1", "a", "0", "100000"])
def test_a_longer_past_is_a_list_of_whole_numbers(wrong):
    with pytest.raises(ModelError, match=f"longer is a list of whole numbers from 1 to 20480, .* not '{wrong}'"):
        build("class-forest", SIGNATURE, longer=wrong)


@pytest.mark.parametrize("wrong", [{"lags": 0}, {"rows": 0}, {"features": "wavelets"}])
def test_settings_out_of_range_are_named(wrong):
    ((field, value),) = wrong.items()
    with pytest.raises(ModelError, match=f"class-forest needs .*{field}='?{value}"):
        build("class-forest", SIGNATURE, **wrong)
