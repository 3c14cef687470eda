"""A problem or settings of the wrong kind: one clear error, before any work."""

import jax
import pytest

from mvp_jax.methods import checks, few_shot
from mvp_jax.methods.sparse import dynamic, gradual, imp, isp, movement, oneshot, soup
from mvp_jax.storage import checkpoint
from tests import mlp
from tests.methods.sparse.contract_test import problem

METHODS = {
    "unpruned": (oneshot.unpruned, oneshot.Settings),
    "oneshot": (oneshot.oneshot, oneshot.Settings),
    "gradual": (gradual.gradual, gradual.Settings),
    "movement": (movement.movement, movement.Settings),
    "dynamic": (dynamic.dynamic, dynamic.Settings),
    "imp": (imp.imp, imp.Settings),
    "isp": (isp.isp, isp.Settings),
    "sparse_soups": (soup.sparse_soups, soup.SparseSoupSettings),
    "instant_soup": (soup.instant_soup, soup.InstantSoupSettings),
}


class Untouched(checkpoint.Checkpoints):
    """Fails if it is read or written."""

    def __init__(self):
        pass

    def latest(self):
        raise AssertionError("work has begun")


def of_a_few_shots():
    return few_shot.FewShotProblem(variables=mlp.variables(), train=mlp.data(), model=mlp.mlp(), groups=(), keep=())


@pytest.mark.parametrize("name", METHODS)
def test_every_method_refuses_another_kind_of_problem(name):
    method, settings = METHODS[name]
    for given, said in ((of_a_few_shots(), "few_shot.FewShotProblem"), (None, "NoneType"), ({"x": 1}, "dict")):
        with pytest.raises(ValueError, match=f"'{name}' takes a sparse.SparsityProblem as its problem, got {said}; "):
            method(given, settings(), jax.random.key(0), saved=Untouched())
    with pytest.raises(ValueError, match=r"make one with sparse\.SparsityProblem\(model=\.\.\., variables="):
        method(None, settings(), jax.random.key(0))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_refuses_the_settings_of_another(name):
    method, settings = METHODS[name]
    own = f"{settings.__module__.rpartition('.')[-1]}.{settings.__name__}"
    for _, other in METHODS.values():
        if other is settings:
            continue
        theirs = f"{other.__module__.rpartition('.')[-1]}.{other.__name__}"
        message = rf"'{name}' takes a {own} as its settings, got {theirs}; make one with {own}\(\)"
        with pytest.raises(ValueError, match=message):
            method(problem(), other(), jax.random.key(0), saved=Untouched())
    with pytest.raises(ValueError, match=f"got the class {own} itself"):
        method(problem(), settings, jax.random.key(0), saved=Untouched())


def test_what_fits_passes():
    checks.check("imp", problem(), type(problem()), imp.Settings(), imp.Settings)
