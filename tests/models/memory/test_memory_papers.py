"""What the papers say of their memories: hand numbers, closed forms, limits and capacities.

PAPERS: Titans (arXiv 2501.00663), ATLAS (2505.23735), Miras (2504.13173). Toy 1.8-i, which needs a training run, is in
test_memory_tasks_toy.py.
"""

import math

import numpy as np
import pytest
import torch
from memory_cases import HEADS, distance, one, random_memory, random_tokens, start
from scipy.optimize import minimize
from torch import Tensor
from torch.nn.functional import normalize

from models.memory.backbone import Polynomial
from models.memory.chunks import chunked
from models.memory.core import (
    NORM_EPS,
    Rule,
    Tokens,
    bias_gradient,
    initial_state,
    muon_step,
    newton_schulz,
    sequential,
    tokens_at,
    weights_of,
)

DELTA = Rule(depth=0, optimiser="descent", chunk=1)
TITANS = Rule(depth=0, optimiser="momentum", chunk=1)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def empty(rule: Rule, features: int, values: int):
    """One series, one head, an empty matrix."""
    return initial_state(rule, [torch.zeros(1, features, values, dtype=torch.float64)], 1, features, values, False)


def learn(rule: Rule, tokens: Tokens, features: int, values: int) -> Tensor:
    """The matrix (F, V) after the stream."""
    return chunked(rule, tokens, empty(rule, features, values))[1]["memory0"][0, 0]


# --- Titans: an independent dense computation ---------------------------------------------------------------


def silu(z):
    return z / (1 + np.exp(-z))


