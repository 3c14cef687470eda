"""A network of two hidden layers, written by hand as a `Model`: it compiles in a moment, and NumPy can follow it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from mvp_jax.core.types import Variables
from mvp_jax.core.units import Group, Slot
from mvp_jax.models.api import Inspection, Model

INPUTS = 5


@functools.cache
def mlp(a: int = 8, b: int = 6, classes: int = 3) -> Model:
    """Groups `a` and `b`; the parameter `offset` belongs to no group and to no head."""

    def inspect(variables, x, *, train=False, key=None, gates=None, knobs=None):
        p, gates = variables.params, gates or {}
        h1 = jnp.tanh((x + p["offset"]) @ p["one"]["kernel"] + p["one"]["bias"]) * gates.get("a", 1.0)
        h2 = jnp.tanh(h1 @ p["two"]["kernel"] + p["two"]["bias"]) * gates.get("b", 1.0)
        logits = h2 @ p["head"]["kernel"] + p["head"]["bias"]
        return Inspection(logits, h2, {"a": jnp.abs(h1), "b": jnp.abs(h2)}, variables.rest)

    def apply(variables, x, **how):
        seen = inspect(variables, x, **how)
        return seen.logits, seen.rest

    return Model(
        config=("mlp", a, b, classes),
        init=lambda key: jax.tree.map(lambda leaf: leaf + jax.random.normal(key), variables(0, a, b, classes)),
        apply=apply,
        inspect=inspect,
        groups=(
            Group(
                name="a",
                size=a,
                slots=(
                    Slot(path="one/kernel", axis=1, scored=True),
                    Slot(path="one/bias", axis=0, scored=True),
                    Slot(path="two/kernel", axis=0),
                ),
            ),
            Group(
                name="b",
                size=b,
                slots=(
                    Slot(path="two/kernel", axis=1, scored=True),
                    Slot(path="two/bias", axis=0, scored=True),
                    Slot(path="head/kernel", axis=0),
                ),
            ),
        ),
        prunable=("(one|two)/kernel",),
        resize=lambda sizes: mlp(sizes.get("a", a), sizes.get("b", b), classes),
        with_classes=lambda n: mlp(a, b, n),
        input_shape=(INPUTS,),
        num_classes=classes,
    )


def variables(seed: int = 0, a: int = 8, b: int = 6, classes: int = 3) -> Variables:
    """Random values, none of them zero."""
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    params = {
        "offset": draw(INPUTS),
        "one": {"kernel": draw(INPUTS, a) / 2, "bias": draw(a)},
        "two": {"kernel": draw(a, b) / 2, "bias": draw(b)},
        "head": {"kernel": draw(b, classes), "bias": draw(classes)},
    }
    return Variables(params, {})


def data(n: int = 24, classes: int = 3, seed: int = 1, shape: tuple[int, ...] = (INPUTS,)) -> dict[str, jax.Array]:
    """Noisy clusters, `n / classes` examples of each class."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % classes
    x = rng.normal(size=(classes, *shape))[y] + rng.normal(size=(n, *shape))
    return {"x": jnp.asarray(x, jnp.float32), "y": jnp.asarray(y, jnp.int32)}


def in_numpy(params: dict, x: np.ndarray, y: np.ndarray) -> tuple[float, dict, dict, dict]:
    """Mean loss, its gradients, each example's gradient of a gate on each unit, and activations; float64, by hand."""
    n = len(y)
    x0 = x + params["offset"]
    h1 = np.tanh(x0 @ params["one"]["kernel"] + params["one"]["bias"])
    h2 = np.tanh(h1 @ params["two"]["kernel"] + params["two"]["bias"])
    z = h2 @ params["head"]["kernel"] + params["head"]["bias"]
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    loss = -np.mean(np.log(p[np.arange(n), y]))
    dz = p.copy()
    dz[np.arange(n), y] -= 1
    d2 = dz @ params["head"]["kernel"].T
    e2 = d2 * (1 - h2**2)
    d1 = e2 @ params["two"]["kernel"].T
    e1 = d1 * (1 - h1**2)
    grads = {
        "offset": (e1 @ params["one"]["kernel"].T).mean(0),
        "one": {"kernel": x0.T @ e1 / n, "bias": e1.mean(0)},
        "two": {"kernel": h1.T @ e2 / n, "bias": e2.mean(0)},
        "head": {"kernel": h2.T @ dz / n, "bias": dz.mean(0)},
    }
    return float(loss), grads, {"a": h1 * d1, "b": h2 * d2}, {"a": np.abs(h1), "b": np.abs(h2)}
