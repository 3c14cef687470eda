"""BERT encoders with a classification head (Devlin et al., 2019, arXiv:1810.04805).

The architecture is the published one, so that its checkpoints fit: three embeddings added and normalised, layers that
normalise after each addition, a pooler on the first token. Kernels lie as in `vit`; what can be cut is the same.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from mvp_jax.models import api, layers
from mvp_jax.types import Array
from mvp_jax.units import Group

_EPSILON = 1e-12
"""Of every LayerNorm, as published; in float32 it only keeps a constant vector from giving nan."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BertConfig:
    """Every size of an encoder, layer by layer, so that a pruned one is another instance.

    Attributes:
        vocab: words that have an embedding.
        positions: the longest text, in tokens.
        dim: embedding width.
        heads, qk_dim, v_dim, mlp: of each layer; query and key dimensions are the same in all heads of a layer.
        attention_scale: what scores are multiplied by; the *dense* head size to the power -1/2, also when slim.
        types: token types (segments) that have an embedding.
        classes: of the data.
        dropout: rate after the embedding, on attention weights, after the attention and the MLP of each layer, and
            before the head.
        pad: the id of padding, which no token attends to.
        separator: the id that ends a segment: token types are 0 up to and including the first separator, and 1 after
            it until padding. `None`: all of type 0.
        pool: the head reads the `first` token, through the pooler.
    """

    vocab: int
    positions: int
    dim: int
    heads: tuple[int, ...]
    qk_dim: tuple[int, ...]
    v_dim: tuple[int, ...]
    mlp: tuple[int, ...]
    attention_scale: float
    types: int = 2
    classes: int = 2
    dropout: float = 0.0
    pad: int = 0
    separator: int | None = None
    pool: Literal["first"] = "first"

    def __post_init__(self) -> None:
        counts = {len(self.heads), len(self.qk_dim), len(self.v_dim), len(self.mlp)}
        if len(counts) != 1 or not self.heads:
            raise ValueError(f"heads, qk_dim, v_dim and mlp need one entry per layer each, got {self}")
        sizes = [self.vocab, self.positions, self.dim, *self.heads, *self.qk_dim, *self.v_dim, *self.mlp, self.types]
        if min(*sizes, self.classes) < 1:
            raise ValueError(f"all sizes must be at least 1, got {self}")
        strange = [i for i in (self.pad, self.separator) if i is not None and not 0 <= i < self.vocab]
        if strange or self.pad == self.separator:
            raise ValueError(
                f"pad={self.pad} and separator={self.separator} must be two different ids of the vocabulary, "
                f"0 to {self.vocab - 1}; separator=None does without segments"
            )
        if self.separator is not None and self.types < 2:
            raise ValueError(f"a separator makes two token types, but types={self.types}; give types=2")
        if self.pool != "first":
            raise ValueError(f"unknown pool={self.pool!r}; choose first")


class Embedding(nnx.Module):
    """Words, positions and token types, added and normalised."""

    def __init__(self, config: BertConfig, *, noise: api.Noise):
        self.pad = config.pad
        self.separator = config.separator
        self.word = nnx.Param(noise((config.vocab, config.dim), 0.02))
        self.position = nnx.Param(noise((config.positions, config.dim), 0.02))
        self.type = nnx.Param(noise((config.types, config.dim), 0.02))
        self.norm = layers.LayerNorm(config.dim, epsilon=_EPSILON)

    def __call__(self, ids: Array) -> Array:
        # An id outside the vocabulary gives nan; JAX's indexing would take the last word for it.
        x = jnp.take(self.word[...], ids, axis=0, mode="fill", fill_value=jnp.nan)
        x = x + self.position[: ids.shape[1]] + jnp.take(self.type[...], self._types(ids), axis=0, mode="clip")
        return self.norm(x)

    def _types(self, ids: Array) -> Array:
        if self.separator is None:
            return jnp.zeros_like(ids)
        ends = (ids == self.separator).astype(jnp.int32)
        before = jnp.cumsum(ends, axis=1) - ends
        return ((before > 0) & (ids != self.pad)).astype(jnp.int32)


class Layer(nnx.Module):
    """A post-norm transformer layer."""

    def __init__(self, config: BertConfig, i: int, *, noise: api.Noise):
        self.path = f"layers/{i}"
        self.rate = config.dropout
        self.attention = layers.Attention(
            f"{self.path}/attention",
            config.dim,
            config.heads[i],
            config.qk_dim[i],
            config.v_dim[i],
            config.attention_scale,
            dropout=config.dropout,
            noise=noise,
        )
        self.norm1 = layers.LayerNorm(config.dim, epsilon=_EPSILON)
        self.fc1 = layers.Projection((config.dim,), (config.mlp[i],), noise=noise)
        self.fc2 = layers.Projection((config.mlp[i],), (config.dim,), noise=noise)
        self.norm2 = layers.LayerNorm(config.dim, epsilon=_EPSILON)

    def __call__(self, x: Array, hooks: api.Hooks, real: Array) -> Array:
        x = self.norm1(x + hooks.dropout(self.attention(x, hooks, real), self.rate))
        h = jax.nn.gelu(self.fc1(x), approximate=False)
        h = hooks.unit(f"{self.path}/fc1", h, where=real)
        return self.norm2(x + hooks.dropout(self.fc2(h), self.rate))


