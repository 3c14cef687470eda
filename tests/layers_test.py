"""The house rules that a parser can check: which folder may import which, no circles, and how long a file may be.

Folders are layers. A file imports only from folders of a lower layer than its own, and within its folder in one
direction. The table is the one in CONTRIBUTING.md.
"""

import ast
import importlib
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "mvp_jax"

LAYERS: tuple[tuple[str, ...], ...] = (
    ("core",),
    ("graph", "parallel"),
    ("saliency", "compact", "storage", "models"),
    ("data", "reports"),
    ("pretrained", "train"),
    ("bank",),
    ("methods",),
    ("delivery",),
    ("experiments",),
    ("main",),
)
"""From the ground up; folders of one layer do not import each other."""

LAYER = {folder: number for number, folders in enumerate(LAYERS) for folder in folders}

OUTSIDE = {"core": {"jax", "numpy"}, "graph": {"jax", "numpy"}, "saliency": {"jax", "numpy"}}
"""The folders that see nothing but these from outside the package."""

ONLY_IN = {"ml_collections": ("experiments", "main"), "matplotlib": ("reports", "compact", "data", "experiments")}
"""What is imported from outside in these folders alone."""

FILES = {
    ".".join(p.relative_to(PACKAGE).with_suffix("").parts): p
    for p in sorted(PACKAGE.rglob("*.py"))
    if p != PACKAGE / "__init__.py"
}


def folder_of(name: str) -> str:
    """The top folder of a module's name."""
    return name.partition(".")[0]


def imports(name: str, source: str, known: set[str]) -> tuple[set[str], set[str], list[str]]:
    """Modules of the package, top-level modules from outside, and offences, anywhere in a file.

    A package's face is `<package>.__init__` among the modules.
    """
    inside: set[str] = set()
    outside: set[str] = set()
    wrong: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top, _, rest = alias.name.partition(".")
                if top != "mvp_jax":
                    outside.add(top)
                elif rest:
                    inside.add(rest)
                else:
                    wrong.append(f"line {node.lineno}: imports the facade; import the modules it needs")
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                wrong.append(f"line {node.lineno}: relative import")
                continue
            top, _, base = (node.module or "").partition(".")
            if top != "mvp_jax":
                outside.add(top)
                continue
            for alias in node.names:
                full = f"{base}.{alias.name}" if base else alias.name
                found = [n for n in (full, f"{full}.__init__", base, f"{base}.__init__") if n in known]
                if found:
                    inside.add(found[0])
                else:
                    wrong.append(f"line {node.lineno}: imports {alias.name!r} through the facade")
    return inside - {name}, outside, wrong


def offences(name: str, source: str) -> list[str]:
    """Everything in a file that breaks the layers."""
    inside, outside, wrong = imports(name, source, set(FILES))
    own = folder_of(name)
    for other in sorted(inside):
        theirs = folder_of(other)
        if theirs == own:
            face = other.removesuffix("__init__")
            if other.endswith(".__init__") and name.startswith(face):
                wrong.append(f"imports the face of its own folder, {face.rstrip('.')}; import the file")
        elif LAYER[theirs] >= LAYER[own]:
            wrong.append(f"{own}/ imports {other}, which is not below it")
    foreign = {m for m in outside if m not in sys.stdlib_module_names}
    if own in OUTSIDE:
        extra = foreign - OUTSIDE[own]
        wrong += [f"{own}/ imports {m}; it may import {sorted(OUTSIDE[own])}" for m in sorted(extra)]
    wrong += [f"{m} belongs to {folders}" for m, folders in ONLY_IN.items() if m in foreign and own not in folders]
    return wrong


def circles(arrows: dict[str, set[str]]) -> list[str]:
    """Files of one folder that import each other in a loop, by taking away again and again what imports nothing."""
    left = {name: set(to) for name, to in arrows.items()}
    while ready := [name for name, to in left.items() if not to & left.keys()]:
        for name in ready:
            del left[name]
    return sorted(left)


@pytest.mark.parametrize("name", FILES)
def test_a_file_imports_only_what_stands_below_it(name):
    assert folder_of(name) in LAYER, f"{name} has no place: write its folder into LAYERS and CONTRIBUTING.md"
    assert offences(name, FILES[name].read_text()) == []


@pytest.mark.parametrize("folder", LAYER)
def test_no_files_of_a_folder_import_each_other_in_a_circle(folder):
    own = {name for name in FILES if folder_of(name) == folder}
    assert own, f"there is no folder {folder}"
    arrows = {name: imports(name, FILES[name].read_text(), set(FILES))[0] & own for name in own}
    # A face imports the files under it, and what stands beside it imports the face: a circle only if they come back.
    assert circles(arrows) == []


@pytest.mark.parametrize("name", FILES)
def test_every_module_imports(name):
    module = importlib.import_module(f"mvp_jax.{name}".removesuffix(".__init__"))
    assert module.__doc__, f"{name} has no docstring that says what it is for"


def test_every_folder_is_a_package_in_the_table():
    folders = {p.parent.name for p in PACKAGE.glob("*/__init__.py")}
    assert folders | {"main"} == set(LAYER)
    table = (ROOT / "CONTRIBUTING.md").read_text()
    assert [f"`{folder}/`" in table for folder in sorted(folders)] == [True] * len(folders)


SOURCES = [p for d in ("mvp_jax", "tests", "benchmarks", "configs") for p in sorted((ROOT / d).rglob("*.py"))]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_stay_small(path):
    lines = len(path.read_text().splitlines())
    assert lines <= 400, f"{path.relative_to(ROOT)} has {lines} lines; split it by idea"
    assert path.stem != "utils", "name the file for what it holds"


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        ("core.masks", "def f():\n    from mvp_jax.train import make_step", "core/ imports train.__init__"),
        ("core.masks", "import mvp_jax.models.api", "core/ imports models.api"),
        ("graph.dims", "from mvp_jax.parallel import mapping", "not below it"),
        ("core.masks", "from . import trees", "relative import"),
        ("core.masks", "import mvp_jax", "facade"),
        ("core.masks", "from mvp_jax import Group", "through the facade"),
        ("core.prune", "import optax", "core/ imports optax"),
        ("train.fitting", "import ml_collections", "ml_collections belongs to"),
        ("train.fitting", "from mvp_jax import train", "the face of its own folder"),
    ],
)
def test_the_parser_sees_an_offence(name, source, message):
    found = offences(name, source)
    assert len(found) == 1
    assert message in found[0]


def test_the_parser_lets_good_imports_pass():
    good = "import math\nimport jax.numpy as jnp\nfrom mvp_jax.core import masks, trees"
    good += "\nfrom mvp_jax.core.types import Units"
    assert offences("core.prune", good) == []
    assert offences("train.transforms", "import optax") == []
    assert imports("core.prune", good, set(FILES))[0] == {"core.masks", "core.trees", "core.types"}


def test_a_circle_is_seen():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == ["a", "b", "c", "d"]
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == []
