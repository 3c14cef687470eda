"""One run in a folder at a time, whatever happened to the one before; two writers of one bank are both right."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from mvp_jax import bank
from mvp_jax.storage import files as storage
from mvp_jax.storage import leftovers, locks
from tests import bucket

ROOT = pathlib.Path(__file__).resolve().parents[2]


def process(program, *arguments):
    """Another process with the library, whose output is read line by line."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


HOLD = """
import sys, time
from mvp_jax.storage import locks
with locks.held(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def other(tmp_path):
    """A process that has the lock of `tmp_path / "run"`."""
    with process(HOLD, tmp_path / "run") as found:
        assert found.stdout.readline() == "held\n"
        yield found
        found.kill()


def test_a_second_process_is_refused_in_words_until_the_first_is_killed(tmp_path, other):
    folder = tmp_path / "run"
    words = rf"run is in use by another run \(process {other.pid} on "
    with pytest.raises(ValueError, match=words) as refused, locks.held(folder):
        pass
    assert "stop it, or choose another folder" in str(refused.value)
    with pytest.raises(ValueError, match="in use"), locks.held(folder, wait=0.1):
        pass
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert json.loads((folder / locks.NAME).read_text())["pid"] == other.pid  # what the kill left
    with locks.held(folder) as alone:
        assert alone
        assert json.loads((folder / locks.NAME).read_text()) == {"host": leftovers.host(), "pid": os.getpid()}
    assert os.listdir(folder) == []


def test_whoever_waits_gets_the_lock_when_the_other_is_done(tmp_path):
    program = HOLD.replace("time.sleep(600)", "time.sleep(0.5)")
    with process(program, tmp_path) as first:
        first.stdout.readline()
        with locks.held(tmp_path, wait=60):
            assert first.wait() == 0
            with pytest.raises(ValueError, match="in use"), locks.held(tmp_path):
                pass


@pytest.mark.parametrize("left", [b"", b"{", b"[1]", b'{"host": "elsewhere", "pid": 1}'])
def test_what_a_killed_owner_left_does_not_matter(tmp_path, left):
    (tmp_path / locks.NAME).write_bytes(left)
    with locks.held(tmp_path):
        pass
    assert not (tmp_path / locks.NAME).exists()


def test_a_thousand_turns_of_four_processes_never_overlap(tmp_path):
    program = """
import os, sys
from mvp_jax.storage import locks
for _ in range(250):
    with locks.held(sys.argv[1], wait=120):
        inside = os.open(sys.argv[1] + "/inside", os.O_CREAT | os.O_EXCL)  # refused if anybody else is inside
        os.close(inside)
        os.unlink(sys.argv[1] + "/inside")
"""
    all_of_them = [process(program, tmp_path) for _ in range(4)]
    for one in all_of_them:
        _, errors = one.communicate(timeout=300)
        assert one.returncode == 0, errors
    assert os.listdir(tmp_path) == []


@pytest.fixture
def remote(tmp_path, monkeypatch):
    (tmp_path / "objects").mkdir()
    monkeypatch.setenv("BUCKET_ROOT", str(tmp_path / "objects"))
    monkeypatch.setenv("EPATH_USE_TF", "false")
    bucket.register()
    from etils.epath import gpath

    gpath._is_tf_installed.cache_clear()
    yield storage.path("gs://bucket/run")
    gpath._is_tf_installed.cache_clear()


def test_in_a_bucket_a_notice_stands_for_the_lock(remote, capsys):
    def notice(host, pid):
        storage.write_bytes(remote / locks.NAME, json.dumps({"host": host, "pid": pid}).encode())

    notice(leftovers.host(), os.getppid())
    with pytest.raises(ValueError, match=rf"in use by another run \(process {os.getppid()} on "), locks.held(remote):
        pass
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    notice(leftovers.host(), ended.pid)
    with locks.held(remote) as alone:
        assert not alone
    assert capsys.readouterr().err == ""
    notice("elsewhere", 7)
    with locks.held(remote):
        assert json.loads((remote / locks.NAME).read_text())["pid"] == os.getpid()
    assert "was in use by process 7 of elsewhere, which did not say that it ended" in capsys.readouterr().err
    assert not storage.exists(remote / locks.NAME)


def test_where_the_system_has_no_locks_it_is_a_notice_too(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "fcntl", None)
    (tmp_path / locks.NAME).write_text(json.dumps({"host": leftovers.host(), "pid": os.getppid()}))
    with pytest.raises(ValueError, match="in use by another run"), locks.held(tmp_path):
        pass


WRITER = """
import random, sys
import numpy as np
from mvp_jax import bank
store = bank.create(sys.argv[1], fingerprint="f" * 64, settings={"ratio": 0.5}, exist_ok=True)
tasks = [f"task-{i:02d}" for i in range(40)]
random.Random(sys.argv[2]).shuffle(tasks)
made = 0
for task in tasks:
    if bank.has(store, task):
        continue
    entry = bank.BankEntry(task=task, classes=(1, 2), fingerprint="f" * 64, ratio=0.5, accuracy=0.5)
    try:
        bank.add(store, entry, {"units": {"fc": np.full(1000, int(sys.argv[2]))}})
        made += 1
    except ValueError as error:
        assert "already in the bank" in str(error) or "by another process" in str(error), error
bank.write_readme(store)
print(made)
"""


def test_two_writers_of_one_bank_are_both_right(tmp_path):
    writers = [process(WRITER, tmp_path / "bank", seed) for seed in (1, 2)]
    made = []
    for writer in writers:
        output, errors = writer.communicate(timeout=300)
        assert writer.returncode == 0, errors
        made.append(int(output))
    store = bank.open(tmp_path / "bank")
    assert bank.verify(store) == 40 == sum(made)
    values = [set(np.unique(bank.load(entry)["units"]["fc"]).tolist()) for entry in bank.entries(store)]
    assert [sum(v == {seed} for v in values) for seed in (1, 2)] == made  # each entry is of one writer alone
    assert not [p for p in tmp_path.rglob("*") if p.name.startswith(".")]


CREATOR = """
import sys, time
from mvp_jax import bank
time.sleep(max(0, float(sys.argv[3]) - time.time()))
try:
    bank.create(sys.argv[1], fingerprint="f" * 64, settings={"ratio": float(sys.argv[2])}, exist_ok=True)
    print("made")
except ValueError as error:
    print(error)
"""


def test_of_two_that_make_a_bank_of_different_settings_one_is_refused(tmp_path):
    start = time.time() + 3
    both = [process(CREATOR, tmp_path / "bank", ratio, start) for ratio in (0.25, 0.5)]
    said = sorted(one.communicate(timeout=300)[0] for one in both)
    assert said[0] == "made\n"
    assert "was made with other settings: ratio is" in said[1]
