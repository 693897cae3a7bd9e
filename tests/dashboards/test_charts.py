import numpy as np
import pandas as pd
import pytest
from result_folders import MODELS, forecast_frames

from dashboards import charts
from data.frame import Channel


@pytest.fixture(scope="module")
def frames():
    history, forecasts = forecast_frames()
    return history[history["unique_id"] == "AAA"], forecasts[forecasts["unique_id"] == "AAA"]


def draw(frames, cutoff=None, models=MODELS, **options):
    history, forecasts = frames
    cutoff = forecasts["cutoff"].max() if cutoff is None else cutoff
    return charts.forecast_chart(history, forecasts, cutoff, models, charts.model_colours(MODELS), **options)


def named(figure, part):
    found = [trace for trace in figure.data if part in (trace.name or "")]
    assert found, [trace.name for trace in figure.data]
    return found


def rows_at(frames, cutoff, model):
    forecasts = frames[1]
    return forecasts[(forecasts["cutoff"] == cutoff) & (forecasts["model"] == model)]


def test_each_band_runs_along_its_upper_quantile_and_back_along_its_lower_one(frames):
    figure = draw(frames)
    rows = rows_at(frames, frames[1]["cutoff"].max(), "gru")
    bands = {trace.meta["interval"]: trace for trace in figure.data if trace.fill == "toself"}
    assert sorted(bands) == [50, 80]
    for percent, lower, upper in ((80, "q0.1", "q0.9"), (50, "q0.25", "q0.75")):
        assert list(bands[percent].y) == [*rows[upper], *rows[lower][::-1]]
        assert list(bands[percent].x) == [*rows["ds"], *rows["ds"][::-1]]


def test_the_widest_band_lies_lowest_and_only_the_first_model_has_bands(frames):
    order = [trace.meta["interval"] for trace in draw(frames).data if trace.fill == "toself"]
    assert order == [80, 50]
    assert {trace.meta["model"] for trace in draw(frames).data if trace.fill == "toself"} == {"gru"}
    assert {trace.meta["model"] for trace in draw(frames, models=["naive"]).data if trace.fill} == {"naive"}


def test_the_chart_shows_the_chosen_cutoff_with_its_actuals_and_nothing_observed_after_it(frames):
    cutoff = frames[1]["cutoff"].unique()[2]
    figure = draw(frames, cutoff)
    rows = rows_at(frames, cutoff, "ridge")
    [observed], [came], [median] = named(figure, "observed"), named(figure, "happened"), named(figure, "ridge, median")
    assert observed.x[-1] == cutoff
    assert list(came.x) == list(rows["ds"])
    assert list(came.y) == list(rows["y"])
    assert list(median.y) == list(rows["q0.5"])


def test_history_is_cut_to_the_steps_asked_for(frames):
    [observed] = named(draw(frames, steps=7), "observed")
    assert len(observed.x) == 7


def test_earlier_medians_come_from_earlier_cutoffs_that_overlap_by_half_at_most(frames):
    cutoffs = np.sort(frames[1]["cutoff"].unique())
    [past] = named(draw(frames, cutoffs[-1], past=True), "gru, earlier")
    starts = [
        time for before, time in zip([None, *past.x], past.x, strict=False) if before is None and time is not None
    ]
    drawn = [cutoff for cutoff in cutoffs if cutoff + np.timedelta64(1, "D") in starts]
    assert drawn == list(cutoffs[:-1])  # every second day, four days ahead: a half
    assert not [trace for trace in draw(frames, cutoffs[-1]).data if "earlier" in (trace.name or "")]


def test_a_hole_in_the_past_is_bridged_by_a_dotted_line_and_not_by_the_solid_one(frames):
    history = frames[0].copy()
    history.loc[history.index[10], "y"] = np.nan
    figure = draw((history, frames[1]))
    bridge = [trace for trace in figure.data if trace.connectgaps]
    assert [trace.line.dash for trace in bridge] == ["dot"]
    assert not named(figure, "observed")[0].connectgaps


def test_an_interval_of_one_step_is_a_thick_line(frames):
    forecasts = frames[1].groupby(["cutoff", "model"]).head(1)
    figure = draw((frames[0], forecasts))
    bands = [trace for trace in figure.data if trace.fill == "toself"]
    assert all(trace.line.width > 0 and len(trace.x) == 2 for trace in bands)


def test_no_model_leaves_the_observations(frames):
    names = [trace.name for trace in draw(frames, models=[], past=True).data]
    assert names == ["observed", "what then happened"]


def test_the_axis_names_the_unit_or_says_that_it_is_not_known(frames):
    assert draw(frames, unit="USD").layout.yaxis.title.text == "value in USD"
    assert "not stated" in draw(frames).layout.yaxis.title.text


