"""Volatility: a random walk whose variance has a memory; GARCH and EGARCH for the intervals of stock prices.

The values of channel 0 are prices, and what has a variance is the return from one observed price to the next:
log(y_t / y_t-1) or y_t - y_t-1, as the configuration says. One set of parameters, fitted by `arch`, is shared by all
series; it holds for returns in units of each series' own size, so that calm and wild series share it. The conditional
variance and the size are the state. A missing price is a day on which the market was closed: nothing happens, and the
next return leads from the last price that was observed.

With u^2 the mean square of a series' returns, a the return's surprise r_t - mu u, and shared omega, alpha, beta, gamma:
    GARCH(1,1)   s^2_{t+1} = omega u^2 + alpha a_t^2 + beta s^2_t                          (Bollerslev 1986)
    EGARCH(1,1)  log s^2_{t+1} / u^2 = omega + alpha (|e_t| - sqrt(2/pi)) + gamma e_t + beta log s^2_t / u^2,
                 e_t = a_t / s_t                                                            (Nelson 1991)

Shapes: B series, T time, H horizon, Q quantiles, P paths.
"""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.contract import LARGEST, Batch, Fitted, ModelError, Signature, State, StepModel, observed
from models.observation import fill_forward, linear_recurrence

Floats = NDArray[np.float64]

FEWEST = 100  # returns to fit four to six parameters to
SIMULATED_AT_ONCE = 8_000_000  # returns of simulated paths in memory
LOG_RANGE = 30.0  # of a variance relative to the series' own, either way: keeps squares inside float32
MEAN_ABSOLUTE = math.sqrt(2 / math.pi)  # of a standard normal number, which arch subtracts for every distribution


@dataclass(frozen=True)
class GarchConfig:
    returns: str = "log"  # log: of positive prices; difference: of values of any sign
    innovations: str = "t"  # normal, or t: Student's, of fitted degrees of freedom
    size: str = "own"  # own: a series' returns are measured by their own mean square; shared: by the training data's
    prior: int = 250  # returns of the training data's size that every series' own mean square starts from

    def __post_init__(self) -> None:
        for name, known in (
            ("returns", ("log", "difference")),
            ("innovations", ("normal", "t")),
            ("size", ("own", "shared")),
        ):
            if getattr(self, name) not in known:
                raise ModelError(f"{name} is one of {', '.join(known)}, not '{getattr(self, name)}'.")
        if self.prior < 1:
            raise ModelError(f"a series' size needs a prior of at least 1 return, got {self.prior}.")


@dataclass(frozen=True)
class EgarchConfig(GarchConfig):
    paths: int = 1024  # P, of the simulation that the quantiles are read from; a power of 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.paths < 64 or self.paths & (self.paths - 1):
            raise ModelError(f"paths is a power of 2 and at least 64, got {self.paths}.")


