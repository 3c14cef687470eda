"""K members trained at once are K runs of the same seeds, however they are mapped and wherever they live."""

import functools
import itertools
import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mvp_jax import train
from mvp_jax.core import vote
from mvp_jax.data.loading.prefetch import prefetch
from mvp_jax.parallel import auto, fanout, mapping
from mvp_jax.storage import checkpoint
from mvp_jax.train import population
from tests import members
from tests.members import check, distance

TWO = functools.cache(lambda shape: population.mesh(*shape, devices=jax.devices()[:2]))


HOW = {"vmap": {"mapping": "vmap"}, "map": {"mapping": "map"}, "two": {"mapping": "map", "chunk": 2},
       "loop": {"mapping": "loop"}}  # fmt: skip
QUICK = {("resnet", "vmap"), ("resnet", "two"), ("vit", "vmap"), ("vit", "loop"), ("text", "map")}


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        pytest.param(kind, how, marks=() if (kind, how) in QUICK else pytest.mark.slow)
        for kind in members.KINDS
        for how in HOW
    ],
)
def test_members_together_are_members_apart(kind, how):
    check(kind, 3, **HOW[how])


@pytest.mark.parametrize(
    ("shape", "mapping_"),
    [
        ((2, 1), "map"),
        ((2, 1), "loop"),
        ((1, 2), "map"),
        *(pytest.param(*p, marks=pytest.mark.slow) for p in (((2, 1), "vmap"), ((1, 2), "vmap"), ((1, 2), "loop"))),
    ],
    ids=str,
)
def test_on_several_devices_too(shape, mapping_):
    check("resnet", 3, mesh=TWO(shape), mapping=mapping_)


def test_the_order_of_the_members_changes_nothing():
    model, tx, one, keys, own, data = members.problem("resnet", 3)
    order = np.array([2, 0, 1])  # in chunks of two, other members go together than before
    mine = jax.tree.map(lambda leaf: leaf[order], (own, data))
    states = population.create(one, keys[order], mine[0])
    states, metrics = population.fit(members.recipe(model, tx), states, mine[1], members.STEPS, mapping="map", chunk=2)
    alone, each = jax.tree.map(lambda leaf: leaf[order], members.apart("resnet", 3))
    assert distance((states.variables, states.opt_state), (alone.variables, alone.opt_state)) < 2e-5
    assert distance(metrics, each) < 2e-5
    assert distance(states.variables, members.apart("resnet", 3)[0].variables) > 1e-2


def test_native_convolutions_are_looped_over_on_the_host():
    check("resnet", 3, "native", mapping="auto")
    model, tx, one, keys, own, data = members.problem("resnet", 3, "native")
    step = train.make_step(model, train.cross_entropy, tx)
    found = population.plan(step, population.create(one, keys, own), data)
    assert (found.mapping, "convolutions" in found.why) == ("loop", True)


def test_advance_takes_the_steps_of_fit():
    model, tx, one, keys, own, data = members.problem("vit", 3)
    step = train.make_step(model, train.cross_entropy, tx, augment=members.augment)
    on_host = {name: np.asarray(leaf) for name, leaf in data.items()}

    def batches(states):
        """Read on the host: what a step sees is a function of key and step, so it is known beforehand."""
        for t in range(members.STEPS):
            later = states._replace(step=states.step + t)
            chosen = jax.vmap(lambda s: train.next_batch(s, members.EXAMPLES, members.BATCH))(later)
            at = np.arange(3)[:, None], np.asarray(chosen)[:3]
            yield {name: leaf[at] for name, leaf in on_host.items()}

    found = {}
    for where in (None, TWO((1, 2))):
        states = population.create(one, keys, own, mesh=where)
        place = jax.device_put if where is None else functools.partial(population.place_batches, mesh=where)
        ahead = prefetch(batches(jax.tree.map(jnp.copy, states)), place=place)
        for batch in ahead:
            states, metrics = population.advance(step, states, batch, mesh=where)
        assert metrics["loss"].shape == states.step.shape
        found[where] = population.members(states, 3)
    alone = []
    for i in range(3):
        mine = jax.tree.map(lambda leaf, i=i: leaf[i], (own, data))
        state = one._replace(key=keys[i], settings=mine[0])
        alone.append(train.fit(members.recipe(model, tx, "constant"), state, mine[1], members.STEPS)[0])
    alone = jax.tree.map(lambda *leaves: jnp.stack(leaves), *alone)
    for states in found.values():
        assert distance(states.variables, alone.variables) < 2e-5
    assert distance(alone.variables.params, jax.tree.map(lambda p: p[None], one.variables.params)) > 1e-2


