"""Operations of random functions: layers, attention, convolutions, and what must not fool the analysis."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

BATCH, TOKENS, START = 2, 4, 6
OPERATIONS: dict[str, Callable[..., Any]] = {}


def operation(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `(make, values, pick) -> value`: `make(shape)` gives a parameter, `pick()` an activation `[B, T, C]`."""
    OPERATIONS[function.__name__] = function
    return function


@operation
def dense(make, pick, n):
    x = pick()
    return x @ make((x.shape[-1], 4 + n % 5)) + make((4 + n % 5,))


@operation
def again(make, pick, n):
    x = pick()
    return x + jax.nn.relu(x @ make((x.shape[-1], 6))) @ make((6, x.shape[-1]))


@operation
def bias(make, pick, n):
    x = pick()
    return x + make((x.shape[-1],))


@operation
def scale(make, pick, n):
    x = pick()
    return x * make((x.shape[-1],))


@operation
def table(make, pick, n):
    x = pick()
    return x * jnp.cos(jnp.arange(x.shape[-1]) * 1.3) + jnp.arange(TOKENS)[:, None] * 0.1


@operation
def bend(make, pick, n):
    x = pick()
    return (jax.nn.relu, jnp.tanh, jax.nn.sigmoid, jax.nn.gelu, jnp.square, jnp.exp)[n % 6](jnp.clip(x, -3, 3))


@operation
def join(make, pick, n):
    return jnp.concatenate([pick(), pick()], -1)


@operation
def join_with_sigmoid(make, pick, n):
    x = pick()
    return jnp.concatenate([x, jax.nn.sigmoid(x)], -1)


@operation
def half(make, pick, n):
    x = pick()
    if x.shape[-1] == 1:
        return x
    cut = 1 + n % (x.shape[-1] - 1)
    return x[..., :cut] if n % 2 else x[..., cut:]


@operation
def gate(make, pick, n):
    x = pick()
    if x.shape[-1] % 2:
        return x
    a, b = jnp.split(x, 2, -1)
    return a * jax.nn.sigmoid(b)


@operation
def combine(make, pick, n):
    x, y = pick(), pick()
    if x.shape != y.shape:
        y = y @ make((y.shape[-1], x.shape[-1]))
    return x + y if n % 3 else x * y


@operation
def attend(make, pick, n):
    x = pick()
    heads, size = 2 + n % 2, 3
    q, k, v = (x @ make((x.shape[-1], heads * size)) for _ in range(3))
    q, k, v = (t.reshape(BATCH, TOKENS, heads, size) for t in (q, k, v))
    weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k))
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(BATCH, TOKENS, heads * size)


@operation
def fused(make, pick, n):
    x = pick()
    q, k, v = jnp.moveaxis((x @ make((x.shape[-1], 18)) + make((18,))).reshape(BATCH, TOKENS, 3, 2, 3), 2, 0)
    weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k))
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(BATCH, TOKENS, 6)


@operation
def convolve(make, pick, n):
    x = pick()
    numbers = ("NWC", "WIO", "NWC")
    c = x.shape[-1]
    if n % 3 == 0:
        return jax.lax.conv_general_dilated(x, make((3, c, 5)), (1,), "SAME", dimension_numbers=numbers)
    if n % 3 == 1:
        return jax.lax.conv_general_dilated(
            x, make((3, 1, c)), (1,), "SAME", dimension_numbers=numbers, feature_group_count=c
        )
    if c % 2:
        return x
    return jax.lax.conv_general_dilated(
        x, make((1, c // 2, 6)), (1,), "SAME", dimension_numbers=numbers, feature_group_count=2
    )


@operation
def normalise(make, pick, n):
    x = pick()
    if n % 3 == 0:
        return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + 1e-3) * make((x.shape[-1],))
    mean = jnp.mean(x, -1, keepdims=True)
    if n % 3 == 1:
        centred = x - mean
        return centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), -1, keepdims=True) + 1e-3)
    variance = jnp.maximum(jnp.mean(jnp.square(x), -1, keepdims=True) - jnp.square(mean), 0)
    return (x - mean) * jax.lax.rsqrt(variance + 1e-1) * make((x.shape[-1],))