class DenseTitans:
    """Titans' rule for one series and one head with a weight matrix per token, from the paper's Eq. 12 to 18 alone.

    M(z) = z + LayerNorm(silu(z W1) W2), or z W for depth 0; loss |M(k) - v|^2. The Jacobian of the norm is a matrix.
    """

    def __init__(self, depth: int, window: int = 1) -> None:
        self.depth, self.window = depth, window

    def forward(self, weights, z, residual):
        hidden = [z]
        for weight in weights[:-1]:
            hidden.append(silu(hidden[-1] @ weight))
        out = hidden[-1] @ weights[-1]
        if self.depth == 0:
            return hidden, out, np.eye(len(out))
        n = len(out)
        centre = np.eye(n) - np.ones((n, n)) / n
        centred = centre @ out
        deviation = np.sqrt((centred**2).mean() + NORM_EPS)
        normed = centred / deviation
        jacobian = centre @ (np.eye(n) - np.outer(normed, normed) / n) / deviation  # symmetric
        return hidden, normed + residual, jacobian

    def gradient(self, weights, key, value, residual):
        hidden, answer, jacobian = self.forward(weights, key, residual)
        delta = jacobian.T @ (2 * (answer - value))
        found = [np.outer(hidden[-1], delta)]
        for layer in range(len(weights) - 1, 0, -1):
            before = hidden[layer - 1] @ weights[layer - 1]
            s = 1 / (1 + np.exp(-before))
            delta = (weights[layer] @ delta) * s * (1 + before * (1 - s))
            found.insert(0, np.outer(hidden[layer - 1], delta))
        return found

    def read(self, chunk, start_weights, tokens):
        """tokens: a dictionary of (T, ...) arrays; returns answers (T, V), and weights and momenta after the last."""
        memories = [[w.copy() for w in start_weights]]
        momentum, answers = [0 * w for w in start_weights], []
        for t in range(len(tokens["key"])):
            anchor = memories[chunk * (t // chunk)]
            surprise = [0 * w for w in start_weights]
            for i in range(max(0, t - self.window + 1), t + 1):
                one_token = self.gradient(anchor, tokens["key"][i], tokens["value"][i], tokens["key_residual"][i])
                surprise = [s + tokens["importance"][i] * g for s, g in zip(surprise, one_token, strict=True)]
            eta, theta, keep = (tokens[name][t] for name in ("momentum", "rate", "keep"))
            momentum = [eta * s - theta * g for s, g in zip(momentum, surprise, strict=True)]
            memories.append([keep * m + s for m, s in zip(memories[-1], momentum, strict=True)])
            answers.append(self.forward(memories[-1], tokens["query"][t], tokens["query_residual"][t])[1])
        return np.array(answers), memories[-1], momentum


@pytest.mark.parametrize("window", [1, 4, 9])
@pytest.mark.parametrize("depth", [0, 1, 2, 3])
def test_titans_is_the_dense_recurrence_of_the_paper_at_every_chunk_length(depth, window):
    for chunk in (1, 3, 5, 7, 8, 10, 13, 24):
        rule = Rule(depth=depth, expansion=2, chunk=chunk, window=window)
        width = 3
        tokens, memory = random_tokens(rule, 24, width, width), random_memory(rule, width, width)
        # Small steps: a deep memory amplifies rounding, and this is about the rule.
        tokens = tokens._replace(rate=tokens.rate / (window * (1 + depth) ** 2))
        answer, after, _ = chunked(rule, tokens, start(rule, memory, values=width))
        for head in range(HEADS):
            parts = {n: p[0, head].numpy() for n, p in tokens._asdict().items() if p is not None}
            blank = np.zeros((24, width))
            parts = {"key_residual": blank, "query_residual": blank, **parts}
            expected, weights, momenta = DenseTitans(depth, window).read(
                chunk, [m[head].numpy() for m in memory], parts
            )
            assert np.abs(answer[0, head].numpy() - expected).max() < 1e-10
            for layer, (weight, momentum) in enumerate(zip(weights, momenta, strict=True)):
                assert np.abs(after[f"memory{layer}"][0, head].numpy() - weight).max() < 1e-10
                assert np.abs(after[f"momentum{layer}"][0, head].numpy() - momentum).max() < 1e-10


def test_a_chunk_of_one_is_the_online_rule_and_a_longer_one_is_not():
    memory = random_memory(Rule(depth=2))
    tokens = random_tokens(Rule(depth=2), 24)
    online = sequential(Rule(depth=2, chunk=1), tokens, start(Rule(depth=2, chunk=1), memory))[0]
    for chunk in (3, 24):
        rule = Rule(depth=2, chunk=chunk)
        answer = chunked(rule, tokens, start(rule, memory))[0]
        assert distance(answer[:, :, :1], online[:, :, :1]) < 1e-12
        assert distance(answer, online) > 0.01


def test_the_second_chunk_is_learned_at_the_memory_that_the_first_one_left():
    rule = Rule(depth=2, chunk=4)
    state, tokens, other = start(rule, random_memory(rule)), random_tokens(rule, 8), random_tokens(rule, 8)
    changed = Tokens(
        *(a if a is None else torch.cat([b[:, :, :4], a[:, :, 4:]], 2) for a, b in zip(tokens, other, strict=True))
    )
    looks = [chunked(rule, stream, state, look=True)[2] for stream in (tokens, changed)]
    assert looks[0] is not None
    assert looks[1] is not None
    assert (looks[0].surprise - looks[1].surprise)[:, :, 4:].abs().min() > 1e-6
    frozen = [stream._replace(rate=0 * stream.rate, keep=0 * stream.keep + 1) for stream in (tokens, changed)]
    looks = [chunked(rule, stream, state, look=True)[2] for stream in frozen]
    assert looks[0] is not None
    assert looks[1] is not None
    assert torch.equal(looks[0].surprise[:, :, 4:], looks[1].surprise[:, :, 4:])


def test_half_a_step_stores_a_pair_at_once():
    stream = one(key=[[0.6, 0.8]], value=[[3.0, -4.0]], rate=[0.5])
    for rule in (DELTA, TITANS):
        answer, _, _ = chunked(rule, stream, empty(rule, 2, 2))
        assert distance(answer[0, 0, 0], torch.tensor([3.0, -4.0]).double()) < 1e-15


def test_without_momentum_titans_is_the_delta_rule_and_not_the_gated_one():
    tokens = random_tokens(TITANS, 15)._replace(importance=torch.ones(2, HEADS, 15))
    memory = random_memory(TITANS)
    titans = sequential(TITANS, tokens._replace(momentum=0 * tokens.momentum), start(TITANS, memory))[0]
    delta = sequential(DELTA, tokens, start(DELTA, memory))[0]
    gated = Rule(depth=0, optimiser="descent", chunk=1, decay_first=True)
    assert distance(titans, delta) < 1e-14
    assert distance(titans, sequential(gated, tokens, start(gated, memory))[0]) > 1e-3
    by_hand = memory[0].expand(2, *memory[0].shape).clone()  # M <- keep M + beta (v - M k) k', beta = 2 theta
    for t in range(15):
        at = tokens_at(tokens, t)
        wrong = at.value - (at.key[..., None, :] @ by_hand)[..., 0, :]
        by_hand = at.keep[..., None, None] * by_hand + 2 * at.rate[..., None, None] * (
            at.key[..., :, None] * wrong[..., None, :]
        )
        assert distance(delta[:, :, t], (at.query[..., None, :] @ by_hand)[..., 0, :]) < 1e-12


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_repeated_key_is_stable_exactly_up_to_a_step_of_one_plus_the_momentum(momentum):
    def wrong(rate: float) -> float:
        steps = 2000
        stream = one(
            key=[[1.0, 0.0]] * steps, value=[[1.0, 1.0]] * steps, rate=[rate] * steps, momentum=[momentum] * steps
        )
        _, _, look = sequential(Rule(depth=0, chunk=1, radius=1e30), stream, empty(TITANS, 2, 2))
        return look.surprise[0, 0, -1].item()

    assert wrong(0.99 * (1 + momentum)) < 1e-3
    assert wrong(1.01 * (1 + momentum)) > 1e3


def test_forgetting_pulls_a_repeated_pair_towards_zero_by_a_known_factor():
    steps, rate, keep, momentum = 800, 0.2, 0.97, 0.6
    stream = one(
        key=[[0.6, 0.8]] * steps,
        value=[[2.0, -1.0]] * steps,
        rate=[rate] * steps,
        keep=[keep] * steps,
        momentum=[momentum] * steps,
    )
    answer, _, _ = chunked(TITANS, stream, empty(TITANS, 2, 2))
    factor = 2 * rate / (2 * rate + (1 - keep) * (1 - momentum))
    assert distance(answer[0, 0, -1], factor * torch.tensor([2.0, -1.0]).double()) < 1e-12


@pytest.mark.parametrize("chunk", [1, 8])
def test_forgetting_all_leaves_the_surprise_and_no_momentum_leaves_the_gradient(chunk):
    rule = Rule(depth=0, chunk=chunk)
    for form in (sequential, chunked):
        tokens, state = random_tokens(rule, 5), start(rule, random_memory(rule))
        tokens = tokens._replace(importance=torch.ones_like(tokens.importance))
        keep = tokens.keep.clone()
        keep[:, :, -1] = 0
        _, after, _ = form(rule, tokens._replace(keep=keep), state)
        assert distance(after["memory0"], after["momentum0"]) < 1e-12
        momentum = tokens.momentum.clone()
        momentum[:, :, -1] = 0
        _, after, _ = form(rule, tokens._replace(momentum=momentum), state)
        _, before, _ = form(rule, tokens_at(tokens, slice(0, 4)), state)
        anchor = before["memory0"] if chunk == 1 else before["anchor0"]
        last = tokens_at(tokens, 4)
        wrong = (last.key[..., None, :] @ anchor)[..., 0, :] - last.value
        gradient = 2 * last.key[..., :, None] * wrong[..., None, :]
        assert distance(after["momentum0"], -last.rate[..., None, None] * gradient) < 1e-12


def test_a_deeper_memory_recalls_more_pairs_than_its_keys_have_dimensions():
    width, pairs, rounds = 4, 16, 150
    key = normalize(torch.randn(1, 1, pairs, width, dtype=torch.float64), dim=-1)
    value = key + torch.nn.functional.layer_norm(torch.randn_like(key), (width,))
    left = {}
    for depth in (1, 2):
        rule = Rule(depth=depth, expansion=4, optimiser="descent", chunk=16)
        memory = [0.5 * part[:1] for part in random_memory(rule, width, width)]
        many = pairs * rounds
        ones = torch.ones(1, 1, many, dtype=torch.float64)
        stream = Tokens(
            key=key.repeat(1, 1, rounds, 1),
            value=value.repeat(1, 1, rounds, 1),
            query=key.repeat(1, 1, rounds, 1),
            keep=ones,
            momentum=0 * ones,
            rate=0.02 * ones,
            importance=ones,
            clip=ones,
            present=ones,
            key_residual=key.repeat(1, 1, rounds, 1),
            query_residual=key.repeat(1, 1, rounds, 1),
        )
        answer, _, _ = chunked(rule, stream, initial_state(rule, memory, 1, width, width, True))
        left[depth] = (answer[:, :, -pairs:] - value).square().mean().item()
    assert left[2] < 0.6 * left[1], left


# --- the linear relatives, on numbers worked out by hand ------------------------------------------------------


def test_deltanet_by_hand():
    stream = one(
        key=[[1.0, 0.0], [0.6, 0.8], [1.0, 0.0]],
        value=[[2.0, 0.0], [0.0, 5.0], [2.0, 2.0]],
        rate=[0.5, 0.25, 0.5],
    )
    answer, after, _ = chunked(DELTA, stream, empty(DELTA, 2, 2))
    # 1: M = e1 (2, 0). 2: M k = (1.2, 0), beta = 1/2: M += k (-0.6, 2.5). 3: M e1 becomes (2, 2).
    torch.testing.assert_close(answer[0, 0], torch.tensor([[2.0, 0.0], [0.6, 2.5], [2.0, 2.0]]).double())
    torch.testing.assert_close(after["memory0"][0, 0], torch.tensor([[2.0, 2.0], [-0.48, 2.0]]).double())


def test_gated_deltanet_by_hand():
    rule = Rule(depth=0, optimiser="descent", chunk=1, decay_first=True)
    stream = one(key=[[1.0, 0.0], [1.0, 0.0]], value=[[4.0, 0.0], [0.0, 8.0]], rate=[0.5, 0.25], keep=[0.5, 0.5])
    answer, _, _ = chunked(rule, stream, empty(rule, 2, 2))
    # 1: (4, 0). 2: fades to (2, 0), then half-way to (0, 8).
    assert answer[0, 0].tolist() == [[4.0, 0.0], [1.0, 4.0]]
    plain, _, _ = chunked(DELTA, stream, empty(DELTA, 2, 2))  # corrects what it holds, (4, 0), and adds to what fades
    assert plain[0, 0].tolist() == [[4.0, 0.0], [0.0, 4.0]]


def test_a_mini_batch_of_ttt_linear_by_hand():
    rule = Rule(depth=1, optimiser="descent", chunk=2)
    stream = one(
        key=[[1.0, 0.0], [0.0, 1.0]],
        value=[[1.0, 2.0], [3.0, 1.0]],
        rate=[0.1, 0.2],
        key_residual=[[1.0, 0.0], [0.0, 1.0]],
        query_residual=[[0.0, 0.0], [0.0, 0.0]],
    )
    state = initial_state(rule, [torch.zeros(1, 2, 2, dtype=torch.float64)], 1, 2, 2, True)
    answer, after, _ = chunked(rule, stream, state)
    # From W = 0: answers k, errors 2 (k - v) = (0, -4) and (-6, 0), centred (2, -2) and (-3, 3), over sqrt(0 + 1).
    weights = torch.tensor([[-0.2, 0.2], [0.6, -0.6]]).double()
    torch.testing.assert_close(after["memory0"][0, 0], weights)
    read = weights[0] / math.sqrt(0.04 + 1)  # the variance of +-0.2 is 0.04
    torch.testing.assert_close(answer[0, 0, 0], read)


def test_linear_attention_over_a_window_by_hand():
    rule = Rule(depth=0, bias="dot", optimiser="descent", window=2, chunk=4)
    stream = one(
        key=[[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]],
        value=[[1.0], [10.0], [100.0]],
        query=[[1.0, 1.0]] * 3,
        rate=[1.0] * 3,
        keep=[1.0, 1.0, 0.5],
        importance=[1.0, 0.5, 1.0],
    )
    answer, _, _ = chunked(rule, stream, empty(rule, 2, 1))
    # +v k': 1; then both 1 and 5 more; then half of it, 5 of the second and 100.
    assert answer[0, 0, :, 0].tolist() == [1.0, 1 + 1 + 5, 3.5 + 5 + 100]


# --- ATLAS ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [0, 2])
def test_a_window_of_one_is_titans_without_momentum(depth):
    omega = Rule(depth=depth, optimiser="descent", window=1, chunk=4)
    titans = Rule(depth=depth, optimiser="momentum", chunk=4)
    tokens, memory = random_tokens(omega, 15), random_memory(omega)
    tokens = tokens._replace(importance=torch.ones_like(tokens.importance), momentum=0 * tokens.momentum)
    for form in (sequential, chunked):
        expected = form(titans, tokens, start(titans, memory))[0]
        assert distance(form(omega, tokens, start(omega, memory))[0], expected) < 1e-12
    # A window whose earlier tokens count nothing is the same again.
    wide = Rule(depth=depth, optimiser="descent", window=2, chunk=1)
    one_token = tokens_at(tokens, slice(0, 1))
    narrow = Rule(depth=depth, optimiser="descent", chunk=1)
    assert (
        distance(
            sequential(wide, one_token, start(wide, memory))[0], sequential(narrow, one_token, start(narrow, memory))[0]
        )
        < 1e-15
    )


@pytest.mark.parametrize(("pairs", "width"), [(6, 8), (12, 4)])
def test_a_window_over_all_tokens_seen_again_and_again_is_least_squares(pairs, width):
    rule, rounds = Rule(depth=0, optimiser="descent", window=pairs, chunk=1), 2400 // pairs
    u, _, v = torch.linalg.svd(torch.randn(pairs, width, dtype=torch.float64), full_matrices=False)
    key = u @ torch.diag(torch.linspace(1, 2, min(pairs, width)).double()) @ v  # well-conditioned: it gets there soon
    value = torch.randn(pairs, 3, dtype=torch.float64)
    rate = 0.9 / torch.linalg.matrix_norm(key, 2).square().item() / 2
    ones = torch.ones(1, 1, rounds * pairs, dtype=torch.float64)
    k, v = key.repeat(rounds, 1)[None, None], value.repeat(rounds, 1)[None, None]
    found = learn(rule, Tokens(k, v, k, ones, 0 * ones, rate * ones, ones, ones, ones), width, 3)
    assert distance(found, torch.linalg.pinv(key) @ value) < 1e-10


def test_one_step_over_a_window_of_orthogonal_keys_is_ridge_regression():
    """From an empty memory M = 2 rate K'V; ridge is (K'K + penalty I)^-1 K'V: the same with 2 rate (1 + penalty) = 1.

    For other keys it is the limit of a large penalty.
    """
    pairs, width, penalty = 5, 5, 3.0
    rule = Rule(depth=0, optimiser="descent", window=pairs, chunk=1)
    value = torch.randn(pairs, 2, dtype=torch.float64)

    def one_step(key: Tensor, rate: float) -> Tensor:
        zero = torch.zeros(1, 1, pairs, dtype=torch.float64)
        rates = zero.clone()
        rates[..., -1] = rate
        k, v = key[None, None], value[None, None]
        return learn(rule, Tokens(k, v, k, zero + 1, zero, rates, zero + 1, zero + 1, zero + 1), width, 2)

    def ridge(key: Tensor, penalty: float) -> Tensor:
        return torch.linalg.solve(key.T @ key + penalty * torch.eye(width, dtype=torch.float64), key.T @ value)

    orthogonal = torch.linalg.qr(torch.randn(width, width, dtype=torch.float64))[0]
    assert distance(one_step(orthogonal, 0.5 / (1 + penalty)), ridge(orthogonal, penalty)) < 1e-12
    key = torch.randn(pairs, width, dtype=torch.float64)
    relative = [
        (torch.linalg.norm(one_step(key, 0.5 / p) - ridge(key, p)) / torch.linalg.norm(ridge(key, p))).item()
        for p in (1e3, 1e6)
    ]
    assert relative[0] < 0.05
    assert relative[1] < 1e-3 * 1.1 * relative[0]


def test_a_token_of_no_importance_is_out_of_the_window():
    rule = Rule(depth=2, optimiser="descent", window=4, chunk=4)
    tokens, other, state = random_tokens(rule, 9), random_tokens(rule, 9), start(rule, random_memory(rule))
    tokens.importance[:, :, 5] = 0
    changed = tokens._replace(key=tokens.key.clone(), value=tokens.value.clone())
    changed.key[:, :, 5], changed.value[:, :, 5] = other.key[:, :, 5], other.value[:, :, 5]
    for form in (sequential, chunked):
        (before, after, _), (before_other, after_other, _) = form(rule, tokens, state), form(rule, changed, state)
        assert torch.equal(before, before_other)
        assert torch.equal(after["memory0"], after_other["memory0"])


@pytest.mark.parametrize("shape", [(6, 10), (10, 6), (8, 8)])
def test_newton_schulz_keeps_singular_vectors_and_brings_singular_values_near_one(shape):
    gradient = torch.randn(*shape, dtype=torch.float64)
    u, _, v = torch.linalg.svd(gradient, full_matrices=False)
    # From 0.01 of the norm to most of it, with a known spectrum.
    spectrum = torch.logspace(-2, 0, min(shape), dtype=torch.float64)
    spectrum = torch.cat(
        [spectrum[:-1], spectrum.new_tensor([(1 - spectrum[:-1].square().sum()).clamp(min=0.04).sqrt()])]
    )
    spectrum = (spectrum / torch.linalg.norm(spectrum)).clamp(min=0.01)
    gradient = u @ torch.diag(spectrum) @ v
    result = newton_schulz(gradient)
    core = u.T @ result @ v.T
    singular = core.diagonal()
    assert (core - torch.diag(singular)).abs().max() < 1e-12
    assert singular.min() > 0.68
    assert singular.max() < 1.13
    assert (singular - 1).abs().max() > 0.05  # near one, not at one
    assert distance(newton_schulz(7 * gradient), result) < 1e-5  # up to the small number that guards against 0
    assert distance(newton_schulz(-gradient), -result) < 1e-15
    assert distance(newton_schulz(gradient.T), result.T) < 1e-14


def test_newton_schulz_of_any_singular_value_of_a_hundredth_or_a_thousandth():
    values = torch.cat([torch.logspace(-3, 0, 400, dtype=torch.float64), torch.tensor([0.01, 0.001]).double()])
    # Beside a large one, which makes up the norm: (2, 2) matrices of singular values s and sqrt(1 - s^2).
    pairs = torch.stack([values, (1 - values.square()).clamp(min=0).sqrt()], -1)
    small = newton_schulz(torch.diag_embed(pairs)).diagonal(dim1=-2, dim2=-1)[:, 0]
    assert 0.47 < small.min() < 0.68
    assert 1.13 < small.max() < 1.21
    hundredth = small[values >= 0.01]
    assert 0.68 < hundredth.min() < 0.72
    assert 1.08 < hundredth.max() < 1.14  # 1.134, which the paper rounds


def test_newton_schulz_forgets_how_large_a_surprise_was_and_the_step_of_muon_does_not_below_one():
    direction = torch.outer(normalize(torch.randn(5).double(), dim=0), normalize(torch.randn(3).double(), dim=0))
    small, large = (torch.linalg.matrix_norm(newton_schulz(scale * direction)).item() for scale in (1e-2, 1e2))
    assert small == pytest.approx(large, rel=1e-3)
    stepped = [torch.linalg.matrix_norm(muon_step(scale * direction)).item() for scale in (1e-2, 1.0, 1e2)]
    assert stepped[0] == pytest.approx(1e-2 * stepped[1], rel=1e-3)
    assert stepped[2] == pytest.approx(stepped[1], rel=1e-3)


def test_the_cubic_iteration_ends_where_newton_schulz_comes_near():
    gradient = torch.randn(6, 4, dtype=torch.float64)
    u, singular, v = torch.linalg.svd(gradient, full_matrices=False)
    x = gradient / torch.linalg.norm(gradient)
    for _ in range(60):
        x = 1.5 * x - 0.5 * x @ x.T @ x
    assert distance(x, u @ v) < 1e-12
    assert (singular / singular.norm()).min() > 0.01
    assert torch.linalg.matrix_norm(newton_schulz(gradient) - x, 2) < 0.32


def test_newton_schulz_of_nothing_is_nothing():
    assert newton_schulz(torch.zeros(3, 4)).abs().max() == 0


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_polynomial_features_have_the_kernel_of_the_paper(degree):
    features = Polynomial(8, degree).double()
    key, query = (normalize(torch.randn(200, 8, dtype=torch.float64), dim=-1) for _ in range(2))
    inner = (key * query).sum(-1)
    kernel = sum(inner**i / math.factorial(i) for i in range(degree + 1))
    assert distance((features(key) * features.query(query)).sum(-1), kernel) < 1e-6  # 1/i! is kept in float32
    assert (
        features(key).shape[-1] == features.features == math.comb(8 + degree, degree) == {1: 9, 2: 45, 3: 165}[degree]
    )
    assert torch.linalg.matrix_rank(features(torch.randn(400, 8, dtype=torch.float64))) == features.features


@pytest.mark.parametrize(("degree", "capacity"), [(0, 8), (2, 45), (3, 165)])
def test_a_matrix_stores_8_then_45_then_165_pairs_of_keys_of_width_8(degree, capacity):
    """Degree 0 stands for the plain key. The best matrix of all: what no learning rule can beat."""
    expand = Polynomial(8, degree).double() if degree else torch.nn.Identity()

    def left(pairs: int) -> float:
        key = expand(normalize(torch.randn(pairs, 8, dtype=torch.float64), dim=-1)).detach()
        if degree:  # on the unit sphere |k|^2 = 1 ties degrees together: scale the keys apart
            key = expand(torch.randn(pairs, 8, dtype=torch.float64)).detach()
        value = torch.randn(pairs, 3, dtype=torch.float64)
        memory = torch.linalg.lstsq(key, value, driver="gelsd").solution
        return (key @ memory - value).abs().max().item()

    assert left(capacity) < 1e-6
    assert left(capacity + 1) > 1e-3


@pytest.mark.parametrize(("degree", "capacity"), [(2, 44), (3, 156)])
def test_unit_keys_leave_a_little_less_for_their_length_says_nothing(degree, capacity):
    """On the unit sphere |k|^2 = 1 ties the monomials of degree n + 2 to those of n: 44 of 45, 156 of 165.

    Keys of a layer are of unit length, so this is what one head of width 8 can hold.
    """
    key = Polynomial(8, degree).double()(normalize(torch.randn(400, 8, dtype=torch.float64), dim=-1)).detach()
    assert torch.linalg.matrix_rank(key, rtol=1e-9) == capacity


def test_the_learned_matrix_stores_as_many_pairs_as_its_features():
    """Omega over all pairs, with momentum: 8 pairs in plain keys, 12 only in features of degree 2."""
    features, rounds = Polynomial(8, 2).double(), 300

    def left(pairs: int, degree: int) -> float:
        torch.manual_seed(1)
        key = normalize(torch.randn(pairs, 8, dtype=torch.float64), dim=-1)
        key = (features(key) if degree == 2 else key).detach()
        value = torch.randn(pairs, 3, dtype=torch.float64)
        rule = Rule(depth=0, window=pairs, chunk=1)
        rate = 0.4 / torch.linalg.matrix_norm(key, 2).square().item()
        ones = torch.ones(1, 1, rounds * pairs, dtype=torch.float64)
        k, v = key.repeat(rounds, 1)[None, None], value.repeat(rounds, 1)[None, None]
        memory = learn(rule, Tokens(k, v, k, ones, 0.9 * ones, rate * ones, ones, ones, ones), key.shape[1], 3)
        return (key @ memory - value).abs().max().item()

    assert left(6, 1) < 1e-3
    assert left(12, 1) > 0.1
    assert left(12, 2) < 1e-3


# --- Miras ----------------------------------------------------------------------------------------------------


def test_the_lp_bias_of_power_two_is_the_l2_bias():
    answer, value = torch.randn(2, 5, 3, dtype=torch.float64)
    clip = torch.ones(5, dtype=torch.float64)
    assert torch.equal(
        bias_gradient(Rule(bias="lp", power=2.0), answer, value, clip),
        bias_gradient(Rule(bias="l2"), answer, value, clip),
    )
    lp, l2 = (Rule(depth=2, bias=bias, power=2.0, optimiser="descent", chunk=4) for bias in ("lp", "l2"))
    tokens, memory = random_tokens(lp, 11), random_memory(lp)
    assert torch.equal(chunked(lp, tokens, start(lp, memory))[0], chunked(l2, tokens, start(l2, memory))[0])


def test_the_lp_bias_by_hand():
    answer, value = torch.tensor([[3.0, -2.0, 0.0]]).double(), torch.zeros(1, 3).double()
    cubes = bias_gradient(Rule(bias="lp", power=3.0), answer, value, torch.ones(1))
    torch.testing.assert_close(cubes, torch.tensor([[27.0, -12.0, 0.0]]).double(), rtol=0, atol=1e-5)
    signs = bias_gradient(Rule(bias="lp", power=1.0), answer, value, torch.ones(1))
    torch.testing.assert_close(signs, torch.tensor([[1.0, -1.0, 0.0]]).double(), rtol=0, atol=1e-5)


def test_the_huber_bias_lies_between_l2_and_the_direction_of_the_error():
    huber, l2 = Rule(bias="huber"), Rule(bias="l2")
    answer, value = torch.randn(2, 50, 3, dtype=torch.float64)
    error, wide = answer - value, torch.full((50,), 1e9, dtype=torch.float64)
    assert torch.equal(bias_gradient(huber, answer, value, wide), bias_gradient(l2, answer, value, wide))
    narrow = 0 * wide + 1e-6
    unit = bias_gradient(huber, answer, value, narrow) / 2e-6
    assert distance(unit, error / torch.linalg.vector_norm(error, dim=-1, keepdim=True)) < 1e-8
    # Continuous at the threshold, which is the norm and not its square.
    at = torch.linalg.vector_norm(error, dim=-1)
    below, above = (bias_gradient(huber, answer, value, at * factor) for factor in (1 - 1e-9, 1 + 1e-9))
    assert distance(below, above) < 1e-8
    hand = bias_gradient(
        huber, torch.tensor([[3.0, 4.0]]).double(), torch.zeros(1, 2).double(), torch.tensor([2.0]).double()
    )
    torch.testing.assert_close(hand, torch.tensor([[2.4, 3.2]]).double())  # norm 5 clipped to 2, times 2


@pytest.mark.parametrize("mass", [1.0, 2.5])
@pytest.mark.parametrize("chunk", [1, 4])
def test_memora_keeps_the_mass_of_every_slice(mass, chunk):
    rule = Rule(depth=2, expansion=2, retention="softmax", optimiser="descent", mass=mass, chunk=chunk)
    state = start(rule, random_memory(rule))
    for t in range(0, 60, 10):
        _, state, _ = chunked(rule, random_tokens(rule, 10)._replace(rate=torch.full((2, HEADS, 10), 2.0)), state)
        for layer in range(2):
            weights = weights_of(rule, state[f"memory{layer}"])
            assert (weights >= 0).all(), t
            assert distance(weights.sum(-2), torch.full_like(weights[..., 0, :], mass)) < 1e-6


def test_memora_without_gradient_stays_or_flattens():
    rule = Rule(depth=2, expansion=2, retention="softmax", optimiser="descent", chunk=4)
    tokens, state = random_tokens(rule, 30), start(rule, random_memory(rule))
    still = tokens._replace(rate=0 * tokens.rate)
    _, kept, _ = chunked(rule, still._replace(keep=0 * tokens.keep + 1), state)
    _, faded, _ = chunked(rule, still._replace(keep=0 * tokens.keep + 0.3), state)
    for layer in range(2):
        name = f"memory{layer}"
        assert distance(weights_of(rule, kept[name]), weights_of(rule, state[name])) < 1e-12
        flat = weights_of(rule, faded[name])
        assert distance(flat, torch.full_like(flat, 1 / flat.shape[-2])) < 1e-10


def test_memora_is_softmax_of_faded_log_weights_less_the_gradient():
    rule = Rule(depth=0, retention="softmax", optimiser="descent", chunk=1)
    tokens, memory = random_tokens(rule, 6), random_memory(rule)
    tokens = tokens._replace(importance=torch.ones_like(tokens.importance))
    state, weights = start(rule, memory), memory[0].softmax(-2).expand(2, HEADS, 4, 3)
    for t in range(6):
        at = tokens_at(tokens, t)
        wrong = (at.key[..., None, :] @ weights)[..., 0, :] - at.value
        gradient = 2 * at.key[..., :, None] * wrong[..., None, :]
        weights = (at.keep[..., None, None] * weights.log() - at.rate[..., None, None] * gradient).softmax(-2)
        _, state, _ = sequential(rule, tokens_at(tokens, slice(t, t + 1)), state)
        assert distance(weights_of(rule, state["memory0"]), weights) < 1e-12


@pytest.mark.parametrize("dual_power", [4 / 3, 2.0, 3.0, 4.0])
def test_the_lq_map_is_the_minimiser_of_its_objective(dual_power):
    """W = argmin 1/2 |W|_q^2 - <A, W> with 1/p + 1/q = 1."""
    q = dual_power / (dual_power - 1)
    accumulator = torch.tensor([[1.0, -2.0, 0.5], [-0.7, 0.3, 1.5]], dtype=torch.float64)
    weights = weights_of(Rule(retention="lq", dual_power=dual_power), accumulator)
    a = accumulator.numpy().ravel()

    def objective(w):
        powers = (np.abs(w) ** q).sum()
        slope = np.sign(w) * np.abs(w) ** (q - 1) * powers ** (2 / q - 1)
        return 0.5 * powers ** (2 / q) - a @ w, slope - a

    best = minimize(objective, a, jac=True, method="BFGS", options={"gtol": 1e-10, "maxiter": 1000})
    assert np.abs(best.x - weights.numpy().ravel()).max() < 1e-6
    assert distance(weights_of(Rule(retention="lq", dual_power=dual_power), 10 * accumulator), 10 * weights) < 1e-12


def test_the_printed_lq_map_is_another_and_shrinks_where_its_memory_grows():
    accumulator = torch.tensor([[1.0, -2.0, 0.5], [-0.7, 0.3, 1.5]], dtype=torch.float64)
    printed, exact = (Rule(retention=name, dual_power=4.0) for name in ("lq as printed", "lq"))
    norm = accumulator.pow(4).sum() ** 0.25
    assert distance(weights_of(printed, accumulator), accumulator / norm**2) < 1e-12
    assert distance(weights_of(printed, accumulator), weights_of(exact, accumulator)) > 0.1
    assert distance(weights_of(printed, 10 * accumulator), weights_of(printed, accumulator) / 10) < 1e-12
    both = (weights_of(Rule(retention=name, dual_power=2.0), accumulator) for name in ("lq as printed", "lq"))
    assert distance(*both) < 1e-12
    tiny = weights_of(Rule(retention="lq as printed", radius=5.0), 1e-6 * accumulator)
    assert torch.linalg.matrix_norm(tiny) <= 5 + 1e-12


@pytest.mark.parametrize("threshold", [0.0, 0.4, 5.0])
def test_the_elastic_map_is_the_minimiser_of_its_objective_and_has_exact_zeros(threshold):
    accumulator = torch.randn(3, 4, dtype=torch.float64)
    weights = weights_of(Rule(retention="elastic", threshold=threshold), accumulator)
    a, w = accumulator.numpy().ravel(), weights.numpy().ravel()

    def objective(w):
        return 0.5 * (w**2).sum() + threshold * np.abs(w).sum() - a @ w

    assert (w == 0).sum() == (np.abs(a) <= threshold).sum()
    assert threshold != 0.4 or 0 < (w == 0).sum() < 12
    for place in range(12):  # convex and separable: no single weight can be better elsewhere
        for step in (-1e-4, 1e-4):
            moved = w.copy()
            moved[place] += step
            assert objective(moved) > objective(w)


def test_an_elastic_memory_forgets_weights_to_nothing_at_all():
    rule = Rule(depth=0, retention="elastic", threshold=0.1, optimiser="descent", chunk=4)
    tokens, state = random_tokens(rule, 40), start(rule, random_memory(rule))
    _, faded, _ = chunked(rule, tokens._replace(rate=0 * tokens.rate, keep=0 * tokens.keep + 0.8), state)
    assert faded["memory0"].abs().max() > 0
    assert weights_of(rule, faded["memory0"]).abs().max() == 0


@pytest.mark.parametrize("dual_power", [4 / 3, 2.0, 4.0])
@pytest.mark.parametrize("retention", ["lq", "lq as printed", "elastic"])
@pytest.mark.parametrize("weight", [0.0, 2.0])
def test_the_map_of_nothing_is_nothing_and_has_a_gradient(weight, retention, dual_power):
    """Also beside a weight."""
    accumulator = torch.zeros(3, 2)
    accumulator[0, 0] = weight
    weights = weights_of(Rule(retention=retention, dual_power=dual_power), accumulator.requires_grad_())
    weights.sum().backward()
    assert weights.flatten()[1:].abs().max() == 0
    assert (weights[0, 0] > 0) == (weight > 0)
    assert accumulator.grad is not None
    assert accumulator.grad.isfinite().all()


# --- outliers -------------------------------------------------------------------------------------------------


def regression_stream(rule: Rule, outliers: bool, steps: int = 2000, width: int = 6) -> tuple[Tokens, Tensor]:
    """Noisy values of a fixed map of the key, 1 % of them times 100; and what the map says at the queries."""
    torch.manual_seed(5)
    key, query = (normalize(torch.randn(1, 1, steps, width, dtype=torch.float64), dim=-1) for _ in range(2))
    teacher = [torch.randn(*shape, dtype=torch.float64) / shape[0] ** 0.5 for shape in rule.shapes(width, width)]

    def answer(z: Tensor) -> Tensor:
        if rule.depth == 0:
            return 2 * z @ teacher[0]
        out = torch.nn.functional.silu(3 * z @ teacher[0]) @ teacher[1]
        return z + torch.nn.functional.layer_norm(out, (width,))

    value = answer(key) + 0.1 * torch.randn_like(key)
    hit = torch.rand(1, 1, steps, 1, dtype=torch.float64) < 0.01
    ones = torch.ones(1, 1, steps, dtype=torch.float64)
    tokens = Tokens(
        key=key,
        value=torch.where(hit, 100 * value, value) if outliers else value,
        query=query,
        keep=ones,
        momentum=0 * ones,
        rate=0.1 * ones,
        importance=ones,
        clip=0.5 * ones,
        present=ones,
        key_residual=key if rule.depth else None,
        query_residual=query if rule.depth else None,
    )
    return tokens, answer(query)


def outlier_growth(rule: Rule) -> float:
    """Error on the true map over the second half, with outliers over without."""
    errors = []
    for outliers in (False, True):
        tokens, truth = regression_stream(rule, outliers)
        width = truth.shape[-1]
        torch.manual_seed(6)
        memory = [part[:1] for part in random_memory(rule, width, width)]
        answer, _, _ = chunked(rule, tokens, initial_state(rule, memory, 1, width, width, rule.depth > 0))
        errors.append(torch.linalg.vector_norm(answer - truth, dim=-1)[..., -1000:].mean().item())
    return errors[1] / errors[0]


@pytest.mark.parametrize("depth", [0, 2])
@pytest.mark.parametrize("chunk", [1, 4])
def test_one_value_in_a_hundred_times_a_hundred_breaks_l2_and_not_huber_or_l1(depth, chunk):
    huber, l1, l2 = (
        Rule(depth=depth, optimiser="descent", bias=bias, power=1.0, chunk=chunk) for bias in ("huber", "lp", "l2")
    )
    robust, signs, broken = outlier_growth(huber), outlier_growth(l1), outlier_growth(l2)
    assert robust < 1.2, (robust, broken)
    assert signs < 2, (signs, broken)
    # A matrix says what it likes; the answers of an MLP are normalised, so no error can exceed a few times the usual.
    assert broken > (20 if depth == 0 else 3), (robust, broken)
