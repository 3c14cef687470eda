"""Scores of units from activations, norms and gates: `{group: float[C]}`, higher = keep.

Scores of single weights, from `weight_scores`, become scores of units through `units.reduce`.
"""

import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp

from mvp_jax.core import layouts, precision, trees
from mvp_jax.core.types import Array, Params, PyTree, UnitScores, Variables
from mvp_jax.core.units import Group, Slot


@jax.jit
def activation(activations: Mapping[str, Array], *, where: Array | None = None) -> UnitScores:
    """How strongly each unit fires on average.

    `s_c = 1/N Σ_n |a_nc|`. The mean over positions is already in `a` (`Model.inspect` gives it); means over
    several batches of one size may be averaged.

    Args:
        activations: `{name: [N, C]}`.
        where: bool[N], the examples that count (default all); at least one.

    Returns:
        `{name: float32[C]}`, computed in float32 also for activations of float16, bfloat16 or integers; float64 where
        they are float64.

    >>> activation({"fc": jnp.array([[1.0, -2.0], [3.0, 0.0]])})["fc"].tolist()
    [2.0, 1.0]
    """
    return {name: _mean(jnp.abs(precision.widen(a)), where) for name, a in activations.items()}


def batch_norm_scale(params: Params, groups: Sequence[Group]) -> UnitScores:
    """The absolute scale that normalisation gives each unit.

    `s_c = |γ_c|`, the mean over the group's own norms: its producing slots named `scale`. A channel that
    residual sums tie together has one norm in every block of its stage.

    Args:
        params: the weights.
        groups: groups that have a norm, `C` units each.

    Returns:
        `{name: float32[C]}`, computed in float32 also for weights of float16, bfloat16 or integers; float64 where they
        are float64.

    Raises:
        ValueError: naming the groups without a norm, or a path that the parameters lack.

    >>> from mvp_jax.core.units import Slot
    >>> g = Group(name="conv", size=2, slots=(Slot(path="bn/scale", axis=0, scored=True),))
    >>> batch_norm_scale({"bn": {"scale": jnp.array([-3.0, 0.5])}}, [g])["conv"].tolist()
    [3.0, 0.5]

    Reference: Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", 2017, arXiv:1708.06519.
    """
    norms = {
        g.name: tuple(
            s for s in g.slots if s.scored and s.collection == "params" and s.path.rsplit("/", 1)[-1] == "scale"
        )
        for g in groups
    }
    bare = [name for name, found in norms.items() if not found]
    if bare:
        raise ValueError(
            f"groups without a norm of their own: {bare}; score them by another saliency, or leave them out of `groups`"
        )
    leaves = trees.flatten(params)
    lost = sorted({s.path for found in norms.values() for s in found} - set(leaves))
    if lost:
        raise ValueError(f"the parameters lack {lost}, which the groups name; they have {sorted(leaves)[:8]}")
    sizes = {g.name: g.size for g in groups}
    return _mean_magnitudes(
        {name: [_of_units(leaves[s.path], s, sizes[name]) for s in found] for name, found in norms.items()}
    )


def _of_units(scale: Array, slot: Slot, size: int) -> Array:
    """The magnitude that a scale gives each unit, `[C]`, the mean over the entries of the unit."""
    if slot.plain:
        return scale
    return jnp.mean(jnp.abs(layouts.whole(precision.widen(scale)))[slot.index(size)], axis=1)


@jax.jit
def _mean_magnitudes(scales: Mapping[str, list[Array]]) -> UnitScores:
    return {name: jnp.mean(jnp.abs(jnp.stack(precision.widen_all(leaves))), axis=0) for name, leaves in scales.items()}


