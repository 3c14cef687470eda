"""Settings by name, from a command line or a dict; a misspelt name or a value of a wrong type gives a one-line error.

`ml_collections` parses the flags, locks the config and checks types. This file adds that every name is checked before
anything is parsed, that the nearest names are looked for in the whole config (`ml_collections` looks only beside the
misspelt one), that the types in a tuple are checked, and that an error ends the program with one line in the place of a
traceback.
"""

import difflib
import importlib.util
import os
import pathlib
import re
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict
from ml_collections.config_flags import config_path

from mvp_jax.experiments import help_text

_HELP = ("--help", "-help", "-h", "--h", "-?", "--helpshort", "--helpfull")


def load(path: str | os.PathLike[str], arg: str | None = None) -> ConfigDict:
    """Returns the config that `get_config(arg)` of a config file makes.

    Args:
        path: the file, which ends in `.py`.
        arg: what stands after the colon of `--config=FILE.py:arg`; `None`: `get_config` is called without argument.

    Raises:
        ValueError: if there is no such file (the message gives the nearest ones), or it has no function `get_config`.
    """
    file = pathlib.Path(path)
    if file.suffix != ".py" or not file.is_file():
        folder = file.parent if file.parent.is_dir() else pathlib.Path("configs")
        there = sorted(str(p) for p in folder.glob("*.py"))
        near = [p for p in there if difflib.get_close_matches(file.stem, [pathlib.Path(p).stem], cutoff=0.7)]
        raise ValueError(f"no config file {str(path)!r}; {_hint(near, there) if there else 'give the path of one'}")
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
    """Returns a copy of a config with other values.

    Args:
        config: any config; it is not changed.
        values: the new values by path, such as `{"train.steps": 3}`.

    Raises:
        ValueError: for a path that the config does not have (the message gives the nearest ones), or a value of another
            type.

    >>> changed(ConfigDict({"train": {"steps": 1}}), {"train.steps": 3}).train.steps
    3
    >>> changed(ConfigDict({"train": {"steps": 1}}), {"train.stps": 3})
    Traceback (most recent call last):
    ValueError: the config has no 'train.stps'; did you mean 'train.steps'?
    """
    copy = ConfigDict(config.copy_and_resolve_references())
    for path, value in values.items():
        _check_path(config, path)
        _check_value(config, path, value)
        try:
            copy.update_from_flattened_dict({path: value})
        except TypeError as error:
            now, kind = config_path.get_value(path, config), config_path.get_type(path, config)
            group = f"; set one of {', '.join(_paths(now, f'{path}.'))}" if isinstance(now, ConfigDict) else ""
            shown = "a group of settings" if group else f"of type {kind.__name__}, as {now!r}"
            raise ValueError(f"{path!r} is {shown}; got {value!r}{group}") from error
    return copy


def parse(argv: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Parses the flags of a command line, as the `flags_parser` of `absl.app.run`; an error is told in one line.

    With `--help` among the words, the settings of the config file are printed with the values that the other words give
    them, or without a config file what there is to choose from.

    Args:
        argv: the program's name and the words that follow: `--config=FILE.py[:argument]` and `--config.path=value`.
        values: the flags that the program defines.

    Returns:
        The program's name, and the words that are no flags.

    Raises:
        SystemExit: for anything wrong with the flags, with one line that says what; for a misspelt name it gives the
            nearest ones. With status 0 when help was printed.
    """
    asked = any(word in _HELP for word in argv[1:])
    argv = [word for word in argv if word not in _HELP]
    try:
        file, paths = _config(argv)
        if asked and not file:
            _print(help_text.of_files(width=_width()))
        if len(argv) == 1:
            raise flags.Error("no config file is given; --help says which there are, and how a job is run")
        config = load(*file) if file else None
        for path in paths:
            if config is None:
                raise flags.Error(f"--config.{path} needs --config=FILE.py")
            _check_path(config, path)
        if asked and "workdir" in values:
            argv = [argv[0], "--workdir=none", *argv[1:]]  # a flag that a run needs, and help does not
        rest: list[str] = values(list(argv))
        flag: Any = values["config"] if paths else None
        for path, value in flag.override_values.items() if paths else ():
            _check_value(config, path, value)
        if asked and file:
            _print(help_text.of_settings(values["config"].value, file[0], arg=file[1], width=_width()))
        return rest
    except (flags.Error, ValueError) as error:
        if isinstance(error, flags.Error) or ours(error):
            raise SystemExit(f"error: {' '.join(str(error).split())}") from error
        raise


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    raise SystemExit(0)


def _width() -> int:
    return max(60, min(shutil.get_terminal_size((120, 24)).columns, 120))


def ours(error: BaseException) -> bool:
    """Returns whether an error was raised by this library's own code, whose messages need no traceback."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and "/mvp_jax/" in trace.tb_frame.f_code.co_filename.replace("\\", "/")


def _config(argv: Sequence[str]) -> tuple[tuple[str, str | None] | None, list[str]]:
    """Returns the config file and its argument (`None` if there is no file), and the paths that a command line sets."""
    file, paths = None, []
    # The second list is longer if there are no words.
    for word, following in zip(argv[1:], [*argv[2:], ""], strict=False):
        name, equals, value = word.partition("=")
        if re.fullmatch(r"--?config", name) and (equals or following):
            path, colon, arg = (value if equals else following).partition(":")
            file = (path, arg if colon else None)
        elif found := re.fullmatch(r"--?(no)?config\.(.+)", name):
            paths.append(found[2])
    return file, paths


def _check_path(config: ConfigDict, path: str) -> None:
    known = list(_paths(config))
    plain = re.sub(r"\[\d+\]", "", path)
    if plain not in known:
        near = difflib.get_close_matches(plain, known, 3, 0.75)
        near += [
            p for p in known if p.rpartition(".")[2] == plain.rpartition(".")[2]
        ]  # the right name in a wrong place
        raise ValueError(f"the config has no {path!r}; {_hint(list(dict.fromkeys(near))[:4], list(config))}")
    try:
        config_path.get_value(path, config)
    except (IndexError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"the config has no {path!r}; set {plain!r} as a whole") from error


def _check_value(config: Any, path: str, value: Any) -> None:
    """Refuses what `ml_collections` accepts: `True` for a number, and types that a tuple does not have now."""
    now = config_path.get_value(path, config)
    if isinstance(now, tuple) and isinstance(value, tuple | list):
        if now and not all(any(_fits(v, n) for n in now) for v in value):
            kinds = " and ".join(sorted({type(n).__name__ for n in now}))
            raise ValueError(f"{path!r} is a tuple of {kinds}, as {now!r}; got {value!r}")
    elif isinstance(value, bool) and isinstance(now, int | float) and not isinstance(now, bool):
        raise ValueError(f"{path!r} is of type {type(now).__name__}, as {now!r}; got {value!r}")


def _fits(value: Any, now: Any) -> bool:
    kinds = {float: (int, float), tuple: (tuple, list), list: (tuple, list)}.get(type(now), (type(now),))
    return isinstance(value, kinds) and isinstance(value, bool) == isinstance(now, bool)


def _paths(config: ConfigDict, before: str = "") -> Iterable[str]:
    """Yields the paths of all settings and groups of settings."""
    for name, value in config.items():
        yield before + name
        if isinstance(value, ConfigDict):
            yield from _paths(value, f"{before}{name}.")


def _hint(near: Sequence[str], there: Sequence[str]) -> str:
    return f"did you mean {' or '.join(map(repr, near))}?" if near else f"there are {', '.join(there)}"


__all__ = ["changed", "load", "ours", "parse"]
