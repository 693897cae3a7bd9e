"""Training: closed form where there is one, a library's fit of each series for local models, else pytorch-lightning.

Everything random is drawn from (seed, epoch) or (seed, step), so that a run that is killed and resumed from its last
checkpoint ends with the same bits as one that was not.
"""

from __future__ import annotations

import logging
import math
import shutil
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from itertools import chain, count
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint, TQDMProgressBar
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.utils.data import DataLoader

from forecasting.checkpoint import CheckpointError, SafeCheckpoints, best_weights, load
from forecasting.predictions import Substitute
from forecasting.task import Task, TaskError
from forecasting.windows import Parts, Span, window_loader
from models.catalog import build, entry, field_defaults
from models.contract import Batch, Fits, Fitted, Local, StepModel, Trainable, concat
from models.subnormals import without_subnormals

SMALL = 200_000  # weights below which one CPU thread is the fastest
ROWS_A_LAG = 3  # training rows for each weight of a closed form; with fewer it learns its few rows by heart
MAY_CHANGE = ("log", "device", "threads")  # what a resumed run may do otherwise than before


@dataclass(frozen=True)
class TrainingConfig:
    """How a model is trained; every field can be set with --set."""

    lookback: int = 0  # length of a training window, in steps; 0 chooses: 96, or less where series are shorter
    stride: int = 0  # steps from one training window to the next; 0 chooses: an eighth of the lookback
    context: int = 0  # steps at the start of a window that are not supervised; 0 supervises every position
    every: int = 1  # of the other positions so many-th only is supervised, counted back from the window's end
    known_owner: bool = False  # each series begins with what its owner, such as a person, has shown before it
    learn_validation: bool = False  # once that part chose the epoch, train anew on it too, for as many epochs
    mirror: float = (
        0.0  # share of a forecast's training windows turned upside down, so that no drift is learned by heart
    )
    max_epochs: int = 40
    patience: int = 8  # epochs without a better validation loss before stopping
    batch_size: int = 32  # windows
    learning_rate: float = 2e-3  # of AdamW, falling to a hundredth of itself along a cosine
    weight_decay: float = 1e-4
    clip: float = 1.0  # largest norm of the gradient
    gradient_noise: float = 0.0  # eta of the noise's variance; 0 switches it off
    noise_decay: float = 0.55  # gamma of the noise's variance
    log: str = "csv"  # csv or tensorboard
    device: str = "auto"  # auto, cpu or gpu
    precision: str = "32"  # 32, bf16-mixed or 16-mixed
    threads: int = 0  # of the CPU; 0 chooses: 1 for a small network, which more would only slow down, else every core

    def __post_init__(self) -> None:
        for name in ("max_epochs", "patience", "batch_size", "every"):
            if getattr(self, name) < 1:
                raise TaskError(f"{name} is at least 1, not {getattr(self, name)}.")
        not_negative = (
            "lookback", "stride", "context", "threads", "weight_decay", "clip", "gradient_noise", "noise_decay",
        )  # fmt: skip
        for name in not_negative:
            if not 0 <= getattr(self, name) < math.inf:
                raise TaskError(f"{name} is 0 or more, not {getattr(self, name)}.")
        if not 0 <= self.mirror <= 1:
            raise TaskError(f"mirror is a share from 0 to 1, not {self.mirror}.")
        if not 0 < self.learning_rate < math.inf:
            raise TaskError(f"learning_rate is above 0, not {self.learning_rate}.")
        for name, known in (
            ("log", ("csv", "tensorboard")),
            ("device", ("auto", "cpu", "gpu")),
            ("precision", ("32", "bf16-mixed", "16-mixed")),
        ):
            if getattr(self, name) not in known:
                raise TaskError(f"{name} is one of {', '.join(known)}, not '{getattr(self, name)}'.")


@dataclass(frozen=True)
class SeriesStates:
    """What a local model knows of each series that it was fitted to."""

    fits: Fits  # every series has a state, in the model's own type
    ends: dict[str, int]  # series -> position after the last value that its state has seen
    last: np.ndarray  # `ds` of that value, in the order of the states


