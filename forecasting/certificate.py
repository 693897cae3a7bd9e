"""What a bundle is measured to do: one computation in every form, no look ahead, and how fast.

The measurements run the graphs alone, by onnxruntime, on random data of the training data's level and scale. They are
made once at export, where a failure stops it, and again by `mnemo certify` on the machine that will run the bundle.

Shapes: B series, T time, C channels.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from forecasting.bundle import Bundle
from forecasting.graphs import State
from forecasting.runtime import LoadedBundle, load_bundle

Array = NDArray[Any]

TOLERANCE = 1e-4  # relative difference between two forms of one computation in float32
ROWS = 3  # series in a batch
LENGTH = 160  # steps of the random data; longer than the chunks and most seasons that models work in
DEFINITION = (
    "largest absolute difference of two predictions, divided by the scale of the series' predictions: the larger of "
    "their standard deviation and a tenth of their root mean square; 1 for probabilities"
)


def certify(
    bundle: str | os.PathLike[str] | Bundle | LoadedBundle,
    *,
    seed: int = 0,
    tolerance: float = TOLERANCE,
    steps: int = 2_000,
    budget_s: float = 10.0,
    torch_difference: float | None = None,
) -> dict[str, Any]:
    """Measure parity, causality and latency on this machine; `passed` says whether all of it holds.

    Args:
        bundle: a directory, or what was read from it.
        tolerance: largest relative difference that passes (`DEFINITION` says relative to what).
        steps: single steps that are timed; fewer if they take longer than `budget_s` seconds in all.
        torch_difference: between the graphs and the model they were exported from, where that was measured.
    """
    if isinstance(bundle, Bundle):
        loaded = LoadedBundle(bundle)
    elif isinstance(bundle, LoadedBundle):
        loaded = bundle
    else:
        loaded = load_bundle(bundle)
    x, mask = sample_input(loaded.card, seed=seed)
    future = sample_future(loaded.card, seed=seed)
    reference, after = loaded.run_scan(x, mask, loaded.initial_state(ROWS), *future)
    parity = _parity(loaded, x, mask, future, reference, np.random.default_rng(seed))
    if torch_difference is not None:
        parity["torch"] = torch_difference
    finite = _is_finite(reference, after)
    causality = _causality(loaded, x, mask, future, reference) if loaded.streams else None
    agrees = all(difference <= tolerance for difference in parity.values())  # NaN is never within it
    return {
        "passed": agrees and finite and (causality is None or causality["passed"]),
        "parity": {**parity, "tolerance": tolerance, "passed": agrees, "relative_to": DEFINITION},
        "finite": finite,
        "causality": causality,
        "latency": _latency(loaded, x, mask, future, steps, budget_s),
        "data": {"series": ROWS, "steps": LENGTH, "seed": seed, "missing": round(float(1 - mask.mean()), 3)},
        "machine": machine(),
        "onnxruntime": onnxruntime.__version__,
        "providers": loaded.providers,
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def explain(certificate: dict[str, Any]) -> str:
    """Why a certificate did not pass, in one sentence; empty if it did."""
    reasons = []
    parity = certificate["parity"]
    names = {
        "split": "a scan in two parts differs from one scan",
        "steps": "single steps differ from a scan",
        "rows": "a series alone differs from the same in a batch",
        "missing": "the value behind a mask changes the prediction",
        "look": "a step with a look predicts something else than a step",
        "torch": "the graph differs from the model",
    }
    for key, meaning in names.items():
        if key in parity and not parity[key] <= parity["tolerance"]:
            reasons.append(f"{meaning} by {parity[key]:.2g} (allowed {parity['tolerance']:g})")
    if not certificate["finite"]:
        reasons.append("a prediction or a state is not finite")
    if certificate["causality"] is not None and not certificate["causality"]["passed"]:
        reasons.append(f"a prediction changes with what comes after it, at step {certificate['causality']['first']}")
    return "; ".join(reasons)


def sample_input(card: dict[str, Any], *, seed: int = 0, rows: int = ROWS, length: int = LENGTH) -> tuple[Array, Array]:
    """Random x, mask (B, T, C) like the data that the card's model was made for, NaN behind every mask.

    A random walk with a season, of the training data's level and scale where the card knows them, else of 0 and 1. The
    first series is complete, the second has scattered gaps, the third starts late and has a long gap.
    """
    rng = np.random.default_rng(seed)
    channels = len(card["task"]["channels"])
    typical = (card.get("training") or {}).get("typical") or {}
    level = np.array(typical.get("level") or np.zeros(channels), dtype=np.float64)
    scale = np.array(typical.get("scale") or np.ones(channels), dtype=np.float64)
    t = np.arange(length)[:, None]
    season = max(2, int(card["task"]["season"]))
    wave = np.sin(2 * np.pi * t / season + rng.uniform(0, 2 * np.pi, (rows, 1, channels)))
    walk = rng.normal(size=(rows, length, channels)).cumsum(1) / np.sqrt(length)
    x = level + scale * (0.5 * wave + walk + 0.3 * rng.normal(size=walk.shape))
    mask = np.ones(x.shape)
    for row in range(rows):
        if row % 3 == 1:
            mask[row] = rng.random(mask.shape[1:]) > 0.2
        elif row % 3 == 2:
            mask[row, : length // 20] = 0
            mask[row, length // 3 : length // 3 + length // 4] = 0
    return np.where(mask > 0, x, np.nan).astype(np.float32), mask.astype(np.float32)


def sample_future(card: dict[str, Any], *, seed: int = 0, rows: int = ROWS, length: int = LENGTH) -> tuple[Array, ...]:
    """Random values (B, T, H, F) of what is known ahead, like the card's training data; nothing where no graph asks."""
    if not any(
        entering["name"] == "future" for graph in card.get("graphs", {}).values() for entering in graph["inputs"]
    ):
        return ()
    count = len(card["task"]["future"])
    typical = (card.get("training") or {}).get("typical") or {}
    level, scale = (
        np.array(typical.get(name) or [value] * count)[-count:] for name, value in (("level", 0), ("scale", 1))
    )
    noise = np.random.default_rng((seed, count)).normal(size=(rows, length, int(card["task"]["horizon"]), count))
    return ((level + scale * noise).astype(np.float32),)


