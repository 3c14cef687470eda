"""The arithmetic of a traced function, in floating-point operations, read off its jaxpr without compiling anything.

This is the only FLOP counter of the package: `compact.cost` counts models with it, `compact.budget` counts models with
fewer units, `graph.explain` says what each group takes part in, and `parallel.auto` judges how much a member computes.

The convention is that of XLA's cost analysis of a program before optimisation, which all published figures of this
package are in:

* A multiply-add counts as two, in products and convolutions; a convolution's windows count only where they lie over
  the image, not over its padding.
* An elementwise operation counts as one an entry, comparisons, selections and conversions included.
* Functions that hardware computes as one (`exp`, `tanh`, `rsqrt`, `pow`, ...) count as nothing: XLA reports them as
  transcendentals, in a number of their own. Those that are written out as a polynomial (`erfc`, which GELU uses) count
  as many operations as the polynomial has.
* A reduction of n numbers to one counts as n - 1.
* What only moves numbers counts as nothing.

Unlike in XLA's analysis, the body of a `scan` can be counted as often as it runs.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np

_Shape: TypeAlias = Sequence[int]

_UNCOUNTED = frozenset(
    (
        # Transcendental functions.
        *("atan", "atan2", "cbrt", "cos", "erf", "exp", "expm1", "log", "log1p", "pow", "rsqrt", "sin", "sqrt"),
        *("tan", "tanh"),
        # Movements.
        *("bitcast_convert_type", "broadcast_in_dim", "concatenate", "copy", "copy_p", "device_put", "dynamic_slice"),
        *("dynamic_update_slice", "expand_dims", "iota", "optimization_barrier", "pad", "random_unwrap", "random_wrap"),
        *("reshape", "rev", "scatter", "sharding_constraint", "slice", "split", "squeeze", "stop_gradient", "top_k"),
        "transpose",
    )
)

_WRITTEN_OUT = {
    "acos": 3,
    "acosh": 7,
    "asin": 5,
    "asinh": 11,
    "atanh": 6,
    "cosh": 3,
    "digamma": 73,
    "erf_inv": 37,
    "erfc": 62,
    "lgamma": 53,
    "logistic": 3,
    "nextafter": 24,
    "random_bits": 29,
    "sinh": 10,
}
"""Operations an entry of functions that are written out as several."""

_ARGUMENT_STEP = 9
"""Operations of `argmax` for each number that it compares: a pair of comparisons and selections, ties, and nan."""


def count(jaxpr: Any, *, repeat_loops: bool = True) -> int:
    """Floating-point operations of a traced function.

    Args:
        jaxpr: closed or open, such as `jax.make_jaxpr(f)(*args)` or `jax.jit(f).trace(*args).jaxpr`.
        repeat_loops: whether the body of a `scan` counts as often as it runs, which gives the work of a call; otherwise
            it counts once, as in XLA's own analysis, which measures the size of the operations that a program starts.
            The body of a `while_loop`, whose number of runs nobody knows, always counts once.

    Returns:
        The number for one call. Of the branches of a `cond`, the dearest counts.

    >>> import jax.numpy as jnp
    >>> x, w = jnp.ones((4, 3)), jnp.ones((3, 5))
    >>> count(jax.make_jaxpr(lambda x, w: jax.nn.relu(x @ w))(x, w)) == 2 * 4 * 3 * 5 + 4 * 5
    True

    Reference: XLA's `HloCostAnalysis`, https://github.com/openxla/xla/blob/main/xla/service/hlo_cost_analysis.cc.
    """
    return sum(of_equation(eqn, repeat_loops=repeat_loops) for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns)


def of_equation(eqn: Any, *, repeat_loops: bool = True) -> int:
    """Floating-point operations of one equation of a jaxpr, with all that it calls; see `count` for the convention.

    Args:
        eqn: the equation.
        repeat_loops: as in `count`.

    Returns:
        The number for one run of the equation.
    """
    called = list(subprograms(eqn)) if eqn.primitive.name not in _LEAVES else []
    if not called:
        return of_primitive(eqn, [v.aval.shape for v in eqn.invars], [v.aval.shape for v in eqn.outvars])
    each = [count(program, repeat_loops=repeat_loops) for program in called]
    if eqn.primitive.name == "cond":
        return max(each)
    return sum(each) * (eqn.params["length"] if repeat_loops and eqn.primitive.name == "scan" else 1)


def subprograms(eqn: Any) -> Iterator[Any]:
    """The jaxprs, closed or open, among an equation's parameters: bodies, branches, and functions that it calls."""
    for value in eqn.params.values():
        for inner in value if isinstance(value, tuple | list) else (value,):
            if hasattr(getattr(inner, "jaxpr", inner), "eqns"):
                yield inner


