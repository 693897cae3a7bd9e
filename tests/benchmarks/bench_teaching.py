"""New gestures from five demonstrations: accuracy on them and on the old ones, beside full retraining.

`isl_myo`, 26 letters of one person: ten letters, drawn with the seed, are held out; the network learns the other 16
from repetitions 1 to 14. Then the ten are taught one after the other, five demonstrations each out of the same
repetitions, and everything is judged on repetitions 18 to 20 at the end of each letter: those that the network was
trained on (old; before anything was taught in the first row) and those taught (new). 'retrained': the network trained
anew on all of the letters so far with all 14 repetitions, which is what teaching saves.
Memory: what a taught class adds to the file, and the whole file.

Before that: how well letters that were never shown are rejected. Rules of recognition are chosen on repetitions 15 to
17 for 95 % precision, of the old letters alone, or with one half of the others as movements that are none, and then
judged on the other half, and the other way round. 'Decided' is the share of letters of repetitions 18 to 20 that these
rules take for one of the 16, right or wrong.

Options: --models gru,rocket --seeds 3 (draws of demonstrations and of the order) --retrain 10 (counts; empty for none)
--keep DIR (networks are kept there, and those that are there are not trained again)
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from data.catalog import load
from data.frame import Dataset
from data.panel import Series, to_panel
from forecasting.export import export_bundle
from forecasting.runtime import LoadedBundle, load_bundle
from forecasting.task import Task
from forecasting.training import fit_model
from forecasting.windows import Parts, Span
from sensors.calibrate import Labelled, calibrate, judge, wilson
from sensors.recognise import Decider, Rules
from sensors.teach import Demonstration, GestureMemory
from tests.benchmarks.figures import machine, table

HELD_OUT, DEMONSTRATIONS, LENGTH = 10, 5, 400


def trained(name: str, dataset: Dataset, letters: list[str], folder: Path) -> tuple[LoadedBundle, float]:
    """A bundle of the letters alone, that of the folder if there is one, and the seconds that its training took."""
    if folder.exists():
        kept = load_bundle(folder)
        return kept, float(kept.card["training"].get("seconds") or math.nan)
    own = dataclasses.replace(dataset, frame=dataset.frame[dataset.frame["label"].isin(letters)].reset_index(drop=True))
    parts, task, panel = dataset.splits.entity or {}, Task.of(own), to_panel(own)
    spans = {
        part: [Span(series, 0, LENGTH) for series in panel if parts[series.unique_id] == part]
        for part in ("train", "validation", "test")
    }
    model = fit_model(name, task, Parts(**spans), settings={"lookback": LENGTH}, seed=0)
    export_bundle(
        model.model, task, folder, name=name, config=model.config, training={"seconds": model.seconds}, metrics=[]
    )
    return load_bundle(folder), model.seconds


def stepped(bundle: LoadedBundle, series: list[Series]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Probabilities (B, T, K) after each frame, and the states at the end."""
    x = np.stack([one.values for one in series]).astype(np.float32)
    state = bundle.initial_state(len(x))
    said = []
    for t in range(x.shape[1]):
        probabilities, state = bundle.run_step(x[:, t], np.isfinite(x[:, t]), state)
        said.append(probabilities)
    return np.stack(said, 1), state


def recorded(bundle: LoadedBundle, said: np.ndarray, letters: Sequence[str]) -> list[Labelled]:
    """said: (B, T, K); a letter that the bundle does not know is -1."""
    known = {label: index for index, label in enumerate(bundle.labels)}
    return [Labelled(rows, np.full(LENGTH, known.get(name, -1))) for rows, name in zip(said, letters, strict=True)]


def decided(bundle: LoadedBundle, said: np.ndarray, rules: Rules) -> np.ndarray:
    """(B,) whether the rules decide for any class."""
    found = []
    for rows in said:
        decider = Decider(bundle.labels, (), rules)
        found.append(any("decision" in decider.step(row).events for row in rows))
    return np.array(found)


