"""Fewer nodes in a graph that computes the same: a small step costs what its nodes cost, whatever they do.

onnxruntime fuses by itself what it knows, but not in the form in which torch writes it: x * (1 / sqrt(v)) is not its
x / sqrt(v), and a layer normalisation whose standard deviation is used elsewhere is eight operations to it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from onnxscript import ir
from onnxscript.rewriter import pattern, rewrite
from onnxscript.rewriter.rules.common import expand_before_binary_op_rules

SOFTPLUS_LIMIT = 20.0  # torch returns x itself above; log(1 + exp(x)) is x there to the last digit of float32


def simplified(model: ir.Model) -> ir.Model:
    """The model, changed in place: what `RULES` know becomes what onnxruntime runs fastest."""
    return rewrite(rewrite(model, pattern_rewrite_rules=VIEWS), pattern_rewrite_rules=RULES)


# In a pattern and its replacement `op` makes nodes, the other arguments are values; those named alike are the same.


def _product(op: Any, x: Any, y: Any) -> Any:
    return op.Mul(x, op.Reciprocal(y))


def _quotient(op: Any, x: Any, y: Any) -> Any:
    return op.Div(x, y)


def _eight_operations(op: Any, x: Any, axes: Any, epsilon: Any) -> Any:
    centred = op.Sub(x, op.ReduceMean(x, axes, keepdims=1))
    variance = op.ReduceMean(op.Pow(centred, 2.0), axes, keepdims=1)
    inverse = op.Reciprocal(op.Sqrt(op.Add(variance, epsilon)))
    return op.Mul(centred, inverse), inverse


def _over_the_last_dimension(context: Any, x: Any, axes: Any, epsilon: Any, **_: Any) -> bool:
    rank = None if x.shape is None else len(x.shape)
    return (
        rank is not None and isinstance(x.shape[-1], int) and _number(axes) in (-1, rank - 1) and _number(epsilon) >= 0
    )


def _layer_normalisation(op: Any, x: Any, axes: Any, epsilon: Any) -> Any:
    ones = op.Constant(value=ir.tensor(np.ones(x.shape[-1], x.dtype.numpy())))
    normed, _, inverse = op.LayerNormalization(x, ones, axis=-1, epsilon=_number(epsilon), _outputs=3)
    return normed, inverse


def _gain_of_several_rows(op: Any, x: Any, axes: Any, epsilon: Any, gain: Any) -> Any:
    variance = op.ReduceMean(op.Pow(x, 2.0), axes, keepdims=1)
    return op.Mul(op.Div(x, op.Sqrt(op.Add(variance, epsilon))), gain)  # after `_quotient`


def _of_rank_2(context: Any, x: Any, axes: Any, epsilon: Any, gain: Any, **_: Any) -> bool:
    known = _constant(gain)
    return known is not None and known.ndim > 1 and _over_the_last_dimension(context, x, axes, epsilon)


def _gain_of_one_row_first(op: Any, x: Any, axes: Any, epsilon: Any, gain: Any) -> Any:
    """onnxruntime makes one node of x / sqrt(mean(x^2)) only where a gain of rank 1 follows."""
    known = _constant(gain)
    single = known.size == known.shape[-1] == x.shape[-1] and known.ndim <= len(x.shape)
    row = op.Constant(value=ir.tensor(known.reshape(-1) if single else np.ones(x.shape[-1], x.dtype.numpy())))
    variance = op.ReduceMean(op.Pow(x, op.Constant(value_float=2.0)), axes, keepdims=1)
    unit = op.Mul(op.Div(x, op.Sqrt(op.Add(variance, epsilon))), row)
    return unit if single else op.Mul(unit, gain)


def _two_cases(op: Any, x: Any, limit: Any) -> Any:
    return op.Where(op.Greater(x, limit), x, op.Softplus(x))


def _of_no_effect(context: Any, limit: Any, **_: Any) -> bool:
    return _number(limit) >= SOFTPLUS_LIMIT


def _one_case(op: Any, x: Any, limit: Any) -> Any:
    return op.Softplus(x)


def _squeezed(op: Any, x: Any, gone: Any, back: Any) -> Any:
    return op.Unsqueeze(op.Squeeze(x, gone), back)


def _back_in_their_place(context: Any, gone: Any, back: Any, **_: Any) -> bool:
    """Whether the dimensions of 1 that are taken out are put back where they were, alone or before others."""
    out, into = _axes(gone), _axes(back)
    others = [axis for axis in into if axis not in out]
    return bool(out) and min([*out, *into]) >= 0 and set(out) <= set(into) and (not others or min(others) > max(out))


def _unsqueezed(op: Any, x: Any, gone: Any, back: Any) -> Any:
    others = [axis for axis in _axes(back) if axis not in _axes(gone)]
    return op.Unsqueeze(x, op.Constant(value_ints=others)) if others else x


def _unsqueezed_twice(op: Any, x: Any, first: Any, second: Any) -> Any:
    return op.Unsqueeze(op.Unsqueeze(x, first), second)


def _at_the_end(context: Any, first: Any, second: Any, **_: Any) -> bool:
    return bool(_axes(first)) and 0 <= max(_axes(first)) < min(_axes(second), default=-1)


def _unsqueezed_once(op: Any, x: Any, first: Any, second: Any) -> Any:
    return op.Unsqueeze(x, op.Constant(value_ints=_axes(first) + _axes(second)))


def _axes(value: Any) -> list[int]:
    known = _constant(value)
    return [] if known is None else known.reshape(-1).tolist()


def _twice_by_a_number(op: Any, x: Any, first: Any, second: Any) -> Any:
    return op.Mul(op.Mul(x, first), second)


def _two_numbers(context: Any, first: Any, second: Any, **_: Any) -> bool:
    return not math.isnan(_number(first) * _number(second))


def _once_by_a_number(op: Any, x: Any, first: Any, second: Any) -> Any:
    return op.Mul(x, op.Constant(value=ir.tensor(_constant(first) * _constant(second))))


def _linear_twice(op: Any, x: Any, weight: Any, bias: Any, second: Any, offset: Any) -> Any:
    return op.Gemm(op.Gemm(x, weight, bias, _outputs=["between"]), second, offset, _outputs=["product"])


def _of_fewer_products(
    context: Any, weight: Any, bias: Any, second: Any, offset: Any, between: Any, product: Any, **_: Any
) -> bool:
    known = [_constant(value) for value in (weight, bias, second, offset)]
    if any(value is None for value in known) or not _is_linear(between) or not _is_linear(product):
        return False
    (hidden, into), out = known[0].shape, known[2].shape[0]
    return into * out <= hidden * (into + out)


def _is_linear(product: Any) -> bool:
    """Whether a Gemm is x W' + b."""
    found = {name: attribute.value for name, attribute in product.producer().attributes.items()}
    return bool(found.pop("transB", 0)) and set(found.items()) <= {("alpha", 1.0), ("beta", 1.0), ("transA", 0)}


