"""Writes the badge and the install cell of every notebook, or checks them: `python colabs/heads.py [--check]`.

A notebook that is opened in Colab is a file without the repository around it, so it has to hold the repository's
address. The address stands in `[project.urls]` of pyproject.toml; when it changes, or the version does, run this.
"""

import json
import pathlib
import sys
import tomllib
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
BRANCH = "main"
"""The branch whose notebooks the badges open, and which is installed there."""

EXTRAS = {"research_loop": (("export",), ("equinox",))}
"""What a notebook needs besides the package, by its name: extras of this project, and other packages."""

MODULES = {"export": "flatbuffers"}
"""A module that is there if an extra is."""

_INSTALL = """\
# Installs the package unless this version is there: from the clone around this notebook, or else from the repository.
import importlib.metadata
import importlib.util
import os
import pathlib

clone = next((f for f in (pathlib.Path.cwd(), pathlib.Path.cwd().parent) if (f / "mvp_jax/__init__.py").exists()), None)
source = clone.as_uri() if clone else os.environ.get("MVP_JAX_SOURCE", "{source}")
try:
    ready = importlib.metadata.version("mvp-jax") == "{version}"
except importlib.metadata.PackageNotFoundError:
    ready = False
if not ready or not all(map(importlib.util.find_spec, {modules})):
    %pip install -q "mvp-jax{extras} @ {{source}}"{packages}
    importlib.invalidate_caches()"""


def address() -> str:
    """The address of the repository, as pyproject.toml has it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return str(project["urls"]["Repository"]).rstrip("/")


def version() -> str:
    """The version of the package, read without importing it."""
    for line in (ROOT / "mvp_jax" / "__init__.py").read_text(encoding="utf-8").splitlines():
        if line.startswith("__version__"):
            return line.split('"')[1]
    raise ValueError("mvp_jax/__init__.py has no line that begins with __version__")


def badge(name: str) -> str:
    """The badge that opens a notebook of this name in Colab, in Markdown."""
    place = address().removeprefix("https://github.com/")
    picture = "https://colab.research.google.com/assets/colab-badge.svg"
    return f"[![Open in Colab]({picture})](https://colab.research.google.com/github/{place}/blob/{BRANCH}/colabs/{name}.ipynb)"


def install(name: str) -> str:
    """The code of the install cell of a notebook of this name."""
    extras, packages = EXTRAS.get(name, ((), ()))
    modules = ("mvp_jax", *(MODULES[extra] for extra in extras), *packages)
    return _INSTALL.format(
        source=f"git+{address()}@{BRANCH}",
        version=version(),
        extras=f"[{','.join(extras)}]" if extras else "",
        packages="".join(f" {package}" for package in packages),
        modules=json.dumps(modules).replace("[", "(").replace("]", ",)" if len(modules) == 1 else ")"),
    )


def rewritten(notebook: dict[str, Any], name: str) -> dict[str, Any]:
    """Returns a notebook with the badge under its title and the install cell as its first code.

    Args:
        notebook: what the file holds; its first cell is Markdown that begins with the title, its second the install
            cell.
        name: the name of the file, without its ending.

    Raises:
        ValueError: if it does not begin like that.
    """
    cells = [dict(cell) for cell in notebook["cells"]]
    if [cell["cell_type"] for cell in cells[:2]] != ["markdown", "code"] or not cells[0]["source"][0].startswith("# "):
        raise ValueError(f"{name}.ipynb does not begin with a title in Markdown and an install cell")
    title, *text = "".join(cells[0]["source"]).split("\n")
    text = [line for line in text if not line.startswith("[![Open in Colab](")]
    while text and not text[0]:
        text = text[1:]
    cells[0]["source"] = "\n".join([title, "", badge(name), "", *text]).splitlines(keepends=True)
    cells[1]["source"] = install(name).splitlines(keepends=True)
    return {**notebook, "cells": cells}


def main(arguments: list[str]) -> int:
    """Rewrites the notebooks, or with `--check` says which of them differ; the exit status."""
    differ = []
    for path in sorted(pathlib.Path(__file__).parent.glob("*.ipynb")):
        before = path.read_text(encoding="utf-8")
        after = json.dumps(rewritten(json.loads(before), path.stem), indent=1, ensure_ascii=False) + "\n"
        if after != before:
            differ.append(path.name)
            if "--check" not in arguments:
                path.write_text(after, encoding="utf-8")
    if differ:
        print("differ from pyproject.toml:" if "--check" in arguments else "written:", *differ)
    return int("--check" in arguments and bool(differ))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
