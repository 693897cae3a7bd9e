"""A look inside: the same in both forms, beside the same prediction, and silent where nothing was observed."""

import pytest
import torch
from memory_cases import distance, states_apart

from models.catalog import build
from models.contract import ModelError, Signature
from models.memory.atlas import ATLAS, DEEP_TRANSFORMER, OMEGA, SWLA
from models.memory.backbone import Inner, MemoryBackbone, MemoryConfig
from models.memory.miras import MEMORA, MONETA, YAAD
from models.memory.titans import DELTANET, GATED_DELTANET, LMM, TTT_LINEAR
from models.network import Network, NetworkConfig

WIDTH, BATCH, HEADS, BLOCKS = 3, 3, 2, 2
GATES = {
    "titans-lmm": (LMM, "keep momentum rate"),
    "deltanet": (DELTANET, "rate"),
    "gated-deltanet": (GATED_DELTANET, "keep rate"),
    "ttt-linear": (TTT_LINEAR, "rate"),
    "omega": (OMEGA, "keep rate importance"),
    "atlas": (ATLAS, "keep momentum rate importance"),
    "deep-transformer": (DEEP_TRANSFORMER, "keep rate"),
    "swla": (SWLA, "keep rate importance"),
    "moneta": (MONETA, "keep rate"),
    "yaad": (YAAD, "keep rate clip"),
    "memora": (MEMORA, "keep rate"),
}
every_memory = pytest.mark.parametrize("name", GATES)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def build_backbone(inner: Inner, chunk: int = 4) -> MemoryBackbone:
    config = MemoryConfig(width=8, heads=HEADS, blocks=BLOCKS, chunk=chunk)
    net = MemoryBackbone(WIDTH, config, inner).double().eval()
    with torch.no_grad():  # gates that depend on the input more than those of a new network
        for layer in net.layers:
            layer.to_gates.weight.mul_(10)
    return net


