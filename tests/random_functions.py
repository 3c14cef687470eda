"""Random small functions made of what people write in models, and of what must not fool the analysis.

A program is a list of numbers, each choosing an operation and its operands among the values made so far, so that any
list is a program and `hypothesis` can shrink it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests import random_norms_and_loops  # noqa: F401 - adds its operations
from tests.random_operations import BATCH, OPERATIONS, START, TOKENS

NAMES = tuple(OPERATIONS)


def build(program: Sequence[tuple[int, int, int]]) -> tuple[Callable[..., Any], dict[str, Any], Any]:
    """`(apply, params, x)` of a program: a dense layer, the operations, and a dense layer on the last value."""
    shapes: dict[str, tuple[int, ...]] = {}

    def run(params: Any, x: Any) -> Any:
        def make(shape: tuple[int, ...]) -> Any:
            name = f"w{len(made):02d}"
            made.append(name)
            if params is None:
                shapes[name] = shape
                seed = len(made)
                return jnp.asarray(np.random.default_rng(seed).normal(size=shape) * 0.5, jnp.float32)
            return params[name]

        made: list[str] = []
        values = [x @ make((x.shape[-1], START)) + make((START,))]
        for which, first, n in program:
            at = iter((first, n, first + n))
            values.append(
                OPERATIONS[NAMES[which % len(NAMES)]](make, lambda at=at: values[-1 - next(at) % len(values)], n)
            )
        last = values[-1]
        return jnp.tanh(last @ make((last.shape[-1], 5)))

    x = jax.random.normal(jax.random.key(0), (BATCH, TOKENS, 3))
    jax.eval_shape(lambda x: run(None, x), x)
    rng = np.random.default_rng(1)
    params = {k: jnp.asarray(rng.normal(size=s) * 0.5 + 0.1, jnp.float32) for k, s in shapes.items()}
    return run, params, x
