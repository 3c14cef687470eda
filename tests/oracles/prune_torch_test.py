"""Global magnitude pruning against `torch.nn.utils.prune`, whose rounding and meaning `prune` follows."""

import jax.numpy as jnp
import numpy as np
import pytest

from mvp_jax.core import prune, trees

torch = pytest.importorskip("torch")
torch_prune = pytest.importorskip("torch.nn.utils.prune")


def torch_masks(tree, amount):
    modules = {}
    for name, x in trees.flatten(tree).items():
        modules[name] = torch.nn.Module()
        modules[name].weight = torch.nn.Parameter(torch.from_numpy(x.copy()))
    torch_prune.global_unstructured(
        [(m, "weight") for m in modules.values()], pruning_method=torch_prune.L1Unstructured, amount=amount
    )
    return {name: m.weight_mask.numpy() > 0 for name, m in modules.items()}


def normal(seed, decimals=None):
    rng = np.random.default_rng(seed)
    tree = {"conv": {"bias": rng.standard_normal(7), "kernel": rng.standard_normal((3, 3, 4, 7))}, "fc": rng.random(50)}
    out = {
        "conv": {k: v.astype(np.float32) for k, v in tree["conv"].items()},
        "fc": (tree["fc"] - 0.5).astype(np.float32),
    }
    if decimals is None:
        return out
    return {"conv": {k: np.round(v, decimals) for k, v in out["conv"].items()}, "fc": np.round(out["fc"], decimals)}


def magnitude(tree):
    return {"conv": {k: jnp.abs(v) for k, v in tree["conv"].items()}, "fc": jnp.abs(tree["fc"])}


@pytest.mark.parametrize("method", ["auto", "sampling", "bisection"])
@pytest.mark.parametrize("amount", [0.1, 0.5, 0.9, 0.99])
def test_masks_equal_where_magnitudes_are_distinct(amount, method):
    tree = normal(int(amount * 100))
    n = sum(x.size for x in trees.flatten(tree).values())
    ours = prune.across_tree(magnitude(tree), prune.keep_count(n, amount), method=method)
    for name, expected in torch_masks(tree, amount).items():
        assert np.array_equal(trees.flatten(ours)[name], expected)
    assert 0 < sum(int(m.sum()) for m in trees.flatten(ours).values()) < n


@pytest.mark.parametrize("amount", [0.3, 0.5])
def test_counts_and_clear_cases_equal_where_magnitudes_tie(amount):
    tree = normal(1, decimals=1)
    n = sum(x.size for x in trees.flatten(tree).values())
    ours = trees.flatten(prune.across_tree(magnitude(tree), prune.keep_count(n, amount)))
    theirs = torch_masks(tree, amount)
    assert sum(int(m.sum()) for m in ours.values()) == sum(int(m.sum()) for m in theirs.values())
    scores = {k: np.abs(v) for k, v in trees.flatten(tree).items()}
    lowest = min(scores[k][np.asarray(m)].min() for k, m in ours.items() if m.any())
    for name in ours:
        clear = scores[name] != lowest
        assert np.array_equal(np.asarray(ours[name])[clear], theirs[name][clear])


@pytest.mark.parametrize("n", [1, 2, 3, 10, 25, 999])
@pytest.mark.parametrize("amount", [0.0, 0.1, 0.25, 0.35, 0.5, 0.75, 0.9])
def test_rounding_is_torchs(n, amount):
    if amount == 0.0 and n == 1:
        return
    pruned = torch_prune._compute_nparams_toprune(amount, n)
    assert prune.keep_count(n, amount) == n - pruned
