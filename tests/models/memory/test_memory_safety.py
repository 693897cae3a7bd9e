"""Nothing that comes in makes a memory overflow or go silent: gates at their ends, spikes, gaps, NaN, autocast.

A million steps of the same streams: tests/benchmarks/bench_memory_endurance.py.
"""

import math

import pytest
import torch
from memory_cases import distance, random_memory, random_tokens, start, states_apart
from torch import Tensor

from models.contract import ModelError, concat
from models.memory import MEMORIES
from models.memory.backbone import CausalConvolution, MemoryBackbone, MemoryConfig
from models.memory.chunks import chunked
from models.memory.coefficients import decays
from models.memory.core import LOG_FLOOR, Rule, sequential

LONG = 20_000


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def backbone(name: str, width: int = 3, **fields: object) -> MemoryBackbone:
    config = MemoryConfig(**({"width": 8, "heads": 2, "blocks": 1, "feed_forward": 0} | fields))  # type: ignore[arg-type]
    return MemoryBackbone(width, config, MEMORIES[name]).eval()


# --- gates at their ends --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gate", [0.0, 1e-38, 1e-20, 1e-6, 1.0])
def test_products_of_gates_neither_underflow_nor_divide_by_nothing(gate, dtype):
    gates = torch.full((1, 64), gate, dtype=dtype)
    gates[..., 5] = 0.5
    through, between = decays(gates)
    assert through.isfinite().all()
    assert between.isfinite().all()
    assert torch.equal(between[0].diagonal(), torch.ones(64, dtype=dtype))
    assert between[0].triu(1).abs().max() == 0
    factor = max(gate, math.exp(LOG_FLOOR))
    assert between[0, 5, 4].item() == pytest.approx(0.5, rel=1e-4)
    assert between[0, 40, 39].item() == pytest.approx(factor, rel=1e-3)


@pytest.mark.parametrize("chunk", [1, 16, 64])
@pytest.mark.parametrize("keep", [0.0, 1e-30, 1.0])
@pytest.mark.parametrize("momentum", [0.0, 1e-30, 1.0])
@pytest.mark.parametrize("rate", [0.0, 0.01])
def test_gates_at_their_ends_are_exact_in_every_form(chunk, keep, momentum, rate):
    for rule in (
        Rule(depth=2, expansion=2, chunk=chunk),
        Rule(depth=0, optimiser="muon", chunk=chunk),
        Rule(depth=1, retention="softmax", chunk=chunk),
        Rule(depth=1, retention="lq", chunk=chunk),
        Rule(depth=0, retention="lq", chunk=chunk),
    ):
        tokens = random_tokens(rule, 70 if chunk == 64 else 20)
        tokens = tokens._replace(
            keep=torch.full_like(tokens.keep, keep),
            momentum=torch.full_like(tokens.momentum, momentum),
            rate=torch.full_like(tokens.rate, rate),
        )
        memory = random_memory(rule)
        if rule.retention == "lq" and rule.depth == 0:
            memory = [0 * part for part in memory]
        state = start(rule, memory)
        expected, after_loop, _ = sequential(rule, tokens, state)
        answer, after, _ = chunked(rule, tokens, state)
        assert expected.isfinite().all()
        # What stands for a gate of 0 is exp(-30), which meets memories of up to `radius`.
        assert distance(answer, expected) < 1e-8
        assert states_apart(after, after_loop) < 1e-8
        if rate == 0 and keep == 1 and rule.retention == "decay":
            assert distance(after["memory0"], state["memory0"]) < 1e-12


def test_gradients_of_long_chunks_of_tiny_gates_are_finite():
    rule = Rule(depth=2, expansion=2, chunk=64)
    tokens = random_tokens(rule, 64, dtype=torch.float32)
    keep = torch.full_like(tokens.keep, 1e-9).requires_grad_()
    momentum = torch.full_like(keep, 1e-12).requires_grad_()
    answer, _, _ = chunked(
        rule, tokens._replace(keep=keep, momentum=momentum), start(rule, random_memory(rule, dtype=torch.float32))
    )
    answer.square().sum().backward()
    assert answer.isfinite().all()
    for gate in (keep, momentum):
        assert gate.grad is not None
        assert gate.grad.isfinite().all()


