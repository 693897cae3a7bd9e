"""Local models share how their series are fitted: each by itself, by as many processes as there are cores to use."""

import os
import signal

import numpy as np
import pytest
import torch

from models.catalog import build
from models.contract import ModelError, Signature
from models.linear_gaussian import Fit, fit_each


def by_whom(values: np.ndarray) -> Fit:
    if not np.isfinite(values).all():
        raise ModelError("has a gap.")
    return {"process": os.getpid(), "mean": values.mean()}


SERIES = {f"s{number}": np.full(3, float(number)) for number in range(64)}


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no process to a core")
def test_a_process_that_is_bound_to_one_core_starts_no_others():
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        fits, failures = fit_each(by_whom, SERIES)
    finally:
        os.sched_setaffinity(0, before)
    assert not failures
    assert {fit["process"] for fit in fits.values()} == {os.getpid()}


def test_many_series_are_dealt_to_processes_and_keep_their_order():
    fits, failures = fit_each(by_whom, SERIES | {"gap": np.array([1.0, np.nan])}, processes=2)
    assert [fit["mean"] for fit in fits.values()] == list(map(float, range(64)))
    assert os.getpid() not in {fit["process"] for fit in fits.values()}
    assert failures == {"gap": "has a gap"}


@pytest.mark.parametrize("name", ["ets", "arima", "theta", "ces", "sarimax", "components"])
def test_what_is_missing_at_the_end_is_stepped_over_and_no_part_of_the_fit(name):
    rng = np.random.default_rng(0)
    values = 100 + 5 * np.sin(np.pi / 2 * np.arange(48)) + rng.normal(size=48).cumsum()
    model = build(name, Signature("forecast", channels=1, horizon=5, season=4)).double()
    fits = model.fit_series({"whole": values, "ended": np.concatenate([values, np.full(20, np.nan)])})
    assert "20 of 68 values are missing" in fits.notes["ended"]
    with torch.no_grad():
        stepped = model.passed(torch.full((1, 20), torch.nan, dtype=torch.float64), fits.state_of(["whole"]))
        torch.testing.assert_close(model.predict(fits.state_of(["ended"])), model.predict(stepped))


def ended(values: np.ndarray) -> Fit:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def test_a_process_that_the_system_ends_is_told_as_that():
    with pytest.raises(ModelError, match="one of 2 processes that fit 64 series was ended by the system"):
        fit_each(ended, SERIES, processes=2)
