"""Texts by length: every one once, in few shapes, and the same numbers as without."""

import collections
import functools
import itertools

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvp_jax.data.checkpoint_inputs import buckets
from mvp_jax.models import bert
from mvp_jax.train import evaluation

LENGTHS = (4, 8, 16)


def texts(n, longest=16, pad=0, seed=0, width=16):
    """Rows of different lengths, each with its number among the ids."""
    rng = np.random.default_rng(seed)
    x = np.full((n, width), pad, np.int32)
    for i, row in enumerate(x):
        count = rng.integers(2, longest + 1)
        row[:count] = rng.integers(3, 60, count)
        row[0] = 100 + i
    return x


def test_by_hand():
    x = np.array([[9, 9, 9, 9, 9, 0], [9, 0, 0, 0, 0, 0], [0] * 6, [9, 0, 9, 0, 0, 0], [9, 9, 9, 9, 0, 0]], np.int32)
    found = buckets.buckets(x, (1, 3, 4, 8, 9))
    assert [(b.indices.tolist(), b.x.tolist()) for b in found] == [
        ([1, 2], [[9], [0]]),
        ([3], [[9, 0, 9]]),
        ([4], [[9] * 4]),
        ([0], [[9, 9, 9, 9, 9, 0]]),
    ]
    assert buckets.filled(x).tolist() == [5, 1, 0, 3, 4]
    assert buckets.filled(x, pad=9).tolist() == [6, 6, 6, 6, 6]
    clip = np.array([[8, 5, 9, 9], [8, 9, 9, 9], [8, 5, 5, 9]])
    assert buckets.filled(clip, pad=9, tail=1).tolist() == [3, 2, 4]
    assert buckets.buckets(x[:0]) == ()


@given(st.integers(0, 40), st.integers(1, 7), st.integers(0, 5), st.sampled_from([0, 1]))
def test_every_example_once(n, batch, seed, pad):
    x = texts(n, seed=seed, pad=pad)
    needed = [max((i + 1 for i, v in enumerate(row) if v != pad), default=0) for row in x]
    found = buckets.buckets(x, LENGTHS, pad=pad)
    assert sorted(itertools.chain(*(b.indices for b in found))) == list(range(n))
    for b in found:
        width = b.x.shape[1]
        shorter = max(w for w in (0, *LENGTHS) if w < width)
        assert all(shorter < needed[i] <= width for i in b.indices)
        np.testing.assert_array_equal(b.x, x[b.indices, :width])
    weights = np.zeros(n)
    for p in buckets.padded(x, LENGTHS, batch=batch, pad=pad):
        assert len(p.x) == len(p.weight) == len(p.indices)
        assert len(p.x) % batch == 0
        assert set(p.weight) <= {0.0, 1.0}
        np.testing.assert_array_equal(p.x, x[p.indices, : p.x.shape[1]])
        np.add.at(weights, p.indices, p.weight)
    np.testing.assert_array_equal(weights, 1)


@pytest.fixture(scope="module")
def model():
    return bert.build(bert.micro(400, positions=16, dim=8, heads=2, layers=1, mlp=8, classes=3))


def test_the_same_numbers_from_few_programs(model):
    variables = model.init(jax.random.key(0))
    x = texts(57)
    x[::3, 3] = 2  # a separator: there are segments too
    logits, features = evaluation.infer(model, variables, x, batch=16)
    before = evaluation._infer._cache_size()
    infer = functools.partial(evaluation.infer, model, variables)
    for n in (57, 33, 57):
        got = buckets.predict(infer, x[:n], LENGTHS, batch=8)
        np.testing.assert_allclose(got[0], logits[:n], atol=1e-5)
        np.testing.assert_allclose(got[1], features[:n], atol=1e-5)
    assert 1 < evaluation._infer._cache_size() - before <= len(LENGTHS)
    assert np.ptp(got[0], axis=0).min() > 1e-3
    memory = buckets.predict(infer, x[:5], batch=8)  # all lengths beyond the rows' stand for theirs
    np.testing.assert_allclose(memory[0], logits[:5], atol=1e-5)


