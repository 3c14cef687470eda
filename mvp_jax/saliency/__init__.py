"""How much each weight or unit matters: every score under one name, higher = keep.

Scores of weights have the structure and shapes of the parameters; `units.reduce` makes them scores of units. Scores of
units are `{group: float[C]}`. All are computed and returned in float32, also for weights of float16, bfloat16 or
integers, and in float64 for float64 arrays, which exist under `jax_enable_x64` only (`core.precision`).

In the formulas θ is a weight, L the loss with gradient g and Hessian H, N the number of examples, x the inputs of a
weight, a a unit's activation, γ its scale, z a gate on it, R the sum of all outputs.

| name | of | needs | formula | source |
|---|---|---|---|---|
| `magnitude` | weights | nothing | abs(θ) | Han et al. 2015, arXiv:1506.02626 |
| `random` | weights, units | a key | uniform in [0, 1) | |
| `taylor` | weights | a gradient | (θ ∂L/∂θ)² | Molchanov et al. 2019, arXiv:1906.10771, eq. 8 |
| `taylor_terms` | weights, to be reduced by `sum_square` | a gradient | θ ∂L/∂θ | the same, eq. 8 |
| `snip` | weights | a gradient | abs(θ ∂L/∂θ) | Lee et al. 2019, arXiv:1810.02340, eq. 6 |
| `grasp` | weights | a loss with its data | θ (H g) | Wang et al. 2020, arXiv:2002.07376, eq. 8 |
| `fisher` | weights | each example's gradient | θ² (1/N) Σ (∂Lₙ/∂θ)² | Theis et al. 2018, arXiv:1801.05787 |
| `wanda` | weights | `input_norms.norms` of examples | abs(θ) ‖x‖₂ | Sun et al. 2023, arXiv:2306.11695, eq. 1 |
| `synflow` | weights | no data | θ ∂R/∂θ of the linearised network | Tanaka et al. 2020, arXiv:2006.05467 |
| `activation` | units | activations | (1/N) Σ abs(aₙ) | |
| `batch_norm_scale` | units | nothing | abs(γ) | Liu et al. 2017, arXiv:1708.06519 |
| `gate_fisher` | units | `gate_gradients` of examples | (1/N) Σ (∂Lₙ/∂z)² | Kwon et al. 2022, arXiv:2204.09656 |

`prune_by_synflow` is not a score: it prunes by `synflow` round after round.
"""

from mvp_jax.saliency import input_norms
from mvp_jax.saliency.synflow_scores import prune_by_synflow, synflow
from mvp_jax.saliency.unit_scores import activation, batch_norm_scale, gate_fisher, gate_gradients
from mvp_jax.saliency.weight_scores import fisher, grasp, magnitude, random, snip, taylor, taylor_terms, wanda

__all__ = [
    "activation",
    "batch_norm_scale",
    "fisher",
    "gate_fisher",
    "gate_gradients",
    "grasp",
    "input_norms",
    "magnitude",
    "prune_by_synflow",
    "random",
    "snip",
    "synflow",
    "taylor",
    "taylor_terms",
    "wanda",
]