def _linear_once(op: Any, x: Any, weight: Any, bias: Any, second: Any, offset: Any, **_: Any) -> Any:
    first, shift, then, add = (_constant(value).astype(np.float64) for value in (weight, bias, second, offset))
    both, whole = (part.astype(x.dtype.numpy()) for part in (then @ first, then @ shift + add))
    return op.Gemm(x, op.Constant(value=ir.tensor(both)), op.Constant(value=ir.tensor(whole)), transB=1)


def _linear_and_a_sum(op: Any, x: Any, weight: Any, other: Any) -> Any:
    return op.Add(op.Gemm(x, weight, _outputs=["product"]), other)


def _of_one_shape(context: Any, product: Any, other: Any, **_: Any) -> bool:
    return _is_linear(product) and None is not product.shape == other.shape


def _linear_from(op: Any, x: Any, weight: Any, other: Any, **_: Any) -> Any:
    return op.Gemm(x, weight, other, transB=1)


def _number(value: Any) -> float:
    """Of a constant of one element; NaN of any other value, for which no comparison holds."""
    known = _constant(value)
    return float(known.item()) if known is not None and known.size == 1 else math.nan


def _constant(value: Any) -> Any:
    """The numbers of a constant; None of any other value."""
    known = ir.convenience.get_const_tensor(value)
    return None if known is None else known.numpy()


# Before the others, whose patterns they would interrupt.
VIEWS = pattern.RewriteRuleSet(
    [
        pattern.RewriteRule(_squeezed, _unsqueezed, _back_in_their_place, remove_nodes=False),
        pattern.RewriteRule(_unsqueezed_twice, _unsqueezed_once, _at_the_end, remove_nodes=False),
    ]
)
RULES = pattern.RewriteRuleSet(
    [
        pattern.RewriteRule(_eight_operations, _layer_normalisation, _over_the_last_dimension),
        pattern.RewriteRule(_gain_of_several_rows, _gain_of_one_row_first, _of_rank_2),
        pattern.RewriteRule(_product, _quotient),
        pattern.RewriteRule(_two_cases, _one_case, _of_no_effect),
        pattern.RewriteRule(_twice_by_a_number, _once_by_a_number, _two_numbers, remove_nodes=False),
        pattern.RewriteRule(_linear_twice, _linear_once, _of_fewer_products),
        pattern.RewriteRule(_linear_and_a_sum, _linear_from, _of_one_shape),
        *expand_before_binary_op_rules,
    ],
    commute=True,
)
