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
    return rewrite(model, pattern_rewrite_rules=RULES)


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
    known = ir.convenience.get_const_tensor(gain)
    return known is not None and len(known.shape) > 1 and _over_the_last_dimension(context, x, axes, epsilon)


def _gain_of_one_row_first(op: Any, x: Any, axes: Any, epsilon: Any, gain: Any) -> Any:
    """onnxruntime makes one node of x / sqrt(mean(x^2)) only where a gain of rank 1 follows."""
    ones = op.Constant(value=ir.tensor(np.ones(x.shape[-1], x.dtype.numpy())))
    variance = op.ReduceMean(op.Pow(x, op.Constant(value_float=2.0)), axes, keepdims=1)
    return op.Mul(op.Mul(op.Div(x, op.Sqrt(op.Add(variance, epsilon))), ones), gain)


def _two_cases(op: Any, x: Any, limit: Any) -> Any:
    return op.Where(op.Greater(x, limit), x, op.Softplus(x))


def _of_no_effect(context: Any, limit: Any, **_: Any) -> bool:
    return _number(limit) >= SOFTPLUS_LIMIT


def _one_case(op: Any, x: Any, limit: Any) -> Any:
    return op.Softplus(x)


def _number(value: Any) -> float:
    """Of a constant of one element; NaN of any other value, for which no comparison holds."""
    known = ir.convenience.get_const_tensor(value)
    return float(known.numpy().item()) if known is not None and known.size == 1 else math.nan


RULES = pattern.RewriteRuleSet(
    [
        pattern.RewriteRule(_eight_operations, _layer_normalisation, _over_the_last_dimension),
        pattern.RewriteRule(_gain_of_several_rows, _gain_of_one_row_first, _of_rank_2),
        pattern.RewriteRule(_product, _quotient),
        pattern.RewriteRule(_two_cases, _one_case, _of_no_effect),
        *expand_before_binary_op_rules,
    ],
    commute=True,
)
