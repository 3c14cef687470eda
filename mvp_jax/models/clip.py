"""The two towers of CLIP (Radford et al., 2021, arXiv:2103.00020), each a model of its own.

Both are pre-norm transformers whose last token's feature is projected without bias and brought to length 1. The head
multiplies these features, so that a zero-shot classifier is a head like any other: its kernel holds the embedded
class names times `exp(logit_scale)`, its bias is 0. What can be cut is that of `vit`.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from mvp_jax.core.types import Array, Variables
from mvp_jax.core.units import Group
from mvp_jax.models import api, layers, widths
from mvp_jax.models.hooks import Hooks, Noise


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tower:
    """Every size of a tower, layer by layer, so that a pruned one is another instance.

    Attributes:
        dim: the width of the embedding.
        heads: the number of attention heads in each layer.
        qk_dim: the number of query and key dimensions of a head in each layer, the same in all heads of a layer.
        v_dim: the number of value dimensions of a head in each layer.
        mlp: the number of hidden neurons in the MLP of each layer.
        attention_scale: the factor of attention scores before the softmax; the *dense* head size to the power -1/2,
            also when slim.
        projection: the width of the features, the same in both towers of a pair.
        classes: the number of classes.
        dropout: the dropout rate after the embedding, and after the attention and the MLP of each layer.
        activation: the name of the MLPs' activation function, one of `layers.ACTIVATIONS`.
        epsilon: the ε of every LayerNorm.
        compute: the dtype that products and activations are computed in; parameters, norms, softmax and logits are
            float32.
    """

    dim: int
    heads: tuple[int, ...]
    qk_dim: tuple[int, ...]
    v_dim: tuple[int, ...]
    mlp: tuple[int, ...]
    attention_scale: float
    projection: int = 512
    classes: int = 1000
    dropout: float = 0.0
    activation: str = "quick_gelu"
    epsilon: float = 1e-5
    compute: layers.Compute = "float32"

    def __post_init__(self) -> None:
        layers.check_transformer(self)
        if min(self.projection, self.classes) < 1:
            raise ValueError(f"all sizes must be at least 1, got {self}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipVisionConfig(Tower):
    """An image tower.

    Attributes:
        image_size: the height and width of images in pixels.
        patch: the height and width of a patch in pixels; it must divide `image_size`.
        channels: the number of channels of an image.
    """

    image_size: int = 224
    patch: int = 32
    channels: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.image_size, self.patch, self.channels) < 1:
            raise ValueError(f"all sizes must be at least 1, got {self}")
        if self.image_size % self.patch:
            raise ValueError(f"patches of {self.patch} do not tile an image of {self.image_size} pixels")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipTextConfig(Tower):
    """A text tower.

    Attributes:
        vocab: the number of token ids that have an embedding.
        positions: the length of the longest text in tokens.
        eos: the id that ends a text; the first one is read, and what follows it is neither attended to nor counted.
            `None`: the highest id of the text ends it, as in the first checkpoints. A text without `eos` is read at
            its first token.
    """

    vocab: int = 49408
    positions: int = 77
    eos: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.vocab, self.positions) < 1:
            raise ValueError(f"all sizes must be at least 1, got {self}")
        if self.eos is not None and not 0 <= self.eos < self.vocab:
            raise ValueError(
                f"eos={self.eos} must be an id of the vocabulary, 0 to {self.vocab - 1}; eos=None reads the highest id"
            )


def normalised(x: Array) -> Array:
    """`x / |x|` along the last axis; 0 stays 0.

    >>> normalised(jnp.array([3.0, 0.0])).tolist()
    [1.0, 0.0]
    """
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), 1e-24))


def _stack(config: Tower, *, causal: bool, noise: Noise) -> nnx.Dict:
    """The layers of a tower."""
    how: dict[str, Any] = {
        "activation": config.activation,
        "epsilon": config.epsilon,
        "dropout": config.dropout,
        "compute": config.compute,
        "causal": causal,
    }
    return layers.children([layers.PreNorm(config, i, **how, noise=noise) for i in range(len(config.heads))])


class End(nnx.Module):
    """From the token that is read to features and logits: norm, projection, length 1, head."""

    def __init__(self, config: Tower, *, noise: Noise):
        self.norm = layers.LayerNorm(config.dim, epsilon=config.epsilon)
        self.projection = layers.Projection(
            (config.dim,), (config.projection,), bias=False, compute=config.compute, noise=noise
        )
        self.head = layers.Head((config.projection,), config.classes, noise=noise)

    def finish(self, x: Array) -> tuple[Array, Array]:
        """`[N, D]` to logits and features."""
        return self.head(normalised(layers.raised(self.projection(self.norm(x)))))


class ClipVision(End):
    """Patches, class token, positions, norm, layers; the class token is read."""

    def __init__(self, config: ClipVisionConfig, *, noise: Noise):
        self.config = config
        p = config.patch
        self.patch = layers.Projection(
            (p, p, config.channels), (config.dim,), bias=False, compute=config.compute, noise=noise
        )
        self.cls = nnx.Param(noise((config.dim,), 0.02))
        self.position = nnx.Param(noise(((config.image_size // p) ** 2 + 1, config.dim), 0.02))
        self.norm_in = layers.LayerNorm(config.dim, epsilon=config.epsilon)
        self.layers = _stack(config, causal=False, noise=noise)
        super().__init__(config, noise=noise)

    def __call__(self, x: Array, hooks: Hooks) -> tuple[Array, Array]:
        c = self.config
        n, side = x.shape[0], c.image_size // c.patch
        cells = jnp.reshape(x, (n, side, c.patch, side, c.patch, c.channels)).transpose((0, 1, 3, 2, 4, 5))
        x = layers.raised(jnp.reshape(self.patch(cells), (n, side * side, c.dim)))
        x = jnp.concatenate([jnp.broadcast_to(self.cls[...], (n, 1, c.dim)), x], axis=1)
        x = hooks.dropout(self.norm_in(x + self.position[...]), c.dropout)
        for layer in layers.ordered(self.layers):
            x = layer(x, hooks)
        return self.finish(x[:, 0])


class ClipText(End):
    """Words and positions, layers in which a token sees those before it; the token that ends the text is read."""

    def __init__(self, config: ClipTextConfig, *, noise: Noise):
        self.config = config
        self.word = nnx.Param(noise((config.vocab, config.dim), 0.02))
        self.position = nnx.Param(noise((config.positions, config.dim), 0.02))
        self.layers = _stack(config, causal=True, noise=noise)
        super().__init__(config, noise=noise)

    def __call__(self, ids: Array, hooks: Hooks) -> tuple[Array, Array]:
        c = self.config
        end = jnp.argmax(ids if c.eos is None else ids == c.eos, axis=1)[:, None]
        real = jnp.arange(ids.shape[1]) <= end
        # An id outside the vocabulary gives nan; JAX's indexing would take the last word for it.
        x = jnp.take(self.word[...], ids, axis=0)
        x = hooks.dropout(x + self.position[: ids.shape[1]], c.dropout)
        for layer in layers.ordered(self.layers):
            x = layer(x, hooks, real)
        return self.finish(jnp.take_along_axis(x, end[:, :, None], axis=1)[:, 0])


def _module(config: Tower, noise: Noise) -> nnx.Module:
    return ClipText(config, noise=noise) if isinstance(config, ClipTextConfig) else ClipVision(config, noise=noise)  # type: ignore[arg-type]


def _input(config: Tower) -> tuple[tuple[int, ...], Any]:
    """Shape and dtype of an example."""
    if isinstance(config, ClipTextConfig):
        return (config.positions,), jnp.int32
    assert isinstance(config, ClipVisionConfig)
    return (config.image_size, config.image_size, config.channels), jnp.float32


@functools.cache
def _traced(config: Tower) -> Mapping[str, Group]:
    """What goes with each group's units."""
    shape, dtype = _input(config)
    return api.coupled(functools.partial(_module, config), shape, widths.slots(config), dtype)


