"""Curves for TensorBoard: numbers in event files, written by `tensorboardX`, which needs no TensorFlow.

Show them with `tensorboard --logdir DIR/board`.
"""

import importlib.util
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np

from mvp_jax.storage import files


def check() -> None:
    """Raises `ValueError` if `tensorboardX`, which writes event files, is not installed."""
    if importlib.util.find_spec("tensorboardX") is None:
        raise ValueError("event files for TensorBoard need tensorboardX; pip install -e '.[tensorboard]'")


class Board:
    """A writer of one event file; a context manager.

    In a bucket, whose objects cannot be appended to, the whole file is copied again and again, at intervals such that
    copying takes at most a twentieth of the time. Each of several processes writes to a folder of its own in `folder`.

    Args:
        folder: of one run, in TensorBoard's sense; each `Board` adds a file.
        after: the step of the checkpoint from which a run is resumed: TensorBoard then ignores what earlier files say
            of later steps. `None` for a new run.

    Raises:
        ValueError: if `tensorboardX` is not installed, or the folder cannot be written.
    """

    def __init__(self, folder: str | os.PathLike[str], *, after: int | None = None) -> None:
        check()
        from tensorboardX import event_file_writer, proto

        self._proto: Any = proto
        self._folder = files.path(folder)
        if jax.process_count() > 1:
            self._folder = self._folder / f"process-{jax.process_index()}"
        former = files.listing(self._folder)
        self._local = tempfile.TemporaryDirectory() if files.is_remote(self._folder) else None
        here = Path(self._local.name) if self._local else self._folder
        with files.writing(here):
            here.mkdir(parents=True, exist_ok=True)
            # TensorBoard reads files in the order of their names, which begin with the second.
            self._writer = event_file_writer.EventsWriter(str(here / "events"), f".{len(former):06d}")
        self._copied_next = 0.0
        if after is not None and former:
            start = proto.event_pb2.SessionLog(status=proto.event_pb2.SessionLog.START)
            self._add(after + 1, session_log=start)

    def write(self, *, step: int, **values: Any) -> None:
        """Adds the values that are numbers under their names, those in a dict under `name/key`, and no others."""
        found = [self._proto.summary_pb2.Summary.Value(tag=t, simple_value=v) for t, v in _scalars(values)]
        if found:
            self._add(step, summary=self._proto.summary_pb2.Summary(value=found))

    def _add(self, step: int, **what: Any) -> None:
        self._writer.write_event(self._proto.event_pb2.Event(wall_time=time.time(), step=int(step), **what))
        self._writer.flush()
        if self._local and time.monotonic() >= self._copied_next:
            self.flush()

    def flush(self) -> None:
        """Returns when all that was written is in the folder."""
        if self._local:
            start = time.monotonic()
            for file in Path(self._local.name).iterdir():
                files.write_bytes(self._folder / file.name, file.read_bytes())
            self._copied_next = time.monotonic() + 20 * (time.monotonic() - start)

    def close(self) -> None:
        """Closes the file, when all that was written is in the folder."""
        self._writer.close()
        self.flush()
        if self._local:
            self._local.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _scalars(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, float]]:
    """Numbers by tag.

    >>> list(_scalars({"loss": np.float32(0.5), "of": {"a": 1}, "rates": np.ones(2), "note": "x", "none": None}))
    [('loss', 0.5), ('of/a', 1.0)]
    """
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _scalars(value, f"{before}{name}/")
        elif value is not None and np.ndim(value) == 0 and np.asarray(value).dtype.kind in "biuf":
            yield before + name, float(value)


def write_rows(rows: Sequence[Mapping[str, Any]], folder: str | os.PathLike[str], step: str) -> None:
    """Writes a table of results as curves, mean accuracy by split and method, and replaces what is in the folder.

    Args:
        rows: results (`records.Row`).
        folder: of the run, in TensorBoard's sense.
        step: the column to put on the axis: `steps`, or `ratio` or `sparsity` (in percent).
    """
    found: dict[tuple[int, str], list[float]] = {}
    for row in rows:
        view = "" if row.get("view", "whole") == "whole" else f" ({row['view']})"
        at = round(100 * row[step]) if step in ("ratio", "sparsity") else row[step]
        found.setdefault((at, f"{row['split']}/{row['method']}{view}"), []).append(float(row["accuracy"]))
    if files.exists(folder):
        files.remove(folder)
    with Board(folder) as board:
        for (at, tag), values in sorted(found.items()):
            board.write(step=at, **{tag: float(np.mean(values))})


__all__ = ["Board", "check", "write_rows"]
