"""Forecasts and class probabilities as PNG files.

Figures are built as objects and drawn by Agg: no pyplot, so no window, no global state, and any thread may draw. A
file is written beside its name and renamed, so a reader sees the old picture or the new one. Matplotlib is imported
when something is drawn. Texts are shown as they are; a `$` does not begin a formula.

Colours are Okabe and Ito's, which colour-blind readers can tell apart. The observed past is ink, a forecast is blue,
what then happened is orange.

Shapes: T time steps, H forecast steps, Q quantiles, C channels, K classes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from forecasting.writing import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, QUIET, HAIRLINE = "#222222", "#666666", "#e3e3e3"
FORECAST, ACTUAL = "#0072B2", "#D55E00"
PALEST, DEEPEST = 0.08, 0.6  # how much of the forecast's colour an interval of 100 % and one of 0 % takes
CLASS_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
OTHER_CLASS = "#c4c4c4"
MOST_NAMED_CHANNELS = 8  # more are drawn alike, and counted instead of named
DOTS_PER_INCH = 150


@dataclass(frozen=True)
class ForecastPanel:
    """One series: what was known, what was forecast, and what then happened.

    Times are timestamps, integers or seconds, alike in all three. The history is drawn whole: cut it to what the
    reader should see, a few horizons.
    """

    title: str
    history_ds: ArrayLike  # (T,)
    history_y: ArrayLike  # (T,), NaN where nothing was observed
    forecast_ds: ArrayLike  # (H,)
    quantiles: ArrayLike  # (H, Q)
    levels: ArrayLike  # (Q,), increasing
    actual_y: ArrayLike | None = None  # (H,), at forecast_ds
    unit: str = ""


def picture_forecast(path: str | Path, title: str, panels: Sequence[ForecastPanel], time_label: str = "") -> Path:
    """Draw each series with its forecast fan, and return the path of the PNG.

    Levels that mirror each other (0.1 and 0.9) make a shaded interval, the level 0.5 makes the line; another level is
    not drawn. `time_label` stands under the time axis ("cycle", "time in s"); dates need none.
    """
    if not panels:
        raise ValueError("no panel to draw; picture_forecast needs at least one series.")
    columns = 1 if len(panels) <= 3 else 2
    rows = -(-len(panels) // columns)
    figure = _figure(9.5 if columns == 1 else 14.0, 0.8 + 2.6 * rows)
    named: dict[str, tuple[float, Any]] = {}
    for index, panel in enumerate(panels):
        axes = figure.add_subplot(rows, columns, index + 1)
        named |= _draw_fan(axes, panel)
        _label(axes, panel.title, panel.unit, time_label if index + columns >= len(panels) else "")
    _head(figure, title)
    entries = sorted(named.items(), key=lambda entry: entry[1][0])
    figure.legend(
        [drawn for _, (_, drawn) in entries],
        [name for name, _ in entries],
        loc="outside right center",
        frameon=False,
        fontsize=9,
        handlelength=1.6,
    )
    return _write(figure, path)


def picture_probabilities(
    path: str | Path,
    title: str,
    time: ArrayLike,
    values: ArrayLike,
    channel_names: Sequence[str],
    probabilities: ArrayLike,
    labels: Sequence[str],
    truth: str | None = None,
    unit: str = "",
    time_label: str = "time in s",
) -> Path:
    """Draw the channels of a sequence above the class probabilities after each frame; return the path of the PNG.

    Args:
        time: (T,), the frames' times.
        values: (T, C), in `unit`; channel_names: C names.
        probabilities: (T, K); labels: K names.
        truth: the right label; it is named in the title and its line is drawn thick. None when nobody knows.

    The six classes that matter most (the truth, then the highest peaks) have colours; the others are grey.
    """
    at = np.asarray(time)
    signal, chances = np.asarray(values, dtype=np.float64), np.asarray(probabilities, dtype=np.float64)
    expected = {"values": (signal, channel_names), "probabilities": (chances, labels)}
    for name, (array, names) in expected.items():
        if array.shape != (len(at), len(names)):
            raise ValueError(f"{name} have shape {array.shape}, expected {(len(at), len(names))}.")
    if truth is not None and truth not in labels:
        raise ValueError(f"the truth '{truth}' is not among the labels {list(labels)}.")

    figure = _figure(9.5, 5.6)
    upper, lower = figure.subplots(2, 1, sharex=True)
    _draw_channels(upper, at, signal, channel_names)
    _label(upper, "sensor channels", unit, "")
    _draw_classes(lower, at, chances, labels, truth)
    _label(lower, "class probabilities", "probability", time_label)
    lower.set_ylim(-0.03, 1.03)
    _head(figure, title if truth is None else f"{title}: truth is {truth}")
    return _write(figure, path)


def _figure(width_inch: float, height_inch: float) -> "Figure":
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08)  # inches
    return Figure(figsize=(width_inch, height_inch), layout=layout)


def _draw_fan(axes: "Axes", panel: ForecastPanel) -> dict[str, tuple[float, Any]]:
    """Draw one panel and return what the legend should name: name -> (place in the legend, what was drawn)."""
    past_ds, ds = np.asarray(panel.history_ds), np.asarray(panel.forecast_ds)
    past = np.asarray(panel.history_y, dtype=np.float64)
    quantiles, levels = np.asarray(panel.quantiles, dtype=np.float64), np.asarray(panel.levels, dtype=np.float64)
    actual = None if panel.actual_y is None else np.asarray(panel.actual_y, dtype=np.float64)
    for name, array, shape in (
        ("history_y", past, past_ds.shape),
        ("quantiles", quantiles, (ds.size, levels.size)),
        ("actual_y", actual, ds.shape),
    ):
        if array is not None and array.shape != shape:
            raise ValueError(f"panel '{panel.title}': {name} has shape {array.shape}, expected {shape}.")

    anchored = bool(past.size and np.isfinite(past[-1]))
    if anchored:  # the fan opens, and the actuals go on, from the last known value
        ds = np.concatenate([past_ds[-1:], ds])
        quantiles = np.concatenate([np.full((1, levels.size), past[-1]), quantiles])
        actual = None if actual is None else np.concatenate([past[-1:], actual])
    alone = 5.0 if len(ds) == 1 else 0.0  # a single step has no area, so its intervals are bars

    named: dict[str, tuple[float, Any]] = {"observed": (0, axes.plot(past_ds, past, color=INK, lw=1.2)[0])}
    for low in range(levels.size):
        for high in np.flatnonzero(np.isclose(levels, 1 - levels[low]) & (levels > levels[low] + 1e-6)):
            inside = levels[high] - levels[low]
            band = axes.fill_between(
                ds,
                quantiles[:, low],
                quantiles[:, high],
                color=_tint(FORECAST, inside),
                linewidth=alone,
                zorder=2 - inside,
            )
            named[f"{100 * inside:.3g} % interval"] = 4 - inside, band
    middle = np.flatnonzero(np.isclose(levels, 0.5))
    if middle.size:
        line = axes.plot(ds, quantiles[:, middle[0]], color=FORECAST, lw=1.8, marker="o" if alone else "")
        named["forecast (median)"] = 2, line[0]
    if actual is not None:
        dots = "o" if len(ds) <= 60 else ""
        line = axes.plot(ds, actual, color=ACTUAL, lw=1.2, marker=dots, ms=3, markevery=slice(int(anchored), None))
        named["what happened"] = 1, line[0]
    return named


def _draw_channels(axes: "Axes", at: NDArray[Any], signal: NDArray[np.float64], names: Sequence[str]) -> None:
    """Channels are shades, from dark to light, so that no channel looks like a class."""
    from matplotlib import colormaps

    if len(names) > MOST_NAMED_CHANNELS:
        lines = axes.plot(at, signal, color=QUIET, lw=0.7, alpha=0.6)
        _name_beside(axes, lines[:1], [f"{len(names)} channels"])
        return
    shades = colormaps["cividis"](np.linspace(0, 0.85, len(names)))
    lines = [axes.plot(at, signal[:, c], color=shades[c], lw=1.2)[0] for c in range(len(names))]
    _name_beside(axes, lines, names)


def _draw_classes(
    axes: "Axes", at: NDArray[Any], chances: NDArray[np.float64], labels: Sequence[str], truth: str | None
) -> None:
    peaks = np.nan_to_num(chances).max(axis=0, initial=0)
    by_weight = sorted(range(len(labels)), key=lambda k: (labels[k] != truth, -peaks[k]))
    coloured = sorted(by_weight[: len(CLASS_COLOURS)])
    others = by_weight[len(CLASS_COLOURS) :]
    grey = [axes.plot(at, chances[:, k], color=OTHER_CLASS, lw=0.9)[0] for k in others]
    lines = [
        axes.plot(at, chances[:, k], color=colour, lw=3.0 if labels[k] == truth else 1.4)[0]
        for colour, k in zip(CLASS_COLOURS, coloured, strict=False)
    ]
    names = [f"{labels[k]} (truth)" if labels[k] == truth else labels[k] for k in coloured]
    if others:
        names.append(f"{len(others)} others")
    _name_beside(axes, lines + grey[:1], names)


def _name_beside(axes: "Axes", lines: Sequence[Any], names: Sequence[str]) -> None:
    """A legend to the right, where it covers no data."""
    legend = axes.legend(
        lines, names, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9, handlelength=1.6
    )
    _as_written(legend.get_texts())


def _label(axes: "Axes", title: str, unit: str, time_label: str) -> None:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    axes.set_title(title, loc="left", fontsize=10, color=INK, parse_math=False)
    axes.set_ylabel(unit, fontsize=9, color=QUIET, parse_math=False)
    axes.set_xlabel(time_label, fontsize=9, color=QUIET, parse_math=False)
    axes.grid(axis="y", color=HAIRLINE, lw=0.8)
    axes.set_axisbelow(True)
    axes.margins(x=0.01)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(QUIET)
    axes.tick_params(labelsize=9, colors=QUIET, left=False)
    locator = axes.xaxis.get_major_locator()
    if isinstance(locator, AutoDateLocator):
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))


def _head(figure: "Figure", title: str) -> None:
    head = figure.suptitle(title, x=0.012, ha="left", fontsize=13, fontweight="bold", color=INK)
    _as_written([head])


def _as_written(texts: Iterable[Any]) -> None:
    for text in texts:
        text.set_parse_math(False)


def _tint(colour: str, inside: float) -> tuple[float, float, float]:
    """The colour mixed with white, paler the more an interval holds: one coverage has one shade in all panels."""
    from matplotlib.colors import to_rgb

    share = DEEPEST - (DEEPEST - PALEST) * inside
    red, green, blue = (1 - share * (1 - part) for part in to_rgb(colour))
    return red, green, blue


def _write(figure: "Figure", path: str | Path) -> Path:
    with replacing(path) as part:
        figure.savefig(part, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    return Path(path)
