"""The dual form in compiled loops, one series at a time: what `dual` gives for the commonest rules, on the CPU.

Torch does one operation for all series, so that every operand comes from main memory and every small operation costs
its call. Here a series runs whole, chunk after chunk: its operands stay in a core's cache, and pointwise work is fused.
The formulas and their names are those of `dual`; those of the coefficients are recursions over the tokens, which need
neither logarithms nor matrix products: with e_t = rate_t importance_t,

    into_t = momentum_t into_{t-1} + e_t,   C_t = keep_t C_{t-1} + present_t into_t   (without momentum + e_t)
    beta_t = keep_t beta_{t-1},   carried_t = momentum_t carried_{t-1},
    start_t = keep_t start_{t-1} + present_t carried_t

and their gradients the same recursions backward, which divide by no gate.

A matrix product weighed by the k columns of `read` or `ends` is one of rows that stand side by side, each times its
weight (`_spread`), with W and S one under the other.

Shapes: as in `dual`; E width of the hidden layers, M numbers of a memory: of every layer W and, with momentum, S under
it, (k I, O). All arrays are contiguous float32.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, NamedTuple

import llvmlite.binding
import numpy as np
import torch
from numba import njit, types
from numba.extending import get_cython_function_address
from torch import Tensor

from models.memory.core import NORM_EPS, Rule


def _cacheable() -> bool:
    """Whether numba finds a folder to keep what it compiled in: beside this file, or the user's own for caches."""
    try:
        njit(cache=True)(_cacheable)
    except RuntimeError:
        logging.getLogger(__name__).warning(
            "no folder to keep compiled loops in, so each process compiles its own, in 20 s; NUMBA_CACHE_DIR names one"
        )
        return False
    return True


_OPTIONS: dict[str, Any] = {"cache": _cacheable(), "nogil": True, "error_model": "numpy"}
_INNER: dict[str, Any] = _OPTIONS | {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
_FAST = {"contract", "reassoc", "nsz"}  # not "nnan" or "ninf": what is not finite must stay so
_outer = njit(fastmath=_FAST, **_OPTIONS)
_inner = njit(fastmath=_FAST, **_INNER)
_exact = njit(fastmath={"contract"}, **_INNER)

# By a name of its own, because a function that holds an address cannot be cached.
llvmlite.binding.add_symbol("mnemo_sgemm", get_cython_function_address("scipy.linalg.cython_blas", "sgemm"))
_sgemm = types.ExternalFunction("mnemo_sgemm", types.void(*[types.intp] * 13))
_ZERO, _ONE = np.float32(0.0), np.float32(1.0)
_WORDS = np.array([ord("N"), ord("T"), 0x3F800000, 0x3F800000 - 2**31, 0], dtype=np.int32)  # N, T, 1.0, -1.0, 0.0
# Up to a million multiplications OpenBLAS multiplies in place, a third faster than else, but where the right one is
# turned; there it would call for threads of its own from 64^3 on.
_TILE, _DEEP, _DEEP_TURNED = 64, 192, 64


class Shapes(NamedTuple):
    layers: np.ndarray  # (layers, 3) int64: I, O and where the layer begins in M
    parts: int  # k
    chunk: int
    radius: float
    deep: bool  # not a matrix: with norm


class Kept(NamedTuple):
    """What the backward pass needs; of one chunk alone where there will be none."""

    memories: np.ndarray  # (N, chunks, M) in the ball
    norms: np.ndarray  # (N, chunks, layers, k) before
    scores: np.ndarray  # (N, layers, T b): (m, m) of every chunk
    keys: np.ndarray  # (N, layers - 1, T, E) before the activation
    queries: np.ndarray  # (N, layers - 1, T, E)
    back: np.ndarray  # (N, layers - 1, T, E)
    normed: np.ndarray  # (N, T, V), of a matrix its answer
    inverse: np.ndarray  # (N, T)


@_inner
def _product(into, a, b, box, a_turned=False, b_turned=False, minus=False, more=False):
    """into = (more: into) +- a b, either turned; box: (6) int32 to pass sizes in."""
    rows, columns = into.shape
    inner = a.shape[0] if a_turned else a.shape[1]
    step = _DEEP_TURNED if b_turned else _DEEP
    words, sizes = _WORDS.ctypes.data, box.ctypes.data
    box[3], box[4], box[5] = b.shape[1], a.shape[1], columns
    for row in range(0, rows, _TILE):
        box[1] = min(_TILE, rows - row)
        for column in range(0, columns, _TILE):
            box[0] = min(_TILE, columns - column)
            for deep in range(0, inner, step):
                box[2] = min(step, inner - deep)
                at_a = deep * a.shape[1] + row if a_turned else row * a.shape[1] + deep
                at_b = column * b.shape[1] + deep if b_turned else deep * b.shape[1] + column
                # What BLAS counts by columns are our rows: it finds b a turned.
                _sgemm(
                    words + 4 * b_turned, words + 4 * a_turned, sizes, sizes + 4, sizes + 8,
                    words + (12 if minus else 8), b.ctypes.data + 4 * at_b, sizes + 12, a.ctypes.data + 4 * at_a,
                    sizes + 16, words + (8 if more or deep else 16), into.ctypes.data + 4 * (row * columns + column),
                    sizes + 20,
                )  # fmt: skip


@_exact
def _sigmoid(z):
    """By a polynomial, which unlike the library's exponential runs many at once; NaN stays."""
    x = -z
    x = np.float32(88.0) if x > np.float32(88.0) else x
    x = np.float32(-87.0) if x < np.float32(-87.0) else x
    whole = np.floor(x * np.float32(1.44269504) + np.float32(0.5))
    rest = x - whole * np.float32(0.693359375) + whole * np.float32(2.12194440e-4)
    y = np.float32(1.9875691500e-4)
    for factor in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1, 1.0, 1.0):
        y = y * rest + np.float32(factor)
    bits = np.int32(whole if whole == whole else np.float32(0.0)) + np.int32(127)
    return np.float32(1.0) / (np.float32(1.0) + y * np.int32(bits << np.int32(23)).view(np.float32))


