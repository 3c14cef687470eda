"""The bank: entries are whole or not there, belong to one pre-trained model, and stack for a vote."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time

import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict
from hypothesis import given
from hypothesis import strategies as st

from mvp_jax import bank
from mvp_jax.core import trees
from mvp_jax.core.types import Variables
from mvp_jax.storage import leftovers

PRINT = "0" * 64
SETTINGS = {"method": "ifp", "rounds": 3, "tuning": {"rate": 0.02, "steps": 60}}


def entry_of(name, **changes):
    values = {
        "task": name,
        "classes": (3, 5, 8),
        "fingerprint": PRINT,
        "ratio": 0.5,
        "accuracy": 0.75,
        "cost": {"steps": 180, "examples": 11520, "flops": 1e9},
        "extra": {"rounds": [0.2, 0.5]},
    }
    return bank.BankEntry(**values | changes)


def arrays_of(seed, kept=2):
    rng = np.random.default_rng(seed)
    units = {
        "stage/conv": np.isin(np.arange(4), rng.choice(4, kept, replace=False)),
        "fc": rng.permutation(6) < 3,
    }
    params = {"stage/conv": {"kernel": rng.normal(size=(3, 3, 1, kept)).astype(np.float32)}}
    return {
        "units": units,
        "variables": Variables(params, {"bn": {"mean": rng.normal(size=kept).astype(np.float32)}}),
        "head": {"kernel": rng.normal(size=(kept, 3)).astype(np.float32), "bias": np.zeros(3, np.float32)},
        "saliency": {k: rng.uniform(size=v.shape).astype(np.float32) for k, v in units.items()},
    }


def made(folder, names=("b", "a", "c")):
    store = bank.create(folder, fingerprint=PRINT, settings=SETTINGS)
    for i, name in enumerate(names):
        bank.add(store, entry_of(name), arrays_of(i))
    return store


def assert_same(a, b):
    left, right = trees.flatten(a), trees.flatten(b)
    assert left.keys() == right.keys()
    assert left
    for path, leaf in left.items():
        assert leaf.dtype == right[path].dtype
        np.testing.assert_array_equal(leaf, right[path], err_msg=path)


def test_entries_come_back(tmp_path):
    store = made(tmp_path / "bank")
    for again in (store, bank.open(tmp_path / "bank", fingerprint=PRINT, settings=SETTINGS)):
        found = bank.entries(again)
        assert [e.task for e in found] == ["a", "b", "c"]
        for e, seed in zip(found, (1, 0, 2), strict=True):
            assert_same(bank.load(e), arrays_of(seed))
            assert isinstance(bank.load(e)["variables"], Variables)
            assert dataclasses.replace(e, path=None, checksum="") == entry_of(e.task)
        assert bank.has(again, "a")
        assert not bank.has(again, "d")
        assert bank.verify(again) == 3
    assert_same(bank.load(found[0], only=["head"]), {"head": arrays_of(1)["head"]})
    hash(found[0])
    with pytest.raises(ValueError, match="open for reading"):
        bank.add(again, entry_of("z"), {})


@given(name=st.text(min_size=1, max_size=12))
def test_any_name_will_do(tmp_path_factory, name):
    store = bank.create(tmp_path_factory.mktemp("bank"), fingerprint=PRINT, settings={})
    try:
        name.encode()
    except UnicodeEncodeError:
        return
    bank.add(store, entry_of(name), {"units": {}})
    assert bank.has(store, name)
    assert not bank.has(store, name + "x")
    assert [e.task for e in bank.entries(store)] == [name]
    assert bank.verify(store) == 1


def test_values_of_numpy_and_jax_are_stored_as_numbers(tmp_path):
    store = made(tmp_path)
    given = entry_of(
        "n",
        classes=tuple(np.arange(2)),
        ratio=np.float32(0.5),
        accuracy=jnp.float32(0.25),
        cost={"steps": np.int64(3)},
        extra={"curve": jnp.ones(2)},
    )
    found = bank.add(store, given, {"units": {"g": jnp.array([True])}})
    assert (found.classes, found.ratio, found.accuracy, found.cost) == ((0, 1), 0.5, 0.25, {"steps": 3})
    assert found.extra == {"curve": [1.0, 1.0]}


@pytest.mark.parametrize(
    ("changes", "arrays", "message"),
    [
        ({"task": "a"}, {}, "already in the bank"),
        ({"fingerprint": "1" * 64}, {}, "another pre-trained model"),
        ({"ratio": 1.0}, {}, r"ratio in \[0, 1\)"),
        ({"accuracy": 75.0}, {}, r"accuracy in \[0, 1\]"),
        ({"accuracy": float("nan")}, {}, "accuracy nan"),
        ({"classes": ()}, {}, "at least one class"),
        ({"task": ""}, {}, "a name"),
        ({"extra": {"f": print}}, {}, "plain JSON"),
        ({"cost": {"flops": float("inf")}}, {}, "plain JSON"),
        ({}, {"units": {"g": [True]}}, "'units/g' is a list"),
    ],
)
def test_what_does_not_belong_is_refused_and_leaves_nothing(tmp_path, changes, arrays, message):
    store = made(tmp_path, ["a"])
    with pytest.raises(ValueError, match=message):
        bank.add(
            store,
            entry_of(**{"name": "new"} | ({"name": changes.pop("task")} if "task" in changes else {}) | changes),
            arrays,
        )
    assert os.listdir(tmp_path / "entries") == ["a"]


def test_another_model_or_other_settings_are_refused(tmp_path):
    made(tmp_path)
    for call in (bank.open, lambda *a, **k: bank.create(*a, exist_ok=True, **({"settings": SETTINGS} | k))):
        with pytest.raises(ValueError, match="belongs to another pre-trained model: its fingerprint is 000000000000"):
            call(tmp_path, fingerprint="f" * 64)
        other = {"method": "ifp", "rounds": 4, "tuning": {"steps": 60}, "new": None}
        with pytest.raises(ValueError, match="made with other settings") as caught:
            call(tmp_path, fingerprint=PRINT, settings=other)
        text = str(caught.value)
        assert "rounds is 3 in the bank, 4 asked for" in text
        assert "tuning/rate is 0.02 in the bank, 'missing' asked for" in text
        assert "new is 'missing' in the bank, None asked for" in text
        assert "steps" not in text
        assert "method" not in text
    with pytest.raises(ValueError, match="is a bank already"):
        bank.create(tmp_path, fingerprint=PRINT, settings=SETTINGS)
    assert len(bank.entries(bank.create(tmp_path, fingerprint=PRINT, settings=SETTINGS, exist_ok=True))) == 3


def test_what_is_no_bank_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is not a bank"):
        bank.open(tmp_path / "none")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"neither empty \(\['notes.txt'\]\) nor a bank"):
        bank.create(tmp_path, fingerprint=PRINT, settings={})
    assert os.listdir(tmp_path) == ["notes.txt"]
    for content in ("{", "[]", "{}", json.dumps({"format": "x", "version": 1, "fingerprint": "", "settings": {}})):
        (tmp_path / "manifest.json").write_text(content)
        with pytest.raises(ValueError, match="is not a bank of version 1"):
            bank.open(tmp_path)
    with pytest.raises(ValueError, match="settings must be plain JSON"):
        bank.create(tmp_path / "new", fingerprint=PRINT, settings={"f": print})
    assert not (tmp_path / "new").exists()


def test_a_folder_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot write to"):
        bank.create(tmp_path / "file" / "bank", fingerprint=PRINT, settings={})
    store = made(tmp_path / "bank")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(ValueError, match="No space left"):
        bank.add(store, entry_of("z"), arrays_of(0))
    assert sorted(os.listdir(tmp_path / "bank" / "entries")) == ["a", "b", "c"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is read-only to the superuser")
def test_a_read_only_bank_opens_for_reading_alone(tmp_path):
    made(tmp_path)
    (tmp_path / "entries").chmod(0o500)
    assert len(bank.entries(bank.open(tmp_path))) == 3
    with pytest.raises(ValueError, match="cannot write to"):
        bank.open(tmp_path, write=True)


def test_damage_is_found_and_named(tmp_path):
    store = made(tmp_path, ["a", "b", "c", "d"])
    a, b, c, d = (tmp_path / "entries" / n for n in "abcd")
    content = (a / "arrays.safetensors").read_bytes()
    (a / "arrays.safetensors").write_bytes(content[:-7])
    flipped = bytearray((b / "arrays.safetensors").read_bytes())
    flipped[-1] ^= 1
    (b / "arrays.safetensors").write_bytes(flipped)
    first, second = bank.entries(store)[:2]
    with pytest.raises(ValueError, match=r"entries/a: .*checksum.*delete that folder"):
        bank.load(first)
    with pytest.raises(ValueError, match=r"entries/a: cannot read .*cut short"):
        bank.load(first, check=False)
    with pytest.raises(ValueError, match=r"entries/b: .*checksum"):
        bank.load(second)
    (c / "entry.json").write_text((c / "entry.json").read_text()[:40])
    (d / "arrays.safetensors").unlink()
    with pytest.raises(ValueError, match="4 of 4 entries are not sound") as caught:
        bank.verify(store)
    assert all(str(folder) in str(caught.value) for folder in (a, b, c, d))
    with pytest.raises(ValueError, match=r"entries/c: entry\.json is missing or damaged"):
        bank.entries(store)
    with pytest.raises(ValueError, match="in no bank yet"):
        bank.load(entry_of("z"))


BUILD = """
import os, sys
import numpy as np
from mvp_jax import bank
folder, count = sys.argv[1], int(sys.argv[2])
if len(sys.argv) > 3:  # dies on its way from the hidden folder to the open one
    os.rename = lambda *a: os._exit(9)