@operation
def squeeze_excite(make, pick, n):
    x = pick()
    c = x.shape[-1]
    s = jax.nn.relu(jnp.mean(x, 1) @ make((c, 3))) @ make((3, c))
    return x * jax.nn.sigmoid(s)[:, None]


@operation
def pad(make, pick, n):
    return jnp.pad(pick(), ((0, 0), (0, 0), (n % 2, 1 + n % 3)), constant_values=0.5 if n % 5 == 0 else 0.0)


@operation
def careless(make, pick, n):
    """Operations for which masking is not removal."""
    x = pick()
    return (
        lambda: jax.nn.softmax(x, -1),
        lambda: jnp.cumsum(x, -1),
        lambda: jnp.flip(x, -1),
        lambda: jnp.sort(x, -1),
        lambda: jnp.roll(x, 1, -1),
        lambda: x - jnp.max(x, -1, keepdims=True),
        lambda: x + jnp.mean(jax.nn.sigmoid(x), -1, keepdims=True),
        lambda: x[..., ::2],
        lambda: x[..., jnp.array([0, 2, 1]) % x.shape[-1]],
        lambda: x / (1.0 + jnp.abs(jnp.sum(x, -1, keepdims=True))),
        lambda: x * x[..., :1],
        lambda: x.reshape(BATCH, TOKENS * x.shape[-1])[:, :TOKENS].reshape(BATCH, TOKENS, 1),
        lambda: jnp.swapaxes(x.reshape(BATCH, TOKENS, -1, 2), 2, 3).reshape(x.shape) if x.shape[-1] % 2 == 0 else x,
        lambda: jax.lax.scan(lambda c, t: (c + jnp.tanh(t), c), jnp.zeros_like(x[:, 0]), jnp.moveaxis(x, 1, 0))[
            1
        ].transpose(1, 0, 2),
        lambda: jax.lax.cond(jnp.sum(x[..., 0]) > 0, jnp.tanh, lambda y: y * 2, x),
        lambda: jax.checkpoint(lambda y: jnp.sin(y) @ make((x.shape[-1], 5)))(x),
        lambda: x / make((x.shape[-1],)),
        lambda: x * jnp.linalg.norm(make((x.shape[-1], 3)), axis=-1),
        lambda: jnp.where(x > 0.3, x, 1.0),
        lambda: jnp.repeat(x, 2, -1),
        lambda: jnp.stack([x, jnp.tanh(x)], -1).reshape(BATCH, TOKENS, -1),
        lambda: jnp.tile(x, 2),
        lambda: jnp.pad(x, ((0, 0), (0, 0), (1, 1)), mode="edge"),
    )[n % 23]()


@operation
def reorder(make, pick, n):
    """Units change places: for one reader, and back again, and for another sum."""
    x = pick()
    c = x.shape[-1]
    order = np.random.default_rng(n).permutation(c)
    moved = (lambda: x[..., ::-1], lambda: x[..., order], lambda: jnp.take(x, order - c, axis=-1))[n % 3]()
    return (
        lambda: moved,
        lambda: jnp.tanh(moved) @ make((c, 5)),
        lambda: x + jnp.flip(jnp.sin(moved), -1) if n % 3 == 0 else x + jnp.sin(moved)[..., np.argsort(order)],
        lambda: moved + x @ make((c, c)),
        lambda: jnp.concatenate([moved, x], -1)[..., np.random.default_rng(n + 1).permutation(2 * c)],
        lambda: moved[..., c // 2 :],
        lambda: moved * make((c,)) + jnp.abs(x),
    )[n // 3 % 7]()
