"""Compiled loops on the CPU: what `dual` gives for the commonest rules, one series at a time, and a layer's other work.

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
import platform
from typing import Any, NamedTuple

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from models.memory.core import NORM_EPS
from models.memory.pointwise import SHORTEST, SMALLEST


def _cacheable() -> bool:
    """Whether numba finds a folder to keep what it compiled in: beside this file, or the user's own for caches."""
    try:
        njit(cache=True)(_cacheable)
    except RuntimeError:
        logging.getLogger(__name__).warning(
            "no folder to keep compiled loops in, so each process compiles its own for half a minute; NUMBA_CACHE_DIR "
            "names one"
        )
        return False
    return True


_OPTIONS: dict[str, Any] = {"cache": _cacheable(), "nogil": True, "error_model": "numpy"}
_INNER: dict[str, Any] = _OPTIONS | {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
_FAST = {"contract", "reassoc", "nsz"}  # not "nnan" or "ninf": what is not finite must stay so
_outer = njit(fastmath=_FAST, **_OPTIONS)
_inner = njit(fastmath=_FAST, **_INNER)
_exact = njit(fastmath={"contract"}, **_INNER)

# Of a type: by an integer a float32 becomes a float64, and a loop four times as slow.
_ZERO, _ONE, _TWO = np.float32(0.0), np.float32(1.0), np.float32(2.0)


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


# --- subnormal numbers ------------------------------------------------------------------------------------------------
#
# What is forgotten decays below 1e-38, where arithmetic takes ten times as long on processors of Intel's.

_HAS_CONTROL_WORD = platform.machine().lower() in ("x86_64", "amd64")
NO_SUBNORMALS = 0x1F80 | 0x8040  # the usual control word, and: subnormal results are 0, and operands


@intrinsic
def _swapped_control_word(_context, new):
    def generate(_target, builder, _signature, values):
        if not _HAS_CONTROL_WORD:
            return values[0]
        word, address = ir.IntType(32), ir.PointerType(ir.IntType(8))
        place = builder.alloca(word)
        kind = ir.FunctionType(ir.VoidType(), [address])
        store, load = (builder.module.declare_intrinsic(f"llvm.x86.sse.{name}mxcsr", (), kind) for name in ("st", "ld"))
        at = builder.bitcast(place, address)
        builder.call(store, [at])
        before = builder.load(place)
        builder.store(values[0], place)
        builder.call(load, [at])
        return before

    return types.uint32(types.uint32), generate


@_outer
def swap_control_word(new):
    """That of this thread's vector unit; returns the one before. Does nothing on other processors than x86."""
    return _swapped_control_word(new)


# --- products -------------------------------------------------------------------------------------------------------
#
# The matrices of a chunk are small and already in a cache, where a library spends a third of a product on its call and
# on laying out both operands anew. So a tile of the product stays in the registers while rows of b, laid out in a panel
# as wide as the tile, pass by; a is read where it stands. The first tile reads b itself and lays the panel.

_WIDE = bool(llvmlite.binding.get_host_cpu_features().get("avx512f"))  # else vectors of AVX2, or two of NEON's
_LANES, _TALL = (16, 12) if _WIDE else (8, 6)
_LOW, _BROAD = 4, 2 * _LANES  # rows of a tile at the end, which 64 rows leave; columns of a tile
_DEEP = 4096 // _BROAD  # rows of a panel: 16 kB of b
_ROOM = _DEEP * _BROAD + _TALL * _BROAD  # a panel, and a tile of which not all columns exist
LINE = 16  # numbers of a line of the cache

_FLOAT, _WORD, _LANE = ir.FloatType(), ir.IntType(64), ir.IntType(32)
_FUSED = ("contract",)


def _at(builder: ir.IRBuilder, address: ir.Value, numbers: ir.Value | int, lanes: int = _LANES) -> ir.Value:
    """A pointer to so many lanes, numbers (float32) behind the address."""
    kind = ir.VectorType(_FLOAT, lanes) if lanes > 1 else _FLOAT
    count = _WORD(numbers) if isinstance(numbers, int) else numbers
    return builder.inttoptr(builder.add(address, builder.mul(count, _WORD(4))), ir.PointerType(kind))


def _loop(builder: ir.IRBuilder) -> tuple[ir.Block, ir.Block, ir.Block]:
    """The block before a loop, that of the loop, where the builder stands then, and the one after it."""
    blocks = builder.block, builder.append_basic_block(), builder.append_basic_block()
    builder.branch(blocks[1])
    builder.position_at_end(blocks[1])
    return blocks


def _shuffled(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, lanes: list[int]) -> ir.Value:
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_LANE, len(lanes)), lanes))


