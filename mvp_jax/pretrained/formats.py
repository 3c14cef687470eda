"""Checkpoints of other libraries: one file a family with its key tables, rules that work both ways, safe files."""

from collections.abc import Iterable, Mapping
from typing import Any

from mvp_jax import models
from mvp_jax.pretrained import key_table
from mvp_jax.pretrained.key_table import Format, KeyRule, Layout
from mvp_jax.pretrained.keys import bert, clip, resnet, vit
from mvp_jax.pretrained.tensor_files import TensorSource

FAMILIES: dict[str, tuple[Format, ...]] = {
    "resnet": resnet.FORMATS,
    "vit": vit.FORMATS,
    "bert": (*bert.FORMATS, *bert.ENCODERS),
    "clip_vision": (clip.VISION,),
    "clip_text": (clip.TEXT,),
}
"""The formats of each family, by the names that `models.to_json` gives families. Of two formats that fit equally well,
the first counts."""

FORMATS: tuple[Format, ...] = tuple(form for forms in FAMILIES.values() for form in forms if form not in bert.ENCODERS)
"""The formats that are told from one another by names, in the order of `FAMILIES`."""


def bare(key: str) -> str:
    """The name that a tensor has in the model itself, without what PyTorch's wrappers put into it.

    `torch.nn.DataParallel` and `DistributedDataParallel` put `module.` before the names of all tensors. `torch.compile`
    puts `_orig_mod.` before those of the module that is compiled, be it the model or a part of it. A model may be
    wrapped by both, in any order.

    Args:
        key: the name in the checkpoint.

    Returns:
        The name without any `_orig_mod.`, and without `module.` at its beginning.

    >>> bare("module._orig_mod.fc.weight"), bare("_orig_mod.module.fc.weight"), bare("encoder._orig_mod.fc.weight")
    ('fc.weight', 'fc.weight', 'encoder.fc.weight')
    """
    parts = [part for part in key.split(".") if part != "_orig_mod"]
    while parts[:1] == ["module"]:
        del parts[0]
    return ".".join(parts)


def configure(form: Format, described: Mapping[str, Any]) -> Any:
    """Our configuration of a model that a `config.json` describes.

    Args:
        form: the format of the checkpoint.
        described: the content of its `config.json`.

    Returns:
        The frozen configuration, for `models.build`.

    Raises:
        ValueError: if fields are missing, of the wrong type, or have values that our models cannot express.
    """
    try:
        return form.config(described)
    except (TypeError, AttributeError, LookupError, ArithmeticError) as error:
        raise ValueError(f"config.json is not one of {form.name}: {type(error).__name__}: {error}") from error


def detect(
    keys: Iterable[str], described: Mapping[str, Any] | None = None, paths: Iterable[str] | None = None
) -> Format:
    """The format of a checkpoint, detected by the names of its tensors.

    The format whose key table holds the most of these names is chosen. If some formats both hold names and accept the
    `config.json`, it is chosen among those.

    Args:
        keys: the names of the checkpoint's tensors.
        described: the content of its `config.json`, if there is one.
        paths: the paths of the variables that are wanted. Names of other variables count only between formats that hold
            equally many of these.

    Returns:
        The format.

    Raises:
        ValueError: if no key table holds any of the names.

    >>> detect(["cls_token", "blocks.0.norm1.weight"]).name
    'vit (timm)'
    """
    names = [bare(key) for key in keys]
    wanted = None if paths is None else set(paths)

    def score(form: Format) -> tuple[int, int, int]:
        """How many names hold what is wanted, how many are known, how many of the holding are first names."""
        known = [found for found in (key_table.match(form, name) for name in names) if found]
        held = [rule for rule, to in known if to and (wanted is None or wanted.intersection(to))]
        return len(held), len(known), sum(not rule.tied for rule in held)

    scores = {form.name: score(form) for form in FORMATS}
    holding = [form for form in FORMATS if scores[form.name][0]]
    if not holding:
        kind = "" if described is None else f", whose model_type is {described.get('model_type')!r:.80},"
        raise ValueError(
            f"no key table fits these weights{kind}: {sorted(names)[:5]!s:.400} ({len(names)} in all); there are "
            f"{[form.name for form in FORMATS]}"
        )
    able = [form for form in holding if described is not None and _accepts(form, described)]
    return max(able or holding, key=lambda form: scores[form.name])


def _accepts(form: Format, described: Mapping[str, Any]) -> bool:
    try:
        configure(form, described)
    except ValueError:
        return False
    return True


def for_config(config: Any, origin: str = "Hugging Face") -> Format:
    """The format in which a library keeps models of a configuration.

    Args:
        config: our configuration.
        origin: the name of the library, as formats name it in parentheses: `Hugging Face`, `timm`, `torchvision` or
            `CIFAR`.

    Returns:
        The format; its `describe` accepts the configuration.

    Raises:
        ValueError: if there is none, with the reason of each that comes near.

    >>> from mvp_jax import models
    >>> for_config(models.PRESETS["vit_tiny"](), "timm").name
    'vit (timm)'
    """
    family = models.to_json(config)["family"]
    near = [form for form in FAMILIES.get(family, ()) if origin in form.name.partition("(")[2].strip(")").split(", ")]
    reasons = []
    for form in near:
        try:
            form.describe(config)
        except ValueError as error:
            reasons.append(f"{form.name}: {error}")
        else:
            return form
    there = [form.name for form in FAMILIES.get(family, ())]
    raise ValueError(
        f"{origin!r} has no format for this {family}, there are {there}" + "".join(f"\n  {r}" for r in reasons)
    )


__all__ = [
    "FAMILIES",
    "FORMATS",
    "Format",
    "Layout",
    "KeyRule",
    "TensorSource",
    "bare",
    "bert",
    "clip",
    "configure",
    "detect",
    "for_config",
    "resnet",
    "key_table",
    "vit",
]
