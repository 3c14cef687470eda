"""How a killed job goes on: what is on disk is read, what is missing is made and then read.

A stage of a job that takes time writes its result to one file, or to one folder with a marker, and asks `done_or_make`
or `json_or_make` for it. The result appears whole when it is finished, so a job that is killed at any moment and
started again repeats only the stage, or the part of a stage, that it was in. What is returned is always what was read
from disk, so that a resumed job goes on with the same values, rounding included, as an uninterrupted one.

In the jobs of `mvp_jax.experiments`:

- `universal.learn`: the folder `universal/`, marker `model.json`, made by process 0 while the others wait (`first`);
- `few_shot_job.study_overlap`: the file `overlap.json`;
- `few_shot_job.compare`: a file `rows/METHOD-CHUNK.json` for each method and chunk of targets;
- `few_shot_job.choose_rates`, `sparsity_job.choose_rates`: a file in `rates/` for each method, factor and chunk;
- `sparsity_job.run`: a file `rows/CASE.json` for each method, sparsity, target and seed.

Two things are not of this kind, because a part of them counts: training, which continues from the last state in
`checkpoint.Checkpoints`, and a bank, which holds an entry for each task that is finished (`bank.has`).
"""

import os
import pathlib
from collections.abc import Callable
from typing import Any, TypeVar

from mvp_jax.parallel import processes
from mvp_jax.storage import files, records

T = TypeVar("T")


def done(where: str | os.PathLike[str], marker: str = "") -> bool:
    """Whether a result is there and complete.

    Args:
        where: the file or, with a marker, the folder; an address in a bucket too.
        marker: the file in a folder that is written last; empty for a file.

    >>> done("no/such/file.json")
    False
    """
    return files.complete(where, marker) if marker else files.exists(where)


def done_or_make(
    where: str | os.PathLike[str],
    make: Callable[[pathlib.Path], object],
    read: Callable[[pathlib.Path], T],
    *,
    marker: str = "",
    first: str = "",
) -> T:
    """Reads a result from disk, and makes it before if it is not there.

    Args:
        where: the file or, with a marker, the folder of the result; an address in a bucket too.
        make: called with a path on this machine, of the same name but hidden from readers, to which it writes the file
            or in whose empty folder it writes its files. What it wrote is moved to `where` when it returns; if it
            raises or the process is killed, nothing is there and the next call makes it anew.
        read: called with `where`; its value is returned.
        marker: the file in a folder that says that it is complete; empty for a file.
        first: a name for this place in the program, if all processes of a run come here and only process 0 is to make
            the result: the others wait for it, and then all read. Empty: this process makes it alone, as one does that
            has its own part of the work.

    Raises:
        ValueError: if `make` returns and has not written the file or the marker.
        RuntimeError: with `first`, if `make` failed in process 0 (`ValueError` if it raised one).

    >>> import tempfile
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "found.txt"
    >>> def make(path):
    ...     print("working")
    ...     _ = path.write_text("42")
    >>> for _ in range(2):
    ...     done_or_make(file, make, lambda path: int(path.read_text()))
    working
    42
    42
    """
    where = files.path(where)

    def work() -> None:
        if done(where, marker):
            return
        with files.replacing_folder(where, marker) if marker else files.replacing(where) as temporary:
            make(temporary)
            if not marker and not temporary.is_file():
                raise ValueError(f"{where} was to be made, but nothing was written to {temporary}; write it there")

    if first:
        processes.only_first(first, work)
    else:
        work()
    return read(where)


def json_or_make(where: str | os.PathLike[str], make: Callable[[], Any], *, first: str = "") -> Any:
    """Reads a JSON value from disk, and computes and writes it before if it is not there.

    Args:
        where: the file; an address in a bucket too.
        make: gives a value of dicts, lists, numbers, texts and arrays; what is not finite becomes `None`.
        first: as in `done_or_make`.

    Returns:
        The value as the file has it: arrays and tuples as lists, keys as texts.

    Raises:
        ValueError: if the file is not JSON.

    >>> import tempfile
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "rows.json"
    >>> json_or_make(file, lambda: [{"accuracy": 0.5}]), json_or_make(file, lambda: "not asked")
    ([{'accuracy': 0.5}], [{'accuracy': 0.5}])
    """
    return done_or_make(where, lambda path: records.write_json(path, make()), records.read_json, first=first)


__all__ = ["done", "done_or_make", "json_or_make"]