def _everywhere(builder: ir.IRBuilder, number: ir.Value) -> ir.Value:
    empty = ir.Constant(ir.VectorType(_FLOAT, _LANES), ir.Undefined)
    return _shuffled(builder, builder.insert_element(empty, number, _LANE(0)), empty, [0] * _LANES)


def _tile(rows: int, *, lays: bool = False) -> Any:
    @intrinsic
    def tile(_context, into, columns, a, across, along, b, apart, panel, terms, sign, more):
        """into (rows, 2 vectors), in lines of so many columns, = (more: into) + sign a b; terms is at least 1.

        a: its number for row i and term k stands i across + k along behind. b: in lines so far apart. lays: beside the
        arithmetic into the panel. What is not a count is an address.
        """

        def generate(_target, builder, _signature, values):
            into, columns, a, across, along, b, apart, panel, terms, sign, more = values
            # One product for all that call it: a copy for each would take long to compile.
            builder.function.attributes.add("noinline")
            starts = [builder.add(a, builder.mul(across, _WORD(4 * row))) for row in range(rows)]
            before, loop, after = _loop(builder)
            term, in_a, in_b, in_panel = (builder.phi(_WORD) for _ in range(4))
            sums = [builder.phi(ir.VectorType(_FLOAT, _LANES)) for _ in range(2 * rows)]
            for each in (term, in_a, in_b, in_panel):
                each.add_incoming(_WORD(0), before)
            for each in sums:
                each.add_incoming(ir.Constant(each.type, [0.0] * _LANES), before)
            halves = []
            for half in (_WORD(0), _WORD(4 * _LANES)):
                halves.append(builder.load(_at(builder, builder.add(b, half), in_b), align=4))
                if lays:
                    builder.store(halves[-1], _at(builder, builder.add(panel, half), in_panel), align=4)
            grown = []
            for row, start in enumerate(starts):
                weight = _everywhere(builder, builder.load(_at(builder, start, in_a, 1), align=4))
                for half in (0, 1):
                    product = builder.fmul(weight, halves[half], flags=_FUSED)
                    grown.append(builder.fadd(sums[2 * row + half], product, flags=_FUSED))
            next_term = builder.add(term, _WORD(1))
            term.add_incoming(next_term, loop)
            in_a.add_incoming(builder.add(in_a, along), loop)
            in_b.add_incoming(builder.add(in_b, apart), loop)
            in_panel.add_incoming(builder.add(in_panel, _WORD(_BROAD)), loop)
            for each, value in zip(sums, grown, strict=True):
                each.add_incoming(value, loop)
            builder.cbranch(builder.icmp_signed("<", next_term, terms), loop, after)
            builder.position_at_end(after)
            signs = _everywhere(builder, sign)
            lines = [builder.add(into, builder.mul(columns, _WORD(4 * row))) for row in range(rows)]
            places = [_at(builder, line, half) for line in lines for half in (0, _LANES)]
            with builder.if_else(builder.icmp_signed("!=", more, _WORD(0))) as (adds, writes):
                with adds:
                    for place, value in zip(places, grown, strict=True):
                        signed = builder.fmul(signs, value, flags=_FUSED)
                        builder.store(builder.fadd(builder.load(place, align=4), signed, flags=_FUSED), place, align=4)
                with writes:
                    for place, value in zip(places, grown, strict=True):
                        builder.store(builder.fmul(signs, value), place, align=4)

        return types.void(*[types.intp] * 9, types.float32, types.intp), generate

    return tile