@_inner
def _clear(rows):
    for t in range(rows.shape[0]):
        for j in range(rows.shape[1]):
            rows[t, j] = _ZERO


@_inner
def _add(rows, into):
    for t in range(rows.shape[0]):
        for j in range(rows.shape[1]):
            into[t, j] += rows[t, j]


@_inner
def _silu(z, gate, value):
    """gate, the sigmoid, and value are written; what follows takes the gate rather than another exponential."""
    for t in range(z.shape[0]):
        for j in range(z.shape[1]):
            gate[t, j] = _sigmoid(z[t, j])
            value[t, j] = z[t, j] * gate[t, j]


@_inner
def _times_slope(z, gate, rows, into):
    for t in range(z.shape[0]):
        for j in range(z.shape[1]):
            value = z[t, j] * gate[t, j]
            into[t, j] = rows[t, j] * (gate[t, j] + value - gate[t, j] * value)


@_inner
def _bent(z, gate, back, d_error, into):
    """into: gradient by z of the error slope(z) back; d_error, of the error, becomes that of `back`."""
    for t in range(z.shape[0]):
        for j in range(z.shape[1]):
            open_, value = gate[t, j], z[t, j] * gate[t, j]
            into[t, j] = (open_ - open_ * open_) * (z[t, j] + 2 - 2 * value) * d_error[t, j] * back[t, j]
            d_error[t, j] *= open_ + value - open_ * value


@_inner
def _spread(rows, weights, into):
    """rows (m, I) by each of the weights (m, k), side by side: (m, k I)."""
    steps, width = rows.shape
    for t in range(steps):
        for place in range(weights.shape[1]):
            for j in range(width):
                into[t, place * width + j] = weights[t, place] * rows[t, j]


@_inner
def _spread_backward(d_spread, rows, weights, sign, d_rows, d_weights):
    """d_rows are written, d_weights added to; sign: of both."""
    steps, width = rows.shape
    for t in range(steps):
        for j in range(width):
            d_rows[t, j] = _ZERO
        for place in range(weights.shape[1]):
            along, weight = _ZERO, sign * weights[t, place]
            for j in range(width):
                along += d_spread[t, place * width + j] * rows[t, j]
                d_rows[t, j] += weight * d_spread[t, place * width + j]
            d_weights[t, place] += sign * along


