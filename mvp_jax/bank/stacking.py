"""Arrays of several entries of a bank as one, for a vote."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from mvp_jax.bank import directory
from mvp_jax.bank.directory import BankEntry
from mvp_jax.core import trees


def ballots(bank_entries: Sequence[BankEntry]) -> dict[str, np.ndarray]:
    """Returns the units that `T` entries keep, stacked for a vote, `{group: bool[T, C]}`.

    Raises:
        ValueError: if there are no entries, one cannot be read, or their groups differ.
    """
    return stacked(bank_entries, "units")


def weights(bank_entries: Sequence[BankEntry]) -> Any:
    """Returns the variables of `T` entries, stacked: every leaf leads with `T`.

    Raises:
        ValueError: if there are no entries, one cannot be read, or their shapes differ.
    """
    return stacked(bank_entries, "variables")


def stacked(bank_entries: Sequence[BankEntry], name: str) -> Any:
    """The arrays that several entries hold under one name, stacked as NumPy arrays: every leaf leads with `T`.

    Args:
        bank_entries: `T` entries, at least one.
        name: a name given to `add`, such as `units`, `variables` or `saliency`.

    Raises:
        ValueError: if there are no entries, their trees or shapes differ, or one has nothing of this name.
    """
    if not bank_entries:
        raise ValueError("no entries to stack; give at least one")
    return stack(bank_entries, [directory.load(e, only=[name], check=False)[name] for e in bank_entries], name)


def stack(bank_entries: Sequence[BankEntry], found: Sequence[Any], name: str) -> Any:
    """Trees of several entries as one on the host, whose leaves lead with the axis of entries `T`.

    Args:
        bank_entries: whose trees they are; at least one.
        found: a tree of each, all of one structure and with the same shapes.
        name: what they are, for the errors.

    Raises:
        ValueError: naming the entries and the leaf, if trees or shapes differ.
    """
    first = trees.flatten(found[0])
    for entry, tree in zip(bank_entries[1:], found[1:], strict=True):
        trees.check_same_structure(found[0], tree, f"{name} of {bank_entries[0].task!r}", f"of {entry.task!r}")
        for path, leaf in trees.flatten(tree).items():
            if leaf.shape != first[path].shape:
                raise ValueError(
                    f"{name}/{path} is {first[path].shape} in {bank_entries[0].task!r} and {leaf.shape} in "
                    f"{entry.task!r}; entries stack if they have one ratio and one number of classes"
                )
    return jax.tree.map(lambda *leaves: np.stack(leaves), *found)
