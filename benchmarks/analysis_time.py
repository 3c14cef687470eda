"""How long it takes to find the groups of a function: JAX's own tracing, and what is done with its equations.

    python benchmarks/analysis_time.py [--rounds 3] [--repeats 1] [--only NAME ...] [--quick]

Small twins of large models, with as many equations as those have and next to no width, as shapes without any data: what
is timed depends on the number of equations and not on how large the arrays are. `SwinT`: twelve blocks with shifted
windows. `NASNet`: sixteen cells whose branches of separable convolutions are added and concatenated. `EfficientNet`:
sixteen inverted bottlenecks with squeeze and excitation. `DenseNet`: 116 layers that each concatenate what all earlier
ones made. `Transformer`: 24 layers in a plain loop. `ViT-B` and `ResNet-50` are those of `mvp_jax.models`.

Equations are counted in the traced function and in all functions that it calls. `JAX` is `jax.make_jaxpr` alone, from
empty caches. What is ours comes on top: `first pass` reads the equations and says which axes are cut together,
`second pass` follows zeros, `describe` makes named groups; with JAX's tracing this is `graph.groups`, and without it
what an equation takes is given. `explain` is what `graph.explain` adds to the groups, and `slim` what `compact.slim`
adds to the passes: finding the groups again, and cutting the arrays. `replay` is `jax.make_jaxpr` of the slim function.
Seconds are those of the processor, so that other programs on the machine hardly matter; the least of the rounds is
given. One line of JSON follows the table.
"""

import argparse
import gc
import json
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mvp_jax import compact, graph, models
from mvp_jax.core import flops
from mvp_jax.graph import analysis

Get = Callable[..., Any]
"""`get(path, *shape)` gives a parameter."""
Network = Callable[[Get, jax.Array], jax.Array]
STATISTICS = ("mean", "var")
COLUMNS = ("JAX", "first pass", "second pass", "describe", "explain", "slim", "replay")


class Subject(NamedTuple):
    """A function and the shapes that it is traced with."""

    apply: Callable[..., Any]
    variables: Any
    image: jax.ShapeDtypeStruct


# --- Layers ----------------------------------------------------------------------------------------------------------


def dense(get: Get, name: str, x: jax.Array, width: int, bias: bool = True) -> jax.Array:
    y = x @ get(f"{name}/kernel", x.shape[-1], width)
    return y + get(f"{name}/bias", width) if bias else y


