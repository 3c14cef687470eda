"""A bank carries what a person needs: a description, a readme and its pre-trained model, and old banks still open."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from mvp_jax import bank, models, pretrained
from mvp_jax.data.checkpoint_inputs import images
from mvp_jax.storage import files

MODEL = models.create("resnet8", width=4, image_size=8, channels=1, classes=3)
VARIABLES = MODEL.init(jax.random.key(0))
MARK = bank.fingerprint(VARIABLES)
ABOUT = bank.BankDescription(
    title="Digits, a bank for a test",
    class_names=("nought", "one", "two"),
    inputs={"size": [8, 8], "channels": 1, "scale": 1 / 255},
    weights="pre-trained for this test",
    licence="CC0",
)


def entry_of(task, **changes):
    values = {"classes": (2, 0), "fingerprint": MARK, "ratio": 0.5, "accuracy": 0.75}
    return bank.BankEntry(task=task, **values | changes)


def made(folder, **changes):
    return bank.create(folder, **{"fingerprint": MARK, "settings": {"ratio": 0.5}, "about": ABOUT} | changes)


def test_a_bank_alone_gives_its_model_and_says_what_it_is(tmp_path):
    made(tmp_path / "bank", dense=(MODEL, VARIABLES))
    store = bank.open(tmp_path / "bank")
    model, variables = bank.load_model(store)
    assert model is MODEL
    jax.tree.map(np.testing.assert_array_equal, variables, VARIABLES)
    assert models.from_json(store.about.model) == MODEL.config
    assert dataclasses.replace(store.about, model={}) == ABOUT
    text = (tmp_path / "bank" / "README.md").read_text()
    for said in (
        "Digits, a bank for a test",
        MARK[:12],
        "CC0",
        "pre-trained for this test",
        "nought, one, two",
        '"size"',
    ):
        assert said in text
    assert "stored in `model/`" in text
    assert "it holds its pre-trained model, the resnet" in bank.needs(store)


def test_the_readme_counts_the_entries_when_it_is_written(tmp_path):
    store = made(tmp_path)
    for task in "ab":
        bank.add(store, entry_of(task), {"units": {}})
    assert "written: 0;" in (tmp_path / "README.md").read_text()
    bank.write_readme(store)
    text = (tmp_path / "README.md").read_text()
    assert "written: 2;" in text
    assert "**not stored here**" in text
    with pytest.raises(ValueError, match="open for reading"):
        bank.write_readme(bank.open(tmp_path))


def test_without_its_model_a_bank_says_whose_it_needs(tmp_path):
    store = made(tmp_path, about=dataclasses.replace(ABOUT, model=models.to_json(MODEL.config)))
    with pytest.raises(ValueError, match=f"needs the resnet with the fingerprint {MARK[:12]} .pre-trained for"):
        bank.load_model(store)
    bank.store_model(store, MODEL, VARIABLES)
    assert bank.load_model(store)[0] is MODEL


def test_another_model_is_refused_before_anything_is_written_and_when_it_is_loaded(tmp_path):
    other = MODEL.init(jax.random.key(1))
    with pytest.raises(ValueError, match="not the bank's pre-trained model"):
        made(tmp_path / "new", dense=(MODEL, other))
    assert not (tmp_path / "new").exists()
    store = made(tmp_path / "bank")
    with pytest.raises(ValueError, match="not the bank's pre-trained model"):
        bank.store_model(store, MODEL, other)
    assert not bank.has_model(store)
    pretrained.save(tmp_path / "bank" / "model", MODEL, other)
    with pytest.raises(ValueError, match="holds another model than the bank's"):
        bank.load_model(store)


def test_the_files_that_prepare_inputs_go_with_the_model(tmp_path):
    source = tmp_path / "checkpoint"
    source.mkdir()
    described = {"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 8}, "do_normalize": False}
    (source / "preprocessor_config.json").write_text(json.dumps(described))
    for name in ("LICENSE", "training.log"):
        (source / name).write_text(f"{name}!")
    folder = bank.store_model(made(tmp_path / "bank"), MODEL, VARIABLES, source=source, labels=ABOUT.class_names)
    assert {"LICENSE", "model.json", "preprocessor_config.json", "weights.safetensors"} <= set(files.listing(folder))
    assert "training.log" not in files.listing(folder)
    assert images.processor(folder).size == (8, 8)
    copy = bank.unpack(bank.pack(bank.open(tmp_path / "bank"), tmp_path / "bank.zip"), tmp_path / "copy")
    assert files.listing(copy.path / "model") == files.listing(folder)
    assert pretrained.class_names(copy.path / "model") == ABOUT.class_names


def test_a_bank_of_an_earlier_release_opens_and_gets_a_description(tmp_path):
    old = {"format": "mvp_jax bank", "version": 1, "fingerprint": MARK, "settings": {"ratio": 0.5}}
    entry = dataclasses.asdict(entry_of("old")) | {"checksum": "0"}
    del entry["path"], entry["class_names"]
    (tmp_path / "manifest.json").write_text(json.dumps(old))
    (tmp_path / "entries" / "old").mkdir(parents=True)
    (tmp_path / "entries" / "old" / "entry.json").write_text(json.dumps(entry))
    store = bank.open(tmp_path)
    assert store.about == bank.BankDescription()
    (found,) = bank.entries(store)
    assert (found.classes, found.class_names, bank.class_names(store, found)) == ((2, 0), (), ("2", "0"))
    made(tmp_path, exist_ok=True, dense=(MODEL, VARIABLES))
    again = bank.open(tmp_path)
    assert bank.class_names(again, found) == ("two", "nought")
    assert bank.load_model(again)[0] is MODEL
    made(tmp_path, exist_ok=True, about=dataclasses.replace(ABOUT, licence="mine"))  # the first description stays
    assert bank.open(tmp_path).about.licence == "CC0"


@pytest.mark.parametrize(
    "about", [{"title": 3}, {"model": []}, {"inputs": "x"}, {"class_names": "abc"}, {"licence": None}, []]
)
def test_a_description_of_the_wrong_kind_is_no_bank(tmp_path, about):
    content = {"format": "mvp_jax bank", "version": 1, "fingerprint": MARK, "settings": {}, "about": about}
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"is not a bank of version 1.*wrong type"):
        bank.open(tmp_path)


@pytest.mark.parametrize("field", ["task", "classes", "ratio", "accuracy", "class_names"])
def test_an_entry_of_the_wrong_kind_is_damaged(tmp_path, field):
    store = made(tmp_path)
    bank.add(store, entry_of("a"), {"units": {}})
    file = tmp_path / "entries" / "a" / "entry.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {field: [None]}))
    with pytest.raises(ValueError, match=r"entries/a: entry\.json is missing or damaged"):
        bank.entries(store)


def test_names_of_an_entrys_own_come_first(tmp_path):
    store = made(tmp_path)
    bank.add(store, entry_of("mine", class_names=("cat", "dog")), {"units": {}})
    (found,) = bank.entries(store)
    assert bank.class_names(store, found) == ("cat", "dog")
    with pytest.raises(ValueError, match="has 2 classes and 1 names"):
        bank.add(store, entry_of("wrong", class_names=("cat",)), {"units": {}})


def test_shapes_that_do_not_fit_the_model_are_problems(tmp_path):
    store = made(tmp_path, dense=(MODEL, VARIABLES))
    groups = {g.name: np.arange(g.size) < g.size // 2 for g in MODEL.groups}
    slim = MODEL.with_classes(2).resize({name: int(u.sum()) for name, u in groups.items()})
    sound = {"variables": slim.init(jax.random.key(3)), "units": groups}
    bank.add(store, entry_of("sound"), sound)
    assert list(bank.problems(store)) == []
    bank.add(store, entry_of("dense"), {**sound, "variables": VARIABLES})
    bank.add(store, entry_of("foreign"), {"units": {"no/such": np.ones(3, bool)}})
    bank.add(store, entry_of("long"), {**sound, "units": groups | {MODEL.groups[0].name: np.ones(77, bool)}})
    found = list(bank.problems(bank.open(tmp_path)))
    assert len(found) == 3
    assert "entries/dense: " in found[0]
    assert "arrays do not fit the slim model" in found[0]
    assert "entries/foreign: it prunes groups that the model lacks" in found[1]
    assert "entries/long: units of" in found[2]
    with pytest.raises(ValueError, match="3 of 4 entries are not sound"):
        bank.verify(store)


def test_a_bank_in_a_bucket_is_read_whole(remote):
    store = made(remote, dense=(MODEL, VARIABLES))
    for task in "abc":
        bank.add(store, entry_of(task), {"units": {}})
    again = bank.open(remote)
    assert [e.task for e in bank.entries(again)] == ["a", "b", "c"]
    assert bank.load_model(again)[0] is MODEL
    assert bank.verify(again) == 3
