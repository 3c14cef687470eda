"""Whether a bank is sound: every file is read, one entry at a time, and compared with what is said of it."""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from mvp_jax import models
from mvp_jax.bank import dense, directory
from mvp_jax.bank.directory import BankEntry
from mvp_jax.bank.manifest import Bank
from mvp_jax.core import trees, units
from mvp_jax.models.api import Model


def verify(bank: Bank) -> int:
    """Reads every entry, compares checksums, fingerprints and shapes, and returns the number of entries.

    Shapes are compared if the bank's description says what its pre-trained model is, and that model is read and
    compared if the bank holds it.

    Raises:
        ValueError: listing all entries that are damaged, made from another pre-trained model, or do not fit it.
    """
    count = len(directory.folders(bank))
    found = list(problems(bank))
    if found:
        raise ValueError(f"{len(found)} of {count} entries are not sound:\n" + "\n".join(found))
    return count


def problems(bank: Bank) -> Iterator[str]:
    """Everything that is wrong with a bank, a line each: at most one of each entry, and one of its pre-trained model.

    Args:
        bank: an open bank. It is read one entry at a time, whatever its size.
    """
    model = None
    try:
        if dense.has_model(bank):
            model = dense.load_model(bank)[0]
        elif bank.about.model:
            model = models.build(models.from_json(bank.about.model))
    except (ValueError, TypeError) as error:
        yield _line(f"{bank.path}: the pre-trained model: {error}")
    for folder in directory.folders(bank):
        try:
            entry = directory.entry_at(folder)
            arrays = directory.load(entry)
            if entry.fingerprint != bank.fingerprint:
                yield f"bank entry {folder}: made from another pre-trained model"
            elif model is not None:
                _fits(entry, arrays, model)
        except ValueError as error:
            yield _line(str(error))


def _fits(entry: BankEntry, arrays: dict[str, Any], model: Model) -> None:
    """Raises `ValueError` unless the arrays that `neighbours` reads are those of a model cut from the dense one."""
    kept = arrays.get("units")
    if kept is None:
        return
    have = {g.name: g for g in model.groups}
    unknown = sorted(set(kept) - set(have))
    if unknown:
        raise ValueError(f"bank entry {entry.path}: it prunes groups that the model lacks, {unknown[:5]}")
    try:
        for name in ("units", "saliency"):
            units.check(arrays.get(name, kept), [have[group] for group in kept])
    except ValueError as error:
        raise ValueError(f"bank entry {entry.path}: {error}") from error
    if "variables" in arrays:
        counts = tuple((name, int(np.count_nonzero(u))) for name, u in kept.items())
        wanted = _slim_shapes(model, counts, len(entry.classes))
        found = {path: leaf.shape for path, leaf in trees.flatten(arrays["variables"]).items()}
        wrong = sorted(p for p in {*found, *wanted} if found.get(p) != wanted.get(p))
        if wrong:
            first = wrong[0]
            raise ValueError(
                f"bank entry {entry.path}: {len(wrong)} arrays do not fit the slim model, such as {first}, which is "
                f"{found.get(first, 'missing')} and should be {wanted.get(first, 'absent')}"
            )


@functools.lru_cache(maxsize=64)
def _slim_shapes(model: Model, counts: tuple[tuple[str, int], ...], classes: int) -> dict[str, tuple[int, ...]]:
    slim = model.with_classes(classes).resize(dict(counts))
    return {p: leaf.shape for p, leaf in trees.flatten(jax.eval_shape(slim.init, jax.random.key(0))).items()}


def _line(text: str) -> str:
    return " ".join(text.split())