def of_primitive(eqn: Any, ins: Sequence[_Shape], outs: Sequence[_Shape]) -> int:
    """Floating-point operations of one equation that calls nothing, at shapes that may differ from the traced ones.

    Args:
        eqn: the equation, for its primitive, parameters and dtypes.
        ins: shapes of its operands.
        outs: shapes of its results.

    Returns:
        The number for one run of the equation; see the top of this file for the convention.
    """
    name = eqn.primitive.name
    written = sum(map(math.prod, outs))
    if name in _UNCOUNTED:
        return 0
    if name in _WRITTEN_OUT:
        return _WRITTEN_OUT[name] * written
    if name in _RULES:
        return _RULES[name](eqn, ins, outs)
    if name.startswith("reduce_window") or name == "select_and_gather_add":
        return written * (math.prod(eqn.params["window_dimensions"]) - 1)
    if name in ("reduce_precision", "reduce"):
        return written
    if name.startswith("reduce_"):
        return max(math.prod(ins[0]) - written, 0)
    return written


def _dot(eqn: Any, ins: Sequence[_Shape], outs: Sequence[_Shape]) -> int:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    return 2 * math.prod(outs[0]) * math.prod(ins[0][a] for a in contracted)


def _ragged_dot(eqn: Any, ins: Sequence[_Shape], outs: Sequence[_Shape]) -> int:
    """Each row is multiplied by the matrix of its group alone, so the number of groups costs nothing."""
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    (contracted, _), _ = numbers.dot_dimension_numbers
    groups = ins[2][-1] if set(numbers.lhs_ragged_dimensions) & set(contracted) else 1  # then each has a result
    return 2 * math.prod(outs[0]) // max(groups, 1) * math.prod(ins[0][a] for a in contracted)


def _convolution(eqn: Any, ins: Sequence[_Shape], outs: Sequence[_Shape]) -> int:
    p = eqn.params
    numbers = p["dimension_numbers"]
    taps = 1
    for i, (image, kernel, out) in enumerate(
        zip(numbers.lhs_spec[2:], numbers.rhs_spec[2:], numbers.out_spec[2:], strict=True)
    ):
        # Positions in the image, its zeros between entries included, that each tap of each window lies over.
        start = np.arange(outs[0][out]) * p["window_strides"][i] - p["padding"][i][0]
        at = start[:, None] + np.arange(ins[1][kernel]) * p["rhs_dilation"][i]
        dilation = p["lhs_dilation"][i]
        inside = (at >= 0) & (at % dilation == 0) & (at // dilation < ins[0][image])
        taps *= int(np.count_nonzero(inside))
    per_group = ins[1][numbers.rhs_spec[1]]
    batch = ins[0][numbers.lhs_spec[0]] // p["batch_group_count"]
    return 2 * taps * per_group * outs[0][numbers.out_spec[1]] * batch


def _power(eqn: Any, ins: Sequence[_Shape], outs: Sequence[_Shape]) -> int:
    """Products of repeated squaring, and a division for a negative exponent."""
    y = abs(eqn.params["y"])
    return math.prod(outs[0]) * (max(y.bit_length() + y.bit_count() - 2, 0) + (eqn.params["y"] < 0))


def _convert(eqn: Any, ins: Sequence[_Shape], outs: Sequence[_Shape]) -> int:
    return 0 if eqn.invars[0].aval.dtype == eqn.outvars[0].aval.dtype else math.prod(outs[0])


def _gather(eqn: Any, ins: Sequence[_Shape], outs: Sequence[_Shape]) -> int:
    """Nothing, unless entries out of range are replaced: then indices are compared, and entries selected."""
    fills = eqn.params["mode"] == jax.lax.GatherScatterMode.FILL_OR_DROP
    return math.prod(outs[0]) + 3 * math.prod(ins[1]) if fills else 0


def _updates(eqn: Any, ins: Sequence[_Shape], outs: Sequence[_Shape]) -> int:
    return math.prod(ins[2])


def _argument(eqn: Any, ins: Sequence[_Shape], outs: Sequence[_Shape]) -> int:
    return _ARGUMENT_STEP * (math.prod(ins[0]) - math.prod(outs[0]))


def _sort(eqn: Any, ins: Sequence[_Shape], outs: Sequence[_Shape]) -> int:
    entries = math.prod(ins[0])
    return entries * max(entries - 1, 0).bit_length()


_RULES: dict[str, Callable[[Any, Sequence[_Shape], Sequence[_Shape]], int]] = {
    "dot_general": _dot,
    "ragged_dot_general": _ragged_dot,
    "conv_general_dilated": _convolution,
    "integer_pow": _power,
    "convert_element_type": _convert,
    "gather": _gather,
    "argmax": _argument,
    "argmin": _argument,
    "sort": _sort,
    **dict.fromkeys(("scatter-add", "scatter_add", "scatter-mul", "scatter_mul"), _updates),
    **dict.fromkeys(("scatter-min", "scatter_min", "scatter-max", "scatter_max"), _updates),
}

_LEAVES = frozenset((*_RULES, *_UNCOUNTED, "reduce", "reduce_window", "scatter"))
"""Primitives whose own small programs (how two numbers are added) are part of their count."""