@_inner
def _coefficients(gates, into, gradients, read, carried, ends):
    """gates: keep, momentum, rate, importance, present (m) each. The rest is written."""
    keep, momentum, rate, importance, present = gates
    moving, m = read.shape[1] == 2, len(keep)
    _clear(into)
    _clear(gradients)
    for t in range(m):
        own = rate[t] * importance[t]
        read[t, 0] = keep[t] * (read[t - 1, 0] if t else _ONE)
        if moving:
            carried[t] = momentum[t] * (carried[t - 1] if t else _ONE)
            read[t, 1] = keep[t] * (read[t - 1, 1] if t else _ZERO) + present[t] * carried[t]
            for j in range(t):
                into[t, j] = momentum[t] * into[t - 1, j]
                gradients[t, j] = keep[t] * gradients[t - 1, j] + present[t] * into[t, j]
            into[t, t], gradients[t, t] = own, present[t] * own
        else:
            for j in range(t):
                gradients[t, j] = keep[t] * gradients[t - 1, j]
            gradients[t, t] = own
    for i in range(m):
        ends[i, 0] = gradients[m - 1, i]
        if moving:
            ends[i, 1] = into[m - 1, i]


@_inner
def _coefficients_backward(gates, known, d_gradients, d_read, d_carried, d_ends, d_into, found):
    """found: gradients of keep, momentum, rate, importance (m) each, from those given, which are written over.

    known: into, gradients, read, carried; d_carried: of the last of these; d_into (m): room.
    """
    keep, momentum, rate, importance, present = gates
    into, gradients, read, carried = known
    d_keep, d_momentum, d_rate, d_importance = found
    moving, last = read.shape[1] == 2, len(keep) - 1
    for i in range(last + 1):
        d_gradients[last, i] += d_ends[i, 0]
        d_into[i] = d_ends[i, 1] if moving else _ZERO
    for t in range(last, -1, -1):
        if t < last:
            for place in range(read.shape[1]):
                d_read[t, place] += keep[t + 1] * d_read[t + 1, place]
            for j in range(t + 1):
                d_gradients[t, j] += keep[t + 1] * d_gradients[t + 1, j]
                d_into[j] *= momentum[t + 1]
            d_carried *= momentum[t + 1]
        d_keep[t] = d_read[t, 0] * (read[t - 1, 0] if t else _ONE)
        along = _ZERO
        for j in range(t):
            along += d_gradients[t, j] * gradients[t - 1, j]
        d_keep[t] += along
        d_momentum[t], own = _ZERO, d_gradients[t, t]
        if moving:
            d_keep[t] += d_read[t, 1] * (read[t - 1, 1] if t else _ZERO)
            d_carried += present[t] * d_read[t, 1]
            along = d_carried * (carried[t - 1] if t else _ONE)
            for j in range(t + 1):
                d_into[j] += present[t] * d_gradients[t, j]
            for j in range(t):
                along += d_into[j] * into[t - 1, j]
            d_momentum[t], own = along, d_into[t]
        d_rate[t] = own * importance[t]
        d_importance[t] = own * rate[t]


@_inner
def _matrices(flat, shapes, layer):
    """W and S of a layer, one under the other, (k I, O)."""
    rows, columns, first = shapes.layers[layer]
    rows *= shapes.parts
    return flat[first : first + rows * columns].reshape((rows, columns))


@_inner
def _anchor(flat, shapes, layer):
    return _matrices(flat, shapes, layer)[: shapes.layers[layer, 0]]


@_inner
def _part(flat, shapes, layer, place):
    """W or S of a layer (I O): loops over it alone, from 0 on, are vectorised."""
    rows, columns, first = shapes.layers[layer]
    first += place * rows * columns
    return flat[first : first + rows * columns]


@_inner
def _into_ball(entered, shapes, flat, norms):
    for layer in range(len(shapes.layers)):
        for place in range(shapes.parts):
            before, after = _part(entered, shapes, layer, place), _part(flat, shapes, layer, place)
            square = _ZERO
            for i in range(len(before)):
                square += before[i] * before[i]
            norms[layer, place] = norm = np.sqrt(square)
            scale = _ONE if norm <= shapes.radius else np.float32(shapes.radius) / norm  # of NaN, NaN
            for i in range(len(before)):
                after[i] = before[i] * scale


