"""A large bank is ranked a chunk at a time, by one program, with the result of ranking it at once."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mvp_jax import bank, compact
from mvp_jax.bank import ranking
from mvp_jax.models.api import replace_head
from tests import mlp

A, B, COUNT = 8, 6, 11
KEPT = {"a": 4, "b": 3}
DENSE, TARGET = mlp.mlp(A, B, 5), mlp.mlp(A, B, 3)
PRETRAINED = mlp.variables(70, A, B, 5)
DATA = mlp.data()


@pytest.fixture(scope="module")
def entries(tmp_path_factory):
    mark = bank.fingerprint(PRETRAINED)
    store = bank.create(tmp_path_factory.mktemp("bank"), fingerprint=mark, settings={})
    for i in range(COUNT):
        rng, classes = np.random.default_rng(i), 2 + i % 3
        kept = {n: np.isin(np.arange(s), rng.choice(s, KEPT[n], False)) for n, s in (("a", A), ("b", B))}
        arrays = {
            "variables": compact.cut(mlp.variables(i, A, B, classes), mlp.mlp(A, B, classes).groups, kept),
            "units": kept,
            "saliency": {n: rng.uniform(size=u.shape).astype(np.float32) for n, u in kept.items()},
            "prototypes": rng.normal(size=(classes, B)).astype(np.float32),
        }
        given = {"classes": tuple(range(classes)), "fingerprint": mark, "ratio": 0.5, "accuracy": 0.9}
        bank.add(store, bank.BankEntry(task=f"t{i:02d}", **given), arrays)
    return bank.entries(store)


def leep(entry):
    """LEEP of one entry in NumPy, from its arrays alone."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), bank.load(entry)["variables"].params)
    x, y = np.asarray(DATA["x"], np.float64), np.asarray(DATA["y"])
    h = np.tanh((x + params["offset"]) @ params["one"]["kernel"] + params["one"]["bias"])
    h = np.tanh(h @ params["two"]["kernel"] + params["two"]["bias"])
    z = h @ params["head"]["kernel"] + params["head"]["bias"]
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    joint = np.stack([p[y == c].sum(0) for c in range(3)])
    return np.mean(np.log(((joint / joint.sum(0))[y] * p).sum(1)))


def cosine(entry):
    """The mean over the target's classes of the largest cosine to a class of the entry, in NumPy."""
    seen = TARGET.inspect(replace_head(PRETRAINED, TARGET), DATA["x"]).features
    own = np.stack([np.asarray(seen)[np.asarray(DATA["y"]) == c].mean(0) for c in range(3)])
    theirs = bank.load(entry)["prototypes"]
    own, theirs = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (own, theirs))
    return (own @ theirs.T).max(1).mean()


@pytest.mark.parametrize(("similarity", "oracle"), [("leep", leep), ("prototype", cosine)])
def test_chunks_change_nothing(entries, similarity, oracle):
    want = np.array([oracle(e) for e in entries])
    assert np.ptp(want) > 0.05
    for chunk in (1, 4, COUNT, 100):
        got = bank.similarities_to(entries, TARGET, PRETRAINED, DATA, similarity=similarity, chunk=chunk)
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-6)
        near = bank.neighbours(entries, TARGET, PRETRAINED, DATA, k=3, similarity=similarity, chunk=chunk)
        order = np.argsort(-want)[:3]
        np.testing.assert_allclose(near.similarity, want[order], rtol=2e-5, atol=1e-6)
        for at, i in enumerate(order):
            arrays = bank.load(entries[i])
            np.testing.assert_array_equal(near.units["a"][at], arrays["units"]["a"])
            np.testing.assert_array_equal(near.saliency["b"][at], arrays["saliency"]["b"])
            np.testing.assert_array_equal(
                np.asarray(near.variables.params["one"]["bias"][at])[arrays["units"]["a"]],
                arrays["variables"].params["one"]["bias"],
            )


def test_all_chunks_share_a_program(entries):
    before = ranking._similarity_to_all._cache_size()
    bank.similarities_to(entries, TARGET, PRETRAINED, mlp.data(n=21), chunk=3)
    assert ranking._similarity_to_all._cache_size() == before + 1
    before = bank.prototypes_to_all._cache_size()
    bank.similarities_to(entries, TARGET, PRETRAINED, DATA, similarity="prototype", chunk=3)
    assert ranking.prototypes_to_all._cache_size() == before + 1


def test_no_more_than_a_chunk_is_in_memory(entries, monkeypatch):
    read, sizes = ranking.read, []

    def counted(part, names):
        sizes.append(len(part))
        return read(part, names)

    monkeypatch.setattr(ranking, "read", counted)
    bank.neighbours(entries, TARGET, PRETRAINED, DATA, k=2, chunk=4)
    assert sizes == [4, 4, 3, 2]  # three chunks to rank, then the two that vote


def test_what_differs_is_found_in_a_later_chunk(entries, tmp_path):
    mark = bank.fingerprint(PRETRAINED)
    store = bank.create(tmp_path, fingerprint=mark, settings={})
    kept = {"a": np.arange(A) < 5, "b": np.arange(B) < 3}
    arrays = {"variables": compact.cut(PRETRAINED, DENSE.groups, kept), "units": kept, "saliency": kept}
    given = {"classes": (0, 1), "fingerprint": mark, "ratio": 0.5, "accuracy": 0.9}
    uneven = bank.add(store, bank.BankEntry(task="uneven", **given), arrays)
    with pytest.raises(ValueError, match=r"'t00' and 'uneven' keep different numbers of units, {'a': \(4, 5\)}"):
        bank.neighbours([*entries, uneven], TARGET, PRETRAINED, DATA, chunk=4)
    with pytest.raises(ValueError, match="chunk is 0"):
        bank.neighbours(entries, TARGET, PRETRAINED, DATA, chunk=0)


def test_an_entry_with_more_outputs_than_names_of_classes(entries):
    """`classes` may say less than the head has; the chunks after it are as wide."""
    fewer = [dataclasses.replace(e, classes=(0,)) for e in entries]
    got = bank.similarities_to(fewer, TARGET, PRETRAINED, DATA, chunk=4)
    np.testing.assert_allclose(got, bank.similarities_to(entries, TARGET, PRETRAINED, DATA), rtol=1e-5)
    assert jnp.ptp(got) > 0.05
