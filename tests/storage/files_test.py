"""Files are whole or absent, in a folder and in a bucket; a run in a bucket ends as one in a folder does."""

import os
import pathlib
import subprocess
import sys
import time

import jax
import matplotlib.image
import numpy as np
import pytest

from configs import isp
from mvp_jax import bank, models, pretrained
from mvp_jax.experiments import command_line, run_folder, sparsity_report, sweep
from mvp_jax.experiments import run as experiment
from mvp_jax.storage import checkpoint, event_files, records
from mvp_jax.storage import files as storage
from tests import bucket

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def remote(tmp_path, monkeypatch):
    """An address in an empty bucket; nothing but objects may come of it."""
    root, here = tmp_path / "objects", tmp_path / "here"
    root.mkdir()
    here.mkdir()
    monkeypatch.setenv("BUCKET_ROOT", str(root))
    monkeypatch.setenv("EPATH_USE_TF", "false")
    monkeypatch.chdir(here)
    bucket.register()
    from etils.epath import gpath

    gpath._is_tf_installed.cache_clear()
    yield "gs://bucket/run"
    assert list(here.iterdir()) == [], "an address was taken for a path of this machine"
    assert not [name for name in os.listdir(root) if name.startswith(".")], "an upload was left open"
    gpath._is_tf_installed.cache_clear()


@pytest.fixture(params=["folder", "bucket"])
def place(request, tmp_path):
    return storage.path(request.getfixturevalue("remote") if request.param == "bucket" else tmp_path / "run")


def test_files_are_written_listed_and_removed(place):
    assert not storage.exists(place)
    assert storage.listing(place) == []
    storage.write_bytes(place / "a" / "one.txt", b"old")
    storage.write_bytes(place / "a" / "one.txt", b"new")
    storage.write_bytes(place / "two.txt", b"2")
    assert (place / "a" / "one.txt").read_bytes() == b"new"
    assert storage.listing(place) == ["a", "two.txt"]
    assert storage.exists(place / "a")
    with storage.local(place / "two.txt") as here:
        assert here.name == "two.txt"
        assert pathlib.Path(here).read_bytes() == b"2"
    storage.remove(place / "two.txt")
    storage.remove(place / "two.txt" if not storage.is_remote(place) else place / "a")
    assert not storage.exists(place / "two.txt")


def test_what_fails_half_way_changes_nothing(place):
    storage.write_bytes(place / "a.txt", b"old")

    def fail():
        with storage.replacing(place / "a.txt") as here:
            here.write_text("half")
            assert (place / "a.txt").read_bytes() == b"old"
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert (place / "a.txt").read_bytes() == b"old"
    with storage.replacing(place / "a.txt") as here:
        here.write_text("new")
    assert (place / "a.txt").read_bytes() == b"new"
    assert [p.name for p in place.iterdir()] == ["a.txt"]


def test_a_folder_counts_when_its_marker_is_there(place, monkeypatch):
    files = {"weights": b"1", "model.json": b"{}"}
    storage.write_folder(place / "m", files | {"more": b"x"}, "model.json")
    storage.write_folder(place / "m", files, "model.json")
    assert storage.listing(place / "m") == ["model.json", "weights"]
    assert storage.complete(place / "m", "model.json")
    assert not storage.complete(place / "n", "model.json")
    if storage.is_remote(place):
        (place / "n" / "weights").write_bytes(b"1")  # the kill came before the marker
        assert not storage.complete(place / "n", "model.json")


def test_addresses_that_nothing_reads_are_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"'ftp://h/x' cannot be read; give a folder, or an address that begins with"):
        storage.path("ftp://h/x")
    import fsspec

    if "s3" not in fsspec.registry:
        with pytest.raises(ValueError, match=r"'s3://b/x' cannot be read: Install s3fs .*; pip install s3fs") as caught:
            experiment.run(isp.get_config("runlocal"), "s3://b/x")
        assert "\n" not in str(caught.value)


