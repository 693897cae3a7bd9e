"""Figures from frames: pure functions, which know nothing of pages, files or sessions.

Colours are Okabe and Ito's, which colour-blind readers can tell apart; a `Palette` gives the shades that are legible
on a light and on a dark page. Fonts, background and grid are the page's: Streamlit's theme sets them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from data.frame import Channel

REFERENCES = ("naive", "ridge")
BAND_OPACITY = 0.16  # of one interval; nested ones add up, so the middle is the deepest
MOST_NAMED = 8  # channels in the legend; more are drawn alike
MOST_COLOURED = 6  # classes with a colour of their own
MOST_POINTS = 300  # of one line of a live chart
HALVES = [0, 0.5, 1]


@dataclass(frozen=True)
class Palette:
    ink: str  # what was observed
    quiet: str  # what stands back: naive, cut-off, unimportant classes
    actual: str  # what happened after a cut-off
    ridge: str
    cycle: tuple[str, ...]  # models, classes and channels, in order


LIGHT = Palette(
    ink="#31333f",
    quiet="#8a8f98",
    actual="#d55e00",
    ridge="#009e73",
    cycle=("#0072b2", "#e69f00", "#cc79a7", "#009e73", "#56b4e9", "#d55e00"),
)
DARK = Palette(
    ink="#e8eaed",
    quiet="#8a8f98",
    actual="#ff8c42",
    ridge="#2ec4a0",
    cycle=("#56b4e9", "#e69f00", "#e29ac4", "#2ec4a0", "#f0e442", "#ff8c42"),
)


def model_colours(models: Sequence[str], palette: Palette = LIGHT) -> dict[str, str]:
    """The same colour for a model whatever else is shown: pass all models of the result."""
    fixed = {"naive": palette.quiet, "ridge": palette.ridge}
    free = [colour for colour in palette.cycle if colour not in (palette.ridge, palette.actual)]
    others = sorted(set(models) - set(fixed))
    return fixed | {name: free[index % len(free)] for index, name in enumerate(others)}


def class_colours(labels: Sequence[str], important: Sequence[str], palette: Palette = LIGHT) -> dict[str, str]:
    """A colour for each class where there are few; where there are many, for the important ones only."""
    named = list(labels) if len(labels) <= MOST_COLOURED else list(dict.fromkeys(important))[:MOST_COLOURED]
    return {label: palette.cycle[named.index(label)] if label in named else palette.quiet for label in labels}


def quantile_levels(frame: pd.DataFrame) -> dict[float, str]:
    """The quantile columns of a frame of forecasts, level -> name, rising."""
    names = [name for name in frame.columns if re.fullmatch(r"q0?\.\d+", name)]
    return dict(sorted((float(name[1:]), name) for name in names))


def interval_columns(frame: pd.DataFrame) -> list[tuple[float, str, str]]:
    """Quantiles as intervals: (per cent, lower column, upper column), the widest first.

    Those that mirror each other are a pair; of the others the outermost on both sides of the median are.
    """
    levels = quantile_levels(frame)
    lower = [level for level in levels if level < 0.5]
    upper = [level for level in reversed(levels) if level > 0.5]
    pairs = [(low, high) for low in lower for high in upper if math.isclose(high, 1 - low)]
    for low, high in pairs:
        lower.remove(low)
        upper.remove(high)
    pairs += zip(lower, upper, strict=False)
    return sorted(((round(100 * (high - low), 6), levels[low], levels[high]) for low, high in pairs), reverse=True)


def undrawn_quantiles(frame: pd.DataFrame) -> list[str]:
    """The quantile columns that no chart shows: there is none on the other side of the median to be a pair with."""
    drawn = {centre_column(frame)}.union(*(pair for _, *pair in interval_columns(frame)))
    return [name for name in quantile_levels(frame).values() if name not in drawn]


def centre_column(frame: pd.DataFrame) -> str:
    """The median where it was forecast, else the mean.

    Where all levels lie on one side of the median it is the nearest one: a mean of those is no mean of the forecast.
    """
    levels = quantile_levels(frame)
    if not levels or min(levels) < 0.5 < max(levels):
        return levels.get(0.5, "mean")
    return levels[min(levels, key=lambda level: abs(level - 0.5))]


def column_title(column: str) -> str:
    """mean, median or 90 % quantile."""
    if column == "mean":
        return column
    level = float(column[1:])
    return "median" if level == 0.5 else f"{round(100 * level, 6):g} % quantile"


def without_empty_quantiles(rows: pd.DataFrame) -> pd.DataFrame:
    """One model's rows with the quantiles that it gives: a table of several models has the columns of all of them."""
    return rows.drop(columns=[name for name in quantile_levels(rows).values() if rows[name].isna().all()])