def _groups(config: Tower) -> tuple[Group, ...]:
    """Sizes do not matter for what is coupled, so that all towers of one build share a trace."""
    twos = widths.of_twos(config)
    small = dataclasses.replace(config, **twos, classes=2, dropout=0.0, compute="float32")
    return api.sized(_traced(small), widths.sizes(config))


@functools.cache
def build(config: ClipVisionConfig | ClipTextConfig) -> api.Model:
    """The model of a tower's configuration; equal configurations give the same object.

    Images are `[N, H, W, C]`, texts token ids `int32[N, L]` with `L` at most `positions`; an id outside the vocabulary
    gives nan. Features are the normalised embeddings `[N, E]`. Groups are those of `vit.build`: heads, query/key
    dimensions, value dimensions and MLP neurons of each layer. Embeddings, norms, projection and head are not pruned.

    >>> model = build(micro_text(layers=1, dim=8, heads=2, mlp=16, projection=4))
    >>> [(g.name, g.size) for g in model.groups]
    [('layers/0/attention', 2), ('layers/0/attention/query', 4), ('layers/0/attention/value', 4), ('layers/0/fc1', 16)]
    >>> model.inspect(model.init(jax.random.key(0)), jnp.array([[1, 7, 9, 2, 0]])).features.shape
    (1, 4)
    """
    groups = _groups(config)
    shape, dtype = _input(config)

    def resize(sizes: Mapping[str, int]) -> api.Model:
        api.check_sizes(sizes, groups)
        return build(dataclasses.replace(config, **widths.fields(config, sizes)))

    return api.from_module(
        functools.partial(_module, config),
        config=config,
        groups=groups,
        prunable=widths.KERNELS,
        resize=resize,
        with_classes=lambda n: build(dataclasses.replace(config, classes=n)),
        input_shape=shape,
        num_classes=config.classes,
        dropout=config.dropout,
        input_dtype=dtype,
    )


