"""The one contract of the house: a model is a state and a step.

Every model, neural or classical, takes one observation and its state and gives a prediction and the next state;
`scan` is the same as T steps. Nothing here knows of files, data sets or training loops.

Shapes: B series, T time, C channels, H horizon, F covariates known ahead, Q quantiles, K classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

if TYPE_CHECKING:
    import onnx

TaskKind = Literal["forecast", "classify", "regress"]
Form = Literal["step", "scan"]
DECILES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)

State = dict[str, Tensor]
"""Flat and ordered; the first dimension of every tensor is the series."""

Inside = dict[str, Tensor]
"""What a model did beside predicting: flat and ordered as a state, (B, ...) of a step and (B, T, ...) of a scan."""


class ModelError(ValueError):
    """A model was asked for something it cannot do; the message says what it can."""


@dataclass(frozen=True)
class Signature:
    """What enters and what leaves a model."""

    task: TaskKind
    channels: int  # C; a forecast's target is channel 0
    horizon: int = 1  # H, in steps; forecasts only
    season: int = 1  # in steps; 1 means none
    quantiles: tuple[float, ...] = field(default=DECILES)
    classes: int = 0  # K; classification only
    future: int = 0  # F: the last so many channels are known H steps ahead; forecasts only

    def __post_init__(self) -> None:
        if self.channels < 1:
            raise ModelError(f"a model needs at least one channel, got {self.channels}.")
        if self.horizon < 1 or self.season < 1:
            raise ModelError(f"horizon and season are at least 1 step, got {self.horizon} and {self.season}.")
        if self.task == "classify" and self.classes < 2:
            raise ModelError(f"classification needs at least two classes, got {self.classes}.")
        if not 0 <= self.future < self.channels or (self.future and self.task != "forecast"):
            raise ModelError(
                f"of {self.channels} channels at most {self.channels - 1} are known ahead, and only to forecast; got "
                f"{self.future} to {self.task}."
            )
        levels = self.quantiles
        if not levels or not all(0 < q < 1 for q in levels) or any(a >= b for a, b in pairwise(levels)):
            raise ModelError(f"quantiles are rising numbers between 0 and 1, got {levels}.")

    @property
    def prediction_shape(self) -> tuple[int, ...]:
        """Of one series at one time: forecast (H, Q), classify (K,), regress (Q,)."""
        if self.task == "forecast":
            return (self.horizon, len(self.quantiles))
        if self.task == "classify":
            return (self.classes,)
        return (len(self.quantiles),)


class Batch(NamedTuple):
    """Windows to learn from; what `target` holds depends on the task.

    x, mask: (B, T, C); x may be NaN where mask is 0.
    target: forecast (B, T, H), the next H values of channel 0 at every position; regress (B, T); both float, NaN where
        unknown. classify (B, T), class index, -1 where unknown.
    scale: (B,) standard deviation of the target in the training part of the window's series; 1 for classes and numbers.
    before: (B, 3) how many values of channel 0 the series has before the window, their mean and their standard
        deviation: what a stream's running statistics would be there; None where nobody asks for it.
    position: (B,) how many steps, observed or not, the series has before the window; None where nobody asks for it.
    after: (B, H, F) the last F channels, which are known ahead, at the H steps after the window, NaN where they are
        not known; None where there are none.
    known: (B, 3, C) how many values of each channel whoever moves has shown before the series, their mean and their
        variance; None where each series is somebody's first.
    """

    x: Tensor
    mask: Tensor
    target: Tensor
    scale: Tensor
    before: Tensor | None = None
    position: Tensor | None = None
    after: Tensor | None = None
    known: Tensor | None = None

    @property
    def future(self) -> Tensor | None:
        """(B, T, H, F) what is known ahead of each position, as a scan takes it; a view of T + H steps."""
        if self.after is None:
            return None
        _, horizon, covariates = self.after.shape
        known = torch.cat([self.x[:, 1:, self.x.shape[2] - covariates :], self.after], 1)
        return known.unfold(1, horizon, 1).transpose(2, 3)


class StepModel(nn.Module, ABC):
    """A state and a step.

    The invariants, which `tests/models/test_contract.py` asks of every model in the catalog:
    parity: `scan(x)` = `scan(x[:, :k])` then `scan(x[:, k:])` = T calls of `step`;
    causality: a change of x after t changes no prediction at or before t;
    missing data: where mask is 0 (or x is no number up to LARGEST) x has no influence, and the state stays finite.

    A model whose signature has F > 0 covariates known ahead takes them as one more argument: what their channels will
    be at the H steps after each observation, `future` (B, H, F) of a step and of `last`, (B, T, H, F) of a scan. It is
    part of a prediction alone, never of the state. What they are now is in x, as of any channel.

    A model that needs the whole sequence at once sets `streams = False`: its `scan` labels complete sequences, and its
    `step` raises ModelError.
    """

    streams: ClassVar[bool] = True
    tasks: ClassVar[tuple[TaskKind, ...]] = ("forecast", "classify", "regress")
    library: str = ""  # what one imports to fit it, where that is not ours; the card names its version

    def __init__(self, signature: Signature) -> None:
        super().__init__()
        if signature.task not in self.tasks:
            raise ModelError(f"{type(self).__name__} does not {signature.task}; it can {' and '.join(self.tasks)}.")
        self.signature = signature
        self.register_buffer("_device", torch.zeros(()), persistent=False)

    @property
    def device(self) -> torch.device:
        return self.zeros().device

    def zeros(self, *shape: int) -> Tensor:
        """Zeros of the model's own device and floating-point type, for initial states."""
        reference = self._device
        assert isinstance(reference, Tensor)
        return reference.new_zeros(shape)

    @abstractmethod
    def initial_state(self, batch: int) -> State:
        """The state before the first observation, for `batch` series."""

    def state_of_known(self, known: Tensor) -> State:
        """The state before the first observation of series of whose owners something is known.

        A model without running statistics of its channels has no use for it and begins as ever.

        Args:
            known: (B, 3, C) how many values of each channel came in other series, their mean and their variance.
        """
        return self.initial_state(len(known))

    @abstractmethod
    def step(self, x: Tensor, mask: Tensor, state: State) -> tuple[Tensor, State]:
        """Take one observation.

        Args:
            x: (B, C) in the data's own units; anything, NaN too, where mask is 0.
            mask: (B, C), 1 where x was observed and 0 where it is missing.

        Returns:
            prediction: (B, *signature.prediction_shape); for a forecast of the H steps after this one.
            state: the next state, same names, shapes and order.
        """

    def scan(self, x: Tensor, mask: Tensor, state: State) -> tuple[Tensor, State]:
        """T steps at once: x, mask (B, T, C) give predictions (B, T, *signature.prediction_shape)."""
        predictions = []
        for t in range(x.shape[1]):
            prediction, state = self.step(x[:, t], mask[:, t], state)
            predictions.append(prediction)
        return torch.stack(predictions, 1), state

    def last(self, x: Tensor, mask: Tensor, state: State) -> tuple[Tensor, State]:
        """`scan` for those who want the prediction after the last observation alone: (B, *prediction_shape)."""
        predictions, after = self.scan(x, mask, state)
        return predictions[:, -1], after

    @property
    def has_look(self) -> bool:
        """Whether `look` returns anything: whether there is a memory to look into."""
        return False

    def look(self, form: Form, x: Tensor, mask: Tensor, state: State) -> tuple[Tensor, State, Inside]:
        """What the named form returns, and a look inside beside it.

        Raises:
            ModelError: there is nothing to look into; `has_look` says so before.
        """
        raise ModelError(
            f"this {type(self).__name__} has no memory to look into; the test-time memories have one, "
            "such as titans-lmm and yaad."
        )


