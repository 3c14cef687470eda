"""Goals: what is refused, and which ratio of the units meets a budget."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mvp_jax import compact, cost, models
from mvp_jax.core import patterns
from mvp_jax.delivery import goals
from mvp_jax.delivery.goals import PruningGoal

MODEL = models.create("vit_micro", layers=2, dim=16, heads=2, mlp=32)
VARIABLES = MODEL.init(jax.random.key(0))
GROUPS = tuple(g for g in MODEL.groups if g.kind in ("head", "neuron"))
X = jnp.ones((2, 8, 8, 1))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"name": "size", "amount": 0.5}, "unknown goal"),
        ({"name": "sparsity"}, "give one of them"),
        ({"name": "sparsity", "amount": 0.5, "keep_score": 0.9}, "give one of them"),
        ({"name": "sparsity", "amount": 1.0}, r"share in \(0, 1\)$"),
        ({"name": "sparsity", "amount": 80}, r"share in \(0, 1\)$"),
        ({"name": "ratio", "amount": 0.0}, r"share in \(0, 1\)$"),
        ({"name": "flops", "amount": 1.0}, "or a number above 1"),
        ({"name": "parameters", "amount": float("inf")}, "or a number above 1"),
        ({"name": "latency", "amount": 2.0}, r"share in \(0, 1\)$"),
        ({"name": "flops", "keep_score": 0.9}, "sparsity or a ratio"),
        ({"name": "ratio", "keep_score": 1.5}, "share of the dense score"),
    ],
)
def test_wrong_goals_are_refused(given, words):
    with pytest.raises(ValueError, match=words):
        PruningGoal(**given)


def test_weights_and_ratios_are_taken_as_they_are():
    assert goals.removal(PruningGoal(amount=0.7), MODEL, VARIABLES, X, groups=()) == (patterns.Weights("global"), 0.7)
    found = goals.removal(PruningGoal(name="ratio", amount=0.25), MODEL, VARIABLES, X, groups=GROUPS)
    assert found.share == 0.25
    assert found.pattern.groups == GROUPS
    with pytest.raises(ValueError, match=r"it has \['head', 'neuron', 'qk', 'value'\]"):
        goals.removal(PruningGoal(name="ratio", amount=0.25), MODEL, VARIABLES, X, groups=())


def left(share):
    """The parameters that are left if every group loses a share of its units, counted on the slim arrays."""
    keep = patterns.WholeUnits(GROUPS).counts({}, {}, share)
    units = {name: np.arange(next(g.size for g in GROUPS if g.name == name)) < n for name, n in keep.items()}
    return sum(int(np.size(leaf)) for leaf in jax.tree.leaves(compact.cut(VARIABLES.params, GROUPS, units)))


@pytest.mark.parametrize("amount", [0.6, 3500])
def test_a_budget_of_parameters_is_met_and_no_more_is_removed(amount):
    dense = sum(int(np.size(leaf)) for leaf in jax.tree.leaves(VARIABLES.params))
    most = amount * dense if amount < 1 else amount
    share = goals.removal(PruningGoal(name="parameters", amount=amount), MODEL, VARIABLES, X, groups=GROUPS).share
    assert 0 < share < 1
    assert left(share) <= most < dense
    fewer = [s for s in np.arange(0.01, share - 0.02, 0.01) if left(s) <= most]
    assert not fewer, "a smaller share would have been enough"


def test_budgets_of_operations_and_time():
    dense = cost.of(MODEL, VARIABLES).flops
    share = goals.removal(PruningGoal(name="flops", amount=0.6 * dense), MODEL, VARIABLES, X, groups=GROUPS).share
    keep = patterns.WholeUnits(GROUPS).counts({}, {}, share)
    slim = MODEL.resize(keep)
    assert 0.4 * dense < cost.of(slim, slim.init(jax.random.key(0))).flops <= 0.6 * dense


def test_budgets_that_cannot_be_met_are_told():
    with pytest.raises(ValueError, match="left, more than the target"):
        goals.removal(PruningGoal(name="parameters", amount=0.01), MODEL, VARIABLES, X, groups=GROUPS)
    with pytest.raises(ValueError, match="the dense model has no more"):
        goals.removal(PruningGoal(name="parameters", amount=10**9), MODEL, VARIABLES, X, groups=GROUPS)


def test_goals_in_words():
    said = {
        PruningGoal(amount=0.8).in_words(): "80 % of the weights removed",
        PruningGoal(name="ratio", amount=0.5).in_words(): "50 % of the units of each group removed",
        PruningGoal(name="flops", amount=0.5).in_words(): "at most 50 % of the dense model's operations",
        PruningGoal(name="parameters", amount=10**6).in_words(): "at most 1,000,000 of the dense model's parameters",
        PruningGoal(keep_score=0.99).in_words(): "as many weights removed as keep 0.99",
    }
    assert all(text.startswith(begin) for text, begin in said.items()), said