def stream(steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    present = (torch.rand(BATCH, steps) > 0.2).double()
    return torch.randn(BATCH, steps, WIDTH, dtype=torch.float64), present


def same_look(step: dict[str, torch.Tensor], scan: dict[str, torch.Tensor], t: int) -> None:
    assert list(step) == list(scan)
    for key, value in step.items():
        assert value.shape == (BATCH, HEADS), key
        assert torch.equal(value.isnan(), scan[key][:, t].isnan()), key
        assert distance(scan[key][:, t].nan_to_num(), value.nan_to_num()) < 1e-8, key


@every_memory
def test_the_look_is_the_same_in_both_forms_and_changes_nothing(name):
    net = build_backbone(GATES[name][0])
    e, present = stream(9)
    with torch.no_grad():
        plain, plain_after = net.scan(e, net.initial_state(BATCH), present)
        whole, after, look = net.look("scan", e, net.initial_state(BATCH), present)
        assert torch.equal(whole, plain)
        assert states_apart(after, plain_after) == 0
        state = net.initial_state(BATCH)
        for t in range(9):
            out, state, inside = net.look("step", e[:, t], state, present[:, t])
            assert distance(out, whole[:, t]) < 1e-8
            same_look(inside, look, t)


@every_memory
def test_the_look_has_the_memorys_own_gates_and_only_the_norm_where_nothing_was_observed(name):
    inner, gates = GATES[name]
    net = build_backbone(inner)
    e, present = stream(30)
    with torch.no_grad():
        _, _, look = net.look("scan", e, net.initial_state(BATCH), present)
    assert list(look) == [
        f"block{index}.{key}" for index in range(BLOCKS) for key in ("surprise", *gates.split(), "norm")
    ]
    absent = present < 0.5
    assert absent.any()
    for key, value in look.items():
        known = value[~absent]
        assert known.isfinite().all(), key
        assert (known >= 0).all(), key
        assert known.std() > 0, key
        if key.endswith((".keep", ".momentum", ".importance")):
            assert (known <= 1).all(), key
        if key.endswith(".rate"):
            assert (known <= net.config.rate).all(), key
        assert value[absent].isfinite().all() if key.endswith(".norm") else value[absent].isnan().all(), key


def test_the_gates_that_are_shown_are_those_that_the_memory_used():
    net = build_backbone(LMM, chunk=1)
    e, there = stream(5)[0], torch.ones(BATCH, 5, dtype=torch.float64)
    with torch.no_grad():  # of the first block: keep 1/2, no momentum, no step
        net.layers[0].to_gates.weight.zero_()
        net.layers[0].to_gates.bias.copy_(torch.tensor([0.0, -40.0, -40.0, 0.0, 0.0]).repeat_interleave(HEADS))
        _, _, look = net.look("scan", e, net.initial_state(BATCH), there)
    assert distance(look["block0.keep"], torch.full((BATCH, 5, HEADS), 0.5)) < 1e-12
    assert look["block0.rate"].max() < 1e-12
    assert distance(look["block0.norm"][:, 1:], 0.5 * look["block0.norm"][:, :-1]) < 1e-12
    assert (look["block1.keep"] - 0.5).abs().min() > 0.1


def test_a_matrix_that_stored_a_pair_is_no_longer_surprised_by_it():
    net = build_backbone(DELTANET, chunk=1)
    e, there = torch.ones(BATCH, 40, WIDTH, dtype=torch.float64), torch.ones(BATCH, 40, dtype=torch.float64)
    with torch.no_grad():
        _, _, look = net.look("scan", e, net.initial_state(BATCH), there)
    assert (look["block0.surprise"][:, -1] < 0.1 * look["block0.surprise"][:, 5]).all()
    assert (look["block0.norm"][:, -1] > look["block0.norm"][:, 1]).all()


@pytest.mark.parametrize(
    ("signature", "values"),
    [
        (Signature("forecast", 2, horizon=3), {"skip_lags": 4}),
        (Signature("classify", 2, classes=3), {}),
        (Signature("regress", 2), {}),
    ],
    ids=["forecast", "classify", "regress"],
)
def test_a_network_gives_the_look_beside_the_prediction_that_it_gives_without(signature, values):
    config = MemoryConfig(width=8, heads=HEADS, blocks=1, chunk=4)
    model = Network(signature, NetworkConfig(embed=8, **values), lambda width: MemoryBackbone(width, config, LMM))
    model = model.double().eval()
    torch.nn.init.normal_(next(model.head.parameters()), std=0.5)
    x, mask = torch.randn(BATCH, 9, 2, dtype=torch.float64), (torch.rand(BATCH, 9, 2) > 0.3).double()
    mask[0, 4] = 0
    assert model.has_look
    with torch.no_grad():
        plain, _ = model.scan(x, mask, model.initial_state(BATCH))
        scanned, _, look = model.look("scan", x, mask, model.initial_state(BATCH))
        assert torch.equal(scanned, plain)
        state = model.initial_state(BATCH)
        for t in range(9):
            prediction, after, inside = model.look("step", x[:, t], mask[:, t], state)
            expected, state = model.step(x[:, t], mask[:, t], state)
            assert torch.equal(prediction, expected)
            assert states_apart(after, state) == 0
            same_look(inside, look, t)
    assert torch.equal(look["block0.surprise"][..., 0].isnan(), mask.amax(-1) == 0)  # one channel of two is enough


@pytest.mark.parametrize("name", ["naive", "ridge", "gru", "bilstm"])
@pytest.mark.parametrize("form", ["step", "scan"])
def test_a_model_without_a_memory_says_which_have_one(name, form):
    model = build(name, Signature("classify", 1, classes=2))
    assert not model.has_look
    with pytest.raises(ModelError, match=r"no memory to look into; .* titans-lmm and yaad"):
        model.look(form, torch.zeros(1, 1), torch.ones(1, 1), model.initial_state(1))
