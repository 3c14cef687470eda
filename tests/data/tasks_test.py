"""Tasks: distinct draws, saved lists, disjoint pools, exact numbers of images."""

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvp_jax.data import groups, sources, tasks
from mvp_jax.data.sources import Arrays
from mvp_jax.data.tasks import Task


def numbered(per_class, seed=0):
    """Images that are their own index, `per_class[c]` of class c, in mixed order."""
    y = np.repeat(np.arange(len(per_class)), per_class)
    np.random.default_rng(seed).shuffle(y)
    return Arrays(np.arange(len(y), dtype=np.float32).reshape(-1, 1, 1, 1), y.astype(np.int32))


def ids(pair):
    return set(pair.x.ravel().astype(int).tolist())


@given(
    n=st.integers(2, 7), k=st.integers(1, 4), musts=st.integers(0, 3), data=st.data(), seed=st.integers(0, 2**32 - 1)
)
def test_draws_are_distinct_and_hold_what_they_must(n, k, musts, data, seed):
    k, musts = min(n, k), min(n, musts)
    least = data.draw(st.integers(0, min(k, musts)))
    sets = [set(c) for c in itertools.combinations(range(n), k) if len(set(c) & set(range(musts))) >= least]
    most = len(sets)
    count = data.draw(st.integers(1, most))
    drawn = tasks.draw(n, count, k, seed, must_include=range(musts), at_least=least)
    found = [set(t.classes) for t in drawn]
    assert all(s in sets for s in found)
    assert len({frozenset(s) for s in found}) == count == len(drawn)
    assert all(list(t.classes) == sorted(t.classes) for t in drawn)
    with pytest.raises(ValueError, match=f"only {most} exist"):
        tasks.draw(n, most + 1, k, seed, must_include=range(musts), at_least=least)
    assert drawn == tasks.draw(n, most, k, seed, must_include=range(musts), at_least=least)[:count]


def test_draw_depends_on_the_seed_alone():
    a, b, c = (tasks.draw(100, 50, 10, seed) for seed in (0, 0, 1))
    assert a == b
    assert [t.classes for t in a] != [t.classes for t in c]
    assert [t.name for t in a[:2]] == ["task-0000", "task-0001"]


def test_draw_is_uniform():
    seen = [t.classes for seed in range(600) for t in tasks.draw(5, 1, 2, seed, must_include=[0, 1], at_least=1)]
    counts = np.array([seen.count(s) for s in sorted(set(seen))])
    assert len(counts) == 7  # the 10 pairs less those of {2, 3, 4}
    assert (np.abs(counts - 600 / 7) < 4 * math.sqrt(600 / 7)).all()


def test_draw_leaves_out_what_it_is_told():
    bank = tasks.draw(5, 6, 2, 0)
    rest = tasks.draw(5, 4, 2, 0, exclude=bank, prefix="target")
    assert len({t.classes for t in (*bank, *rest)}) == 10
    assert rest[0].name == "target-0000"
    assert {c for t in tasks.draw([2, 4, 7], 3, 2, 0) for c in t.classes} == {2, 4, 7}
    with pytest.raises(ValueError, match="only 4 exist"):
        tasks.draw(5, 5, 2, 0, exclude=bank)


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((3, 1, 4, 0), {}, "4 classes a task asked of 3"),
        ((3, 1, 0, 0), {}, "choose 1 to 3"),
        ((3, 0, 2, 0), {}, "0 tasks"),
        ((3, 1, 2, 0), {"must_include": [5]}, r"must_include has \[5\]"),
        ((5, 1, 2, 0), {"must_include": [0, 1, 2]}, "choose at most 2"),
        ((5, 1, 2, 0), {"must_include": [0], "at_least": 2}, "choose at most 1"),
    ],
)
def test_draw_refusals(args, kwargs, message):
    with pytest.raises(ValueError, match=message):
        tasks.draw(*args, **kwargs)


def test_empty_and_double_classes():
    with pytest.raises(ValueError, match="is empty"):
        Task(name="t", classes=())
    with pytest.raises(ValueError, match="a class twice"):
        Task(name="t", classes=(1, 1))


def test_lists_come_back(tmp_path):
    drawn = tasks.draw(20, 30, 5, 3)
    tasks.save(drawn, tmp_path / "sub" / "tasks.json")
    assert tasks.load(tmp_path / "sub" / "tasks.json") == drawn
    assert [p.name for p in (tmp_path / "sub").iterdir()] == ["tasks.json"]
    assert json.loads((tmp_path / "sub" / "tasks.json").read_text())["tasks"][3]["classes"] == list(drawn[3].classes)


