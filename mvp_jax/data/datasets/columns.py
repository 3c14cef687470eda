"""Which columns of a table hold the texts and the labels: by their names, else by what stands in them."""

import dataclasses
import difflib
import re
from collections.abc import Sequence
from typing import Any

from mvp_jax.data.datasets.tables import DELIMITED, Table

PAIRS = (
    ("sentence1", "sentence2"),
    ("sentencea", "sentenceb"),
    ("question1", "question2"),
    ("premise", "hypothesis"),
    ("text1", "text2"),
    ("texta", "textb"),
    ("1string", "2string"),
    ("question", "sentence"),
    ("question", "answer"),
    ("query", "passage"),
    ("query", "document"),
)
"""Names of columns that are taken together as a pair of texts, in lower case and without other marks."""

TEXTS = (
    *("text", "texts", "sentence", "sentence1", "review", "reviewtext", "content", "body", "comment", "commenttext"),
    *("tweet", "message", "document", "utterance", "question", "query", "description", "abstract", "headline", "title"),
)
"""Names of columns that are taken for texts, those that are preferred first."""

LABELS = (
    *("label", "labels", "goldlabel", "class", "classes", "category", "sentiment", "target", "targets", "intent"),
    *("topic", "emotion", "polarity", "labeltext", "labelname", "isduplicate", "quality", "stars", "rating", "score"),
    *("similarity", "y", "output"),
)
"""Names of columns that are taken for labels, those that are preferred first."""

_FEW = 50  # different values that a column without a known name may have to be taken for classes


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableColumns:
    """The columns of a table that are read.

    Attributes:
        text: the column of the texts, the first ones of pairs.
        pair: the column of the second texts; `""`: there are single texts.
        label: the column of the labels.
    """

    text: str
    pair: str = ""
    label: str

    def named(self) -> dict[str, str]:
        """Returns the columns by their use; `pair` only if there is one.

        >>> TableColumns(text="review", label="stars").named()
        {'text': 'review', 'label': 'stars'}
        """
        return {use: name for use, name in dataclasses.asdict(self).items() if name}


def find(table: Table, text: str = "", pair: str = "", label: str = "") -> TableColumns:
    """Finds the columns of the texts and of the labels.

    What is not given is found by the names in `PAIRS`, `TEXTS` and `LABELS`; else the text is the column whose cells
    are the longest on average, and the label the only other column with few different values.

    Args:
        table: the table.
        text: the name of the column of the texts; `""`: it is found, and with it a second one if `pair` is `""` too.
        pair: the name of the column of the second texts; `""`: that of a known pair if there is one.
        label: the name of the column of the labels; `""`: it is found.

    Returns:
        The columns, which are all different.

    Raises:
        ValueError: for a name that the table has not (with the nearest), or if no column or several could be meant.

    >>> import pathlib
    >>> rows = {"id": ["1", "2", "3", "4"], "what": ["so good", "too bad", "all right", "no way"], "is": [*"0101"]}
    >>> find(Table(path=pathlib.Path("a.csv"), columns=rows, rows=[2, 3, 4, 5]))
    TableColumns(text='what', pair='', label='is')
    """
    given = {"text": text, "pair": pair, "label": label}
    missing = {use: name for use, name in given.items() if name and name not in table.columns}
    if missing:
        raise ValueError(f"{table.path} has no column {_near(missing, table.names)}; it has the columns {table.names}")
    named = [name for name in given.values() if name]
    if len(set(named)) < len(named):
        raise ValueError(f"{', '.join(f'{k}={v!r}' for k, v in given.items() if v)} name one column twice; give others")
    short = {_plain(name): name for name in reversed(table.names) if name not in named}
    if not text and not pair:
        both = next(((a, b) for a, b in PAIRS if a in short and b in short), None)
        if both:
            text, pair = short[both[0]], short[both[1]]
    if not text and not label:
        _check_header(table)
    taken = {text, pair, label}
    label = label or next((short[n] for n in LABELS if n in short and short[n] not in taken), "")
    text = text or next((short[n] for n in TEXTS if n in short and short[n] not in {pair, label}), "")
    text = text or _longest(table, [n for n in table.names if n not in (pair, label)])
    label = label or _fewest(table, [n for n in table.names if n not in (text, pair)])
    return TableColumns(text=text, pair=pair, label=label)


def _check_header(table: Table) -> None:
    """Refuses a table whose first row is an example, as far as that can be seen."""
    if not {*TEXTS, *LABELS}.isdisjoint(map(_plain, table.names)):
        return
    few = [name for name, cells in table.columns.items() if _kinds(cells) <= min(_FEW, len(table) / 2)]
    odd = [name for name in few if name in table.columns[name]]
    if odd and table.path.suffix.lower() in DELIMITED:
        raise ValueError(
            f"{table.path}: its first row {table.names} looks like an example, as {odd[0]!r} also stands under it; put "
            "a row with the names of the columns before it, or name the columns by text='COLUMN' and label='COLUMN'"
        )


def _near(missing: dict[str, str], names: Sequence[str]) -> str:
    found = []
    for use, name in missing.items():
        lower = {n.lower(): n for n in reversed(names)}
        near = [lower[n] for n in difflib.get_close_matches(name.lower(), lower, n=2, cutoff=0.5)]
        meant = f", did you mean {' or '.join(map(repr, near))}?" if near else ""
        found.append(f"{name!r} ({use}{meant})")
    return " and no column ".join(found)


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name.lower())


def _longest(table: Table, names: Sequence[str]) -> str:
    """Returns the column with the longest cells, none of which is a number or a list."""
    lengths = {
        name: sum(map(len, cells)) / len(cells)
        for name, cells in ((n, table.columns[n]) for n in names)
        if all(isinstance(cell, str) for cell in cells) and not all(map(is_number, cells))
    }
    if not lengths:
        json = str(table.path).lower().endswith((".json", ".jsonl"))
        form = "JSON is a list of objects, or an object in each line" if json else "a table has names in its first line"
        raise ValueError(
            f"{table.path}: no column of texts among {table.names}; name it by text='COLUMN' and the labels by "
            f"label='COLUMN' ({form})"
        )
    return max(lengths, key=lambda name: lengths[name])


def _fewest(table: Table, names: Sequence[str]) -> str:
    """Returns the one column with few different values."""
    kinds = {
        name: _kinds(cells)
        for name, cells in ((n, table.columns[n]) for n in names)
        if all(isinstance(cell, str) for cell in cells)
    }
    few = [name for name, count in kinds.items() if 2 <= count <= min(_FEW, len(table) / 2)]
    if len(few) == 1:
        return few[0]
    if len(names) == 1:  # what else could it be; whether its values will do is checked where they are read
        return names[0]
    why = f"{few} could all be the labels" if few else "no column looks like labels"
    raise ValueError(f"{table.path}: {why}; it has the columns {table.names}; name the right one by label='COLUMN'")


def _kinds(cells: Sequence[Any]) -> int:
    return len({cell if isinstance(cell, str) else repr(cell) for cell in cells})


def is_number(cell: str) -> bool:
    """Returns whether a cell holds a number, be it nan or inf.

    >>> [is_number(cell) for cell in ("3", " -1.5e3", "nan", "3 stars", "")]
    [True, True, True, False, False]
    """
    try:
        float(cell)
    except ValueError:
        return False
    return True
