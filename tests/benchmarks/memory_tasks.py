"""What the memories hold, and for how long: five tasks that only a memory can answer, beside GRU, LSTM and attention.

`associative recall`  pairs of key and value, then every key; with length the number of pairs grows (a quarter of it).
`needle`              four pairs lost in a stream of other values; with length only the distance grows.
`selective copy`      eight items scattered over blanks, then all in order.
`serial recall`       a list, a pause, all in order: accuracy against its length, the pause, and the place in the list.
`recurring regimes`   a numeric series of patterns that return: error of the next value at each return.

Every model is token embedding, backbone, linear classifier (for the series: linear, backbone, linear), trained by the
same loop on the same trials. All have the number of parameters of one memory, as near as widths allow (10 %), and
each of --widths is another such number, so that every task is a table against the size of the state too. In
`recall-state` all have the same number of state floats instead, every tensor of the state counted (convolutions,
momenta and anchors too). The weights are frozen at test; only the state learns.

Associative recall is learned by curriculum: every length in turn until 99 % are right or the tokens are used up; a
length below 90 % ends it, and longer ones are then read by the same weights. So a model that falls does so after that
many tokens at that length, at the best of the learning rates that every model is given: --tokens and --rates say
whether more of them help. The other tasks take the first of the rates.

Options: --quick, --tasks recall,recall-state,needle,copy,serial,regimes, --models gru,deltanet,..., --widths 12,24,48,
--seeds 3, --tokens 2e6, --steps 600, --rates 5e-3,2e-3, --state 400.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
from bench_memory_endurance import BESIDE
from figures import machine, table
from recall_data import (
    CHANCE,
    VOCABULARY,
    AssociativeRecall,
    Needle,
    Recurring,
    Regimes,
    SelectiveCopy,
    SerialRecall,
    Trials,
    asked,
)
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from models.attention import AttentionBackbone, AttentionConfig
from models.memory import MEMORIES
from models.memory.backbone import Inner, MemoryBackbone, MemoryConfig
from models.memory.hybrid import WindowConfig
from models.memory.titans import LMM
from models.recurrent import Recurrent, RecurrentConfig

INNER = MEMORIES | dict.fromkeys(BESIDE, LMM)
Task = Callable[[int, int, torch.Generator], Trials]  # (length, trials, random)
SLOW = "all but atlas unless named: an orthogonalised step per token takes it as long as all others together"
BASELINES = ("gru", "lstm", "attention")
PEER = "titans-lmm"  # whose number of parameters all others are given
WIDTHS = (12, 24, 48)  # of the peer
DEEP = 2  # blocks where recall takes two steps
KNOWN = 3  # steps after which a pattern can be told from the others
ROUNDS = 8  # of all patterns in a series to train on
EMBED = 32
BATCH = 32
HELD = 0.9  # accuracy from which a length counts as held
LEARNED = 0.99  # running accuracy at which a length is done
ATTENTION_HEADS = 2
POLYNOMIAL_HEAD = 4  # width of a head whose keys are expanded: 15 features


@dataclass(frozen=True)
class Size:
    """How large a model is built."""

    width: int  # D of a memory or of attention, hidden units of a recurrent network
    blocks: int = 1
    chunk: int = 16  # of a memory; of MAC the segment too
    window: int = 32  # of attention, alone or beside a memory


def heads_of(inner: Inner, width: int) -> int:
    """A matrix is one head, as wide as can be; an MLP two; polynomial features grow with the square of the width."""
    if inner.degree > 1:
        return max(1, round(width / POLYNOMIAL_HEAD))
    return 1 if inner.depth <= 1 else 2


def backbone(name: str, size: Size) -> nn.Module:
    if name in INNER:
        inner = INNER[name]
        shape: dict[str, Any] = {
            "width": size.width,
            "heads": heads_of(inner, size.width),
            "blocks": size.blocks,
            "feed_forward": 0,
            "chunk": size.chunk,
        }
        if name not in BESIDE:
            return MemoryBackbone(EMBED, MemoryConfig(**shape), inner)
        kind, config = BESIDE[name]
        if issubclass(config, WindowConfig):
            shape["window"] = size.window
        return kind(EMBED, config(**shape))  # type: ignore[call-arg]
    if name == "attention":
        attention = AttentionConfig(
            width=size.width, heads=ATTENTION_HEADS, blocks=max(size.blocks, 2), feed_forward=0, window=size.window
        )
        return AttentionBackbone(EMBED, attention)
    return Recurrent(EMBED, name, RecurrentConfig(hidden=size.width))


class Probe(nn.Module):
    """A backbone between what a task gives and what it asks."""

    def __init__(self, name: str, size: Size, numeric: bool = False) -> None:
        super().__init__()
        self.enter = nn.Linear(1, EMBED) if numeric else nn.Embedding(VOCABULARY, EMBED)
        self.backbone = backbone(name, size)
        self.leave = nn.Linear(int(self.backbone.features), 1 if numeric else VOCABULARY)

    def forward(self, given: Tensor) -> Tensor:
        """(B, T) tokens, or (B, T, 1) values, give (B, T, classes or 1)."""
        state = self.backbone.initial_state(len(given))
        return self.leave(self.backbone.scan(self.enter(given), state)[0])

    def parameter_count(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    def state_floats(self) -> int:
        """Of one series, every tensor counted."""
        return sum(value.numel() for value in self.backbone.initial_state(1).values())


def _sizes(name: str, measure: str, blocks: int, chunk: int) -> Iterator[Size]:
    """Every size that can be built, from the smallest up. The state of attention grows with its window."""
    for width in range(2, 4096):
        if name == "attention" and measure == "state_floats":
            yield Size(16, blocks, window=width)
        elif name in INNER and (inner := INNER[name]) and width % heads_of(inner, width) == 0:
            if width > heads_of(inner, width) or not inner.depth:  # one value a head is no MLP memory
                yield Size(width, blocks, chunk)
        elif name not in INNER and (name != "attention" or width % ATTENTION_HEADS == 0):
            yield Size(width, blocks)


@cache
def sized(
    name: str,
    goal: int,
    measure: Literal["parameter_count", "state_floats"],
    *,
    blocks: int = 1,
    chunk: int = 16,
    numeric: bool = False,
) -> Size:
    """The size whose `measure` comes nearest to the goal."""
    best, least = Size(0), math.inf
    for size in _sizes(name, measure, blocks, chunk):
        with torch.random.fork_rng():  # whatever is sized first, a seed's random numbers are its own
            found = getattr(Probe(name, size, numeric), measure)()
        if abs(found - goal) < least:
            best, least = size, abs(found - goal)
        elif found > goal:
            break
    return best


def equal_parameters(name: str, width: int, blocks: int = 1, numeric: bool = False) -> Size:
    """As many parameters as the peer of that width has; recurrent networks keep one layer."""
    with torch.random.fork_rng():
        goal = Probe(PEER, Size(width, blocks), numeric).parameter_count()
    return sized(name, goal, "parameter_count", blocks=blocks, numeric=numeric)


# --- training and measuring ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Effort:
    """How much is trained and measured."""

    models: tuple[str, ...]
    widths: tuple[int, ...]  # of the peer, whose number of parameters all others are given
    seeds: int
    tokens: float  # of every length of associative recall
    steps: int  # of every other task
    rates: tuple[float, ...]  # of AdamW at its highest
    state: int  # floats of every state in recall_state

    def sizes(self, blocks: int = 1, numeric: bool = False) -> list[tuple[str, Size]]:
        """Every model at every size."""
        return [(name, equal_parameters(name, width, blocks, numeric)) for width in self.widths for name in self.models]

    def each(self, run: Callable[[int], list[float]]) -> tuple[list[float], float]:
        """Medians over seeds of what `run(seed)` gives, and the median seconds of a run."""
        runs, spent = [], []
        for seed in range(self.seeds):
            began = time.perf_counter()
            torch.manual_seed(seed)
            runs.append(run(seed))
            spent.append(time.perf_counter() - began)
        return [statistics.median(values) for values in zip(*runs, strict=True)], statistics.median(spent)


def optimise(
    net: nn.Module,
    loss_of: Callable[[float], Tensor],
    rate: float,
    steps: int,
    done: Callable[[], bool] = lambda: False,
) -> None:
    """AdamW with a short warm-up and a fall to a tenth; `loss_of(progress)` draws a batch; stops early when `done`."""
    optimiser = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=0.01)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 50) * (1 - 0.9 * step / steps)
        optimiser.zero_grad()
        loss_of(step / steps).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        if done():
            return


def score(net: nn.Module, trials: Trials) -> tuple[Tensor, Tensor, Tensor]:
    """Loss of what is asked; whether each answer is right, and which item it is."""
    logits, targets, item = asked(net(trials.tokens), trials)
    return cross_entropy(logits, targets), (logits.argmax(-1) == targets).double(), item


@torch.no_grad()
def accuracies(net: nn.Module, task: Task, length: int) -> list[float]:
    """Share of right answers to every item, in the order in which they came; the same fresh trials for every model."""
    trials = 256 if length <= 512 else 64
    _, right, item = score(net, task(length, trials, torch.Generator().manual_seed(length)))
    return (torch.bincount(item, right) / torch.bincount(item)).tolist()


def accuracy(net: nn.Module, task: Task, length: int) -> float:
    return statistics.fmean(accuracies(net, task, length))


def climb(net: nn.Module, lengths: Sequence[int], tokens: float, rate: float, seed: int) -> dict[int, float]:
    """Accuracy of associative recall at every length, learned one after the other."""
    task, random = AssociativeRecall(), torch.Generator().manual_seed(1000 + seed)
    for length in lengths:
        running = 0.0

        def loss_of(_: float, length: int = length) -> Tensor:
            nonlocal running
            loss, right, _ = score(net, task(length, BATCH, random))
            running += 0.05 * (right.mean().item() - running)
            return loss

        steps = max(1, int(tokens / BATCH / length))
        optimise(net, loss_of, rate, steps, lambda: running > LEARNED)  # noqa: B023
        if accuracy(net, task, length) < HELD:
            break
    return {length: accuracy(net, task, length) for length in lengths}


def grow(
    net: nn.Module, draw: Callable[[int, torch.Generator], Tensor], levels: Sequence[int], effort: Effort, seed: int
) -> None:
    """Train on the first of `levels`, then on one drawn from ever more of them; `draw` gives a batch's loss."""
    random = torch.Generator().manual_seed(1000 + seed)

    def loss_of(progress: float) -> Tensor:
        known = min(len(levels), 1 + int(2 * progress * len(levels)))
        return draw(levels[int(torch.randint(known, (), generator=random))], random)

    optimise(net, loss_of, effort.rates[0], effort.steps)


