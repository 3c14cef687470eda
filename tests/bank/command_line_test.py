"""`python -m mvp_jax.bank DIR`: what is listed, verified, exported, imported and ranked, and errors in one line."""

import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from mvp_jax import bank, compact, models
from mvp_jax.bank import __main__ as command
from mvp_jax.data.datasets import labelled

MODEL = models.create("resnet8", width=4, image_size=8, channels=1, classes=3)
VARIABLES = MODEL.init(jax.random.key(0))
MARK = bank.fingerprint(VARIABLES)
ABOUT = bank.BankDescription(title="Digits", class_names=("nought", "one", "two"), licence="CC0", weights="made here")


def filled(folder, dense=True):
    store = bank.create(
        folder,
        fingerprint=MARK,
        settings={"ratio": 0.5},
        about=ABOUT,
        dense=(MODEL, VARIABLES) if dense else None,
    )
    for i in range(3):
        kept = {g.name: (np.arange(g.size) + i) % 2 == 0 for g in MODEL.groups}
        two = MODEL.with_classes(2)
        slim = compact.cut(two.init(jax.random.key(i)), two.groups, kept)
        entry = bank.BankEntry(
            task=f"task {i}", classes=(i, (i + 1) % 3), fingerprint=MARK, ratio=0.5, accuracy=0.6 + i / 10
        )
        bank.add(store, entry, {"variables": slim, "units": kept, "saliency": kept})
    return store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return filled(tmp_path_factory.mktemp("bank"))


def said(capsys, *argv):
    """Exit status, lines of the output and lines of the errors."""
    status = command.main([str(word) for word in argv])
    out, err = capsys.readouterr()
    return status, out.splitlines(), err.splitlines()


def test_entries_are_listed_by_the_names_of_their_classes(store, capsys):
    for words in ((), ("list",)):
        status, out, err = said(capsys, store.path, *words)
        assert (status, err) == (0, [])
        assert out[0] == f"{store.path}: Digits"
        assert out[1].startswith("3 entries; it holds its pre-trained model, the resnet")
        assert out[3].split() == ["task", "removed", "accuracy", "classes"]
        assert out[5] == "task 1  50.0%    70.0%     one, two"
        assert len(out) == 7
    assert len(said(capsys, store.path, "list", "--first", 1)[1]) == 5


def test_without_its_model_the_list_says_whose_is_needed(tmp_path, capsys):
    filled(tmp_path, dense=False)
    status, out, _ = said(capsys, tmp_path)
    assert status == 0
    assert f"it needs the pre-trained model with the fingerprint {MARK[:12]} (made here)" in out[1]
    status, out, err = said(capsys, tmp_path, "rank", tmp_path / "data.npz")
    assert (status, out, len(err)) == (1, [], 1)
    assert "does not hold its pre-trained model: it needs" in err[0]


def test_a_sound_bank_is_verified_and_each_problem_is_a_line(tmp_path, capsys):
    store = filled(tmp_path)
    assert said(capsys, tmp_path, "verify")[:2] == (0, [f"{tmp_path}: 3 entries are sound; {bank.needs(store)}"])
    file = tmp_path / "entries" / "task 0" / "arrays.safetensors"
    file.write_bytes(file.read_bytes()[:-3])
    (tmp_path / "entries" / "task 2" / "entry.json").write_text("{")
    (tmp_path / "model" / "weights.safetensors").write_bytes(b"")
    status, out, err = said(capsys, tmp_path, "verify")
    assert (status, err, len(out)) == (1, [], 3)
    assert "the pre-trained model: " in out[0]
    assert "entries/task 0: " in out[1]
    assert "entries/task 2: " in out[2]


