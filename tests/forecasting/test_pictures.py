import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from forecasting.pictures import (
    ACTUAL,
    CLASS_COLOURS,
    FORECAST,
    INK,
    ForecastPanel,
    _tint,
    picture_forecast,
    picture_probabilities,
)

LEVELS = [0.1, 0.25, 0.5, 0.75, 0.9]


def panel(ds=None, steps=6, **changes):
    ds = np.arange(24 + steps) if ds is None else ds
    y = np.sin(np.arange(24 + steps) / 3)
    quantiles = y[24:, None] + np.array([-2, -1, 0, 1, 2]) * 0.2
    made = ForecastPanel("B0005", ds[:24], y[:24], ds[24:], quantiles, LEVELS, y[24:] + 0.1, unit="Ah")
    return replace(made, **changes)


def colours(path):
    """(red, green, blue) of every colour of a PNG with 50 pixels or more; fewer come of smoothed edges."""
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    pixels = (255 * imread(path)[..., :3]).round().astype(np.int64) @ [65536, 256, 1]
    found, counts = np.unique(pixels, return_counts=True)
    return {(pixel >> 16, pixel >> 8 & 255, pixel & 255) for pixel in found[counts >= 50].tolist()}


def rgb(colour):
    return tuple(round(255 * part) for part in to_rgb(colour))


@pytest.mark.parametrize("panels", [1, 2, 4])
def test_a_forecast_picture_shows_the_past_the_fan_and_what_happened(tmp_path, panels):
    path = picture_forecast(tmp_path / "fan.png", "Capacity", [panel()] * panels, time_label="cycle")
    assert {rgb(INK), rgb(FORECAST), rgb(ACTUAL)} <= colours(path)
    assert [file.name for file in tmp_path.iterdir()] == ["fan.png"]


def test_what_has_not_happened_yet_is_not_drawn(tmp_path):
    assert rgb(ACTUAL) not in colours(picture_forecast(tmp_path / "fan.png", "", [panel(actual_y=None)]))


@pytest.mark.parametrize("tz", [None, "America/New_York"])
def test_dates_and_dollar_signs_are_drawn(tmp_path, tz):
    ds = pd.date_range("2024-01-30", periods=30, freq="B", tz=tz)
    made = panel(ds=ds, title="$A and $B", unit="$ a $")
    assert len(colours(picture_forecast(tmp_path / "fan.png", "from $1 to $2_", [made]))) > 10


@pytest.mark.parametrize("last", [1.0, np.nan])
def test_a_single_step_still_shows_its_intervals(tmp_path, last):
    history = np.append(np.ones(23), last)
    fan = colours(picture_forecast(tmp_path / "fan.png", "", [panel(steps=1, history_y=history)]))
    assert {rgb(_tint(FORECAST, 0.8)), rgb(_tint(FORECAST, 0.5)), rgb(FORECAST), rgb(ACTUAL)} <= fan


def test_a_level_without_its_mirror_is_not_drawn(tmp_path):
    made = panel(levels=[0.1, 0.25, 0.4, 0.75, 0.8])  # 0.25 and 0.75 mirror each other, and there is no median
    fan = colours(picture_forecast(tmp_path / "fan.png", "", [made]))
    assert rgb(_tint(FORECAST, 0.5)) in fan
    assert not {rgb(_tint(FORECAST, 0.7)), rgb(_tint(FORECAST, 0.8)), rgb(FORECAST)} & fan


def test_a_wrong_shape_names_the_panel_and_what_was_expected(tmp_path):
    with pytest.raises(ValueError, match=r"panel 'B0005': quantiles has shape \(6, 4\), expected \(6, 5\)"):
        picture_forecast(tmp_path / "fan.png", "", [panel(quantiles=np.zeros((6, 4)))])
    with pytest.raises(ValueError, match="no panel to draw"):
        picture_forecast(tmp_path / "fan.png", "", [])
    assert not list(tmp_path.iterdir())


def gesture(classes=3, channels=2):
    time = np.arange(40) / 20
    values = np.sin(time[:, None] + np.arange(channels))
    scores = np.exp(np.outer(time, np.arange(classes)))
    return time, values, [f"_{c}" for c in range(channels)], scores / scores.sum(axis=1, keepdims=True)


def test_a_probability_picture_colours_every_class(tmp_path):
    labels = ["_wave", "push", "$swipe$"]
    path = picture_probabilities(tmp_path / "p.png", "Gesture 17", *gesture(), labels, truth="push", unit="g")
    assert {rgb(colour) for colour in CLASS_COLOURS[:3]} <= colours(path)
    assert rgb(CLASS_COLOURS[3]) not in colours(path)


def test_many_classes_and_channels_are_counted_instead_of_named(tmp_path):
    labels = [f"{k}" for k in range(20)]
    path = picture_probabilities(tmp_path / "p.png", "Gesture", *gesture(classes=20, channels=12), labels, truth="0")
    assert {rgb(colour) for colour in CLASS_COLOURS} <= colours(path)  # the truth too, though its peak is low


def test_a_probability_picture_refuses_what_does_not_fit(tmp_path):
    with pytest.raises(ValueError, match=r"probabilities have shape \(40, 3\), expected \(40, 2\)"):
        picture_probabilities(tmp_path / "p.png", "", *gesture(), ["wave", "push"])
    with pytest.raises(ValueError, match="the truth 'pull' is not among the labels"):
        picture_probabilities(tmp_path / "p.png", "", *gesture(), ["wave", "push", "swipe"], truth="pull")


def test_a_picture_replaces_the_old_one_or_leaves_it(tmp_path, monkeypatch):
    path = tmp_path / "fan.png"
    path.write_text("old")

    def fail(source, target):
        raise OSError("no rename")

    with monkeypatch.context() as patched:
        patched.setattr("os.replace", fail)
        with pytest.raises(OSError, match="no rename"):
            picture_forecast(path, "", [panel()])
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["fan.png"]
    picture_forecast(path, "", [panel()])
    assert len(colours(path)) > 10


def test_drawing_leaves_pyplot_alone_and_importing_leaves_matplotlib_alone(tmp_path):
    code = (
        "import sys; from forecasting.pictures import *; assert 'matplotlib' not in sys.modules;"
        "panel = ForecastPanel('', [0, 1], [0, 1], [2], [[1]], [0.5]);"
        "picture_forecast(sys.argv[1], '', [panel]); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "fan.png")], check=True)