def gate_gradients(
    apply: Callable[..., tuple[Array, PyTree]],
    variables: Variables,
    x: PyTree,
    y: Array,
    loss: Callable[[Array, Array], Array],
    groups: Sequence[Group],
) -> dict[str, Array]:
    """Every example's own gradient with respect to a gate on every unit, in one backward pass.

    With gates `z[n, c] = 1` that multiply unit `c` of example `n` after its normalisation,
    `d[n, c] = ∂ Σ_n' L_n' / ∂ z[n, c] = ∂ L_n / ∂ z[n, c]`: in eval mode no example sees another, so the gradient
    of the sum holds each example's own, and nothing has to be vmapped over examples.

    Args:
        apply: `(variables, x, *, train, gates) -> (logits, rest)`, a `Model.apply`. Static, like `loss` and
            `groups`: give the same function object again and nothing is compiled again.
        variables: the model's parameters and batch statistics.
        x: the inputs, leaves `[N, ...]`.
        y: the labels, `[N]` (or `[N, ...]`).
        loss: `(logits, y) -> [N]`, one number an example, not their mean.
        groups: the groups to gate, `C` units each.

    Returns:
        `{name: float32[N, C]}`; float64 if any parameter is float64.

    Raises:
        ValueError: if no groups are given, or the loss is not one number an example.

    >>> def apply(variables, x, *, train, gates):
    ...     return x * gates["fc"] @ variables.params["w"], variables.rest
    >>> g = Group(name="fc", size=2, slots=())
    >>> v = Variables({"w": jnp.ones((2, 1))}, {})
    >>> x, y = jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.zeros(2)
    >>> gate_gradients(apply, v, x, y, lambda logits, y: logits[:, 0] - y, [g])["fc"].tolist()
    [[1.0, 2.0], [3.0, 4.0]]

    Reference: Kwon et al., "A Fast Post-Training Pruning Framework for Transformers", 2022, arXiv:2204.09656, eq. 11.
    """
    if not groups:
        raise ValueError("no groups to gate; give at least one")
    return _gate_gradients(apply, variables, x, y, loss, tuple((g.name, g.size) for g in groups))


@functools.partial(jax.jit, static_argnames=("apply", "loss", "sizes"))
def _gate_gradients(
    apply: Callable[..., tuple[Array, PyTree]],
    variables: Variables,
    x: PyTree,
    y: Array,
    loss: Callable[[Array, Array], Array],
    sizes: tuple[tuple[str, int], ...],
) -> dict[str, Array]:
    n = y.shape[0]

    def total(gates: dict[str, Array]) -> Array:
        logits, _ = apply(variables, x, train=False, gates=gates)
        losses = loss(logits, y)
        if losses.shape != (n,):
            raise ValueError(f"the loss gave shape {losses.shape} for {n} examples; it must give one number each, [N]")
        return jnp.sum(losses)

    dtype = precision.widest(variables.params)
    return jax.grad(total)({name: jnp.ones((n, size), dtype) for name, size in sizes})


@jax.jit
def gate_fisher(gate_gradients: Mapping[str, Array], *, where: Array | None = None) -> UnitScores:
    """Fisher information of units: the diagonal of the empirical Fisher information of their gates.

    `s_c = 1/N Σ_n d[n, c]²`: to second order, half of it is what the mean loss rises when unit `c` goes.
    Scores of several batches of one size may be averaged or summed.

    Args:
        gate_gradients: `{name: [N, C]}` from `gate_gradients`.
        where: bool[N], the examples that count (default all); at least one.

    Returns:
        `{name: float32[C]}`, computed in float32 also for gradients of float16 or bfloat16; float64 where they are
        float64.

    >>> gate_fisher({"fc": jnp.array([[1.0, 2.0], [3.0, 0.0]])})["fc"].tolist()
    [5.0, 2.0]

    Reference: Kwon et al., "A Fast Post-Training Pruning Framework for Transformers", 2022, arXiv:2204.09656, eq. 11.
    """
    return {name: _mean(jnp.square(precision.widen(d)), where) for name, d in gate_gradients.items()}


def _mean(values: Array, where: Array | None) -> Array:
    return jnp.mean(values, axis=0, where=None if where is None else where[:, None])
