"""Wrappers on parameters over several devices: layouts are kept, nothing is gathered, one compilation serves."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from mvp_jax.core import patterns
from mvp_jax.train import transforms

RNG = np.random.default_rng(0)
KINDS = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}
PARAMS = {
    "bias": jnp.ones(16),
    "kernel": jnp.asarray(RNG.standard_normal((64, 16)), jnp.float32),
    "out": jnp.asarray(RNG.standard_normal((16, 32)), jnp.float32),
}
PLACES = {"kernel": ["d", None], "out": [None, "d"]}
MASKS = {"bias": jnp.array(True), "kernel": PARAMS["kernel"] > 0, "out": PARAMS["out"] > 0}


def spread(kind, params=PARAMS):
    mesh = jax.make_mesh((jax.device_count(),), ("d",), axis_types=(KINDS[kind],))
    spec = {"bias": P(), "kernel": P("d"), "out": P(None, "d")}
    return {k: jax.device_put(p, NamedSharding(mesh, spec[k])) for k, p in params.items()}


def wrappers():
    settings = {"steps": 4, "prunable": ["kernel", "out"]}
    return {
        "keep": transforms.keep_mask(optax.adam(0.01), MASKS),
        "global": transforms.prune_on_schedule(optax.adam(0.01), sparsity=0.75, **settings),
        "uniform": transforms.prune_on_schedule(optax.adam(0.01), sparsity=0.75, pattern="uniform", **settings),
        "2:4": transforms.prune_on_schedule(
            optax.adam(0.01), sparsity=0.5, pattern=patterns.NofM(4, axis=1), **settings
        ),
    }


def step_of(tx):
    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.tree.map(lambda p: 0.1 * p, params), state, params)
        return optax.apply_updates(params, updates), state

    return step


def dims(sharding):
    return [axis or None for axis in sharding.spec] + [None] * (2 - len(sharding.spec))


def gathered(text, least):
    """The lines of a compiled program in which a whole leaf, or more, goes from device to device."""
    found = []
    for line in text.splitlines():
        match = re.search(r"= (.*?) (?:all-gather|all-to-all|all-reduce|collective-permute)(?:-start)?\(", line)
        sizes = re.findall(r"\w+\[([\d,]*)\]", match[1]) if match else []
        if any(math.prod(int(n) for n in size.split(",") if n) >= least for size in sizes):
            found.append(line.strip())
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", wrappers())
def test_spread_parameters_stay_where_they_lie(kind, name):
    tx = wrappers()[name]
    params = spread(kind)
    compiled = []
    listen = lambda event, _, **__: compiled.append(event) if event.endswith("backend_compile_duration") else None  # noqa: E731
    state, step = tx.init(params), step_of(tx)
    for k in ("kernel", "out"):
        assert dims(state.masks[k].sharding) == PLACES[k]
    params, state = step(params, state)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for _ in range(4):
            params, state = step(params, state)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert not compiled
    text = step.lower(params, state).compile().as_text()
    for k in ("kernel", "out"):
        assert dims(params[k].sharding) == PLACES[k]
        assert dims(state.masks[k].sharding) == PLACES[k]
    assert not gathered(text, least=PARAMS["out"].size)
    alone, expected = PARAMS, tx.init(PARAMS)
    for _ in range(5):
        alone, expected = step(alone, expected)
    for x, y in zip(jax.tree.leaves((params, state.masks)), jax.tree.leaves((alone, expected.masks)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
    assert 0 < np.count_nonzero(params["kernel"]) < params["kernel"].size


@pytest.mark.parametrize("kind", KINDS)
def test_members_on_their_own_devices_start_inside_shard_map(kind):
    mesh = jax.make_mesh((jax.device_count(),), ("d",), axis_types=(KINDS[kind],))
    members = {"w": jnp.asarray(RNG.standard_normal((8 * jax.device_count(), 6)), jnp.float32)}
    spread = jax.device_put(members, NamedSharding(mesh, P("d")))
    tx = transforms.prune_on_schedule(optax.adam(0.01), sparsity=0.75, steps=2, prunable=["w"])

    def train(params):
        state = tx.init(params)
        for _ in range(3):
            updates, state = tx.update(jax.tree.map(lambda p: 0.1 * p, params), state, params)
            params = optax.apply_updates(params, updates)
        return params

    got = np.asarray(jax.jit(jax.shard_map(train, mesh=mesh, in_specs=P("d"), out_specs=P("d")))(spread)["w"])
    for i in range(jax.device_count()):
        part = slice(8 * i, 8 * i + 8)
        alone = jax.jit(train)({"w": members["w"][part]})["w"]
        np.testing.assert_allclose(got[part], alone, rtol=1e-6)
        assert np.count_nonzero(alone) == 12
