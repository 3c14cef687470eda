"""Building blocks shared by the model families."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mvp_jax.core.types import Array
from mvp_jax.models.hooks import Hooks, Noise
from mvp_jax.models.widths import Transformer


def im2col(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: Any,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    precision: Any = None,
    **ignored: Any,
) -> Array:
    """A 2-D convolution as shifted slices and one matrix product, in place of `lax.conv_general_dilated`.

    XLA's convolutions are slow on CPU inside `lax.map`, `scan` and `vmap` (their weight gradients most of all), and
    force all-gathers when members are sharded; a matrix product has neither trouble.

    Args:
        lhs: the images, `[N, H, W, C]`.
        rhs: the kernel, `[kh, kw, C, O]`.
        window_strides: two strides.
        padding: two pairs, or `"SAME"` / `"VALID"`.
        lhs_dilation, rhs_dilation, feature_group_count: must be trivial.
        dimension_numbers: ignored, the layout is NHWC, HWIO, NHWC.
        precision: the precision of the product, as `lax.dot_general` takes it.
        **ignored: what `nnx.Conv` passes besides.

    Returns:
        `[N, H', W', O]`.

    Raises:
        ValueError: for grouped or dilated convolutions.

    >>> x, k = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 5))
    >>> im2col(x, k, (1, 1), ((1, 1), (1, 1)))[0, :2, :2, 0].tolist()
    [[8.0, 12.0], [12.0, 18.0]]
    """
    dilated = any(d != 1 for d in (*(lhs_dilation or ()), *(rhs_dilation or ())))
    if feature_group_count != 1 or dilated:
        raise ValueError(
            f"im2col covers ungrouped, undilated convolutions, got feature_group_count={feature_group_count}, "
            f"dilations {lhs_dilation} and {rhs_dilation}; use conv='native'"
        )
    kh, kw, c, o = rhs.shape
    sh, sw = window_strides
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(lhs.shape[1:3], (kh, kw), (sh, sw), padding)
    if any(p for pair in padding for p in pair):
        lhs = jnp.pad(lhs, ((0, 0), *padding, (0, 0)))
    h = (lhs.shape[1] - kh) // sh + 1
    w = (lhs.shape[2] - kw) // sw + 1
    shifted = [
        lhs[:, i : i + (h - 1) * sh + 1 : sh, j : j + (w - 1) * sw + 1 : sw] for i in range(kh) for j in range(kw)
    ]
    columns = shifted[0] if len(shifted) == 1 else jnp.concatenate(shifted, axis=-1)
    return jnp.matmul(columns, jnp.reshape(rhs, (kh * kw * c, o)), precision=precision)


Convolution = Literal["native", "im2col"]


class Conv(nnx.Module):
    """A square 2-D convolution without bias and with PyTorch's padding: `size // 2` on every side.

    Flax's `"SAME"` pads a strided 3×3 window (0, 1), PyTorch (1, 1), which shifts every output by a pixel.
    """

    def __init__(
        self,
        features_in: int,
        features: int,
        size: int,
        *,
        stride: int = 1,
        how: Convolution = "native",
        noise: Noise,
    ):
        deviation = math.sqrt(2.0 / (size * size * features))  # He et al., over the fan-out
        self.kernel = nnx.Param(noise((size, size, features_in, features), deviation))
        self.stride = stride
        self.how = how

    def __call__(self, x: Array) -> Array:
        kernel = self.kernel[...]
        p = kernel.shape[0] // 2
        convolve = im2col if self.how == "im2col" else jax.lax.conv_general_dilated
        return convolve(
            x, kernel, (self.stride, self.stride), ((p, p), (p, p)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )


class BatchNorm(nnx.Module):
    """Batch normalisation over all axes but the last, whose momentum the caller can set for one pass.

    `running ← m·running + (1-m)·batch`, with the biased batch variance in both places; with `m = 0` one pass over a
    batch replaces the running statistics by the batch's own.
    """

    def __init__(self, features: int, *, momentum: float = 0.9, epsilon: float = 1e-5):
        self.scale = nnx.Param(jnp.ones(features, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(features, jnp.float32))
        self.mean = nnx.BatchStat(jnp.zeros(features, jnp.float32))
        self.var = nnx.BatchStat(jnp.ones(features, jnp.float32))
        self.momentum = momentum
        self.epsilon = epsilon

    def __call__(self, x: Array, hooks: Hooks) -> Array:
        mean, var = self.mean[...], self.var[...]
        if hooks.train:
            m = self.momentum if hooks.momentum is None else hooks.momentum
            axes = tuple(range(x.ndim - 1))
            old_mean, old_var = mean, var
            mean = jnp.mean(x, axis=axes)
            # One pass over the data; rounding may leave a variance a little below zero.
            var = jnp.maximum(jnp.mean(jnp.square(x), axis=axes) - jnp.square(mean), 0.0)
            self.mean[...] = jax.lax.stop_gradient(m * old_mean + (1.0 - m) * mean)
            self.var[...] = jax.lax.stop_gradient(m * old_var + (1.0 - m) * var)
        return (x - mean) * (jax.lax.rsqrt(var + self.epsilon) * self.scale[...]) + self.bias[...]


Shape = tuple[int, ...]
Compute = Literal["float32", "bfloat16"]
"""What products and activations are computed in. Parameters, sums along the depth, norms, softmax and logits stay in
float32, so that half the bits cost a rounding in each layer and nothing adds up."""


def lowered(x: Array, compute: Compute) -> Array:
    """An operand of a product: cast to bfloat16 if `compute` says so, else as it is."""
    return x.astype(jnp.bfloat16) if compute == "bfloat16" else x


def raised(x: Array) -> Array:
    """An operand of an average or a long sum: cast to float32, or as it is if its dtype is wider."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


