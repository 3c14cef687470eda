"""Hugging Face's CLIP: `CLIPModel`, `CLIPVisionModelWithProjection` and `CLIPTextModelWithProjection`.

A folder of a `CLIPModel` holds both towers. There is a format for each, which reads past what the other holds; without
a model to say which, a folder is read as its larger tower, as a rule the images'.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from mvp_jax.models import clip, layers
from mvp_jax.pretrained import key_table, tensor_files

_Name = Literal["vision", "text"]


def _tower(name: _Name) -> tuple[key_table.KeyRule, ...]:
    """What both towers have: layers, last norm, projection."""
    model, last = f"{name}_model", {"vision": "post_layernorm", "text": "final_layer_norm"}[name]
    there, here = f"{model}.encoder.layers.{{i}}", "layers/{i}"
    attention = f"{there}.self_attn"
    return (
        *key_table.norm(f"{there}.layer_norm1", f"{here}/norm1"),
        *key_table.affine(f"{attention}.q_proj", f"{here}/attention/query", key_table.HEADS, key_table.HEADS),
        *key_table.affine(f"{attention}.k_proj", f"{here}/attention/key", key_table.HEADS, key_table.HEADS),
        *key_table.affine(f"{attention}.v_proj", f"{here}/attention/value", key_table.HEADS, key_table.HEADS),
        *key_table.affine(f"{attention}.out_proj", f"{here}/attention/out", key_table.OUT),
        *key_table.norm(f"{there}.layer_norm2", f"{here}/norm2"),
        *key_table.affine(f"{there}.mlp.fc1", f"{here}/fc1"),
        *key_table.affine(f"{there}.mlp.fc2", f"{here}/fc2"),
        *key_table.norm(f"{model}.{last}", "norm"),
    )


_VISION = (
    key_table.KeyRule("vision_model.embeddings.class_embedding", "params/cls"),
    key_table.KeyRule("vision_model.embeddings.patch_embedding.weight", "params/patch/kernel", key_table.CONV),
    key_table.KeyRule("vision_model.embeddings.position_embedding.weight", "params/position"),
    *key_table.norm("vision_model.pre_layrnorm", "norm_in"),  # so spelled there
    *_tower("vision"),
    key_table.KeyRule("visual_projection.weight", "params/projection/kernel", key_table.LINEAR),
)
_TEXT = (
    key_table.KeyRule("text_model.embeddings.token_embedding.weight", "params/word"),
    key_table.KeyRule("text_model.embeddings.position_embedding.weight", "params/position"),
    *_tower("text"),
    key_table.KeyRule("text_projection.weight", "params/projection/kernel", key_table.LINEAR),
)


def _rules(
    own: tuple[key_table.KeyRule, ...], other: tuple[key_table.KeyRule, ...], head: str
) -> tuple[key_table.KeyRule, ...]:
    past = ("logit_scale", "vision_model.embeddings.position_ids", "text_model.embeddings.position_ids")
    return (
        *own,
        # Not theirs, who classify with whatever texts are given; a name for ours, which they read past.
        *key_table.affine(head, "head"),
        *(dataclasses.replace(rule, path=()) for rule in other),
        *(key_table.KeyRule(key, ()) for key in past),
    )


_LEGACY_EOS = 2
"""The id that the first checkpoints name by mistake; theirs then reads the highest id."""


def _part(described: Mapping[str, Any], name: _Name) -> dict[str, Any]:
    """What their configuration says of a tower; `null` says nothing."""
    kind = described.get("model_type")
    given: Any = described
    if kind == "clip":
        # Where there is a `_dict`, as in older files, it replaces the other part as a whole.
        part = described.get(f"{name}_config_dict")
        part = described.get(f"{name}_config") if part is None else part
        given = {**(part or {}), "projection_dim": described.get("projection_dim")}
    elif kind != f"clip_{name}_model":
        raise ValueError(f"model_type is {kind!r:.80}, which has no {name} tower; it takes clip or clip_{name}_model")
    return {key: value for key, value in given.items() if value is not None}


def _common(part: Mapping[str, Any], described: Mapping[str, Any], dim: int, heads: int, mlp: int) -> dict[str, Any]:
    """Arguments of `clip.uniform_*` for what both towers have; the last three are defaults."""
    key_table.require(part, attention_dropout=0.0)
    activation = key_table.field(part, "hidden_act", "quick_gelu")
    if activation not in layers.ACTIVATIONS:
        raise ValueError(f"hidden_act in config.json is {activation!r:.80}; there are {sorted(layers.ACTIVATIONS)}")
    heads, depth = key_table.field(part, "num_attention_heads", heads), key_table.field(part, "num_hidden_layers", 12)
    if heads < 1 or not 0 < depth < 10_000:
        raise ValueError(f"config.json has num_attention_heads={heads} and num_hidden_layers={depth}")
    return {
        "dim": key_table.field(part, "hidden_size", dim),
        "heads": heads,
        "layers": depth,
        "mlp": key_table.field(part, "intermediate_size", mlp),
        "projection": key_table.field(part, "projection_dim", 512),
        "activation": activation,
        "epsilon": key_table.field(part, "layer_norm_eps", 1e-5),
        "classes": key_table.classes(described),
    }


def _side(part: Mapping[str, Any], name: str, default: int) -> int:
    value = part.get(name)
    if isinstance(value, list | tuple) and len(value) == 2 and value[0] == value[1]:
        return key_table.field({name: value[0]}, name, default)
    return key_table.field(part, name, default)


def _vision_config(described: Mapping[str, Any]) -> clip.ClipVisionConfig:
    part = _part(described, "vision")
    return clip.uniform_vision(
        **_common(part, described, 768, 12, 3072),
        image_size=_side(part, "image_size", 224),
        patch=_side(part, "patch_size", 32),
        channels=key_table.field(part, "num_channels", 3),
    )


def _text_config(described: Mapping[str, Any]) -> clip.ClipTextConfig:
    part = _part(described, "text")
    vocab, eos = key_table.field(part, "vocab_size", 49408), key_table.field(part, "eos_token_id", 49407)
    if not 0 <= eos < vocab:
        raise ValueError(f"eos_token_id in config.json is {eos}, not an id below vocab_size={vocab}")
    return clip.uniform_text(
        **_common(part, described, 512, 8, 2048),
        vocab=vocab,
        positions=key_table.field(part, "max_position_embeddings", 77),
        eos=None if eos == _LEGACY_EOS else eos,
    )


def _described(config: clip.Tower, name: _Name) -> dict[str, Any]:
    """The fields that both towers have, as theirs; raises where they have no word for it."""
    d = config.dim // config.heads[0]
    for field in ("heads", "qk_dim", "v_dim", "mlp"):
        sizes = getattr(config, field)
        expected = d if field.endswith("_dim") else sizes[0]
        if set(sizes) != {expected}:
            raise ValueError(
                f"this format cannot express {field}={sizes}: its layers have one size, and a head has dim / heads = "
                f"{d} dimensions; export the dense model, or save this one with `pretrained.save`"
            )
    if d * config.heads[0] != config.dim:
        raise ValueError(f"in this format heads={config.heads[0]} must divide dim={config.dim}; export the dense model")
    if abs(config.attention_scale * d**0.5 - 1) > 1e-6:
        raise ValueError(
            f"attention_scale={config.attention_scale}, but this format takes {d**-0.5}; multiply the query "
            "kernels by the quotient of the two"
        )
    if config.dropout:
        raise ValueError(f"this format cannot express dropout={config.dropout}; export the same model with dropout=0.0")
    return {
        "architectures": [f"CLIP{name.capitalize()}ModelWithProjection"],
        "model_type": f"clip_{name}_model",
        "hidden_size": config.dim,
        "intermediate_size": config.mlp[0],
        "num_hidden_layers": len(config.heads),
        "num_attention_heads": config.heads[0],
        "projection_dim": config.projection,
        "hidden_act": "gelu_pytorch_tanh" if config.activation == "gelu_tanh" else config.activation,
        "layer_norm_eps": config.epsilon,
        "attention_dropout": 0.0,
        **key_table.labels(config.classes),
    }


def _describe_vision(config: clip.ClipVisionConfig) -> dict[str, Any]:
    return _described(config, "vision") | {
        "image_size": config.image_size,
        "patch_size": config.patch,
        "num_channels": config.channels,
    }


def _describe_text(config: clip.ClipTextConfig) -> dict[str, Any]:
    if config.eos == _LEGACY_EOS:
        raise ValueError(
            f"this format cannot express eos={_LEGACY_EOS}, which stands for the highest id in it; use eos=None if the "
            "highest id ends every text"
        )
    return _described(config, "text") | {
        "vocab_size": config.vocab,
        "max_position_embeddings": config.positions,
        "eos_token_id": _LEGACY_EOS if config.eos is None else config.eos,
    }


VISION = key_table.Format(
    "clip vision (Hugging Face)", _rules(_VISION, _TEXT, "vision_head"), _vision_config, _describe_vision
)
TEXT = key_table.Format("clip text (Hugging Face)", _rules(_TEXT, _VISION, "text_head"), _text_config, _describe_text)
FORMATS = (VISION, TEXT)


def logit_scale(source: tensor_files.TensorSource) -> float:
    """The logarithm of what a pair of towers multiplies its similarities by.

    Args:
        source: a `CLIPModel`, opened by `files.open`.

    Returns:
        `s`, as `clip.zero_shot_head` and `clip.similarity` take it.

    Raises:
        ValueError: if there is none, as in the checkpoint of one tower.

    >>> logit_scale(tensor_files.in_memory({"logit_scale": 4.5}))
    4.5
    """
    if "logit_scale" not in source.entries:
        raise ValueError(f"{source.name} has no logit_scale; one tower alone has none, open the checkpoint of the pair")
    return source.get("logit_scale").item()
