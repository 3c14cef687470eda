"""Model families: one file each, with a frozen configuration that holds every width, `build(config)` and `PRESETS`."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from mvp_jax.models import api, bert, clip, functions, resnet, vit
from mvp_jax.models.api import Inspection, Model, from_module, replace_head
from mvp_jax.models.functions import from_apply
from mvp_jax.models.hooks import Hooks

_FAMILIES: dict[str, Any] = {
    "resnet": (resnet.ResNetConfig, resnet.build),
    "vit": (vit.ViTConfig, vit.build),
    "bert": (bert.BertConfig, bert.build),
    "clip_vision": (clip.ClipVisionConfig, clip.build),
    "clip_text": (clip.ClipTextConfig, clip.build),
}

PRESETS = {**resnet.PRESETS, **vit.PRESETS, **bert.PRESETS, **clip.PRESETS}
"""All named configurations of all families."""


def build(config: Any) -> api.Model:
    """The model of any family's configuration; equal configurations give the same object."""
    for cls, make in _FAMILIES.values():
        if isinstance(config, cls):
            return make(config)
    raise ValueError(f"no family builds from a {type(config).__name__}; give a configuration of {sorted(_FAMILIES)}")


def create(name: str, **options: Any) -> api.Model:
    """The model of a preset.

    >>> create("resnet8", width=4, image_size=8, classes=3).num_classes
    3
    """
    if name not in PRESETS:
        raise ValueError(f"no preset {name!r}; there are {sorted(PRESETS)}")
    return build(PRESETS[name](**options))


def to_json(config: Any) -> dict[str, Any]:
    """A configuration as JSON's own types, with its family; `from_json` reverses it."""
    for name, (cls, _) in _FAMILIES.items():
        if isinstance(config, cls):
            return {"family": name, **dataclasses.asdict(config)}
    raise ValueError(f"no family has a {type(config).__name__}; there are {sorted(_FAMILIES)}")


def from_json(data: Mapping[str, Any]) -> Any:
    """The configuration that `to_json` wrote.

    >>> config = resnet.resnet8(classes=7)
    >>> from_json(to_json(config)) == config
    True
    """
    fields = dict(data)
    family = fields.pop("family", None)
    if family not in _FAMILIES:
        raise ValueError(f"unknown family {family!r}; there are {sorted(_FAMILIES)}")
    cls = _FAMILIES[family][0]
    known = {f.name for f in dataclasses.fields(cls)}
    needed = {
        f.name
        for f in dataclasses.fields(cls)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    if set(fields) - known or needed - set(fields):
        raise ValueError(
            f"not a {family} configuration: unknown {sorted(set(fields) - known)}, "
            f"missing {sorted(needed - set(fields))}"
        )
    return cls(**{name: _tuples(value) for name, value in fields.items()})


def _tuples(value: Any) -> Any:
    """JSON has lists where configurations have tuples."""
    return tuple(_tuples(v) for v in value) if isinstance(value, list | tuple) else value


__all__ = [
    "PRESETS",
    "Hooks",
    "Inspection",
    "Model",
    "api",
    "bert",
    "build",
    "clip",
    "create",
    "from_apply",
    "from_json",
    "from_module",
    "functions",
    "replace_head",
    "resnet",
    "to_json",
    "vit",
]
