"""The demo's own steps on small scenes: what it promises to leave must be there, and go together."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread
from typer.testing import CliRunner

from data.catalog import load
from forecasting import demo
from forecasting.cli import app
from forecasting.results import find_results
from forecasting.runtime import load_bundle

SMALL = {"max_epochs": 1, "hidden": 8, "stride": 200}
FILES = {
    "bundle", "certificate.json", "forecast.parquet", "forecasts.parquet", "history.parquet", "leaderboard.csv",
    "picture.png", "run.json",
}  # fmt: skip
SCENES = ("stock", "battery", "gesture")


def small(scene: demo.Scene) -> demo.Scene:
    settings = dict(scene.settings) | SMALL
    if "skip_lags" in settings:
        settings["skip_lags"] = 8
    return replace(scene, settings=settings)


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """The folder that a small demo leaves, and what it prints."""
    out = tmp_path_factory.mktemp("demo") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "SCENES", tuple(small(scene) for scene in demo.SCENES))
        said = CliRunner().invoke(app, ["demo", "--headless", "--out", str(out)], catch_exceptions=False)
    assert said.exit_code == 0
    return out, said.stdout


def test_it_plays_the_three_streams_with_a_gru_and_an_lstm():
    assert [(scene.name, scene.dataset) for scene in demo.SCENES] == [
        ("stock", "sp500"),
        ("battery", "battery_simulated"),
        ("gesture", "basic_motions"),
    ]
    assert demo.MODELS == ("gru", "lstm")


@pytest.mark.parametrize("name", SCENES)
def test_a_scene_leaves_every_promised_file_and_nothing_else(shown, name):
    out, said = shown
    assert {path.name for path in (out / name).iterdir()} == FILES
    assert {path.name for path in out.iterdir()} == set(SCENES)
    printed = next(line for line in said.splitlines() if "leaderboard.csv" in line)
    assert all(file in FILES for file in printed.replace("/", "").split())


@pytest.mark.parametrize("name", SCENES)
def test_the_leaderboard_has_naive_and_ridge_beside_the_networks(shown, name):
    out, said = shown
    leaderboard = pd.read_csv(out / name / "leaderboard.csv")
    assert set(leaderboard["model"]) == {"naive", "ridge", "gru", "lstm"}
    assert leaderboard["skill_vs_naive"].notna().all()
    assert said.count("naive ") >= 3


@pytest.mark.parametrize("name", SCENES)
def test_the_winner_is_exported_and_certified(shown, name):
    folder = shown[0] / name
    bundle = load_bundle(folder / "bundle")
    assert bundle.name == pd.read_csv(folder / "leaderboard.csv")["model"][0]
    certificate = json.loads((folder / "certificate.json").read_text())
    assert certificate["passed"] is True
    assert certificate == bundle.card["certificate"]
    assert f"{bundle.name} exported and certified" in shown[1]


@pytest.mark.parametrize("name", SCENES)
def test_the_picture_is_a_png_with_something_on_it(shown, name):
    picture = shown[0] / name / "picture.png"
    assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert imread(picture).std() > 0.05


@pytest.mark.parametrize("name", ["stock", "battery"])
def test_the_forecasts_come_from_the_bundle(shown, name):
    folder = shown[0] / name
    bundle = load_bundle(folder / "bundle")
    answer = pd.read_parquet(folder / "forecast.parquet")
    levels = [f"q{level:g}" for level in bundle.quantiles]
    assert list(answer) == ["unique_id", "cutoff", "ds", "model", "mean", *levels, "substitute"]
    assert set(answer["model"]) == {bundle.name}
    assert (np.diff(answer[levels]) >= 0).all()
    scene = next(scene for scene in demo.SCENES if scene.name == name)
    dataset = load(scene.dataset)
    ends = dataset.frame.groupby("unique_id")["ds"].max()
    last = answer[answer["cutoff"] == answer["unique_id"].map(ends)]
    assert set(last["unique_id"]) == set(ends.index)
    pd.testing.assert_frame_equal(last.reset_index(drop=True), bundle.forecast(dataset), check_dtype=False)


def test_the_gestures_are_answered_with_probabilities(shown):
    answer = pd.read_parquet(shown[0] / "gesture" / "forecast.parquet")
    classes = [column for column in answer if column.startswith("p_")]
    assert len(answer) == 80
    assert len(classes) == 4
    np.testing.assert_allclose(answer[classes].sum(axis=1), 1, rtol=1e-5)


def test_the_dashboard_finds_all_three_with_their_bundles(shown):
    results = find_results(shown[0])
    assert [result.name for result in results] == sorted(SCENES)
    assert all((result.bundle / "card.json").is_file() for result in results)


def test_simulated_data_are_called_so(shown):
    assert "Capacity of simulated ageing cells (battery_simulated)" in shown[1]
    assert "simulated" in (shown[0] / "battery" / "run.json").read_text()
    assert load_bundle(shown[0] / "battery" / "bundle").card["training"]["data_set"] == "battery_simulated"


def test_it_ends_by_saying_what_to_try_next(shown):
    out, said = shown
    end = said[said.index("\nDone in ") :]
    lines = end[end.index("Try next:") :].strip().splitlines()[1:]
    assert lines[0].strip() == f"mnemo dashboard --out {out}"
    assert all(line.strip().startswith("mnemo ") for line in lines)
    assert {line.split()[1] for line in lines} == {"dashboard", "forecast", "backtest", "train"}


def test_what_it_says_to_try_next_can_be_tried(shown):
    out = shown[0]
    said = CliRunner().invoke(app, ["forecast", "--bundle", f"{out}/stock/bundle", "--data", "sp500", "--out", "-"])
    assert said.exit_code == 0
    assert said.stdout.startswith("unique_id,cutoff,ds,model,mean,q0.1")
