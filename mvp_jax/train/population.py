"""Many runs at once: members are a leading axis of one pytree, and train in one program.

`create` forks members from one state, each with a key and settings of its own; `fit` trains them on data that lies
on the devices, `advance` takes one step on batches that are handed in; `over` does anything else once for each member.
How members share a device is the `mapping`, how devices share the members is the `mesh`; neither changes the result.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mvp_jax.core.types import Array, Batch, Key, PyTree
from mvp_jax.parallel import auto
from mvp_jax.parallel import mapping as maps
from mvp_jax.parallel.auto import MappingPlan
from mvp_jax.parallel.fanout import over, plan, pmap
from mvp_jax.parallel.mapping import MemberMapping, mesh
from mvp_jax.storage import checkpoint
from mvp_jax.train import fitting
from mvp_jax.train.fitting import Recipe
from mvp_jax.train.stepping import Metrics, RunSettings, Step, TrainState


def run_settings(count: int, **values: Any) -> RunSettings:
    """Returns the settings of `count` members: a number holds for all, a sequence has one value for each member.

    Args:
        count: `K`.
        **values: fields of `train.RunSettings`.

    Returns:
        `RunSettings` whose fields are `[K]`, or `None` where nothing was given.

    Raises:
        ValueError: for an unknown field, a sequence of another length, or a value out of its range.

    >>> run_settings(3, learning_rate=[0.1, 0.2, 0.3], steps=100).learning_rate.tolist()
    [0.10000000149011612, 0.20000000298023224, 0.30000001192092896]
    """
    ranges = {
        "learning_rate": (0, np.inf),
        "weight_decay": (0, np.inf),
        "adaptive": (0, 1),
        "label_smoothing": (0, 1),
        "dropout": (0, 1),
        "augment": (0, 1),
        "steps": (0, np.inf),
        "classes": (1, np.inf),
    }
    unknown = sorted(set(values) - set(ranges))
    if unknown:
        raise ValueError(f"the settings of a run have no {unknown}; their fields are {list(ranges)}")
    fields = {}
    for name, value in values.items():
        if value is None:
            continue
        given = np.asarray(value)
        if given.shape not in ((), (count,)):
            raise ValueError(f"{name} has shape {given.shape}; give one number, or one for each of {count} members")
        low, high = ranges[name]
        open_end = name in ("label_smoothing", "dropout")
        if not np.all((given >= low) & (given < high if open_end else given <= high)):
            raise ValueError(f"{name} is {given.tolist()}; it must lie in [{low}, {high}{')' if open_end else ']'}")
        dtype = jnp.int32 if name in ("steps", "classes") else jnp.float32
        fields[name] = jnp.asarray(np.broadcast_to(given, (count,)), dtype)
    return RunSettings(**fields)


def create(
    state: TrainState, keys: Key, settings: RunSettings | None = None, *, mesh: Mesh | None = None
) -> TrainState:
    """Returns a population: members forked from one state.

    Args:
        state: from `train.create`; its key and settings are replaced. Or already stacked, with `K` in front of every
            leaf, where members start from weights of their own.
        keys: `[K]`, one for each member.
        settings: with `[K]` in each field that is set, see `run_settings`; `None`: the state's own.
        mesh: where the members are to live; see `mesh`.

    Returns:
        A state whose leaves lead with `K`. With a mesh, `K` is filled up to a multiple of its member axis by copies
        that are not alive: they never change, and `voters` gives them no vote.

    Raises:
        ValueError: if keys, settings or state are not of the same `K`.

    >>> from mvp_jax import models, train
    >>> model, tx = models.create("vit_micro", dim=8, layers=1, image_size=4, patch=2, channels=1), train.optimizer()
    >>> one = train.create(model.init(jax.random.key(0)), tx, jax.random.key(0))
    >>> four = create(one, jax.random.split(jax.random.key(1), 4), run_settings(4, learning_rate=0.1))
    >>> four.alive.tolist()
    [True, True, True, True]
    """
    k = maps.count(keys)
    if settings is not None and any(jnp.shape(v) != (k,) for v in settings if v is not None):
        raise ValueError(f"the settings are not those of {k} members; see population.run_settings")
    if state.alive.ndim == 0:
        state = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (k, *leaf.shape)), state)
    elif maps.count(state) != k:
        raise ValueError(f"the state has {maps.count(state)} members, but there are {k} keys")
    state = state._replace(key=keys, settings=state.settings if settings is None else settings)
    full = maps.padded(k, mesh)
    if full > k:
        state = maps.pad(state, full)
        state = state._replace(alive=state.alive & (jnp.arange(full) < k))
    # A copy: `advance` and `fit` reuse the memory, and the caller's own arrays must outlive that.
    state = jax.tree.map(jnp.array, state)
    return state if mesh is None else maps.place(state, mesh)


@dataclasses.dataclass(frozen=True)
class _Stepped:
    """One step of one member, its batch divided over the data axis of the mesh."""

    step: Step

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        return self.step(state, maps.split_batch(batch))


def advance(
    step: Step,
    states: TrainState,
    batches: Batch,
    *,
    mapping: MemberMapping = "auto",
    chunk: int | None = None,
    mesh: Mesh | None = None,
) -> tuple[TrainState, Metrics]:
    """Takes one step of every member on a batch of its own; nothing waits for the device.

    Args:
        step: `(state, batch) -> (state, metrics)` of one member, as from `train.make_step`; give the same object every
            time, or one that compares by value. Any pytree of arrays can be a state.
        states: leaves lead with `K`. Their memory is used for the result, so they cannot be used again.
        batches: leaves lead with `K`, then the batch; with a mesh, place them by `place_batches`.
        mapping: how the members of one device are run: `vmap`, `map`, `loop` or `auto`.
        chunk: how many members are run at a time on each device.
        mesh: as for `create`.

    Returns:
        The states after the step, and metrics `[K]`.

    Raises:
        ValueError: for members that differ in number, or another mapping.
    """
    maps.check(mapping, chunk, mesh)
    function = _Stepped(step)
    how = auto.resolve(function, states, (batches,), (), mapping=mapping, chunk=chunk, where=mesh)
    return maps.run(function, states, (batches,), (), mapping=how.mapping, chunk=how.chunk, where=mesh)


@dataclasses.dataclass(frozen=True)
class _Fit:
    """The recipe's `steps` (or `step`) of one member, with the arguments in the order in which a mapping gives them."""

    recipe: Recipe
    own: bool
    loop: bool

    def __call__(self, both: tuple[TrainState, Metrics], mine: Any, *rest: Any) -> tuple[Any, tuple[()]]:
        *data, count, total = rest
        total = jnp.asarray(both[0].settings.steps if total is None else total)
        data, index = (mine, None) if self.own else (data[0], mine)
        if self.loop:
            return self.recipe.steps(*both, data, index, count, total), ()
        return self.recipe.step(*both, data, index, total), ()


