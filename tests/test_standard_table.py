"""The standard table's own parts: Naive2 and the CSV that a long run goes on from."""

import os

import numpy as np
import pandas as pd
import pytest

from data.catalog import load
from data.panel import to_panel
from forecasting.task import Task
from forecasting.windows import split
from tests.benchmarks.bench_standard import PUBLISHED, naive2, naive2_figures, of_run


def test_naive2_is_as_good_on_m4_as_the_competition_published():
    if not os.environ.get("MNEMO_DATA_DIR"):
        pytest.skip("MNEMO_DATA_DIR is not set: m4/hourly is not here")
    dataset = load("m4/hourly")
    task = Task.of(dataset)
    smape, mase = naive2_figures(split(dataset, to_panel(dataset), task), task)
    assert (round(smape, 3), round(mase, 3)) == PUBLISHED["m4/hourly"]


def test_naive2_takes_the_season_away_and_puts_it_back_where_there_is_one():
    season = np.tile([0.5, 1.0, 1.5], 20)
    np.testing.assert_allclose(naive2(10 * season, 3, 5), 10 * season[:5])
    noise = 10 + np.random.default_rng(0).normal(size=60)
    np.testing.assert_array_equal(naive2(noise, 3, 4), np.full(4, noise[-1]))
    np.testing.assert_array_equal(naive2(10 * season[:8], 3, 2), np.full(2, 10.0))  # fewer than three seasons


def test_a_run_finds_its_own_rows_alone(tmp_path):
    place = tmp_path / "standard.csv"
    assert not len(of_run(place, {"set": "a", "seed": 0}))
    pd.DataFrame({"set": ["a", "a", "b"], "seed": [0, 1, 0], "mase": [1.0, 2.0, 3.0]}).to_csv(place, index=False)
    assert of_run(place, {"set": "a", "seed": 1})["mase"].tolist() == [2.0]
    with pytest.raises(SystemExit, match=r"standard\.csv: has no column ago: it is of an older version"):
        of_run(place, {"set": "a", "ago": 0})
