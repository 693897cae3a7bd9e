"""Accuracy on real gestures, seen whole and in part, for people or repetitions that were kept out of training.

For each set and fold: accuracy, macro-F1 and balanced accuracy (mean recall) after 25, 50, 75 and 100 % of each gesture
(`ceil((L - 1) f)`, as UC2017 does), with a 95 % interval from resampling recordings; the folds of one kind together as
`each person` or `each session`; and how far each model is ahead of the first peer, paired by recording. Then what a
robot would get: the rules of recognition that decide as early as 95 % precision on the validation part allows, applied
to the test: precision and recall of decisions, the share of a gesture that was seen when it was decided, false
activations per minute of rest.

A streaming model is one for all fractions and is asked at every frame. One that chooses no epoch, such as class-forest
and ring-forest, learns from the validation part too, as its peers do; decisions are those of another that does not.
Random forest and MiniRocket are trained anew for each fraction, on series cut there, as a batch method would have to
be. They stand beside in the same run: random forest with scikit-learn, on statistics and (resampled-pca) on UC2017's
features, a gesture resampled to 20 frames and the principal axis of its frames; windowed-forest (of continuous
recordings) is the first of them with the mean magnitude of longer pasts beside the half second, which ones chosen by
leaving out each person, or session, of the training part in turn; MiniRocket and MultiRocket-Hydra where aeon is
installed (`pip install aeon` into an environment that has this project); else the run says that they are left out.

Sets and folds: `isl_myo`, the last three repetitions of 20; the last half by the first, for the intervals of few
gestures are wide; and far ones, the last five by the first five and the other way round: a hand, and where a sensor
believes north to be, change with time (a letter's repetitions were recorded in one go, so a heading that drifts tells
letters apart until it has drifted). `vmg30_glove`, the source's validation part. `uc2017_sg`, each user in turn (one
frame a gesture, so only 100 %). `myo_wrist`, each person in turn, and each session of those who have two: continuous
recordings, judged at the end of every half second by the label there, peers on that half second alone.

Options: --sets isl_myo,... --models gru,rocket,... --seeds 1
--peers random-forest,resampled-pca,windowed-forest,minirocket,hydra
--folds 0 (all) --fold NAME (those whose names begin so) --set field=value
--adapt N: the test's people weigh as much as training after N frames (see `sensors.person`); 0 for the model's prior.
--known: every gesture or recording, in training too, begins with the statistics of what its person has shown before
it, as a stream that goes on would; the first begins with none, and no label is used; the field `prior` says how many
frames of a person weigh as much as training.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[2]))
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import RidgeClassifierCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from data.catalog import load
from data.frame import Dataset
from data.panel import Series, to_panel
from data.uc2017 import LEAST_FRAMES, principal_axis, resampled
from forecasting.metrics import macro_f1
from forecasting.passes import one_pass
from forecasting.task import Task
from forecasting.training import TrainingConfig, fit_model
from forecasting.windows import Parts, Span, known_before
from models.catalog import entry, field_defaults
from models.contract import StepModel
from models.observation import RunningNormaliser
from sensors.calibrate import Calibrated, Judgement, Labelled, calibrate, judge
from tests.benchmarks.figures import machine, table

FRACTIONS = (0.25, 0.5, 0.75, 1.0)
HALF_SECOND = 100  # frames of myo_wrist
ISL_FAR = 5  # first, or last, repetitions that learn for those at the other end
LONGER = ((), (1000,), (500, 1000), (500, 1000, 2000), (500, 1000, 12000))  # frames of longer pasts to choose from
REST = "rest"  # the class that is no gesture, where a set has it
LAG = {"myo_wrist": 200}  # frames by which the hand may be behind the prompt that the labels follow
PRECISION = 0.95
# Training windows are whole gestures, or five seconds of a recording, of which there are enough without overlap. A
# kernel over time has nothing to see in one frame. Each model takes what it knows.
SETTINGS: dict[str, dict[str, Any]] = {
    "isl_myo": {"lookback": 400},
    "vmg30_glove": {"lookback": 400},
    "uc2017_sg": {"lookback": 1, "dilations": 1, "thresholds": 2, "batch_size": 64, "max_epochs": 30, "prior": 100},
    "myo_wrist": {
        "lookback": 1000,
        "stride": 1000,
        "short": HALF_SECOND,
        "thresholds": 2,
        "dilations": 5,
        "batch_size": 16,
        "max_epochs": 6,
    },
}


class Fold(NamedTuple):
    name: str
    train: list[Series]
    validation: list[Series]
    test: list[Series]
    owners: dict[str, str] | None = None  # series -> who or which session is kept out in turn; None where nobody is


@dataclass(frozen=True)
class Judged:
    """What was said of each judged gesture or half second at each fraction."""

    truth: np.ndarray  # (N,)
    series: np.ndarray  # (N,) which recording each is of
    said: dict[float, np.ndarray]  # (N,) each
    decided: tuple[Calibrated, Judgement] | None = None  # rules, and what they decide on the test


def folds(name: str, dataset: Dataset, panel: list[Series]) -> Iterator[Fold]:
    parts, people = dataset.splits.entity or {}, dataset.splits.group or {}
    everyone = sorted(set(people.values()))
    if name == "uc2017_sg":
        for person in everyone:
            fold = _fold(panel, f"person {person}", lambda s, p=person: people[s] == p)  # type: ignore[misc]
            yield fold._replace(train=[*fold.train, *fold.validation], validation=[])  # no epoch and no rules to choose
    elif name == "myo_wrist":
        sessions = {series.unique_id: series.unique_id.split("/")[0] for series in panel}
        for person in everyone:
            fold = _fold(panel, f"person {person}", lambda s, p=person: people[s] == p)  # type: ignore[misc]
            yield fold._replace(owners=people)
        for session in sorted({session for session in sessions.values() if not session.endswith("-1")}):
            fold = _fold(panel, f"session {session}", lambda s, p=session: sessions[s] == p)  # type: ignore[misc]
            yield fold._replace(owners=sessions)
    else:
        judged = "test" if "test" in parts.values() else "validation"
        yield _fold(panel, judged, lambda s: parts[s] == judged)
        if name == "isl_myo":

            def repetition(series: str) -> int:
                return int(series.rpartition("/")[2])

            most = max(repetition(series.unique_id) for series in panel)  # 20 in the shared part, 30 in all
            yield _fold(panel, "second half", lambda s: repetition(s) > most // 2)
            early, late = range(1, ISL_FAR + 1), range(most - ISL_FAR + 1, most + 1)
            ends = [series for series in panel if repetition(series.unique_id) in {*early, *late}]
            for kind, group in (("late", late), ("early", early)):
                yield _fold(ends, f"far {kind}", lambda s, g=group: repetition(s) in g)  # type: ignore[misc]


def _fold(panel: list[Series], name: str, is_test: Callable[[str], bool]) -> Fold:
    """Of what is not judged, every fifth series chooses the epoch."""
    test = [series for series in panel if is_test(series.unique_id)]
    rest = [series for series in panel if not is_test(series.unique_id)]
    return Fold(name, [s for i, s in enumerate(rest) if i % 5], rest[::5], test)


def judged_at(series: Series) -> dict[float, np.ndarray]:
    """Positions at which a series is judged for each fraction."""
    length = len(series.values)
    if length > 10 * HALF_SECOND:
        return {1.0: np.arange(HALF_SECOND - 1, length, HALF_SECOND)}
    fractions = FRACTIONS if length > 1 else (1.0,)
    return {fraction: np.array([math.ceil((length - 1) * fraction)]) for fraction in fractions}


def truths(test: list[Series]) -> np.ndarray:
    return np.concatenate([np.asarray(s.target)[judged_at(s)[1.0]] for s in test]).astype(int)


def owners(test: list[Series]) -> np.ndarray:
    return np.concatenate([np.full(len(judged_at(s)[1.0]), index) for index, s in enumerate(test)])


def ours(
    name: str,
    data: str,
    adapt: int,
    known: dict[str, np.ndarray],
    task: Task,
    fold: Fold,
    settings: dict[str, Any],
    seed: int,
) -> Judged:
    def spans(group: list[Series]) -> list[Span]:
        return [Span(series, 0, len(series.values), known.get(series.unique_id)) for series in group]

    fields = {*field_defaults(name), *vars(TrainingConfig())}
    own = {field: value for field, value in settings.items() if field in fields}
    # Who chooses no epoch learns from all that the peers do; rules are of one that never saw the validation part.
    if not fold.validation:
        own.pop("learn_validation", None)
    elif entry(name).learns != "gradient":
        own["learn_validation"] = True
    parts = Parts(spans(fold.train), spans(fold.validation), spans(fold.test))
    trained = fit_model(name, task, parts, settings=own, seed=seed)
    model, for_rules = trained.model, trained.before_validation or trained.model
    for each in (model, for_rules):
        normaliser = getattr(each, "normaliser", None)
        if adapt and isinstance(normaliser, RunningNormaliser):
            normaliser.prior = float(adapt)

    def everywhere(model: StepModel, group: list[Series]) -> list[Labelled]:
        frames = [np.arange(len(series.values)) for series in group]
        rows = one_pass(model, spans(group), frames)
        return [Labelled(row.values, np.asarray(series.target)) for row, series in zip(rows, group, strict=True)]

    test = everywhere(model, fold.test)
    found = [recording.probabilities.argmax(-1) for recording in test]
    said = {
        fraction: np.concatenate([labels[judged_at(s)[fraction]] for labels, s in zip(found, fold.test, strict=True)])
        for fraction in judged_at(fold.test[0])
    }
    decided = None
    if len(fold.test[0].values) > 1:
        if for_rules is not model:
            test = everywhere(for_rules, fold.test)
        none, lag = [REST] if REST in task.labels else [], LAG.get(data, 0)
        rate = 1 / float(task.freq)  # type: ignore[arg-type]
        rules = calibrate(everywhere(for_rules, fold.validation), task.labels, none, rate, target=PRECISION, lag=lag)
        decided = rules, judge(test, task.labels, none, rules.rules, rate, lag)
    return Judged(truths(fold.test), owners(fold.test), said, decided)


def peer(make: Callable[[int], Any], task: Task, fold: Fold, settings: dict[str, Any], seed: int) -> Judged:
    """A batch method: for each fraction fitted anew on training series cut there."""
    said = {}
    for fraction in judged_at(fold.test[0]):
        x, y = pieces([*fold.train, *fold.validation], fraction)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            said[fraction] = make(seed).fit(x, y).predict(pieces(fold.test, fraction, x.shape[2])[0]).astype(int)
    return Judged(truths(fold.test), owners(fold.test), said)


def windowed(task: Task, fold: Fold, settings: dict[str, Any], seed: int) -> Judged:
    """The forest of the half second, with the mean magnitude of those longer pasts that the training part chooses."""
    whose = fold.owners
    assert whose is not None  # or `main` leaves it out
    group = [*fold.train, *fold.validation]
    rows = {
        series.unique_id: (ForestOfStatistics.features(pieces([series], 1.0)[0]), long_pasts(series), truths([series]))
        for series in (*group, *fold.test)
    }

    def said(learned: list[Series], judged: list[Series], pasts: tuple[int, ...], trees: int, every: int) -> np.ndarray:
        def features(series: Series) -> np.ndarray:
            half_second, longer, _ = rows[series.unique_id]
            return np.concatenate([half_second, *[longer[past] for past in pasts]], 1)

        x = np.concatenate([features(series) for series in learned])[::every]
        forest = RandomForestClassifier(trees, n_jobs=-1, random_state=seed)
        return forest.fit(x, truths(learned)[::every]).predict(np.concatenate([features(s) for s in judged]))

    def worth(pasts: tuple[int, ...]) -> float:
        """Accuracy and balanced accuracy together, for each who has not been seen."""
        found = []
        for left_out in seen_again({whose[s.unique_id] for s in group}):
            judged = [s for s in group if whose[s.unique_id] == left_out]
            learned = [s for s in group if whose[s.unique_id] != left_out]
            truth, answer = truths(judged), said(learned, judged, pasts, trees=60, every=3)
            recalls = [(answer == label)[truth == label].mean() for label in np.unique(truth)]
            found.append((answer == truth).mean() + np.mean(recalls))
        return float(np.mean(found))

    chosen = max(LONGER, key=worth)
    print(f"  {fold.name}: longer pasts of {', '.join(map(str, chosen)) or 'no'} frames")
    return Judged(truths(fold.test), owners(fold.test), {1.0: said(group, fold.test, chosen, trees=300, every=1)})


def seen_again(owners: set[str]) -> list[str]:
    """Who is to be kept out in turn: every person; of sessions, such as ana-2, those whose person has another."""
    people = [owner.partition("-")[0] for owner in owners]
    return sorted(owner for owner in owners if "-" not in owner or people.count(owner.partition("-")[0]) > 1)


def long_pasts(series: Series) -> dict[int, np.ndarray]:
    """Frames -> mean magnitude (N, C) of the last so many, or of as many as there were, at each judged position."""
    sums = np.abs(np.nan_to_num(np.asarray(series.values, float))).cumsum(0)
    sums = np.concatenate([np.zeros_like(sums[:1]), sums])
    end = judged_at(series)[1.0] + 1
    found = {}
    for past in sorted({past for pasts in LONGER for past in pasts}):
        begin = np.maximum(end - past, 0)
        found[past] = (sums[end] - sums[begin]) / (end - begin)[:, None]
    return found


def pieces(group: list[Series], fraction: float, length: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(N, C, L): what a batch method sees at each judged position; of a recording the last half second alone.

    Gestures of other lengths are resampled, to the median one or to `length` frames, with missing values filled.
    """
    found, labels = [], []
    for series in group:
        values = np.nan_to_num(np.asarray(series.values, float))
        for at in judged_at(series)[fraction]:
            first = at + 1 - HALF_SECOND if len(values) > 10 * HALF_SECOND else 0
            found.append(values[first : at + 1])
            labels.append(int(np.asarray(series.target)[at]))
    length = length or int(np.median([len(piece) for piece in found]))
    if {len(piece) for piece in found} != {length}:
        grid = np.linspace(0, 1, length)
        found = [np.stack([np.interp(grid, np.linspace(0, 1, len(p)), c) for c in p.T], 1) for p in found]
    return np.stack(found).transpose(0, 2, 1), np.array(labels)