def held(accuracy_at: dict[int, float]) -> int:
    """The longest length up to which every one is held; 0 if none is."""
    longest = 0
    for length in sorted(accuracy_at):
        if accuracy_at[length] < HELD:
            break
        longest = length
    return longest


# --- tables ------------------------------------------------------------------------------------------------------


def shape(name: str, size: Size, numeric: bool = False) -> list[str]:
    net = Probe(name, size, numeric)
    return [name, str(size.width), str(net.parameter_count()), str(net.state_floats())]


SHAPE = ["model", "width", "parameters", "state"]


def say(row: list[str]) -> list[str]:
    """Print a row as soon as it is known; the table comes when all are."""
    print("   ", *row, flush=True)
    return row


def percent(values: Iterable[float]) -> list[str]:
    return [f"{100 * value:.0f}" for value in values]


def recall_row(name: str, size: Size, lengths: Sequence[int], effort: Effort) -> tuple[list[str], dict[int, float]]:
    """At the learning rate whose accuracies are the highest on average."""

    def runs(rate: float) -> tuple[list[float], float]:
        return effort.each(lambda seed: list(climb(Probe(name, size), lengths, effort.tokens, rate, seed).values()))

    tried = {rate: runs(rate) for rate in effort.rates}
    rate = max(tried, key=lambda rate: statistics.fmean(tried[rate][0]))
    found, seconds = tried[rate]
    at = dict(zip(lengths, found, strict=True))
    return say([*shape(name, size), *percent(found), str(held(at)), f"{rate:g}", f"{seconds:.0f}"]), at