def test_one_file_and_back(store, tmp_path, capsys):
    status, out, _ = said(capsys, store.path, "export", tmp_path / "bank.zip")
    assert status == 0
    assert out[0].startswith(f"{tmp_path / 'bank.zip'}: ")
    status, out, _ = said(capsys, tmp_path / "copy", "import", tmp_path / "bank.zip")
    assert status == 0
    assert "3 entries; it holds its pre-trained model" in out[0]
    assert said(capsys, tmp_path / "copy", "verify")[0] == 0
    for argv in ((store.path, "export", tmp_path / "bank.zip"), (store.path, "import", tmp_path / "bank.zip")):
        status, out, err = said(capsys, *argv)
        assert (status, out, len(err)) == (1, [], 1)
        assert err[0].startswith("error: ")
        assert "there already" in err[0]


def test_the_entries_nearest_to_a_task(store, tmp_path, capsys):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(6, 8, 8, 1)).astype(np.float32), np.arange(6) % 2
    np.savez(tmp_path / "data.npz", x=x, y=y)
    status, out, _ = said(capsys, store.path, "rank", tmp_path / "data.npz", "--k", 2)
    entries = bank.entries(store)
    near = np.asarray(bank.similarities_to(entries, MODEL.with_classes(2), VARIABLES, {"x": x, "y": y}))
    assert np.ptp(near) > 1e-4
    assert status == 0
    assert [line[:6] for line in out[1:]] == [entries[i].task for i in np.argsort(-near)[:2]]
    assert f"{near.max():.4f}" in out[1]
    np.savez(tmp_path / "wrong.npz", x=x[:, :4], y=y)
    for name, message in (("wrong.npz", "of the shape [8, 8, 1]"), ("none.npz", "no file")):
        status, _, err = said(capsys, store.path, "rank", tmp_path / name)
        assert status == 1
        assert message in err[0]


def test_pictures_are_ranked_as_the_processor_makes_them(tmp_path, capsys):
    store = filled(tmp_path / "bank", dense=False)
    (tmp_path / "source").mkdir()
    described = {"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 8}, "do_normalize": False}
    (tmp_path / "source" / "preprocessor_config.json").write_text(json.dumps(described))
    bank.store_model(store, MODEL, VARIABLES, source=tmp_path / "source")
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(10):
            Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(tmp_path / "pets" / name / f"{i}.png")
    status, out, err = said(capsys, tmp_path / "bank", "rank", tmp_path / "pets")
    assert (status, err, len(out)) == (0, [], 4)
    data = labelled.read(tmp_path / "pets").train
    x = np.stack([np.asarray(p)[..., :1] for p in data.x]).astype(np.float32) / 255
    near = bank.similarities_to(bank.entries(store), MODEL.with_classes(2), VARIABLES, {"x": x, "y": data.y})
    assert f"{max(near):.4f}" in out[1]
    (tmp_path / "texts.csv").write_text("\n".join(["text,label", *(f"text {i},{'ab'[i % 2]}" for i in range(20))]))
    status, _, err = said(capsys, tmp_path / "bank", "rank", tmp_path / "texts.csv")
    assert status == 1
    assert "texts.csv holds texts, and the bank's entries tell classes of pictures apart" in err[0]


def test_a_bucket_is_read(remote, tmp_path, capsys):
    filled(remote)
    assert said(capsys, remote)[1][0] == f"{remote}: Digits"
    assert said(capsys, remote, "verify")[0] == 0
    assert said(capsys, remote, "export", tmp_path / "bank.zip")[0] == 0
    assert said(capsys, tmp_path / "copy", "import", tmp_path / "bank.zip")[0] == 0


def test_names_do_not_steer_the_terminal(tmp_path, capsys):
    store = bank.create(tmp_path, fingerprint=MARK, settings={}, about=bank.BankDescription(title="\x1b[2Jgone"))
    bank.add(store, bank.BankEntry(task="t", classes=(0,), fingerprint=MARK, ratio=0, accuracy=0), {"units": {}})
    status, out, _ = said(capsys, tmp_path)
    assert status == 0
    assert out[0].endswith("?[2Jgone")


def test_as_a_program(tmp_path):
    root = pathlib.Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "mvp_jax.bank", str(tmp_path / "none")], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: {tmp_path / 'none'} is not a bank of version 1 (`bank.create` makes one)")
