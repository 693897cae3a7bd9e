"""One suite that every model of the catalog passes: a model is a state and a step.

Each property is a plain function that raises AssertionError, so that the mutants at the end can show that it fails on a
model that breaks it. A new entry of the catalog is tested from the day it is there; a field that sets its size may get
a smaller value in SMALL.

Shapes: B series, T time, C channels, H horizon, Q quantiles, K classes.
"""

import copy
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example as always
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from data.frame import Channel
from forecasting.export import export_bundle
from forecasting.runtime import LoadedBundle, Stream, load_bundle
from forecasting.task import Task
from models.catalog import MODELS, build, field_defaults
from models.contract import Batch, Fitted, Local, ModelError, Signature, State, StepModel, Trainable, concat, take

SMALL = {
    "hidden": 5, "embed": 4, "lags": 5, "norm_window": 6, "prior": 20,
    "width": 8, "heads": 2, "blocks": 1, "feed_forward": 1,
    "window": 5, "paths": 1024, "patch": 3, "patches": 3, "persistent": 2, "trees": 12, "depth": 3, "leaf_rows": 5,
    "dilations": 2, "thresholds": 2, "levels": 3, "short": 3, "long": 12,
}  # fmt: skip
RIDGE = {
    "lags": 4,
    "period": 2,
    "recent": 1,
    "level_window": 20,
    "error_rate": 0.3,
    "error_span": 30.0,
    "error_keys": 3,
}
VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    {
        "layers": 2,
        "returns": "difference",
        "innovations": "normal",
        "size": "shared",
        "features": "path",
        "moving": True,
    }
    | RIDGE
    | {f"skip_{name}": value for name, value in RIDGE.items()},
)
# Of a model that learns in chunks. The three tasks share all but the head, so they take turns over these.
# Where the memory's parts are open they are such as no named one has.
CHUNKS: tuple[dict[str, Any], ...] = (
    {"chunk": 1, "depth": 3, "bias": "huber", "retention": "elastic"},
    {"chunk": 4, "skip_lags": 4, "depth": 0, "bias": "lp", "power": 1.5, "optimiser": "muon", "degree": 2},
    {"chunk": 16, "blocks": 2, "feed_forward": 0, "depth": 4, "bias": "kl", "optimiser": "momentum"},
    {"chunk": 64, "depth": 1, "retention": "softmax"},
)
# Of a regression on the past; the signatures take turns.
LAGGED: tuple[dict[str, Any], ...] = ({"leads": 4}, {}, {"strategy": "recursive", "phase": True})
SIGNATURES = {
    "forecast": (
        Signature("forecast", channels=2, horizon=6, season=4),
        Signature("forecast", channels=1, horizon=1, quantiles=(0.05, 0.5, 0.95)),
    ),
    "classify": (Signature("classify", channels=2, classes=3), Signature("classify", channels=1, classes=2)),
    "regress": (Signature("regress", channels=2), Signature("regress", channels=1, quantiles=(0.1, 0.9))),
}
TOLERANCE = 1e-4  # of a prediction's range, in float32
TIGHT = dict.fromkeys(
    ("naive", "drift", "seasonal-drift", "window-average", "historic-average", "ridge", "ridges", "rnn", "lstm", "gru"),
    1e-5,
)  # recurrent and linear ones
DOUBLE = 1e-10  # the same in float64
# Fields that are read where another is set, in forecasts alone, or where there are several gestures.
DEPENDENT = {"recent", "periods", "error_span", "error_keys", "norm_window", "turn"}
DIFFERENCES = "errors.memory"  # made of differences of numbers near 1, whose rounding it keeps however small it is
LEVEL = 1000.0  # of the training data, whose spread is 1: a reader of labels knows only data like that


@dataclass(frozen=True)
class Case:
    """One model of the catalog, doing one task, in one of the variants of its kind."""

    name: str
    task: str
    variant: int
    ahead: int = 0  # covariates that are known ahead
    blocks: int = 0  # other than those of the variant

    def __str__(self) -> str:
        known = f"-ahead{self.ahead}" if self.ahead else ""
        return f"{self.name}-{self.task}-" + (f"chunk{self.chunk}" if self.chunk else str(self.variant)) + known

    @property
    def signature(self) -> Signature:
        return replace(SIGNATURES[self.task][self.variant % 2], future=self.ahead)

    @property
    def settings(self) -> dict[str, Any]:
        chosen = SMALL | variants(self.name)[self.variant] | ({"blocks": self.blocks} if self.blocks else {})
        return {field: chosen[field] for field in field_defaults(self.name) if field in chosen}

    @property
    def tolerance(self) -> float:
        return TIGHT.get(self.name, TOLERANCE)

    @property
    def chunk(self) -> int:
        """Steps after which the model does something else than between; 0 where there is no such rhythm."""
        return self.settings.get("chunk", 0)

    def instance(self) -> StepModel:
        return _instance(self)

    def check(self, check: Callable[["Example"], None]) -> None:
        """Over the examples: ten, or three for a memory and one that is longer than its chunk.

        Some hundred cases go through each property, most of them through the same code.
        """

        @settings(max_examples=3 if self.chunk else 10)
        @given(example=examples)
        @always(example=replace(ORDINARY, steps=max(ORDINARY.steps, self.chunk + 6)))
        def run(example: Example) -> None:
            check(example)

        run()


