"""Where examples come from (`sources`, `text`), how images vary (`transforms`), which classes make a task (`tasks`)."""

from mvp_jax.data import sources, tasks, text, transforms

__all__ = ["sources", "tasks", "text", "transforms"]
