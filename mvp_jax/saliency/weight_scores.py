"""Scores of single weights: higher = keep.

They have the structure of the parameters and go to a selector of `prune` as they are, or through `units.reduce` to one
number a unit. Weights of float16, bfloat16 or integers are converted to float32 first. A `loss` is static and hashable,
as functions are: give the same object again and nothing is compiled again.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from mvp_jax.core import precision, trees
from mvp_jax.core.types import Array, Key, Params, PyTree, Scores


@jax.jit
def magnitude(params: Params) -> Scores:
    """The absolute value of every weight.

    `s = |θ|`. For units, reduce the parameters themselves: `units.reduce(params, groups, "l1")` or `"l2"`.

    Args:
        params: any tree of arrays.

    Returns:
        float32 scores of the same structure and shapes; float64 where the weights are float64.

    >>> magnitude({"kernel": jnp.array([-2.0, 1.0])})["kernel"].tolist()
    [2.0, 1.0]

    Reference: Han et al., "Learning both Weights and Connections", 2015, arXiv:1506.02626, section 3.
    """
    return jax.tree.map(lambda p: jnp.abs(precision.widen(p)), params)


def random(key: Key, like: PyTree) -> Scores:
    """Uniform noise in `[0, 1)`, independent for every entry.

    Args:
        key: consumed; each leaf draws from its own child of it.
        like: a tree of arrays or of shapes; for units `{name: zeros[C]}`.

    Returns:
        float32 scores of the structure and shapes of `like`.

    >>> scores = random(jax.random.key(0), {"fc": jnp.zeros(3)})["fc"]
    >>> scores.shape, bool(jnp.all((scores >= 0) & (scores < 1)))
    ((3,), True)
    """
    leaves, structure = jax.tree.flatten(like)
    return jax.tree.unflatten(structure, _noise(key, tuple(jnp.shape(leaf) for leaf in leaves)))


@functools.partial(jax.jit, static_argnames="shapes")
def _noise(key: Key, shapes: tuple[tuple[int, ...], ...]) -> list[Array]:
    return [jax.random.uniform(jax.random.fold_in(key, i), s, jnp.float32) for i, s in enumerate(shapes)]


def taylor_terms(params: Params, grads: Params) -> PyTree:
    """Each weight's first-order share of the change of the loss, signed.

    `t = θ · ∂L/∂θ`. A unit's Taylor score is the square of the sum of its terms over its producing slots:
    `units.reduce(taylor_terms(params, grads), groups, "sum_square")`. Take the gradients with batch
    normalisation in eval mode: in train mode the sum is 0 for every filter in front of one, because the
    normalisation undoes its scale.

    Args:
        params: the weights.
        grads: the gradients of the loss, same structure and shapes.

    Returns:
        float32 terms of the same structure and shapes; float64 where weights or gradients are float64.

    Raises:
        ValueError: if the structures differ.

    >>> taylor_terms({"w": jnp.array([2.0, -1.0])}, {"w": jnp.array([0.5, 3.0])})["w"].tolist()
    [1.0, -3.0]

    Reference: Molchanov et al., "Importance Estimation for Neural Network Pruning", 2019, arXiv:1906.10771, eq. 8.
    """
    grads = trees.align(grads, params, "grads", "params")
    return _products(params, grads)


def taylor(params: Params, grads: Params) -> Scores:
    """The squared first-order change of the loss when a weight is set to zero.

    `s = (θ · ∂L/∂θ)²`, weight by weight; for units see `taylor_terms`.

    Args:
        params: the weights.
        grads: the gradients of the loss, same structure and shapes.

    Returns:
        float32 scores of the same structure and shapes; float64 where weights or gradients are float64.

    Raises:
        ValueError: if the structures differ.

    >>> taylor({"w": jnp.array([2.0, -1.0])}, {"w": jnp.array([0.5, 3.0])})["w"].tolist()
    [1.0, 9.0]

    Reference: Molchanov et al., "Importance Estimation for Neural Network Pruning", 2019, arXiv:1906.10771, eq. 8.
    """
    grads = trees.align(grads, params, "grads", "params")
    return _squares(params, grads)


def _product(p: Array, g: Array) -> Array:
    return precision.widen(p) * precision.widen(g)


@jax.jit
def _products(params: Params, grads: Params) -> PyTree:
    return jax.tree.map(_product, params, grads)


@jax.jit
def _squares(params: Params, grads: Params) -> PyTree:
    return jax.tree.map(lambda p, g: jnp.square(_product(p, g)), params, grads)


def snip(params: Params, grads: Params) -> Scores:
    """Connection sensitivity: how strongly the loss reacts to the presence of a weight.

    `s = |θ · ∂L/∂θ|`. The paper divides by the sum over all weights, which changes no order.

    Args:
        params: the weights.
        grads: the gradients of the loss, same structure and shapes.

    Returns:
        float32 scores of the same structure and shapes; float64 where weights or gradients are float64.

    Raises:
        ValueError: if the structures differ.

    >>> snip({"w": jnp.array([2.0, -1.0])}, {"w": jnp.array([0.5, 3.0])})["w"].tolist()
    [1.0, 3.0]

    Reference: Lee et al., "SNIP: Single-shot Network Pruning based on Connection Sensitivity", 2019, arXiv:1810.02340,
    eq. 6.
    """
    grads = trees.align(grads, params, "grads", "params")
    return _magnitudes(params, grads)


@jax.jit
def _magnitudes(params: Params, factors: PyTree) -> Scores:
    return jax.tree.map(lambda p, f: jnp.abs(_product(p, f)), params, factors)


def grasp(loss: Callable[..., Array], params: Params, *data: Any) -> Scores:
    """Gradient signal preservation: how much of the gradient's squared norm is lost with a weight.

    `s = θ · (H g)` with the loss's gradient `g` and Hessian `H`. To first order, a weight set to 0 changes `‖g‖²` by
    `-2 s`. The paper's score is `-s`, of which it removes the largest.

    Args:
        loss: `(params, *data) -> scalar`, twice differentiable. It is given float32 parameters in place of float16,
            bfloat16 and integer ones, because products of derivatives would vanish in half precision.
        params: the weights.
        *data: handed on to the loss; arrays given here are not compiled into the program.

    Returns:
        float32 scores of the structure and shapes of `params`; float64 where the weights are float64.

    Raises:
        ValueError: if the loss is not one number, or fails with float32 parameters in place of narrower ones.

    >>> def loss(params):
    ...     return params["w"] @ jnp.array([[2.0, 0.0], [0.0, 1.0]]) @ params["w"] / 2
    >>> grasp(loss, {"w": jnp.array([3.0, 1.0])})["w"].tolist()
    [36.0, 1.0]

    Reference: Wang et al., "Picking Winning Tickets Before Training by Preserving Gradient Flow", 2020,
    arXiv:2002.07376, eq. 8.
    """
    _check_scalar(loss, params, *data)
    return _grasp(loss, params, *data)


@functools.partial(jax.jit, static_argnums=0)
def _grasp(loss: Callable[..., Array], params: Params, *data: Any) -> Scores:
    params = precision.widen_all(params)
    gradient = jax.grad(lambda p: loss(p, *data))
    hessian_gradient = jax.jvp(gradient, (params,), (gradient(params),))[1]
    return jax.tree.map(jnp.multiply, params, hessian_gradient)


def fisher(loss: Callable[..., Array], params: Params, x: PyTree, y: PyTree, *, batch: int = 32) -> Scores:
    """Fisher pruning: the rise of the loss without a weight, by the diagonal of the empirical Fisher information.

    `s = θ² · 1/N Σ_n (∂L_n/∂θ)²`, with each example's own gradient; the constant ½ is left out. Scores of several calls
    with equally many examples may be averaged. For units, `gate_fisher` takes the Fisher information of a gate on each
    unit instead.

    Args:
        loss: `(params, x1, y1) -> scalar`, of one example without its batch axis. It is given float32 parameters in
            place of float16, bfloat16 and integer ones, because derivatives would vanish in half precision.
        params: the weights.
        x: inputs, leaves `[N, ...]`.
        y: labels, leaves `[N, ...]`.
        batch: at most so many gradients exist at a time.

    Returns:
        float32 scores of the structure and shapes of `params`; float64 where the weights are float64.

    Raises:
        ValueError: for a batch below 1, leaves of different or no length, or a loss that is not one number or fails
            with float32 parameters in place of narrower ones.

    >>> def loss(params, x1, y1):
    ...     return (params["w"] @ x1 - y1) ** 2 / 2
    >>> x, y = jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([0.0, 1.0])
    >>> fisher(loss, {"w": jnp.array([2.0, 3.0])}, x, y)["w"].tolist()
    [8.0, 18.0]

    Reference: Theis et al., "Faster Gaze Prediction with Dense Networks and Fisher Pruning", 2018, arXiv:1801.05787,
    Fisher pruning of single parameters.
    """
    lengths = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves((x, y))}
    if batch < 1 or len(lengths) != 1 or not all(n and n[0] for n in lengths):
        raise ValueError(
            f"batch is {batch}, and leaves of x and y lead with {sorted(lengths)}; give a batch of at least 1, and "
            "equally many examples in all leaves, at least one"
        )
    _check_scalar(loss, params, *jax.tree.map(lambda leaf: leaf[0], (x, y)))
    return _fisher(loss, params, x, y, batch)


@functools.partial(jax.jit, static_argnums=(0, 4))
def _fisher(loss: Callable[..., Array], params: Params, x: PyTree, y: PyTree, batch: int) -> Scores:
    params = precision.widen_all(params)
    n = jax.tree.leaves(x)[0].shape[0]
    whole = n - n % batch

    def squares(total: Params, examples: tuple[PyTree, PyTree]) -> tuple[Params, None]:
        grads = jax.vmap(jax.grad(loss), (None, 0, 0))(params, *examples)
        return jax.tree.map(lambda t, g: t + jnp.sum(jnp.square(g), axis=0), total, grads), None

    total = jax.tree.map(jnp.zeros_like, params)
    if whole:
        chunks = jax.tree.map(lambda leaf: leaf[:whole].reshape(-1, batch, *leaf.shape[1:]), (x, y))
        total, _ = lax.scan(squares, total, chunks)
    if n > whole:
        total, _ = squares(total, jax.tree.map(lambda leaf: leaf[whole:], (x, y)))
    return jax.tree.map(lambda p, t: jnp.square(p) * (t / n), params, total)


def _check_scalar(loss: Callable[..., Array], params: Params, *data: Any) -> None:
    given = sorted({str(jnp.result_type(p)) for p in jax.tree.leaves(params)})
    wide = jax.eval_shape(precision.widen_all, params)
    try:
        result = jax.eval_shape(loss, wide, *data)
    except TypeError as error:
        if all(p.dtype == jnp.result_type(q) for p, q in zip(*map(jax.tree.leaves, (wide, params)), strict=True)):
            raise
        raise ValueError(
            f"the loss fails with float32 parameters in place of {given}, and scores are computed in float32; let the "
            f"loss cast its parameters to the type that it needs, or give it float32 data: {error}"
        ) from error
    shapes = [leaf.shape for leaf in jax.tree.leaves(result)]
    if shapes != [()]:
        raise ValueError(f"the loss returns arrays of shapes {shapes}; it must return one number")


def wanda(params: Params, norms: Scores) -> Scores:
    """A weight's magnitude times the norm of the inputs that it multiplies.

    `s = |θ| · ‖x‖₂`. The paper compares weights of one output only: `prune.by_output(scores, keep, axis=found.outputs,
    within=prunable)` with `found = input_norms.norms(...)`.

    Args:
        params: the weights.
        norms: the `norm` of `input_norms.norms(...)`, a tree like `params`: for each leaf an array of its shape, or one
            number.

    Returns:
        float32 scores of the structure and shapes of `params`; float64 where weights or norms are float64.

    Raises:
        ValueError: if structures or shapes differ.

    >>> wanda({"w": jnp.array([-2.0, 1.0])}, {"w": jnp.array([1.0, 5.0])})["w"].tolist()
    [2.0, 5.0]

    Reference: Sun et al., "A Simple and Effective Pruning Approach for Large Language Models", 2023,
    arXiv:2306.11695, eq. 1.
    """
    norms = trees.align(norms, params, "norms", "params")
    for (path, p), n in zip(trees.flatten(params).items(), jax.tree.leaves(norms), strict=True):
        if jnp.ndim(n) and jnp.shape(n) != jnp.shape(p):
            have = f"norms of {path!r} have shape {jnp.shape(n)}, the parameter {jnp.shape(p)}"
            raise ValueError(f"{have}; take them from input_norms.norms of the same model")
    return _magnitudes(params, norms)
