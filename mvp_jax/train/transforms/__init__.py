"""Optax wrappers for a training loop of one's own, which prune, regrow or keep a mask while an optimiser trains."""

from mvp_jax.train.transforms.gradual import Importance, PruneOnScheduleState, prune_on_schedule
from mvp_jax.train.transforms.holding import KeepMaskState, keep_mask
from mvp_jax.train.transforms.reading import apply_updates, check, masks_of
from mvp_jax.train.transforms.regrowth import RegrowthState, rigl, sparse_evolution
from mvp_jax.train.transforms.restarting import restart
from mvp_jax.train.transforms.straight_through import StraightThroughState, straight_through

__all__ = [
    "Importance",
    "KeepMaskState",
    "PruneOnScheduleState",
    "RegrowthState",
    "StraightThroughState",
    "apply_updates",
    "check",
    "keep_mask",
    "masks_of",
    "prune_on_schedule",
    "restart",
    "rigl",
    "sparse_evolution",
    "straight_through",
]
