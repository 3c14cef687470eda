"""Random small functions made of what people write in models, and of what must not fool the analysis.

A program is a list of numbers, each choosing an operation and its operands among the values made so far, so that any
list is a program and `hypothesis` can shrink it.
"""

from collections.abc import Callable, Sequence
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


def centred(x: Any, axes: Any = -1, epsilon: float = 1e-2) -> Any:
    """Mean 0 and variance 1, the variance taken after the mean."""
    x = x - jnp.mean(x, axes, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axes, keepdims=True) + epsilon)


@operation
def compete(make, pick, n):
    """Softmax and its kind over units, which leave removed units some number that is counted."""
    x = pick()
    return (
        lambda: jax.nn.softmax(x, -1) * x.shape[-1],
        lambda: jax.nn.log_softmax(2 * x, -1),
        lambda: x * jax.nn.softmax(jnp.mean(x, 1, keepdims=True) @ make((x.shape[-1], x.shape[-1])), -1),
        lambda: x - jax.nn.logsumexp(x, -1, keepdims=True),
        lambda: jax.nn.softmax(x, (1, 2)) * x.size,
        lambda: x + jnp.sum(jax.nn.softmax(x, -1) * x, -1, keepdims=True),
    )[n % 6]()


@operation
def grouped_norm(make, pick, n):
    x = pick()
    c = x.shape[-1]
    groups = next(g for g in (3, 2, 1) if c % g == 0)
    shape = (BATCH, TOKENS, groups, c // groups) if n % 2 else (BATCH, TOKENS, c // groups, groups)
    axes = ((1, 3), 3, (2, 3), 2, (1, 2), (1, 2, 3))[n % 6]
    y = centred(x.reshape(shape), axes, (1e-2, 1.0)[n % 2]).reshape(x.shape)
    return y if n % 3 else y * make((c,)) + make((c,))


@operation
def mix_tokens(make, pick, n):
    """A layer over tokens with a bias, and often a norm after it."""
    y = jnp.einsum("btc,ts->bsc", pick(), make((TOKENS, TOKENS))) + make((TOKENS,))[:, None]
    return (y, centred(y), centred(jax.nn.gelu(y), epsilon=1.0), centred(y, (1, 2)))[n % 4]


@operation
def standard_dense(make, pick, n):
    """A kernel standardised over its inputs, its outputs or both, or scaled by its largest entries."""
    x = pick()
    w = make((x.shape[-1], 4 + n % 4))
    axes = (0, 1, (0, 1))[n % 3]
    if n % 2:
        return x @ (w / (jnp.max(jnp.abs(w), axes, keepdims=True) + 0.1))
    return x @ centred(w, axes, (1e-2, 1.0)[n % 5 % 2]) + make((4 + n % 4,))


@operation
def measure(make, pick, n):
    """A statistic over units decides about something else."""
    x, y = pick(), pick()
    s = (jnp.tanh(x), jnp.cos(x), x)[n % 3]
    statistic = (
        lambda: jnp.std(s, -1, keepdims=True),
        lambda: jnp.var(s, -1, ddof=min(1, x.shape[-1] - 1), keepdims=True),
        lambda: jnp.max(s, -1, keepdims=True),
        lambda: jnp.min(s + 0.2, -1, keepdims=True),
        lambda: jnp.max(jnp.abs(s), (1, 2), keepdims=True),
        lambda: jnp.einsum("btc,btc->bt", s, jnp.cos(x))[..., None] / 5,
        lambda: jnp.mean((x > 0.1).astype(jnp.float32), -1, keepdims=True),
        lambda: jnp.sum(jnp.square(s), -1, keepdims=True) / 5,
    )[n // 3 % 8]()
    return (jnp.clip(y, -3, 3) * jax.nn.sigmoid(statistic), y + statistic)[n % 2]


@operation
def uneven(make, pick, n):
    """What removed units leave differs from unit to unit, or just does not."""
    x = pick()
    c = x.shape[-1]
    row = jnp.cos(jnp.arange(c) * 1.3)
    pairs = jnp.cos(x)[..., :, None] + jnp.tanh(x)[..., None, :]
    return (
        lambda: centred(x + row),
        lambda: centred(jnp.cos(x) * row),
        lambda: jax.nn.softmax(x + row, -1),
        lambda: centred(jnp.where(row > 0, x, jnp.cos(x))),
        lambda: x + jnp.max(row * jnp.cos(x), -1, keepdims=True),
        lambda: jnp.mean(jnp.sin(pairs), -1),
        lambda: jnp.max(jnp.sin(pairs + jnp.eye(c)), -2),
        lambda: centred(jnp.exp(jnp.clip(x, -3, 3)) + make((c,))),
        lambda: centred(jnp.cos(x) + jnp.arange(TOKENS)[:, None]),
        lambda: centred(jnp.stack([x, jnp.cos(x)], 2 + n // 20 % 2).reshape(BATCH, TOKENS, -1)),
        lambda: centred(jnp.concatenate([jnp.cos(x), pick()], -1)),
        lambda: centred(jnp.pad(jnp.cos(x), ((0, 0), (0, 0), (1, 2)), constant_values=n % 2)),
        lambda: centred(jnp.cumsum(jnp.cos(x), 1)),
        lambda: jnp.cos(x) @ jnp.ones((c, 3)) / c,
        lambda: jnp.cos(x) @ jnp.sin(jnp.arange(3.0 * c)).reshape(c, 3),
        lambda: jnp.cos(x) @ jnp.cos(make((c, 4))),
    )[n % 16]()


@operation
def inside(make, pick, n):
    """Norms in programs of their own, on what removed units have left outside."""
    x = jnp.cos(pick()) if n % 2 else pick()
    row = jnp.cos(jnp.arange(x.shape[-1]) * 1.3)
    return (
        lambda: jax.checkpoint(lambda y: centred(jnp.tanh(y) + 0.3))(x),
        lambda: (
            jax.lax.scan(lambda c, t: (centred(c + 0.5 * t), None), x[:, 0], jnp.moveaxis(x, 1, 0))[0][:, None]
            + jnp.zeros((BATCH, TOKENS, 1))
        ),
        lambda: jax.lax.scan(lambda c, t: (0.5 * c + t, c), jnp.zeros_like(x[:, 0]) + row, jnp.moveaxis(x, 1, 0))[
            1
        ].transpose(1, 0, 2),
        lambda: jax.lax.switch(jnp.argmax(x[0, :3, 0]), [centred, jnp.cos, lambda y: y + row], x),
        lambda: jax.vmap(jax.vmap(lambda y: centred(jnp.exp(jnp.clip(y, -3, 3)))))(x),
        lambda: jax.grad(lambda y: jnp.sum(jnp.sin(centred(y)) * jnp.cos(y)))(x),
    )[n // 2 % 6]()


@operation
def place(make, pick, n):
    """Whole rows are written, added or picked at indices."""
    x = pick()
    rows, y = jnp.array([2, 0]), (jnp.tanh, jnp.cos, jax.nn.relu)[n % 3](x[:, 1:3])
    at = x.at[:, rows]
    return (
        lambda: at.set(y),
        lambda: at.add(y),
        lambda: at.multiply(y),
        lambda: at.min(y),
        lambda: at.max(y),
        lambda: at.apply(jnp.cos),
        lambda: x.at[:, jnp.array([3, 9, 0, 1])].get(mode="fill", fill_value=0.5),
        lambda: jnp.take_along_axis(x, jnp.argsort(jnp.sin(x), 1), 1),
        lambda: jax.vmap(lambda r: jax.ops.segment_sum(r, jnp.array([0, 1, 1, 3]), num_segments=TOKENS))(x),
        lambda: jax.vmap(jax.vmap(lambda r, i: r.at[i].add(jnp.tanh(r)), 1, 1))(x, (x > 0).astype(jnp.int32)),
        lambda: jax.lax.dynamic_update_slice(x, y, (0, (jnp.abs(x[0, 0, 0]) * 9).astype(jnp.int32) % 3, 0)),
    )[n % 11]()


@operation
def place_units(make, pick, n):
    """Some units are written, or what is written differs from unit to unit."""
    x = pick()
    c = x.shape[-1]
    return (
        lambda: x.at[..., n % c].set(1.0),
        lambda: x.at[..., : 1 + c // 2].multiply(0.5),
        lambda: x.at[:, 1].set(jnp.arange(c) * 0.3),
        lambda: jnp.zeros((BATCH, TOKENS, 3)).at[..., jnp.arange(c) % 3].add(x),
        lambda: x + jnp.zeros(3).at[(x > 0).astype(jnp.int32)].add(1.0).sum() * 0.01,
        lambda: x.at[:, x[0, 0].argmax() % TOKENS].add(1.0),
    )[n % 6]()


@operation
def loop(make, pick, n):
    """Loops whose number of steps is not known while tracing, and may depend on the units."""
    x = jnp.clip(pick(), -3, 3)
    steps = jnp.abs(x[0, 0, 0] * 5).astype(jnp.int32) % 4
    until = lambda go, step, c: jax.lax.while_loop(  # noqa: E731
        lambda s: go(s[1]) & (s[0] < 4), lambda s: (s[0] + 1, step(s[1])), (0, c)
    )[1]
    zero = jnp.zeros_like(x)
    return (
        lambda: until(lambda c: jnp.square(c).sum() < 9, lambda c: c * 1.5, x),
        lambda: until(lambda c: jnp.cos(c).sum() > 9, lambda c: c + 0.5 * jnp.tanh(x), x),
        lambda: jax.lax.fori_loop(0, steps, lambda i, c: jnp.tanh(c + x), zero),
        lambda: jax.lax.fori_loop(0, steps, lambda i, c: jnp.cos(c) * x, zero),
        lambda: jax.lax.fori_loop(0, steps + 1, lambda i, c: jnp.cos(c), zero),
        lambda: sum(jax.lax.fori_loop(0, steps, lambda i, c: (c[1], jnp.exp(-jnp.abs(x))), (zero, zero))),
        lambda: jax.lax.fori_loop(0, steps, lambda i, c: jnp.tanh(c @ make((x.shape[-1], x.shape[-1])) + x), x),
        lambda: jax.vmap(lambda r: until(lambda c: c.sum() < 2, lambda c: c * 1.5 + 0.1, r), 2, 2)(x),
        lambda: jax.lax.fori_loop(0, steps, lambda i, c: jnp.tanh(c)[..., ::-1], x),
    )[n % 9]()


@operation
def hand_on(make, pick, n):
    """Values that are handed on, looked at, transformed or read as bits."""
    x = pick()
    as_bits = lambda y: jax.lax.bitcast_convert_type(y, jnp.int32)  # noqa: E731
    mesh = jax.make_mesh((1,), ("d",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:1])
    spec = jax.sharding.PartitionSpec("d")
    return (
        lambda: jax.lax.optimization_barrier((x, jnp.cos(x)))[n % 2],
        lambda: (jax.debug.callback(lambda y: None, x), x)[1],
        lambda: jnp.real(jnp.fft.ifft(jnp.fft.fft(x, axis=1) * jnp.arange(4.0)[:, None], axis=1)),
        lambda: jnp.real(jnp.fft.fft(x)),
        lambda: jnp.abs(jax.lax.complex(x, jnp.cos(x))),
        lambda: jnp.arctan2(-jax.nn.relu(x), -1.0 - jnp.square(x)),
        lambda: jnp.signbit(-jax.nn.relu(x)) * 1.0,
        lambda: jax.lax.bitcast_convert_type(as_bits(x) & ~0xFFFF, jnp.float32),
        lambda: jax.shard_map(
            lambda y: y + jnp.cos(y).sum(-1, keepdims=True) + jax.lax.pmean(y, "d"),
            mesh=mesh,
            in_specs=spec,
            out_specs=spec,
        )(x),
    )[n % 9]()


@operation
def experts(make, pick, n):
    x = pick()
    rows = jax.lax.ragged_dot(
        x.reshape(BATCH * TOKENS, x.shape[-1]), make((3, x.shape[-1], 4 + n % 3)), jnp.array([3, 4, 1])
    )
    return rows.reshape(BATCH, TOKENS, 4 + n % 3)


NAMES = tuple(OPERATIONS)


def build(program: Sequence[tuple[int, int, int]]) -> tuple[Callable[..., Any], dict[str, Any], Any]:
    """`(apply, params, x)` of a program: a dense layer, the operations, and a dense layer on the last value."""
    shapes: dict[str, tuple[int, ...]] = {}

    def run(params: Any, x: Any) -> Any:
        def make(shape: tuple[int, ...]) -> Any:
            name = f"w{len(made):02d}"
            made.append(name)
            if params is None:
                shapes[name] = shape
                seed = len(made)
                return jnp.asarray(np.random.default_rng(seed).normal(size=shape) * 0.5, jnp.float32)
            return params[name]

        made: list[str] = []
        values = [x @ make((x.shape[-1], START)) + make((START,))]
        for which, first, n in program:
            at = iter((first, n, first + n))
            values.append(
                OPERATIONS[NAMES[which % len(NAMES)]](make, lambda at=at: values[-1 - next(at) % len(values)], n)
            )
        last = values[-1]
        return jnp.tanh(last @ make((last.shape[-1], 5)))

    x = jax.random.normal(jax.random.key(0), (BATCH, TOKENS, 3))
    jax.eval_shape(lambda x: run(None, x), x)
    rng = np.random.default_rng(1)
    params = {k: jnp.asarray(rng.normal(size=s) * 0.5 + 0.1, jnp.float32) for k, s in shapes.items()}
    return run, params, x