def first_state(model: StepModel, batch: Batch) -> State:
    """The state before the windows, of which only their owners are known, where they are."""
    return model.initial_state(len(batch.x)) if batch.known is None else model.state_of_known(batch.known)


class Trainable(ABC):
    """A model whose parameters are learned by gradient descent."""

    @abstractmethod
    def prepare(self, batches: Iterable[Batch]) -> None:
        """See the training windows before training: constants such as typical scales are set here.

        batches: can be iterated several times.
        """

    @abstractmethod
    def loss(self, batch: Batch) -> Tensor:
        """Mean loss over every supervised position of the windows; a scalar."""


class Fitted(ABC):
    """A model whose parameters have a closed form or are fitted by a library, or that has none."""

    context: int = 1  # steps of a window's past without which its targets are of no use to `fit`
    remarks: tuple[str, ...] = ()  # what a user should know of the last fit, such as series that it left out
    substitute: ClassVar[str] = ""  # what it then is for a series of which nothing can be learned (`unfit`)

    def unfit(self, values: NDArray[np.float64]) -> str | None:
        """Why nothing can be learned of a series; None where it can.

        values: (T,) of channel 0, NaN where none was observed.
        """
        return None

    @abstractmethod
    def fit(self, batches: Iterable[Batch], validation: Iterable[Batch] = ()) -> None:
        """Fit to the training windows.

        Args:
            batches: can be iterated several times and gives the same windows each time.
            validation: the same of what comes after, for a model that must know when to stop or how wrong it is;
                nothing where all of the past is to be learned from.
        """


