"""Vision transformers (Dosovitskiy et al., 2021, arXiv:2010.11929) and DeiT (Touvron et al., 2021, arXiv:2012.12877).

Attention kernels keep heads and head dimensions as axes of their own (`[D, H, d]`, `[H, d, D]`), so that both can be
cut. The embedding width cannot: every LayerNorm averages over it, and a mean over fewer channels is another mean.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Literal

import jax.numpy as jnp
from flax import nnx

from mvp_jax.core.types import Array
from mvp_jax.core.units import Group
from mvp_jax.models import api, layers, widths
from mvp_jax.models.hooks import Hooks, Noise


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """Every size of a vision transformer, layer by layer, so that a pruned one is another instance.

    Attributes:
        dim: the width of the embedding.
        heads: the number of attention heads in each layer.
        qk_dim: the number of query and key dimensions of a head in each layer, the same in all heads of a layer.
        v_dim: the number of value dimensions of a head in each layer.
        mlp: the number of hidden neurons in the MLP of each layer.
        attention_scale: the factor of attention scores before the softmax; the *dense* head size to the power -1/2,
            also when slim, since masked dimensions leave the dense model's scale as it is.
        image_size: the height and width of images in pixels.
        patch: the height and width of a patch in pixels; it must divide `image_size`.
        channels: the number of channels of an image.
        classes: the number of classes.
        dropout: the dropout rate after the embedding, and after the attention and the MLP of each layer.
        pool: the head reads the `cls` token or the `mean` of all others (then there is no class token).
        distilled: a distillation token stands behind the class token (DeiT) and has a head of its own; logits are the
            mean of both heads'.
        one_head: with `distilled`, whether there is only the class token's head.
        epsilon: the ε of every LayerNorm, 1e-6 as published, 1e-12 in Hugging Face's models.
        activation: the name of the MLPs' activation function, one of `layers.ACTIVATIONS`.
        compute: the dtype that products and activations are computed in, one of `layers.Compute`; parameters, norms,
            softmax and logits are float32.
    """

    dim: int
    heads: tuple[int, ...]
    qk_dim: tuple[int, ...]
    v_dim: tuple[int, ...]
    mlp: tuple[int, ...]
    attention_scale: float
    image_size: int = 224
    patch: int = 16
    channels: int = 3
    classes: int = 1000
    dropout: float = 0.0
    pool: Literal["cls", "mean"] = "cls"
    distilled: bool = False
    one_head: bool = False
    epsilon: float = 1e-6
    activation: str = "gelu"
    compute: layers.Compute = "float32"

    def __post_init__(self) -> None:
        layers.check_transformer(self)
        if min(self.channels, self.classes, self.patch) < 1 or self.epsilon < 0:
            raise ValueError(f"all sizes must be at least 1 and epsilon not negative, got {self}")
        if self.image_size % self.patch:
            raise ValueError(f"patches of {self.patch} do not tile an image of {self.image_size} pixels")
        if self.pool not in ("cls", "mean"):
            raise ValueError(f"unknown pool={self.pool!r}; choose cls or mean")
        if self.distilled and self.pool != "cls":
            raise ValueError(f"a distillation token stands behind a class token, got pool={self.pool!r}; choose cls")
        if self.one_head and not self.distilled:
            raise ValueError("one_head leaves out the head of a distillation token; give distilled=True with it")

    @property
    def averaged(self) -> bool:
        """Whether the logits are the mean of the class token's and the distillation token's heads."""
        return self.distilled and not self.one_head

    @property
    def tokens(self) -> int:
        """How many tokens there are: patches, and the class token and the distillation token if the model has them."""
        return (self.image_size // self.patch) ** 2 + (self.pool == "cls") + self.distilled


class ViT(nnx.Module):
    """Patches, class token, positions, layers, norm, head."""

    def __init__(self, config: ViTConfig, *, noise: Noise):
        self.config = c = config
        # A convolution whose windows do not overlap is a linear map of patches; its kernel stays [p, p, C, D].
        self.patch = layers.Projection((c.patch, c.patch, c.channels), (c.dim,), compute=c.compute, noise=noise)
        if c.pool == "cls":
            self.cls = nnx.Param(noise((1, 1, c.dim), 0.02))
        if c.distilled:
            self.distill = nnx.Param(noise((1, 1, c.dim), 0.02))
        self.position = nnx.Param(noise((1, c.tokens, c.dim), 0.02))
        self.layers = layers.children(
            [
                layers.PreNorm(
                    c,
                    i,
                    activation=c.activation,
                    epsilon=c.epsilon,
                    dropout=c.dropout,
                    compute=c.compute,
                    noise=noise,
                )
                for i in range(len(c.heads))
            ]
        )
        self.norm = layers.LayerNorm(c.dim, epsilon=c.epsilon)
        self.head = layers.Head((c.dim,), c.classes, noise=noise)
        if c.averaged:
            self.head_distilled = layers.Head((c.dim,), c.classes, noise=noise)

    def __call__(self, x: Array, hooks: Hooks) -> tuple[Array, Array]:
        c = self.config
        n, side = x.shape[0], c.image_size // c.patch
        cells = jnp.reshape(x, (n, side, c.patch, side, c.patch, c.channels)).transpose((0, 1, 3, 2, 4, 5))
        x = jnp.reshape(self.patch(cells), (n, side * side, c.dim))
        own = [self.cls[...]] if c.pool == "cls" else []
        own += [self.distill[...]] if c.distilled else []
        if own:
            x = jnp.concatenate([*(jnp.broadcast_to(token, (n, 1, c.dim)) for token in own), x], axis=1)
        x = hooks.dropout(x + self.position[...], c.dropout)
        for layer in layers.ordered(self.layers):
            x = layer(x, hooks)
        x = self.norm(x)
        logits, features = self.head(x[:, 0] if c.pool == "cls" else jnp.mean(x, axis=1))
        if c.averaged:
            logits = (logits + self.head_distilled(x[:, 1])[0]) / 2
        return logits, features


@functools.cache
def _traced(config: ViTConfig) -> Mapping[str, Group]:
    """What goes with each group's units."""
    return api.coupled(
        lambda noise: ViT(config, noise=noise),
        (config.image_size, config.image_size, config.channels),
        widths.slots(config),
    )