def zero_shot_head(model: api.Model, variables: Variables, prompts: Array, logit_scale: Array | float) -> Array:
    """The kernel of a classifier made of texts.

    `k_c = exp(s) · w_c / |w_c|` with `w_c = mean_t f(prompt_{c,t})`, where `f` has length 1. Give it to
    `replace_head`, whose bias is 0, and to `functions.freeze` if it is to stay.

    Args:
        model: a text tower.
        variables: the variables of the text tower.
        prompts: `int32[C, T, L]`, token ids of each class's name in each of T templates.
        logit_scale: `s`, the logarithm as checkpoints store it.

    Returns:
        `float32[E, C]`.

    Raises:
        ValueError: if the model is no text tower, or prompts have another shape.

    >>> model = build(micro_text(layers=1, dim=8, heads=2, mlp=16, projection=4))
    >>> prompts = jnp.array([[[1, 5, 2], [1, 6, 2]], [[1, 7, 2], [1, 8, 2]]])
    >>> kernel = zero_shot_head(model, model.init(jax.random.key(0)), prompts, 0.0)
    >>> kernel.shape, jnp.linalg.norm(kernel, axis=0).round(4).tolist()
    ((4, 2), [1.0, 1.0])

    Reference: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021,
    arXiv:2103.00020, sections 3.1.2 and 3.1.4.
    """
    if not isinstance(model.config, ClipTextConfig):
        raise ValueError(f"prompts are embedded by a text tower, got {type(model.config).__name__}; build one")
    if jnp.ndim(prompts) != 3 or 0 in jnp.shape(prompts):
        raise ValueError(
            f"prompts have shape {jnp.shape(prompts)}; give int32[classes, templates, tokens], one template is T = 1"
        )
    return _zero_shot_head(model, Variables(*variables), jnp.asarray(prompts), jnp.asarray(logit_scale))


