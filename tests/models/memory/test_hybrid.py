"""Titans' MAC, MAG and MAL: their forms agree, and what they compute is what the equations say."""

import math
from functools import partial

import pytest
import torch
from memory_cases import assert_no_series_sees_another, distance, states_apart
from torch import Tensor
from torch.nn.functional import normalize, silu

from models.contract import ModelError, State, concat
from models.memory.atlas import ATLAS, OMEGA
from models.memory.backbone import MemoryBackbone
from models.memory.core import NORM_EPS
from models.memory.hybrid import ContextConfig, MacBackbone, MagBackbone, MalBackbone, WindowConfig
from models.memory.miras import YAAD
from models.memory.titans import DELTANET, LMM

WIDTH, D, HEADS = 3, 8, 2
BACKBONES = {
    "mac": (MacBackbone, ContextConfig),
    "mag": (MagBackbone, partial(WindowConfig, window=5)),
    "mal": (MalBackbone, partial(WindowConfig, window=5)),
}
CASES = [(name, LMM, chunk) for name in BACKBONES for chunk in (1, 4, 16, 64)] + [
    (name, inner, 4) for name in BACKBONES for inner in (DELTANET, OMEGA, ATLAS, YAAD)
]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def build(name: str, inner=LMM, **fields: object) -> MemoryBackbone:
    backbone, config = BACKBONES[name]
    fields = {"width": D, "heads": HEADS, "blocks": 2, "chunk": 4, "persistent": 2} | fields
    net = backbone(WIDTH, config(**fields), inner).double().eval()
    with torch.no_grad():  # gates that depend on the input more than those of a new network
        for layer in net.layers:
            layer.memory.to_gates.weight.mul_(10)
    return net


def stream(steps: int, batch: int = 3) -> tuple[Tensor, Tensor]:
    present = (torch.rand(batch, steps) > 0.2).double()
    return torch.randn(batch, steps, WIDTH, dtype=torch.float64), present


def steps_of(net: MemoryBackbone, e: Tensor, present: Tensor, state: State) -> tuple[Tensor, State]:
    outs = []
    for t in range(e.shape[1]):
        out, state = net.step(e[:, t], state, present[:, t])
        outs.append(out)
    return torch.stack(outs, 1), state


# --- one computation in every form ----------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "inner", "chunk"), CASES)
def test_a_scan_its_pieces_and_its_steps_are_the_same(name, inner, chunk):
    net, steps = build(name, inner, chunk=chunk), 70 if chunk == 64 else 22
    e, present = stream(steps)
    with torch.no_grad():
        whole, after = net.scan(e, net.initial_state(3), present)
        for cut in (1, 9, 16, steps - 2):
            first, state = net.scan(e[:, :cut], net.initial_state(3), present[:, :cut])
            second, state = net.scan(e[:, cut:], state, present[:, cut:])
            assert distance(torch.cat([first, second], 1), whole) < 1e-8
            assert states_apart(state, after) < 1e-8
        by_step, state = steps_of(net, e, present, net.initial_state(3))
        assert distance(by_step, whole) < 1e-8
        assert states_apart(state, after) < 1e-8
    start = net.initial_state(3)
    assert {key: value.shape for key, value in after.items()} == {key: value.shape for key, value in start.items()}


@pytest.mark.parametrize(("name", "inner", "chunk"), CASES)
def test_the_gradients_of_a_scan_are_those_of_its_steps_and_every_parameter_learns(name, inner, chunk):
    net, steps = build(name, inner, chunk=chunk), max(11, chunk + 3)  # past a border
    e, present = stream(steps)
    weights = torch.randn(3, steps, D, dtype=torch.float64)
    scanned, _ = net.scan(e, net.initial_state(3), present)
    fast = torch.autograd.grad((scanned * weights).sum(), list(net.parameters()))
    stepped, _ = steps_of(net, e, present, net.initial_state(3))
    slow = torch.autograd.grad((stepped * weights).sum(), list(net.parameters()))
    for (key, _), a, b in zip(net.named_parameters(), fast, slow, strict=True):
        assert distance(a, b) < 1e-8, key
        assert a.abs().max() > 0, key