def _groups(config: ViTConfig) -> tuple[Group, ...]:
    """Sizes do not matter for what is coupled, so that all transformers of one build share a trace."""
    small = dataclasses.replace(
        config, **widths.of_twos(config), classes=2, dropout=0.0, epsilon=1e-6, compute="float32"
    )
    return api.sized(_traced(small), widths.sizes(config))


@functools.cache
def build(config: ViTConfig) -> api.Model:
    """The model of a configuration; equal configurations give the same object.

    Four groups a layer: heads (`layers/0/attention`, scored by the query, key and value projections that make them),
    query/key dimensions, the same in every head (`layers/0/attention/query`), value dimensions
    (`layers/0/attention/value`) and MLP neurons (`layers/0/fc1`). Under two averaged heads, `features` are what the
    first one reads; `with_classes` gives a model of one head, so that whoever fits heads need not know of two.

    >>> model = build(micro(layers=1, dim=8, heads=2, mlp=16))
    >>> [(g.name, g.size) for g in model.groups]
    [('layers/0/attention', 2), ('layers/0/attention/query', 4), ('layers/0/attention/value', 4), ('layers/0/fc1', 16)]
    """
    groups = _groups(config)

    def resize(sizes: Mapping[str, int]) -> api.Model:
        api.check_sizes(sizes, groups)
        return build(dataclasses.replace(config, **widths.fields(config, sizes)))

    return api.from_module(
        lambda noise: ViT(config, noise=noise),
        config=config,
        groups=groups,
        prunable=widths.KERNELS,
        resize=resize,
        with_classes=lambda n: build(dataclasses.replace(config, classes=n, one_head=config.distilled)),
        input_shape=(config.image_size, config.image_size, config.channels),
        num_classes=config.classes,
        dropout=config.dropout,
    )


def uniform(dim: int, *, heads: int, layers: int = 12, mlp: int | None = None, **options: object) -> ViTConfig:
    """A configuration whose layers are all alike: head size `dim / heads`, MLP width `4·dim` unless it is given."""
    given = widths.alike(dim, heads=heads, layers=layers, mlp=mlp)
    return ViTConfig(**(given | options))


def micro(
    image_size: int = 8,
    *,
    patch: int | None = None,
    channels: int = 1,
    dim: int = 48,
    heads: int = 4,
    layers: int = 3,
    mlp: int | None = None,
    classes: int = 10,
    **options: object,
) -> ViTConfig:
    """A small configuration for images of 8 to 32 pixels: patches of 4×4 pixels up to 16 pixels, else of 8×8."""
    if patch is None:
        patch = max(1, image_size // (4 if image_size <= 16 else 8))
    shared = {"image_size": image_size, "patch": patch, "channels": channels, "classes": classes}
    width = 2 * dim if mlp is None else mlp
    return uniform(dim, heads=heads, layers=layers, mlp=width, **(shared | options))


tiny = functools.partial(uniform, 192, heads=3)
small = functools.partial(uniform, 384, heads=6)
base = functools.partial(uniform, 768, heads=12)
_SIZES = {"tiny": tiny, "small": small, "base": base}

PRESETS: dict[str, Callable[..., ViTConfig]] = {
    "vit_micro": micro,
    **{f"vit_{name}": make for name, make in _SIZES.items()},
    **{f"deit_{name}": make for name, make in _SIZES.items()},
    **{f"deit_{name}_distilled": functools.partial(make, distilled=True) for name, make in _SIZES.items()},
}
"""Configurations by name; each takes any field as a keyword. DeiT without distillation is a ViT of these sizes."""
