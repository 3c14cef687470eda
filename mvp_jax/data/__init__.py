"""Where images come from (`sources`), how they are varied (`transforms`), which classes make a task (`tasks`)."""

from mvp_jax.data import sources, tasks, transforms

__all__ = ["sources", "tasks", "transforms"]