class ForestOfStatistics:
    """Random forest on the mean, deviation, extremes and mean magnitude of each tenth of each channel."""

    def __init__(self, seed: int) -> None:
        self.forest = RandomForestClassifier(300, n_jobs=-1, random_state=seed)

    def fit(self, x: np.ndarray, y: np.ndarray) -> ForestOfStatistics:
        self.forest.fit(self.features(x), y)
        return self

    def predict(self, x: np.ndarray) -> np.ndarray:
        return self.forest.predict(self.features(x))

    @staticmethod
    def features(x: np.ndarray) -> np.ndarray:
        tenths = np.array_split(x, min(10, x.shape[2]), axis=2)
        local = [f(part) for part in tenths for f in (lambda p: p.mean(2), lambda p: np.abs(p).mean(2))]
        return np.concatenate([*local, x.mean(2), x.std(2), x.min(2), x.max(2)], 1)


class ForestOfPaths:
    """UC2017's features of what was seen: 20 frames by cubic resampling (CI) and the principal axis (PV)."""

    def __init__(self, seed: int) -> None:
        self.forest = RandomForestClassifier(50, max_depth=15, n_jobs=-1, random_state=seed)  # the paper's, for DG

    def fit(self, x: np.ndarray, y: np.ndarray) -> ForestOfPaths:
        self.forest.fit(self._features(x), y)
        return self

    def predict(self, x: np.ndarray) -> np.ndarray:
        return self.forest.predict(self._features(x))

    @staticmethod
    def _features(x: np.ndarray) -> np.ndarray:
        rows = []
        for sample in x.transpose(0, 2, 1):
            axis = principal_axis(sample) if len(sample) >= LEAST_FRAMES else np.zeros(sample.shape[1])
            rows.append(np.concatenate([resampled(sample).ravel(), axis]))
        return np.stack(rows)


