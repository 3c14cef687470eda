"""Functions whose derivative is not that of what they compute: `jax.custom_vjp` and `jax.custom_jvp` functions.

A replayed program calls them no longer: it computes what they compute, and JAX differentiates that. Where their own
derivative is to be kept, the rule is read as a further program (the forward and the backward rule, or the rule for
tangents), with the axes that the function's arguments and results have, and written again with fewer units inside a
new function of the same kind.
"""

import os
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax

from mvp_jax.graph.custom import rule_kinds, rule_programs
from mvp_jax.graph.program import Node, Value, called, open_jaxpr
from mvp_jax.graph.reading import Tracer, for_one_use
from mvp_jax.graph.rules import Seen

_JAX = os.path.dirname(os.path.abspath(jax.__file__)) + os.sep
_ORDERS = 2
"""How many derivatives of derivatives keep the rule: a rule often calls its own function again."""


class CustomDerivativeWarning(UserWarning):
    """The derivative that somebody wrote for a function is replaced by the derivative of what it computes."""


class CustomFunction(NamedTuple):
    """A function with a derivative of its own that a traced function calls.

    Attributes:
        name: the name that it was defined with.
        kept: whether its derivative is kept.
        lost: whether its derivative was written outside JAX and is replaced by that of what the function computes.
    """

    name: str
    kept: bool
    lost: bool


def check_kept(keep: Sequence[str], functions: Iterable[CustomFunction]) -> None:
    """Raises `ValueError` if a name to keep is that of no function with a custom derivative.

    >>> check_kept(("sign",), [CustomFunction("round_ste", False, True)])
    Traceback (most recent call last):
    ...
    ValueError: keep names 'sign', but the functions with a custom derivative here are ['round_ste']
    """
    there = sorted({f.name for f in functions})
    for name in _names(keep):
        if name not in there:
            raise ValueError(f"keep names {name!r}, but the functions with a custom derivative here are {there}")


def warn_lost(functions: Iterable[CustomFunction], stacklevel: int = 3) -> None:
    """Warns once for each name whose derivative is replaced.

    Args:
        functions: the functions with derivatives of their own that a traced function calls.
        stacklevel: whose line the warning shows, as `warnings.warn` counts.
    """
    for name in dict.fromkeys(f.name for f in functions if f.lost):
        warnings.warn(
            f"the custom derivative of {name!r} is replaced by the derivative of what it computes; to keep it, give "
            f"keep=({name!r},)",
            CustomDerivativeWarning,
            stacklevel=stacklevel,
        )


def _names(keep: Sequence[str]) -> tuple[str, ...]:
    return (keep,) if isinstance(keep, str) else tuple(keep)


def _is_of_jax(info: Any) -> bool:
    """Whether a function was written in JAX itself."""
    _, _, place = str(info.func_src_info).rpartition(" at ")
    # `jax.custom_gradient` wraps a function of somebody else's in one that is defined there.
    return place.startswith(_JAX) and not place.startswith(os.path.join(_JAX, "_src", "custom_derivatives.py"))


def _is_lost(eqn: Any) -> bool:
    """Whether somebody outside JAX wrote the derivative of the function that an equation calls."""
    rule = eqn.params.get("bwd") or eqn.params.get("jvp_jaxpr_fun")
    place = str(getattr(rule, "debug_info", None) and rule.debug_info.func_src_info).rpartition(" at ")[2]
    # Rules made by `defjvps` are defined in JAX for whoever calls it; they are as the function is.
    return not _is_of_jax(open_jaxpr(called(eqn.params))[0].debug_info) or not (not rule or place.startswith(_JAX))


class Reader:
    """Reads the functions with custom derivatives: what a `Tracer` asks before it reads one as a plain call.

    Args:
        keep: names of functions whose derivative is kept.
    """

    def __init__(self, keep: Sequence[str] = ()):
        self.keep = frozenset(_names(keep))
        self.found: dict[CustomFunction, None] = {}
        self._depth = 0
        self._inside = 0
        self._aliases: rule_programs.Aliases = {}

    def __call__(self, tracer: Tracer, eqn: Any, given: list[Value]) -> tuple[Node, list[Value]] | None:
        """One equation with its rule; `None` if it is to be read as a plain call."""
        if eqn.primitive.name not in ("custom_vjp_call", "custom_jvp_call"):
            return None
        name = open_jaxpr(called(eqn.params))[0].debug_info.func_name
        kept = name in self.keep
        # What a kept function calls is not differentiated: its rule is.
        self.found[CustomFunction(name, kept, not kept and not self._inside and _is_lost(eqn))] = None
        if not kept or self._depth >= _ORDERS or all(v.dims is None for v in given):
            return None
        self._inside += 1
        try:
            return self._kept(tracer, eqn, given, name)
        finally:
            self._inside -= 1

    def _kept(self, tracer: Tracer, eqn: Any, given: list[Value], name: str) -> tuple[Node, list[Value]]:
        jaxpr, consts = open_jaxpr(called(eqn.params))
        constants = tuple(v.own for v in given)
        given = [v if v.dims is None else for_one_use(v) for v in given]
        primal = rule_programs.whole(tracer.program(jaxpr, consts, given[len(given) - len(jaxpr.invars) :]))
        notes = len(tracer.notes)
        self._depth += 1
        with rule_programs.Blame(name, [*given, *primal.outs]):
            read = rule_kinds.read_vjp if eqn.primitive.name == "custom_vjp_call" else rule_kinds.read_jvp
            derivative = read(tracer, eqn, given, name, primal, self._aliases)
        self._depth -= 1
        # Who makes units and who reads them is said by the function, not by its derivative.
        del tracer.notes[notes:]
        ins, outs = ([v.dims or [] for v in values] for values in (given, primal.outs))
        seen = Seen(eqn.params, ins, outs, [v.fill for v in given], eqn.primitive.name)
        node = Node(eqn=eqn, kind="custom", seen=seen, constants=constants, inner=(primal,), derivative=derivative)
        return node, list(primal.outs)
