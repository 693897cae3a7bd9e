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


def test_a_share_of_all_leaves_is_never_more_than_one():
    model = trained(batch(1), trees=7)
    x, _ = waves(2, rows=60)
    said, _ = model.scan(x, torch.ones_like(x), model.initial_state(len(x)))
    assert said.max() == 1.0


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


@pytest.mark.parametrize("wrong", [{"lags": 0}, {"rows": 0}, {"features": "wavelets"}])
def test_settings_out_of_range_are_named(wrong):
    ((field, value),) = wrong.items()
    with pytest.raises(ModelError, match=f"class-forest needs .*{field}='?{value}"):
        build("class-forest", SIGNATURE, **wrong)
