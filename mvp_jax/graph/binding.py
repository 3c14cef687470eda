"""Primitives applied again to other operands, and constants of a program computed where their values matter."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np


def bind(eqn: Any, values: Sequence[Any], params: Mapping[str, Any]) -> list[Any]:
    """The results of an equation's primitive on other operands, with parameters of the equation's form."""
    bound = eqn.primitive.get_bind_params(dict(params))
    functions, params = bound if isinstance(bound, tuple) else ((), bound)
    out = eqn.primitive.bind(*functions, *values, **params)
    return list(out) if eqn.primitive.multiple_results else [out]


def evaluated(eqn: Any, operands: Sequence[Callable[[], Any] | None]) -> Callable[[int], Any]:
    """`i -> result` of an equation on constants, computed once, when it is first asked for.

    The result raises `ValueError` for an equation that does more than compute, or an operand that is not known.
    """

    @functools.cache
    def results() -> list[Any]:
        if eqn.effects or None in operands:
            raise ValueError(f"{eqn.primitive.name} does more than compute, or its operands are not known")
        return bind(eqn, [compute() for compute in operands if compute is not None], eqn.params)

    return lambda i: results()[i]


def known(compute: Callable[[], Any]) -> np.ndarray | None:
    """A constant on the host, computed at once also while something else is traced; `None` if it cannot be."""
    try:
        with jax.ensure_compile_time_eval():
            value = compute()
            return None if isinstance(value, jax.core.Tracer) else np.asarray(value)
    except Exception:  # a place in a mesh, a value of an outer trace: whatever the reason, it is not known here
        return None
