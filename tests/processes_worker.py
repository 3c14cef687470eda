"""What each process of `processes_test.py` does: `python -m tests.processes_worker WHAT INDEX COUNT PORT FOLDER`."""

import functools
import pathlib
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mvp_jax import train
from mvp_jax.core import vote
from mvp_jax.parallel import mapping, processes
from mvp_jax.storage import checkpoint
from mvp_jax.train import population
from tests import mlp

K, HALF, STEPS, TX = 3, 4, 8, train.optimizer("sgd")
MODEL = mlp.mlp()
RECIPE = train.Recipe(model=MODEL, tx=TX, batch=8, decay="cosine")


@functools.cache
def data():
    """Not where it is imported: the processes are joined before devices are used."""
    return jax.tree.map(np.asarray, mlp.data(24))


def forked(mesh=None, count=K, seed=1):
    one = train.create(mlp.variables(), TX, jax.random.key(0))
    keys = jax.random.split(jax.random.key(seed), count)
    return population.create(
        one, keys, population.run_settings(count, learning_rate=0.1 * np.arange(1, count + 1)), mesh=mesh
    )


def trained(states, steps, mesh=None):
    index = np.tile(np.arange(24), (len(states.alive), 1))
    shared = data() if mesh is None else mapping.place(data(), mesh, PartitionSpec())
    return population.fit(RECIPE, states, shared, steps, index=index, mesh=mesh, total=STEPS)[0]


def apart(steps):
    """Each member by itself, in this process: parameters, stacked."""
    states = forked()
    each = [
        train.fit(RECIPE, jax.tree.map(lambda leaf, i=i: leaf[i], states), data(), steps, total=STEPS)[
            0
        ].variables.params
        for i in range(K)
    ]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *each)


def continued(folder, mesh):
    """Parameters after the second half, from what several processes saved after the first."""
    with checkpoint.Checkpoints(folder) as saved:
        states = population.restore(saved, forked(mesh, seed=2), count=K)
    assert np.asarray(states.alive).tolist() == [i < K for i in range(len(states.alive))]
    return population.members(trained(states, STEPS - HALF, mesh), K).variables.params


def far(tree, other):
    return max(
        float(np.max(np.abs(np.asarray(a) - np.asarray(b))))
        for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)
    )


def shards(leaf):
    """Members that this process holds, with their values."""
    return [(s.index[0].start, np.asarray(s.data)[0]) for s in leaf.addressable_shards]


def fit(folder):
    mesh = population.mesh()
    assert mesh.shape["member"] == 4 == 2 * jax.local_device_count()
    states = trained(forked(mesh), HALF, mesh)
    expected, begun = apart(HALF), mlp.variables().params
    seen = set()
    for leaf, alone, start in zip(*map(jax.tree.leaves, (states.variables.params, expected, begun)), strict=True):
        assert not leaf.is_fully_addressable
        for member, value in shards(leaf):
            seen.add(member)
            if member < K:
                np.testing.assert_allclose(value, alone[member], atol=1e-5, rtol=1e-5)
                assert np.abs(value - np.asarray(start)).max() > 1e-2
            else:  # it fills up the mesh, and stays as it was
                np.testing.assert_array_equal(value, start)
    assert seen == {2 * jax.process_index(), 2 * jax.process_index() + 1}

    @jax.jit
    def elect(states):
        params, weights = states.variables.params, population.voters(states)
        ballots = jax.tree.map(lambda leaf: leaf > 0, params)
        soup, support = vote.soup(params, weights=weights), vote.support(ballots, weights)
        return jax.lax.with_sharding_constraint((soup, support), NamedSharding(mesh, PartitionSpec()))

    processes.barrier("trained")  # gloo's first exchange waits 30 seconds at most
    soup, support = jax.device_get(elect(states))
    checkpoint.save_arrays(folder / f"vote-{jax.process_index()}", {"soup": soup, "support": support})
    with checkpoint.Checkpoints(folder / "half") as saved:
        assert saved.latest() is None
        saved.save(HALF, states)
        assert (saved.steps(), saved.leading()) == ([HALF], 4)
        same = population.restore(saved, forked(mesh, seed=2), count=K)
        for a, b in zip(jax.tree.leaves(same.variables), jax.tree.leaves(states.variables), strict=True):
            np.testing.assert_array_equal(shards(a), shards(b)) if a.ndim < 2 else None
        keys = [jax.random.key_data(s.key).addressable_shards[0].data for s in (same, states)]
        np.testing.assert_array_equal(*keys)
    with checkpoint.Checkpoints(folder / "more") as saved:
        more = forked(mesh, 8, seed=5)
        saved.save(0, more)
        few = {count: population.restore(saved, forked(mesh, count), count=count) for count in (K, 4)}
    keys = np.asarray(jax.random.key_data(jax.random.split(jax.random.key(5), 8)))
    for count, states in few.items():
        for member, key in shards(jax.random.key_data(states.key)):
            np.testing.assert_array_equal(key, keys[member % count])
        assert [bool(value) for _, value in shards(states.alive)] == [i < count for i, _ in shards(states.alive)]


