"""Tables as people keep them: CSV, TSV, JSON lines or one JSON list, read whole and checked row by row."""

import csv
import dataclasses
import io
import json
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

from mvp_jax.storage import foreign_files

DELIMITED = (".csv", ".tsv")
"""The endings of files whose rows are lines of parted cells."""

OBJECTS = (".jsonl", ".ndjson", ".json")
"""The endings of files whose rows are JSON objects."""

ENDINGS = (*DELIMITED, *OBJECTS)
"""The endings of all files that are read as tables."""

_DELIMITERS = (",", ";", "\t")
_LOOKED_AT = 200  # rows by which the delimiter is found
_SHOWN = 6  # rows that a message names
_QUOTED = re.compile(r'(?:(?<=[\t\n])|\A)"(?:[^"]|"")*"(?=[\t\r\n]|\Z)')  # a cell of a TSV in quotation marks
_MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """The rows of a file, column by column.

    Attributes:
        path: the file.
        columns: the N cells of each column by its name. Cells are strings; JSON's numbers and truth values are written
            out, what is missing or null is `""`, and JSON's lists and objects stay.
        rows: where each row stands, such as the number of the line on which it begins.
        unit: what `rows` counts: `"line"`, or `"item"` of a JSON list.
    """

    path: pathlib.Path
    columns: dict[str, list[Any]]
    rows: Sequence[int]
    unit: str = "line"

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def names(self) -> list[str]:
        """The names of the columns, in the order of the file."""
        return list(self.columns)

    def where(self, indices: Iterable[int]) -> str:
        """Returns words that name rows in a message, of which the first few are named.

        Args:
            indices: the numbers of the rows, from 0.

        >>> Table(path=pathlib.Path("a.csv"), columns={}, rows=[2, 3, 5]).where([0, 2])
        'lines 2, 5'
        """
        return numbered(self.unit, [self.rows[i] for i in indices])


def numbered(unit: str, numbers: Sequence[int]) -> str:
    """Returns words for some numbered things, the first few by their numbers.

    >>> numbered("line", [3]), numbered("line", range(1, 10))
    ('line 3', 'lines 1, 2, 3, 4, 5, 6 and 3 more')
    """
    shown = ", ".join(str(n) for n in numbers[:_SHOWN])
    more = f" and {len(numbers) - _SHOWN} more" if len(numbers) > _SHOWN else ""
    return f"{unit}{'s' if len(numbers) > 1 else ''} {shown}{more}"


def counted(number: int, what: str) -> str:
    """Returns a number of things in words.

    >>> counted(1, "cell"), counted(3, "cell")
    ('1 cell', '3 cells')
    """
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def read(path: pathlib.Path) -> Table:
    r"""Reads a table.

    The first row of a CSV or TSV file holds the names of the columns. The cells of a CSV file are parted by `,`, `;` or
    tabs, whichever fits its first rows, and may be quoted as RFC 4180 says. In a TSV file, a `"` is a character like
    any other, as in the files of GLUE, unless all of them stand where quoting puts them. A `.json` file holds a list of
    objects or, like a `.jsonl` file, an object on each line. Empty lines are skipped.

    Args:
        path: the file, with one of `ENDINGS`.

    Returns:
        The table, with at least one row.

    Raises:
        ValueError: for a file that is empty, has no rows, is not UTF-8, holds NUL bytes, has two columns of one name,
            rows of another number of cells than its first row, quotation marks that do not close, or JSON that is no
            object; rows are named by their lines.

    >>> import tempfile
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "reviews.csv"
    >>> _ = file.write_text('review;label\n"fine; and\nlong";1\ndull;0\n')
    >>> table = read(file)
    >>> table.columns, table.rows
    ({'review': ['fine; and\nlong', 'dull'], 'label': ['1', '0']}, [2, 4])
    """
    content = _content(path)
    if path.suffix.lower() in OBJECTS:
        return _objects(path, content)
    return _delimited(path, content)


def _content(path: pathlib.Path) -> str:
    """Returns the text of a file, without the mark at its beginning that some programs write."""
    try:
        raw = foreign_files.plain_file(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}; see that it may be read") from error
    if not raw.strip():
        raise ValueError(f"{path} is empty; give a table with a row for each example")
    convert = 'save it as "CSV UTF-8", or convert it, for example by iconv -f {} -t UTF-8 OLD > NEW'.format
    if raw[:2] in _MARKS:
        raise ValueError(f"{path} is not UTF-8 but {_MARKS[raw[:2]]}; {convert(_MARKS[raw[:2]])}")
    if b"\0" in raw:
        at = raw.index(b"\0")
        raise ValueError(
            f"{path}, line {_line(raw, at)}: a NUL byte (byte {at}); the file is damaged, or no text: remove these "
            "bytes, or write it again"
        )
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        lines = raw.rstrip(b"\r\n").split(b"\n")
        wrong = sum(not _utf8(line) for line in lines)
        byte = raw[error.start : error.start + 1].hex().upper()
        raise ValueError(
            f"{path}, line {_line(raw, error.start)}: byte {error.start} (0x{byte}) is not UTF-8, which "
            f"{wrong} of {len(lines)} lines are not; {convert('WINDOWS-1252')}, or mend these lines if the others are "
            "UTF-8 already"
        ) from error


def _line(raw: bytes, at: int) -> int:
    return raw.count(b"\n", 0, at) + 1


