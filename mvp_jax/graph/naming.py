"""Names and kinds of groups, from what a function does with their units."""

from collections.abc import Sequence
from typing import Any

from mvp_jax.graph.dims import Dim, roots
from mvp_jax.graph.program import layer_of
from mvp_jax.graph.tracing import Traced

_BY_ROLE = ("qk", "head", "value")


def names(traced: Traced, free: list[Dim]) -> dict[Dim, tuple[str, Any]]:
    """A name and a kind for each group, in the order in which the function makes them."""
    order: dict[Dim, int] = {}
    layers: dict[Dim, dict[str, None]] = {d: {} for d in free}  # in the order in which they come
    kinds: dict[Dim, set[str]] = {d: set() for d in free}
    for i, note in enumerate(traced.notes):
        for d in layers.keys() & roots(note.axis):
            kinds[d].add(note.how if note.role == "make" else note.role)
            if note.role == "make":
                order.setdefault(d, i)
                layers[d].update(dict.fromkeys(sorted(map(layer_of, note.sources))))
    for leaf in traced.leaves:  # units that no product makes: a table of positions, a scale
        for e in leaf.value.dims or []:
            for d in roots(e):
                if d in layers and not layers[d]:
                    order.setdefault(d, len(traced.notes) + len(order))
                    layers[d][layer_of(leaf.path)] = None
    named: dict[Dim, tuple[str, str]] = {}
    shared = _shared_heads(traced, {d for note in traced.notes if note.role == "head" for d in roots(note.axis)})
    for d in sorted(free, key=lambda d: order[d]):
        kind = shared.get(d) or _kind(kinds[d], len(layers[d]))
        makers = list(layers[d])
        named[d] = (_parent(makers) if kind in ("head", "kv_head") else makers[0], kind)
    taken: dict[str, list[Dim]] = {}
    for d, (name, _) in named.items():
        taken.setdefault(name, []).append(d)
    for name, several in taken.items():
        if len(several) == 1:
            continue
        seen: dict[str, int] = {}
        for d in several:
            kind = named[d][1]
            seen[kind] = seen.get(kind, 0) + 1
            own = f"{name}:{kind}" + (f"{seen[kind]}" if seen[kind] > 1 else "")
            named[d] = (own, kind)
    return named


def _shared_heads(traced: Traced, heads: set[Dim]) -> dict[Dim, str]:
    """Which heads are of grouped queries: those of keys and values, and within each of them those of queries."""
    beside: dict[Dim, set[Dim]] = {}
    alone: set[Dim] = set()
    for leaf in traced.leaves:
        for e in leaf.value.dims or []:
            here = set(roots(e)) & heads
            alone |= here if len(here) == 1 else set()
            for d in here if len(here) > 1 else ():
                beside.setdefault(d, set()).update(here - {d})
    return {
        d: "kv_head" if d in alone else "query_head" for d, others in beside.items() if d in alone or others & alone
    }


def _parent(layers: Sequence[str]) -> str:
    """The module that holds several layers; of one layer, the layer itself."""
    if len(layers) == 1:
        return layers[0]
    parts = [layer.split("/") for layer in layers]
    common = []
    for level in zip(*parts, strict=False):
        if len(set(level)) > 1:
            break
        common.append(level[0])
    return "/".join(common) or layers[0]


def _kind(noted: set[str], makers: int) -> str:
    for role in _BY_ROLE:
        if role in noted:
            return role
    if "summed" in noted and makers > 1:
        return "stage"
    return "filter" if "filter" in noted else "neuron"
