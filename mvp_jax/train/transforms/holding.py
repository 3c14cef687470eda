"""What all wrappers of an optimiser share, and `keep_mask`, which keeps a mask while an optimiser trains.

A wrapper takes the whole optimiser, so that nothing changes the updates after it, and gives the loop updates that leave
an exact 0 in every pruned place whose parameter is finite. Masks live in the optimiser's state, which holds arrays
only: it stacks, saves and shards as any optimiser's does.
"""

import functools
import re
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


def taken_out(params: Params) -> list[str]:
    """Returns the paths at which `optax.masked`, `optax.partition` or `optax.multi_transform` took parameters out."""
    pairs = jax.tree_util.tree_leaves_with_path(params, is_leaf=_is_out)
    return [trees.path_of(k) for k, x in pairs if _is_out(x)]


def _is_out(x: Any) -> bool:
    return isinstance(x, optax.MaskedNode)


def fit(tree: PyTree, params: Params, name: str) -> PyTree:
    """Returns the leaves of a tree in the containers of the parameters; leaves of one path belong together.

    Inside `optax.masked` and its like the parameters lack some leaves. A tree of all parameters is cut down to the
    others then.

    Args:
        tree: one leaf for every parameter, or a scalar for a whole subtree.
        params: the parameters that a wrapper was given.
        name: what the tree is called in the error.

    Raises:
        ValueError: naming the paths that only one of the two has.
    """
    structure: Any = jax.tree.structure(params)
    if jax.tree.structure(tree) == structure:
        return tree
    out = taken_out(params)
    if out:
        here = list(trees.flatten(params))

        def belongs(path: str) -> bool:
            if any(path == o or path.startswith(f"{o}/") for o in out):
                return False
            # A scalar for a subtree of which nothing is here.
            return not any(o.startswith(f"{path}/") for o in out) or any(h.startswith(f"{path}/") for h in here)

        tree = {path: leaf for path, leaf in trees.flatten(tree).items() if belongs(path)}
    return trees.align(tree, params, name, "params")


def check_arrays(params: Params) -> None:
    """Raises `ValueError` for parameters that have leaves which are no arrays, naming the first of them."""
    for path, leaf in trees.flatten(params).items():
        if not isinstance(leaf, (jax.Array, np.ndarray, np.generic, float, int, jax.ShapeDtypeStruct)):
            raise ValueError(
                f"params have the leaf {path!r}, a {type(leaf).__name__}, but an optimiser takes arrays; of an Equinox "
                "module give the first part of eqx.partition(module, eqx.is_inexact_array)"
            )


def aligned(params: Params | None, grads: Params, masks: Masks) -> tuple[Params, Params, Masks]:
    """Returns parameters, gradients and masks in the containers of the parameters, as `update` computes with them.

    Raises:
        ValueError: without parameters, or if the trees have different paths.
    """
    if params is None:
        raise ValueError(
            "params is None, but pruned places get the update -params; call tx.update(grads, state, params)"
        )
    grads = trees.align(grads, params, "the gradients", "params")
    return params, grads, fit(masks, params, "the masks in the optimiser state")


@functools.partial(jax.jit, static_argnames="scalars")
def hold(updates: Params, params: Params, masks: Masks, *, scalars: bool = True) -> Params:
    """Returns updates that are `-params` where pruned, in the wider of both dtypes: the sum has to be exactly 0.

    No update makes 0 of an infinite parameter or of nan. Such a place gets the update 0, so that updates stay finite.

    Args:
        updates: of the wrapped optimiser.
        params: the parameters before the update.
        masks: of the same structure.
        scalars: whether a scalar mask may be `False`. If not, leaves with one are left alone, at no cost.
    """

    def one(u: Array, p: Array, m: Array) -> Array:
        if not scalars and jnp.ndim(m) == 0:
            return u
        return jnp.where(m, u, jnp.where(jnp.isfinite(p), -p, jnp.zeros((), jnp.result_type(p))))

    return jax.tree.map(one, updates, params, masks)


@jax.jit
def zero_pruned(tree: Params, masks: Masks) -> Params:
    """Returns the tree with 0 where pruned, as `masks.apply` does, for masks whose scalars are all `True`.

    The leaves of such masks are left alone, at no cost.
    """

    def one(x: Array, m: Array) -> Array:
        return x if jnp.ndim(m) == 0 else jnp.where(m, x, jnp.zeros((), jnp.result_type(x)))

    return jax.tree.map(one, tree, masks)


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


def rules_for(params: Params, rules: trees.PathRules) -> trees.PathRules:
    """Returns the rules over paths that concern the parameters.

    Where some parameters were taken out, rules that match none of the others are left out: they may be meant for those.
    """
    if not taken_out(params):
        return rules
    names = list(trees.flatten(params))
    return [r for r in rules if any(re.fullmatch(r if isinstance(r, str) else r[0], n) for n in names)]


