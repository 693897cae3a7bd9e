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


def test_with_a_period_one_more_ridge_looks_back_over_several_and_shares_its_coefficients() -> None:
    settings = {"lags": 24, "lookbacks": 2, "rates": 2, "level_window": 9, "error_rate": 0.3}
    members = RidgesConfig(period=24, periods=4, recent=6, **settings).members
    assert [(member.lags, member.period, member.recent) for member in members[::2]] == [
        (24, 0, 0),
        (16, 0, 0),
        (96, 24, 6),
    ]
    assert [round(member.error_rate, 9) for member in members] == [0.3, 0.1] * 3


def test_the_forecast_is_the_mean_of_what_the_ridges_say_alone() -> None:
    together = build("ridges", SIGNATURE, lags=9, lookbacks=2, rates=2, period=4, periods=3, recent=1, **REMEMBERING)
    together.fit([batch()])
    x, mask = batch().x, batch().mask
    found, state = together.scan(x, mask, together.initial_state(4))
    alone, states = [], {}
    shared = {"period": 4, "recent": 1}
    for lags, more in ((9, {}), (6, {}), (12, shared)):
        for rate in (0.09, 0.03):
            ridge = build("ridge", SIGNATURE, lags=lags, **REMEMBERING | more | {"error_rate": rate})
            ridge.fit([batch()])
            prediction, after = ridge.scan(x, mask, ridge.initial_state(4))
            states |= {f"member{len(alone)}.{name}": part for name, part in after.items()}
            alone.append(prediction)
    assert not any(torch.allclose(alone[0], other, atol=1e-3) for other in (alone[2], alone[4]))
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
        ({"error_rate": 0.1}, "error_rate needs a level_window"),
        ({"period": -1}, "period is 0 or more, .* got period=-1"),
        ({"recent": 2}, "recent 0 without a period, .* recent=2"),
        ({"period": 4, "periods": 1}, "periods at least 2, .* periods=1"),
        ({"period": 4, "recent": 13}, "recent at most lags .* got lags=12, period=4 and recent=13"),
    ],
)
def test_what_makes_no_sense_is_refused(settings, message) -> None:
    with pytest.raises(ModelError, match=message):
        build("ridges", SIGNATURE, **settings)
