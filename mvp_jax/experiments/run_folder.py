"""The folder of a run: it is claimed for one config, so that a killed run goes on and another config is refused.

A longer run may continue a shorter one, where that gives what one long run would have given:

- the job `mvp` with a higher last number in `steps`: pre-trained model and bank are those of the shorter run, and what
  was made of them is made again, as fine-tuned models are not kept. The shorter run's results move to `until-N/`.
- the job `sparsity` with more `sparsities` (above the first), `targets.seeds` or `methods`: every case stands alone, so
  those that are there are read, and the new ones are run.
- the job `bank` with more `bank.tasks`: entries that are there stay, the new ones are made.

A pre-training cannot be made longer: its learning rate falls over all of its steps, so that a longer one is another one
from the first step.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mvp_jax.methods import registry
from mvp_jax.storage import files, foreign_files, json_files, leftovers, locks, records

_WHERE = ("compilation_cache", "devices", "distributed", "multihost")
"""Settings that say where a run works, not what it makes."""

_LASTING = ("bank", "board", "config.json", "diverged", "overlap", "pretrain", "targets", "universal")
"""The beginnings of the names in the folder of a job `mvp` that do not depend on `steps`."""

_SINCE = {
    "data.held_out_faces": "",
    "gradual.events": None,
    "gradual.outer_momentum": 0.0,
    "gradual.rank": "magnitude",
    "gradual.souped_from": 0.0,
    "gradual.steps": None,
    "rates.factors": (),
    "rates.seeds": 1,
    "rates.targets": 3,
}
"""Settings that configs have not always had, with the values that are as if they were not there.

Those of `select` are not among them: a job `mvp` from before it judged on the test split at fewer numbers of steps, and
its rows and newer ones would make one table of unequal parts.
"""


def check(work: Path, config: ConfigDict, *, longer: bool = True) -> None:
    """Checks that a folder is free for a run, or holds this run or one that it continues; nothing is written.

    Args:
        work: the folder of the run.
        config: the resolved config.
        longer: whether a shorter run may be continued.

    Raises:
        ValueError: if the folder holds a run of another config, with the differences, or what is no run.
    """
    path = work / "config.json"
    if not files.exists(path):
        _check_empty(work)
        return
    there = json_files.read_json(path)
    old, new = _both(there, config)
    if "job" not in old:
        raise ValueError(
            f"workdir {str(work)!r} is not empty and holds no run (its config.json is of something else); choose an "
            "empty folder, or one that is not there yet"
        )
    differ = differences(old, new)
    if differ and not (longer and _continues(old, new)):
        hint = ""
        if old.get("job") == "mvp" and [path for path, _, _ in differ] == ["steps"]:
            hint = "; `steps` with a higher last number would continue it"
        if any(path == "pretrain.steps" for path, _, _ in differ):
            hint = "; the learning rate of a pre-training falls over all of its steps, so a longer one begins anew"
        raise ValueError(
            f"workdir {str(work)!r} holds a run of another config: {told(differ)}; continue it with the same config, "
            f"or choose an empty folder{hint}"
        )
    if differ and "steps" in [path for path, _, _ in differ] and files.is_remote(work):
        raise ValueError(
            f"a run in a bucket cannot be continued with other steps ({told(differ)}); choose a new folder"
        )


def _both(there: Mapping[str, Any], config: ConfigDict) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the settings of the run that is there and of a config by path, as if both were of today.

    Settings that came later have the values that change nothing, and all methods are `()` in either spelling.
    """
    old, new = flat(there), flat(json.loads(described(config)))
    old = {path: value for path, value in _SINCE.items() if path in new} | old
    for settings in (old, new):
        if settings.get("methods") == (registry.ALL,):
            settings["methods"] = ()
    return old, new


def check_sweep(work: Path) -> None:
    """Checks that a folder is free for a sweep, or holds one; nothing is written.

    Args:
        work: the folder of the sweep.

    Raises:
        ValueError: if the folder holds something else.
    """
    if not files.exists(work / "points"):
        _check_empty(work, "sweep (there is no folder 'points'")


def claim(work: Path, config: ConfigDict) -> None:
    """Makes a folder this run's: writes the config to `config.json`, or checks that the one there is the same.

    If the run continues a shorter one, what depends on its length is moved to a folder of its own in `work`.

    Args:
        work: the folder of the run.
        config: the resolved config.

    Raises:
        ValueError: if the folder cannot be written, holds a run of another config, or what is no run.
    """
    check(work, config)
    files.writable(work)
    path, text = work / "config.json", described(config)
    if files.exists(path):
        old = json_files.read_json(path)
        differ = differences(*_both(old, config))
        if differ:
            records.say(f"continuing a shorter run: {told(differ)}")
        if any(name == "steps" for name, _, _ in differ):
            _set_aside(work, old["steps"][-1])
    # Last: a run that is killed before is still the shorter one, whose missing rows are made again.
    records.write_text(path, text)


