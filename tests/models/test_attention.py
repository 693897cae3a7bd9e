"""Attention streams with a bounded buffer: its scan, pieces of it, its steps and a dense computation are the same."""

import math
from itertools import pairwise

import pytest
import torch
from graphs import graph_apart
from torch import Tensor, nn

from models.attention import AttentionBackbone, AttentionConfig, PatchBackbone, PatchConfig, SlidingWindowAttention
from models.contract import ModelError, concat

WIDTH, D, HEADS = 3, 8, 2
BACKBONES = {
    "attention": lambda: AttentionBackbone(WIDTH, AttentionConfig(D, HEADS, blocks=2, window=5, persistent=2)),
    "nothing persistent": lambda: AttentionBackbone(WIDTH, AttentionConfig(D, HEADS, blocks=1, window=5)),
    "window of 1": lambda: AttentionBackbone(WIDTH, AttentionConfig(D, HEADS, blocks=1, window=1)),
    "longer than the stream": lambda: AttentionBackbone(WIDTH, AttentionConfig(D, HEADS, blocks=1, window=200)),
    "patches": lambda: PatchBackbone(WIDTH, PatchConfig(D, HEADS, blocks=2, patch=3, patches=4)),
    "one patch": lambda: PatchBackbone(WIDTH, PatchConfig(D, HEADS, blocks=1, patch=4, patches=1, persistent=1)),
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def build(name: str) -> nn.Module:
    return BACKBONES[name]().double().eval()


def apart(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max().clamp(min=1)).item()


def steps_of(net: nn.Module, e: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    outs = []
    for t in range(e.shape[1]):
        out, state = net.step(e[:, t], state)
        outs.append(out)
    return torch.stack(outs, 1), state


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("steps", [1, 2, 47])
def test_a_scan_its_pieces_and_its_steps_are_the_same(name, steps):
    net = build(name)
    e = torch.randn(3, steps, WIDTH, dtype=torch.float64)
    with torch.no_grad():
        whole, after = net.scan(e, net.initial_state(3))
        by_step, state = steps_of(net, e, net.initial_state(3))
        assert apart(by_step, whole) < 1e-8
        for ends in ([1], [3], [16, 17], [5, 11, 40], [steps - 1]):
            cuts = [0, *(end for end in ends if 0 < end < steps), steps]
            state, pieces = net.initial_state(3), []
            for begin, end in pairwise(cuts):
                out, state = net.scan(e[:, begin:end], state)
                pieces.append(out)
            assert apart(torch.cat(pieces, 1), whole) < 1e-8
            assert all(apart(state[key], after[key]) < 1e-8 for key in after)
        _, state = steps_of(net, e, net.initial_state(3))
    assert list(state) == list(after) == list(net.initial_state(1))
    assert all(apart(state[key], after[key]) < 1e-8 for key in after)


@pytest.mark.parametrize(("window", "dilation", "persistent", "rows"), [(5, 1, 0, 1), (4, 3, 2, 1), (7, 1, 3, 2)])
def test_attention_is_a_masked_softmax_over_all_pairs(window, dilation, persistent, rows):
    """Dense, head by head and pair by pair, from the definition."""
    layer = SlidingWindowAttention(D, HEADS, window, dilation=dilation, persistent=persistent, rows=rows).double()
    nn.init.normal_(layer.bias)
    steps, head = 40, D // HEADS
    x = torch.randn(1, steps, rows, D, dtype=torch.float64)
    with torch.no_grad():
        found, _ = layer.scan(x if rows > 1 else x[:, :, 0], layer.initial_state(1))
        w_key, w_value = layer.to_key_value.weight.split(D)
        mixed = torch.zeros(steps, D, dtype=torch.float64)
        for h in range(HEADS):
            own = slice(h * head, (h + 1) * head)
            for t in range(steps):
                query = layer.to_query.weight[own] @ x[0, t, -1]
                scores, values = [], []
                for token in layer.persistent if persistent else ():
                    scores.append(query @ (w_key[own] @ token) / math.sqrt(head))
                    values.append(w_value[own] @ token)
                for s in range(t + 1):
                    age, rest = divmod(t - s, dilation)
                    if rest or age >= window:
                        continue
                    for row in range(rows):
                        score = query @ (w_key[own] @ x[0, s, row]) / math.sqrt(head)
                        scores.append(score + layer.bias[h, row, age])
                        values.append(w_value[own] @ x[0, s, row])
                mixed[t, own] = torch.stack(scores).softmax(0) @ torch.stack(values)
        assert apart(found[0], mixed @ layer.to_output.weight.T) < 1e-12


@pytest.mark.parametrize("name", BACKBONES)
def test_no_output_knows_a_later_observation(name):
    net = build(name).float()
    e = torch.randn(2, 60, WIDTH)
    with torch.no_grad():
        whole, _ = net.scan(e, net.initial_state(2))
        for at in (1, 6, 31, 59):
            other = torch.cat([e[:, :at], 100 * torch.randn_like(e[:, at:])], 1)
            changed, _ = net.scan(other, net.initial_state(2))
            assert torch.equal(changed[:, :at], whole[:, :at])
            assert not torch.equal(changed[:, at], whole[:, at])


@pytest.mark.parametrize(
    ("net", "sees"),
    [
        (AttentionBackbone(WIDTH, AttentionConfig(D, HEADS, blocks=1, window=6)), range(6)),
        (AttentionBackbone(WIDTH, AttentionConfig(D, HEADS, blocks=2, window=6)), range(11)),
        (PatchBackbone(WIDTH, PatchConfig(D, HEADS, blocks=1, patch=4, patches=3)), range(12)),
        (PatchBackbone(WIDTH, PatchConfig(D, HEADS, blocks=2, patch=4, patches=3)), range(20)),
    ],
)
def test_a_token_is_seen_while_it_is_in_the_window_and_never_after(net, sees):
    """To the bit, and by the derivative; through the state as well."""
    e = torch.randn(1, 40, WIDTH)
    other = e.clone()
    other[:, 10] += 1.0
    for form in (net.scan, lambda x, state: steps_of(net, x, state)):
        with torch.no_grad():
            before, after = form(e, net.initial_state(1))
            changed, after_changed = form(other, net.initial_state(1))
        differs = [t - 10 for t in range(40) if not torch.equal(before[:, t], changed[:, t])]
        assert differs == list(sees)
        assert all(torch.equal(after[key], after_changed[key]) for key in after)


def test_a_dilated_window_sees_every_pth_token():
    layer = SlidingWindowAttention(D, HEADS, 4, dilation=3)
    x = torch.randn(1, 30, D, requires_grad=True)
    out, _ = layer.scan(x, layer.initial_state(1))
    (slope,) = torch.autograd.grad(out[0, 20].square().sum(), x)
    assert slope[0].abs().amax(-1).nonzero()[:, 0].tolist() == [11, 14, 17, 20]


@pytest.mark.parametrize("name", BACKBONES)
def test_the_state_does_not_grow(name):
    net = build(name)
    start = net.initial_state(2)
    with torch.no_grad():
        _, state = net.scan(torch.randn(2, 700, WIDTH, dtype=torch.float64), start)
        _, state = net.step(torch.randn(2, WIDTH, dtype=torch.float64), state)
    assert {key: value.shape for key, value in state.items()} == {key: value.shape for key, value in start.items()}
    assert all(value.isfinite().all() for value in state.values())
    assert all((value <= 199).all() for key, value in state.items() if key.endswith("filled"))


@pytest.mark.parametrize("name", BACKBONES)
def test_the_gradients_of_a_scan_are_those_of_its_steps_and_every_parameter_learns(name):
    net = build(name)
    e = torch.randn(2, 17, WIDTH, dtype=torch.float64)
    weights = torch.randn(2, 17, D, dtype=torch.float64)
    scanned, _ = net.scan(e, net.initial_state(2))
    fast = torch.autograd.grad((scanned * weights).sum(), list(net.parameters()))
    stepped, _ = steps_of(net, e, net.initial_state(2))
    slow = torch.autograd.grad((stepped * weights).sum(), list(net.parameters()))
    alone = name in ("window of 1",)  # a softmax over one token has no say
    for (key, _), a, b in zip(net.named_parameters(), fast, slow, strict=True):
        assert apart(a, b) < 1e-8, key
        assert a.abs().max() > 0 or (alone and key.endswith(("to_query.weight", "bias"))), key


def test_every_token_sees_the_persistent_ones():
    net = AttentionBackbone(WIDTH, AttentionConfig(D, HEADS, blocks=1, window=3, persistent=2)).double()
    e = torch.randn(1, 50, WIDTH, dtype=torch.float64)
    out, _ = net.scan(e, net.initial_state(1))
    tokens = net.layers[0].attention.persistent
    for t in (0, 2, 49):
        (slope,) = torch.autograd.grad(out[0, t, 0], tokens, retain_graph=True)
        assert (slope.abs().amax(-1) > 0).all()


@pytest.mark.parametrize("form", ["step", "scan"])
@pytest.mark.parametrize("name", ["attention", "patches"])
def test_what_is_missing_is_a_token_like_any_other_and_nan_leaves_no_trace(name, form):
    net = build(name)
    e, present = torch.randn(2, 12, WIDTH, dtype=torch.float64), torch.ones(2, 12)
    present[0, 3:6] = 0
    e[0, 3:6] = 0.0  # what NaN is taken for
    filled = e.clone()
    filled[0, 3:6] = math.nan

    def run(x: Tensor, there: Tensor) -> dict[str, Tensor]:
        if form == "scan":
            return net.scan(x, net.initial_state(2), there)[1]
        state = net.initial_state(2)
        for t in range(12):
            _, state = net.step(x[:, t], state, there[:, t])
        return state

    with torch.no_grad():
        after, with_nan, observed = run(e, present), run(filled, present), run(e, torch.ones(2, 12))
    assert all(torch.equal(after[key], with_nan[key]) for key in after)
    assert all(torch.equal(after[key], observed[key]) for key in after)


def test_series_joined_on_the_way_go_on_as_they_were():
    net = build("patches")
    states, rests, expected = [], [], []
    for begun in (1, 5, 20):
        e = torch.randn(1, begun + 10, WIDTH, dtype=torch.float64)
        states.append(net.scan(e[:, :begun], net.initial_state(1))[1])
        rests.append(e[:, begun:])
        expected.append(net.scan(e, net.initial_state(1))[0][:, begun:])
    joined, _ = net.scan(torch.cat(rests), concat(states))
    assert apart(joined, torch.cat(expected)) < 1e-12


@pytest.mark.parametrize("name", ["attention", "patches"])
def test_under_autocast_the_state_stays_single_precision(name):
    net = BACKBONES[name]().train()
    e = torch.randn(2, 30, WIDTH)
    exact, _ = net.scan(e, net.initial_state(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, state = net.scan(e, net.initial_state(2))
        _, state = net.step(e[:, 0], state)
    assert all(value.dtype == torch.float32 for value in state.values())
    assert (out - exact).abs().max() < 0.1
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize(
    "make",
    [
        lambda width: AttentionBackbone(width, AttentionConfig(D, HEADS, blocks=2, window=5, persistent=2)),
        lambda width: PatchBackbone(width, PatchConfig(D, HEADS, blocks=2, patch=3, patches=4)),
    ],
)
def test_a_hundred_steps_of_the_graph_are_those_of_the_network(make, tmp_path):
    assert graph_apart(make, tmp_path / "bundle") < 1e-4


@pytest.mark.parametrize(
    ("config", "fields", "message"),
    [
        (AttentionConfig, {"heads": 3}, "heads must divide the width: 3 does not divide 64"),
        (AttentionConfig, {"width": 0}, "width is at least 1, not 0"),
        (AttentionConfig, {"blocks": 0}, "blocks is at least 1"),
        (AttentionConfig, {"window": 0}, "window is at least 1 token, not 0"),
        (AttentionConfig, {"persistent": -1}, "persistent are 0 or more"),
        (AttentionConfig, {"dropout": 1.0}, r"dropout lies in \[0, 1\)"),
        (PatchConfig, {"feed_forward": -1}, "feed_forward and persistent are 0 or more"),
        (PatchConfig, {"patch": 0}, "patch and patches are at least 1, got 0 and 21"),
        (PatchConfig, {"patches": 0}, "patch and patches are at least 1, got 16 and 0"),
    ],
)
def test_a_configuration_out_of_range_is_refused(config, fields, message):
    with pytest.raises(ModelError, match=message):
        config(**fields)


def test_the_state_of_another_window_is_refused_and_what_differs_named():
    net, other = (AttentionBackbone(WIDTH, AttentionConfig(D, HEADS, window=window)) for window in (5, 6))
    for form, e in (("step", torch.zeros(1, WIDTH)), ("scan", torch.zeros(1, 5, WIDTH))):
        with pytest.raises(ModelError, match=r"block0.keys is \(2, 1, 5, 4\), not \(2, 1, 4, 4\)"):
            getattr(net, form)(e, other.initial_state(1))
