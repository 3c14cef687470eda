"""A disk that is full, read-only or gone, no memory and no file handles: one line, and later the run goes on."""

import errno
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import time

import pytest

from configs import pretrain
from mvp_jax.experiments import run as experiment
from mvp_jax.storage import checkpoint, disk_errors, fault_points, files, locks
from tests.campaign import comparing

ROOT = pathlib.Path(__file__).resolve().parents[2]


def config():
    made = pretrain.get_config("runlocal")
    made.pretrain.steps = 6
    return made


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    experiment.run(config(), folder)
    return folder


def same(whole, folder):
    assert comparing.differences(whole, folder) == []
    assert comparing.left_behind(folder) == []


def failing(monkeypatch, number, failure):
    """The fault point of this number, and all later ones, raise what `failure` makes."""
    count = 0

    def reached(point, path):
        nonlocal count
        count += 1
        if count >= number and not point.startswith("lock"):
            raise failure()

    monkeypatch.setattr(fault_points, "reached", reached)


CASES = {
    "full": (lambda: OSError(errno.ENOSPC, "No space left on device"), "make room on that disk"),
    "quota": (lambda: OSError(errno.EDQUOT, "Disk quota exceeded"), "make room within your quota"),
    "read-only": (lambda: OSError(errno.EROFS, "Read-only file system"), "choose a folder that can be written"),
    "handles": (lambda: OSError(errno.EMFILE, "Too many open files"), r"raise the limit \(`ulimit -n`\)"),
    "memory": (MemoryError, "free some, or lower `chunk` or the batch"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_ends_in_one_line_and_goes_on_later(whole, tmp_path, monkeypatch, case):
    failure, advice = CASES[case]
    kept = {}
    for number in (4, 15, 25):
        with monkeypatch.context() as patch:
            failing(patch, number, failure)
            with pytest.raises(ValueError, match=advice) as error:
                experiment.run(config(), tmp_path / "run")
        assert str(tmp_path / "run") in str(error.value)
        assert "\n" not in str(error.value)
        now = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file() and "states" not in p.parts}
        lost = [str(p) for p, content in kept.items() if now.get(p, b"")[: len(content)] != content]
        assert lost == [], "what was finished is not there any more"
        kept = {p: content for p, content in now.items() if not p.name.startswith(".")}
    experiment.run(config(), tmp_path / "run")
    same(whole, tmp_path / "run")


def test_a_disk_that_is_really_full(whole, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=100k", "none", str(disk)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("no disk can be mounted here")
    try:
        with pytest.raises(ValueError, match=r"cannot write to .*; make room on that disk") as error:
            experiment.run(config(), disk / "run")
        assert "\n" not in str(error.value)
        assert (disk / "run" / "config.json").stat().st_size > 1000
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        experiment.run(config(), disk / "run")
        same(whole, disk / "run")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_folder_that_vanishes_during_a_run_is_told(whole, tmp_path, monkeypatch):
    save = checkpoint.Checkpoints.save

    def vanishing(self, step, state):
        if step == 4:
            shutil.rmtree(tmp_path / "run")
        save(self, step, state)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.Checkpoints, "save", vanishing)
        with pytest.raises(ValueError, match="run") as error:
            experiment.run(config(), tmp_path / "run")
    assert "was removed" in str(error.value)
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    experiment.run(config(), tmp_path / "run")
    same(whole, tmp_path / "run")


def test_no_more_file_handles(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    files.write_bytes(tmp_path / "a.txt", b"old")
    try:
        lowest = os.open("/dev/null", os.O_RDONLY)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, before[1]))
        with pytest.raises(ValueError, match=r"Too many open files.*ulimit -n"), files.writing(tmp_path):
            files.write_bytes(tmp_path / "a.txt", b"new")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert (tmp_path / "a.txt").read_bytes() == b"old"


def test_a_file_that_may_not_become_so_large(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    files.write_bytes(tmp_path / "a.txt", b"old")
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        with pytest.raises(ValueError, match=r"File too large.*ulimit -f"), files.writing(tmp_path):
            files.write_bytes(tmp_path / "a.txt", bytes(3000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (tmp_path / "a.txt").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_other_errors_are_left_as_they_are(tmp_path):
    with pytest.raises(FileNotFoundError), disk_errors.told(tmp_path / "run"):
        (tmp_path / "data.npz").read_bytes()
    with pytest.raises(ValueError, match=r"cannot write to .*run: .*No such file"), disk_errors.told(tmp_path / "run"):
        (tmp_path / "run" / "rows.json").read_bytes()


def test_a_second_run_in_the_folder_is_refused_and_changes_nothing(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    program = f"""
import time
from mvp_jax.storage import locks
with locks.held({str(tmp_path / "run")!r}):
    print("held", flush=True)
    time.sleep(600)
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, env=env, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(ValueError, match=rf"in use by another run \(process {other.pid} on "):
            experiment.run(config(), tmp_path / "run")
        assert (tmp_path / "run" / locks.NAME).exists()
        assert comparing.differences(whole, tmp_path / "run") == [".lock is too much"]
        other.kill()
    experiment.run(config(), tmp_path / "run")
    same(whole, tmp_path / "run")


def test_a_clock_that_jumps_changes_nothing(whole, tmp_path, monkeypatch):
    """Each look at the clock is a day before the last, and files are from the future or from 1970."""
    now, save = time.time(), checkpoint.Checkpoints.save

    def earlier():
        nonlocal now
        now -= 86400
        return now

    def stopped(self, step, state):
        save(self, step, state)
        if step == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(time, "time", earlier)
    monkeypatch.setattr(time, "time_ns", lambda: int(earlier() * 1e9))
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.Checkpoints, "save", stopped)
        with pytest.raises(KeyboardInterrupt):
            experiment.run(config(), tmp_path / "run")
    for number, path in enumerate(sorted((tmp_path / "run").rglob("*"))):
        os.utime(path, (0, 0) if number % 2 else (4e9, 4e9))
    experiment.run(config(), tmp_path / "run")
    same(whole, tmp_path / "run")
