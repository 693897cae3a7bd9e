"""Any backbone with any head: normalise -> embed -> backbone -> quantiles, class probabilities or a scalar.

The statistics that normalise the input and put the forecast back into the data's units are part of the state, so one
graph serves series of any level and scale and goes on adapting where it runs. A forecast is an anchor (the last value)
plus the running scale times what the head says, so a network that says nothing repeats the naive forecast. With
`skip_lags` the closed-form ridge from the last lags to the horizon takes the naive forecast's place, and the backbone
learns the residual: a network that starts from the ridge cannot quietly be worse.

Shapes: B series, T time, C channels, E width of the embedding, H horizon, Q quantiles, K classes, L lags.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, softplus

from models.blocks import Blocks, check_state, shapes_of
from models.contract import (
    Batch,
    Form,
    Inside,
    ModelError,
    Signature,
    State,
    StepModel,
    Trainable,
    first_state,
)
from models.lagged import Lags, RidgeConfig, RidgeForecaster
from models.observation import REACH, RunningNormaliser, channel_statistics


@dataclass(frozen=True)
class NetworkConfig:
    embed: int = 32  # E
    norm_window: int = 96  # observations over which the running statistics of a forecast reach
    prior: int = 100_000  # observations that the training statistics weigh against a classified or regressed stream's
    skip_lags: int = 0  # L of the ridge that stands beside the backbone; 0 leaves it out; forecasts only
    skip_level_window: int = 1  # of that ridge: observations of the running mean that it is relative to
    skip_penalty: float = 1e-5  # of that ridge, as the five that follow; see `RidgeConfig`
    skip_period: int = 0
    skip_recent: int = 0
    skip_error_rate: float = 0.0
    skip_error_span: float = 4000.0
    skip_error_keys: int = 64
    quantile_weight: float = 1.0  # weight of the pinball loss of all quantiles
    median_weight: float = 0.0  # weight of the squared error of the middle quantile, beside the pinball loss

    def __post_init__(self) -> None:
        if (
            self.embed < 1
            or self.norm_window < 2
            or self.prior < 1
            or self.skip_lags < 0
            or not (self.median_weight >= 0 and self.quantile_weight >= 0)
            or self.median_weight + self.quantile_weight == 0
        ):
            raise ModelError(
                "embed and prior are at least 1, norm_window at least 2, skip_lags, quantile_weight and median_weight "
                "0 or more and not both weights 0; got "
                + ", ".join(f"{name}={value}" for name, value in vars(self).items())
            )


class Backbone(Protocol):
    """A sequence mixer; a `StepModel` without input and output of its own.

    e: (B, E) or (B, T, E); present: (B,) or (B, T), 0 where nothing was observed, for those that shall not learn then.
    """

    features: int
    streams: bool

    def initial_state(self, batch: int) -> State: ...
    def step(self, e: Tensor, state: State, present: Tensor | None = None) -> tuple[Tensor, State]: ...
    def scan(self, e: Tensor, state: State, present: Tensor | None = None) -> tuple[Tensor, State]: ...


class Quantiles(nn.Module):
    """D features -> (..., H, Q) quantiles that never cross.

    The middle level is free; each other level lies a softplus away from its neighbour. At the start the levels lie as a
    standard normal's.
    """

    of_middle: Tensor
    sums: Tensor

    def __init__(self, features: int, horizon: int, levels: tuple[float, ...]) -> None:
        super().__init__()
        self.shape = (horizon, len(levels))
        middle = len(levels) // 2
        sums = torch.zeros(len(levels), len(levels))  # row: increment, column: level that it moves
        sums[middle] = 1.0
        for level in range(len(levels)):
            if level < middle:
                sums[level, : level + 1] = -1.0
            elif level > middle:
                sums[level, level:] = 1.0
        self.register_buffer("sums", sums, persistent=False)
        is_middle = torch.arange(len(levels))[:, None] == middle
        self.register_buffer("of_middle", is_middle * sums, persistent=False)
        self.linear = nn.Linear(features, horizon * len(levels))
        normal = [NormalDist().inv_cdf(q) for q in levels]
        bias = torch.full((len(levels),), normal[middle])
        for level in range(len(levels)):
            if level != middle:
                neighbour = level + 1 if level < middle else level - 1
                bias[level] = math.log(math.expm1(abs(normal[level] - normal[neighbour])))
        with torch.no_grad():
            # Nothing to say yet: the middle is the anchor, the spread a normal's.
            self.linear.weight.zero_()
            self.linear.bias.copy_(bias.repeat(horizon))

    def forward(self, features: Tensor) -> Tensor:
        raw = self.linear(features).unflatten(-1, self.shape)
        # Two products take less time in a graph than to choose.
        return raw @ self.of_middle + softplus(raw) @ (self.sums - self.of_middle)


class Views(NamedTuple):
    """What the head and the skip say something from, each (..., its width); the numbers are channel 0's."""

    features: Tensor  # of the backbone
    value: Tensor
    scale: Tensor
    observations: Tensor
    lags: Lags | None  # of the skip

    def at(self, index: Any) -> Views:
        features, value, scale, observations = (part[index] for part in self[:4])
        return Views(features, value, scale, observations, None if self.lags is None else self.lags.at(index))


