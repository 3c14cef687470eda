"""The jobs `bank` and `from_bank`: a bank is built and given more tasks, and a person's new task is pruned from it."""

import dataclasses
import importlib
import json

import jax
import numpy as np
import pytest
from PIL import Image

from mvp_jax import bank, pretrained
from mvp_jax.data import sources
from mvp_jax.data.datasets import labelled
from mvp_jax.delivery import bank_pruning, sample
from mvp_jax.delivery.bank_pruning import BankPruningSettings
from mvp_jax.experiments import planning
from mvp_jax.experiments import run as experiment
from mvp_jax.methods.few_shot import ifp


def of(name, arg=None):
    config = importlib.import_module(f"configs.{name}").get_config(arg)
    if "chunk" in config:
        config.chunk = 2  # whatever the number of tasks, so that all builds share their programs
        config.bank.rounds = 1
        config.bank.steps_per_round, config.bank.final_steps = 2, 2
    return config


def pictures(folder, classes, each=10, side=8):
    """Digits as PNG files, a folder for each class."""
    source = sources.digits()
    for name, digit in classes.items():
        (folder / name).mkdir(parents=True)
        for i in np.flatnonzero(source.train.y == digit)[:each]:
            image = Image.fromarray(np.round(source.train.x[i, ..., 0] * 255).astype(np.uint8))
            image.resize((side, side)).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A bank of four drawn tasks, in a folder of its own."""
    room = tmp_path_factory.mktemp("built")
    rows = experiment.run(of("bank", f"bank={room / 'bank'},runlocal"), room / "run")
    return room / "bank", rows


@pytest.fixture(scope="module")
def grown(built, tmp_path_factory):
    """The same bank with a person's own task, of pictures twice as large."""
    room = tmp_path_factory.mktemp("grown")
    pictures(room / "mine" / "even or odd", {"two": 2, "three": 3}, side=16)
    experiment.run(of("bank", f"bank={built[0]},tasks={room / 'mine'},runlocal"), room / "run")
    return built[0], room


def test_a_bank_is_built_with_its_model_and_a_description(built):
    store = bank.open(built[0])
    assert bank.verify(store) == len(built[1]) == 4
    model, variables = bank.load_model(store)
    assert model.input_shape == (8, 8, 1)
    assert bank.fingerprint(variables) == store.fingerprint
    assert store.about.class_names == tuple("0123456789")
    assert "written: 4;" in (built[0] / "README.md").read_text()
    assert (built[0] / "model" / "preprocessor_config.json").is_file()
    assert not (built[0] / "diverged").exists()


def test_the_model_in_the_bank_sees_pictures_as_the_job_did(built, tmp_path):
    pictures(tmp_path / "task", {"a": 4, "b": 7})
    with bank_pruning.plan(built[0], tmp_path / "task", BankPruningSettings()) as made:
        got = np.concatenate([np.asarray(part["x"]) for part in (made.inputs.train, made.inputs.valid)])
    source = sources.digits()
    want = source.train.x[np.isin(source.train.y, (4, 7))]
    nearest = [np.abs(want - x).max((1, 2, 3)).min() for x in got]
    assert len(nearest) > 10
    assert max(nearest) < 0.5 / 255 + 1e-6  # a PNG has 256 levels


def test_a_task_of_ones_own_is_added_and_not_made_again(grown, monkeypatch, tmp_path):
    store = bank.open(grown[0])
    assert bank.verify(store) == 5
    (entry,) = (e for e in bank.entries(store) if e.task == "even or odd")
    assert entry.class_names == ("three", "two")
    assert bank.load(entry)["variables"].params["head"]["bias"].shape == (2,)
    others = [bank.load(e)["units"] for e in bank.entries(store) if e.task != entry.task]
    own = bank.load(entry)["units"]
    assert {n: int(u.sum()) for n, u in own.items()} == {n: int(u.sum()) for n, u in others[0].items()}
    before = (grown[0] / "entries" / "even or odd" / "entry.json").read_bytes()
    pictures(grown[1] / "mine" / "other", {"one": 1, "five": 5})
    searched = []
    search = ifp.search
    monkeypatch.setattr(ifp, "search", lambda *a, **k: searched.append(1) or search(*a, **k))
    rows = experiment.run(of("bank", f"bank={grown[0]},tasks={grown[1] / 'mine'},runlocal"), tmp_path)
    assert [row["task"] for row in rows] == ["even or odd", "other"]
    assert searched == [1]
    assert (grown[0] / "entries" / "even or odd" / "entry.json").read_bytes() == before


def test_more_tasks_are_drawn_for_a_bank_that_is_there(built, tmp_path):
    before = {e.task: e for e in bank.entries(bank.open(built[0]))}
    config = of("bank", f"bank={built[0]},runlocal")
    config.bank.tasks = 6
    rows = experiment.run(config, tmp_path)
    after = {e.task: e for e in bank.entries(bank.open(built[0]))}
    assert len(rows) == 6
    assert all(after[name] == entry for name, entry in before.items())
    assert not (tmp_path / "pretrain").exists()  # the bank has the model
    assert json.loads((tmp_path / "tasks.json").read_text()) == rows


