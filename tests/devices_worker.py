"""Run by `population_test` in a process of its own, which has eight devices."""

import jax

from mvp_jax.train import population
from tests import members

assert len(jax.devices()) == 8
for kind, shape, how in (
    ("resnet", (8, 1), {"mapping": "auto"}),
    ("resnet", (4, 2), {"mapping": "map"}),
    ("vit", (2, 4), {"mapping": "map"}),
    ("text", (4, 2), {"mapping": "vmap"}),
    ("text", (2, 1), {"mapping": "loop"}),
):
    members.check(kind, 5, mesh=population.mesh(*shape), **how)
    print("ok", kind, shape, flush=True)