@pytest.mark.parametrize("retention", ["decay", "lq"])
@pytest.mark.parametrize("form", [sequential, chunked])
def test_no_memory_leaves_its_ball_for_longer_than_a_chunk(form, retention):
    rule = Rule(depth=1, retention=retention, chunk=4, radius=2.0)
    tokens = random_tokens(rule, 8)
    ones = torch.ones_like(tokens.keep)
    tokens = tokens._replace(rate=50 * ones, keep=ones, momentum=ones)
    _, state, _ = form(rule, tokens, start(rule, random_memory(rule)))
    assert torch.linalg.matrix_norm(state["memory0"]).max() > 2
    still = random_tokens(rule, 1)
    still = still._replace(rate=0 * still.rate, keep=0 * still.keep + 1, momentum=0 * still.momentum)
    _, after, _ = form(rule, still, state)
    assert torch.linalg.matrix_norm(after["memory0"]).max() <= 2 + 1e-12
    direction = after["memory0"] / torch.linalg.matrix_norm(after["memory0"])[..., None, None]
    outside = torch.linalg.matrix_norm(state["memory0"]) > 2
    assert (
        distance(
            direction[outside],
            (state["memory0"] / torch.linalg.matrix_norm(state["memory0"])[..., None, None])[outside],
        )
        < 1e-12
    )


# --- long streams ---------------------------------------------------------------------------------------------


def hard_streams(steps: int, width: int) -> tuple[list[str], Tensor, Tensor]:
    """Names, e (streams, steps, width) and present (streams, steps): one series of each kind."""
    torch.manual_seed(11)
    time = torch.arange(steps)[:, None]
    random = torch.randn(steps, width)
    spikes = torch.where(torch.rand(steps, 1) < 0.01, 1e15 * random.sign(), random)
    kinds = {
        "constant": torch.ones(steps, width),
        "periodic": torch.sin(2 * math.pi * time / 24 + torch.arange(width)),
        "random": random,
        "spikes": spikes,
        "zero": torch.zeros(steps, width),
        "huge": 1e15 * random,
        "gaps": torch.where(time % 1000 < 50, random, torch.full_like(random, math.nan)),
    }
    present = torch.ones(len(kinds), steps)
    present[-1] = (torch.arange(steps) % 1000 < 50).float()
    return list(kinds), torch.stack(list(kinds.values())), present


@pytest.mark.parametrize("name", MEMORIES)
def test_twenty_thousand_hard_steps_stay_finite_and_bounded(name):
    net = backbone(name, chunk=64)
    kinds, e, present = hard_streams(LONG, 3)
    state, largest, loudest = net.initial_state(len(kinds)), torch.zeros(len(kinds)), torch.zeros(len(kinds))
    with torch.no_grad():
        for begin in range(0, LONG, 2500):
            out, state = net.scan(e[:, begin : begin + 2500], state, present[:, begin : begin + 2500])
            loudest = torch.maximum(loudest, out.abs().amax((1, 2)))
            for key, value in state.items():
                assert value.isfinite().all(), (name, key, kinds)
                if "memory" in key:
                    largest = torch.maximum(largest, value.flatten(1).norm(dim=1))
    assert loudest.max() < 10, dict(zip(kinds, loudest.tolist(), strict=True))  # the outputs are normalised
    assert largest.max() < 1e6, dict(zip(kinds, largest.tolist(), strict=True))


@pytest.mark.parametrize("name", ["titans-lmm", "deltanet", "atlas", "yaad", "memora", "moneta", "swla"])
def test_raw_values_of_1e15_keep_the_memory_itself_finite(name):
    """The recurrence alone, with nothing before it that bounds its values."""
    for chunk in (1, 16):
        rule = MEMORIES[name].rule(MemoryConfig(chunk=chunk))
        tokens = random_tokens(rule, 200, dtype=torch.float32)
        spikes = torch.where(torch.rand_like(tokens.value) < 0.05, 1e15 * tokens.value, tokens.value)
        state = start(rule, random_memory(rule, dtype=torch.float32))
        for form in (sequential, chunked):
            _, after, _ = form(rule, tokens._replace(value=spikes), state)
            assert all(part.isfinite().all() for part in after.values())


