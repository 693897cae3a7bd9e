"""Streams whose quantiles go on being calibrated: what they tell, learn, save and refuse."""

import numpy as np
import pandas as pd
import pytest
import torch

from data.frame import Channel
from forecasting.bundle import Bundle, BundleError, read_bundle, read_npz, write_npz
from forecasting.conformal import Calibration
from forecasting.export import export_bundle
from forecasting.runtime import LoadedBundle, load_bundle
from forecasting.task import Task
from models.catalog import build

LEVELS = (0.1, 0.5, 0.9)
TASK = Task("forecast", "y", (Channel("y", "V"),), 1, horizon=2, quantiles=LEVELS)
FACTORS = np.array([[2.0, 1.0, 1.5], [3.0, 1.0, 0.5]])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """A random walk's forecasts, calibrated by factors that differ by step and level."""
    place = tmp_path_factory.mktemp("adapting") / "b"
    export_bundle(
        build("naive", TASK.signature), TASK, place, name="naive", config={}, training={}, metrics=[],
        calibration=Calibration(LEVELS, FACTORS, 100),
    )  # fmt: skip
    return load_bundle(place)


def walk(length, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).standard_t(3, size=length).cumsum() + 50


def frame(lengths: dict[str, int]) -> pd.DataFrame:
    parts = [
        pd.DataFrame({"unique_id": name, "ds": np.arange(length), "y": walk(length, seed)})
        for seed, (name, length) in enumerate(lengths.items())
    ]
    return pd.concat(parts, ignore_index=True)


def quantiles_of(table) -> np.ndarray:
    return table[["q0.1", "q0.5", "q0.9"]].to_numpy()


def test_what_is_told_is_calibrated_and_the_mean_is_the_models_own(bundle):
    table = frame({"a": 30, "b": 20})
    stream = bundle.stream(["a"])
    for value in walk(30):
        told = stream.step({"a": value})["a"]
    middle = stream.raw[0][:, 1:2]
    np.testing.assert_allclose(told, middle + FACTORS * (stream.raw[0] - middle), rtol=1e-5)
    np.testing.assert_array_equal(stream.predictions[0], told)
    answer = bundle.forecast(table)
    np.testing.assert_allclose(quantiles_of(answer[answer["unique_id"] == "a"]), told, rtol=1e-5)
    np.testing.assert_allclose(answer["mean"][:2], middle[:, 0], rtol=1e-6)  # symmetric before calibration, not after
    some = bundle.stream(["a", "b"])
    np.testing.assert_array_equal(some.step({"a": 3.0})["a"], bundle.stream(["a"]).step({"a": 3.0})["a"])


def test_an_adapting_stream_tells_what_the_calibration_says_until_outcomes_come(bundle):
    plain, adapting = bundle.stream(["a"]), bundle.stream(["a"], adapt=0.1)
    for value in (1.0, 2.0):  # the first forecast has no width, so it teaches nothing
        told = adapting.step({"a": value})["a"]
        np.testing.assert_array_equal(told, plain.step({"a": value})["a"])
    told = adapting.step({"a": 90.0})["a"]  # far above: the next step's upper quantile goes out by exp(0.09)
    expected = plain.step({"a": 90.0})["a"]
    width = ((told - told[:, 1:2]) / np.where(expected == told[:, 1:2], 1, expected - told[:, 1:2]))[:, [0, 2]]
    np.testing.assert_allclose(width[0], np.exp([-0.01, 0.09]), rtol=1e-5)
    np.testing.assert_allclose(width[1], 1, rtol=1e-5)  # no forecast two steps ahead was judged yet


