"""The algebra of axes, by hand."""

import sys

import numpy as np
import pytest

from mvp_jax.graph.dims import Dim, Prod, Sum, freeze, places, product, reshape, resolve, roots, take, total, unify


def layout(e):
    """Which root owns each index of an axis, and which of its units it is, from the places alone."""
    order = {id(d): i for i, d in enumerate(dict.fromkeys(roots(e)))}
    owner = [[] for _ in range(resolve(e).size)]
    for p in places(e):
        for unit in range(p.root.size):
            at = np.array([p.start + unit * p.step])
            for count, stride in p.repeats:
                at = (at[:, None] + stride * np.arange(count)).ravel()
            for i in at:
                owner[i].append((order[id(p.root)], unit))
    return [sorted(o) for o in owner]


def test_a_product_runs_its_last_factor_fastest():
    a, b = Dim(2), Dim(3)
    assert layout(Prod([a, b])) == [[(0, i // 3), (1, i % 3)] for i in range(6)]


def test_a_sum_lies_end_to_end_also_inside_a_product():
    a, b, pixels = Dim(2), Dim(1), Dim(2)
    assert layout(Prod([pixels, Sum([a, b])])) == [
        [(0, 0), (1, 0)],
        [(0, 0), (1, 1)],
        [(0, 0), (2, 0)],
        [(0, 1), (1, 0)],
        [(0, 1), (1, 1)],
        [(0, 1), (2, 0)],
    ]


def test_unify_merges_and_carries_the_freeze_along():
    a, b, c = Dim(4), Dim(4), Dim(4)
    unify(a, b)
    freeze(b, "why")
    unify(c, a)
    assert resolve(a) is resolve(b) is resolve(c)
    assert [d.why for d in roots(c)] == ["why"]


def test_a_dim_becomes_the_product_it_meets_and_later_readers_see_it():
    heads, size, flat = Dim(2), Dim(3), Dim(6)
    unify(flat, product([heads, size]))
    assert list(roots(flat)) == [heads, size]


def test_products_and_sums_are_refined_to_a_common_partition():
    twelve, two, six = Dim(12), Dim(2), Dim(6)
    unify(Prod([Dim(1), twelve]), Prod([two, six]))
    assert [d.size for d in roots(twelve)] == [2, 6]
    four, one, three = Dim(4), Dim(1), Dim(3)
    unify(Sum([four, Dim(2)]), Sum([one, three, Dim(2)]))
    assert list(roots(four)) == [resolve(one), resolve(three)]
    assert [d.size for d in roots(four)] == [1, 3]


def test_equal_parts_of_a_concatenation_are_alike_when_it_is_read_as_rows():
    q, k, v = Dim(4), Dim(4), Dim(4)
    rows, columns = reshape([total([q, k, v])], (3, 4))
    assert resolve(q) is resolve(k) is resolve(v) is resolve(columns)
    assert roots(rows)[0].why
    parts, inner = Dim(2), Dim(5)
    left, right = Dim(5), Dim(5)
    unify(Prod([parts, inner]), Sum([left, right]))
    assert resolve(left) is resolve(right) is resolve(inner)
    assert parts.why
    assert not roots(inner)[0].why


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (lambda: Prod([Dim(2), Dim(3)]), lambda: Prod([Dim(3), Dim(2)])),
        (lambda: Sum([Dim(2), Dim(4)]), lambda: Prod([Dim(2), Dim(3)])),
        (lambda: Dim(3), lambda: Dim(4)),
    ],
)
def test_what_cannot_be_said_is_frozen_on_both_sides(a, b):
    a, b = a(), b()
    unify(a, b)
    assert all(d.why for e in (a, b) for d in roots(e))


def test_an_axis_cannot_contain_itself():
    a = Dim(2)
    unify(Prod([a, Dim(1)]), a)
    assert [d.why for d in roots(a)] == ["an axis would contain itself"]


def test_reshape_regroups_factors_and_freezes_what_it_cuts_across():
    n, h, w, c = Dim(2), Dim(3), Dim(4), Dim(5)
    rows, flat = reshape([n, h, w, c], (2, 60))
    assert resolve(rows) is n
    assert list(roots(flat)) == [h, w, c]
    back = reshape([rows, flat], (2, 12, 5))
    assert [list(roots(e)) for e in back] == [[n], [h, w], [c]]
    split = reshape([c], (5, 1))
    assert [resolve(e).size for e in split] == [5, 1]
    assert not any(d.why for d in (n, h, w, c))
    bad = reshape([Dim(6), Dim(4)], (8, 3))
    assert all(d.why for e in bad for d in roots(e))
    good = Dim(5)
    whole = reshape([Dim(6), Dim(1), Dim(4), good, Dim(1)], (8, 3, 1, 5))
    assert [bool(roots(e)[0].why) for e in whole] == [True, True, False, False]
    assert resolve(whole[3]) is good
    assert [resolve(e).size for e in reshape([Dim(1)], (1, 1))] == [1, 1]
    assert reshape([Dim(1)], ()) == []


def test_take_refines_and_gives_the_same_part_each_time():
    a = Dim(6)
    middle = take(a, 2, 4)
    assert [d.size for d in roots(a)] == [2, 2, 2]
    assert resolve(take(a, 2, 4)) is resolve(middle)
    assert resolve(take(a, 0, 6)) is resolve(a)
    heads = Prod([Dim(4), Dim(3)])
    assert [d.size for d in roots(take(heads, 3, 9))] == [2, 3]
    assert all(d.why for d in roots(take(heads, 2, 9)))


def test_sums_may_be_nested_deeply():
    """As slicing an axis entry by entry does, in an unrolled recurrence: each slice nests the rest one level deeper."""
    n = sys.getrecursionlimit() + 100
    dims = [Dim(1) for _ in range(n)]
    e = dims[-1]
    for d in reversed(dims[:-1]):
        e = Sum([d, e])
    assert take(e, n - 2, n - 1) is dims[-2]
    assert list(roots(e)) == dims
    assert [p.start for p in places(e)] == list(range(n))


def test_chains_of_names_are_shortened():
    dims = [Dim(4) for _ in range(1000)]
    for a, b in zip(dims[1:], dims, strict=False):
        unify(a, b)
    assert resolve(dims[0]) is dims[-1]
    assert all(d.ref is dims[-1] for d in dims[:-1])


def test_roots_and_places_follow_refinements():
    a, b = Dim(6), Dim(4)
    e = Sum([a, b])
    assert roots(e) == (a, b)
    assert [p.root for p in places(e)] == [a, b]
    first = take(a, 0, 2)
    assert roots(e) == (first, roots(a)[1], b)
    assert [(p.root, p.start) for p in places(e)] == [(first, 0), (roots(a)[1], 2), (b, 6)]
    other = Dim(2)
    unify(other, first)
    assert roots(e)[0] is other
    assert places(e)[0].root is other
