"""How long does it take to find the coupled units of a model, and what does removing half of them save?

    pip install torch==2.13.0 torchvision timm torch-pruning
    python benchmarks/any_model.py [--rounds 7] [--calls 5] [--without-torch] [--quick]

ResNet-50 and ViT-B/16 on 224 pixels, random weights, evaluation mode: `graph.groups` and `compact.slim` beside
Torch-Pruning (torchvision's ResNet-50; timm's ViT, as Torch-Pruning removes heads from a fused `qkv` layer but not from
`nn.MultiheadAttention`). Both remove the half with the smallest weights of every set of units on its own: all filters
and residual channels of the ResNet; heads and MLP neurons of the ViT, whose residual stream stays whole.

Analysis is timed from the function to its groups, with nothing cached and no earlier garbage to collect: tracing, and
for Torch-Pruning the forward pass that it traces (`graph` is its dependency graph alone). Latency is that of `jax.jit`
and of eager PyTorch in inference mode, on the same number of threads. Dense and pruned take turns, first one and then
the other first; a share of time saved comes from the two times of a round, and the median of the rounds is given (least
to most). The machine must be idle: PyTorch's threads wait for each other by spinning, and a second program on the same
cores makes it tens of times slower (`OMP_WAIT_POLICY=PASSIVE` in the environment mends that, at a small cost).

Each library counts its own FLOPs, before and after: XLA (`cost.flops`) includes elementwise work and leaves out
products with padding; PyTorch counts products only, those with padding too. Torch-Pruning's own counter is not used: it
takes the projection after a pruned attention for a square one. The tables are followed by one line of JSON.
"""

import argparse
import copy
import gc
import importlib
import importlib.metadata
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mvp_jax import compact, graph, models
from mvp_jax.compact import cost
from mvp_jax.core import prune, units

NEEDED = ("torch", "torchvision", "timm", "torch_pruning")


class Subject(NamedTuple):
    """A model in both libraries.

    Attributes:
        preset: in `mvp_jax.models`.
        other: its name in torchvision, or in timm.
        kinds: of the groups that are cut.
    """

    preset: str
    other: str
    kinds: tuple[str, ...]


CONVOLUTIONAL = ("filter", "stage")
ATTENTIVE = ("head", "neuron")
SUBJECTS = {
    "ResNet-50": Subject("resnet50", "resnet50", CONVOLUTIONAL),
    "ViT-B/16": Subject("vit_base", "vit_base_patch16_224", ATTENTIVE),
}
QUICK = {
    "ResNet-18": Subject("resnet18", "resnet18", CONVOLUTIONAL),
    "ViT-S/16": Subject("vit_small", "vit_small_patch16_224", ATTENTIVE),
}


