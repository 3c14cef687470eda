"""Whether a job that was killed has left the same files as one that was left alone, and nothing else."""

import csv
import io
import json

TIMED = ("seconds",)
"""Columns and keys that say how long something took: they are not compared."""

APART = ("states", "board")
"""Folders that are not compared: states to continue from, of which the newest are kept and whose files have names made
of random numbers, and TensorBoard's events, which hold the time of day.
"""


def files_in(folder):
    """Every file below a folder that is compared, by its path there."""
    found = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    return {name: p for name, p in found.items() if not set(APART) & set(name.split("/"))}


def unpacked(objects):
    """The objects of the strict bucket's run as a folder of files."""
    folder = objects.with_name(f"{objects.name}-files")
    for found in objects.iterdir():
        if not found.name.startswith(".publishing"):  # an upload that was cut off, which is the bucket's to clear away
            path = folder / found.name.replace("~", "/").removeprefix("bucket/run/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(found.read_bytes())
    return folder


def left_behind(folder):
    """What a finished job must not leave: hidden names, half-written states, and states of finished methods."""
    names = [p.relative_to(folder).as_posix() for p in folder.rglob("*")]

    def foreign(name):
        last = name.rsplit("/", 1)[-1]
        return last.startswith(".") or "orbax-checkpoint-tmp" in last or last == "running"

    return sorted(name for name in names if foreign(name))


def differences(whole, killed):
    """The files that are in one folder alone, or differ in more than times."""
    ours, theirs = files_in(whole), files_in(killed)
    found = [f"{name} is {'missing' if name in ours else 'too much'}" for name in sorted(set(ours) ^ set(theirs))]
    both = sorted(set(ours) & set(theirs))
    return found + [f"{name} differs" for name in both if _content(ours[name], whole) != _content(theirs[name], killed)]


def _content(path, folder):
    found = path.read_bytes()
    if path.suffix == ".md":
        found = found.replace(b"\\_", b"_")
    found = found.replace(str(folder).encode(), b"the folder of the run")  # reports say where it is
    if path.suffix == ".csv":
        rows = csv.DictReader(io.StringIO(found.decode()))
        return [{k: v for k, v in row.items() if k not in TIMED} for row in rows]
    return _untimed(json.loads(found)) if path.suffix == ".json" else found


def _untimed(value):
    if isinstance(value, dict):
        return {k: _untimed(v) for k, v in value.items() if k not in TIMED}
    return [_untimed(v) for v in value] if isinstance(value, list) else value
