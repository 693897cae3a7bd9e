"""Every named memory as a backbone: one scan, pieces of it and single steps are the same; all of it learns."""

import pytest
import torch
from memory_cases import assert_no_series_sees_another, distance, states_apart

from models.blocks import part, prefixed
from models.contract import ModelError
from models.memory import MEMORIES
from models.memory.backbone import MemoryBackbone, MemoryConfig

CHUNKS = (1, 4, 16, 64)
WIDTH = 3
CASES = [(name, chunk) for name in MEMORIES for chunk in CHUNKS]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def build(name: str, chunk: int, memory: str = "learns") -> MemoryBackbone:
    config = MemoryConfig(width=8, heads=2, blocks=2, chunk=chunk, memory=memory)
    net = MemoryBackbone(WIDTH, config, MEMORIES[name]).double().eval()
    with torch.no_grad():  # gates that depend on the input more than those of a new network
        for layer in net.layers:
            layer.to_gates.weight.mul_(10)
    return net


def stream(steps: int, batch: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    present = (torch.rand(batch, steps) > 0.2).double()
    return torch.randn(batch, steps, WIDTH, dtype=torch.float64), present


@pytest.mark.parametrize(("name", "chunk"), CASES)
def test_a_scan_its_pieces_and_its_steps_are_the_same(name, chunk):
    net, steps = build(name, chunk), 70 if chunk == 64 else 22
    e, present = stream(steps)
    with torch.no_grad():
        whole, after = net.scan(e, net.initial_state(3), present)
        for cut in (1, 9, steps - 2):
            first, state = net.scan(e[:, :cut], net.initial_state(3), present[:, :cut])
            second, state = net.scan(e[:, cut:], state, present[:, cut:])
            assert distance(torch.cat([first, second], 1), whole) < 1e-8
            assert states_apart(state, after) < 1e-8
        state = net.initial_state(3)
        for t in range(steps):
            out, state = net.step(e[:, t], state, present[:, t])
            assert distance(out, whole[:, t]) < 1e-8, t
        assert states_apart(state, after) < 1e-8
    assert list(after) == list(net.initial_state(1))


@pytest.mark.parametrize(("name", "chunk"), [case for case in CASES if case[1] in (1, 16)])
def test_every_parameter_learns(name, chunk):
    net = build(name, chunk).train()
    e, present = stream(12)
    e.requires_grad_()
    out, _ = net.scan(e, net.initial_state(3), present)
    (out * torch.randn_like(out)).sum().backward()
    inner = MEMORIES[name]
    heads = 2
    for key, parameter in net.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        if not key.endswith("to_gates.bias"):
            assert parameter.grad.abs().max() > 0, key
            continue
        keep, momentum, rate, importance, clip = parameter.grad.view(5, heads)
        assert (keep.abs().min() > 0) == inner.forgets
        assert (momentum.abs().min() > 0) == (inner.optimiser != "descent")
        assert rate.abs().min() > 0
        assert (importance.abs().min() > 0) == (inner.window > 1)
        assert clip.abs().max() == 0 or inner.bias == "huber"
    assert e.grad is not None
    assert e.grad[:, -1].abs().max() > 0


@pytest.mark.parametrize(("name", "chunk"), CASES)
def test_the_gradients_of_a_scan_are_those_of_its_steps(name, chunk):
    net, steps = build(name, chunk), max(7, chunk + 3)  # past a border
    e, present = stream(steps)
    weights = torch.randn(3, steps, 8, dtype=torch.float64)
    scanned, _ = net.scan(e, net.initial_state(3), present)
    fast = torch.autograd.grad((scanned * weights).sum(), list(net.parameters()))
    state, outs = net.initial_state(3), []
    for t in range(steps):
        out, state = net.step(e[:, t], state, present[:, t])
        outs.append(out)
    slow = torch.autograd.grad((torch.stack(outs, 1) * weights).sum(), list(net.parameters()))
    for (key, _), a, b in zip(net.named_parameters(), fast, slow, strict=True):
        assert distance(a, b) < 1e-8, key


@pytest.mark.parametrize("name", MEMORIES)
def test_no_series_sees_another(name):
    net = build(name, 4)
    assert_no_series_sees_another(net, *stream(13))


@pytest.mark.parametrize("name", MEMORIES)
def test_no_output_knows_a_later_observation(name):
    net = build(name, 4)
    e, present = stream(13)
    with torch.no_grad():
        whole, _ = net.scan(e, net.initial_state(3), present)
        for at in (1, 6, 12):
            other = torch.cat([e[:, :at], torch.randn_like(e[:, at:])], 1)
            changed, _ = net.scan(other, net.initial_state(3), present)
            assert torch.equal(changed[:, :at], whole[:, :at])
            assert not torch.equal(changed[:, at], whole[:, at])


@pytest.mark.parametrize("name", MEMORIES)
def test_the_past_is_in_the_state(name):
    net = build(name, 4)
    e, present = stream(13)
    with torch.no_grad():
        fresh, _ = net.step(e[:, -1], net.initial_state(3), present[:, -1])
        _, state = net.scan(e[:, :-1], net.initial_state(3), present[:, :-1])
        carried, _ = net.step(e[:, -1], state, present[:, -1])
    assert (carried - fresh).abs().min() > 1e-9


def test_a_part_of_a_state_is_what_its_prefix_made():
    state = {"a": torch.zeros(1), "b.c": torch.ones(1)}
    assert part("block1", prefixed("block1", state) | prefixed("block10", state)) == state


@pytest.mark.parametrize("name", MEMORIES)
def test_what_is_not_present_passes_the_memory_by_and_goes_through_the_convolution(name):
    net = build(name, 4)
    e, there = stream(3)[0], torch.ones(3, 3, dtype=torch.float64)
    with torch.no_grad():
        _, state = net.scan(e[:, :2], net.initial_state(3), there[:, :2])
        _, absent = net.step(e[:, 2], state, 0 * there[:, 2])
        _, present = net.step(e[:, 2], state, there[:, 2])
    for key in (key for key in state if ".memory" in key or ".momentum" in key):
        assert distance(absent[key], state[key]) < 1e-14, key
        assert not torch.equal(present[key], state[key]), key
    for key in (key for key in state if ".conv." in key and key.startswith("block0")):
        assert torch.equal(absent[key], present[key])
        assert not torch.equal(absent[key], state[key])


# --- ablations ------------------------------------------------------------------------------------------------


def ablated(net: MemoryBackbone, name: str, chunk: int, memory: str) -> MemoryBackbone:
    """Another network with the parameters of this one."""
    other = build(name, chunk, memory)
    other.load_state_dict(net.state_dict())
    return other


@pytest.mark.parametrize("chunk", [1, 4])
@pytest.mark.parametrize("name", MEMORIES)
def test_a_frozen_memory_is_one_that_keeps_everything_at_a_rate_of_0(name, chunk):
    net = build(name, chunk)
    with torch.no_grad():
        for layer in net.layers:
            layer.to_gates.weight.zero_()
            keep, _, rate, *_ = layer.to_gates.bias.view(5, 2)
            keep.fill_(100.0)
            rate.fill_(-1000.0)
        still = ablated(net, name, chunk, "frozen")
        e, present = stream(9)
        expected, _ = net.scan(e, net.initial_state(3), present)
        found, _ = still.scan(e, still.initial_state(3), present)
        assert distance(found, expected) < 1e-10
        x, there = torch.randn(3, 8, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
        _, _, look = net.layers[0].step(x, there, net.layers[0].initial_state(3))
        _, _, inside = still.layers[0].step(x, there, still.layers[0].initial_state(3))
        for a, b in zip(inside, look, strict=True):
            assert distance(a, b) < 1e-10


@pytest.mark.parametrize("memory", ["frozen", "off"])
@pytest.mark.parametrize("name", MEMORIES)
def test_an_ablated_memory_keeps_its_state_in_every_form_and_moves_its_convolution(name, memory):
    net = build(name, 4, memory)
    e, present = stream(9)
    start = net.initial_state(3)
    with torch.no_grad():
        whole, after = net.scan(e, start, present)
        first, state = net.scan(e[:, :4], start, present[:, :4])
        outs = [first]
        for t in range(4, 9):
            out, state = net.step(e[:, t], state, present[:, t])
            outs.append(out[:, None])
    assert distance(torch.cat(outs, 1), whole) < 1e-10
    assert states_apart(state, after) < 1e-10
    for key, value in after.items():
        assert torch.equal(value, start[key]) == (".conv." not in key), key
    assert any(".memory" in key for key in after) == (memory == "frozen")


@pytest.mark.parametrize("name", MEMORIES)
def test_weights_pass_between_a_memory_and_its_ablations(name):
    nets = {"learns": build(name, 4)}
    e, present = stream(9)
    nets |= {memory: ablated(nets["learns"], name, 4, memory) for memory in ("frozen", "off")}
    nets["back"] = ablated(nets["off"], name, 4, "learns")
    with torch.no_grad():
        outs = {key: net.scan(e, net.initial_state(3), present)[0] for key, net in nets.items()}
    assert torch.equal(outs["back"], outs["learns"])
    for a, b in (("learns", "frozen"), ("learns", "off"), ("frozen", "off")):
        assert (outs[a] - outs[b]).abs().max() > 1e-3, (a, b)


def test_without_a_memory_only_the_convolution_sees_the_past():
    net = build("titans-lmm", 4, "off")
    e, present = stream(12)
    other = e.clone()
    other[:, 0] += 1
    with torch.no_grad():
        changed = net.scan(other, net.initial_state(3), present)[0] - net.scan(e, net.initial_state(3), present)[0]
    reach = 2 * (net.config.kernel - 1)  # of two blocks
    assert changed[:, : reach + 1].abs().amax((0, 2)).min() > 0
    assert changed[:, reach + 1 :].abs().max() == 0


def test_an_unknown_ablation_is_refused():
    with pytest.raises(ModelError, match="memory is one of learns, frozen, off, not 'forgets'"):
        MemoryConfig(memory="forgets")


@pytest.mark.parametrize("chunk", [1, 16, 64])
@pytest.mark.parametrize("name", [name for name, inner in MEMORIES.items() if inner.depth > 1])
def test_a_new_deep_memory_does_not_die_in_a_long_stream(name, chunk):
    """All weights at 0 are a point that an MLP never leaves, so it must not forget faster than it learns."""
    steps = 1500
    net = MemoryBackbone(WIDTH, MemoryConfig(width=8, heads=2, blocks=1, chunk=chunk), MEMORIES[name]).eval()
    with torch.no_grad():
        _, state = net.scan(torch.randn(1, steps, WIDTH), net.initial_state(1), torch.ones(1, steps))
        weights = [value for key, value in state.items() if ".memory" in key]
        assert weights
        assert all(value.norm() > 0.3 for value in weights)
