"""BERT (Devlin et al., 2019, arXiv:1810.04805), RoBERTa (Liu et al., 2019, arXiv:1907.11692) and DistilBERT (Sanh et
al., 2019, arXiv:1910.01108), under a head for classes of texts or for masked words, or bare, for embeddings of texts.

The architectures are the published ones, so that their checkpoints fit: embeddings added and normalised, layers that
normalise after each addition, a pooler on the first token. Where the three differ, a field says which; `roberta` and
`distilbert` set them. Kernels lie as in `vit`; what can be cut is the same.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax.numpy as jnp
from flax import nnx

from mvp_jax.core.types import Array
from mvp_jax.core.units import Group
from mvp_jax.models import api, layers, widths
from mvp_jax.models.hooks import Hooks, Noise


@dataclasses.dataclass(frozen=True, kw_only=True)
class BertConfig:
    """Every size of an encoder, layer by layer, so that a pruned one is another instance.

    Attributes:
        vocab: the number of token ids that have an embedding.
        positions: the length of the longest text in tokens.
        dim: the width of the embedding.
        heads: the number of attention heads in each layer.
        qk_dim: the number of query and key dimensions of a head in each layer, the same in all heads of a layer.
        v_dim: the number of value dimensions of a head in each layer.
        mlp: the number of hidden neurons in the MLP of each layer.
        attention_scale: the factor of attention scores before the softmax; the *dense* head size to the power -1/2,
            also when slim.
        types: the number of token types (segments) that have an embedding; 0: there are none.
        classes: the number of classes; not used under `masked_lm`, whose classes are the vocabulary.
        dropout: the dropout rate after the embedding, and after the attention and the MLP of each layer.
        attention_dropout: the dropout rate on attention weights; `None`: as `dropout`.
        head_dropout: the dropout rate before the head; `None`: as `dropout`.
        pad: the id of padding, which no token attends to.
        separator: the id that ends a segment: token types are 0 up to and including the first separator, and 1 after
            it until padding. `None`: all of type 0.
        pool: what stands for a text: its `first` token, or under `embed` also the `mean` of its tokens without padding.
            A classifier reads the first token, through the pooler.
        pooler: the pooler's activation function, `tanh`, or `relu` in DistilBERT.
        task: `classify` texts; `masked_lm`: logits over the vocabulary for each token; or `embed`: the encoder alone,
            without pooler and head, gives the embedding of a text.
        normalise: under `embed`, whether embeddings are divided by their Euclidean norm.
        skip_padding: positions count what is not padding, from `pad + 1` on, and padding is at `pad` (RoBERTa). The
            table then has `positions + pad + 1` rows.
        epsilon: the ε of every LayerNorm; 1e-5 in RoBERTa.
        activation: the name of the MLPs' activation function, one of `layers.ACTIVATIONS`.
        compute: the dtype that products and activations are computed in, one of `layers.Compute`; parameters, norms,
            softmax and logits are float32.
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
    pool: Literal["first", "mean"] = "first"
    pooler: Literal["tanh", "relu"] = "tanh"
    task: Literal["classify", "masked_lm", "embed"] = "classify"
    normalise: bool = False
    skip_padding: bool = False
    epsilon: float = 1e-12
    activation: str = "gelu"
    attention_dropout: float | None = None
    head_dropout: float | None = None
    compute: layers.Compute = "float32"

    def __post_init__(self) -> None:
        layers.check_transformer(self)
        if min(self.vocab, self.positions, self.classes) < 1 or self.types < 0 or self.epsilon < 0:
            raise ValueError(f"all sizes must be at least 1 (types and epsilon at least 0), got {self}")
        strange = [i for i in (self.pad, self.separator) if i is not None and not 0 <= i < self.vocab]
        if strange or self.pad == self.separator:
            raise ValueError(
                f"pad={self.pad} and separator={self.separator} must be two different ids of the vocabulary, "
                f"0 to {self.vocab - 1}; separator=None does without segments"
            )
        if self.separator is not None and self.types < 2:
            raise ValueError(f"a separator makes two token types, but types={self.types}; give types=2")
        if self.task not in ("classify", "masked_lm", "embed"):
            raise ValueError(f"unknown task={self.task!r}; choose classify, masked_lm or embed")
        if self.pool not in ("first", "mean") or self.pooler not in ("tanh", "relu"):
            raise ValueError(
                f"unknown pool={self.pool!r} or pooler={self.pooler!r}; choose first or mean, tanh or relu"
            )
        if self.task != "embed" and (self.pool != "first" or self.normalise):
            raise ValueError(
                f"pool={self.pool!r} and normalise={self.normalise} under task={self.task!r}; only embed takes the "
                "mean of tokens and normalises, its classifier reads the first token"
            )

    @property
    def rates(self) -> tuple[float, float, float]:
        """The dropout rates after sums, on attention weights and before the head."""
        given = (self.attention_dropout, self.head_dropout)
        return (self.dropout, *(self.dropout if rate is None else rate for rate in given))  # type: ignore[return-value]


