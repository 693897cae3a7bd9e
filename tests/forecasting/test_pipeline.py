import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from data.frame import Channel, Dataset, Splits
from data.panel import to_panel
from forecasting import pipeline
from forecasting.backtest import compare
from forecasting.passes import one_pass
from forecasting.pipeline import fingerprint, select, train_bundle, winner
from forecasting.runtime import load_bundle
from forecasting.task import Task, TaskError
from forecasting.training import fit_model
from forecasting.windows import split
from models.catalog import MODELS

SMALL = {"device": "cpu", "hidden": 8, "embed": 4, "lookback": 24, "stride": 6, "max_epochs": 2, "learning_rate": 0.02}
UNTIL = 179
NO_SPLITS = Splits()


def dataset(splits=NO_SPLITS) -> Dataset:
    """Two noisy waves of 240 steps with a covariate and a gap."""
    frames = []
    for index, name in enumerate(("a", "b")):
        random = np.random.default_rng(index)
        steps = np.arange(240)
        wave = 100 * index + np.sin(2 * np.pi * steps / 12) + 0.2 * random.normal(size=240)
        frames.append(pd.DataFrame({"unique_id": name, "ds": steps, "y": wave, "load": random.normal(size=240)}))
    frame = pd.concat(frames, ignore_index=True)
    frame.loc[100:110, "y"] = np.nan
    return Dataset("waves", frame, "forecast", (Channel("y", "V"), Channel("load", "A")), 1, 1, 3, splits, "y")


def metrics_of(card) -> pd.DataFrame:
    return pd.DataFrame(card["metrics"]).set_index("model")


