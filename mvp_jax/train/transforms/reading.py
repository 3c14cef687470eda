"""What an optimiser's state says about its masks, and whether the parameters keep to it."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mvp_jax.core import counts, trees
from mvp_jax.core import masks as masks_lib
from mvp_jax.core.types import Array, Masks, Params, PyTree


def field(state: Any, name: str) -> Any:
    """Returns a field of a state, which is a NamedTuple, or the dict that a checkpoint restored for it."""
    return state[name] if isinstance(state, Mapping) else getattr(state, name)


def has(state: Any, *names: str) -> bool:
    """Returns whether a NamedTuple or a dict has fields of all these names."""
    return set(names) <= set(state if isinstance(state, Mapping) else getattr(state, "_fields", ()))


def states(tree: PyTree) -> Iterator[Any]:
    """Finds the states of this package's wrappers, the outer before the inner ones.

    They are known by their fields `masks` and `inner`, so it does not matter what a checkpoint made of the NamedTuple.
    """
    if has(tree, "masks", "inner"):
        yield tree
        yield from states(field(tree, "inner"))
        return
    for child in _children(tree):
        yield from states(child)


def _children(tree: PyTree) -> list[Any]:
    found = jax.tree.leaves(tree, is_leaf=lambda x: x is not tree)
    return [] if len(found) == 1 and found[0] is tree else found


def _is_out(x: Any) -> bool:
    return isinstance(x, optax.MaskedNode)


def _both(a: Masks, b: Masks) -> Masks:
    """Returns what two masks keep, where either may lack parameters that `optax.masked` had taken out."""
    if _is_out(a) or _is_out(b):
        return b if _is_out(a) else a
    if jax.tree_util.all_leaves([a]) and jax.tree_util.all_leaves([b]):
        return masks_lib.intersect(a, b)
    pairs, structure = _level(a)
    others = dict(_level(b)[0])
    if set(others) != {name for name, _ in pairs}:
        raise ValueError(
            f"this state has masks of different trees: {[n for n, _ in pairs][:5]} and {sorted(others)[:5]}; read them "
            "by masks_of from the parts of the state"
        )
    return jax.tree.unflatten(structure, [_both(x, others[name]) for name, x in pairs])


def _level(tree: PyTree) -> tuple[list[tuple[str, Any]], Any]:
    """Returns the children of a container by name, and its structure."""
    pairs, structure = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: x is not tree)
    return [(trees.path_of(k), x) for k, x in pairs], structure


def masks_of(opt_state: optax.OptState, params: Params | None = None) -> Masks:
    """Returns the masks in an optimiser's state.

    Args:
        opt_state: a state of one of this package's wrappers, or anything that has such a state inside: those of
            `optax.chain`, `inject_hyperparams`, `MultiSteps`, `masked`, `partition` and `multi_transform`, the
            `opt_state` of an `nnx.Optimizer`, a Flax `TrainState`, or the nested dicts and lists that a checkpoint
            gives when it is restored without a target.
        params: if given, masks come back in their containers, with a scalar `True` for every parameter that no state
            has a mask of.

    Returns:
        Booleans that broadcast to the parameters, True = keep, with a scalar `True` where `optax.masked` and its like
        took parameters out; if there are several states, what all of them keep.

    Raises:
        ValueError: if there are none, or masks of different trees.

    >>> from mvp_jax.train.transforms.holding import keep_mask
    >>> params, masks = {"w": jnp.array([1.0, 2.0]), "b": jnp.zeros(2)}, {"w": jnp.array([True, False]), "b": True}
    >>> tx = optax.masked(keep_mask(optax.adam(1e-3), masks), {"w": True, "b": False})
    >>> jax.tree.map(jnp.shape, masks_of(optax.MultiSteps(tx, 4).init(params)))
    {'b': (), 'w': (2,)}
    """
    found = [field(state, "masks") for state in states(opt_state)]
    if not found:
        raise ValueError(
            "no masks in this optimiser state; make the optimiser with transforms.keep_mask, prune_on_schedule, rigl, "
            "sparse_evolution or straight_through"
        )
    return _joined(found, params)


def _zeroed(opt_state: optax.OptState, params: Params) -> Masks | None:
    """Returns the masks that parameters are held to, if there are any.

    Straight-through estimation trains dense parameters, so its masks (a state with counts but no times) are left out.
    """
    found = [field(s, "masks") for s in states(opt_state) if not has(s, "keep") or has(s, "times")]
    if not found:
        masks_of(opt_state)  # raises an error if there are none at all
        return None
    return _joined(found, params)


def _joined(found: Sequence[Masks], params: Params | None) -> Masks:
    """Returns what all masks keep, as `masks_of` does."""
    masks = found[0]
    for other in found[1:]:
        masks = _both(masks, other)
    masks = jax.tree.map(lambda m: jnp.ones((), bool) if _is_out(m) else m, masks, is_leaf=_is_out)
    if params is None:
        return masks
    have, names = trees.flatten(masks), list(trees.flatten(params))
    known = [h for h in have if not jnp.ndim(have[h])]
    for name in names:
        if name not in have and not any(not k or name.startswith(f"{k}/") for k in known):
            have[name] = jnp.ones((), bool)
    return trees.align(have, params, "the masks in the optimiser state", "params")


def apply_updates(params: Params, updates: Params, opt_state: optax.OptState) -> Params:
    """Adds updates to parameters, as `optax.apply_updates`, and zeroes what the state's masks remove.

    The wrappers give updates that make finite parameters 0 where pruned. No sum makes 0 of an infinite parameter or of
    nan, and what stands after a wrapper in an `optax.chain` may change the updates; this zeroes pruned places by
    `where`, whatever they are. The dense parameters of `straight_through` are left as they are.

    Args:
        params: the parameters.
        updates: what `tx.update` returned.
        opt_state: the state that `tx.update` returned with them.

    Returns:
        The new parameters.

    >>> from mvp_jax.train.transforms.holding import keep_mask
    >>> params, tx = {"w": jnp.array([1.0, jnp.inf])}, keep_mask(optax.sgd(0.5), {"w": jnp.array([True, False])})
    >>> updates, state = tx.update({"w": jnp.array([1.0, jnp.nan])}, tx.init(params), params)
    >>> apply_updates(params, updates, state)["w"].tolist()
    [0.5, 0.0]
    """
    new, masks = optax.apply_updates(params, updates), _zeroed(opt_state, params)
    return new if masks is None else masks_lib.apply(new, masks)


@jax.jit
def _alive(params: Params, masks: Masks) -> list[tuple[counts.Words, counts.Words]]:
    """Returns for each leaf how many pruned places are not 0, and how many of them are infinite or nan."""

    def one(p: Array, m: Array) -> tuple[counts.Words, counts.Words]:
        alive = jnp.broadcast_to(~m, jnp.shape(p)) & (p != 0)
        return counts.true(alive), counts.true(alive & ~jnp.isfinite(p))

    return [one(p, m) for p, m in zip(jax.tree.leaves(params), jax.tree.leaves(masks), strict=True)]


def check(params: Params, opt_state: optax.OptState, tx: optax.GradientTransformation | None = None) -> None:
    """Raises an error unless the parameters are 0 wherever the masks in the state remove them.

    It reads numbers on the host: call it outside of compiled functions, once after the first steps or now and then.

    Args:
        params: the parameters after a step (before the first one, nothing has been zeroed).
        opt_state: the optimiser's state after that step.
        tx: the optimiser with which a restored state is used. If given, a warning says where the state's schedule ends
            with another number of entries than that of the optimiser. The state decides, so the run would go to the
            old target; `restart` sets a new one.

    Raises:
        ValueError: naming the paths, how many weights are not 0, and the likely cause.

    >>> from mvp_jax.train.transforms.holding import keep_mask
    >>> params, masks = {"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([True, False])}
    >>> wrong = optax.chain(keep_mask(optax.sgd(0.1), masks), optax.scale(0.5))
    >>> updates, state = wrong.update(params, wrong.init(params), params)
    >>> check(optax.apply_updates(params, updates), state)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    ValueError: 1 pruned weights are not zero: 'w' (1). Something after the wrapper changed its updates...
    """
    masks = _zeroed(opt_state, params)
    if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves((params, masks))):
        raise ValueError("params or masks are traced, but check reads numbers on the host; call it outside of jit")
    found = [] if masks is None else jax.device_get(_alive(params, masks_lib.fitting(masks, params)))
    names = list(trees.flatten(params)) if found else []
    alive = {p: (counts.host(n), counts.host(b)) for p, (n, b) in zip(names, found, strict=True)}
    alive = {p: n for p, n in alive.items() if n[0]}
    if alive:
        raise ValueError(_said(alive))
    if tx is not None:
        _compare_targets(params, opt_state, tx)


def _said(alive: Mapping[str, tuple[int, int]]) -> str:
    total, broken = (sum(n[i] for n in alive.values()) for i in (0, 1))
    shown = ", ".join(f"{p!r} ({n})" for p, (n, _) in list(alive.items())[:5]) + (", ..." if len(alive) > 5 else "")
    text = f"{total} pruned weights are not zero: {shown}. "
    if broken < total:
        text += (
            "Something after the wrapper changed its updates, or the parameters were changed since: put the wrapper "
            "around the whole optimiser, keep_mask(optax.chain(...), masks). "
        )
    if broken:
        text += f"{broken} of them are infinite or nan, which no update can make 0. "
    return text + "transforms.apply_updates(params, updates, opt_state) zeroes all pruned places after each step."


def _ends(opt_state: optax.OptState) -> list[dict[str, Any]]:
    """Returns for each schedule in the state how many entries stay in the end, by path."""
    whole = lambda x: isinstance(x, counts.Words)  # noqa: E731
    found = [field(s, "keep") for s in states(opt_state) if has(s, "keep", "times")]
    rows = []
    for keep in found:
        pairs = jax.tree_util.tree_leaves_with_path(keep, is_leaf=whole)
        rows.append({trees.path_of(k): jax.tree.map(lambda x: x[..., -1], n) for k, n in pairs})
    return rows


def _compare_targets(params: Params, opt_state: optax.OptState, tx: optax.GradientTransformation) -> None:
    # Compiled, so that only what is compared is computed and not the moments of an optimiser.
    theirs = jax.device_get(jax.jit(lambda p: _ends(tx.init(p)))(params))
    ours = jax.device_get(_ends(opt_state))
    if len(theirs) != len(ours):
        warnings.warn(
            f"the state has {len(ours)} schedules of pruning, the optimiser {len(theirs)}; make the state with tx.init",
            stacklevel=3,
        )
    for a, b in zip(ours, theirs, strict=False):
        differ = {p: (_numbers(a[p]), _numbers(b[p])) for p in a if p in b and _numbers(a[p]) != _numbers(b[p])}
        if differ:
            shown = ", ".join(f"{p or 'all leaves'}: {x} and {y}" for p, (x, y) in list(differ.items())[:5])
            warnings.warn(
                f"the state's schedule ends with other numbers of entries than the optimiser's ({shown}). The state "
                "decides; transforms.restart(state, sparsity=..., steps=...) sets another target",
                stacklevel=3,
            )


def _numbers(n: Any) -> Any:
    if isinstance(n, counts.Words):
        return ((np.asarray(n.high, np.int64) << 16) + np.asarray(n.low)).tolist()
    return np.asarray(n).tolist()
