"""Volatility: a random walk whose variance has a memory; GARCH and EGARCH for the intervals of stock prices.

The values of channel 0 are prices, and what has a variance is the return from one observed price to the next:
log(y_t / y_t-1) or y_t - y_t-1, as the configuration says. One set of parameters, fitted by `arch`, is shared by all
series; it holds for returns in units of each series' own size, so that calm and wild series share it. The conditional
variance and the size are the state. A missing price is a day on which the market was closed: nothing happens, and the
next return leads from the last price that was observed. Under logarithms what is not positive counts as missing.

With u^2 the mean square of a series' returns, a the return's surprise r_t - mu u, and shared omega, alpha, beta, gamma:
    GARCH(1,1)   s^2_{t+1} = omega u^2 + alpha a_t^2 + beta s^2_t                          (Bollerslev 1986)
    EGARCH(1,1)  log s^2_{t+1} / u^2 = omega + alpha (|e_t| - sqrt(2/pi)) + gamma e_t + beta log s^2_t / u^2,
                 e_t = a_t / s_t                                                            (Nelson 1991)

The next return has a known distribution. That of a return over several steps has no closed form, but measured in u it
depends on one number alone, the variance relative to u^2, and smoothly. So it is simulated once, when the parameters
are known: for G relative variances (log-spaced) along the same P paths of quasi-random innovations (scrambled Sobol
points in H dimensions). What stays is a table of quantiles, in standard deviations, between whose rows a forecast
interpolates. A forecast is then a few operations on constants: step, scan and graph agree, and nothing is random.

The error of the table, in standard deviations of the return: at most .02 from the 2.5 to the 97.5 % quantile, against
2^18 other paths, over 5 steps with parameters like those of the S&P 500 (`tests/models/test_volatility.py`).

Shapes: B series, T time, H horizon, Q quantiles, G relative variances, P paths.
"""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
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
LARGEST_PARAMETER = 10.0  # beyond it one return would change the variance by orders of magnitude
SMALLEST = 1e-30  # mean square of returns: float32 can still divide by it
PARTS = tuple(f"volatility.{name}" for name in ("last", "started", "count", "size", "variance"))
LOG_RANGE = 30.0  # of a variance relative to the series' own, either way: keeps squares inside float32
GRID = np.linspace(-8.0, 8.0, 33)  # G, logarithms of relative variances; beyond them the shape stays as at the end
MEAN_ABSOLUTE = math.sqrt(2 / math.pi)  # of a standard normal number, which arch subtracts for every distribution


@dataclass(frozen=True)
class VolatilityConfig:
    returns: str = "log"  # log: of positive prices; difference: of values of any sign
    innovations: str = "t"  # normal, or t: Student's, of fitted degrees of freedom
    size: str = "own"  # own: a series' returns are measured by their own mean square; shared: by the training data's
    prior: int = 250  # returns of the training data's size that every series' own mean square starts from
    paths: int = 65_536  # P, that the quantiles of returns over several steps are read from; a power of 2

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
        if self.paths < 64 or self.paths & (self.paths - 1):
            raise ModelError(f"paths is a power of 2 and at least 64, got {self.paths}.")


