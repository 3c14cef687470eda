"""Programs of the docs that need a process of their own."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

DOCS = pathlib.Path(__file__).parents[1] / "docs"


AUTOMATIC = (  # what the text says to change for automatic axes
    ('jax.make_mesh((8,), ("fsdp",))', 'jax.make_mesh((8,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))'),
    ("jax.sharding.reshard(params[name], P(None, None))", "params[name]"),
)


@pytest.mark.parametrize("changes", [(), AUTOMATIC], ids=["explicit", "automatic"])
def test_the_program_on_sharded_parameters(changes):
    text = (DOCS / "scaling.md").read_text()
    found = re.search(r"<!-- program:fsdp -->\n```python\n(.*?)```\n\nIt prints\n\n```\n(.*?)```", text, re.DOTALL)
    assert found, "docs/scaling.md has no program marked fsdp, or does not say what it prints"
    program = found[1]
    for old, new in changes:
        assert program.count(old) == 1, f"the program in docs/scaling.md has no {old!r}"
        program = program.replace(old, new)
    flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ.get("XLA_FLAGS", ""))
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    # Losses differ in the last digits between machines; JAX abbreviates the name of a PartitionSpec since 0.10.
    without = [re.sub(r"loss \S+|PartitionSpec|\bP\b", "", t).strip() for t in (done.stdout, found[2])]
    assert without[0] == without[1], done.stdout