@functools.partial(jax.jit, static_argnames="model")
def _zero_shot_head(model: api.Model, variables: Variables, prompts: Array, logit_scale: Array) -> Array:
    def embedded(ids: Array) -> Array:
        return normalised(jnp.mean(model.inspect(variables, ids).features, axis=0))

    return jnp.exp(logit_scale) * jax.lax.map(embedded, prompts).T


def similarity(
    vision: api.Model,
    vision_variables: Variables,
    text: api.Model,
    text_variables: Variables,
    images: Array,
    ids: Array,
    logit_scale: Array | float,
) -> Array:
    """How well images and texts go together: the logits of every image for every text.

    `exp(s) · f(image) · f(text)`; their transpose are the logits of each text over the images.

    Args:
        vision: an image tower.
        vision_variables: the variables of the image tower.
        text: the text tower of the same pair.
        text_variables: the variables of the text tower.
        images: a batch of images, `[N, H, W, C]`.
        ids: a batch of texts as token ids, `int32[M, L]`.
        logit_scale: `s`, the logarithm as checkpoints store it.

    Returns:
        `float32[N, M]`.

    Raises:
        ValueError: if the towers' features have different widths.
    """
    widths = vision.config.projection, text.config.projection
    if widths[0] != widths[1]:
        raise ValueError(f"features of widths {widths[0]} and {widths[1]} have no product; take both towers of a pair")
    seen, read = vision.inspect(vision_variables, images).features, text.inspect(text_variables, ids).features
    return jnp.exp(logit_scale) * seen @ read.T


_Config = TypeVar("_Config", bound=Tower)


def _uniform(
    cls: Callable[..., _Config], dim: int, *, heads: int, layers: int = 12, mlp: int | None = None, **options: object
) -> _Config:
    """All layers alike: head size `dim / heads`, MLP width `4·dim` unless given."""
    given = widths.alike(dim, heads=heads, layers=layers, mlp=mlp)
    return cls(**(given | options))


uniform_vision = functools.partial(_uniform, ClipVisionConfig)
uniform_text = functools.partial(_uniform, ClipTextConfig)


def micro_vision(image_size: int = 8, *, dim: int = 48, heads: int = 4, mlp: int = 96, **options: Any) -> Any:
    """A small image tower: 3 layers, 4×4 patches."""
    shared = {"image_size": image_size, "patch": max(1, image_size // 4), "channels": 1, "classes": 10, "layers": 3}
    return uniform_vision(dim, heads=heads, mlp=mlp, **(shared | {"projection": 32} | options))


def micro_text(vocab: int = 2048, *, dim: int = 48, heads: int = 4, mlp: int = 96, **options: Any) -> Any:
    """A small text tower: 2 layers, with the token ids of `data.datasets.text`, whose separator ends a text."""
    shared = {"vocab": vocab, "positions": 32, "eos": 2, "classes": 10, "layers": 2}
    return uniform_text(dim, heads=heads, mlp=mlp, **(shared | {"projection": 32} | options))


vision_b32 = functools.partial(uniform_vision, 768, heads=12, patch=32)
vision_b16 = functools.partial(uniform_vision, 768, heads=12, patch=16)
vision_l14 = functools.partial(uniform_vision, 1024, heads=16, layers=24, patch=14, projection=768)
text_b = functools.partial(uniform_text, 512, heads=8, eos=49407)
text_l = functools.partial(uniform_text, 768, heads=12, projection=768, eos=49407)

PRESETS: dict[str, Callable[..., Any]] = {
    "clip_vision_micro": micro_vision,
    "clip_vision_b32": vision_b32,
    "clip_vision_b16": vision_b16,
    "clip_vision_l14": vision_l14,
    "clip_text_micro": micro_text,
    "clip_text_b": text_b,
    "clip_text_l": text_l,
}
"""Configurations by name; each takes any field as a keyword."""
