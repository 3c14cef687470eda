"""A line of the registry of methods: which function runs under a name, with which settings, and what it needs."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from mvp_jax.methods.contract import Pruned
from mvp_jax.models.api import Model

MAX_TITLE = 28
"""The most characters of a method's title: what fits beside a picture of 7.5 inches."""

ComparisonRole = Literal["reference", "proposed", "variant", "baseline", "control", "random"]
"""What a method is in a comparison; see `Line`."""


def any_model(model: Model) -> bool:
    """Returns True: what a method's line says if it can prune every model."""
    return True


class Line(NamedTuple):
    """One method of the registry.

    Attributes:
        run: the method itself, `(problem, settings, key) -> Pruned`.
        settings: makes this method's settings of those that all methods of a comparison have in common:
            `few_shot.FewShotDefaults` or `sparse.SparsityDefaults`, by `kind`.
        summary: what the method does, in a few words, for the documentation.
        kind: what the method prunes: `few_shot` (a `few_shot.FewShotProblem`: the units of a model, for a task of few
            examples) or `sparse` (a `sparse.SparsityProblem`: a model's weights, to a sparsity).
        title: the method's name in tables and pictures, at most `MAX_TITLE` characters, which no other method has.
        role: what the method is in a comparison, by which pictures choose the lines that they name: `reference`
            (nothing is pruned), `proposed` (Meta-Vote Pruning, Instant Soup Pruning), `variant` (the same with another
            rule), `baseline` (a method to be compared with), `control` (the same without one of its ingredients) or
            `random` (what is kept is drawn at random).
        needs: the fields that the problem must have besides a model and data: `neighbours` or `universal`.
        uses: the fields that the method makes use of if the problem has them, and can do without.
        suits: `(model) -> bool`: whether the method can prune the model; a comparison of all methods leaves out those
            that cannot.
        only_weights: whether the method prunes single weights and no other pattern, such as whole units.
        unsuited: what such a model is or lacks, as the end of the sentence "it ...", for the error message.
    """

    run: Callable[..., Pruned]
    settings: Callable[[Any], Any]
    summary: str
    kind: Literal["few_shot", "sparse"]
    title: str
    role: ComparisonRole = "baseline"
    needs: frozenset[str] = frozenset()
    uses: frozenset[str] = frozenset()
    suits: Callable[[Model], bool] = any_model
    unsuited: str = ""
    only_weights: bool = False


def fixed(method: Callable[..., Pruned], settings_type: type, /, **fields: Any) -> Callable[..., Pruned]:
    """Returns a method under a narrower name: the same method, with some fields of its settings fixed.

    Args:
        method: `(problem, settings, key, ...) -> Pruned`.
        settings_type: the class of the method's settings. Others are handed on as they are, for the method to refuse.
        **fields: fields of the settings and their values, which overrule those of the caller's settings.
    """

    @functools.wraps(method)
    def run(problem: Any, settings: Any, key: Any, **more: Any) -> Pruned:
        if isinstance(settings, settings_type):
            settings = dataclasses.replace(settings, **fields)  # type: ignore[type-var]
        return method(problem, settings, key, **more)

    return run
