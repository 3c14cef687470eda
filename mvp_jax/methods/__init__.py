"""Pruning methods, each a function `(problem, settings, key) -> Pruned`.

Those that prune units of a few-shot task take a `few_shot.Problem`, those for a sparsity a `sparse.SparsityProblem`.
"""

from mvp_jax.methods.few_shot import Method, ifp, metasoup, mvp, oneshot, reptile
from mvp_jax.methods.sparse import dynamic, gradual, imp, isp, movement, soup
from mvp_jax.methods.sparse import oneshot as once
from mvp_jax.methods.sparse.problem import SparsityMethod

FEW_SHOT: dict[str, Method] = {
    "dense": oneshot.dense,
    "oneshot": oneshot.oneshot,
    "ifp": ifp.ifp,
    "mvp": mvp.mvp,
    "metasoup": metasoup.metasoup,
    "reptile_iht": reptile.reptile_iht,
}

TO_A_SPARSITY: dict[str, SparsityMethod] = {
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

METHODS: dict[str, Method | SparsityMethod] = {**FEW_SHOT, **TO_A_SPARSITY}
"""Every method by name. The controls of the papers are settings of these; `configs/` names them."""

__all__ = ["FEW_SHOT", "METHODS", "TO_A_SPARSITY", "Method", "SparsityMethod"]