def test_members_may_share_data_and_see_their_own_part_of_it():
    model, tx, one, keys, own, data = members.problem("text", 3)
    common = jax.tree.map(lambda leaf: jnp.concatenate(list(leaf)), data)
    index = jnp.arange(3 * members.EXAMPLES).reshape(3, -1)
    (expected, _), results = members.apart("text", 3), []
    recipe = members.recipe(model, tx)
    for where in (None, TWO((2, 1))):
        states = population.create(one, keys, own, mesh=where)
        states, _ = population.fit(recipe, states, common, members.STEPS, index=index, mesh=where)
        results.append(population.members(states, 3).variables)
        assert distance(results[-1], expected.variables) < 2e-5
    states, _ = population.fit(recipe, population.create(one, keys, own), common, members.STEPS, index=index[::-1])
    assert distance(states.variables, expected.variables) > 1e-3


def test_a_member_that_diverges_is_frozen_reported_and_has_no_vote():
    model, tx, one, keys, own, data = members.problem("text", 3)
    wild = own._replace(learning_rate=own.learning_rate.at[1].set(1e38), steps=None)
    calm = own._replace(steps=None)
    fit = functools.partial(population.fit, members.recipe(model, tx, "constant"), data=data, steps=6)
    for how in ({"mapping": "vmap"}, {"mapping": "map", "mesh": TWO((2, 1))}):
        make = functools.partial(population.create, one, keys, mesh=how.get("mesh"))
        states, metrics = fit(states=make(wild), **how)
        expected, _ = fit(states=make(calm), **how)
        assert list(population.diverged(states, 3)) == [1]
        frozen_at = population.diverged(states, 3)[1]
        assert 0 <= frozen_at < 6
        assert np.asarray(population.voters(states)).tolist() == [1, 0, 1] + [0.0] * (len(states.alive) - 3)
        assert np.asarray(metrics["taken"])[:3].tolist() == [6, frozen_at, 6]
        assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(states.variables))
        for i in (0, 2):
            pair = (jax.tree.map(lambda leaf, i=i: np.asarray(leaf)[i], s.variables) for s in (states, expected))
            assert distance(*pair) < 1e-6
        mean = vote.soup(states.variables.params, weights=population.voters(states))
        by_hand = jax.tree.map(lambda p: (np.asarray(p)[0] + np.asarray(p)[2]) / 2, states.variables.params)
        assert distance(mean, by_hand) < 1e-6
        stopped, _ = fit(states=states, **how)
        assert population.diverged(stopped, 3) == {1: frozen_at}


def test_a_loss_that_is_not_finite_leaves_the_state_as_it_was():
    model, tx, one, keys, own, data = members.problem("resnet", 3)
    bad = {**data, "x": data["x"].at[2].set(jnp.nan)}
    states, metrics = population.fit(
        members.recipe(model, tx), population.create(one, keys, own), bad, 3, mapping="map"
    )
    assert population.diverged(states) == {2: 0}
    begun = jax.tree.map(lambda leaf: leaf[None], (one.variables, one.opt_state.inner_state))
    mine = jax.tree.map(lambda leaf: leaf[2:], (states.variables, states.opt_state.inner_state))
    assert distance(mine, begun) == 0.0
    assert metrics["taken"].tolist() == [3, 3, 0]
    assert bool(jnp.all(jnp.isfinite(metrics["loss"])))


def compilations():
    return mapping._compiled._cache_size() + mapping._moved._cache_size()


@pytest.mark.parametrize("mapping_", ["vmap", "map", "loop"])
def test_one_compilation_serves_all_seeds_rates_steps_and_rounds(mapping_):
    model, tx, one, keys, own, data = members.problem("text", 3)
    fit = functools.partial(population.fit, members.recipe(model, tx), mapping=mapping_)
    states, _ = fit(population.create(one, keys, own), data, 3)
    before = compilations()
    for seed, steps, rate in ((1, 4, 0.3), (2, 1, 0.01)):
        other = own._replace(learning_rate=own.learning_rate * rate, steps=own.steps + steps)
        shuffled = jax.tree.map(lambda leaf: leaf[::-1], data)
        states = population.create(one, jax.random.split(jax.random.key(seed), 3), other)
        for _ in range(2):
            states, _ = fit(states, shuffled, steps)
    assert compilations() == before
    fit(population.create(one, keys, own), jax.tree.map(lambda leaf: leaf[:, :8], data), 3)
    assert compilations() == before + 1  # the counter does count


