"""Residual networks of torchvision and timm, of the CIFAR implementations, and of Hugging Face."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NoReturn

from mvp_jax.models import resnet
from mvp_jax.pretrained import key_table
from mvp_jax.pretrained.key_table import Format, KeyRule

_BLOCK = "stages/{s}/blocks/{b}"


def _torchvision(head: str, shortcut: str, other_head: str, other_shortcut: str) -> tuple[KeyRule, ...]:
    """Implementations that share all names but these two; the other names are read as well."""
    block = "layer{s+1}.{b}"
    beside = (
        KeyRule(f"{block}.{shortcut}.0.weight", f"params/{_BLOCK}/shortcut/conv/kernel", key_table.CONV),
        *key_table.batch_norm(f"{block}.{shortcut}.1", f"{_BLOCK}/shortcut/norm"),
    )
    return (
        KeyRule("conv1.weight", "params/stem/conv/kernel", key_table.CONV),
        *key_table.batch_norm("bn1", "stem/norm"),
        KeyRule(f"{block}.conv{{j}}.weight", f"params/{_BLOCK}/conv{{j}}/kernel", key_table.CONV),
        *key_table.batch_norm(f"{block}.bn{{j}}", f"{_BLOCK}/norm{{j}}"),
        *key_table.with_aliases(beside, f"{block}.{shortcut}", f"{block}.{other_shortcut}"),
        *key_table.with_aliases(key_table.affine(head, "head", key_table.CELLS), head, other_head),
    )


def _hugging_face() -> tuple[KeyRule, ...]:
    stem, block = "resnet.embedder.embedder", "resnet.encoder.stages.{s}.layers.{b}"
    body = (
        KeyRule(f"{stem}.convolution.weight", "params/stem/conv/kernel", key_table.CONV),
        *key_table.batch_norm(f"{stem}.normalization", "stem/norm"),
        KeyRule(f"{block}.layer.{{j}}.convolution.weight", f"params/{_BLOCK}/conv{{j+1}}/kernel", key_table.CONV),
        *key_table.batch_norm(f"{block}.layer.{{j}}.normalization", f"{_BLOCK}/norm{{j+1}}"),
        KeyRule(f"{block}.shortcut.convolution.weight", f"params/{_BLOCK}/shortcut/conv/kernel", key_table.CONV),
        *key_table.batch_norm(f"{block}.shortcut.normalization", f"{_BLOCK}/shortcut/norm"),
    )
    return (*key_table.with_aliases(body, "resnet.", ""), *key_table.affine("classifier.1", "head", key_table.CELLS))


_TIMM = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")


def _named(described: Mapping[str, Any]) -> resnet.ResNetConfig:
    """Of timm's `config.json`, which names an architecture; torchvision's files have none."""
    name = described.get("architecture")
    if name not in _TIMM:
        raise ValueError(f"config.json names the architecture {name!r:.80}; of timm's there are {list(_TIMM)} here")
    key_table.require(described, global_pool="avg", model_args={})
    size = key_table.field(described, "pretrained_cfg", {}).get("input_size", [3, 224, 224])
    if not isinstance(size, list) or len(size) != 3 or size[1] != size[2] or not all(type(n) is int for n in size):
        raise ValueError(f"input_size in config.json is {size!r:.80}; it must be [channels, side, side]")
    classes = key_table.field(described, "num_classes", 1000)
    return resnet.PRESETS[name](channels=size[0], image_size=size[1], classes=classes)


def _name(config: Any) -> dict[str, Any]:
    _check(config, stem="large", pad=False, relu="block", pool=1, downsample_in_bottleneck=False)
    plain = dataclasses.replace(config, classes=1000, image_size=224, dropout=0.0, conv="native")
    for name in _TIMM:
        if plain == resnet.PRESETS[name]():
            size = [config.channels, config.image_size, config.image_size]
            return {
                "architecture": name,
                "num_classes": config.classes,
                "num_features": config.stage_widths[-1],
                "global_pool": "avg",
                "pretrained_cfg": {"num_classes": config.classes, "input_size": size},
            }
    return {}


def _nameless(described: Mapping[str, Any]) -> NoReturn:
    raise ValueError("CIFAR's residual networks come without a config.json; build the model and pass it as `model`")


def _nothing(config: Any) -> dict[str, Any]:
    _check(config, stem="small")
    return {}


def _check(config: Any, **needed: Any) -> None:
    if not isinstance(config, resnet.ResNetConfig):
        raise ValueError(f"a {type(config).__name__} is no residual network")
    for name, value in needed.items():
        if getattr(config, name) != value:
            raise ValueError(f"{name}={getattr(config, name)!r}, while theirs have {value!r}; choose another format")


def _config(described: Mapping[str, Any]) -> resnet.ResNetConfig:
    """Of Hugging Face's `ResNetConfig`."""
    if described.get("model_type") != "resnet":
        raise ValueError(f"model_type is {described.get('model_type')!r:.80}, not 'resnet'")
    key_table.require(described, hidden_act="relu")
    widths = tuple(key_table.field(described, "hidden_sizes", [256, 512, 1024, 2048]))
    depths = tuple(key_table.field(described, "depths", [3, 4, 6, 3]))
    kind = key_table.field(described, "layer_type", "bottleneck")
    stem = key_table.field(described, "embedding_size", 64)
    if kind not in ("basic", "bottleneck"):
        raise ValueError(f"layer_type in config.json is {kind!r:.80}; allowed are basic and bottleneck")
    if len(widths) != len(depths) or not all(type(n) is int and 0 < n < 10_000_000 for n in (*widths, *depths)):
        raise ValueError(f"hidden_sizes {widths!r:.80} and depths {depths!r:.80} in config.json must be as many sizes")
    early = key_table.field(described, "downsample_in_bottleneck", False) and kind == "bottleneck"
    first = 2 if key_table.field(described, "downsample_in_first_stage", False) else 1
    strides = (first, *(2,) * (len(widths) - 1))
    inner = [(w,) if kind == "basic" else (w // 4, w // 4) for w in widths]
    return resnet.ResNetConfig(
        stem_width=stem,
        stage_widths=widths,
        inner_widths=tuple((i,) * depth for i, depth in zip(inner, depths, strict=True)),
        strides=strides,
        projections=_projections(stem, widths, strides),
        stem="large",
        image_size=224,  # theirs take any size and note none
        channels=key_table.field(described, "num_channels", 3),
        classes=key_table.classes(described),
        downsample_in_bottleneck=early,
    )


def _projections(stem: int, widths: tuple[int, ...], strides: tuple[int, ...]) -> tuple[bool, ...]:
    """Theirs project where a shortcut could not be added as it is."""
    return tuple(a != b or s > 1 for a, b, s in zip((stem, *widths), widths, strides, strict=False))


def _describe(config: Any) -> dict[str, Any]:
    _check(config, stem="large", pad=False, relu="block", pool=1)
    bottleneck = len(config.inner_widths[0][0]) == 2
    described = {
        "architectures": ["ResNetForImageClassification"],
        "model_type": "resnet",
        "num_channels": config.channels,
        "embedding_size": config.stem_width,
        "hidden_sizes": list(config.stage_widths),
        "depths": [len(stage) for stage in config.inner_widths],
        "layer_type": "bottleneck" if bottleneck else "basic",
        "hidden_act": "relu",
        "downsample_in_first_stage": config.strides[0] == 2,
        "downsample_in_bottleneck": bottleneck and config.downsample_in_bottleneck,
        **key_table.labels(config.classes),
    }
    early = described["downsample_in_bottleneck"]
    same = dataclasses.replace(config, image_size=224, dropout=0.0, conv="native", downsample_in_bottleneck=early)
    if _config(described) != same:
        raise ValueError(
            "Hugging Face's residual networks have one width in all blocks of a stage (a quarter of the stage's in "
            "bottlenecks), stride 2 in all stages but the first, and project only where they must; this one differs, "
            "as pruned ones do"
        )
    return described


FORMATS = (
    Format("resnet (torchvision, timm)", _torchvision("fc", "downsample", "linear", "shortcut"), _named, _name),
    Format("resnet (CIFAR)", _torchvision("linear", "shortcut", "fc", "downsample"), _nameless, _nothing),
    Format("resnet (Hugging Face)", _hugging_face(), _config, _describe),
)
"""torchvision's and timm's; akamaster/pytorch_resnet_cifar10's and karanchahal/distiller's; Hugging Face's."""