class Convolutions:
    """aeon's transform, then its authors' ridge."""

    def __init__(self, transform: Any) -> None:
        self.transform = transform
        self.ridge = make_pipeline(StandardScaler(), RidgeClassifierCV(np.logspace(-3, 5, 15)))

    def fit(self, x: np.ndarray, y: np.ndarray) -> Convolutions:
        self.ridge.fit(self.transform.fit_transform(x.astype(np.float32)), y)
        return self

    def predict(self, x: np.ndarray) -> np.ndarray:
        return self.ridge.predict(self.transform.transform(x.astype(np.float32)))


def minirocket(seed: int) -> Any:
    from aeon.transformations.collection.convolution_based import MiniRocket

    return Convolutions(MiniRocket(random_state=seed))


def hydra(seed: int) -> Any:
    from aeon.classification.convolution_based import MultiRocketHydraClassifier

    return MultiRocketHydraClassifier(random_state=seed)


PEERS: dict[str, Callable[[int], Any]] = {
    "random-forest": ForestOfStatistics,
    "resampled-pca": ForestOfPaths,
    "minirocket": minirocket,
    "hydra": hydra,
}
OF_AEON = ("minirocket", "hydra")
WINDOWED = "windowed-forest"


def interval(right: np.ndarray, series: np.ndarray, seed: int = 0) -> float:
    """Half of a 95 % interval of the mean, in percent, by resampling recordings: what is of one hangs together."""
    rng = np.random.default_rng(seed)
    sums, counts = np.bincount(series, weights=right), np.bincount(series)
    drawn = rng.integers(0, len(counts), (2000, len(counts)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    return 50 * float(np.quantile(means, 0.975) - np.quantile(means, 0.025))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--sets", default=",".join(SETTINGS))
    options.add_argument("--models", default="rocket,gru,lstm,conv-lstm,titans-lmm,class-forest")
    options.add_argument("--peers", default="random-forest,resampled-pca,minirocket")
    options.add_argument("--seeds", type=int, default=1)
    options.add_argument("--folds", type=int, default=0, help="only the first so many; 0 for all")
    options.add_argument("--fold", default="", help="those whose names begin so")
    options.add_argument("--adapt", type=int, default=0)
    options.add_argument("--known", action="store_true")
    options.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    chosen = options.parse_args()
    extra = dict(pair.split("=", 1) for pair in chosen.set)
    print(machine())
    peers = [peer for peer in chosen.peers.split(",") if peer]
    if importlib.util.find_spec("aeon") is None:
        absent = [peer for peer in peers if peer in OF_AEON]
        peers = [peer for peer in peers if peer not in OF_AEON]
        print(f"left out, for aeon is not installed: {', '.join(absent) or 'none that was asked for'}")
    for name in chosen.sets.split(","):
        dataset = load(name)
        panel = to_panel(dataset)
        task = Task.of(dataset)
        known = known_before(panel, dataset.splits.group or {}) if chosen.known else {}
        rows: list[list[str]] = []
        together: dict[tuple[str, str], list[list[Judged]]] = {}
        for number, fold in enumerate(folds(name, dataset, panel)):
            if chosen.folds and number >= chosen.folds:
                break
            if not fold.name.startswith(chosen.fold):
                continue
            runs = [
                (model, partial(ours, model, name, chosen.adapt, known))
                for model in filter(None, chosen.models.split(","))
            ]
            runs += [
                (model, windowed if model == WINDOWED else partial(peer, PEERS[model]))
                for model in peers
                if model != WINDOWED or fold.owners is not None
            ]
            if len(fold.test[0].values) == 1:
                runs = [run for run in runs if run[0] not in OF_AEON]  # one frame is no series
            for model, run in runs:
                began = time.perf_counter()
                found = [run(task, fold, SETTINGS[name] | extra, seed) for seed in range(chosen.seeds)]
                seconds = f"{(time.perf_counter() - began) / chosen.seeds:.0f}"
                together.setdefault((fold.name.split()[0], model), []).append(found)
                rows.append([name, fold.name, model, *cells(found, len(task.labels)), *decisions(found), seconds])
                print("  ".join(rows[-1]), flush=True)
        if not rows:
            options.error(f"{name} has no fold whose name begins with '{chosen.fold}'.")
        joined = {key: [joint(list(each)) for each in zip(*found, strict=True)] for key, found in together.items()}
        for (kind, model), found in joined.items():
            first = joined.get((kind, peers[0])) if peers else None
            if len(together[kind, model]) > 1:
                rows.append([name, f"each {kind}", model, *cells(found, len(task.labels)), *[""] * 5])
            if first is not None and model != peers[0]:
                ahead = [gap(found, first, f) if f in found[0].said else "" for f in FRACTIONS]
                rows.append([name, f"each {kind}", f"{model} less {peers[0]}", *ahead, *[""] * 5])
        print()
        head = ["precision", "recall", "seen", "false/min", "s a seed"]
        table(["set", "judged", "model", *(f"{f:.0%}" for f in FRACTIONS), *head], rows)
        print(
            "each: accuracy % ± 95 % interval / macro-F1 % / balanced accuracy %; medians over seeds. Decisions at "
            "rules of 95 % precision on the validation part (!: it was not reached): precision with its 95 % interval, "
            "recall, share of a gesture seen, false activations per minute of rest\n"
        )


def decisions(found: list[Judged]) -> list[str]:
    """Medians over the seeds; the interval of the first."""
    each = [judged.decided for judged in found if judged.decided is not None]
    if not each:
        return [""] * 4
    judged = [judgement for _, judgement in each]
    low, high = judged[0].precision_interval
    mark = "" if all(rules.reached for rules, _ in each) else "!"
    medians = [
        float(np.median([getattr(one, what) for one in judged]))
        for what in ("precision", "recall", "earliness", "false_per_minute")
    ]
    rest = "" if math.isnan(medians[3]) else f"{medians[3]:.2f}"
    return [
        f"{mark}{100 * medians[0]:.1f} [{100 * low:.1f}, {100 * high:.1f}]",
        f"{100 * medians[1]:.1f}",
        f"{100 * medians[2]:.0f} %",
        rest,
    ]


def joint(parts: list[Judged]) -> Judged:
    """The same of all folds as if they were one."""
    series, first = [], 0
    for part in parts:
        series.append(part.series + first)
        first += part.series.max() + 1
    said = {fraction: np.concatenate([part.said[fraction] for part in parts]) for fraction in parts[0].said}
    return Judged(np.concatenate([part.truth for part in parts]), np.concatenate(series), said)


def right(found: list[Judged], fraction: float) -> np.ndarray:
    """(N,) how often each was said rightly, over the seeds."""
    return np.stack([each.said[fraction] == each.truth for each in found]).mean(0)


def gap(found: list[Judged], other: list[Judged], fraction: float) -> str:
    """By how much the first is more often right, with a paired interval."""
    more = right(found, fraction) - right(other, fraction)
    return f"{100 * more.mean():+.1f}±{interval(more, found[0].series):.1f}"


def cells(found: list[Judged], classes: int) -> list[str]:
    return [cell(found, fraction, classes) if fraction in found[0].said else "" for fraction in FRACTIONS]


def cell(found: list[Judged], fraction: float, classes: int) -> str:
    accuracy = [100 * float((each.said[fraction] == each.truth).mean()) for each in found]
    scores = [100 * macro_f1(each.truth, each.said[fraction], classes) for each in found]
    recalls = [
        100 * np.mean([(each.said[fraction] == k)[each.truth == k].mean() for k in np.unique(each.truth)])
        for each in found
    ]
    width = interval(right(found, fraction), found[0].series)
    return f"{np.median(accuracy):.1f}±{width:.1f}/{np.median(scores):.1f}/{np.median(recalls):.1f}"


if __name__ == "__main__":
    main()