def stand_in(rows: pd.DataFrame) -> str:
    """What made one model's forecast of one series and cut-off in its place; "" where the model itself did."""
    return str(rows["substitute"].fillna("").iloc[0]) if len(rows) and "substitute" in rows else ""


def forecast_chart(
    history: pd.DataFrame,
    forecasts: pd.DataFrame,
    cutoff: Any,
    models: Sequence[str],
    colours: Mapping[str, str],
    *,
    unit: str = "",
    time_label: str = "",
    steps: int | None = None,
    past: bool = False,
    palette: Palette = LIGHT,
) -> go.Figure:
    """What was known at a cut-off, what was forecast there, and what then happened.

    Args:
        history: ds, y of one series; only what lies at or before the cut-off is drawn.
        forecasts: of the same series; cutoff, ds, model, mean, q..., y, and substitute where something stood in.
        models: the first one that forecast there gets its intervals and the faint medians of past cut-offs, the others
            a line.
        colours: of every model.
        steps: of the history that are drawn; None for all.
        past: whether medians of earlier cut-offs are drawn.
    """
    figure = go.Figure()
    known = history[history["ds"] <= cutoff]
    known = known if steps is None else known.tail(steps)
    now = forecasts[forecasts["cutoff"] == cutoff]
    drawn = [model for model in models if (now["model"] == model).any()]
    if past and drawn and len(known):
        _add_past(figure, forecasts, cutoff, known["ds"].iloc[0], drawn[0], colours[drawn[0]])
    _add_values(figure, known, "observed", palette.ink, 10, palette)
    for index, model in reversed(list(enumerate(drawn))):  # the fan lies on top
        rows = without_empty_quantiles(now[now["model"] == model].sort_values("ds"))
        instead = stand_in(rows)
        name = f"{instead} for {model}" if instead else model
        if index == 0:
            _add_bands(figure, rows, name, colours[model])
        _add_centre(figure, rows, name, colours[model], dashed=index > 0, width=3 if index == 0 else 2)
    came = now.drop_duplicates("ds").sort_values("ds")
    if came["y"].notna().any():
        style = {"mode": "lines+markers", "marker": {"size": 5}}
        _add_values(figure, came, "what then happened", palette.actual, 20, palette, **style)
    figure.add_vline(x=_plain(cutoff), line={"color": palette.quiet, "width": 1, "dash": "dot"})
    figure.add_annotation(
        x=_plain(cutoff),
        y=0,
        yref="paper",
        text="cut-off",
        showarrow=False,
        xanchor="right",
        font={"color": palette.quiet},
    )
    figure.update_xaxes(title_text=time_label)
    figure.update_yaxes(title_text=_value_title(unit))
    return _finish(figure, height=430)


