"""The algebra of axes, by hand."""

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mvp_jax.graph.dims import (
    Dim,
    Permuted,
    Prod,
    Sum,
    freeze,
    permuted,
    product,
    reshape,
    resolve,
    roots,
    take,
    total,
    unify,
)
from mvp_jax.graph.places import places


def layout(e):
    """Which root owns each index of an axis, and which of its units it is, from the places alone."""
    order = {id(d): i for i, d in enumerate(dict.fromkeys(roots(e)))}
    owner = [[] for _ in range(resolve(e).size)]
    for p in places(e):
        for unit in range(p.root.size):
            at = np.array([p.start + unit * p.step])
            for count, stride in p.repeats:
                at = (at[:, None] + stride * np.arange(count)).ravel()
            for i in (p.order[i] for i in at) if p.order else at:
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


# --- Entries that change places --------------------------------------------------------------------------------------


def flip(e):
    return permuted(e, range(e.size)[::-1])


def why(*axes):
    return {d.why for e in axes for d in roots(e)}


def test_a_flip_lies_backwards_and_flipped_again_is_the_axis():
    a = Dim(3)
    b = flip(a)
    assert layout(b) == [[(0, 2)], [(0, 1)], [(0, 0)]]
    assert [(p.start, p.step, p.repeats, p.order) for p in places(b)] == [(2, -1, (), ())]
    assert flip(b) is a
    unify(a, flip(b))
    unify(flip(a), b)
    assert why(a) == {""}


def test_a_permutation_says_where_each_unit_lies():
    a = permuted(Dim(3), [2, 0, 1])  # unit 2 comes first, then 0, then 1
    assert layout(a) == [[(0, 2)], [(0, 0)], [(0, 1)]]
    assert [p.order for p in places(a)] == [(1, 2, 0)]
    assert layout(total([Dim(2), a])) == [[(0, 0)], [(0, 1)], [(1, 2)], [(1, 0)], [(1, 1)]]
    assert layout(Prod([Dim(2), a])) == [[(0, h), (1, i)] for h in (0, 1) for i in (2, 0, 1)]
    assert layout(Prod([a, Dim(2)])) == [[(0, i), (1, h)] for i in (2, 0, 1) for h in (0, 1)]


def test_equal_orders_unify_what_is_inside():
    a, b = Dim(3), Dim(3)
    unify(permuted(a, [1, 2, 0]), permuted(b, [1, 2, 0]))
    assert resolve(a) is resolve(b)
    c, d = Prod([Dim(2), Dim(2)]), Sum([Dim(3), Dim(1)])
    mixed = [0, 3, 1, 2]
    unify(permuted(c, mixed), permuted(d, mixed))
    assert why(c, d) == {"a product of axes meets a concatenation"}


def test_different_orders_of_two_sets_are_one_set_and_of_one_set_are_frozen():
    a, b = Dim(3), Dim(3)
    unify(permuted(a, [1, 2, 0]), flip(b))
    (p,) = places(a)  # entry i is a's unit (i + 1) % 3 and b's unit 2 - i, so unit c of b is a's unit -c % 3
    assert p.root is b
    assert p.indices().ravel().tolist() == [0, 2, 1]
    assert why(a, b) == {""}
    unify(flip(b), a)
    assert why(a, b) == {"units meet themselves in another order"}
    c = Dim(4)
    unify(flip(c), c)
    assert why(c) == {"units meet themselves in another order"}
    c, d = Dim(6), product([Dim(2), Dim(3)])
    unify(d, permuted(c, [1, 0, 2, 3, 4, 5]))
    unify(d, c)
    assert why(c, d) == {"two orders of an axis do not fit together"}


