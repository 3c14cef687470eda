"""Hugging Face's BERT, RoBERTa and DistilBERT: classifiers of texts, masked language models, and encoders alone.

An encoder without a head (`BertModel`) is read as what gives embeddings, or under a new head as a classifier. A
classifier reads past what a masked language model has besides the encoder, and the other way round, so that either can
be made of a checkpoint of both. Left out is one dropout of theirs: RoBERTa also has one before the dense layer of its
head.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

from mvp_jax.models import bert, layers
from mvp_jax.pretrained import key_table

_Task = Literal["classify", "masked_lm", "embed"]


class Kin(NamedTuple):
    """What tells one of the three from the others.

    Attributes:
        name: their `model_type`.
        prefix: what the names of their classes start with.
        words: their names of our fields.
        absent: what a `config.json` says by saying nothing.
        fixed: our fields that are the same in all of its kind.
    """

    name: str
    prefix: str
    words: Mapping[str, str]
    absent: Mapping[str, Any]
    fixed: Mapping[str, Any]


_WORDS = {
    "vocab": "vocab_size",
    "positions": "max_position_embeddings",
    "dim": "hidden_size",
    "heads": "num_attention_heads",
    "layers": "num_hidden_layers",
    "mlp": "intermediate_size",
    "pad": "pad_token_id",
    "activation": "hidden_act",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "head_dropout": "classifier_dropout",
    "types": "type_vocab_size",
    "epsilon": "layer_norm_eps",
}
_SIZES = {"vocab": 30522, "positions": 512, "dim": 768, "heads": 12, "layers": 12, "mlp": 3072, "pad": 0}
_SHARED = {"activation": "gelu", "dropout": 0.1, "attention_dropout": 0.1, "epsilon": 1e-12}
_SEPARATOR = 102
"""Of every published vocabulary of BERT."""

BERT = Kin("bert", "Bert", _WORDS, _SIZES | _SHARED | {"types": 2}, {"pooler": "tanh", "skip_padding": False})
ROBERTA = Kin(
    "roberta",
    "Roberta",
    _WORDS,
    _SIZES | _SHARED | {"types": 2, "vocab": 50265, "pad": 1},
    {"pooler": "tanh", "skip_padding": True, "separator": None},
)
DISTILBERT = Kin(
    "distilbert",
    "DistilBert",
    {k: v for k, v in _WORDS.items() if k not in ("types", "epsilon")}
    | {
        "dim": "dim",
        "heads": "n_heads",
        "layers": "n_layers",
        "mlp": "hidden_dim",
        "activation": "activation",
        "dropout": "dropout",
        "attention_dropout": "attention_dropout",
        "head_dropout": "seq_classif_dropout",
    },
    _SIZES | _SHARED | {"layers": 6, "head_dropout": 0.2},
    {"pooler": "relu", "skip_padding": False, "separator": None, "types": 0, "epsilon": 1e-12},
)

_HEADS = ("ForSequenceClassification", "ForMaskedLM", "ForPreTraining", "Model")
"""Endings of their classes that one of our tasks can be made of."""


def _config(kin: Kin, task: _Task, described: Mapping[str, Any]) -> bert.BertConfig:
    """Their `config.json` as our configuration."""
    described = {name: value for name, value in described.items() if value is not None or name == "sep_token_id"}
    if described.get("model_type") != kin.name:
        raise ValueError(f"model_type is {described.get('model_type')!r:.80}, not {kin.name!r}")
    heads = key_table.field(described, "architectures", ["Model"])
    if not any(str(name).endswith(_HEADS) for name in heads):
        raise ValueError(f"architectures in config.json are {heads!r:.80}; they must end in one of {_HEADS}")
    key_table.require(described, is_decoder=False, add_cross_attention=False)
    key_table.require({k: v for k, v in described.items() if v}, position_embedding_type="absolute", pruned_heads={})
    if task == "masked_lm":
        key_table.require(described, tie_word_embeddings=True)
    absent = {"head_dropout": key_table.field(described, kin.words["dropout"], 0.1), **kin.absent}
    given = {ours: key_table.field(described, theirs, absent[ours]) for ours, theirs in kin.words.items()}
    fields: dict[str, Any] = {**given, **kin.fixed, "task": task}
    _check(kin, fields)
    if fields["skip_padding"]:
        fields["positions"] -= fields["pad"] + 1
    if "separator" not in fields:
        default = _SEPARATOR if fields["vocab"] > _SEPARATOR and fields["types"] > 1 else None
        fields["separator"] = described.get("sep_token_id", default)
    for rate in ("attention_dropout", "head_dropout"):
        if fields[rate] == fields["dropout"]:
            fields[rate] = None
    if task != "embed":
        fields["classes"] = key_table.classes(described)
    return bert.uniform(fields.pop("dim"), **fields)


_CLASSES = {"classify": "ForSequenceClassification", "masked_lm": "ForMaskedLM", "embed": "Model"}
"""What the names of their classes end in, by our tasks."""


def _check(kin: Kin, fields: Mapping[str, Any]) -> None:
    """Raises for values that no configuration of ours can have, by the names that they have there."""
    for name in _SIZES:
        least = 0 if name == "pad" else fields["pad"] + 2 if kin is ROBERTA and name == "positions" else 1
        most = 10_000 if name == "layers" else 10_000_000
        if not least <= fields[name] <= most:
            raise ValueError(f"{kin.words[name]} in config.json is {fields[name]}; it must be {least} to {most}")
    if fields["dim"] % fields["heads"]:
        raise ValueError(
            f"{kin.words['heads']}={fields['heads']} in config.json does not divide {kin.words['dim']}="
            f"{fields['dim']}; a head needs a whole number of dimensions"
        )
    activation, known = fields["activation"], sorted(layers.ACTIVATIONS)
    if kin is ROBERTA and fields["task"] == "masked_lm":
        known = ["gelu", "gelu_python"]  # its head for words has gelu whatever the layers have
    if activation not in known:
        raise ValueError(f"{kin.words['activation']} in config.json is {activation!r:.80}; there are {known}")


def _describe(kin: Kin, task: _Task, config: Any) -> dict[str, Any]:
    """Our configuration as their `config.json`; `compute` is not part of it, parameters are float32 in any case."""
    if not isinstance(config, bert.BertConfig):
        raise ValueError(f"a {type(config).__name__} is no encoder of texts")
    own = {"task": task, **kin.fixed}
    other = {f: getattr(config, f) for f, value in own.items() if getattr(config, f) != value}
    if other or config.types < ("types" in kin.words):
        theirs = {f: own[f] for f in other} or "token types"
        raise ValueError(f"{kin.name} has {theirs}, this encoder {other or 'none'}; choose another format")
    d = config.dim // config.heads[0]
    alike = {"heads": config.heads[0], "qk_dim": d, "v_dim": d, "mlp": config.mlp[0]}
    uneven = {f: getattr(config, f) for f, n in alike.items() if set(getattr(config, f)) != {n}}
    if uneven or d * config.heads[0] != config.dim or abs(config.attention_scale * d**0.5 - 1) > 1e-6:
        raise ValueError(
            f"the layers of {kin.name} are all alike, with dim / heads dimensions in each head and scores scaled by "
            f"its root, so this format cannot express fewer heads or head dimensions; this encoder has "
            f"heads={config.heads}, qk_dim={config.qk_dim}, v_dim={config.v_dim} and mlp={config.mlp} at "
            f"dim={config.dim}"
        )
    values = dataclasses.asdict(config) | alike | {"layers": len(config.heads)}
    values["activation"] = {"gelu_tanh": "gelu_pytorch_tanh"}.get(config.activation, config.activation)
    values["positions"] += config.pad + 1 if config.skip_padding else 0
    values["dropout"], values["attention_dropout"], values["head_dropout"] = config.rates
    _check(kin, values)
    return {
        "architectures": [kin.prefix + _CLASSES[task]],
        "model_type": kin.name,
        **{theirs: values[ours] for ours, theirs in kin.words.items()},
        **({} if "separator" in kin.fixed else {"sep_token_id": config.separator}),
        **({} if task == "embed" else key_table.labels(config.classes)),
    }


def _past(*templates: str) -> tuple[key_table.KeyRule, ...]:
    """Rules that read past a weight and a bias."""
    return tuple(key_table.KeyRule(f"{key}.{leaf}", ()) for key in templates for leaf in ("weight", "bias"))


def _encoder(prefix: str) -> tuple[key_table.KeyRule, ...]:
    """BERT's and RoBERTa's embeddings and layers."""
    embed, there, here = f"{prefix}embeddings", f"{prefix}encoder.layer.{{i}}", "layers/{i}"
    return (
        key_table.KeyRule(f"{embed}.word_embeddings.weight", "params/embed/word"),
        key_table.KeyRule(f"{embed}.position_embeddings.weight", "params/embed/position"),
        key_table.KeyRule(f"{embed}.token_type_embeddings.weight", "params/embed/type"),
        *key_table.norm(f"{embed}.LayerNorm", "embed/norm"),
        *(
            rule
            for name in ("query", "key", "value")
            for rule in key_table.affine(
                f"{there}.attention.self.{name}", f"{here}/attention/{name}", key_table.HEADS, key_table.HEADS
            )
        ),
        *key_table.affine(f"{there}.attention.output.dense", f"{here}/attention/out", key_table.OUT),
        *key_table.norm(f"{there}.attention.output.LayerNorm", f"{here}/norm1"),
        *key_table.affine(f"{there}.intermediate.dense", f"{here}/fc1"),
        *key_table.affine(f"{there}.output.dense", f"{here}/fc2"),
        *key_table.norm(f"{there}.output.LayerNorm", f"{here}/norm2"),
        # Buffers, in older files.
        key_table.KeyRule(f"{embed}.position_ids", ()),
        key_table.KeyRule(f"{embed}.token_type_ids", ()),
    )


def _distilled(prefix: str) -> tuple[key_table.KeyRule, ...]:
    """DistilBERT's embeddings and layers."""
    embed, there, here = f"{prefix}embeddings", f"{prefix}transformer.layer.{{i}}", "layers/{i}"
    return (
        key_table.KeyRule(f"{embed}.word_embeddings.weight", "params/embed/word"),
        key_table.KeyRule(f"{embed}.position_embeddings.weight", "params/embed/position"),
        *key_table.norm(f"{embed}.LayerNorm", "embed/norm"),
        *(
            rule
            for letter, name in (("q", "query"), ("k", "key"), ("v", "value"))
            for rule in key_table.affine(
                f"{there}.attention.{letter}_lin", f"{here}/attention/{name}", key_table.HEADS, key_table.HEADS
            )
        ),
        *key_table.affine(f"{there}.attention.out_lin", f"{here}/attention/out", key_table.OUT),
        *key_table.norm(f"{there}.sa_layer_norm", f"{here}/norm1"),
        *key_table.affine(f"{there}.ffn.lin1", f"{here}/fc1"),
        *key_table.affine(f"{there}.ffn.lin2", f"{here}/fc2"),
        *key_table.norm(f"{there}.output_layer_norm", f"{here}/norm2"),
        key_table.KeyRule(f"{embed}.position_ids", ()),
    )


