"""How much is left of a model when half of all units that can be cut are cut?

    pip install torch==2.13.0 torch-pruning
    python benchmarks/left.py [--before FILE] [--json FILE] [--cuts 3] [--quick]

Small models with random weights, one for each pattern that used to keep units from being cut, or still does. Half of
the units of every group that `graph.groups` finds are removed; groups that lie on the same entries as others before
them (the dimensions of heads that are halved already, the channels inside of halved groups) are left whole, so that
every axis is halved once. Printed is the share of the parameters that is left: with exact groups, and with those that
are approximate where they are allowed and there are some; beside them the largest difference of slim and masked outputs
over random cuts, relative to the masked output's largest entry. A quarter is the least that halving can leave of
kernels whose inputs and outputs are both halved.

`--json` writes the shares into a file, and `--before` reads such a file, for a column of what another version left: the
script runs with versions that know no `allow` too, found by `PYTHONPATH`. Where `torch` and `torch_pruning` are
installed, Torch-Pruning halves the same architectures in PyTorch.
"""

import argparse
import importlib.metadata
import importlib.util
import inspect
import json
import os
import platform
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from left_models import in_jax

from mvp_jax import compact, graph
from mvp_jax.core.units import Group

ALLOWED = ("norm", "positions", "kernel_standardisation")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", help="shares of another version, as --json wrote them")
    parser.add_argument("--json", help="where to write the shares")
    parser.add_argument("--cuts", type=int, default=3, help="random cuts for the comparison with masked models")
    parser.add_argument("--quick", action="store_true", help="only show that it runs")
    args = parser.parse_args()
    models = in_jax.MODELS[::5] if args.quick else in_jax.MODELS
    before: dict[str, Any] = {}
    if args.before:
        with open(args.before) as file:
            before = json.load(file)
    torch = importlib.util.find_spec("torch") and importlib.util.find_spec("torch_pruning")
    knows = "allow" in inspect.signature(graph.groups).parameters
    print(
        f"jax {jax.__version__} on {jax.devices()[0].device_kind}, {os.cpu_count()} CPU cores, "
        f"Python {platform.python_version()}" + (f", {_versions()}" if torch else ", no Torch-Pruning")
    )
    print("| pattern | before | left | slim - masked | left, approximate | allowed | Torch-Pruning |")
    print("|---|---|---|---|---|---|---|")
    found = {}
    for make in models:
        model, name = make(), make.__name__
        exact = graph.groups(model.apply, model.variables, *model.inputs)
        share, ways, allowed = left(model, exact), "", None
        apart = difference(model, exact, args.cuts)
        if knows:
            more = graph.groups(model.apply, model.variables, *model.inputs, allow=ALLOWED)
            ways = ", ".join(sorted({way for g in more for way in g.approximate}))
            allowed = left(model, more) if ways else None
        other = against_torch(name, model) if torch else None
        found[name] = {"left": share, "approximate": allowed, "torch": other}
        cells = [before.get(name, {}).get("left"), share, apart, allowed, ways, other]
        print(f"| {model.pattern} | " + " | ".join(map(shown, cells)) + " |", flush=True)
    if args.json:
        with open(args.json, "w") as file:
            json.dump(found, file, indent=1)


def shown(cell: Any) -> str:
    if cell is None:
        return ""
    return cell if isinstance(cell, str) else f"{cell:.2f}"


def halves(groups: Sequence[Group]) -> dict[str, np.ndarray]:
    """Every second unit of each group, but all of groups that only have entries of groups before them."""
    taken: dict[tuple[str, int], set[int]] = {}
    units = {}
    for g in groups:
        entries = {(s.path, s.axis): set(s.index(g.size).ravel().tolist()) for s in g.slots if s.scored}
        again = all(where <= taken.get(at, set()) for at, where in entries.items())
        units[g.name] = np.ones(g.size, bool) if again else np.arange(g.size) % 2 == 0
        for at, where in entries.items():
            taken[at] = taken.get(at, set()) | where
    return units


def left(model: in_jax.Model, groups: Sequence[Group]) -> float:
    """The share of the parameters that is left."""
    if not groups:
        return 1.0
    _, small = compact.slim(model.apply, model.variables, groups, halves(groups), *model.inputs)
    return count(small) / count(model.variables)


def count(variables: Any) -> int:
    """How many parameters there are; a cache is none."""
    return sum(np.size(leaf) for leaf in jax.tree.leaves(variables.get("params", variables)))


def difference(model: in_jax.Model, groups: Sequence[Group], cuts: int) -> str:
    """The largest difference of slim and masked outputs over random cuts."""
    if not groups:
        return ""
    key = jax.random.key(0)
    seen = compact.verify(model.apply, model.variables, groups, *map(jnp.asarray, model.inputs), key=key, cuts=cuts)
    assert min(seen.changes) > 0
    return f"{max(seen.differences):.0e}"


def _versions() -> str:
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "torch-pruning"))


def against_torch(name: str, model: in_jax.Model) -> float | None:
    """The share that Torch-Pruning leaves of the same architecture; `None` if there is none in PyTorch."""
    from left_models import in_torch

    if name not in in_torch.MODELS:
        return None
    dense, small = in_torch.left(name)
    assert dense == count(model.variables), (name, dense, count(model.variables))
    return small / dense


if __name__ == "__main__":
    main()