# --- steps that stay stable -----------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 16, 64])
@pytest.mark.parametrize("name", MEMORIES)
def test_a_disturbance_fades_and_does_not_grow_into_chaos(name, chunk):
    """Whatever the length of a chunk: or rounding would grow as well, and no graph could follow its model."""
    net = backbone(name, width=4, chunk=chunk).double()
    steps = 400
    time = torch.arange(steps)[:, None]
    e = torch.stack([torch.ones(steps, 4), torch.sin(2 * math.pi * time / 24 + torch.arange(4)), torch.randn(steps, 4)])
    e = e.double()
    disturbed = e.clone()
    disturbed[:, :10] += 1e-9 * torch.randn(3, 10, 4)
    with torch.no_grad():
        apart = net.scan(disturbed, net.initial_state(3))[0] - net.scan(e, net.initial_state(3))[0]
    assert apart.abs().max() < 1e-6
    assert apart[:, -64:].abs().max() < 1e-8


@pytest.mark.parametrize("chunk", [1, 16, 64])
@pytest.mark.parametrize("name", ["deltanet", "gated-deltanet"])
def test_a_repeated_key_diverges_only_above_the_largest_rate(name, chunk):
    """Gates wide open, one pair again and again: the sum of a chunk's steps is 2 * rate, stable up to 2."""

    def norm(rate: float) -> float:
        layer = backbone(name, width=8, chunk=chunk, rate=rate, kernel=1).layers[0].double()
        with torch.no_grad():
            layer.to_gates.weight.zero_()
            layer.to_gates.bias.fill_(30.0)  # keeps all, takes the whole step
            x = torch.randn(1, 1, 8, dtype=torch.float64).expand(1, 20 * chunk, 8)
            _, state, _ = layer.scan(x, torch.ones(1, 20 * chunk, dtype=torch.float64), layer.initial_state(1))
        return torch.linalg.matrix_norm(state["memory0"]).max().item()

    torch.manual_seed(3)
    settled = norm(0.5)
    for rate, diverges in ((0.99, False), (1.2, True)):
        torch.manual_seed(3)
        assert (norm(rate) > 10 * settled) == diverges, rate


def test_the_step_of_one_token_on_plain_keys_is_the_rate_itself():
    steps = {name: backbone(name, chunk=1, rate=0.5).layers[0].largest_step for name in MEMORIES}
    assert steps["titans-lmm"] == steps["deltanet"] == steps["yaad"] == steps["atlas"] == steps["swla"] == 0.5
    assert steps["dla"] == 0.5 / 3  # features of degree 2
    assert steps["omega"] == 0.5 / 12  # and a window of 4
    assert backbone("omega", chunk=16, rate=0.5).layers[0].largest_step == 0.5 / 12 / 16
    assert backbone("swla", chunk=16, rate=0.5).layers[0].largest_step == 0.5


# --- NaN ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["step", "scan"])
@pytest.mark.parametrize("name", MEMORIES)
def test_nan_where_nothing_is_present_leaves_no_trace_in_a_network(name, form):
    net = backbone(name, chunk=4)
    e, present = torch.randn(2, 12, 3), torch.ones(2, 12)
    present[0, 3:6] = 0
    e[0, 3:6] = 0.0  # what NaN is taken for
    filled = e.clone()
    filled[0, 3:6] = math.nan
    state = net.initial_state(2)
    if form == "scan":
        (out, after), (out_filled, after_filled) = net.scan(e, state, present), net.scan(filled, state, present)
        assert torch.equal(out, out_filled)
    else:
        after, after_filled = state, state
        for t in range(12):
            _, after = net.step(e[:, t], after, present[:, t])
            _, after_filled = net.step(filled[:, t], after_filled, present[:, t])
    assert all(torch.equal(after[key], after_filled[key]) for key in after)


def test_nan_where_nothing_is_present_leaves_no_trace_in_a_gradient():
    net = backbone("titans-lmm", chunk=4)
    e, present = torch.randn(1, 8, 3), torch.ones(1, 8)
    e[:, 2], present[:, 2] = math.nan, 0
    out, _ = net.scan(e, net.initial_state(1), present)
    out.square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())


# --- autocast -------------------------------------------------------------------------------------------------


HALF = pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)


@HALF
@pytest.mark.parametrize("form", ["step", "scan"])
@pytest.mark.parametrize("name", MEMORIES)
def test_under_autocast_the_recurrence_is_the_one_in_single_precision_to_the_last_bit(name, form, half):
    """The state of a layer is float32's, bit for bit; what it gives is rounded: to 0.02 where values are near 1."""
    layer = backbone(name, chunk=16).layers[0]
    x, present = (torch.randn(2, 40, 8), torch.ones(2, 40)) if form == "scan" else (torch.randn(2, 8), torch.ones(2))
    with torch.no_grad():
        exact, after_exact, _ = getattr(layer, form)(x, present, layer.initial_state(2))
        with torch.autocast("cpu", dtype=half):
            out, after, _ = getattr(layer, form)(x, present, layer.initial_state(2))
    assert distance(out.float(), exact) < 0.02
    for key, value in after.items():
        assert value.dtype == torch.float32
        assert torch.equal(value, after_exact[key]), key


