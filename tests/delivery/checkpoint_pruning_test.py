"""A checkpoint and data in, a folder out: what is in it is what the report says, whenever the run is killed."""

import csv
import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from mvp_jax import models, pretrained
from mvp_jax.core import trees
from mvp_jax.data.datasets import labelled
from mvp_jax.data.datasets.labelled import LabelledData, LabelledPart
from mvp_jax.delivery import checkpoint_pruning, inputs, pruning, sample, tuning, writing
from mvp_jax.delivery.checkpoint_pruning import DeliverySettings
from mvp_jax.delivery.goals import PruningGoal
from mvp_jax.delivery.tuning import DeliveryTraining
from tests import folders

CLASSES = ("left", "right", "upper", "lower")
BRIEF = DeliveryTraining(steps=40, batch=16, looks=3, learning_rate=1e-2)


def pictures(root, each=40, sizes=((9, 12), (8, 8), (16, 10))):
    """A folder for each class: which half of the picture is bright; JPEG of several sizes."""
    rng = np.random.default_rng(0)
    for name in CLASSES:
        (root / name).mkdir(parents=True)
        for i in range(each):
            height, width = sizes[i % len(sizes)]
            x = rng.integers(0, 90, (height, width, 3))
            half = {
                "left": np.s_[:, : width // 2],
                "right": np.s_[:, width // 2 :],
                "upper": np.s_[: height // 2],
                "lower": np.s_[height // 2 :],
            }[name]
            x[half] += 150
            Image.fromarray(x.astype(np.uint8)).save(root / name / f"{i}.jpg", quality=90)
    return root


def squares(count=40):
    """The same, of one size, for the checkpoint that is made on the spot."""
    rng = np.random.default_rng(1)
    y = np.arange(4 * count, dtype=np.int32) % 4
    x = rng.integers(0, 90, (len(y), 8, 8, 3)).astype(np.uint8)
    x[y == 0, :, :4] += 150
    x[y == 1, :, 4:] += 150
    x[y == 2, :4] += 150
    x[y == 3, 4:] += 150
    part = LabelledPart(x=x, y=y)
    return LabelledData(name="squares", kind="pictures", train=part, valid=part, test=part, class_names=CLASSES)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return pictures(tmp_path_factory.mktemp("photos") / "halves")


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    """One layer, trained to tell left from right."""
    patched = pytest.MonkeyPatch()
    small = functools.partial(models.create, layers=1, dim=16, heads=4, mlp=32)
    patched.setattr(sample.models, "create", small)
    made = sample.sample_checkpoint(tmp_path_factory.mktemp("vit") / "vit", squares(), steps=20)
    patched.undo()
    return made


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


def table(path, rows, header=("text", "label")):
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])
    return path


WORDS = {"good": ("fine", "a joy", "great"), "bad": ("dull", "a mess", "poor")}


def reviews(path, count=60, numbers=False):
    rng = np.random.default_rng(0)
    rows = []
    for i in range(count):
        label = ("good", "bad")[i % 2]
        text = f"film {i} is {WORDS[label][rng.integers(3)]}"
        rows.append((text, 0.25 + 4 * (label == "good") if numbers else label))
    return table(path, rows)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    return folders.bert_encoder(folder)


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


def test_the_search_finds_the_most_that_keeps_enough(bert, tmp_path, monkeypatch):
    """Against a score that falls linearly with the share: 1 - share / 2, of a dense score of 1."""
    data = labelled.read(reviews(tmp_path / "r.csv"))
    made = checkpoint_pruning.plan(bert, data, DeliverySettings(goal=PruningGoal(keep_score=0.8)))
    task = checkpoint_pruning._task(made, made.inputs.variables, jax.random.key(0))
    shares = []

    def prune(task, share, states=None):
        shares.append(share)
        return pruning.unpruned(task)._replace(share=share)

    monkeypatch.setattr(pruning, "prune", prune)
    monkeypatch.setattr(tuning, "scores", lambda *_: {"accuracy": 1 - shares[-1] / 2 if shares else 1.0})
    found, trials = pruning.search(task, 0.8)
    assert 0.38 <= found.share <= 0.4
    assert len(trials) <= 6
    assert all(t.enough == (t.amount <= 0.4) for t in trials)
    monkeypatch.setattr(tuning, "scores", lambda *_: {"accuracy": 0.0 if shares else 1.0})
    shares.clear()
    assert pruning.search(task, 0.8)[0] is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"method": "gradul"}, "unknown method"),
        ({"method": "mvp"}, "few_shot"),
        *(
            ({"method": name, "goal": PruningGoal(name="ratio", amount=0.5)}, "prunes single weights.*gradual")
            for name in ("fisher", "snip", "grasp", "wanda", "movement", "movement_soft")
        ),
        ({"kinds": ("filter",), "goal": PruningGoal(name="ratio", amount=0.5)}, "no units of the kinds"),
        ({"goal": PruningGoal(name="parameters", amount=0.01)}, "left, more than the target"),
        ({"length": 1000}, "takes texts of 4 to 32 tokens"),
        ({"metric": "pearson"}, "predicted numbers"),
        ({"metric": "acuracy"}, "no metrics"),
    ],
)
def test_what_does_not_fit_is_told_before_any_training(change, words, bert, tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "train_dense", lambda *_: pytest.fail("trained"))
    data = reviews(tmp_path / "reviews.csv")
    with pytest.raises(ValueError, match=words):
        checkpoint_pruning.prune_checkpoint(bert, data, out=tmp_path / "out", settings=DeliverySettings(**change))
    assert not (tmp_path / "out").exists()


