"""The short form of the campaign of kills, and that it would see what is lost; `.ci/extra campaign` is the long one."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests.campaign import comparing

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("form", [("--inside", "--kills", "8"), ("--kills", "2")], ids=["inside", "kill -9"])
def test_a_job_that_is_killed_again_and_again_ends_as_one_that_was_left_alone(tmp_path, form):
    command = [sys.executable, "-m", "tests.campaign", "pretrain", *form, "--folder", str(tmp_path)]
    out = tmp_path / "out.json"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, "--out", out], cwd=ROOT, env=env, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads(out.read_text())
    assert found["kills"] == int(form[-1])
    assert found["losses"] == []
    assert found["jobs ended"] >= 1
    assert sum(found["places"].values()) == found["kills"]


def write(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


WHOLE = {
    "results.csv": "method,seconds,accuracy\nmvp,1.5,0.5\n",
    "rows/a.json": '{"rows": [{"seconds": 1, "accuracy": 0.5}]}',
    "model/weights": "abc",
    "states/4/x": "1",
}


def test_times_and_states_are_not_compared(tmp_path):
    other = {
        "results.csv": "method,seconds,accuracy\nmvp,99,0.5\n",
        "rows/a.json": '{"rows": [{"seconds": 7, "accuracy": 0.5}]}',
        "model/weights": "abc",
    }
    assert comparing.differences(write(tmp_path / "whole", WHOLE), write(tmp_path / "killed", other)) == []


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("results.csv", "method,seconds,accuracy\nmvp,1.5,0.25\n", "results.csv differs"),
        ("rows/a.json", '{"rows": []}', "rows/a.json differs"),
        ("model/weights", "ab", "model/weights differs"),
        ("rows/b.json", "{}", "rows/b.json is too much"),
    ],
)
def test_what_differs_is_told(tmp_path, name, content, told):
    whole, killed = write(tmp_path / "whole", WHOLE), write(tmp_path / "killed", {**WHOLE, name: content})
    assert comparing.differences(whole, killed) == [told]
    killed.joinpath(name).unlink()
    if name in WHOLE:
        assert comparing.differences(whole, killed) == [f"{name} is missing"]


@pytest.mark.parametrize("name", [".tmp-host~1~a", "rows/.lock", "running/a/1/x", "states/2.orbax-checkpoint-tmp/x"])
def test_what_is_left_behind_is_told(tmp_path, name):
    assert comparing.left_behind(write(tmp_path / "run", WHOLE)) == []
    assert len(comparing.left_behind(write(tmp_path / "run", {name: ""}))) == 1
