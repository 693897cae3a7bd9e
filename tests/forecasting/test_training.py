import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from data.frame import Channel, Dataset, Splits
from data.panel import to_panel
from forecasting import training
from forecasting.backtest import compare
from forecasting.checkpoint import CheckpointError, load, same, save
from forecasting.cli import app
from forecasting.passes import one_pass
from forecasting.task import Task, TaskError
from forecasting.training import (
    GradientNoise,
    Learner,
    TrainingConfig,
    choose_lookback,
    fit_model,
    mirrored,
    parse_settings,
)
from forecasting.windows import Parts, split
from models.catalog import build
from models.contract import Batch, ModelError
from models.network import Network

VALUE = Channel("y", "1")
TINY = {"device": "cpu", "hidden": 8, "embed": 4, "lookback": 24, "stride": 6, "batch_size": 4, "max_epochs": 3}
RANDOM = TINY | {"dropout": 0.3, "gradient_noise": 0.01}  # all that draws random numbers
ON_GPU = torch.cuda.is_available()


def wave(length=200, noise=0.1, seed=0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return np.sin(2 * np.pi * np.arange(length) / 12) + noise * random.normal(size=length)


def dataset(*series, horizon=3) -> Dataset:
    frames = [
        pd.DataFrame({"unique_id": chr(ord("a") + index), "ds": np.arange(len(values)), "y": np.asarray(values, float)})
        for index, values in enumerate(series)
    ]
    frame = pd.concat(frames, ignore_index=True)
    return Dataset("toy", frame, "forecast", (VALUE,), 1, 1, horizon, Splits(), "y")


def parts_of(*series, horizon=3) -> tuple[Task, Parts]:
    data = dataset(*series, horizon=horizon)
    task = Task.of(data)
    return task, split(data, to_panel(data), task)


@pytest.fixture(scope="module")
def waves() -> tuple[Task, Parts]:
    return parts_of(wave())


def weights(trained) -> dict[str, torch.Tensor]:
    return trained.model.state_dict()


# What is learned from


@given(st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_every_position_with_a_known_target_counts_and_no_other(horizon, seed):
    torch.manual_seed(seed)
    model = build("gru", Task("forecast", "y", (VALUE,), 1, horizon=horizon).signature, hidden=4, embed=4)
    x = torch.randn(2, 9, 1).cumsum(1)
    target = torch.randn(2, 9, horizon)
    unknown = torch.rand(target.shape) < 0.4
    target[unknown] = torch.nan
    target.requires_grad_(True)
    model.loss(Batch(x, torch.ones_like(x), target, torch.ones(2))).backward()
    assert torch.equal(target.grad != 0, ~unknown)


def test_the_loss_is_the_mean_pinball_loss_in_units_of_each_series():
    task = Task("forecast", "y", (VALUE,), 1, horizon=2, quantiles=(0.1, 0.5, 0.8))
    torch.manual_seed(0)
    model = build("gru", task.signature, hidden=4, embed=4)
    x, target, scale = torch.randn(2, 5, 1), torch.randn(2, 5, 2), torch.tensor([0.5, 20.0])
    predicted, _ = model.scan(x, torch.ones_like(x), model.initial_state(2))  # (B, T, H, Q)
    error = (target[..., None] - predicted) / scale[:, None, None, None]
    levels = torch.tensor(task.quantiles)
    expected = torch.maximum(levels * error, (levels - 1) * error).mean()
    torch.testing.assert_close(model.loss(Batch(x, torch.ones_like(x), target, scale)), expected)


def test_a_network_learns_what_the_naive_forecast_cannot():
    task, parts = parts_of(wave(400, 0.05), wave(400, 0.05, seed=1))
    settings = {"hidden": 16, "embed": 8, "lookback": 36, "max_epochs": 6, "learning_rate": 0.02, "lags": 36}
    board = compare(parts, ["gru"], task, settings=settings).leaderboard.set_index("model")
    assert board["mase"]["gru"] < 0.5 * board["mase"]["naive"]
    assert board["skill_vs_naive"]["gru"] > 0.5
    assert board["dm_p_value"]["gru"] < 0.01


def gappy() -> np.ndarray:
    values = wave()
    values[20:70] = np.nan
    values[100:160:2] = np.nan
    return values


@pytest.mark.parametrize("series", [np.full(200, 7.0), np.zeros(200), gappy(), np.r_[wave(100), np.full(100, 3.0)],
                                    1e6 + wave(), 1e-6 * wave()])  # fmt: skip
def test_constant_series_and_long_gaps_and_any_scale_train_to_finite_weights(series):
    task, parts = parts_of(series)
    trained = fit_model("gru", task, parts, settings=TINY | {"max_epochs": 2})
    assert all(value.isfinite().all() for value in weights(trained).values())
    x = torch.tensor(series[None, :, None], dtype=torch.float32)
    predicted, _ = trained.model.scan(x, x.isfinite().float(), trained.model.initial_state(1))
    assert predicted.isfinite().all()


def test_a_constant_series_beside_a_moving_one_does_not_disturb_the_ridge():
    task, parts = parts_of(wave(), np.full(200, 7.0))
    alone = parts_of(wave())[1]
    both, one = (fit_model("ridge", task, some, settings={"lags": 12}) for some in (parts, alone))
    torch.testing.assert_close(both.model.weight, one.model.weight, atol=1e-3, rtol=1e-3)


# When it stops, and with which weights


def validation_losses(home: Path) -> pd.Series:
    return pd.read_csv(home / "log" / "metrics.csv")["val_loss"].dropna().reset_index(drop=True)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A learning rate so high that the loss soon rises."""
    home = tmp_path_factory.mktemp("stopped")
    task, parts = parts_of(wave(noise=0.5))
    settings = TINY | {"max_epochs": 30, "patience": 3, "learning_rate": 0.1}
    return fit_model("gru", task, parts, settings=settings, directory=home), home, task, parts


def test_training_stops_after_so_many_epochs_without_a_better_loss(stopped):
    trained, home, _, _ = stopped
    losses = validation_losses(home)
    assert trained.epochs == len(losses) == losses.argmin() + 1 + 3
    assert trained.epochs < 30


def test_the_weights_are_those_of_the_best_epoch_not_of_the_last(stopped):
    trained, home, _, _ = stopped
    best, last = load(home / "best.ckpt"), load(home / "last.ckpt")
    assert best["epoch"] == validation_losses(home).argmin() < last["epoch"]
    kept = {f"model.{name}": value for name, value in weights(trained).items()}
    assert same(kept, {name: best["state_dict"][name] for name in kept})
    assert not same(kept, {name: last["state_dict"][name] for name in kept})


def test_the_log_holds_every_epoch(stopped):
    trained, home, _, _ = stopped
    log = pd.read_csv(home / "log" / "metrics.csv")
    assert log["train_loss"].count() == log["val_loss"].count() == trained.epochs
    assert np.isfinite(log[["train_loss", "val_loss"]].max()).all()


def test_last_ckpt_is_of_the_last_epoch_even_if_that_was_not_the_best(stopped):
    trained, home, _, _ = stopped
    assert load(home / "last.ckpt")["epoch"] == trained.epochs - 1


def test_tensorboard_gets_its_files_where_it_is_asked_for(waves, tmp_path):
    fit_model("gru", *waves, settings=TINY | {"max_epochs": 1, "log": "tensorboard"}, directory=tmp_path)
    assert list((tmp_path / "log").glob("events.out.tfevents.*"))
    assert not (tmp_path / "log" / "metrics.csv").exists()


def test_training_and_a_pass_reckon_without_subnormal_numbers_and_leave_them_to_the_caller(waves, monkeypatch):
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor keeps subnormal numbers")
    torch.set_flush_denormal(False)
    kept = []

    def watched(form):
        return lambda *given: kept.append(bool(torch.tensor(1e-39) * 1.0)) or form(*given)

    for form in ("loss", "scan"):
        monkeypatch.setattr(Network, form, watched(getattr(Network, form)))
    task, parts = waves
    model = fit_model("gru", task, parts, settings=TINY | {"max_epochs": 1}).model
    one_pass(model, parts.test[:1], [np.array([10, 30])])
    assert len(kept) > 2
    assert not any(kept)
    model.scan(*(torch.ones(1, 3, model.signature.channels) for _ in range(2)), model.initial_state(1))
    assert kept[-1]


def test_what_was_used_is_what_is_reported(waves):
    trained = fit_model(
        "gru", *waves, settings=TINY | {"max_epochs": "2", "stride": 0, "learning_rate": "0.01", "device": "auto"}
    )
    assert (trained.name, trained.epochs) == ("gru", 2)
    assert trained.device == ("cuda:0" if ON_GPU else "cpu")
    assert {name: trained.config[name] for name in ("hidden", "lookback", "stride", "learning_rate", "max_epochs")} == {
        "hidden": 8, "lookback": 24, "stride": 3, "learning_rate": 0.01, "max_epochs": 2,
    }  # fmt: skip
    assert trained.config["norm_window"] == 24
    ridge = fit_model("ridge", *waves, settings={"lookback": 24})
    assert (ridge.epochs, ridge.device, ridge.config["lags"]) == (0, "cpu", 24)
    assert not trained.model.training
    assert not ridge.model.training


# With the validation part learned too

TOO = TINY | {"learn_validation": True}


@pytest.fixture(scope="module")
def judged() -> tuple[Task, Parts]:
    """With a test after the validation part."""
    data = dataset(wave(noise=0.5))
    task = Task.of(data)
    return task, split(data, to_panel(data), task, test_size=20)


def same_weights(model, other) -> bool:
    return same(dict(model.state_dict()), dict(other.state_dict()))


def test_a_second_training_learns_from_both_parts_for_as_many_epochs_as_were_best(judged, tmp_path):
    task, parts = judged
    settings = TOO | {"max_epochs": 30, "patience": 3, "learning_rate": 0.1}
    trained = fit_model("gru", task, parts, settings=settings, directory=tmp_path)
    best = load(tmp_path / "best.ckpt")["epoch"] + 1
    assert load(tmp_path / "last.ckpt")["epoch"] + 1 > best
    assert load(tmp_path / "whole" / "last.ckpt")["epoch"] + 1 == trained.epochs == best
    alone = fit_model("gru", task, parts, settings=settings | {"learn_validation": False})
    assert same_weights(trained.before_validation, alone.model)
    assert alone.before_validation is None
    assert not same_weights(trained.model, alone.model)
    # The same epochs on both, with nothing held back: its own training part then stands in for validation.
    until = parts.until_test()
    one = TINY | {"max_epochs": 1}
    whole = fit_model("gru", task, until, settings=one).model
    assert same_weights(fit_model("gru", task, parts, settings=one | {"learn_validation": True}).model, whole)


def test_a_run_that_ended_in_its_second_training_begins_that_one_anew(judged, tmp_path):
    task, parts = judged
    whole = fit_model("gru", task, parts, settings=TOO, directory=tmp_path)
    again = fit_model("gru", task, parts, settings=TOO, directory=tmp_path, resume=tmp_path / "last.ckpt")
    assert same_weights(again.model, whole.model)
    assert same_weights(again.before_validation, whole.before_validation)


def test_a_closed_form_learns_from_both_parts_as_from_one(judged):
    task, parts = judged
    trained = fit_model("ridge", task, parts, settings={"lookback": 24, "learn_validation": "true"})
    assert trained.config["learn_validation"] is True
    assert same_weights(trained.model, fit_model("ridge", task, parts.until_test(), settings={"lookback": 24}).model)
    assert same_weights(trained.before_validation, fit_model("ridge", task, parts, settings={"lookback": 24}).model)


def test_what_learned_the_validation_part_is_calibrated_by_what_did_not(judged):
    task, parts = judged
    settings = {"lookback": 24}
    both, alone = (
        compare(parts, ["ridge"], task, settings=settings | {"learn_validation": on}) for on in (True, False)
    )
    np.testing.assert_array_equal(both.calibrations["ridge"].factors, alone.calibrations["ridge"].factors)
    assert not both.forecasts["q0.5"].equals(alone.forecasts["q0.5"])


@pytest.mark.parametrize("name", ["gru", "ridge"])
def test_what_is_judged_is_not_learned(waves, name):
    task, parts = waves
    for refused, why in (
        (replace(parts, test=parts.validation), "the validation part is also what is judged"),
        (replace(parts, validation=[]), "the validation part is empty"),
    ):
        with pytest.raises(TaskError, match=f"learn_validation: {why}.* or train without learn_validation"):
            fit_model(name, task, refused, settings=TOO if name == "gru" else {"learn_validation": True})


# Gradients


def watched(monkeypatch, waves, hook, **settings):
    """Train with the gradients that `hook` sets; per step its number and the gradients before and after clipping."""
    seen = []
    clip = Learner.configure_gradient_clipping

    def gradients(learner) -> torch.Tensor:
        return torch.cat([parameter.grad.flatten().cpu() for parameter in learner.parameters()])

    def wrapped(learner, *arguments, **named) -> None:
        hook(learner)
        before, step = gradients(learner), learner.global_step
        clip(learner, *arguments, **named)
        seen.append((step, before, gradients(learner)))

    monkeypatch.setattr(Learner, "configure_gradient_clipping", wrapped)
    fit_model("gru", *waves, settings=TINY | {"max_epochs": 2} | settings)
    return seen


def set_gradients(value):
    def hook(learner) -> None:
        for parameter in learner.parameters():
            parameter.grad = torch.full_like(parameter, value)

    return hook


def test_a_closed_form_on_one_short_series_learns_more_than_its_few_rows_by_heart():
    task, parts = parts_of(wave(100, noise=0.3))
    report = compare(replace(parts, test=parts.validation), [], task)
    lags = report.models["ridge"].config["lags"]
    assert 12 <= lags <= (80 - 3 - lags + 1) / 3
    error = report.leaderboard.set_index("model")["mae"]
    assert error["ridge"] < 0.7 * error["naive"]
    assert fit_model("ridge", task, parts, settings={"lookback": 40}).config["lags"] == 40


def test_a_mean_of_ridges_learns_from_every_row_behind_the_longest_of_its_look_backs():
    task, parts = parts_of(wave(1500), horizon=3)
    shared = {"period": 16, "recent": 2}
    together = fit_model("ridges", task, parts, settings=shared | {"lags": 8, "lookbacks": 2, "periods": 5}).model
    alone = fit_model("ridge", task, parts, settings=shared | {"lags": 80}).model
    assert [member.config.lags for member in together.members] == [8, 5, 80]
    torch.testing.assert_close(together.members[2].weight, alone.weight)


def test_clipping_bounds_the_norm_and_keeps_the_direction(monkeypatch, waves):
    for _, before, after in watched(monkeypatch, waves, set_gradients(3.0), clip=0.25):
        assert float(after.norm()) == pytest.approx(0.25, rel=1e-4)
        torch.testing.assert_close(after / after.norm(), before / before.norm())


def test_a_small_gradient_is_not_clipped_and_a_clip_of_0_is_none(monkeypatch, waves):
    for value, clip in ((1e-4, 1.0), (3.0, 0.0)):
        with monkeypatch.context() as patch:
            seen = watched(patch, waves, set_gradients(value), clip=clip)
        assert all(torch.equal(before, after) for _, before, after in seen)


def test_noise_is_added_to_every_step_after_clipping(monkeypatch, waves):
    seen = watched(monkeypatch, waves, set_gradients(3.0), clip=1e-3, gradient_noise=1.0)
    assert [step for step, _, _ in seen] == list(range(len(seen)))
    assert len(seen) > 4
    for step, _, after in seen:
        # Clipped before, the noise would be 1e-3 long instead of sqrt(n) sigma.
        expected = (len(after) / (1 + step) ** 0.55) ** 0.5
        assert float(after.norm()) == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize("step", [0, 1, 1000, 100_000])
@pytest.mark.parametrize("eta", [0.01, 0.3, 1.0])
def test_the_variance_of_the_noise_falls_as_in_the_paper(eta, step):
    """PAPERS 8.1: with zero gradients the variance of update / lr is eta / (1 + t)^0.55, within 1 %."""
    module = torch.nn.Linear(1000, 1000, bias=False)
    before = module.weight.detach().double()
    optimiser = torch.optim.SGD(module.parameters(), lr=1.0)
    module.weight.grad = torch.zeros_like(module.weight)
    GradientNoise(eta).perturb(module, step)
    optimiser.step()
    update = module.weight.detach().double() - before
    assert float(update.var()) == pytest.approx(eta / (1 + step) ** 0.55, rel=0.01)
    assert abs(float(update.mean())) < 4e-3 * eta**0.5


def test_noise_is_drawn_from_seed_and_step_and_spares_what_is_frozen():
    def drawn(seed, step) -> list[torch.Tensor]:
        module = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
        for parameter in module.parameters():
            parameter.grad = torch.zeros_like(parameter)
        module[0].weight.requires_grad_(False)
        module[1].bias.grad = None
        GradientNoise(1.0, seed=seed).perturb(module, step)
        assert not module[0].weight.grad.any()
        return [module[0].bias.grad, module[1].weight.grad]

    assert same(drawn(1, 2), drawn(1, 2))
    assert not same(drawn(1, 2), drawn(1, 3))
    assert not same(drawn(1, 2), drawn(2, 2))


def test_noise_that_is_off_leaves_no_trace(waves):
    plain = fit_model("gru", *waves, settings=TINY)
    off = fit_model("gru", *waves, settings=TINY | {"gradient_noise": 0.0, "noise_decay": 0.9})
    noisy = fit_model("gru", *waves, settings=TINY | {"gradient_noise": 0.01})
    assert same(weights(plain), weights(off))
    assert not same(weights(plain), weights(noisy))


# Seeds


def test_the_same_seed_gives_the_same_bits_and_another_one_others(waves):
    torch.rand(5)
    first = fit_model("gru", *waves, settings=RANDOM, seed=3)
    torch.rand(17)
    second = fit_model("gru", *waves, settings=RANDOM, seed=3)
    other = fit_model("gru", *waves, settings=RANDOM, seed=4)
    assert same(weights(first), weights(second))
    assert not same(weights(first), weights(other))


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_out_of_range_is_refused(waves, seed):
    with pytest.raises(TaskError, match=f"the seed is a whole number from 0 to 4294967295, not {seed}"):
        fit_model("gru", *waves, seed=seed)


# Killed and resumed

KILLED = """
import json, os, signal, sys
from pathlib import Path
sys.path.insert(0, {here!r})
from test_training import RANDOM, parts_of, wave
from forecasting.training import Learner, fit_model

step = Learner.training_step
def killing(learner, batch, index):
    loss = step(learner, batch, index)
    if learner.current_epoch == 2 and index == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return loss
Learner.training_step = killing
fit_model("gru", *parts_of(wave()), settings=RANDOM | {{"max_epochs": 5}}, seed=1, directory=Path({home!r}))
"""


@pytest.fixture(scope="module")
def uninterrupted(waves, tmp_path_factory):
    """A run of five epochs, and a copy of its folder after each of them."""
    home = tmp_path_factory.mktemp("whole") / "run"
    copies = []
    save = training.SafeCheckpoints.save_checkpoint

    def copying(self, checkpoint, path, storage_options=None) -> None:
        save(self, checkpoint, path, storage_options)
        if Path(path).name == "last.ckpt":
            copies.append(home.with_name(f"after{len(copies)}"))
            shutil.copytree(home, copies[-1])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.SafeCheckpoints, "save_checkpoint", copying)
        trained = fit_model("gru", *waves, settings=RANDOM | {"max_epochs": 5}, seed=1, directory=home)
    return trained, load(home / "last.ckpt"), copies


def resume(waves, checkpoint, home, **other):
    settings = RANDOM | {"max_epochs": 5} | other.pop("settings", {})
    return fit_model("gru", *waves, settings=settings, directory=home, resume=checkpoint, **{"seed": 1} | other)


def assert_same_run(trained, home, uninterrupted) -> None:
    whole, last, _ = uninterrupted
    assert trained.epochs == whole.epochs
    assert same(weights(trained), weights(whole))
    ours = load(home / "last.ckpt")
    for part in ("epoch", "global_step", "state_dict", "optimizer_states", "lr_schedulers"):
        assert same(ours[part], last[part]), part


def test_a_run_that_is_killed_within_an_epoch_ends_with_the_same_bits_when_resumed(waves, uninterrupted, tmp_path):
    home = tmp_path / "run"
    code = KILLED.format(here=str(Path(__file__).parent), home=str(home))
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert load(home / "last.ckpt")["epoch"] == 1
    assert_same_run(resume(waves, home / "last.ckpt", home), home, uninterrupted)


@pytest.mark.parametrize("epoch", [0, 3])
def test_a_run_resumed_after_any_epoch_in_another_folder_ends_with_the_same_bits(waves, uninterrupted, tmp_path, epoch):
    before = uninterrupted[2][epoch] / "last.ckpt"
    assert_same_run(resume(waves, before, tmp_path / "new"), tmp_path / "new", uninterrupted)


def test_a_run_that_had_ended_is_not_gone_on_with(waves, uninterrupted, tmp_path):
    whole, _, copies = uninterrupted
    again = resume(waves, copies[-1] / "last.ckpt", tmp_path)
    assert again.epochs == whole.epochs
    assert same(weights(again), weights(whole))


def test_a_run_that_had_stopped_early_stays_stopped(stopped, tmp_path):
    trained, home, task, parts = stopped
    settings = TINY | {"max_epochs": 30, "patience": 3, "learning_rate": 0.1}
    again = fit_model("gru", task, parts, settings=settings, directory=tmp_path, resume=home / "last.ckpt")
    assert again.epochs == trained.epochs
    assert same(weights(again), weights(trained))


def test_a_checkpoint_of_another_run_is_refused(waves, uninterrupted, tmp_path):
    last = uninterrupted[2][0] / "last.ckpt"
    with pytest.raises(CheckpointError, match=r"last.ckpt: of a run with hidden=8; this one has hidden=16. Resume"):
        resume(waves, last, tmp_path, settings={"hidden": 16})
    with pytest.raises(CheckpointError, match="of a run with seed=1, max_epochs=5; this one has seed=2, max_epochs=9"):
        resume(waves, last, tmp_path, settings={"max_epochs": 9}, seed=2)
    with pytest.raises(CheckpointError, match=r"absent.ckpt: not a readable checkpoint"):
        resume(waves, tmp_path / "absent.ckpt", tmp_path)
    lonely = tmp_path / "lonely.ckpt"
    shutil.copy(last, lonely)
    with pytest.raises(CheckpointError, match=r"lonely.ckpt: the best weights so far are missing: .*best.ckpt"):
        resume(waves, lonely, tmp_path)


def test_a_checkpoint_of_before_a_field_was_there_goes_on_as_with_its_default(waves, uninterrupted, tmp_path):
    for name in ("best.ckpt", "last.ckpt"):
        checkpoint = load(uninterrupted[2][0] / name)
        del checkpoint["run"]["learn_validation"]
        save(checkpoint, tmp_path / name)
    assert_same_run(resume(waves, tmp_path / "last.ckpt", tmp_path / "new"), tmp_path / "new", uninterrupted)
    with pytest.raises(CheckpointError, match="of a run with learn_validation=False; this one has learn_validation=Tr"):
        resume(waves, tmp_path / "last.ckpt", tmp_path, settings={"learn_validation": True})


def test_a_closed_form_has_nothing_to_resume(waves, tmp_path):
    with pytest.raises(TaskError, match="ridge is fitted in one go: there is nothing to resume"):
        fit_model("ridge", *waves, resume=tmp_path / "last.ckpt")


EPOCHS = 40  # seconds of training: the signal must come before the end, however busy the machine


def mnemo(tmp_path, out, *more) -> list[str]:
    data = tmp_path / "wave.csv"
    if not data.exists():
        dataset(wave(400)).frame.to_csv(data, index=False)
    settings = {"hidden": 8, "embed": 4, "batch_size": 4, "dropout": 0.2, "patience": EPOCHS, "max_epochs": EPOCHS}
    command = ["train", "--data", str(data), "--model", "gru", "--horizon", "3", "--out", str(out), *more]
    for field, value in settings.items():
        command += ["--set", f"{field}={value}"]
    return command


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_ctrl_c_writes_no_bundle_and_says_how_to_go_on(tmp_path):
    out = tmp_path / "bundle"
    last = tmp_path / "bundle.training" / "last.ckpt"
    command = [sys.executable, "-m", "forecasting.cli", *mnemo(tmp_path, out)]
    # A shell that runs us in the background has its children ignore Ctrl-C; this one shall not.
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed)
    try:
        deadline = time.monotonic() + 60
        while not last.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        printed, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 1, said
    assert f"interrupted: no bundle was written to {out}. Go on with: --resume {last}" in said
    assert "Traceback" not in said
    assert not printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle.training", "wave.csv"]
    assert {path.name for path in last.parent.iterdir()} <= {"best.ckpt", "last.ckpt", "log"}
    reached = load(last)["epoch"]
    assert reached < EPOCHS - 1  # it really was interrupted

    resumed = CliRunner().invoke(app, mnemo(tmp_path, out, "--resume", str(last), "--json"))
    assert resumed.exit_code == 0, resumed.output
    assert json.loads(resumed.stdout)["card"]["name"] == "gru"
    assert (out / "card.json").exists()
    assert load(last)["epoch"] == EPOCHS - 1


# What is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hiden": 3}, "gru has no field 'hiden'; known: .*hidden.*learning_rate"),
        ({"hidden": "many"}, "hidden takes a value of type int, not 'many'"),
        ({"hidden": "8.5"}, r"hidden takes a value of type int, not '8\.5'"),
        ({"hidden": 8.5}, r"hidden takes a value of type int, not '8\.5'"),
        ({"max_epochs": float("inf")}, "max_epochs takes a value of type int, not 'inf'"),
        ({"dropout": None}, "dropout takes a value of type float, not 'None'"),
        ({"max_epochs": 0}, "max_epochs is at least 1, not 0"),
        ({"clip": -1}, r"clip is 0 or more, not -1\.0"),
        ({"clip": "nan"}, "clip is 0 or more, not nan"),
        ({"learning_rate": 0}, r"learning_rate is above 0, not 0\.0"),
        ({"log": "paper"}, "log is one of csv, tensorboard, not 'paper'"),
        ({"device": "tpu"}, "device is one of auto, cpu, gpu, not 'tpu'"),
        ({"precision": 64}, "precision is one of 32, bf16-mixed, 16-mixed, not '64'"),
    ],
)
def test_a_setting_that_cannot_be_names_what_can(settings, message):
    with pytest.raises(TaskError, match=message):
        parse_settings("gru", settings)


def test_settings_may_be_text():
    model, config = parse_settings("gru", {"hidden": "12", "dropout": "0.5", "max_epochs": "7", "log": "tensorboard"})
    assert model == {"hidden": 12, "dropout": 0.5}
    assert config == TrainingConfig(max_epochs=7, log="tensorboard")


def test_a_value_out_of_the_models_range_is_refused(waves):
    with pytest.raises(ModelError, match=r"dropout lies in \[0, 1\)"):
        fit_model("gru", *waves, settings={"dropout": 1.5})


def test_a_lookback_longer_than_every_series_is_refused(waves):
    with pytest.raises(TaskError, match=r"shorter than lookback \+ horizon = 500 \+ 3: the longest has 128 steps. "
                       "Set a lookback of 125 or less"):  # fmt: skip
        fit_model("gru", *waves, settings={"lookback": 500})
    assert fit_model("gru", *waves, settings=TINY | {"lookback": 125, "max_epochs": 1}).config["lookback"] == 125


@pytest.mark.parametrize(("lengths", "lookback"), [((400,), 96), ((100,), 61), ((100, 100, 400), 61), ((12,), 3)])
def test_the_lookback_that_is_chosen_fits_half_of_the_series(lengths, lookback):
    task, parts = parts_of(*[wave(length) for length in lengths])
    assert choose_lookback(TrainingConfig(), parts.train, task) == lookback


@pytest.mark.skipif(ON_GPU, reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_an_error_that_says_what_is(waves):
    with pytest.raises(TaskError, match=r"device gpu is not on this machine .* Take auto or cpu"):
        fit_model("gru", *waves, settings=TINY | {"device": "gpu"})


def test_half_precision_is_not_quietly_replaced_on_a_cpu(waves):
    with pytest.raises(TaskError, match="precision 16-mixed needs a GPU; on the CPU take 32 or bf16-mixed"):
        fit_model("gru", *waves, settings=TINY | {"device": "cpu", "precision": "16-mixed"})


def test_brain_floats_train(waves):
    trained = fit_model("gru", *waves, settings=TINY | {"device": "cpu", "precision": "bf16-mixed", "max_epochs": 1})
    assert all(value.isfinite().all() for value in weights(trained).values())


def test_targets_that_are_all_missing_are_an_error_of_our_own(waves):
    task, parts = waves
    empty = replace(parts.train[0].series, values=np.full((200, 1), np.nan))
    nothing = replace(parts, train=[replace(parts.train[0], series=empty)])
    with pytest.raises(ModelError, match="no training window has a known target"):
        fit_model("ridge", task, nothing, settings={"lags": 12})


def test_the_threads_of_the_process_are_as_before(waves):
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        fit_model("gru", *waves, settings=TINY | {"max_epochs": 1, "threads": 1})
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_mirrored_windows_are_upside_down_and_the_others_as_they_were():
    x, target = torch.randn(3, 5, 1), torch.randn(3, 5, 2)
    batch = Batch(x, torch.ones_like(x), target, torch.ones(3), torch.tensor([[4.0, 7.0, 2.0]] * 3))
    turned = mirrored(batch, torch.tensor([True, False, True]))
    for row, sign in enumerate((-1, 1, -1)):
        assert torch.equal(turned.x[row], sign * x[row])
        assert torch.equal(turned.target[row], sign * target[row])
        assert turned.before is not None
        assert turned.before[row].tolist() == [4.0, sign * 7.0, 2.0]
    assert torch.equal(turned.mask, batch.mask)


def test_a_training_that_mirrors_every_window_is_one_on_the_series_upside_down():
    settings = {"hidden": 4, "lookback": 12, "max_epochs": 1, "skip_lags": 6, "skip_level_window": 50}
    settings |= {"quantile_weight": 0.0, "median_weight": 1.0}
    turned = {}
    for sign in (1, -1):
        task, parts = parts_of(sign * wave())
        turned[sign] = fit_model("gru", task, parts, settings=settings | {"mirror": float(sign > 0)}).model
    for name, weight in turned[1].backbone.state_dict().items():
        torch.testing.assert_close(weight, turned[-1].backbone.state_dict()[name], rtol=1e-4, atol=1e-5)
