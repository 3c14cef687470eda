"""The folder of a run: claimed for one config, so that a killed run goes on and a run of another config is refused."""

import json
from pathlib import Path

from ml_collections import ConfigDict

from mvp_jax.storage import files, records


def claim(work: Path, config: ConfigDict) -> None:
    """Makes the folder this run's: writable, and of the same config if it is continued.

    Raises:
        ValueError: if it cannot be written, or holds a run of another config.
    """
    text = described(config)
    files.writable(work)
    path = work / "config.json"
    if files.exists(path) and path.read_text() != text:
        old, new = json.loads(path.read_text()), json.loads(text)
        differ = sorted(k for k in {**old, **new} if old.get(k) != new.get(k))
        raise ValueError(
            f"workdir {str(work)!r} holds a run of another config (they differ in {differ}); "
            "continue it with the same config, or choose an empty folder"
        )
    records.write_text(path, text)


def claimed(work: Path, config: ConfigDict) -> None:
    """Raises `ValueError` unless process 0's claim is seen here, and is of the same config."""
    path = work / "config.json"
    if not files.exists(path) or path.read_text() != described(config):
        raise ValueError(
            f"workdir {str(work)!r} does not hold what process 0 wrote there; "
            "give all processes the same config, and a folder that all of them see"
        )


def described(config: ConfigDict) -> str:
    """What is computed, as JSON; not where, so that a run may be continued by other processes."""
    found = config.copy_and_resolve_references()
    with found.unlocked():
        del found.multihost, found.distributed, found.devices
    return found.to_json_best_effort(indent=2, sort_keys=True)
