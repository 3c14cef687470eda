"""What every kernel multiplies: the norms of its inputs, in any traced function.

A kernel is a parameter that reaches a matrix product or a convolution unchanged but for its layout: reshaped,
transposed, cast, never sliced or computed with. The function is run equation by equation; at each such product the
squares of the other operand are summed over all examples and positions and brought back into the parameter's own
layout, so that no layer has to be known by its framework.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core

from mvp_jax.core import precision, trees
from mvp_jax.core.types import Array, Params, PyTree, Scores
from mvp_jax.graph import analysis
from mvp_jax.graph.primitives import INLINED
from mvp_jax.graph.program import called, open_jaxpr


class Inputs(NamedTuple):
    """What the kernels of a function multiply.

    Attributes:
        norm: a tree like the parameters: float32 of each kernel's shape, or float64 where its inputs are float64: the
            norm of the inputs that each of its entries multiplies; a scalar 1 for leaves that are not prunable.
        outputs: a tree like the parameters: the axes of each kernel along which its outputs lie, for
            `prune.by_output`; `()` for leaves that are not prunable.
    """

    norm: Scores
    outputs: PyTree


def norms(apply: Callable[..., Any], variables: PyTree, *inputs: Any, prunable: PyTree | trees.PathRules) -> Inputs:
    """The norm of the inputs that each entry of a kernel multiplies, over examples, positions and uses.

    `‖x_i‖₂ = sqrt(Σ_t x_ti²)`, where `t` runs over everything that entry `i` meets: examples, tokens, and for a
    convolution all places of its window, tap by tap (padding counts 0). A kernel that is used several times counts all
    its uses. Squares and sums are taken in float32, of float64 inputs in float64.

    Args:
        apply: pure; called as `apply(variables, *inputs)`. Static and hashable, as functions are: give the same object
            again and nothing is compiled again.
        variables: any pytree of arrays. If it has an entry `params` (`Variables`, Linen's variables), only those are
            parameters; otherwise all of it are.
        *inputs: calibration data as `apply` takes it.
        prunable: which parameters are kernels, as rules over paths or as a tree of booleans like the parameters.

    Returns:
        Norms and output axes. Under an outer `jit` return the norms only: the axes are Python integers.

    Raises:
        ValueError: naming the leaf, if it never multiplies anything, is sliced, summed or otherwise computed with,
            sits inside a loop or branch, multiplies another kernel, or has an axis that is both input and output.

    >>> params = {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}
    >>> def layer(params, x):
    ...     return x @ params["kernel"] + params["bias"]
    >>> found = norms(layer, params, jnp.array([[3.0, 1.0], [4.0, 0.0]]), prunable=["kernel"])
    >>> found.norm["kernel"][:, 0].tolist(), found.outputs["kernel"]
    ([5.0, 1.0], (1,))

    Reference: Sun et al. 2023, "A Simple and Effective Pruning Approach for Large Language Models" (arXiv:2306.11695),
    equation 1.
    """
    kernels = pick(variables, prunable)
    # Axes are found without computing anything; what is wrong is said before anything is compiled.
    walk = _Walk(kernels.places)
    jax.eval_shape(lambda *args: walk.sums(apply, *args), variables, *inputs)
    found = _norms(apply, kernels.places, variables, *inputs)
    outputs = [walk.outputs[i] for i, _ in kernels.places]
    return Inputs(kernels.tree(found, jnp.ones((), jnp.float32)), kernels.tree(outputs, ()))


class Kernels(NamedTuple):
    """Which leaves of the variables are prunable.

    Attributes:
        places: position among all leaves of the variables, and path among the parameters, of each.
        params: positions of all parameters.
        structure: of the parameters.
    """

    places: tuple[tuple[int, str], ...]
    params: tuple[int, ...]
    structure: Any

    def tree(self, values: Sequence[Any], other: Any) -> Params:
        """A tree like the parameters: a value for each prunable leaf, `other` for the rest."""
        found = dict(zip((i for i, _ in self.places), values, strict=True))
        return jax.tree.unflatten(self.structure, [found.get(i, other) for i in self.params])


def pick(variables: PyTree, prunable: PyTree | trees.PathRules) -> Kernels:
    """The prunable leaves of variables, by rules or by a tree of booleans like the parameters.

    Raises:
        ValueError: if there is none, the tree differs in structure, or it holds anything but booleans.

    >>> pick({"params": {"bias": 1, "kernel": 2}, "batch_stats": {"mean": 0}}, ["kernel"]).places
    ((2, 'kernel'),)
    """
    if isinstance(variables, Mapping):
        params = variables.get("params", variables)
    else:
        params = variables.params if "params" in getattr(variables, "_fields", ()) else variables
    rules = isinstance(prunable, list | tuple) and all(
        isinstance(r[0] if isinstance(r, tuple) and r else r, str) for r in prunable
    )
    tree = trees.select(params, prunable) if rules else prunable
    tree = trees.align(tree, params, "prunable", "params")
    picked = jax.tree.leaves(tree)
    if not all(isinstance(p, bool | np.bool_) for p in picked):
        raise ValueError(
            "prunable holds arrays or numbers; give rules over paths or Python booleans, as trees.select makes"
        )
    if not any(picked):
        raise ValueError(f"no leaf is prunable; the parameters have {list(trees.flatten(params))[:8]}")
    named = analysis.collections(variables)
    at = tuple(i for i, (_, where) in enumerate(named) if where == "params")
    places = tuple((i, named[i][0]) for i, p in zip(at, picked, strict=True) if p)
    return Kernels(places, at, jax.tree.structure(params))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _norms(
    apply: Callable[..., Any], kernels: tuple[tuple[int, str], ...], variables: PyTree, *inputs: Any
) -> list[Array]:
    return [jnp.sqrt(s) for s in _Walk(kernels).sums(apply, variables, *inputs)]


class _Step(NamedTuple):
    """One change of layout: to another shape, by a permutation, or with some axes reversed."""

    kind: Literal["reshape", "transpose", "rev"]
    before: tuple[int, ...]
    how: tuple[int, ...]

    def forward(self, x: np.ndarray) -> np.ndarray:
        if self.kind == "reshape":
            return x.reshape(self.how)
        return x.transpose(self.how) if self.kind == "transpose" else np.flip(x, self.how)

    def back(self, x: Array) -> Array:
        if self.kind == "reshape":
            return jnp.reshape(x, self.before)
        return (
            jnp.transpose(x, [self.how.index(a) for a in range(len(self.how))])
            if self.kind == "transpose"
            else lax.rev(x, self.how)
        )


class _Origin(NamedTuple):
    """That a value is one kernel in another layout."""

    leaf: int
    shape: tuple[int, ...]
    steps: tuple[_Step, ...] = ()


class _Known(NamedTuple):
    """A value, and which kernel it is, if any."""

    value: Any
    origin: _Origin | None = None


_SAME = {"convert_element_type", "copy", "copy_p", "reduce_precision", "sharding_constraint", "stop_gradient"}
_RESHAPED = {"reshape", "squeeze", "expand_dims", "broadcast_in_dim"}
_LOOPS = {"scan": "a loop", "while": "a loop", "cond": "a branch"}


class _Walk:
    """Runs a function and notes what its kernels multiply.

    Args:
        kernels: `(position among all leaves, path)` of each.
    """

    def __init__(self, kernels: Sequence[tuple[int, str]]):
        self.paths = dict(kernels)
        self.squares: dict[int, Array] = {}
        self.outputs: dict[int, tuple[int, ...]] = {}

    def sums(self, apply: Callable[..., Any], variables: PyTree, *inputs: Any) -> list[Array]:
        """The sum of squared inputs for every kernel, in its shape."""
        closed = jax.make_jaxpr(apply)(variables, *inputs)
        leaves = jax.tree.leaves((variables, *inputs))
        given = [_Known(x, _Origin(i, jnp.shape(x)) if i in self.paths else None) for i, x in enumerate(leaves)]
        self.run(closed.jaxpr, closed.consts, given)
        lost = [path for i, path in self.paths.items() if i not in self.squares]
        if lost:
            raise ValueError(
                f"{lost[:5]} never multiply data in a matrix product or convolution, so they have no inputs to "
                "measure; leave them out of `prunable`"
            )
        return [self.squares[i] for i in self.paths]

    def run(self, jaxpr: Any, consts: Sequence[Any], given: Sequence[_Known]) -> list[_Known]:
        """Results of a program for these arguments."""
        env = dict(zip(jaxpr.invars, given, strict=True))
        env |= {v: _Known(c) for v, c in zip(jaxpr.constvars, consts, strict=True)}

        def known(v: Any) -> _Known:
            return _Known(v.val) if isinstance(v, core.Literal) else env[v]

        for eqn in jaxpr.eqns:
            env.update(zip(eqn.outvars, self._equation(eqn, [known(v) for v in eqn.invars]), strict=True))
        return [known(v) for v in jaxpr.outvars]

    def _equation(self, eqn: Any, given: list[_Known]) -> list[_Known]:
        name = eqn.primitive.name
        if all(k.origin is None for k in given):
            return [_Known(x) for x in _bind(eqn, given)]
        if name in INLINED:
            jaxpr, consts = open_jaxpr(called(eqn.params))
            # A custom derivative's own constants come first; the function does not take them.
            return self.run(jaxpr, consts, given[len(given) - len(jaxpr.invars) :])
        if name in _SAME or name in _RESHAPED or name in ("transpose", "rev"):
            return [_Known(_bind(eqn, given)[0], self._moved(eqn, given[0].origin))]
        self._note(eqn, given)
        return [_Known(x) for x in _bind(eqn, given)]

    def _moved(self, eqn: Any, origin: _Origin | None) -> _Origin:
        """The kernel after a change of layout."""
        assert origin is not None
        name, before, after = eqn.primitive.name, *(tuple(v.aval.shape) for v in (eqn.invars[0], eqn.outvars[0]))
        if name == "convert_element_type" and not jnp.issubdtype(eqn.params["new_dtype"], jnp.floating):
            raise self._refusal(origin, f"is rounded to {eqn.params['new_dtype']}")
        if name == "broadcast_in_dim" and math.prod(before) != math.prod(after):
            raise self._refusal(origin, f"is repeated from shape {before} to {after}")
        if name == "reshape" and eqn.params.get("dimensions") is not None:
            raise self._refusal(origin, "is reshaped along other than its own order of axes")
        if name in _SAME:
            return origin
        if name in _RESHAPED:
            step = _Step("reshape", before, after)
        elif name == "transpose":
            step = _Step("transpose", before, tuple(eqn.params["permutation"]))
        else:
            step = _Step("rev", before, tuple(eqn.params["dimensions"]))
        return origin._replace(steps=(*origin.steps, step))

    def _refusal(self, origin: _Origin, why: str) -> ValueError:
        return ValueError(
            f"{self.paths[origin.leaf]!r} {why}; norms of inputs are defined for kernels that multiply data as they "
            "are (reshaped, transposed, cast): leave it out of `prunable`, or write the function so"
        )

    def _note(self, eqn: Any, given: list[_Known]) -> None:
        """Adds what a kernel multiplies here."""
        name = eqn.primitive.name
        origins = [k.origin for k in given if k.origin is not None]
        first = origins[0]
        if name in _LOOPS:
            raise self._refusal(first, f"is used inside {_LOOPS[name]} ({name})")
        if name not in ("dot_general", "conv_general_dilated"):
            raise self._refusal(first, f"is used by {name}")
        if len(origins) > 1:
            raise self._refusal(first, f"multiplies another kernel, {self.paths[origins[1].leaf]!r}")
        place = 0 if given[0].origin is not None else 1
        kernel, data = given[place], given[1 - place]
        if name == "dot_general":
            squares, read = _product(eqn.params, place, jnp.shape(kernel.value), data.value)
        elif place == 1:
            squares, read = _convolution(eqn.params, jnp.shape(kernel.value), data.value)
        else:
            raise self._refusal(first, "is what a convolution slides over")
        outputs = self._outputs(first, read)
        if self.outputs.setdefault(first.leaf, outputs) != outputs:
            raise self._refusal(first, f"has its outputs along {self.outputs[first.leaf]} and along {outputs}")
        for step in reversed(first.steps):
            squares = step.back(squares)
        self.squares[first.leaf] = squares + self.squares[first.leaf] if first.leaf in self.squares else squares

    def _outputs(self, origin: _Origin, read: Sequence[int]) -> tuple[int, ...]:
        """Axes of the kernel that its outputs lie along, when a product reads these axes of its new layout."""
        size = math.prod(origin.shape)
        index = np.arange(size, dtype=np.int32 if size < 2**31 else np.int64).reshape(origin.shape)
        for step in origin.steps:
            index = step.forward(index)

        def along(axes: Sequence[int]) -> np.ndarray:
            return index[tuple(slice(None) if a in axes else slice(0, 1) for a in range(index.ndim))]

        def varying(entries: np.ndarray) -> set[int]:
            coordinates = np.unravel_index(entries.ravel(), origin.shape)
            return {a for a, c in enumerate(coordinates) if c.size and c.min() != c.max()}

        rows, columns = along(read), along([a for a in range(index.ndim) if a not in read])
        made, shared = varying(columns), varying(rows) & varying(columns)
        if shared or not np.array_equal(index, rows + columns - along(())):
            raise self._refusal(origin, f"has inputs and outputs mixed in its axes {sorted(shared)}")
        return tuple(sorted(made))


def _product(
    params: Mapping[str, Any], place: int, shape: tuple[int, ...], data: Array
) -> tuple[Array, tuple[int, ...]]:
    """Of a matrix product: the sums of squares for the kernel (operand `place`), and the axes that it reads."""
    contracted, batch = params["dimension_numbers"]
    pairs = sorted(zip((*contracted[place], *batch[place]), (*contracted[1 - place], *batch[1 - place]), strict=True))
    met, kept = [a for a, _ in pairs], [b for _, b in pairs]
    others = tuple(a for a in range(jnp.ndim(data)) if a not in kept)
    squares = jnp.sum(jnp.square(precision.widen(data)), axis=others)
    squares = jnp.transpose(squares, [sorted(kept).index(b) for b in kept])
    squares = jnp.reshape(squares, [n if a in met else 1 for a, n in enumerate(shape)])
    return jnp.broadcast_to(squares, shape), tuple(contracted[place])


def _convolution(params: Mapping[str, Any], shape: tuple[int, ...], data: Array) -> tuple[Array, tuple[int, ...]]:
    """Of a convolution: the sums of squares for every tap, and the axes that it reads."""
    out = params["dimension_numbers"].rhs_spec[0]
    # All filters of a group meet the same inputs: one filter a group is enough.
    groups = max(params["feature_group_count"], params["batch_group_count"])
    squares = jnp.square(precision.widen(data))
    one = jax.ShapeDtypeStruct([groups if a == out else n for a, n in enumerate(shape)], squares.dtype)
    names = ("window_strides", "padding", "lhs_dilation", "rhs_dilation", "dimension_numbers")

    def convolve(kernel: Array) -> Array:
        return lax.conv_general_dilated(
            squares,
            kernel,
            **{name: params[name] for name in names},
            feature_group_count=params["feature_group_count"],
            batch_group_count=params["batch_group_count"],
            precision=lax.Precision.HIGHEST,
        )

    # Linear in the kernel, so that the coefficient of every tap is the sum of what it multiplies.
    (taps,) = jax.linear_transpose(convolve, one)(jnp.ones(jax.eval_shape(convolve, one).shape, squares.dtype))
    repeated = jnp.repeat(taps, shape[out] // groups, axis=out)
    return repeated, tuple(a for a in range(len(shape)) if a != out)


def _bind(eqn: Any, given: Sequence[_Known]) -> list[Any]:
    """Applies a primitive with the parameters that it had."""
    bound = eqn.primitive.get_bind_params(dict(eqn.params))
    functions, params = bound if isinstance(bound, tuple) else ((), bound)
    out = eqn.primitive.bind(*functions, *(k.value for k in given), **params)
    return list(out) if eqn.primitive.multiple_results else [out]


__all__ = ["Inputs", "Kernels", "norms", "pick"]
