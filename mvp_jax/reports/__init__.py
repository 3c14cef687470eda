"""Results as tables with paired differences, and as pictures; pictures of models."""

from mvp_jax.reports.curves import plot_accuracy_against_sparsity, plot_accuracy_against_steps
from mvp_jax.reports.model_plots import plot_cost, plot_coupling, plot_sensitivity
from mvp_jax.reports.overlap import overlap_table
from mvp_jax.reports.overlap_plots import plot_overlap_against_depth
from mvp_jax.reports.pareto import plot_accuracy_against_cost
from mvp_jax.reports.tables import Paired, explanation, paired, summary, to_markdown, to_terminal

__all__ = [
    "Paired",
    "explanation",
    "overlap_table",
    "paired",
    "plot_accuracy_against_cost",
    "plot_accuracy_against_sparsity",
    "plot_accuracy_against_steps",
    "plot_cost",
    "plot_coupling",
    "plot_overlap_against_depth",
    "plot_sensitivity",
    "summary",
    "to_markdown",
    "to_terminal",
]