_tall_tile, _low_tile, _flat_tile, _laying_tile = _tile(_TALL), _tile(_LOW), _tile(1), _tile(_TALL, lays=True)


@intrinsic
def _turn_block(_context, into, columns, b, inner):
    """The square where b, in lines of `inner`, begins, turned, into lines of `columns`: by ones, twos, fours ..."""

    def generate(_target, builder, _signature, values):
        into, columns, b, inner = values
        lines = [builder.load(_at(builder, b, builder.mul(inner, _WORD(line))), align=4) for line in range(_LANES)]
        for apart in (2**power for power in range(_LANES.bit_length() - 1)):
            low = [lane if lane // apart % 2 == 0 else lane - apart + _LANES for lane in range(_LANES)]
            high = [lane + apart for lane in low]
            for line in (line for line in range(_LANES) if line // apart % 2 == 0):
                pair = lines[line], lines[line + apart]
                lines[line], lines[line + apart] = (_shuffled(builder, *pair, lanes) for lanes in (low, high))
        for line, value in enumerate(lines):
            builder.store(value, _at(builder, into, builder.mul(columns, _WORD(line))), align=4)

    return types.void(*[types.intp] * 4), generate


@_inner
def _lay_panel(panel, b, deep, terms, column, width):
    """b's rows [deep, deep + terms) of so many columns, and 0 in those that a tile has beyond."""
    for term in range(terms):
        for j in range(_BROAD):
            panel[term * _BROAD + j] = b[deep + term, column + j] if j < width else _ZERO


@_inner
def _lay_panel_turned(panel, b, deep, terms, column, width):
    """The same of b turned: of its columns and rows."""
    inner, wide, long = b.shape[1], width // _LANES * _LANES, terms // _LANES * _LANES
    for j in range(0, wide, _LANES):
        for term in range(0, long, _LANES):
            _turn_block(
                panel.ctypes.data + 4 * (term * _BROAD + j), _BROAD,
                b.ctypes.data + 4 * ((column + j) * inner + deep + term), inner,
            )  # fmt: skip
    for term in range(terms):
        for j in range(wide if term < long else 0, _BROAD):
            panel[term * _BROAD + j] = b[column + j, deep + term] if j < width else _ZERO


_PLAIN, _A_TURNED, _B_TURNED, _MINUS, _MORE = 0, 1, 2, 4, 8


@_inner
def _product(into, a, b, room, how):
    """into = a b, or as the flags say: either turned, minus it, or that more than into holds. room: (_ROOM)."""
    a_turned, b_turned, more = how & _A_TURNED > 0, how & _B_TURNED > 0, how & _MORE > 0
    rows, columns = into.shape
    inner = a.shape[0] if a_turned else a.shape[1]
    across, along = (1, a.shape[1]) if a_turned else (a.shape[1], 1)
    sign = -_ONE if how & _MINUS else _ONE
    edge = room[_DEEP * _BROAD :]
    at_panel, at_edge = room.ctypes.data, edge.ctypes.data
    for deep in range(0, inner, _DEEP):
        terms, add = min(_DEEP, inner - deep), more or deep > 0
        for column in range(0, columns, _BROAD):
            width = min(_BROAD, columns - column)
            at_b, apart = at_panel, _BROAD
            as_it_stands = not b_turned and width == _BROAD
            if as_it_stands:
                at_b, apart = b.ctypes.data + 4 * (deep * columns + column), columns
            elif b_turned:
                _lay_panel_turned(room, b, deep, terms, column, width)
            else:
                _lay_panel(room, b, deep, terms, column, width)
            row = 0
            while row < rows:
                tall = _TALL if row + _TALL <= rows else _LOW if row + _LOW <= rows else 1
                at_a = a.ctypes.data + 4 * (row * across + deep * along)
                if width == _BROAD:
                    target, line, adds = into.ctypes.data + 4 * (row * columns + column), columns, np.intp(add)
                else:
                    target, line, adds = at_edge, _BROAD, np.intp(0)
                if as_it_stands and tall == _TALL:
                    _laying_tile(target, line, at_a, across, along, at_b, apart, at_panel, terms, sign, adds)
                    at_b, apart, as_it_stands = at_panel, _BROAD, False
                elif tall == _TALL:
                    _tall_tile(target, line, at_a, across, along, at_b, apart, at_panel, terms, sign, adds)
                elif tall == _LOW:
                    _low_tile(target, line, at_a, across, along, at_b, apart, at_panel, terms, sign, adds)
                else:
                    _flat_tile(target, line, at_a, across, along, at_b, apart, at_panel, terms, sign, adds)
                if width < _BROAD:
                    for i in range(tall):
                        for j in range(width):
                            number = edge[i * _BROAD + j]
                            into[row + i, column + j] = into[row + i, column + j] + number if add else number
                row += tall


@_exact
def _sigmoid(z):
    """By a polynomial, which unlike the library's exponential runs many at once; NaN stays.

    e^-z = 2^whole 2^rest, rest within a half of 0: added to 1.5 * 2^23 a number loses its fraction, and its whole part
    is the last bits. Within 1e-7.
    """
    z = np.float32(87.0) if np.float32(87.0) < z else z
    z = np.float32(-88.0) if np.float32(-88.0) > z else z
    power = z * np.float32(-1.442695041)
    shifted = power + np.float32(12582912.0)
    rest = power - (shifted - np.float32(12582912.0))
    y = np.float32(1.338130254e-3)
    for factor in (9.666368515e-3, 5.550381014e-2, 2.402234904e-1, 6.931471806e-1, 1.0):
        y = y * rest + np.float32(factor)
    bits = np.int32(np.float32(shifted).view(np.int32) << np.int32(23)) + np.int32(0x3F800000)
    return np.float32(1.0) / (np.float32(1.0) + y * np.int32(bits).view(np.float32))


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
    """gate, the sigmoid, and value are written; what follows takes the gate rather than another exponential.

    Four numbers far apart at a time, because the steps of one sigmoid wait for each other.
    """
    z, gate, value = z.reshape(z.size), gate.reshape(z.size), value.reshape(z.size)
    quarter = len(z) // 4
    for j in range(quarter):
        for place in range(4):
            at = place * quarter + j
            gate[at] = open_ = _sigmoid(z[at])
            value[at] = z[at] * open_
    for at in range(4 * quarter, len(z)):
        gate[at] = _sigmoid(z[at])
        value[at] = z[at] * gate[at]


@_inner
def _times_slope(z, gate, rows, into):
    for t in range(z.shape[0]):
        for j in range(z.shape[1]):
            value = z[t, j] * gate[t, j]
            into[t, j] = rows[t, j] * (gate[t, j] + value - gate[t, j] * value)


@_inner
def _by_slope(z, gate, rows):
    """The same in place: of one array twice the compiler cannot tell that its loop may be vectorised."""
    for t in range(z.shape[0]):
        for j in range(z.shape[1]):
            value = z[t, j] * gate[t, j]
            rows[t, j] *= gate[t, j] + value - gate[t, j] * value


@_inner
def _bent(z, gate, back, d_error, into):
    """into: gradient by z of the error slope(z) back; d_error, of the error, becomes that of `back`."""
    for t in range(z.shape[0]):
        for j in range(z.shape[1]):
            open_, value = gate[t, j], z[t, j] * gate[t, j]
            into[t, j] = (open_ - open_ * open_) * (z[t, j] + _TWO - _TWO * value) * d_error[t, j] * back[t, j]
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
def _into_ball(flat, shapes, norms):
    for layer in range(len(shapes.layers)):
        for place in range(shapes.parts):
            part, square = _part(flat, shapes, layer, place), _ZERO
            for i in range(len(part)):
                square += part[i] * part[i]
            norms[layer, place] = norm = np.sqrt(square)
            if norm <= shapes.radius:
                continue
            scale = np.float32(shapes.radius) / norm  # of NaN, NaN
            for i in range(len(part)):
                part[i] *= scale


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
            outer[t, j] = _TWO * (normed[t, j] - value[t, j])
        if len(residual):
            for j in range(value.shape[1]):
                outer[t, j] += _TWO * residual[t, j]
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
                d_answer[t, j] = d_z[t, j] = _TWO * d_error[t, j]
            continue
        mean, turned = _ZERO, _ZERO
        for j in range(normed.shape[1]):
            mean += d_error[t, j]
            turned += d_error[t, j] * normed[t, j]
        mean, turned = mean / width, turned / width
        total, stretch = _ZERO, _ZERO
        for j in range(normed.shape[1]):
            d_answer[t, j] = _TWO * (d_error[t, j] - mean - normed[t, j] * turned) * inverse[t]
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
def _room(numbers):
    """At the beginning of a line of the cache: a vector that lies across two is loaded and stored as two."""
    room = np.empty(numbers + LINE, np.float32)
    skipped = -room.ctypes.data % (4 * LINE) // 4
    return room[skipped : skipped + numbers]


@_inner
def _three(shape):
    # By names: numba takes the parts of an array that is taken apart for strided, and does not vectorise their loops.
    numbers = 1
    for length in shape:
        numbers *= length
    return _room(numbers).reshape(shape), _room(numbers).reshape(shape), _room(numbers).reshape(shape)


@_inner
def _square(room, m):
    return room[: m * m].reshape((m, m))


@_outer
def forward(shapes, rows, gates, ends, kept, wanted, output, begin, end):
    """Series [begin, end); ends (N, M): the memories, which become those at the end."""
    key, value, residual, query = rows
    layers, total, b, parts = len(shapes.layers), query.shape[1], shapes.chunk, shapes.parts
    wide, width, deep = kept.keys.shape[3], value.shape[2], shapes.deep
    into_room, gradients_room, weighed_room = _three((b * b,))
    read_room, end_room, _ = _three((b, parts))
    carried_room, alongs, _ = _three((b,))
    active, errors, asked = _three((layers - 1, b, wide))
    gate, query_gate, _ = _three((layers - 1, b, wide))
    outer, last_error, _ = _three((b, width))
    spread_room = _room(b * parts * max(wide, key.shape[2]))
    room = _room(_ROOM)
    for series in range(begin, end):
        for first in range(0, total, b):
            last = min(first + b, total)
            m, at = last - first, first if wanted else 0
            here, there = slice(first, last), slice(at, at + m)
            flat, left = kept.memories[series, at // b], ends[series]
            if not (wanted and first):
                for i in range(len(flat)):
                    flat[i] = left[i]
            if wanted and last < total:
                left = kept.memories[series, at // b + 1]  # the next chunk begins with them
            _into_ball(flat, shapes, kept.norms[series, at // b])
            into, gradients, weighed = _square(into_room, m), _square(gradients_room, m), _square(weighed_room, m)
            read, carried, ending = read_room[:m], carried_room[:m], end_room[:m]
            _coefficients(_cut(gates, series, here), into, gradients, read, carried, ending)
            # What the rows' errors are.
            a = key[series, here]
            for layer in range(layers - 1):
                z = kept.keys[series, layer, there]
                _product(z, a, _anchor(flat, shapes, layer), room, _PLAIN)
                a = active[layer, :m]
                _silu(z, gate[layer, :m], a)
            z, u, inverse = kept.normed[series, there], last_error[:m], kept.inverse[series, there]
            _product(z, a, _anchor(flat, shapes, layers - 1), room, _PLAIN)
            if deep:
                _normalise(z, inverse)
            _last_error(z, residual[series, here], value[series, here], deep, inverse, outer[:m], u, alongs[:m])
            for layer in range(layers - 1, 0, -1):
                back = kept.back[series, layer - 1, there]
                _product(back, u, _anchor(flat, shapes, layer), room, _B_TURNED)
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
                matrices, after = _matrices(flat, shapes, layer), _matrices(left, shapes, layer)
                spread = spread_room[: m * len(matrices)].reshape((m, len(matrices)))
                scores = kept.scores[series, layer, at * b : at * b + m * m].reshape((m, m))
                _spread(q, read, spread)
                _product(y, spread, matrices, room, _PLAIN)
                _product(scores, q, a, room, _B_TURNED)
                for t in range(m):
                    for i in range(m):
                        weighed[t, i] = gradients[t, i] * scores[t, i]
                _product(y, weighed, u, room, _MINUS | _MORE)
                _ends(matrices, read[m - 1], carried[m - 1], after)
                _spread(a, ending, spread)
                _product(after, spread, u, room, _A_TURNED | _MINUS | _MORE)
                if inner:
                    _silu(y, query_gate[layer, :m], asked[layer, :m])


@_outer
def backward(shapes, rows, gates, kept, d_output, ended, d_anchors, d_ends, d_rows, d_gates, begin, end):
    """Series [begin, end). d_ends (N, M): gradients of the memories at the end, which become those at the beginning.

    ended: whether anything after the last chunk has a gradient; d_anchors (N, M): of W at its beginning, and 0 for S;
    (0, M) without them.
    """
    key, value, residual, query = rows
    d_key, d_value, d_residual, d_query = d_rows
    d_keep, d_momentum, d_rate, d_importance = d_gates
    layers, total, b, parts = len(shapes.layers), query.shape[1], shapes.chunk, shapes.parts
    wide, width, deep = kept.keys.shape[3], value.shape[2], shapes.deep
    into_room, gradients_room, weighed_room = _three((b * b,))
    d_gradients_room, d_scores_room, _ = _three((b * b,))
    read_room, end_room, d_read_room = _three((b, parts))
    carried_room, alongs, d_into_room = _three((b,))
    active, asked, errors = _three((layers - 1, b, wide))
    gate, query_gate, _ = _three((layers - 1, b, wide))
    d_inputs, d_asked, d_errors = _three((layers - 1, b, wide))
    outer_room, error_room, d_error_room = _three((b, width))
    d_answer_room, d_z_room, _ = _three((b, width))
    d_end_room = np.empty((b, parts), np.float32)
    spread_room = _room(b * parts * max(wide, key.shape[2]))
    room = _room(_ROOM)
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
                    _product(d_u, spread, d_matrices, room, _MINUS)
                    _product(spread, u, d_matrices, room, _B_TURNED)
                    _spread_backward(spread, a, ending, -_ONE, d_a, d_ending)
                    d_carried += _ends_backward(matrices, read[m - 1], carried[m - 1], d_matrices, d_read[m - 1])
                _product(d_scores, d_y, u, room, _B_TURNED | _MINUS)
                for t in range(m):
                    for i in range(m):
                        weighed[t, i] = gradients[t, i] * scores[t, i]
                        d_gradients[t, i] += d_scores[t, i] * scores[t, i]
                        d_scores[t, i] *= gradients[t, i]
                _product(d_u, weighed, d_y, room, _A_TURNED | _MINUS | _MORE * more)
                _product(d_a, d_scores, q, room, _A_TURNED | _MORE * more)
                _product(spread, d_y, matrices, room, _B_TURNED)
                _spread_backward(spread, q, read, _ONE, d_q, d_read)
                _product(d_q, d_scores, a, room, _MORE)
                _spread(q, read, spread)
                _product(d_matrices, spread, d_y, room, _A_TURNED | _MORE)
                if layer:
                    _by_slope(kept.queries[series, layer - 1, here], query_gate[layer - 1, :m], d_q)
                    d_y = d_q
            if len(d_anchors) and last == total:
                for i in range(len(d_flat)):
                    d_flat[i] += d_anchors[series, i]
            # The errors, from the first layer to the last; `asked` becomes the gradient by z of the slopes.
            for layer in range(1, layers):
                d_e, d_hidden = d_errors[layer - 1, :m], asked[layer - 1, :m]
                z, back = kept.keys[series, layer - 1, here], kept.back[series, layer - 1, here]
                _bent(z, gate[layer - 1, :m], back, d_e, d_hidden)
                u, d_u = (errors[layer, :m], d_errors[layer, :m]) if layer < layers - 1 else (error, d_error)
                _product(d_u, d_e, _anchor(flat, shapes, layer), room, _MORE)
                _product(_anchor(d_flat, shapes, layer), d_e, u, room, _A_TURNED | _MORE)
            d_answer, d_z = d_answer_room[:m], d_z_room[:m]
            _last_error_backward(d_error, normed, deep, inverse, outer, error, alongs, d_answer, d_z)
            # The inputs, from the last layer to the first.
            for layer in range(layers - 1, -1, -1):
                a, d_a = (
                    (active[layer - 1, :m], d_inputs[layer - 1, :m])
                    if layer
                    else (key[series, here], d_key[series, here])
                )
                _product(d_a, d_z, _anchor(flat, shapes, layer), room, _B_TURNED | _MORE)
                _product(_anchor(d_flat, shapes, layer), a, d_z, room, _A_TURNED | _MORE)
                if layer:
                    _by_slope(kept.keys[series, layer - 1, here], gate[layer - 1, :m], d_a)
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


@intrinsic
def _lent(_context, array):
    """An array that the caller holds anyway: to take a row of it need not be counted, atomically, each time."""

    def generate(context, builder, _signature, values):
        view = context.make_array(array)(context, builder, values[0])
        view.meminfo, view.parent = (ir.Constant(part.type, None) for part in (view.meminfo, view.parent))
        return view._getvalue()

    return array(array), generate


# --- pointwise work around the memory ---------------------------------------------------------------------------------


@_outer
def directions(mixed, units, value, inverses, begin, end):
    """Series [begin, end) of mixed (B, T, 3, P, W). Written: units (2, B, P, T, W), value, inverses (2, B, P, T)."""
    mixed, units, value = _lent(mixed), _lent(units), _lent(value)
    _, steps, _, heads, width = mixed.shape
    shortest = np.float32(SHORTEST)
    for series in range(begin, end):
        for t in range(steps):
            for head in range(heads):
                for place in range(2):
                    z, unit, square = mixed[series, t, place, head], units[place, series, head, t], _ZERO
                    for j in range(width):
                        unit[j] = z[j] * _sigmoid(z[j])
                        square += unit[j] * unit[j]
                    length = np.sqrt(square)
                    inverses[place, series, head, t] = inverse = _ONE / (shortest if length < shortest else length)
                    for j in range(width):
                        unit[j] *= inverse
                z, active = mixed[series, t, 2, head], value[series, head, t]
                for j in range(width):
                    active[j] = z[j] * _sigmoid(z[j])


@_outer
def directions_backward(mixed, units, inverses, d_query, d_key, d_value, d_mixed, begin, end):
    mixed, units, d_mixed = _lent(mixed), _lent(units), _lent(d_mixed)
    d_query, d_key, d_value = _lent(d_query), _lent(d_key), _lent(d_value)
    _, steps, _, heads, width = mixed.shape
    largest = _ONE / np.float32(SHORTEST)
    for series in range(begin, end):
        for t in range(steps):
            for place in range(3):
                for head in range(heads):
                    z, d_z = mixed[series, t, place, head], d_mixed[series, t, place, head]
                    if place == 2:
                        d_active = d_value[series, head, t]
                        for j in range(width):
                            d_z[j] = d_active[j]
                    else:
                        d_unit = d_key[series, head, t] if place else d_query[series, head, t]
                        unit, inverse = units[place, series, head, t], inverses[place, series, head, t]
                        along = _ZERO
                        for j in range(width):
                            along += d_unit[j] * unit[j]
                        if inverse >= largest:
                            along = _ZERO
                        for j in range(width):
                            d_z[j] = (d_unit[j] - unit[j] * along) * inverse
                    for j in range(width):
                        gate = _sigmoid(z[j])
                        active = z[j] * gate
                        d_z[j] *= gate + active - gate * active


@_inner
def _root_mean_square(row):
    square = _ZERO
    for j in range(len(row)):
        square += row[j] * row[j]
    return np.sqrt(square / np.float32(len(row)) + np.float32(SMALLEST))


@_outer
def gated_norm(answer, gain, gate, into, begin, end):
    """Series [begin, end) of answer (B, P, T, W), gain (P, W), gate and into (B, T, P, W)."""
    _, heads, steps, width = answer.shape
    for series in range(begin, end):
        for t in range(steps):
            for head in range(heads):
                row, gains = answer[series, head, t], gain[head]
                shut, found = gate[series, t, head], into[series, t, head]
                inverse = _ONE / _root_mean_square(row)
                for j in range(width):
                    found[j] = row[j] * inverse * gains[j] * _sigmoid(shut[j])


@_outer
def gated_norm_backward(answer, gain, gate, grad, d_answer, d_gain, d_gate, begin, end):
    """d_gain: (B, P, W), of each series."""
    _, heads, steps, width = answer.shape
    for series in range(begin, end):
        for head in range(heads):
            for j in range(width):
                d_gain[series, head, j] = _ZERO
        for t in range(steps):
            for head in range(heads):
                row, gains, d_gains = answer[series, head, t], gain[head], d_gain[series, head]
                shut, d_shut, d_found = gate[series, t, head], d_gate[series, t, head], grad[series, t, head]
                d_row = d_answer[series, head, t]
                inverse, along = _ONE / _root_mean_square(row), _ZERO
                for j in range(width):
                    unit, opened = row[j] * inverse, _sigmoid(shut[j])
                    d_scaled = d_found[j] * opened
                    d_gains[j] += d_scaled * unit
                    d_unit = d_scaled * gains[j]
                    d_shut[j] = d_unit * unit * (_ONE - opened)
                    along += d_unit * unit
                    d_row[j] = d_unit
                along /= np.float32(width)
                for j in range(width):
                    d_row[j] = (d_row[j] - row[j] * inverse * along) * inverse


@_outer
def convolution(window, weight, into, begin, end):
    """Series [begin, end) of window (B, K - 1 + T, D) by weight (K, D): into (B, T, D)."""
    kernel, steps, width = len(weight), into.shape[1], into.shape[2]
    for series in range(begin, end):
        for t in range(steps):
            found = into[series, t]
            for j in range(width):
                found[j] = _ZERO
            for place in range(kernel):
                row, weights = window[series, t + place], weight[place]
                for j in range(width):
                    found[j] += weights[j] * row[j]


@_outer
def convolution_backward(window, weight, grad, d_window, d_weight, begin, end):
    """d_window and d_weight (B, K, D), of each series, are 0."""
    kernel, steps, width = len(weight), grad.shape[1], grad.shape[2]
    for series in range(begin, end):
        for t in range(steps):
            d_found = grad[series, t]
            for place in range(kernel):
                row, weights = window[series, t + place], weight[place]
                d_row, d_weights = d_window[series, t + place], d_weight[series, place]
                for j in range(width):
                    d_row[j] += weights[j] * d_found[j]
                    d_weights[j] += row[j] * d_found[j]


# --- projections ------------------------------------------------------------------------------------------------------

_BLOCK = 256  # rows: with what they are mapped to they fit into a core's cache


@_outer
def linear_map(x, weight, bias, into, begin, end):
    """Rows [begin, end) of x (R, D) by weight (O, D), plus bias (O) or, without one, (0): into (R, O)."""
    room = _room(_ROOM)
    for first in range(begin, end, _BLOCK):
        here = slice(first, min(first + _BLOCK, end))
        rows = into[here]
        _product(rows, x[here], weight, room, _B_TURNED)
        if len(bias):
            for t in range(len(rows)):
                for j in range(len(bias)):
                    rows[t, j] += bias[j]


@_outer
def linear_map_backward(x, weight, grad, more, d_x, d_weight, d_bias, begin, end):
    """Parts [begin, end) of the rows, as many as d_weight (parts, O, D) and d_bias (parts, O) have; the latter are 0.

    more: whether d_x is added to. d_x, or d_weight and d_bias, of no length are not wanted.
    """
    room = _room(_ROOM)
    for part in range(begin, end):
        border = len(x) * (part + 1) // len(d_bias)
        for first in range(len(x) * part // len(d_bias), border, _BLOCK):
            here = slice(first, min(first + _BLOCK, border))
            rows = grad[here]
            if len(d_x):
                _product(d_x[here], rows, weight, room, _MORE * more)
            if len(d_weight):
                _product(d_weight[part], rows, x[here], room, _A_TURNED | _MORE)
            for t in range(len(rows)):
                for j in range(d_bias.shape[1]):
                    d_bias[part, j] += rows[t, j]
