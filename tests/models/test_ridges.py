"""The mean of several ridges: who they are, and that it is their mean, each on the state of its own."""

import pytest
import torch

from models.catalog import build
from models.contract import Batch, ModelError, Signature
from models.ridges import RidgesConfig

SIGNATURE = Signature("forecast", channels=1, horizon=3, quantiles=(0.1, 0.5, 0.9))
REMEMBERING = {"level_window": 50, "error_rate": 0.09, "error_keys": 4}


def batch(steps: int = 80) -> Batch:
    generator = torch.Generator().manual_seed(0)
    t = torch.arange(steps + SIGNATURE.horizon)
    noise = torch.randn(4, steps + SIGNATURE.horizon, generator=generator)
    y = 5 + torch.sin(t / 3 + torch.arange(4)[:, None]) + 0.2 * noise
    target = y[:, 1:].unfold(1, SIGNATURE.horizon, 1)[:, :steps]
    x = y[:, :steps, None]
    before = torch.tensor([[40.0, 5.0, 1.0]]).expand(4, 3)
    return Batch(x, torch.ones_like(x), target, torch.ones(4), before)


def test_members_look_back_two_thirds_as_far_and_learn_a_third_as_fast_as_those_before() -> None:
    members = RidgesConfig(lags=720, lookbacks=3, rates=2, level_window=9, error_rate=0.3, penalty=2.0).members
    assert [(member.lags, round(member.error_rate, 9)) for member in members] == [
        (720, 0.3), (720, 0.1), (480, 0.3), (480, 0.1), (320, 0.3), (320, 0.1),
    ]  # fmt: skip
    assert {(member.penalty, member.level_window) for member in members} == {(2.0, 9)}
    assert [member.lags for member in RidgesConfig(lags=3, lookbacks=5).members] == [3, 2]


def test_the_forecast_is_the_mean_of_what_the_ridges_say_alone() -> None:
    together = build("ridges", SIGNATURE, lags=9, lookbacks=2, rates=2, **REMEMBERING)
    together.fit([batch()])
    x, mask = batch().x, batch().mask
    found, state = together.scan(x, mask, together.initial_state(4))
    alone, states = [], {}
    for lags, rate in ((9, 0.09), (9, 0.03), (6, 0.09), (6, 0.03)):
        ridge = build("ridge", SIGNATURE, lags=lags, **REMEMBERING | {"error_rate": rate})
        ridge.fit([batch()])
        prediction, after = ridge.scan(x, mask, ridge.initial_state(4))
        states |= {f"member{len(alone)}.{name}": part for name, part in after.items()}
        alone.append(prediction)
    assert not torch.allclose(alone[0], alone[2], atol=1e-3)
    torch.testing.assert_close(found, torch.stack(alone).mean(0))
    assert list(state) == list(states)
    for name, part in states.items():
        torch.testing.assert_close(state[name], part)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lookbacks": 0}, "lookbacks and rates are at least 1, got 0 and 1"),
        ({"rates": 0}, "lookbacks and rates are at least 1, got 3 and 0"),
        ({"rates": 2}, "rates=2 needs an error_rate"),
        ({"lags": 1}, "at least 2 lags"),
    ],
)
def test_what_makes_no_sense_is_refused(settings, message) -> None:
    with pytest.raises(ModelError, match=message):
        build("ridges", SIGNATURE, **settings)
