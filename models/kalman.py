"""The Kalman filter of local models: every series of a batch in one tensor step, its covariance in the state.

A family (`models.arima`, `models.components`) says what its matrices do to vectors, never what they are: a transition
that is a shift and some sums costs what its places cost, also with a long season.

    a = T a,  P = T P T' + Q;   F = Z P Z' + h,  K = P Z' / F;   a' = a + K (z - Z a),  P' = P - K Z P

P, Q and h are in units of sigma2. A missing value leaves out the second line.

Covariates known ahead act by one number each, the library's estimate: z = y - effects x is filtered, and effects times
what they will be is added to the forecast. Where one that has an effect is missing, so is y, for its part in y is
unknown.

Shapes: B series, C channels, H horizon, F covariates known ahead, n places of the mean.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from models.contract import State, observed
from models.linear_gaussian import Fit, LinearGaussian, Values

TINY = 1e-30  # what is divided by is at least this far from 0


class Kalman(LinearGaussian):
    """A family of models in state space form. Its state has these tensors among others, each after `family` and a dot:

    started: 1 once there is a mean; a series that nobody fitted begins with its first value, seen exactly.
    errors: how many errors sigma2 is the mean square of; below 0 where it was fitted and stays
    sigma2; covariance (n, n), mean (n,)
    effects (F,), of a model with covariates known ahead
    """

    family: ClassVar[str]

    @abstractmethod
    def forward(self, x: Tensor, state: State) -> Tensor:
        """T x for x (B, n, k)."""

    @abstractmethod
    def observe(self, x: Tensor, state: State) -> Tensor:
        """x Z', (B, k), for x (B, k, n)."""

    @abstractmethod
    def disturbed(self, spread: Tensor, state: State) -> Tensor:
        """P + Q for P (B, n, n)."""

    def measured(self, variance: Tensor, state: State) -> Tensor:
        """F + h for F (B, 1); h is 0 where an observation is exact."""
        return variance

    @abstractmethod
    def first(self, z: Tensor) -> Tensor:
        """The mean (B, n) of a series of which z (B, 1) alone was seen."""

    def target(self, x: Tensor, mask: Tensor, state: State) -> tuple[Tensor, Tensor]:
        y, seen = super().target(x, mask, state)
        covariates = self.signature.future
        if not covariates:
            return y, seen
        effects, values = state[f"{self.family}.effects"], x[:, -covariates:]
        there = observed(values, mask[:, -covariates:])
        lacking = ((effects != 0) & ~there).to(y.dtype).sum(-1, keepdim=True) > 0.5
        part = (effects * torch.where(there, values, torch.zeros_like(values))).sum(-1, keepdim=True)
        return y - part, seen & ~lacking

    def explained(self, future: Tensor, state: State) -> Tensor:
        return (future * state[f"{self.family}.effects"][:, None]).sum(-1)

    def advance(self, y: Tensor, seen: Tensor, state: State) -> State:
        family = self.family
        started, mean, covariance = (state[f"{family}.{name}"] for name in ("started", "mean", "covariance"))
        begun = started > 0.5
        usable, begins = seen & begun, seen & ~begun
        mean = self.forward(mean[..., None], state).squeeze(-1)
        gain, variance, corrected = self.corrected(usable, state)
        error = y - self.observe(mean[:, None], state)
        after = torch.where(begins, self.first(y), mean + gain * error)
        covariance = torch.where((begun | begins)[..., None], corrected, covariance)
        covariance = torch.where(begins[..., None], torch.zeros_like(covariance), covariance)
        count, sigma2 = state[f"{family}.errors"], state[f"{family}.sigma2"]
        learns = usable & (count >= 0)
        missed = torch.where(learns, error * error / variance - sigma2, torch.zeros_like(sigma2))
        return {
            f"{family}.mean": after,
            f"{family}.covariance": covariance,
            f"{family}.started": torch.maximum(started, seen.to(y.dtype)),
            f"{family}.errors": count + learns.to(y.dtype),
            f"{family}.sigma2": sigma2 + missed / (count + 1).clamp(min=1.0),
        }

    def corrected(self, usable: Tensor, state: State) -> tuple[Tensor, Tensor, Tensor]:
        """K (B, n), 0 where there is nothing usable (B, 1), F (B, 1) and the next P (B, n, n).

        In double precision: after a gap P is a difference of what is nearly alike, and a filter near the unit circle
        adds the roundings up.
        """
        given = state[f"{self.family}.covariance"].dtype
        state = {name: value.double() for name, value in state.items()}
        covariance = state[f"{self.family}.covariance"]
        spread = self.disturbed(self.forward(self.forward(covariance, state).mT, state), state)
        with_z = self.observe(spread, state)  # P Z'
        # Of a series that was fitted as a constant it is 0, and so is P Z'.
        variance = self.measured(self.observe(with_z[:, None], state), state).clamp(min=TINY)
        gain = torch.where(usable, with_z / variance, torch.zeros_like(with_z))
        after = spread - gain[:, :, None] * with_z[:, None, :]
        return gain.to(given), variance.to(given), after.to(given)


def effects_of(fits: Sequence[Fit]) -> dict[str, Values]:
    """The effects (B, F) as a part of the state; nothing where no covariate is known ahead."""
    effects = np.array([fit.get("effects", ()) for fit in fits], np.float64)
    return {"effects": effects} if effects.size else {}
