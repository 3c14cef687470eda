"""Pruning methods, each a function `(problem, settings, key) -> Pruned`.

Those that prune units of a few-shot task take an `api.Problem`, those for a sparsity a `sparse.Problem`.
"""

from mvp_jax.methods import dynamic, gradual, ifp, imp, isp, metasoup, movement, mvp, once, oneshot, reptile, soup
from mvp_jax.methods.api import Method
from mvp_jax.methods.sparse import Method as SparseMethod

FEW_SHOT: dict[str, Method] = {
    "dense": oneshot.dense,
    "oneshot": oneshot.oneshot,
    "ifp": ifp.ifp,
    "mvp": mvp.mvp,
    "metasoup": metasoup.metasoup,
    "reptile_iht": reptile.reptile_iht,
}

TO_A_SPARSITY: dict[str, SparseMethod] = {
    "unpruned": once.unpruned,
    "once": once.once,
    "gradual": gradual.gradual,
    "movement": movement.movement,
    "dynamic": dynamic.dynamic,
    "imp": imp.imp,
    "isp": isp.isp,
    "sparse_soups": soup.sparse_soups,
    "instant_soup": soup.instant_soup,
}

METHODS: dict[str, Method | SparseMethod] = {**FEW_SHOT, **TO_A_SPARSITY}
"""Every method by name. The controls of the papers are settings of these; `configs/` names them."""

__all__ = ["FEW_SHOT", "METHODS", "TO_A_SPARSITY", "Method", "SparseMethod"]
