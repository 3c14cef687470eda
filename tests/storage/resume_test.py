"""What is done is read, what is missing is made, and half of it is never seen; in a folder and in a bucket."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from mvp_jax.parallel import processes
from mvp_jax.storage import files, resume
from tests.storage.files_test import place, remote  # noqa: F401 (fixtures)


def write_model(text, *, ending=None):
    """Writes a folder of two files, the marker first: the order in which it would deceive a reader."""

    def make(folder):
        assert list(folder.iterdir()) == []
        (folder / "model.json").write_text(text)
        if ending:
            ending()
        (folder / "part").mkdir()
        (folder / "part" / "arrays").write_text(text)

    return make


def read_model(folder):
    return (folder / "model.json").read_text(), (folder / "part" / "arrays").read_text()


def test_a_file_is_made_once(place):  # noqa: F811
    for made, want in ((1, 1), (2, 1)):
        got = resume.done_or_make(
            place / "a" / "n.txt", lambda p, n=made: p.write_text(str(n)), lambda p: p.read_text()
        )
        assert got == str(want)
    assert resume.done(place / "a" / "n.txt")
    assert files.listing(place / "a") == ["n.txt"]


def test_a_folder_is_made_once(place):  # noqa: F811
    where = place / "universal"
    assert not resume.done(where, "model.json")
    for text in ("one", "two"):
        assert resume.done_or_make(where, write_model(text), read_model, marker="model.json") == ("one", "one")
    assert files.listing(where) == ["model.json", "part"]


def test_a_json_value_is_what_the_file_says(place):  # noqa: F811
    rows = [{"accuracy": np.float32(0.1), "split": "test", "steps": np.int64(3), "lost": float("nan"), "at": (1, 2)}]
    want = [{"accuracy": 0.10000000149011612, "split": "test", "steps": 3, "lost": None, "at": [1, 2]}]
    assert resume.json_or_make(place / "rows.json", lambda: rows) == want
    assert resume.json_or_make(place / "rows.json", pytest.fail) == want
    files.write_bytes(place / "rows.json", b'[{"accu')
    with pytest.raises(ValueError, match=r"rows\.json is not readable JSON: .*; delete it"):
        resume.json_or_make(place / "rows.json", pytest.fail)


@pytest.mark.parametrize("marker", ["", "model.json"])
def test_what_fails_leaves_nothing_and_is_made_anew(place, marker):  # noqa: F811
    where = place / "found"

    def fail(path):
        (path / "model.json" if marker else path).write_text("half")
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        resume.done_or_make(where, fail, pytest.fail, marker=marker)
    with pytest.raises(ValueError, match="write it"):
        resume.done_or_make(where, lambda path: None, pytest.fail, marker=marker)
    assert files.listing(place) == []
    good = write_model("whole") if marker else lambda path: path.write_text("whole")
    assert resume.done_or_make(where, good, lambda p: "read", marker=marker) == "read"


KILLED = """
import os, pathlib, signal, sys
from mvp_jax.storage import resume
from tests.storage import resume_test

def die():
    os.kill(os.getpid(), signal.SIGKILL)

where, marker = pathlib.Path(sys.argv[1]), sys.argv[2]
def half(path):
    path.write_text("half")
    die()
make = resume_test.write_model("half", ending=die) if marker else half
resume.done_or_make(where, make, print, marker=marker)
"""


@pytest.mark.parametrize("marker", ["", "model.json"])
def test_a_killed_process_leaves_nothing_that_is_read(tmp_path, marker):
    where = tmp_path / "found"
    ended = subprocess.run([sys.executable, "-c", KILLED, str(where), marker], capture_output=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    assert os.listdir(tmp_path)  # hidden, what it was writing
    assert files.listing(tmp_path) == []
    assert not resume.done(where, marker)
    good = write_model("whole") if marker else lambda path: path.write_text("whole")
    read = read_model if marker else lambda path: path.read_text()
    assert set(resume.done_or_make(where, good, read, marker=marker)) == set(read(where))
    assert os.listdir(tmp_path) == ["found"]  # and what was left is cleared away


def test_process_0_makes_and_the_others_read(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(processes, "only_first", lambda name, work: asked.append(name))
    (tmp_path / "n.txt").write_text("7")  # process 0 has written it meanwhile
    got = resume.done_or_make(tmp_path / "n.txt", pytest.fail, lambda p: p.read_text(), first="numbers")
    assert (asked, got) == (["numbers"], "7")
    monkeypatch.undo()
    assert resume.json_or_make(tmp_path / "m.json", lambda: 3, first="more") == 3