class Embedding(nnx.Module):
    """Words, positions and token types, added and normalised."""

    def __init__(self, config: BertConfig, *, noise: Noise):
        self.config = config
        self.word = nnx.Param(noise((config.vocab, config.dim), 0.02))
        rows = config.positions + (config.pad + 1 if config.skip_padding else 0)
        self.position = nnx.Param(noise((rows, config.dim), 0.02))
        if config.types:
            self.type = nnx.Param(noise((config.types, config.dim), 0.02))
        self.norm = layers.LayerNorm(config.dim, epsilon=config.epsilon)

    def __call__(self, ids: Array) -> Array:
        # An id outside the vocabulary gives nan; JAX's indexing would take the last word for it.
        x = jnp.take(self.word[...], ids, axis=0)
        x = x + self._positions(ids)
        if self.config.types:
            x = x + jnp.take(self.type[...], self._types(ids), axis=0, mode="clip")
        return self.norm(x)

    def _positions(self, ids: Array) -> Array:
        if not self.config.skip_padding:
            return self.position[: ids.shape[1]]
        real = (ids != self.config.pad).astype(jnp.int32)
        return jnp.take(self.position[...], jnp.cumsum(real, axis=1) * real + self.config.pad, axis=0, mode="clip")

    def _types(self, ids: Array) -> Array:
        if self.config.separator is None:
            return jnp.zeros_like(ids)
        ends = (ids == self.config.separator).astype(jnp.int32)
        before = jnp.cumsum(ends, axis=1) - ends
        return ((before > 0) & (ids != self.config.pad)).astype(jnp.int32)


class Layer(nnx.Module):
    """A post-norm transformer layer."""

    def __init__(self, config: BertConfig, i: int, *, noise: Noise):
        self.path = f"layers/{i}"
        self.activation = config.activation
        self.rate, attention_rate, _ = config.rates
        self.attention = layers.Attention(
            f"{self.path}/attention",
            config.dim,
            config.heads[i],
            config.qk_dim[i],
            config.v_dim[i],
            config.attention_scale,
            dropout=attention_rate,
            compute=config.compute,
            noise=noise,
        )
        self.norm1 = layers.LayerNorm(config.dim, epsilon=config.epsilon)
        self.fc1 = layers.Projection((config.dim,), (config.mlp[i],), compute=config.compute, noise=noise)
        self.fc2 = layers.Projection((config.mlp[i],), (config.dim,), compute=config.compute, noise=noise)
        self.norm2 = layers.LayerNorm(config.dim, epsilon=config.epsilon)

    def __call__(self, x: Array, hooks: Hooks, real: Array) -> Array:
        x = self.norm1(x + hooks.dropout(self.attention(x, hooks, real), self.rate))
        h = layers.ACTIVATIONS[self.activation](self.fc1(x))
        h = hooks.unit(f"{self.path}/fc1", h, where=real)
        return self.norm2(x + hooks.dropout(self.fc2(h), self.rate))


