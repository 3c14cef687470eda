"""Pre-training without labels: SimSiam, as a model and a loss that `train` takes like any other.

The model of `siamese` draws two views of each image, and its outputs are what the loss compares. So steps, compiled
loops, populations and checkpoints need not know of it.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx

from mvp_jax.core.types import Array, Key, PyTree, Variables
from mvp_jax.models import api, layers
from mvp_jax.models.hooks import Hooks, Noise

Views: TypeAlias = Callable[[Key, Array], tuple[Array, Array]]
"""`(key, images [N, ...]) -> (a, b)`: two views of every image, in the images' shape."""


class Dense(nnx.Module):
    """A linear map whose outputs have the size of its inputs."""

    def __init__(self, width_in: int, width: int, *, bias: bool, noise: Noise):
        self.kernel = nnx.Param(noise((width_in, width), width_in**-0.5))
        if bias:
            self.bias = nnx.Param(jnp.zeros(width, jnp.float32))
        self.biased = bias

    def __call__(self, x: Array) -> Array:
        y = x @ self.kernel[...]
        return y + self.bias[...] if self.biased else y


class Mlp(nnx.Module):
    """Linear maps with batch norm and ReLU between them; after the last a norm too, or a bias alone."""

    def __init__(self, widths: Sequence[int], *, normed: bool, noise: Noise):
        pairs = list(itertools.pairwise(widths))
        norms = [True] * (len(pairs) - 1) + [normed]
        made = [Dense(a, b, bias=not norm, noise=noise) for (a, b), norm in zip(pairs, norms, strict=True)]
        self.dense = layers.children(made)
        self.norms = layers.children([layers.BatchNorm(b) for (_, b), norm in zip(pairs, norms, strict=True) if norm])

    def __call__(self, x: Array, hooks: Hooks) -> tuple[Array, Array]:
        norms = layers.ordered(self.norms)
        for i, dense in enumerate(maps := layers.ordered(self.dense)):
            features, x = x, dense(x)
            x = norms[i](x, hooks) if i < len(norms) else x
            x = jax.nn.relu(x) if i < len(maps) - 1 else x
        return x, features


@functools.cache
def mlp(widths: tuple[int, ...], *, normed: bool) -> api.Model:
    """Returns a projector or predictor: `[N, widths[0]]` to `[N, widths[-1]]`, hidden layers with batch norm and ReLU.

    Args:
        widths: widths of the input, the hidden layers and the output.
        normed: whether batch norm follows the last map too, as in a projector.

    >>> head = mlp((4, 8, 3), normed=True)
    >>> head.apply(head.init(jax.random.key(0)), jnp.ones((2, 4)))[0].shape
    (2, 3)
    """
    if len(widths) < 2 or min(widths) < 1:
        raise ValueError(f"widths are {widths}; give those of the input, any hidden layers and the output, each >= 1")

    def refuse(*_: Any) -> NoReturn:
        raise ValueError("a projector has no units to cut and no classes; prune the body under it")

    return api.from_module(
        lambda noise: Mlp(widths, normed=normed, noise=noise),
        config=None,
        groups=(),
        prunable=(),
        resize=refuse,
        with_classes=refuse,
        input_shape=widths[:1],
        num_classes=widths[-1],
    )