def fit(
    recipe: Recipe,
    states: TrainState,
    data: Batch,
    steps: int | Array,
    *,
    index: Array | None = None,
    total: int | Array | None = None,
    mapping: MemberMapping = "auto",
    chunk: int | None = None,
    mesh: Mesh | None = None,
) -> tuple[TrainState, Metrics]:
    """Trains every member for `steps` steps on data that lies on the devices: `train.fit` for a population.

    A member that has taken the steps of its settings, or has diverged, stays as it is; the others go on.

    Args:
        recipe: what is trained and how, the same for all members; static. Learning rates are those of the members'
            settings, or the optimiser's own if they have none.
        states: from `create`. Their memory is used for the result, so they cannot be used again.
        data: `{"x": [K, N, ...], "y": [K, N, ...]}`, each member's own; with `index`, `[N, ...]` that all members see.
        steps: number of steps; traced.
        index: `int32[K, n]`, the examples of the shared data that each member may see.
        total: number of steps over which rates decay, counted from step 0 of the states; `None`: the steps of each
            member's settings, or if they have none `steps`.
        mapping: how the members of one device are run: `vmap`, `map`, `loop` or `auto`.
        chunk: how many members are run at a time on each device.
        mesh: as for `create`; `K` may be what it was before `create` filled it up.

    Returns:
        States, and means `[K]` over the steps taken, as `train.fit` gives them for one run.

    Raises:
        ValueError: as `train.fit` does, for members that differ in number, or another mapping.
    """
    maps.check(mapping, chunk, mesh)
    fitting.check_trainable(recipe, states, data, index)
    k = maps.count(states)
    data = {"x": data["x"], "y": data["y"]}
    mine = data if index is None else index
    if mesh is not None and not maps.lies_on(mine, mesh):
        mine = maps.place(maps.pad(mine, k), mesh)
    if total is None and states.settings.steps is None:
        total = steps
    last = (
        np.int32(steps) if isinstance(steps, int) else steps,
        None if total is None else jnp.asarray(total, jnp.int32),
    )
    shared = last if index is None else (maps.place_whole(data, mesh), *last)
    sums = _zeros(recipe, k, mesh)
    function = _Fit(recipe, own=index is None, loop=True)
    how = auto.resolve(function, (states, sums), (mine,), shared, mapping=mapping, chunk=chunk, where=mesh)
    go = functools.partial(maps.run, stacked=(mine,), shared=shared, mapping=how.mapping, chunk=how.chunk, where=mesh)
    if how.mapping == "loop" and fitting.loops_on_host(recipe.model, states, mine, shared):
        one = dataclasses.replace(function, loop=False)
        if int(steps) > 0:
            (states, sums), _ = go(one, (states, sums), times=int(steps))
    else:
        (states, sums), _ = go(function, (states, sums))
    return states, _means(sums)


