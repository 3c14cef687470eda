"""Voters for a new task in one call, against the steps written out; and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mvp_jax import bank, compact, models
from mvp_jax.core import similarity, trees, units
from mvp_jax.core.types import Variables
from mvp_jax.models.api import replace_head
from tests import mlp
from tests.core import leave_one_out_test

KEY = jax.random.key(0)
A, B, KEPT = 8, 6, {"a": 4, "b": 3}
DENSE, PRETRAINED = mlp.mlp(A, B, 7), mlp.variables(99, A, B, 7)
TARGET, DATA = mlp.mlp(A, B, 3), mlp.data(classes=3)


def entry_of(task, **changes):
    fields = {"classes": (0, 1, 2), "fingerprint": bank.fingerprint(PRETRAINED), "ratio": 0.5, "accuracy": 0.9}
    return bank.BankEntry(task=task, **fields | changes)


def arrays_of(seed, classes=4, sizes=KEPT):
    """A slim model whose weights are all its own."""
    rng = np.random.default_rng(seed)
    kept = {n: np.isin(np.arange(s), rng.choice(s, sizes[n], False)) for n, s in (("a", A), ("b", B))}
    own = mlp.variables(seed, A, B, classes)
    return {
        "variables": compact.cut(own, mlp.mlp(A, B, classes).groups, kept),
        "units": kept,
        "saliency": {n: rng.uniform(size=u.shape).astype(np.float32) for n, u in kept.items()},
        "prototypes": bank.prototypes(mlp.mlp(A, B, classes), PRETRAINED, mlp.data(classes=classes, seed=seed)),
    }


def made(folder, arrays, **changes):
    store = bank.create(folder, fingerprint=changes.get("fingerprint", bank.fingerprint(PRETRAINED)), settings={})
    for i, found in enumerate(arrays):
        bank.add(store, entry_of(f"t{i}", **changes), found)
    return bank.entries(store)


@pytest.fixture(scope="module")
def entries(tmp_path_factory):
    return made(tmp_path_factory.mktemp("bank"), [arrays_of(i) for i in range(5)])


def in_glue(entries, k):
    """The same, step by step."""
    slim, kept = bank.weights(entries), bank.ballots(entries)
    saliency = bank.stacked(entries, "saliency")
    model = mlp.mlp(KEPT["a"], KEPT["b"], 4)
    near = []
    for i in range(len(entries)):
        logits, _ = model.apply(jax.tree.map(lambda leaf, i=i: leaf[i], slim), DATA["x"])
        near.append(float(similarity.leep(jax.nn.softmax(logits), DATA["y"], 3)))
    order = np.argsort(-np.array(near), kind="stable")[:k]
    slim, kept, saliency = jax.tree.map(lambda leaf: leaf[order], (slim, kept, saliency))
    like = replace_head(PRETRAINED, mlp.mlp(A, B, 4))
    dense = [
        compact.embed(
            jax.tree.map(lambda leaf, i=i: leaf[i], slim), DENSE.groups, {n: u[i] for n, u in kept.items()}, like
        )
        for i in range(k)
    ]
    body = {name: p for name, p in trees.stack(dense).params.items() if name != "head"}
    return body, kept, saliency, np.array(near)[order]


@pytest.mark.parametrize("k", [1, 3])
def test_neighbours_are_the_steps_in_one_call(entries, k):
    found = bank.neighbours(entries, TARGET, PRETRAINED, DATA, k=k)
    body, kept, saliency, near = in_glue(entries, k)
    np.testing.assert_allclose(found.similarity, near, rtol=1e-5)
    assert np.ptp(bank.neighbours(entries, TARGET, PRETRAINED, DATA, k=5).similarity) > 1e-3
    jax.tree.map(np.testing.assert_array_equal, found.units, kept)
    jax.tree.map(np.testing.assert_array_equal, found.saliency, saliency)
    params = dict(found.variables.params)
    head = params.pop("head")
    jax.tree.map(np.testing.assert_array_equal, params, body)
    assert head["kernel"].shape == (k, B, 3)
    assert not head["kernel"].any()
    for i in range(k):
        member = jax.tree.map(lambda leaf, i=i: leaf[i], found)
        mask = units.expand(member.units, TARGET.groups, member.variables.params)
        gone = jax.tree.map(lambda w, m: jnp.where(m, 0, w), member.variables.params, mask)
        assert not any(leaf.any() for leaf in jax.tree.leaves(gone))


def test_all_vote_where_there_are_fewer_than_k(entries):
    found = bank.neighbours(entries[:2], TARGET, PRETRAINED, DATA)
    assert found.similarity.shape == (2,)
    assert found.similarity[0] >= found.similarity[1]


def test_heads_of_other_numbers_of_classes_change_nothing(tmp_path, entries):
    mixed = made(tmp_path, [arrays_of(i, classes=4 if i < 5 else 2) for i in range(6)])
    found = bank.neighbours(mixed, TARGET, PRETRAINED, DATA, k=6)
    alone = bank.neighbours(entries, TARGET, PRETRAINED, DATA, k=5)
    two = bank.neighbours(mixed[5:], TARGET, PRETRAINED, DATA, k=1)
    at = int(np.argmin(np.abs(found.similarity - two.similarity[0])))
    np.testing.assert_allclose(np.delete(found.similarity, at), alone.similarity, rtol=1e-5)
    np.testing.assert_allclose(found.similarity[at], two.similarity[0], rtol=1e-5)
    np.testing.assert_array_equal(found.units["a"][at], two.units["a"][0])


def test_prototypes_rank_by_the_pretrained_features(tmp_path):
    arrays = [arrays_of(i, classes=2 + i % 2) for i in range(4)]
    found = bank.neighbours(made(tmp_path, arrays), TARGET, PRETRAINED, DATA, k=4, similarity="prototype")
    features = TARGET.inspect(replace_head(PRETRAINED, TARGET), DATA["x"]).features
    own = similarity.prototypes(features, DATA["y"], 3)
    near = [float(similarity.prototype_cosine(own, a["prototypes"])) for a in arrays]
    order = np.argsort(-np.array(near), kind="stable")
    assert np.ptp(near) > 1e-3
    np.testing.assert_allclose(found.similarity, np.array(near)[order], rtol=1e-5)
    np.testing.assert_array_equal(found.units["b"], np.stack([arrays[i]["units"]["b"] for i in order]))


def test_a_similarity_of_ones_own(entries):
    def by_name(found, data):
        assert data is DATA
        return [float("nan") if e.task == "t0" else float(e.task[1:]) for e in found]

    near = bank.neighbours(entries, TARGET, PRETRAINED, DATA, k=5, similarity=by_name)
    assert near.similarity[:4].tolist() == [4, 3, 2, 1]
    want = [bank.load(e)["units"]["a"] for e in (*entries[:0:-1], entries[0])]  # `nan` comes last
    np.testing.assert_array_equal(near.units["a"], np.stack(want))
    with pytest.raises(ValueError, match=r"gave \(2,\) for 5 entries"):
        bank.neighbours(entries, TARGET, PRETRAINED, DATA, similarity=lambda e, d: jnp.zeros(2))


def test_what_cannot_vote_is_refused(tmp_path, entries):
    def call(found=entries, model=TARGET, variables=PRETRAINED, data=DATA, **how):
        return bank.neighbours(found, model, variables, data, **how)

    with pytest.raises(ValueError, match="no entries"):
        call([])
    with pytest.raises(ValueError, match="k is 0"):
        call(k=0)
    with pytest.raises(ValueError, match="another pre-trained model"):
        call(variables=mlp.variables(98, A, B, 7))
    with pytest.raises(ValueError, match=r"labels outside the classes: \[2\]; 2 classes allow 0 to 1"):
        call(model=mlp.mlp(A, B, 2))
    with pytest.raises(ValueError, match=r"choose one of .*press.* or a function"):
        call(similarity="cka")
    with pytest.raises(ValueError, match="the group has 5 units"):
        call(
            model=dataclasses.replace(TARGET, groups=(dataclasses.replace(TARGET.groups[0], size=5), TARGET.groups[1]))
        )
    with pytest.raises(ValueError, match=r"groups that the model lacks: \['a'\]"):
        call(model=dataclasses.replace(TARGET, groups=TARGET.groups[1:]))
    uneven = made(tmp_path / "uneven", [arrays_of(0), arrays_of(1, sizes={"a": 5, "b": 3})])
    with pytest.raises(ValueError, match=r"'t0' and 't1' keep different numbers of units, {'a': \(4, 5\)}"):
        call(uneven)
    bare = made(tmp_path / "bare", [{n: a for n, a in arrays_of(0).items() if n != "prototypes"}])
    with pytest.raises(ValueError, match=r"nothing named \['prototypes'\]"):
        call(bare, similarity="prototype")


def test_leep_on_the_host_is_leep_in_one_program():
    host, compiled = (
        models.create("resnet8", width=4, image_size=8, channels=1, classes=3, conv=c) for c in ("native", "im2col")
    )
    members = jax.vmap(host.init)(jax.random.split(KEY, 3))
    data = {"x": jax.random.normal(KEY, (9, 8, 8, 1)), "y": jnp.arange(9) % 3}
    a, b = (bank.similarity_to_all(m, members, data, num_classes=3) for m in (host, compiled))
    np.testing.assert_allclose(a, b, rtol=1e-4)
    assert np.ptp(a) > 1e-4


def test_similarity_to_all_is_leep_of_each():
    model, data = mlp.mlp(4, 4, 5), mlp.data()
    members = [mlp.variables(s, 4, 4, 5) for s in range(5)]
    got = bank.similarity_to_all(model, trees.stack(members), data, num_classes=3, chunk=2)
    z = [np.asarray(model.apply(v, data["x"])[0], np.float64) for v in members]
    y = np.asarray(data["y"])
    for value, logits, v in zip(np.asarray(got), z, members, strict=True):
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        joint = np.stack([p[y == c].sum(0) / len(y) for c in range(3)])
        want = np.mean(np.log((p * (joint / joint.sum(0))[y]).sum(1)))
        assert value == pytest.approx(want, rel=1e-4)
        other = similarity.leep(jax.nn.softmax(model.apply(v, data["x"])[0]), data["y"], 3)
        assert value == pytest.approx(float(other), rel=1e-5)
    assert np.ptp(got) > 0.01
    assert np.max(got) < 0


@pytest.mark.parametrize("by", ["press", "logme"])
def test_entries_are_ranked_by_how_well_their_features_tell_the_labels(by, entries):
    model, data = mlp.mlp(4, 4, 5), mlp.data()
    members = [mlp.variables(s, 4, 4, 5) for s in range(5)]
    got = bank.similarity_to_all(model, trees.stack(members), data, num_classes=3, by=by, chunk=2)
    features = [np.asarray(model.inspect(v, data["x"]).features) for v in members]
    if by == "press":
        labels = np.eye(3)[np.asarray(data["y"])]
        want = [leave_one_out_test.by_fitting(f, labels, 0.1) for f in features]
    else:  # which has an oracle of its own
        want = [float(similarity.logme(jnp.asarray(f), data["y"], 3)) for f in features]
    np.testing.assert_allclose(got, want, rtol=1e-3)
    assert np.ptp(want) > 0.005

    near = bank.neighbours(entries, TARGET, PRETRAINED, DATA, k=4, similarity=by)
    assert np.all(np.diff(near.similarity) <= 0)
    assert np.ptp(near.similarity) > 0
    leep = bank.similarities_to(entries, TARGET, PRETRAINED, DATA)
    own = bank.similarities_to(entries, TARGET, PRETRAINED, DATA, similarity=by)
    np.testing.assert_allclose(np.sort(own)[::-1][:4], near.similarity, rtol=1e-6)
    assert not np.allclose(own, leep)


def test_batch_statistics_are_re_estimated_before_features_are_judged():
    model = models.create("resnet8", width=4, image_size=8, channels=1, classes=3)
    members = jax.vmap(model.init)(jax.random.split(KEY, 2))
    data = {"x": jax.random.normal(KEY, (24, 8, 8, 1)) + 2.0, "y": jnp.arange(24) % 3}
    moved = members._replace(rest=jax.tree.map(lambda leaf: 3.0 * leaf + 1.0, members.rest))
    a, b = (bank.similarity_to_all(model, m, data, num_classes=3, by="press") for m in (members, moved))
    np.testing.assert_allclose(a, b, rtol=1e-5)
    a, b = (bank.similarity_to_all(model, m, data, num_classes=3) for m in (members, moved))
    assert not np.allclose(a, b, rtol=1e-4)
    with pytest.raises(ValueError, match="unknown similarity 'cka'"):
        bank.similarity_to_all(model, members, data, num_classes=3, by="cka")


def test_take_gives_rows_in_order(entries):
    near = bank.neighbours(entries, TARGET, PRETRAINED, DATA, k=4)
    two = jax.jit(bank.Neighbours.take)(near, jnp.array([3, 1]))
    assert isinstance(two, bank.Neighbours)
    assert isinstance(two.variables, Variables)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, np.asarray(b)[[3, 1]]), two, near)