@_inner
def _into_ball_backward(flat, shapes, norms, grad):
    """grad, of the memories in the ball (`flat`), becomes that of what they were before."""
    radius = np.float32(shapes.radius)
    for layer in range(len(shapes.layers)):
        for place in range(shapes.parts):
            norm = norms[layer, place]
            if norm <= radius:
                continue
            inside, d_part = _part(flat, shapes, layer, place), _part(grad, shapes, layer, place)
            along = _ZERO
            for i in range(len(inside)):
                along += d_part[i] * (inside[i] / radius)
            for i in range(len(inside)):
                d_part[i] = radius / norm * (d_part[i] - along * (inside[i] / radius))


@_inner
def _ends(matrices, read, carried, after):
    """What is left of W and S (k I, O) at the end, but for the gradients; read: (k)."""
    size = len(matrices) // len(read)
    for i in range(size):
        for j in range(matrices.shape[1]):
            after[i, j] = read[0] * matrices[i, j]
        if len(read) == 2:
            for j in range(matrices.shape[1]):
                after[i, j] += read[1] * matrices[size + i, j]
                after[size + i, j] = carried * matrices[size + i, j]


@_inner
def _ends_backward(matrices, read, carried, grad, d_read):
    """grad, of the matrices at the end, becomes that of those at the beginning; returns that of `carried`."""
    size = len(matrices) // len(read)
    first, second, third = _ZERO, _ZERO, _ZERO
    for i in range(size):
        for j in range(matrices.shape[1]):
            weight = grad[i, j]
            first += weight * matrices[i, j]
            grad[i, j] = read[0] * weight
            if len(read) == 2:
                impulse = grad[size + i, j]
                second += weight * matrices[size + i, j]
                third += impulse * matrices[size + i, j]
                grad[size + i, j] = read[1] * weight + carried * impulse
    d_read[0] += first
    if len(read) == 2:
        d_read[1] += second
    return third


@_inner
def _normalise(z, inverse):
    width = np.float32(z.shape[1])
    for t in range(z.shape[0]):
        mean, square = _ZERO, _ZERO
        for j in range(z.shape[1]):
            mean += z[t, j]
        mean /= width
        for j in range(z.shape[1]):
            square += (z[t, j] - mean) * (z[t, j] - mean)
        inverse[t] = _ONE / np.sqrt(square / width + np.float32(NORM_EPS))
        for j in range(z.shape[1]):
            z[t, j] = (z[t, j] - mean) * inverse[t]


@_inner
def _last_error(normed, residual, value, deep, inverse, outer, error, alongs):
    """outer, error: (m, V); alongs: (m). residual: (m, V), or (0, V) where there is none. deep: not a matrix."""
    width = np.float32(value.shape[1])
    for t in range(value.shape[0]):
        for j in range(value.shape[1]):
            outer[t, j] = 2 * (normed[t, j] - value[t, j])
        if len(residual):
            for j in range(value.shape[1]):
                outer[t, j] += 2 * residual[t, j]
        if not deep:
            for j in range(value.shape[1]):
                error[t, j] = outer[t, j]
            continue
        mean, along = _ZERO, _ZERO
        for j in range(value.shape[1]):
            mean += outer[t, j]
            along += outer[t, j] * normed[t, j]
        mean, along = mean / width, along / width
        alongs[t] = along
        for j in range(value.shape[1]):
            error[t, j] = (outer[t, j] - mean - normed[t, j] * along) * inverse[t]


@_inner
def _last_error_backward(d_error, normed, deep, inverse, outer, error, alongs, d_answer, d_z):
    """Through norm and bias: gradients of answer and z (m, V)."""
    width = np.float32(normed.shape[1])
    for t in range(normed.shape[0]):
        if not deep:
            for j in range(normed.shape[1]):
                d_answer[t, j] = d_z[t, j] = 2 * d_error[t, j]
            continue
        mean, turned = _ZERO, _ZERO
        for j in range(normed.shape[1]):
            mean += d_error[t, j]
            turned += d_error[t, j] * normed[t, j]
        mean, turned = mean / width, turned / width
        total, stretch = _ZERO, _ZERO
        for j in range(normed.shape[1]):
            d_answer[t, j] = 2 * (d_error[t, j] - mean - normed[t, j] * turned) * inverse[t]
            d_z[t, j] = d_answer[t, j] - inverse[t] * (d_error[t, j] * alongs[t] + outer[t, j] * turned)
            total += d_z[t, j]
            stretch += d_z[t, j] * normed[t, j] + d_error[t, j] * error[t, j]
        total, stretch = total / width, stretch / width
        for j in range(normed.shape[1]):
            d_z[t, j] = (d_z[t, j] - total - normed[t, j] * stretch) * inverse[t]