def percent(draws: list[np.ndarray]) -> str:
    """Mean over the draws; the interval is that of one draw's tests, which the draws share."""
    right = float(np.mean([draw.mean() for draw in draws]))
    low, high = wilson(right * draws[0].size, draws[0].size)
    return f"{100 * right:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--models", default="gru,rocket")
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--retrain", default="10")
    options.add_argument("--keep", default="")
    chosen = options.parse_args()
    print(machine())
    dataset = load("isl_myo")
    parts = dataset.splits.entity or {}
    letters = sorted(dataset.frame["label"].unique())
    held = [letters[i] for i in np.random.default_rng(0).permutation(len(letters))[:HELD_OUT]]
    old = [letter for letter in letters if letter not in held]
    series = {
        part: [s for s in to_panel(dataset) if parts[s.unique_id] == part] for part in dict.fromkeys(parts.values())
    }
    name_of = {s.unique_id: s.unique_id.split("/")[0] for group in series.values() for s in group}
    truth = np.array([name_of[s.unique_id] for s in series["test"]])
    rows: list[list[str]] = []
    for model in chosen.models.split(","):
        with tempfile.TemporaryDirectory() as fresh:
            folder = Path(chosen.keep or fresh) / model
            folder.mkdir(parents=True, exist_ok=True)
            bundle, seconds = trained(model, dataset, old, folder / "old")
            frames, state = stepped(bundle, series["test"])
            said, is_old = frames[:, -1], np.isin(truth, old)
            chosen_on = [name_of[s.unique_id] for s in series["validation"]]
            recordings = recorded(bundle, stepped(bundle, series["validation"])[0], chosen_on)
            half = HELD_OUT // 2
            for strange, never in (([], held), (held[:half], held[half:]), (held[half:], held[:half])):
                seen = [r for r, letter in zip(recordings, chosen_on, strict=True) if letter in old + strange]
                rules = calibrate(seen, bundle.labels, [], 200.0).rules
                yes = decided(bundle, frames, rules)
                known = [r for r, of_old in zip(recorded(bundle, frames, truth), is_old, strict=True) if of_old]
                judged = judge(known, bundle.labels, [], rules, 200.0)
                print(
                    f"{model}, rules that saw {len(strange)} other letters: threshold {rules.threshold:g}, dwell "
                    f"{rules.dwell} frames: precision {100 * judged.precision:.1f} %, recall {100 * judged.recall:.1f} "
                    f"after {100 * judged.earliness:.0f} % of a letter; decided {percent([yes[is_old]])} % of known "
                    f"letters, {percent([yes[np.isin(truth, never)]])} % of {len(never)} never shown",
                    flush=True,
                )
            before = np.array(bundle.labels)[said.argmax(1)] == truth
            rows.append(
                [model, "0", "network", percent([before[is_old]]), "", percent([before[is_old]]), f"{seconds:.0f}"]
            )
            began = time.perf_counter()
            train = [s for s in series["train"] if name_of[s.unique_id] in old]
            known = GestureMemory.of(
                bundle,
                [(s.values, np.full(LENGTH, bundle.labels.index(name_of[s.unique_id]))) for s in train],
            )
            prepared = time.perf_counter() - began
            found: dict[tuple[int, str], list[tuple[np.ndarray, np.ndarray]]] = {}
            spent = []
            for seed in range(chosen.seeds):
                rng = np.random.default_rng(seed)
                memory = known
                for count, letter in enumerate(rng.permutation(held), 1):
                    own = [s for s in series["train"] if name_of[s.unique_id] == letter]
                    picked = rng.permutation(len(own))[:DEMONSTRATIONS]
                    began = time.perf_counter()
                    memory = memory.taught(bundle, str(letter), [Demonstration(own[i].values) for i in picked])
                    spent.append(time.perf_counter() - began)
                    names = np.array(memory.labels)
                    is_new = np.isin(truth, memory.labels[memory.known :])
                    seen = names[memory.answers(said, state).argmax(1)]
                    found.setdefault((count, "taught"), []).append((seen == truth, is_new))
            for (count, how), each in found.items():
                right_old = [right[is_old] for right, _ in each]
                right_new = [right[is_new] for right, is_new in each]
                both = [right[is_old | is_new] for right, is_new in each]
                cost = f"{np.median(spent):.2f}"
                rows.append([model, str(count), how, percent(right_old), percent(right_new), percent(both), cost])
                print("  ".join(rows[-1]), flush=True)
            memory.save(folder / "memory")
            size = sum((folder / f"memory.{end}").stat().st_size for end in ("npz", "json"))
            print(
                f"{model}: statistics of the known classes, once: {prepared:.1f} s; memory file {size / 2**20:.2f} MB, "
                f"{memory.means[0].nbytes} bytes a class; "
                f"network {(bundle.path / 'step.onnx').stat().st_size / 2**20:.2f} MB"
            )
            for count in [int(text) for text in chosen.retrain.split(",") if text]:
                again, seconds = trained(model, dataset, [*old, *held[:count]], folder / f"all{count}")
                said = stepped(again, series["test"])[0][:, -1]
                right = np.array(again.labels)[said.argmax(1)] == truth
                is_new = np.isin(truth, held[:count])
                rows.append(
                    [model, str(count), "retrained", percent([right[is_old]]), percent([right[is_new]]),
                     percent([right[is_old | is_new]]), f"{seconds:.0f}"]
                )  # fmt: skip
                print("  ".join(rows[-1]), flush=True)
    print()
    table(["model", "new classes", "how", "old %", "new %", "all %", "s"], rows)
    print(f"accuracy with Wilson's 95 % interval, over {chosen.seeds} draws; s: of training, or to teach one class")


if __name__ == "__main__":
    main()