def equal_state(name: str, floats: int) -> Size:
    """As many floats of state, as near as widths allow.

    A matrix memory takes token by token, which needs no anchor; an MLP would train too slowly so.
    """
    matrix = name in INNER and INNER[name].depth <= 1
    return sized(name, floats, "state_floats", chunk=1 if matrix else 16)


def verdict(found: dict[str, dict[int, float]], lengths: Sequence[int]) -> str:
    """What the accuracies at equal state say of the target."""
    memories = {name: held(at) for name, at in found.items() if name in INNER}
    if "gru" not in found or not memories:
        return "no verdict: it takes gru and a memory"
    best = max(memories, key=lambda name: memories[name])
    reach = held(found["gru"])
    if reach == lengths[-1]:
        return f"no verdict: gru holds every length up to {reach}; {best} holds {memories[best]}"
    falls = next(length for length in lengths if length > reach)
    ratio = memories[best] / falls
    return (
        f"gru falls to {found['gru'][falls]:.1%} at {falls} tokens, {best} holds {memories[best]} "
        f"with {found[best].get(memories[best], 0):.1%}: {ratio:.1f} times, "
        f"target 4 {'reached' if ratio >= 4 else 'MISSED'}"
    )


LENGTHS = (4, 8, 16, 32, 64, 128)


