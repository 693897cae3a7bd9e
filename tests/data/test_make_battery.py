"""The simulated fleet: the stored file is what the script makes, and the law is the published one."""

import numpy as np
import pandas as pd
import pytest

from data.samples import make_battery


def test_the_stored_file_is_what_the_script_makes(tmp_path, monkeypatch):
    stored = make_battery.SAMPLE
    monkeypatch.setattr(make_battery, "SAMPLE", tmp_path / "again.parquet")
    make_battery.main()
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "again.parquet"), pd.read_parquet(stored), rtol=1e-4)
    assert stored.stat().st_size < 300_000


def test_the_fleet_ages_to_four_fifths_in_a_few_hundred_cycles():
    fleet = make_battery.simulate_fleet()
    cells = fleet.groupby("unique_id")
    assert len(cells) == 24
    assert cells.size().between(300, 700).all()
    assert (cells["y"].last() / cells["y"].first()).between(0.78, 0.83).all()
    assert (cells["ds"].diff().dropna() == 1).all()


def test_the_law_gives_the_numbers_of_a_calculator():
    # One full cycle around half charge at 25 degC without calendar ageing: 1 / (1.40e5 - 1.23e5).
    reference = make_battery.ageing_per_cycle(1.0, 0.5, np.array([24.85]), cycle_s=0.0)
    np.testing.assert_allclose(reference, 1 / 17000)
    warm = make_battery.ageing_per_cycle(1.0, 0.5, np.array([44.85]), cycle_s=0.0)
    np.testing.assert_allclose(warm / reference, np.exp(0.0693 * 20 * 298 / 318))
    np.testing.assert_allclose(make_battery.sei_loss(np.array([0.0, 0.1])), [0.0, 1 - 0.9425 * np.exp(-0.1)], atol=1e-6)


def test_faster_charging_ages_faster():
    fleet = make_battery.simulate_fleet()
    life = fleet.groupby("unique_id").agg(rate=("charge_rate", "first"), cycles=("ds", "max"))
    assert np.corrcoef(life["rate"], life["cycles"])[0, 1] < -0.5
    assert life["cycles"].std() == pytest.approx(88, abs=30)
