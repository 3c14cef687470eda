"""Methods that prune the units of a model for a few-shot task."""

from mvp_jax.methods.contract import Pruned, Spent, Training, all_but, check_labels
from mvp_jax.methods.few_shot.api import (
    Method,
    Neighbours,
    Problem,
    Start,
    Tuning,
    advance,
    all_kept,
    begin,
    check_groups,
    finish,
    grow,
    method,
    prepare,
    problem,
    settle,
)

__all__ = [
    "Method",
    "Neighbours",
    "Problem",
    "Pruned",
    "Spent",
    "Start",
    "Training",
    "Tuning",
    "advance",
    "all_but",
    "all_kept",
    "begin",
    "check_groups",
    "check_labels",
    "finish",
    "grow",
    "method",
    "prepare",
    "problem",
    "settle",
]