def variants(name: str) -> tuple[dict[str, Any], ...]:
    fields = field_defaults(name)
    return CHUNKS if "chunk" in fields else LAGGED if "strategy" in fields else VARIANTS


def cases_of(name: str, turn: int) -> list[Case]:
    tasks = MODELS[name].tasks
    if variants(name) is CHUNKS:
        return [Case(name, tasks[(turn + variant) % len(tasks)], variant) for variant in range(len(CHUNKS))]
    return [Case(name, task, variant) for task in tasks for variant in range(len(variants(name)))]


def exported_case(name: str, turn: int) -> Case:
    """With one block, for each more is as many nodes again: that they follow one another the smallest memory shows."""
    tasks = MODELS[name].tasks
    task = "forecast" if "forecast" in tasks else tasks[turn % len(tasks)]
    chunked = variants(name) is CHUNKS
    variant = (turn + chunked) % len(variants(name))  # so that the segments of a context are longer than one
    return Case(name, task, variant, blocks=1 if chunked and name != "gated-deltanet" else 0)


# A regression on the past that knows a covariate ahead, direct and recursive, whose step carries it along.
AHEAD = [
    Case(name, "forecast", variant, ahead=1)
    for name, variant in (("quantile-regression", 0), ("random-forest", 0), ("xgboost", 2))
]
CASES = [case for turn, name in enumerate(MODELS) for case in cases_of(name, turn)] + AHEAD
STREAMING = [case for case in CASES if MODELS[case.name].streams]
# An export takes seconds: one for every model, and the other tasks of a closed form and of a network. Every memory with
# every length of a chunk: tests/benchmarks/bench_memory_export.py.
EXPORTED = [exported_case(name, turn) for turn, name in enumerate(MODELS)]
EXPORTED += [Case("ridge", "classify", 0), Case("gru", "regress", 1), Case("xgboost", "forecast", 2)]
EXPORTED += [Case("memory", "forecast", 0)]  # a Huber loss whose window begins with rows of nothing
EXPORTED += [case for case in AHEAD if "strategy" in case.settings]


def training_batches(signature: Signature, seed: int) -> list[Batch]:
    """Two batches of noisy sines with gaps, whose slope is the label and the number to be read."""
    rng = np.random.default_rng(seed)
    batches = []
    for _ in range(2):
        rows, steps, horizon = 8, 30, signature.horizon
        slope = rng.normal(size=(rows, 1, 1)) / 10
        t = np.arange(steps + horizon)[:, None]
        x = LEVEL + slope * t + np.sin(t) + 0.3 * rng.normal(size=(rows, steps + horizon, signature.channels))
        x[rng.random(x.shape) < 0.05] = np.nan
        x = torch.from_numpy(x.astype(np.float32))
        if signature.task == "forecast":
            target = x[:, 1:, 0].unfold(1, horizon, 1)
        else:
            number = torch.from_numpy(slope[..., 0]).expand(rows, steps)
            target = number.float() if signature.task == "regress" else (number > 0).long()
        seen = x[:, :steps]
        after = x[:, steps:, signature.channels - signature.future :] if signature.future else None
        batches.append(
            Batch(seen, seen.isfinite().float(), target, torch.ones(rows), torch.zeros(rows, 3), after=after)
        )
    return batches


class OfOneSeries(StepModel):
    """A local model all of whose series begin where one fitted series ended."""

    def __init__(self, model: StepModel, values: np.ndarray) -> None:
        super().__init__(model.signature)
        fits = model.fit_series({"a": values})
        assert fits.series == ("a",), fits.failures
        self.model = model
        self.names = list(fits.state)
        for index, value in enumerate(fits.state.values()):
            self.register_buffer(f"fitted{index}", value.float())

    def initial_state(self, batch: int) -> State:
        fitted = [self.get_buffer(f"fitted{index}") for index in range(len(self.names))]
        return {
            name: value.repeat(batch, *[1] * (value.dim() - 1)) for name, value in zip(self.names, fitted, strict=True)
        }

    def step(self, x: Tensor, mask: Tensor, state: State) -> tuple[Tensor, State]:
        return self.model.step(x, mask, state)

    def scan(self, x: Tensor, mask: Tensor, state: State) -> tuple[Tensor, State]:
        return self.model.scan(x, mask, state)


@cache
def _instance(case: Case) -> StepModel:
    """A small model of the case: fitted if it has a closed form, else prepared and with random weights."""
    torch.manual_seed(7)
    model = build(case.name, case.signature, **case.settings).eval()
    batches = training_batches(case.signature, seed=7)
    if isinstance(model, Local) and case.variant == 1:  # variant 0 is a series that nobody has fitted
        model = OfOneSeries(model, LEVEL + np.random.default_rng(7).normal(size=60).cumsum())
    if isinstance(model, Fitted):
        model.fit(batches)
    if isinstance(model, Trainable):
        model.prepare(batches)
        with torch.no_grad():  # weights that start at or near zero would hide what they multiply
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@cache
def double(model: StepModel) -> StepModel:
    return copy.deepcopy(model).double()


