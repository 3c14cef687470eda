"""Every method by name: the one table behind `METHODS`, the configs' `methods`, the tests' contract and the docs.

A new method is one file and one line of its family's table, `few_shot/lines.py` or `sparse/lines.py`.
"""

import difflib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Literal

from mvp_jax.methods import few_shot, sparse
from mvp_jax.methods.contract import Pruned
from mvp_jax.methods.few_shot import lines as few_shot_lines
from mvp_jax.methods.line import Line
from mvp_jax.methods.sparse import lines as sparse_lines
from mvp_jax.models.api import Model

ProblemKind = Literal["few_shot", "sparse"]

TABLES: dict[ProblemKind, dict[str, Line]] = {"few_shot": few_shot_lines.LINES, "sparse": sparse_lines.LINES}
"""The lines of each kind of problem, in the order in which tables show them."""

PROBLEMS: dict[ProblemKind, type] = {"few_shot": few_shot.FewShotProblem, "sparse": sparse.SparsityProblem}
"""What methods of each kind prune."""


class Methods(Mapping[str, Callable[..., Pruned]]):
    """Functions `(problem, settings, key) -> Pruned` by name, read from `TABLES` at every look-up."""

    def __getitem__(self, name: str) -> Callable[..., Pruned]:
        return line(name).run

    def __iter__(self) -> Iterator[str]:
        return (name for table in TABLES.values() for name in table)

    def __len__(self) -> int:
        return sum(map(len, TABLES.values()))

    def __contains__(self, name: object) -> bool:
        return any(name in table for table in TABLES.values())


METHODS = Methods()
"""Every method by name: `METHODS[name](problem, settings, key) -> Pruned`."""


class UnknownMethodError(KeyError, ValueError):
    """A name that no method has; the message gives the nearest names."""

    def __str__(self) -> str:
        return str(self.args[0])


def line(name: str, kind: ProblemKind | None = None) -> Line:
    """Returns the line of a method.

    Args:
        name: of the method.
        kind: of the problem; `None`: any.

    Raises:
        UnknownMethodError: (a KeyError and a ValueError) for another name, with the nearest names.

    >>> line("copy_nearest").summary
    'control: a copy of the nearest entry, mask and weights'
    >>> try:
    ...     line("mpv")
    ... except ValueError as error:
    ...     print(error)
    unknown method 'mpv'; did you mean 'mvp' or 'imp'? There are ...
    """
    tables = TABLES.values() if kind is None else [TABLES[kind]]
    for table in tables:
        if name in table:
            return table[name]
    known = [known for table in tables for known in table]
    near = difflib.get_close_matches(name, known, cutoff=0.5)
    guess = f"did you mean {_listed(near)}? " if near else ""
    others = [k for k in TABLES if kind is not None and k != kind and name in TABLES[k]]
    if others:
        guess = f"it is a method for {others[0]} problems. "
    raise UnknownMethodError(f"unknown method {name!r}; {guess}There are {', '.join(known)}")


def _listed(names: Iterable[str]) -> str:
    *first, last = map(repr, names)
    return f"{', '.join(first)} or {last}" if first else last


def suited(kind: ProblemKind, model: Model) -> list[str]:
    """Returns the names of all methods of a kind that can prune a model, in the order of the table."""
    return [name for name, found in TABLES[kind].items() if found.suits(model)]


def chosen(kind: ProblemKind, names: Iterable[str], model: Model) -> dict[str, Line]:
    """Returns the lines of the named methods; of all that suit the model if none is named.

    Args:
        kind: of the problem.
        names: of methods, in the order wanted.
        model: what is to be pruned.

    Raises:
        ValueError: for an unknown name, or a method that cannot prune the model.
    """
    found = {name: line(name, kind) for name in names or suited(kind, model)}
    for name, one in found.items():
        if not one.suits(model):
            raise ValueError(f"the method {name!r} does not suit this model: it {one.unsuited}; leave it out")
    return found


def to_markdown() -> str:
    """Returns the table of all methods, as the documentation shows it."""
    title = {"few_shot": "For a few-shot task, from a bank", "sparse": "To a sparsity"}
    parts = []
    for kind, table in TABLES.items():
        rows = [f"| `{name}` | {found.summary} |" for name, found in table.items()]
        parts.append("\n".join([f"## {title[kind]}", "", "| name | what it does |", "|---|---|", *rows]))
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    sys.stdout.write(to_markdown())