def _words(dense: str, norm: str, bias: str, decoder: str) -> tuple[key_table.KeyRule, ...]:
    """The head of a masked language model; the decoder is a second name of the embedding of words."""
    second = "decoder" in decoder  # a bias beside it is then a second name too
    return (
        *key_table.affine(dense, "transform"),
        *key_table.norm(norm, "norm"),
        key_table.KeyRule(bias, "params/head/bias"),
        key_table.KeyRule(f"{decoder}.weight", "params/embed/word", tied=True),
        *((key_table.KeyRule(f"{decoder}.bias", "params/head/bias", tied=True),) if second else ()),
    )


def _old_norms(given: tuple[key_table.KeyRule, ...]) -> tuple[key_table.KeyRule, ...]:
    """The rules, and the names that norms had when they came from TensorFlow."""
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    return given + tuple(
        dataclasses.replace(rule, key=rule.key.replace(new, other), tied=True)
        for rule in given
        for new, other in old.items()
        if rule.key.endswith(new)
    )


def _blind(given: tuple[key_table.KeyRule, ...]) -> tuple[key_table.KeyRule, ...]:
    """The same names, read past."""
    return tuple(dataclasses.replace(rule, path=(), layout=key_table.SAME, tied=False) for rule in given)


class _Parts(NamedTuple):
    """The rules of one kin, by what they are of.

    Attributes:
        kin: the kin.
        encoder: makes the rules of embeddings and layers, of a prefix.
        classifier: the rules of pooler and head.
        words: the rules of the head for words.
        past: rules of what is always read past.
    """

    kin: Kin
    encoder: Callable[[str], tuple[key_table.KeyRule, ...]]
    classifier: tuple[key_table.KeyRule, ...]
    words: tuple[key_table.KeyRule, ...]
    past: tuple[key_table.KeyRule, ...] = ()