@dataclass(frozen=True)
class Trained:
    model: StepModel
    name: str
    config: dict[str, Any]  # every field of the model and its training, as used
    seconds: float
    epochs: int  # 0 for a closed form; with `learn_validation` those of the second training
    device: str  # where it was really trained
    series: int  # how many it was trained on, those with a substitute too
    states: SeriesStates | None = None  # of a local model
    substitutes: dict[str, Substitute] = field(default_factory=dict)  # of the series that could not be fitted
    before_validation: StepModel | None = None  # with `learn_validation`, the model that has not learned from that part

    def notes(self) -> tuple[str, ...]:
        """For a report: what was fitted otherwise than asked, and to less than all."""
        remarks = self.model.remarks if isinstance(self.model, Fitted) else ()
        said = [f"{self.name}: {remark}" for remark in remarks]
        instead = {series: f"{one.name}, for {one.reason}" for series, one in self.substitutes.items()}
        noted = {} if self.states is None else self.states.fits.notes
        for what, cases in (("have a substitute", instead), ("were fitted with a remark", noted)):
            if cases:
                shown = "; ".join(f"{name}: {why}" for name, why in list(cases.items())[:3])
                more = f"; and {len(cases) - 3} more" if len(cases) > 3 else ""
                said.append(f"{self.name}: {len(cases)} of {self.series} series {what}: {shown}{more}.")
        return tuple(said)


def parse_settings(name: str, settings: Mapping[str, Any]) -> tuple[dict[str, Any], TrainingConfig]:
    """Fields of the model and of its training, from names and values that may be text.

    Raises:
        TaskError: an unknown field (the known ones are listed), or a value of the wrong type.
    """
    of_model = field_defaults(name)
    of_training = {field.name: field.default for field in fields(TrainingConfig)}
    known = of_model | of_training
    unknown = [field for field in settings if field not in known]
    if unknown:
        raise TaskError(f"{name} has no field '{unknown[0]}'; known: {', '.join(known)}.")
    values = {field: _as_type(field, value, type(known[field])) for field, value in settings.items()}
    training = TrainingConfig(**{field: value for field, value in values.items() if field in of_training})
    return {field: value for field, value in values.items() if field in of_model}, training


def begins_known(settings: Mapping[str, Any] | None) -> bool:
    """`known_owner` of settings whose values may be text, for `split`, which has to know it before any model does.

    Raises:
        TaskError: it is neither true nor false.
    """
    return bool(_as_type("known_owner", (settings or {}).get("known_owner", False), bool))


def _as_type(field: str, value: Any, kind: type) -> Any:
    try:
        if kind is bool and isinstance(value, str):
            return {"true": True, "false": False}[value.lower()]
        if kind is int and isinstance(value, float) and value != int(value):
            raise ValueError
        if kind is int and not -(2**31) <= int(value) < 2**31:
            raise OverflowError  # a size that nothing here can have
        return kind(value)
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        raise TaskError(f"{field} takes a value of type {kind.__name__}, not '{value}'.") from error


class GradientNoise(pl.Callback):
    """Adds N(0, sigma_t^2) to every gradient, sigma_t^2 = eta / (1 + t)^gamma, t in optimiser steps.

    After clipping, as in the paper (Neelakantan et al. 2015, arXiv 1511.06807). The noise of step t is drawn from
    (seed, t). An adaptive optimiser divides much of it away; the paper's gains are with plain SGD.
    """

    def __init__(self, eta: float, gamma: float = 0.55, seed: int = 0) -> None:
        self.eta = eta
        self.gamma = gamma
        self.seed = seed

    def variance(self, step: int) -> float:
        return self.eta / (1 + step) ** self.gamma

    def perturb(self, module: nn.Module, step: int) -> None:
        sigma = self.variance(step) ** 0.5
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        for parameter in module.parameters():
            if parameter.requires_grad and parameter.grad is not None:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.grad.add_(noise.to(parameter.grad), alpha=sigma)


def mirrored(batch: Batch, chosen: Tensor) -> Batch:
    """The batch with the `chosen` (B,) windows upside down: values, targets and the mean of what came before."""
    sign = 1 - 2 * chosen.to(batch.x)
    before = batch.before
    if before is not None:
        before = before * torch.stack([torch.ones_like(sign), sign, torch.ones_like(sign)], 1)
    sign = sign[:, None, None]
    return batch._replace(x=batch.x * sign, target=batch.target * sign, before=before)


