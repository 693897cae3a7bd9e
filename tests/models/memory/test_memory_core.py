"""The three forms of a memory agree, and its written-out gradients are those of its loss.

"Equal to 1e-8" is relative to the largest value of the tensor, or to 1 if that is more (`memory_cases.distance`).
"""

import gc
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_cases import BATCH, HEADS, distance, random_memory, random_tokens, start, states_apart
from torch import Tensor

from models.contract import ModelError, State, concat
from models.memory import dual
from models.memory.chunks import chunked
from models.memory.core import LONG, NORM_EPS, Rule, Tokens, layer_errors, map_tokens, sequential, step, tokens_at

CHUNKS = (1, 4, 16, 64)
BIASES = ("l2", "lp", "huber", "kl", "dot")
REPRESENTATIVE = {
    "titans": Rule(depth=2, expansion=2, chunk=4),
    "titans, deep": Rule(depth=4, expansion=1, chunk=3),
    "matrix": Rule(depth=0, chunk=4),
    "delta, token by token": Rule(depth=0, optimiser="descent", chunk=1),
    "gated delta": Rule(depth=0, optimiser="descent", decay_first=True, chunk=4),
    "gated delta, token by token": Rule(depth=0, optimiser="descent", decay_first=True, chunk=1),
    "one layer, token by token": Rule(depth=1, chunk=1),
    "omega": Rule(depth=2, expansion=2, optimiser="descent", window=3, chunk=4),
    "omega with momentum": Rule(depth=0, window=6, chunk=4),
    "atlas": Rule(depth=2, expansion=1, optimiser="muon", window=3, chunk=4),
    "moneta": Rule(depth=2, expansion=2, bias="lp", retention="lq", optimiser="descent", chunk=4),
    "moneta with momentum": Rule(depth=1, bias="lp", power=1.5, retention="lq", chunk=4),
    "yaad": Rule(depth=2, expansion=2, bias="huber", optimiser="descent", chunk=4),
    "memora": Rule(depth=2, expansion=2, retention="softmax", optimiser="descent", chunk=4),
    "memora with muon": Rule(depth=1, retention="softmax", optimiser="muon", bias="kl", chunk=4),
    "elastic": Rule(depth=2, expansion=2, retention="elastic", threshold=0.1, optimiser="descent", chunk=4),
    "moneta as printed": Rule(depth=1, bias="lp", retention="lq as printed", optimiser="descent", chunk=4, radius=3.0),
    "small ball": Rule(depth=2, expansion=2, chunk=4, radius=0.5),
}


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    depth = draw(st.integers(0, 4))
    optimiser = draw(st.sampled_from(["descent", "momentum", "muon"]))
    window = draw(st.sampled_from([1, 1, 2, 5]))
    retention = draw(st.sampled_from(["decay", "lq", "lq as printed", "softmax", "elastic"]))
    gated = depth == 0 and optimiser == "descent" and window == 1 and retention == "decay"
    return Rule(
        depth=depth,
        expansion=draw(st.integers(1, 2)),
        bias=draw(st.sampled_from(BIASES)),
        power=draw(st.sampled_from([1.0, 2.0, 3.0])),
        retention=retention,
        dual_power=draw(st.sampled_from([2.0, 4.0])),
        threshold=draw(st.sampled_from([0.01, 0.3])),
        optimiser=optimiser,
        window=window,
        chunk=draw(st.sampled_from(CHUNKS)),
        decay_first=gated and draw(st.booleans()),
        radius=draw(st.sampled_from([1.0, 100.0])),
    )


def forms_apart(rule: Rule, tokens: Tokens, state: State, cut: int) -> dict[str, float]:
    """How far the chunks are from the plain loop of steps."""
    answer, after, look = sequential(rule, tokens, state)
    whole, after_whole, look_whole = chunked(rule, tokens, state, look=True)
    assert look_whole is not None
    apart = {
        "answers": distance(whole, answer),
        "state": states_apart(after_whole, after),
        "surprise": distance(look_whole.surprise, look.surprise),
        "norm": distance(look_whole.norm, look.norm),
    }
    if 0 < cut < tokens.key.shape[2]:
        first, between, _ = chunked(rule, tokens_at(tokens, slice(0, cut)), state)
        second, after_cut, _ = chunked(rule, tokens_at(tokens, slice(cut, None)), between)
        apart["cut answers"] = distance(torch.cat([first, second], 2), answer)
        apart["cut state"] = states_apart(after_cut, after)
    return apart


