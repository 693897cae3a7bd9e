"""A forecaster that lets one wait: for a run to be killed while it fits."""

import time
from pathlib import Path
from typing import Any

from sktime.forecasting.naive import NaiveForecaster


class Waiting(NaiveForecaster):
    """Naive, once the file `until` is there."""

    def __init__(self, until: str = "") -> None:
        self.until = until
        super().__init__()

    def _fit(self, y: Any, X: Any, fh: Any) -> Any:
        while not Path(self.until).exists():
            time.sleep(0.01)
        return super()._fit(y, X, fh)
