"""A checkpoint and data in, a folder out: what is in it is what the report says, whenever the run is killed."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from mvp_jax import models, pretrained
from mvp_jax.core import trees
from mvp_jax.data.datasets import labelled
from mvp_jax.data.datasets.labelled import LabelledData, LabelledPart
from mvp_jax.delivery import checkpoint_pruning, inputs, pruning, tuning
from mvp_jax.delivery.checkpoint_pruning import DeliverySettings
from mvp_jax.delivery.goals import PruningGoal
from mvp_jax.delivery.tuning import DeliveryTraining
from tests.own_data import BRIEF, reviews, squares


@pytest.fixture(scope="module")
def done(photos, vit, tmp_path_factory):
    """Half of the heads and neurons, from a folder of JPEG of several sizes."""
    out = tmp_path_factory.mktemp("done")
    settings = DeliverySettings(training=BRIEF, goal=PruningGoal(name="ratio", amount=0.5), programs=("stablehlo",))
    return checkpoint_pruning.prune_checkpoint(vit, photos, out=out, settings=settings), out


def test_the_folder_is_what_the_report_says(done, photos):
    found, out = done
    report = json.loads((out / "report.json").read_text())
    versions = {v["name"]: v for v in report["versions"]}
    assert [*versions] == ["dense", "pruned", "slim"]
    # The scores once more, from the folders and the pictures alone.
    data = labelled.read(photos)
    for folder, name in (("model", "pruned"), ("slim", "slim"), ("dense", "dense")):
        model, variables = pretrained.load(out / folder)
        task = inputs.read(out / folder, data)
        assert task.trained
        assert task.class_names == ("left", "lower", "right", "upper")
        logits = np.asarray(model.apply(variables, task.test["x"])[0])
        accuracy = float((logits.argmax(-1) == np.asarray(task.test["y"])).mean())
        assert accuracy == pytest.approx(versions[name]["scores"][0]["value"]), folder
    assert versions["dense"]["scores"][0]["value"] > 0.5, "nothing was learned, so that nothing is shown"
    size = sum(np.size(leaf) for leaf in jax.tree.leaves(found.slim.params))
    assert versions["slim"]["parameters"] == size < versions["dense"]["parameters"]
    assert found.slim_model.config.mlp == (16,)
    assert found.slim_model.config.heads == (2,)
    assert all(layer["kept"] * 2 == layer["size"] for layer in report["layers"])
    assert (out / "program").is_dir()
    assert not (out / "running").exists(), "states of a finished run are left behind"
    assert "halves" in (out / "report.html").read_text()


def test_slim_and_masked_compute_the_same(done):
    found, _ = done
    x = np.random.default_rng(0).normal(size=(5, 8, 8, 3)).astype(np.float32)
    masked, slim = found.model.apply(found.variables, x)[0], found.slim_model.apply(found.slim, x)[0]
    np.testing.assert_allclose(masked, slim, atol=1e-4)
    assert float(np.abs(masked).max()) > 0.05


def test_the_model_folder_has_the_processor_and_the_names(done, vit):
    _, out = done
    assert (out / "model" / "preprocessor_config.json").read_bytes() == (vit / "preprocessor_config.json").read_bytes()
    described = json.loads((out / "model" / "config.json").read_text())
    assert described["id2label"] == {"0": "left", "1": "lower", "2": "right", "3": "upper"}
    assert described["intermediate_size"] == 16


def test_a_finished_folder_is_read_and_other_settings_are_refused(done, photos, vit, monkeypatch):
    found, out = done
    settings = DeliverySettings(training=BRIEF, goal=PruningGoal(name="ratio", amount=0.5), programs=("stablehlo",))
    monkeypatch.setattr(pruning, "prune", lambda *_: pytest.fail("pruned again"))
    again = checkpoint_pruning.prune_checkpoint(vit, photos, out=out, settings=settings)
    assert again.report == found.report
    assert again.share == 0.5
    for one, other in zip(
        jax.tree.leaves((again.variables, again.masks, again.slim)),
        jax.tree.leaves((found.variables, found.masks, found.slim)),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(ValueError, match=r"goal is 50 % of the units .* there and 80 % of the weights removed here"):
        checkpoint_pruning.prune_checkpoint(vit, photos, out=out, settings=DeliverySettings(training=BRIEF))


def test_single_weights_go_exactly_and_zeros_take_no_room(photos, vit, tmp_path):
    found = checkpoint_pruning.prune_checkpoint(
        vit, photos, out=tmp_path, sparsity=0.75, settings=DeliverySettings(training=BRIEF)
    )
    flags = trees.flatten(trees.select(found.variables.params, found.model.prunable))
    leaves = {path: leaf for path, leaf in trees.flatten(found.variables.params).items() if flags[path]}
    size = sum(leaf.size for leaf in leaves.values())
    assert sum(int(np.count_nonzero(leaf)) for leaf in leaves.values()) == round(size / 4)
    # What other tools read has the same zeros.
    stored = safetensors.numpy.load_file(tmp_path / "model" / "model.safetensors")
    kernels = [a for name, a in stored.items() if a.ndim == 2 and "classifier" not in name]
    assert sum(int(np.count_nonzero(a)) for a in kernels) == round(size / 4)
    _, slim = pretrained.load(tmp_path / "slim")
    for one, other in zip(jax.tree.leaves(slim), jax.tree.leaves(found.variables), strict=True):
        np.testing.assert_array_equal(one, other)
    sizes = [(tmp_path / name).stat().st_size for name in ("slim/weights.safetensors", "model/model.safetensors")]
    assert sizes[0] < 0.62 * sizes[1]
    again = checkpoint_pruning.prune_checkpoint(
        vit, photos, out=tmp_path, sparsity=0.75, settings=DeliverySettings(training=BRIEF)
    )
    np.testing.assert_array_equal(
        trees.flatten(again.masks)["layers/0/fc1/kernel"], trees.flatten(found.masks)["layers/0/fc1/kernel"]
    )


class KilledError(Exception):
    """Stands for the end of the process."""


def test_a_killed_run_ends_as_one_that_was_not_killed(photos, vit, tmp_path, monkeypatch):
    settings = DeliverySettings(training=BRIEF)
    whole = checkpoint_pruning.prune_checkpoint(vit, photos, out=tmp_path / "whole", settings=settings)
    scores, calls, kills = tuning.scores, [], [2, 5, 8, 11]

    def dies(*given):
        calls.append(0)
        if len(calls) in kills:
            raise KilledError
        return scores(*given)

    monkeypatch.setattr(tuning, "scores", dies)
    for _ in range(len(kills) + 1):
        try:
            killed = checkpoint_pruning.prune_checkpoint(vit, photos, out=tmp_path / "killed", settings=settings)
        except KilledError:
            continue
    assert len(calls) > max(kills)
    for one, other in zip(jax.tree.leaves(killed.variables), jax.tree.leaves(whole.variables), strict=True):
        np.testing.assert_array_equal(one, other)
    strip = [[tuple(c) for c in r.curves] for r in (killed.report, whole.report)]
    assert strip[0] == strip[1]


def test_a_head_that_knows_the_classes_is_kept_whatever_their_order(vit):
    known = pretrained.class_names(vit)
    assert known == ("left", "right")
    y = np.array([0, 1, 1, 0], np.int32)
    part = LabelledPart(x=squares(1).train.x, y=y)
    data = LabelledData(name="d", kind="pictures", train=part, valid=part, test=part, class_names=("right", "left"))
    task = inputs.read(vit, data)
    assert task.trained
    assert task.class_names == known
    assert np.asarray(task.valid["y"]).tolist() == [1, 0, 0, 1], "labels are numbers of outputs now"
    assert DeliveryTraining().dense_for(task) == 0


def test_texts_with_labels_in_words(bert, tmp_path):
    data = reviews(tmp_path / "reviews.csv")
    settings = DeliverySettings(training=dataclasses.replace(BRIEF, steps=12, batch=8), goal=PruningGoal(amount=0.5))
    found = checkpoint_pruning.prune_checkpoint(bert, data, out=tmp_path / "out", settings=settings)
    described = json.loads((tmp_path / "out" / "model" / "config.json").read_text())
    assert described["id2label"] == {"0": "bad", "1": "good"}
    assert (tmp_path / "out" / "model" / "vocab.txt").read_bytes() == (bert / "vocab.txt").read_bytes()
    assert [s.metric for s in found.report.versions[0].scores] == ["accuracy", "f1"]
    assert dict(found.report.facts)["columns"] == "text: text, label: label"


def test_a_regression(bert, tmp_path):
    data = reviews(tmp_path / "scores.csv", numbers=True)
    settings = DeliverySettings(training=dataclasses.replace(BRIEF, steps=8, batch=8))
    found = checkpoint_pruning.prune_checkpoint(bert, data, out=tmp_path / "out", sparsity=0.3, settings=settings)
    assert [s.metric for s in found.report.versions[0].scores] == ["pearson", "spearman"]
    assert found.model.num_classes == 1
    described = json.loads((tmp_path / "out" / "model" / "config.json").read_text())
    assert described["problem_type"] == "regression"
    model, variables = pretrained.load(tmp_path / "out" / "model")
    assert model.apply(variables, np.ones((2, 8), np.int32))[0].shape == (2, 1)


def test_the_first_training_examples_are_of_all_classes(vit, photos):
    """Files are sorted by class; heads and batch statistics are fitted to the first examples."""
    task = inputs.read(vit, labelled.read(photos))
    y = np.asarray(task.train["y"])
    assert len(set(y[:16].tolist())) == 4
    names = [task.class_names[i] for i in y]
    for i in (0, 5):  # pictures and labels were moved together
        bright = np.asarray(task.train["x"][i]).mean(-1)
        sides = {
            "left": bright[:, :4],
            "right": bright[:, 4:],
            "upper": bright[:4],
            "lower": bright[4:],
        }
        assert max(sides, key=lambda side: sides[side].mean()) == names[i]


def test_a_regression_s_own_head_is_kept(bert, tmp_path):
    data = reviews(tmp_path / "scores.csv", numbers=True)
    settings = DeliverySettings(training=dataclasses.replace(BRIEF, steps=2, looks=1))
    checkpoint_pruning.prune_checkpoint(bert, data, out=tmp_path / "out", sparsity=0.3, settings=settings)
    for folder in ("dense", "slim"):
        task = inputs.read(tmp_path / "out" / folder, labelled.read(data))
        assert task.trained, folder
        assert settings.training.dense_for(task) == 0


def test_a_model_that_transformers_lacks_is_a_folder_of_this_package(photos, tmp_path):
    """A ResNet of this package for grey pictures, without a processor."""
    model = models.create("resnet8", width=4, image_size=8, channels=1, classes=4, conv="im2col")
    pretrained.save(tmp_path / "own", model, model.init(jax.random.key(0)))
    settings = DeliverySettings(
        training=dataclasses.replace(BRIEF, steps=4, looks=2), goal=PruningGoal(name="ratio", amount=0.5)
    )
    found = checkpoint_pruning.prune_checkpoint(tmp_path / "own", photos, out=tmp_path / "out", settings=settings)
    assert pretrained.is_saved(tmp_path / "out" / "model")
    assert any("a folder of this package" in note for note in found.report.notes)
    assert found.slim_model.config.inner_widths == (((2,),), ((4,),), ((8,),))
    x = inputs.read(tmp_path / "own", labelled.read(photos)).test["x"]
    model, variables = pretrained.load(tmp_path / "out" / "slim")
    np.testing.assert_allclose(model.apply(variables, x)[0], found.model.apply(found.variables, x)[0], atol=1e-3)
