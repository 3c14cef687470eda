"""What the wrappers of optimisers cost: a step with each against the same step of plain Adam, interleaved, as ratios.

    python benchmarks/wrappers.py [--pairs 60] [--quick]

One jitted training step of a network of dense layers (4.4 million weights in 12 kernels, batch 64). Plain and wrapped
steps alternate, so that whatever else the machine does falls on both; the ratio of each pair is taken. Steps that
select (prune, exchange) are listed apart from those that do not. `first call` is from making the optimiser's state to
the end of the first step, compilation included, each in a fresh process without a compilation cache.
"""

import argparse
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mvp_jax import transforms
from mvp_jax.core import patterns

WIDTHS = (256, *[640] * 11, 256)
KERNELS = [".*/kernel"]
EVERY = 1 << 20
"""Larger than the number of steps: nothing is selected."""


def network(quick: bool) -> dict[str, dict[str, jax.Array]]:
    widths = [w // 8 for w in WIDTHS] if quick else WIDTHS
    rng = np.random.default_rng(0)
    return {
        f"fc{i:02d}": {
            "kernel": jnp.asarray(rng.normal(size=(a, b)) / a**0.5, jnp.float32),
            "bias": jnp.zeros(b),
        }
        for i, (a, b) in enumerate(itertools.pairwise(widths))
    }


def loss(params: dict, x: jax.Array) -> jax.Array:
    for layer in params.values():
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
    return jnp.mean(x**2)


def wrapped(params: dict) -> dict[str, Callable[[], Any]]:
    """Optimisers by name: once so that no step selects, and once so that every step does."""
    adam = optax.adam(1e-4)
    # Chosen by NumPy: a selection here would compile beforehand what `first call` is to measure.
    sizes = {name: np.abs(np.asarray(layer["kernel"])) for name, layer in params.items()}
    threshold = np.quantile(np.concatenate([s.ravel() for s in sizes.values()]), 0.9)
    fixed = {name: {"kernel": jnp.asarray(s > threshold), "bias": True} for name, s in sizes.items()}

    def gradual(**settings: Any) -> Any:
        return transforms.prune_on_schedule(adam, sparsity=0.9, prunable=KERNELS, **settings)

    def rigl(every: int) -> Any:
        return transforms.rigl(adam, sparsity=0.9, steps=EVERY + 1, every=every, prunable=KERNELS, initial="magnitude")

    def straight(every: int) -> Any:
        return transforms.straight_through(
            adam, sparsity=0.5, every=every, prunable=KERNELS, pattern=patterns.NofM(4, axis=0)
        )

    return {
        "adam": lambda: adam,
        "keep_mask": lambda: transforms.keep_mask(adam, fixed),
        "prune_on_schedule, no pruning due": lambda: gradual(steps=1, begin=EVERY, every=1),
        "prune_on_schedule, every step": lambda: gradual(steps=200, every=1),
        "rigl, no exchange due": lambda: rigl(EVERY),
        "rigl, every step": lambda: rigl(1),
        "straight_through 2:4, kept": lambda: straight(EVERY),
        "straight_through 2:4, every step": lambda: straight(1),
    }


def stepper(tx: Any) -> Callable[..., Any]:
    @jax.jit
    def step(params: dict, state: Any, x: jax.Array) -> tuple[dict, Any]:
        updates, state = tx.update(jax.grad(loss)(params, x), state, params)
        return optax.apply_updates(params, updates), state

    return step


def first_call(name: str, quick: bool) -> float:
    """Seconds in a fresh process, as it prints them."""
    env = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    command = [sys.executable, __file__, "--first", name, *(["--quick"] if quick else [])]
    return float(subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--quick", action="store_true", help="only show that it runs")
    parser.add_argument("--first", help=argparse.SUPPRESS)
    args = parser.parse_args()
    params = network(args.quick)
    x = jax.random.normal(jax.random.key(0), (64, params["fc00"]["kernel"].shape[0]))
    optimisers = wrapped(params)
    if args.first:
        jax.block_until_ready((params, x))
        start = time.perf_counter()
        tx = optimisers[args.first]()
        jax.block_until_ready(stepper(tx)(params, tx.init(params), x))
        print(time.perf_counter() - start)
        return

    pairs = 3 if args.quick else args.pairs
    plain = optimisers["adam"]()
    step = stepper(plain)
    state = plain.init(params)
    jax.block_until_ready(step(params, state, x))
    print("| optimiser | ms | ratio to Adam, median | quartiles | first call, s |\n|:--|--:|--:|--:|--:|")
    for name, make in optimisers.items():
        tx = make()
        mine, own = stepper(tx), tx.init(params)
        current = jax.block_until_ready(mine(params, own, x))
        times = np.zeros((pairs, 2))
        for i in range(pairs):
            for which in (0, 1) if i % 2 else (1, 0):
                start = time.perf_counter()
                if which:
                    current = jax.block_until_ready(mine(*current, x))
                else:
                    jax.block_until_ready(step(params, state, x))
                times[i, which] = time.perf_counter() - start
        ratios = times[:, 1] / times[:, 0]
        low, median, high = np.percentile(ratios, (25, 50, 75))
        milliseconds = np.median(times[:, 1]) * 1e3
        first = first_call(name, args.quick)
        print(f"| {name} | {milliseconds:.1f} | {median:.2f} | {low:.2f} to {high:.2f} | {first:.1f} |", flush=True)


if __name__ == "__main__":
    main()