def _format(parts: _Parts, task: _Task) -> key_table.Format:
    """The format of one kin for a task; what only other tasks have is read past."""
    kin = parts.kin
    own: tuple[key_table.KeyRule, ...] = {"classify": parts.classifier, "masked_lm": parts.words}.get(task, ())
    others = {"classify": parts.words, "masked_lm": parts.classifier}.get(task, parts.classifier + parts.words)
    # In a file of a bare encoder no name has a prefix.
    prefix, other = (f"{kin.name}.", "") if task != "embed" else ("", f"{kin.name}.")
    body, past = _old_norms(parts.encoder(prefix)), _old_norms((*own, *_blind(others), *parts.past))
    rules = (*key_table.with_aliases(body, prefix, other), *key_table.with_aliases(past, f"{kin.name}.", ""))
    label = {"masked_lm": " for words", "embed": " alone"}.get(task, "")
    return key_table.Format(
        f"{kin.name}{label} (Hugging Face)",
        rules,
        functools.partial(_config, kin, task),
        functools.partial(_describe, kin, task),
    )


_KINS = (
    _Parts(
        BERT,
        _encoder,
        (*key_table.affine("bert.pooler.dense", "pooler"), *key_table.affine("classifier", "head")),
        _words(
            "cls.predictions.transform.dense",
            "cls.predictions.transform.LayerNorm",
            "cls.predictions.bias",
            "cls.predictions.decoder",
        ),
        _past("cls.seq_relationship"),
    ),
    _Parts(
        ROBERTA,
        _encoder,
        (*key_table.affine("classifier.dense", "pooler"), *key_table.affine("classifier.out_proj", "head")),
        _words("lm_head.dense", "lm_head.layer_norm", "lm_head.bias", "lm_head.decoder"),
        _past("roberta.pooler.dense"),
    ),
    _Parts(
        DISTILBERT,
        _distilled,
        (*key_table.affine("pre_classifier", "pooler"), *key_table.affine("classifier", "head")),
        _words("vocab_transform", "vocab_layer_norm", "vocab_projector.bias", "vocab_projector"),
    ),
)

