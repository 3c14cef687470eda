"""Methods that prune the units of a pre-trained model for a few-shot task: Meta-Vote Pruning, baselines, controls."""

from mvp_jax.methods.contract import Look, Pruned, Spent, Training, all_but, check_examples
from mvp_jax.methods.few_shot.api import (
    FewShotMethod,
    FewShotProblem,
    Neighbours,
    Start,
    Tuning,
    advance,
    all_kept,
    check_groups,
    finish,
    fit_head,
    method,
    prepare,
    problem,
    pruned,
    settle,
)
from mvp_jax.methods.few_shot.lines import FewShotDefaults

__all__ = [
    "FewShotDefaults",
    "FewShotMethod",
    "FewShotProblem",
    "Look",
    "Neighbours",
    "Pruned",
    "Spent",
    "Start",
    "Training",
    "Tuning",
    "advance",
    "all_but",
    "all_kept",
    "check_groups",
    "check_examples",
    "finish",
    "fit_head",
    "method",
    "prepare",
    "problem",
    "pruned",
    "settle",
]
