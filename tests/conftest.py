"""Every test runs on two fake CPU devices, so that what is written for several devices is tested without them."""

import atexit
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Iterator

# Before jax is imported anywhere: both are read once, when the backend starts.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "--xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2".strip()
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