_means = jax.jit(jax.vmap(fitting.means))


def _zeros(recipe: Recipe, k: int, mesh: Mesh | None) -> Metrics:
    sums = jax.tree.map(lambda leaf: jnp.zeros((k, *leaf.shape)), recipe.blank())
    return sums if mesh is None else maps.place(sums, mesh)


def place_batches(batches: Batch, *, mesh: Mesh) -> Batch:
    """Returns batches `[K, B, ...]` on a mesh, for `advance`.

    Members are filled up to a multiple of the mesh's member axis and divided over it, examples over its data axis.
    """
    full = maps.padded(maps.count(batches), mesh)
    even = all(leaf.shape[1] % mesh.shape[maps.DATA] == 0 for leaf in jax.tree.leaves(batches))
    spec = PartitionSpec(maps.MEMBER, maps.DATA) if even else PartitionSpec(maps.MEMBER)
    return maps.place(maps.pad(batches, full), mesh, spec)


def voters(states: TrainState) -> Array:
    """Returns weights `float32[K]` for `vote.elect` and `vote.soup`: 0 for members that diverged or fill up a mesh."""
    return jnp.asarray(states.alive, jnp.float32)


def diverged(states: TrainState, count: int | None = None) -> dict[int, int]:
    """Returns the members whose loss or weights ceased to be finite, `{member: steps taken}`.

    Args:
        states: of a population.
        count: number of members; later ones fill up a mesh. `None`: all.
    """
    alive, step = jax.device_get((states.alive, states.step))
    return {i: int(step[i]) for i in range(len(alive) if count is None else count) if not alive[i]}


def members(states: PyTree, count: int) -> PyTree:
    """Returns the first `count` members, without those that fill up a mesh.

    They are on the default device if this process has them all.
    """
    return maps.first(states, count)


def restore(saved: checkpoint.Checkpoints, like: TrainState, *, count: int, step: int | None = None) -> TrainState:
    """Returns a population that was saved, on the devices there are now.

    Args:
        saved: checkpoints of a population, saved with any mesh.
        like: a population of the same members on the present mesh, as `create` gives it; the result lies as it does.
        count: number of members.
        step: which checkpoint; `None`: the last.

    Raises:
        ValueError: if the checkpoint has another structure (see `Checkpoints.restore`), or if fewer members were saved.
    """
    k = maps.count(like)
    leading = saved.leading(step)
    if leading < count:
        raise ValueError(
            f"{saved.directory} holds {leading} members, {count} are wanted; ask for as many as were saved"
        )
    if leading == k:
        return saved.restore(like, step=step)
    sharding = like.alive.sharding
    where = sharding.mesh if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh) else None

    def other(leaf: Array) -> jax.ShapeDtypeStruct:
        sharding = leaf.sharding
        if where is not None and leading % maps.across(where):
            sharding = NamedSharding(where, PartitionSpec())
        return jax.ShapeDtypeStruct((leading, *leaf.shape[1:]), leaf.dtype, sharding=sharding)

    found = members(saved.restore(jax.tree.map(other, like), step=step), count)
    found = maps.pad(found, k)
    found = found._replace(alive=found.alive & (jnp.arange(k) < count))
    return found if where is None else maps.place(found, where)


__all__ = [
    "MemberMapping",
    "MappingPlan",
    "advance",
    "create",
    "diverged",
    "fit",
    "members",
    "mesh",
    "over",
    "place_batches",
    "plan",
    "pmap",
    "restore",
    "run_settings",
    "voters",
]