class Volatility(StepModel, Fitted):
    """What GARCH and EGARCH share: prices to returns, their size, the fit, and returns to prices.

    Raises (fit):
        ModelError: prices that have no logarithm, series that do not move, too few returns, or no convergence.
    """

    tasks = ("forecast",)
    mean: Tensor
    typical: Tensor
    omega: Tensor
    alpha: Tensor
    beta: Tensor
    ahead: Tensor
    name = ""

    def __init__(self, signature: Signature, config: GarchConfig) -> None:
        super().__init__(signature)
        self.config = config
        self.learns_size = float(config.size == "own")
        self.register_buffer("typical", torch.ones(()))  # mean square of the training returns
        self.register_buffer("mean", torch.zeros(()))  # mu, in units of the size like all the rest
        self.register_buffer("omega", torch.zeros(()))
        self.register_buffer("alpha", torch.zeros(()))
        self.register_buffer("beta", torch.zeros(()))
        self.register_buffer("ahead", torch.arange(1.0, signature.horizon + 1), persistent=False)

    @abstractmethod
    def _process(self) -> Any:
        """arch's volatility process."""

    @abstractmethod
    def set_parameters(self, parameters: dict[str, float]) -> None:
        """Take arch's parameters of returns of mean square 1: mu, omega, alpha[1], beta[1], gamma[1], nu."""

    @abstractmethod
    def _variances(self, surprise: Tensor, present: Tensor, size: Tensor, variance: Tensor) -> Tensor:
        """s^2_{t+1} after every return; all (B, T) but the variance before them, (B, 1)."""

    @abstractmethod
    def _fan(self, variance: Tensor, size: Tensor) -> Tensor:
        """Quantiles (..., H, Q) of the sum of the next h surprises; variance, size: (..., 1)."""

    def initial_state(self, batch: int) -> State:
        nothing = self.zeros(batch, 1)
        return {
            "volatility.last": nothing,
            "volatility.started": nothing.clone(),
            "volatility.count": nothing + self.config.prior,
            "volatility.size": nothing + self.typical,  # u^2
            "volatility.variance": nothing + self.typical,  # s^2 of the next return
        }

    def _returns(self, price: Tensor, before: Tensor) -> Tensor:
        if self.config.returns == "difference":
            return price - before
        change = (price - before) / before
        # The logarithm of a ratio near 1 loses the digits that log1p keeps.
        return torch.where(change.abs() < 0.5, torch.log1p(change), torch.log(price / before))

    def _seen(self, y: Tensor, mask: Tensor) -> Tensor:
        seen = observed(y, mask)
        return seen & (y >= 1 / LARGEST) if self.config.returns == "log" else seen

    def step(self, x: Tensor, mask: Tensor, state: State) -> tuple[Tensor, State]:
        last, started, count, size, variance = state.values()
        seen = self._seen(x[:, :1], mask[:, :1])
        price = torch.where(seen, x[:, :1], last)
        pair = seen & (started > 0.5)  # the first price has no return
        present = pair.to(x.dtype)
        change = torch.where(pair, self._returns(price, last), torch.zeros_like(price))
        surprise = torch.where(pair, change - self.mean * size.sqrt(), torch.zeros_like(price))
        count = count + self.learns_size * present
        size = size + self.learns_size * present * (change * change - size) / count
        variance = self._variances(surprise, present, size, variance)
        after = [price, torch.maximum(started, seen.to(x.dtype)), count, size, variance]
        return self._predict(after[0], after[1], size, variance), dict(zip(state, after, strict=True))

    def scan(self, x: Tensor, mask: Tensor, state: State) -> tuple[Tensor, State]:
        last, started, count, size, variance = state.values()
        y = x[..., 0]
        seen = self._seen(y, mask[..., 0])
        prices = torch.cat([last, fill_forward(y, seen, last[:, 0])], 1)  # (B, 1 + T)
        begun = torch.cat([started, seen.to(y.dtype)], 1).cummax(1).values
        pair = seen & (begun[:, :-1] > 0.5)
        present = pair.to(y.dtype)
        zero = torch.zeros_like(y)
        change = torch.where(pair, self._returns(prices[:, 1:], prices[:, :-1]), zero)
        counts = count + self.learns_size * present.cumsum(1)
        sizes = (size * count + self.learns_size * (change * change).cumsum(1)) / counts
        known = torch.cat([size, sizes[:, :-1]], 1)
        surprise = torch.where(pair, change - self.mean * known.sqrt(), zero)
        variances = self._variances(surprise, present, sizes, variance)
        running = [part[..., None] for part in (prices[:, 1:], begun[:, 1:], sizes, variances)]
        piece = max(1, self._at_once() // len(x))
        parts = zip(*(part.split(piece, 1) for part in running), strict=True)
        prediction = torch.cat([self._predict(*part) for part in parts], 1)
        after = [prices[:, -1:], begun[:, -1:], counts[:, -1:], sizes[:, -1:], variances[:, -1:]]
        return prediction, dict(zip(state, after, strict=True))

    def _at_once(self) -> int:
        """How many forecasts fit into memory at a time."""
        return SIMULATED_AT_ONCE

    def _predict(self, price: Tensor, started: Tensor, size: Tensor, variance: Tensor) -> Tensor:
        """All (..., 1). A quantile of a price is the price after that quantile of the return, which rises with it."""
        drift = self.mean * size.sqrt() * self.ahead  # (..., H)
        moved = drift[..., None] + self._fan(variance, size)
        if self.config.returns == "log":
            # No price leaves what counts as a value by more than the range of values.
            moved = price[..., None] * torch.expm1(moved.clamp(-math.log(LARGEST), math.log(LARGEST)))
        return price[..., None] + started[..., None] * moved

    def fit(self, batches: Iterable[Batch]) -> None:
        """One set of parameters for all: arch's maximum of the likelihood of every series' returns in their own size.

        The returns of one series after another are one long record to `arch`; what a series' variance starts from is
        then the end of the one before, which a few dozen returns forget.
        """
        from arch.univariate import ConstantMean, Normal, StudentsT

        series = list(self._training_returns(batches))
        sizes = np.array([np.sqrt(np.mean(returns**2)) for returns in series])
        moving = [returns / size for returns, size in zip(series, sizes, strict=True) if size > 0]
        known = sum(map(len, series))
        if known < FEWEST:
            raise ModelError(
                f"{self.name} needs at least {FEWEST} returns in training, from one observed value to the next; "
                f"found {known} in {len(series)} series. Train on a longer history or on more series."
            )
        fewest = sum(map(len, moving))
        if fewest < FEWEST:
            raise ModelError(
                f"{self.name}: the values are constant in {len(series) - len(moving)} of {len(series)} training "
                f"series, and the others have {fewest} returns, fewer than {FEWEST}: there is no variance to learn. "
                "Leave constant series out, or take naive."
            )
        distribution = Normal() if self.config.innovations == "normal" else StudentsT()
        process = ConstantMean(
            np.concatenate(moving), volatility=self._process(), distribution=distribution, rescale=False
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what arch warns of while it searches; how it ended is asked below
            result = process.fit(disp="off", show_warning=False)
        if result.convergence_flag != 0:
            raise ModelError(
                f"{self.name}: arch found no maximum of the likelihood in {fewest} returns of {len(moving)} series "
                f"({result.optimization_result.message}). Train on more data, or take innovations=normal."
            )
        self.typical.fill_(float(np.median(sizes[sizes > 0]) ** 2))
        self.set_parameters({name: float(value) for name, value in result.params.items()})

    def _training_returns(self, batches: Iterable[Batch]) -> Iterator[Floats]:
        """Of each series; the windows of one that is longer than a window follow one another.

        Every training position has one next value, as the target one step ahead, so no return is counted twice. A
        window before which its series has no value begins a new series.
        """
        found: list[Floats] = []
        for batch in batches:
            y, following = batch.x[..., 0].double(), batch.target[..., 0].double()
            seen, came = observed(y, batch.mask[..., 0]), observed(following, torch.ones_like(following))
            self._refuse_not_positive(torch.cat([y[seen], following[came]]))
            latest = fill_forward(y, seen, torch.full_like(y[:, 0], torch.nan))
            came &= latest.isfinite()
            change = self._returns(torch.where(came, following, 1.0), torch.where(came, latest, 1.0))
            for row in range(len(y)):
                if found and (batch.before is None or not batch.before[row, 0]):
                    yield np.concatenate(found)
                    found = []
                found.append(change[row, came[row]].numpy())
        if found:
            yield np.concatenate(found)

    def _refuse_not_positive(self, values: Tensor) -> None:
        bad = values[values < 1 / LARGEST]
        if self.config.returns == "log" and len(bad):
            raise ModelError(
                f"{self.name} takes the logarithm of channel 0, and training values are not positive: {len(bad)} of "
                f"{len(values)} in these windows, the smallest {bad.min().item():g}. Leave those series out, or set "
                "returns=difference."
            )


class Garch(Volatility):
    """GARCH(1,1) with a constant mean; quantiles from its analytic h-step variance.

    E s^2_{t+i} = phi^{i-1} s^2_{t+1} + omega u^2 (1 + phi + ... + phi^{i-2}), phi = alpha + beta; the variance of the
    return over h steps is their sum over i <= h, for surprises are uncorrelated. Its distribution is taken to be that
    of a sum of h independent innovations, so exact for h = 1, and for every h where the variance does not change; what
    a moving variance adds to the tails of longer sums is left out.
    """

    by_variance: Tensor
    by_size: Tensor
    shape: Tensor
    name = "garch"

    def __init__(self, signature: Signature, config: GarchConfig = GarchConfig()) -> None:
        super().__init__(signature, config)
        horizon = signature.horizon
        self.register_buffer("by_variance", torch.zeros(horizon))
        self.register_buffer("by_size", torch.zeros(horizon))
        self.register_buffer("shape", torch.zeros(horizon, len(signature.quantiles)))
        self.set_parameters({"mu": 0.0, "omega": 0.1, "alpha[1]": 0.1, "beta[1]": 0.8, "nu": 8.0})

    def _process(self) -> Any:
        from arch.univariate import GARCH

        return GARCH(p=1, o=0, q=1)

    def set_parameters(self, parameters: dict[str, float]) -> None:
        omega, alpha, beta = parameters["omega"], parameters["alpha[1]"], parameters["beta[1]"]
        for buffer, value in (
            (self.mean, parameters["mu"]), (self.omega, omega), (self.alpha, alpha), (self.beta, beta),
        ):  # fmt: skip
            buffer.fill_(value)
        powers = (alpha + beta) ** np.arange(self.signature.horizon)
        through = np.concatenate([[0.0], np.cumsum(powers)[:-1]])  # 1 + phi + ... + phi^{i-2} of i = 1, 2, ...
        self.by_variance.copy_(torch.from_numpy(np.cumsum(powers)))
        self.by_size.copy_(torch.from_numpy(omega * np.cumsum(through)))
        freedom = parameters["nu"] if self.config.innovations == "t" else math.inf
        self.shape.copy_(torch.from_numpy(sum_quantiles(freedom, self.signature.horizon, self.signature.quantiles)))

    def _variances(self, surprise: Tensor, present: Tensor, size: Tensor, variance: Tensor) -> Tensor:
        keep = 1 - present * (1 - self.beta)
        add = present * (self.omega * size + self.alpha * surprise * surprise)
        return linear_recurrence(keep, add, variance[:, 0])

    def _fan(self, variance: Tensor, size: Tensor) -> Tensor:
        return self.variance_ahead(variance, size).sqrt()[..., None] * self.shape

    def variance_ahead(self, variance: Tensor, size: Tensor) -> Tensor:
        """(..., H) of the return over the next h steps; variance of the next, size: (..., 1)."""
        return self.by_variance * variance + self.by_size * size


class Egarch(Volatility):
    """EGARCH(1,1) with a constant mean: falls may raise the variance more than rises; quantiles are simulated.

    The return over h steps has no closed form. But the logarithm of the variance is linear in its past, so i steps ahead
    along a path z of innovations s_{t+i} = u (s_{t+1} / u)^{beta^{i-1}} times a number that depends on the path alone.
    P paths of quasi-random innovations (scrambled Sobol points in H dimensions, Owen 1998) are drawn once, and their
    numbers kept; every forecast reads its quantiles from the same P paths, so that step, scan and graph agree, and
    nothing is random. Between two paths a quantile is interpolated.

    Error of the simulation, in standard deviations of the h-step return, against 2^18 other paths (normal innovations,
    parameters of the S&P 500, 5 steps): see `tests/models/test_volatility.py`.
    """

    shocks: Tensor
    decay: Tensor
    above: Tensor
    share: Tensor
    gamma: Tensor
    config: EgarchConfig
    name = "egarch"

    def __init__(self, signature: Signature, config: EgarchConfig = EgarchConfig()) -> None:
        super().__init__(signature, config)
        horizon, paths = signature.horizon, config.paths
        # Order statistic k of P stands for the level (k + 1/2) / P.
        place = (torch.tensor(signature.quantiles, dtype=torch.float64) * paths - 0.5).clamp(0, paths - 1)
        self.register_buffer("above", place.floor().clamp(max=paths - 2).long(), persistent=False)
        self.register_buffer("share", (place - self.above).float(), persistent=False)
        self.register_buffer("gamma", torch.zeros(()))
        self.register_buffer("decay", torch.zeros(horizon, 1))  # beta^{i-1} / 2
        self.register_buffer("shocks", torch.zeros(horizon, paths))
        plain = {"mu": 0.0, "omega": 0.0, "alpha[1]": 0.1, "gamma[1]": 0.0, "beta[1]": 0.9, "nu": 8.0}
        self.set_parameters(plain)

    def _process(self) -> Any:
        from arch.univariate import EGARCH

        return EGARCH(p=1, o=1, q=1)

    def set_parameters(self, parameters: dict[str, float]) -> None:
        omega, alpha, beta = parameters["omega"], parameters["alpha[1]"], parameters["beta[1]"]
        gamma, horizon = parameters["gamma[1]"], self.signature.horizon
        for buffer, value in (
            (self.mean, parameters["mu"]), (self.omega, omega), (self.alpha, alpha), (self.beta, beta),
            (self.gamma, gamma),
        ):  # fmt: skip
            buffer.fill_(value)
        freedom = parameters["nu"] if self.config.innovations == "t" else math.inf
        z = innovations(freedom, horizon, self.config.paths)  # (H, P)
        news = omega + alpha * (np.abs(z) - MEAN_ABSOLUTE) + gamma * z
        log_variance = np.zeros_like(z)  # relative to what the known variance decays to
        for i in range(1, horizon):
            log_variance[i] = beta * log_variance[i - 1] + news[i - 1]
        self.shocks.copy_(torch.from_numpy(z * np.exp(0.5 * np.clip(log_variance, -LOG_RANGE, LOG_RANGE))))
        self.decay.copy_(torch.from_numpy(0.5 * beta ** np.arange(horizon))[:, None])

    def _variances(self, surprise: Tensor, present: Tensor, size: Tensor, variance: Tensor) -> Tensor:
        # Not linear in the surprise, so there is no way but one after the other; a few operations each.
        after = []
        for t in range(surprise.shape[1]):
            now = slice(t, t + 1)
            e = surprise[:, now] / variance.sqrt()
            kept = self.beta * torch.log(variance / size[:, now])
            log = self.omega + self.alpha * (e.abs() - MEAN_ABSOLUTE) + self.gamma * e + kept
            updated = size[:, now] * torch.exp(log.clamp(-LOG_RANGE, LOG_RANGE))
            variance = torch.where(present[:, now] > 0.5, updated, variance)
            after.append(variance)
        return torch.cat(after, 1)

    def _at_once(self) -> int:
        return SIMULATED_AT_ONCE // self.shocks.numel()

    def _fan(self, variance: Tensor, size: Tensor) -> Tensor:
        relative = torch.log(variance / size)[..., None]  # (..., 1, 1)
        returns = (torch.exp(self.decay * relative) * self.shocks).cumsum(-2).sort(-1).values  # (..., H, P)
        low, high = returns[..., self.above], returns[..., self.above + 1]
        return size.sqrt()[..., None] * (low + self.share * (high - low))


def innovations(freedom: float, horizon: int, paths: int) -> Floats:
    """(H, P) numbers of variance 1, normal or Student's t, that fill H dimensions evenly; always the same."""
    from scipy.stats import norm, t
    from scipy.stats.qmc import Sobol

    points = Sobol(horizon, scramble=True, seed=0).random(paths).T
    points = np.clip(points, 0.5 / paths**2, 1 - 0.5 / paths**2)
    if math.isinf(freedom):
        return norm.ppf(points)
    return t.ppf(points, freedom) * math.sqrt((freedom - 2) / freedom)


def sum_quantiles(freedom: float, horizon: int, levels: tuple[float, ...]) -> Floats:
    """(H, Q) quantiles of the sum of h independent innovations, in its standard deviations.

    Normal where `freedom` is infinite, else Student's t of that many degrees of freedom (above 2), by repeated
    convolution of its density on a grid through the Fourier transform.
    """
    from scipy.stats import norm, t

    if math.isinf(freedom):
        return np.broadcast_to(norm.ppf(levels), (horizon, len(levels)))
    points, reach = 2**16, 60 * math.sqrt(horizon)  # the grid, in standard deviations of one innovation
    unit = math.sqrt((freedom - 2) / freedom)
    width = 2 * reach / points
    edges = (np.arange(points + 1) - points / 2 - 0.5) * width
    mass = np.diff(t.cdf(edges / unit, freedom))
    one = np.fft.rfft(np.fft.ifftshift(mass / mass.sum()))
    quantiles, product = [t.ppf(levels, freedom) * unit], one
    for steps in range(2, horizon + 1):
        product = product * one
        below = np.fft.fftshift(np.fft.irfft(product, points)).cumsum()
        quantiles.append(np.interp(levels, below, edges[1:]) / math.sqrt(steps))
    return np.stack(quantiles)
