"""How much each weight or unit matters: every score under one name, higher = keep."""

from mvp_jax.saliency.unit_scores import (
    activation,
    batch_norm_scale,
    fisher,
    gate_gradients,
    magnitude,
    random,
    taylor,
    taylor_terms,
)
from mvp_jax.saliency.weight_scores import fisher_diagonal, grasp, snip, synflow, synflow_scores, wanda

__all__ = [
    "activation",
    "batch_norm_scale",
    "fisher",
    "fisher_diagonal",
    "gate_gradients",
    "grasp",
    "magnitude",
    "random",
    "snip",
    "synflow",
    "synflow_scores",
    "taylor",
    "taylor_terms",
    "wanda",
]