def recall_table(title: str, sizes: Iterable[tuple[str, Size]], effort: Effort) -> dict[str, dict[int, float]]:
    print(f"\nAssociative recall, {title}: % right against length, a quarter of it pairs, chance {CHANCE:.0%};")
    print(f"'holds' is the longest length that, as all shorter ones, has {HELD:.0%} or more")
    rows, found = [], {}
    for name, size in sizes:
        row, found[name] = recall_row(name, size, LENGTHS, effort)
        rows.append(row)
    table([*SHAPE, *map(str, LENGTHS), "holds", "rate", "seconds"], rows)
    return found


def recall(effort: Effort) -> None:
    recall_table("equal parameters", effort.sizes(), effort)


def recall_state(effort: Effort) -> None:
    sizes = [(name, equal_state(name, effort.state)) for name in effort.models]
    found = recall_table(f"{effort.state} floats of state each", sizes, effort)
    print("verdict:", verdict(found, LENGTHS))


def trained(name: str, size: Size, task: Task, lengths: Sequence[int], effort: Effort, seed: int) -> Probe:
    net = Probe(name, size)

    def draw(length: int, random: torch.Generator) -> Tensor:
        return score(net, task(length, BATCH, random))[0]

    grow(net, draw, lengths, effort, seed)
    return net


def against_length(task: Task, title: str, train: Sequence[int], test: Sequence[int], effort: Effort) -> None:
    print(f"\n{title}: % right against length, chance {CHANCE:.0%}; trained on lengths up to {train[-1]}")
    rows = []
    for name, size in effort.sizes(DEEP):

        def run(seed: int, name: str = name, size: Size = size) -> list[float]:
            net = trained(name, size, task, train, effort, seed)
            return [accuracy(net, task, length) for length in test]

        found, seconds = effort.each(run)
        rows.append(say([*shape(name, size), *percent(found), f"{seconds:.0f}"]))
    table([*SHAPE, *map(str, test), "seconds"], rows)


def needle(effort: Effort) -> None:
    against_length(
        Needle(), "Needle: 4 pairs in a stream of other values", (16, 32, 64, 128), (32, 128, 512, 2048), effort
    )


def copy(effort: Effort) -> None:
    against_length(
        SelectiveCopy(), "Selective copy: 8 items among blanks", (16, 32, 64, 128), (32, 128, 512, 2048), effort
    )


def serial(effort: Effort) -> None:
    lists, pauses, most = (2, 4, 8, 12, 16, 24), (4, 16, 64, 256), SerialRecall.most
    rows, curves = [], []
    for name, size in effort.sizes(DEEP):

        def run(seed: int, name: str = name, size: Size = size) -> list[float]:
            net = trained(name, size, SerialRecall(), (2 * most + 1 + SerialRecall.pause,), effort, seed)
            by_load = [accuracy(net, SerialRecall(items=n), 2 * n + 5) for n in lists]
            by_pause = [accuracy(net, SerialRecall(items=8, pause=pause), 17 + pause) for pause in pauses]
            return by_load + by_pause + accuracies(net, SerialRecall(items=most), 2 * most + 5)

        found, seconds = effort.each(run)
        first = len(lists) + len(pauses)
        rows.append(say([*shape(name, size), *percent(found[:first]), f"{seconds:.0f}"]))
        curves.append([*shape(name, size), *percent(found[first:])])
    print(
        f"\nSerial recall: % right against the list (pause 4) and the pause (8 items), chance {CHANCE:.0%}; trained on"
    )
    print(f"lists of 2 to {most} with a pause of {SerialRecall.pause}")
    table([*SHAPE, *[f"{n} items" for n in lists], *[f"pause {n}" for n in pauses], "seconds"], rows)
    print(f"\nPrimacy and recency: % right against the place in a list of {most}")
    table([*SHAPE, *map(str, range(1, most + 1))], curves)


def forecast_loss(net: nn.Module, series: Recurring) -> Tensor:
    return mse_loss(net(series.values[:, :-1, None])[..., 0], series.values[:, 1:])


def by_return(error: Tensor, series: Recurring, returns: Sequence[int]) -> list[float]:
    """Mean squared error of the next value at each return of its pattern, from KNOWN steps into it on."""
    return [error[(series.phase >= KNOWN) & (series.occurrence == n)].mean().item() for n in returns]