@pytest.mark.parametrize("depth", range(5))
@settings(max_examples=60)
@given(data=st.data())
def test_the_chunks_give_the_numbers_of_the_steps(depth, data):
    rule = data.draw(rules().filter(lambda rule: rule.depth == depth))
    steps = data.draw(st.integers(1, 23) if rule.chunk < 64 else st.sampled_from([5, 70]))
    torch.manual_seed(data.draw(st.integers(0, 10_000)))
    tokens = random_tokens(rule, steps, gaps=data.draw(st.sampled_from([0.0, 0.3])))
    state = start(rule, random_memory(rule))
    apart = forms_apart(rule, tokens, state, cut=data.draw(st.integers(0, steps)))
    assert max(apart.values()) < 1e-8, apart


@pytest.mark.parametrize("chunk", [1, 4])
def test_weights_that_are_many_stay_in_the_ball_as_few_do(chunk):
    rule = Rule(depth=2, expansion=4, chunk=chunk, radius=2.0)
    torch.manual_seed(0)
    memory = random_memory(rule, 24, 24)
    assert all(part[0].numel() >= LONG and torch.linalg.matrix_norm(part[0]) > rule.radius for part in memory)
    apart = forms_apart(rule, random_tokens(rule, 9, 24, 24, gaps=0.2), start(rule, memory, values=24), cut=5)
    assert max(apart.values()) < 1e-8, apart


@pytest.mark.parametrize("rule", REPRESENTATIVE.values(), ids=REPRESENTATIVE)
def test_in_single_precision_the_forms_agree_to_four_digits(rule):
    """Or to what the loop itself loses: with large steps a deep memory is chaotic, and rounding grows in every form."""
    torch.manual_seed(0)
    tokens = random_tokens(rule, 37, gaps=0.2, dtype=torch.float32)
    tokens = tokens._replace(rate=0.3 * tokens.rate)
    memory = random_memory(rule, dtype=torch.float32)
    exact, _, _ = sequential(rule, map_tokens(tokens, Tensor.double), start(rule, [part.double() for part in memory]))
    lost = distance(sequential(rule, tokens, start(rule, memory))[0].double(), exact)
    apart = forms_apart(rule, tokens, start(rule, memory), cut=10)
    assert lost < 1e-4
    assert max(apart.values()) < max(1e-4, 10 * lost), (apart, lost)


def gradients(form, rule: Rule, tokens: Tokens, state: State, seed: int) -> dict[str, Tensor]:
    """Of a random projection of answers and last state, with respect to every input, gate and memory."""
    torch.manual_seed(seed)
    leaves = {
        name: part.clone().requires_grad_()
        for name, part in tokens._asdict().items()
        if part is not None and name != "present"
    }
    states = {name: part.clone().requires_grad_() for name, part in state.items() if name != "position"}
    answer, after, _ = form(rule, tokens._replace(**leaves), state | states)
    total = (answer * torch.randn_like(answer)).sum()
    for name, part in after.items():
        # Anchors are a copy of what the memory was, and softmax looks at differences only.
        if name.startswith(("memory", "momentum", "past")):
            total = total + (part * torch.randn_like(part)).sum()
    wanted = {**leaves, **{f"state.{name}": part for name, part in states.items()}}
    found = torch.autograd.grad(total, list(wanted.values()), allow_unused=True)
    return {
        name: torch.zeros_like(leaf) if part is None else part
        for (name, leaf), part in zip(wanted.items(), found, strict=True)
    }