class Bert(nnx.Module):
    """Embedding, layers, pooler, head."""

    def __init__(self, config: BertConfig, *, noise: api.Noise):
        self.config = config
        self.embed = Embedding(config, noise=noise)
        self.layers = layers.children([Layer(config, i, noise=noise) for i in range(len(config.heads))])
        self.pooler = layers.Projection((config.dim,), (config.dim,), noise=noise)
        self.head = layers.Head((config.dim,), config.classes, noise=noise)

    def __call__(self, ids: Array, hooks: api.Hooks) -> tuple[Array, Array]:
        rate = self.config.dropout
        real = ids != self.config.pad
        x = hooks.dropout(self.embed(ids), rate)
        for layer in layers.ordered(self.layers):
            x = layer(x, hooks, real)
        return self.head(hooks.dropout(jnp.tanh(self.pooler(x[:, 0])), rate))


@functools.cache
def _traced(config: BertConfig) -> Mapping[str, Group]:
    """What goes with each group's units."""
    return api.coupled(
        lambda noise: Bert(config, noise=noise), (config.positions,), layers.transformer_slots(config), jnp.int32
    )


def _groups(config: BertConfig) -> tuple[Group, ...]:
    """Sizes do not matter for what is coupled, so that all encoders of one build share a trace."""
    small = dataclasses.replace(config, **layers.transformer_of_twos(config), classes=2, dropout=0.0)
    return api.sized(_traced(small), layers.transformer_sizes(config))


@functools.cache
def build(config: BertConfig) -> api.Model:
    """The model of a configuration; equal configurations give the same object.

    Its input are token ids `int32[N, L]` with `L` at most `positions`; an id outside the vocabulary gives nan. Groups
    are those of `vit.build`: heads, query/key dimensions, value dimensions and MLP neurons of each layer. Embeddings,
    norms, pooler and head are not pruned.

    >>> model = build(micro(layers=1, dim=8, heads=2, mlp=16))
    >>> [(g.name, g.size) for g in model.groups]
    [('layers/0/attention', 2), ('layers/0/attention/query', 4), ('layers/0/attention/value', 4), ('layers/0/fc1', 16)]
    >>> model.apply(model.init(jax.random.key(0)), jnp.array([[1, 7, 9, 2, 0]]))[0].shape
    (1, 10)
    """
    groups = _groups(config)

    def resize(sizes: Mapping[str, int]) -> api.Model:
        api.check_sizes(sizes, groups)
        return build(dataclasses.replace(config, **layers.transformer_fields(config, sizes)))

    return api.from_module(
        lambda noise: Bert(config, noise=noise),
        config=config,
        groups=groups,
        prunable=layers.TRANSFORMER_KERNELS,
        resize=resize,
        with_classes=lambda n: build(dataclasses.replace(config, classes=n)),
        input_shape=(config.positions,),
        num_classes=config.classes,
        dropout=config.dropout,
        input_dtype=jnp.int32,
    )


def uniform(dim: int, *, heads: int, layers: int = 12, mlp: int | None = None, **options: object) -> BertConfig:
    """All layers alike: head size `dim / heads`, MLP width `4·dim` unless given; ids as in the published vocabularies
    without case.
    """
    if dim % heads:
        raise ValueError(f"{heads} heads do not divide an embedding of {dim}")
    d = dim // heads
    given = {
        "dim": dim,
        "heads": (heads,) * layers,
        "qk_dim": (d,) * layers,
        "v_dim": (d,) * layers,
        "mlp": (4 * dim if mlp is None else mlp,) * layers,
        "attention_scale": d**-0.5,
        "vocab": 30522,
        "positions": 512,
        "separator": 102,
    }
    return BertConfig(**(given | options))


def micro(
    vocab: int = 2048,
    *,
    positions: int = 32,
    dim: int = 48,
    heads: int = 4,
    layers: int = 2,
    mlp: int | None = None,
    classes: int = 10,
    separator: int | None = 2,
    **options: object,
) -> BertConfig:
    """A small one for short texts with the ids of `data.text`."""
    shared = {"vocab": vocab, "positions": positions, "classes": classes, "separator": separator}
    width = 2 * dim if mlp is None else mlp
    return uniform(dim, heads=heads, layers=layers, mlp=width, **(shared | options))


tiny = functools.partial(uniform, 128, heads=2, layers=2)
base = functools.partial(uniform, 768, heads=12)

PRESETS: dict[str, Callable[..., BertConfig]] = {"bert_micro": micro, "bert_tiny": tiny, "bert_base": base}
"""Configurations by name; each takes any field as a keyword."""