@torch.no_grad()
def returns_of(predict: Callable[[Tensor], Tensor], task: Regimes, returns: Sequence[int]) -> list[float]:
    """`predict`: (B, T) values give (B, T) of the next ones; fresh series, the same for every model."""
    length = task.patterns * task.duration * (max(returns) + 1) - 1
    series = task(length, 1024 // task.patterns, torch.Generator().manual_seed(task.patterns))
    return by_return((predict(series.values[:, :-1]) - series.values[:, 1:]).square(), series, returns)


def regimes(effort: Effort) -> None:
    returns, loads, usual = (0, 1, 2, 5), (1, 4), Regimes()
    train, length = tuple(range(1, usual.patterns + 1)), ROUNDS * usual.patterns * usual.duration

    def row(predict: Callable[[Tensor], Tensor]) -> list[float]:
        more = [returns_of(predict, Regimes(n), (0, 1)) for n in loads]
        return [*returns_of(predict, usual, returns), *more[0], *more[1]]

    def run(seed: int, name: str, size: Size) -> list[float]:
        net = Probe(name, size, numeric=True)

        def draw(patterns: int, random: torch.Generator) -> Tensor:
            return forecast_loss(net, Regimes(patterns)(length, BATCH, random))

        grow(net, draw, train, effort, seed)
        return row(lambda values: net(values[..., None])[..., 0])

    def cells(values: list[float]) -> list[str]:
        return [*(f"{value:.3f}" for value in values), f"{values[0] / values[1]:.1f}"]

    rows = [
        say(["last value", "", "", "", *cells(row(lambda values: values)), ""]),
        say(["best without memory", "", "", "", *cells(row(lambda values: usual.persistence * values)), ""]),
    ]
    for name, size in effort.sizes(numeric=True):
        found, seconds = effort.each(lambda seed, name=name, size=size: run(seed, name, size))
        rows.append(say([*shape(name, size, numeric=True), *cells(found), f"{seconds:.0f}"]))
    print(f"\nRecurring regimes: mean squared error of the next value (variance 1, noise {usual.noise**2:.4f}), from")
    print(
        f"step {KNOWN} of a pattern on, the first time it comes, the second and so on; trained on 1 to {usual.patterns}"
    )
    head = [*(f"time {n + 1}" for n in returns), *(f"{n} patterns, time {k}" for n in loads for k in (1, 2))]
    table([*SHAPE, *head, "time 1 / 2", "seconds"], rows)


TASKS: dict[str, Callable[[Effort], None]] = {
    "recall": recall,
    "recall-state": recall_state,
    "needle": needle,
    "copy": copy,
    "serial": serial,
    "regimes": regimes,
}


def chosen_from(known: Iterable[str]) -> Callable[[str], tuple[str, ...]]:
    def parse(text: str) -> tuple[str, ...]:
        names = tuple(text.split(","))
        unknown = [name for name in names if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
        return names

    return parse


def numbers(text: str) -> tuple[float, ...]:
    return tuple(float(number) for number in text.split(","))


def widths(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


def main() -> None:
    models = (*BASELINES, *INNER)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the training, on one seed: figures too low")
    parser.add_argument("--tasks", type=chosen_from(TASKS), default=tuple(TASKS))
    parser.add_argument(
        "--models", type=chosen_from(models), default=tuple(name for name in models if name != "atlas"), help=SLOW
    )
    parser.add_argument("--widths", type=widths, default=WIDTHS, help=f"of {PEER}, a size of all models each")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--tokens", type=float, default=2e6, help="of every length of associative recall")
    parser.add_argument("--rates", type=numbers, default=(5e-3,), help="of AdamW at its highest, the same for all")
    parser.add_argument("--state", type=int, default=400, help="floats of every state in recall-state: a matrix of 16")
    parser.add_argument("--steps", type=int, default=600, help="of training, of every other task")
    given = parser.parse_args()
    share = 0.1 if given.quick else 1.0
    effort = Effort(
        models=given.models,
        widths=given.widths,
        seeds=1 if given.quick else given.seeds,
        tokens=share * given.tokens,
        steps=int(share * given.steps),
        rates=given.rates,
        state=given.state,
    )
    torch.set_num_threads(1)
    print(machine())
    print(
        f"{effort.seeds} seeds (medians), {effort.tokens:.1e} tokens at most for every length of associative recall, "
        f"{effort.steps} steps of {BATCH} trials for every other task"
    )
    began = time.perf_counter()
    for name in given.tasks:
        TASKS[name](effort)
    print(f"\n{(time.perf_counter() - began) / 60:.0f} minutes")


if __name__ == "__main__":
    main()