class WordHead(nnx.Module):
    """The last part of a masked language model, whose kernel is the embedding of words: a bias for each."""

    def __init__(self, config: BertConfig):
        self.bias = nnx.Param(jnp.zeros(config.vocab, jnp.float32))
        self.compute: layers.Compute = config.compute

    def __call__(self, x: Array, word: Array) -> Array:
        """`[N, L, D]` and `[vocab, D]` to `[N, L, vocab]`."""
        x, word = (layers.lowered(a, self.compute) for a in (x, word))
        wide = jnp.promote_types(x.dtype, jnp.float32)
        return jnp.einsum("nld,vd->nlv", x, word, preferred_element_type=wide) + self.bias[...]


def pooled(x: Array, real: Array, *, pool: str, normalise: bool) -> Array:
    """The embedding of each text.

    Args:
        x: `[N, L, D]`, what the last layer gives.
        real: `bool[N, L]`, what is not padding.
        pool: `first` or `mean`.
        normalise: whether embeddings are divided by their Euclidean norm.

    Returns:
        `[N, D]`. The mean over a text without tokens is zero.

    >>> x = jnp.array([[[3.0, 0.0], [3.0, 8.0], [9.0, 9.0]]])
    >>> pooled(x, jnp.array([[True, True, False]]), pool="mean", normalise=True).tolist()
    [[0.6000000238418579, 0.800000011920929]]
    """
    if pool == "mean":
        kept = jnp.where(real[..., None], x, 0)
        x = jnp.sum(kept, axis=1) / jnp.maximum(jnp.sum(real, axis=1), 1)[:, None].astype(x.dtype)
    else:
        x = x[:, 0]
    # The least divisor is PyTorch's; the root of a number above zero has a gradient.
    return x / jnp.sqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-24)) if normalise else x


class Bert(nnx.Module):
    """Embedding and layers, then pooler and head, or transform, norm and words, or the embedding of the text."""

    def __init__(self, config: BertConfig, *, noise: Noise):
        self.config = config
        self.embed = Embedding(config, noise=noise)
        self.layers = layers.children([Layer(config, i, noise=noise) for i in range(len(config.heads))])
        if config.task == "embed":
            return
        dense = layers.Projection((config.dim,), (config.dim,), compute=config.compute, noise=noise)
        if config.task == "classify":
            self.pooler = dense
            self.head: Any = layers.Head((config.dim,), config.classes, noise=noise)
        else:
            self.transform = dense
            self.norm = layers.LayerNorm(config.dim, epsilon=config.epsilon)
            self.head = WordHead(config)

    def __call__(self, ids: Array, hooks: Hooks) -> tuple[Array, Array]:
        c = self.config
        real = ids != c.pad
        rate, _, head_rate = c.rates
        x = hooks.dropout(self.embed(ids), rate)
        for layer in layers.ordered(self.layers):
            x = layer(x, hooks, real)
        if c.task == "masked_lm":
            x = self.norm(layers.ACTIVATIONS[c.activation](self.transform(x)))
            return self.head(x, self.embed.word[...]), x
        if c.task == "embed":
            made = pooled(x, real, pool=c.pool, normalise=c.normalise)
            return made, made
        first = (jnp.tanh if c.pooler == "tanh" else layers.ACTIVATIONS["relu"])(self.pooler(x[:, 0]))
        return self.head(hooks.dropout(first, head_rate))


@functools.cache
def _traced(config: BertConfig) -> Mapping[str, Group]:
    """What goes with each group's units."""
    return api.coupled(lambda noise: Bert(config, noise=noise), (config.positions,), widths.slots(config), jnp.int32)


def _groups(config: BertConfig) -> tuple[Group, ...]:
    """Sizes do not matter for what is coupled, so that all encoders of one build share a trace."""
    small = dataclasses.replace(
        config,
        **widths.of_twos(config),
        classes=2,
        dropout=0.0,
        attention_dropout=None,
        head_dropout=None,
        epsilon=1e-12,
        compute="float32",
    )
    return api.sized(_traced(small), widths.sizes(config))


