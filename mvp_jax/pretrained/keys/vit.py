"""Vision transformers of timm and DeiT, whose query, key and value are fused, and of Hugging Face."""

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any

from mvp_jax.models import layers, vit
from mvp_jax.pretrained import key_table
from mvp_jax.pretrained.key_table import Format, KeyRule

_QKV = ("query", "key", "value")


def _timm() -> tuple[KeyRule, ...]:
    layer, ours = "blocks.{i}", "layers/{i}"
    fused = [
        KeyRule(
            f"{layer}.attn.qkv.{kind}", tuple(f"params/{ours}/attention/{name}/{leaf}" for name in _QKV), key_table.QKV
        )
        for kind, leaf in (("weight", "kernel"), ("bias", "bias"))
    ]
    return (
        KeyRule("cls_token", "params/cls"),
        KeyRule("dist_token", "params/distill"),
        KeyRule("pos_embed", "params/position"),
        *key_table.affine("patch_embed.proj", "patch", key_table.CONV),
        *key_table.norm(f"{layer}.norm{{j}}", f"{ours}/norm{{j}}"),
        *fused,
        *key_table.affine(f"{layer}.attn.proj", f"{ours}/attention/out", key_table.OUT),
        *key_table.affine(f"{layer}.mlp.fc{{j}}", f"{ours}/fc{{j}}"),
        *key_table.norm("norm", "norm"),
        *key_table.affine("head", "head"),
        *key_table.affine("head_dist", "head_distilled"),
    )


def _hugging_face(prefix: str, *heads: tuple[str, str]) -> tuple[KeyRule, ...]:
    """With the names that files have, and as second ones those of the modules of transformers 5."""
    start, layer, ours = f"{prefix}.embeddings", f"{prefix}.encoder.layer.{{i}}", "layers/{i}"
    new = f"{prefix}.layers.{{i}}"
    inside = [
        *(
            (
                f"attention.attention.{name}",
                f"attention.{name[0]}_proj",
                f"attention/{name}",
                key_table.HEADS,
                key_table.HEADS,
            )
            for name in _QKV
        ),
        ("attention.output.dense", "attention.o_proj", "attention/out", key_table.OUT, key_table.SAME),
        ("intermediate.dense", "mlp.fc1", "fc1", key_table.LINEAR, key_table.SAME),
        ("output.dense", "mlp.fc2", "fc2", key_table.LINEAR, key_table.SAME),
    ]
    body = [
        KeyRule(f"{start}.cls_token", "params/cls"),
        KeyRule(f"{start}.distillation_token", "params/distill"),
        KeyRule(f"{start}.position_embeddings", "params/position"),
        KeyRule(f"{start}.mask_token", ()),
        *key_table.affine(f"{start}.patch_embeddings.projection", "patch", key_table.CONV),
    ]
    for old, now, path, kernel, bias in inside:
        body += key_table.with_aliases(
            key_table.affine(f"{layer}.{old}", f"{ours}/{path}", kernel, bias), f"{layer}.{old}", f"{new}.{now}"
        )
    for name, path in (("layernorm_before", "norm1"), ("layernorm_after", "norm2")):
        body += key_table.with_aliases(key_table.norm(f"{layer}.{name}", f"{ours}/{path}"), layer, new)
    body += key_table.norm(f"{prefix}.layernorm", "norm")
    body += [KeyRule(f"{prefix}.pooler.dense.{kind}", ()) for kind in ("weight", "bias")]
    return (
        *key_table.with_aliases(body, f"{prefix}.", ""),
        *(rule for name, path in heads for rule in key_table.affine(name, path)),
    )


def _dense(config: Any, *, any_heads: bool = False) -> vit.ViTConfig:
    """The configuration, if its layers are all alike: with dim / heads dimensions a head, or any with `any_heads`."""
    if not isinstance(config, vit.ViTConfig):
        raise ValueError(f"a {type(config).__name__} is no vision transformer")
    if config.pool != "cls":
        raise ValueError(
            f"pool={config.pool!r}, but models of this format read the class token, and no other format can express it"
        )
    heads, n = config.heads[0], len(config.heads)
    d = config.qk_dim[0] if any_heads else config.dim // heads
    alike = (config.heads, config.qk_dim, config.v_dim) == ((heads,) * n, (d,) * n, (d,) * n)
    if not alike or len(set(config.mlp)) > 1 or abs(config.attention_scale * d**0.5 - 1) > 1e-6:
        raise ValueError(
            f"their layers are all alike, with {'as many' if any_heads else 'dim / heads'} dimensions in each head and "
            f"scores scaled by its root; this transformer is pruned, with heads={config.heads}, "
            f"qk_dim={config.qk_dim}, v_dim={config.v_dim} and mlp={config.mlp} at dim={config.dim}"
        )
    return config


_SIZES = {"tiny": vit.tiny, "small": vit.small, "base": vit.base}
_TIMM = {f"vit_{size}_patch{p}_{side}" for size in _SIZES for p in (16, 32) for side in (224, 384)} - {
    f"vit_tiny_patch32_{side}" for side in (224, 384)
} | {
    *(f"vit_{size}_patch8_224" for size in ("small", "base")),
    *(f"deit_{size}_{kind}patch16_224" for size in _SIZES for kind in ("", "distilled_")),
    *(f"deit_base_{kind}patch16_384" for kind in ("", "distilled_")),
}
"""Architectures of timm that are expressible here."""


def _named(described: Mapping[str, Any]) -> vit.ViTConfig:
    """Of timm's `config.json`, which names an architecture."""
    name = described.get("architecture")
    if name not in _TIMM:
        raise ValueError(f"config.json names the architecture {name!r:.80}; of timm's there are {sorted(_TIMM)} here")
    key_table.require(described, global_pool="token", model_args={})
    return _architecture(name, key_table.field(described, "num_classes", 1000))