@functools.lru_cache(maxsize=32)
def siamese(
    model: api.Model, views: Views, *, dim: int = 2048, hidden: int = 512, projector_layers: int = 3
) -> api.Model:
    r"""Returns a model whose outputs are predictions and projections of two views of every image.

    With the body $f$, the projector $g$ and the predictor $h$, and views $x_1, x_2$: $z_i = g(f(x_i))$, $p_i = h(z_i)$.
    Both views pass one after the other, each with batch statistics of its own.

    Args:
        model: the body; its head learns nothing here.
        views: draws two views of a batch; keep the function, equal arguments give the same object.
        dim: length of the projections and predictions.
        hidden: width of the predictor's bottleneck.
        projector_layers: number of linear maps of the projector; the paper has 3, and 2 on CIFAR-10.

    Returns:
        A model with variables `{"body": ..., "projector": ..., "predictor": ...}`. In training its logits are
        `[N, 4 * dim]`: `p1, z1, p2, z2` side by side, for `loss`; in evaluation both views are the image itself. It can
        neither be cut nor get another head.

    Raises:
        ValueError: for a body that reads no images, or sizes below 1; in training, without a key.

    Reference: Chen & He 2021 (arXiv:2011.10566), section 3 and algorithm 1.
    """
    # Long, as its functions close over the parts of the one model that they make up.
    if len(model.input_shape) != 3:
        raise ValueError(
            f"views are of images [H, W, C]; this model reads {model.input_shape}; pre-train it with labels"
        )
    if min(dim, hidden) < 1 or projector_layers < 1:
        raise ValueError(
            f"dim, hidden and projector_layers must be at least 1, got {dim}, {hidden}, {projector_layers}"
        )
    abstract = jax.eval_shape(model.init, jax.random.key(0))
    one = jax.ShapeDtypeStruct((1, *model.input_shape), model.input_dtype)
    width = int(jax.eval_shape(model.inspect, abstract, one).features.shape[-1])
    parts = {
        "body": model,
        "projector": mlp((width, *(dim,) * projector_layers), normed=True),
        "predictor": mlp((dim, hidden, dim), normed=False),
    }

    def init(key: Key) -> Variables:
        made = {n: part.init(jax.random.fold_in(key, i)) for i, (n, part) in enumerate(parts.items())}
        return Variables({n: v.params for n, v in made.items()}, {n: v.rest for n, v in made.items()})

    def one_view(
        params: Mapping[str, PyTree], rest: Mapping[str, PyTree], x: Array, train: bool, key: Key | None, knobs: Any
    ) -> tuple[Array, Array, Array, dict[str, PyTree]]:
        seen = model.inspect(Variables(params["body"], rest["body"]), x, train=train, key=key, knobs=knobs)
        z, of_projector = parts["projector"].apply(
            Variables(params["projector"], rest["projector"]), seen.features, train=train
        )
        p, of_predictor = parts["predictor"].apply(Variables(params["predictor"], rest["predictor"]), z, train=train)
        return p, z, seen.features, {"body": seen.rest, "projector": of_projector, "predictor": of_predictor}

    def inspect(
        variables: Variables,
        x: Array,
        *,
        train: bool = False,
        key: Key | None = None,
        gates: Mapping[str, Array] | None = None,
        knobs: Mapping[str, Any] | None = None,
    ) -> api.Inspection:
        params, rest = variables
        if gates:
            raise ValueError(f"gates for unknown groups {sorted(gates)}; a siamese model has none, its body does")
        if not train:
            p, z, features, _ = one_view(params, rest, x, False, None, None)
            return api.Inspection(jnp.concatenate([p, z, p, z], axis=-1), features, {}, rest)
        if key is None:
            raise ValueError("views are drawn anew in training; pass key=jax.random.key(...)")
        drawn, *keys = jax.random.split(key, 3)
        outputs = []
        for view, own in zip(views(drawn, x), keys, strict=True):
            p, z, features, rest = one_view(params, rest, view, True, own, knobs)
            outputs += [p, z]
        return api.Inspection(jnp.concatenate(outputs, axis=-1), features, {}, rest)

    def apply(variables: Variables, x: Array, **how: Any) -> tuple[Array, PyTree]:
        seen = inspect(variables, x, **how)
        return seen.logits, seen.rest

    def refuse(*_: Any) -> NoReturn:
        raise ValueError("a siamese model is not cut; take `simsiam.body` of its variables and prune that")

    return dataclasses.replace(
        model,
        init=init,
        apply=apply,
        inspect=inspect,
        groups=(),
        prunable=(),
        resize=refuse,
        with_classes=refuse,
        num_classes=4 * dim,
        head="",
    )


def loss(outputs: Array, labels: Array | None = None, **_: Any) -> Array:
    r"""Returns the symmetrised negative cosine of predictions and projections, with no gradient through projections.

    $L = \tfrac12 D(p_1, \mathrm{sg}(z_2)) + \tfrac12 D(p_2, \mathrm{sg}(z_1))$ with
    $D(p, z) = -\frac{p}{\lVert p\rVert_2} \cdot \frac{z}{\lVert z\rVert_2}$.

    Args:
        outputs: `[N, 4 * dim]`, of a `siamese` model.
        labels: not looked at; every `train.Loss` is given them.

    Returns:
        `[N]`, each in [-1, 1].

    >>> p, z = jnp.array([[1.0, 0.0]]), jnp.array([[1.0, 1.0]])
    >>> loss(jnp.concatenate([p, z, p, z], axis=-1)).round(4)
    Array([-0.7071], dtype=float32)

    Reference: Chen & He 2021 (arXiv:2011.10566), equations 1 to 4.
    """
    p1, z1, p2, z2 = jnp.split(outputs, 4, axis=-1)
    return -0.5 * (_cosine(p1, jax.lax.stop_gradient(z2)) + _cosine(p2, jax.lax.stop_gradient(z1)))


def _unit(x: Array) -> Array:
    # The root of a sum of squares has no gradient at 0.
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), -1, keepdims=True), 1e-16))


def _cosine(a: Array, b: Array) -> Array:
    return jnp.sum(_unit(a) * _unit(b), -1)


def spread(outputs: Array) -> Array:
    r"""Returns how far the first view's projections are from all being equal: a scalar, 0 where they have collapsed.

    It is the standard deviation over examples of $z / \lVert z\rVert_2$, averaged over dimensions; $1/\sqrt d$ where
    directions are spread evenly.

    Args:
        outputs: `[N, 4 * dim]`, of a `siamese` model.

    >>> outputs = jax.random.normal(jax.random.key(0), (512, 4 * 16))
    >>> float(spread(outputs)).__round__(2), float(spread(jnp.ones((5, 8))))
    (0.25, 0.0)

    Reference: Chen & He 2021 (arXiv:2011.10566), section 4.1.
    """
    return jnp.mean(jnp.std(_unit(jnp.split(outputs, 4, axis=-1)[1]), axis=0))


def body(variables: Variables) -> Variables:
    """Returns the body's own variables, without projector and predictor.

    Its head has learnt nothing: it is as it was at the start, or smaller by weight decay.
    """
    return Variables(variables.params["body"], variables.rest["body"])


__all__ = ["Views", "body", "loss", "mlp", "siamese", "spread"]
