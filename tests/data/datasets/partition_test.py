"""Parts of examples: disjoint, of each class its share, equal ones together, the same by the same seed."""

import collections

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mvp_jax.data.datasets import partition

SHARES = st.lists(st.sampled_from([0.05, 0.1, 0.2, 0.33]), min_size=1, max_size=2)


@settings(deadline=None)
@given(counts=st.lists(st.integers(3, 60), min_size=1, max_size=4), shares=SHARES, seed=st.integers(0, 99))
def test_different_examples_are_cut_exactly(counts, shares, seed):
    strata = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    parts = partition.cut(range(len(strata)), strata, shares, seed)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(strata)))
    assert all((np.diff(part) > 0).all() for part in parts)
    for part, share in zip(parts[1:], shares, strict=True):
        found = np.bincount(strata[part], minlength=len(counts))
        assert all(n >= 1 and (n == 1 or abs(n - share * of) <= 0.5) for n, of in zip(found, counts, strict=True))
    again = partition.cut(range(len(strata)), strata, shares, seed)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))


@settings(deadline=None)
@given(
    members=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=9, max_size=40),
    shares=SHARES,
    seed=st.integers(0, 99),
)
def test_equal_examples_stay_together(members, shares, seed):
    members = [[c] for c in (0, 1, 2) for _ in range(3)] + members  # three different ones of each class
    examples = [(key, c) for key, classes in enumerate(members) for c in classes]
    examples = [examples[i] for i in np.random.default_rng(seed).permutation(len(examples))]
    keys, strata = [k for k, _ in examples], np.array([c for _, c in examples])
    parts = partition.cut(keys, strata, shares, seed)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(keys)))
    where = collections.defaultdict(set)
    for number, part in enumerate(parts):
        for i in part:
            where[keys[i]].add(number)
    assert {len(numbers) for numbers in where.values()} == {1}
    # What a class counts as its own are the groups of which it is the most frequent class.
    own = [max(set(g), key=lambda c: (g.count(c), -c)) for g in members]
    for number, share in enumerate(shares, 1):
        for c in range(3):
            total = sum(len(g) for g, o in zip(members, own, strict=True) if o == c)
            got = sum(len(members[k]) for k in where if where[k] == {number} and own[k] == c)
            assert got >= 1
            assert abs(got - max(1, share * total)) <= max(map(len, members))


def test_every_part_gets_some_where_all_examples_have_equals():
    keys = np.repeat([0, 1, 2], 5)  # none fits into a part of two
    for seed in range(5):
        parts = partition.cut(keys.tolist(), np.zeros(15, int), [0.1, 0.1], seed)
        assert [len(part) for part in parts] == [5, 5, 5]


def test_seeds_and_classes_are_independent():
    strata = np.repeat([0, 1], [50, 50])
    first, second = (partition.cut(range(100), strata, [0.2], seed)[1].tolist() for seed in (0, 1))
    assert first != second
    alone = partition.cut(range(50), strata[:50], [0.2], 0)[1].tolist()
    assert [i for i in first if i < 50] == alone  # further classes change nothing


def test_every_example_can_come_into_every_part():
    keys = [0, 0, 1, 1, *range(2, 20)]  # two pairs of equal ones among twenty
    tested = [set(partition.cut(keys, np.zeros(22, int), [0.2], seed)[1].tolist()) for seed in range(60)]
    shares = np.array([sum(i in part for part in tested) for i in range(22)]) / 60
    assert (shares > 0.02).all()
    assert (shares < 0.5).all()


@pytest.mark.parametrize("shares", [[0.0], [1.0], [0.5, 0.5], [-0.1], [float("nan")]])
def test_shares_that_do_not_fit(shares):
    with pytest.raises(ValueError, match="above 0 that are less than 1 together"):
        partition.cut(range(9), np.zeros(9, int), shares)


def test_too_few_different_examples():
    with pytest.raises(ValueError, match="stratum 1 has 2 different examples for 3 parts"):
        partition.cut([*"abcddee"], np.array([0, 0, 0, 1, 1, 1, 1]), [0.1, 0.1])


@given(counts=st.lists(st.integers(1, 40), min_size=1, max_size=5), limit=st.integers(5, 90), seed=st.integers(0, 9))
def test_a_limit_keeps_the_shares(counts, limit, seed):
    strata = np.repeat(np.arange(len(counts)), counts)
    chosen = partition.limited(strata, limit, seed)
    assert len(chosen) == len(set(chosen.tolist())) == min(limit, len(strata))
    got = np.bincount(strata[chosen], minlength=len(counts))
    exact = np.array(counts) * min(limit / len(strata), 1)
    assert (got >= 1).all()
    assert (got <= np.maximum(exact + 1, 1)).all()
    if (exact >= 1).all():
        assert (got >= exact - 1).all()
    assert np.array_equal(chosen, partition.limited(strata, limit, seed))


def test_a_limit_below_the_number_of_classes():
    with pytest.raises(ValueError, match="limit is 2; give at least 3"):
        partition.limited(np.array([0, 1, 2, 2]), 2)
