"""Networks in which removed units leave numbers that differ from unit to unit, and something sums over them.

How many units are removed does not say what their entries add up to, so these units must stay. The frame is that of
`adversarial`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.zoo.adversarial import ALL, framed, never, number, plus, read, relu, sigmoid, total
from tests.zoo.cases import Builders, Case, case, dense, normal, unit, why
from tests.zoo.norms import centred

TABLE = np.linspace(-1.0, 1.5, 8).astype(np.float32)
SQUARE = np.asarray(normal(8, 8, seed=7))
MET = "reduce_|sum|max|contract|dot_general|differ"


def spread(z: jax.Array) -> jax.Array:
    """Three tokens of different sizes: `[4, 3, width]`."""
    return z[:, None] * jnp.asarray([1.0, 0.5, -2.0])[:, None]


def _tokens_and_channels(p, z):
    y = spread(z) + jnp.asarray([0.1, 0.4, -0.3])[:, None] + TABLE
    return read(p, centred(y).mean(1))


def _scan_from_table(p, z):
    state, _ = lax.scan(lambda c, _: (0.9 * c + z, None), jnp.zeros_like(z) + TABLE, None, length=3)
    return read(p, centred(state))


def _scan_gets_table_late(p, z):
    """For two steps the state is the same for all removed units."""
    zero = jnp.zeros_like(z)
    (state, _, _), _ = lax.scan(
        lambda c, _: ((c[1], c[2], jnp.cos(z) * TABLE), None), (zero, zero + 1, zero + 1), None, length=4
    )
    return read(p, relu(z)) + total(state)


def _scan_over_tables(p, z):
    """A row of a table enters at each step."""
    state, _ = lax.scan(lambda c, row: (0.5 * c + jnp.cos(z) * row, None), jnp.zeros_like(z), SQUARE[:3])
    return read(p, centred(state))


def _one_branch(p, z):
    y = lax.switch(number(p), [jnp.cos, lambda y: jnp.cos(y) + TABLE, sigmoid], z)
    return read(p, relu(z)) + total(y)


def _masked_pairs(p, z):
    """Attention among channels, where each sees only those before it."""
    scores = jnp.where(jnp.tril(jnp.ones((8, 8), bool)), jnp.einsum("bc,bd->bcd", z, z), -1e9)
    return read(p, jnp.einsum("bcd,bd->bc", jax.nn.softmax(scores), jnp.cos(z)))


def _expected_index(p, z):
    """The softmax-weighted mean of the units' numbers."""
    return read(p, relu(z)) + total(jax.nn.softmax(z) * jnp.arange(8.0))


def _noise(p, z):
    return read(p, centred(z + jax.random.normal(jax.random.key(3), (8,))))


def _scaled_leftovers(p, z):
    """A norm leaves the same number in all removed units, and a fixed scale makes them differ."""
    return read(p, centred(centred(z) * TABLE, epsilon=0.1))


CASES: Builders = {
    name: functools.partial(never, MET + more, op)
    for name, op, more in (
        ("table_before_norm", lambda p, z: read(p, centred(z + TABLE)), ""),
        ("tokens_and_channels_before_norm", _tokens_and_channels, ""),
        ("noise_before_norm", _noise, ""),
        ("scaled_leftovers", _scaled_leftovers, ""),
        ("table_before_softmax", lambda p, z: read(p, jax.nn.softmax(z + TABLE)), ""),
        ("expected_index", _expected_index, ""),
        ("cosine_by_iota", plus(lambda z: total(jnp.cos(z) / (1.0 + jnp.arange(8)))), ""),
        ("iota_as_exponent", plus(lambda z: total(sigmoid(z) ** jnp.arange(1.0, 9.0))), "|pow"),
        ("beyond_a_table", plus(lambda z: total((z > TABLE) * 1.0)), ""),
        ("choice_by_table", plus(lambda z: total(jnp.where(TABLE > 0, jnp.cos(z), z))), ""),
        ("between_tables", plus(lambda z: total(jnp.clip(z, TABLE, TABLE + 1))), ""),
        ("angle_to_table", plus(lambda z: total(jnp.arctan2(z, TABLE))), ""),
        ("largest_by_table", lambda p, z: read(p, relu(z)) * (jnp.cos(z) * TABLE).max(-1, keepdims=True), ""),
        ("smallest_by_table", lambda p, z: read(p, relu(z)) * (jnp.cos(z) + TABLE).min(-1, keepdims=True), ""),
        ("projection_of_cosines", plus(lambda z: jnp.cos(z) @ SQUARE[:, :3]), ""),
        ("one_hot_added", plus(lambda z: total(jnp.abs(jnp.cos(z) - 2 * jax.nn.one_hot(2, 8)))), ""),
        ("diagonal_of_pairs", plus(lambda z: total(_pairs(z))), ""),
        ("masked_pairs", _masked_pairs, ""),
        ("cumulative_before_norm", lambda p, z: read(p, centred(jnp.cumsum(jnp.cos(z), -1))), "|cumsum"),
        ("scan_from_table", _scan_from_table, ""),
        ("scan_gets_table_late", _scan_gets_table_late, ""),
        ("scan_over_tables", _scan_over_tables, ""),
        ("one_branch_adds_table", _one_branch, ""),
    )
}


def _pairs(z):
    """Products of all units with all, and something else where a unit meets itself."""
    pairs = jnp.cos(z)[:, :, None] * jnp.cos(z)[:, None, :] + jnp.eye(8)
    return jnp.sin(pairs).sum(1)


def _statistics(op, *names: str) -> Case:
    """`op(p, z, rest)`: other variables than parameters are not masked."""
    _, shapes, inputs, first = framed(lambda p, z: z)

    def apply(v, x):
        p = v["params"]
        return op(p, dense(p["mid"], relu(dense(p["first"], x))), v["rest"])

    shapes = {"params": shapes, "rest": dict.fromkeys(names, (8,))}
    return case(apply, shapes, inputs, first, exactly=False, frozen=why(ALL, MET))


def table_of_dimensions() -> Case:
    """A norm over heads and dimensions at once; what is added differs along the dimensions alone, so heads can go."""

    def op(p, z):
        return read(p, centred(z.reshape(-1, 2, 4) + TABLE[:4], (1, 2)).reshape(z.shape))

    return case(*framed(op), unit(2, ALL), partly=why(ALL, MET))


def running_mean_before_norm() -> Case:
    """A batch norm without a scale leaves minus the running mean of each channel."""
    return _statistics(lambda p, z, rest: read(p, centred(z - rest["mean"])), "mean")


def running_variance_of_shift() -> Case:
    """What is left is one over the deviation of each channel."""
    return _statistics(lambda p, z, rest: read(p, centred((z + 1) * lax.rsqrt(rest["var"] + 1e-3))), "var")


def running_mean_in_pairs() -> Case:
    """Both axes of a product of all units with all hold the running means."""

    def op(p, z, rest):
        y = relu(z) - rest["mean"]
        return read(p, relu(z)) + total(jnp.sin(y[:, :, None] * y[:, None, :]).sum(1))

    return _statistics(op, "mean")


NEVER = tuple(CASES)
# The others say nothing about plain removal: not of all their units, or not of parameters alone.
CASES |= {
    f.__name__: f
    for f in (table_of_dimensions, running_mean_before_norm, running_variance_of_shift, running_mean_in_pairs)
}