def conv(get: Get, name: str, x: jax.Array, width: int, size: int = 1, stride: int = 1, groups: int = 1) -> jax.Array:
    kernel = get(f"{name}/kernel", size, size, x.shape[-1] // groups, width)
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def batch_norm(get: Get, name: str, x: jax.Array) -> jax.Array:
    scale, bias, mean, var = (get(f"{name}/{what}", x.shape[-1]) for what in ("scale", "bias", *STATISTICS))
    return (x - mean) * (lax.rsqrt(var + 1e-3) * scale) + bias


def layer_norm(get: Get, name: str, x: jax.Array) -> jax.Array:
    """First the mean, then the variance of what is centred."""
    centred = x - jnp.mean(x, -1, keepdims=True)
    var = jnp.mean(jnp.square(centred), -1, keepdims=True)
    return centred * lax.rsqrt(var + 1e-5) * get(f"{name}/scale", x.shape[-1]) + get(f"{name}/bias", x.shape[-1])


def pool(x: jax.Array, how: str, size: int = 3, stride: int = 1) -> jax.Array:
    window, strides = (1, size, size, 1), (1, stride, stride, 1)
    if how == "max":
        return lax.reduce_window(x, -jnp.inf, lax.max, window, strides, "SAME")
    ones = jnp.ones((1, *x.shape[1:3], 1), x.dtype)
    count = lax.reduce_window(ones, 0.0, lax.add, window, strides, "SAME")
    return lax.reduce_window(x, 0.0, lax.add, window, strides, "SAME") / count


def classify(get: Get, x: jax.Array) -> jax.Array:
    return dense(get, "head", jnp.mean(x, (1, 2)), 10)


# --- Swin ------------------------------------------------------------------------------------------------------------


def bias_index(window: int) -> np.ndarray:
    """For each pair of positions of a window, the row of the table of relative positions."""
    at = np.stack(np.meshgrid(np.arange(window), np.arange(window), indexing="ij"), -1).reshape(-1, 2)
    apart = at[:, None] - at[None] + window - 1
    return apart[..., 0] * (2 * window - 1) + apart[..., 1]


def shift_mask(side: int, window: int, shift: int) -> np.ndarray:
    """`[windows, T, T]`: 0 where two positions were neighbours before the shift, else a large negative number."""
    bands = np.zeros(side, int)
    bands[side - window : side - shift], bands[side - shift :] = 1, 2
    regions = (3 * bands[:, None] + bands[None]).reshape(side // window, window, side // window, window)
    flat = regions.transpose(0, 2, 1, 3).reshape(-1, window * window)
    return np.where(flat[:, :, None] == flat[:, None], 0.0, -100.0).astype(np.float32)


def window_attention(get: Get, name: str, x: jax.Array, heads: int, window: int, shift: int) -> jax.Array:
    n, side, _, width = x.shape
    if shift:
        x = jnp.roll(x, (-shift, -shift), (1, 2))
    across = side // window
    x = x.reshape(n, across, window, across, window, width).transpose(0, 1, 3, 2, 4, 5)
    x = x.reshape(-1, window * window, width)
    qkv = dense(get, f"{name}/qkv", x, 3 * width).reshape(*x.shape[:2], 3, heads, width // heads)
    q, k, v = qkv.transpose(2, 0, 3, 1, 4)
    scores = (q * (width // heads) ** -0.5) @ k.swapaxes(-2, -1)
    table = get(f"{name}/positions", (2 * window - 1) ** 2, heads)
    scores = scores + table[bias_index(window).ravel()].reshape(window**2, window**2, heads).transpose(2, 0, 1)[None]
    if shift:
        masks = jnp.asarray(shift_mask(side, window, shift))
        scores = scores.reshape(n, across**2, *scores.shape[1:]) + masks[None, :, None]
        scores = scores.reshape(-1, *scores.shape[2:])
    x = (jax.nn.softmax(scores) @ v).swapaxes(1, 2).reshape(*x.shape)
    x = dense(get, f"{name}/proj", x, width)
    x = x.reshape(n, across, across, window, window, width).transpose(0, 1, 3, 2, 4, 5).reshape(n, side, side, width)
    return jnp.roll(x, (shift, shift), (1, 2)) if shift else x


def merge_patches(get: Get, name: str, x: jax.Array) -> jax.Array:
    corners = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
    return dense(get, f"{name}/reduction", layer_norm(get, f"{name}/norm", jnp.concatenate(corners, -1)), 16, False)


def swin(get: Get, x: jax.Array, repeats: int) -> jax.Array:
    window = 4
    x = conv(get, "embed", x, 16, 4, 4) + get("embed/bias", 16)
    x = layer_norm(get, "embed_norm", x)
    for stage, blocks in enumerate((2, 2, 6, 2)):
        if stage:
            x = merge_patches(get, f"merge{stage}", x)
        for i in range(blocks * repeats):
            name = f"stage{stage}/block{i}"
            shift = window // 2 if i % 2 and x.shape[1] > window else 0
            x = x + window_attention(get, f"{name}/attn", layer_norm(get, f"{name}/norm1", x), 4, window, shift)
            h = jax.nn.gelu(dense(get, f"{name}/fc1", layer_norm(get, f"{name}/norm2", x), 32), approximate=False)
            x = x + dense(get, f"{name}/fc2", h, x.shape[-1])
    return classify(get, layer_norm(get, "norm", x))


# --- NASNet ----------------------------------------------------------------------------------------------------------


def squeeze(get: Get, name: str, x: jax.Array, width: int) -> jax.Array:
    return batch_norm(get, f"{name}/norm", conv(get, f"{name}/conv", jax.nn.relu(x), width))


def separable(get: Get, name: str, x: jax.Array, width: int, size: int, stride: int = 1) -> jax.Array:
    """Two separable convolutions, each after an activation and with a norm behind."""
    for i, step in enumerate((stride, 1)):
        x = conv(get, f"{name}/depth{i}", jax.nn.relu(x), x.shape[-1], size, step, groups=x.shape[-1])
        x = batch_norm(get, f"{name}/norm{i}", conv(get, f"{name}/point{i}", x, width))
    return x


def adjust(get: Get, name: str, before: jax.Array, x: jax.Array, width: int) -> jax.Array:
    """The output of the cell before the last, in the shape of the last one's."""
    if before.shape[1] == x.shape[1]:
        return squeeze(get, name, before, width)
    before = jax.nn.relu(before)
    moved = jnp.pad(before, ((0, 0), (0, 1), (0, 1), (0, 0)))[:, 1:, 1:]
    halves = [conv(get, f"{name}/half{i}", pool(y, "average", 1, 2), width // 2) for i, y in enumerate((before, moved))]
    return batch_norm(get, f"{name}/norm", jnp.concatenate(halves, -1))


def normal_cell(get: Get, name: str, before: jax.Array, x: jax.Array, width: int) -> jax.Array:
    p, h = adjust(get, f"{name}/adjust", before, x, width), squeeze(get, f"{name}/squeeze", x, width)
    branches = [
        separable(get, f"{name}/left1", h, width, 5) + separable(get, f"{name}/right1", p, width, 3),
        separable(get, f"{name}/left2", p, width, 5) + separable(get, f"{name}/right2", p, width, 3),
        pool(h, "average") + p,
        pool(p, "average") + pool(p, "average"),
        separable(get, f"{name}/left5", h, width, 3) + h,
    ]
    return jnp.concatenate([p, *branches], -1)


def reduction_cell(get: Get, name: str, before: jax.Array, x: jax.Array, width: int) -> jax.Array:
    p, h = adjust(get, f"{name}/adjust", before, x, width), squeeze(get, f"{name}/squeeze", x, width)
    first = separable(get, f"{name}/left1", h, width, 5, 2) + separable(get, f"{name}/right1", p, width, 7, 2)
    second = pool(h, "max", 3, 2) + separable(get, f"{name}/right2", p, width, 7, 2)
    third = pool(h, "average", 3, 2) + separable(get, f"{name}/right3", p, width, 5, 2)
    fourth = pool(first, "average") + second
    fifth = separable(get, f"{name}/left5", first, width, 3) + pool(h, "max", 3, 2)
    return jnp.concatenate([second, third, fourth, fifth], -1)


def nasnet(get: Get, x: jax.Array, repeats: int) -> jax.Array:
    x = batch_norm(get, "stem/norm", conv(get, "stem/conv", x, 4, 3, 2))
    before = x
    for i in range(2):
        before, x = x, reduction_cell(get, f"stem{i}", before, x, 4)
    for stage in range(3):
        if stage:
            before, x = x, reduction_cell(get, f"reduce{stage}", before, x, 4)
        for i in range(4 * repeats):
            before, x = x, normal_cell(get, f"stage{stage}/cell{i}", before, x, 4)
    return classify(get, jax.nn.relu(x))


# --- EfficientNet, DenseNet, a transformer ---------------------------------------------------------------------------


def bottleneck(get: Get, name: str, x: jax.Array, width: int, expand: int, size: int, stride: int) -> jax.Array:
    inside, y = x.shape[-1] * expand, x
    if expand > 1:
        y = jax.nn.swish(batch_norm(get, f"{name}/expand_norm", conv(get, f"{name}/expand", y, inside)))
    y = conv(get, f"{name}/depthwise", y, inside, size, stride, groups=inside)
    y = jax.nn.swish(batch_norm(get, f"{name}/norm", y))
    gate = jnp.mean(y, (1, 2), keepdims=True)
    gate = jax.nn.swish(conv(get, f"{name}/reduce", gate, 2) + get(f"{name}/reduce/bias", 2))
    y = y * jax.nn.sigmoid(conv(get, f"{name}/widen", gate, inside) + get(f"{name}/widen/bias", inside))
    y = batch_norm(get, f"{name}/project_norm", conv(get, f"{name}/project", y, width))
    return x + y if x.shape == y.shape else y


def efficientnet(get: Get, x: jax.Array, repeats: int) -> jax.Array:
    x = x * (1 / 255.0)
    x = (x - jnp.array([0.485, 0.456, 0.406])) / jnp.array([0.229, 0.224, 0.225])
    x = jax.nn.swish(batch_norm(get, "stem/norm", conv(get, "stem/conv", x, 4, 3, 2)))
    stages = ((1, 1, 3, 4), (2, 2, 3, 6), (2, 2, 5, 6), (3, 2, 3, 8), (3, 1, 5, 8), (4, 2, 5, 10), (1, 1, 3, 12))
    for stage, (blocks, stride, size, width) in enumerate(stages):
        for i in range(blocks * repeats):
            x = bottleneck(get, f"stage{stage}/{i}", x, width, 6 if stage else 1, size, 1 if i else stride)
    return classify(get, jax.nn.swish(batch_norm(get, "top/norm", conv(get, "top/conv", x, 16))))


def densenet(get: Get, x: jax.Array, repeats: int) -> jax.Array:
    """One block, so that the concatenation that every layer reads has one part more each time."""
    x = conv(get, "stem", x, 4, 3)
    for i in range(116 * repeats):
        y = conv(get, f"layer{i}/conv1", jax.nn.relu(batch_norm(get, f"layer{i}/norm1", x)), 4)
        y = conv(get, f"layer{i}/conv2", jax.nn.relu(batch_norm(get, f"layer{i}/norm2", y)), 2, 3)
        x = jnp.concatenate([x, y], -1)
    return classify(get, jax.nn.relu(batch_norm(get, "norm", x)))


def transformer(get: Get, x: jax.Array, repeats: int) -> jax.Array:
    x = conv(get, "embed", x, 16, 4, 4)
    x = x.reshape(x.shape[0], -1, 16) + get("positions", x.shape[1] * x.shape[2], 16)
    for i in range(24 * repeats):
        h = layer_norm(get, f"layer{i}/norm1", x)
        q, k, v = (dense(get, f"layer{i}/{which}", h, 16).reshape(*h.shape[:2], 4, 4) for which in "qkv")
        scores = jax.nn.softmax(jnp.einsum("nqhd,nkhd->nhqk", q, k) / 2.0)
        x = x + dense(get, f"layer{i}/o", jnp.einsum("nhqk,nkhd->nqhd", scores, v).reshape(h.shape), 16)
        h = jax.nn.gelu(dense(get, f"layer{i}/fc1", layer_norm(get, f"layer{i}/norm2", x), 32))
        x = x + dense(get, f"layer{i}/fc2", h, 16)
    return classify(get, layer_norm(get, "norm", x)[:, None])


# --- Timing ----------------------------------------------------------------------------------------------------------

TWINS: dict[str, tuple[Callable[[Get, jax.Array, int], jax.Array], int]] = {
    "SwinT": (swin, 128),
    "NASNet": (nasnet, 64),
    "EfficientNet": (efficientnet, 64),
    "DenseNet": (densenet, 8),
    "Transformer": (transformer, 16),
}
PRESETS = {"ViT-B": "vit_base", "ResNet-50": "resnet50"}


def twin(name: str, repeats: int = 1) -> Subject:
    """A twin with the shapes of its parameters, found by running it once on shapes; `repeats` makes it deeper."""
    network, side = TWINS[name]
    image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    variables: dict[str, dict[str, Any]] = {"params": {}, "statistics": {}}

    def place(path: str) -> str:
        return "statistics" if path.rpartition("/")[2] in STATISTICS else "params"

    def note(path: str, *shape: int) -> jax.Array:
        variables[place(path)][path] = jax.ShapeDtypeStruct(shape, jnp.float32)
        return jnp.zeros(shape)

    def apply(variables: Any, x: jax.Array) -> jax.Array:
        return network(lambda path, *shape: variables[place(path)][path], x, repeats)

    jax.eval_shape(lambda x: network(note, x, repeats), image)
    return Subject(apply, variables, image)


def preset(name: str) -> Subject:
    model = models.create(PRESETS[name], image_size=224, classes=10)
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    return Subject(lambda v, x: model.apply(v, x)[0], jax.eval_shape(model.init, jax.random.key(0)), image)


def equations(jaxpr: Any) -> Iterator[Any]:
    """All equations of a jaxpr, and of those that it calls."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in flops.subprograms(eqn):
            yield from equations(getattr(inner, "jaxpr", inner))


def clocked(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of the processor, and the result; no earlier garbage is collected meanwhile."""
    gc.collect()
    start = time.process_time()
    result = call()
    return time.process_time() - start, result


def cut(subject: Subject) -> tuple[Callable[[], Any], Callable[[Any], Any]]:
    """Calls that cut half of every group off arrays of zeros, and that trace the function which comes of it."""
    apply, variables, image = subject
    groups = graph.groups(apply, variables, image)
    kept = {g.name: np.arange(g.size) < max(g.size // 2, 1) for g in groups}
    arrays = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), variables)
    return (
        lambda: compact.slim(apply, arrays, groups, kept, image),
        lambda result: jax.make_jaxpr(result[0])(result[1], image),
    )


def timed(subject: Subject) -> dict[str, float]:
    """Seconds of each step of one analysis, from empty caches."""
    apply, variables, image = subject
    jax.clear_caches()
    found: dict[str, float] = {}
    found["JAX"], _ = clocked(lambda: jax.make_jaxpr(apply)(variables, image))
    # From now on JAX has the jaxpr at hand: what it still takes is measured, and taken off.
    again, _ = clocked(lambda: jax.make_jaxpr(apply)(variables, image))
    first, traced = clocked(lambda: graph.trace(apply, variables, image))
    second, _ = clocked(lambda: graph.leaks(traced))
    last, _ = clocked(lambda: analysis.describe(traced))
    found |= {"first pass": first - again, "second pass": second, "describe": last}
    whole, _ = clocked(lambda: graph.explain(apply, variables, image))
    slim, replay = cut(subject)
    slimmed, result = clocked(slim)
    found |= {"explain": whole - first - second - last, "slim": slimmed - first - second}
    found["replay"], _ = clocked(lambda: replay(result))
    return {name: max(seconds, 0.0) for name, seconds in found.items()}


def row(name: str, subject: Subject, rounds: int) -> dict[str, Any]:
    """The least times of several rounds."""
    count = sum(1 for _ in equations(jax.make_jaxpr(subject.apply)(subject.variables, subject.image).jaxpr))
    times = [timed(subject) for _ in range(rounds)]
    least = {column: min(t[column] for t in times) for column in COLUMNS}
    passes = least["first pass"] + least["second pass"] + least["describe"]
    return {
        "model": name,
        "equations": count,
        "seconds": {column: round(s, 4) for column, s in least.items()},
        "groups": round(passes + least["JAX"], 4),
        "microseconds": round(1e6 * passes / count, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=1, help="how many times as deep the twins are")
    parser.add_argument("--only", nargs="+", choices=[*TWINS, *PRESETS], default=[*TWINS, *PRESETS])
    parser.add_argument("--quick", action="store_true", help="only show that it runs")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.only = 1, ["SwinT", "EfficientNet"]
    jax.config.update("jax_enable_compilation_cache", False)
    load = os.getloadavg()[0]
    print(f"jax {jax.__version__}, least of {args.rounds} rounds, load average before {load:.1f}\n", flush=True)
    print(f"| model | equations | {', s | '.join(COLUMNS)}, s | groups in all, s | passes, µs an equation |")
    print("|---|" + "---|" * (len(COLUMNS) + 3))
    rows = []
    for name in args.only:
        subject = preset(name) if name in PRESETS else twin(name, args.repeats)
        r = row(name, subject, args.rounds)
        cells = " | ".join(f"{r['seconds'][column]:.3f}" for column in COLUMNS)
        print(f"| {name} | {r['equations']} | {cells} | {r['groups']:.2f} | {r['microseconds']:.0f} |", flush=True)
        rows.append(r)
    print("\n" + json.dumps({"jax": jax.__version__, "repeats": args.repeats, "rounds": args.rounds, "rows": rows}))


if __name__ == "__main__":
    main()