def test_wrong_calls(bert, vit, photos, tmp_path):
    data = reviews(tmp_path / "reviews.csv")
    with pytest.raises(ValueError, match="give one of them"):
        checkpoint_pruning.prune_checkpoint(bert, data, out=tmp_path / "o", sparsity=0.5, ratio=0.5)
    with pytest.raises(ValueError, match="reads pictures"):
        checkpoint_pruning.plan(vit, data, DeliverySettings())
    with pytest.raises(ValueError, match="reads texts"):
        checkpoint_pruning.plan(bert, photos, DeliverySettings())
    (tmp_path / "other" / "model").mkdir(parents=True)
    with pytest.raises(ValueError, match="choose an empty folder"):
        checkpoint_pruning.prune_checkpoint(bert, data, out=tmp_path / "other")
    with pytest.raises(ValueError, match="unknown programs"):
        DeliverySettings(programs=("tflite",))
    assert writing.size_of(data) == data.stat().st_size


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


def test_other_data_under_the_same_name_are_refused(bert, tmp_path):
    """Not the number of examples or the names of the classes, but their labels changed."""
    settings = DeliverySettings(training=dataclasses.replace(BRIEF, steps=2, looks=1))
    made = checkpoint_pruning.plan(bert, reviews(tmp_path / "r.csv"), settings)
    checkpoint_pruning.claim(tmp_path / "out", made)
    text = (tmp_path / "r.csv").read_text().splitlines()
    text[1], text[2] = text[1].replace("good", "bad"), text[2].replace("bad", "good")
    (tmp_path / "r.csv").write_text("\n".join(text))
    other = checkpoint_pruning.plan(bert, tmp_path / "r.csv", settings)
    with pytest.raises(ValueError, match="digest of the examples"):
        checkpoint_pruning.claim(tmp_path / "out", other)


def test_a_share_that_was_measured_is_taken_up_again(bert, tmp_path):
    made = checkpoint_pruning.plan(bert, reviews(tmp_path / "r.csv"), DeliverySettings())
    checkpoint_pruning.claim(tmp_path / "out", dataclasses.replace(made, removal=made.removal._replace(share=0.123)))
    assert checkpoint_pruning.claim(tmp_path / "out", made).removal.share == 0.123


def test_results_do_not_go_among_data_or_into_the_checkpoint(vit, photos):
    made = checkpoint_pruning.plan(vit, photos, DeliverySettings())
    for out, words in ((photos / "out", "folder of the data"), (photos, "folder of the data"), (vit, "the checkpoint")):
        with pytest.raises(ValueError, match=words):
            checkpoint_pruning.run(made, out)
    assert not (photos / "out").exists()
    assert not (vit / "settings.json").exists()


def test_a_regression_s_own_head_is_kept(bert, tmp_path):
    data = reviews(tmp_path / "scores.csv", numbers=True)
    settings = DeliverySettings(training=dataclasses.replace(BRIEF, steps=2, looks=1))
    checkpoint_pruning.prune_checkpoint(bert, data, out=tmp_path / "out", sparsity=0.3, settings=settings)
    for folder in ("dense", "slim"):
        task = inputs.read(tmp_path / "out" / folder, labelled.read(data))
        assert task.trained, folder
        assert settings.training.dense_for(task) == 0


def test_a_checkpoint_that_may_have_seen_the_test_examples_is_told(bert, tmp_path):
    settings = DeliverySettings(training=dataclasses.replace(BRIEF, steps=2, looks=1))
    data = reviews(tmp_path / "r.csv", count=100)
    checkpoint_pruning.prune_checkpoint(bert, data, out=tmp_path / "out", sparsity=0.3, settings=settings)
    same = checkpoint_pruning.plan(tmp_path / "out" / "dense", data, settings)
    other = checkpoint_pruning.plan(tmp_path / "out" / "dense", labelled.read(data, seed=1), settings)
    warned = [any("another division" in note for note in made.inputs.notes) for made in (same, other)]
    assert warned == [False, True]


def test_attempts_that_diverge_are_not_good_enough(bert, tmp_path, monkeypatch):
    data = labelled.read(reviews(tmp_path / "r.csv"))
    made = checkpoint_pruning.plan(bert, data, DeliverySettings(goal=PruningGoal(keep_score=0.8)))
    task = checkpoint_pruning._task(made, made.inputs.variables, jax.random.key(0))

    def prune(task, share, states=None):
        if share > 0.3:
            raise pruning.DivergedError("it diverged")
        return pruning.unpruned(task)._replace(share=share)

    monkeypatch.setattr(pruning, "prune", prune)
    monkeypatch.setattr(tuning, "scores", lambda *_: {"accuracy": 1.0})
    found, trials = pruning.search(task, 0.8)
    assert 0.2 < found.share <= 0.3
    assert all(t.amount <= 0.3 for t in trials)


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
