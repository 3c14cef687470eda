"""A kill at any moment of a write leaves the old content or the new, and nothing that stays for ever."""

import json
import os
import pathlib
import subprocess
import sys

from mvp_jax.storage import fault_points

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_a_kill_at_any_moment_leaves_the_old_or_the_new(tmp_path):
    command = [sys.executable, "-m", "tests.campaign.points_worker", str(tmp_path)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["wrong"] == []
    reached = {point for points in found["reached"].values() for point in points}
    assert set(fault_points.POINTS) <= reached, "a point of the table is reached by no write"
    assert len(found["reached"]) == 12
    assert sum(map(len, found["reached"].values())) > 200


def test_the_package_names_no_other_points():
    named = set()
    for path in (ROOT / "mvp_jax").rglob("*.py"):
        for part in path.read_text().split("fault_points.reached(")[1:]:
            named |= {part.split('"')[1], *([part.split('"')[3]] if '" if ' in part.split("\n")[0] else [])}
    assert named == set(fault_points.POINTS)
