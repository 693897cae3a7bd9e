import subprocess
import sys

import numpy as np
import pytest
import torch

from forecasting.anomaly import AnomalyError, AnomalyScore
from forecasting.bundle import read_npz, write_npz
from models.contract import Batch, Signature
from models.memory.backbone import MemoryBackbone, MemoryConfig
from models.memory.titans import LMM
from models.network import Network, NetworkConfig

SCORE = AnomalyScore(window=200, warm_up=50, clip=4.0)


def run(score: AnomalyScore, look: dict[str, np.ndarray], state=None):
    """Scores (T, ...) of looks (T, ..., heads) and the last state."""
    found = []
    for t in range(len(look["block0.surprise"])):
        one, state = score.step({name: value[t] for name, value in look.items()}, state)
        found.append(one)
    return np.array(found), state


def wave(length: int = 600, seed: int = 0) -> dict[str, np.ndarray]:
    """Surprise and a gate that rise and fall together, (T, 1) each, and a norm."""
    rng = np.random.default_rng(seed)
    common = np.sin(np.arange(length) / 5)
    surprise = np.exp(common + 0.1 * rng.normal(size=length))
    keep = 0.9 + 0.05 * common + 0.005 * rng.normal(size=length)
    return {"block0.surprise": surprise[:, None], "block0.keep": keep[:, None], "block0.norm": surprise[:, None] * 9}


def test_usual_looks_score_about_one_after_the_warm_up():
    scores, state = run(SCORE, wave())
    assert np.isnan(scores[:50]).all()
    assert np.isfinite(scores[50:]).all()
    assert 0.9 < np.sqrt((scores[100:] ** 2).mean()) < 1.1
    assert state["count"].tolist() == [200]


def test_what_breaks_the_company_of_the_values_stands_out_though_each_is_usual():
    look = wave()
    look["block0.surprise"][400] = np.exp(0.9)
    look["block0.keep"][400] = 0.9 - 0.9 * 0.05
    scores, _ = run(SCORE, look)
    assert scores[400] > 5
    assert scores[400] > 2 * np.nanmax(np.delete(scores, 400))
    alone, _ = run(AnomalyScore(gates=False), look)
    assert alone[400] < 2


def test_the_norm_of_the_memory_does_not_count():
    look = wave()
    other = look | {"block0.norm": 1e6 * look["block0.norm"] ** 2}
    np.testing.assert_array_equal(run(SCORE, look)[0], run(SCORE, other)[0])


def test_an_anomaly_does_not_hide_the_next():
    look = wave()
    look["block0.surprise"][[400, 401, 405]] *= 1e5
    scores, _ = run(SCORE, look)
    assert min(scores[[400, 401, 405]]) > 20
    assert np.nanmax(np.delete(scores, [400, 401, 405])) < 6


def test_a_change_that_stays_becomes_usual():
    look = wave(2_000)
    look["block0.surprise"][500:] *= 3
    scores, _ = run(SCORE, look)
    assert scores[500] > 5
    assert scores[1_200:].max() < 4


def test_a_missing_observation_is_no_anomaly_and_leaves_the_state_as_it_was():
    look = wave()
    _, state = run(SCORE, look)
    score, after = SCORE.step({name: np.full(1, np.nan) for name in look}, state)
    assert np.isnan(score)
    assert not score > 0
    for name, value in state.items():
        np.testing.assert_array_equal(after[name], value)


def test_series_are_scored_apart():
    looks = [wave(seed=seed) for seed in range(3)]
    looks[1]["block0.surprise"][70:90] = np.nan
    looks[1]["block0.keep"][70:90] = np.nan
    together = {name: np.stack([look[name] for look in looks], 1) for name in looks[0]}
    scores, _ = run(SCORE, together)
    assert scores.shape == (600, 3)
    for row, look in enumerate(looks):
        np.testing.assert_allclose(scores[:, row], run(SCORE, look)[0], rtol=1e-9)


def test_the_state_can_be_kept_and_the_scores_go_on():
    look = wave()
    whole, _ = run(SCORE, look)
    _, state = run(SCORE, {name: value[:300] for name, value in look.items()})
    kept = read_npz(write_npz(state), "state")
    rest, _ = run(SCORE, {name: value[300:] for name, value in look.items()}, kept)
    np.testing.assert_array_equal(rest, whole[300:])


def test_a_gate_that_never_moves_says_nothing():
    look = wave() | {"block0.rate": np.full((600, 1), 0.5)}
    scores, _ = run(SCORE, look)
    plain, _ = run(SCORE, wave())
    np.testing.assert_allclose(scores, plain * np.sqrt(2 / 3), rtol=1e-6)


def test_what_cannot_be_scored_is_named():
    with pytest.raises(AnomalyError, match=r"no surprise; it has block0\.norm"):
        SCORE.step({"block0.norm": np.ones(2)})
    _, state = run(SCORE, wave(60))
    with pytest.raises(AnomalyError, match="the look has 2 features of 1 series, the state was made by 2 of 3"):
        SCORE.step({"a.surprise": np.ones(2)}, {name: np.repeat(value, 3, 0) for name, value in state.items()})
    with pytest.raises(AnomalyError, match="warm_up=1, window=200"):
        AnomalyScore(warm_up=1)
    with pytest.raises(AnomalyError, match="clip above 0"):
        AnomalyScore(clip=float("nan"))


def test_it_needs_neither_torch_nor_pandas():
    code = "import sys, forecasting.anomaly; print({'torch', 'pandas', 'onnxruntime', 'models'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def season(rng: np.random.Generator, length: int) -> np.ndarray:
    return 10 + 2 * np.sin(np.arange(length) / 4 + rng.uniform(0, 6)) + rng.normal(0, 0.2, length)


@pytest.fixture(scope="module")
def trained():
    """A small titans-lmm that has learned to forecast a noisy season."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    config = MemoryConfig(width=32, heads=4, blocks=1, chunk=16)
    signature = Signature("forecast", 1, horizon=1)
    model = Network(signature, NetworkConfig(embed=16), lambda width: MemoryBackbone(width, config, LMM))

    def batch() -> Batch:
        values = torch.tensor(np.stack([season(rng, 97) for _ in range(16)]), dtype=torch.float32)[..., None]
        return Batch(values[:, :-1], torch.ones(16, 96, 1), values[:, 1:], torch.full((16,), 1.4))

    model.prepare([batch()])
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(40):
        optimiser.zero_grad()
        loss = model.loss(batch())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    return model.eval()


@pytest.mark.parametrize("kind", ["spike", "shift"])
def test_injected_anomalies_score_above_the_99th_percentile_of_the_rest(trained, kind):
    rng = np.random.default_rng(1)
    y = season(rng, 1_500)
    places = np.arange(300, 1_450, 100) + rng.integers(0, 40, 12)
    usual = np.arange(1_500) >= 250
    for place in places:
        y[place : place + 1 if kind == "spike" else None] += 6.0 * rng.choice([-1, 1])
        usual[place : place + 33] = False
    x = torch.tensor(y[None, :, None], dtype=torch.float32)
    with torch.no_grad():
        _, _, look = trained.look("scan", x, torch.ones_like(x), trained.initial_state(1))
    scores, _ = run(SCORE, {name: value[0].numpy() for name, value in look.items()})
    assert scores[places].min() > np.quantile(scores[usual], 0.99)
