import base64
import json
import os
import shutil
import socket
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from result_folders import forecast_frames, write_number_bundle
from streamlit.testing.v1 import AppTest

from dashboards import FOLDER, forecasts
from dashboards.__main__ import APP
from forecasting.results import find_results
from forecasting.runtime import load_bundle


@pytest.fixture
def open_page(monkeypatch):
    def open_at(folder, result=None):
        monkeypatch.setenv(FOLDER, str(folder))
        page = AppTest.from_file(str(APP), default_timeout=20).run()
        if result is not None:
            page.selectbox[0].select(result).run()
        assert not page.exception, page.exception
        return page

    return open_at


def texts(page):
    return "\n".join(
        str(element.value) for element in (*page.markdown, *page.caption, *page.info, *page.error, *page.code)
    )


def metric(page, label):
    return next(element.value for element in page.metric if element.label == label)


def press(page, label):
    next(button for button in page.button if button.label == label).click()
    return page.run()


def figures(page):
    return [json.loads(element.proto.spec) for element in page.get("plotly_chart")]


def values(column):
    """A column of a figure: a list, or plotly's base64."""
    if isinstance(column, list):
        return np.array(column, float)
    return np.frombuffer(base64.b64decode(column["bdata"]), column["dtype"])


def trace(figure, name):
    return next(trace for trace in figure["data"] if trace.get("name") == name)


def board(page):
    return page.dataframe[0].value


def test_a_forecast_is_shown_with_its_leaderboard_units_and_notes(results, open_page):
    page = open_page(results, "stock")
    [figure] = figures(page)
    assert trace(figure, "gru, median")
    assert trace(figure, "what then happened")
    assert figure["layout"]["yaxis"]["title"]["text"] == "value in USD"
    assert board(page)["model"].tolist() == ["gru", "ridge", "naive"]
    assert board(page)["rank"].tolist() == ["★", "2", "3"]
    assert metric(page, "Best model") == "gru"
    assert metric(page, "MASE") == "0.800"
    assert "Two rows were mended." in texts(page)
    assert "prices_simulated" in page.subheader[0].value
    assert "simulated data" in texts(page)
    assert "probability of 0.011" in texts(page)


def test_the_slider_moves_the_forecast_to_another_cutoff(results, open_page):
    page = open_page(results, "stock")
    [before] = figures(page)
    slider = page.select_slider[0]
    slider.set_value(slider.options[0]).run()
    [after] = figures(page)
    line = [shape["x0"] for figure in (before, after) for shape in figure["layout"]["shapes"]]
    first = find_results(results / "stock")[0].forecasts()["cutoff"].min()
    assert line[1] < line[0]
    assert pd.Timestamp(line[1]) == first


def test_the_slider_tells_seconds_since_1970_apart(results, open_page, tmp_path):
    shutil.copytree(results / "stock", tmp_path / "stock")
    for name in ("history", "forecasts"):
        frame = pd.read_parquet(tmp_path / "stock" / f"{name}.parquet")
        for column in {"ds", "cutoff"} & set(frame):
            frame[column] = 1.7e9 + (frame[column] - pd.Timestamp("2024-01-01")) / pd.Timedelta("4D")
        frame.to_parquet(tmp_path / "stock" / f"{name}.parquet")
    run = json.loads((tmp_path / "stock" / "run.json").read_text())
    run["task"]["freq"] = 0.25
    (tmp_path / "stock" / "run.json").write_text(json.dumps(run))
    page = open_page(tmp_path)
    cutoffs = np.sort(find_results(tmp_path)[0].forecasts()["cutoff"].unique())
    page.select_slider[0].set_value(cutoffs[1]).run()
    [figure] = figures(page)
    assert figure["layout"]["shapes"][0]["x0"] == cutoffs[1]


def test_each_choice_of_history_shows_another_one_where_the_horizon_is_short(results, open_page, tmp_path):
    shutil.copytree(results / "stock", tmp_path / "stock")
    history, forecasts = forecast_frames(steps=400)
    history.to_parquet(tmp_path / "stock" / "history.parquet")
    forecasts.to_parquet(tmp_path / "stock" / "forecasts.parquet")
    page = open_page(tmp_path)
    choice = next(group for group in page.button_group if group.label == "History")
    shown = [len(trace(figures(choice.set_value(option).run())[0], "observed")["x"]) for option in choice.options]
    assert len(set(shown)) == 3


