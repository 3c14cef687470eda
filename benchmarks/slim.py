"""Is a slim ResNet-18 as much faster as its FLOPs promise?

    python benchmarks/slim.py [--image-size 224] [--batch 128] [--repeats 7]

The dense network and those with 50 and 75 % of all units removed (filters inside blocks and the channels of the
residual streams), in one process, batch 128, compiled, evaluation mode. The timings are interleaved: one call of each
model per round, so that whatever else the machine does hits all of them alike. Printed per model: the median time, the
share of the dense time and of the dense FLOPs that is saved, and the ratio of the two shares.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from mvp_jax import compact, models
from mvp_jax.compact import cost


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.5, 0.75])
    parser.add_argument("--quick", action="store_true", help="only show that it runs")
    flags = parser.parse_args()
    if flags.quick:
        flags.image_size, flags.batch, flags.repeats = 32, 4, 1

    dense = models.create(flags.model, image_size=flags.image_size)
    variables = dense.init(jax.random.key(0))
    rng = np.random.default_rng(0)
    contenders = {0.0: (dense, variables)}
    for ratio in flags.ratios:
        kept = {g.name: jnp.asarray(rng.permutation(g.size) < round((1 - ratio) * g.size)) for g in dense.groups}
        contenders[ratio] = compact.rebuild(dense, variables, kept)

    x = jnp.asarray(rng.normal(size=(flags.batch, *dense.input_shape)), jnp.float32)
    calls = {}
    for ratio, (model, weights) in contenders.items():
        forward = jax.jit(lambda v, x, model=model: model.apply(v, x)[0])
        jax.block_until_ready(forward(weights, x))
        calls[ratio] = lambda forward=forward, weights=weights: jax.block_until_ready(forward(weights, x))
    times = {ratio: [] for ratio in calls}
    for _ in range(flags.repeats):
        for ratio, call in calls.items():
            start = time.perf_counter()
            call()
            times[ratio].append(time.perf_counter() - start)

    costs = {ratio: cost.of(model, weights) for ratio, (model, weights) in contenders.items()}
    median = {ratio: statistics.median(t) for ratio, t in times.items()}
    print(
        f"{flags.model}, {flags.image_size} pixels, batch {flags.batch}, {flags.repeats} interleaved rounds, "
        f"jax {jax.__version__} on {jax.devices()[0].device_kind}"
    )
    print(
        "| units removed | parameters | MFLOPs/example | ms/batch (min..max) | FLOPs saved | time saved "
        "| time saved / FLOPs saved |"
    )
    print("|---|---|---|---|---|---|---|")
    for ratio, c in costs.items():
        flops_saved, time_saved = 1 - c.flops / costs[0.0].flops, 1 - median[ratio] / median[0.0]
        share = f"{time_saved / flops_saved:.2f}" if ratio else "-"
        spread = f"{min(times[ratio]) * 1e3:.0f}..{max(times[ratio]) * 1e3:.0f}"
        print(
            f"| {ratio:.0%} | {c.params:,} | {c.flops / 1e6:,.0f} | {median[ratio] * 1e3:.0f} ({spread}) "
            f"| {flops_saved:.1%} | {time_saved:.1%} | {share} |"
        )


if __name__ == "__main__":
    main()