def test_list_refusals(tmp_path):
    path = tmp_path / "t.json"
    with pytest.raises(ValueError, match="no task list"):
        tasks.load(path)
    for content in ("{", "[]", '{"format": "x", "version": 1, "tasks": []}', '{"format": "mvp_jax tasks"}'):
        path.write_text(content)
        with pytest.raises(ValueError, match="not a task list"):
            tasks.load(path)
    twice = (Task(name="a", classes=(1,)), Task(name="a", classes=(2,)))
    with pytest.raises(ValueError, match=r"share the names \['a'\]"):
        tasks.save(twice, path)
    with pytest.raises(ValueError, match="cannot write"):
        tasks.save(tasks.draw(3, 1, 2, 0), path / "below" / "a-file.json")


@given(seed=st.integers(0, 2**32 - 1), fractions=st.sampled_from([(0.5, 0.5), (0.7, 0.2, 0.1), (0.25,), (0.3, 0.3)]))
def test_pools_are_disjoint_and_stratified(seed, fractions):
    data = numbered([40, 20, 30])
    pools = tasks.split(data, seed=seed, fractions=fractions)
    assert len(set.union(*map(ids, pools))) == sum(len(p.y) for p in pools)
    for pool, fraction in zip(pools, fractions, strict=True):
        counts = np.bincount(pool.y)
        assert (np.abs(counts - fraction * np.array([40, 20, 30])) <= 1).all()
        assert all(data.y[int(i)] == label for i, label in zip(pool.x.ravel(), pool.y, strict=True))
    if math.isclose(sum(fractions), 1):
        assert set.union(*map(ids, pools)) == set(range(90))


def test_pools_by_counts_and_seed():
    data = numbered([10, 12])
    a, b = tasks.split(data, seed=0, counts=(3, 7))
    assert (np.bincount(a.y).tolist(), np.bincount(b.y).tolist()) == ([3, 3], [7, 7])
    assert ids(a) == ids(tasks.split(data, seed=0, counts=(3, 7))[0])
    assert ids(a) != ids(tasks.split(data, seed=1, counts=(3, 7))[0])
    source = sources.arrays("s", data)
    assert ids(tasks.split(source, seed=0, counts=(3, 7))[0]) == ids(a)


def test_a_picture_is_in_one_pool_even_if_the_data_has_it_twice():
    x = np.concatenate([np.arange(20), np.arange(20)]).astype(np.float32).reshape(-1, 1, 1, 1)
    data = Arrays(x, np.tile(np.arange(2, dtype=np.int32), 20))
    a, b = tasks.split(data, seed=0, fractions=(0.5, 0.5))
    assert len(a.y) == len(b.y) == 10
    assert not ids(a) & ids(b)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({}, "either fractions or counts"),
        ({"fractions": (0.5,), "counts": (1,)}, "either fractions or counts"),
        ({"fractions": (0.7, 0.4)}, "at most 1"),
        ({"fractions": (0.0, 0.4)}, "positive shares"),
        ({"counts": (0, 1)}, "positive numbers"),
        ({"counts": (6, 5)}, r"class 0 has 10 distinct images, too few for pools of \[6, 5\]"),
        ({"fractions": (0.01, 0.9)}, "too few"),
    ],
)
def test_split_refusals(kwargs, message):
    with pytest.raises(ValueError, match=message):
        tasks.split(numbered([10, 12]), seed=0, **kwargs)


@given(seed=st.integers(0, 2**32 - 1), shots=st.integers(1, 5), valid=st.integers(0, 3), test=st.integers(0, 3))
def test_tasks_get_exactly_what_they_ask_for(seed, shots, valid, test):
    data = numbered([12, 11, 15, 13], seed=1)
    task = Task(name="t", classes=(3, 0))
    got = tasks.materialise(task, data, shots=shots, valid=valid, test=test, seed=seed)
    for pair, n in zip(got, (shots, valid, test), strict=True):
        assert pair.x.shape == (2 * n, 1, 1, 1)
        assert pair.y.dtype == np.int32
        assert pair.y.tolist() == [0, 1] * n
        assert [int(data.y[int(i)]) for i in pair.x.ravel()] == [3, 0] * n
    assert len(ids(got.train) | ids(got.valid) | ids(got.test)) == 2 * (shots + valid + test)


