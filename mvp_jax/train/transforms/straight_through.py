"""An optax wrapper for straight-through estimation: dense weights are trained by the gradients of the masked ones."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from mvp_jax.core import allocation, patterns, trees
from mvp_jax.core.types import Array, Masks, Params, PyTree
from mvp_jax.train.transforms import holding


class StraightThroughState(NamedTuple):
    """The state of an optimiser made by `straight_through`.

    Attributes:
        count: number of updates done, int32[].
        keep: how many entries stay: int32[], or a tree of such arrays (see `Pattern.counts`).
        masks: booleans that broadcast to the parameters, True = keep, of the largest parameters.
        inner: the wrapped optimiser's state, of the dense parameters.
    """

    count: Array  # type: ignore[assignment]
    keep: PyTree
    masks: Masks
    inner: optax.OptState


@functools.partial(jax.jit, static_argnames=("pattern", "chosen"))
def _select(
    due: Array,
    old: Masks,
    keep: PyTree,
    params: Params,
    updates: Params | None,
    *,
    pattern: patterns.Pattern,
    chosen: tuple[bool, ...],
) -> Masks:
    """Returns the masks of the largest parameters after the update; the old ones where no selection is due."""
    prunable = jax.tree.unflatten(jax.tree.structure(params), chosen)
    leaves, structure = jax.tree.flatten((keep, params, updates))
    parts = jax.tree.structure(old)

    def change(old: list[Array], inputs: list[Array]) -> list[Array]:
        keep, params, updates = jax.tree.unflatten(structure, inputs)
        new = optax.apply_updates(params, updates)
        kept = pattern.select(pattern.entries(new, prunable), keep, pattern.whole(params, prunable))
        return jax.tree.leaves(pattern.masks(kept, params, prunable))

    # The choice has no derivative; stopped here, a loop may be differentiated through, as custom_vmap alone may not.
    leaves = [lax.stop_gradient(x) for x in leaves]
    return jax.tree.unflatten(parts, holding.when(due, change, jax.tree.leaves(old), leaves))


@jax.jit
def _decayed(grads: Params, params: Params, masks: Masks, decay: Array) -> Params:
    return jax.tree.map(
        lambda g, p, m: jnp.where(m, g, g + (decay * p).astype(jnp.result_type(g))), grads, params, masks
    )


def straight_through(
    tx: optax.GradientTransformation,
    *,
    sparsity: float,
    prunable: PyTree | trees.PathRules,
    every: int = 1,
    pattern: patterns.Pattern | None = None,
    decay: float | Array = 0.0,
) -> optax.GradientTransformationExtraArgs:
    r"""Returns an optimiser that trains dense weights by the gradients of their largest ones alone: STE and SR-STE.

    The loop evaluates the loss at the masked parameters and hands on its gradient there, which is dense, as if masking
    were the identity (straight-through estimation). The parameters of the loop stay dense, so that a pruned weight may
    grow and return:

        masked = masks.apply(params, transforms.masks_of(state))
        grads = jax.grad(loss)(masked)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)

    In the end `masks.apply(params, transforms.masks_of(state))` is the sparse model. (The gradient with respect to
    `params`, through `masks.apply`, would be zero where pruned: dense weights then decay at best.)

    With `decay` $\lambda > 0$ the gradient of pruned weights becomes $g + \lambda w$ (SR-STE): without it, masks of
    N:M change until late in training. It is added before `tx`, so momentum and adaptive rates take it as a gradient.

    A step that was compiled with one of these optimisers serves the states of others that differ in `sparsity`, also
    stacked.

    Args:
        tx: the whole optimiser, with clipping and schedules. It sees dense gradients and parameters.
        sparsity: the fraction of entries that is pruned, in [0, 1); 0.5 for 2:4.
        prunable: rules over paths, as `Model.prunable`, or a tree of Python booleans; `[]` for a pattern of units,
            which names its weights itself.
        every: number of updates from one selection to the next. 1, as in the paper: masks are always those of the
            present parameters.
        pattern: which weights are one entry, and how the sparsity is distributed over leaves, such as
            `patterns.NofM(4)`; `None`: `patterns.Weights()`, single weights with one threshold for all leaves.
        decay: $\lambda$; 2e-4 in the paper, 0 for plain straight-through estimation. It may be traced
            (`optax.inject_hyperparams` with `static_args=("sparsity", "every")`).

    Returns:
        An optimiser; its `update` needs the dense parameters, and passes further arguments on. `masks_of(state)` has
        the masks.

    Raises:
        ValueError: for settings out of range, by `init` for rules or shapes that do not fit, by `update` without
            parameters.

    >>> from mvp_jax.core import masks
    >>> from mvp_jax.train import transforms
    >>> def loss(params, x, y):
    ...     return jnp.mean((x @ params["w"] - y) ** 2)
    >>> x = jax.random.normal(jax.random.key(0), (64, 4))
    >>> y = x @ jnp.array([0.0, 2.0, 0.0, -1.0])
    >>> params = {"w": jnp.array([1.0, 0.0, 0.6, 0.3])}
    >>> tx = straight_through(optax.sgd(0.1), sparsity=0.5, prunable=["w"], pattern=patterns.NofM(4), decay=2e-4)
    >>> state = tx.init(params)
    >>> for _ in range(50):
    ...     masked = masks.apply(params, transforms.masks_of(state))
    ...     updates, state = tx.update(jax.grad(loss)(masked, x, y), state, params)
    ...     params = optax.apply_updates(params, updates)
    >>> masks.apply(params, transforms.masks_of(state))["w"].round(2).tolist()
    [0.0, 2.0, 0.0, -1.0]

    References: Bengio et al. 2013, "Estimating or Propagating Gradients Through Stochastic Neurons for Conditional
    Computation" (arXiv:1308.3432), section 4; Zhou et al. 2021, "Learning N:M Fine-grained Structured Sparse Neural
    Networks From Scratch" (arXiv:2102.04010), section 3.
    """
    if not allocation.concrete(sparsity, every):
        raise ValueError(
            "sparsity or every is traced, but they are numbers on the host; with optax.inject_hyperparams name them in "
            "static_args=('sparsity', 'every')"
        )
    if every < 1:
        raise ValueError(f"every is {every}; entries are selected every update (1) or less often")
    if allocation.concrete(decay) and float(decay) < 0:
        raise ValueError(f"decay is {decay}; it is 0 (plain straight-through estimation) or above, 2e-4 in the paper")
    pattern = patterns.Weights() if pattern is None else pattern
    pattern.check(sparsity)
    tx = optax.with_extra_args_support(tx)

    def init(params: Params) -> StraightThroughState:
        chosen = holding.chosen(params, prunable)
        whole, keep = pattern.whole(params, chosen), pattern.counts(params, chosen, float(sparsity))
        if not any(jax.tree.leaves(keep)):
            raise ValueError(
                f"nothing would stay of what is prunable at sparsity {sparsity} with {pattern}; name leaves to prune "
                "(`prunable`), or a sparsity that leaves some entries"
            )
        kept = pattern.select(pattern.entries(params, chosen), keep, whole)
        state = StraightThroughState(
            count=jnp.zeros((), jnp.int32),
            keep=holding.copies(jax.tree.map(allocation.as_count, keep)),
            masks=holding.copies(pattern.masks(kept, params, chosen)),
            inner=tx.init(params),
        )
        return holding.placed(state, params)

    def update(
        grads: Params, state: StraightThroughState, params: Params | None = None, **extra: Any
    ) -> tuple[Params, StraightThroughState]:
        params, grads, held = holding.aligned(params, grads, state.masks)
        if not allocation.concrete(decay) or float(decay) > 0:
            grads = _decayed(grads, params, held, jnp.asarray(decay, jnp.float32))
        updates, inner = tx.update(grads, state.inner, params, **extra)
        count = optax.safe_increment(state.count)
        masks = _select(
            count % every == 0,
            held,
            state.keep,
            params,
            updates,
            pattern=pattern,
            chosen=tuple(map(bool, jax.tree.leaves(holding.chosen(params, prunable)))),
        )
        return updates, StraightThroughState(count, state.keep, masks, inner)

    return optax.GradientTransformationExtraArgs(init, update)