@pytest.fixture(scope="module")
def tested(tmp_path_factory):
    """A network that was trained until a cut-off and judged on what follows it."""
    out = tmp_path_factory.mktemp("tested") / "bundle"
    data = dataset()
    report, card = train_bundle(data, "gru", Task.of(data), out, until=UNTIL, settings=SMALL)
    return data, report, card, out


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A ridge that was trained on everything there is."""
    out = tmp_path_factory.mktemp("whole") / "bundle"
    data = dataset()
    report, card = train_bundle(data, "ridge", Task.of(data), out, settings={"lags": 12})
    return data, report, card, out


def test_after_a_cutoff_the_card_holds_the_figures_of_the_test_beside_naive_and_ridge(tested):
    _, report, card, out = tested
    figures = metrics_of(card)
    assert set(figures.index) == {"gru", "naive", "ridge"}
    assert set(figures["on"]) == {"test"}
    board = report.leaderboard.set_index("model")
    for model in figures.index:
        for measure in ("mase", "smape", "coverage_80", "skill_vs_naive"):
            assert figures[measure][model] == pytest.approx(board[measure][model])
    assert figures["dm_p_value"]["naive"] is None or np.isnan(figures["dm_p_value"]["naive"])
    assert report.forecasts["cutoff"].min() == UNTIL
    on_disk = json.loads((out / "card.json").read_text())
    assert on_disk["metrics"] == json.loads(json.dumps(card["metrics"]))


def test_training_sees_nothing_after_the_cutoff(tested):
    data, report, card, _ = tested
    assert card["training"]["period"] == ["0", "143"]  # a fifth of what is known is for validation
    changed = data.frame.copy()
    changed.loc[changed["ds"] > UNTIL, ["y", "load"]] = -1e6
    other = replace(data, frame=changed)
    task = Task.of(other)
    parts = split(other, to_panel(other), task, cutoff=UNTIL, hold_out=False)
    again = fit_model("gru", task, parts, settings=SMALL).model.state_dict()
    kept = report.models["gru"].model.state_dict()
    assert all(torch.equal(again[name], value) for name, value in kept.items())


def test_without_a_cutoff_everything_is_learned_from_and_the_card_says_that_validation_was_judged(whole):
    _, report, card, _ = whole
    figures = metrics_of(card)
    assert set(figures.index) == {"naive", "ridge"}
    assert set(figures["on"]) == {"validation"}
    assert report.forecasts["ds"].max() == 239
    assert card["training"]["period"] == ["0", "191"]


def test_a_data_set_with_a_split_of_its_own_keeps_it(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "export_bundle", lambda *_, **about: about)
    data = dataset(Splits(train_until=99, validation_until=149, test_until=199))
    report, card = train_bundle(data, "ridge", Task.of(data), tmp_path / "b", settings={"lags": 12})
    assert {row["on"] for row in card["metrics"]} == {"test"}
    assert (report.forecasts["cutoff"].min(), report.forecasts["ds"].max()) == (149, 199)
    assert card["training"]["period"] == ["0", "99"]


def test_the_card_of_what_learned_the_validation_part_says_until_when_it_learned(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "export_bundle", lambda *_, **about: about)
    data, settings = dataset(), {"lags": 12, "learn_validation": True}
    _, about = train_bundle(data, "ridge", Task.of(data), tmp_path / "b", until=UNTIL, settings=settings)
    assert about["training"]["period"] == ["0", str(UNTIL)]
    assert about["config"]["learn_validation"] is True


def test_the_card_of_a_model_fitted_per_series_says_until_when_it_was_fitted(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "export_bundle", lambda *_, **about: about)
    data = dataset()
    for until, end in ((UNTIL, UNTIL), (None, 191)):  # without a test the validation part is judged, and not fitted to
        _, about = train_bundle(data, "theta", Task.of(data), tmp_path / "b", until=until, calibrated=False)
        assert about["fitted"].last.tolist() == [end, end]
        assert about["training"]["period"] == ["0", str(end)]


def test_the_card_says_what_was_trained_and_how(tested):
    data, _, card, _ = tested
    assert (card["name"], card["training"]["data_set"], card["training"]["n_series"]) == ("gru", "waves", 2)
    assert (card["training"]["seed"], card["training"]["epochs"]) == (0, 2)
    assert card["training"]["fingerprint"] == fingerprint(data.frame)
    assert {name: card["config"][name] for name in ("hidden", "lookback", "max_epochs")} == {
        "hidden": 8, "lookback": 24, "max_epochs": 2,
    }  # fmt: skip
    assert [channel["name"] for channel in card["task"]["channels"]] == ["y", "load"]


def test_checkpoints_and_the_log_stay_beside_the_bundle_of_a_network_alone(tested, whole):
    beside = tested[3].with_name("bundle.training")
    assert {path.name for path in beside.iterdir()} == {"best.ckpt", "last.ckpt", "log"}
    assert [path.name for path in whole[3].parent.iterdir()] == ["bundle"]


@pytest.mark.parametrize(("kind", "name"), [("tested", "gru"), ("whole", "ridge")])
def test_a_bundle_forecasts_what_its_model_forecast_at_the_same_cutoff(request, kind, name):
    data, report, _, out = request.getfixturevalue(kind)
    cutoff = int(report.forecasts["cutoff"].iloc[7])
    known = data.frame[data.frame["ds"] <= cutoff]
    from_bundle = load_bundle(out).forecast(known)
    rows = report.forecasts[(report.forecasts["model"] == name) & (report.forecasts["cutoff"] == cutoff)]
    both = rows.merge(from_bundle, on=["unique_id", "cutoff", "ds", "model"], suffixes=("", "_bundle"))
    assert len(both) == len(from_bundle) == 2 * 3
    # Where validation is what was judged, the report is uncalibrated; the median and the mean are the same anyway.
    for column in ("mean", "q0.5", *(("q0.1", "q0.9") if kind == "tested" else ())):
        np.testing.assert_allclose(both[f"{column}_bundle"], both[column], rtol=1e-4, atol=1e-4)
    task = Task.of(data)
    parts = split(data, to_panel(data), task, cutoff=cutoff)
    again = one_pass(report.models[name].model, parts.test, [np.array([cutoff])] * 2)
    calibration = report.calibrations[name]
    assert not np.allclose(calibration.factors, 1, atol=0.05)
    values = calibration.apply(np.concatenate([row.values for row in again])).reshape(6, 9)
    shown = from_bundle[[f"q{level:g}" for level in task.quantiles]]
    np.testing.assert_allclose(shown, values, rtol=1e-4, atol=1e-4)


def test_the_report_says_which_figures_are_of_calibrated_quantiles(tested, whole):
    # Each outcome of the last fifth of both series counts once, as far as whole horizons of 3 go.
    for (_, report, card, _), calibrated, scores in ((tested, True, 2 * 36), (whole, False, 2 * 48)):
        assert set(report.leaderboard["calibrated"]) == {calibrated}
        same = report.leaderboard["coverage_80"] == report.leaderboard["coverage_80_raw"]
        assert same.all() != calibrated
        assert card["calibration"]["on"] == "validation"
        assert card["calibration"]["scores"] == scores


def test_a_bundle_without_calibration_says_what_its_graph_says(tmp_path):
    data = dataset()
    task = Task.of(data)
    report, card = train_bundle(
        data, "ridge", task, tmp_path / "b", until=UNTIL, settings={"lags": 12}, calibrated=False
    )
    assert card["calibration"] is None
    assert set(report.leaderboard["calibrated"]) == {False}
    stream = load_bundle(tmp_path / "b").stream(["a"])
    np.testing.assert_array_equal(stream.step({"a": [1.0, 2.0]})["a"], stream.raw[0])


def test_nothing_of_the_test_reaches_the_calibration(tested):
    data, report, _, _ = tested
    changed = data.frame.copy()
    changed.loc[changed["ds"] > UNTIL, ["y", "load"]] *= 100
    other = replace(data, frame=changed)
    parts = split(other, to_panel(other), Task.of(other), cutoff=UNTIL, hold_out=False)
    again = compare(parts, ["gru"], Task.of(other), settings=SMALL)
    for name, calibration in report.calibrations.items():
        np.testing.assert_array_equal(again.calibrations[name].factors, calibration.factors)
    first = report.forecasts["cutoff"] == UNTIL
    assert first.sum() == again.forecasts["cutoff"].eq(UNTIL).sum() > 0
    np.testing.assert_array_equal(report.forecasts.loc[first, "q0.9"], again.forecasts.loc[first, "q0.9"])


# auto


@pytest.fixture
def three_models(monkeypatch):
    monkeypatch.setattr(pipeline, "MODELS", {name: MODELS[name] for name in ("naive", "ridge", "gru", "bigru")})


def test_auto_takes_the_best_on_validation_and_says_so(three_models, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "export_bundle", lambda *_, **about: about)
    data = dataset()
    task = Task.of(data)
    settings = SMALL | {"lags": 12}
    report, card = train_bundle(data, "auto", task, tmp_path / "b", until=UNTIL, settings=settings)
    parts = split(data, to_panel(data), task, cutoff=UNTIL)
    inside = replace(parts, test=parts.validation)
    board = pipeline.compare(inside, ["gru"], task, settings=settings).leaderboard
    best = board["model"][0]
    figures = ", ".join(f"{name} {mase:.4g}" for name, mase in zip(board["model"], board["mase"], strict=True))
    chosen = f"auto chose {best} by mase on validation: {figures}."
    assert report.notes == (chosen, "ridge: takes no covariates; left out: load.")
    assert card["name"] == best == "ridge"
    assert {row["on"] for row in card["metrics"]} == {"test"}


def test_auto_selects_by_models_that_have_not_learned_the_validation_part(three_models, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "export_bundle", lambda *_, **about: about)
    data, settings = dataset(), SMALL | {"lags": 12}
    task = Task.of(data)
    notes = []
    for too in (False, True):
        given = settings | {"learn_validation": too}
        report, about = train_bundle(data, "auto", task, tmp_path / "b", until=UNTIL, settings=given)
        assert about["config"]["learn_validation"] is too
        notes.append(report.notes)
    assert notes[0] == notes[1]


def test_auto_goes_by_the_mae_where_the_past_is_no_longer_than_a_season(three_models):
    data = dataset()
    data = replace(data, season=52, frame=data.frame[data.frame["ds"] < 60].reset_index(drop=True))
    task = Task.of(data)
    parts = split(data, to_panel(data), task)
    best, note = select(parts, task, seed=0, settings=SMALL | {"lags": 12}, progress=False)
    board = pipeline.compare(
        replace(parts, test=parts.validation), ["gru"], task, settings=SMALL | {"lags": 12}
    ).leaderboard
    assert board["mase"].isna().all()
    assert board["mae"].is_monotonic_increasing
    assert board["model"][0] != "naive"
    assert best == board["model"][0]
    assert note.startswith(f"auto chose {best} by mae on validation: {best} {board['mae'][0]:.4g}, ")


def test_auto_leaves_out_what_takes_seconds_a_series_and_says_so(monkeypatch):
    monkeypatch.setattr(pipeline, "MODELS", {name: MODELS[name] for name in ("naive", "ridge", "sarimax")})
    data = dataset()
    task = Task.of(data)
    parts = split(data, to_panel(data), task, hold_out=False)
    best, note = select(parts, task, seed=0, settings={"lags": 12}, progress=False)
    assert best in ("naive", "ridge")
    assert note.endswith(" sarimax is left out: a fit takes seconds a series; name it to try it.")


def test_auto_does_not_look_at_the_test(three_models):
    data = dataset()
    changed = data.frame.copy()
    changed.loc[changed["ds"] > UNTIL, "y"] = 1e6
    chosen = []
    for some in (data, replace(data, frame=changed)):
        task = Task.of(some)
        parts = split(some, to_panel(some), task, cutoff=UNTIL)
        chosen.append(select(parts, task, seed=0, settings=SMALL, progress=False))
    assert chosen[0] == chosen[1]


def test_auto_needs_something_to_select_on(three_models):
    data = dataset()
    task = Task.of(data)
    parts = split(data, to_panel(data), task, cutoff=UNTIL)
    with pytest.raises(TaskError, match=r"there is no validation part to select on: .* name a model"):
        select(replace(parts, validation=[]), task, seed=0, settings=None, progress=False)


def test_a_run_of_auto_cannot_be_resumed(tmp_path):
    data = dataset()
    with pytest.raises(TaskError, match="--resume goes on with one model: name it instead of auto"):
        train_bundle(data, "auto", Task.of(data), tmp_path / "b", resume=tmp_path / "last.ckpt")


def test_the_winner_is_the_best_that_can_be_streamed(tested):
    report = tested[1]
    assert winner(report) == report.leaderboard["model"][0]
    board = report.leaderboard.copy()
    board["model"] = ["bigru", "gru", "naive"]
    assert winner(replace(report, leaderboard=board)) == "gru"


# Failures


def test_an_export_that_fails_leaves_no_bundle_and_keeps_the_training(tmp_path, monkeypatch):
    def failing(*_, **__):
        raise OSError("disk")

    monkeypatch.setattr(pipeline, "export_bundle", failing)
    data = dataset()
    with pytest.raises(OSError, match="disk"):
        train_bundle(data, "gru", Task.of(data), tmp_path / "b", until=UNTIL, settings=SMALL | {"max_epochs": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["b.training"]


def test_an_unknown_model_is_an_error_before_anything_is_written(tmp_path):
    data = dataset()
    with pytest.raises(ValueError, match="unknown model 'oracle'; known: naive, ridge"):
        train_bundle(data, "oracle", Task.of(data), tmp_path / "b")
    assert not list(tmp_path.iterdir())


# The fingerprint


def test_the_fingerprint_changes_with_any_value_name_or_order():
    frame = dataset().frame
    original = fingerprint(frame)
    assert original == fingerprint(frame.copy())
    assert len(original) == 64
    others = [frame.copy() for _ in range(4)]
    others[0].loc[17, "y"] = np.nextafter(frame["y"][17], np.inf)
    others[1].loc[17, "unique_id"] = "c"
    others[2].loc[105, "y"] = 0.0  # was missing
    others[3].loc[239, "ds"] += 1
    others += [frame.rename(columns={"load": "current"}), frame.iloc[::-1], frame.iloc[:-1]]
    prints = [fingerprint(other) for other in others]
    assert len({original, *prints}) == 1 + len(others)