def _utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _delimited(path: pathlib.Path, content: str) -> Table:
    """Reads rows of parted cells."""
    tsv = path.suffix.lower() == ".tsv"
    delimiter = "\t" if tsv else _delimiter(content)
    quoted = not tsv or _is_quoted(content)
    rows, lines, fault = _rows(content, delimiter, quoted)
    if fault and not rows:
        raise ValueError(f"{path}, {fault}")
    header = [name.strip() for name in rows[0]]
    names = [name or f"column {i}" for i, name in enumerate(header, 1)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f"{path}: several columns are called {twice!s:.200}; its first line is {header!s:.200}; give each its name"
        )
    wrong = [i for i, row in enumerate(rows) if len(row) != len(names)]
    if wrong:
        several = numbered("line", [lines[i] for i in wrong])
        counts = sorted({len(rows[i]) for i in wrong})
        hint = (
            "a tab or a line break within a text must become a blank"
            if not quoted
            else f"a text with {'a tab' if delimiter == chr(9) else repr(delimiter)} or a line break must stand in "
            'quotation marks ("...")'
        )
        fault = (
            f"{several}: {' or '.join(counted(n, 'cell') for n in counts[:4])}, not {len(names)} as in the first line; "
            f"{hint}{'; ' if fault else ''}{fault}"
        )
    if fault:
        raise ValueError(f"{path}, {fault}")
    if len(rows) == 1:
        raise ValueError(f"{path} has a first line {header!s:.300} and no rows under it; add a row for each example")
    return Table(
        path=path, columns=dict(zip(names, map(list, zip(*rows[1:], strict=True)), strict=True)), rows=lines[1:]
    )


def _rows(content: str, delimiter: str, quoted: bool) -> tuple[list[list[str]], list[int], str]:
    """Returns the rows that are not empty, the line on which each begins, and what is wrong with the quoting."""
    if not quoted:
        # Not str.splitlines, as there are other ends of lines within the texts.
        split = [(i, line.removesuffix("\r")) for i, line in enumerate(content.split("\n"), 1) if line.strip()]
        return [line.split(delimiter) for _, line in split], [i for i, _ in split], ""
    rows, lines, last, fault = [], [], 0, ""
    limit = csv.field_size_limit(len(content) + 1)  # texts of more than 131,072 characters
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter, strict=True)
    try:
        for row in reader:
            if len(row) > 1 or (row and row[0].strip()):
                rows.append(row)
                lines.append(last + 1)
            last = reader.line_num
    except csv.Error as error:
        fault = (
            f"the row that begins on line {last + 1} cannot be read ({error}); a quotation mark within a quoted text "
            "is written twice, and every quoted text ends in one"
        )
    finally:
        csv.field_size_limit(limit)
    return rows, lines, fault


def _delimiter(content: str) -> str:
    """Returns what parts the cells: what parts the first row at all, then the most rows into equally many."""
    head = content[: 2**16] if len(content) > 2**16 else content

    def fit(delimiter: str) -> tuple[bool, float, int]:
        rows = _rows(head, delimiter, True)[0][:_LOOKED_AT]
        cells = len(rows[0]) if rows else 0
        return cells > 1, sum(len(row) == cells for row in rows) / max(len(rows), 1), cells

    return max(_DELIMITERS, key=fit)


def _is_quoted(content: str) -> bool:
    """Returns whether the quotation marks of a TSV file enclose cells, and are no part of its texts."""
    if '"' not in content:
        return False
    found = _QUOTED.findall(content)
    if content.count('"') != sum(cell.count('"') for cell in found):
        return False
    # One sentence that happens to stand in quotation marks is no quoting; what could not be written otherwise is.
    needed = any('"' in cell[1:-1] or "\t" in cell or "\n" in cell for cell in found)
    return needed or len(found) >= content.rstrip().count("\n")


def _objects(path: pathlib.Path, content: str) -> Table:
    """Reads rows that are JSON objects."""
    parsed: list[Any] = []
    numbers: list[int] = []
    unit, broken = "line", []
    if content.lstrip().startswith("["):
        unit = "item"
        try:
            parsed = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not JSON: {error}; write one list of objects, or one object a line") from error
        numbers = list(range(1, len(parsed) + 1))
    else:
        for number, line in enumerate(content.split("\n"), 1):
            if line.strip():
                try:
                    parsed.append(json.loads(line))
                    numbers.append(number)
                except (ValueError, RecursionError):
                    broken.append(number)
    wrong = sorted([*broken, *(n for n, row in zip(numbers, parsed, strict=True) if not isinstance(row, dict))])
    if wrong:
        example = '{"text": "...", "label": "..."}'
        raise ValueError(f"{path}, {numbered(unit, wrong)}: no JSON object; give one for each example, like {example}")
    names = list(dict.fromkeys(str(name) for row in parsed for name in row))
    if not names:
        raise ValueError(f"{path} has no rows; give a JSON object for each example")
    stripped = [name.strip() for name in names]
    if len(set(stripped)) < len(names):
        raise ValueError(f"{path}: keys of one name in {names!s:.300}, but for blanks; give each column one name")
    columns = {s: [_cell(row.get(name)) for row in parsed] for name, s in zip(names, stripped, strict=True)}
    return Table(path=path, columns=columns, rows=numbers, unit=unit)


def _cell(value: Any) -> Any:
    if isinstance(value, str | list | dict):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)