def class_chart(
    history: pd.DataFrame,
    probabilities: pd.DataFrame,
    channels: Sequence[Channel],
    labels: tuple[str, ...],
    *,
    truth: Sequence[str] = (),
    time_label: str = "",
    palette: Palette = LIGHT,
) -> go.Figure:
    """The channels of one series, by unit, above the class probabilities after each observation.

    Args:
        history: ds and the channels.
        probabilities: ds and p_<label> of one model.
        truth: the right labels; their lines are thick.
    """
    units = list(dict.fromkeys(channel.unit for channel in channels))
    heights = [1.0] * len(units) + [1.2 * max(1, len(units))]
    figure = make_subplots(len(units) + 1, 1, shared_xaxes=True, vertical_spacing=0.07, row_heights=heights)
    for index, channel in enumerate(channels):
        few = len(channels) <= MOST_NAMED
        figure.add_scatter(
            x=history["ds"],
            y=history[channel.name],
            name=channel.name,
            mode="lines",
            line={
                "color": palette.cycle[index % len(palette.cycle)] if few else palette.quiet,
                "width": 1.4 if few else 0.9,
                "dash": "solid" if index < len(palette.cycle) else "dot",
            },
            legend="legend",
            showlegend=few,
            row=units.index(channel.unit) + 1,
            col=1,
        )
    last = len(units) + 1
    peaks = probabilities[[f"p_{label}" for label in labels]].max() if len(probabilities) else pd.Series(dtype=float)
    leading = [str(name).removeprefix("p_") for name in peaks.sort_values(ascending=False).index]
    colours = class_colours(labels, [*truth, *leading], palette)
    for label in sorted(labels, key=lambda label: label in truth):  # the truth lies on top
        figure.add_scatter(
            x=probabilities["ds"],
            y=probabilities[f"p_{label}"],
            name=f"{label} (truth)" if label in truth else label,
            legendrank=10 + labels.index(label),
            mode="lines",
            line={"color": colours[label], "width": 3.5 if label in truth else 1.6},
            legend="legend2",
            showlegend=colours[label] != palette.quiet,
            row=last,
            col=1,
        )
    for row, unit in enumerate(units, 1):
        figure.update_yaxes(title_text=unit or "unit not stated", row=row, col=1)
    figure.update_yaxes(title_text="probability", range=[-0.03, 1.03], tickformat=".0%", row=last, col=1)
    figure.update_xaxes(title_text=time_label, row=last, col=1)
    _finish(figure, height=520)
    domain = figure.layout[f"yaxis{last}"].domain
    beside = {"orientation": "v", "x": 1.01, "xanchor": "left", "yanchor": "top"}
    figure.update_layout(
        legend={**beside, "y": 1.0},
        legend2={**beside, "y": domain[1], "font": {"color": palette.ink}},
        margin={"t": 12},
    )
    return figure


def live_frame(rows: pd.DataFrame, names: Mapping[str, str], window: tuple[Any, Any]) -> pd.DataFrame:
    """The latest rows as ds, name, value: thinned to what a screen shows, with an empty row at an end of the window.

    None where a row is: two values at one time, one of them empty, would break the line there.

    Args:
        rows: ds and the columns.
        names: column -> name in the legend.
    """
    thin = rows.iloc[:: max(1, math.ceil(len(rows) / MOST_POINTS))]
    long = thin[["ds", *names]].rename(columns=dict(names)).melt("ds", var_name="name", value_name="value")
    ends = pd.DataFrame({"ds": list(window), "name": next(iter(names.values())), "value": np.nan})
    ends = ends[~ends["ds"].isin(thin["ds"])]
    return pd.concat(
        [frame for frame in (long, ends.astype({"ds": rows["ds"].dtype})) if len(frame)], ignore_index=True
    )


