"""Functions with derivatives of their own, as people write them, and as they must not fool the analysis."""

import functools

import jax
import jax.numpy as jnp

LEVELS = 3.0


@jax.custom_vjp
def round_ste(x):
    """Rounds; the gradient passes straight through."""
    return jnp.round(x)


round_ste.defvjp(lambda x: (round_ste(x), None), lambda _, g: (g,))


@jax.custom_vjp
def lsq(x, step):
    """Learned step size quantisation: the step's gradient is summed over everything."""
    return jnp.clip(jnp.round(x / step), -LEVELS, LEVELS) * step


def _lsq_backward(residuals, g):
    x, step = residuals
    q = x / step
    inside = jnp.abs(q) <= LEVELS
    slope = jnp.where(inside, jnp.round(q) - q, jnp.sign(q) * LEVELS)
    return jnp.where(inside, g, 0.0), jnp.sum(g * slope) / jnp.sqrt(x.size * LEVELS)


lsq.defvjp(lambda x, step: (lsq(x, step), (x, step)), _lsq_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def reverse_gradient(x, strength):
    """Nothing forwards, and minus the gradient backwards."""
    return x


reverse_gradient.defvjp(lambda x, strength: (x, None), lambda strength, _, g: (-strength * g,))


@jax.custom_vjp
def clip_gradient(x):
    """Nothing forwards; each entry of the gradient is clipped."""
    return x


clip_gradient.defvjp(lambda x: (x, None), lambda _, g: (jnp.clip(g, -0.05, 0.05),))


@jax.custom_vjp
def clip_gradient_norm(x):
    """Nothing forwards; the gradient is scaled by its norm over all units."""
    return x


clip_gradient_norm.defvjp(lambda x: (x, None), lambda _, g: (g / (1.0 + jnp.sqrt(jnp.sum(g * g))),))


@jax.custom_vjp
def penalised(x):
    """Nothing forwards; the gradient of a penalty on the activations is added."""
    return x


penalised.defvjp(lambda x: (x, x), lambda x, g: (g + 0.1 * x,))


@jax.custom_vjp
def shared_gradient(x):
    """Nothing forwards; every unit gets the mean of all gradients."""
    return x


shared_gradient.defvjp(lambda x: (x, None), lambda _, g: (jnp.mean(g, -1, keepdims=True) + 0 * g,))


@jax.custom_jvp
def softplus(x):
    """A softplus that is 0 at 0, with the slope of a steeper one."""
    return jnp.logaddexp(x, 0.0) - jnp.log(2.0)


softplus.defjvp(lambda primals, tangents: (softplus(*primals), tangents[0] * jax.nn.sigmoid(3 * primals[0])))


@jax.custom_jvp
def blend(pair, which):
    """A pytree of arguments, one of integers."""
    return {"sum": pair[0] + pair[1], "product": pair[0] * pair[1] * which}


@blend.defjvp
def _blend_jvp(primals, tangents):
    (a, b), which = primals
    da, db = tangents[0]
    return blend(*primals), {"sum": 2 * da + db, "product": (da * b + 3 * a * db) * which}


@jax.custom_vjp
def block(params, x):
    """A whole residual block with its parameters, and a backward pass that is not that of what it computes."""
    return x + jnp.tanh(x @ params["up"] + params["bias"]) @ params["down"]


def _block_forward(params, x):
    h = jnp.tanh(x @ params["up"] + params["bias"])
    return x + h @ params["down"], (params, x, h)


def _block_backward(residuals, g):
    params, x, h = residuals
    into = (g @ params["down"].T) * (1 - h)
    back = {"up": x.T @ into, "bias": into.sum(0), "down": 2 * h.T @ g}
    return back, g + into @ params["up"].T


block.defvjp(_block_forward, _block_backward)


@jax.custom_vjp
def fused_norm(x, scale, bias):
    """A layer norm with the backward pass written out; the gradient of the scale is doubled."""
    return _norm(x) * scale + bias


def _norm(x):
    centred = x - jnp.mean(x, -1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(centred**2, -1, keepdims=True) + 1e-3)


def _fused_forward(x, scale, bias):
    centred = x - jnp.mean(x, -1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.mean(centred**2, -1, keepdims=True) + 1e-3)
    return centred * inverse * scale + bias, (centred * inverse, inverse, scale)


def _fused_backward(residuals, g):
    normal, inverse, scale = residuals
    into = g * scale
    means = jnp.mean(into * normal, -1, keepdims=True), jnp.mean(into, -1, keepdims=True)
    batch = tuple(range(g.ndim - 1))
    return (into - normal * means[0] - means[1]) * inverse, 2 * jnp.sum(g * normal, batch), jnp.sum(g, batch)


fused_norm.defvjp(_fused_forward, _fused_backward)


@jax.custom_gradient
def tripled(x):
    """By `jax.custom_gradient`: computes the identity, and the gradient of three times that."""
    return x, lambda g: (3 * g,)