@pytest.mark.parametrize("begun", [0, 2], ids=["from a border", "from within a chunk"])
@pytest.mark.parametrize("rule", REPRESENTATIVE.values(), ids=REPRESENTATIVE)
def test_gradients_of_every_input_gate_and_memory_are_those_of_the_loop(rule, begun):
    torch.manual_seed(1)
    tokens = random_tokens(rule, 11, gaps=0.2)
    state = start(rule, random_memory(rule))
    if begun:
        state = sequential(rule, random_tokens(rule, begun), state)[1]
    slow, fast = (gradients(form, rule, tokens, state, seed=2) for form in (sequential, chunked))
    used = {"key", "value", "query", "keep", "rate"}
    if rule.has_momentum:
        used |= {"momentum"}
    if rule.window > 1:
        used |= {"importance"}
    for name, expected in slow.items():
        scale = expected.abs().max().clamp(min=1)
        assert ((fast[name] - expected).abs().max() / scale).item() < 1e-8, name
        assert name not in used or expected.abs().max() > 1e-6, f"{name} has no influence: the test shows nothing"


@pytest.mark.parametrize("together", [1, 2, 9])
@pytest.mark.parametrize("name", ["titans", "matrix", "gated delta", "omega", "omega with momentum", "small ball"])
def test_gradients_of_the_answer_alone_do_not_depend_on_which_chunks_go_together(name, together, monkeypatch):
    """As a layer asks for them: nothing of the state at the end, and a key that is its own residual."""
    rule = REPRESENTATIVE[name]
    monkeypatch.setattr(dual, "GROUP", together * BATCH * HEADS * rule.chunk * (rule.chunk + rule.window - 1))
    torch.manual_seed(1)
    tokens, state = random_tokens(rule, 23, values=4), start(rule, random_memory(rule, values=4), values=4)
    found = []
    for form in (sequential, chunked):
        leaves = [part.clone().requires_grad_() for part in (tokens.key, tokens.keep, tokens.rate, state["memory0"])]
        key, keep, rate, memory = leaves
        given = tokens._replace(key=key, keep=keep, rate=rate, key_residual=key if rule.depth else None)
        answer = form(rule, given, state | {"memory0": memory})[0]
        found.append(torch.autograd.grad(answer.sin().sum(), leaves))
    for expected, actual in zip(*found, strict=True):
        assert distance(actual, expected) < 1e-8
        assert expected.abs().max() > 1e-6


def elements_held() -> int:
    gc.collect()
    return sum(part.numel() for part in gc.get_objects() if type(part) is Tensor)


def test_an_answer_that_outlives_its_backward_pass_holds_nothing_of_the_chunks():
    """A loop that keeps its last loss would otherwise have two steps' chunks in memory."""
    rule = Rule(depth=2, expansion=2, chunk=4)
    tokens, state = random_tokens(rule, 64), start(rule, random_memory(rule))
    key = tokens.key.clone().requires_grad_()
    answer = chunked(rule, tokens._replace(key=key), state)[0]
    loss = answer.square().sum()
    loss.backward(retain_graph=True)
    first, key.grad = key.grad, None
    loss.backward()
    assert torch.equal(key.grad, first)
    with pytest.raises(RuntimeError, match="a second time"):
        loss.backward()
    with_it = elements_held()
    del loss
    size = answer.numel()
    del answer
    assert with_it - elements_held() <= size + 1


def test_series_at_different_places_of_a_chunk_run_in_one_batch():
    for rule in (REPRESENTATIVE["titans"], REPRESENTATIVE["omega"], REPRESENTATIVE["memora"]):
        torch.manual_seed(3)
        memory = random_memory(rule)
        series = [chunked(rule, random_tokens(rule, n, batch=1), start(rule, memory, 1))[1] for n in (3, 1, 4, 3, 6)]
        state, tokens = concat(series), random_tokens(rule, 9, batch=5, gaps=0.2)
        assert len(state["position"].unique()) == 4
        answer, after, look = chunked(rule, tokens, state, look=True)
        expected, after_loop, look_loop = sequential(rule, tokens, state)
        assert distance(answer, expected) < 1e-8
        assert states_apart(after, after_loop) < 1e-8
        assert look is not None
        assert max(map(distance, look, look_loop)) < 1e-8


@pytest.mark.parametrize("form", [sequential, chunked])
@pytest.mark.parametrize("rule", REPRESENTATIVE.values(), ids=REPRESENTATIVE)
def test_a_state_is_read_by_its_names_and_not_by_their_order(rule, form):
    torch.manual_seed(5)
    _, begun, _ = form(rule, random_tokens(rule, 3), start(rule, random_memory(rule)))
    tokens = random_tokens(rule, 6)
    expected, after, _ = form(rule, tokens, begun)
    answer, other, _ = form(rule, tokens, dict(reversed(begun.items())))
    assert distance(answer, expected) < 1e-12
    assert other.keys() == after.keys()
    assert max(distance(other[name], value) for name, value in after.items()) < 1e-12


