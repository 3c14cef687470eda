"""Selection from sharded scores where they lie, against gathering them first, and against sorting.

    python benchmarks/sharded_selection.py [--repeats 5] [--millions 16] [--explicit] [--quick]

Eight CPU devices of one machine; kernels are sharded over them as FSDP shards parameters. `in place` selects from the
sharded leaves; `gathered` puts every leaf on every device first, as a selection does that was not made for sharded
arrays; `one device` holds all leaves on a single device, their copies there not timed. `sort`, `top_k` and `quantile`
take a threshold from the joined magnitudes and keep all that reach it, all ties included. `argsort` is the published
rule of JaxPruner in words of our own: a stable order of the magnitudes, the last that stays, ties by index; JaxPruner
itself was not run. Times on one machine say little about a real interconnect; memory and what is exchanged do:
`temporaries` is XLA's figure for one device, and `exchanged` adds up the results of all collectives in the compiled
program, a loop counted once (the selection's loops take 32 rounds).
"""

import argparse
import functools
import os
import re
import time
from typing import Any

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mvp_jax.core import prune

BYTES = {"pred": 1, "u8": 1, "s32": 4, "u32": 4, "f32": 4}


def exchanged(text: str) -> int:
    """How many bytes the collectives of a compiled program give."""
    found = 0
    for result in re.findall(r"= (.*?) (?:all-gather|all-reduce|all-to-all|collective-permute)\(", text):
        for kind, shape in re.findall(r"(\w+)\[([\d,]*)\]", result):
            found += BYTES.get(kind, 4) * int(np.prod([int(n) for n in shape.split(",") if n]))
    return found


def joined(scores: dict[str, jax.Array]) -> jax.Array:
    return jnp.concatenate([x.ravel() for x in scores.values()])


def by_threshold(threshold: Any, scores: dict[str, jax.Array], keep: Any) -> dict[str, jax.Array]:
    """Keeps what reaches `threshold(flat, keep)`."""
    least = threshold(joined(scores), keep)
    return jax.tree.map(lambda x: x >= least, scores)


def sort(flat: jax.Array, keep: Any) -> jax.Array:
    return jnp.sort(flat)[flat.size - keep]


def quantile(flat: jax.Array, keep: Any) -> jax.Array:
    return jnp.quantile(flat, 1 - keep / flat.size)


def top_k(at_most: int, flat: jax.Array, keep: Any) -> jax.Array:
    return jax.lax.top_k(flat, at_most)[0][keep - 1]


def argsort(scores: dict[str, jax.Array], keep: Any) -> dict[str, jax.Array]:
    """Keeps what is before or at the `keep`-th place of a stable order from largest to least."""
    flat = joined(scores)
    last = jnp.argsort(flat, stable=True, descending=True)[keep - 1]
    kept = (flat > flat[last]) | ((flat == flat[last]) & (jnp.arange(flat.size) <= last))
    ends = np.cumsum([x.size for x in scores.values()])
    pieces = jnp.split(kept, ends[:-1])
    return {name: piece.reshape(x.shape) for (name, x), piece in zip(scores.items(), pieces, strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--millions", type=int, default=16, help="how many weights, in all leaves together")
    parser.add_argument("--explicit", action="store_true", help="a mesh with explicit axes; what gathers is left out")
    parser.add_argument("--quick", action="store_true", help="only show that it runs")
    args = parser.parse_args()
    rows = 64 if args.quick else args.millions * 1_000_000 // 4 // 2000 // 8 * 8
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(AxisType.Explicit if args.explicit else AxisType.Auto,))
    spread, everywhere = (NamedSharding(mesh, PartitionSpec(*s)) for s in (("fsdp", None), ()))
    rng = np.random.default_rng(0)
    scores = {f"w{i}": np.abs(rng.normal(size=(rows, 2000))).astype(np.float32) for i in range(4)}
    scores = jax.device_put(scores, spread)
    at_most = prune.keep_count(4 * rows * 2000, 0.9)
    keep = np.int32(at_most)

    alone = jax.device_put(scores, jax.devices()[0])
    ways: dict[str, tuple[Any, Any]] = {
        "across_tree, in place": (prune.across_tree, scores),
        "by_leaf, in place": (lambda scores, keep: prune.by_leaf(scores, keep // 4), scores),
        "n_of_m 2:4, in place": (lambda scores, keep: prune.n_of_m(scores, 2, 4, axis=1), scores),
        "across_tree, one device": (prune.across_tree, alone),
        "by_leaf, one device": (lambda scores, keep: prune.by_leaf(scores, keep // 4), alone),
    }
    if not args.explicit:

        def gathered(scores: Any) -> Any:
            return jax.lax.with_sharding_constraint(scores, everywhere)

        ways |= {
            "across_tree, gathered": (lambda scores, keep: prune.across_tree(gathered(scores), keep), scores),
            "by_leaf, gathered": (lambda scores, keep: prune.by_leaf(gathered(scores), keep // 4), scores),
            "sort": (functools.partial(by_threshold, sort), scores),
            "quantile": (functools.partial(by_threshold, quantile), scores),
            "top_k": (lambda scores, keep: by_threshold(functools.partial(top_k, at_most), scores, keep), scores),
            "argsort": (argsort, scores),
        }
    print(f"{4 * rows * 2000:,} weights in 4 leaves over 8 devices\n")
    print("| way | s | temporaries of a device, MiB | exchanged, KiB | kept | masks lie as the scores |")
    print("|:--|--:|--:|--:|--:|:--|")
    for name, (way, scores) in ways.items():
        program = jax.jit(way).lower(scores, keep).compile()
        got = jax.block_until_ready(program(scores, keep))
        times = []
        for _ in range(1 if args.quick else args.repeats):
            start = time.perf_counter()
            jax.block_until_ready(program(scores, keep))
            times.append(time.perf_counter() - start)
        temporaries = program.memory_analysis().temp_size_in_bytes / 2**20
        kept = sum(int(m.sum()) for m in got.values())
        same = all(m.sharding.is_equivalent_to(spread, 2) for m in got.values())
        share = exchanged(program.as_text()) / 1024
        print(f"| {name} | {np.median(times):.2f} | {temporaries:.1f} | {share:,.1f} | {kept:,} | {same} |", flush=True)


if __name__ == "__main__":
    main()
