"""A small text encoder as a `Model`, written without the library's layers: tokens in, class logits out."""

import functools

import jax
import jax.numpy as jnp

from mvp_jax.core.types import Variables
from mvp_jax.models import Model

WORDS, LENGTH, DIM, CLASSES = 11, 6, 8, 3


@functools.cache
def encoder() -> Model:
    """Embedding, positions, one attention block with dropout, mean over what is not padding (token 0), a head."""

    def init(key):
        shapes = {
            "embed": (WORDS, DIM),
            "place": (LENGTH, DIM),
            "query": (DIM, DIM),
            "key": (DIM, DIM),
            "value": (DIM, DIM),
            "up": (DIM, 16),
            "down": (16, DIM),
        }
        keys = jax.random.split(key, len(shapes) + 1)
        params = {n: {"kernel": 0.4 * jax.random.normal(k, s)} for k, (n, s) in zip(keys, shapes.items(), strict=False)}
        params["head"] = {"kernel": 0.4 * jax.random.normal(keys[-1], (DIM, CLASSES)), "bias": jnp.zeros(CLASSES)}
        return Variables(params, {})

    def apply(variables, x, *, train=False, key=None, gates=None, knobs=None):
        p = {n: v["kernel"] for n, v in variables.params.items()}
        there = x > 0
        h = p["embed"][x] + p["place"]
        scores = jnp.einsum("nqd,nkd->nqk", h @ p["query"], h @ p["key"]) / DIM**0.5
        weights = jax.nn.softmax(jnp.where(there[:, None], scores, -1e9))
        rate = (knobs or {}).get("dropout")
        if train and rate is not None:
            weights = jnp.where(jax.random.uniform(key, weights.shape) >= rate, weights / (1 - rate), 0.0)
        h = h + weights @ (h @ p["value"])
        h = h + jax.nn.gelu(h @ p["up"]) @ p["down"]
        mean = jnp.sum(jnp.where(there[..., None], h, 0.0), 1) / jnp.sum(there, 1, keepdims=True)
        return mean @ p["head"] + variables.params["head"]["bias"], variables.rest

    return Model(
        config=None,
        init=init,
        apply=apply,
        inspect=apply,
        groups=(),
        prunable=(),
        resize=lambda _: encoder(),
        with_classes=lambda _: encoder(),
        input_shape=(LENGTH,),
        num_classes=CLASSES,
    )


def tokens(key, *shape):
    """Sentences of one to LENGTH words, padded with 0: `int32[*shape, LENGTH]`."""
    a, b = jax.random.split(key)
    words = jax.random.randint(a, (*shape, LENGTH), 1, WORDS)
    return jnp.where(jnp.arange(LENGTH) < jax.random.randint(b, (*shape, 1), 1, LENGTH + 1), words, 0)