def talk(folder):
    me = jax.process_index()
    state = {"a": jnp.arange(3.0), "half": jnp.ones(2, jnp.bfloat16), "key": jax.random.key(7), "n": 3}

    def save():
        time.sleep(2)
        with checkpoint.Checkpoints(folder / "alone", alone=True) as saved:
            for step in (1, 2, 3):
                saved.save(step, state)

    processes.only_first("save", save)
    with checkpoint.Checkpoints(folder / "alone", alone=True) as saved:
        assert saved.steps() == [2, 3]
        for like in (jax.tree.map(lambda x: x * 0, state | {"key": 0}) | {"key": jax.random.key(0)}, state):
            found = saved.restore(like)
            assert found["a"].tolist() == [0, 1, 2]
            assert found["a"].devices() == {jax.local_devices()[0]}
            assert (found["half"].dtype, found["n"]) == (jnp.bfloat16, 3)
            assert found["key"].dtype == state["key"].dtype  # a key, and not its data
            assert jax.random.key_data(found["key"]).tolist() == jax.random.key_data(state["key"]).tolist()
        if me == 1:
            expect("process 1 cannot save a state alone", lambda: saved.save(4, state))
    assert processes.share(range(5)) == [[0, 2, 4], [1, 3]][me]

    def refuse():
        raise ValueError(f"no from {jax.process_index()}")

    # Refused in one process is refused in all, and all can go on.
    expect("no from 0" if me == 0 else "process 0 stopped: ValueError: no from 0", processes.only_first, "a", refuse)
    expect(
        "no from 1" if me == 1 else "process 1 stopped: ValueError: no from 1",
        processes.together,
        "a",
        refuse if me == 1 else lambda: None,
    )
    processes.same("b", "alike", "try")
    expect("process 1 finds 1, process 0 0; try", processes.same, "b", str(me), "try")
    # A folder of its own for each process, where there should be one.
    own = folder / str(me)
    with checkpoint.Checkpoints(own, alone=True) as saved:
        if me == 0:
            saved.save(1, state)
    expect("checkpoints of", checkpoint.Checkpoints, own)


def expect(message, call, *arguments):
    with pytest.raises(ValueError, match=message):
        call(*arguments)


def fail(folder):
    processes.barrier("start")
    if jax.process_index() == 0:
        raise ValueError("on purpose")
    processes.barrier("end")


def eight(folder):
    assert far(continued(folder / "half", population.mesh()), apart(STEPS)) < 1e-5
    assert len(jax.devices()) == 8


if __name__ == "__main__":
    what, number, total, port = sys.argv[1], *map(int, sys.argv[2:5])
    if total > 1:
        processes.initialize(f"127.0.0.1:{port}", total, number)
        processes.initialize()  # already done
    with processes.guarded():
        {"fit": fit, "talk": talk, "fail": fail, "eight": eight}[what](pathlib.Path(sys.argv[5]))
        processes.barrier("done")
    print("all well")
