"""Optax wrappers for a training loop of one's own, which prune, regrow or keep a mask while an optimiser trains."""

from mvp_jax.train.transforms.gradual import (
    Importance,
    KeepMaskState,
    PruneOnScheduleState,
    keep_mask,
    masks_of,
    prune_on_schedule,
)

__all__ = ["Importance", "KeepMaskState", "PruneOnScheduleState", "keep_mask", "masks_of", "prune_on_schedule"]