store = bank.create(folder, fingerprint="0" * 64, settings={}, exist_ok=True)
for i in range(count):
    if bank.has(store, f"task-{i}"):
        continue
    entry = bank.BankEntry(task=f"task-{i}", classes=(i,), fingerprint="0" * 64, ratio=0.5, accuracy=0.5)
    weights = np.random.default_rng(i).normal(size=1 << 17).astype(np.float32)
    bank.add(store, entry, {"units": {"g": np.arange(8) % (i + 2) == 0}, "variables": {"w": weights}})
    print(i, flush=True)
"""


def build(folder, count, *more):
    return subprocess.Popen(
        [sys.executable, "-c", BUILD, str(folder), str(count), *more], stdout=subprocess.PIPE, text=True
    )


def test_a_killed_build_loses_nothing(tmp_path):
    for wait in (0.013, 0.037):
        process = build(tmp_path, 10_000)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        store = bank.open(tmp_path)
        assert bank.verify(store) == len(bank.entries(store)) > 0
    before = {e.task: e for e in bank.entries(store)}
    with build(tmp_path, len(before) + 1, "die") as process:
        process.wait()
    assert process.returncode == 9
    assert {e.task: e for e in bank.entries(store)} == before
    assert any(n.startswith(".tmp-") for n in os.listdir(tmp_path / "entries"))
    with build(tmp_path, len(before) + 2) as process:
        assert process.wait() == 0
    assert not any(n.startswith(".tmp-") for n in os.listdir(tmp_path / "entries"))
    assert bank.verify(store) == len(before) + 2
    after = {e.task: e for e in bank.entries(store)}
    assert all(after[name] == e for name, e in before.items())


def test_a_writer_leaves_the_work_of_another_alone(tmp_path):
    (tmp_path / "entries").mkdir()
    (tmp_path / ".tmp-manifest.json-1").write_text("{")  # killed before its manifest: begun again
    store = made(tmp_path)
    hidden = tmp_path / "entries" / f"{leftovers._mine()}{os.getpid()}~x"
    hidden.mkdir()
    elsewhere = tmp_path / "entries" / ".tmp-another-host~1~x"
    elsewhere.mkdir()
    bank.open(tmp_path, write=True)
    assert hidden.exists()
    assert elsewhere.exists()
    assert len(bank.entries(store)) == 3


def test_the_lock_of_a_killed_maker_is_removed(tmp_path):
    (tmp_path / "bank").mkdir()
    (tmp_path / "bank" / ".lock").write_text('{"host": "here", "pid": 1}')  # killed before its manifest
    made(tmp_path / "bank")
    (tmp_path / "bank" / ".lock").write_text('{"host": "here", "pid": 1}')  # killed after its manifest
    bank.create(tmp_path / "bank", fingerprint=PRINT, settings=bank.open(tmp_path / "bank").settings, exist_ok=True)
    assert not (tmp_path / "bank" / ".lock").exists()


def test_a_reader_never_sees_half_an_entry(tmp_path):
    store = bank.create(tmp_path, fingerprint=PRINT, settings={})
    reader = bank.open(tmp_path)
    errors = []

    def write():
        try:
            for i in range(40):
                bank.add(store, entry_of(f"t{i:02d}"), arrays_of(i))
        except BaseException as error:
            errors.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    seen = []
    while writer.is_alive():
        seen.append(bank.verify(reader))
    writer.join()
    assert not errors
    assert seen == sorted(seen)
    assert len(set(seen)) > 2
    assert bank.verify(reader) == 40


def test_of_two_writers_of_one_task_the_first_stays(tmp_path, monkeypatch):
    store = made(tmp_path, ["a"])
    rename = os.rename

    def late(source, target):
        monkeypatch.setattr(os, "rename", rename)
        bank.add(store, entry_of("b"), arrays_of(1))
        rename(source, target)

    monkeypatch.setattr(os, "rename", late)
    with pytest.raises(ValueError, match=r"'b' was added to the bank .* by another process"):
        bank.add(store, entry_of("b"), arrays_of(2))
    assert_same(bank.load(bank.entries(store)[1]), arrays_of(1))
    assert sorted(os.listdir(tmp_path / "entries")) == ["a", "b"]


def test_ballots_and_weights_stack(tmp_path):
    found = bank.entries(made(tmp_path))
    ballots, weights = bank.ballots(found), bank.weights(found)
    assert {k: (v.shape, v.dtype) for k, v in ballots.items()} == {
        "stage/conv": ((3, 4), np.dtype(bool)),
        "fc": ((3, 6), np.dtype(bool)),
    }
    assert len({row.tobytes() for row in ballots["fc"]}) > 1
    for i, seed in enumerate((1, 0, 2)):
        np.testing.assert_array_equal(ballots["fc"][i], arrays_of(seed)["units"]["fc"])
        np.testing.assert_array_equal(
            weights.params["stage/conv"]["kernel"][i], arrays_of(seed)["variables"].params["stage/conv"]["kernel"]
        )
    assert bank.stacked(found, "head")["kernel"].shape == (3, 2, 3)
    with pytest.raises(ValueError, match=r"nothing named \['nothing'\]; it has"):
        bank.stacked(found, "nothing")
    with pytest.raises(ValueError, match="no entries"):
        bank.ballots([])


def test_entries_that_do_not_stack_are_named(tmp_path):
    store = made(tmp_path, ["a"])
    bank.add(store, entry_of("wide"), arrays_of(1, kept=3))
    found = bank.entries(store)
    assert bank.ballots(found)["stage/conv"].shape == (2, 4)  # in the dense index space, so these still do
    with pytest.raises(ValueError, match=r"kernel is \(3, 3, 1, 2\) in 'a' and \(3, 3, 1, 3\) in 'wide'"):
        bank.weights(found)
    bank.add(store, entry_of("other"), {"units": {"fc": np.ones(6, bool)}})
    with pytest.raises(ValueError, match="differ in structure"):
        bank.ballots(bank.entries(store))


def test_fingerprints_tell_contents_apart():
    params = {"a": {"kernel": jnp.arange(6.0).reshape(2, 3)}, "b": jnp.zeros(3, jnp.bfloat16)}
    base = bank.fingerprint(Variables(params, {}))
    assert len(base) == 64
    assert base == bank.fingerprint(Variables(FrozenDict(params), {}))
    assert base == bank.fingerprint(Variables({"b": np.asarray(params["b"]), "a": params["a"]}, {}))
    others = [
        {**params, "b": jnp.zeros(3, jnp.float16)},
        {**params, "c": jnp.zeros(0)},
        {**params, "a": {"kernel": jnp.arange(6.0).reshape(3, 2)}},
        {**params, "a": {"weight": params["a"]["kernel"]}},
        {**params, "a": {"kernel": params["a"]["kernel"].at[1, 2].set(5.0001)}},
    ]
    assert len({base, *(bank.fingerprint(Variables(p, {})) for p in others)}) == 6
    assert bank.fingerprint(Variables({}, params)) != base
