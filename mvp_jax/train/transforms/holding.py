"""What all wrappers of an optimiser share, and `keep_mask`, which keeps a mask while an optimiser trains.

A wrapper takes the whole optimiser, so that nothing changes the updates after it, and gives the loop updates that leave
an exact 0 in every pruned place. Masks live in the optimiser's state, which holds arrays only: it stacks, saves and
shards as any optimiser's does.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from mvp_jax.core import masks as masks_lib
from mvp_jax.core import trees
from mvp_jax.core.types import Array, Masks, Params, PyTree


class KeepMaskState(NamedTuple):
    """The state of an optimiser made by `keep_mask`.

    Attributes:
        masks: booleans that broadcast to the parameters, True = keep.
        inner: the wrapped optimiser's state.
    """

    masks: Masks
    inner: optax.OptState


def copies(tree: PyTree) -> PyTree:
    """Returns the tree with arrays of its own: a state whose memory is donated must share it with nothing."""
    return jax.tree.map(lambda x: jnp.array(x, copy=True), tree)


def checked(params: Params | None, grads: Params, masks: Masks) -> Params:
    """Returns the parameters that `update` was given, after checking that gradients and masks belong to them."""
    if params is None:
        raise ValueError(
            "params is None, but pruned places get the update -params; call tx.update(grads, state, params)"
        )
    trees.check_same_structure(params, grads, "params", "the gradients")
    trees.check_same_structure(params, masks, "params", "the masks in the optimiser state")
    return params


@jax.jit
def hold(updates: Params, params: Params, masks: Masks) -> Params:
    """Returns updates that are `-params` where pruned, in the wider of both dtypes: the sum has to be exactly 0."""
    return jax.tree.map(lambda u, p, m: jnp.where(m, u, -p), updates, params, masks)


def when(
    due: Array, change: Callable[[list, list], list], old: Sequence[Array], inputs: Sequence[Array]
) -> list[Array]:
    """Returns `change(old, inputs)` where `due`, else `old`; under `vmap` nothing is computed while no member is due.

    A plain `cond` with a batched predicate becomes a select, which computes both sides at every step. Here its batched
    form is the same again, for all members and with one predicate, so that it nests.
    """

    @jax.custom_batching.custom_vmap
    def one(due: Array, old: list[Array], inputs: list[Array]) -> list[Array]:
        return lax.cond(due, change, lambda old, _: old, old, inputs)

    @one.def_vmap
    def many(size: int, batched: Any, due: Array, old: list[Array], inputs: list[Array]) -> tuple[list, list]:
        old = [x if b else jnp.broadcast_to(x, (size, *x.shape)) for x, b in zip(old, batched[1], strict=True)]
        axes = [0 if b else None for b in batched[2]]

        def all_of(old: list[Array], inputs: list[Array]) -> list[Array]:
            return jax.vmap(change, in_axes=(0, axes), axis_size=size)(old, inputs)

        def those_due(old: list[Array], inputs: list[Array]) -> list[Array]:
            mine, *inputs = inputs
            pairs = zip(all_of(old, inputs), old, strict=True)
            return [jnp.where(mine.reshape(-1, *[1] * (x.ndim - 1)), new, x) for new, x in pairs]

        if batched[0]:
            out = when(jnp.any(due), those_due, old, [due, *inputs])
        else:
            out = when(due, all_of, old, inputs)
        return out, [True] * len(out)

    return one(due, list(old), list(inputs))


def chosen(params: Params, prunable: PyTree | trees.PathRules) -> PyTree:
    """Returns which leaves are pruned, as a tree of booleans, from rules over paths or from such a tree."""
    if isinstance(prunable, (list, tuple)):
        # A tree may be a tuple of tuples too, but a rule begins with its pattern.
        first = [r[0] if isinstance(r, tuple) and r else r for r in prunable]
        if all(isinstance(r, str) for r in first):
            return trees.select(params, prunable)
    if not all(isinstance(p, (bool, np.bool_)) for p in jax.tree.leaves(prunable)):
        raise ValueError(
            f"prunable is {prunable!r}; give rules over paths, or a tree of Python booleans like the params"
        )
    trees.check_same_structure(params, prunable, "params", "prunable")
    return prunable


def keep_mask(tx: optax.GradientTransformation, masks: Masks) -> optax.GradientTransformationExtraArgs:
    """Returns an optimiser that keeps a mask: what is pruned becomes 0 with the first update and stays exactly 0.

    `tx` sees masked gradients and parameters, so moments of pruned weights stay 0 too; its updates are replaced by
    `-params` where pruned, which neither momentum nor weight decay can undo.

    Args:
        tx: the whole optimiser, with clipping and schedules.
        masks: booleans that broadcast to the parameters, True = keep. They are copied into the state, and `update`
            reads them there: members of a stack may have masks of their own, and others can be put in by
            `state._replace`.

    Returns:
        An optimiser whose `update` needs the parameters, and passes further arguments on to `tx`.

    Raises:
        ValueError: by `init` for masks that do not fit, by `update` without parameters.

    >>> params, masks = {"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([True, False])}
    >>> tx = keep_mask(optax.sgd(0.5, momentum=0.9), masks)
    >>> updates, state = tx.update({"w": jnp.array([1.0, 1.0])}, tx.init(params), params)
    >>> optax.apply_updates(params, updates)["w"].tolist()
    [0.5, 0.0]
    """
    tx = optax.with_extra_args_support(tx)

    def init(params: Params) -> KeepMaskState:
        return KeepMaskState(copies(masks), tx.init(masks_lib.apply(params, masks)))

    def update(
        grads: Params, state: KeepMaskState, params: Params | None = None, **extra: Any
    ) -> tuple[Params, KeepMaskState]:
        params = checked(params, grads, state.masks)
        masked = masks_lib.apply(params, state.masks)
        updates, inner = tx.update(masks_lib.apply(grads, state.masks), state.inner, masked, **extra)
        return hold(updates, params, state.masks), state._replace(inner=inner)

    return optax.GradientTransformationExtraArgs(init, update)
