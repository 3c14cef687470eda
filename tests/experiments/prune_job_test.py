"""The job `prune`: the embedded data from one command, and twenty wrong inputs that are told in one line each."""

import csv
import importlib
import json

import numpy as np
import pytest
import safetensors.numpy
from ml_collections import ConfigDict
from PIL import Image

from mvp_jax.delivery import sample, tuning
from mvp_jax.experiments import command_line, planning, prune_job, run
from tests import folders, own_data

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # how ml_collections reads a file


def config(**values):
    made = importlib.import_module("configs.prune").get_config("runlocal")
    return command_line.changed(made, {name.replace("__", "."): value for name, value in values.items()})


def test_the_embedded_data_need_no_checkpoint(tmp_path, capsys):
    given = config(finetune__steps=4, finetune__looks=2, data__limit=200, ratio=0.5)
    rows = run.run(given, tmp_path)
    said = capsys.readouterr().err
    assert "data: digits, pictures of 10 classes: 200 to train" in said
    assert "50 % of the units" in (tmp_path / "report.md").read_text().replace("\n", " ")
    with (tmp_path / "results.csv").open() as stream:
        written = list(csv.DictReader(stream))
    assert [(r["method"], r["split"]) for r in written] == [
        (method, split) for method in ("unpruned", "gradual") for split in ("valid", "test")
    ]
    report = json.loads((tmp_path / "report.json").read_text())
    assert float(written[3]["accuracy"]) == report["versions"][1]["scores"][0]["value"] == rows[3]["accuracy"]
    assert run.run(given, tmp_path) == rows, "a finished run is read"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"sparsity": 0.5, "ratio": 0.5}, "sparsity and ratio are given"),
        ({"sparsity": 0.5, "keep_accuracy": 0.9}, "keep_accuracy"),
        ({"sparsity": 1.5}, r"share in \(0, 1\)"),
        ({"remove": "layers"}, "choose 'weights' or 'units'"),
        ({"sparsity": 0.5, "remove": "units"}, "removes weights"),
        ({"finetune__batch": 0}, "positive"),
        ({"finetune__learning_rate": -1.0}, "the rate is positive"),
    ],
)
def test_goals_and_settings_are_checked(values, words):
    with pytest.raises(ValueError, match=words):
        prune_job.plan(config(**values))