def test_more_shots_contain_the_fewer_and_leave_the_test_alone():
    data = numbered([20, 20, 20])
    task = Task(name="t", classes=(1, 2))
    few, many, all_of_it = (tasks.materialise(task, data, shots=n, valid=4, test=5, seed=7) for n in (2, 6, None))
    np.testing.assert_array_equal(few.test.x, many.test.x)
    np.testing.assert_array_equal(few.valid.x, many.valid.x)
    np.testing.assert_array_equal(few.train.x, many.train.x[:4])
    assert len(all_of_it.train.y) == 2 * 11
    assert ids(few.test) != ids(tasks.materialise(task, data, shots=2, valid=4, test=5, seed=8).test)


def test_no_image_trains_one_task_and_tests_another():
    data = numbered([20] * 5)
    made = [tasks.materialise(t, data, valid=3, test=4, seed=0) for t in tasks.draw(5, 10, 2, 0)]
    trained = set.union(*(ids(d.train) for d in made))
    assert len(trained) == 5 * 13
    assert not trained & set.union(*(ids(d.valid) | ids(d.test) for d in made))


def test_splits_from_elsewhere():
    data, other = numbered([6, 9, 8]), numbered([5, 5, 7], seed=3)
    other = other._replace(x=other.x + 1000)
    task = Task(name="t", classes=(2, 0))
    got = tasks.materialise(task, data, test_from=other, valid_from=other, valid=2, seed=0)
    assert len(got.train.y) == 2 * 6  # the scarcest class has 6
    assert len(got.valid.y) == 2 * 2
    assert len(got.test.y) == 2 * 5
    assert min(ids(got.test) | ids(got.valid)) >= 1000


def test_tasks_stack():
    data = numbered([9, 10, 11, 12])
    made = [tasks.materialise(t, data, valid=2, seed=0) for t in tasks.draw(4, 3, 2, 0)]
    stacked = tasks.stack(made)
    assert stacked.train.x.shape == (3, 14, 1, 1, 1)  # 9 - 2 of each class, whatever the task
    np.testing.assert_array_equal(stacked.train.x[1], made[1].train.x)
    np.testing.assert_array_equal(stacked.valid.y[2], made[2].valid.y)
    with pytest.raises(ValueError, match="differ in shape"):
        tasks.stack([made[0], tasks.materialise(Task(name="x", classes=(0,)), data, seed=0)])
    with pytest.raises(ValueError, match="no tasks"):
        tasks.stack([])


@pytest.mark.parametrize(
    ("task", "kwargs", "message"),
    [
        (Task(name="t", classes=(0, 7)), {}, "class 7 has 0 images"),
        (Task(name="t", classes=(0,)), {"shots": 6}, "class 0 has 5 images in the data, but {'shots': 6}"),
        (Task(name="t", classes=(0,)), {"shots": 3, "valid": 2, "test": 1}, "class 0 has 5 images"),
        (Task(name="t", classes=(1,)), {"valid": 5}, "all taken"),
        (Task(name="t", classes=(1,)), {"valid": 7}, "all taken"),
        (Task(name="t", classes=(0,)), {"shots": 0}, "shots is 0"),
        (Task(name="t", classes=(0,)), {"test": -1}, "test is -1"),
    ],
)
def test_materialise_refusals(task, kwargs, message):
    with pytest.raises(ValueError, match=message):
        tasks.materialise(task, numbered([5, 8]), seed=0, **kwargs)


def test_subset_and_coarse_tasks():
    data = numbered([3, 4, 5, 6])
    some = tasks.subset(data, (3, 1))
    assert np.bincount(some.y).tolist() == [6, 4]
    assert all(data.y[int(i)] == (3, 1)[label] for i, label in zip(some.x.ravel(), some.y, strict=True))
    with pytest.raises(ValueError, match=r"no images of classes \[9\]"):
        tasks.subset(data, (1, 9))
    source = sources.arrays("s", data, coarse=[1, 0, 1, 1], coarse_names=["p", "q"])
    assert [(t.name, t.classes) for t in groups.coarse_tasks(source)] == [("p", (1,)), ("q", (0, 2, 3))]
    with pytest.raises(ValueError, match="no superclasses"):
        groups.coarse_tasks(sources.arrays("s", data))


def test_shared_classes():
    a, b, c = Task(name="a", classes=(1, 2, 3)), Task(name="b", classes=(2, 3, 4)), Task(name="c", classes=(9,))
    assert tasks.shared_classes(a, b) == 0.5
    assert tasks.shared_classes(a, a) == 1
    assert tasks.shared_classes(a, c) == 0