@dataclass(frozen=True)
class Example:
    """A recipe for a batch of series: numbers that a failure can print."""

    batch: int
    steps: int
    cut: float  # where to split or to change, as a share of the steps
    seed: int
    kind: str
    level: float  # in units of the scale
    scale: float
    missing: float  # share of scattered gaps
    gap: tuple[int, int]  # first step and length of one long gap, which every next series has 3 steps later
    behind: float  # what stands behind the mask

    def tensors(self, signature: Signature) -> tuple[Tensor, Tensor]:
        """x, mask (B, T, C) in float32, every series of its own level and scale."""
        rng = np.random.default_rng(self.seed)
        shape = (self.batch, self.steps, signature.channels)
        noise = rng.normal(size=shape)
        x = {
            "noise": noise,
            "walk": noise.cumsum(1),
            "season": np.sin(np.pi / 2 * np.arange(self.steps))[:, None] + 0.1 * noise,
            "jumps": np.where(rng.random(shape) < 0.1, 10 * noise, 0.0).cumsum(1),
        }[self.kind]
        row = np.arange(1, self.batch + 1)[:, None, None]
        if signature.task == "forecast":
            x = self.scale * row * (self.level * row + x)
        else:
            x = LEVEL + np.sign(self.level) * row + x
        mask = rng.random(shape) >= self.missing
        for index in range(self.batch):
            first = self.gap[0] + 3 * index
            mask[index, first : first + self.gap[1]] = False
        x = np.where(mask, x, self.behind)
        return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(mask.astype(np.float32))

    def ahead(self, signature: Signature) -> list[Tensor]:
        """`known_ahead` of its series."""
        return known_ahead(signature, self.batch, self.steps, self.seed)

    @property
    def split(self) -> int:
        """From 1 to T - 1; 1 where T is 1."""
        return max(1, min(self.steps - 1, math.ceil(self.cut * self.steps)))


def known_ahead(signature: Signature, batch: int, steps: int, seed: int = 0) -> list[Tensor]:
    """What a scan takes as its last argument, (B, T, H, F) in float32; nothing where nothing is known ahead."""
    if not signature.future:
        return []
    values = np.random.default_rng(seed).normal(size=(batch, steps + signature.horizon, signature.future))
    return [torch.from_numpy(values.astype(np.float32)).unfold(1, signature.horizon, 1)[:, 1:].movedim(-1, 2)]


def at(ahead: list[Tensor], which: Any) -> list[Tensor]:
    """Some of the steps, or one, of what is known ahead."""
    return [known[:, which] for known in ahead]


examples = st.builds(
    Example,
    batch=st.integers(1, 4),
    steps=st.integers(1, 32),
    cut=st.floats(0, 1),
    seed=st.integers(0, 2**16),
    kind=st.sampled_from(["noise", "walk", "season", "jumps"]),
    level=st.sampled_from([0.0, 1.0, -30.0, 1e4]),
    scale=st.sampled_from([1.0, 1e-3, 1e3]),
    missing=st.sampled_from([0.0, 0.2, 0.6]),
    gap=st.tuples(st.integers(0, 20), st.sampled_from([0, 3, 20, 40])),
    behind=st.sampled_from([math.nan, math.inf, -math.inf, 1e30, 0.0]),
)
# For the mutants and for a first look: gaps of both sorts, a level far above the spread, cut inside every chunk.
ORDINARY = Example(3, 24, 0.55, 0, "walk", 100.0, 1.0, 0.2, (5, 4), math.nan)


def over(cases: list[Case]) -> Callable[[Any], Any]:
    return pytest.mark.parametrize("case", cases, ids=str)


# The properties.


def spread_of(prediction: Tensor, signature: Signature) -> Tensor:
    """(B,) the range of each series' predictions; probabilities have their own."""
    if signature.task == "classify":
        return prediction.new_ones(len(prediction))
    flat = prediction.flatten(1)
    return flat.amax(1) - flat.amin(1)


def assert_predictions(found: Tensor, expected: Tensor, signature: Signature, tolerance: float, what: str) -> None:
    """Equal within `tolerance` of the range of a series' predictions, and the rounding of the numbers themselves."""
    assert found.shape == expected.shape, f"{what}: {tuple(found.shape)}, expected {tuple(expected.shape)}"
    rounding = 4 * torch.finfo(expected.dtype).eps * expected.flatten(1).abs().amax(1)
    allowed = tolerance * spread_of(expected, signature) + rounding
    worst = (found - expected).abs().flatten(1).amax(1)
    assert bool((worst <= allowed).all()), f"{what}: differs by {worst.tolist()}, allowed {allowed.tolist()}"