@pytest.mark.parametrize("rule", REPRESENTATIVE.values(), ids=REPRESENTATIVE)
def test_no_answer_knows_a_later_token(rule):
    torch.manual_seed(4)
    tokens, state = random_tokens(rule, 13, gaps=0.2), start(rule, random_memory(rule))
    other = random_tokens(rule, 13)
    for at in (0, 5, 12):
        changed = Tokens(
            *(
                a if a is None else torch.cat([a[:, :, :at], b[:, :, at:]], 2)
                for a, b in zip(tokens, other, strict=True)
            )
        )
        for form in (sequential, chunked):
            before, after = form(rule, tokens, state)[0], form(rule, changed, state)[0]
            assert torch.equal(before[:, :, :at], after[:, :, :at])
            assert not torch.equal(before[:, :, at:], after[:, :, at:])


@pytest.mark.parametrize("rule", REPRESENTATIVE.values(), ids=REPRESENTATIVE)
def test_an_absent_token_leaves_no_trace_whatever_it_holds(rule):
    torch.manual_seed(5)
    steps, absent = 13, [2, 3, 8]
    tokens, state = random_tokens(rule, steps), start(rule, random_memory(rule))
    tokens.present[:, :, absent] = 0
    present = [t for t in range(steps) if t not in absent]
    for form in (sequential, chunked):
        answer, after, _ = form(rule, tokens, state)
        for filling in (7.0, math.inf, math.nan):
            parts = {name: part.clone() for name, part in tokens._asdict().items() if part is not None}
            for name, part in parts.items():
                if name != "present":
                    part[:, :, absent] = filling
            filled, after_filled, _ = form(rule, Tokens(**parts), state)
            assert torch.equal(filled[:, :, present], answer[:, :, present])
            assert all(torch.equal(after_filled[name], after[name]) for name in after)


@pytest.mark.parametrize("rule", REPRESENTATIVE.values(), ids=REPRESENTATIVE)
def test_an_absent_token_changes_neither_memory_nor_momentum(rule):
    torch.manual_seed(6)
    # One token, then a gap within its chunk: at a border a memory may be scaled back into its ball.
    _, state, _ = step(rule, tokens_at(random_tokens(rule, 1), 0), start(rule, random_memory(rule)))
    if rule.chunk == 1 or rule.radius < 1:
        state = {n: 0.1 * part if n.startswith(("memory", "momentum")) else part for n, part in state.items()}
    tokens = random_tokens(rule, 2)
    for form in (sequential, chunked):
        _, after, _ = form(rule, tokens._replace(present=0 * tokens.present), state)
        for name in state:
            if name.startswith(("memory", "momentum")):
                assert distance(after[name], state[name]) < 1e-14, name


def inner_loss(rule: Rule, weights: list[Tensor], key: Tensor, value: Tensor, clip: Tensor, residual: Tensor | None):
    """One token's loss, from the equations and not from the code under test."""
    z = key
    for weight in weights[:-1]:
        z = torch.nn.functional.silu(z @ weight)
    z = z @ weights[-1]
    if rule.depth:
        z = torch.nn.functional.layer_norm(z, z.shape[-1:], eps=NORM_EPS)
        z = z if residual is None else z + residual
    error = z - value
    if rule.bias == "l2":
        return error.square().sum()
    if rule.bias == "huber":  # |e|^2 up to the threshold, then its tangent
        norm = torch.linalg.vector_norm(error)
        return torch.where(norm <= clip, norm**2, 2 * clip * norm - clip**2)
    if rule.bias == "lp":
        return (error.square() + 1e-6).pow(rule.power / 2).sum()
    if rule.bias == "kl":  # cross-entropy: the divergence up to what does not depend on the memory
        return -(value.softmax(-1) * z.log_softmax(-1)).sum()
    return -(z * value).sum()


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("depth", range(5))
def test_the_written_out_gradient_is_the_gradient_of_the_loss(depth, bias):
    torch.manual_seed(1)
    for power in (1.0, 2.0, 3.0) if bias == "lp" else (3.0,):
        rule = Rule(depth=depth, expansion=2, bias=bias, power=power)
        weights = [part[0].requires_grad_() for part in random_memory(rule)]
        tokens = random_tokens(rule, 8, batch=1)
        inputs, errors, missed = layer_errors(
            rule, weights, tokens.key, tokens.value, tokens.clip, tokens.key_residual, fade=None
        )
        clipped = 0
        for t in range(8):
            at = map_tokens(tokens, lambda part, t=t: part[0, 0, t])
            loss = inner_loss(rule, weights, at.key, at.value, at.clip, at.key_residual)
            clipped += int(torch.linalg.vector_norm(missed[0, 0, t]) > at.clip)
            for expected, a, u in zip(torch.autograd.grad(loss, weights), inputs, errors, strict=True):
                assert distance(torch.outer(a[0, 0, t], u[0, 0, t]), expected) < 1e-8
        assert bias != "huber" or 0 < clipped < 8, "both branches of the loss shall be seen"


