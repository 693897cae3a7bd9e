"""The monthly series of M3, for tests on real data."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

M3 = Path(os.environ.get("MNEMO_DATA_DIR", "")) / "m3" / "m3_monthly_a.parquet"
needs_m3 = pytest.mark.skipif("MNEMO_DATA_DIR" not in os.environ or not M3.exists(), reason="m3 needs MNEMO_DATA_DIR")


def m3_monthly(every: int) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Name, training values and the 18 test values of every so many-th series."""
    import pandas as pd

    table = pd.read_parquet(M3).iloc[::every]
    for name, values, test in zip(table["id"], table["train"], table["test"], strict=True):
        yield name, np.array(values), np.array(test)
