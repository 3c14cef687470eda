"""A large bank: how long it takes to list it and to rank it for a new task, and how much memory that needs.

    python benchmarks/bank_scale.py --entries 1000 10000

The entries are synthetic: slim ResNet-8 models of ten classes with random weights, half of the units removed, as
`bank.add` writes them. The target is a task of five classes with five images (8×8) each. Every measurement is a process
of its own, so that its peak memory (resident set) is its own; that of a process which has only loaded the library and
the pre-trained model, and run one forward pass, stands in the first row. Files that were just written are in the
system's cache. `all at once` ranks with one chunk that holds the whole bank. Programs are compiled within the measured
time.
"""

import argparse
import functools
import json
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

from mvp_jax import bank, models

CLASSES, TARGET, SHOTS = 10, 5, 5


def dense() -> tuple[models.Model, object]:
    model = models.create("resnet8", width=16, image_size=8, channels=3, classes=CLASSES, conv="im2col")
    return model, model.init(jax.random.key(0))


def build(folder: pathlib.Path, count: int) -> float:
    """Adds entries until there are `count`, and returns the seconds that each took."""
    model, variables = dense()
    store = bank.create(
        folder, fingerprint=bank.fingerprint(variables), settings={}, dense=(model, variables), exist_ok=True
    )
    half = {g.name: g.size // 2 for g in model.groups}
    slim = jax.jit(model.resize(half).init)
    start = time.perf_counter()
    done = len(bank.entries(store))
    for i in range(done, count):
        rng = np.random.default_rng(i)
        units = {g.name: np.isin(np.arange(g.size), rng.choice(g.size, half[g.name], False)) for g in model.groups}
        entry = bank.BankEntry(
            task=f"task {i:06d}",
            classes=tuple(map(int, rng.choice(100, CLASSES, False))),
            fingerprint=store.fingerprint,
            ratio=0.5,
            accuracy=float(rng.uniform()),
        )
        saliency = {name: rng.uniform(size=u.shape).astype(np.float32) for name, u in units.items()}
        arrays = {"variables": jax.device_get(slim(jax.random.key(i))), "units": units, "saliency": saliency}
        bank.add(store, entry, arrays)
    return (time.perf_counter() - start) / max(count - done, 1)


def measure(folder: pathlib.Path, what: str, chunk: int) -> dict[str, float]:
    """Seconds and peak memory of this process for one call."""
    store = bank.open(folder)
    model, variables = bank.load_model(store)
    rng = np.random.default_rng(1)
    data = {
        "x": jnp.asarray(rng.normal(size=(SHOTS * TARGET, *model.input_shape)), jnp.float32),
        "y": jnp.arange(SHOTS * TARGET) % TARGET,
    }
    target = model.with_classes(TARGET)
    jax.block_until_ready(model.apply(variables, data["x"])[0])
    start = time.perf_counter()
    if what == "open":
        bank.open(folder)
    elif what == "list":
        bank.entries(store)
    elif what in ("rank", "rank again"):
        near = functools.partial(bank.neighbours, bank.entries(store), target, variables, data, k=5, chunk=chunk)
        jax.block_until_ready(near())
        if what == "rank again":
            start = time.perf_counter()
            jax.block_until_ready(near())
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--entries", type=int, nargs="+", default=[1000, 10000])
    parser.add_argument("--chunk", type=int, default=64)
    parser.add_argument("--folder", type=pathlib.Path, help="where the bank is kept for another run")
    parser.add_argument("--quick", action="store_true", help="only show that it runs")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.folder, args.measure, args.chunk)))
        return
    if args.quick:
        args.entries, args.chunk = [10], 4
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or pathlib.Path(temporary) / "bank"
        print("| entries | MB on disk | call | s | ms an entry | peak memory, MB |")
        print("|--:|--:|:--|--:|--:|--:|")
        for count in sorted(args.entries):
            each = build(folder, count)
            size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / 1e6
            calls = [("nothing", "none", args.chunk), ("open", "open", args.chunk), ("list", "list", args.chunk)]
            calls += [(f"list and rank, {args.chunk} at a time", "rank", args.chunk)]
            calls += [("rank again", "rank again", args.chunk), ("list and rank, all at once", "rank", count)]
            for name, what, chunk in calls:
                command = [sys.executable, __file__, "--folder", str(folder), "--measure", what, "--chunk", str(chunk)]
                found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                took, peak = found["seconds"], found["megabytes"]
                print(f"| {count:,} | {size:,.0f} | {name} | {took:.2f} | {1000 * took / count:.2f} | {peak:,.0f} |")
                sys.stdout.flush()
            print(f"| {count:,} | {size:,.0f} | add an entry | {each:.4f} | {1000 * each:.2f} | |", flush=True)


if __name__ == "__main__":
    main()
