"""Gradual soups over several meshes; run as a module it needs eight devices."""

import dataclasses

import jax
import numpy as np

from mvp_jax.methods import sparse
from mvp_jax.methods.sparse import gradual_soup
from mvp_jax.train import population
from tests import masked_mlp, mlp

MESHES = ((8, 1), (2, 4))
SETTINGS = gradual_soup.Settings(
    members=3, steps=6, events=2, rank="votes", training=sparse.SparsityTraining(steps=2, learning_rate=0.1, batch=8)
)


def run(**changes):
    problem = sparse.SparsityProblem(model=mlp.mlp(), variables=mlp.variables(), train=mlp.data(), sparsity=0.7)
    return gradual_soup.gradual_soup(problem, dataclasses.replace(SETTINGS, **changes), jax.random.key(0))


if __name__ == "__main__":
    assert len(jax.devices()) == 8
    alone = run()
    for shape in MESHES:
        spread = run(mesh=population.mesh(*shape))
        assert masked_mlp.distance(spread.variables.params, masked_mlp.in_float64(alone.variables.params)) < 1e-4
        same = jax.tree.map(lambda a, b: np.array_equal(np.asarray(a), np.asarray(b)), spread.masks, alone.masks)
        assert all(jax.tree.leaves(same))
        print("ok", flush=True)
