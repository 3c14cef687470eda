"""The folder of a run: it is claimed for one config, so that a killed run goes on and another config is refused."""

import json
from pathlib import Path

from ml_collections import ConfigDict

from mvp_jax.storage import files, records

_WHERE = ("compilation_cache", "devices", "distributed", "multihost")
"""Settings that say where a run works, not what it makes."""


def claim(work: Path, config: ConfigDict) -> None:
    """Makes a folder this run's: writes the config to `config.json`, or checks that the one there is the same.

    Args:
        work: the folder of the run.
        config: the resolved config.

    Raises:
        ValueError: if the folder cannot be written, or holds a run of another config.
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
    """Checks that this process sees the claim of process 0, and has the same config.

    Args:
        work: the folder of the run.
        config: this process's resolved config.

    Raises:
        ValueError: if `config.json` is missing in the folder, or is of another config.
    """
    path = work / "config.json"
    if not files.exists(path) or path.read_text() != described(config):
        raise ValueError(
            f"workdir {str(work)!r} does not hold what process 0 wrote there; "
            "give all processes the same config, and a folder that all of them see"
        )


def described(config: ConfigDict) -> str:
    """Returns a config as JSON, without what says on which processes and devices it runs.

    As these are left out, a run may be continued on other ones.
    """
    found = config.copy_and_resolve_references()
    with found.unlocked():
        for name in _WHERE:
            if name in found:
                del found[name]
    return found.to_json_best_effort(indent=2, sort_keys=True)
