"""Every test runs on two fake CPU devices, so that what is written for several devices is tested without them."""

import os
import pathlib

# Before jax is imported anywhere: both are read once, when the backend starts.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "--xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2".strip()
os.environ.setdefault("MPLBACKEND", "Agg")

import hypothesis

# "repeatable" gives the same verdict twice; "explore" (HYPOTHESIS_PROFILE=explore) looks for new counterexamples.
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=25)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=200)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


def pytest_ignore_collect(collection_path: pathlib.Path) -> bool | None:
    """Leaves scripts and shared pieces among the tests alone; collecting doctests would otherwise import them all."""
    here = collection_path.suffix == ".py" and collection_path.is_relative_to(pathlib.Path(__file__).parent)
    return True if here and not collection_path.name.endswith(("_test.py", "conftest.py")) else None
