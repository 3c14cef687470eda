"""Where a convolution's time goes: forward pass, input gradient and weight gradient, XLA against PyTorch.

    python benchmarks/convolution.py [--repeats 20] [--batch 64] [--quick]     # needs torch for the comparison

One 3×3 convolution of each stage of a ResNet-20, float32, on the same numbers; contenders take turns, and medians are
given.
"""

import argparse
import functools
import importlib.util
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from mvp_jax.models import layers

STAGES = ((16, 32), (32, 16), (64, 8))


def native(x: jax.Array, kernel: jax.Array) -> jax.Array:
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=numbers)


def im2col(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return layers.im2col(x, kernel, (1, 1), ((1, 1), (1, 1)))


def in_jax(convolve: Callable[..., jax.Array], *numbers: np.ndarray) -> list[Callable[[], object]]:
    x, kernel, grad = map(jnp.asarray, numbers)
    forward = jax.jit(convolve)
    to_input = jax.jit(lambda x, k, g: jax.vjp(lambda x: convolve(x, k), x)[1](g))
    to_kernel = jax.jit(lambda x, k, g: jax.vjp(lambda k: convolve(x, k), k)[1](g))
    calls = ((forward, (x, kernel)), (to_input, (x, kernel, grad)), (to_kernel, (x, kernel, grad)))
    return [lambda f=f, a=a: jax.block_until_ready(f(*a)) for f, a in calls]


def in_torch(x: np.ndarray, kernel: np.ndarray, grad: np.ndarray) -> list[Callable[[], object]]:
    import torch

    x_, grad_ = (torch.from_numpy(a.transpose(0, 3, 1, 2).copy()) for a in (x, grad))
    kernel_ = torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy())
    shape = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1)
    back = functools.partial(torch.ops.aten.convolution_backward, grad_, x_, kernel_, None, *shape)
    return [
        lambda: torch.nn.functional.conv2d(x_, kernel_, padding=1),
        lambda: back([True, False, False]),
        lambda: back([False, True, False]),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--quick", action="store_true", help="only show that it runs")
    args = parser.parse_args()
    if args.quick:
        args.repeats, args.batch = 2, 2
    rng = np.random.default_rng(0)
    print("| channels × pixels | library | forward, ms | input gradient, ms | weight gradient, ms |")
    print("|:--|:--|--:|--:|--:|")
    for channels, pixels in STAGES:
        image, kernel = (args.batch, pixels, pixels, channels), (3, 3, channels, channels)
        numbers = [rng.normal(size=shape).astype(np.float32) for shape in (image, kernel, image)]
        contenders = {"XLA": in_jax(native, *numbers), "XLA, im2col": in_jax(im2col, *numbers)}
        if importlib.util.find_spec("torch"):
            contenders["PyTorch"] = in_torch(*numbers)
        times: dict[str, list[list[float]]] = {name: [[], [], []] for name in contenders}
        for i in range(args.repeats + 2):
            for name, calls in contenders.items():
                for kept, call in zip(times[name], calls, strict=True):
                    start = time.perf_counter()
                    call()
                    if i >= 2:  # compiled, and warm
                        kept.append(1000 * (time.perf_counter() - start))
        for name, parts in times.items():
            shown = " | ".join(f"{statistics.median(p):.2f}" for p in parts)
            print(f"| {channels} × {pixels}² | {name} | {shown} |", flush=True)


if __name__ == "__main__":
    main()