def test_the_newest_forecast_is_shown_first_and_its_numbers_are_those_of_the_file(results, open_page, tmp_path):
    shutil.copytree(results / "stock", tmp_path / "stock")
    history, forecasts = (pd.read_parquet(tmp_path / "stock" / f"{name}.parquet") for name in ("history", "forecasts"))
    end, last = history["ds"].max(), forecasts["cutoff"].max()
    made = forecasts[(forecasts["cutoff"] == last) & (forecasts["model"] == "gru")].drop(columns="y")
    newest = made.assign(cutoff=end, ds=made["ds"] + (end - last), **{"q0.5": made["q0.5"] + 7})
    another = newest[newest["unique_id"] == "AAA"].assign(unique_id="not in the result")
    pd.concat([made, newest, another]).to_parquet(tmp_path / "stock" / "forecast.parquet")
    page = open_page(tmp_path)
    [figure] = figures(page)
    assert pd.Timestamp(figure["layout"]["shapes"][0]["x0"]) == end
    drawn = trace(figure, "gru, median")
    assert list(pd.to_datetime(drawn["x"])) == list(newest.loc[newest["unique_id"] == "AAA", "ds"])
    np.testing.assert_allclose(values(drawn["y"]), newest.loc[newest["unique_id"] == "AAA", "q0.5"])
    assert "not known yet" in texts(page)
    assert "no forecast at this cut-off: ridge, naive" in texts(page)
    slider = page.select_slider[0]
    slider.set_value(slider.options[-2]).run()
    assert trace(figures(page)[0], "what then happened")
    assert "not known yet" not in texts(page)
    assert "its past is not drawn" not in texts(page)
    page.selectbox[1].select("not in the result").run()
    [figure] = figures(page)
    np.testing.assert_allclose(
        values(trace(figure, "gru, median")["y"]), newest.loc[newest["unique_id"] == "AAA", "q0.5"]
    )
    assert "its past is not drawn" in texts(page)


def test_two_results_in_folders_of_one_name_are_told_apart(results, open_page, tmp_path):
    folder = tmp_path / "out"
    shutil.copytree(results / "stock", folder)
    shutil.copytree(results / "life", folder / "out")
    page = open_page(folder)
    assert page.selectbox[0].options == [str(folder / "out"), str(folder)]
    assert "cells" in page.subheader[0].value
    page.selectbox[0].select(str(folder)).run()
    assert "prices_simulated" in page.subheader[0].value


def test_quantiles_that_no_band_can_show_are_named(results, open_page, tmp_path):
    shutil.copytree(results / "stock", tmp_path / "stock")
    path = tmp_path / "stock" / "forecasts.parquet"
    pd.read_parquet(path).drop(columns=["q0.1", "q0.25"]).to_parquet(path)
    assert "Not drawn: q0.75, q0.9, for no quantile" in texts(open_page(tmp_path))


def test_a_new_forecast_is_read_when_it_comes_and_a_model_that_was_not_judged_is_drawn(results, open_page, tmp_path):
    shutil.copytree(results / "stock", tmp_path / "stock")
    page = open_page(tmp_path)
    history, forecasts = (pd.read_parquet(tmp_path / "stock" / f"{name}.parquet") for name in ("history", "forecasts"))
    shift = history["ds"].max() - forecasts["cutoff"].max()
    made = forecasts[(forecasts["cutoff"] == forecasts["cutoff"].max()) & (forecasts["model"] == "gru")]
    made.assign(cutoff=made["cutoff"] + shift, ds=made["ds"] + shift, model="ets").to_parquet(
        tmp_path / "stock" / "forecast.parquet"
    )
    page.run()
    assert trace(figures(page)[0], "ets, median")
    assert page.select_slider[0].value == history["ds"].max()
    assert board(page)["model"].tolist() == ["gru", "ridge", "naive"]


