"""What an optimiser's state says about its masks: `masks_of` finds them in any state that has them inside."""

import jax
import optax

from mvp_jax.core import masks as masks_lib
from mvp_jax.core.types import Masks, PyTree
from mvp_jax.train.transforms.gradual import PruneOnScheduleState
from mvp_jax.train.transforms.holding import KeepMaskState
from mvp_jax.train.transforms.regrowth import RegrowthState
from mvp_jax.train.transforms.straight_through import StraightThroughState

WITH_MASKS = (KeepMaskState, PruneOnScheduleState, RegrowthState, StraightThroughState)
"""The states that have masks, and in `inner` that of the optimiser they wrap."""


def masks_of(opt_state: optax.OptState) -> Masks:
    """Returns the masks in an optimiser's state.

    Args:
        opt_state: a state of `keep_mask`, `prune_on_schedule`, `rigl`, `sparse_evolution` or `straight_through`, or one
            that has it somewhere inside (`optax.chain`, `optax.inject_hyperparams`, `optax.MultiSteps`).

    Returns:
        Booleans that broadcast to the parameters, True = keep; if there are several, what all of them keep.

    Raises:
        ValueError: if there are none, or masks of different trees.

    >>> from mvp_jax.train.transforms.holding import keep_mask
    >>> import jax.numpy as jnp
    >>> params, masks = {"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([True, False])}
    >>> tx = optax.MultiSteps(keep_mask(optax.adam(1e-3), masks), 4)
    >>> masks_of(tx.init(params))["w"].tolist()
    [True, False]
    """
    found: list[Masks] = []

    def look(tree: PyTree) -> None:
        for leaf in jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, WITH_MASKS)):
            if isinstance(leaf, WITH_MASKS):
                found.append(leaf.masks)
                look(leaf.inner)

    look(opt_state)
    if not found:
        raise ValueError(
            "no masks in this optimiser state; make the optimiser with transforms.keep_mask, prune_on_schedule, rigl, "
            "sparse_evolution or straight_through"
        )
    return found[0] if len(found) == 1 else masks_lib.intersect(*found)