def test_a_model_keeps_its_colour_whatever_the_order():
    forwards, backwards = charts.model_colours(["a", "b", "naive"]), charts.model_colours(["naive", "b", "a"])
    assert forwards == backwards
    assert len(set(forwards.values())) == 4  # ridge has its own even where it did not run


def test_intervals_pair_the_quantiles_that_mirror_each_other():
    frame = pd.DataFrame(columns=["mean", "q0.05", "q0.1", "q0.5", "q0.9", "y"])
    assert charts.interval_columns(frame) == [(80, "q0.1", "q0.9")]
    assert charts.centre_column(frame) == "q0.5"
    assert charts.centre_column(frame[["mean", "q0.1", "q0.9"]]) == "mean"


def test_quantiles_without_a_mirror_are_paired_from_outside_and_what_is_left_over_is_told():
    frame = pd.DataFrame(columns=["mean", "q0.05", "q0.1", "q0.2", "q0.5", "q0.7", "q0.9"])
    assert charts.interval_columns(frame) == [(80, "q0.1", "q0.9"), (65, "q0.05", "q0.7")]
    assert charts.undrawn_quantiles(frame) == ["q0.2"]
    assert charts.undrawn_quantiles(frame[["mean", "q0.1", "q0.9"]]) == []
    assert charts.undrawn_quantiles(frame[["mean", "q0.5", "q0.9"]]) == ["q0.9"]


@pytest.mark.parametrize(("levels", "title"), [((0.9,), "90 % quantile"), ((0.75, 0.9), "75 % quantile")])
def test_where_all_levels_lie_above_the_median_the_lowest_is_drawn_and_not_their_mean(frames, levels, title):
    history, forecasts = frames
    others = [name for level, name in charts.quantile_levels(forecasts).items() if level not in levels]
    [line] = named(draw((history, forecasts.drop(columns=others)), models=["gru"]), f"gru, {title}")
    rows = rows_at(frames, forecasts["cutoff"].max(), "gru")
    assert list(line.y) == list(rows[f"q{levels[0]}"])


def test_an_interval_is_named_by_the_share_that_it_is_and_not_by_a_rounder_one():
    frame = pd.DataFrame(columns=["mean", "q0.001", "q0.0125", "q0.5", "q0.9875", "q0.999"])
    assert charts.interval_columns(frame) == [(99.8, "q0.001", "q0.999"), (97.5, "q0.0125", "q0.9875")]


def test_a_label_of_intervals_is_that_share(frames):
    history, forecasts = frames
    renamed = forecasts.rename(columns={"q0.1": "q0.0125", "q0.9": "q0.9875"})
    assert named(draw((history, renamed)), "gru, 50, 97.5 %")


def test_a_model_without_quantiles_is_drawn_by_its_mean_beside_others_that_have_them(frames):
    history, forecasts = frames
    pointwise = forecasts.copy()
    quantiles = [name for name in forecasts if name.startswith("q")]
    pointwise.loc[pointwise["model"] == "gru", quantiles] = np.nan
    figure = draw((history, pointwise), past=True)
    [mean], [past] = named(figure, "gru, mean"), named(figure, "gru, earlier")
    assert list(mean.y) == list(rows_at(frames, forecasts["cutoff"].max(), "gru")["mean"])
    assert not [trace for trace in figure.data if trace.fill]
    assert any(value is not None and np.isfinite(value) for value in past.y)
    assert named(figure, "ridge, median")


def test_what_stood_in_for_a_model_is_named_and_never_drawn_as_the_model_itself(frames):
    history, forecasts = frames
    cutoffs = np.sort(forecasts["cutoff"].unique())
    failed = forecasts["cutoff"].isin(cutoffs[-3:]) & (forecasts["model"] == "gru")
    figure = draw((history, forecasts.assign(substitute=np.where(failed, "naive", ""))), past=True)
    assert named(figure, "naive for gru, median")
    assert named(figure, "naive for gru, 50, 80 %")
    assert not [trace for trace in figure.data if (trace.name or "").startswith("gru, median")]
    [past] = named(figure, "gru, earlier")
    assert max(time for time in past.x if time is not None) <= cutoffs[-4] + np.timedelta64(4, "D")


def test_a_cutoff_whose_outcome_is_not_known_shows_the_models_that_forecast_there(frames):
    history, forecasts = frames
    last = forecasts["cutoff"].max()
    future = rows_at(frames, last, "ridge").assign(cutoff=history["ds"].max(), y=np.nan)
    future["ds"] += history["ds"].max() - last
    figure = draw((history, pd.concat([forecasts, future])), history["ds"].max())
    assert {trace.meta["model"] for trace in figure.data if trace.fill} == {"ridge"}
    names = [trace.name for trace in figure.data]
    assert "what then happened" not in names
    assert not [name for name in names if name and name.startswith(("gru", "naive"))]


def classes(steps=5):
    ds = np.arange(steps) / 10
    history = pd.DataFrame({"ds": ds, "accel": ds, "gyro": -ds})
    return history, pd.DataFrame({"ds": ds, "p_rest": 0.25, "p_wave": 0.75})


