"""Programs of the docs that need a process of their own."""

import os
import pathlib
import re
import subprocess
import sys

DOCS = pathlib.Path(__file__).parents[1] / "docs"


def test_the_program_on_sharded_parameters():
    text = (DOCS / "scaling.md").read_text()
    found = re.search(r"<!-- program:fsdp -->\n```python\n(.*?)```\n\nIt prints\n\n```\n(.*?)```", text, re.DOTALL)
    assert found, "docs/scaling.md has no program marked fsdp, or does not say what it prints"
    flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ.get("XLA_FLAGS", ""))
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    done = subprocess.run([sys.executable, "-c", found[1]], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    # Losses differ in the last digits between machines; JAX abbreviates the name of a PartitionSpec since 0.10.
    without = [re.sub(r"loss \S+|PartitionSpec|\bP\b", "", t).strip() for t in (done.stdout, found[2])]
    assert without[0] == without[1], done.stdout