@pytest.mark.parametrize("damage", ["broken", "columns", "times", "old", "empty"])
def test_a_newest_forecast_that_cannot_be_shown_is_named_and_the_backtest_stays(results, open_page, tmp_path, damage):
    shutil.copytree(results / "stock", tmp_path / "stock")
    path = tmp_path / "stock" / "forecast.parquet"
    forecasts = pd.read_parquet(tmp_path / "stock" / "forecasts.parquet")
    if damage == "broken":
        path.write_bytes(b"\x00")
    elif damage == "columns":
        forecasts.drop(columns="cutoff").to_parquet(path)
    elif damage == "times":
        forecasts.assign(cutoff=1, ds=2).to_parquet(path)
    else:  # it was made before the backtest's data went on
        forecasts.head(4 if damage == "old" else 0).to_parquet(path)
    page = open_page(tmp_path)
    assert "newest forecast is not shown" in page.warning[0].value
    assert f"--out {path}" in page.warning[0].value
    assert len(figures(page)) == 1


def test_without_a_newest_forecast_the_page_says_which_command_puts_it_there(results, open_page):
    page = open_page(results, "stock")
    assert f"--out {results / 'stock' / 'forecast.parquet'}" in texts(page)


def test_naive_and_ridge_stay_on_the_leaderboard_when_they_are_not_drawn(results, open_page):
    page = open_page(results, "stock")
    models = next(group for group in page.button_group if "gru" in group.options)
    assert models.value == ["gru", "ridge", "naive"]
    models.set_value(["gru"]).run()
    names = [line.get("name") for line in figures(page)[0]["data"]]
    assert not [name for name in names if name and name.startswith(("naive", "ridge"))]
    assert {"naive", "ridge"} <= set(board(page)["model"])


def test_another_series_is_drawn_when_chosen(results, open_page):
    page = open_page(results, "stock")
    assert page.selectbox[1].options == ["AAA", "BBB"]
    before = figures(page)
    page.selectbox[1].select("BBB").run()
    assert figures(page) != before
    assert not page.exception


def test_a_regression_shows_predictions_against_the_truth_and_along_a_series(results, open_page):
    page = open_page(results, "life")
    against, along = figures(page)
    assert against["layout"]["xaxis"]["title"]["text"] == "truth"
    assert trace(along, "truth")
    assert along["layout"]["xaxis"]["title"]["text"] == "cycle"
    assert metric(page, "MAE") == "10"
    assert "may be chance" in texts(page)


def test_a_whole_series_shows_channels_and_probabilities_of_the_chosen_model(results, open_page):
    page = open_page(results, "gesture")
    page.button_group[0].set_value("Whole series").run()
    [figure] = figures(page)
    assert {"accel_x", "gyro_z"} <= {line["name"] for line in figure["data"]}
    assert [line["name"] for line in figure["data"] if "(truth)" in line["name"]]
    assert "truth **standing**" in texts(page)


def test_frames_go_through_the_bundle_while_it_plays_and_give_the_scans_probabilities(results, open_page, monkeypatch):
    clock = [50.0]
    monkeypatch.setattr(forecasts.time, "monotonic", lambda: clock[0])
    page = open_page(results, "gesture")
    assert (metric(page, "Live model"), metric(page, "Frame")) == ("gru", "0 / 100")
    press(page, "Play")
    clock[0] += 0.75
    page.run()
    assert metric(page, "Frame") == "7 / 100"
    assert metric(page, "It says") in forecasts.find_results(results / "gesture")[0].task.labels
    assert metric(page, "Time per step").endswith("µs")
    assert metric(page, "Truth") == "standing"
    held = page.session_state["replay"]
    backtest = find_results(results / "gesture")[0].forecasts()
    rows = backtest[(backtest["unique_id"] == "test_01") & (backtest["model"] == "gru")]
    expected = rows[[f"p_{label}" for label in find_results(results / "gesture")[0].task.labels]].to_numpy()
    np.testing.assert_allclose(held.probabilities[:7], expected[:7], atol=1e-5)
    press(page, "Pause")
    clock[0] += 5
    assert metric(page.run(), "Frame") == "7 / 100"
    assert metric(press(page, "Reset"), "Frame") == "0 / 100"


def live_charts(page):
    """The y titles of the charts that move, in order."""
    specs = [json.loads(element.proto.spec) for element in page.get("vega_lite_chart")]
    return [spec["encoding"]["y"].get("axis", {}).get("title") for spec in specs]