def live_lines(
    colours: Mapping[str, str],
    *,
    title: str,
    limits: tuple[float, float] | None,
    time_label: str = "",
    dates: bool = False,
    percent: bool = False,
    height: int = 180,
) -> dict[str, Any]:
    """A Vega-Lite line chart for `live_frame`; colours: name -> colour, in the order of the legend.

    Without limits, or where they are NaN for nothing was measured, the axis follows the data, from 0.

    Live charts are Vega-Lite, not plotly: Streamlit gives such a chart new data in place, and builds a plotly chart
    anew, which flickers. So nothing here may depend on what moves.
    """
    few = len(colours) <= MOST_NAMED
    bounded = limits is not None and np.isfinite(limits).all()  # a browser reads no JSON with NaN
    return {
        "height": height,
        "mark": {"type": "line", "strokeWidth": 1.8, "clip": True},
        "encoding": {
            "x": {
                "field": "ds",
                "type": "temporal" if dates else "quantitative",
                "scale": {"nice": False, "zero": False},
                "axis": {"title": time_label or None, "grid": False},
            },
            "y": {
                "field": "value",
                "type": "quantitative",
                "scale": {"domain": list(limits or ()), "nice": False} if bounded else {"zero": True},
                "axis": {"title": title, "minExtent": 42} | ({"format": ".0%", "values": HALVES} if percent else {}),
            },
            "color": {
                "field": "name",
                "type": "nominal",
                "scale": {"domain": list(colours), "range": list(colours.values())},
                "legend": {"title": None, "orient": "top", "symbolType": "stroke"} if few else None,
            },
        },
    }


def look_columns(names: Sequence[str]) -> dict[str, dict[str, list[str]]]:
    """What a look inside is drawn as: chart -> line -> the names whose mean it is.

    Surprise and norm have a line a block, the gates a line a gate; names: block<i>.<part>.
    """
    found: dict[str, dict[str, list[str]]] = {"surprise": {}, "gates": {}, "norm": {}}
    for name in names:
        block, part = name.rsplit(".", 1)
        chart, line = (part, block.replace("block", "block ")) if part in found else ("gates", part)
        found[chart].setdefault(line, []).append(name)
    return {chart: lines for chart, lines in found.items() if lines}


def bars_frame(labels: Sequence[str], probabilities: Sequence[float], truth: str | None) -> pd.DataFrame:
    """A row a class: label, probability, strength (1 for the likeliest) and what stands beside the bar."""
    values = np.nan_to_num(np.asarray(probabilities, dtype=float))
    known = bool(values.any())
    return pd.DataFrame({
        "label": list(labels),
        "probability": values,
        "strength": [1.0 if known and k == values.argmax() else 0.45 for k in range(len(values))],
        "beside": [
            (f"{value:.0%}" if known else "") + (" (truth)" if label == truth else "")
            for label, value in zip(labels, values, strict=True)
        ],
    })  # fmt: skip


