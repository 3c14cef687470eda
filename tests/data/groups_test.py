"""Tasks within groups: distinct, in turn, growing; and the task of all classes."""

import collections
import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvp_jax.data import groups, sources, tasks

GROUPS = ((0, 1, 2, 3), (4, 5), (6, 7, 8), (9,))


@given(
    size=st.integers(1, 3),
    musts=st.sets(st.integers(0, 9), max_size=4),
    least=st.integers(0, 2),
    barred=st.integers(0, 3),
    seed=st.integers(0, 2**32 - 1),
    data=st.data(),
)
def test_each_task_is_of_one_group_and_of_none_twice(size, musts, least, barred, seed, data):
    exclude = tasks.draw(4, min(barred, math.comb(4, size)), size, 0) if barred else ()
    taken = {t.classes for t in exclude}
    allowed = {
        c for group in GROUPS for c in itertools.combinations(group, size) if len(set(c) & musts) >= least
    } - taken
    limits = {"must_include": musts, "at_least": least, "exclude": exclude}
    with pytest.raises(ValueError, match=f"only {len(allowed)} exist"):
        groups.draw_within(GROUPS, len(allowed) + 1, size, seed, **limits)
    if not allowed:
        return
    drawn = groups.draw_within(GROUPS, len(allowed), size, seed, **limits)
    assert {t.classes for t in drawn} == allowed
    assert len(drawn) == len(allowed)
    count = data.draw(st.integers(1, len(allowed)))
    assert groups.draw_within(GROUPS, count, size, seed, **limits) == drawn[:count]


def test_groups_take_turns_in_an_order_of_the_seed():
    of = {c: i for i, group in enumerate(GROUPS) for c in group}
    drawn = groups.draw_within(GROUPS, 8, 2, 0, prefix="target")
    turns = [of[t.classes[0]] for t in drawn]
    assert collections.Counter(turns) == {0: 4, 1: 1, 2: 3}
    assert sorted(turns[:3]) == [0, 1, 2]
    assert [t.name for t in drawn[:2]] == ["target-0000", "target-0001"]
    firsts = {of[groups.draw_within(GROUPS, 1, 2, seed)[0].classes[0]] for seed in range(20)}
    assert firsts == {0, 1, 2}


def test_sets_within_a_group_are_uniform():
    seen = [t.classes for seed in range(600) for t in groups.draw_within(((0, 1, 2, 3),), 1, 2, seed)]
    counts = np.array([seen.count(c) for c in itertools.combinations(range(4), 2)])
    assert (np.abs(counts - 100) < 4 * math.sqrt(100)).all()


def test_groups_are_drawn_from_independently():
    pairs = [
        {tuple(c % 10 for c in t.classes) for t in groups.draw_within((range(10), range(10, 20)), 2, 2, seed)}
        for seed in range(100)
    ]
    assert sum(len(pair) == 1 for pair in pairs) < 10  # the same of 45 sets by chance: 2.2 expected


def test_all_that_must_be_in_a_task_is_in_it():
    drawn = groups.draw_within(GROUPS, 4, 2, 0, must_include=(1, 7))
    # (4, 5) has none that must be, so any set of it will do.
    assert all((set(t.classes) & {1, 7}) or t.classes == (4, 5) for t in drawn)


def test_refusals():
    with pytest.raises(ValueError, match="in two groups"):
        groups.draw_within(((0, 1), (1, 2)), 1, 1, 0)
    with pytest.raises(ValueError, match="at least 1"):
        groups.draw_within(GROUPS, 0, 1, 0)
    with pytest.raises(ValueError, match=r"only 0 exist [(]there are 4 groups, the largest of 4 classes"):
        groups.draw_within(GROUPS, 1, 5, 0)


def test_whole_and_by_coarse(tmp_path):
    source = sources.arrays("s/t", (np.zeros((4, 1, 1), np.uint8), [0, 1, 2, 3]), coarse=(1, 0, 1, 0))
    assert groups.whole(source).classes == (0, 1, 2, 3)
    assert groups.by_coarse(source) == ((1, 3), (0, 2))
    drawn = (groups.whole(source), *groups.draw_within(groups.by_coarse(source), 2, 2, 0))
    tasks.save(drawn, tmp_path / "tasks.json")
    assert tasks.load(tmp_path / "tasks.json") == drawn
