"""The compiled dual form gives what the torch form gives: answers, states and every gradient.

Both are held against the torch form in double precision, which is never compiled.
"""

import os
import platform
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_cases import distance, random_memory, random_tokens, start
from numba import njit
from torch import Tensor

from models.contract import State
from models.memory import compiled, compiled_functions, dispatch
from models.memory.backbone import CausalConvolution, Inner, MemoryConfig, MemoryLayer
from models.memory.chunks import chunked
from models.memory.core import Rule, Tokens, map_tokens

WIDTH = 6
SETTLED = Rule(depth=2, expansion=2, chunk=4)


def case(rule: Rule, steps: int, gaps: float = 0.0, width: int = WIDTH) -> tuple[Tokens, State]:
    """In double precision, of numbers that single precision holds."""
    tokens = map_tokens(random_tokens(rule, steps, width, width, gaps=gaps), lambda part: part.float().double())
    memory = [part.float().double() for part in random_memory(rule, width, width)]
    return tokens, start(rule, memory, values=width)


def single(tokens: Tokens, state: State) -> tuple[Tokens, State]:
    return map_tokens(tokens, Tensor.float), {name: part.float() for name, part in state.items()}


def everything(rule: Rule, tokens: Tokens, state: State, ends: bool, shared: bool) -> dict[str, Tensor]:
    """Answer, state and, of a projection of the answer (ends: and of the state), the gradients of all that comes in."""
    gates = ("keep", "momentum", "rate", "importance")
    names = ["key", "value", "query", *gates, *(["key_residual"] if rule.depth and not shared else [])]
    leaves = {name: getattr(tokens, name).clone().requires_grad_() for name in names}
    states = {name: part.clone().requires_grad_() for name, part in state.items() if name[:3] in ("mem", "mom")}
    given = tokens._replace(**leaves)
    if shared:
        given = given._replace(key_residual=leaves["key"])
    answer, after, _ = chunked(rule, given, state | states)
    torch.manual_seed(3)
    total = (answer * torch.randn(answer.shape, dtype=torch.float64).to(answer.dtype)).sum()
    for name, part in after.items():
        if ends and name.startswith(("memory", "momentum", "anchor")):
            total = total + (part * torch.randn(part.shape, dtype=torch.float64).to(part.dtype)).sum()
    wanted = leaves | {f"state.{name}": part for name, part in states.items()}
    found = torch.autograd.grad(total, list(wanted.values()), allow_unused=True)
    gradients = {
        f"d {name}": torch.zeros_like(leaf) if part is None else part
        for (name, leaf), part in zip(wanted.items(), found, strict=True)
    }
    return {"answer": answer.detach()} | {name: part.detach() for name, part in after.items()} | gradients


@settings(max_examples=40)
@given(data=st.data())
def test_answers_states_and_gradients_are_those_of_the_torch_form(data):
    rule = Rule(
        depth=data.draw(st.integers(0, 4)),
        expansion=data.draw(st.integers(1, 2)),
        optimiser=data.draw(st.sampled_from(["descent", "momentum"])),
        chunk=data.draw(st.sampled_from([1, 4, 16, 64])),
        radius=data.draw(st.sampled_from([1.0, 100.0])),
    )
    steps = data.draw(st.integers(1, 37) if rule.chunk < 64 else st.sampled_from([5, 64, 70]))
    torch.manual_seed(data.draw(st.integers(0, 10_000)))
    tokens, state = case(rule, steps, gaps=data.draw(st.sampled_from([0.0, 0.3])))
    tokens = tokens._replace(rate=0.3 * tokens.rate)
    chosen = {"ends": data.draw(st.booleans()), "shared": rule.depth > 0 and data.draw(st.booleans())}
    expected = everything(rule, *(tokens, state), **chosen)
    plain = single(tokens, state)
    actual = everything(rule, *plain, **chosen)
    dispatch.COMPILED = False
    try:
        other = everything(rule, *plain, **chosen)
    finally:
        dispatch.COMPILED = True
    for name, part in expected.items():
        lost = distance(other[name].double(), part)
        assert distance(actual[name].double(), part) < max(2e-5, 5 * lost), name


@njit
def product(into, a, b, room, how):
    compiled._product(into, a, b, room, how)