FORMATS: tuple[key_table.Format, ...] = tuple(
    _format(parts, task) for parts in _KINS for task in ("classify", "masked_lm")
)
"""For each of the three a classifier and a masked language model."""
ENCODERS: tuple[key_table.Format, ...] = tuple(_format(parts, "embed") for parts in _KINS)
"""For each of the three the encoder alone. Its names are some of those of the others, so they do not tell it apart."""


def alone(names: Iterable[str], described: Mapping[str, Any]) -> key_table.Format | None:
    """The format of an encoder, if the names of a checkpoint's tensors are those of an encoder alone.

    Args:
        names: the names of the tensors.
        described: the content of the `config.json`.

    Returns:
        The format; `None` if there is a head for classes or words, or the `config.json` says that there should be.

    >>> names = ["embeddings.word_embeddings.weight", "pooler.dense.weight"]
    >>> alone(names, {"model_type": "bert"}).name
    'bert alone (Hugging Face)'
    >>> alone([*names, "classifier.weight"], {"model_type": "bert"})
    """
    found = [
        (form, kin) for form, kin in zip(ENCODERS, _KINS, strict=True) if kin.kin.name == described.get("model_type")
    ]
    if not found or any(str(a).endswith("ForSequenceClassification") for a in described.get("architectures") or ()):
        return None
    form, parts = found[0]
    # A pooler between encoder and head may be there without a head; RoBERTa's and DistilBERT's belong to the head.
    heads = {rule.key for rule in (*parts.classifier, *parts.words) if not rule.key.startswith(f"{parts.kin.name}.")}
    return None if any(name in heads for name in names) else form
