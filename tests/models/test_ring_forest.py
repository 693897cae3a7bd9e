"""Forests and a memory for a ring of sensors. The contract suite asks for parity and causality of two classes."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from forecasting.export import export_bundle
from forecasting.runtime import load_bundle
from models.catalog import build
from models.contract import Batch, ModelError, Signature
from models.ring_forest import RingForest
from tests.models.test_contract import Example, check_graph, check_missing, check_parity, task_of

SENSORS = 8
SIGNATURE = Signature("classify", channels=SENSORS, classes=4)  # 0 and 1 and 3 are gestures, 2 is none
PLACES = {0: (1, 2), 1: (5, 5), 3: (3, 7)}  # the sensors that a gesture is strong at
NONE = 2
SMALL = {"window": 20, "rows": 900, "trees": 30, "turn": 0, "column_share": 0.2}


def recordings(seed: int, gestures: list[int], turned: int = 0, strength: float = 5.0) -> tuple[Tensor, Tensor]:
    """For each none, the gesture, none, the gesture, 40 steps each; x (B, 160, 8) and labels (B, 160)."""
    generator = torch.Generator().manual_seed(seed)
    made = torch.tensor(gestures)[:, None].expand(-1, 160)
    label = torch.where((torch.arange(160) // 40) % 2 == 1, made, NONE)
    power = torch.ones(len(gestures), 160, SENSORS)
    for row, gesture in enumerate(gestures):
        for place in PLACES[gesture]:
            power[row, label[row] == gesture, (place + turned) % SENSORS] += strength
    return power * torch.randn(power.shape, generator=generator), label


def learned(seed: int = 1, gestures: tuple[int, ...] = (0, 1, 3)) -> Batch:
    x, label = recordings(seed, list(gestures) * 4)
    return Batch(x, torch.ones_like(x), label, torch.ones(len(x)))


@cache
def trained(batch: Batch | None = None, **settings: object) -> RingForest:
    """One fit for all who ask for the same: it does not change by being used."""
    torch.manual_seed(0)
    model = build("ring-forest", SIGNATURE, **(SMALL | settings))
    assert isinstance(model, RingForest)
    model.fit([learned() if batch is None else batch])
    return model.eval()


def said(model: RingForest, x: Tensor) -> Tensor:
    return model.scan(x, torch.ones_like(x), model.initial_state(len(x)))[0]


def settled(right: Tensor) -> float:
    """Share of what was right, without the half windows after each change."""
    return float(right.unflatten(1, (4, 40))[:, :, 20:].float().mean())


def test_gestures_and_none_are_told_apart_on_new_recordings():
    x, label = recordings(2, [0, 1, 3])
    assert settled(said(trained(), x).argmax(-1) == label) > 0.95


def test_gestures_of_the_same_powers_are_told_apart_by_what_two_sensors_share():
    def shared(seed: int) -> tuple[Tensor, Tensor]:
        """One muscle under sensors 2 and 3, which see it alike in gesture 0 and with opposite signs in gesture 3."""
        x, label = recordings(seed, [0, 3] * 6, strength=0.0)
        muscle = 5 * torch.randn(label.shape, generator=torch.Generator().manual_seed(seed)) * (label != NONE)
        x[..., 2] += muscle
        x[..., 3] += torch.where(label == 0, muscle, -muscle)
        return x, label

    x, label = shared(1)
    model = trained(Batch(x, torch.ones_like(x), label, torch.ones(len(x))))
    x, label = shared(2)
    assert settled(said(model, x).argmax(-1) == label) > 0.95


def test_work_is_told_from_rest_whichever_way_the_ring_sits():
    x, label = recordings(2, [0, 1, 3], turned=3)
    found = said(trained(), x)[..., NONE] > 0.5
    assert settled(found == (label == NONE)) > 0.9


def test_a_ring_turned_by_two_sensors_is_read_by_a_model_that_has_seen_it_turned():
    pairs = learned(1, (0, 3))
    x, label = recordings(2, [0, 3], turned=2)
    upright, turning = (settled(said(trained(pairs, turn=turn), x).argmax(-1) == label) for turn in (0, 2))
    assert turning > 0.9
    assert turning > upright + 0.1


def test_a_memory_takes_a_weak_gesture_for_the_one_that_was_made_before_the_rest():
    clear, _ = recordings(3, [1] * 8)
    weak, label = recordings(4, [0] * 8, strength=1.2)
    x, there = torch.cat([clear, weak], 1), label != NONE
    lasting, fading = (said(trained(memory=memory), x)[:, 160:] for memory in (4000, 0))
    assert lasting[there][:, 1].mean() > fading[there][:, 1].mean() + 0.1
    # Whether there is a gesture is decided by the present alone.
    torch.testing.assert_close(lasting[..., NONE], fading[..., NONE])


def test_without_a_memory_what_came_before_a_rest_matters_little():
    now = recordings(5, [0, 1, 3] * 4, strength=1.2)[0]
    befores = [torch.cat([recordings(seed, [made] * 12)[0], now], 1) for seed, made in ((3, 1), (6, 3))]

    def difference(memory: int) -> float:
        first, second = (said(trained(memory=memory), x)[:, 200:] for x in befores)
        return float((first - second).abs().mean())

    assert difference(0) < 0.2 * difference(4000)


def test_what_is_said_of_a_gesture_adds_up_while_it_lasts_and_fades_at_rest():
    weak, _ = recordings(4, [0] * 16, strength=2.0)
    model, state, sizes = trained(), None, []
    for part in weak.split(40, 1):
        _, state = model.scan(part, torch.ones_like(part), state or model.initial_state(16))
        sizes.append(state["said"])
    for rest, work in ((0, 1), (2, 3)):
        assert sizes[work][:, 0].mean() > 0.5
        assert sizes[work].argmax(-1).tolist() == [0] * 16
        assert sizes[rest].abs().mean() < 0.2 * sizes[work].abs().mean()


def test_a_gesture_that_was_never_shown_is_never_said():
    found = said(trained(learned(1, (0, 1))), recordings(2, [3, 0, 1])[0])
    assert not found[..., 3].any()
    found = said(trained(learned(1, (1,))), recordings(2, [1, 0])[0])
    assert not found[..., [0, 3]].any()
    assert found[0, 40:80, 1].max() > 0.9


EXAMPLE = Example(2, 40, 0.4, 3, "noise", 1.0, 1.0, 0.2, (8, 5), 7.0)


def test_steps_scan_and_graphs_of_several_gestures_agree(tmp_path):
    model = trained()
    check_parity(model, EXAMPLE, 1e-4)
    check_missing(model, EXAMPLE)
    export_bundle(
        model,
        replace(task_of(SIGNATURE), labels=tuple("abcd")),
        tmp_path / "b",
        name="ring-forest",
        config={},
        training={},
        metrics=[],
    )
    check_graph(model, load_bundle(tmp_path / "b"), EXAMPLE, 1e-4)


def test_two_fits_with_one_seed_are_the_same():
    x, _ = recordings(3, [0, 1])
    assert torch.equal(said(trained.__wrapped__(), x), said(trained(), x))


def test_nothing_to_tell_apart_is_said():
    batch = learned()
    with pytest.raises(ModelError, match="ring-forest found no position with a label"):
        trained(batch._replace(target=torch.full_like(batch.target, -1)))
    with pytest.raises(ModelError, match="two classes to tell apart"):
        trained(batch._replace(target=torch.full_like(batch.target, NONE)))


@pytest.mark.parametrize("wrong", [{"window": 4}, {"rows": 0}, {"turn": -1}, {"memory": -1}])
def test_settings_out_of_range_are_named(wrong):
    ((field, value),) = wrong.items()
    with pytest.raises(ModelError, match=f"ring-forest needs .*{field}={value}"):
        build("ring-forest", SIGNATURE, **wrong)