def test_a_new_task_is_pruned_from_the_bank(grown, tmp_path):
    pictures(tmp_path / "pets", {"cat": 3, "dog": 8}, each=20, side=20)
    config = of("mvp", f"bank={grown[0]},target={tmp_path / 'pets'}")
    config.finetune.steps = 5
    rows = experiment.run(config, tmp_path / "out")
    assert [(row["method"], row["split"]) for row in rows] == [
        ("dense", "valid"),
        ("dense", "test"),
        ("mvp", "valid"),
        ("mvp", "test"),
    ]
    dense, slim = rows[0], rows[2]
    assert slim["params"] < dense["params"] / 2
    assert slim["flops"] < dense["flops"]
    model, variables = pretrained.load(tmp_path / "out" / "slim")
    assert model.num_classes == 2
    assert sum(np.size(leaf) for leaf in jax.tree.leaves(variables.params)) == slim["params"]
    assert pretrained.load(tmp_path / "out" / "model")[0].num_classes == 2
    report = (tmp_path / "out" / "report.html").read_text()
    for said in ("even or odd", "training examples of a class", "held-out test examples", "5 entries"[1:]):
        assert said in report
    again = experiment.run(config, tmp_path / "out")
    assert [float(r["accuracy"]) for r in again] == [float(r["accuracy"]) for r in rows]


def test_a_fifth_validates_and_a_fifth_tests_from_python_too(grown, tmp_path):
    pictures(tmp_path / "pets", {"cat": 3, "dog": 8}, each=20, side=20)
    with bank_pruning.plan(grown[0], tmp_path / "pets", BankPruningSettings()) as made:
        data = made.inputs.data
        assert [len(part.y) for part in (data.train, data.valid, data.test)] == [24, 8, 8]
    with bank_pruning.plan(grown[0], tmp_path / "pets", BankPruningSettings(seed=1)) as made:
        assert not np.array_equal(made.inputs.data.test.x, data.test.x)  # another seed cuts other parts


@pytest.mark.slow
def test_texts_and_a_checkpoint_of_transformers(tmp_path):
    """A new bank of tables, from a checkpoint; what comes out is a folder for transformers with the tokeniser."""
    pytest.importorskip("tokenizers")
    words = [
        ("red", "warm"),
        ("blue", "cold"),
        ("orange", "warm"),
        ("grey", "cold"),
        ("pink", "warm"),
        ("teal", "cold"),
    ]
    (tmp_path / "tasks").mkdir()
    for name, nouns in (("cars", ("car", "van")), ("hats", ("hat", "cap"))):
        rows = [
            f"the {colour} {noun} number {i},{label}" for noun in nouns for i in range(4) for colour, label in words
        ]
        (tmp_path / "tasks" / f"{name}.csv").write_text("\n".join(["text,label", *rows]))
    checkpoint = sample.sample_checkpoint(tmp_path / "bert", labelled.read("docstrings", limit=200), steps=0)
    config = of("bank", f"bank={tmp_path / 'bank'},tasks={tmp_path / 'tasks'},checkpoint={checkpoint}")
    config.data.length = 16
    rows = experiment.run(config, tmp_path / "run")
    assert [(row["task"], row["classes"]) for row in rows] == [("cars", "cold, warm"), ("hats", "cold, warm")]
    store = bank.open(tmp_path / "bank")
    assert bank.verify(store) == 2
    assert store.settings["optimizer"] == "adamw"
    assert "tokenizer_config.json" in [p.name for p in (tmp_path / "bank" / "model").iterdir()]
    settings = BankPruningSettings(steps=2, length=16)
    found = bank_pruning.prune_from_bank(
        tmp_path / "bank", tmp_path / "tasks" / "cars.csv", out=tmp_path / "out", settings=settings
    )
    assert {task for task, _ in found.neighbours} == {"cars", "hats"}
    assert "vocab.txt" in [p.name for p in (tmp_path / "out" / "model").iterdir()]
    assert json.loads((tmp_path / "out" / "model" / "config.json").read_text())["id2label"]["1"] == "warm"
    with pytest.raises(ValueError, match="holds a run of other settings: steps is 2 there and 3 here"):
        bank_pruning.prune_from_bank(
            tmp_path / "bank",
            tmp_path / "tasks" / "cars.csv",
            out=tmp_path / "out",
            settings=dataclasses.replace(settings, steps=3),
        )


def test_what_cannot_be_done_is_said_before_any_work(built, tmp_path):
    pictures(tmp_path / "tasks" / "one", {"a": 4, "b": 7})
    (tmp_path / "empty").mkdir()
    cases = [
        (f"bank={tmp_path / 'none'},tasks={tmp_path / 'tasks'}", "no checkpoint to prune"),
        (f"bank={built[0]},tasks={tmp_path / 'empty'}", "holds no tasks"),
        (f"bank={built[0]},tasks={tmp_path / 'nowhere'}", "no folder"),
        (f"bank={built[0]},tasks={tmp_path / 'tasks' / 'one'}", "2 classes|found|class"),
    ]
    for arg, message in cases:
        with pytest.raises(ValueError, match=message):
            planning.plan(of("bank", arg))
    config = of("bank", f"bank={built[0]},runlocal")
    config.prune.ratio = 0.5
    with pytest.raises(ValueError, match=r"other settings: ratio is 0\.875 in the bank, 0\.5 asked for"):
        planning.plan(config)
    for method in ("reptile_iht", "vote_universal", "dense"):
        config = of("mvp", f"bank={built[0]},target={tmp_path / 'tasks' / 'one'}")
        config.method = method
        with pytest.raises(ValueError, match=f"{method!r} cannot prune for one task alone; choose one of .*'mvp'"):
            planning.plan(config)
    with pytest.raises(ValueError, match="is not a bank"):
        planning.plan(of("mvp", f"bank={tmp_path},target={tmp_path / 'tasks' / 'one'}"))
    with pytest.raises(ValueError, match="give bank=BANK and target=FOLDER together"):
        of("mvp", "bank=x")