class Network(StepModel, Trainable):
    """One backbone between a streaming normaliser and the head that the task asks for."""

    target_mean: Tensor
    target_std: Tensor

    def __init__(
        self,
        signature: Signature,
        config: NetworkConfig,
        make_backbone: Callable[[int], nn.Module],
    ) -> None:
        super().__init__(signature)
        self.config = config
        forecasts = signature.task == "forecast"
        prior = 0 if forecasts else config.prior
        window = config.norm_window if forecasts else max(config.prior, REACH)
        self.normaliser = RunningNormaliser(signature.channels, window, prior)
        self.embed = nn.Linear(3 * signature.channels, config.embed)
        self.backbone = make_backbone(config.embed)
        if forecasts and not self.backbone.streams:
            raise ModelError(
                f"{type(self.backbone).__name__} sees the end of its sequence and cannot forecast; "
                "use it to classify or regress complete sequences."
            )
        self.streams = bool(self.backbone.streams)  # type: ignore[misc]
        features = int(self.backbone.features)  # type: ignore[arg-type]
        self.head: nn.Module
        if signature.task == "classify":
            self.head = nn.Linear(features, signature.classes)
        else:
            self.head = Quantiles(features, signature.horizon if forecasts else 1, signature.quantiles)
        self.skip: RidgeForecaster | None = None
        if forecasts and config.skip_lags:
            own = {
                name.removeprefix("skip_"): value for name, value in vars(config).items() if name.startswith("skip_")
            }
            self.skip = RidgeForecaster(signature, RidgeConfig(**own))
        self.register_buffer("target_mean", torch.zeros(()))
        self.register_buffer("target_std", torch.ones(()))
        self._shapes = shapes_of(self.initial_state(1))

    def initial_state(self, batch: int) -> State:
        state = self.normaliser.initial_state(batch)
        if self.skip is not None:
            state |= self.skip.initial_lags(batch)
        return state | self.backbone.initial_state(batch)  # type: ignore[operator]

    def state_of_known(self, known: Tensor) -> State:
        return self.initial_state(len(known)) | self.normaliser.after(known)

    def step(self, x: Tensor, mask: Tensor, state: State) -> tuple[Tensor, State]:
        if not self.streams:
            return self.backbone.step(x, state)  # type: ignore[operator]
        return self._run("step", x, mask, state)

    def scan(self, x: Tensor, mask: Tensor, state: State) -> tuple[Tensor, State]:
        if x.shape[1] == 0:
            return x.new_zeros(len(x), 0, *self.signature.prediction_shape), state
        return self._run("scan", x, mask, state)

    def last(self, x: Tensor, mask: Tensor, state: State) -> tuple[Tensor, State]:
        views, after, _ = self._views("scan", x, mask, state)
        return self._predict(views.at((slice(None), -1))), after

    @property
    def has_look(self) -> bool:
        return callable(getattr(self.backbone, "look", None))

    def look(self, form: Form, x: Tensor, mask: Tensor, state: State) -> tuple[Tensor, State, Inside]:
        """What the named form returns, and what the backbone's memory did; see `MemoryBackbone.look` for the names."""
        if not self.has_look:
            return super().look(form, x, mask, state)
        views, after, inside = self._views(form, x, mask, state, look=True)
        return self._predict(views), after, inside

    def _run(self, form: Form, x: Tensor, mask: Tensor, state: State) -> tuple[Tensor, State]:
        views, after, _ = self._views(form, x, mask, state)
        return self._predict(views), after

    def _predict(self, views: Views) -> Tensor:
        raw = self._raw(views)
        if self.signature.task == "classify":
            return raw.softmax(-1)
        if self.signature.task == "regress":
            return self.target_mean + self.target_std * raw.squeeze(-2)
        return views.value[..., None] + views.scale[..., None] * raw

    def _views(
        self, form: Form, x: Tensor, mask: Tensor, state: State, *, look: bool = False, learn: bool = True
    ) -> tuple[Views, State, Inside]:
        """What the head says something from, by the named form of every part; the next state; the look if asked for.

        `learn`: see `RidgeForecaster.read_lags`.
        """
        check_state(self._shapes, state, x.shape[0])
        seen, after = getattr(self.normaliser, form)(x, mask, state)
        e = self.embed(torch.cat([seen.level, seen.change, seen.present], -1))
        lags = None
        if self.skip is not None:
            lags, skipped = self.skip.read_lags(form, x, mask, state, learn)
            after = after | skipped
        # The largest of one is itself: an operation less in a graph.
        present = seen.present.amax(-1) if self.signature.channels > 1 else seen.present.squeeze(seen.present.dim() - 1)
        inside = Inside()
        if isinstance(self.backbone, Blocks):  # which need not look for what is no number: the normaliser gives none
            out, hidden, inside = self.backbone.run(form, e, state, present, look)
        else:
            out, hidden = getattr(self.backbone, form)(e, state, present)
        target = (seen.value[..., :1], seen.scale[..., :1], seen.observations[..., :1])
        return Views(out, *target, lags), after | hidden, inside

    def _raw(self, views: Views) -> Tensor:
        """The head's output in normalised units."""
        raw = self.head(views.features)
        if self.skip is not None and views.lags is not None:
            ridge = self.skip.deviation(views.lags) / views.scale  # (..., H)
            raw = raw + ridge[..., None]
        return raw

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Set the constants of the graph: each channel's statistics, its smallest scale, the target's units."""
        forecasts = self.signature.task == "forecast"
        mean, var, floor = channel_statistics(batches, 1e-4 if forecasts else 1e-2)
        if forecasts:  # the spread of all series together is no measure of one that is far smaller than the others
            floor[0] = torch.stack([floor[0], *(1e-4 * batch.scale.min() for batch in batches)]).min()
        self.normaliser.calibrate(mean, var, floor)
        if self.skip is not None:
            self.skip.fit(batches)
        if self.signature.task == "regress":
            known = torch.cat([batch.target[batch.target.isfinite()] for batch in batches]).double()
            if known.numel():
                self.target_mean.fill_(float(known.mean()))
                self.target_std.fill_(float(known.std(correction=0)) or 1.0)

    def loss(self, batch: Batch) -> Tensor:
        """Dense supervision: every position with a known target counts.

        Cross-entropy for classes; pinball at the signature's levels for the rest, divided by the series' scale.
        """
        state = first_state(self, batch)
        if self.skip is not None:
            state = state | self.skip.known_level(batch)
        # The network learns what the fitted map leaves over; a window holds too little for a memory of errors.
        views, _, _ = self._views("scan", batch.x, batch.mask, state, learn=False)
        known = batch.target >= 0 if self.signature.task == "classify" else batch.target.isfinite()
        if self.signature.task == "forecast":
            # Before a series' first value there is nothing to forecast from.
            known = known & (views.observations > 0)
        # The head speaks where somebody listens: of a long horizon at every position it would be the dearest part.
        supervised = known.flatten(2).any(-1) if known.dim() > 2 else known
        if not bool(supervised.any()):
            return 0.0 * views.features.sum()
        scale = batch.scale[:, None].expand_as(supervised)[supervised]
        views, known, target = views.at(supervised), known[supervised], batch.target[supervised]
        raw = self._raw(views)
        if self.signature.task == "classify":
            return cross_entropy(raw, target)
        if self.signature.task == "regress":
            error = ((target - self.target_mean) / self.target_std)[:, None] - raw.squeeze(-2)
        else:
            # In the last value's frame, so that a large level does not cost the small differences their digits.
            ahead = torch.where(known, target - views.value, 0.0)
            error = ((ahead[..., None] - views.scale[..., None] * raw) / scale[:, None, None])[known]
        levels = raw.new_tensor(self.signature.quantiles)
        loss = self.config.quantile_weight * torch.maximum(levels * error, (levels - 1) * error).mean()
        if self.config.median_weight:
            loss = loss + self.config.median_weight * error[:, len(levels) // 2].square().mean()
        return loss