def test_a_memory_is_looked_into_while_it_plays(memory_results, open_page, monkeypatch):
    clock = [50.0]
    monkeypatch.setattr(forecasts.time, "monotonic", lambda: clock[0])
    page = open_page(memory_results)
    assert metric(page, "Live model") == "titans-lmm"
    press(page, "Play")
    clock[0] += 0.95
    page.run()
    assert metric(page, "Frame") == "9 / 100"
    assert "Inside the memory" in texts(page)
    assert live_charts(page)[-3:] == ["surprise", "gates", "norm"]
    held = page.session_state["replay"]
    stream = load_bundle(memory_results / "gesture" / "bundle").stream(["test_01"])
    for t, frame in enumerate(held.frames[:9]):
        prediction, look = stream.look(frame[None])
        np.testing.assert_allclose(held.probabilities[t], prediction[0], atol=1e-6)
        assert {name.rsplit(".", 1)[1] for name in look} == {"surprise", "keep", "momentum", "rate", "norm"}
        for name, value in look.items():
            np.testing.assert_allclose(held.looks[name][t], value.mean(), rtol=1e-5)
    assert np.isnan(held.looks["block0.surprise"][9:]).all()


def test_a_bundle_without_a_memory_shows_the_page_as_ever(results, open_page):
    page = open_page(results, "gesture")
    assert "Inside the memory" not in texts(page)
    assert live_charts(page)[-1] == "probability"
    assert not {"surprise", "gates", "norm"} & set(live_charts(page))


def test_the_speed_is_a_choice_and_the_end_offers_play_again(results, open_page, monkeypatch):
    clock = [50.0]
    monkeypatch.setattr(forecasts.time, "monotonic", lambda: clock[0])
    page = open_page(results, "gesture")
    page.button_group[1].set_value(5).run()
    press(page, "Play")
    clock[0] += 1
    assert metric(page.run(), "Frame") == "50 / 100"
    clock[0] += 1
    page.run()
    assert metric(page, "Frame") == "100 / 100"
    assert [button.label for button in page.button] == ["Play", "Reset"]


def test_a_recording_in_which_a_sensor_was_dead_plays(results, open_page, tmp_path):
    shutil.copytree(results / "gesture", tmp_path / "gesture")
    path = tmp_path / "gesture" / "history.parquet"
    history = pd.read_parquet(path)
    channels = [name for name in history if name not in ("unique_id", "ds")]
    history.loc[history["unique_id"] == "test_01", channels] = np.nan
    history.to_parquet(path)
    page = open_page(tmp_path)
    specs = [element.proto.spec for element in page.get("vega_lite_chart")]
    assert specs
    assert not [spec for spec in specs if "NaN" in spec]


@pytest.mark.parametrize(
    ("freq", "period", "said"),
    [
        (None, 0.1, "10 frames a second (the source does not state a rate)"),
        (1, 0.1, "10 frames a second (the source does not state a rate)"),
        (0.005, 0.005, "200 frames a second."),
        ("20ms", 0.02, "50 frames a second."),
        ("min", 0.1, "10 frames a second (recorded one every 60 s)"),
        (90.0, 0.1, "10 frames a second (recorded one every 90 s)"),
    ],
)
def test_a_recording_plays_at_its_own_rate_where_that_can_be_watched(results, open_page, tmp_path, freq, period, said):
    shutil.copytree(results / "gesture", tmp_path / "gesture")
    path = tmp_path / "gesture" / "run.json"
    run = json.loads(path.read_text())
    run["task"]["freq"] = freq
    path.write_text(json.dumps(run))
    page = open_page(tmp_path)
    assert page.session_state["replay"].period_s == pytest.approx(period)
    assert said in texts(page)


def test_a_bundle_that_is_put_beside_a_backtest_plays(results, open_page, tmp_path):
    shutil.copytree(results / "gesture", tmp_path / "gesture", ignore=shutil.ignore_patterns("bundle"))
    path = tmp_path / "gesture" / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"bundle": None}))
    page = open_page(tmp_path)
    assert f"--out {tmp_path / 'gesture' / 'bundle'}" in texts(page)
    shutil.copytree(results / "gesture" / "bundle", tmp_path / "gesture" / "bundle")
    page.run()
    assert metric(page, "Live model") == "gru"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("prices_of 2024.csv: 2", "prices_of 2024.csv: 2"),
        ("a*b*c", r"a\*b\*c"),
        ("$5 and $6", r"\$5 and \$6"),
        (":red[x]", r"\:red\[x\]"),
        ("__init__", r"\_\_init\_\_"),
        ("C:\\x", r"C:\\x"),
    ],
)
def test_a_name_is_shown_as_it_is_written(name, shown):
    assert forecasts.literal(name) == shown