@pytest.mark.parametrize("mapping_", ["vmap", "map", "loop"])
def test_the_population_is_updated_in_place(mapping_):
    model, tx, one, keys, own, data = members.problem("text", 3)
    states = population.create(one, keys, own)
    leaf, begun = jax.tree.leaves(states.variables)[0], jax.tree.leaves(one.variables)[0]
    population.fit(members.recipe(model, tx), states, data, 2, mapping=mapping_)
    assert leaf.is_deleted()
    assert not begun.is_deleted()
    # The compiler's word: what comes out takes the place of what went in.
    step = population._Stepped(train.make_step(model, train.cross_entropy, tx))
    states, batches = population.create(one, keys, own), jax.tree.map(lambda v: v[:, : members.BATCH], data)
    chunk = 3 if mapping_ == "vmap" else 1
    found = mapping.compiled(states, (batches,), (), function=step, chunk=chunk, where=None).memory_analysis()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(states))
    assert size > 5_000
    assert found.alias_size_in_bytes >= 0.98 * size  # masks and settings that pass through count too
    if chunk == 1:  # nor is there a copy of all members on the way
        text = mapping.compiled(states, (batches,), (), function=step, chunk=chunk, where=None).as_text()
        assert not re.findall(r"f32\[3,[\d,]+\]\S* copy\(", text)
    assert found.output_size_in_bytes < size + 1500  # metrics, and a table of what there is


@pytest.mark.parametrize("conv", ["native", "im2col"])
@pytest.mark.parametrize("mapping_", ["vmap", "map"])
def test_devices_with_members_of_their_own_say_nothing_to_each_other(mapping_, conv):
    model, tx, one, keys, own, data = members.problem("resnet", 4, conv)
    step = population._Stepped(train.make_step(model, train.cross_entropy, tx))
    for shape in ((2, 1), (1, 2)):
        where = TWO(shape)
        states = population.create(one, keys, own, mesh=where)
        batches = population.place_batches(jax.tree.map(lambda v: v[:, : members.BATCH], data), mesh=where)
        chunk = 4 if mapping_ == "vmap" else 1
        text = mapping.compiled(states, (batches,), (), function=step, chunk=chunk, where=where).as_text()
        gathers, sums = (len(re.findall(rf"\b{name}(?:-start)?\(", text)) for name in ("all-gather", "all-reduce"))
        if shape == (2, 1):
            assert (gathers, sums) == (0, 0)
        else:
            assert sums > 0  # gradients and batch statistics over the shared batch
            assert gathers == 0 or (mapping_, conv) == ("vmap", "native")


def test_a_vote_across_devices_takes_one_collective():
    _, _, one, keys, own, _ = members.problem("resnet", 4)
    states = population.create(one, keys, own, mesh=TWO((2, 1)))
    weights = population.voters(states)
    ballots = jax.jit(lambda p: jax.tree.map(lambda leaf: leaf > 0, p))(states.variables.params)
    for election, of in (
        (lambda p, w: vote.soup(p, weights=w), states.variables.params),
        (lambda b, w: vote.support(b, weights=w), ballots),
        (lambda b, w: vote.elect(b, 3, scope="leaf", weights=w), ballots),
    ):
        text = jax.jit(election).lower(of, weights).compile().as_text()
        assert len(re.findall(r"= .*\ball-reduce(?:-start)?\(", text)) == 1
        assert "all-gather" not in text
    got = jax.jit(lambda b: vote.support(b))(ballots)
    assert distance(got, jax.tree.map(lambda b: np.asarray(b, np.float32).mean(0), ballots)) < 1e-6


