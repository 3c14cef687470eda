"""Settings by name, from a command line or a dict; a misspelt one, or of a wrong kind, is told in one line."""

import difflib
import importlib.util
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict

_KINDS = {int: "a whole number", float: "a number", bool: "True or False", str: "a text", tuple: "a tuple, as (1, 2)"}


def load(path: str | os.PathLike[str], arg: str | None = None) -> ConfigDict:
    """What `get_config(arg)` of a config file gives.

    Raises:
        ValueError: if there is no such file, or it is no config file.
    """
    file = pathlib.Path(path)
    if file.suffix != ".py" or not file.is_file():
        there = sorted(str(p) for p in (file.parent if file.parent.is_dir() else pathlib.Path("configs")).glob("*.py"))
        near = [p for p in there if difflib.get_close_matches(file.stem, [pathlib.Path(p).stem], cutoff=0.7)]
        hint = _choose(near or there, asked=bool(near)) if there else "give the path of a .py file"
        raise ValueError(f"no config file {str(path)!r}; {hint}")
    spec = importlib.util.spec_from_file_location(f"config_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ValueError(f"{str(path)!r} has no function get_config; give a config file, as configs/mvp.py")
    config: ConfigDict = module.get_config(arg) if arg is not None else module.get_config()
    return config


def changed(config: ConfigDict, values: Mapping[str, Any]) -> ConfigDict:
    """A copy of a config with other values.

    Args:
        config: left as it is.
        values: by path, as `{"train.steps": 3}`.

    Raises:
        ValueError: for a path that the config has not, with the nearest ones, or a value of another kind.

    >>> changed(ConfigDict({"train": {"steps": 1}}), {"train.steps": 3}).train.steps
    3
    >>> changed(ConfigDict({"train": {"steps": 1}}), {"train.stps": 3})
    Traceback (most recent call last):
    ValueError: the config has no 'train.stps'; did you mean 'train.steps'?
    """
    copy = ConfigDict(config.copy_and_resolve_references())
    for path, value in values.items():
        fault = misspelt(config, path) or unfit(config, path, value)
        if fault:
            raise ValueError(fault)
    with copy.unlocked():
        copy.update_from_flattened_dict(dict(values))
    return copy


def misspelt(config: ConfigDict, path: str) -> str | None:
    """What is wrong with a path, `None` if the config has it.

    >>> misspelt(ConfigDict({"train": {"steps": 1}}), "steps")
    "the config has no 'steps'; did you mean 'train.steps'?"
    """
    node: Any = config
    done: list[str] = []
    for part in path.split("."):
        name, *indices = re.split(r"\[(\d+)\]", part)
        if not isinstance(node, ConfigDict):
            return f"{'.'.join(done)!r} is {_shown(node)}, and has no {part!r}; set it as a whole"
        if name not in node:
            return f"the config has no {path!r}; {_nearest(config, node, done, path)}"
        node = node[name]
        done.append(part)
        for index in indices[::2]:
            if not isinstance(node, tuple | list) or int(index) >= len(node):
                return f"{path!r}: {name!r} is {_shown(node)}, which has no entry {index}"
            node = node[int(index)]
    return None


def _nearest(config: ConfigDict, node: ConfigDict, done: list[str], path: str) -> str:
    before = "".join(f"{d}." for d in done)
    name, _, after = path.removeprefix(before).partition(".")
    there = _paths(config)
    near = [before + n for n in difflib.get_close_matches(name, list(node), 2, 0.6)]
    near = [f"{n}.{after}" if f"{n}.{after}" in there else n for n in near]
    near += [p for p in there if p.rpartition(".")[2] == path.rpartition(".")[2]]  # the right name in a wrong place
    return _choose(list(dict.fromkeys(near))[:4] or [before + k for k in node], asked=bool(near))


def _paths(config: ConfigDict, before: str = "") -> list[str]:
    found = []
    for name, value in config.items():
        found.append(before + name)
        if isinstance(value, ConfigDict):
            found += _paths(value, f"{before}{name}.")
    return found


def _choose(names: Sequence[str], *, asked: bool = False) -> str:
    words = " or ".join(map(repr, names)) if asked else ", ".join(names)
    return f"did you mean {words}?" if asked else f"there are {words}"


def unfit(config: ConfigDict, path: str, value: Any) -> str | None:
    """Why a value cannot stand at a path that there is, `None` if it can.

    >>> unfit(ConfigDict({"steps": (0, 5)}), "steps", (0, "x"))
    "'steps' is a tuple of int, as (0, 5); got (0, 'x')"
    """
    if "[" in path:
        return None
    *parents, last = path.split(".")
    node: Any = config
    for name in parents:
        node = node[name]
    now, kind = node[last], node.get_type(last)
    if isinstance(now, ConfigDict):
        return None if isinstance(value, ConfigDict | dict) else _refusal(path, now, value)
    if value is None or kind is type(None):
        return None
    if not _is(value, kind):
        return f"{path!r} is {_KINDS.get(kind, kind.__name__)}, as {now!r}; got {value!r}"
    if isinstance(now, tuple) and now:
        kinds = sorted({type(v) for v in now}, key=str)
        if not all(any(_is(v, k) for k in kinds) for v in value):
            return f"{path!r} is a tuple of {' and '.join(k.__name__ for k in kinds)}, as {now!r}; got {value!r}"
    return None


def _is(value: Any, kind: type) -> bool:
    if kind is float:
        return isinstance(value, float | int) and not isinstance(value, bool)
    if kind in (tuple, list):
        return isinstance(value, tuple | list)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _shown(node: Any) -> str:
    return "a group of settings" if isinstance(node, ConfigDict) else repr(node)


def _refusal(path: str, group: ConfigDict, value: Any) -> str:
    return f"{path!r} is a group of settings, got {value!r}; set one of {', '.join(f'{path}.{k}' for k in group)}"


def parse(argv: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """The flags of the command line, for `app.run`; what is wrong with them ends the program with one line.

    Args:
        argv: the program's name and what follows; `--config=FILE.py[:argument]` comes before `--config.path=value`.
        values: the flags there are.

    Returns:
        What is left.
    """
    try:
        rest: list[str] = values(list(argv))
        fault = _unfitting(argv, values)
    except Exception as error:
        fault = explain(argv, error)
        if fault is None:
            raise
    if fault:
        raise SystemExit(f"error: {fault}")
    return rest


def explain(argv: Sequence[str], error: Exception) -> str | None:
    """What is wrong with a command line that could not be parsed; `None` if it is none of the user's faults."""
    file, given = _config(argv)
    if file is None:
        first = next((a for a in argv[1:] if re.match(r"--?(no)?config\.", a)), None)
        hint = f"{first.partition('=')[0]} comes after --config=FILE.py" if first else None
        return hint or (_one_line(error) if isinstance(error, flags.Error) else None)
    try:
        config = load(*file)
    except ValueError as refused:
        return str(refused) if ours(refused) else None
    for path, _ in given:
        if fault := misspelt(config, path):
            return fault
    if not isinstance(error, flags.Error):
        return None
    for path, value in given:
        if f"--config.{path}={value}:" in str(error):
            return _wrong(config, path, value)
    return _one_line(error)


def _wrong(config: ConfigDict, path: str, value: str) -> str:
    *parents, last = path.split(".")
    node: Any = config
    for name in parents:
        node = node[name]
    if "[" in last:
        return f"'{path}' cannot be {value!r}; set {last.partition('[')[0]!r} as a whole"
    now, kind = node[last], node.get_type(last)
    if isinstance(now, ConfigDict):
        return _refusal(path, now, value)
    return f"{path!r} is {_KINDS.get(kind, kind.__name__)}, as {now!r}; got {value!r}"


def _unfitting(argv: Sequence[str], flag_values: flags.FlagValues) -> str | None:
    """What a flag's own parser lets pass: texts among numbers, a config that could not be read."""
    file, given = _config(argv)
    if file is None:
        return None
    flag: Any = flag_values["config"]
    values = flag.override_values if given else {}
    config = load(*file)
    return next(filter(None, (unfit(config, path, value) for path, value in values.items())), None)


def _config(argv: Sequence[str]) -> tuple[tuple[str, str | None] | None, list[tuple[str, str]]]:
    """The file and argument that a command line names, and its paths and values."""
    file, given = None, []
    for i, word in enumerate(argv[1:], 1):
        name, equals, value = word.partition("=")
        if re.fullmatch(r"--?config", name) and (equals or i + 1 < len(argv)):
            path, colon, arg = (value if equals else argv[i + 1]).partition(":")
            file = (path, arg if colon else None)
        elif found := re.fullmatch(r"--?(no)?config\.(.+)", name):
            given.append((found[2], value))
    return file, given


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    missing = re.search(r"Flag (--\w+) must have a value other than None", text)
    return f"{missing[1]} is missing" if missing else text


def ours(error: BaseException) -> bool:
    """Whether the library itself refused: its messages need no traceback."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and "/mvp_jax/" in trace.tb_frame.f_code.co_filename.replace("\\", "/")


__all__ = ["changed", "explain", "load", "misspelt", "ours", "parse", "unfit"]