@pytest.mark.parametrize("name", BACKBONES)
def test_no_output_knows_a_later_observation(name):
    net = build(name)
    e, present = stream(13)
    with torch.no_grad():
        whole, _ = net.scan(e, net.initial_state(3), present)
        for at in (1, 4, 6, 12):
            other = torch.cat([e[:, :at], 10 * torch.randn_like(e[:, at:])], 1)
            changed, _ = net.scan(other, net.initial_state(3), present)
            assert torch.equal(changed[:, :at], whole[:, :at])
            assert not torch.equal(changed[:, at], whole[:, at])


@pytest.mark.parametrize("name", BACKBONES)
def test_no_series_sees_another(name):
    net = build(name)
    assert_no_series_sees_another(net, *stream(13))


@pytest.mark.parametrize("name", BACKBONES)
def test_series_joined_at_different_places_of_a_segment_go_on_as_they_were(name):
    net = build(name)
    states, rests, expected, ends = [], [], [], []
    for begun in (3, 8, 5, 11):
        e = torch.randn(1, begun + 10, WIDTH, dtype=torch.float64)
        states.append(net.scan(e[:, :begun], net.initial_state(1))[1])
        rests.append(e[:, begun:])
        out, after = net.scan(e, net.initial_state(1))
        expected.append(out[:, begun:])
        ends.append(after)
    for form in (net.scan, lambda e, state: steps_of(net, e, torch.ones_like(e[..., 0]), state)):
        with torch.no_grad():
            joined, after = form(torch.cat(rests), concat(states))
        assert distance(joined, torch.cat(expected)) < 1e-10
        assert states_apart(after, concat(ends)) < 1e-10


# --- the equations --------------------------------------------------------------------------------------------


def rms(x: Tensor) -> Tensor:
    return x / x.square().mean(-1, keepdim=True).sqrt()


def test_a_segment_of_mac_is_what_the_equations_say():
    """Written out for one series and one head: a plain loop over tokens, the memory at a segment's start put aside."""
    layer = build("mac", heads=1, kernel=1, feed_forward=0, blocks=1).layers[0]
    memory, attention = layer.memory, layer.attention
    steps, segment = 11, 4
    x, present = torch.randn(1, steps, D, dtype=torch.float64), torch.ones(1, steps, dtype=torch.float64)
    with torch.no_grad():
        found, _, _ = layer.scan(x, present, layer.initial_state(1))
        w_key, w_value = attention.to_key_value.weight.split(D)
        state, outs, rows = memory.initial_state(1), [], []
        for t in range(steps):
            if t % segment == 0:
                first, second, rows = state["memory0"][0, 0].clone(), state["memory1"][0, 0].clone(), []
            # h_t = M_start(x_t), through the memory's own norm, gate and projection
            query = normalize(silu(layer.to_query(x[0, t])), dim=-1)
            z = silu(query @ first) @ second
            answer = query + (z - z.mean()) / (z.var(correction=0) + NORM_EPS).sqrt()
            normed = answer / (answer.square().mean() + 1e-6).sqrt() * memory.gain[0]
            recalled = memory.to_output(normed * memory.to_output_gate(x[0, t]).sigmoid())
            rows.append((recalled, x[0, t]))
            # attention of x_t to p, and to h and x of the segment
            asks = attention.to_query(x[0, t])
            scores = [asks @ (w_key @ token) / math.sqrt(D) for token in attention.persistent]
            values = [w_value @ token for token in attention.persistent]
            for age, pair in enumerate(reversed(rows)):
                for place, token in enumerate(pair):
                    scores.append(asks @ (w_key @ token) / math.sqrt(D) + attention.bias[0, place, age])
                    values.append(w_value @ token)
            y = rms(x[0, t] + attention.to_output(torch.stack(scores).softmax(0) @ torch.stack(values)))
            answer, state, _ = memory.step(y[None], present[:, t], state)
            outs.append(y.sigmoid() * rms(answer[0]))
    assert distance(found[0], torch.stack(outs)) < 1e-10