def test_goals_become_the_library_s():
    assert prune_job.goal(config()).in_words() == "80 % of the weights removed"
    assert prune_job.goal(config(keep_accuracy=0.99, remove="units")).name == "ratio"
    assert prune_job.goal(config(latency=0.5)).amount == 0.5


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return folders.bert_encoder(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vit") / "vit"
    return sample.sample_checkpoint(folder, own_data.squares(), steps=0)


def _rows(path, rows, header="text,label"):
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return {"data__name": str(path)}


def _good(path, count=40):
    return _rows(path, [f"text {i} is {('good', 'bad')[i % 2]},{('good', 'bad')[i % 2]}" for i in range(count)])


def _broken_picture(root):
    own_data.pictures(root, each=12)
    (root / "left" / "3.jpg").write_bytes(b"\xff\xd8 no picture")
    return {"data__name": str(root)}


def _no_classes(root):
    root.mkdir()
    Image.new("RGB", (4, 4)).save(root / "a.png")
    return {"data__name": str(root)}


def _empty_class(root):
    own_data.pictures(root, each=12)
    (root / "nothing").mkdir()
    return {"data__name": str(root)}


def _bytes(path, content):
    path.write_bytes(content)
    return {"data__name": str(path)}


def _test_part(folder, rows):
    (folder / "test.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    return {**_good(folder / "a.csv"), "data__test": str(folder / "test.csv")}


WRONG = {
    "an empty file": (lambda d: _bytes(d / "a.csv", b""), "empty"),
    "a header alone": (lambda d: _rows(d / "a.csv", []), "no rows|no examples|empty|header"),
    "one class": (lambda d: _rows(d / "a.csv", [f"t {i},good" for i in range(30)]), "class"),
    "a column that is not there": (lambda d: {**_good(d / "a.csv"), "data__label": "labl"}, "labl"),
    "a label only in the test file": (lambda d: _test_part(d, ["this is new,other"] * 3), "other"),
    "mixed encodings": (lambda d: _bytes(d / "a.csv", b"text,label\nfine,good\n\xe9t\xe9,bad\n"), "UTF-8"),
    "a row with a field too many": (lambda d: _rows(d / "a.csv", ["a,good", "b,bad,c"] * 9), "lines 3, 5"),
    "a JSON line that is none": (lambda d: _bytes(d / "a.jsonl", b'{"text": "a", "label": "b"}\n[1]\n'), "line 2"),
    "no such file": (lambda d: {"data__name": str(d / "revews.csv")}, "revews.csv"),
    "an unknown ending": (lambda d: _bytes(d / "a.xyz", b"text"), "xyz"),
    "a missing text": (lambda d: _rows(d / "a.csv", ["a,good", ",bad"] * 20), "lines 3, 5.*nothing in column"),
    "too few of a class": (lambda d: _rows(d / "a.csv", ["a,x", *(f"b{i},y" for i in range(30))]), "x"),
    "a broken picture": (lambda d: _broken_picture(d / "p"), "3.jpg"),
    "pictures without classes": (lambda d: _no_classes(d / "p"), "class"),
    "a class without pictures": (lambda d: _empty_class(d / "p"), "nothing"),
    "pictures for a model of texts": (lambda d: {"data__name": "digits"}, "reads texts"),
    "a checkpoint that is not there": (lambda d: {**_good(d / "a.csv"), "checkpoint": str(d / "bert")}, "bert"),
    "a checkpoint of another family": (lambda d: {**_good(d / "a.csv"), "checkpoint": _foreign(d)}, "t5"),
    "no tokeniser": (lambda d: {**_good(d / "a.csv"), "checkpoint": _without_words(d)}, "tokenizer.json nor vocab.txt"),
    "texts that are no longer than nothing": (lambda d: {**_good(d / "a.csv"), "data__length": 2}, "4 to 32 tokens"),
    "the columns are one": (lambda d: {**_good(d / "a.csv"), "data__text": "label"}, "label"),
    "no checkpoint for data of one's own": (lambda d: {**_good(d / "a.csv"), "checkpoint": ""}, "checkpoint=FOLDER"),
}
"""What is wrong: how it is made, and what the line says."""


def _foreign(folder):
    there = folder / "t5"
    there.mkdir()
    (there / "config.json").write_text(json.dumps({"model_type": "t5"}))
    safetensors.numpy.save_file({"shared.weight": np.zeros((2, 2), np.float32)}, there / "model.safetensors")
    return str(there)


def _without_words(folder):
    there = folders.bert_encoder(folder / "bare")
    (there / "vocab.txt").unlink()
    return str(there)


@pytest.mark.parametrize("what", WRONG)
def test_wrong_inputs_are_told_in_one_line_before_any_training(what, bert, tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "train_dense", lambda *_: pytest.fail("trained"))
    make, words = WRONG[what]
    given = {"checkpoint": str(bert), "data__limit": None, **make(tmp_path)}
    with pytest.raises(ValueError, match=words) as caught:
        run.run(config(**given), tmp_path / "out")
    assert command_line.ours(caught.value), "it would end in a traceback"
    assert len(str(caught.value).splitlines()) <= 4
    assert not (tmp_path / "out").exists()


def test_a_folder_of_another_run_is_refused(bert, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    made = config(**_good(tmp_path / "a.csv"), checkpoint=str(bert), data__limit=None)
    with pytest.raises(ValueError, match=r"thesis\.txt"):
        run.run(made, tmp_path / "out")


def test_texts_for_a_model_of_pictures(vit, tmp_path):
    with pytest.raises(ValueError, match="reads pictures"):
        planning.plan(config(**_good(tmp_path / "a.csv"), checkpoint=str(vit), data__limit=None))


def test_every_setting_reaches_the_library():
    made = config(
        method="imp",
        kinds=("head",),
        metric="accuracy",
        data__length=16,
        finetune__epochs=2.0,
        export__onnx=True,
        seed=3,
    )
    found = prune_job.settings(made)
    assert (found.method, found.kinds, found.metric, found.length) == ("imp", ("head",), "accuracy", 16)
    assert (found.training.epochs, found.programs, found.seed) == (2.0, ("onnx",), 3)
    assert isinstance(made, ConfigDict)
