"""How many entries stay: sparsities of leaves, traced sparsities and new targets, against counts worked out by hand."""

import fractions

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mvp_jax.core import counts, patterns, trees
from mvp_jax.core.units import Group, Slot
from mvp_jax.train import transforms
from mvp_jax.train.transforms import counting

RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


PARAMS = {"a": {"bias": jnp.ones(12), "kernel": normal(8, 12)}, "b": {"bias": jnp.ones(4), "kernel": normal(12, 4)}}
KERNELS = [".*kernel"]


def gradual(sparsity, **settings):
    settings = {"steps": 4, "prunable": KERNELS, **settings}
    return transforms.prune_on_schedule(optax.sgd(0.0), sparsity=sparsity, **settings)


def step_of(tx):
    @jax.jit
    def step(params, state):
        updates, state = tx.update(params, state, params)
        return optax.apply_updates(params, updates), state

    return step


def history(step, params, state, steps):
    """How many weights of each kernel are left after every update."""
    seen = []
    for _ in range(steps):
        params, state = step(params, state)
        seen.append([int(np.count_nonzero(params[k]["kernel"])) for k in ("a", "b")])
    return seen, params, state


def end(tx, steps=4):
    return history(step_of(tx), PARAMS, tx.init(PARAMS), steps)[0][-1]


# ------------------------------------------------------------------------------------------------- sparsities of leaves


def test_every_leaf_has_the_sparsity_of_its_rule():
    tx = gradual([("a/.*", 0.5), (".*", 0.9)])
    seen, params, _ = history(step_of(tx), PARAMS, tx.init(PARAMS), 5)
    # 96 and 48 entries at s (1 - (1 - t/4)³), the number removed rounded half to even.
    cubic = [1 - (1 - t / 4) ** 3 for t in (1, 2, 3, 4, 4)]
    assert seen == [[96 - round(0.5 * c * 96), 48 - round(0.9 * c * 48)] for c in cubic]
    for name in ("a", "b"):
        size = np.sort(np.abs(PARAMS[name]["kernel"]).ravel())
        left = np.abs(params[name]["kernel"]).ravel()
        np.testing.assert_array_equal(np.sort(left[left > 0]), size[-seen[-1]["ab".index(name)] :])
    tree = {"a": {"bias": 0.0, "kernel": 0.5}, "b": {"bias": 0, "kernel": 0.9}}
    assert end(gradual(tree)) == seen[-1] == [48, 5]
    assert end(gradual([("a/.*", 0.5), (".*", 0.75)], pattern=patterns.Channels())) == [48, 12]
    layers = (normal(10), (normal(20), normal(4)))
    tx = gradual([("0", 0.5), (".*", 0.75)], prunable=["0", "1/0"])
    state = tx.init(layers)
    assert jax.tree.map(lambda k: k[-1].tolist(), state.keep) == (5, (5, 0))


def test_rules_may_name_groups_of_units():
    groups = tuple(
        Group(name=k, size=n, slots=(Slot(path=f"{k}/kernel", axis=1, scored=True),)) for k, n in (("a", 12), ("b", 4))
    )
    tx = gradual([("a", 0.75), ("b", 0.5)], prunable=[], pattern=patterns.WholeUnits(groups))
    assert end(tx) == [3 * 8, 2 * 12]


def test_patterns_have_names():
    assert sum(end(gradual(0.75))) == sum(end(gradual(0.75, pattern="global"))) == 36
    assert end(gradual(0.75, pattern="uniform")) == [24, 12]
    assert end(gradual(0.75, pattern="erk")) == end(gradual(0.75, pattern=patterns.Weights("erk")))
    # Densities in proportion to (8 + 12) / 96 and (12 + 4) / 48, 36 entries together.
    assert end(gradual(0.75, pattern="erk")) == [20, 16]


@pytest.mark.parametrize("pattern", ["global", "uniform"])
def test_methods_of_selection_agree(pattern):
    ends = [history(step_of(tx), PARAMS, tx.init(PARAMS), 4) for tx in methods(pattern)]
    for _, params, _ in ends[1:]:
        np.testing.assert_array_equal(params["a"]["kernel"], ends[0][1]["a"]["kernel"])
    texts = [str(jax.make_jaxpr(step_of(tx))(PARAMS, tx.init(PARAMS))) for tx in methods(pattern)]
    assert "sort[" in texts[1]
    assert "sort[" not in texts[2]


def methods(pattern):
    return [gradual(0.75, pattern=pattern, method=m) for m in ("auto", "sampling", "bisection")]


