"""Refuses a problem or settings of the wrong kind before a method starts to work."""

import dataclasses
import sys
from typing import Any


def check(method: str, problem: Any, problem_type: type, settings: Any, settings_type: type) -> None:
    """Raises `ValueError` unless a method was called with the kinds of problem and settings that it takes.

    Args:
        method: the method's name, as in `METHODS`.
        problem: the problem that was given.
        problem_type: the class of problems that the method takes.
        settings: the settings that were given.
        settings_type: the class of settings that the method takes.

    Raises:
        ValueError: says what was given, what the method takes, and how to make one.

    >>> from mvp_jax.methods.sparse import gradual, imp
    >>> from mvp_jax.methods.sparse.api import SparsityProblem
    >>> check("gradual", None, SparsityProblem, gradual.Settings(), gradual.Settings)
    Traceback (most recent call last):
    ValueError: 'gradual' takes a sparse.SparsityProblem as its problem, got NoneType; make one with \
sparse.SparsityProblem(model=..., variables=..., train=..., sparsity=...)
    """
    for what, given, wanted in (("problem", problem, problem_type), ("settings", settings, settings_type)):
        if not isinstance(given, wanted):
            raise ValueError(
                f"{method!r} takes a {_name(wanted)} as its {what}, got {_described(given)}; "
                f"make one with {_call(wanted)}"
            )


def _name(kind: type) -> str:
    """A class with the module it is imported from: `sparse.SparsityProblem`, `gradual.Settings`, `int`."""
    module = kind.__module__
    if module == "builtins":
        return kind.__qualname__
    package = module.rpartition(".")[0]
    if getattr(sys.modules.get(package), kind.__name__, None) is kind:  # the package's face has it
        module = package
    return f"{module.rpartition('.')[-1]}.{kind.__qualname__}"


def _described(given: Any) -> str:
    return f"the class {_name(given)} itself" if isinstance(given, type) else _name(type(given))


def _call(kind: type) -> str:
    """How the class is called: its arguments that have no default."""
    missing = dataclasses.MISSING
    needed = [
        f.name for f in dataclasses.fields(kind) if f.init and f.default is missing and f.default_factory is missing
    ]
    return f"{_name(kind)}({', '.join(f'{name}=...' for name in needed)})"
