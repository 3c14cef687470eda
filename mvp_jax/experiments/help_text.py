"""What `--help` prints: which config files there are, or the settings of one with their values and what they mean."""

import ast
import os
import pathlib
import textwrap
from collections.abc import Iterator

from ml_collections import ConfigDict

from mvp_jax.experiments.descriptions import SETTINGS

USAGE = "python -m mvp_jax.main --config=FILE.py[:ARGUMENT] --workdir=DIR [--config.SETTING=VALUE ...]"
"""How the command is called."""

_COLUMN = 40
"""The column in which the sentences begin; a longer setting has its sentence on the next line."""


def of_files(folder: str | os.PathLike[str] = "configs", width: int = 100) -> str:
    """Returns how the command is called, and the first line of the docstring of every config file in a folder.

    The files are read, not executed.

    Args:
        folder: the folder of the config files.
        width: the number of characters in a line.
    """
    lines = ["Runs a job of pruning that a config file describes.", "", f"  {USAGE}", ""]
    files = sorted(p for p in pathlib.Path(folder).glob("*.py") if p.stem != "__init__")
    if files:
        lines += ["Config files, and what each of them runs:", ""]
        for file in files:
            lines += _beside(str(file), _docstring(file).partition("\n")[0], width)
    else:
        lines.append(f"There are no config files in {str(folder)!r}; run it in the folder of a clone, or give a path.")
    first = files[0] if files else pathlib.Path(folder) / "FILE.py"
    lines += [
        "",
        f"The settings of one, with their values and what they mean: --config={first} --help",
        "",
        "--workdir is the folder, or the address of one in a bucket, where everything is written. The same command "
        "goes on with a run that was stopped.",
    ]
    return "\n".join(line for text in lines for line in (_wrapped(text, width) if text[:2] != "  " else [text]))


def of_settings(config: ConfigDict, file: str | os.PathLike[str], *, arg: str | None = None, width: int = 100) -> str:
    """Returns the docstring of a config file, and its settings with their values and a sentence on each.

    Args:
        config: the config that the file makes, with the values to show.
        file: the config file.
        arg: its argument, after a colon on the command line; `None`: none was given.
        width: the number of characters in a line.
    """
    shown = f"{file}:{arg}" if arg else str(file)
    text = [_docstring(pathlib.Path(file)), ""] if _docstring(pathlib.Path(file)) else []
    text += [f"Settings of {shown}, each given as --config.NAME=VALUE; the values shown are those of this command:", ""]
    for line in _settings(config, width):
        text.append(line)
    return "\n".join(text)


def paths(config: ConfigDict, before: str = "") -> Iterator[tuple[str, bool]]:
    """Yields the path of every setting and group of settings, and whether it is a group; single settings come first.

    Args:
        config: any config.
        before: what the paths begin with.

    >>> list(paths(ConfigDict({"train": {"steps": 3}, "seed": 0})))
    [('seed', False), ('train', True), ('train.steps', False)]
    """
    order = {path: number for number, path in enumerate(SETTINGS)}
    names = sorted(config, key=lambda n: (isinstance(config[n], ConfigDict), order.get(before + n, len(order))))
    for name in names:
        yield before + name, isinstance(config[name], ConfigDict)
        if isinstance(config[name], ConfigDict):
            yield from paths(config[name], f"{before}{name}.")


def _settings(config: ConfigDict, width: int) -> Iterator[str]:
    values = dict(_leaves(config))
    for path, group in paths(config):
        sentence = SETTINGS.get(path, "")
        if not group:
            yield from _beside(f"{path}={values[path]!r}", sentence, width)
        elif any(p.startswith(f"{path}.") for p in values):
            yield ""
            yield from _wrapped(f"{path}: {sentence}" if sentence else f"{path}:", width)


def _leaves(config: ConfigDict, before: str = "") -> Iterator[tuple[str, object]]:
    for name in config:
        value = config[name]
        if isinstance(value, ConfigDict):
            yield from _leaves(value, f"{before}{name}.")
        else:
            yield before + name, value


def _docstring(file: pathlib.Path) -> str:
    return ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""


def _beside(left: str, right: str, width: int) -> list[str]:
    """Returns lines with a text in the left column and a sentence in the right one, or below if the text is long."""
    found = _wrapped(right, max(width - _COLUMN, 30)) or [""]
    left = f"  {left}"
    below = [f"{'':{_COLUMN}}{line}" for line in found]
    if len(left) >= _COLUMN:
        return [left, *(below if right else [])]
    return [f"{left:{_COLUMN}}{found[0]}".rstrip(), *below[1:]]


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) or [""]


__all__ = ["USAGE", "of_files", "of_settings", "paths"]
