"""Which widths another library's configuration can say, and slim models brought to such widths.

The layers of a transformer are all alike there. A slim one is filled up with units of zeros, which change nothing: each
kind of unit to the widest layer if the configuration can say that, and heads to those of the dense model if not.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mvp_jax import compact, models
from mvp_jax.core.types import Units, Variables
from mvp_jax.models import widths
from mvp_jax.models.api import Model
from mvp_jax.pretrained import formats


def why_not(model: Model, origin: str = "Hugging Face") -> str | None:
    """Why another library has no model of exactly these widths.

    `export.checkpoint` fills a slim transformer up with zeros where there is a reason; for other models it raises it.

    Args:
        model: any model, dense or slim.
        origin: the library: `Hugging Face`, `timm`, `torchvision` or `CIFAR`.

    Returns:
        The reason; `None` if the library has such a model.

    >>> dense = models.create("bert_micro", layers=1, dim=8, heads=2, mlp=16)
    >>> why_not(dense), why_not(dense.resize({"layers/0/fc1": 5}))
    (None, None)
    >>> "heads" in why_not(dense.resize({"layers/0/attention": 1}))
    True
    """
    try:
        formats.for_config(model.config, origin)
    except ValueError as error:
        for config in _wider(model.config):
            # The format of a model that is alike but for its widths has the one reason that counts.
            try:
                formats.for_config(config, origin).describe(model.config)
            except ValueError as reason:
                if "has no format" not in str(reason):
                    return str(reason)
        return str(error)
    return None


def filled(model: Model, variables: Variables, origin: str) -> tuple[Model, Variables, tuple[str, ...]]:
    """A slim transformer with units of zeros, so many that another library has such a model.

    Args:
        model: any model.
        variables: its variables.
        origin: the library.

    Returns:
        The model, its variables, and what was filled up, a sentence each; all as given if the library has the model, or
        if filling up does not help.
    """
    if why_not(model, origin) is None:
        return model, variables, ()
    for config in _wider(model.config):
        wide = models.build(config)
        if why_not(wide, origin) is not None:
            continue
        sizes, whole = widths.sizes(model.config), widths.sizes(config)
        units = {name: jnp.arange(n) < sizes[name] for name, n in whole.items()}
        like = jax.eval_shape(wide.init, jax.random.key(0))
        notes = [
            f"{field} {list(getattr(model.config, field))} of the layers were filled up with zeros to "
            f"{getattr(config, field)[0]}, since the configuration of {origin} cannot say it otherwise"
            for field in ("heads", "qk_dim", "v_dim", "mlp")
            if getattr(model.config, field) != getattr(config, field)
        ]
        return wide, Variables(*compact.embed(variables, wide.groups, units, like)), tuple(notes)
    return model, variables, ()


def _wider(config: Any) -> Iterator[Any]:
    """Configurations of which the given one is a part and whose layers are alike, the smallest first."""
    if not all(hasattr(config, field) for field in ("heads", "qk_dim", "v_dim", "mlp", "attention_scale")):
        return
    n, d = len(config.heads), round(config.attention_scale**-2)
    if max(*config.qk_dim, *config.v_dim) > d or config.dim % d:
        return
    for heads in (max(config.heads), config.dim // d):
        if heads >= max(config.heads):
            alike = {"heads": heads, "qk_dim": d, "v_dim": d, "mlp": max(config.mlp)}
            yield dataclasses.replace(config, **{field: (size,) * n for field, size in alike.items()})


def narrower(model: Model, variables: Variables, units: Units, origin: str) -> tuple[Model, Variables]:
    """A masked transformer with smaller MLPs, and fewer heads where the library can say that.

    Each kind of unit is cut to the widest layer that is left; what fills the others up is pruned, and zero.

    Args:
        model: the dense model.
        variables: its variables, masked.
        units: `{group: bool[C]}`, the kept units.
        origin: the library.

    Returns:
        The model and its variables; other units are as they were.
    """
    for kind in ("neuron", "head"):
        groups = [g for g in model.groups if g.kind == kind]
        if not groups or any(g.name not in units for g in groups):  # a layer that is whole keeps all at its width
            continue
        kept = {g.name: np.asarray(units[g.name]) for g in groups}
        width = max(1, *(int(u.sum()) for u in kept.values()))
        if why_not(model.resize(dict.fromkeys(kept, width)), origin) is not None:
            continue
        # The kept ones first, then others until it is `width`.
        chosen = {name: np.argsort(np.argsort(~u, kind="stable"), kind="stable") < width for name, u in kept.items()}
        model, variables = compact.rebuild(model, variables, {name: jnp.asarray(u) for name, u in chosen.items()})
    return model, variables