def test_channels_are_drawn_by_unit_above_the_probabilities_and_the_truth_is_thick():
    history, probabilities = classes()
    channels = (Channel("accel", "g"), Channel("gyro", "deg/s"))
    figure = charts.class_chart(
        history, probabilities, channels, ("rest", "wave"), truth=["rest"], time_label="time in s"
    )
    axes = {trace.name: trace.yaxis for trace in figure.data}
    assert axes == {"accel": "y", "gyro": "y2", "wave": "y3", "rest (truth)": "y3"}
    [truth], [other] = named(figure, "truth"), named(figure, "wave")
    assert list(truth.y) == [0.25] * 5
    assert truth.line.width > other.line.width
    titles = [figure.layout[name].title.text for name in ("yaxis", "yaxis2", "yaxis3", "xaxis3")]
    assert titles == ["g", "deg/s", "probability", "time in s"]


def test_of_many_classes_the_important_ones_have_colours():
    labels = [f"c{index}" for index in range(25)]
    colours = charts.class_colours(labels, ["c20", "c3"])
    assert {label for label, colour in colours.items() if colour != charts.LIGHT.quiet} == {"c20", "c3"}


def test_bars_show_every_class_the_likeliest_strongest_and_mark_the_truth():
    frame = charts.bars_frame(["rest", "wave"], [0.2, 0.8], truth="rest")
    assert frame["probability"].tolist() == [0.2, 0.8]
    assert frame["strength"].idxmax() == 1
    assert frame["beside"].tolist() == ["20% (truth)", "80%"]
    before = charts.bars_frame(["rest", "wave"], [np.nan, np.nan], truth=None)
    assert before["probability"].tolist() == [0, 0]
    assert before["beside"].tolist() == ["", ""]


def test_a_live_frame_spans_its_window_and_is_thinned():
    history, _ = classes(1000)
    frame = charts.live_frame(history, {"accel": "acceleration"}, (0.0, 200.0))
    assert len(frame) <= charts.MOST_POINTS + 2
    assert frame["ds"].max() == 200.0
    assert frame.loc[frame["ds"] == 200.0, "value"].isna().all()
    assert set(frame["name"]) == {"acceleration"}
    assert not frame.duplicated(["ds", "name"]).any()  # the line would break there
    assert len(charts.live_frame(history.iloc[:0], {"accel": "acceleration"}, (0.0, 1.0))) == 2


def test_a_look_has_a_line_a_block_and_the_gates_a_line_a_gate():
    names = [f"block{index}.{part}" for index in (0, 1) for part in ("surprise", "keep", "rate", "norm")]
    assert charts.look_columns(names) == {
        "surprise": {"block 0": ["block0.surprise"], "block 1": ["block1.surprise"]},
        "gates": {"keep": ["block0.keep", "block1.keep"], "rate": ["block0.rate", "block1.rate"]},
        "norm": {"block 0": ["block0.norm"], "block 1": ["block1.norm"]},
    }


def test_a_live_chart_without_limits_follows_the_data_from_zero():
    scale = charts.live_lines({"a": "#000000"}, title="norm", limits=None)["encoding"]["y"]["scale"]
    assert scale == {"zero": True}
    scale = charts.live_lines({"a": "#000000"}, title="norm", limits=(-1, 2))["encoding"]["y"]["scale"]
    assert scale["domain"] == [-1, 2]


def test_predictions_stand_against_the_truth_with_their_widest_interval():
    judged = pd.DataFrame({
        "unique_id": ["a", "b"], "model": "gru",
        "q0.1": [1.0, 2.0], "q0.5": [3.0, 5.0], "q0.9": [4.0, 9.0], "y": [3.5, 4.5],
    })  # fmt: skip
    figure = charts.truth_chart(judged, ["gru"], charts.model_colours(["gru"]), selected="b")
    [points] = named(figure, "gru")
    assert list(points.x) == [3.5, 4.5]
    assert list(points.y) == [3.0, 5.0]
    assert list(points.error_y.array) == [1.0, 4.0]
    assert list(points.error_y.arrayminus) == [2.0, 3.0]
    ringed = next(trace for trace in figure.data if trace.marker.symbol == "circle-open")
    assert list(ringed.x) == [4.5]


@pytest.mark.parametrize("palette", [charts.LIGHT, charts.DARK])
def test_colours_can_be_told_apart_from_the_page_and_from_one_another(palette):
    page = 255.0 if palette is charts.LIGHT else 20.0

    def rgb(colour):
        return np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)], float)

    colours = [palette.ink, *palette.cycle]
    assert all(np.linalg.norm(rgb(colour) - page) > 110 for colour in colours)
    assert all(np.linalg.norm(rgb(a) - rgb(b)) > 60 for k, a in enumerate(colours) for b in colours[:k])