@functools.cache
def build(config: BertConfig) -> api.Model:
    """The model of a configuration; equal configurations give the same object.

    Its input are token ids `int32[N, L]` with `L` at most `positions`; an id outside the vocabulary gives nan. Groups
    are those of `vit.build`: heads, query/key dimensions, value dimensions and MLP neurons of each layer. Embeddings,
    norms, pooler, transform and head are not pruned.

    A masked language model gives `logits` `[N, L, vocab]` and `features` `[N, L, D]`, and its head has no kernel: the
    embedding of words serves, `logits = features @ word.T + bias`. Its `with_classes` is the classifier over the same
    body; embedding and layers of its variables fit there, pooler and head are to be made anew.

    Under `task="embed"` logits and features are the embeddings, `[N, D]`, and there is no head; `with_classes` is the
    classifier over the same body, whose pooler reads the first token.

    >>> import jax
    >>> model = build(micro(layers=1, dim=8, heads=2, mlp=16))
    >>> [(g.name, g.size) for g in model.groups]
    [('layers/0/attention', 2), ('layers/0/attention/query', 4), ('layers/0/attention/value', 4), ('layers/0/fc1', 16)]
    >>> model.apply(model.init(jax.random.key(0)), jnp.array([[1, 7, 9, 2, 0]]))[0].shape
    (1, 10)
    >>> words = build(micro(16, layers=1, dim=8, heads=2, mlp=16, task="masked_lm"))
    >>> words.apply(words.init(jax.random.key(0)), jnp.array([[1, 7, 9, 2, 0]]))[0].shape
    (1, 5, 16)
    >>> sentences = build(micro(layers=1, dim=8, heads=2, mlp=16, task="embed", pool="mean"))
    >>> sentences.apply(sentences.init(jax.random.key(0)), jnp.array([[1, 7, 9, 2, 0]]))[0].shape
    (1, 8)
    """
    groups = _groups(config)

    def resize(sizes: Mapping[str, int]) -> api.Model:
        api.check_sizes(sizes, groups)
        return build(dataclasses.replace(config, **widths.fields(config, sizes)))

    return api.from_module(
        lambda noise: Bert(config, noise=noise),
        config=config,
        groups=groups,
        prunable=widths.KERNELS,
        resize=resize,
        with_classes=lambda n: build(
            dataclasses.replace(config, classes=n, task="classify", pool="first", normalise=False)
        ),
        input_shape=(config.positions,),
        num_classes={"classify": config.classes, "masked_lm": config.vocab, "embed": config.dim}[config.task],
        dropout=max(config.rates),
        input_dtype=jnp.int32,
    )


def uniform(dim: int, *, heads: int, layers: int = 12, mlp: int | None = None, **options: object) -> BertConfig:
    """A configuration whose layers are all alike: head size `dim / heads`, MLP width `4·dim` unless it is given.

    The ids of padding and separator are those of the published vocabularies without case.
    """
    given = widths.alike(dim, heads=heads, layers=layers, mlp=mlp)
    given |= {
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
    """A small configuration for short texts with the token ids of `data.datasets.text`."""
    shared = {"vocab": vocab, "positions": positions, "classes": classes, "separator": separator}
    width = 2 * dim if mlp is None else mlp
    return uniform(dim, heads=heads, layers=layers, mlp=width, **(shared | options))


tiny = functools.partial(uniform, 128, heads=2, layers=2)
base = functools.partial(uniform, 768, heads=12)
large = functools.partial(uniform, 1024, heads=16, layers=24)
roberta = functools.partial(uniform, vocab=50265, types=1, pad=1, separator=None, skip_padding=True, epsilon=1e-5)
"""Of RoBERTa's kind: positions skip padding, one token type, ids of its vocabulary."""
distilbert = functools.partial(uniform, layers=6, types=0, separator=None, pooler="relu")
"""Of DistilBERT's kind: no token types, a ReLU after the dense layer before the head."""

PRESETS: dict[str, Callable[..., BertConfig]] = {
    "bert_micro": micro,
    "bert_tiny": tiny,
    "bert_base": base,
    "bert_large": large,
    "roberta_base": functools.partial(roberta, 768, heads=12),
    "roberta_large": functools.partial(roberta, 1024, heads=16, layers=24),
    "distilbert_base": functools.partial(distilbert, 768, heads=12),
}
"""Configurations by name; each takes any field as a keyword."""
