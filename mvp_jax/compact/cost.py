"""What a model costs: parameters, arithmetic, bytes, and measured time; before and after pruning."""

import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mvp_jax import graph
from mvp_jax.core import flops as arithmetic
from mvp_jax.core.types import PyTree, Variables


class Cost(NamedTuple):
    """What one model costs, as numbers on the host.

    Attributes:
        params: how many trainable numbers it has.
        flops: the floating-point operations of a forward pass over one example; a multiply-add counts as two.
        bytes: the memory of everything that the model needs to run, batch statistics included.
    """

    params: int
    flops: float
    bytes: int


def parameters(tree: PyTree) -> int:
    """The number of entries in a tree of arrays or shapes.

    >>> parameters({"kernel": jnp.zeros((3, 4)), "bias": jnp.zeros(4)})
    16
    """
    return sum(math.prod(jnp.shape(leaf)) for leaf in jax.tree.leaves(tree))


def bytes(tree: PyTree) -> int:
    """The memory that the entries of a tree take.

    >>> bytes({"kernel": jnp.zeros((3, 4), jnp.float32), "mask": jnp.zeros(4, bool)})
    52
    """
    return sum(math.prod(jnp.shape(leaf)) * jnp.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree))


def flops(apply: Callable[..., Any], variables: Variables, shape: Sequence[int], *, dtype: Any = jnp.float32) -> float:
    """Floating-point operations of `apply(variables, x)` for one example.

    They are counted in the traced program, so that they are equal on every device and nothing is compiled; the
    convention is XLA's, see `core.flops`. The body of `lax.scan` or `lax.map` counts as often as it runs, the body of a
    `while_loop` once.

    Args:
        apply: a model's `apply`, or any traceable function of variables and a batch.
        variables: the variables, as arrays or as `jax.ShapeDtypeStruct`s.
        shape: the shape of the batch, `[N, ...]`.
        dtype: the dtype of the batch, such as a model's `input_dtype`.

    Returns:
        The operations of the whole batch divided by `N`.

    >>> flops(lambda v, x: x @ v, jnp.zeros((3, 5)), (4, 3))
    30.0
    """
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(jnp.shape(a), a.dtype), variables)
    leaves, structure = jax.tree.flatten(shapes)
    return _flops(apply, structure, tuple((s.shape, s.dtype) for s in leaves), tuple(shape), jnp.dtype(dtype))


@functools.lru_cache(maxsize=1024)
def _flops(
    apply: Callable[..., Any], structure: Any, leaves: tuple[Any, ...], shape: tuple[int, ...], dtype: Any
) -> float:
    variables = jax.tree.unflatten(structure, [jax.ShapeDtypeStruct(s, d) for s, d in leaves])
    x = jax.ShapeDtypeStruct(shape, dtype)
    return arithmetic.count(jax.make_jaxpr(apply)(variables, x)) / shape[0]


def of(model: Any, variables: PyTree, batch: int = 1) -> Cost:
    """Returns the cost of a model: its parameters, its operations for one example, and its bytes.

    Args:
        model: anything with `apply` and `input_shape`, and perhaps `input_dtype` (float32 otherwise).
        variables: its variables, as arrays or shapes; of several collections, only `params` count as trainable. A pair
            without names is `(params, rest)`.
        batch: the number of examples in the traced program; the result is for one example and hardly depends on it.

    Returns:
        The cost.
    """
    named = Variables(*variables) if type(variables) in (tuple, list) else variables
    leaves = zip(graph.collections(named), jax.tree.leaves(named), strict=True)
    return Cost(
        parameters([leaf for (_, collection), leaf in leaves if collection == "params"]),
        flops(
            model.apply,
            named,
            (batch, *model.input_shape),
            dtype=getattr(model, "input_dtype", jnp.float32),
        ),
        bytes(named),
    )


def memory(apply: Callable[..., Any], variables: PyTree, *inputs: Any) -> int:
    """Bytes that the compiled `apply(variables, *inputs)` needs for intermediate values at one time.

    The program is compiled, not run. Arguments and results are not counted.

    Args:
        apply: a traceable function.
        variables: arrays or shapes.
        *inputs: arrays or shapes.

    Returns:
        The compiler's figure for the default device; 0 where it gives none.

    >>> memory(lambda w, x: jnp.tanh(jnp.tanh(x @ w) @ w.T), jnp.ones((4, 4)), jnp.ones((8, 4))) > 0
    True
    """
    analysis = jax.jit(apply).lower(variables, *inputs).compile().memory_analysis()
    return int(analysis.temp_size_in_bytes) if analysis is not None else 0


BUSY = 0.25
"""A latency whose quartiles lie further apart than this share of the median was measured on a busy machine."""


class LatencySpread(NamedTuple):
    """How long a call takes, over several timed calls, in seconds.

    Attributes:
        median: the median time.
        low: the lower quartile of the times.
        high: the upper quartile of the times.
        repeats: the number of timed calls.
    """

    median: float
    low: float
    high: float
    repeats: int

    @property
    def busy(self) -> bool:
        """Whether the quartiles lie so far apart that something else must have run on the machine."""
        return self.high - self.low > BUSY * self.median

    def faster_than(self, other: "LatencySpread") -> bool:
        """Returns whether this call is clearly faster: the quartiles do not overlap, and the machine was not busy.

        >>> LatencySpread(2.0, 1.9, 2.1, 20).faster_than(LatencySpread(3.0, 2.9, 3.1, 20))
        True
        >>> LatencySpread(2.0, 1.9, 2.1, 20).faster_than(LatencySpread(2.2, 2.0, 2.3, 20))
        False
        """
        return self.high < other.low and not (self.busy or other.busy)


def latencies(calls: Sequence[Callable[[], Any]], *, repeats: int = 20, warmup: int = 2) -> tuple[LatencySpread, ...]:
    """Measures how long several calls take, each with its spread; each call waits for the device.

    The calls are timed in turn, first, second, ..., first, second, ..., so that other work on the machine falls on all
    of them alike.

    Args:
        calls: functions without arguments; if one is jitted, its calls before the timed ones compile it.
        repeats: how many times each is timed, at least 1.
        warmup: how many calls of each go before them; at least one is made.

    Returns:
        The spread of each call's times, in the order of the calls.

    Raises:
        ValueError: if `repeats` is below 1 or `warmup` below 0.
    """
    if repeats < 1 or warmup < 0:
        raise ValueError(f"repeats={repeats}, warmup={warmup}; time at least one call")
    for call in calls:
        for _ in range(max(1, warmup)):
            jax.block_until_ready(call())
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats):
        for call, own in zip(calls, times, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(call())
            own.append(time.perf_counter() - start)
    return tuple(_spread(own) for own in times)


def _spread(times: Sequence[float]) -> LatencySpread:
    low, median, high = (float(q) for q in np.quantile(times, (0.25, 0.5, 0.75)))
    return LatencySpread(median, low, high, len(times))


def latency(fn: Callable[..., Any], *args: Any, repeats: int = 20, warmup: int = 2) -> float:
    """Seconds that a call takes, as the median of several calls; each waits for the device.

    `latencies` gives the spread as well, and compares several functions under the same load.

    Args:
        fn: called as `fn(*args)`; if it is jitted, a call before the timed ones compiles it.
        *args: its arguments.
        repeats: how many calls are timed, at least 1.
        warmup: how many calls go before them; at least one is made.

    Returns:
        The median time in seconds.

    Raises:
        ValueError: if `repeats` is below 1 or `warmup` below 0.
    """
    return latencies([lambda: fn(*args)], repeats=repeats, warmup=warmup)[0].median