def test_a_population_continues_on_another_number_of_devices(tmp_path):
    model, tx, one, keys, own, data = members.problem("text", 3)
    fit = functools.partial(population.fit, members.recipe(model, tx), data=data, steps=1)
    whole, _ = fit(states=population.create(one, keys, own), total=own.steps[0])
    whole = fit(states=whole, total=own.steps[0])[0].variables
    for here, there in ((None, TWO((2, 1))), (TWO((2, 1)), None), (TWO((2, 1)), TWO((1, 2)))):
        folder = tmp_path / f"{here is None}{there is None}"
        states, _ = fit(states=population.create(one, keys, own, mesh=here), total=own.steps[0], mesh=here)
        with checkpoint.Checkpoints(folder) as saved:
            saved.save(1, states)
        with checkpoint.Checkpoints(folder) as saved:
            # As a new process would: keys and weights of `like` do not count.
            like = population.create(one, keys[::-1], own, mesh=there)
            states = population.restore(saved, like, count=3)
            with pytest.raises(ValueError, match="9 are wanted"):
                population.restore(saved, like, count=9)
        assert [d.id for d in sorted(states.alive.sharding.device_set, key=lambda d: d.id)] == (
            [0, 1] if there else [0]
        )
        states, _ = fit(states=states, total=own.steps[0], mesh=there)
        assert distance(population.members(states, 3).variables, whole) < 1e-5
        assert np.asarray(states.alive).tolist() == [True] * 3 + [False] * (len(states.alive) - 3)
    assert distance(whole.params, jax.tree.map(lambda p: p[None], one.variables.params)) > 1e-2


