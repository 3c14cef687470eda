"""Where examples come from (`sources`, `text`), how images vary (`transforms`), which classes make a task (`tasks`).

A checkpoint's input is made of texts by `tokens`, of pictures by `images`.
"""

from mvp_jax.data import images, sources, tasks, text, tokens, transforms

__all__ = ["images", "sources", "tasks", "text", "tokens", "transforms"]