def test_gated_delta_takes_its_gradient_at_the_faded_memory():
    rule = Rule(depth=0, optimiser="descent", decay_first=True)
    torch.manual_seed(8)
    weight, tokens = torch.randn(4, 3, dtype=torch.float64, requires_grad=True), random_tokens(rule, 1, batch=1)
    key, value, fade = tokens.key[0, 0, 0], tokens.value[0, 0, 0], 0.7
    faded = (fade * weight).detach().requires_grad_()
    (expected,) = torch.autograd.grad((key @ faded - value).square().sum(), faded)
    one = torch.full((1, 1, 1), fade, dtype=torch.float64)
    inputs, errors, _ = layer_errors(rule, [weight], tokens.key, tokens.value, tokens.clip, None, one)
    assert distance(torch.outer(inputs[0][0, 0, 0], errors[0][0, 0, 0]), expected) < 1e-14


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"chunk": 0}, "chunk and window are at least 1 token, got 0"),
        ({"window": 0}, "chunk and window are at least 1 token"),
        ({"depth": 5}, "0 .a matrix. to 4 layers"),
        ({"depth": -1}, "0 .a matrix. to 4 layers"),
        ({"expansion": 0}, "expansion from 1"),
        ({"decay_first": True}, "decay_first is defined for a matrix that decays, under plain descent"),
        ({"decay_first": True, "depth": 0}, "decay_first is defined for a matrix that decays, under plain descent"),
        ({"decay_first": True, "depth": 0, "optimiser": "descent", "window": 2}, "with a window of 1"),
        ({"decay_first": True, "depth": 0, "optimiser": "descent", "retention": "lq"}, "a matrix that decays"),
        ({"power": 0.5}, "power is at least 1.*got 0.5, 4, 1, 100, 0.01"),
        ({"radius": 0.0}, "radius above 0"),
        ({"radius": math.inf}, "finite; got 3, 4, 1, inf, 0.01"),
        ({"threshold": -0.1}, "threshold 0 or more"),
        ({"power": math.nan}, "power is at least 1"),
        ({"bias": "l3"}, "bias is one of l2, lp, huber, kl, dot, not 'l3'"),
        ({"retention": "none"}, "retention is one of"),
        ({"optimiser": "adam"}, "optimiser is one of"),
    ],
)
def test_a_rule_out_of_range_is_refused(fields, message):
    with pytest.raises(ModelError, match=message):
        Rule(**fields)


def test_a_state_in_the_middle_of_a_longer_chunk_is_refused():
    long, short = Rule(depth=0, chunk=64), Rule(depth=0, chunk=16)
    _, state, _ = chunked(long, random_tokens(long, 20), start(long, random_memory(long)))
    for form in (chunked, sequential):
        with pytest.raises(ModelError, match="token 20 of a chunk, the chunks of this memory have 16"):
            form(short, random_tokens(short, 3), state)
    # Of series that stand at different places one is enough.
    both = concat([state, start(long, random_memory(long))])
    for form in (chunked, sequential):
        with pytest.raises(ModelError, match="token 20 of a chunk"):
            form(short, random_tokens(short, 3, batch=2 * BATCH), both)
    assert state["position"].shape == (BATCH, 1)
    assert state["memory0"].shape[1] == HEADS
