"""A line of the registry of methods: what runs under a name, with which settings, and what it needs."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from mvp_jax.methods.contract import Pruned
from mvp_jax.models.api import Model


def any_model(model: Model) -> bool:
    """True: the method suits every model."""
    return True


class Line(NamedTuple):
    """One method of the registry.

    Attributes:
        run: `(problem, settings, key) -> Pruned`.
        settings: from what the methods of a comparison have in common (`FewShotDefaults` or `SparsityDefaults`, by
            `kind`) to this method's settings.
        summary: what it does, in one sentence.
        kind: of the problem: `few_shot` (`few_shot.FewShotProblem`) or `sparse` (`sparse.SparsityProblem`).
        needs: what the problem must have besides a model and data: `neighbours`, or `universal`.
        suits: whether the method can prune a model; a comparison of all methods leaves it out where it cannot.
        unsuited: what to say of a model that it does not suit.
    """

    run: Callable[..., Pruned]
    settings: Callable[[Any], Any]
    summary: str
    kind: Literal["few_shot", "sparse"]
    needs: frozenset[str] = frozenset()
    suits: Callable[[Model], bool] = any_model
    unsuited: str = ""


def fixed(method: Callable[..., Pruned], **fields: Any) -> Callable[..., Pruned]:
    """Returns a method under a narrower name: the same, with some fields of its settings fixed.

    Args:
        method: `(problem, settings, key, ...) -> Pruned`.
        **fields: of the settings; whatever the caller's settings say of these is overruled.
    """

    @functools.wraps(method)
    def run(problem: Any, settings: Any, key: Any, **more: Any) -> Pruned:
        if dataclasses.is_dataclass(settings) and all(hasattr(settings, name) for name in fields):
            settings = dataclasses.replace(settings, **fields)  # type: ignore[type-var]
        return method(problem, settings, key, **more)

    return run
