"""Texts with labels from tables: one file, or one for each part."""

import pathlib
from collections.abc import Iterable, Mapping

import numpy as np

from mvp_jax.data.datasets import columns, tables, targets
from mvp_jax.data.datasets.columns import TableColumns
from mvp_jax.data.datasets.examples import GivenParts, Pool
from mvp_jax.data.datasets.tables import Table

PARTS: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "valid": ("valid", "val", "validation", "dev"),
    "test": ("test",),
}
"""What files, or folders, of the parts are called."""


def in_folder(root: pathlib.Path) -> dict[str, pathlib.Path]:
    """Returns the tables of the parts in a folder, such as `train.csv` and `test.csv`; none without one to train on.

    Raises:
        ValueError: for a folder that cannot be read, or if a part has several files.
    """
    found: dict[str, pathlib.Path] = {}
    try:
        files = sorted(p for p in root.iterdir() if p.is_file() and p.suffix.lower() in tables.ENDINGS)
    except OSError as error:
        raise ValueError(f"cannot read the folder {root}: {error.strerror}; see that it may be read") from error
    for part, stems in PARTS.items():
        own = [p for p in files if p.stem.lower() in stems]
        if len(own) > 1:
            raise ValueError(f"{root} has several {part} tables, {[p.name for p in own]}; leave one of them")
        if own:
            found[part] = own[0]
    return found if "train" in found else {}


def read(
    files: Mapping[str, pathlib.Path],
    name: str,
    *,
    text: str = "",
    pair: str = "",
    label: str = "",
    regression: bool | None = None,
) -> GivenParts:
    """Reads texts and labels from tables.

    Args:
        files: the table of each part that is given: `train`, and perhaps `valid` and `test`.
        name: the name of the data set in tables of results.
        text: the column of the texts; `""`: it is found.
        pair: the column of the second texts; `""`: it is found, if `text` is not given.
        label: the column of the labels; `""`: it is found.
        regression: whether labels are values to be estimated; `None`: if one of them is a fraction.

    Returns:
        The parts.

    Raises:
        ValueError: for tables that cannot be read, columns that are not there or cannot be told, empty cells, and
            labels that do not fit.
    """
    read_in = {part: tables.read(path) for part, path in files.items()}
    train = read_in["train"]
    chosen = columns.find(train, text, pair, label)
    _check_columns(read_in, chosen)
    problems = [problem for table in read_in.values() for problem in _problems(table, chosen)]
    if problems:
        raise ValueError("; ".join(problems) + "; fill these cells or remove the rows")
    labels = {part: [cell.strip() for cell in table.columns[chosen.label]] for part, table in read_in.items()}
    where = f"{train.path}, column {chosen.label!r}"
    found = targets.find(labels["train"], where, train.where, regression)
    if not found.class_names:
        for part, table in read_in.items():
            targets.check_finite(labels[part], f"{table.path}, column {chosen.label!r}", table.where, words=True)
    pools = {
        part: _pool(table, chosen, found.numbers(labels[part], str(table.path), table.where))
        for part, table in read_in.items()
    }
    return GivenParts(
        name=name,
        kind="texts",
        train=pools["train"],
        valid=pools.get("valid"),
        test=pools.get("test"),
        class_names=found.class_names,
        columns=chosen.named(),
        notes=(_chosen_note(train, chosen), *found.notes, *_blanks_note(read_in.values(), chosen)),
    )


def _check_columns(read_in: Mapping[str, Table], chosen: TableColumns) -> None:
    first = read_in["train"]
    for table in read_in.values():
        missing = [name for name in chosen.named().values() if name not in table.columns]
        if missing:
            raise ValueError(
                f"{table.path} lacks the columns {missing}, which are read from {first.path}; it has the columns "
                f"{table.names}; give both the same names, or name other columns by text, pair and label"
            )


def _problems(table: Table, chosen: TableColumns) -> list[str]:
    """Returns what is wrong with the cells that are read."""
    found = []
    for name in chosen.named().values():
        cells = table.columns[name]
        nested = [i for i, cell in enumerate(cells) if not isinstance(cell, str)]
        empty = [i for i, cell in enumerate(cells) if isinstance(cell, str) and not cell.strip()]
        odd = [i for i, cell in enumerate(cells) if isinstance(cell, str) and not _encodable(cell)]
        for wrong, what in (
            (nested, "a list or an object instead of a text or number"),
            (empty, "nothing"),
            (odd, "a NUL character or half of a surrogate pair"),
        ):
            if wrong:
                found.append(f"{table.path}, {table.where(wrong)}: {what} in column {name!r}")
    return found


def _encodable(cell: str) -> bool:
    if cell.isascii():
        return "\0" not in cell
    return "\0" not in cell and not any("\ud800" <= c <= "\udfff" for c in cell)


def _pool(table: Table, chosen: TableColumns, y: np.ndarray) -> Pool:
    first = table.columns[chosen.text]
    second = table.columns[chosen.pair] if chosen.pair else None
    keys = [cell.strip() for cell in first] if second is None else _both(first, second)
    return Pool(x=first, pairs=second, y=y, keys=keys, origin=table.path.name)


def _both(first: Iterable[str], second: Iterable[str]) -> list[tuple[str, str]]:
    return [(a.strip(), b.strip()) for a, b in zip(first, second, strict=True)]


def _chosen_note(table: Table, chosen: TableColumns) -> str:
    uses = {"text": "texts", "pair": "second texts", "label": "labels"}
    said = [f"the {uses[use]} are column {name!r}" for use, name in chosen.named().items()]
    rest = [name for name in table.names if name not in chosen.named().values()]
    unread = f"; not read: {', '.join(map(repr, rest[:8]))}" if rest else ""
    return f"Of {table.path.name} {', '.join(said)}{unread}."


def _blanks_note(read_in: Iterable[Table], chosen: TableColumns) -> list[str]:
    """Tells that names of classes became one when the blanks around them were left out."""
    written = {cell for table in read_in for cell in table.columns[chosen.label]}
    merged = sorted({cell.strip() for cell in written if cell != cell.strip()} & written)
    if not merged:
        return []
    return [f"Labels that differ only in blanks around them are one class: {targets.shown(merged)}."]
