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
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, softplus

from models.contract import Batch, Form, Inside, ModelError, Signature, State, StepModel, Trainable, observed
from models.lagged import RidgeConfig, RidgeForecaster
from models.observation import RunningNormaliser, Seen


@dataclass(frozen=True)
class NetworkConfig:
    embed: int = 32  # E
    norm_window: int = 96  # observations over which the running statistics of a forecast reach
    prior: int = 100_000  # observations that the training statistics weigh against a classified or regressed stream's
    skip_lags: int = 0  # L of the ridge that stands beside the backbone; 0 leaves it out; forecasts only
    median_weight: float = 0.0  # weight of the squared error of the middle quantile, beside the pinball loss

    def __post_init__(self) -> None:
        if (
            self.embed < 1
            or self.norm_window < 2
            or self.prior < 1
            or self.skip_lags < 0
            or not self.median_weight >= 0
        ):
            raise ModelError(
                "embed and prior are at least 1, norm_window at least 2, skip_lags and median_weight 0 or more; got "
                + ", ".join(f"{name}={value}" for name, value in vars(self).items())
            )


class Backbone(Protocol):
    """A sequence mixer; a `StepModel` without input and output of its own.

    One with a memory to look into has `look(form, e, state, present) -> out, state, inside` too.

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

    is_middle: Tensor
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
        self.register_buffer("is_middle", torch.arange(len(levels)) == middle, persistent=False)
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
        return torch.where(self.is_middle, raw, softplus(raw)) @ self.sums


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
        window = config.norm_window if forecasts else max(config.prior, 1)
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
        ridge = RidgeConfig(lags=config.skip_lags) if forecasts and config.skip_lags else None
        self.skip = RidgeForecaster(signature, ridge) if ridge else None
        self.register_buffer("target_mean", torch.zeros(()))
        self.register_buffer("target_std", torch.ones(()))

    def initial_state(self, batch: int) -> State:
        state = self.normaliser.initial_state(batch)
        if self.skip is not None:
            state |= self.skip.buffer.initial_state(batch)
        return state | self.backbone.initial_state(batch)  # type: ignore[operator]

    def step(self, x: Tensor, mask: Tensor, state: State) -> tuple[Tensor, State]:
        if not self.streams:
            return self.backbone.step(x, state)  # type: ignore[operator]
        return self._run("step", x, mask, state)[:2]

    def scan(self, x: Tensor, mask: Tensor, state: State) -> tuple[Tensor, State]:
        return self._run("scan", x, mask, state)[:2]

    @property
    def has_look(self) -> bool:
        return callable(getattr(self.backbone, "look", None))

    def look(self, form: Form, x: Tensor, mask: Tensor, state: State) -> tuple[Tensor, State, Inside]:
        """What the named form returns, and what the backbone's memory did; see `MemoryBackbone.look` for the names."""
        if not self.has_look:
            return super().look(form, x, mask, state)
        return self._run(form, x, mask, state, look=True)

    def _run(
        self, form: Form, x: Tensor, mask: Tensor, state: State, look: bool = False
    ) -> tuple[Tensor, State, Inside]:
        raw, seen, after, inside = self._raw(form, x, mask, state, look)
        if self.signature.task == "classify":
            return raw.softmax(-1), after, inside
        if self.signature.task == "regress":
            return self.target_mean + self.target_std * raw.squeeze(-2), after, inside
        anchor, scale = seen.value[..., :1, None], seen.scale[..., :1, None]
        return anchor + scale * raw, after, inside

    def _raw(
        self, form: Form, x: Tensor, mask: Tensor, state: State, look: bool = False
    ) -> tuple[Tensor, Seen, State, Inside]:
        """The head's output in normalised units, by the named form of every part; the look inside if asked for."""
        seen, after = getattr(self.normaliser, form)(x, mask, state)
        e = self.embed(torch.cat([seen.level, seen.change, seen.present], -1))
        if self.skip is not None:
            window, lags = getattr(self.skip.buffer, form)(x[..., :1], mask[..., :1], state)
            after = after | lags
        present = seen.present.amax(-1)
        inside: Inside = {}
        if look:
            out, hidden, inside = self.backbone.look(form, e, state, present)  # type: ignore[operator]
        else:
            out, hidden = getattr(self.backbone, form)(e, state, present)
        raw = self.head(out)
        if self.skip is not None:
            ridge = self.skip.deviation(window.squeeze(-1)) / seen.scale[..., :1]  # (..., H)
            raw = raw + ridge[..., None]
        return raw, seen, after | hidden, inside

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Set the constants of the graph: each channel's statistics, its smallest scale, the target's units."""
        count = total = squares = None
        target_count = target_total = target_squares = 0.0
        for batch in batches:
            seen = observed(batch.x, batch.mask)
            x = torch.where(seen, batch.x, torch.zeros_like(batch.x)).double()
            parts = (seen.sum((0, 1)).double(), x.sum((0, 1)), (x * x).sum((0, 1)))
            if count is None or total is None or squares is None:
                count, total, squares = parts
            else:
                count, total, squares = count + parts[0], total + parts[1], squares + parts[2]
            if self.signature.task == "regress":
                known = batch.target[batch.target.isfinite()].double()
                target_count += known.numel()
                target_total += float(known.sum())
                target_squares += float((known * known).sum())
        if count is None or total is None or squares is None:
            raise ModelError("there are no training windows to prepare from.")
        count = count.clamp(min=1.0)
        mean = total / count
        var = (squares / count - mean * mean).clamp(min=0.0)
        spread = var.sqrt()
        usual = torch.where(spread > 0, spread, torch.ones_like(spread))
        share = 1e-4 if self.signature.task == "forecast" else 1e-2
        self.normaliser.calibrate(mean.float(), var.float(), (share * usual).float())
        if self.skip is not None:
            self.skip.fit(batches)
        if target_count:
            target_mean = target_total / target_count
            self.target_mean.fill_(target_mean)
            self.target_std.fill_(max(target_squares / target_count - target_mean**2, 0.0) ** 0.5 or 1.0)

    def loss(self, batch: Batch) -> Tensor:
        """Dense supervision: every position with a known target counts.

        Cross-entropy for classes; pinball at the signature's levels for the rest, divided by the series' scale.
        """
        raw, seen, _, _ = self._raw("scan", batch.x, batch.mask, self.initial_state(batch.x.shape[0]))
        if self.signature.task == "classify":
            if not bool((batch.target >= 0).any()):
                return 0.0 * raw.sum()
            return cross_entropy(raw.flatten(0, 1), batch.target.flatten(), ignore_index=-1)
        if self.signature.task == "regress":
            target = (batch.target - self.target_mean) / self.target_std
            known = target.isfinite()
            error = (torch.where(known, target, torch.zeros_like(target))[..., None] - raw.squeeze(-2))[known]
        else:
            # In the last value's frame, so that a large level does not cost the small differences their digits.
            target = batch.target - seen.value[..., :1]
            # Before a series' first value there is nothing to forecast from.
            known = target.isfinite() & (seen.observations[..., :1] > 0)
            shown = torch.where(known, target, torch.zeros_like(target))[..., None]
            error = ((shown - seen.scale[..., :1, None] * raw) / batch.scale[:, None, None, None])[known]
        if error.numel() == 0:
            return 0.0 * raw.sum()
        levels = raw.new_tensor(self.signature.quantiles)
        loss = torch.maximum(levels * error, (levels - 1) * error).mean()
        if self.config.median_weight:
            loss = loss + self.config.median_weight * error[:, len(levels) // 2].square().mean()
        return loss