def test_padding_of_another_id():
    config = bert.roberta(8, vocab=400, heads=2, layers=1, mlp=8, positions=16, classes=2)
    model = bert.build(config)
    variables = model.init(jax.random.key(1))
    x = texts(12, pad=1)
    got, _ = buckets.predict(functools.partial(evaluation.infer, model, variables), x, LENGTHS, batch=4, pad=1)
    np.testing.assert_allclose(got, evaluation.infer(model, variables, x)[0], atol=1e-5)


def test_batches_of_an_epoch():
    x = texts(70)
    y = np.arange(70)
    needed = buckets.filled(x)
    steps = buckets.batches(x, y, LENGTHS, batch=8, seed=3)
    epochs = [list(itertools.islice(steps, 70 // 8)) for _ in range(3)]
    for epoch in epochs:
        seen = np.concatenate([b["y"] for b in epoch])
        assert len(set(seen.tolist())) == len(seen) == 64
        for b in epoch:
            width = b["x"].shape[1]
            assert b["x"].shape == (8, width)
            assert width in LENGTHS
            np.testing.assert_array_equal(b["x"], x[b["y"], :width])
            assert needed[b["y"]].max() <= width
        # Those left over moved up: less than a batch from each shorter length.
        beyond = sum((needed[b["y"]] <= w).sum() for b in epoch for w in LENGTHS if w < b["x"].shape[1])
        assert beyond < 8 * 3
    orders = [np.concatenate([b["y"] for b in e]).tolist() for e in epochs]
    assert orders[0] != orders[1] != orders[2]
    assert len({tuple(b["x"].shape[1] for b in e) for e in epochs}) > 1  # lengths take turns otherwise, too


def test_nobody_waits_where_batches_come_out_even():
    x, y = texts(64), np.arange(64)
    steps = buckets.batches(x, y, LENGTHS, batch=8, seed=0)
    for _ in range(2):
        assert collections.Counter(np.concatenate([next(steps)["y"] for _ in range(8)]).tolist()) == dict.fromkeys(
            range(64), 1
        )


def test_batches_are_those_of_seed_and_step():
    x, y = texts(41), np.arange(41)
    one = [b["y"].tolist() for b in itertools.islice(buckets.batches(x, y, LENGTHS, batch=4, seed=1), 35)]
    for start in (0, 7, 10, 23):
        again = buckets.batches(x, y, LENGTHS, batch=4, seed=1, start=start)
        assert [next(again)["y"].tolist() for _ in range(12)] == one[start : start + 12]
    other = [b["y"].tolist() for b in itertools.islice(buckets.batches(x, y, LENGTHS, batch=4, seed=2), 10)]
    assert other != one[:10]


@pytest.mark.parametrize("lengths", [(), (0, 4), (8, 4), (4, 4, 16)])
def test_bad_lengths(lengths):
    with pytest.raises(ValueError, match="they must rise from at least 1"):
        buckets.buckets(texts(3), lengths)


def test_refused(model):
    x = texts(9)
    x[4, 11] = 7
    with pytest.raises(ValueError, match=r"a text has 1\d ids, but lengths end at 8; give lengths up to 16"):
        buckets.buckets(x, (4, 8))
    with pytest.raises(ValueError, match=r"texts are float64\[2, 3\]; give token ids"):
        buckets.buckets(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="batch is 0"):
        buckets.padded(x, batch=0)
    with pytest.raises(ValueError, match="9 texts, 9 labels, batch=10"):
        buckets.batches(x, np.arange(9), batch=10, seed=0)
    with pytest.raises(ValueError, match="9 texts, 8 labels"):
        buckets.batches(x, np.arange(8), batch=2, seed=0)
    with pytest.raises(ValueError, match="start=-1"):
        buckets.batches(x, np.arange(9), batch=2, seed=0, start=-1)
    with pytest.raises(ValueError, match="no texts"):
        buckets.predict(lambda x: x, x[:0])
    words = bert.build(bert.micro(400, positions=16, dim=8, heads=2, layers=1, mlp=8, task="masked_lm"))
    with pytest.raises(ValueError, match="one row a token"):
        buckets.predict(functools.partial(evaluation.infer, words, words.init(jax.random.key(0))), x, (8, 16), batch=16)