def test_another_series_begins_another_stream(results, open_page):
    page = open_page(results, "gesture")
    press(page, "Play")
    page.selectbox[1].select("test_20").run()
    assert metric(page, "Frame") == "0 / 100"
    assert "test_20" in texts(page)


def test_a_damaged_bundle_is_named_and_the_rest_of_the_page_stays(results, open_page, tmp_path):
    shutil.copytree(results / "gesture", tmp_path / "gesture")
    (tmp_path / "gesture" / "bundle" / "step.onnx").write_bytes(b"not a graph")
    page = open_page(tmp_path)
    assert "step.onnx: the file was changed" in page.error[0].value
    assert len(board(page)) == 3


def test_a_bundle_of_another_task_is_named_and_the_rest_of_the_page_stays(results, open_page, tmp_path):
    shutil.copytree(results / "gesture", tmp_path / "gesture")
    write_number_bundle(tmp_path / "gesture" / "bundle", find_results(tmp_path)[0].task.channels)
    page = open_page(tmp_path)
    assert "its task is to regress" in page.error[0].value
    assert len(board(page)) == 3


def test_an_empty_folder_says_which_command_fills_it(open_page, tmp_path):
    page = open_page(tmp_path)
    assert f"mnemo demo --out {tmp_path}" in page.code[0].value
    assert "mnemo backtest" in page.code[0].value


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"dataset": "x"}', '{"schema_version": 99}', '{"schema_version": "1"}']
)
def test_a_run_that_cannot_be_read_is_named(results, open_page, tmp_path, content):
    shutil.copytree(results / "stock", tmp_path / "stock")
    (tmp_path / "stock" / "run.json").write_text(content)
    page = open_page(tmp_path)
    assert str(tmp_path) in page.error[0].value
    assert not page.metric


def test_one_broken_run_is_named_and_the_others_are_shown(results, open_page, tmp_path):
    shutil.copytree(results / "stock", tmp_path / "stock")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text("{")
    page = open_page(tmp_path)
    assert str(tmp_path / "broken" / "run.json") in page.error[0].value
    assert metric(page, "Best model") == "gru"


def test_a_model_that_said_nothing_of_a_series_is_no_traceback(results, open_page, tmp_path):
    shutil.copytree(results / "gesture", tmp_path / "gesture")
    path = tmp_path / "gesture" / "forecasts.parquet"
    rows = pd.read_parquet(path)
    rows[(rows["model"] != "gru") | (rows["unique_id"] != "test_01")].to_parquet(path)
    page = open_page(tmp_path)
    page.button_group[0].set_value("Whole series").run()
    page.selectbox[2].select("gru").run()
    assert not page.exception
    assert "gru made no prediction for test_01" in page.info[0].value


@pytest.mark.parametrize(("file", "column"), [("forecasts", "cutoff"), ("forecasts", "y"), ("history", "y")])
def test_a_file_that_lacks_a_column_is_an_error_that_names_it(results, open_page, tmp_path, file, column):
    shutil.copytree(results / "stock", tmp_path / "stock")
    path = tmp_path / "stock" / f"{file}.parquet"
    pd.read_parquet(path).drop(columns=column).to_parquet(path)
    page = open_page(tmp_path)
    assert f"{file}.parquet has no column {column}" in page.error[0].value


@pytest.mark.parametrize("content", ["{}", '{"task": {"kind": "forecast"}, "dataset": "x"}', '{"dataset": null}'])
def test_a_run_without_its_task_or_data_is_named(results, open_page, tmp_path, content):
    shutil.copytree(results / "stock", tmp_path / "stock")
    (tmp_path / "stock" / "run.json").write_text(json.dumps({"schema_version": 1} | json.loads(content)))
    page = open_page(tmp_path)
    assert "run.json: not a readable run" in page.error[0].value
    assert "run the backtest again" in page.error[0].value


@pytest.mark.parametrize("file", ["leaderboard.csv", "forecasts.parquet", "history.parquet"])
@pytest.mark.parametrize("damage", ["missing", "broken"])
def test_a_missing_or_broken_file_is_an_error_that_names_the_result(results, open_page, tmp_path, file, damage):
    shutil.copytree(results / "stock", tmp_path / "stock")
    if damage == "missing":
        (tmp_path / "stock" / file).unlink()
    else:
        (tmp_path / "stock" / file).write_bytes(b"\x00\x01")
    page = open_page(tmp_path)
    assert f"The result in {tmp_path / 'stock'} cannot be read" in page.error[0].value