@HALF
@pytest.mark.parametrize("name", MEMORIES)
def test_a_network_under_autocast_is_finite_and_near_the_one_in_single_precision(name, half):
    """Outputs have a mean square of 1; they differ by less than 0.05."""
    net = backbone(name, width=8, feed_forward=2, chunk=4)
    e = torch.randn(2, 70, 8)
    with torch.no_grad():
        exact, _ = net.scan(e, net.initial_state(2))
        with torch.autocast("cpu", dtype=half):
            out, after = net.scan(e, net.initial_state(2))
    assert out.isfinite().all()
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in after.values())
    assert out.dtype == torch.float32
    assert (out - exact).abs().max() < 0.05


@HALF
@pytest.mark.parametrize("chunk", [1, 16])
@pytest.mark.parametrize("name", MEMORIES)
def test_gradients_under_autocast_are_finite_and_near_those_in_single_precision(name, chunk, half):
    net, e = backbone(name, width=8, blocks=2, feed_forward=2, chunk=chunk).train(), torch.randn(2, 40, 8)
    weights = torch.randn(2, 40, 8)
    found = []
    for enabled in (False, True):
        net.zero_grad()
        with torch.autocast("cpu", dtype=half, enabled=enabled):
            out, _ = net.scan(e, net.initial_state(2))
        (out * weights).sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
        found.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    exact, half_made = found
    assert torch.nn.functional.cosine_similarity(exact, half_made, dim=0) > 0.99


# --- bad input ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"chunk": 0}, "chunk is at least 1, not 0"),
        ({"heads": 0}, "heads is at least 1, not 0"),
        ({"heads": 3}, "heads must divide the width: 3 does not divide 64"),
        ({"width": 0}, "width is at least 1"),
        ({"blocks": 0}, "blocks is at least 1"),
        ({"kernel": 0}, "kernel is at least 1"),
        ({"dropout": 1.0}, r"dropout in \[0, 1\)"),
        ({"rate": 0.0}, "rate and radius are finite and above 0"),
        ({"rate": math.nan}, "rate and radius are finite and above 0, not nan"),
        ({"radius": math.inf}, "rate and radius are finite and above 0"),
        ({"radius": -1.0}, "rate and radius are finite and above 0"),
        ({"feed_forward": -1}, "feed_forward is 0 or more"),
        ({"rate": 1e39}, "rate is at most 1e.06"),
        ({"radius": 1e20}, "radius lies between 1e-09 and 1e.09, whose squares float32 can hold"),
        ({"radius": 1e-30}, "radius lies between 1e-09 and 1e.09"),
        ({"kernel": 10**9}, "kernel is at most 65536 tokens, not 1000000000"),
        ({"chunk": 2**24 + 1}, "chunk is at most 65536 tokens, not 16777217"),
    ],
)
def test_a_configuration_out_of_range_is_refused(fields, message):
    with pytest.raises(ModelError, match=message):
        MemoryConfig(**fields)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (backbone("titans-lmm", width=3, kernel=2), "block0.conv.past is"),
        (backbone("yaad"), "block0.momentum0 is absent"),
        (backbone("titans-lmm", blocks=2), r"block1.conv.past is \(3, 24\), not known"),
        (backbone("titans-lmm", chunk=1), "block0.anchor0 is absent"),
        (backbone("titans-lmm", heads=4), r"block0.memory0 is \(4, 2, 4\), not \(2, 4, 8\)"),
        (backbone("omega"), "block0.memory0 is"),
    ],
)
def test_the_state_of_another_configuration_is_refused_and_what_differs_named(other, message):
    net = backbone("titans-lmm")
    for form, e in (("step", torch.zeros(1, 3)), ("scan", torch.zeros(1, 5, 3))):
        with pytest.raises(ModelError, match=message):
            getattr(net, form)(e, other.initial_state(1))


