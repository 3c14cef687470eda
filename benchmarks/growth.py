"""What a population needs as it grows, and what `mapping="auto"` goes by.

    python benchmarks/growth.py memory collectives growth rules [--rounds 3] [--out docs/results/population] [--quick]

`memory`: the compiler's estimate for a step of K ResNet-20 (im2col, batch 64), all at once and in turn, and how many
bytes of the population are updated in place.

`collectives`: operations between eight pretended CPU devices in the compiled step of 16 ResNet-8, for meshes of members
× data, each mapping and convolution; and in that of a plain `jit(vmap)` over sharded members.

`growth`: seconds a member-step and bytes of one device against the number of members (an MLP of 0.3 M parameters) and
against the number of parameters (two members), beside a loop over jitted single steps. Writes `growth.json` and
`growth.png`.

`rules`: a step of small and large members under each mapping; beside it what the rules on a CPU look at.

Timed contenders take turns, every other round backwards, and the median of the rounds is given; compiling is left out.
The machine must be idle. All optimisers are SGD with momentum in float32. The tables are followed by a line of JSON.
"""

import argparse
import functools
import itertools
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from mvp_jax import models, train
from mvp_jax.core.types import Batch
from mvp_jax.parallel import auto, mapping
from mvp_jax.train import population

PARTS = ("memory", "collectives", "growth", "rules")
WAYS = ("vmap", "map", "loop")
BETWEEN = (
    "all-gather", "all-reduce", "all-to-all", "collective-permute", "collective-broadcast", "ragged-all-to-all",
    "reduce-scatter",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.3, help="that a round of a contender takes, at least")
    parser.add_argument("--out", type=Path, default=Path("docs/results/population"))
    parser.add_argument("--quick", action="store_true", help="only show that it runs; writes to a temporary folder")
    parser.add_argument("--pretended", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.pretended:
        print(json.dumps(collectives(args.pretended, args.quick)))
        return
    parts = args.parts or PARTS
    if set(parts) - set(PARTS):
        raise SystemExit(f"unknown parts {sorted(set(parts) - set(PARTS))}; choose of {PARTS}")
    if args.quick:
        args.rounds, args.seconds, args.out = 1, 0.0, Path(tempfile.mkdtemp())
    found: dict[str, Any] = {"jax": jax.__version__, "device": jax.devices()[0].device_kind, "cores": os.cpu_count()}
    print(f"{found}, load average before {os.getloadavg()[0]:.1f}", flush=True)
    for part in parts:
        found[part] = {"memory": memory, "collectives": pretended, "growth": growth, "rules": rules}[part](args)
    print(json.dumps(found))


# --- what is trained


def mlp(*widths: int) -> tuple[Callable[..., Any], Any]:
    """A step for `population.advance` of an MLP, and its state: weights and momentum."""
    sizes = list(itertools.pairwise(widths))
    keys = jax.random.split(jax.random.key(0), len(sizes))
    params = [
        (jax.random.normal(key, size) * math.sqrt(2 / size[0]), jnp.zeros(size[1]))
        for key, size in zip(keys, sizes, strict=True)
    ]

    def step(state: Any, batch: Batch) -> tuple[Any, jax.Array]:
        def objective(params: Any) -> jax.Array:
            h = batch["x"]
            for w, b in params[:-1]:
                h = jax.nn.relu(h @ w + b)
            return jnp.mean(train.cross_entropy(h @ params[-1][0] + params[-1][1], batch["y"]))

        loss, grads = jax.value_and_grad(objective)(state[0])
        momentum = jax.tree.map(lambda m, g: 0.9 * m + g, state[1], grads)
        return (jax.tree.map(lambda p, m: p - 1e-3 * m, state[0], momentum), momentum), loss

    return step, (params, jax.tree.map(jnp.zeros_like, params))


def network(name: str, **options: Any) -> tuple[Callable[..., Any], train.TrainState]:
    """The same for a model of the library, with the library's step."""
    model, tx = models.create(name, classes=10, **options), train.optimizer("sgd", momentum=0.9)
    state = train.create(model.init(jax.random.key(0)), tx, jax.random.key(0))
    settings = train.RunSettings(learning_rate=jnp.float32(1e-3))
    step = train.make_step(model, train.cross_entropy, tx)

    return step, state._replace(settings=settings)


def stacked(tree: Any, k: int) -> Any:
    return jax.tree.map(lambda leaf: jnp.array(jnp.broadcast_to(leaf, (k, *leaf.shape))), tree)


def batches(k: int, batch: int, *shape: int) -> Batch:
    x = jax.random.normal(jax.random.key(1), (k, batch, *shape))
    return {"x": x, "y": jax.random.randint(jax.random.key(2), (k, batch), 0, 10)}


def size_of(tree: Any) -> int:
    """Bytes."""
    keys = jax.dtypes.prng_key
    return sum(
        (jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, keys) else x).nbytes for x in jax.tree.leaves(tree)
    )