def test_a_result_that_is_written_again_is_read_again(results, open_page, tmp_path):
    shutil.copytree(results / "stock", tmp_path / "stock")
    page = open_page(tmp_path)
    path = tmp_path / "stock" / "leaderboard.csv"
    path.write_text(path.read_text().replace("gru", "lstm"))
    (tmp_path / "stock" / "run.json").touch()
    assert metric(page.run(), "Best model") == "lstm"


@pytest.mark.parametrize("state", ["stock", "gesture", "life", "gone", "broken"])
def test_a_page_is_drawn_anew_when_a_result_comes_whatever_it_shows(results, open_page, tmp_path, monkeypatch, state):
    looks, drawn = {}, []
    monkeypatch.setattr(
        forecasts.st, "fragment", lambda look, run_every=None: looks.update({run_every: look}) or (lambda: None)
    )
    monkeypatch.setattr(forecasts.st, "rerun", lambda: drawn.append(1))
    if state in ("stock", "gesture", "life"):
        shutil.copytree(results / state, tmp_path / state)
    elif state == "broken":
        shutil.copytree(results / "life", tmp_path / "life")
        (tmp_path / "life" / "forecasts.parquet").unlink()
    open_page(tmp_path)
    looks[forecasts.WATCH_S]()
    assert not drawn
    shutil.copytree(results / "life", tmp_path / "new")
    looks[forecasts.WATCH_S]()
    assert drawn


def test_a_result_that_goes_while_it_is_looked_at_is_named(results, open_page, tmp_path):
    shutil.copytree(results / "stock", tmp_path / "stock")
    page = open_page(tmp_path)
    for name in ("forecasts.parquet", "history.parquet"):
        (tmp_path / "stock" / name).unlink()
    forecasts.st.cache_resource.clear()  # as when other results push it out
    page.selectbox[1].select("BBB").run()
    assert not page.exception
    assert f"The result in {tmp_path / 'stock'} cannot be read" in page.error[0].value


def test_without_mase_the_rank_goes_by_the_error(results):
    task = find_results(results / "stock")[0].task
    ranked = pd.DataFrame({"model": ["naive", "gru"], "mase": np.nan, "mae": [2.0, 1.0]})
    assert forecasts.rank(ranked, task)["model"].tolist() == ["gru", "naive"]


def test_the_page_imports_neither_torch_nor_models():
    code = "import sys, dashboards.forecasts as f; print(*{'torch', 'models'} & {n.split('.')[0] for n in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def start(*arguments):
    return subprocess.run([sys.executable, "-m", "dashboards", *arguments], capture_output=True, text=True, timeout=60)


def test_a_folder_without_results_ends_the_command_with_2(tmp_path):
    done = start("--out", str(tmp_path / "nowhere"))
    assert done.returncode == 2
    assert "no results. `mnemo demo" in done.stderr
    assert "mnemo backtest" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_broken_run_and_a_wrong_port_end_the_command_with_2(results, tmp_path):
    (tmp_path / "run.json").write_text("{")
    done = start("--out", str(tmp_path))
    assert done.returncode == 2
    assert "not a readable run" in done.stderr
    done = start("--out", str(results), "--port", "70000")
    assert done.returncode == 2
    assert "between 1 and 65535" in done.stderr


def test_on_a_new_machine_the_page_opens_without_a_question(results, tmp_path):
    """A terminal's first page of Streamlit asks for an e-mail address, and waits."""
    opened = tmp_path / "opened"
    for browser in (tmp_path / "xdg-open", tmp_path / "open"):
        browser.write_text(f'#!/bin/sh\necho "$1" >{opened}\n')
        browser.chmod(0o755)
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "dashboards", "--out", str(results), "--port", str(port)]
    home = {"HOME": str(tmp_path), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    server = subprocess.Popen(command, stdin=subprocess.PIPE, env=os.environ | home)  # nothing is ever typed
    try:
        end = time.monotonic() + 60
        while not opened.exists() and time.monotonic() < end and server.poll() is None:
            time.sleep(0.1)
        assert opened.read_text().strip().endswith(f":{port}")
    finally:
        server.kill()
        server.communicate()