@contextlib.contextmanager
def locked(work: Path, config: ConfigDict) -> Iterator[None]:
    """A context in which a folder is this run's and no other run's; what killed runs left in it is removed first.

    Args:
        work: the folder of the run.
        config: the resolved config.

    Raises:
        ValueError: if another run is at work in the folder, `claim` refuses it, or at the end the folder has vanished.
    """
    check(work, config)  # before anything is written
    with locks.held(work) as alone:
        if alone:
            leftovers.sweep_all(work)
        claim(work, config)
        yield
        if not files.exists(work / "config.json"):
            raise ValueError(
                f"the folder {work} is not there any more: it was removed during the run, and what is in its place "
                "now is not complete; delete it and start again"
            )


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
    """Returns a config as JSON, without what says on which processes and devices it runs, and where programs are kept.

    As these are left out, a run may be continued on other ones.
    """
    found = config.copy_and_resolve_references()
    with found.unlocked():
        for name in _WHERE:
            if name in found:
                del found[name]
    return found.to_json_best_effort(indent=2, sort_keys=True)


def flat(tree: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Returns the leaves of a nested dict by path, lists as tuples.

    >>> flat({"a": {"b": [1, 2]}, "c": 2})
    {'a.b': (1, 2), 'c': 2}
    """
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= flat(value, f"{before}{name}.") if isinstance(value, Mapping) else {before + name: _tuple(value)}
    return found


def _tuple(value: Any) -> Any:
    return tuple(map(_tuple, value)) if isinstance(value, list) else value


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Returns the settings that differ, with the text of both values.

    Args:
        old: values by path; one may be missing in either.
        new: the same of the other config.

    >>> differences({"seed": 0, "steps": (0, 5)}, {"seed": 0, "steps": (0, 9), "chunk": 6})
    [('chunk', 'not set', '6'), ('steps', '(0, 5)', '(0, 9)')]
    """

    def text(values: Mapping[str, Any], path: str) -> str:
        return repr(values[path]) if path in values else "not set"

    paths = sorted(path for path in {**old, **new} if text(old, path) != text(new, path))
    return [(path, text(old, path), text(new, path)) for path in paths]


def told(differ: list[tuple[str, str, str]], most: int = 6) -> str:
    """Returns differences as one sentence.

    >>> told([("steps", "(0, 10)", "(0, 20)")])
    'steps is (0, 10) there and (0, 20) here'
    """
    shown = [foreign_files.told(f"{path} is {there} there and {here} here", 300) for path, there, here in differ[:most]]
    return ", ".join(shown) + (f", and {len(differ) - most} more settings differ" if len(differ) > most else "")


def _continues(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Returns whether a run of the new config goes on with what a run of the old one has made."""
    if old.get("job") != new.get("job"):
        return False

    def more(path: str) -> bool:
        a, b = old.get(path), new.get(path)
        if a is None or b is None:
            return False
        if path == "steps":
            return bool(a and b) and b[-1] > a[-1]
        if path in ("targets.seeds", "bank.tasks"):
            return bool(b > a)
        if path == "sparsities":  # the first is that at which the unpruned model is judged
            return bool(a and b) and a[0] == b[0] and set(a) <= set(b)
        return not b or (bool(a) and set(a) <= set(b))  # no methods: all of them

    growing = {
        "mvp": ("steps",),
        "sparsity": ("sparsities", "targets.seeds", "methods"),
        "bank": ("bank.tasks",),
    }
    may = growing.get(str(old.get("job")), ())
    return all(path in may and more(path) for path, _, _ in differences(old, new))


def _set_aside(work: Path, last: int) -> None:
    """Moves what a run of the job `mvp` made of its bank to a folder of its own, with the config."""
    moved = [name for name in files.listing(work) if not name.startswith((*_LASTING, "until-"))]
    number = 1
    while files.exists(aside := work / (f"until-{last}" if number == 1 else f"until-{last}-{number}")):
        number += 1
    records.write_text(aside / "config.json", (work / "config.json").read_text())
    for name in moved:
        os.replace(work / name, aside / name)


def _check_empty(work: Path, what: str = "run (there is no config.json") -> None:
    """Refuses a folder that holds something; hidden files do not count."""
    if not files.is_remote(work) and work.exists() and not work.is_dir():
        return  # told when it is written to
    names = files.listing(work)
    if names:
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        raise ValueError(
            f"workdir {str(work)!r} is not empty and holds no {what} in it, but {shown}); choose an empty folder, or "
            "one that is not there yet"
        )


__all__ = ["check", "check_sweep", "claim", "claimed", "described", "differences", "flat", "locked", "told"]
