"""Pruning methods, each a function `(problem, settings, key) -> Pruned`, by name in `METHODS`.

Those that prune units for a few-shot task take a `few_shot.FewShotProblem`, those that prune to a sparsity a
`sparse.SparsityProblem`. A comparison's settings for every method come from the same table (`registry.line`).
"""

from mvp_jax.methods.contract import Look, Pruned, Spent, Training
from mvp_jax.methods.line import Line
from mvp_jax.methods.registry import METHODS, TABLES

__all__ = ["METHODS", "TABLES", "Line", "Look", "Pruned", "Spent", "Training"]
