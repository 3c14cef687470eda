"""Every method by name: the table behind `METHODS`, the configs' `methods`, the contract tests and the docs.

To add a method, write it in a new file and add one line to the table of its family, which is `few_shot/lines.py` or
`sparse/lines.py`.
"""

import difflib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Literal

from mvp_jax.methods.contract import Pruned
from mvp_jax.methods.few_shot import lines as few_shot_lines
from mvp_jax.methods.line import ComparisonRole, Line
from mvp_jax.methods.sparse import lines as sparse_lines
from mvp_jax.models.api import Model

ProblemKind = Literal["few_shot", "sparse"]

TABLES: dict[ProblemKind, dict[str, Line]] = {"few_shot": few_shot_lines.LINES, "sparse": sparse_lines.LINES}
"""The methods of each kind of problem, `{kind: {name: line}}`, in the order in which tables show them."""


ALL = "all"
"""The name that stands, in a list of its own, for all methods that can prune the model."""


class Methods(Mapping[str, Callable[..., Pruned]]):
    """A mapping from the names of methods to functions `(problem, settings, key) -> Pruned`.

    It reads `TABLES` at every look-up, so that a method that is added later is found. An unknown name raises
    `UnknownMethodError`.
    """

    def __getitem__(self, name: str) -> Callable[..., Pruned]:
        return line(name).run

    def __iter__(self) -> Iterator[str]:
        return (name for table in TABLES.values() for name in table)

    def __len__(self) -> int:
        return sum(map(len, TABLES.values()))

    def __contains__(self, name: object) -> bool:
        return any(name in table for table in TABLES.values())


METHODS = Methods()
"""Every method by name; `METHODS[name](problem, settings, key)` returns a `Pruned`."""


class UnknownMethodError(KeyError, ValueError):
    """Raised for a name that no method has; the message gives the nearest names and all that there are."""

    def __str__(self) -> str:
        return str(self.args[0])


def line(name: str, kind: ProblemKind | None = None) -> Line:
    """Returns what the registry holds of a method: the function, how its settings are made, and what it needs.

    Args:
        name: the method's name.
        kind: the kind of problem that the method must be for; `None`: either kind.

    Raises:
        UnknownMethodError: (a KeyError and a ValueError) if no method of the kind has this name; the message gives the
            nearest names.

    >>> line("copy_nearest").summary
    'control: a copy of the nearest entry, mask and weights'
    >>> try:
    ...     line("mpv")
    ... except ValueError as error:
    ...     print(error)
    unknown method 'mpv'; did you mean 'mvp' or 'imp'? There are ...
    """
    tables = _tables(kind)
    for table in tables:
        if name in table:
            return table[name]
    known = [known for table in tables for known in table]
    near = difflib.get_close_matches(str(name).lower(), known, cutoff=0.5)
    guess = f"did you mean {_listed(near)}? " if near else ""
    others = [k for k in TABLES if kind is not None and k != kind and name in TABLES[k]]
    if others:
        guess = f"it is a method for {others[0]} problems. "
    raise UnknownMethodError(f"unknown method {name!r}; {guess}There are {', '.join(known)}")


def _listed(names: Iterable[str]) -> str:
    *first, last = map(repr, names)
    return f"{', '.join(first)} or {last}" if first else last


def suited(kind: ProblemKind, model: Model) -> list[str]:
    """Returns the names of the methods that can prune a model, in the order of their table.

    Args:
        kind: the kind of problem that the methods are for.
        model: the model to be pruned.
    """
    return [name for name, found in TABLES[kind].items() if found.suits(model)]


def chosen(kind: ProblemKind, names: Iterable[str], model: Model) -> dict[str, Line]:
    """Returns the registry's lines of the named methods, by name and in the order named.

    Args:
        kind: the kind of problem that the methods are for.
        names: the names of the methods; `all` alone, or none: all that can prune the model are chosen.
        model: the model to be pruned.

    Raises:
        ValueError: for a name that no method of the kind has, `all` beside others, or a method that cannot prune the
            model.
    """
    names = tuple(names)
    if ALL in names:
        if len(names) > 1:
            raise ValueError(f"methods are {list(names)}; give {ALL!r} alone, or the names of the methods")
        names = ()
    found = {name: line(name, kind) for name in names or suited(kind, model)}
    for name, one in found.items():
        if not one.suits(model):
            raise ValueError(f"the method {name!r} does not suit this model: it {one.unsuited}; leave it out")
    return found


def titles(kind: ProblemKind | None = None) -> dict[str, str]:
    """Returns the title of every method, `{name: title}`: how tables and pictures call it.

    Args:
        kind: the kind of problem that the methods are for; `None`: both kinds.

    >>> titles()["own_mask_mean_weights"]
    'own units, mean weights'
    """
    return {name: found.title for table in _tables(kind) for name, found in table.items()}


def roles(kind: ProblemKind | None = None) -> dict[str, ComparisonRole]:
    """Returns what every method is in a comparison, `{name: role}`, as `Line` describes it.

    Args:
        kind: the kind of problem that the methods are for; `None`: both kinds.

    >>> roles()["copy_nearest"]
    'control'
    """
    return {name: found.role for table in _tables(kind) for name, found in table.items()}


def _tables(kind: ProblemKind | None) -> list[dict[str, Line]]:
    return list(TABLES.values()) if kind is None else [TABLES[kind]]


def to_markdown() -> str:
    """Returns the names, titles and summaries of all methods as Markdown: a table for each kind of problem."""
    title = {"few_shot": "For a few-shot task, from a bank", "sparse": "To a sparsity"}
    parts = []
    for kind, table in TABLES.items():
        rows = [f"| `{name}` | {found.title} | {found.summary} |" for name, found in table.items()]
        parts.append(
            "\n".join(
                [f"## {title[kind]}", "", "| name | in tables and pictures | what it does |", "|---|---|---|", *rows]
            )
        )
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    sys.stdout.write(to_markdown())