@pytest.mark.parametrize("radius", [1e-9, 1e9])
@pytest.mark.parametrize("name", MEMORIES)
def test_at_the_ends_of_what_a_radius_may_be_every_form_is_finite(name, radius):
    net = backbone(name, radius=radius, chunk=4)
    e = torch.randn(2, 9, 3)
    scanned, _ = net.scan(e, net.initial_state(2))
    state = net.initial_state(2)
    for t in range(9):
        out, state = net.step(e[:, t], state)
        assert distance(out, scanned[:, t]) < 1e-4
    assert scanned.isfinite().all()
    assert all(value.isfinite().all() for value in state.values())


@pytest.mark.parametrize("name", [name for name, inner in MEMORIES.items() if inner.depth])
def test_heads_of_one_value_are_refused_where_their_norm_would_always_be_0(name):
    with pytest.raises(ModelError, match=r"8 heads of a width of 8 leave one value to a head.*Take fewer heads"):
        backbone(name, heads=8)


def test_heads_of_one_value_are_a_memory_where_there_is_no_norm():
    net = backbone("deltanet", heads=8).double()
    e, other = torch.randn(2, 1, 9, 3, dtype=torch.float64)
    other[:, 4:] = e[:, 4:]
    assert distance(net.scan(e, net.initial_state(1))[0][:, 8], net.scan(other, net.initial_state(1))[0][:, 8]) > 1e-6


@pytest.mark.parametrize("chunk", [1, 4])
@pytest.mark.parametrize("name", MEMORIES)
def test_no_tokens_and_no_series_have_their_natural_meaning(name, chunk):
    net = backbone(name, chunk=chunk)
    _, state = net.scan(torch.randn(2, 3, 3), net.initial_state(2))
    out, after = net.scan(torch.zeros(2, 0, 3), state)
    assert out.shape == (2, 0, 8)
    assert all(torch.equal(after[key], state[key]) for key in state)
    out, after = net.scan(torch.zeros(0, 5, 3), net.initial_state(0))
    assert out.shape == (0, 5, 8)
    assert all(len(value) == 0 for value in after.values())
    assert net.step(torch.zeros(0, 3), net.initial_state(0))[0].shape == (0, 8)


@pytest.mark.parametrize("form", [sequential, chunked])
def test_a_recurrence_over_no_tokens_leaves_its_state(form):
    rule = Rule(depth=2, expansion=2, chunk=4, window=3)
    _, state, _ = sequential(rule, random_tokens(rule, 6), start(rule, random_memory(rule)))
    answer, after, look = form(rule, random_tokens(rule, 0), state)
    assert answer.shape[2] == 0
    assert look is not None
    assert look.surprise.shape[2] == look.norm.shape[2] == 0
    assert states_apart(after, state) == 0


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("name", MEMORIES)
def test_less_than_a_chunk_and_less_than_the_convolution_is_exact(name, steps):
    net = backbone(name, kernel=4, chunk=64).double()
    e = torch.randn(2, 9, 3, dtype=torch.float64)
    whole, _ = net.scan(e, net.initial_state(2))
    short, state = net.scan(e[:, :steps], net.initial_state(2))
    rest, _ = net.scan(e[:, steps:], state)
    assert distance(torch.cat([short, rest], 1), whole) < 1e-12


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_convolution_shorter_or_longer_than_its_stream_is_the_sum_of_its_past(steps):
    convolution = CausalConvolution(2, 4).double()
    x = torch.randn(1, steps, 2, dtype=torch.float64)
    out, state = convolution.scan(x, convolution.initial_state(1))
    for t in range(steps):
        expected = sum(x[:, t - j] * convolution.weight[:, -1 - j] for j in range(min(4, t + 1)))
        assert distance(out[:, t], expected) < 1e-12
    past = torch.cat([torch.zeros(1, 3, 2).double(), x], 1)[:, -3:]
    assert torch.equal(state["past"], past)


def test_series_joined_at_different_places_of_a_chunk_go_on_as_they_were():
    net = backbone("atlas", chunk=8).double()
    states, rests, expected = [], [], []
    for begun in (3, 8, 13):
        e = torch.randn(1, begun + 10, 3, dtype=torch.float64)
        _, state = net.scan(e[:, :begun], net.initial_state(1))
        states.append(state)
        rests.append(e[:, begun:])
        expected.append(net.scan(e, net.initial_state(1))[0][:, begun:])
    joined, _ = net.scan(torch.cat(rests), concat(states))
    assert distance(joined, torch.cat(expected)) < 1e-10
