"""The formulas of the step against the library's own sequence kernels.

Shapes: B series, T time, E width of the embedding, D width of the hidden state.
"""

import pytest
import torch
from torch import Tensor, nn

from models.contract import ModelError
from models.recurrent import CELLS, Bidirectional, Convolutional, ConvolutionalConfig, Recurrent, RecurrentConfig

WIDTH, HIDDEN = 3, 5


def sequence(steps: int = 9) -> Tensor:
    return torch.randn(2, steps, WIDTH, dtype=torch.float64)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def random_state(net: Recurrent) -> dict[str, Tensor]:
    return {name: torch.randn_like(value) for name, value in net.initial_state(2).items()}


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("cell", CELLS)
def test_steps_are_the_library_s_network(cell, layers):
    net = Recurrent(WIDTH, cell, RecurrentConfig(HIDDEN, layers)).double().eval()
    library = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}[cell](WIDTH, HIDDEN, layers, batch_first=True).double()
    library.load_state_dict(net.net.state_dict())
    e, state = sequence(), random_state(net)
    h = torch.stack([state[f"rnn.h{layer}"] for layer in range(layers)])
    c = torch.stack([state[f"rnn.c{layer}"] for layer in range(layers)]) if cell == "lstm" else None
    expected, last = library(e, h if c is None else (h, c))
    scanned, after_scan = net.scan(e, state)
    torch.testing.assert_close(scanned, expected, rtol=0, atol=1e-12)
    for t in range(e.shape[1]):
        out, state = net.step(e[:, t], state)
        torch.testing.assert_close(out, expected[:, t], rtol=0, atol=1e-12)
    assert list(state) == list(after_scan) == list(net.initial_state(1))
    for kind, values in zip("hc", last if cell == "lstm" else (last,), strict=False):
        for layer in range(layers):
            torch.testing.assert_close(state[f"rnn.{kind}{layer}"], values[layer], rtol=0, atol=1e-12)
            torch.testing.assert_close(after_scan[f"rnn.{kind}{layer}"], values[layer], rtol=0, atol=1e-12)


@pytest.mark.parametrize("cell", CELLS)
def test_the_state_is_where_the_memory_is(cell):
    net = Recurrent(WIDTH, cell, RecurrentConfig(HIDDEN)).double().eval()
    e = sequence(1)[:, 0]
    fresh, _ = net.step(e, net.initial_state(2))
    for name in net.initial_state(2):
        other = net.initial_state(2) | {name: torch.full((2, HIDDEN), 0.5, dtype=torch.float64)}
        assert (net.step(e, other)[0] - fresh).abs().min() > 1e-6, f"{name} has no influence"


def test_a_convolution_before_an_lstm_is_the_sum_over_its_kernel_of_the_steps_so_far():
    config = ConvolutionalConfig(HIDDEN, filters=4, kernel=3, convolutions=1)
    net = Convolutional(WIDTH, "lstm", config).double().eval()
    e = sequence()
    padded = torch.cat([torch.zeros(2, 2, WIDTH, dtype=torch.float64), e], 1)
    weight, bias = net.convolutions[0].weight, net.convolutions[0].bias  # (4, E, 3)
    steps = [sum(padded[:, t + k] @ weight[..., k].T for k in range(3)) + bias for t in range(e.shape[1])]
    expected, _ = net.recurrent.scan(nn.functional.gelu(torch.stack(steps, 1)), net.recurrent.initial_state(2))
    torch.testing.assert_close(net.scan(e, net.initial_state(2))[0], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("settings", [{"filters": 0}, {"kernel": 1}, {"convolutions": 0}, {"hidden": 0}])
def test_convolutions_out_of_range_are_refused(settings):
    name, value = next(iter(settings.items()))
    with pytest.raises(ModelError, match=f"{name}={value}"):
        ConvolutionalConfig(**settings)


@pytest.mark.parametrize("cell", CELLS)
def test_the_backward_half_is_a_forward_network_on_the_flipped_sequence(cell):
    net = Bidirectional(WIDTH, cell, RecurrentConfig(HIDDEN)).double().eval()
    forward, backward = (Recurrent(WIDTH, cell, RecurrentConfig(HIDDEN)).double().eval() for _ in range(2))
    weights = net.net.state_dict()
    forward.net.load_state_dict({name: value for name, value in weights.items() if not name.endswith("_reverse")})
    backward.net.load_state_dict(
        {name.removesuffix("_reverse"): value for name, value in weights.items() if name.endswith("_reverse")}
    )
    e = sequence()
    out, state = net.scan(e, {})
    ahead, _ = forward.scan(e, forward.initial_state(2))
    behind, _ = backward.scan(e.flip(1), backward.initial_state(2))
    torch.testing.assert_close(out, torch.cat([ahead, behind.flip(1)], -1), rtol=0, atol=1e-12)
    assert state == {}
    assert out.shape[-1] == net.features == 2 * HIDDEN


def test_every_position_of_a_bidirectional_network_sees_the_end():
    net = Bidirectional(WIDTH, "gru", RecurrentConfig(HIDDEN)).double().eval()
    e = sequence()
    other = torch.cat([e[:, :-1], e[:, -1:] + 1], 1)
    assert (net.scan(e, {})[0][:, 0] != net.scan(other, {})[0][:, 0]).any()


def test_a_bidirectional_network_refuses_to_stream_and_says_what_does():
    net = Bidirectional(WIDTH, "lstm", RecurrentConfig(HIDDEN))
    with pytest.raises(ModelError, match="does not stream; use gru or lstm"):
        net.step(torch.zeros(1, WIDTH), net.initial_state(1))


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("make", [Recurrent, Bidirectional])
def test_dropout_acts_in_training_only(make, layers):
    net = make(WIDTH, "gru", RecurrentConfig(HIDDEN, layers, dropout=0.5)).double()
    plain = make(WIDTH, "gru", RecurrentConfig(HIDDEN, layers)).double()
    plain.load_state_dict(net.state_dict())
    e, state = sequence(), net.initial_state(2)
    assert torch.equal(net.eval().scan(e, state)[0], plain.eval().scan(e, state)[0])
    trained = net.train().scan(e, state)[0]
    assert 0.2 < (trained == 0).double().mean() < 0.8
    assert not torch.equal(trained, net.scan(e, state)[0])


@pytest.mark.parametrize("settings", [{"hidden": 0}, {"layers": 0}, {"dropout": 1.0}, {"dropout": -0.1}])
def test_a_configuration_out_of_range_is_refused(settings):
    name, value = next(iter(settings.items()))
    with pytest.raises(ModelError, match=rf"at least 1 and dropout lies in \[0, 1\); got .*{name}={value}"):
        RecurrentConfig(**settings)