@settings(max_examples=200)
@given(data=st.data())
def test_products_of_any_size_and_either_side_turned_are_those_of_numpy(data):
    rows, columns = (data.draw(st.integers(1, 70)) for _ in range(2))
    inner = data.draw(st.one_of(st.integers(1, 40), st.sampled_from([127, 129, 256, 257, 600])))
    flags = (compiled._A_TURNED, compiled._B_TURNED, compiled._MINUS, compiled._MORE)
    a_turned, b_turned, minus, more = chosen = [data.draw(st.booleans()) for _ in flags]
    numbers = np.random.default_rng(data.draw(st.integers(0, 1000)))
    a, b, into = (
        numbers.normal(size=size).astype(np.float32) for size in ((rows, inner), (inner, columns), (rows, columns))
    )
    expected = into * more + (-1 if minus else 1) * (a.astype(float) @ b)
    given = (np.ascontiguousarray(part.T if turned else part) for part, turned in ((a, a_turned), (b, b_turned)))
    around = np.full(rows * columns + 64, 7, np.float32)
    found = around[32:-32].reshape(rows, columns)
    found[:] = into if more else np.nan
    how = sum(flag for flag, taken in zip(flags, chosen, strict=True) if taken)
    product(found, *given, np.full(compiled._ROOM, np.nan, np.float32), how)
    assert np.abs(found - expected).max() < 1e-5 * max(10.0, inner)
    assert (np.delete(around, np.s_[32:-32]) == 7).all(), "nothing is written beside it"


@pytest.mark.parametrize(("width", "chunk"), [(72, 200), (40, 70)])
def test_what_is_wider_than_a_tile_is_multiplied_in_tiles(width, chunk):
    rule = Rule(depth=2, expansion=3, chunk=chunk)
    torch.manual_seed(0)
    tokens, state = case(rule, chunk + 10, width=width)
    tokens = tokens._replace(rate=0.05 * tokens.rate)
    expected = everything(rule, tokens, state, ends=True, shared=True)
    actual = everything(rule, *single(tokens, state), ends=True, shared=True)
    for name, part in expected.items():
        assert distance(actual[name].double(), part) < 1e-4, name


def test_gates_of_nothing_and_of_one_have_their_gradients():
    torch.manual_seed(0)
    tokens, state = case(SETTLED, 11)
    keep, momentum = tokens.keep.clone(), tokens.momentum.clone()
    keep[..., 2:4], keep[..., 5], momentum[..., 3], momentum[..., 6:8] = 1e-30, 1.0, 1e-30, 1.0
    tokens = tokens._replace(keep=keep, momentum=momentum, rate=0.3 * tokens.rate)
    expected = everything(SETTLED, tokens, state, ends=True, shared=False)
    actual = everything(SETTLED, *single(tokens, state), ends=True, shared=False)
    at_nothing = {"d keep": keep > 1e-20, "d momentum": momentum > 1e-20}  # where the torch form says 0
    for name, part in expected.items():
        there = at_nothing.get(name, torch.tensor(1.0))
        assert distance(actual[name].double() * there, part * there) < 2e-5, name
        assert actual[name].isfinite().all(), name


@pytest.fixture
def threads(monkeypatch):
    """Sets how many threads run, however small the work."""
    monkeypatch.setattr(compiled_functions, "WORTH_THREADS", 0)
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_whether_gradients_are_wanted_and_how_many_threads_run_changes_no_bit(threads):
    torch.manual_seed(0)
    tokens, state = single(*case(SETTLED, 37, gaps=0.2))
    whole = everything(SETTLED, tokens, state, ends=True, shared=False)
    with torch.no_grad():
        answer, after, _ = chunked(SETTLED, tokens, state)
    assert torch.equal(answer, whole["answer"])
    assert all(torch.equal(part, whole[name]) for name, part in after.items())
    for count in (1, 3):
        threads(count)
        again = everything(SETTLED, tokens, state, ends=True, shared=False)
        assert all(torch.equal(part, whole[name]) for name, part in again.items())


def test_a_whole_layer_in_several_threads_is_one_in_a_single_thread(threads):
    torch.manual_seed(0)
    layer = MemoryLayer(MemoryConfig(width=12, heads=2, chunk=4), Inner())
    x, runs = torch.randn(5, 23, 12), []
    for count in (1, 3):
        threads(count)
        answer = layer.scan(x, torch.ones(5, 23), layer.initial_state(5))[0]
        runs.append([answer, *torch.autograd.grad(answer.square().sum(), list(layer.parameters()), allow_unused=True)])
    for one, several in zip(*runs, strict=True):
        assert (one is None) == (several is None)
        if one is not None:
            assert distance(several, one) < 1e-5


@pytest.mark.parametrize(("kernel", "steps"), [(2, 1), (4, 2), (4, 37), (7, 3)])
def test_a_convolution_and_its_gradients_are_those_of_torch(kernel, steps):
    torch.manual_seed(0)
    convolution = CausalConvolution(10, kernel).double()
    x, past = torch.randn(3, steps, 10).double(), torch.randn(3, kernel - 1, 10).double()
    found = []
    for dtype in (torch.float64, torch.float32):
        leaves = [part.to(dtype).requires_grad_() for part in (x, past)]
        convolution = convolution.to(dtype)
        out, state = convolution.scan(leaves[0], {"past": leaves[1]})
        total = (out * out.detach().cos()).sum() + state["past"].sum()
        found.append([out, state["past"], *torch.autograd.grad(total, [*leaves, convolution.weight])])
    assert "Compiled" in type(out.grad_fn).__name__
    for expected, actual in zip(*found, strict=True):
        assert actual.shape == expected.shape
        assert distance(actual.double(), expected) < 1e-5


@pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="of x86 only")
@pytest.mark.parametrize("count", [1, 2])
def test_what_decays_below_the_normal_numbers_is_nothing_and_the_caller_keeps_such_numbers(count, threads):
    threads(count)
    torch.manual_seed(0)
    tokens, state = single(*case(SETTLED, 4))
    nothing = torch.zeros_like(tokens.rate)
    tokens = tokens._replace(keep=nothing + 3e-6, rate=nothing)  # 1e-18 becomes 1e-40
    state = {name: part * 1e-18 if name.startswith("memory") else part * 0 for name, part in state.items()}
    _, after, _ = chunked(SETTLED, tokens, state)
    assert not any(part.any() for name, part in after.items() if name.startswith("memory"))
    assert np.float32(1e-38) * np.float32(0.1) > 0
    assert torch.tensor(1e-38).mul(0.1) > 0


def test_a_second_backward_pass_gives_the_same():
    torch.manual_seed(0)
    tokens, state = single(*case(SETTLED, 23))
    key = tokens.key.clone().requires_grad_()
    total = chunked(SETTLED, tokens._replace(key=key), state)[0].square().sum()
    first, second = (torch.autograd.grad(total, key, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_what_is_not_finite_stays_so_in_its_series_and_leaves_no_trace_where_it_is_absent(depth, bad):
    rule = replace(SETTLED, depth=depth)
    torch.manual_seed(0)
    tokens, state = single(*case(rule, 11))
    clean = chunked(rule, tokens, state)[0]
    value = tokens.value.clone()
    value[0, 0, 5] = bad
    answer = chunked(rule, tokens._replace(value=value), state)[0]
    assert torch.equal(answer[0, 0, :4], clean[0, 0, :4])  # the chunk before
    assert not answer[0, 0, 5:].isfinite().any()
    assert torch.equal(answer[1], clean[1])
    assert torch.equal(answer[0, 1], clean[0, 1])
    present = torch.ones_like(tokens.present)
    present[0, 0, 5] = 0
    absent = everything(rule, tokens._replace(value=value, present=present), state, ends=True, shared=False)
    assert all(part.isfinite().all() for part in absent.values())


@pytest.mark.parametrize(
    ("rule", "dtype", "look", "used"),
    [
        (SETTLED, torch.float32, False, True),
        (replace(SETTLED, depth=0, optimiser="descent"), torch.float32, False, True),
        (SETTLED, torch.float64, False, False),
        (SETTLED, torch.float32, True, False),
        (replace(SETTLED, bias="huber"), torch.float32, False, False),
        (replace(SETTLED, window=2), torch.float32, False, False),
        (replace(SETTLED, depth=0, optimiser="descent", decay_first=True), torch.float32, False, False),
    ],
)
def test_only_the_commonest_rules_in_single_precision_are_compiled(rule, dtype, look, used, monkeypatch):
    seen = []
    apply = compiled_functions.CompiledDual.apply
    monkeypatch.setattr(compiled_functions.CompiledDual, "apply", lambda *parts: seen.append(1) or apply(*parts))
    tokens, state = case(rule, 5)
    tokens = map_tokens(tokens, lambda part: part.to(dtype))
    state = {name: part.to(dtype) for name, part in state.items()}
    _, after, _ = chunked(rule, tokens, state, look)
    assert bool(seen) == used
    seen.clear()
    chunked(rule, map_tokens(tokens, lambda part: part[:, :, :2]), after, look)  # within the chunk that has begun
    assert not seen


def test_no_series_and_no_tokens_are_an_answer_without_any():
    for series, steps in ((0, 5), (2, 0)):
        tokens, state = single(*case(SETTLED, 5))
        tokens = map_tokens(tokens, lambda part, s=series, t=steps: part[:s, :, :t])
        state = {name: part[:series] for name, part in state.items()}
        assert chunked(SETTLED, tokens, state)[0].shape == (series, 2, steps, WIDTH)


def test_the_compiler_is_not_imported_before_it_is_needed():
    code = "import sys, models, models.memory.chunks; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_a_folder_to_keep_them_in_the_loops_are_compiled_for_the_process():
    code = (
        "import numba, numpy; from models.memory import compiled; rows = numpy.ones((2, 3), numpy.float32);"
        "numba.njit(lambda rows: compiled._add(rows, rows))(rows)"
    )
    nowhere = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_")}
    nowhere["NUMBA_CACHE_LOCATOR_CLASSES"] = "UserProvidedCacheLocator"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=nowhere)
    assert done.returncode == 0, done.stderr
    assert "NUMBA_CACHE_DIR" in done.stderr
