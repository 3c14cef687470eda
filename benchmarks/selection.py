"""Exact global selection against `torch.nn.utils.prune.global_unstructured` on the same weights in the same process.

    python benchmarks/selection.py --millions 25 84 --repeats 5

Scores are magnitudes, 90 % are removed, ties are broken, masks come out. Two kinds of weights: normal (hardly a tie)
and normal rounded to two decimals (about a thousandth of all entries lie at the threshold). The two tools take turns;
the ratio is between their medians. Both must keep the same number of weights, and the same ones above the threshold;
the same at the threshold too, if only one lies there (torch promises no order of ties).
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch.nn.utils import prune as torch_prune

from mvp_jax.core import prune


def weights(millions: float, leaves: int, decimals: int | None, seed: int) -> dict[str, np.ndarray]:
    """A tree like a network's: kernels that grow with depth, and a small vector after each."""
    rng = np.random.default_rng(seed)
    shares = np.linspace(1, 8, leaves) ** 2
    shares /= shares.sum()
    tree = {}
    for i, share in enumerate(shares):
        width = max(int((millions * 1e6 * share / 9) ** 0.5), 1)
        kernel = rng.standard_normal((3, 3, width, width), dtype=np.float32)
        bias = rng.standard_normal(width, dtype=np.float32)
        for name, x in (("kernel", kernel), ("bias", bias)):
            tree[f"layer{i:02d}/{name}"] = x if decimals is None else np.round(x, decimals)
    return tree


@jax.jit
def select(tree: dict[str, jax.Array], keep: jax.Array) -> dict[str, jax.Array]:
    return prune.across_tree(jax.tree.map(jnp.abs, tree), keep)


def with_jax(tree: dict[str, jax.Array], keep: int) -> dict[str, jax.Array]:
    return jax.block_until_ready(select(tree, keep))


def with_torch(tree: dict[str, np.ndarray], removed: int) -> tuple[float, dict[str, np.ndarray]]:
    """Seconds taken by the pruning alone, and the masks."""
    modules = {name: torch.nn.Module() for name in tree}
    for name, module in modules.items():
        module.weight = torch.nn.Parameter(torch.from_numpy(tree[name]), requires_grad=False)
    start = time.perf_counter()
    torch_prune.global_unstructured(
        [(m, "weight") for m in modules.values()], pruning_method=torch_prune.L1Unstructured, amount=removed
    )
    taken = time.perf_counter() - start
    return taken, {name: m.weight_mask.numpy() > 0 for name, m in modules.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--millions", type=float, nargs="+", default=[25, 84])
    parser.add_argument("--leaves", type=int, default=25)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--quick", action="store_true", help="only show that it runs")
    args = parser.parse_args()
    if args.quick:
        args.millions, args.repeats = [0.5], 1
    print(
        f"jax {jax.__version__} on {jax.default_backend()}, "
        f"torch {torch.__version__} on {torch.get_num_threads()} threads"
    )
    print("| parameters | scores | mvp_jax, s | torch, s | ratio | first call, s | kept |")
    print("|---|---|---|---|---|---|---|")
    for millions in args.millions:
        for kind, decimals in (("distinct", None), ("tie-heavy", 2)):
            tree = weights(millions, args.leaves, decimals, seed=0)
            n = sum(x.size for x in tree.values())
            keep = prune.keep_count(n, args.sparsity)
            device = jax.device_put(tree)
            start = time.perf_counter()
            ours = with_jax(device, keep)
            first = time.perf_counter() - start
            ours_s, torch_s = [], []
            for _ in range(args.repeats):
                start = time.perf_counter()
                ours = with_jax(device, keep)
                ours_s.append(time.perf_counter() - start)
                taken, theirs = with_torch(tree, n - keep)
                torch_s.append(taken)
            check(tree, {k: np.asarray(m) for k, m in ours.items()}, theirs, keep)
            a, b = statistics.median(ours_s), statistics.median(torch_s)
            print(f"| {n:,} | {kind} | {a:.3f} | {b:.2f} | {b / a:.1f} | {first:.2f} | {keep:,} |", flush=True)


def check(tree: dict[str, np.ndarray], ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray], keep: int) -> None:
    ours_n, theirs_n = (sum(int(m.sum()) for m in masks.values()) for masks in (ours, theirs))
    if not ours_n == theirs_n == keep:
        raise SystemExit(f"asked to keep {keep}; mvp_jax kept {ours_n}, torch {theirs_n}")
    magnitudes = {k: np.abs(x) for k, x in tree.items()}
    lowest = min(magnitudes[k][m].min() for k, m in ours.items() if m.any())
    for k, x in magnitudes.items():
        if not np.array_equal(ours[k] & (x > lowest), theirs[k] & (x > lowest)):
            raise SystemExit(f"masks differ above the threshold at {k}")
    unique = sum(int((x == lowest).sum()) for x in magnitudes.values()) == 1
    if unique and not all(np.array_equal(ours[k], theirs[k]) for k in tree):
        raise SystemExit("masks differ although only one weight lies at the threshold")


if __name__ == "__main__":
    main()