def test_what_a_plan_looks_at(monkeypatch):
    def heavy(w, x):
        return jnp.sum(jnp.sin(jnp.tanh(x @ w) @ w.T) @ w)

    w, x = jax.ShapeDtypeStruct((4, 256, 256), "float32"), jax.ShapeDtypeStruct((4, 2048, 256), "float32")
    small = population.plan(lambda x: x + 1, jnp.ones((4, 8)))
    assert (small.mapping, small.chunk) == ("vmap", None)
    assert "little" in small.why
    assert population.plan(heavy, w, x).mapping == "map"
    assert population.plan(heavy, w, x, mesh=None).why.startswith("in turn")
    one = population.plan(
        heavy, jax.ShapeDtypeStruct((1, 256, 256), "float32"), jax.ShapeDtypeStruct((1, 9, 256), "float32")
    )
    assert (one.mapping, one.why) == ("loop", "one member on each device")  # whose steps the host may loop over
    # As on an accelerator: what fits is done at once, what does not in the largest chunks that do.
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert population.plan(heavy, w, x, limit=2**40).mapping == "vmap"
    needs = auto.memory(
        fanout._Plain(heavy), (), (w, x), (), mapping="vmap", chunk=None, where=None
    )  # fmt: skip
    assert needs.arguments == 4 * (4 * 256 * 256 + 4 * 2048 * 256)
    assert needs.temporary > 4 * 4 * 2048 * 256
    found = population.plan(heavy, w, x, limit=needs.arguments + needs.fresh + needs.temporary // 2)
    assert (found.mapping, found.chunk) == ("map", 2)
    assert population.plan(heavy, w, x, limit=1).chunk == 1
    convolve = jax.jit(lambda x: jax.lax.conv_general_dilated_patches(x, (2, 2), (1, 1), "VALID"))
    assert population.plan(convolve, jnp.ones((3, 1, 1, 4, 4)), limit=2**40).mapping == "map"


def test_map_needs_the_memory_of_one_member():
    model, tx, one, _, _, _ = members.problem("vit", 3)
    step = population._Stepped(train.make_step(model, train.cross_entropy, tx))
    needs = {}
    for name in ("vmap", "map"):
        for k in (2, 10):
            states = jax.eval_shape(lambda k=k: population.create(one, jax.random.split(jax.random.key(0), k)))
            batch = {
                "x": jax.ShapeDtypeStruct((k, 64, 4, 4, 1), "float32"),
                "y": jax.ShapeDtypeStruct((k, 64), "int32"),
            }
            found = auto.memory(step, states, (batch,), (), mapping=name, chunk=None, where=None)
            needs[name, k] = found.temporary
    grows = {name: needs[name, 10] - needs[name, 2] for name in ("vmap", "map")}
    assert grows["vmap"] > 8 * 50_000
    assert grows["map"] < grows["vmap"] / 10


def test_what_is_no_population_is_refused():
    model, tx, one, keys, own, data = members.problem("text", 3)
    with pytest.raises(ValueError, match=r"no \['rate'\]; their fields are \['learning_rate'"):
        population.run_settings(3, rate=0.1)
    with pytest.raises(ValueError, match="one for each of 3 members"):
        population.run_settings(3, learning_rate=[0.1, 0.2])
    for name, value in (("dropout", 1.0), ("label_smoothing", -0.1), ("augment", 1.5), ("classes", 0),
                        ("learning_rate", float("nan"))):  # fmt: skip
        with pytest.raises(ValueError, match=f"{name} is"):
            population.run_settings(3, **{name: value})
    with pytest.raises(ValueError, match="settings are not those of 2 members"):
        population.create(one, keys[:2], own)
    with pytest.raises(ValueError, match="state has 3 members, but there are 2 keys"):
        population.create(population.create(one, keys, own), keys[:2])
    states, recipe = population.create(one, keys, own), train.Recipe(model=model, tx=tx)
    with pytest.raises(ValueError, match="unknown mapping 'pmap'"):
        population.fit(recipe, states, data, 1, mapping="pmap")
    with pytest.raises(ValueError, match="needs a learning rate"):
        population.fit(recipe, population.create(one, keys), data, 1)
    with pytest.raises(ValueError, match="lead with one member axis"):
        population.fit(recipe, states, jax.tree.map(lambda leaf: leaf[:2], data), 1)
    step = train.make_step(model, train.cross_entropy, optax.sgd(0.1))
    plain = population.create(train.create(one.variables, optax.sgd(0.1), keys[0]), keys, own)
    with pytest.raises(ValueError, match=r"have \['learning_rate', 'weight_decay'\].*inject_hyperparams"):
        population.advance(step, plain, data)


def test_what_the_settings_say_is_done():
    """Each matter against NumPy or against leaving it out."""
    logits = np.random.default_rng(0).normal(size=(5, 4))
    labels = np.array([0, 1, 2, 1, 0])
    for smoothing, classes in ((0.0, 3), (0.3, 3), (0.2, 4)):
        own = logits[:, :classes]
        logp = own - np.log(np.exp(own).sum(1, keepdims=True))
        target = (1 - smoothing) * np.eye(classes)[labels] + smoothing / classes
        expected = -(target * logp).sum(1)
        assert np.ptp(expected) > 0.1
        got = train.cross_entropy(jnp.asarray(logits), jnp.asarray(labels), smoothing=smoothing, classes=classes)
        np.testing.assert_allclose(got, expected, rtol=1e-5)
    model, tx, one, keys, _, data = members.problem("text", 3)
    # The neutral values are what settings without the field do (augmenting all, if there is an augmentation).
    neutral = {"weight_decay": 0.0, "label_smoothing": 0.0, "dropout": 0.0, "augment": 1.0, "classes": 3, "steps": 3}
    changed = [("weight_decay", 0.2), ("label_smoothing", 0.4), ("dropout", 0.5), ("augment", 0.0), ("augment", 0.5),
               ("classes", 2), ("steps", 2)]  # fmt: skip
    k = 2 + len(changed)  # two with nothing changed, then one with each
    fields = {name: [value] * 2 + [new if name == n else value for n, new in changed]
              for name, value in neutral.items()}  # fmt: skip

    def run(settings):
        states = population.create(one, jnp.stack([keys[0]] * k), settings)
        same = jax.tree.map(lambda leaf: jnp.stack([leaf[0]] * k), data)
        return population.fit(members.recipe(model, tx), states, same, 3)[0].variables.params

    with_all = run(population.run_settings(k, learning_rate=0.1, **fields))
    without = run(population.run_settings(k, learning_rate=0.1))
    first, second, *others = (jax.tree.map(lambda leaf, i=i: leaf[i], with_all) for i in range(k))
    assert distance(first, second) == 0.0
    assert distance(first, jax.tree.map(lambda leaf: leaf[0], without)) < 1e-6
    for change, other in zip(changed, others, strict=True):
        assert distance(first, other) > 1e-5, change
    assert all(distance(a, b) > 1e-6 for a, b in itertools.combinations(others, 2))


def test_the_chosen_mapping_is_said(caplog):
    model, tx, one, keys, own, data = members.problem("text", 3)
    with caplog.at_level("INFO", logger="mvp_jax.parallel.auto"):
        population.fit(train.Recipe(model=model, tx=tx, batch=3), population.create(one, keys, own), data, 1)
    assert re.search(r"^vmap: all at once: a member computes little, \d", caplog.messages[-1])


@pytest.mark.slow
def test_five_members_on_eight_devices():
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    run = subprocess.run(
        [sys.executable, "-m", "tests.devices_worker"], env=env, cwd=pathlib.Path(__file__).parents[2],
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.count("ok") == 5
