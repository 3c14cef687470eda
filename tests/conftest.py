"""Every test runs on two fake CPU devices, so that what is written for several devices is tested without them."""

import atexit
import importlib.metadata
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Iterator

# Before jax is imported anywhere: both are read once, when the backend starts.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
flags = os.environ.get("XLA_FLAGS", "")
if "--xla_force_host_platform_device_count" not in flags:
    flags += " --xla_force_host_platform_device_count=2"
if "--xla_backend_optimization_level" not in flags:
    # Most of the time goes into compiling programs that run once; this takes a third of it. `.ci/extra` runs the tests
    # with all optimisations too.
    flags += " --xla_backend_optimization_level=0"
    if tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 11):  # later ones do not know it
        flags += " --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = flags.strip()
os.environ.setdefault("MPLBACKEND", "Agg")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # Workers and the processes that tests start share what they compile, and a file finds again what
    # `_forgotten_programs` dropped.
    cache = tempfile.mkdtemp(prefix="mvp_jax-tests-")
    atexit.register(shutil.rmtree, cache, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = cache
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"

import hypothesis
import pytest

# "repeatable" gives the same verdict twice; "explore" (HYPOTHESIS_PROFILE=explore) looks for new counterexamples.
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=25)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=200)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


def pytest_ignore_collect(collection_path: pathlib.Path) -> bool | None:
    """Leaves scripts and shared pieces among the tests alone; collecting doctests would otherwise import them all."""
    here = collection_path.suffix == ".py" and collection_path.is_relative_to(pathlib.Path(__file__).parent)
    return True if here and not collection_path.name.endswith(("_test.py", "conftest.py")) else None


@pytest.fixture(autouse=True, scope="module")
def _forgotten_programs() -> Iterator[None]:
    """Drops the compiled programs of a file when it is done.

    Each holds memory maps, of which Linux grants a process 65,530. Beyond them XLA's compiler does not refuse, it
    dies; all of these tests together need more.
    """
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
