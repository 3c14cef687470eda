"""Networks in which removed units leave a number other than zero, the same for each, and something sums over them.

Cutting is possible if the numbers are counted: it must be exact, or refused for a reason. The frame is that of
`adversarial`.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from tests.zoo.adversarial import MID, framed, number, plus, read, relu, sigmoid, total
from tests.zoo.cases import Builders, Case, case, why
from tests.zoo.norms import centred
from tests.zoo.uneven import spread

cos = jnp.cos


def _vanishing_exponent(p, z):
    """In float16 the exponent is 0, and 0 ** 0 is 1."""
    exponent = jnp.float16(1e-5) * jnp.float16(1e-5)
    return read(p, relu(z)) + total(jnp.abs(z).astype(jnp.float16) ** exponent).astype(jnp.float32)


def _windows_of_padding(p, z):
    """The largest among nothing is -inf, also for removed units."""
    pads = ((0, 0), (2, 2), (0, 0))
    y = lax.reduce_window(spread(z), -jnp.inf, lax.max, (1, 2, 1), (1, 1, 1), pads)
    return read(p, relu(z)) + total(jnp.exp(y).sum(1))


def counted(op: Callable[..., Any], at: str = MID, **frame: Any) -> Case:
    """Exact, or frozen."""
    return case(*framed(op, **frame), exactly=False, either=why(at, "."))


# --- Several axes ----------------------------------------------------------------------------------------------------


def _both_axes(p, z):
    """Heads and dimensions are normalised together, and both can be cut."""
    return read(p, centred(z.reshape(-1, 2, 4), (1, 2)).reshape(z.shape))


def _one_then_the_other(p, z):
    y = cos(z.reshape(-1, 2, 4)) + jnp.asarray([0.3, -0.4])[:, None]
    y = centred(centred(y, 2, 0.1), 1, 0.1)
    return read(p, centred(jnp.tanh(y), (1, 2)).reshape(z.shape))


def _products(p, z):
    """What a removed head leaves depends on the dimension, and the other way round."""
    y = cos(z[:, :4])[:, :, None] * jnp.exp(z[:, 4:])[:, None, :] + jnp.sin(z[:, 4:])[:, None, :]
    return read(p, relu(z)) + centred(y, (1, 2), 0.5)[:, :2, 0].sum(1, keepdims=True) + total(jnp.square(y).sum(1))


def _pairs(f):
    """A number computed from all pairs of units."""
    return lambda p, z: read(p, relu(z)) + f(cos(z)[:, :, None], cos(z)[:, None, :])


def _row_of_pairs(p, z):
    y = jnp.sin(cos(z)[:, :, None] + 2 * relu(z)[:, None, :])
    return read(p, centred(y.sum(1)))


def _flat_pairs(p, z):
    y = jnp.sin(cos(z)[:, :, None] + 2 * relu(z)[:, None, :])
    return read(p, centred(y.reshape(z.shape[0], -1)))


def _channel_covariance(p, z):
    """Attention among channels: scores are contracted over tokens, and a softmax over channels follows."""
    y = jnp.sin(spread(z) + 0.3)
    weight = jax.nn.softmax(jnp.einsum("btc,btd->bcd", y, y))
    return read(p, centred(jnp.einsum("bcd,btd->btc", weight, y).mean(1)))


def _tokens_with_channels(p, z):
    """Tokens and channels flattened, normalised together."""
    y = spread(z)
    return read(p, jnp.tanh(centred(y.reshape(y.shape[0], -1))).reshape(y.shape).mean(1))


# --- Along other axes than the units' --------------------------------------------------------------------------------


def _convolved_tokens(p, z):
    """Channels lie in the batch of a convolution over tokens, whose zero padding knows nothing of units."""
    y = cos(spread(z)).swapaxes(1, 2).reshape(-1, 3, 1)
    y = lax.conv_general_dilated(y, p["k"], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))
    return read(p, centred(y.reshape(z.shape[0], z.shape[1], 3)[..., 1] + z, epsilon=0.5))


def _depthwise(p, z):
    y = lax.conv_general_dilated(
        cos(spread(z)), p["k"], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=8
    )
    return read(p, centred(sigmoid(y)[:, 0]))


def _mixed_tokens(p, z):
    """A biased layer over tokens, twice."""
    y = jnp.einsum("btc,ts->bsc", cos(spread(z)), p["k"]) + p["b"][:, None]
    y = jnp.einsum("btc,ts->bsc", centred(y), p["k"]) + p["b"][:, None]
    return read(p, centred(y).mean(1))


def _summed_tokens(p, z):
    y = jnp.cumsum(cos(spread(z)), 1)
    y = lax.reduce_window(y, 0.0, lax.add, (1, 2, 1), (1, 1, 1), "SAME")
    return read(p, centred(y[:, 1] + lax.dynamic_index_in_dim(y, number(p) % 3, 1, keepdims=False)))


def _written_tokens(p, z):
    """A buffer of zeros gets the units at one place."""
    buffer = lax.dynamic_update_slice(jnp.zeros((z.shape[0], 5, z.shape[1])), cos(z)[:, None], (0, number(p), 0))
    return read(p, centred(buffer).mean(1))


def _looked_up_tokens(p, z):
    y = cos(spread(z))[:, jnp.asarray([0, 2, 2, 1])]
    return read(p, centred(y).sum(1))


# --- Inside other programs -------------------------------------------------------------------------------------------


def _scan_fills(p, z):
    """The state starts at zero; after a step removed units hold something else."""
    state, each = lax.scan(lambda c, _: (0.5 * c + cos(z), c), jnp.zeros_like(z), None, length=3)
    return read(p, centred(state)) + total(each.sum(0))


def _scan_normalises(p, z):
    """The norm lies in the body, what it subtracts comes from the step before."""
    state, _ = lax.scan(lambda c, t: (centred(c + t * cos(z), epsilon=0.1), None), jnp.exp(z), jnp.arange(3.0))
    return read(p, state) + total(state)


def _scan_over_tokens(p, z):
    state, _ = lax.scan(lambda c, x: (c + total(x) * x, None), cos(z), jnp.moveaxis(cos(spread(z)), 1, 0))
    return read(p, centred(state))


def _branches_differ(p, z):
    """Each branch leaves another number."""
    y = lax.switch(number(p), [cos, sigmoid, lambda y: centred(y + 1)], z)
    return read(p, centred(y)) + total(y)


def _norm_in_a_branch(p, z):
    y = cos(z)
    return read(p, lax.cond(p["out"]["bias"][0] > -9, lambda y: centred(y * jnp.exp(z)), lambda y: y * 2, y))


def _recomputed(p, z):
    return read(p, jax.checkpoint(lambda y: centred(jnp.tanh(y) + total(y)))(cos(z)))


def _mapped(p, z):
    return read(p, jax.vmap(lambda y: centred(jnp.exp(centred(y))))(z))


def _gradient_of_norm(p, z):
    return read(p, jax.grad(lambda y: jnp.square(read(p, centred(jnp.exp(y)))).sum())(z))


# --- Parts and copies ------------------------------------------------------------------------------------------------


def _beside_itself(p, z):
    """Every unit occurs twice, and leaves a number of its own at each place."""
    return read(p, centred(jnp.concatenate([relu(z), cos(z)], -1)))


def _interleaved(p, z):
    return read(p, centred(jnp.stack([relu(z), cos(z)], -1).reshape(z.shape[0], -1)))


def _parts(p, z):
    y = cos(z)
    return read(p, jnp.concatenate([centred(y[:, :5]), jax.nn.softmax(y[:, 3:] + z[:, 3:])], -1))


def _first_is_fixed(p, z):
    return read(p, centred(jnp.concatenate([jnp.ones_like(z[:, :1]), jnp.exp(z[:, 1:])], -1)))


def _padded(p, z):
    return read(p, centred(jnp.pad(cos(z), ((0, 0), (2, 1)), constant_values=0.5)))


def _spatial_gate(p, z):
    """One half of the channels is normalised, mixed over tokens with a bias, and gates the other."""
    a, b = jnp.split(spread(z), 2, -1)
    gate = jnp.einsum("btc,ts->bsc", centred(b), p["k"]) + p["b"][:, None]
    return read(p, centred(a * gate).mean(1))


# --- Other reductions ------------------------------------------------------------------------------------------------


def _entropy(p, z):
    weight = jax.nn.softmax(z)
    return read(p, weight) - total(weight * jnp.log(weight))


def _is_largest(p, z):
    """Which unit is the largest; among the removed ones, all are or none is."""
    y = -jnp.abs(z)
    return read(p, cos(z)) + total((y == y.max(-1, keepdims=True)) * 1.0) * total((y > -0.5) * 1)


def _sum_of_products(p, z):
    gram = jnp.einsum("btc,bsc->bts", cos(spread(z)), sigmoid(spread(z)))
    return read(p, jnp.einsum("bts,bsc->btc", jax.nn.softmax(gram), cos(spread(z))).mean(1))


def _sums_of_weights(p, z):
    """A kernel's own leftovers; its other axis is the output's."""
    w = cos(p["out"]["kernel"])
    return read(p, relu(z)) * w.sum() + centred(w, (0, 1)).sum() + jax.nn.softmax(w, 0).max() + w.std(1).min()


CASES: Builders = {
    name: functools.partial(counted, op, **frame)
    for name, (op, frame) in {
        "norm_over_both_axes": (_both_axes, {}),
        "norm_over_one_then_the_other": (_one_then_the_other, {}),
        "leftovers_of_products": (_products, {}),
        "sum_over_pairs": (_pairs(lambda a, b: total(jnp.abs(a - b).sum(1))), {}),
        "largest_of_pairs": (_pairs(lambda a, b: jnp.sin(a * b).max((1, 2))[:, None]), {}),
        "row_of_pairs": (_row_of_pairs, {}),
        "flat_pairs": (_flat_pairs, {"read": 64}),
        "channel_covariance": (_channel_covariance, {}),
        "tokens_with_channels": (_tokens_with_channels, {}),
        "convolved_tokens": (_convolved_tokens, {"k": (3, 1, 1)}),
        "depthwise_of_cosines": (_depthwise, {"k": (3, 1, 8)}),
        "mixed_tokens": (_mixed_tokens, {"k": (3, 3), "b": (3,)}),
        "summed_tokens": (_summed_tokens, {}),
        "written_tokens": (_written_tokens, {}),
        "looked_up_tokens": (_looked_up_tokens, {}),
        "scan_fills": (_scan_fills, {}),
        "scan_normalises": (_scan_normalises, {}),
        "scan_over_tokens": (_scan_over_tokens, {}),
        "branches_differ": (_branches_differ, {}),
        "norm_in_a_branch": (_norm_in_a_branch, {}),
        "recomputed_norm": (_recomputed, {}),
        "mapped_norm": (_mapped, {}),
        "gradient_of_norm": (_gradient_of_norm, {}),
        "beside_itself": (_beside_itself, {"read": 16}),
        "interleaved": (_interleaved, {"read": 16}),
        "tiled_before_norm": (lambda p, z: read(p, centred(jnp.tile(cos(z), (1, 2)))), {"read": 16}),
        "repeated_before_norm": (lambda p, z: read(p, centred(jnp.repeat(cos(z), 2, -1))), {"read": 16}),
        "parts": (_parts, {"read": 10}),
        "first_is_fixed": (_first_is_fixed, {}),
        "padded_before_norm": (_padded, {"read": 11}),
        "spatial_gate": (_spatial_gate, {"read": 4, "k": (3, 3), "b": (3,)}),
        "entropy": (_entropy, {}),
        "is_largest": (_is_largest, {}),
        "smallest": (plus(lambda z: cos(3 * z).min(-1, keepdims=True) * z.max(-1, keepdims=True)), {}),
        "any_unit": (plus(lambda z: ((z > 0.9).any(-1) * 1.0 + (z < 3).all(-1) + cos(z).prod(-1))[:, None]), {}),
        "how_many": (plus(lambda z: total((z <= 0).astype(jnp.int32)) * 0.1 + jnp.mean(z < 1)), {}),
        "dot_with_ones": (plus(lambda z: cos(z) @ jnp.ones((8, 1)) / 8), {}),
        "norm_of_cosines": (lambda p, z: read(p, cos(z) / jnp.linalg.norm(cos(z), axis=-1, keepdims=True)), {}),
        "softplus_before_norm": (lambda p, z: read(p, centred(jax.nn.softplus(z) + 1.0)), {}),
        "sum_of_products": (_sum_of_products, {}),
        "sums_of_weights": (_sums_of_weights, {}),
        "constant_rounded_on_the_way": (plus(lambda z: total(z + (jnp.float32(1e8) + 1.0 - 1e8 - 1.0))), {}),
        "windows_of_padding_alone": (_windows_of_padding, {}),
        "exponent_too_small_for_its_dtype": (_vanishing_exponent, {}),
    }.items()
}