def relative_difference(found: Array, expected: Array, kind: str) -> float:
    """The largest difference between predictions (B, T, ...), in the sense of `DEFINITION`; inf if not finite."""
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    if not (np.isfinite(found).all() and np.isfinite(expected).all()):
        return float("inf")
    if kind == "classify":
        scale = np.ones(len(expected))
    else:
        flat = expected.reshape(len(expected), -1)
        scale = np.maximum(flat.std(1), np.sqrt((flat * flat).mean(1)) / 10)
    difference = np.abs(found - expected).reshape(len(expected), -1).max(1)
    return float((difference / np.maximum(scale, np.finfo(np.float32).tiny)).max())


def machine() -> dict[str, Any]:
    """The computer that this runs on."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    return {"cpu": name, "cores": os.cpu_count(), "system": platform.system(), "architecture": platform.machine()}


def _parity(
    loaded: LoadedBundle,
    x: Array,
    mask: Array,
    future: tuple[Array, ...],
    reference: Array,
    rng: np.random.Generator,
) -> dict[str, float]:
    """How far each form of the computation lies from one scan of the whole batch."""
    kind = loaded.kind
    state = loaded.initial_state(ROWS)
    ones = [{name: value[b : b + 1] for name, value in state.items()} for b in range(ROWS)]
    alone = [
        loaded.run_scan(x[b : b + 1], mask[b : b + 1], one, *(known[b : b + 1] for known in future))[0]
        for b, one in enumerate(ones)
    ]
    hidden = np.where(mask > 0, x, 1e3 * rng.normal(size=x.shape)).astype(np.float32)
    unmasked = loaded.run_scan(hidden, mask, loaded.initial_state(ROWS), *future)[0]
    result = {
        "rows": relative_difference(np.concatenate(alone), reference, kind),
        "missing": relative_difference(unmasked, reference, kind),
    }
    if not loaded.streams:
        return result
    splits = []
    for cut in (1, 2, 33, LENGTH // 2, LENGTH - 1):
        first, rest = ([known[:, part] for known in future] for part in (slice(cut), slice(cut, None)))
        head, between = loaded.run_scan(x[:, :cut], mask[:, :cut], loaded.initial_state(ROWS), *first)
        tail, _ = loaded.run_scan(x[:, cut:], mask[:, cut:], between, *rest)
        splits.append(relative_difference(np.concatenate([head, tail], 1), reference, kind))
    state = loaded.initial_state(ROWS)
    steps = []
    for t in range(LENGTH):
        prediction, state = loaded.run_step(x[:, t], mask[:, t], state, *(known[:, t] for known in future))
        steps.append(prediction)
    stepped = np.stack(steps, 1)
    result = {"split": max(splits), "steps": relative_difference(stepped, reference, kind), **result}
    if loaded.has_look:
        result["look"] = relative_difference(_looked(loaded, x, mask), stepped, kind)
    return result


def _looked(loaded: LoadedBundle, x: Array, mask: Array) -> Array:
    """Predictions of steps with a look; NaN if a look is not finite where something was observed."""
    state = loaded.initial_state(len(x))
    steps = []
    for t in range(x.shape[1]):
        prediction, state, look = loaded.run_look(x[:, t], mask[:, t], state)
        there = mask[:, t].any(-1)
        known = all(bool(np.isfinite(value[there]).all()) for value in look.values())
        steps.append(prediction if known else np.full_like(prediction, np.nan))
    return np.stack(steps, 1)


def _causality(
    loaded: LoadedBundle, x: Array, mask: Array, future: tuple[Array, ...], reference: Array
) -> dict[str, Any]:
    """Whether predictions at or before t are the same to the bit when everything after t is another.

    What is known ahead at t is no part of that, only what is known so at later steps.
    """
    cuts = [0, 1, 7, LENGTH // 4, LENGTH // 2, LENGTH - 2]
    other = np.where(mask > 0, 3 * x + 1, 1).astype(np.float32)
    elsewhere = mask[:, ::-1, :][::-1]  # the gaps of another series, in reverse
    for cut in cuts:
        changed, shown = x.copy(), mask.copy()
        changed[:, cut + 1 :], shown[:, cut + 1 :] = other[:, cut + 1 :], elsewhere[:, cut + 1 :]
        ahead = [np.concatenate([known[:, : cut + 1], 3 * known[:, cut + 1 :] + 1], 1) for known in future]
        prediction = loaded.run_scan(changed, shown, loaded.initial_state(ROWS), *ahead)[0]
        if not np.array_equal(prediction[:, : cut + 1], reference[:, : cut + 1]):
            same = (prediction[:, : cut + 1] == reference[:, : cut + 1]).reshape(ROWS, cut + 1, -1).all((0, 2))
            return {"passed": False, "first": int((~same).argmax()), "cuts": cuts}
    return {"passed": True, "cuts": cuts}


def _latency(
    loaded: LoadedBundle, x: Array, mask: Array, future: tuple[Array, ...], steps: int, budget_s: float
) -> dict[str, Any]:
    """Microseconds of a step of one series: the graph alone with bound memory, all of `Stream.step`, and `Stream.look`.

    Of a model that does not stream: of one whole sequence.
    """
    if not loaded.streams:
        state = loaded.initial_state(1)
        scan = _time(lambda t: loaded.run_scan(x[:1], mask[:1], state), steps // 20, budget_s)
        return {"threads": loaded.threads, "scan_us": scan | {"length": LENGTH}}
    name = next(iter(loaded.fitted), "a")
    stream = loaded.stream([name])
    values = x[0, :, : len(loaded.channels)].astype(float).tolist()
    ahead: dict[str, Any] = {"future": {name: future[0][0, 0, :, : len(loaded.future)]}} if loaded.future else {}
    if loaded.calendar and not loaded.fitted:  # the stream's clock starts where the training data end
        stream.step({name: values[0]}, at=loaded.card["training"]["period"][1], **ahead)
    # So few of them that the clock stays within the years that time stamps have, whatever a period is.
    dated = min(steps, LENGTH) if loaded.calendar else steps
    full = _time(lambda t: stream.step({name: values[t % LENGTH]}, **ahead), dated, budget_s / 2)
    graph = _time(lambda t: stream.run(), steps, budget_s / 2)
    latency = {"threads": loaded.threads, "step_us": graph, "stream_step_us": full}
    if loaded.has_look:
        latency["stream_look_us"] = _time(lambda t: stream.look({name: values[t % LENGTH]}), dated // 4, budget_s / 4)
    return latency


def _time(call: Callable[[int], object], count: int, budget_s: float) -> dict[str, float]:
    for t in range(min(50, count)):  # first calls allocate
        call(t)
    began = time.perf_counter_ns()
    spent = []
    for t in range(count):
        start = time.perf_counter_ns()
        call(t)
        end = time.perf_counter_ns()
        spent.append(end - start)
        if end - began > budget_s * 1e9:
            break
    p50, p99 = np.percentile(spent, [50, 99])
    return {
        "p50": round(p50 / 1e3, 1),
        "p99": round(p99 / 1e3, 1),
        "max": round(max(spent) / 1e3, 1),
        "count": len(spent),
    }


def _is_finite(prediction: Array, state: State) -> bool:
    return all(bool(np.isfinite(value).all()) for value in (prediction, *state.values()))