def test_a_bucket_that_refuses_is_one_line(remote):
    with pytest.raises(ValueError, match=r"cannot write to gs://forbidden/run: 403: .*; choose a folder that can be"):
        run_folder.claim(storage.path("gs://forbidden/run"), isp.get_config("runlocal"))


def test_metrics_and_boards_go_on(place):
    for after, steps in ((None, (1, 2, 3)), (2, (3, 4))):
        with (
            event_files.Board(place / "board", after=after) as board,
            records.MetricsWriter(place / "metrics.jsonl", after=after, board=board) as metrics,
        ):
            for step in steps:
                metrics.write(step=step, loss=step / 4)
            metrics.flush()
            assert records.read_metrics(place / "metrics.jsonl")[-1]["step"] == steps[-1]
    assert [line["step"] for line in records.read_metrics(place / "metrics.jsonl")] == [1, 2, 3, 4]
    assert len(storage.listing(place / "board")) == 2


def test_a_bucket_is_not_written_at_every_line(remote, monkeypatch):
    written = []
    monkeypatch.setattr(records, "write_text", lambda path, text: (written.append(text), time.sleep(0.02)))
    with records.MetricsWriter(f"{remote}/metrics.jsonl") as metrics:
        for step in range(500):
            metrics.write(step=step)
    assert 2 <= len(written) < 20, "the first at once, all at the end, and little between"
    assert written[-1].count("\n") == 500


def test_states_go_on_in_a_bucket(remote):
    state = {"a": np.arange(3, dtype=np.float32), "key": jax.random.key(1), "n": 3}
    folder = storage.path(remote)
    with checkpoint.Checkpoints(remote, keep=2) as saved:
        assert saved.latest() is None
        for step in (1, 2, 3):
            saved.save(step, state | {"a": state["a"] * step})
        assert saved.steps() == [2, 3]
    storage.write_bytes(folder / "4" / "state" / "half", b"")  # what a killed save leaves
    with checkpoint.Checkpoints(remote, keep=2) as saved:
        assert saved.latest() == 3
        found = saved.restore(state)
        np.testing.assert_array_equal(found["a"], [0, 3, 6])
        assert found["n"] == 3
        np.testing.assert_array_equal(jax.random.key_data(found["key"]), jax.random.key_data(state["key"]))
        with pytest.raises(ValueError, match=r"of another state: a is float32\[3\], float32\[4\] wanted"):
            saved.restore(state | {"a": np.zeros(4, np.float32)})
        saved.save(4, state)
        assert saved.steps() == [3, 4]
    largest = max((p for p in (folder / "4" / "state" / "d").iterdir()), key=lambda p: p.stat().length)
    largest.write_bytes(largest.read_bytes()[:9])


def test_banks_and_models_are_found_again(place):
    made = bank.create(place / "bank", fingerprint="f" * 64, settings={"ratio": 0.5})
    for task in ("b", "a c"):
        entry = bank.BankEntry(task=task, classes=(1, 2), fingerprint="f" * 64, ratio=0.5, accuracy=0.9)
        bank.add(made, entry, {"units": {"fc": np.array([True, False])}})
    with pytest.raises(ValueError, match="task 'b' is already in the bank"):
        bank.add(made, entry.__class__(**{**vars(entry), "task": "b"}), {"units": {}})
    again = bank.create(place / "bank", fingerprint="f" * 64, settings={"ratio": 0.5}, exist_ok=True)
    if storage.is_remote(place):
        storage.write_bytes(again.path / "entries" / "half" / "arrays.safetensors", b"")
        assert not bank.has(again, "half")
    assert [e.task for e in bank.entries(again)] == ["a c", "b"]
    assert bank.verify(again) == 2
    assert bank.ballots(bank.entries(again))["fc"].tolist() == [[True, False]] * 2
    with pytest.raises(ValueError, match="is a bank already"):
        bank.create(place / "bank", fingerprint="f" * 64, settings={})

    model = models.create("vit_micro", image_size=8, channels=1, classes=3, dim=16, heads=2, layers=1)
    variables = model.init(jax.random.key(0))
    for _ in range(2):  # the second replaces the first
        pretrained.save(place / "model", model, variables)
    back, read = pretrained.reload(place / "model")
    assert back.config == model.config
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, read, variables)))