def chosen(params: Params, prunable: PyTree | trees.PathRules) -> PyTree:
    """Returns which leaves are pruned, as a tree of booleans, from rules over paths or from such a tree."""
    if isinstance(prunable, (list, tuple)):
        # A tree may be a tuple of tuples too, but a rule begins with its pattern.
        first = [r[0] if isinstance(r, tuple) and r else r for r in prunable]
        if all(isinstance(r, str) for r in first):
            return trees.select(params, rules_for(params, prunable))
    if not all(isinstance(p, (bool, np.bool_)) for p in jax.tree.leaves(prunable)):
        raise ValueError(
            f"prunable is {prunable!r}; give rules over paths, or a tree of Python booleans like the params"
        )
    return fit(prunable, params, "prunable")


def _spread(x: Any) -> bool:
    """Whether an array is known, and lies on a mesh."""
    return (
        isinstance(x, jax.Array)
        and not isinstance(x, jax.core.Tracer)
        and isinstance(x.sharding, jax.sharding.NamedSharding)
    )


def placed(state: PyTree, params: Params) -> PyTree:
    """Returns a new state on the mesh of the parameters: else the second call of a compiled step would compile again.

    Args:
        state: what `init` made; arrays that lie on a mesh already stay where they are.
        params: the parameters; if they do not lie on one mesh, or are traced, the state is left alone.
    """
    meshes = {p.sharding.mesh for p in jax.tree.leaves(params) if _spread(p)}
    if len(meshes) != 1:
        return state
    mesh = meshes.pop()
    explicit = jax.sharding.AxisType.Explicit in mesh.axis_types

    def one(x: Any) -> Any:
        if not isinstance(x, jax.Array) or isinstance(x, jax.core.Tracer):
            return x
        lies = x.sharding if isinstance(x.sharding, jax.sharding.NamedSharding) else None
        if lies is not None and lies.mesh != mesh:
            return x
        # Spelled as compiled functions spell the shardings of their results: on explicit axes with an entry for each.
        spec = () if lies is None else tuple(lies.spec)
        spec = (*spec, *[None] * (x.ndim - len(spec) if explicit else 0))
        if lies is not None and tuple(lies.spec) == spec:
            return x
        return jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec)))

    return jax.tree.map(one, state)


def whole(make: Callable[[Params], Masks], params: Params, *, scalar: bool) -> Masks:
    """Returns masks that keep everything, laid out over devices as the parameters are where they have their shape.

    Args:
        make: gives such masks of parameters, in their containers or in others (units).
        params: the parameters. Of traced ones the result has the axes of the mesh and of `shard_map`.
        scalar: what scalars among the masks are.
    """
    structure: Any = jax.tree.structure(params)
    traced = any(isinstance(p, jax.core.Tracer) for p in jax.tree.leaves(params))
    # Of known parameters only the shapes are asked for: JAX would compile a program for each of them.
    masks = make(params) if traced else jax.eval_shape(make, params)
    alike = jax.tree.structure(masks) == structure

    def one(m: Any, p: Any) -> Array:
        if not m.shape:
            return jnp.array(np.asarray(scalar))
        if not traced:
            return jnp.array(np.ones(m.shape, bool))
        if isinstance(p, jax.core.Tracer) and m.shape == p.shape:
            return (p != p) | True
        return jnp.array(m, copy=True)

    made = jax.tree.map(one, masks, params if alike else masks)
    return like_params(made, params) if alike else made


def like_params(masks: Masks, params: Params) -> Masks:
    """Returns masks laid out over devices as the parameters are, where they have a parameter's shape."""

    def one(m: Array, p: Any) -> Array:
        return jax.device_put(m, p.sharding) if _spread(p) and jnp.shape(m) == p.shape else m

    return jax.tree.map(one, masks, params)


def keep_mask(tx: optax.GradientTransformation, masks: Masks) -> optax.GradientTransformationExtraArgs:
    """Returns an optimiser that keeps a mask: what is pruned becomes 0 with the first update and stays exactly 0.

    `tx` sees masked gradients and parameters, so moments of pruned weights stay 0 too; its updates are replaced by
    `-params` where pruned, which neither momentum nor weight decay inside `tx` can undo. What changes the updates
    after this wrapper can (`optax.chain(keep_mask(...), optax.scale(0.5))`), and nothing that is added makes 0 of an
    infinite parameter or of nan: `apply_updates` of this package zeroes those places too, and `check` finds them.

    Args:
        tx: the whole optimiser, with clipping and schedules.
        masks: booleans that broadcast to the parameters, True = keep, in containers of any kind (what `masks_of` gives
            for an `nnx.Optimizer` too). They are copied into the state, and `update` reads them there: members of a
            stack may have masks of their own, and others can be put in by `state._replace`.

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
        check_arrays(params)
        mine = masks_lib.fitting(fit(masks, params, "masks"), params)
        state = KeepMaskState(copies(mine), tx.init(masks_lib.apply(params, mine)))
        return placed(state._replace(masks=like_params(state.masks, params)), params)

    def update(
        grads: Params, state: KeepMaskState, params: Params | None = None, **extra: Any
    ) -> tuple[Params, KeepMaskState]:
        params, grads, mine = aligned(params, grads, state.masks)
        masked = masks_lib.apply(params, mine)
        updates, inner = tx.update(masks_lib.apply(grads, mine), state.inner, masked, **extra)
        return hold(updates, params, mine), state._replace(inner=inner)

    return optax.GradientTransformationExtraArgs(init, update)