_exact, _tanh = (functools.partial(jax.nn.gelu, approximate=a) for a in (False, True))
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    **dict.fromkeys(("gelu", "gelu_python"), _exact),
    **dict.fromkeys(("gelu_tanh", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_new", "gelu_fast"), _tanh),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    **dict.fromkeys(("silu", "swish"), jax.nn.silu),
}
"""By the names in Hugging Face's configurations. All are 0 at 0, as cutting neurons needs."""


def check_transformer(config: Transformer) -> None:
    """Raises `ValueError` unless every layer has its widths; and activation and compute, where given, are known."""
    if len({len(n) for n in (config.heads, config.qk_dim, config.v_dim, config.mlp)}) != 1 or not config.heads:
        raise ValueError(f"heads, qk_dim, v_dim and mlp need one entry per layer each, got {config}")
    if min(config.dim, *config.heads, *config.qk_dim, *config.v_dim, *config.mlp) < 1:
        raise ValueError(f"all sizes must be at least 1, got {config}")
    activation, compute = getattr(config, "activation", "gelu"), getattr(config, "compute", "float32")
    if activation not in ACTIVATIONS:
        raise ValueError(f"unknown activation={activation!r}; choose one of {sorted(ACTIVATIONS)}")
    if compute not in ("float32", "bfloat16"):
        raise ValueError(f"unknown compute={compute!r}; choose float32 or bfloat16")


class Projection(nnx.Module):
    """A linear map from `shape_in` to `shape_out` whose kernel has all of these axes."""

    def __init__(
        self, shape_in: Shape, shape_out: Shape, *, bias: bool = True, compute: Compute = "float32", noise: Noise
    ):
        self.kernel = nnx.Param(noise((*shape_in, *shape_out), 0.02))
        if bias:
            self.bias = nnx.Param(jnp.zeros(shape_out, jnp.float32))
        self.biased = bias
        self.contracted = len(shape_in)
        self.compute = compute

    def __call__(self, x: Array) -> Array:
        x, kernel = (lowered(a, self.compute) for a in (x, self.kernel[...]))
        y = jnp.tensordot(x, kernel, axes=self.contracted)
        return y + lowered(self.bias[...], self.compute) if self.biased else y


class LayerNorm(nnx.Module):
    """Normalises the last axis, in float32."""

    def __init__(self, dim: int, *, epsilon: float = 1e-6):
        self.scale = nnx.Param(jnp.ones(dim, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(dim, jnp.float32))
        self.epsilon = epsilon

    def __call__(self, x: Array) -> Array:
        x = raised(x)
        mean = jnp.mean(x, axis=-1, keepdims=True)
        centred = x - mean
        var = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
        return centred * jax.lax.rsqrt(var + self.epsilon) * self.scale[...] + self.bias[...]


class Attention(nnx.Module):
    """Multi-head self-attention over `[N, T, D]`.

    `dropout` is the rate on its weights, `None` leaves them alone; with `causal` a token sees itself and those before.
    """

    def __init__(
        self,
        path: str,
        dim: int,
        heads: int,
        qk_dim: int,
        v_dim: int,
        scale: float,
        *,
        dropout: float | None = None,
        causal: bool = False,
        compute: Compute = "float32",
        noise: Noise,
    ):
        self.path = path
        self.scale = scale
        self.rate = dropout
        self.causal = causal
        self.compute = compute
        self.query = Projection((dim,), (heads, qk_dim), compute=compute, noise=noise)
        self.key = Projection((dim,), (heads, qk_dim), compute=compute, noise=noise)
        self.value = Projection((dim,), (heads, v_dim), compute=compute, noise=noise)
        self.out = Projection((heads, v_dim), (dim,), compute=compute, noise=noise)

    def __call__(self, x: Array, hooks: Hooks, real: Array | None = None) -> Array:
        """`real`: bool `[N, T]`, the tokens that are not padding; the others are not attended to. Default all."""
        q, k, v = self.query(x), self.key(x), self.value(x)
        # Gating one factor of the product q·k gates the dimension; both are looked at.
        q = hooks.unit(f"{self.path}/query", q, where=real)
        hooks.tap(f"{self.path}/query", k, where=real)
        wide = jnp.promote_types(q.dtype, jnp.float32)  # a product of bfloat16 is summed in float32, and kept so here
        scores = jnp.einsum("nqhd,nkhd->nhqk", q, k, preferred_element_type=wide) * self.scale
        seen = [] if real is None else [real[:, None, None, :]]
        if self.causal:
            seen.append(jnp.asarray(np.tri(x.shape[1], dtype=bool)))
        if seen:
            # The smallest number rather than -inf: an example that is all padding gets even weights, not nan.
            scores = jnp.where(functools.reduce(jnp.logical_and, seen), scores, jnp.finfo(scores.dtype).min)
        weights = jax.nn.softmax(scores, axis=-1)
        if self.rate is not None:
            weights = hooks.dropout(weights, self.rate)
        y = jnp.einsum("nhqk,nkhd->nqhd", lowered(weights, self.compute), v)
        y = hooks.unit(f"{self.path}/value", y, where=real)
        y = hooks.unit(self.path, y, axis=2, where=real)
        return self.out(y)


class PreNorm(nnx.Module):
    """A transformer layer that normalises before its attention and before its MLP; layer `i` of a configuration.

    `dropout` is the rate after both of them, `attention_dropout` the one on attention weights.
    """

    def __init__(
        self,
        config: Transformer,
        i: int,
        *,
        activation: str = "gelu",
        epsilon: float = 1e-6,
        dropout: float = 0.0,
        attention_dropout: float | None = None,
        causal: bool = False,
        compute: Compute = "float32",
        noise: Noise,
    ):
        self.path = f"layers/{i}"
        self.rate = dropout
        self.activation = activation
        self.norm1 = LayerNorm(config.dim, epsilon=epsilon)
        sizes = (config.dim, config.heads[i], config.qk_dim[i], config.v_dim[i])
        seen = functools.partial(Attention, dropout=attention_dropout, causal=causal, compute=compute, noise=noise)
        self.attention = seen(f"{self.path}/attention", *sizes, config.attention_scale)
        self.norm2 = LayerNorm(config.dim, epsilon=epsilon)
        self.fc1 = Projection((config.dim,), (config.mlp[i],), compute=compute, noise=noise)
        self.fc2 = Projection((config.mlp[i],), (config.dim,), compute=compute, noise=noise)

    def __call__(self, x: Array, hooks: Hooks, real: Array | None = None) -> Array:
        # A float32 `x` stays one: what a layer adds is raised to it.
        x = x + hooks.dropout(self.attention(self.norm1(x), hooks, real), self.rate)
        h = hooks.unit(f"{self.path}/fc1", ACTIVATIONS[self.activation](self.fc1(self.norm2(x))), where=real)
        return x + hooks.dropout(self.fc2(h), self.rate)


class Head(nnx.Module):
    """A linear classifier whose kernel keeps the features' own axes, so that channels can be cut."""

    def __init__(self, shape: tuple[int, ...], classes: int, *, noise: Noise):
        self.kernel = nnx.Param(noise((*shape, classes), math.prod(shape) ** -0.5))
        self.bias = nnx.Param(jnp.zeros(classes, jnp.float32))

    def __call__(self, x: Array) -> tuple[Array, Array]:
        """`[N, *shape]` to logits `[N, classes]` and the flattened features."""
        kernel = self.kernel[...]
        features = raised(jnp.reshape(x, (x.shape[0], -1)))
        return features @ jnp.reshape(kernel, (-1, kernel.shape[-1])) + self.bias[...], features


def children(modules: Sequence[nnx.Module]) -> nnx.Dict:
    """Modules under the names `"0"`, `"1"`, ...: `nnx.List` would put integers into the tree's paths."""
    return nnx.Dict({str(i): m for i, m in enumerate(modules)})


def ordered(modules: nnx.Dict) -> list[Any]:
    """The inverse of `children`; a merged `nnx.Dict` lists "10" before "2"."""
    return [modules[str(i)] for i in range(len(modules))]


def max_pool(x: Array) -> Array:
    """3×3, stride 2, one pixel of padding, as after the stem of the ImageNet ResNets; for `x >= 0`, as after a ReLU."""
    # Zeros are no maximum there, and jax2onnx gets no other padding right.
    return nnx.max_pool(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), window_shape=(3, 3), strides=(2, 2))


def average_to(x: Array, grid: int) -> Array:
    """Means over equal cells: `[N, H, W, C]` to `[N, grid, grid, C]`."""
    n, h, w, c = x.shape
    return jnp.mean(jnp.reshape(x, (n, grid, h // grid, grid, w // grid, c)), axis=(2, 4))