def assert_states(found: State, expected: State, usual: State, tolerance: float, what: str) -> None:
    """Equal within `tolerance` of the largest value that each series' tensor has had (`usual`), and rounding."""
    assert list(found) == list(expected), f"{what}: {list(found)}, expected {list(expected)}"
    for name, value in expected.items():
        assert found[name].shape == value.shape, f"{what}: {name} is {tuple(found[name].shape)}"
        assert found[name].dtype == value.dtype, f"{what}: {name} is {found[name].dtype}"
        worst = (found[name] - value).abs().flatten(1).amax(1)
        allowed = tolerance * usual[name].flatten(1).amax(1)
        if tolerance and name.endswith(DIFFERENCES):
            allowed = allowed + 4 * torch.finfo(value.dtype).eps
        assert bool((worst <= allowed).all()), f"{what}: {name} differs by {worst.tolist()}, allowed {allowed.tolist()}"


def steps_of(model: StepModel, x: Tensor, mask: Tensor, ahead: list[Tensor]) -> tuple[Tensor, State, State]:
    """T calls of `step`: the predictions, the last state, and the largest absolute value that each state had."""
    state = model.initial_state(len(x))
    usual = {name: value.abs() for name, value in state.items()}
    predictions = []
    for t in range(x.shape[1]):
        prediction, state = model.step(x[:, t], mask[:, t], state, *at(ahead, t))
        predictions.append(prediction)
        usual = {name: torch.maximum(usual[name], value.abs()) for name, value in state.items()}
    return torch.stack(predictions, 1), state, usual


@torch.no_grad()
def check_parity(model: StepModel, example: Example, tolerance: float) -> None:
    """One scan = a scan in two parts = T steps, predictions and states; in float64 as well. The steps' are in order."""
    x, mask = example.tensors(model.signature)
    ahead = example.ahead(model.signature)
    _check_parity(model, x, mask, ahead, example.split, tolerance)
    in_double = [known.double() for known in ahead]
    _check_parity(double(model), x.double(), mask.double(), in_double, example.split, DOUBLE)


def _check_parity(model: StepModel, x: Tensor, mask: Tensor, ahead: list[Tensor], cut: int, tolerance: float) -> None:
    initial = model.initial_state(len(x))
    given_state = {name: value.clone() for name, value in initial.items()}
    by_step, after_steps, usual = steps_of(model, x, mask, ahead)
    check_values(by_step, after_steps, model.signature, "steps")
    whole, after = model.scan(x, mask, initial, *ahead)
    assert_predictions(whole, by_step, model.signature, tolerance, "scan against steps")
    assert_states(after, after_steps, usual, tolerance, "state after the scan against steps")
    head, between = model.scan(x[:, :cut], mask[:, :cut], initial, *at(ahead, slice(cut)))
    if cut < x.shape[1]:
        kept = {name: value.clone() for name, value in between.items()}
        tail, end = model.scan(x[:, cut:], mask[:, cut:], between, *at(ahead, slice(cut, None)))
        parts = torch.cat([head, tail], 1)
        assert_predictions(parts, by_step, model.signature, tolerance, f"scan split at {cut} against steps")
        assert_states(end, after_steps, usual, tolerance, f"state after the scan split at {cut}")
        assert_states(between, kept, usual, 0.0, "a scan wrote into the state that it was given")
    assert_states(initial, given_state, usual, 0.0, "a scan or step wrote into the state that it was given")


@torch.no_grad()
def check_causality(model: StepModel, example: Example) -> None:
    """What comes after t changes no prediction at or before t, to the bit."""
    x, mask = example.tensors(model.signature)
    t = example.split
    other, shown = x.clone(), mask.clone()
    other[:, t:] = torch.where(mask[:, t:] > 0, 3 * x[:, t:] + 1, torch.full_like(x[:, t:], 5.0))
    shown[:, t:] = 1 - mask[:, t:] * (torch.arange(x.shape[1] - t) % 2)[:, None]
    ahead = example.ahead(model.signature)
    moved = [torch.cat([known[:, :t], 3 * known[:, t:] + 1], 1) for known in ahead]
    before, _ = model.scan(x, mask, model.initial_state(len(x)), *ahead)
    after, _ = model.scan(other, shown, model.initial_state(len(x)), *moved)
    assert torch.equal(before[:, :t], after[:, :t]), f"a prediction before step {t} saw what comes from there on"


@torch.no_grad()
def check_missing(model: StepModel, example: Example) -> None:
    """What stands behind the mask has no influence, and NaN and infinities are missing even where the mask is 1."""
    x, mask = example.tensors(model.signature)
    ahead = example.ahead(model.signature)
    expected, state = model.scan(x, mask, model.initial_state(len(x)), *ahead)
    for behind in (math.nan, math.inf, -math.inf, 1e30, -5.0, 7.0):
        for what, shown in (("behind the mask", mask), ("in front of it", torch.ones_like(mask))):
            if what == "in front of it" and math.isfinite(behind):
                continue
            hidden = torch.where(mask > 0, x, torch.full_like(x, behind))
            found, after = model.scan(hidden, shown, model.initial_state(len(x)), *ahead)
            assert torch.equal(found, expected), f"{behind} {what} changes the prediction"
            assert all(torch.equal(after[name], value) for name, value in state.items()), f"{behind} {what}: the state"


