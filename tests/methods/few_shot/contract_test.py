"""One contract for every few-shot method of the registry, and the one-shot scores by hand."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mvp_jax import compact
from mvp_jax.core import trees, units
from mvp_jax.core.types import Variables
from mvp_jax.methods import METHODS, few_shot, registry
from mvp_jax.methods.few_shot import ifp, metasoup, mvp, oneshot, reptile
from mvp_jax.train import probe
from tests import mlp, model_kinds

TUNING = few_shot.Tuning(steps=3, learning_rate=0.05, batch=8)
SEARCH = ifp.Settings(rounds=2, steps_per_round=2, tuning=TUNING)
DEFAULTS = few_shot.FewShotDefaults(
    tuning=TUNING,
    search=SEARCH,
    vote=mvp.Settings(k=3, doubt=0.5),
    weak=metasoup.Settings(members=2, steps=2),
    universal=reptile.Settings(outer_steps=3, tasks=2, inner_steps=2, threshold_every=2),
    examples=16,
)
CASES = {
    **{
        name: (METHODS[name], registry.line(name).settings(DEFAULTS)) for name in registry.suited("few_shot", mlp.mlp())
    },
    "mvp_sampled": (METHODS["mvp"], mvp.Settings(k=3, temperature=0.5, tuning=TUNING)),
    "mvp_untuned": (METHODS["mvp"], mvp.Settings(k=3, tuning=dataclasses.replace(TUNING, steps=0))),
    "mvp_adamw": (METHODS["mvp"], mvp.Settings(k=3, tuning=dataclasses.replace(TUNING, optimizer="adamw"))),
    "mvp_then_rounds": (METHODS["mvp"], mvp.Settings(k=3, rounds=1, start_ratio=0.25, tuning=TUNING)),
}
# What each compiles under `vmap` beyond what the others do, and one of every kind of start.
AT_ONCE = (
    "dense",
    "mvp",
    "mvp_select",
    "mvp_anchored",
    "mvp_weighted",
    "own_mask_mean_weights",
    "copy_random",
    "random_units",
    "oneshot_fisher",
    "ifp",
    "mvp_sampled",
    "metasoup",
    "reptile_iht",
)
DRAWS = ("random_units", "mvp_sampled", "copy_random")  # whose units hang on the key
UNPRUNED = ("dense",)
LEARNED = ("ifp", "ifp_10x", "mvp_then_rounds", "metasoup", "reptile_iht")  # whose units may differ with the key


def voters(template, seed=0, count=4):
    """Bank entries that keep as many units as the problem asks for, in its dense shapes."""
    rng = np.random.default_rng(seed)
    body = template.variables
    kept, members = [], []
    for _ in range(count):
        u = {n: jnp.asarray(rng.permutation(g.size) < template.sizes[n]) for g in template.groups for n in [g.name]}
        noisy = jax.tree.map(lambda p: p + 0.3 * jnp.asarray(rng.normal(size=p.shape), jnp.float32), body.params)
        slim = compact.cut(Variables(noisy, body.rest), template.groups, u)
        members.append(compact.embed(slim, template.groups, u, body))
        kept.append(u)
    saliency = jax.tree.map(lambda u: jnp.asarray(rng.uniform(0.5, 1.5, u.shape), jnp.float32), trees.stack(kept))
    near = jnp.asarray(rng.normal(size=count), jnp.float32)
    return few_shot.Neighbours(trees.stack(kept), trees.stack(members), saliency, near)


@functools.cache
def problem(seed=0, kind="mlp"):
    if kind == "mlp":
        model, variables, data = mlp.mlp(), mlp.variables(), mlp.data(seed=seed + 1)
    else:
        model, variables = model_kinds.made(kind)
        data = mlp.data(12, seed=seed + 1, shape=model.input_shape)
    template = few_shot.problem(model, variables, data, ratio=0.5)
    others = [mlp.data(12, seed=seed + i, shape=model.input_shape) for i in range(10, 14)]
    return dataclasses.replace(template, neighbours=voters(template, seed), sources=trees.stack(others))


@functools.cache
def pruned(case, seed=0, key=0):
    method, settings = CASES[case]
    return method(problem(seed), settings, jax.random.key(key))


def assert_contract(own, given, unpruned=False):
    """What every method owes: exact counts, masks of its units, zeros where pruned, finite and changed elsewhere."""
    wanted = {g.name: g.size for g in given.groups} if unpruned else given.sizes
    assert units.count(own.units) == wanted
    masks = units.expand(own.units, given.groups, given.variables.params)
    jax.tree.map(np.testing.assert_array_equal, own.masks, masks)
    before = trees.flatten(given.variables.params)
    pairs = zip(trees.flatten(own.variables.params).items(), jax.tree.leaves(own.masks), strict=True)
    pruned_entries, changed = 0, 0
    for (path, leaf), mask in pairs:
        leaf, mask = np.asarray(leaf), np.broadcast_to(mask, leaf.shape)
        assert leaf.shape == before[path].shape
        assert np.all(np.isfinite(leaf)), path
        assert not leaf[~mask].any(), path
        pruned_entries += (~mask).sum()
        changed += int((leaf[mask] != np.asarray(before[path])[mask]).sum())
    assert (pruned_entries == 0) == unpruned
    assert changed > 10


@pytest.mark.parametrize("case", CASES)
def test_contract(case):
    own, given = pruned(case), problem()
    assert_contract(own, given, case in UNPRUNED)
    logits, _ = given.model.apply(own.variables, given.train["x"])
    assert float(jnp.mean(jnp.argmax(logits, -1) == given.train["y"])) > 0.4  # chance is a third
    method, settings = CASES[case]
    again = method(given, settings, jax.random.key(0))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, own, again)))
    other = pruned(case, key=1)
    same_units = all(np.array_equal(own.units[n], other.units[n]) for n in own.units)
    if case in DRAWS:
        assert not same_units
    elif case not in LEARNED:
        assert same_units
    assert own.spent == again.spent == other.spent
    assert (own.spent.steps > 0) == (settings.tuning.steps > 0)
    assert own.spent.examples >= own.spent.steps * 8
    assert bool(own.alive)
    assert own.looks == {}
    if settings.tuning.steps:
        assert not np.array_equal(own.variables.params["offset"], other.variables.params["offset"])


@pytest.mark.parametrize("case", AT_ONCE)
def test_members_at_once_are_members_one_by_one(case):
    method, settings = CASES[case]
    seeds = (0, 1)
    stacked = trees.stack([(problem(s).train, problem(s).neighbours) for s in seeds])
    many = jax.vmap(
        lambda own, key: method(dataclasses.replace(problem(), train=own[0], neighbours=own[1]), settings, key)
    )(stacked, jnp.stack([jax.random.key(s) for s in seeds]))
    for s, got in zip(seeds, trees.unstack(many), strict=True):
        want = pruned(case, s, s)
        jax.tree.map(np.testing.assert_array_equal, got.units, want.units)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4), got.variables, want.variables)
    a, b = (pruned(case, s, s).variables.params["head"]["kernel"] for s in seeds)
    assert not np.allclose(a, b, atol=1e-2)


@pytest.mark.parametrize("name", ["mvp", pytest.param("ifp", marks=pytest.mark.slow)])
def test_contract_on_a_transformer(name):
    given = problem(kind="vit_mean")
    method, settings = CASES[name]
    assert_contract(method(given, settings, jax.random.key(0)), given)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mvp", "ifp", "oneshot_taylor"])
def test_contract_on_a_residual_network(name):
    given = problem(kind="option_a")
    method, settings = CASES[name]
    own = method(given, settings, jax.random.key(0))
    assert_contract(own, given)
    moved = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), own.variables.rest, given.variables.rest)
    assert min(jax.tree.leaves(moved)) > 0  # every statistic was estimated anew


def test_looks_are_the_model_on_the_way():
    """A look after n steps is what the method gives when it ends after n steps; for IFP a search of that budget."""
    for name in ("mvp", "dense", "ifp"):
        looking = dataclasses.replace(DEFAULTS, tuning=dataclasses.replace(TUNING, steps=5, looks=(0, 2, 5)))
        given, settings = problem(), registry.line(name).settings(looking)
        got = METHODS[name](given, settings, jax.random.key(0))
        assert set(got.looks) == ({2, 5} if name == "ifp" else {0, 2, 5})  # IFP has no model before its first round
        for at, look in got.looks.items():
            if name == "ifp":
                short = ifp.with_budget(settings, at)
                assert short.total_steps == at
            else:
                short = dataclasses.replace(settings, tuning=dataclasses.replace(TUNING, steps=at))
            want = METHODS[name](given, short, jax.random.key(0))
            kept = few_shot.all_kept(given) if name == "dense" else given
            slim = compact.cut(want.variables, kept.groups, want.units, sizes=kept.sizes)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), look.variables, slim)
            assert look.spent == want.spent
        first, last = got.looks[min(got.looks)].variables, got.looks[5].variables
        assert not np.array_equal(first.params["offset"], last.params["offset"])
    with pytest.raises(ValueError, match=r"looks are numbers of steps from 0 to steps=3, got \(4,\)"):
        dataclasses.replace(TUNING, looks=(4,))


def test_costs_count_what_passes_through():
    """Of 24 examples, a batch of 8; 4 neighbours that are ranked take a third of an example each."""
    ranked = 4 * 24 // 3
    assert pruned("random_units").spent == pruned("oneshot_magnitude").spent == (3, 24, 3, 0)
    # Gradients of 16 examples; a forward pass over them is a third of that.
    assert pruned("oneshot_fisher").spent == pruned("oneshot_taylor").spent == (3, 16 + 24, 3, 0)
    assert pruned("oneshot_activation").spent == (3, 16 // 3 + 24, 3, 0)
    assert pruned("own_mask_mean_weights").spent == (3, ranked + 24 + 24, 3, 0)
    assert pruned("mvp").spent == pruned("copy_random").spent == (3, ranked + 24, 3, 0)
    # Four copies, three votes and three shares, with two passes over all examples for each.
    assert pruned("mvp_select").spent == (3, ranked + 10 * 2 * 24 // 3 + 24, 3, 0)
    # Two weak members of two steps, at once; they vote once.
    assert pruned("metasoup").spent == (3 + 4, ranked + 4 * 8 + 24, 3 + 2, 1)
    assert pruned("ifp").spent == (2 * 2 + 3, 7 * 8, 7, 0)
    # Three outer steps on two tasks, at once, for two inner steps each; nothing if all targets share what was learned.
    assert pruned("reptile_iht").spent == (12 + 3, 12 * 8 + 24, 6 + 3, 3)
    learned = reptile.learn(problem(), CASES["reptile_iht"][1], jax.random.key(7))
    given = dataclasses.replace(problem(), universal=learned, sources=None)
    assert METHODS["reptile_iht"](given, CASES["reptile_iht"][1], jax.random.key(0)).spent == (3, 24, 3, 0)


@pytest.mark.parametrize("name", registry.TABLES["few_shot"])
def test_a_wrong_kind_of_problem_or_settings_is_refused(name):
    for given, settings, what in (
        ({"x": 0}, CASES["mvp"][1], "FewShotProblem"),
        (problem(), {"k": 3}, "Settings"),
        (problem(), TUNING, "Settings"),
    ):
        with pytest.raises(ValueError, match=what):
            METHODS[name](given, settings, jax.random.key(0))


def test_a_group_that_is_not_pruned_stays_whole():
    model = mlp.mlp()
    given = few_shot.problem(model, mlp.variables(), mlp.data(), ratio=0.5, groups=model.groups[1:])
    own = METHODS["ifp"](given, SEARCH, jax.random.key(0))
    assert {n: len(u) for n, u in own.units.items()} == {"b": 6}
    assert_contract(own, given)
    assert np.asarray(own.variables.params["one"]["kernel"]).all()


def test_bad_problems_and_settings_are_refused():
    model, variables, data = mlp.mlp(), mlp.variables(), mlp.data()
    make = functools.partial(few_shot.problem, model, variables, ratio=0.5)
    with pytest.raises(ValueError, match="labels must be 0 to 2 for 3 classes, got 0 to 3"):
        make({"x": data["x"], "y": data["y"].at[0].set(3)})
    with pytest.raises(ValueError, match="labels must be 0 to 2 for 3 classes, got -1 to 2"):
        make({"x": data["x"], "y": data["y"].at[0].set(-1)})
    with pytest.raises(ValueError, match="no examples"):
        make({n: v[:0] for n, v in data.items()})
    for ratio in (-0.1, 1.0, 1.5, float("nan")):
        with pytest.raises(ValueError):
            make(data, ratio=ratio)
    for wrong, message in (
        ({"steps": -1}, "steps must be >= 0"),
        ({"batch": 0}, "batch >= 1"),
        ({"learning_rate": 0.0}, "learning_rate must be positive, got 0.0"),
        ({"learning_rate": float("nan")}, "learning_rate must be positive"),
        ({"optimizer": "lion"}, "unknown optimizer 'lion'"),
    ):
        with pytest.raises(ValueError, match=message):
            few_shot.Tuning(**wrong)
    with pytest.raises(ValueError, match=r"unknown score 'snip'; choose one of"):
        oneshot.Settings(score="snip")
    with pytest.raises(ValueError, match="examples must be >= 1, got 0"):
        oneshot.Settings(examples=0)
    for wrong, message in (
        ({"rounds": 0}, "rounds and steps_per_round must be >= 1, got 0"),
        ({"steps_per_round": 0}, "for no training before the cut use one-shot"),
        ({"schedule": "linear"}, "unknown schedule 'linear'"),
        ({"score": "random"}, "unknown score 'random'"),
    ):
        with pytest.raises(ValueError, match=message):
            ifp.Settings(**wrong)
    with pytest.raises(ValueError, match="none; pass neighbours"):
        METHODS["mvp"](make(data), mvp.Settings(), jax.random.key(0))
    with pytest.raises(ValueError, match="Reptile learns from source tasks, but the problem has none"):
        METHODS["reptile_iht"](make(data), reptile.Settings(), jax.random.key(0))


def test_the_head_of_the_pretrained_model_does_not_count():
    model, data = mlp.mlp(), mlp.data()
    many_classes = mlp.variables(classes=7)
    given = [few_shot.problem(model, v, data, ratio=0.5) for v in (mlp.variables(), many_classes)]
    heads = [g.variables.params["head"]["kernel"].shape for g in given]
    assert heads == [(6, 3), (6, 3)]
    assert not any(np.asarray(g.variables.params["head"]["kernel"]).any() for g in given)


@pytest.mark.parametrize("score", ["magnitude", "activation", "taylor", "fisher"])
def test_one_shot_scores_are_those_written_in_numpy(score):
    given = problem()
    got = oneshot.scores(given, jax.random.key(0), score=score, examples=16, l2=0.1)
    fitted = probe.fit_head(given.model, given.variables, given.train, l2=0.1)
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), fitted.params)
    x, y = np.asarray(given.train["x"], np.float64)[:16], np.asarray(given.train["y"])[:16]
    _, grads, gates, active = mlp.in_numpy(p, x, y)
    for group, layer in (("a", "one"), ("b", "two")):
        expected = {
            "magnitude": np.sqrt((p[layer]["kernel"] ** 2).sum(0) + p[layer]["bias"] ** 2),
            "activation": active[group].mean(0),
            "taylor": ((p[layer]["kernel"] * grads[layer]["kernel"]).sum(0) + p[layer]["bias"] * grads[layer]["bias"])
            ** 2,
            "fisher": (gates[group] ** 2).mean(0),
        }[score]
        np.testing.assert_allclose(got[group], expected, rtol=5e-3, atol=1e-8)
        assert np.ptp(expected) > 0.1 * expected.mean() > 0
    best = {n: sorted(np.argsort(-np.asarray(s))[: given.sizes[n]].tolist()) for n, s in got.items()}
    settings = oneshot.Settings(score=score, examples=16, tuning=dataclasses.replace(TUNING, probe_l2=0.1))
    kept = oneshot.start(given, settings, jax.random.key(0)).units
    assert {n: np.flatnonzero(u).tolist() for n, u in kept.items()} == best