def numbers(state: Any) -> int:
    return sum(math.prod(x.shape) for x in jax.tree.leaves(state))


# --- time


def own_loop(step: Callable[..., Any], state: Any, k: int, batch: Batch) -> Callable[[], None]:
    single = jax.jit(step, donate_argnums=0)
    states = [jax.tree.map(jnp.array, state) for _ in range(k)]
    parts = [jax.tree.map(lambda leaf, i=i: leaf[i], batch) for i in range(k)]

    def call() -> None:
        for i in range(k):
            states[i], _ = single(states[i], parts[i])
        jax.block_until_ready(states)

    return call


def timed(
    step: Callable[..., Any], state: Any, k: int, batch: Batch, ways: tuple[str, ...], args: argparse.Namespace
) -> dict[str, float]:
    """Seconds of a step of all members, by contender. The mappings move one and the same population."""
    states = stacked(state, k)

    def advance(way: mapping.MemberMapping) -> None:
        nonlocal states
        states, _ = jax.block_until_ready(population.advance(step, states, batch, mapping=way))

    calls = {way: functools.partial(advance, way) for way in ways}
    calls["own loop"] = own_loop(step, state, k, batch)
    repeats = {}
    for name, call in calls.items():
        call()
        start = time.perf_counter()
        call()
        repeats[name] = max(1, math.ceil(args.seconds / (time.perf_counter() - start)))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(args.rounds):
        for name in list(calls) if i % 2 == 0 else list(calls)[::-1]:
            start = time.perf_counter()
            for _ in range(repeats[name]):
                calls[name]()
            times[name].append((time.perf_counter() - start) / repeats[name])
    return {name: statistics.median(t) for name, t in times.items()}


# --- memory


def estimate(step: Callable[..., Any], state: Any, batch: Batch, way: str, k: int) -> Any:
    """The compiler's figures for one step of `k` members."""
    chunk = k if way == "vmap" else 1
    return mapping.compiled(state, (batch,), (), function=step, chunk=chunk, where=None).memory_analysis()


def memory(args: argparse.Namespace) -> list[dict[str, Any]]:
    if args.quick:
        (step, state), shape, batch, counts = mlp(8, 16, 10), (8,), 4, (1, 2, 4)
    else:
        (step, state), shape, batch, counts = network("resnet20", conv="im2col"), (32, 32, 3), 64, (1, 2, 4, 8, 16)
    print("\n| members | population, MiB | updated in place, MiB | beside it all at once, MiB | in turn, MiB |")
    print("|--:|--:|--:|--:|--:|")
    rows: list[dict[str, Any]] = []
    for k in counts:
        states = stacked(state, k)
        found = {way: estimate(step, states, batches(k, batch, *shape), way, k) for way in ("vmap", "map")}
        row = {"members": k, "population": size_of(states)}
        for way, f in found.items():
            row |= {f"{way} temporary": f.temp_size_in_bytes, f"{way} in place": f.alias_size_in_bytes}
        rows.append(row)
        place = min(row["vmap in place"], row["map in place"])
        cells = [row["population"], place, row["vmap temporary"], row["map temporary"]]
        print(f"| {k} | " + " | ".join(f"{c / 2**20:.2f}" for c in cells) + " |", flush=True)
    more = {
        way: (rows[-1][f"{way} temporary"] - rows[1][f"{way} temporary"]) / (counts[-1] - counts[1])
        for way in ("vmap", "map")
    }
    print(
        f"each further member takes {more['vmap'] / 2**20:.2f} MiB at once, {more['map'] / 2**20:.4f} MiB in turn "
        f"(ratio {more['map'] / more['vmap']:.4f}, target: below 0.1)"
    )
    return rows


# --- collectives