def live_bars(colours: Mapping[str, str], palette: Palette = LIGHT) -> dict[str, Any]:
    """A Vega-Lite bar chart for `bars_frame`; colours: label -> colour."""
    y = {"field": "label", "type": "nominal", "sort": None, "axis": {"title": None, "grid": False, "labelFontSize": 13}}
    x = {
        "field": "probability",
        "type": "quantitative",
        "scale": {"domain": [0, 1.2], "nice": False},
        "axis": {"title": "probability", "format": ".0%", "values": [0, 0.25, 0.5, 0.75, 1]},
    }
    return {
        "height": 80 + max(34, 240 // len(colours)) * len(colours),
        "encoding": {"y": y, "x": x},
        "layer": [
            {
                "mark": {"type": "bar", "height": {"band": 0.62}, "cornerRadiusEnd": 3},
                "encoding": {
                    "color": {
                        "field": "label",
                        "type": "nominal",
                        "scale": {"domain": list(colours), "range": list(colours.values())},
                        "legend": None,
                    },
                    "opacity": {"field": "strength", "type": "quantitative", "scale": None, "legend": None},
                },
            },
            {
                "mark": {"type": "text", "align": "left", "dx": 6, "fontSize": 13, "color": palette.ink},
                "encoding": {"text": {"field": "beside", "type": "nominal"}},
            },
        ],
    }


def channel_colours(names: Sequence[str], palette: Palette = LIGHT) -> dict[str, str]:
    """A colour for each channel; past the last colour they begin again."""
    return {name: palette.cycle[index % len(palette.cycle)] for index, name in enumerate(names)}


def truth_chart(
    judged: pd.DataFrame,
    models: Sequence[str],
    colours: Mapping[str, str],
    *,
    selected: str | None = None,
    palette: Palette = LIGHT,
) -> go.Figure:
    """The prediction of every series against its truth; on the diagonal it was right.

    Args:
        judged: one row a series and model: unique_id, model, mean, q..., y.
        selected: a series that is ringed.
    """
    figure = go.Figure()
    for model in reversed(list(models)):
        rows = judged[judged["model"] == model]
        centre = centre_column(rows)
        widest = interval_columns(rows)[:1]
        errors = None
        for _, lower, upper in widest:
            errors = {
                "type": "data",
                "symmetric": False,
                "array": rows[upper] - rows[centre],
                "arrayminus": rows[centre] - rows[lower],
                "thickness": 1,
                "width": 0,
            }
        figure.add_scatter(
            x=rows["y"],
            y=rows[centre],
            error_y=errors,
            text=rows["unique_id"],
            name=f"{model}, with its {widest[0][0]:g} % interval" if widest else model,
            mode="markers",
            marker={"color": colours[model], "size": 8},
            hovertemplate="%{text}: predicted %{y:.4g}, truth %{x:.4g}<extra>" + model + "</extra>",
        )
        ringed = rows[rows["unique_id"] == selected]
        figure.add_scatter(
            x=ringed["y"],
            y=ringed[centre],
            mode="markers",
            marker={"symbol": "circle-open", "size": 17, "color": palette.ink, "line": {"width": 2}},
            showlegend=False,
            hoverinfo="skip",
        )
    ends = [judged["y"].min(), judged["y"].max()]
    figure.add_scatter(
        x=ends, y=ends, name="right", mode="lines", line={"color": palette.quiet, "width": 1, "dash": "dot"}
    )
    figure.update_xaxes(title_text="truth")
    figure.update_yaxes(title_text="prediction")
    _finish(figure, height=430)
    return figure.update_layout(hovermode="closest")


def estimate_chart(
    estimates: pd.DataFrame,
    models: Sequence[str],
    colours: Mapping[str, str],
    *,
    time_label: str = "",
    palette: Palette = LIGHT,
) -> go.Figure:
    """What a model said of one series after each observation, and the truth; the first model with its intervals."""
    figure = go.Figure()
    for index, model in reversed(list(enumerate(models))):
        rows = estimates[estimates["model"] == model].sort_values("ds")
        if index == 0:
            _add_bands(figure, rows, model, colours[model])
        _add_centre(figure, rows, model, colours[model], dashed=index > 0, width=3 if index == 0 else 2)
    true = estimates.drop_duplicates("ds").sort_values("ds")
    figure.add_scatter(
        x=true["ds"], y=true["y"], name="truth", mode="lines", line={"color": palette.actual, "width": 2}
    )
    figure.update_xaxes(title_text=time_label)
    figure.update_yaxes(title_text="prediction")
    return _finish(figure, height=380)


def _add_bands(figure: go.Figure, rows: pd.DataFrame, model: str, colour: str) -> None:
    """One closed outline an interval: forward along the upper bound, back along the lower one."""
    intervals = interval_columns(rows)
    along = pd.concat([rows["ds"], rows["ds"][::-1]])
    shares = ", ".join(f"{percent:g}" for percent, *_ in reversed(intervals))
    for index, (percent, lower, upper) in enumerate(intervals):
        figure.add_scatter(
            x=along,
            y=pd.concat([rows[upper], rows[lower][::-1]]),
            name=f"{model}, {shares} %",
            meta={"interval": percent, "model": model},
            mode="lines",
            # An interval of one step has no area; a thick line shows it.
            line={"width": 0 if len(rows) > 1 else 14, "color": _translucent(colour, BAND_OPACITY)},
            fill="toself",
            fillcolor=_translucent(colour, BAND_OPACITY),
            legendgroup=f"{model} intervals",
            legendrank=40,
            showlegend=index == 0,
            hoverinfo="skip",
        )


def _add_centre(figure: go.Figure, rows: pd.DataFrame, model: str, colour: str, *, dashed: bool, width: float) -> None:
    centre = centre_column(rows)
    hover = "%{y:.5g}"
    bounds = None
    for percent, lower, upper in interval_columns(rows)[:1]:
        bounds = rows[[lower, upper]].to_numpy()
        hover += f" ({percent:g} %: %{{customdata[0]:.5g}} to %{{customdata[1]:.5g}})"
    figure.add_scatter(
        x=rows["ds"],
        y=rows[centre],
        customdata=bounds,
        name=f"{model}, {column_title(centre)}",
        legendrank=60 if dashed else 30,
        meta={"model": model},
        mode="lines" if len(rows) > 1 else "markers",
        line={"color": colour, "width": width, "dash": "dash" if dashed else "solid"},
        hovertemplate=hover + f"<extra>{model}</extra>",
    )


def _add_past(figure: go.Figure, forecasts: pd.DataFrame, cutoff: Any, first: Any, model: str, colour: str) -> None:
    """The medians of earlier cut-offs as one broken line; of those that overlap by more than a half only the latest."""
    rows = forecasts[(forecasts["model"] == model) & (forecasts["cutoff"] < cutoff) & (forecasts["cutoff"] >= first)]
    if "substitute" in rows:
        rows = rows[rows["substitute"].fillna("") == ""]
    rows = without_empty_quantiles(rows)
    centre = centre_column(rows)
    x: list[Any] = []
    y: list[float | None] = []
    drawn, longest = cutoff, 0
    lines: dict[Any, pd.DataFrame] = {past: line.sort_values("ds") for past, line in rows.groupby("cutoff")}
    for past in sorted(lines, reverse=True):
        line = lines[past]
        if line["ds"].iloc[(len(line) - 1) // 2] <= drawn:
            x += [*line["ds"], None]
            y += [*line[centre], None]
            drawn, longest = past, max(longest, len(line))
    if not x:
        return
    figure.add_scatter(
        x=x,
        y=y,
        name=f"{model}, earlier",
        mode="lines" if longest > 1 else "markers",
        line={"color": _translucent(colour, 0.5), "width": 1.2},
        legendrank=50,
        hoverinfo="skip",
    )


def _add_values(
    figure: go.Figure, rows: pd.DataFrame, name: str, colour: str, rank: int, palette: Palette, **style: Any
) -> None:
    """What was measured; a thin dotted line bridges the holes where nothing was, and shows them."""
    if rows["y"].isna().any():
        figure.add_scatter(
            x=rows["ds"],
            y=rows["y"],
            mode="lines",
            connectgaps=True,
            line={"color": palette.quiet, "width": 1, "dash": "dot"},
            showlegend=False,
            hoverinfo="skip",
        )
    style = {"mode": "lines"} | style
    figure.add_scatter(
        x=rows["ds"], y=rows["y"], name=name, line={"color": colour, "width": 2}, legendrank=rank, **style
    )


def _finish(figure: go.Figure, height: int) -> go.Figure:
    return figure.update_layout(
        height=height,
        margin={"l": 8, "r": 8, "t": 36, "b": 8},
        hovermode="x unified",
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom", "title_text": ""},
        title_text="",
    )


def _value_title(unit: str) -> str:
    return f"value in {unit}" if unit else "value (unit not stated)"


def _plain(time: Any) -> Any:
    """A time as plotly's shapes and ranges take it: numpy's numbers and time stamps are not JSON."""
    if isinstance(time, np.datetime64 | pd.Timestamp):
        return pd.Timestamp(time).isoformat()
    return time.item() if isinstance(time, np.generic) else time


def _translucent(colour: str, opacity: float) -> str:
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, {opacity:g})"
