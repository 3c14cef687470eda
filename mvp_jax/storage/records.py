"""What a run writes while it goes on: JSON and text files, metrics line by line, tables of results, and progress.

Files are written whole or not at all, so that a reader never sees half a file.
"""

import contextlib
import csv
import io
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self, TextIO

import numpy as np
import rich.console
import rich.progress

from mvp_jax.storage import event_files, files, foreign_files

Row = Mapping[str, Any]
"""One result: `target`, `seed`, `method`, `ratio` or `sparsity`, `steps`, `split`, `accuracy` and, if known, its cost.

`ratio` is the share of the units that were removed, `sparsity` that of the weights; a row has one of the two.
"""

FIELDS = ("target", "seed", "method", "ratio", "steps", "split", "accuracy", "cost_examples", "params", "flops")
"""The columns of a table of results, in order, where units are pruned; where weights are, the fourth is `sparsity`.

The last three may be missing.
"""

_WORDS = ("target", "method", "split")


replacing = files.replacing
"""A context that gives a hidden path to write a file to; at its end the file is moved to its place."""


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a text file (UTF-8), whole or not at all; its folder is made if absent."""
    files.write_bytes(path, text.encode())


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes a value of dicts, lists, numbers, texts and arrays as strict JSON, whole or not at all.

    Numbers that are not finite become `null`.
    """
    write_text(path, json.dumps(_plain(value), indent=2, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """The value in a JSON file, as `write_json` writes it.

    Raises:
        ValueError: naming the file, if it is missing or not JSON.
    """
    try:
        return foreign_files.parsed(foreign_files.text(path), path)
    except ValueError as error:
        raise ValueError(f"{error}; delete it to have it made again") from error


class MetricsWriter:
    """A writer of metrics: a file of one JSON object a line, which a resumed run continues. A context manager.

    On opening, a last line that a kill cut short is dropped. `write` waits for the values to be computed; to keep the
    device busy, write those of an earlier step.

    In a bucket, whose objects cannot be appended to, the whole file is written again and again, at intervals such that
    this takes at most a twentieth of the time; `flush` writes it at once.

    Args:
        path: the file; continued if it exists, else made.
        after: the step of the checkpoint from which a run is resumed: lines of later steps are dropped, as they will
            be written again. `None`: all lines are kept.
        board: TensorBoard's event file that gets the same numbers.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with MetricsWriter(f"{folder}/metrics.jsonl") as metrics:
    ...         metrics.write(step=1, loss=0.5)
    ...         metrics.write(step=2, loss=float("nan"), rates=np.ones(2))
    ...     with MetricsWriter(f"{folder}/metrics.jsonl", after=1) as metrics:
    ...         metrics.write(step=2, loss=0.25)
    ...     read_metrics(f"{folder}/metrics.jsonl")
    [{'step': 1, 'loss': 0.5}, {'step': 2, 'loss': 0.25}]
    """

    def __init__(
        self, path: str | os.PathLike[str], *, after: int | None = None, board: event_files.Board | None = None
    ) -> None:
        self.path = files.path(path)
        self._board = board
        text = ""
        if files.exists(self.path):
            lines = read_metrics(self.path)
            strange = [i for i, line in enumerate(lines, 1) if type(line.get("step")) is not int]
            if after is not None and strange:
                raise ValueError(f"line {strange[0]} of {self.path} has no step; remove it, or start a new file")
            kept = [line for line in lines if after is None or line["step"] <= after]
            text = "".join(_line(line) for line in kept)
            if text != self.path.read_text(encoding="utf-8"):
                write_text(self.path, text)
        self._file: TextIO | None = None
        self._text, self._late, self._again = [text], False, 0.0
        if not files.is_remote(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a", encoding="utf-8")

    def write(self, *, step: int, **values: Any) -> None:
        """Adds a line with the step and values: numbers, arrays, texts, lists and dicts; not finite becomes `null`."""
        line = _line({"step": int(step), **values})
        if self._board is not None:
            self._board.write(step=step, **values)
        if self._file is not None:
            self._file.write(line)
            self._file.flush()
            return
        self._text.append(line)
        self._late = True
        if time.monotonic() >= self._again:
            self.flush()

    def flush(self) -> None:
        """Returns when all lines are in the file. Call it before the state of the same step is saved."""
        if self._board is not None:
            self._board.flush()
        if self._late:
            start = time.monotonic()
            self._text = ["".join(self._text)]
            write_text(self.path, self._text[0])
            self._late = False
            self._again = time.monotonic() + 20 * (time.monotonic() - start)

    def close(self) -> None:
        """Closes the file, when all lines are in it."""
        self.flush()
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines of a file of metrics as dicts, in order, without a last line that was cut short.

    Raises:
        ValueError: naming the line, if a line other than the last is no JSON object; naming the file, if it is no plain
            file or no text in UTF-8.
        OSError: if it cannot be read.
    """
    content = foreign_files.plain_file(path).read_bytes()  # an error of the disk stays one
    with foreign_files.named(path):
        lines = content.decode("utf-8").split("\n")
    found = []
    for number, line in enumerate(lines[:-1], 1):  # what follows the last line break was cut short
        try:
            found.append(foreign_files.parsed(line, f"line {number} of {path}"))
        except ValueError as error:
            raise ValueError(f"{error}; remove it, or start a new file") from error
        if not isinstance(found[-1], dict):
            raise ValueError(f"line {number} of {path} is no JSON object; remove it, or start a new file")
    return found


def _line(values: Mapping[str, Any]) -> str:
    return json.dumps(_plain(values), allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return _plain(np.asarray(value).tolist())


def write_csv(rows: Sequence[Row], path: str | os.PathLike[str]) -> None:
    """Writes results as a CSV table, whole or not at all: the columns of `FIELDS`, and after them any others.

    Args:
        rows: results; `cost_examples`, `params` and `flops` may be missing or `None`. All have a `ratio`, or all a
            `sparsity`.
        path: the file; its folder is made if absent.

    Raises:
        ValueError: naming the first row that lacks a column.
    """
    fields = tuple(share_name(rows) if f == "ratio" else f for f in FIELDS)
    for i, row in enumerate(rows):
        lacking = [f for f in fields[:-3] if row.get(f) is None]
        if lacking:
            raise ValueError(f"row {i} lacks {lacking}; a row needs {list(fields[:-3])}, and it has {sorted(row)}")
    extra = list(dict.fromkeys(k for row in rows for k in row if k not in fields))
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*fields, *extra])
        writer.writerows([_plain(row.get(f)) for f in (*fields, *extra)] for row in rows)


def read_csv(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The rows of a table of results, numbers as numbers and empty cells as `None`.

    Raises:
        ValueError: naming the file, if it cannot be read, lacks a column, or has a row with another number of cells or
            with text where a number belongs.
    """
    with foreign_files.named(path):
        rows = list(csv.reader(io.StringIO(foreign_files.text(path), newline="")))
    there = rows[0] if rows else []
    lacking = [f for f in FIELDS if f not in there and not (f == "ratio" and "sparsity" in there)]
    if lacking:
        raise ValueError(f"{path} lacks the columns {lacking}; is it a table of results?")
    if len(set(there)) < len(there):
        raise ValueError(f"{path} has a column twice among {foreign_files.told(there, 300)}; is it a table of results?")
    numbers = [k for k in ("seed", "ratio", "sparsity", "steps", "accuracy") if k in there]
    found = []
    for line, cells in enumerate(rows[1:], 2):
        if not cells:
            continue
        row = {k: v if k in _WORDS else _number(v) for k, v in zip(there, cells, strict=False)}
        wrong = [k for k in numbers if not _finite(row.get(k))]
        if len(cells) != len(there) or wrong:
            reason = f"no number as {wrong}" if wrong else f"{len(cells)} cells, not {len(there)}"
            raise ValueError(f"{path}, row {line}: {reason}; is it a table of results?")
        found.append(row)
    return found


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and -1e300 < value < 1e300  # a whole number may be more than a float


def _number(text: str) -> Any:
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text or None


@contextlib.contextmanager
def progress(
    total: int, description: str, *, stream: TextIO | None = None, interval: float = 10.0
) -> Iterator[Callable[..., None]]:
    """A context that shows how far a loop is and how long it will still take.

    On a terminal it shows a live bar; elsewhere it writes a line whenever another tenth is done or `interval` seconds
    have passed. How long it will still take is reckoned without the first step, which compiles. It never waits for a
    device: call `advance` where the host has waited already.

    Args:
        total: how many steps there are.
        description: what is done.
        stream: where to (default: standard error).
        interval: seconds between plain lines.

    Yields:
        `advance(n=1, note="")`: `n` more steps are done; the note stands behind the numbers.

    >>> with progress(20, "bank", stream=sys.stdout, interval=60) as advance:
    ...     for _ in range(4):
    ...         advance(5)
    bank: 5/20 (25 %), 0:00 elapsed
    bank: 10/20 (50 %), 0:00 elapsed
    bank: 15/20 (75 %), 0:00 elapsed
    bank: 20/20 (100 %), 0:00 elapsed
    """
    console = rich.console.Console(file=stream or sys.stderr, soft_wrap=True)
    if console.is_terminal:
        columns = (
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TimeElapsedColumn(),
            rich.progress.TextColumn("left"),
            rich.progress.TimeRemainingColumn(),
            rich.progress.TextColumn("{task.fields[note]}"),
        )
        with rich.progress.Progress(*columns, console=console) as bar:
            task = bar.add_task(description, total=total, note="")
            yield lambda n=1, note="": bar.update(task, advance=n, note=note)
        return

    start = last = time.monotonic()
    done = 0
    first: tuple[float, int] | None = None  # the first step compiles, so that the time left is reckoned without it

    def advance(n: int = 1, note: str = "") -> None:
        nonlocal done, last, first
        tenth, done = done * 10 // max(total, 1), done + n
        now = time.monotonic()
        if now - start >= 1:  # what is there at once was done by an earlier run
            before, first = first, first or (now, done)
        else:
            before = None
        if done * 10 // max(total, 1) == tenth and now - last < interval:
            return
        last = now
        text = f"{description}: {done}/{total} ({100 * done // max(total, 1)} %), {_clock(now - start)} elapsed"
        if before is not None and done > before[1]:
            left = (now - before[0]) * max(total - done, 0) / (done - before[1])
            text += f", {_clock(left)} left"
        console.file.write(f"{text}{', ' + note if note else ''}\n")
        console.file.flush()

    yield advance


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


def share_name(rows: Sequence[Row]) -> str:
    """Returns the column that says how much was removed: `sparsity` if weights were pruned, else `ratio`.

    >>> share_name([{"sparsity": 0.9}]), share_name([{"ratio": 0.5}])
    ('sparsity', 'ratio')
    """
    return "sparsity" if any("sparsity" in row for row in rows) else "ratio"


def share(row: Row) -> float:
    """Returns the share of the weights (`sparsity`) or of the units (`ratio`) that was removed, in [0, 1].

    >>> share({"sparsity": 0.9}), share({"ratio": 0.5})
    (0.9, 0.5)
    """
    return float(row["sparsity"] if "sparsity" in row else row["ratio"])


def by_seed(rows: Sequence[Row], value: str = "accuracy") -> np.ndarray:
    """The mean over targets for each seed, `float64[seeds]`, in the order of the seeds.

    Args:
        rows: results of one method, ratio or sparsity, number of steps and split.
        value: the column to average.

    >>> row = {"method": "mvp", "ratio": 0.5, "steps": 0, "split": "test"}
    >>> by_seed([{**row, "target": t, "seed": s, "accuracy": t + s} for t in (1, 3) for s in (0, 10)]).tolist()
    [2.0, 12.0]
    """
    found: dict[Any, list[float]] = {}
    for row in rows:
        found.setdefault(row["seed"], []).append(float(row[value]))
    return np.array([np.mean(v) for _, v in sorted(found.items())])


def say(text: str) -> None:
    """Writes a line to standard error, where progress is shown too."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def show(table: Any) -> None:
    """Prints a table of `rich` to standard output."""
    rich.console.Console().print(table)


__all__ = [
    "FIELDS",
    "MetricsWriter",
    "Row",
    "by_seed",
    "progress",
    "read_csv",
    "read_json",
    "read_metrics",
    "replacing",
    "say",
    "share",
    "share_name",
    "show",
    "write_csv",
    "write_json",
    "write_text",
]
