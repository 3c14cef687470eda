"""Pruning methods, each a function `(problem, settings, key) -> Pruned`."""

from mvp_jax.methods import ifp, mvp, oneshot
from mvp_jax.methods.api import Method

METHODS: dict[str, Method] = {
    "dense": oneshot.dense,
    "oneshot": oneshot.oneshot,
    "ifp": ifp.ifp,
    "mvp": mvp.mvp,
}
"""Every method by name. The controls of the papers are settings of these; `configs/` names them."""

__all__ = ["METHODS", "Method"]