class Contender(NamedTuple):
    """A model of one library, dense and pruned.

    Attributes:
        library: and version.
        seconds: of its steps, by name.
        params, flops: dense and pruned.
        calls: `{batch: (dense, pruned)}`; each waits for its result.
    """

    library: str
    seconds: dict[str, float]
    params: tuple[int, int]
    flops: tuple[float, float]
    calls: dict[int, tuple[Callable[[], Any], Callable[[], Any]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--calls", type=int, default=5, help="at batch 1, a round's time is the mean of this many")
    parser.add_argument("--analyses", type=int, default=5, help="how often each analysis is timed")
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--without-torch", action="store_true", help="only the part in JAX")
    parser.add_argument("--quick", action="store_true", help="only show that it runs")
    args = parser.parse_args()
    if args.quick:
        args.image_size, args.batches, args.rounds, args.calls, args.analyses = 32, [1, 2], 2, 1, 1
    makers = [with_jax]
    if not args.without_torch:
        missing = imported()
        if not missing:
            makers.append(with_torch)
        elif args.quick:
            print(f"PyTorch's part left out: {missing}")
        else:
            raise SystemExit(f"{missing}; or run with --without-torch")

    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    print(
        f"{args.image_size} pixels, {args.ratio:.0%} of the units removed, {args.rounds} rounds, {threads} threads, "
        f"jax {jax.__version__} on {jax.devices()[0].device_kind}, load average before {os.getloadavg()[0]:.1f}",
        flush=True,
    )
    rows = []
    for model, subject in (QUICK if args.quick else SUBJECTS).items():
        contenders = [make(subject, args, threads) for make in makers]
        times = timed(contenders, args)
        rows += [row(model, c, t) for c, t in zip(contenders, times, strict=True)]
    report(rows, args.batches)
    print(json.dumps({"image_size": args.image_size, "ratio": args.ratio, "threads": threads, "rows": rows}))


def imported() -> str:
    """Loads what the comparison needs; says what is missing, if anything is."""
    for name in NEEDED:
        try:
            importlib.import_module(name)
        except ImportError as error:
            return f"no {name} here ({error}); pip install torch==2.13.0 torchvision timm torch-pruning"
        except RuntimeError:
            if name != "torchvision":
                raise
            # torchvision's compiled operators for detection are built for CUDA and do not load beside a CPU-only
            # PyTorch. No model here has them, but importing stops unless their names are known.
            import torch

            for operator in ("nms", "qnms"):
                torch.library.define(f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou) -> Tensor")
            importlib.import_module(name)
    return ""


def with_jax(subject: Subject, args: argparse.Namespace, threads: int) -> Contender:
    model = models.create(subject.preset, image_size=args.image_size, classes=1000)
    variables = model.init(jax.random.key(0))
    images = images_for(args)
    example = images[1]

    def apply(variables: Any, x: jax.Array) -> jax.Array:
        return model.apply(variables, x)[0]

    analyses = []
    for _ in range(args.analyses):
        jax.clear_caches()
        gc.collect()
        analyses.append(stopwatch(lambda: graph.groups(apply, variables, example))[0])
    groups = [g for g in graph.groups(apply, variables, example) if g.kind in subject.kinds]
    scores = units.reduce(variables.params, groups, "l2")
    kept = prune.by_leaf(scores, {g.name: g.size - round(args.ratio * g.size) for g in groups})
    cutting, (slim, small) = stopwatch(
        lambda: jax.block_until_ready(compact.slim(apply, variables, groups, kept, example))
    )

    runs = jax.jit(apply), jax.jit(slim)
    masked, cut = runs[0](compact.mask(variables, groups, kept), example), runs[1](small, example)
    apart = float(jnp.max(jnp.abs(masked - cut)) / jnp.max(jnp.abs(masked)))
    if not apart < 1e-4:
        raise SystemExit(f"slim {subject.preset} is {apart:.1e} from the masked one, relative to the largest logit")

    def call(i: int, x: jax.Array) -> Callable[[], Any]:
        return lambda: jax.block_until_ready(runs[i]((variables, small)[i], x))

    return Contender(
        f"mvp_jax (JAX {jax.__version__})",
        {"analysis": statistics.median(analyses), "first analysis": analyses[0], "cut": cutting},
        (cost.parameters(variables.params), cost.parameters(small.params)),
        (cost.flops(apply, variables, example.shape), cost.flops(slim, small, example.shape)),
        {n: (call(0, x), call(1, x)) for n, x in images.items()},
    )


def with_torch(subject: Subject, args: argparse.Namespace, threads: int) -> Contender:
    import timm
    import torch
    import torch_pruning
    import torchvision
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    if subject.kinds == ATTENTIVE:
        dense = timm.create_model(subject.other, pretrained=False, img_size=args.image_size).eval()
    else:
        dense = torchvision.models.get_model(subject.other, weights=None).eval()
    images = {n: torch.from_numpy(np.array(x).transpose(0, 3, 1, 2).copy()) for n, x in images_for(args).items()}
    example = images[1]
    pruned = copy.deepcopy(dense)
    fixed, heads = [pruned.fc if subject.kinds == CONVOLUTIONAL else pruned.head], {}
    if subject.kinds == ATTENTIVE:
        # Every layer that writes to the residual stream is left out, so that the stream stays whole.
        fixed += [pruned.patch_embed.proj, *(layer for b in pruned.blocks for layer in (b.attn.proj, b.mlp.fc2))]
        heads = {b.attn.qkv: b.attn.num_heads for b in pruned.blocks}

    def build() -> Any:
        return torch_pruning.DependencyGraph().build_dependency(dense, example_inputs=example)

    def build_and_list() -> Any:
        return list(build().get_all_groups())

    graphs, analyses = [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # position table and class token, whose width stays
        for _ in range(args.analyses):
            gc.collect()
            graphs.append(stopwatch(build)[0])
            gc.collect()
            analyses.append(stopwatch(build_and_list)[0])
        pruner = torch_pruning.pruner.BasePruner(
            pruned,
            example,
            importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
            global_pruning=False,
            pruning_ratio=args.ratio,
            ignored_layers=fixed,
            num_heads=heads,
            prune_num_heads=bool(heads),
            prune_head_dims=not heads,
            head_pruning_ratio=args.ratio if heads else 0.0,
        )
        cutting, _ = stopwatch(pruner.step)
    for b in pruned.blocks if heads else []:
        b.attn.num_heads = pruner.num_heads[b.attn.qkv]
        b.attn.attn_dim = b.attn.num_heads * b.attn.head_dim

    def flops(model: Any) -> float:
        # Attention is spelt out as products, since the fused one is not counted.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(example)
        return float(counter.get_total_flops())

    def call(model: Any, x: Any) -> Callable[[], Any]:
        def run() -> Any:
            with torch.inference_mode():
                return model(x)

        return run

    return Contender(
        f"Torch-Pruning {importlib.metadata.version('torch-pruning')} (PyTorch {torch.__version__})",
        {
            "analysis": statistics.median(analyses),
            "first analysis": analyses[0],
            "graph": statistics.median(graphs),
            "cut": cutting,
        },
        (sum(p.numel() for p in dense.parameters()), sum(p.numel() for p in pruned.parameters())),
        (flops(dense), flops(pruned)),
        {n: (call(dense, x), call(pruned, x)) for n, x in images.items()},
    )


def images_for(args: argparse.Namespace) -> dict[int, jax.Array]:
    """`{batch: [N, H, W, C]}`, the same in both libraries; batch 1 is always there."""
    rng = np.random.default_rng(0)
    shape = (args.image_size, args.image_size, 3)
    return {n: jnp.asarray(rng.normal(size=(n, *shape)), jnp.float32) for n in sorted({1, *args.batches})}


def stopwatch(call: Callable[[], Any], calls: int = 1) -> tuple[float, Any]:
    """Seconds of one call, the mean of several, and its result."""
    start = time.perf_counter()
    for _ in range(calls):
        result = call()
    return (time.perf_counter() - start) / calls, result


def timed(contenders: list[Contender], args: argparse.Namespace) -> list[dict[int, np.ndarray]]:
    """For each contender `{batch: [rounds, 2]}`, seconds of a dense and a pruned call."""
    times = [{n: np.zeros((args.rounds, 2)) for n in args.batches} for _ in contenders]
    for n in args.batches:
        for c in contenders:
            for call in c.calls[n]:
                stopwatch(call, 2)  # compiles
        for i in range(args.rounds):
            for c, t in zip(contenders, times, strict=True):
                for j in (0, 1) if i % 2 == 0 else (1, 0):
                    t[n][i, j] = stopwatch(c.calls[n][j], args.calls if n == 1 else 1)[0]
    return times


def row(model: str, contender: Contender, times: dict[int, np.ndarray]) -> dict[str, Any]:
    """All that is reported of one library and model."""
    flops_removed = 1 - contender.flops[1] / contender.flops[0]
    latency = {}
    for n, t in times.items():
        dense, pruned = np.median(t, axis=0)
        saved = 1 - t[:, 1] / t[:, 0]
        latency[n] = {
            "dense_ms": round(1e3 * dense, 3),
            "pruned_ms": round(1e3 * pruned, 3),
            "time_saved": round(np.median(saved), 4),
            "least_saved": round(saved.min(), 4),
            "most_saved": round(saved.max(), 4),
            "time_saved_per_flops_removed": round(np.median(saved) / flops_removed, 3),
        }
    return {
        "model": model,
        "library": contender.library,
        "seconds": {name: round(s, 4) for name, s in contender.seconds.items()},
        "params": contender.params,
        "params_removed": round(1 - contender.params[1] / contender.params[0], 4),
        "flops": contender.flops,
        "flops_removed": round(flops_removed, 4),
        "latency": latency,
    }


def report(rows: list[dict[str, Any]], batches: list[int]) -> None:
    print("\n| model | library | analysis, s | first in the process, s | graph alone, s | cut, s |")
    print("|---|---|---|---|---|---|")
    for r in rows:
        s = r["seconds"]
        alone = f"{s['graph']:.2f}" if "graph" in s else ""
        print(
            f"| {r['model']} | {r['library']} | {s['analysis']:.2f} | {s['first analysis']:.2f} | {alone} "
            f"| {s['cut']:.2f} |"
        )
    print("\n| model | library | parameters | GFLOPs an image | parameters removed | FLOPs removed |")
    print("|---|---|---|---|---|---|")
    for r in rows:
        p, f = r["params"], r["flops"]
        print(
            f"| {r['model']} | {r['library']} | {p[0]:,} to {p[1]:,} | {f[0] / 1e9:.2f} to {f[1] / 1e9:.2f} "
            f"| {r['params_removed']:.1%} | {r['flops_removed']:.1%} |"
        )
    print("\n| model | batch | library | dense, ms | pruned, ms | time saved | time saved / FLOPs removed |")
    print("|---|---|---|---|---|---|---|")
    for r in rows:
        for n in batches:
            m = r["latency"][n]
            print(
                f"| {r['model']} | {n} | {r['library']} | {m['dense_ms']:.1f} | {m['pruned_ms']:.1f} "
                f"| {m['time_saved']:.1%} ({m['least_saved']:.1%} to {m['most_saved']:.1%}) "
                f"| {m['time_saved_per_flops_removed']:.2f} |"
            )
    print()


if __name__ == "__main__":
    main()
