"""Networks with what hands values on: printing, barriers, names, complex numbers, transforms, bits and random keys.

The frame is that of `adversarial`.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from tests.zoo.adversarial import ALL, exact, framed, never, read, relu, total
from tests.zoo.cases import Builders, Case, case, unit, why


def _watched(p, z):
    """Printed, looked at and passed through barriers, in a loop too."""
    jax.debug.print("{} {}", z, z.sum())
    jax.debug.print("in order {x}", x=z.shape, ordered=True)
    jax.debug.callback(lambda y: np.asarray(y), relu(z))

    def step(c, _):
        jax.debug.callback(lambda y: None, c, ordered=True)
        return jnp.tanh(c), None

    z, y = lax.optimization_barrier((relu(z), jnp.sin(z).T))
    z, _ = lax.scan(step, checkpoint_name(z, "kept"), None, length=2)
    z = jax.device_put(z, jax.devices()[0])
    return read(p, z * y.T) + total(z)


def _complex(p, z):
    """A state with a real and an imaginary part, turned and read."""
    state = lax.complex(z, jnp.sin(z)) * jnp.exp(1j * jnp.arange(4.0))[:, None]
    y = jnp.real(state) + jnp.imag(jnp.conj(state)) + jnp.abs(state)
    return read(p, y) + total(y)


def _diagonal_state(p, z):
    """Every unit has a complex eigenvalue of its own, as in a diagonal state space model."""
    powers = jnp.exp(lax.complex(-jnp.abs(p["decay"]), p["turn"])[:, None] * jnp.arange(4))
    response = jnp.real(powers)
    spectrum = jnp.fft.rfft(z, n=8, axis=0) * jnp.fft.rfft(response.T, n=8, axis=0)
    return read(p, jnp.fft.irfft(spectrum, n=8, axis=0)[:4])


def _over_batch(p, z):
    y = jnp.real(jnp.fft.ifft(jnp.fft.fft(z, axis=0) * jnp.arange(4.0)[:, None], axis=0))
    return read(p, y) + total(y)


def _mixed(p, z):
    """Tokens and units are mixed by one transform of both."""
    return read(p, jnp.real(jnp.fft.fft2(z)))


def _truncated(p, z):
    """The mantissa is cut off."""
    bits = lax.bitcast_convert_type(z, jnp.int32) & ~0xFFFF
    return read(p, lax.bitcast_convert_type(bits, jnp.float32))


def _bytes(p, z):
    """Through the bytes and back."""
    return read(p, lax.bitcast_convert_type(lax.bitcast_convert_type(z, jnp.uint8), jnp.float32))


def _packed(p, z):
    """Whole numbers, shifted."""
    levels = jnp.clip(jnp.round(relu(z) * 8), 0, 15).astype(jnp.int32)
    return read(p, ((levels << 4) >> 2).astype(jnp.float32)) + total(levels << 1)


def _signs(p, z):
    """A removed unit holds -0.0, whose sign is set."""
    return read(p, relu(z)) + total(jnp.signbit(-relu(z)) * jnp.arange(1.0, 9.0))


def _angles(p, z):
    """The angle of -1 ± 0i is ±π: zeros that are equal have different angles."""
    return read(p, relu(z)) + total(jnp.arctan2(z * jnp.array([1.0, -1.0] * 4), -1.0))


def _angles_of_minus_zero(p, z):
    return read(p, relu(z)) + total(jnp.arctan2(-relu(z), -1.0))


def _roots_of_minus_one(p, z):
    return read(p, relu(z)) + total(jnp.imag(jnp.sqrt(lax.complex(0 * z - 1, -relu(z)))))


def _rounded(w):
    """Eight bits, by the largest entry; the derivative passes straight through."""
    step = jnp.maximum(jnp.abs(w).max(), 1e-6) / 127
    return w + lax.stop_gradient(jnp.clip(jnp.round(w / step), -127, 127) * step - w)


def _quantised(p, z):
    """Quantisation-aware training: kernels and activations are rounded to a scale of their own."""
    return _rounded(relu(z)) @ _rounded(p["out"]["kernel"]) + p["out"]["bias"]


def _with_key(op: Any, *truth: Any, stored: bool = False, **more: Any) -> Case:
    """`op(p, z, key)`, with a key that comes in, or one of the older kind, two numbers among the variables."""
    hidden, shapes, inputs, first = framed(lambda p, z: z)

    def apply(variables, x, *keys):
        p = variables["params"]
        return op(p, hidden(p, x), *keys, *variables.get("state", {}).values())

    made = case(apply, {"params": shapes}, inputs, first, *truth, exactly=not more, **more)
    key = jax.random.PRNGKey(3) if stored else jax.random.key(3)
    if stored:
        return dataclasses.replace(made, variables={**made.variables, "state": {"key": key}})
    return dataclasses.replace(made, inputs=(*inputs, key))


def _dropped_rows(p, z, key):
    """Whole rows are dropped, each for both of two layers' units."""
    first, second = jax.random.split(jax.random.fold_in(key, 7))
    z = jnp.where(jax.random.bernoulli(first, 0.6, (z.shape[0], 1)), relu(z), 0.0)
    return read(p, z * (1 + jax.random.uniform(second, (4, 1)))) + total(z)


def _dropped_units(p, z, key):
    return read(p, jnp.where(jax.random.bernoulli(key, 0.6, z.shape), relu(z), 0.0))


CASES: Builders = {
    name: functools.partial(build, *args, **more)
    for name, (build, args, more) in {
        "watched": (exact, (_watched,), {}),
        "complex_numbers": (exact, (_complex,), {}),
        "diagonal_state": (exact, (_diagonal_state, ALL + " decay,turn:0"), {"decay": (8,), "turn": (8,)}),
        "fourier_over_batch": (exact, (_over_batch,), {}),
        "fourier_of_both": (never, ("fft", _mixed), {}),
        "bits_cut_off": (exact, (_truncated,), {}),
        "bits_as_bytes": (exact, (_bytes,), {}),
        "bits_shifted": (exact, (_packed,), {}),
        "bits_of_signs": (never, ("sum", _signs), {}),
        "angles": (never, ("sum", _angles), {}),
        "angles_of_minus_zero": (never, ("sum", _angles_of_minus_zero), {}),
        "roots_of_minus_one": (never, ("sum", _roots_of_minus_one), {}),
        "quantised": (exact, (_quantised,), {}),
        "key_of_rows": (_with_key, (_dropped_rows, unit(8, ALL)), {}),
        "key_of_rows_stored": (_with_key, (_dropped_rows, unit(8, ALL)), {"stored": True}),
        "key_of_units": (_with_key, (_dropped_units,), {"frozen": why(ALL, "random"), "naive": True}),
        "key_of_units_stored": (
            _with_key,
            (_dropped_units,),
            {"stored": True, "frozen": why(ALL, "random"), "naive": True},
        ),
    }.items()
}

NEVER = (
    "fourier_of_both",
    "bits_of_signs",
    "angles",
    "angles_of_minus_zero",
    "roots_of_minus_one",
    "key_of_units",
    "key_of_units_stored",
)