class Learner(pl.LightningModule):
    """A trainable model under Lightning: its own loss, AdamW, a cosine to a hundredth of the learning rate."""

    def __init__(self, model: StepModel, config: TrainingConfig, seed: int, run: Mapping[str, Any]) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.seed = seed
        self.run = run  # the model's name, the seed and every setting; kept in the checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["run"] = dict(self.run)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        # Dropout then depends on the step alone, not on what was drawn before a kill (Lightning does not call
        # on_train_epoch_start in a resumed run). Below zero, so as not to repeat the bits of the gradient noise.
        torch.manual_seed(-1 - self.seed * 1_000_003 - self.global_step)
        if self.config.mirror and self.model.signature.task == "forecast":
            batch = mirrored(batch, torch.rand(len(batch.x)) < self.config.mirror)
        loss = cast(Trainable, self.model).loss(batch)
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(batch.x))
        return loss

    def validation_step(self, batch: Batch, index: int) -> None:
        loss = cast(Trainable, self.model).loss(batch)
        self.log("val_loss", loss, prog_bar=True, batch_size=len(batch.x))

    def configure_optimizers(self) -> Any:
        config = self.config
        optimiser = torch.optim.AdamW(self.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(
            optimiser, config.max_epochs, eta_min=config.learning_rate / 100
        )
        return {"optimizer": optimiser, "lr_scheduler": cosine}

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        for callback in cast(Any, self.trainer).callbacks:
            if isinstance(callback, GradientNoise):
                callback.perturb(self.model, self.global_step)


def choose_lookback(config: TrainingConfig, spans: Sequence[Span], task: Task) -> int:
    """The length of a training window.

    Raises:
        TaskError: a lookback was asked for that no series can fill together with the horizon.
    """
    horizon = task.horizon if task.kind == "forecast" else 0
    lengths = [span.end - horizon for span in spans]
    if config.lookback:
        if config.lookback > max(lengths):
            raise TaskError(
                f"every training series is shorter than lookback + horizon = {config.lookback} + {horizon}: the "
                f"longest has {max(lengths) + horizon} steps. Set a lookback of {max(max(lengths), 1)} or less."
            )
        lookback = config.lookback
    else:
        lookback = max(2, min(96, int(median(lengths))))
    if config.context >= lookback:
        raise TaskError(f"a context of {config.context} leaves nothing of a lookback of {lookback}.")
    return lookback


def fit_model(
    name: str,
    task: Task,
    parts: Parts,
    *,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    directory: Path | None = None,
    resume: Path | None = None,
    progress: bool = False,
) -> Trained:
    """Train the named model on the training part, choosing the epoch by the validation part.

    A local model chooses nothing, so it is fitted to both, unless the validation part is what will be judged. With
    `learn_validation` every other model learns from both too, in a second training, which a resumed run begins anew.

    Args:
        settings: fields of the model's config and of TrainingConfig.
        directory: where checkpoints (`last.ckpt`, `best.ckpt`) and the log are kept; None keeps nothing.
        resume: a `last.ckpt` of a run with the same settings.

    Raises:
        TaskError, ModelError, CheckpointError: what cannot be done, and what can.
        KeyboardInterrupt: on Ctrl-C; the checkpoint of the last whole epoch stays in `directory`.
    """
    if not 0 <= seed < 2**32:
        raise TaskError(f"the seed is a whole number from 0 to {2**32 - 1}, not {seed}.")
    model_settings, config = parse_settings(name, settings or {})
    if config.known_owner and all(span.known is None for span in parts.train):
        raise TaskError("known_owner: these series do not say what their owners have shown; see `windows.split`.")
    if config.learn_validation and (parts.judges_validation or not parts.validation):
        why = "is also what is judged; let a test begin after it" if parts.validation else "is empty"
        raise TaskError(f"learn_validation: the validation part {why}, or train without learn_validation.")
    if entry(name).learns == "per series":
        if resume:
            raise TaskError(f"{name} is fitted in one go: there is nothing to resume.")
        return fit_local(name, task, parts, model_settings, config.threads)
    lookback = choose_lookback(config, parts.train, task)
    taught = entry(name).learns == "closed form" and task.kind == "forecast" and not config.lookback
    sizes = {"lags": _teachable(parts.train, task, lookback) if taught else lookback, "norm_window": lookback}
    for sized, size in sizes.items():
        if sized in field_defaults(name) and sized not in model_settings:
            model_settings[sized] = max(2, size)
    began = time.perf_counter()

    def built() -> StepModel:
        torch.manual_seed(seed)
        return build(name, task.signature, **model_settings)

    model = built()
    before: StepModel | None = None
    used = field_defaults(name) | model_settings
    if isinstance(model, Fitted):
        if resume:
            raise TaskError(f"{name} is fitted in one go: there is nothing to resume.")
        substitutes = _unfit(model, name, parts.train)
        lags = model_settings.get("lags", 1)
        _fit_closed(model, task, parts, lags, substitutes)
        if config.learn_validation:
            before, model = model.eval(), built()
            _fit_closed(cast(Fitted, model), task, parts.until_test(), lags, substitutes)
        used |= {"lookback": lookback, "learn_validation": config.learn_validation}
        seconds = time.perf_counter() - began
        return Trained(
            model.eval(), name, used, seconds, 0, "cpu", len(parts.train), None, substitutes, before_validation=before
        )
    used |= {**vars(config), "lookback": lookback, "stride": config.stride or max(1, lookback // 8)}
    with TemporaryDirectory() as temporary, _threads(config.threads, model), without_subnormals():
        home = directory or Path(temporary)
        run = {"model": name, "seed": seed, **used}
        descent = _descend(model, task, parts, config, run, home, resume, progress)
        if config.learn_validation:
            before, model = model.cpu().eval(), built()
            whole, home = parts.until_test(), home / "whole"
            descent = _descend(model, task, whole, config, run, home, None, progress, epochs=descent.chosen)
    seconds = time.perf_counter() - began
    return Trained(
        model.cpu().eval(), name, used, seconds, descent.epochs, descent.device, len(parts.train),
        before_validation=before,
    )  # fmt: skip


def _fit_closed(model: Fitted, task: Task, parts: Parts, lags: int, left_out: Mapping[str, Substitute]) -> None:
    learnable = [
        [span for span in spans if span.series.unique_id not in left_out] for spans in (parts.train, parts.validation)
    ]
    context = max(model.context, lags)
    with torch.no_grad():
        model.fit(*(_every_position_once(spans, task, context) for spans in learnable))


def _teachable(spans: Sequence[Span], task: Task, most: int) -> int:
    """As many lags as the values of the spans can teach a closed form: of one short series few."""
    known = np.array([int(np.isfinite(span.series.values[: span.end, 0]).sum()) for span in spans])
    counts = range(most, 2, -1)
    rows = ((known - task.horizon - lags + 1).clip(min=0).sum() for lags in counts)
    return next((lags for lags, found in zip(counts, rows, strict=True) if found >= ROWS_A_LAG * lags), 2)


def _unfit(model: Fitted, name: str, spans: Sequence[Span]) -> dict[str, Substitute]:
    """The series of which the model cannot learn.

    Raises:
        TaskError: it can of none.
    """
    reasons = {span.series.unique_id: model.unfit(span.series.values[: span.end, 0]) for span in spans}
    unfit = {series: why for series, why in reasons.items() if why is not None}
    if unfit and len(unfit) == len(reasons):
        raise _fitted_to_none(name, unfit)
    return {series: Substitute(model.substitute, why) for series, why in unfit.items()}


def _fitted_to_none(name: str, reasons: Mapping[str, str]) -> TaskError:
    shown = "; ".join(f"{series}: {why}" for series, why in list(reasons.items())[:3])
    return TaskError(f"{name} could be fitted to none of {len(reasons)} series: {shown}.")


def with_covariates(values: np.ndarray, covariates: int) -> np.ndarray:
    """What a local model is fitted to: of (T, C) the target (T,), or it and the last so many channels (T, 1 + F)."""
    return np.concatenate([values[:, :1], values[:, -covariates:]], 1) if covariates else values[:, 0]


def fit_local(name: str, task: Task, parts: Parts, settings: Mapping[str, Any], processes: int = 0) -> Trained:
    """Fit a local model to every series before what is judged.

    A series that cannot be fitted gets the model's substitute, stepped over its past, and `SeriesStates` says so.

    Raises:
        TaskError: no series could be fitted.
    """
    began = time.perf_counter()
    model = build(name, task.signature, **settings).eval()
    local = cast(Local, model)
    spans = {span.series.unique_id: span for span in parts.before_judgement().train}
    covariates = model.signature.future
    past = {series: with_covariates(span.series.values[: span.end], covariates) for series, span in spans.items()}
    fits = local.fit_series(past, processes or None)
    if not fits.series:
        raise _fitted_to_none(name, fits.failures)
    rows = {series: fits.state_of([series]) for series in fits.series}
    blank = {key: value.double() for key, value in model.initial_state(1).items()}
    for series in fits.failures:
        rows[series] = local.passed(torch.from_numpy(past[series].copy())[None], blank)
    own = {key: value.to(model.zeros()) for key, value in concat(rows[series] for series in past).items()}
    states = SeriesStates(
        replace(fits, series=tuple(past), state=own, failures={}),
        {series: span.end for series, span in spans.items()},
        np.array([span.series.ds[span.end - 1] for span in spans.values()]),
    )
    instead = {series: Substitute(local.substitute, why) for series, why in fits.failures.items()}
    used, seconds = field_defaults(name) | dict(settings), time.perf_counter() - began
    return Trained(model, name, used, seconds, 0, "cpu", len(past), states, instead)


def _every_position_once(spans: Sequence[Span], task: Task, lags: int) -> DataLoader[Batch]:
    """Long windows for closed forms: every target counts once, behind at least `lags` steps of the past."""
    step = max(512, 2 * lags)
    return window_loader(spans, task, length=step + lags - 1, stride=step, context=lags - 1, batch_size=8)


class _Descent(NamedTuple):
    epochs: int  # that were run
    chosen: int  # after how many of them the weights are those that are kept
    device: str


def _descend(
    model: StepModel,
    task: Task,
    parts: Parts,
    config: TrainingConfig,
    run: Mapping[str, Any],
    home: Path,
    resume: Path | None,
    progress: bool,
    epochs: int | None = None,
) -> _Descent:
    """Gradient descent with early stopping, which leaves the best weights in the model; with `epochs`, just so many.

    Those follow the same schedule of learning rates, and leave the last weights.
    """
    lookback, seed = run["lookback"], run["seed"]
    batches = window_loader(
        parts.train, task, length=lookback, stride=run["stride"], context=config.context,
        batch_size=config.batch_size, every=config.every, shuffle=True, seed=seed,
    )  # fmt: skip
    # Every validation position once, or so many-th, after as much context as a training window has.
    checks = window_loader(
        parts.validation or parts.train, task, length=2 * lookback - 1, stride=lookback, context=lookback - 1,
        batch_size=config.batch_size, every=config.every,
    )  # fmt: skip
    with torch.no_grad():
        lags = max(lookback, run.get("skip_lags", 0))
        cast(Trainable, model).prepare(_every_position_once(parts.train, task, lags))
    best = _Checkpoints(home, "best", monitor="val_loss", enable_version_counter=False)
    last = _Checkpoints(home, "last", enable_version_counter=False)  # of every epoch; after `best`, which it describes
    callbacks: list[pl.Callback] = [last]
    if epochs is None:
        callbacks = [_Patience("val_loss", patience=config.patience), best, last]
    if config.gradient_noise:
        callbacks.append(GradientNoise(config.gradient_noise, config.noise_decay, seed))
    if progress:
        callbacks.append(TQDMProgressBar(leave=False))
    # A resumed run logs beside the run that it goes on from.
    version = next(name for name in chain(["log"], (f"log-{n}" for n in count(2))) if not (home / name).exists())
    kind = CSVLogger if config.log == "csv" else TensorBoardLogger
    logger: Logger = kind(home, name="", version=version)
    with _quiet_lightning():
        trainer = _trainer(
            max_epochs=epochs or config.max_epochs,
            accelerator=config.device,
            devices=1,
            precision=cast(Literal["32"], config.precision),
            logger=logger,
            callbacks=callbacks,
            plugins=[SafeCheckpoints()],
            gradient_clip_val=config.clip or None,
            enable_progress_bar=progress,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            log_every_n_steps=1,
            default_root_dir=home,
        )
        if config.precision == "16-mixed" and trainer.strategy.root_device.type == "cpu":
            raise TaskError("precision 16-mixed needs a GPU; on the CPU take 32 or bf16-mixed.")
        learner = Learner(model, config, seed, run)
        if resume:
            _bring_along(resume, home, run)
        try:
            trainer.fit(learner, batches, checks if epochs is None else None, ckpt_path=str(resume) if resume else None)
        except SystemExit as error:  # what Lightning makes of Ctrl-C
            raise KeyboardInterrupt from error
    if trainer.interrupted:
        raise KeyboardInterrupt
    score = best.best_model_score if epochs is None else trainer.callback_metrics["train_loss"]
    if score is None or not torch.isfinite(score):
        raise TaskError("training diverged: the loss is not finite; set a smaller learning_rate or clip.")
    chosen = trainer.current_epoch
    if epochs is None:
        chosen = load(Path(best.best_model_path))["epoch"] + 1
        model.load_state_dict(best_weights(best.best_model_path, "model"))
    return _Descent(trainer.current_epoch, chosen, str(trainer.strategy.root_device))


def _trainer(**options: Any) -> pl.Trainer:
    try:
        return pl.Trainer(**options)
    except MisconfigurationException as error:
        wanted = options["accelerator"]
        raise TaskError(f"device {wanted} is not on this machine ({error}) Take auto or cpu.") from error


class _Patience(EarlyStopping):
    """Lightning's, but a run that was resumed after its last epoch stays stopped."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.should_stop = self.wait_count >= self.patience


class _Checkpoints(ModelCheckpoint):
    """Lightning's, with the extension as messages name it; it also knows its files again after their folder moved."""

    FILE_EXTENSION = ".ckpt"

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        here = Path(cast(str, self.dirpath))

        def found(path: str) -> str:
            return str(here / Path(path).name) if path else path

        state = state_dict | {"dirpath": str(here)}
        state |= {name: found(state[name]) for name in ("best_model_path", "kth_best_model_path", "last_model_path")}
        super().load_state_dict(state | {"best_k_models": {found(p): v for p, v in state["best_k_models"].items()}})


def _bring_along(resume: Path, home: Path, run: Mapping[str, Any]) -> None:
    """Refuse to go on as another run than the checkpoint's; bring its best weights, which it only points to.

    Raises:
        CheckpointError: another model, seed or setting, or no best.ckpt beside.
    """
    before = load(resume).get("run")
    if before is None:
        raise CheckpointError(f"{resume}: holds weights, but not the run they are of; --resume takes a last.ckpt.")
    before = vars(TrainingConfig()) | before  # a field that was not there yet stood where it stands by default
    other = [field for field in run if before.get(field) != run[field] and field not in MAY_CHANGE]
    if other:
        was = ", ".join(f"{field}={before.get(field)}" for field in other)
        now = ", ".join(f"{field}={run[field]}" for field in other)
        raise CheckpointError(f"{resume}: of a run with {was}; this one has {now}. Resume with the settings of before.")
    best = resume.with_name("best.ckpt")
    if not best.exists():
        raise CheckpointError(f"{resume}: the best weights so far are missing: {best} belongs beside it.")
    if best.resolve() != (home / best.name).resolve():
        home.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(best, home / best.name)


@contextmanager
def _threads(asked: int, model: nn.Module) -> Iterator[None]:
    """PyTorch's CPU threads, as asked or as the model's size suggests, and as before afterwards."""
    before = torch.get_num_threads()
    small = sum(parameter.numel() for parameter in model.parameters()) < SMALL
    torch.set_num_threads(asked or (1 if small else before))
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _quiet_lightning(warnings.catch_warnings):
    """Lightning tells every run of devices, workers and its shop; errors still come through."""

    def __enter__(self) -> Any:
        entered = super().__enter__()
        self._loggers = [
            logging.getLogger(name) for name in ("pytorch_lightning", "lightning.pytorch", "lightning.fabric")
        ]
        self._levels = [logger.level for logger in self._loggers]
        for logger in self._loggers:
            logger.setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", module=r"(pytorch_lightning|lightning\w*|torch|tensorboard)(\.|$)")
        warnings.filterwarnings("ignore", message=r".*(does not have many workers|LeafSpec|treespec|TF32).*")
        return entered

    def __exit__(self, *error: Any) -> None:
        for logger, level in zip(self._loggers, self._levels, strict=True):
            logger.setLevel(level)
        super().__exit__(*error)


def on_a_terminal() -> bool:
    """Whether progress should be shown: it goes to stderr, and only where a person looks."""
    return sys.stderr.isatty()