@torch.no_grad()
def check_rows(model: StepModel, example: Example, tolerance: float) -> None:
    """Series do not see each other: in another order, alone, and joined on the way they are the same."""
    x, mask = example.tensors(model.signature)
    ahead = example.ahead(model.signature)
    expected, after = model.scan(x, mask, model.initial_state(len(x)), *ahead)
    ended = {name: 0.9 * value.abs() for name, value in after.items()}  # 0.9: never more than what it has had

    def assert_same(state: State, which: Tensor, what: str) -> None:
        try:
            assert_states(state, take(after, which), take(ended, which), tolerance, what)
        except AssertionError:  # a state that was larger on the way has the rounding of that; to know it takes T steps
            usual = steps_of(model, x, mask, ahead)[2] if model.streams else {k: v.abs() for k, v in after.items()}
            assert_states(state, take(after, which), take(usual, which), tolerance, what)

    order = torch.from_numpy(np.random.default_rng(example.seed).permutation(len(x)))
    found, state = model.scan(x[order], mask[order], model.initial_state(len(x)), *(known[order] for known in ahead))
    assert_predictions(found, expected[order], model.signature, tolerance, "series in another order")
    assert_same(state, order, "series in another order")
    for row in range(len(x)):
        one = torch.tensor([row])
        found, state = model.scan(x[one], mask[one], model.initial_state(1), *(known[one] for known in ahead))
        assert_predictions(found, expected[one], model.signature, tolerance, f"series {row} alone")
        assert_same(state, one, f"series {row} alone")
    if not model.streams or x.shape[1] < 2:
        return
    cut = example.split
    halves = [order[: len(x) // 2], order[len(x) // 2 :]]
    heads = [
        model.scan(
            x[rows, :cut], mask[rows, :cut], model.initial_state(len(rows)), *(known[rows, :cut] for known in ahead)
        )[1]
        for rows in halves
        if len(rows)
    ]
    found, _ = model.scan(x[order, cut:], mask[order, cut:], concat(heads), *(known[order, cut:] for known in ahead))
    both = torch.cat([expected[order, :cut], found], 1)
    assert_predictions(both, expected[order], model.signature, tolerance, "series that were joined on the way")


def check_values(prediction: Tensor, state: State, signature: Signature, what: str) -> None:
    """Finite, quantiles in order, probabilities that sum to 1."""
    assert prediction.shape[2:] == signature.prediction_shape, f"{what}: {tuple(prediction.shape)}"
    bad = (~prediction.isfinite()).flatten(1).any(1).nonzero()[:, 0].tolist()
    assert not bad, f"{what}: predictions of the series {bad} are not finite"
    for name, value in state.items():
        bad = (~value.isfinite()).flatten(1).any(1).nonzero()[:, 0].tolist()
        assert not bad, f"{what}: the state {name} of the series {bad} is not finite"
        assert value.shape[0] == prediction.shape[0], f"{what}: the first dimension of {name} is not the series"
    if signature.task == "classify":
        assert bool((prediction >= 0).all()), f"{what}: a probability is negative"
        assert bool(((prediction.sum(-1) - 1).abs() < 1e-5).all()), f"{what}: probabilities do not sum to 1"
    else:
        assert bool((prediction.diff(dim=-1) >= 0).all()), f"{what}: quantiles cross"


@torch.no_grad()
def check_predictions(model: StepModel, x: Tensor, mask: Tensor, what: str = "") -> None:
    """Of a scan; those of the steps, which take far longer, are checked where there are steps anyway."""
    ahead = known_ahead(model.signature, *x.shape[:2])
    check_values(*model.scan(x, mask, model.initial_state(len(x)), *ahead), model.signature, f"scan {what}")


@torch.no_grad()
def check_step_predictions(model: StepModel, x: Tensor, mask: Tensor, what: str) -> None:
    predictions, state, _ = steps_of(model, x, mask, known_ahead(model.signature, *x.shape[:2]))
    check_values(predictions, state, model.signature, f"steps {what}")


def check_graph(model: StepModel, loaded: LoadedBundle, example: Example, tolerance: float) -> None:
    """The graphs compute what the model computes, whatever the number of series and steps."""
    x, mask = example.tensors(model.signature)
    ahead = example.ahead(model.signature)
    with torch.no_grad():
        expected, after = model.scan(x, mask, model.initial_state(len(x)), *ahead)
    initial = loaded.initial_state(len(x))
    found, end = loaded.run_scan(x, mask, initial, *ahead)
    assert_predictions(torch.from_numpy(found), expected, model.signature, tolerance, "scan.onnx against the model")
    if not model.streams:
        return
    with torch.no_grad():
        usual = steps_of(model, x, mask, ahead)[2]
    assert_states(_tensors(end), after, usual, tolerance, "the state of scan.onnx against the model's")
    cut, parts, state = example.split, [], initial
    for part in (slice(0, cut), slice(cut, None)) if cut < x.shape[1] else (slice(None),):
        found, state = loaded.run_scan(x[:, part], mask[:, part], state, *at(ahead, part))
        parts.append(torch.from_numpy(found))
    assert_predictions(torch.cat(parts, 1), expected, model.signature, tolerance, f"scan.onnx split at {cut}")
    assert_states(_tensors(state), after, usual, tolerance, f"the state of scan.onnx split at {cut}")
    parts, state = [], initial
    for t in range(x.shape[1]):
        found, state = loaded.run_step(x[:, t], mask[:, t], state, *at(ahead, t))
        parts.append(torch.from_numpy(found))
    assert_predictions(torch.stack(parts, 1), expected, model.signature, tolerance, "step.onnx against the model")
    assert_states(_tensors(state), after, usual, tolerance, "the state of step.onnx against the model's")


def _tensors(state: dict[str, Any]) -> State:
    return {name: torch.from_numpy(value) for name, value in state.items()}


# The whole catalog.


@over(STREAMING)
def test_a_scan_is_a_scan_in_two_parts_is_so_many_steps(case):
    case.check(lambda example: check_parity(case.instance(), example, case.tolerance))


@over(STREAMING)
def test_the_future_changes_no_prediction(case):
    case.check(lambda example: check_causality(case.instance(), example))


@over(CASES)
def test_what_is_missing_has_no_influence(case):
    case.check(lambda example: check_missing(case.instance(), example))


@over(CASES)
def test_series_do_not_see_each_other(case):
    case.check(lambda example: check_rows(case.instance(), example, case.tolerance))


@over(CASES)
@torch.no_grad()
def test_what_is_written_into_the_first_state_of_a_series_is_in_no_other(case):
    state, kept = case.instance().initial_state(3), case.instance().initial_state(3)
    for number, value in enumerate(state.values()):
        value[1] = number + 0.5
    for number, (name, value) in enumerate(state.items()):
        assert bool((value[1] == number + 0.5).all()), f"{name} shares its memory with another"
        assert torch.equal(value[[0, 2]], kept[name][[0, 2]]), f"the series share one {name}"


@pytest.mark.parametrize("name", [name for name, entry in MODELS.items() if entry.learns != "per series"])
def test_every_field_is_read_by_what_it_sets(name, monkeypatch):
    """By one of its tasks, while it is built, learns or predicts: what nobody reads can be set and does nothing."""
    read: set[str] = set()

    def noting(config: Any, field: str) -> Any:
        if sys._getframe(1).f_code.co_name != "__post_init__":  # which looks at the range alone
            read.add(field)
        return object.__getattribute__(config, field)

    for config in MODELS[name].configs:
        monkeypatch.setattr(config, "__getattribute__", noting)
    for task in MODELS[name].tasks:
        case = Case(name, task, 0)
        model, batches = build(name, case.signature, **case.settings), training_batches(case.signature, seed=7)
        if isinstance(model, Fitted):
            model.fit(batches)
        if isinstance(model, Trainable):
            model.prepare(batches)
            model.loss(batches[0])
        model.scan(batches[0].x, batches[0].mask, model.initial_state(8))
    unread = set(field_defaults(name)) - read - DEPENDENT
    assert {field for field in unread if not field.startswith("skip_")} == set()  # those are handed on all together


@over(STREAMING)
@torch.no_grad()
def test_a_state_is_read_by_its_names_and_not_by_their_order(case):
    model, (x, mask) = case.instance(), ORDINARY.tensors(case.signature)
    ahead = ORDINARY.ahead(case.signature)
    _, state = model.scan(x, mask, model.initial_state(len(x)), *ahead)
    turned = dict(reversed(state.items()))
    for form, of in ((model.scan, slice(None)), (model.step, 0)):
        expected, after = form(x[:, of], mask[:, of], state, *at(ahead, of))
        found, end = form(x[:, of], mask[:, of], turned, *at(ahead, of))
        assert torch.equal(found, expected)
        assert all(torch.equal(end[name], value) for name, value in after.items())


@over(CASES)
def test_predictions_are_finite_and_in_order(case):
    case.check(lambda example: check_predictions(case.instance(), *example.tensors(case.signature)))


HUGE = 1e30
EXTREMES: dict[str, Callable[[tuple[int, ...]], Tensor]] = {
    "always zero": lambda shape: torch.zeros(shape),
    "always the same": lambda shape: torch.full(shape, 12345.678),
    "huge": lambda shape: HUGE * (-1.0) ** torch.arange(shape[1])[:, None].expand(shape),
    "always huge": lambda shape: torch.full(shape, HUGE),
    "one huge value": lambda shape: torch.where(torch.arange(shape[1])[:, None] == 7, HUGE, torch.ones(shape)),
    "tiny": lambda shape: 1e-38 * (-1.0) ** torch.arange(shape[1])[:, None].expand(shape),
    "never observed": lambda shape: torch.full(shape, math.nan),
    "observed once": lambda shape: torch.where(torch.arange(shape[1])[:, None] == 7, 3.0, torch.full(shape, math.nan)),
    "always infinite": lambda shape: torch.full(shape, math.inf),
}


@over(CASES)
def test_extreme_input_gives_finite_predictions_and_states(case):
    """All of them at once, a series each: series do not see each other."""
    x = torch.cat([values((1, 30, case.signature.channels)) for values in EXTREMES.values()])
    kinds = f"series: {', '.join(EXTREMES)}"
    model = case.instance()
    for mask, what in ((torch.ones_like(x), kinds), (torch.zeros_like(x), f"masked {kinds}")):
        check_predictions(model, x, mask, what)
        if model.streams:
            check_step_predictions(model, x, mask, what)


@over(CASES)
def test_a_model_that_does_not_stream_says_so(case):
    model = case.instance()
    assert model.streams == MODELS[case.name].streams
    x, mask = ORDINARY.tensors(case.signature)
    if not model.streams:
        with pytest.raises(ModelError, match="does not stream"):
            model.step(x[:, 0], mask[:, 0], model.initial_state(len(x)))


# The graphs.


@pytest.fixture(scope="module", params=EXPORTED, ids=str)
def exported(request, tmp_path_factory) -> tuple[Case, LoadedBundle]:
    """A case and its bundle, written and read again."""
    case = request.param
    path = tmp_path_factory.mktemp("bundles") / str(case)
    export_bundle(case.instance(), task_of(case.signature), path, name=case.name, config={}, training={}, metrics=[])
    return case, load_bundle(path)


def task_of(signature: Signature) -> Task:
    channels = [f"channel {c}" for c in range(signature.channels)]
    return Task(
        kind=signature.task,
        target="y",
        channels=tuple(Channel(name, "") for name in channels),
        freq=1,
        horizon=signature.horizon,
        season=signature.season,
        quantiles=signature.quantiles,
        labels=tuple("abc"[: signature.classes]),
        future=tuple(channels[signature.channels - signature.future :]),
    )


def test_the_graphs_compute_what_the_model_computes(exported):
    case, loaded = exported
    case.check(lambda example: check_graph(case.instance(), loaded, example, case.tolerance))


def test_the_step_graph_is_the_model_over_a_thousand_steps(exported):
    case, loaded = exported
    if not loaded.streams:
        return
    example = replace(ORDINARY, batch=2, steps=1000, kind="season")
    x, mask = example.tensors(case.signature)
    ahead = example.ahead(case.signature)
    with torch.no_grad():
        expected, _ = case.instance().scan(x, mask, case.instance().initial_state(len(x)), *ahead)
    parts, state = [], loaded.initial_state(len(x))
    for t in range(x.shape[1]):
        found, state = loaded.run_step(x[:, t], mask[:, t], state, *at(ahead, t))
        parts.append(torch.from_numpy(found))
    assert_predictions(torch.stack(parts, 1), expected, case.signature, TOLERANCE, "a thousand steps")


def test_a_stream_that_was_saved_goes_on_as_if_it_had_not_been(exported, tmp_path_factory):
    case, loaded = exported
    if not loaded.streams:
        with pytest.raises(ValueError, match="does not stream"):
            loaded.stream(["a"])
        return
    case.check(lambda example: check_saved(case, loaded, example, tmp_path_factory.mktemp("states") / "state.npz"))


def check_saved(case: Case, loaded: LoadedBundle, example: Example, path: Path) -> None:
    x, mask = example.tensors(case.signature)
    values = torch.where(mask > 0, x, torch.full_like(x, math.nan)).numpy()
    ahead = example.ahead(case.signature)
    stream = loaded.stream([f"series {row}" for row in range(len(x))])

    def step(stream: Stream, t: int) -> np.ndarray:
        return stream.step(values[:, t], None, *(known.numpy() for known in at(ahead, t)))

    for t in range(example.split):
        step(stream, t)
    stream.save(path)
    resumed = loaded.stream(state=path)
    assert resumed.series == stream.series
    for name, value in stream.state.items():
        np.testing.assert_array_equal(resumed.state[name], value, strict=True)
    for t in range(example.split, x.shape[1]):
        np.testing.assert_array_equal(step(resumed, t), step(stream, t), strict=True)


# The checks can fail: each mutant breaks one promise of the contract, and the check of that promise must see it.


class Mutant(StepModel):
    """Any model, passed on unchanged; the subclasses change one thing."""

    def __init__(self, model: StepModel) -> None:
        super().__init__(model.signature)
        self.model = model

    def initial_state(self, batch: int) -> State:
        return self.model.initial_state(batch)

    def step(self, x: Tensor, mask: Tensor, state: State) -> tuple[Tensor, State]:
        return self.model.step(x, mask, state)

    def scan(self, x: Tensor, mask: Tensor, state: State) -> tuple[Tensor, State]:
        return self.model.scan(x, mask, state)


class DropsTheState(Mutant):
    def scan(self, x, mask, state):
        return self.model.scan(x, mask, self.initial_state(len(x)))


class ForgetsOneState(Mutant):
    """Right in its predictions until a scan is followed by another."""

    def scan(self, x, mask, state):
        prediction, after = self.model.scan(x, mask, state)
        last = list(after)[-1]
        return prediction, after | {last: state[last]}


class WritesIntoItsState(Mutant):
    def scan(self, x, mask, state):
        prediction, after = self.model.scan(x, mask, state)
        for name, value in after.items():
            state[name].copy_(value)
        return prediction, state


class LooksAhead(Mutant):
    def scan(self, x, mask, state):
        ahead, shown = torch.cat([x[:, 1:], x[:, -1:]], 1), torch.cat([mask[:, 1:], mask[:, -1:]], 1)
        return self.model.scan(ahead, shown, state)


class NormalisesByTheWhole(Mutant):
    """The leak that is easy to write: statistics of the whole window, small enough to be overlooked in a plot."""

    def scan(self, x, mask, state):
        prediction, after = self.model.scan(x, mask, state)
        total = torch.where(observed_mask(x, mask), x, torch.zeros_like(x)).sum((1, 2))
        return prediction + 1e-6 * total.view(-1, *[1] * (prediction.dim() - 1)), after


class IgnoresTheMask(Mutant):
    def scan(self, x, mask, state):
        return self.model.scan(x.nan_to_num(), torch.ones_like(mask), state)


class TakesInfinityForAValue(Mutant):
    def scan(self, x, mask, state):
        return self.model.scan(x.nan_to_num(posinf=1e6, neginf=-1e6), mask * ~x.isnan(), state)


class LeaksAcrossTheBatch(Mutant):
    def scan(self, x, mask, state):
        prediction, after = self.model.scan(x, mask, state)
        return prediction + 1e-3 * prediction.mean(0, keepdim=True), after


class PassesNanOn(Mutant):
    def scan(self, x, mask, state):
        prediction, after = self.model.scan(x, mask, state)
        return prediction, {name: torch.where(value == 0, math.nan, value) for name, value in after.items()}


class CrossesItsQuantiles(Mutant):
    def step(self, x, mask, state):
        prediction, after = self.model.step(x, mask, state)
        return prediction.flip(-1), after

    def scan(self, x, mask, state):
        prediction, after = self.model.scan(x, mask, state)
        return prediction.flip(-1), after


def parity(model: StepModel) -> None:
    check_parity(model, ORDINARY, TOLERANCE)


def causality(model: StepModel) -> None:
    check_causality(model, ORDINARY)


def missing(model: StepModel) -> None:
    check_missing(model, ORDINARY)


MUTANTS: list[tuple[type[Mutant], Callable[[StepModel], None]]] = [
    (DropsTheState, parity),
    (ForgetsOneState, parity),
    (WritesIntoItsState, parity),
    (LooksAhead, parity),
    (LooksAhead, causality),
    (NormalisesByTheWhole, causality),
    (IgnoresTheMask, missing),
    (TakesInfinityForAValue, missing),
    (LeaksAcrossTheBatch, lambda model: check_rows(model, ORDINARY, TOLERANCE)),
    (PassesNanOn, lambda model: check_predictions(model, *never(model))),
    (CrossesItsQuantiles, parity),
    (CrossesItsQuantiles, lambda model: check_predictions(model, *ORDINARY.tensors(model.signature))),
]


def observed_mask(x: Tensor, mask: Tensor) -> Tensor:
    return (mask > 0) & x.isfinite()


def never(model: StepModel) -> tuple[Tensor, Tensor]:
    x = torch.full((2, 5, model.signature.channels), math.nan)
    return x, torch.zeros_like(x)


# Models that learn in chunks differ in what the checks do not look at: the first of them stands for all.
CHUNKED = next(case.name for case in STREAMING if case.chunk)
MUTATED = [case for case in STREAMING if case.task == "forecast" and (not case.chunk or case.name == CHUNKED)]
MUTATED = [case for case in MUTATED if not case.ahead]  # nor does what is known ahead change what the checks look at


@cache  # several mutants meet the same check, and the model is the same to each of them
def passes(check: Callable[[StepModel], None], case: Case) -> None:
    check(case.instance())


@pytest.mark.parametrize("case", MUTATED, ids=str)
@pytest.mark.parametrize(("mutant", "check"), MUTANTS, ids=lambda value: getattr(value, "__name__", None))
def test_a_mutant_is_caught_where_the_model_passes(case, mutant, check):
    passes(check, case)
    with pytest.raises(AssertionError):
        check(mutant(case.instance()))


def test_other_weights_than_the_graphs_are_caught(exported):
    case, loaded = exported
    other = copy.deepcopy(case.instance())
    check_graph(other, loaded, ORDINARY, case.tolerance)
    buffers = [b for name, b in other.named_buffers() if b.is_floating_point() and b.any() and "floor" not in name]
    for tensor in (*other.parameters(), *buffers):
        tensor.data.mul_(1.01)
    with pytest.raises(AssertionError):
        check_graph(other, loaded, ORDINARY, case.tolerance)
