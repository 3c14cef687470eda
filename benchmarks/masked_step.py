"""What a fixed mask costs in training: a masked step against a dense one, interleaved, as a ratio.

    python benchmarks/masked_step.py [--pairs 60] [--batch 128] [--conv native|im2col] [--quick]

Both are one jitted step of SGD with momentum on a ResNet-20 (32×32 images). The masked one carries a boolean for every
entry of every kernel (90 % pruned), applies them in the forward pass and to the update. Dense and masked steps
alternate, so that whatever else the machine does falls on both; the ratio of each pair is taken, and the median of the
ratios is given with a bootstrap interval.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mvp_jax import models, saliency, train
from mvp_jax.core import masks, prune, trees
from mvp_jax.core.types import Batch, Variables


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--conv", default="im2col", choices=("native", "im2col"))
    parser.add_argument("--quick", action="store_true", help="only show that it runs")
    args = parser.parse_args()
    if args.quick:
        args.pairs, args.batch = 3, 8

    model = models.create("resnet20", image_size=32, channels=3, classes=10, conv=args.conv)
    variables = model.init(jax.random.key(0))
    kernels = trees.select(variables.params, model.prunable)
    total = sum(p.size for p, k in zip(jax.tree.leaves(variables.params), jax.tree.leaves(kernels), strict=True) if k)
    keep = prune.keep_count(total, 0.9)
    chosen = prune.across_tree(saliency.magnitude(variables.params), keep, within=kernels)
    sparse = jax.tree.map(jnp.broadcast_to, masks.exempt(chosen, kernels), jax.tree.map(jnp.shape, variables.params))
    tx = train.optimizer("sgd", momentum=0.9)

    def dense_step(state: train.TrainState, batch: Batch) -> tuple[train.TrainState, jax.Array]:
        def objective(params: dict) -> tuple[jax.Array, tuple[jax.Array, dict]]:
            logits, rest = model.apply(Variables(params, state.variables.rest), batch["x"], train=True)
            return jnp.mean(train.cross_entropy(logits, batch["y"])), (logits, rest)

        params = state.variables.params
        (loss, (_, rest)), grads = jax.value_and_grad(objective, has_aux=True)(params)
        updates, opt_state = tx.update(grads, state.opt_state, params)
        variables = Variables(optax.apply_updates(params, updates), rest)
        return state._replace(step=state.step + 1, variables=variables, opt_state=opt_state), loss

    batch = {
        "x": jax.random.normal(jax.random.key(1), (args.batch, 32, 32, 3)),
        "y": jax.random.randint(jax.random.key(2), (args.batch,), 0, 10),
    }
    masked_step = jax.jit(train.make_step(model, train.cross_entropy, tx))
    runs = {
        "dense": [jax.jit(dense_step), train.create(variables, tx, jax.random.key(3))],
        "masked": [masked_step, train.create(variables, tx, jax.random.key(3), masks=sparse)],
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(args.pairs + 3):
        for name in sorted(runs, reverse=bool(i % 2)):
            step, state = runs[name]
            start = time.perf_counter()
            runs[name][1] = jax.block_until_ready(step(state, batch)[0])
            if i >= 3:
                times[name].append(time.perf_counter() - start)
    ratios = np.array(times["masked"]) / np.array(times["dense"])
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(ratios, (2000, len(ratios))), axis=1)
    low, high = np.quantile(medians, (0.025, 0.975))
    pruned = 1 - float(sum(m.sum() for m in jax.tree.leaves(sparse))) / sum(m.size for m in jax.tree.leaves(sparse))
    print(f"device {jax.devices()[0].device_kind}, batch {args.batch}, {args.conv} convolutions, {pruned:.0%} pruned")
    print(f"dense  {1000 * np.median(times['dense']):.1f} ms a step")
    print(f"masked {1000 * np.median(times['masked']):.1f} ms a step")
    print(f"ratio  {np.median(ratios):.3f} [{low:.3f}, {high:.3f}] over {len(ratios)} pairs (target: at most 1.05)")


if __name__ == "__main__":
    main()