REFUSED = {
    r"no sparsity for \['b/kernel'\], which are prunable; add a last rule": {"sparsity": [("a/.*", 0.5)]},
    "one count for all leaves; for sparsities of their own take a pattern": {
        "sparsity": [(".*", 0.5)],
        "pattern": "global",
    },
    "pattern 'erk' distributes one sparsity": {"sparsity": [(".*", 0.5)], "pattern": "erk"},
    "rules that match no leaf": {"sparsity": [("c/.*", 0.5), (".*", 0.5)]},
    r"sparsity is 1.5, but must lie in \[0, 1\)": {"sparsity": [("a/.*", 0.5), (".*", 1.5)]},
    r"sparsity is -0.1, but must lie in \[0, 1\)": {"sparsity": -0.1},
    "give a number, rules over paths": {"sparsity": "0.5"},
    "params and sparsity differ in structure": {"sparsity": {"a": 0.5, "c": 0.5}},
    "unknown allocation 'best'; choose one of": {"sparsity": 0.5, "pattern": "best"},
    "leaves 1.2 of every 4": {"sparsity": 0.7, "pattern": patterns.NofM(4)},
}


@pytest.mark.parametrize("message", REFUSED)
def test_sparsities_that_do_not_fit_are_refused(message):
    with pytest.raises(ValueError, match=message):
        gradual(**REFUSED[message]).init(PARAMS)


# --------------------------------------------------------------------------------------------------- traced sparsities


@pytest.mark.parametrize(
    "n", [1, 3, 10, 144, 65_535, 65_536, 84_000_000, 2**31 - 1, 2**31, 3_600_000_000, 2**40 + 12_345]
)
def test_traced_counts_are_those_of_exact_fractions(n):
    # A float32 of 2^-7 or more is a whole multiple of 2^-31, so nothing but the result is rounded.
    some = np.float32([0, 0.5, 0.25, 0.75, 0.9, 1 - 2**-24, *RNG.uniform(2**-7, 1, 200)])
    got = jax.jit(counting.keep_count, static_argnums=0)(n, jnp.asarray(some))
    if n >= 2**31:
        got = [(int(h) << 16) + int(low) for h, low in zip(got.high, got.low, strict=True)]
    assert [int(k) for k in got] == [n - round(fractions.Fraction(float(s)) * n) for s in some]


def test_counts_beyond_int32_are_words():
    shape = {"w": jax.ShapeDtypeStruct((60_000, 60_000), jnp.bfloat16)}
    rows = counting.on_host(patterns.Weights(), shape, {"w": True}, 0.9, [lambda s: s / 2, lambda s: s])
    assert isinstance(rows, counts.Words)
    assert ((rows.high.astype(np.int64) << 16) + rows.low).tolist() == [3_600_000_000, 1_980_000_000, 360_000_000]


TRACED = {
    "global": ({}, 0.75),
    "uniform": ({"pattern": "uniform"}, 0.75),
    "linear": ({"schedule": "linear", "begin": 1, "steps": 3}, 0.6),
    "a function": ({"schedule": lambda t, steps, end: end if t == steps else 0.1 * t}, 0.75),
    "channels": ({"pattern": patterns.Channels()}, 0.75),
    "2:4": ({"pattern": patterns.NofM(4)}, 0.5),
}


@pytest.mark.parametrize("name", TRACED)
@pytest.mark.parametrize("compiled", [True, False])
def test_hyperparameters_may_hold_the_sparsity(name, compiled):
    settings, sparsity = TRACED[name]
    expected, _, _ = history(
        step_of(gradual(sparsity, **settings)), PARAMS, gradual(sparsity, **settings).init(PARAMS), 5
    )
    tx = optax.inject_hyperparams(lambda sparsity: gradual(sparsity, **settings))(sparsity=sparsity)
    step = step_of(tx) if compiled else step_of(tx).__wrapped__
    got, params, state = history(step, PARAMS, tx.init(PARAMS), 5)
    assert got == expected
    assert got[0] != got[-1]
    transforms.check(params, state)


def test_a_sparsity_that_changes_on_the_way_needs_no_compilation():
    tx = optax.inject_hyperparams(lambda sparsity: gradual(sparsity))(sparsity=0.5)
    step = step_of(tx)
    seen, params, state = history(step, PARAMS, jax.jit(tx.init)(PARAMS), 3)
    state.hyperparams["sparsity"] = jnp.float32(0.9)
    more, _, _ = history(step, params, state, 2)
    cubic = [1 - (1 - t / 4) ** 3 for t in (1, 2, 3)]
    assert [sum(n) for n in seen + more] == [144 - round(0.5 * c * 144) for c in cubic] + [144 - 130] * 2
    assert step._cache_size() == 1
    # Members of a stack have sparsities of their own.
    states = trees.stack([tx.init(PARAMS)] * 2)
    states.hyperparams["sparsity"] = jnp.float32([0.5, 0.75])
    params = trees.stack([PARAMS] * 2)
    for _ in range(4):
        params, states = jax.vmap(step)(params, states)
    left = sum(np.count_nonzero(params[k]["kernel"], axis=(1, 2)) for k in ("a", "b"))
    assert left.tolist() == [72, 36]


def test_a_sparsity_may_follow_a_curve_of_the_updates():
    tx = optax.inject_hyperparams(transforms.prune_on_schedule, static_args=("steps", "begin", "every"))(
        optax.sgd(0.0), sparsity=lambda count: jnp.where(count < 3, 0.25, 0.5), steps=4, every=1, prunable=KERNELS
    )
    seen, _, _ = history(step_of(tx), PARAMS, tx.init(PARAMS), 4)
    assert sum(seen[-2]) == 144 - round(0.25 * (1 - 0.25**3) * 144)
    assert sum(seen[-1]) == 72


