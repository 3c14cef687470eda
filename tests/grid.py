"""What `grid_test` runs: every function for research code, on every kind of tree, dtype and placement.

Values are whole numbers that all dtypes hold exactly, so every cell has one right answer: that of a nested dict of
float32 on one device.
"""

import dataclasses
import re
from typing import NamedTuple

import equinox as eqx
import flax.core
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mvp_jax import compact, prune, transforms, trees, units, vote
from mvp_jax.core import patterns

SHAPES = {"a": (64, 32), "b": (32, 16)}
AXES = {"a": ("d", None), "b": (None, "d")}
DTYPES = ("float32", "bfloat16", "float16", "int8")


class Named(NamedTuple):
    """A named tuple."""

    a: jax.Array
    b: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Box:
    """A dataclass."""

    a: jax.Array
    b: jax.Array


class Module(eqx.Module):
    """An Equinox module."""

    a: jax.Array
    b: jax.Array


CONTAINERS = {
    "dict": lambda t: t,
    "state": lambda t: nnx.State({k: nnx.Param(v) for k, v in t.items()}),
    "frozen": flax.core.FrozenDict,
    "equinox": lambda t: Module(**t),
    "tuple": lambda t: Named(**t),
    "dataclass": lambda t: Box(**t),
}
PLACES = ("one", "auto replicated", "auto fsdp", "explicit replicated", "explicit fsdp")


def values(seed: int, dtype: str = "float32") -> dict[str, np.ndarray]:
    """Whole numbers from -40 to 40, with ties."""
    rng = np.random.default_rng(seed)
    return {k: rng.integers(-40, 41, s).astype(jnp.dtype(dtype)) for k, s in SHAPES.items()}


def put(tree: dict[str, np.ndarray], place: str) -> dict[str, jax.Array]:
    if place == "one":
        return jax.tree.map(jnp.asarray, tree)
    kind = AxisType.Auto if place.startswith("auto") else AxisType.Explicit
    mesh = jax.make_mesh((jax.device_count(),), ("d",), axis_types=(kind,))
    spec = AXES if place.endswith("fsdp") else dict.fromkeys(AXES, (None, None))
    return {k: jax.device_put(v, NamedSharding(mesh, PartitionSpec(*spec[k]))) for k, v in tree.items()}


GROUPS = (
    units.Group(name="g", size=32, slots=(units.Slot(path="a", axis=1, scored=True), units.Slot(path="b", axis=0))),
)
KEEP = {"g": np.arange(32) % 3 > 0}


def _ballots(x):
    return jax.tree.map(lambda v: jnp.stack([v > 0, v > 8, v < -16]), x)


def _elect(rule, scope):
    return lambda x, k: vote.elect(_ballots(x), k, rule=rule, scope=scope, tie_break=x)


def _soup(x, k):
    members = jax.tree.map(lambda v: jnp.stack([v, v + 2, v - 8]), x)
    return vote.soup(members, masks=_ballots(x), fallback=x)


SELECT = {
    "by_leaf": lambda x, k: prune.by_leaf(x, k),
    "across_tree": lambda x, k: prune.across_tree(x, k, within=jax.tree.map(lambda v: v > -20, x)),
    "by_output": lambda x, k: prune.by_output(x, k // 10, axis=-1),
    "n_of_m": lambda x, k: prune.n_of_m(x, k // 15, 4, axis=trees.align({"a": 1, "b": 0}, x)),
    "by_block": lambda x, k: prune.by_block(x, k // 10, block=(4, 4)),
    "elect mean": _elect("mean", "tree"),
    "elect union": _elect("union", "tree"),
    "elect intersection": _elect("intersection", "tree"),
    "elect majority": _elect("majority", "leaf"),
    "soup": _soup,
}
"""`(tree, count) -> tree`, jitted; the counts are traced."""

WRAPPERS = {
    "schedule": lambda x: transforms.prune_on_schedule(optax.sgd(1.0), sparsity=0.5, steps=2, prunable=["a", "b"]),
    "schedule 2:4": lambda x: transforms.prune_on_schedule(
        optax.sgd(1.0),
        sparsity=0.5,
        steps=2,
        prunable=["a", "b"],
        pattern=patterns.NofM(4, axis=(("a", 1), ("b", 0))),
    ),
    "keep_mask": lambda x: transforms.keep_mask(optax.sgd(1.0), jax.tree.map(lambda v: v > 0, x)),
    "rigl": lambda x: transforms.rigl(
        optax.sgd(1.0), sparsity=0.5, steps=4, every=2, prunable=["a", "b"], initial="magnitude"
    ),
    "straight_through": lambda x: transforms.straight_through(
        optax.sgd(1.0), pattern=patterns.Weights(), sparsity=0.5, prunable=["a", "b"]
    ),
}
"""`params -> optimiser`; run for four steps."""

NAMES = (*SELECT, *WRAPPERS, "cut")
FLOATS_ONLY = ("soup", *WRAPPERS)


def gathered(program) -> int:  # type: ignore[no-untyped-def]
    """How many entries the largest all-gather of a compiled program has."""
    shapes = re.findall(r"= \(?\w+\[([\d,]*)\][^=]* all-gather(?:-start)?\(", program.as_text())
    return max((int(np.prod([int(n) for n in s.split(",") if n])) for s in shapes), default=0)


def run(name: str, container: str, dtype: str, place: str) -> dict[str, np.ndarray]:
    """The answer of one cell, as a dict of arrays; asserts compilations, shardings and collectives on the way."""
    made = [CONTAINERS[container](put(values(seed, dtype), place)) for seed in (0, 1)]
    if name in SELECT:
        # A function of its own, as programs are counted for each function.
        function = jax.jit(lambda x, k: SELECT[name](x, k))
        found = [function(x, jnp.int32(k)) for x, k in zip(made, (30, 45), strict=True)]
        assert function._cache_size() == 1
        programs = [function.lower(made[0], jnp.int32(30)).compile()] if place.endswith("fsdp") else []
        outputs = found[0]
    elif name in WRAPPERS:
        found, programs, outputs = _train(name, made, place)
    else:
        found = [compact.cut(x, GROUPS, KEEP) for x in made]
        programs, outputs = [], None
    smallest = min(int(np.prod(s)) for s in SHAPES.values())
    for program in programs:
        assert gathered(program) < smallest, "a leaf is gathered"
    if outputs is not None and place.endswith("fsdp"):
        for path, leaf in trees.flatten(outputs).items():
            if np.shape(leaf) == SHAPES[path]:
                expected = NamedSharding(leaf.sharding.mesh, PartitionSpec(*AXES[path]))
                assert leaf.sharding.is_equivalent_to(expected, 2), (path, leaf.sharding)
    flat = [trees.flatten(t) for t in found]
    return {f"{i} {k}": np.asarray(jnp.asarray(v, jnp.float32)) for i, t in enumerate(flat) for k, v in t.items()}


def _train(name, made, place):  # type: ignore[no-untyped-def]
    params, grads = made
    tx = WRAPPERS[name](params)

    @jax.jit
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    programs = [step.lower(params, state, grads).compile()] if place.endswith("fsdp") else []
    for _ in range(4):
        params, state = step(params, state, grads)
        # Whole numbers below 100 for all dtypes.
        grads = jax.tree.map(lambda g: jnp.trunc(g / 2), grads)
    assert step._cache_size() == 1, "a step was compiled again"
    return [params, transforms.masks_of(state)], programs, params