def pretended(args: argparse.Namespace) -> list[list[Any]]:
    """`collectives` in a process that believes in eight devices, and writes down what it compiles."""
    with tempfile.TemporaryDirectory() as folder:
        flags = f" --xla_force_host_platform_device_count=8 --xla_dump_to={folder} --xla_dump_hlo_as_text"
        env = {**os.environ, "XLA_FLAGS": os.environ.get("XLA_FLAGS", "") + flags}
        env |= {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"}
        command = [sys.executable, __file__, "--pretended", folder, *(["--quick"] if args.quick else [])]
        done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
    rows = json.loads(done.stdout.splitlines()[-1])
    print("\n| mesh | mapping | convolutions | programs | all-gather | all-reduce | others |")
    print("|---|---|---|--:|--:|--:|--:|")
    for row in rows:
        print(f"| {' | '.join(map(str, row))} |", flush=True)
    return rows


def collectives(folder: Path, quick: bool) -> list[list[Any]]:
    """Rows of mesh, mapping, convolutions; of one step the programs, and the operations between devices in them."""
    rows = []
    k, batch, side = 16, 8, 8
    for conv in ("im2col",) if quick else ("native", "im2col"):
        step, one = network("resnet8", conv=conv, width=4, image_size=side)
        plain = jax.jit(jax.vmap(step), donate_argnums=0)
        for shape in ((4, 2),) if quick else ((8, 1), (4, 2), (1, 8)):
            where = population.mesh(*shape)
            for way in ("map",) if quick else (*WAYS, "jit(vmap)"):
                states = population.create(one, jax.random.split(jax.random.key(0), k), mesh=where)
                examples = population.place_batches(batches(k, batch, side, side, 3), mesh=where)
                before = set(folder.iterdir())
                if way == "jit(vmap)":
                    jax.block_until_ready(plain(states, examples))
                else:
                    jax.block_until_ready(population.advance(step, states, examples, mapping=way, mesh=where))
                programs = [p for p in set(folder.iterdir()) - before if p.name.endswith("after_optimizations.txt")]
                names = re.findall(rf" ({'|'.join(BETWEEN)})(?:-start)?\(", "".join(p.read_text() for p in programs))
                counts = [sum(n == kind for n in names) for kind in ("all-gather", "all-reduce")]
                rows.append([f"{shape[0]} × {shape[1]}", way, conv, len(programs), *counts, len(names) - sum(counts)])
    return rows


# --- growth


def growth(args: argparse.Namespace) -> dict[str, Any]:
    members = (2,) if args.quick else (1, 4, 16, 64, 256)
    wide = (16,) if args.quick else (280, 670, 1360, 2780, 5080, 9610)
    batch = 2 if args.quick else 32
    by_members = [grown(f"{k} members", *mlp(784, 256, 256, 10), k, batches(k, batch, 784), args) for k in members]
    by_size = [grown(f"width {w}", *mlp(784, w, w, 10), 2, batches(2, 4, 784), args) for w in wide]
    found = {
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
        "members": {"model": "MLP 784-256-256-10, SGD with momentum", "batch": batch, "rows": by_members},
        "parameters": {"model": "MLP 784-w-w-10, SGD with momentum, 2 members", "batch": 4, "rows": by_size},
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "growth.json").write_text(json.dumps(found, indent=1) + "\n")
    draw(found, args.out / "growth.png")
    return found


def grown(name: str, step: Callable[..., Any], state: Any, k: int, batch: Batch, args: argparse.Namespace) -> Any:
    times = timed(step, state, k, batch, (*WAYS, "auto"), args)
    # Shapes are enough for the compiler: nothing is allocated.
    shapes = jax.eval_shape(lambda: stacked(state, k))
    how = {way: auto.memory(step, shapes, (batch,), (), mapping=way, chunk=None, where=None) for way in WAYS[:2]}
    plan = auto.choose(step, shapes, (batch,), (), where=None)
    row = {
        "members": k,
        "parameters": numbers(state[0]),
        "population_bytes": k * size_of(state),
        "seconds_per_member_step": {way: t / k for way, t in times.items()},
        "bytes": {way: m.total for way, m in how.items()},
        "auto": plan.mapping,
        "why": plan.why,
    }
    cells = " ".join(f"{way} {1e3 * t / k:.4g} ms" for way, t in times.items())
    print(f"{name}, {row['parameters']:,} parameters: a member-step {cells}; auto: {plan.mapping}", flush=True)
    return row


def draw(found: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    styles = {"vmap": "o-", "map": "s-", "loop": "^-", "auto": "k+--", "own loop": "x:"}
    figure, axes = plt.subplots(2, 2, figsize=(10, 7), sharex="col", constrained_layout=True)
    for column, (x, label) in enumerate((("members", "members"), ("parameters", "parameters of a member"))):
        rows = found[x]["rows"]
        at = [r[x] for r in rows]
        above, below = axes[0, column], axes[1, column]
        for way, style in styles.items():
            above.plot(at, [1e3 * r["seconds_per_member_step"][way] for r in rows], style, label=way, markersize=7)
        for way in WAYS[:2]:
            below.plot(at, [r["bytes"][way] / 2**20 for r in rows], styles[way], label=way, markersize=7)
        below.plot(at, [r["population_bytes"] / 2**20 for r in rows], "k:", label="weights and momentum alone")
        above.set_title(f"{found[x]['model']},\nbatch {found[x]['batch']}", fontsize=10)
        above.set_ylabel("ms for a step of one member")
        below.set_ylabel("memory of a step, MiB")
        below.set_xlabel(label)
        for ax in (above, below):
            ax.set_xscale("log", base=2 if x == "members" else 10)
            ax.set_yscale("log")
            if x == "members":
                ax.set_xticks(at, map(str, at))
            ax.yaxis.set_major_formatter("{x:g}")
            if ax.get_ylim()[1] < 20 * ax.get_ylim()[0]:
                ax.yaxis.set_minor_formatter("{x:g}")
            ax.grid(alpha=0.3, which="both")
            ax.legend(fontsize=9)
    figure.suptitle(f"{found['cores']} cores, {found['device']}, JAX {found['jax']}", fontsize=10)
    figure.savefig(path, dpi=110)
    plt.close(figure)


# --- rules


def subjects(quick: bool) -> list[tuple[str, tuple[Callable[..., Any], Any], int, int, tuple[int, ...]]]:
    """Name, step and state, members, batch, shape of an example."""
    if quick:
        return [("MLP 8-16-10", mlp(8, 16, 10), 2, 4, (8,))]
    mlps = [((784, 64, 10), 64, 4), ((784, 64, 10), 64, 64), ((784, 256, 256, 10), 16, 32)]
    mlps += [((784, 256, 256, 10), 8, 512), ((3072, 512, 512, 10), 8, 64), ((3072, 512, 512, 10), 4, 512)]
    mlps += [((3072, 512, 512, 10), 4, 2048), ((784, 128, 10), 16, 1024)]
    found = [(f"MLP {'-'.join(map(str, w))}", mlp(*w), k, b, w[:1]) for w, k, b in mlps]
    vits = [((96, 4), 8, 64), ((16, 1), 16, 4), ((48, 3), 8, 16)]
    for (dim, layers), k, b in vits:
        made = network("vit_micro", image_size=16, channels=3, dim=dim, layers=layers)
        found.append((f"ViT dim {dim} × {layers}", made, k, b, (16, 16, 3)))
    return found


def rules(args: argparse.Namespace) -> list[dict[str, Any]]:
    print("\n| member | members | batch | MFLOP a member | FLOP a number carried | vmap, ms | map, ms | loop, ms "
          "| own loop, ms | fastest | auto | auto / fastest |")  # fmt: skip
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|---|---|--:|")
    rows = []
    for name, (step, state), k, batch, shape in subjects(args.quick):
        examples = batches(k, batch, *shape)
        times = timed(step, state, k, examples, WAYS, args)
        member = jax.eval_shape(lambda b: jax.tree.map(lambda leaf: leaf[0], b), examples)
        flops = (jax.jit(step).lower(state, member).cost_analysis() or {}).get("flops", 0.0)
        plan = auto.choose(step, jax.eval_shape(lambda: stacked(state, k)), (examples,), (), where=None)  # noqa: B023
        fastest = min(WAYS, key=times.__getitem__)
        each = flops / numbers(state)
        row = {"member": name, "members": k, "batch": batch, "flops": flops, "flops_per_number": each, "seconds": times}
        rows.append(row | {"fastest": fastest, "auto": plan.mapping})
        cells = [f"{1e3 * times[way]:.2f}" for way in (*WAYS, "own loop")]
        cells += [fastest, plan.mapping, f"{times[plan.mapping] / times[fastest]:.2f}"]
        print(f"| {name} | {k} | {batch} | {flops / 1e6:.2f} | {each:.0f} | {' | '.join(cells)} |", flush=True)
    return rows


if __name__ == "__main__":
    main()
