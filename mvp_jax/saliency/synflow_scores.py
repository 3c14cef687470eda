"""Synaptic flow: scores and masks of weights from a linearised network, without any data.

`apply` and `neutral` are static and hashable, as functions are: give the same object again and nothing is compiled
again.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mvp_jax.core import allocation, masks, precision, prune, trees
from mvp_jax.core.types import Array, Masks, PyTree, Scores
from mvp_jax.graph import analysis
from mvp_jax.saliency import input_norms


def synflow(
    apply: Callable[..., Any],
    variables: PyTree,
    input_shape: tuple[int, ...],
    *,
    prunable: PyTree | trees.PathRules,
    rescale: bool = False,
    neutral: Callable[[PyTree], PyTree] | None = None,
) -> Scores:
    """The synaptic flow through each weight of the linearised network: its share of what reaches the outputs.

    `s = θ · ∂R/∂θ` with `R` the sum of the outputs for an input of ones. In the linearised network, prunable weights
    enter by their absolute value; of the other leaves, those named `scale` or `var` are 1 and those named `bias` or
    `mean` are 0, so that norms with stored statistics are the identity (up to their ε), and further parameters enter by
    their absolute value. On non-negative values ReLU and pooling are linear. To score a network that is pruned already,
    mask its variables.

    That the network is linear is checked by numbers, unless the variables are traced: `R` must be affine in a common
    factor of any one prunable leaf. Softmax attention and LayerNorm are not linear, nor is GELU where its inputs are
    small; such networks are refused.

    Args:
        apply: pure, `(variables, x) -> y` or `(y, rest)`, in evaluation mode; static.
        variables: any pytree. If it has an entry `params` (`Variables`, Linen's variables), only those are parameters.
        input_shape: the shape of one example.
        prunable: which parameters are scored, as rules over paths or as a tree of booleans like the parameters.
        rescale: first divide each prunable leaf by the mean over its outputs (its last axis) of the sum over inputs of
            `|θ|`, so that deep networks neither overflow nor underflow. In a plain chain of layers it changes no order;
            in a residual network it changes how branches weigh against each other.
        neutral: `variables -> variables`, replaces the treatment of the other leaves described above; static.

    Returns:
        float32 scores with the structure of the parameters and the shapes of the prunable leaves, float64 for float64
        leaves; a scalar 0 for leaves that are not prunable.

    Raises:
        ValueError: for rules that match nothing, a linearised network that overflows or gives 0, or one that is not
            linear.

    >>> def net(params, x):
    ...     return x @ params["a"] @ params["b"]
    >>> params = {"a": jnp.array([[1.0, -2.0]]), "b": jnp.array([[3.0], [0.5]])}
    >>> {k: s.ravel().tolist() for k, s in synflow(net, params, (1,), prunable=["a", "b"]).items()}
    {'a': [3.0, 1.0], 'b': [3.0, 1.0]}

    Reference: Tanaka et al., "Pruning neural networks without any data by iteratively conserving synaptic flow", 2020,
    arXiv:2006.05467, algorithm 1.
    """
    kernels = input_norms.pick(variables, prunable)
    net = _Net(apply, kernels.places, tuple(input_shape), rescale)
    return kernels.tree(_flow(net, _linear(net, variables, neutral)), jnp.zeros((), jnp.float32))


def prune_by_synflow(
    apply: Callable[..., Any],
    variables: PyTree,
    input_shape: tuple[int, ...],
    counts: Any,
    *,
    prunable: PyTree | trees.PathRules,
    rescale: bool = False,
    neutral: Callable[[PyTree], PyTree] | None = None,
) -> Masks:
    """Prunes by synaptic flow, round after round, without any data.

    Each round scores the weights that are left by `synflow`, which says how the network is linearised and checked, and
    keeps the highest over all leaves together.

    Args:
        apply: pure, `(variables, x) -> y` or `(y, rest)`, in evaluation mode; static.
        variables: any pytree. If it has an entry `params` (`Variables`, Linen's variables), only those are parameters.
        input_shape: the shape of one example.
        counts: int32[rounds], traced: how many prunable entries stay after each round, such as
            `schedules.counts("geometric", 100, n, sparsity)`.
        prunable: which parameters are pruned, as rules over paths or as a tree of booleans like the parameters.
        rescale: before every round, divide each prunable leaf by its mean gain, as in `synflow`, so that deep networks
            neither overflow nor underflow.
        neutral: `variables -> variables`, replaces the treatment that `synflow` gives to other leaves; static.

    Returns:
        Masks with the structure of the parameters; a scalar `True` for leaves that are not prunable.

    Raises:
        ValueError: for counts that do not fall from at most all entries, rules that match nothing, a linearised
            network that overflows, or one that is not linear.

    >>> def net(params, x):
    ...     return x @ params["a"] @ params["b"]
    >>> params = {"a": jnp.array([[1.0, -2.0]]), "b": jnp.array([[3.0], [0.5]])}
    >>> masks = prune_by_synflow(net, params, (1,), [3, 2], prunable=["a", "b"])
    >>> {k: m.ravel().tolist() for k, m in masks.items()}
    {'a': [True, False], 'b': [True, False]}

    Reference: Tanaka et al., "Pruning neural networks without any data by iteratively conserving synaptic flow", 2020,
    arXiv:2006.05467, algorithm 1.
    """
    kernels = input_norms.pick(variables, prunable)
    counts = allocation.as_count(counts if isinstance(counts, jax.Array) else np.asarray(counts), scalar=False)
    if jnp.ndim(counts) != 1 or not jnp.shape(counts)[0]:
        raise ValueError(f"counts have shape {jnp.shape(counts)}; give how many entries stay after each round")
    sizes = [np.size(leaf) for leaf in jax.tree.leaves(variables)]
    allocation.check_count(counts, sum(sizes[i] for i, _ in kernels.places), " after the rounds")
    if allocation.concrete(counts) and np.any(np.diff(np.asarray(counts)) > 0):
        raise ValueError(f"counts are {np.asarray(counts).tolist()}, but entries that are gone do not come back")
    net = _Net(apply, kernels.places, tuple(input_shape), rescale)
    return kernels.tree(_rounds(net, _linear(net, variables, neutral), counts), jnp.ones((), bool))


class _Net(NamedTuple):
    """What is static of a linearised network: function, place and path of each prunable leaf, and how it is scored."""

    apply: Callable[..., Any]
    places: tuple[tuple[int, str], ...]
    input_shape: tuple[int, ...]
    rescale: bool

    def kernels(self, variables: PyTree, rescale: bool | Array = False) -> list[Array]:
        """The prunable leaves, divided by their mean gain if asked."""
        leaves = jax.tree.leaves(variables)
        kernels = [leaves[i] for i, _ in self.places]
        gains = [jnp.sum(k) / (k.shape[-1] if k.ndim else 1) for k in kernels]
        return [k / jnp.where((g > 0) & rescale, g, 1.0) for k, g in zip(kernels, gains, strict=True)]

    def put(self, variables: PyTree, kernels: Sequence[Array]) -> PyTree:
        """The variables with these prunable leaves."""
        leaves, structure = jax.tree.flatten(variables)
        for (i, _), k in zip(self.places, kernels, strict=True):
            leaves[i] = k
        return jax.tree.unflatten(structure, leaves)

    def total(self, variables: PyTree, x: Array) -> Array:
        """`R`: the sum of the outputs."""
        result = self.apply(variables, x)
        outputs = jax.tree.leaves(result[0] if isinstance(result, tuple) else result)
        return functools.reduce(jnp.add, [jnp.sum(precision.widen(y)) for y in outputs])


_NAMED = {"scale": 1.0, "var": 1.0, "bias": 0.0, "mean": 0.0}
_OVERFLOW = (
    "the linearised network leaves the range of float32 for an input about 1; rescale=True keeps deep networks within "
    "it, unless weights are not finite themselves"
)


@functools.partial(jax.jit, static_argnums=(0, 2))
def _linearised(net: _Net, variables: PyTree, neutral: Callable[[PyTree], PyTree] | None) -> PyTree:
    """The variables of the linearised network; at least float32, which reaches further than half precision."""
    named, prunable = analysis.collections(variables), dict(net.places)
    changed = variables if neutral is None else neutral(variables)
    trees.check_same_structure(variables, changed, "the variables", "what neutral returns")
    leaves, structure = jax.tree.flatten(changed)

    def one(i: int, leaf: Array) -> Array:
        if i not in prunable and not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            return leaf
        leaf = precision.widen(leaf)
        path, where = named[i]
        name = path.rsplit("/", 1)[-1]
        if i not in prunable and neutral is None and name in _NAMED:
            return jnp.full_like(leaf, _NAMED[name])
        return jnp.abs(leaf) if i in prunable or (neutral is None and where == "params") else leaf

    return jax.tree.unflatten(structure, [one(i, leaf) for i, leaf in enumerate(leaves)])


@functools.partial(jax.jit, static_argnums=0)
def _flow(net: _Net, weights: PyTree) -> list[Array]:
    """Scores of the prunable leaves of a linearised network."""
    x = jnp.ones((1, *net.input_shape), precision.widest(weights))
    kernels = net.kernels(weights, net.rescale)
    grads = jax.grad(lambda ks: net.total(net.put(weights, ks), x))(kernels)
    return [k * g for k, g in zip(kernels, grads, strict=True)]


@functools.partial(jax.jit, static_argnums=0)
def _rounds(net: _Net, weights: PyTree, counts: Array) -> list[Array]:
    """Masks of the prunable leaves after all rounds."""
    kernels = net.kernels(weights)

    def one(kept: list[Array], count: Array) -> tuple[list[Array], None]:
        scores = _flow(net, net.put(weights, masks.apply(kernels, kept)))
        return prune.across_tree(scores, count, within=kept), None

    return lax.scan(one, masks.ones(kernels), jnp.asarray(counts))[0]


@functools.partial(jax.jit, static_argnums=0)
def _along(
    net: _Net, weights: PyTree, rescale: bool, x: Array, factors: Array, direction: Array
) -> tuple[Array, Array]:
    """`R` with each prunable leaf times its factor, and its slope in a direction of the factors."""
    kernels = net.kernels(weights, rescale)

    def total(f: Array) -> Array:
        return net.total(net.put(weights, [k * f[i] for i, k in enumerate(kernels)]), x)

    return jax.jvp(total, (factors,), (direction,))


def _linear(net: _Net, variables: PyTree, neutral: Callable[[PyTree], PyTree] | None) -> PyTree:
    """The linearised network's variables, checked: the sum of outputs is finite, not 0, and affine in each leaf."""
    weights = _linearised(net, variables, neutral)
    if not allocation.concrete(weights):
        return weights
    same = np.ones(len(net.places), np.float32)
    ones = np.ones((1, *net.input_shape), precision.widest(weights))
    flow = float(_along(net, weights, net.rescale, ones, same, same)[0])
    if not np.isfinite(flow):
        raise ValueError(_OVERFLOW)
    if flow == 0:
        raise ValueError("the linearised network gives 0: some layer is zero (a fresh head?); change it by `neutral`")
    # Small weights make anything nearly linear, large ones saturate it: every leaf is brought to a gain of 1. And ones
    # would hide what an uneven input shows: equal tokens make any attention uniform.
    x = np.asarray(np.random.default_rng(0).uniform(0.5, 1.5, ones.shape), ones.dtype)
    factors = np.array([1.0, 0.0, 2.0, 3.0])
    for direction, (_, path) in zip(np.eye(len(net.places), dtype=np.float32), net.places, strict=True):
        seen = [_along(net, weights, True, x, same + np.float32(f - 1) * direction, direction) for f in factors]
        if not np.isfinite(seen).all():
            raise ValueError(_OVERFLOW)
        totals, slopes = np.array(seen, np.float64).T
        size, slope = np.max(np.abs(totals)), slopes[0]
        off = np.abs(totals - totals[0] - slope * (factors - 1)) > 1e-4 * size
        # Slopes show a small bend beside a large constant; not at 0, where ReLU has none.
        bent = np.abs(slopes[2:] - slope) > 1e-3 * abs(slope) + 1e-6 * size
        if off.any() or bent.any():
            raise ValueError(
                f"the sum of outputs is not linear in {path!r}: times {factors.tolist()} it gives "
                f"{[float(f'{t:.5g}') for t in totals]}. SynFlow is for networks of linear layers, ReLU, pooling and "
                "norms with stored statistics; softmax attention, LayerNorm and GELU are not linear. Give a linear "
                "`apply`, or score the network by snip, grasp, fisher or wanda"
            )
    return weights
