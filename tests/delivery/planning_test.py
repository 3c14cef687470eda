"""What is refused before any training, what belongs to a folder, and the search for the most that can go."""

import dataclasses

import jax
import pytest

from mvp_jax.data.datasets import labelled
from mvp_jax.delivery import checkpoint_pruning, pruning, tuning, writing
from mvp_jax.delivery.checkpoint_pruning import DeliverySettings
from mvp_jax.delivery.goals import PruningGoal
from tests.own_data import BRIEF, reviews


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


@pytest.mark.parametrize(
    ("program", "missing"), [("onnx", "onnxruntime"), ("onnx", "jax2onnx"), ("stablehlo", "flatbuffers")]
)
def test_a_missing_package_is_told_before_any_training(program, missing, bert, tmp_path, monkeypatch):
    """Each package alone: a program is written last, after all the training."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == missing else object())
    data = labelled.read(reviews(tmp_path / "reviews.csv"))
    with pytest.raises(ValueError, match=f"needs {missing}, which is not installed: pip install"):
        checkpoint_pruning.plan(bert, data, DeliverySettings(programs=(program,)))


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


def test_a_checkpoint_that_may_have_seen_the_test_examples_is_told(bert, tmp_path):
    settings = DeliverySettings(training=dataclasses.replace(BRIEF, steps=2, looks=1))
    data = reviews(tmp_path / "r.csv", count=100)
    checkpoint_pruning.prune_checkpoint(bert, data, out=tmp_path / "out", sparsity=0.3, settings=settings)
    same = checkpoint_pruning.plan(tmp_path / "out" / "dense", data, settings)
    other = checkpoint_pruning.plan(tmp_path / "out" / "dense", labelled.read(data, seed=1), settings)
    warned = [any("another division" in note for note in made.inputs.notes) for made in (same, other)]
    assert warned == [False, True]


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
