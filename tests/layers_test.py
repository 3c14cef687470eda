"""The house rules that a parser can check: who may import whom, and how long a file may be.

The order below is the one in CONTRIBUTING.md. A file imports only from lower layers, and within its layer only from
files above it.
"""

import ast
import importlib
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "mvp_jax"

LAYERS: tuple[tuple[str, ...], ...] = (
    ("types", "trees"),
    (
        "masks",
        "allocation",
        "ranking",
        "prune",
        "units",
        "patterns",
        "saliency",
        "tracing",
        "tracing.dims",
        "tracing.rules",
        "tracing.shaping",
        "tracing.contractions",
        "tracing.primitives",
        "tracing.program",
        "tracing.zeros",
        "tracing.replay",
        "tracing.work",
        "tracing.analysis",
        "tracing.explanation",
        "tracing.inputs",
        "graph",
        "connections",
        "vote",
        "similarity",
        "schedules",
        "cutting",
        "compact",
        "sensitivity",
        "cost",
        "budget",
        "transforms",
    ),
    (
        "storage",
        "models.api",
        "models.widths",
        "models.layers",
        "models.resnet",
        "models.vit",
        "models.bert",
        "models.clip",
        "models.functions",
        "models",
        "formats.files",
        "formats.rules",
        "formats.resnet",
        "formats.vit",
        "formats.bert",
        "formats.clip",
        "formats",
        "data.lazy",
        "data.residuals",
        "data.sources",
        "data.transforms",
        "data.tasks",
        "data.groups",
        "data.catalog",
        "data.folders",
        "data.prepared",
        "data.joined",
        "data.prefetch",
        "data.cropping",
        "data.streams",
        "data.colours",
        "data.randaugment",
        "data.mixing",
        "data.augment",
        "data.named",
        "data.text",
        "data.tokens",
        "data.encoded",
        "data.glue",
        "data.buckets",
        "data.images",
        "data",
    ),
    (
        "mapping",
        "planning",
        "fanout",
        "stepping",
        "train",
        "evaluation",
        "metrics",
        "probe",
        "simsiam",
        "learning",
        "pretrained",
        "export",
        "processes",
        "solitary",
        "checkpoint",
        "population",
        "bank",
    ),
    (
        "methods.api",
        "methods.oneshot",
        "methods.ifp",
        "methods.mvp",
        "methods.metasoup",
        "methods.reptile",
        "methods.sparse",
        "methods.once",
        "methods.gradual",
        "methods.movement",
        "methods.dynamic",
        "methods.imp",
        "methods.weak",
        "methods.soup",
        "methods.isp",
        "methods",
    ),
    (
        "boards",
        "records",
        "pictures",
        "curves",
        "reports",
        "adapted",
        "comparison",
        "stages",
        "universal",
        "setting",
        "results",
        "lineup",
        "trials",
        "fragments",
        "papers",
        "overrides",
        "sweeping",
        "pretraining",
        "experiment",
        "main",
    ),
)
PLACE = {name: (layer, row) for layer, names in enumerate(LAYERS) for row, name in enumerate(names)}

# What may be imported from outside, by layer; `transforms` wraps optax, so it alone may see it below layer 2.
OUTSIDE = ({"jax", "numpy"}, {"jax", "numpy"})
EXCEPTIONS = {"transforms": {"optax"}}

FILES = {
    ".".join(p.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): p
    for p in sorted(PACKAGE.rglob("*.py"))
    if p != PACKAGE / "__init__.py"
}


def imports(source: str, known: frozenset[str] | set[str]) -> tuple[set[str], set[str], list[str]]:
    """Modules of the package, top-level modules from outside, and offences, anywhere in a file."""
    inside: set[str] = set()
    outside: set[str] = set()
    wrong: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top, _, name = alias.name.partition(".")
                if top != "mvp_jax":
                    outside.add(top)
                elif name:
                    inside.add(name)
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
                name = f"{base}.{alias.name}" if base else alias.name
                if name in known:
                    inside.add(name)
                elif base in known:
                    inside.add(base)
                else:
                    wrong.append(f"line {node.lineno}: imports {alias.name!r} through the facade")
    return inside, outside, wrong


def offences(name: str, source: str) -> list[str]:
    """Everything in a file that breaks the layers."""
    inside, outside, wrong = imports(source, set(PLACE))
    layer, row = PLACE[name]
    for other in sorted(inside - {name}):
        if other not in PLACE:
            wrong.append(f"imports {other}, which has no place")
        elif PLACE[other][0] > layer:
            wrong.append(f"layer {layer} imports {other} of layer {PLACE[other][0]}")
        elif PLACE[other][0] == layer and PLACE[other][1] >= row:
            wrong.append(f"imports {other}, which stands below it in layer {layer}")
    foreign = {m for m in outside if m not in sys.stdlib_module_names}
    if layer < len(OUTSIDE):
        extra = foreign - OUTSIDE[layer] - EXCEPTIONS.get(name, set())
        wrong += [f"layer {layer} imports {m}; it may import {sorted(OUTSIDE[layer])}" for m in sorted(extra)]
    if layer < len(LAYERS) - 1:
        wrong += [f"{m} belongs to the last layer" for m in sorted(foreign & {"ml_collections", "rich", "matplotlib"})]
    return wrong


@pytest.mark.parametrize("name", FILES)
def test_a_file_imports_only_what_stands_below_it(name):
    assert name in PLACE, f"{name} has no place: write it into LAYERS (and DESIGN's order) where it belongs"
    assert offences(name, FILES[name].read_text()) == []


@pytest.mark.parametrize("name", FILES)
def test_every_module_imports(name):
    assert importlib.import_module(f"mvp_jax.{name}").__doc__, f"{name} has no docstring that says what it is for"


SOURCES = [p for d in ("mvp_jax", "tests", "benchmarks", "configs") for p in sorted((ROOT / d).rglob("*.py"))]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_stay_small(path):
    lines = len(path.read_text().splitlines())
    assert lines <= 400, f"{path.relative_to(ROOT)} has {lines} lines; split it by idea"
    assert path.stem != "utils", "name the file for what it holds"


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        ("masks", "from mvp_jax import prune", "stands below it"),
        ("masks", "def f():\n    from mvp_jax.train import make_step", "layer 1 imports train of layer 3"),
        ("masks", "import mvp_jax.models.api", "layer 1 imports models.api of layer 2"),
        ("masks", "from . import trees", "relative import"),
        ("masks", "import mvp_jax", "facade"),
        ("masks", "from mvp_jax import Group", "through the facade"),
        ("prune", "import optax", "layer 1 imports optax"),
        ("train", "import ml_collections", "last layer"),
    ],
)
def test_the_parser_sees_an_offence(name, source, message):
    found = offences(name, source)
    assert len(found) == 1
    assert message in found[0]


def test_the_parser_lets_good_imports_pass():
    good = "import math\nimport jax.numpy as jnp\nfrom mvp_jax import masks, trees\nfrom mvp_jax.types import Units"
    assert offences("prune", good) == []
    assert offences("transforms", "import optax") == []
    assert imports(good, set(PLACE))[0] == {"masks", "trees", "types"}