def test_mac_retrieves_from_the_memory_as_it_was_when_the_segment_began(monkeypatch):
    layer = build("mac", kernel=1, blocks=1).layers[0]
    retrieve = layer.memory.retrieve

    def recalled(x: Tensor) -> Tensor:
        seen: list[Tensor] = []

        def recording(*arguments: Tensor) -> Tensor:
            seen.append(retrieve(*arguments))
            return seen[-1]

        monkeypatch.setattr(layer.memory, "retrieve", recording)
        with torch.no_grad():
            layer.scan(x, torch.ones_like(x[..., 0]), layer.initial_state(1))
        return torch.cat(seen, 1)

    x = torch.randn(1, 12, D, dtype=torch.float64)
    other = x.clone()
    other[:, 4] = torch.randn(D)  # the first token of the second segment
    before, after = recalled(x), recalled(other)
    assert torch.equal(before[:, :4], after[:, :4])
    assert torch.equal(before[:, 5:8], after[:, 5:8])  # the rest of its segment
    assert (before[:, 8:] - after[:, 8:]).abs().amax((0, 2)).min() > 1e-6  # all of the next


def test_a_segment_of_mac_hears_of_earlier_ones_from_the_memory_alone():
    """Where nothing is present the memory does not learn, and nothing of a segment comes to the next."""
    net = build("mac", kernel=1, blocks=2)
    e, other = stream(12)[0], stream(12)[0]
    other[:, 4:] = e[:, 4:]
    absent, there = torch.zeros(3, 12, dtype=torch.float64), torch.ones(3, 12, dtype=torch.float64)
    with torch.no_grad():
        for form in (net.scan, lambda e, state, present: steps_of(net, e, present, state)):
            assert torch.equal(
                form(e, net.initial_state(3), absent)[0][:, 4:], form(other, net.initial_state(3), absent)[0][:, 4:]
            )
        learned = (net.scan(x, net.initial_state(3), there)[0][:, 4:] for x in (e, other))
        assert distance(*learned) > 1e-3


@pytest.mark.parametrize("name", ["mag", "mal"])
def test_what_leaves_the_window_stays_in_the_memory_alone(name):
    net = build(name, kernel=1, blocks=1)
    e, other = stream(12)[0], stream(12)[0]
    other[:, 1:] = e[:, 1:]
    absent, there = torch.zeros(3, 12, dtype=torch.float64), torch.ones(3, 12, dtype=torch.float64)
    with torch.no_grad():
        a, b = (net.scan(x, net.initial_state(3), absent)[0] for x in (e, other))
        assert (a[:, :5] - b[:, :5]).abs().amax((0, 2)).min() > 1e-6
        assert torch.equal(a[:, 5:], b[:, 5:])
        a, b = (net.scan(x, net.initial_state(3), there)[0] for x in (e, other))
        assert (a[:, 5:] - b[:, 5:]).abs().amax((0, 2)).min() > 1e-9


@pytest.mark.parametrize("name", ["mag", "mal"])
def test_the_two_branches_are_joined_as_the_equations_say(name):
    layer = build(name, blocks=1).layers[0]
    x, present = torch.randn(2, 9, D, dtype=torch.float64), torch.ones(2, 9, dtype=torch.float64)
    with torch.no_grad():
        torch.nn.init.uniform_(layer.norm.weight)
        found, _, _ = layer.scan(x, present, layer.initial_state(2))
        # The memory reads p before x.
        tokens = layer.attention.persistent.expand(2, -1, -1)
        both = torch.cat([tokens, x], 1)
        answer, _, _ = layer.memory.scan(both, torch.ones_like(both[..., 0]), layer.memory.initial_state(2))
        answer = answer[:, 2:]
        if name == "mag":
            torch.nn.init.uniform_(layer.answer_norm.weight)
            found, _, _ = layer.scan(x, present, layer.initial_state(2))
            y, _ = layer.attention.scan(x, layer.attention.initial_state(2))
            expected = (rms(y) * layer.norm.weight).sigmoid() * (rms(answer) * layer.answer_norm.weight)
        else:
            expected, _ = layer.attention.scan(rms(answer) * layer.norm.weight, layer.attention.initial_state(2))
    assert distance(found, expected) < 1e-10


@pytest.mark.parametrize("name", BACKBONES)
def test_persistent_tokens_are_seen_from_every_segment_and_can_be_left_out(name):
    net = build(name, blocks=1)
    e, present = stream(30)
    tokens = net.layers[0].attention.persistent
    for t in (0, 15, 29):
        out, _ = net.scan(e, net.initial_state(3), present)
        (slope,) = torch.autograd.grad(out[0, t].sum(), tokens)
        assert (slope.abs().amax(-1) > 1e-9).all()
    without = build(name, persistent=0, blocks=1)
    assert not any("persistent" in key for key, _ in without.named_parameters())
    out, _ = without.scan(e, without.initial_state(3), present)
    by_step, _ = steps_of(without, e, present, without.initial_state(3))
    assert distance(by_step, out) < 1e-10


@pytest.mark.parametrize("name", BACKBONES)
def test_what_is_not_present_passes_the_memory_by_and_goes_through_attention(name):
    net = build(name, blocks=1)
    e, there = stream(3)[0], torch.ones(3, 3, dtype=torch.float64)
    with torch.no_grad():
        _, state = net.scan(e[:, :2], net.initial_state(3), there[:, :2])
        _, absent = net.step(e[:, 2], state, 0 * there[:, 2])
        _, present = net.step(e[:, 2], state, there[:, 2])
        _, of_nan = net.step(math.nan * e[:, 2], state, 0 * there[:, 2])
    for key in (key for key in state if ".memory.memory" in key or ".memory.momentum" in key):
        assert distance(absent[key], state[key]) < 1e-14, key
        assert not torch.equal(present[key], state[key]), key
    buffers = [key for key in state if ".attention." in key]
    for key in buffers:
        assert torch.equal(absent[key], present[key]) or name == "mal", key  # the answer is what attention sees there
    assert any(not torch.equal(absent[key], state[key]) for key in buffers)
    assert all(value.isfinite().all() for value in of_nan.values())


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", BACKBONES)
def test_under_autocast_the_state_stays_single_precision_and_gradients_finite(name, half):
    net = build(name, chunk=8).float().train()
    e = torch.randn(2, 30, WIDTH)
    with torch.autocast("cpu", dtype=half):
        out, state = net.scan(e, net.initial_state(2))
        _, state = net.step(e[:, 0], state)
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in state.values())
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize(
    ("config", "fields", "message"),
    [
        (ContextConfig, {"persistent": -1}, "persistent is 0 or more tokens, not -1"),
        (ContextConfig, {"chunk": 0}, "chunk is at least 1, not 0"),
        (ContextConfig, {"chunk": 10**9}, "chunk is at most 65536 tokens, not 1000000000"),
        (WindowConfig, {"window": 0}, "window is at least 1 token, not 0"),
        (WindowConfig, {"window": 10**9}, "window is at least 1 token and at most 65536, not 1000000000"),
        (WindowConfig, {"heads": 3}, "heads must divide the width: 3 does not divide 64"),
    ],
)
def test_a_configuration_out_of_range_is_refused(config, fields, message):
    with pytest.raises(ModelError, match=message):
        config(**fields)


@pytest.mark.parametrize("name", BACKBONES)
def test_no_tokens_and_no_series_have_their_natural_meaning(name):
    net = build(name)
    _, state = net.scan(stream(3)[0], net.initial_state(3))
    out, after = net.scan(torch.zeros(3, 0, WIDTH).double(), state)
    assert out.shape == (3, 0, D)
    assert all(torch.equal(after[key], state[key]) for key in state)
    out, after = net.scan(torch.zeros(0, 9, WIDTH).double(), net.initial_state(0))
    assert out.shape == (0, 9, D)
    assert all(len(value) == 0 for value in after.values())


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("mac", {"chunk": 8}, r"block0.attention.keys is \(2, 2, 7, 4\), not \(2, 2, 3, 4\)"),
        ("mag", {"window": 7}, r"block0.attention.keys is \(2, 1, 6, 4\), not \(2, 1, 4, 4\)"),
        ("mal", {"kernel": 2}, "block0.memory.conv.past is"),
    ],
)
def test_the_state_of_another_configuration_is_refused_and_what_differs_named(name, fields, message):
    net, other = build(name), build(name, **fields)
    for form, e in (("step", torch.zeros(1, WIDTH)), ("scan", torch.zeros(1, 5, WIDTH))):
        with pytest.raises(ModelError, match=message):
            getattr(net, form)(e.double(), other.initial_state(1))