def test_stepping_catching_up_and_going_on_from_a_saved_state_are_one(bundle, tmp_path):
    table = frame({"a": 40, "b": 25})
    whole = bundle.forecast(table, adapt=0.05, save_state=tmp_path / "whole.npz")
    bundle.forecast(table[table["ds"] < 18], adapt=0.05, save_state=tmp_path / "part.npz")
    resumed = bundle.forecast(table, state=tmp_path / "part.npz")  # at the rate that was saved
    np.testing.assert_array_equal(quantiles_of(resumed), quantiles_of(whole))
    stream = bundle.stream(["a"], adapt=0.05)
    for value in walk(40):
        told = stream.step({"a": value})["a"]
    np.testing.assert_allclose(told, quantiles_of(whole[whole["unique_id"] == "a"]), rtol=1e-5)
    assert not np.allclose(told, quantiles_of(bundle.forecast(table))[:2], rtol=1e-3)
    back = bundle.stream(["b", "c"], state=tmp_path / "whole.npz")
    np.testing.assert_array_equal(back.predictions[0], quantiles_of(whole[whole["unique_id"] == "b"]))
    assert np.isnan(back.predictions[1]).all()
    told = back.step(np.array([[1.0], [2.0]]))
    assert np.isfinite(told).all()


def test_a_skipped_period_is_a_missing_outcome(bundle):
    gap, told = bundle.stream(["a"], adapt=0.1), bundle.stream(["a"], adapt=0.1)
    for at, value in enumerate((5.0, 6.0)):
        gap.step({"a": value}, at=at)
        told.step({"a": value}, at=at)
    told.step({"a": None}, at=2)
    np.testing.assert_allclose(gap.step({"a": 60.0}, at=3)["a"], told.step({"a": 60.0}, at=3)["a"], rtol=1e-6)


def test_an_adapting_stream_covers_where_a_fixed_factor_does_not(bundle):
    noise = np.random.default_rng(1).normal(size=900) * 30  # not what the card's factors were found on
    fixed, adapting = bundle.stream(["a"]), bundle.stream(["a"], adapt=0.05)
    inside = {fixed: 0, adapting: 0}
    for stream in inside:
        ahead: list[np.ndarray] = []
        for y in noise:
            inside[stream] += len(ahead) > 1 and ahead[-1][0, 0] <= y <= ahead[-1][0, 2]
            ahead.append(stream.step({"a": y})["a"])
    assert inside[adapting] / 898 == pytest.approx(0.8, abs=0.03)
    assert abs(inside[fixed] / 898 - 0.8) > 0.05


@pytest.mark.parametrize("rate", [0, 1.5, -0.1])
def test_a_rate_out_of_range_is_refused(bundle, rate):
    with pytest.raises(BundleError, match="above 0 and below 1"):
        bundle.stream(["a"], adapt=rate)


def test_a_state_whose_calibration_is_not_whole_is_refused(bundle):
    arrays = read_npz(bundle.stream(["a"], adapt=0.1).to_bytes(), "state")
    del arrays["adapt.issued"]
    with pytest.raises(BundleError, match=r"holds \['log_factor', 'rate'\]"):
        bundle.stream(state=write_npz(arrays))
    arrays = read_npz(bundle.stream(["a"], adapt=0.1).to_bytes(), "state")
    arrays["adapt.log_factor"] = np.zeros((2, 2, 3))
    with pytest.raises(BundleError, match="log_factor has shape"):
        bundle.stream(state=write_npz(arrays))


def test_only_forecasts_are_calibrated(tmp_path):
    torch.manual_seed(0)
    task = Task("classify", "label", (Channel("y", "V"),), 1, labels=("left", "right"))
    export_bundle(
        build("gru", task.signature, hidden=4), task, tmp_path / "b", name="gru", config={}, training={}, metrics=[]
    )
    with pytest.raises(BundleError, match="quantiles of a forecast; this is to classify"):
        load_bundle(tmp_path / "b").stream(["a"], adapt=0.1)


def test_a_card_whose_calibration_does_not_fit_is_refused(bundle):
    whole = read_bundle(bundle.path)
    for change, message in (
        ({"factors": [[1.0, 1.0, 1.0]]}, r"calibration is of shape \(1, 3\), the predictions are \(2, 3\)"),
        ({"factors": None}, "expected a row a step of 3 numbers"),
    ):
        card = whole.card | {"calibration": whole.card["calibration"] | change}
        with pytest.raises(BundleError, match=message):
            LoadedBundle(Bundle(whole.path, card, whole.files))
