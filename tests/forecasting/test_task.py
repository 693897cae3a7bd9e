import json

import numpy as np
import pandas as pd
import pytest

from data.frame import Channel, Dataset, Splits
from forecasting.task import DECILES, Task, TaskError

VOLT, AMPERE = Channel("voltage", "V", 0.0, 5.0), Channel("current", "A")


def dataset(task="forecast", freq=1, labels=("left", "right")) -> Dataset:
    frame = pd.DataFrame({"unique_id": "a", "ds": np.arange(4), "voltage": 1.0, "current": 2.0, "y": 3.0})
    frame["label"] = [labels[row % len(labels)] for row in range(4)]
    channels = (Channel("y", "Ah"), VOLT) if task == "forecast" else (VOLT, AMPERE)
    target = "label" if task == "classify" else "y"
    return Dataset("toy", frame, task, channels, freq, 12, 6, Splits(), target)


def test_a_task_takes_what_is_not_asked_from_its_data():
    task = Task.of(dataset())
    assert (task.kind, task.target, task.freq) == ("forecast", "y", 1)
    assert (task.horizon, task.season, task.quantiles) == (6, 12, DECILES)
    asked = Task.of(dataset(), horizon=2, season=1, quantiles=(0.5,))
    assert (asked.horizon, asked.season, asked.quantiles) == (2, 1, (0.5,))


@pytest.mark.parametrize(("kind", "shape"), [("forecast", (6, 9)), ("classify", (2,)), ("regress", (9,))])
def test_the_signature_says_what_leaves_the_model(kind, shape):
    signature = Task.of(dataset(kind)).signature
    assert (signature.task, signature.channels, signature.prediction_shape) == (kind, 2, shape)


def test_classes_are_the_labels_in_order_of_the_alphabet():
    assert Task.of(dataset("classify", labels=("right", "up", "left"))).labels == ("left", "right", "up")


@pytest.mark.parametrize("kind", ["forecast", "classify", "regress"])
def test_a_task_survives_json(kind):
    task = Task.of(dataset(kind))
    assert Task.from_json(json.loads(json.dumps(task.to_json()))) == task


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"horizon": 0}, "the horizon is at least 1 step, got 0"),
        ({"season": 0}, r"the season is at least 1 step \(1 means none\), got 0"),
        ({"quantiles": (0.9, 0.1)}, "rising numbers between 0 and 1, got 0.9, 0.1"),
        ({"quantiles": (0.1, 0.1)}, "rising numbers"),
        ({"quantiles": (0.0, 0.5)}, "between 0 and 1, got 0.0, 0.5"),
        ({"quantiles": (float("nan"),)}, "between 0 and 1, got nan"),
        ({"quantiles": ()}, "rising numbers"),
    ],
)
def test_what_cannot_be_asked_is_refused(asked, message):
    with pytest.raises(TaskError, match=message):
        Task.of(dataset(), **asked)


def test_a_forecast_needs_to_know_its_step():
    with pytest.raises(TaskError, match=r"toy: the step of its times is not known; give --freq"):
        Task.of(dataset(freq=None))
    assert Task.of(dataset("classify", freq=None)).freq is None
