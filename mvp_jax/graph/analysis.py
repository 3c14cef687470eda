"""Groups from a traced function: both passes over its jaxpr, names, kinds, and what may not be cut."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, get_args

from mvp_jax.core.types import PyTree
from mvp_jax.core.units import Group, Slot
from mvp_jax.graph import naming, zeros
from mvp_jax.graph.custom import derivatives
from mvp_jax.graph.dims import Dim, freeze, roots
from mvp_jax.graph.places import Place, places
from mvp_jax.graph.primitives import RULES
from mvp_jax.graph.program import merged
from mvp_jax.graph.rules import PrimitiveRule
from mvp_jax.graph.tracing import Traced, trace
from mvp_jax.graph.variables import collections as collections
from mvp_jax.graph.zeros import Approximation

PrimitiveRules = Sequence[tuple[str, PrimitiveRule]]
"""Rules for primitives that have none yet, or that replace the known ones: `((name, rule), ...)`."""


class Frozen(NamedTuple):
    """Units of a parameter that may not be removed.

    Attributes:
        path: the path of the parameter.
        axis: the axis along which the units lie.
        size: how many units there are.
        reason: what keeps them, in words.
        number: a number for the set of units; axes with the same number hold the same units.
    """

    path: str
    axis: int
    size: int
    reason: str
    number: int


class Analysis(NamedTuple):
    """What may be cut together, and what may not be cut.

    Attributes:
        groups: the groups that can be cut, in the order in which the function makes their units.
        frozen: parameter axes with units that have to stay, and why.
        traced: the function as it was read, which `explain` and `compact.slim` go on with.
        roots: for each group's name, its set of units in `traced`.
    """

    groups: tuple[Group, ...]
    frozen: tuple[Frozen, ...]
    traced: Traced
    roots: Mapping[str, Dim]


def groups(
    apply: Callable[..., Any],
    variables: PyTree,
    *inputs: Any,
    rules: PrimitiveRules = (),
    allow: Sequence[Approximation] = (),
    keep: Sequence[str] = (),
) -> tuple[Group, ...]:
    """The coupled groups of a function: sets of units that can be removed, each with every axis that goes with it.

    A group is reported only if removing its units computes the same as setting their parameters to zero; with `allow`
    also if it computes nearly the same, which its `approximate` says.

    Args:
        apply: pure; called as `apply(variables, *inputs)`, returns arrays whose axes stay whole. Give it as it is used
            for inference: no unit is cut along which random numbers are drawn, as dropout does.
        variables: any pytree of arrays (or shapes). If it is a dictionary with an entry `params` (Linen's variables) or
            `Variables`, its entries are collections: paths start inside each, and only `params` are masked. Otherwise
            every array in it is a parameter, also a table of positions. Collections that come back in the results with
            the same paths and shapes (a cache, new batch statistics) are cut along, there too.
        *inputs: arrays (or shapes) as `apply` takes them; their axes stay whole. A cache among them keeps the heads
            and their dimensions whole. Make it a collection, so that it is cut along: of `step(params, cache, token)`,
            `lambda v, token: step(v["params"], v["cache"], token)` with `{"params": params, "cache": cache}`.
        rules: rules for primitives that are not known, or that are to be read otherwise: `((name, rule), ...)`.
        allow: ways in which the slim function may differ from the masked one, each used only for units that otherwise
            could not be cut; fine-tuning is expected to repair the difference.

            - `"norm"`: the mean of a norm is taken over the kept units, as a norm of the smaller width takes it.
            - `"positions"`: fixed tables that are added (sinusoidal positions) count as masked with the units.
            - `"kernel_standardisation"`: the mean of a standardised kernel is taken over its kept inputs, and a removed
              filter that is divided by its own deviation of zero is not computed.
        keep: names of functions whose custom derivative is to hold after cutting too, as `compact.slim` takes them.

    Returns:
        Groups (`units.Group`, which explains kinds and slots) for `units`, `prune`, `vote` and `compact`, in the order
        in which the function makes their units. What is missing may not be cut; `graph.explain` says why. A primitive
        without a rule is no error: the axes that touch it are not cut.

    Raises:
        ValueError: if a leaf of the variables is no array (a function, a string, or a setting that `apply` branches
            on), `allow` names no way that is known, or `keep` no function with a custom derivative.

    Reference: the idea of dependency graphs is Fang et al., "DepGraph: Towards Any Structural Pruning", 2023,
    arXiv:2301.12900; here it works on axes instead of layers.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> def mlp(params, x):
    ...     h = jax.nn.relu(x @ params["fc1"]["kernel"] + params["fc1"]["bias"])
    ...     return h @ params["fc2"]["kernel"]
    >>> params = {"fc1": {"kernel": jnp.ones((3, 8)), "bias": jnp.ones(8)}, "fc2": {"kernel": jnp.ones((8, 2))}}
    >>> [(g.name, g.size, [(s.path, s.axis, s.scored) for s in g.slots]) for g in groups(mlp, params, jnp.ones((1, 3)))]
    [('fc1', 8, [('fc1/bias', 0, True), ('fc1/kernel', 1, True), ('fc2/kernel', 0, False)])]
    """
    return analyse(apply, variables, *inputs, rules=rules, allow=allow, keep=keep).groups


def analyse(
    apply: Callable[..., Any],
    variables: PyTree,
    *inputs: Any,
    rules: PrimitiveRules = (),
    allow: Sequence[Approximation] = (),
    keep: Sequence[str] = (),
) -> Analysis:
    """Coupled groups of a function, as `groups` finds them, and what may not be cut and why.

    Args:
        apply: pure, `apply(variables, *inputs)`.
        variables: any pytree of arrays or shapes, with or without an entry `params`.
        *inputs: arrays or shapes as `apply` takes them.
        rules: rules for primitives that are not known, or that are to be read otherwise.
        allow: ways in which the slim function may differ from the masked one, as in `groups`.
        keep: names of functions whose custom derivative is kept.

    Returns:
        The groups, the frozen axes with reasons, and the function as it was read.

    Raises:
        ValueError: as `groups` does.
    """
    unknown = sorted(set(allow) - set(get_args(Approximation)))
    if unknown:
        raise ValueError(f"allow={unknown} is not known; allowed are {list(get_args(Approximation))}")
    table = RULES | dict(rules)
    traced = trace(apply, variables, *inputs, rules=table, keep=keep)
    derivatives.check_kept(keep, traced.customs)
    for i, value in enumerate(traced.program.outs):
        for e in value.dims or [] if i not in traced.returned else []:
            freeze(e, "an axis of the output")
    _keep_positions(traced)
    return describe(traced, _leaks_but(traced, table, allow))


def _keep_positions(traced: Traced) -> None:
    """Freezes the offsets of a pixel shuffle: channels that are laid among pixels, and that no layer reads as channels.

    Removing one would remove pixels. Channels that are flattened with pixels and read by a dense layer are other ones.
    """
    read = {d for note in traced.notes if note.role == "read" for d in roots(note.axis)}
    for e in merged(traced.program):
        of_axis = roots(e)
        if any(d.why and d.size > 1 for d in of_axis):
            for d in of_axis:
                if d not in read:
                    freeze(d, "its units are laid among positions, as the offsets of a pixel shuffle are")


def leaks(
    traced: Traced,
    rules: Mapping[str, PrimitiveRule] = RULES,
    allowed: Mapping[Dim, frozenset[str]] | None = None,
) -> dict[Dim, frozenset[str]]:
    """Freezes what cannot be removed without changing what stays: the second pass of `analyse`.

    Args:
        traced: what `trace` returned; its sets of units are frozen in place.
        rules: the table that the function was traced with.
        allowed: for sets of units that may be cut approximately, in which of the ways of `groups`.

    Returns:
        For each of these sets, which ways were needed.
    """
    given = [
        zeros.masked(leaf.value) if leaf.collection == "params" else zeros.unknown(leaf.value.dims or [])
        for leaf in traced.leaves
    ]
    inputs = traced.program.ins[len(given) :]
    within = zeros.Pass(rules=rules, notes=traced.notes, allowed=allowed or {})
    zeros.follow(traced.program, [*given, *(zeros.unknown(axes or []) for axes in inputs)], within)
    return {d: frozenset(ways) for d, ways in within.used.items()}


def _leaks_but(traced: Traced, rules: Mapping[str, PrimitiveRule], allow: Sequence[str]) -> dict[Dim, frozenset[str]]:
    """The second pass, in which only units that would be frozen may be cut approximately."""
    free = {d for leaf in traced.leaves for e in leaf.value.dims or [] for d in roots(e) if not d.why}
    leaks(traced, rules)
    leaking = [d for d in free if d.why]
    if not allow or not leaking:
        return {}
    for d in leaking:
        d.why = ""
    return leaks(traced, rules, dict.fromkeys(leaking, frozenset(allow)))


def describe(traced: Traced, ways: Mapping[Dim, frozenset[str]] | None = None) -> Analysis:
    """Groups and frozen axes of a function after both passes; `ways` says which units are cut approximately and how."""
    slots: dict[Dim, list[Slot]] = {}
    frozen: list[Frozen] = []
    numbers: dict[Dim, int] = {}
    made = _roles(traced)
    here: dict[tuple[str, int], set[str]] = {}
    for note in traced.notes:
        for source in note.sources:
            here.setdefault((source, id(note.axis)), set()).add(note.role)
    used = set[Dim]().union(*(roots(note.axis) for note in traced.notes))
    for leaf in traced.leaves:
        for axis, e in enumerate(leaf.value.dims or []):
            for place in places(e):
                d = place.root
                if d.size < 2 and leaf.value.shape[axis] < 2:
                    continue
                if d.size < 2:
                    freeze(d, "it is split into single units")
                if d not in used:
                    freeze(d, "the function does not use it")
                if d.why:
                    if leaf.collection == "params":
                        frozen.append(Frozen(leaf.path, axis, d.size, d.why, numbers.setdefault(d, len(numbers))))
                    continue
                source = f"{leaf.collection}:{leaf.path}"
                # A square kernel may make and read the same units; where it is used as it is, each axis tells.
                role = here.get((source, id(e))) or made.get(d, {}).get(source, set())
                length = leaf.value.shape[axis]
                slots.setdefault(d, []).append(
                    Slot(
                        path=leaf.path,
                        axis=axis,
                        scored=leaf.collection == "params" and role != {"read"},
                        collection=leaf.collection,
                        start=place.start,
                        step=place.step,
                        repeats=place.repeats,
                        length=0 if length == d.size and place == Place(d) else length,
                        order=place.order,
                    )
                )
    slots = {d: s for d, s in slots.items() if any(x.collection == "params" for x in s)}
    named = naming.names(traced, list(slots))
    result = []
    for d, (name, kind) in named.items():
        own = slots[d]
        if not any(s.scored for s in own):
            own = [dataclasses.replace(s, scored=s.collection == "params") for s in own]
        how = tuple(sorted((ways or {}).get(d, ())))
        result.append((d, Group(name=name, size=d.size, slots=tuple(own), kind=kind, approximate=how)))
    return Analysis(tuple(g for _, g in result), tuple(frozen), traced, {g.name: d for d, g in result})


def _roles(traced: Traced) -> dict[Dim, dict[str, set[str]]]:
    """For each set of units, what each parameter does with it."""
    found: dict[Dim, dict[str, set[str]]] = {}
    for note in traced.notes:
        for d in roots(note.axis):
            for source in note.sources:
                found.setdefault(d, {}).setdefault(source, set()).add(note.role)
    return found


def find(traced: Traced, group: Group) -> Dim:
    """The set of units in a traced function that a group of an earlier analysis stands for.

    Args:
        traced: the function, as `trace` returned it.
        group: a group that was found in the same function, perhaps with other inputs.

    Returns:
        The set of units.

    Raises:
        ValueError: if its units are not a set of their own here, or may not be cut.
    """
    return find_all(traced, [group])[group.name]


def find_all(traced: Traced, groups: Sequence[Group]) -> dict[str, Dim]:
    """The sets of units in a traced function that groups of an earlier analysis stand for, by the groups' names.

    Args:
        traced: the function, as `trace` returned it.
        groups: groups that were found in the same function, perhaps with other inputs.

    Returns:
        `{name: set of units}`.

    Raises:
        ValueError: if the units of a group are not a set of their own here, lie along further parameters, or may not
            be cut.
    """
    by_place = {
        (leaf.collection, leaf.path, axis, p.start, p.step, p.repeats, p.order): p.root
        for leaf in traced.leaves
        for axis, e in enumerate(leaf.value.dims or [])
        for p in places(e)
    }
    found = {g.name: _root_at({by_place.get(_where(s)) for s in g.slots}, g) for g in groups}
    lies: dict[Dim, set[tuple[Any, ...]]] = {}
    for where, d in by_place.items():
        if where[0] == "params":
            lies.setdefault(d, set()).add(where)
    for g in groups:
        further = lies[found[g.name]] - {_where(s) for s in g.slots}
        if further:
            paths = sorted({f"{path}[{axis}]" for _, path, axis, *_ in further})
            raise ValueError(
                f"in this function the units of group {g.name!r} are tied to those of {paths[:3]}, which the group "
                "does not cut; find the groups of this function with graph.groups(apply, variables, *inputs)"
            )
    return found


def _where(s: Slot) -> tuple[Any, ...]:
    return s.collection, s.path, s.axis, s.start, s.step, s.repeats, s.order


def _root_at(found: set[Dim | None], group: Group) -> Dim:
    """The one set of units that lies at all slots of a group."""
    d = found.pop() if len(found) == 1 else None
    if d is None or d.size != group.size:
        paths = sorted({f"{s.collection}/{s.path}" for s in group.slots})
        raise ValueError(
            f"group {group.name!r} is not a set of units of this function (its slots are {len(group.slots)} axes of "
            f"{paths[:3]}); find groups with graph.groups(apply, variables, *inputs)"
        )
    if d.why:
        raise ValueError(f"group {group.name!r} cannot be cut in this function: {d.why}")
    return d