def test_products_and_sums_that_change_places_as_a_whole_stay_products_and_sums():
    a, b = Dim(2), Dim(3)
    heads = flip(product([a, b]))
    assert isinstance(heads, Prod)
    assert layout(heads) == [[(0, 1 - i // 3), (1, 2 - i % 3)] for i in range(6)]
    columns = permuted(product([a, b]), [0, 3, 1, 4, 2, 5])
    assert [resolve(p) for p in columns.parts] == [b, a]
    parts = permuted(total([a, b]), [4, 2, 3, 0, 1])
    assert isinstance(parts, Sum)
    assert layout(parts) == [[(0, 2)], [(0, 0)], [(0, 1)], [(1, 0)], [(1, 1)]]
    mixed = permuted(total([a, b]), [0, 2, 1, 3, 4])
    assert isinstance(mixed, Permuted)
    assert layout(mixed) == [[(0, 0)], [(1, 0)], [(0, 1)], [(1, 1)], [(1, 2)]]


def test_a_permuted_set_is_split_and_sliced_as_it_lies():
    a = Dim(6)
    shuffled = permuted(a, [3, 0, 5, 1, 4, 2])
    first = take(shuffled, 0, 2)
    assert resolve(take(shuffled, 0, 2)) is resolve(first)
    assert [d.size for d in roots(a)] == [2, 4]
    at = {p.root: p.indices().ravel().tolist() for p in places(a)}
    assert at == {resolve(first): [3, 0], resolve(take(shuffled, 2, 6)): [5, 1, 4, 2]}
    b = Dim(6)
    rows, columns = reshape([permuted(b, [3, 0, 5, 1, 4, 2])], (2, 3))
    assert why(b) == {""}
    assert {p.root: p.indices().tolist() for p in places(b)} == {
        resolve(rows): [[3, 0, 5], [1, 4, 2]],
        resolve(columns): [[3, 1], [0, 4], [5, 2]],
    }


def test_what_cuts_across_an_order_of_several_sets_is_frozen():
    mixed = permuted(product([Dim(2), Dim(2)]), [0, 3, 1, 2])
    assert why(take(mixed, 0, 2), mixed) == {"a slice cuts across it"}
    mixed = permuted(product([Dim(2), Dim(2)]), [0, 3, 1, 2])
    assert why(*reshape([mixed], (2, 2)), mixed) == {"a reshape cuts across it"}
    rest = permuted(total([Dim(2), Dim(2), Dim(3)]), [2, 0, 3, 1, 4, 5, 6])
    assert layout(take(rest, 0, 4)) == [[(1, 0)], [(0, 0)], [(1, 1)], [(0, 1)]]
    assert why(rest) == {""}
    whole = permuted(total([Dim(2), Dim(2)]), [0, 2, 1, 3])
    outer, flat = reshape([Dim(3), whole], (3, 4))
    assert flat is whole
    assert why(outer, flat) == {""}
    assert why(take(whole, 0, 4)) == {""}


def kept(e, keep):
    """Which entries of an axis stay, from the structure alone: `keep[d]` for each set of units."""
    e = resolve(e)
    if isinstance(e, Dim):
        return keep[e]
    if isinstance(e, Permuted):
        return kept(e.inner, keep)[e.order]
    parts = [kept(p, keep) for p in e.parts]
    if isinstance(e, Sum):
        return np.concatenate(parts)
    found = np.ones(1, bool)
    for part in parts:
        found = (found[:, None] & part).ravel()
    return found


LENGTH = 12


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_random_orders_composed_and_inverted(data):
    """Entry i of any composition is entry `order[i]`; the inverse gives the axis back, whatever it is made of."""
    make = data.draw(
        st.sampled_from(
            [
                lambda: Dim(LENGTH),
                lambda: product([Dim(3), Dim(4)]),
                lambda: product([Dim(2), total([Dim(1), Dim(2)]), Dim(2)]),
                lambda: total([Dim(5), product([Dim(2), Dim(3)]), Dim(1)]),
            ]
        )
    )
    e = make()
    plain = layout(e)
    orders = data.draw(st.lists(st.permutations(range(LENGTH)), min_size=1, max_size=4))
    at, now = np.arange(LENGTH), e
    for order in orders:
        at, now = at[np.asarray(order)], permuted(now, order)
    owners = {id(d): i for i, d in enumerate(dict.fromkeys(roots(e)))}
    renamed = {i: owners[id(d)] for i, d in enumerate(dict.fromkeys(roots(now)))}
    assert [sorted((renamed[o], u) for o, u in entry) for entry in layout(now)] == [plain[i] for i in at]
    back = permuted(now, np.argsort(at))
    assert layout(back) == plain
    unify(back, e)
    unify(permuted(e, at), now)
    assert why(e) == {""}


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_whatever_is_said_of_two_axes_the_same_entries_of_both_stay(data):
    """After any splits, slices, orders and unifications: what is one axis is kept at the same entries."""
    axes, told = [Dim(LENGTH) for _ in range(3)], []
    for _ in range(data.draw(st.integers(1, 7))):
        i, j = data.draw(st.integers(0, len(axes) - 1)), data.draw(st.integers(0, len(axes) - 1))
        match data.draw(st.integers(0, 5)):
            case 0:
                axes.append(permuted(axes[i], data.draw(st.permutations(range(LENGTH)))))
            case 1:
                axes.append(flip(axes[i]))
            case 2:
                shape = data.draw(st.sampled_from([(3, 4), (4, 3), (2, 6), (2, 3, 2)]))
                parts = reshape([axes[i]], shape)
                turned = data.draw(st.permutations(range(len(parts))))
                joined = product([parts[k] for k in turned])
                told.append((joined, axes[i], np.arange(LENGTH).reshape(shape).transpose(turned).ravel()))
                axes.append(joined)
            case 3:
                cut = data.draw(st.integers(1, LENGTH - 1))
                swapped = total([take(axes[i], cut, LENGTH), take(axes[i], 0, cut)])
                told.append((swapped, axes[i], np.roll(np.arange(LENGTH), -cut)))
                axes.append(swapped)
            case _:
                unify(axes[i], axes[j])
                told.append((axes[i], axes[j], np.arange(LENGTH)))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    for _ in range(3):
        # A set of one unit always stays; two of them are not unified.
        keep = {d: (rng.random(d.size) < 0.6) | bool(d.why) | (d.size == 1) for e in axes for d in roots(e)}
        for a, b, order in told:
            assert kept(a, keep).tolist() == kept(b, keep)[order].tolist()
        for e in axes:  # the places say the same as the structure
            stays = np.ones(LENGTH, bool)
            for p in places(e):
                stays[p.indices()[~keep[p.root]]] = False
            assert stays.tolist() == kept(e, keep).tolist()
