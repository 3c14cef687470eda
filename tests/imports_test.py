"""`import mvp_jax` is quick, loads nothing heavy, and still offers everything by name."""

import importlib.metadata
import json
import pathlib
import subprocess
import sys

import pytest

import mvp_jax

HEAVY = ("flax", "jax", "matplotlib", "optax", "orbax", "scipy", "sklearn", "tensorflow_datasets")
NOT_OFFERED = {"main": "run, not imported"} | dict.fromkeys(
    ("core", "parallel", "storage"), "their modules are offered"
)
ROOT = pathlib.Path(__file__).resolve().parents[1]


def _loaded_by(statement: str) -> tuple[float, set[str]]:
    """Seconds and top-level modules that a statement costs in a fresh interpreter."""
    code = (
        "import json, sys, time\n"
        "start = time.perf_counter()\n"
        f"{statement}\n"
        "print(json.dumps([time.perf_counter() - start, sorted({m.partition('.')[0] for m in sys.modules})]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    seconds, modules = json.loads(done.stdout)
    return seconds, set(modules)


def test_import_is_quick_and_light():
    seconds, modules = _loaded_by("import mvp_jax")
    assert "mvp_jax" in modules
    assert not modules & set(HEAVY)
    assert seconds < 1.5


@pytest.mark.parametrize(
    "name", ["masks", "prune", "vote", "units", "similarity", "compact", "sensitivity", "checkpoint"]
)
def test_the_core_does_not_load_frameworks(name):
    _, modules = _loaded_by(f"import mvp_jax; mvp_jax.{name}")
    assert "jax" in modules
    assert not modules & {"flax", "matplotlib", "orbax", "sklearn", "tensorflow_datasets"}


@pytest.mark.parametrize("name", mvp_jax.__all__)
def test_every_name_resolves(name):
    assert getattr(mvp_jax, name) is not None
    assert name in dir(mvp_jax)


def test_lists_agree():
    listed = set(mvp_jax.__all__) - {"__version__"}
    assert listed == mvp_jax._PLACES.keys() | mvp_jax._NAMES.keys()
    package = ROOT / "mvp_jax"
    there = {p.stem for p in package.glob("*.py")} | {p.parent.name for p in package.glob("*/__init__.py")}
    assert there - {"__init__"} - NOT_OFFERED.keys() <= mvp_jax._PLACES.keys()
    # What is offered to a running program is offered to a type checker and to an editor too.
    source = (package / "__init__.py").read_text()
    for name, place in (mvp_jax._PLACES | {n: f"{p}.{n}" for n, p in mvp_jax._NAMES.items()}).items():
        folder, _, module = f"mvp_jax.{place}".rpartition(".")
        assert f"from {folder} import {module} as {name}" in source, name


def test_an_unknown_name_says_what_there_is():
    with pytest.raises(AttributeError, match=r"no attribute 'purne'; it has .*prune"):
        mvp_jax.purne  # noqa: B018


def test_version_is_the_distribution_version():
    assert importlib.metadata.version("mvp-jax") == mvp_jax.__version__
