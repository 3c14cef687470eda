"""How densities of layers are laid out: a row for each layer or block, a column for each kind of array in it."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from mvp_jax.reports import layer_names
from mvp_jax.reports.model_report import LayerDensity

_MOST_COLUMNS = 8
_PLACE = re.compile(r"((?:(?:layer|stage|block) \d+(?:, )?)+)(.*)", re.DOTALL)


class DensityRow(NamedTuple):
    """A layer or block.

    Attributes:
        name: its name in words.
        cells: what is in each column; `None` where the layer has no such array.
        whole: whether the row is one array that belongs in no column, the only one in `cells`.
    """

    name: str
    cells: tuple[LayerDensity | None, ...]
    whole: bool


class DensityTable(NamedTuple):
    """All layers.

    Attributes:
        columns: the names of the columns; none: every row is whole.
        rows: the layers in the order in which they were given.
        counted: what is counted everywhere, such as `weights`; empty if the columns count different things.
    """

    columns: tuple[str, ...]
    rows: tuple[DensityRow, ...]
    counted: str


def arranged(layers: Sequence[LayerDensity]) -> DensityTable:
    """Returns the layers as a table; where their names make none, with a row for each of them.

    >>> table = arranged([LayerDensity(f"layers/{i}/{a}/kernel", 8, 2 + i, "weights")
    ...                   for i in range(2) for a in ("attention/query", "fc1")])
    >>> table.columns, [row.name for row in table.rows], table.rows[1].cells[0].kept
    (('attention query', 'MLP in'), ['layer 1', 'layer 2'], 3)
    """
    counted = {layer.what for layer in layers}
    one = counted.pop() if len(counted) == 1 else ""
    rows: dict[str, dict[str, LayerDensity]] = {}
    lone: set[str] = set()
    placed = 0
    for layer in layers:
        row, column = _place(layer, one)
        if not column:
            lone.add(row)
        rows.setdefault(row, {}).setdefault(column, layer)
        placed += 1
    columns = tuple(dict.fromkeys(c for cells in rows.values() for c in cells if c))
    mixed = any(len(rows[row]) > 1 for row in lone)
    lost = sum(map(len, rows.values())) < placed
    inside = [cells for row, cells in rows.items() if row not in lone]
    sparse = sum(map(len, inside)) < 0.5 * len(inside) * len(columns)
    if not 2 <= len(columns) <= _MOST_COLUMNS or len(inside) < 2 or mixed or lost or sparse:
        return DensityTable((), tuple(DensityRow(_named(x, one), (x,), True) for x in layers), one)
    laid = tuple(
        DensityRow(row, (cells[""],) if row in lone else tuple(cells.get(c) for c in columns), row in lone)
        for row, cells in rows.items()
    )
    return DensityTable(columns, laid, one)


def _place(layer: LayerDensity, counted: str) -> tuple[str, str]:
    """The row and the column of a layer; no column if its name is not inside a numbered layer or block."""
    name = layer_names.readable(layer.path)
    found = _PLACE.fullmatch(name)
    if found is None:
        return _named(layer, counted), ""
    row, column = found[1].removesuffix(", "), found[2]
    if not counted:
        column = f"{column}, {layer.what}" if column else layer.what
    return row, column or "all"


def _named(layer: LayerDensity, counted: str) -> str:
    return layer_names.readable(layer.path) + ("" if counted else f", {layer.what}")


__all__ = ["DensityRow", "DensityTable", "arranged"]
