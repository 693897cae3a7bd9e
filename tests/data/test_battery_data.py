"""Battery life: the published variance model comes out of our curves, and broken curves stay out of the features."""

import numpy as np
import pytest

from data.battery import SEVERSON_CHANNELS, SeversonCurves, early_features, severson_curves
from data.catalog import entries, load
from data.files import DATA_DIR

severson = next(entry for entry in entries() if entry.name == "severson2019")
needs_severson = pytest.mark.skipif(not severson.available(), reason=f"severson2019 needs {DATA_DIR}")


def made_up_curves() -> SeversonCurves:
    """Two cells whose discharge is a straight line over the voltage; the second has a spike in cycle 12."""
    cycles = np.arange(2, 101)
    share = np.linspace(0, 1, 1000)
    capacity = np.stack([np.outer(1.1 - 0.001 * cycles, share), np.outer(1.0 - 0.002 * cycles, share)])
    capacity[1, 10, 500] = 45.0
    return SeversonCurves(("a", "b"), np.linspace(3.6, 2.0, 1000), cycles, capacity, np.array([900.0, 500.0]))


def test_features_of_a_straight_line_are_those_worked_out_by_hand():
    features, _ = early_features(made_up_curves())
    assert set(features) == {channel.name for channel in SEVERSON_CHANNELS}
    last = {name: values[0, -1] for name, values in features.items()}
    assert last["capacity"] == pytest.approx(1.0)  # 1.1 - 0.001 * 100
    assert last["half_voltage"] == pytest.approx(2.8, abs=0.002)
    assert last["difference_mean"] == pytest.approx(-0.09 / 2)  # 90 cycles of 0.001 Ah, zero at the first voltage
    assert last["difference_log_min"] == pytest.approx(np.log10(0.09))
    assert 10 ** last["difference_log_var"] == pytest.approx(0.09**2 / 12, rel=0.01)


def test_a_broken_curve_is_missing_and_alone():
    features, broken = early_features(made_up_curves())
    assert np.argwhere(broken).tolist() == [[1, 10]]
    for name, values in features.items():
        first = 9 if name.startswith("difference") else 0  # cycles 2 to 10 do not look ahead to cycle 10
        assert np.isnan(values[:, :first]).all()
        assert np.argwhere(np.isnan(values[:, first:])).tolist() == [[1, 10 - first]]


@needs_severson
def test_the_variance_model_has_the_published_errors():
    train, test = severson_curves("train"), severson_curves("test1")
    assert train.capacity.shape == (41, 99, 1000)
    assert (train.voltage[0], train.voltage[-1]) == (pytest.approx(3.6), pytest.approx(2.0))

    def variance(curves: SeversonCurves) -> np.ndarray:
        n10, n100 = (int(np.flatnonzero(curves.cycles == n)[0]) for n in (10, 100))
        difference = curves.capacity[:, n100].astype(float) - curves.capacity[:, n10]
        return np.log10(difference.var(axis=1))

    slope, intercept = np.polyfit(variance(train), np.log10(train.cycle_life), 1)
    for curves, rmse, mape in ((train, 103.6, 14.1), (test, 137.9, 14.7)):
        life = 10 ** (slope * variance(curves) + intercept)
        error = life - curves.cycle_life
        assert np.sqrt((error**2).mean()) == pytest.approx(rmse, abs=1.0)
        assert 100 * np.abs(error / curves.cycle_life).mean() == pytest.approx(mape, abs=0.1)


@needs_severson
def test_the_features_carry_what_the_raw_curves_do():
    data = load("severson2019")
    train = severson_curves("train")
    difference = train.capacity[:, -1].astype(float) - train.capacity[:, 8]
    rows = data.frame[(data.frame["ds"] == 100) & data.frame["unique_id"].str.startswith("train")]
    np.testing.assert_allclose(rows["difference_log_var"], np.log10(difference.var(axis=1, ddof=1)), rtol=1e-6)
    assert rows["y"].tolist() == train.cycle_life.tolist()
    named = " ".join(data.notes)
    for curve in ("train/02 cycle 12", "train/09 cycle 13", "train/16 cycle 73", "test1/39 cycle 75"):
        assert curve in named