FLOAT = 1  # float32, as ONNX numbers the types


class GraphPart(nn.Module, ABC):
    """A part of a step that is not traced but exported as the graph that a library's converter would write.

    While it has a name its `forward` returns `placeholder`, in whose place the exporter composes the graph. (Inside a
    loop of the graph, torch itself does not know that this is an export.)
    """

    DOMAIN: ClassVar[str] = "mnemosyne.parts"
    part_name: str = ""  # given by the exporter for as long as it traces, unique in the model

    @abstractmethod
    def graph(self) -> onnx.ModelProto:
        """(n, F) float32 -> (n, O) float32, of one input and one output."""

    def placeholder(self, x: Tensor, outputs: int) -> Tensor:
        """x: (n, F) -> (n, outputs)."""
        # What torch.onnx.ops.symbolic calls, which within a loop of the graph must be called without it.
        return torch.ops.onnx_symbolic._symbolic(
            (x,), self.part_name, FLOAT, shape=(x.shape[0], outputs), attr_keys=(), attr_types=(), attr_pos=(),
            attr_ints=(), attr_floats=(), attr_strs=(), metadata_props_keys=(), metadata_props_values=(),
            domain=self.DOMAIN, version=1,
        )  # fmt: skip


@dataclass(frozen=True)
class Fits:
    """Series that were fitted one by one; none of them is lost to what went wrong with another."""

    series: tuple[str, ...]  # those that have a state, in its order
    state: State  # after the last value of each series, float64
    notes: dict[str, str] = field(default_factory=dict)  # series -> what was done otherwise than asked, by name
    failures: dict[str, str] = field(default_factory=dict)  # series -> why it has no state

    def state_of(self, series: Iterable[str]) -> State:
        """The states of the named series, in that order.

        Raises:
            ModelError: a series that was not fitted.
        """
        place = {name: index for index, name in enumerate(self.series)}
        wanted = list(series)
        for name in wanted:
            if name not in place:
                why = self.failures.get(name, f"it is none of the {len(place)} fitted series")
                raise ModelError(f"series {name} has no state: {why}.")
        return take(self.state, torch.tensor([place[name] for name in wanted], dtype=torch.long))


class Local(ABC):
    """A model with parameters of its own for every series, which are a part of its state.

    Its `initial_state` is that of a series nobody has fitted; `substitute` names what it then is.
    """

    substitute: ClassVar[str]

    @abstractmethod
    def fit_series(self, series: Mapping[str, NDArray[np.float64]], processes: int | None = None) -> Fits:
        """Fit each series and give the states after their last values.

        Args:
            series: unique_id -> (T,) values, NaN where none was observed; each of its own length. Where covariates are
                known ahead (T, 1 + F), with theirs beside.
            processes: at most so many; None takes every core.
        """

    @abstractmethod
    def predict(self, state: State, future: Tensor | None = None) -> Tensor:
        """(B, *prediction_shape) from the state as it is, before another observation; future as of a step."""

    @abstractmethod
    def passed(self, y: Tensor, state: State) -> State:
        """The state after the values y (B, T), or (B, T, 1 + F), NaN where missing; nothing is predicted on the way."""


LARGEST = 1e15  # of a value, in its own unit; running squares of more would overflow float32 and stay so


def known_to_the_end(target: Tensor, whole: bool) -> Tensor:
    """(B, T): where the targets (B, T, H) are known: all of them, or all but gaps and none behind the last known."""
    known = target.isfinite()
    if whole:
        return known.all(-1)
    steps, horizon = (torch.arange(size, device=known.device) for size in known.shape[1:])
    at = steps[:, None] + horizon  # (T, H)
    last = torch.where(known, at, -1).amax((1, 2))
    return known.any(-1) & (at[:, -1] <= last[:, None])


def observed(x: Tensor, mask: Tensor) -> Tensor:
    """Boolean, shape of x: where there is a value to learn from; NaN, infinities and |x| > LARGEST are missing."""
    return (mask > 0.5) & (x.abs() <= LARGEST)


def take(state: State, rows: Tensor) -> State:
    """The states of the chosen series, in that order; rows: (n,) long."""
    return {name: value[rows] for name, value in state.items()}


def concat(states: Iterable[State]) -> State:
    """One state of all the series of `states`, in order."""
    collected = list(states)
    return {name: torch.cat([state[name] for state in collected]) for name in collected[0]}
