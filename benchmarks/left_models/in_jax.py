"""Small models, each with one pattern that decides how much of it can be cut, as functions of a dict of arrays."""

import functools
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

WIDTH, HEADS, HIDDEN, TOKENS, CLASSES = 64, 4, 256, 16, 10


class Model(NamedTuple):
    """A function and what it is called with.

    Attributes:
        pattern: what decides, in words.
        apply: `apply(variables, *inputs)`.
        variables: a dict of parameters, or of collections.
        inputs: what it is traced with.
    """

    pattern: str
    apply: Callable[..., Any]
    variables: Any
    inputs: tuple[Any, ...]


def draw(shapes: Any) -> Any:
    """Random arrays for a tree of shapes, scales about 1."""

    def one(keys: Any, shape: tuple[int, ...]) -> jax.Array:
        path = jax.tree_util.keystr(keys)
        rng = np.random.default_rng(zlib.crc32(path.encode()))
        fan_in = np.prod(shape[:-1]) if len(shape) > 1 else 25
        return jnp.asarray(rng.normal(size=shape) / np.sqrt(fan_in) + path.endswith("'scale']"), jnp.float32)

    return jax.tree_util.tree_map_with_path(one, shapes, is_leaf=lambda s: isinstance(s, tuple))


def array(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(len(shape)).normal(size=shape), jnp.float32)


# --- Layers ----------------------------------------------------------------------------------------------------------


