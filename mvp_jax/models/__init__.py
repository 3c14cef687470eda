"""Model families: one file each, with a frozen configuration that holds every width, `build(config)` and `PRESETS`."""

import dataclasses
import math
import types
import typing
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

    Raises:
        ValueError: if it is of no family here, has unknown or missing fields or values of another type, whole numbers
            of 2^31 and more, or more than 1,000 layers.

    >>> config = resnet.resnet8(classes=7)
    >>> from_json(to_json(config)) == config
    True
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"a configuration is {data!r:.80}; it must be an object with a family and its fields")
    fields = dict(data)
    family = fields.pop("family", None)
    if not isinstance(family, str) or family not in _FAMILIES:
        raise ValueError(f"unknown family {family!r:.80}; there are {sorted(_FAMILIES)}")
    cls = _FAMILIES[family][0]
    known = {f.name for f in dataclasses.fields(cls)}
    needed = {
        f.name
        for f in dataclasses.fields(cls)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    if set(fields) - known or needed - set(fields):
        raise ValueError(
            f"not a {family} configuration: unknown {sorted(set(fields) - known)!s:.200}, "
            f"missing {sorted(needed - set(fields))}"
        )
    made = {name: _tuples(value) for name, value in fields.items()}
    if _layers(made.values()) > _MOST_LAYERS:
        raise ValueError(f"a {family} of {_layers(made.values())} layers; at most {_MOST_LAYERS} are built from a file")
    hints = typing.get_type_hints(cls)
    wrong = [name for name, value in made.items() if not _fits(value, hints[name])]
    if wrong:
        raise ValueError(f"not a {family} configuration: {wrong[0]} is {made[wrong[0]]!r:.80}")
    return cls(**made)


_MOST_LAYERS = 1000


def depth(config: Any) -> int:
    """Returns how many layers or blocks a configuration has, each of which has arrays of its own.

    >>> depth(vit.micro()), depth(resnet.resnet8())
    (3, 3)
    """
    return _layers(vars(config).values())


def _layers(values: Any) -> int:
    """The length of the longest list of layers; those of stages count together."""
    lists = [value for value in values if isinstance(value, tuple)]
    return max((sum(len(v) if isinstance(v, tuple) else 1 for v in value) for value in lists), default=0)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value of JSON is of the type that a field of a configuration has."""
    kind, inner = typing.get_origin(hint), typing.get_args(hint)
    if kind is typing.Literal:
        return any(value is one or (isinstance(value, str) and value == one) for one in inner)
    if kind in (typing.Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    if kind is tuple:
        if not isinstance(value, tuple):
            return False
        if inner[-1] is Ellipsis:
            return all(_fits(one, inner[0]) for one in value)
        return len(value) == len(inner) and all(map(_fits, value, inner))
    if hint is float:
        return (type(value) is int and abs(value) < 2**31) or (type(value) is float and math.isfinite(value))
    if hint is int:
        return type(value) is int and abs(value) < 2**31
    return value is None if hint is type(None) else type(value) is hint


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
    "depth",
    "from_apply",
    "from_json",
    "from_module",
    "functions",
    "replace_head",
    "resnet",
    "to_json",
    "vit",
]