@functools.cache
def _architecture(name: str, classes: int) -> vit.ViTConfig:
    size, distilled, patch, side = re.fullmatch(r"\w+?_([a-z]+)_(distilled_)?patch(\d+)_(\d+)", name).groups()  # type: ignore[union-attr]
    return _SIZES[size](classes=classes, patch=int(patch), image_size=int(side), distilled=distilled is not None)


def _name(config: Any) -> dict[str, Any]:
    config = _dense(config)
    if config.one_head or config.epsilon != 1e-6 or config.activation != "gelu":
        raise ValueError(
            f"timm's have gelu, epsilon 1e-6 and a head on each of their tokens, this one {config.activation}, "
            f"{config.epsilon} and one_head={config.one_head}"
        )
    plain = dataclasses.replace(config, dropout=0.0, compute="float32")
    for name in sorted(_TIMM, reverse=True):  # a ViT before a DeiT that has the same sizes
        if plain == _architecture(name, config.classes):
            features = {"num_classes": config.classes, "num_features": config.dim, "global_pool": "token"}
            return {"architecture": name, **features}
    return {}


def _side(described: Mapping[str, Any], name: str, default: int) -> int:
    value = described.get(name, default)
    if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
        value = value[0]
    if type(value) is not int:
        raise ValueError(f"{name} in config.json is {value!r:.80}; it must be one size, or the same one twice")
    return value


def _config(described: Mapping[str, Any], *, kind: str, tokens: Mapping[str, bool]) -> vit.ViTConfig:
    """Of Hugging Face's `ViTConfig` and `DeiTConfig`."""
    if described.get("model_type") != kind:
        raise ValueError(f"model_type is {described.get('model_type')!r:.80}, not {kind!r}")
    key_table.require(described, qkv_bias=True, attention_probs_dropout_prob=0.0)
    activation = key_table.field(described, "hidden_act", "gelu")
    if activation not in layers.ACTIVATIONS:
        raise ValueError(f"hidden_act in config.json is {activation!r:.80}; there are {sorted(layers.ACTIVATIONS)}")
    heads, dim = key_table.field(described, "num_attention_heads", 12), key_table.field(described, "hidden_size", 768)
    depth = key_table.field(described, "num_hidden_layers", 12)
    if heads < 1 or not 0 < depth < 10_000:
        raise ValueError(f"config.json has num_attention_heads={heads} and num_hidden_layers={depth}")
    size = key_table.field(described, "head_dim", dim // heads)
    if size < 1:
        raise ValueError(f"config.json has head_dim={size}; it must be at least 1")
    if dim % heads and "head_dim" not in described:
        raise ValueError(f"{heads} heads do not divide an embedding of {dim}")
    made = vit.ViTConfig(
        dim=dim,
        heads=(heads,) * depth,
        qk_dim=(size,) * depth,
        v_dim=(size,) * depth,
        attention_scale=size**-0.5,
        mlp=(key_table.field(described, "intermediate_size", 3072),) * depth,
        image_size=_side(described, "image_size", 224),
        patch=_side(described, "patch_size", 16),
        channels=key_table.field(described, "num_channels", 3),
        classes=key_table.classes(described),
        dropout=key_table.field(described, "hidden_dropout_prob", 0.0),
        epsilon=key_table.field(described, "layer_norm_eps", 1e-12),
        activation=activation,
    )
    return dataclasses.replace(made, **tokens)  # type: ignore[arg-type]


def _describe(config: Any, *, kind: str, architecture: str, tokens: Mapping[str, bool]) -> dict[str, Any]:
    config = _dense(config, any_heads=True)
    for name, value in tokens.items():
        if getattr(config, name) != value:
            raise ValueError(f"{architecture} has {name}={value}, this transformer {getattr(config, name)}")
    return {
        "architectures": [architecture],
        "model_type": kind,
        "hidden_size": config.dim,
        "num_hidden_layers": len(config.heads),
        "num_attention_heads": config.heads[0],
        # From version 5 on; without it there are dim / heads.
        **({} if config.heads[0] * config.qk_dim[0] == config.dim else {"head_dim": config.qk_dim[0]}),
        "intermediate_size": config.mlp[0],
        "hidden_act": "gelu_pytorch_tanh" if config.activation == "gelu_tanh" else config.activation,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": config.epsilon,
        "image_size": config.image_size,
        "patch_size": config.patch,
        "num_channels": config.channels,
        "qkv_bias": True,
        **key_table.labels(config.classes),
    }


def _format(name: str, kind: str, architecture: str, heads: Mapping[str, str], **tokens: bool) -> Format:
    return Format(
        f"{name} (Hugging Face)",
        _hugging_face(kind, *heads.items()),
        functools.partial(_config, kind=kind, tokens=tokens),
        functools.partial(_describe, kind=kind, architecture=architecture, tokens=tokens),
    )


_TWO = {"cls_classifier": "head", "distillation_classifier": "head_distilled"}

FORMATS = (
    Format("vit (timm)", _timm(), _named, _name),
    _format("vit", "vit", "ViTForImageClassification", {"classifier": "head"}, distilled=False, one_head=False),
    _format("deit", "deit", "DeiTForImageClassificationWithTeacher", _TWO, distilled=True, one_head=False),
    _format(
        "deit, one head", "deit", "DeiTForImageClassification", {"classifier": "head"}, distilled=True, one_head=True
    ),
)
"""timm's, which are DeiT's as published; Hugging Face's ViT, and its DeiT with two heads or one."""