def tiny():
    config = isp.get_config("runlocal")
    config.methods, config.masks_alone, config.ours = ("magnitude", "gradual"), False, "gradual"
    config.model.options.update({"dim": 16, "heads": 2, "layers": 1})
    config.pretrain.steps, config.pretrain.save_every = 4, 2
    config.sparsities, config.keep_rounds = (0.5,), True
    config.tensorboard = True
    return config


def without_times(path):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in records.read_csv(path)]


def test_a_run_in_a_bucket_ends_as_one_in_a_folder(remote, tmp_path, monkeypatch):
    folder = storage.path(remote)
    experiment.run(tiny(), tmp_path / "whole")

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(
            checkpoint.Checkpoints,
            "save",
            lambda self, step, state, of=checkpoint.Checkpoints.save: killed() if step == 4 else of(self, step, state),
        )
        with pytest.raises(KeyboardInterrupt):
            experiment.run(tiny(), remote)
    with checkpoint.Checkpoints(folder / "pretrain" / "states") as saved:
        assert saved.steps() == [2]
    with monkeypatch.context() as patch:
        patch.setattr(sparsity_report, "report", killed)
        with pytest.raises(KeyboardInterrupt):
            experiment.run(tiny(), remote)
    storage.remove(folder / "rows" / storage.listing(folder / "rows")[0])
    experiment.run(tiny(), remote)
    assert without_times(folder / "results.csv") == without_times(tmp_path / "whole" / "results.csv")
    assert len(without_times(folder / "results.csv")) == 4
    ours, theirs = (records.read_metrics(f / "pretrain" / "metrics.jsonl") for f in (folder, tmp_path / "whole"))
    assert ours == theirs
    assert [line["step"] for line in ours] == [2, 4]
    assert storage.listing(folder) == storage.listing(tmp_path / "whole")
    with (folder / "accuracy.png").open("rb") as file:
        assert matplotlib.image.imread(file).std() > 0.01
    assert storage.listing(folder / "board") == ["results"]
    assert storage.listing(folder / "pretrain" / "board")
    with pytest.raises(ValueError, match="holds a run of another config"):
        experiment.run(command_line.changed(tiny(), {"seed": 1}), remote)
    assert len(sweep.summarise([remote])) == 2


@pytest.mark.slow
def test_a_killed_job_in_a_bucket_goes_on(tmp_path):
    root = tmp_path / "objects"
    root.mkdir()
    fields = [
        "--config.model.options.width=4",
        "--config.pretrain.steps=6",
        "--config.pretrain.save_every=3",
        "--config.bank.tasks=3",
        "--config.bank.rounds=1",
        "--config.mapping=loop",
        "--config.methods=('mvp','dense')",
        "--config.tensorboard=True",
    ]

    def command(module, work):
        return [sys.executable, "-m", module, "--config=configs/mvp.py:runlocal", f"--workdir={work}", *fields]

    subprocess.run(command("mvp_jax.main", tmp_path / "whole"), cwd=ROOT, capture_output=True, check=True, timeout=1200)
    env = {**os.environ, "BUCKET_ROOT": str(root), "EPATH_USE_TF": "false", "PYTHONPATH": str(ROOT)}
    run = command("tests.bucket", "gs://bucket/run")
    for awaited in (
        "pretrain/states/3/commit_success.txt",
        "bank/entries/source-0000/entry.json",
        "rows/mvp-0000.json",
    ):
        going = subprocess.Popen(run, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            until = time.monotonic() + 600
            while not (root / f"bucket/run/{awaited}".replace("/", "~")).exists():
                assert going.poll() is None, "ended before it could be killed"
                assert time.monotonic() < until
                time.sleep(0.01)
        finally:
            going.kill()
            going.wait()
    done = subprocess.run(run, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=1200)
    assert done.returncode == 0, done.stderr
    assert (root / "bucket~run~results.csv").read_bytes() == (tmp_path / "whole" / "results.csv").read_bytes()
    assert not (ROOT / "gs:").exists()