def linear(inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {"kernel": (inputs, outputs), "bias": (outputs,)}


def kernel(size: int, inputs: int, outputs: int, groups: int = 1, *, bias: bool = True) -> dict[str, tuple[int, ...]]:
    return {"kernel": (size, size, inputs // groups, outputs), **({"bias": (outputs,)} if bias else {})}


def scales(width: int) -> dict[str, tuple[int, ...]]:
    return {"scale": (width,), "bias": (width,)}


def dense(p: Any, x: jax.Array) -> jax.Array:
    return x @ p["kernel"] + p["bias"]


def conv(p: Any, x: jax.Array, stride: int = 1, groups: int = 1, padding: str = "SAME") -> jax.Array:
    numbers = ("NHWC", "HWIO", "NHWC")
    y = lax.conv_general_dilated(
        x, p["kernel"], (stride, stride), padding, dimension_numbers=numbers, feature_group_count=groups
    )
    return y + p["bias"] if "bias" in p else y


def centred(x: jax.Array, axes: Any = -1, epsilon: float = 1e-5) -> jax.Array:
    """The mean first, and then the variance of what is left: the form of most libraries."""
    x = x - x.mean(axes, keepdims=True)
    return x * lax.rsqrt(jnp.square(x).mean(axes, keepdims=True) + epsilon)


def norm(p: Any, x: jax.Array) -> jax.Array:
    return centred(x) * p["scale"] + p["bias"]


def group_norm(p: Any, x: jax.Array, groups: int = 8) -> jax.Array:
    y = centred(x.reshape(x.shape[0], -1, groups, x.shape[-1] // groups), (1, 3))
    return y.reshape(x.shape) * p["scale"] + p["bias"]


def block(width: int = WIDTH) -> dict[str, Any]:
    return {
        "norm1": scales(width),
        **{name: linear(width, width) for name in "qkvo"},
        "norm2": scales(width),
        "fc1": linear(width, 4 * width),
        "fc2": linear(4 * width, width),
    }


def heads(x: jax.Array) -> jax.Array:
    return x.reshape(*x.shape[:-1], HEADS, x.shape[-1] // HEADS)


def attention(p: Any, x: jax.Array, see: Callable[..., Any] = lambda k, v: (k, v)) -> jax.Array:
    q, k, v = (heads(dense(p[name], x)) for name in "qkv")
    k, v = see(k, v)
    weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5)
    return dense(p["o"], jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape))


def mlp(p: Any, x: jax.Array) -> jax.Array:
    return dense(p["fc2"], jax.nn.gelu(dense(p["fc1"], x)))


def pre_norm(p: Any, x: jax.Array, see: Callable[..., Any] = lambda k, v: (k, v)) -> jax.Array:
    x = x + attention(p, norm(p["norm1"], x), see)
    return x + mlp(p, norm(p["norm2"], x))


# --- Models that are written in PyTorch too --------------------------------------------------------------------------


def convnext() -> Model:
    def stage(width: int) -> dict[str, Any]:
        return {
            "depth": kernel(7, width, width, width),
            "norm": scales(width),
            "fc1": linear(width, 4 * width),
            "fc2": linear(4 * width, width),
            "layer": {"scale": (width,)},
        }

    shapes = {
        "stem": kernel(4, 3, 32),
        "norm0": scales(32),
        "block0": stage(32),
        "norm1": scales(32),
        "down": kernel(2, 32, 64),
        "block1": stage(64),
        "norm2": scales(64),
        "head": linear(64, CLASSES),
    }

    def run(p: Any, x: jax.Array) -> jax.Array:
        y = norm(p["norm"], conv(p["depth"], x, groups=x.shape[-1]))
        return x + p["layer"]["scale"] * mlp(p, y)

    def apply(p: Any, x: jax.Array) -> jax.Array:
        x = norm(p["norm0"], conv(p["stem"], x, 4, padding="VALID"))
        x = conv(p["down"], norm(p["norm1"], run(p["block0"], x)), 2, padding="VALID")
        return dense(p["head"], norm(p["norm2"], run(p["block1"], x).mean((1, 2))))

    return Model("ConvNeXt: LayerNorm in two passes", apply, draw(shapes), (array(2, 32, 32, 3),))


def vit() -> Model:
    shapes = {
        "patch": kernel(8, 3, WIDTH),
        "position": (TOKENS, WIDTH),
        "block0": block(),
        "block1": block(),
        "norm": scales(WIDTH),
        "head": linear(WIDTH, CLASSES),
    }

    def apply(p: Any, x: jax.Array) -> jax.Array:
        x = conv(p["patch"], x, 8, padding="VALID").reshape(x.shape[0], TOKENS, WIDTH) + p["position"]
        x = pre_norm(p["block1"], pre_norm(p["block0"], x))
        return dense(p["head"], norm(p["norm"], x).mean(1))

    return Model("ViT: norms before, in two passes", apply, draw(shapes), (array(2, 32, 32, 3),))


def bert() -> Model:
    shapes = {
        "embed": linear(24, WIDTH),
        "position": (TOKENS, WIDTH),
        "block0": block(),
        "block1": block(),
        "head": linear(WIDTH, CLASSES),
    }

    def post_norm(p: Any, x: jax.Array) -> jax.Array:
        x = norm(p["norm1"], x + attention(p, x))
        return norm(p["norm2"], x + mlp(p, x))

    def apply(p: Any, x: jax.Array) -> jax.Array:
        x = dense(p["embed"], x) + p["position"]
        return dense(p["head"], post_norm(p["block1"], post_norm(p["block0"], x))[:, 0])

    return Model("BERT: norms after, in two passes", apply, draw(shapes), (array(2, TOKENS, 24),))


def mixer() -> Model:
    part = {
        "norm1": scales(WIDTH),
        "token1": linear(TOKENS, 32),
        "token2": linear(32, TOKENS),
        "norm2": scales(WIDTH),
        "fc1": linear(WIDTH, HIDDEN),
        "fc2": linear(HIDDEN, WIDTH),
    }
    shapes = {
        "patch": kernel(8, 3, WIDTH),
        "block0": part,
        "block1": part,
        "norm": scales(WIDTH),
        "head": linear(WIDTH, CLASSES),
    }

    def run(p: Any, x: jax.Array) -> jax.Array:
        y = jax.nn.gelu(dense(p["token1"], norm(p["norm1"], x).swapaxes(1, 2)))
        x = x + dense(p["token2"], y).swapaxes(1, 2)
        return x + mlp(p, norm(p["norm2"], x))

    def apply(p: Any, x: jax.Array) -> jax.Array:
        x = conv(p["patch"], x, 8, padding="VALID").reshape(x.shape[0], TOKENS, WIDTH)
        return dense(p["head"], norm(p["norm"], run(p["block1"], run(p["block0"], x))).mean(1))

    return Model("MLP-mixer: a bias per token, then a norm", apply, draw(shapes), (array(2, 32, 32, 3),))


def _group_normed(pattern: str, convolve: Callable[..., jax.Array]) -> Model:
    """Norm and activation before each convolution; the second block changes the width."""
    shapes: dict[str, Any] = {"stem": kernel(3, 3, 32, bias=False), "head": linear(64, CLASSES), "norm": scales(64)}
    for i, (inputs, outputs) in enumerate(((32, 32), (32, 64))):
        shapes[f"block{i}"] = {
            "norm1": scales(inputs),
            "conv1": kernel(3, inputs, outputs, bias=False),
            "norm2": scales(outputs),
            "conv2": kernel(3, outputs, outputs, bias=False),
        }
    shapes["block1"]["shortcut"] = kernel(1, 32, 64, bias=False)

    def run(p: Any, x: jax.Array, stride: int) -> jax.Array:
        y = jax.nn.relu(group_norm(p["norm1"], x))
        x = convolve(p["shortcut"], y, stride) if "shortcut" in p else x
        y = jax.nn.relu(group_norm(p["norm2"], convolve(p["conv1"], y, stride)))
        return x + convolve(p["conv2"], y)

    def apply(p: Any, x: jax.Array) -> jax.Array:
        x = run(p["block1"], run(p["block0"], convolve(p["stem"], x), 1), 2)
        return dense(p["head"], jax.nn.relu(group_norm(p["norm"], x)).mean((1, 2)))

    return Model(pattern, apply, draw(shapes), (array(2, 16, 16, 3),))


def group_norm_resnet() -> Model:
    return _group_normed("ResNet with GroupNorm in two passes", conv)


def big_transfer() -> Model:
    def standardised(p: Any, x: jax.Array, stride: int = 1) -> jax.Array:
        return conv({"kernel": centred(p["kernel"], (0, 1, 2), 1e-10)}, x, stride)

    return _group_normed("BiT: standardised kernels and GroupNorm", standardised)


# --- Models in JAX alone ---------------------------------------------------------------------------------------------


def sinusoidal() -> Model:
    angle = np.arange(TOKENS)[:, None] / 10000.0 ** np.linspace(0, 1, WIDTH // 2)
    waves = np.concatenate([np.sin(angle), np.cos(angle)], 1).astype(np.float32)
    shapes = {"embed": linear(24, WIDTH), "block": block(), "norm": scales(WIDTH), "head": linear(WIDTH, CLASSES)}

    def apply(p: Any, x: jax.Array) -> jax.Array:
        x = pre_norm(p["block"], dense(p["embed"], x) + waves)
        return dense(p["head"], norm(p["norm"], x).mean(1))

    return Model("fixed (sinusoidal) positions, then a norm", apply, draw(shapes), (array(2, TOKENS, 24),))


def decoder() -> Model:
    """One token at a place that is not known while tracing; the caches are updated in place."""
    shapes = {"embed": (40, WIDTH), "block0": block(), "block1": block(), "norm": scales(WIDTH)}
    cache = {
        f"block{i}": {n: jnp.zeros((2, TOKENS, HEADS, WIDTH // HEADS)) for n in ("key", "value")} for i in range(2)
    }

    def apply(variables: Any, token: jax.Array, at: jax.Array) -> Any:
        p, new = variables["params"], {}
        x = p["embed"][token]

        def see(k: jax.Array, v: jax.Array, name: str) -> tuple[jax.Array, jax.Array]:
            old = variables["cache"][name]
            new[name] = {
                "key": lax.dynamic_update_slice(old["key"], k, (0, at, 0, 0)),
                "value": lax.dynamic_update_slice(old["value"], v, (0, at, 0, 0)),
            }
            return new[name]["key"], new[name]["value"]

        for name in ("block0", "block1"):
            x = pre_norm(p[name], x, functools.partial(see, name=name))
        return norm(p["norm"], x) @ p["embed"].T, new

    token = jnp.asarray([[3], [5]])
    return Model("a decoder's step with its cache", apply, {"params": draw(shapes), "cache": cache}, (token, 4))


def graph_network() -> Model:
    """Messages along edges are added up at their targets."""
    sources, targets = (jnp.asarray(np.random.default_rng(i).integers(0, 12, 40)) for i in range(2))
    layer = {"message": linear(WIDTH, WIDTH), "update": linear(WIDTH, WIDTH)}
    shapes = {"embed": linear(8, WIDTH), "layer0": layer, "layer1": layer, "head": linear(WIDTH, CLASSES)}

    def apply(p: Any, x: jax.Array) -> jax.Array:
        x = dense(p["embed"], x)
        for name in ("layer0", "layer1"):
            messages = jax.nn.relu(dense(p[name]["message"], x))[sources]
            x = x + jax.nn.relu(dense(p[name]["update"], jax.ops.segment_sum(messages, targets, 12)))
        return dense(p["head"], x.mean(0))

    return Model("a graph network with segment_sum", apply, draw(shapes), (array(12, 8),))


def experts() -> Model:
    """Tokens sorted by expert, each multiplied by its expert's kernels."""
    shapes = {
        "embed": linear(8, WIDTH),
        "up": (4, WIDTH, HIDDEN),
        "down": (4, HIDDEN, WIDTH),
        "head": linear(WIDTH, CLASSES),
    }
    sizes = jnp.asarray([3, 5, 4, 4])

    def apply(p: Any, x: jax.Array) -> jax.Array:
        x = dense(p["embed"], x)
        x = x + lax.ragged_dot(jax.nn.relu(lax.ragged_dot(x, p["up"], sizes)), p["down"], sizes)
        return dense(p["head"], x)

    return Model("a mixture of experts with ragged_dot", apply, draw(shapes), (array(TOKENS, 8),))


def _plain(pattern: str, between: Callable[..., jax.Array]) -> Model:
    """Three dense layers with something between them."""
    shapes = {"fc1": linear(24, HIDDEN), "fc2": linear(HIDDEN, HIDDEN), "head": linear(HIDDEN, CLASSES)}

    def apply(p: Any, x: jax.Array) -> jax.Array:
        x = jax.nn.relu(between(p, "fc1", x))
        return between(p, "head", jax.nn.relu(between(p, "fc2", x)))

    return Model(pattern, apply, draw(shapes), (array(4, 24),))


def quantised() -> Model:
    def rounded(p: Any, name: str, x: jax.Array) -> jax.Array:
        w = p[name]["kernel"]
        step = jnp.maximum(jnp.abs(w).max(0, keepdims=True) / 127, 1e-8)
        w = w + lax.stop_gradient(jnp.clip(jnp.round(w / step), -127, 127) * step - w)
        return dense({"kernel": w, "bias": p[name]["bias"]}, x)

    return _plain("fake quantisation: max of abs, a step per output", rounded)


def printed() -> Model:
    def layer(p: Any, name: str, x: jax.Array) -> jax.Array:
        y = dense(p[name], x)
        jax.debug.callback(lambda y: None, y)
        return y

    return _plain("a debug callback that sees the units", layer)


def fenced() -> Model:
    return _plain("optimization_barrier", lambda p, name, x: lax.optimization_barrier(dense(p[name], x)))


def flipped() -> Model:
    return _plain("units flipped by a constant index", lambda p, name, x: dense(p[name], x)[..., ::-1])


def looped() -> Model:
    def layer(p: Any, name: str, x: jax.Array) -> jax.Array:
        y = dense(p[name], x)
        return lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, jnp.tanh(c[1])), (0, y))[1]

    return _plain("a while_loop", layer)


def fourier() -> Model:
    """Tokens are mixed by a transform over them, channels by layers."""
    shapes = {"embed": linear(24, WIDTH), "fc1": linear(WIDTH, HIDDEN), "fc2": linear(HIDDEN, WIDTH)}
    shapes |= {"norm1": scales(WIDTH), "norm2": scales(WIDTH), "head": linear(WIDTH, CLASSES)}

    def apply(p: Any, x: jax.Array) -> jax.Array:
        x = dense(p["embed"], x)
        x = norm(p["norm1"], x + jnp.fft.fft(x, axis=1).real)
        return dense(p["head"], norm(p["norm2"], x + mlp(p, x)).mean(1))

    return Model("fft over tokens, and its real part", apply, draw(shapes), (array(2, TOKENS, 24),))


MODELS = (convnext, vit, bert, mixer, group_norm_resnet, big_transfer)
MODELS += (sinusoidal, decoder, graph_network, experts, quantised, printed, fenced, flipped, looped, fourier)