@_inner
def _cut(gates, series, here):
    a, b, c, d, e = gates
    return a[series, here], b[series, here], c[series, here], d[series, here], e[series, here]


@_inner
def _three(shape):
    # By names: numba takes the parts of an array that is taken apart for strided, and does not vectorise their loops.
    return np.empty(shape, np.float32), np.empty(shape, np.float32), np.empty(shape, np.float32)


@_inner
def _square(room, m):
    return room[: m * m].reshape((m, m))


@_outer
def forward(shapes, rows, gates, ends, kept, wanted, output, begin, end):
    """Series [begin, end); ends (N, M): the memories, which become those at the end."""
    key, value, residual, query = rows
    layers, total, b, parts = len(shapes.layers), query.shape[1], shapes.chunk, shapes.parts
    wide, width, deep = kept.keys.shape[3], value.shape[2], shapes.deep
    into_room, gradients_room, weighed_room = _three(b * b)
    read_room, end_room, _ = _three((b, parts))
    carried_room, alongs, _ = _three(b)
    active, errors, asked = _three((layers - 1, b, wide))
    gate, query_gate, _ = _three((layers - 1, b, wide))
    outer, last_error, _ = _three((b, width))
    spread_room = np.empty(b * parts * max(wide, key.shape[2]), np.float32)
    box = np.empty(6, np.int32)
    for series in range(begin, end):
        for first in range(0, total, b):
            last = min(first + b, total)
            m, at = last - first, first if wanted else 0
            here, there = slice(first, last), slice(at, at + m)
            flat = kept.memories[series, at // b]
            _into_ball(ends[series], shapes, flat, kept.norms[series, at // b])
            into, gradients, weighed = _square(into_room, m), _square(gradients_room, m), _square(weighed_room, m)
            read, carried, ending = read_room[:m], carried_room[:m], end_room[:m]
            _coefficients(_cut(gates, series, here), into, gradients, read, carried, ending)
            # What the rows' errors are.
            a = key[series, here]
            for layer in range(layers - 1):
                z = kept.keys[series, layer, there]
                _product(z, a, _anchor(flat, shapes, layer), box)
                a = active[layer, :m]
                _silu(z, gate[layer, :m], a)
            z, u, inverse = kept.normed[series, there], last_error[:m], kept.inverse[series, there]
            _product(z, a, _anchor(flat, shapes, layers - 1), box)
            if deep:
                _normalise(z, inverse)
            _last_error(z, residual[series, here], value[series, here], deep, inverse, outer[:m], u, alongs[:m])
            for layer in range(layers - 1, 0, -1):
                back = kept.back[series, layer - 1, there]
                _product(back, u, _anchor(flat, shapes, layer), box, b_turned=True)
                u = errors[layer - 1, :m]
                _times_slope(kept.keys[series, layer - 1, there], gate[layer - 1, :m], back, u)
            # The read, and what is left at the end.
            for layer in range(layers):
                inner = layer < layers - 1
                a, q = (
                    (active[layer - 1, :m], asked[layer - 1, :m]) if layer else (key[series, here], query[series, here])
                )
                u = errors[layer, :m] if inner else last_error[:m]
                y = kept.queries[series, layer, there] if inner else output[series, here]
                matrices, after = _matrices(flat, shapes, layer), _matrices(ends[series], shapes, layer)
                spread = spread_room[: m * len(matrices)].reshape((m, len(matrices)))
                scores = kept.scores[series, layer, at * b : at * b + m * m].reshape((m, m))
                _spread(q, read, spread)
                _product(y, spread, matrices, box)
                _product(scores, q, a, box, b_turned=True)
                for t in range(m):
                    for i in range(m):
                        weighed[t, i] = gradients[t, i] * scores[t, i]
                _product(y, weighed, u, box, minus=True, more=True)
                _ends(matrices, read[m - 1], carried[m - 1], after)
                _spread(a, ending, spread)
                _product(after, spread, u, box, a_turned=True, minus=True, more=True)
                if inner:
                    _silu(y, query_gate[layer, :m], asked[layer, :m])


@_outer
def backward(shapes, rows, gates, kept, d_output, ended, d_anchors, d_ends, d_rows, d_gates, begin, end):
    """Series [begin, end). d_ends (N, M): gradients of the memories at the end, which become those at the beginning.

    ended: whether these are more than 0; d_anchors (N, M): of W at the last chunk's beginning, and 0 for S.
    """
    key, value, residual, query = rows
    d_key, d_value, d_residual, d_query = d_rows
    d_keep, d_momentum, d_rate, d_importance = d_gates
    layers, total, b, parts = len(shapes.layers), query.shape[1], shapes.chunk, shapes.parts
    wide, width, deep = kept.keys.shape[3], value.shape[2], shapes.deep
    into_room, gradients_room, weighed_room = _three(b * b)
    d_gradients_room, d_scores_room, _ = _three(b * b)
    read_room, end_room, d_read_room = _three((b, parts))
    carried_room, alongs, d_into_room = _three(b)
    active, asked, errors = _three((layers - 1, b, wide))
    gate, query_gate, _ = _three((layers - 1, b, wide))
    d_inputs, d_asked, d_errors = _three((layers - 1, b, wide))
    outer_room, error_room, d_error_room = _three((b, width))
    d_answer_room, d_z_room, _ = _three((b, width))
    d_end_room = np.empty((b, parts), np.float32)
    spread_room = np.empty(b * parts * max(wide, key.shape[2]), np.float32)
    box = np.empty(6, np.int32)
    for series in range(begin, end):
        d_flat = d_ends[series]
        for first in range((total - 1) // b * b, -1, -b):
            last = min(first + b, total)
            m, here, more = last - first, slice(first, last), ended or last < total
            flat, chosen = kept.memories[series, first // b], _cut(gates, series, here)
            into, gradients, weighed = _square(into_room, m), _square(gradients_room, m), _square(weighed_room, m)
            d_gradients, d_scores = _square(d_gradients_room, m), _square(d_scores_room, m)
            read, carried, ending = read_room[:m], carried_room[:m], end_room[:m]
            d_read, d_carried, d_ending = d_read_room[:m], _ZERO, d_end_room[:m]
            _clear(d_gradients)
            _clear(d_read)
            _clear(d_ending)
            # What the forward pass had.
            _coefficients(chosen, into, gradients, read, carried, ending)
            for layer in range(layers - 1):
                z, back = kept.keys[series, layer, here], kept.back[series, layer, here]
                _silu(z, gate[layer, :m], active[layer, :m])
                _silu(kept.queries[series, layer, here], query_gate[layer, :m], asked[layer, :m])
                _times_slope(z, gate[layer, :m], back, errors[layer, :m])
            normed, inverse = kept.normed[series, here], kept.inverse[series, here]
            outer, error, d_error = outer_room[:m], error_room[:m], d_error_room[:m]
            _last_error(normed, residual[series, here], value[series, here], deep, inverse, outer, error, alongs)
            # The read, from the last layer to the first.
            d_y = d_output[series, here]
            for layer in range(layers - 1, -1, -1):
                matrices, d_matrices = _matrices(flat, shapes, layer), _matrices(d_flat, shapes, layer)
                a, q = (
                    (active[layer - 1, :m], asked[layer - 1, :m]) if layer else (key[series, here], query[series, here])
                )
                d_a, d_q = (
                    (d_inputs[layer - 1, :m], d_asked[layer - 1, :m])
                    if layer
                    else (d_key[series, here], d_query[series, here])
                )
                u, d_u = (errors[layer, :m], d_errors[layer, :m]) if layer < layers - 1 else (error, d_error)
                spread = spread_room[: m * len(matrices)].reshape((m, len(matrices)))
                scores = kept.scores[series, layer, first * b : first * b + m * m].reshape((m, m))
                if more:
                    _spread(a, ending, spread)
                    _product(d_u, spread, d_matrices, box, minus=True)
                    _product(spread, u, d_matrices, box, b_turned=True)
                    _spread_backward(spread, a, ending, -_ONE, d_a, d_ending)
                    d_carried += _ends_backward(matrices, read[m - 1], carried[m - 1], d_matrices, d_read[m - 1])
                _product(d_scores, d_y, u, box, b_turned=True, minus=True)
                for t in range(m):
                    for i in range(m):
                        weighed[t, i] = gradients[t, i] * scores[t, i]
                        d_gradients[t, i] += d_scores[t, i] * scores[t, i]
                        d_scores[t, i] *= gradients[t, i]
                _product(d_u, weighed, d_y, box, a_turned=True, minus=True, more=more)
                _product(d_a, d_scores, q, box, a_turned=True, more=more)
                _product(spread, d_y, matrices, box, b_turned=True)
                _spread_backward(spread, q, read, _ONE, d_q, d_read)
                _product(d_q, d_scores, a, box, more=True)
                _spread(q, read, spread)
                _product(d_matrices, spread, d_y, box, a_turned=True, more=True)
                if layer:
                    _times_slope(kept.queries[series, layer - 1, here], query_gate[layer - 1, :m], d_q, d_q)
                    d_y = d_q
            if ended and last == total:
                for i in range(len(d_flat)):
                    d_flat[i] += d_anchors[series, i]
            # The errors, from the first layer to the last; `asked` becomes the gradient by z of the slopes.
            for layer in range(1, layers):
                d_e, d_hidden = d_errors[layer - 1, :m], asked[layer - 1, :m]
                z, back = kept.keys[series, layer - 1, here], kept.back[series, layer - 1, here]
                _bent(z, gate[layer - 1, :m], back, d_e, d_hidden)
                u, d_u = (errors[layer, :m], d_errors[layer, :m]) if layer < layers - 1 else (error, d_error)
                _product(d_u, d_e, _anchor(flat, shapes, layer), box, more=True)
                _product(_anchor(d_flat, shapes, layer), d_e, u, box, a_turned=True, more=True)
            d_answer, d_z = d_answer_room[:m], d_z_room[:m]
            _last_error_backward(d_error, normed, deep, inverse, outer, error, alongs, d_answer, d_z)
            # The inputs, from the last layer to the first.
            for layer in range(layers - 1, -1, -1):
                a, d_a = (
                    (active[layer - 1, :m], d_inputs[layer - 1, :m])
                    if layer
                    else (key[series, here], d_key[series, here])
                )
                _product(d_a, d_z, _anchor(flat, shapes, layer), box, b_turned=True, more=True)
                _product(_anchor(d_flat, shapes, layer), a, d_z, box, a_turned=True, more=True)
                if layer:
                    _times_slope(kept.keys[series, layer - 1, here], gate[layer - 1, :m], d_a, d_a)
                    _add(asked[layer - 1, :m], d_a)
                    d_z = d_a
            d_v, d_r = d_value[series, here], d_residual[series, here]
            for t in range(m):
                for j in range(width):
                    d_v[t, j] = -d_answer[t, j]
                if len(d_r):
                    for j in range(width):
                        d_r[t, j] = d_answer[t, j]
            _into_ball_backward(flat, shapes, kept.norms[series, first // b], d_flat)
            weights = (into, gradients, read, carried)
            found = (d_keep[series, here], d_momentum[series, here], d_rate[series, here], d_importance[series, here])
            _coefficients_backward(chosen, weights, d_gradients, d_read, d_carried, d_ending, d_into_room, found)


# --- beside autograd ------------------------------------------------------------------------------------------------


class CompiledDual(torch.autograd.Function):
    """Of the rule, rows (key, value, residual, query), five gates and the memories: output, memories, anchors."""

    @staticmethod
    def forward(ctx: Any, rule: Rule, *tensors: Tensor) -> tuple[Tensor, ...]:
        key, value, residual, query, *gates = (part.contiguous() for part in tensors[:9])
        matrices, parts = tensors[9:], 1 + rule.has_momentum
        series, total = query.shape[:2]
        sizes = [matrix.shape[1:].numel() for matrix in matrices]
        begins = [sum(sizes[:place]) for place in range(0, len(sizes), parts)]
        layers = [(*matrix.shape[1:], begin) for matrix, begin in zip(matrices[::parts], begins, strict=True)]
        shapes = Shapes(np.array(layers), parts, rule.chunk, float(rule.radius), rule.depth > 0)
        ends = torch.cat([matrix.flatten(1) for matrix in matrices], 1)
        output = torch.empty_like(value)
        wanted = any(ctx.needs_input_grad)
        long = total if wanted else min(total, rule.chunk)
        hidden = (series, len(layers) - 1, long, matrices[-1].shape[1])
        kept = [
            ends.new_empty(series, -(-long // rule.chunk), sum(sizes)),
            ends.new_empty(series, -(-long // rule.chunk), len(layers), parts),
            ends.new_empty(series, len(layers), long * rule.chunk),
            *(ends.new_empty(hidden) for _ in range(3)),
            ends.new_empty(series, long, value.shape[2]),
            ends.new_empty(series, long),
        ]
        if not residual.shape[1]:
            residual = value.new_empty(series, 0, value.shape[2])
        rows = (key, value, residual, query)
        entered = (shapes, *map(_arrays, (rows, gates)), ends.numpy())
        _run(forward, series, *entered, Kept(*_arrays(kept)), wanted, output.numpy())
        ctx.save_for_backward(*rows, *gates, *kept)
        ctx.shapes, ctx.layout = shapes, [matrix.shape for matrix in matrices]
        ctx.residual_is_key = tensors[2] is tensors[0]
        ctx.set_materialize_grads(False)
        anchors = _apart(kept[0][:, -1], ctx.layout)[::parts]
        return output, *_apart(ends, ctx.layout), *anchors

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, output: Tensor | None, *rest: Tensor | None) -> tuple[Tensor | None, ...]:
        rows, gates, kept = ctx.saved_tensors[:4], ctx.saved_tensors[4:9], ctx.saved_tensors[9:]
        key, value, residual, _ = rows
        count, parts = len(ctx.layout), ctx.shapes.parts
        spaced = [anchor for each in rest[count:] for anchor in (each, None)[:parts]]
        ends, anchors = (_joined(kept[0][:, 0], ctx.layout, grads) for grads in (rest[:count], spaced))
        ended = any(grad is not None for grad in rest)
        output = torch.zeros_like(value) if output is None else output.contiguous()
        d_rows, d_gates = [torch.empty_like(part) for part in rows], [torch.empty_like(gate) for gate in gates[:4]]
        _run(
            backward, len(key), ctx.shapes, *map(_arrays, (rows, gates)), Kept(*_arrays(kept)), output.numpy(), ended,
            anchors.numpy(), ends.numpy(), *map(_arrays, (d_rows, d_gates)),
        )  # fmt: skip
        if ctx.residual_is_key:
            d_rows[0] += d_rows[2]
        d_key, d_value, d_residual, d_query = d_rows
        own = None if ctx.residual_is_key or not residual.shape[1] else d_residual
        return None, d_key, d_value, own, d_query, *d_gates, None, *_apart(ends, ctx.layout)


def _run(kernel: Callable[..., None], series: int, *arguments: Any) -> None:
    """As many threads as torch has, each with series of its own."""
    threads = min(torch.get_num_threads(), series)
    if threads <= 1:
        kernel(*arguments, 0, series)
        return
    borders = [series * part // threads for part in range(threads + 1)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda ends: kernel(*arguments, *ends), pairwise(borders)))


def _arrays(parts: Sequence[Tensor]) -> tuple[np.ndarray, ...]:
    return tuple(part.detach().numpy() for part in parts)


def _apart(flat: Tensor, layout: Sequence[torch.Size]) -> list[Tensor]:
    """(N, M) as matrices of their own."""
    parts = flat.split([shape[1:].numel() for shape in layout], 1)
    return [part.reshape(shape).clone() for part, shape in zip(parts, layout, strict=True)]


def _joined(like: Tensor, layout: Sequence[torch.Size], parts: Sequence[Tensor | None]) -> Tensor:
    """Matrices as (N, M); None is 0."""
    flat = torch.zeros_like(like, memory_format=torch.contiguous_format)
    for into, part in zip(flat.split([shape[1:].numel() for shape in layout], 1), parts, strict=True):
        if part is not None:
            into.copy_(part.flatten(1))
    return flat
