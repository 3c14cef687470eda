"""`import mvp_jax` is quick, loads nothing heavy, and still offers everything by name."""

import importlib.metadata
import json
import pathlib
import subprocess
import sys

import pytest

import mvp_jax

HEAVY = ("flax", "jax", "matplotlib", "optax", "orbax", "scipy", "sklearn", "tensorflow_datasets")
NOT_OFFERED = {
    "main": "run, not imported",
    "allocation": "prune re-exports it",
    "cutting": "compact re-exports it",
    "tracing": "what graph and compact.slim are made of",
    "stepping": "train re-exports it",
    "mapping": "how population maps members and places them",
    "planning": "how population chooses a mapping",
    "fanout": "population re-exports it",
    "ranking": "the algorithm under prune",
    "solitary": "the store that checkpoint takes for one process among several",
    "pictures": "reports re-exports it",
    "curves": "the pictures of trials",
    "adapted": "the first steps of trials from a checkpoint",
    "fragments": "what config files share",
    "lineup": "the lines of trials",
    "trials": "the job behind configs/compare.py",
    "records": "reports re-exports it",
    "results": "the last steps of experiment",
    "stages": "the first steps of experiment",
    "setting": "the first steps of experiment",
    "universal": "one of the steps of experiment",
    "learning": "the training under pretraining",
    "pretraining": "the job behind configs/pretrain.py",
    "sweeping": "the job behind configs/sweep.py",
    "papers": "what config files of the papers share",
    "overrides": "what main reads from the command line",
    "storage": "where checkpoint, bank and records write",
    "boards": "records.Metrics takes one",
}
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
    "name", ["masks", "prune", "vote", "units", "similarity", "compact", "sensitivity", "bank", "checkpoint"]
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
    assert listed == mvp_jax._MODULES | set(mvp_jax._NAMES)
    assert mvp_jax.__all__ == sorted(mvp_jax.__all__)
    package = ROOT / "mvp_jax"
    there = {p.stem for p in package.glob("*.py")} | {p.parent.name for p in package.glob("*/__init__.py")}
    assert there - {"__init__"} - set(NOT_OFFERED) == mvp_jax._MODULES


def test_an_unknown_name_says_what_there_is():
    with pytest.raises(AttributeError, match=r"no attribute 'purne'; it has .*prune"):
        mvp_jax.purne  # noqa: B018


def test_version_is_the_distribution_version():
    assert importlib.metadata.version("mvp-jax") == mvp_jax.__version__