def test_what_cannot_be_traced_is_refused():
    with pytest.raises(ValueError, match=r"steps is a jax.Array.*static_args="):
        optax.inject_hyperparams(transforms.prune_on_schedule)(
            optax.sgd(0.0), sparsity=0.5, steps=4, prunable=KERNELS
        ).init(PARAMS)
    with pytest.raises(ValueError, match=r"computed on the host.*change it by transforms.restart"):
        gradual(jnp.float32(0.5), pattern="erk").init(PARAMS)
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\)"):
        gradual(jnp.float32(1.5))


# --------------------------------------------------------------------------------------------------------- new targets


@pytest.mark.parametrize(
    ("before", "after", "ends"),
    [
        ({"sparsity": 0.5}, {"sparsity": 0.9}, [72, 14]),
        ({"sparsity": 0.5, "pattern": "uniform"}, {"sparsity": 0.9}, [72, 10 + 5]),
        ({"sparsity": 0.5, "pattern": "erk"}, {"sparsity": 0.9, "pattern": "erk"}, [72, 14]),
        ({"sparsity": 0.5, "pattern": patterns.NofM(4)}, {"sparsity": 0.75}, [72, 36]),
        ({"sparsity": [("a/.*", 0.5), (".*", 0.25)]}, {"sparsity": [("a/.*", 0.75), (".*", 0.5)]}, [48 + 36, 24 + 24]),
    ],
    ids=["global", "uniform", "erk", "2:4", "rules"],
)
def test_a_schedule_starts_anew_from_where_it_ended(before, after, ends):
    tx = gradual(**before)
    step = step_of(tx)
    seen, params, state = history(step, PARAMS, tx.init(PARAMS), 5)
    assert sum(seen[-1]) == ends[0]
    old = params
    state = transforms.restart(state, steps=6, begin=2, schedule="linear", **after)
    seen, params, state = history(step, params, state, 9)
    left = [sum(n) for n in seen]
    assert left[:2] == [ends[0]] * 2
    assert left[-2:] == [ends[1]] * 2
    assert step._cache_size() == 1
    if before["sparsity"] == 0.5 and "pattern" not in before:
        # Four prunings over six updates, after 2, 3, 5 and 6 of them, linearly from 0.5 to 0.9.
        at = [0.5 + 0.4 * t / 6 for t in (2, 2, 3, 3, 5, 6, 6)]
        assert left == [72, 72, 72] + [144 - round(s * 144) for s in (at[1], at[2], at[3], at[4], at[5], at[6])]
    for name in ("a", "b"):
        gone = np.asarray(old[name]["kernel"] == 0)
        assert not params[name]["kernel"][gone].any()
    transforms.check(params, state)


def test_stacked_and_nested_states_restart():
    tx = optax.MultiSteps(optax.chain(optax.clip(1.0), gradual(0.5)), 1)
    step = jax.jit(jax.vmap(step_of(tx)))
    stacked = trees.stack([PARAMS, jax.tree.map(lambda p: p[::-1], PARAMS)])
    states = jax.vmap(tx.init)(stacked)
    for _ in range(4):
        stacked, states = step(stacked, states)
    states = transforms.restart(states, sparsity=0.75, steps=2)
    for _ in range(2):
        stacked, states = step(stacked, states)
    left = sum(np.count_nonzero(stacked[k]["kernel"], axis=(1, 2)) for k in ("a", "b"))
    assert left.tolist() == [36, 36]
    assert step._cache_size() == 1


def test_restarts_that_do_not_fit_are_refused():
    tx = gradual(0.5, pattern="erk")
    _, _, state = history(step_of(tx), PARAMS, tx.init(PARAMS), 4)
    restart = transforms.restart
    with pytest.raises(ValueError, match=r"different sparsities, but one number was given.*pattern='erk'"):
        restart(state, sparsity=0.9, steps=4)
    with pytest.raises(ValueError, match=r"sparsity 0.3 is below the present 0.5; what was pruned does not come back"):
        restart(state, sparsity=0.3, steps=4, pattern="erk")
    with pytest.raises(ValueError, match="steps is 0"):
        restart(state, sparsity=0.9, steps=0)
    with pytest.raises(ValueError, match="unknown schedule"):
        restart(state, sparsity=0.9, steps=1, schedule="cube", pattern="erk")
    with pytest.raises(ValueError, match="no schedule in this optimiser state"):
        restart(optax.adam(0.1).init(PARAMS), sparsity=0.9, steps=1)
    with pytest.raises(ValueError, match="the state is traced"):
        jax.jit(lambda s: restart(s, sparsity=0.9, steps=1, pattern="erk"))(state)
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\)"):
        restart(state, sparsity=1.0, steps=1, pattern="erk")