class Volatility(StepModel, Fitted):
    """What GARCH and EGARCH share: prices to returns, their size, the fit, and returns to prices.

    Raises (fit):
        ModelError: prices that have no logarithm, series that do not move, too few returns, or no convergence.
    """

    tasks = ("forecast",)
    library = "arch"
    substitute = "a random walk whose size begins as the training data's"
    typical: Tensor
    mean: Tensor
    omega: Tensor
    alpha: Tensor
    beta: Tensor
    steps: Tensor
    rows: Tensor
    table: Tensor
    name = ""

    def __init__(self, signature: Signature, config: VolatilityConfig = VolatilityConfig()) -> None:
        super().__init__(signature)
        self.config = config
        self.learns_size = float(config.size == "own")
        self.register_buffer("typical", torch.ones(()))  # mean square of the training returns
        for parameter in ("mean", "omega", "alpha", "beta"):  # of returns in units of their size
            self.register_buffer(parameter, torch.zeros(()))
        self.register_buffer("steps", torch.arange(1.0, signature.horizon + 1), persistent=False)
        self.register_buffer("rows", torch.from_numpy(GRID).float(), persistent=False)
        self.register_buffer("table", torch.zeros(len(GRID), signature.horizon, len(signature.quantiles)))

    @abstractmethod
    def _process(self) -> Any:
        """arch's volatility process."""

    @abstractmethod
    def _take(self, parameters: Mapping[str, float], z: Floats) -> None:
        """Keep what belongs to this process of arch's parameters; z: (H, P) innovations."""

    @abstractmethod
    def _variances(self, surprise: Tensor, present: Tensor, size: Tensor, variance: Tensor) -> Tensor:
        """s^2_{t+1} after every return; all (B, T) but the variance before them, (B, 1)."""

    @abstractmethod
    def _relative_ahead(self, relative: Tensor) -> Tensor:
        """(..., H) variance of the return over h steps / u^2, from that of the next, (..., 1)."""

    @abstractmethod
    def _paths(self, relative: float, z: Floats) -> Floats:
        """(H, P) s_{t+h} / u along paths of innovations z (H, P), from s^2_{t+1} / u^2."""

    def set_parameters(self, parameters: Mapping[str, float]) -> None:
        """Take arch's parameters, of returns of mean square 1, and simulate what they say of several steps.

        Args:
            parameters: mu, omega, alpha[1] and beta[1]; egarch also gamma[1], and innovations=t also nu.
        """
        freedom = parameters["nu"] if self.config.innovations == "t" else math.inf
        levels = self.signature.quantiles
        z = innovations(freedom, self.signature.horizon, self.config.paths)
        self.mean.fill_(parameters["mu"])
        self.omega.fill_(parameters["omega"])
        self.alpha.fill_(parameters["alpha[1]"])
        self.beta.fill_(parameters["beta[1]"])
        self._take(parameters, z)
        for row, log_relative in enumerate(GRID):
            relative = math.exp(log_relative)
            returns = (self._paths(relative, z) * z).cumsum(0)
            quantiles = np.quantile(returns, levels, axis=1, method="hazen").T  # (H, Q)
            quantiles[0] = math.sqrt(relative) * innovation_quantiles(np.array(levels), freedom)
            deviation = self._relative_ahead(self.table.new_tensor([relative])).sqrt()[:, None]
            self.table[row] = torch.from_numpy(quantiles).to(deviation) / deviation

    def variance_ahead(self, variance: Tensor, size: Tensor) -> Tensor:
        """(..., H) of the return over the next h steps; variance of the next return, size u^2: (..., 1)."""
        return size * self._relative_ahead(variance / size)

    def _fan(self, variance: Tensor, size: Tensor) -> Tensor:
        """Quantiles (..., H, Q) of the surprise over h steps; variance, size: (..., 1)."""
        place = torch.log(variance / size).clamp(GRID[0], GRID[-1])
        near = (1 - (place - self.rows).abs() / (GRID[1] - GRID[0])).clamp(min=0.0)  # (..., G), of two rows, sum 1
        shape = (near @ self.table.flatten(1)).unflatten(-1, self.signature.prediction_shape)
        return self.variance_ahead(variance, size).sqrt()[..., None] * shape

    def initial_state(self, batch: int) -> State:
        """The last price, whether there was one, how many returns their mean square u^2 is of, and s^2 of the next."""
        nothing = self.zeros(batch, 1)
        first = (nothing, nothing.clone(), nothing + self.config.prior, nothing + self.typical, nothing + self.typical)
        return dict(zip(PARTS, first, strict=True))

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
        last, started, count, size, variance = (state[name] for name in PARTS)
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
        return self._predict(after[0], after[1], size, variance), dict(zip(PARTS, after, strict=True))

    def scan(self, x: Tensor, mask: Tensor, state: State) -> tuple[Tensor, State]:
        last, started, count, size, variance = (state[name] for name in PARTS)
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
        prediction = self._predict(*running)
        after = [prices[:, -1:], begun[:, -1:], counts[:, -1:], sizes[:, -1:], variances[:, -1:]]
        return prediction, dict(zip(PARTS, after, strict=True))

    def _predict(self, price: Tensor, started: Tensor, size: Tensor, variance: Tensor) -> Tensor:
        """All (..., 1). A quantile of a price is the price after that quantile of the return, which rises with it."""
        drift = self.mean * size.sqrt() * self.steps  # (..., H)
        moved = drift[..., None] + self._fan(variance, size)
        if self.config.returns == "log":
            # No price leaves what counts as a value by more than the range of values.
            moved = price[..., None] * torch.expm1(moved.clamp(-math.log(LARGEST), math.log(LARGEST)))
        return price[..., None] + started[..., None] * moved

    def unfit(self, values: Floats) -> str | None:
        seen = values[np.abs(values) <= LARGEST]  # neither NaN nor infinite
        bad = seen[seen < 1 / LARGEST]
        if self.config.returns == "log" and len(bad):
            return (
                f"{len(bad)} of {len(seen)} values are not above 0, the lowest {bad.min():g}: they have no logarithm "
                "and count as missing; set returns=difference"
            )
        if len(seen) < 3:
            return f"{len(seen)} values are too few for a variance of returns"
        returns = np.diff(np.log(seen) if self.config.returns == "log" else seen)
        return None if _varies(returns) else "it is constant, or grows evenly: there is no variance to learn"

    def fit(self, batches: Iterable[Batch], validation: Iterable[Batch] = ()) -> None:
        """One set of parameters for all: arch's maximum of the likelihood of every series' returns in their own size.

        The returns of one series after another are one long record to `arch`; what a series' variance starts from is
        then the end of the one before, which a few dozen returns forget.
        """
        from arch.univariate import ConstantMean, Normal, StudentsT

        series = list(self._training_returns(batches))
        known = sum(map(len, series))
        if known < FEWEST:
            raise ModelError(
                f"{self.name} needs at least {FEWEST} returns in training, from one observed value to the next; "
                f"found {known} in {len(series)} series. Train on a longer history or on more series."
            )
        moving = [returns for returns in series if _varies(returns)]
        varied = sum(map(len, moving))
        if varied < FEWEST:
            raise ModelError(
                f"{self.name}: the values are constant, or grow evenly, in {len(series) - len(moving)} of "
                f"{len(series)} training series, and the others have {varied} returns, fewer than {FEWEST}: there is "
                "no variance to learn. Leave such series out, or take drift."
            )
        still = f"{len(series) - len(moving)} of {len(series)} training series are constant or grow evenly: left out."
        self.remarks = (still,) if len(moving) < len(series) else ()
        sizes = [float(np.sqrt(np.mean(returns**2))) for returns in moving]
        measured = np.concatenate([returns / size for returns, size in zip(moving, sizes, strict=True)])
        distribution = Normal() if self.config.innovations == "normal" else StudentsT()
        process = ConstantMean(measured, volatility=self._process(), distribution=distribution, rescale=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what arch warns of while it searches; how it ended is asked below
            result = process.fit(disp="off", show_warning=False)
        parameters = {str(name): float(value) for name, value in result.params.items()}
        wild = [name for name, value in parameters.items() if name != "nu" and not abs(value) < LARGEST_PARAMETER]
        if wild or result.convergence_flag != 0:
            ended = f"{wild[0]} ran away" if wild else result.optimization_result.message
            raise ModelError(
                f"{self.name}: arch found no maximum of the likelihood in {varied} returns of {len(moving)} series "
                f"({ended}). Series that seldom move do this: leave them out, train on more data, or take naive."
            )
        self.typical.fill_(max(float(np.median(sizes)) ** 2, SMALLEST))
        self.set_parameters(parameters)

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
    """GARCH(1,1) with a constant mean.

    The variance of the return over h steps is the sum over i <= h of
    E s^2_{t+i} = phi^{i-1} s^2_{t+1} + omega u^2 (1 + phi + ... + phi^{i-2}), phi = alpha + beta,
    for surprises are uncorrelated.
    """

    by_variance: Tensor
    by_size: Tensor
    name = "garch"

    def __init__(self, signature: Signature, config: VolatilityConfig = VolatilityConfig()) -> None:
        super().__init__(signature, config)
        self.register_buffer("by_variance", torch.zeros(signature.horizon))
        self.register_buffer("by_size", torch.zeros(signature.horizon))

    def _process(self) -> Any:
        from arch.univariate import GARCH

        return GARCH(p=1, o=0, q=1)

    def _take(self, parameters: Mapping[str, float], z: Floats) -> None:
        powers = (parameters["alpha[1]"] + parameters["beta[1]"]) ** np.arange(len(z))
        through = np.concatenate([[0.0], np.cumsum(powers)[:-1]])  # 1 + phi + ... + phi^{i-2} of i = 1, 2, ...
        self.by_variance.copy_(torch.from_numpy(np.cumsum(powers)))
        self.by_size.copy_(torch.from_numpy(parameters["omega"] * np.cumsum(through)))

    def _variances(self, surprise: Tensor, present: Tensor, size: Tensor, variance: Tensor) -> Tensor:
        keep = 1 - present * (1 - self.beta)
        add = present * (self.omega * size + self.alpha * surprise * surprise)
        return linear_recurrence(keep, add, variance[:, 0])

    def _relative_ahead(self, relative: Tensor) -> Tensor:
        return self.by_variance * relative + self.by_size

    def _paths(self, relative: float, z: Floats) -> Floats:
        omega, alpha, beta = self.omega.item(), self.alpha.item(), self.beta.item()
        variance = np.full_like(z, relative)
        for i in range(1, len(z)):
            variance[i] = omega + (alpha * z[i - 1] ** 2 + beta) * variance[i - 1]
        return np.sqrt(variance)


class Egarch(Volatility):
    """EGARCH(1,1) with a constant mean: a fall may raise the variance more than a rise.

    The logarithm of the variance is linear in its past, so s^2_{t+i} / u^2 is (s^2_{t+1} / u^2)^{beta^{i-1}} times a
    number that depends on the innovations alone, of which the mean over the paths is kept: the variance of the return
    over h steps. With innovations of Student's t that mean does not exist, though every quantile does; the mean over
    the paths then only sets the units of the table.
    """

    gamma: Tensor
    decay: Tensor
    level: Tensor
    name = "egarch"

    def __init__(self, signature: Signature, config: VolatilityConfig = VolatilityConfig()) -> None:
        super().__init__(signature, config)
        self.register_buffer("gamma", torch.zeros(()))
        self.register_buffer("decay", torch.zeros(signature.horizon))  # beta^{i-1}
        self.register_buffer("level", torch.zeros(signature.horizon))  # mean over the paths

    def _process(self) -> Any:
        from arch.univariate import EGARCH

        return EGARCH(p=1, o=1, q=1)

    def _take(self, parameters: Mapping[str, float], z: Floats) -> None:
        self.gamma.fill_(parameters["gamma[1]"])
        self.decay.copy_(torch.from_numpy(parameters["beta[1]"] ** np.arange(len(z))))
        self.level.copy_(torch.from_numpy((self._paths(1.0, z) ** 2).mean(1)))

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

    def _relative_ahead(self, relative: Tensor) -> Tensor:
        return (torch.exp(self.decay * torch.log(relative)) * self.level).cumsum(-1)

    def _paths(self, relative: float, z: Floats) -> Floats:
        news = self.omega.item() + self.alpha.item() * (np.abs(z) - MEAN_ABSOLUTE) + self.gamma.item() * z
        log = np.full_like(z, math.log(relative))
        for i in range(1, len(z)):
            log[i] = np.clip(self.beta.item() * log[i - 1] + news[i - 1], -LOG_RANGE, LOG_RANGE)
        return np.exp(log / 2)


def _varies(returns: Floats) -> bool:
    """Whether there is more to the returns than a constant and the rounding of float32 prices."""
    return len(returns) > 1 and returns.std() > 1e-3 * np.sqrt(np.mean(returns**2))


def innovation_quantiles(levels: Floats, freedom: float) -> Floats:
    """Of a number of variance 1: Student's t of `freedom` (above 2) degrees, normal where that is infinite."""
    from scipy.stats import norm, t

    if math.isinf(freedom):
        return norm.ppf(levels)
    return t.ppf(levels, freedom) * math.sqrt((freedom - 2) / freedom)


def innovations(freedom: float, horizon: int, paths: int) -> Floats:
    """(H, P) numbers of variance 1 that fill H dimensions evenly; always the same."""
    from scipy.stats.qmc import Sobol

    points = Sobol(horizon, scramble=True, seed=0).random(paths).T
    edge = 0.5 / paths**2  # a point on the border would be infinite
    return innovation_quantiles(points.clip(edge, 1 - edge), freedom)
