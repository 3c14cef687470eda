"""What is wrong with counts, splits and classes is said before anything is trained, and the folder stays away."""

import re

import numpy as np
import pytest

from mvp_jax.data import sources, tasks
from mvp_jax.experiments import checks, papers, planning, presets, pretrain_job, setup, sweep
from mvp_jax.experiments import run as experiment
from tests.pictures_on_disk import classes, pixels


def few_shot(**fields):
    """Of the small job on the digits, whose scarcest classes have 13 training examples and 37 to test."""
    config = presets.meta_vote("digits", "resnet")
    presets.votes_briefly(config)
    config.unlock()
    config.update_from_flattened_dict(fields)
    return config


def sparsity(**fields):
    config = presets.sparsity("digits", "resnet")
    presets.briefly(config)
    config.methods = ("isp", "imp")
    config.unlock()
    config.update_from_flattened_dict(fields)
    return config


def pretraining(**fields):
    config = papers.pretraining("digits", "resnet")
    config.unlock()
    config.update_from_flattened_dict(fields)
    return config


@pytest.fixture(autouse=True)
def _nothing_is_trained(monkeypatch):
    monkeypatch.setattr(pretrain_job, "learn", lambda *_: pytest.fail("a pre-training began"))


def refused(config, message, folder):
    with pytest.raises(ValueError, match=message) as caught:
        experiment.run(config, folder / "run")
    assert "\n" not in str(caught.value)
    assert not (folder / "run").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tasks.shots": 99999}, r"tasks.shots is 99999, but of class '\d' of the task target-000\d there are only 13"),
        ({"tasks.shots": 0}, "tasks.shots is 0; expected a number of examples of each class, at least 1"),
        ({"tasks.valid": 40}, r"tasks.valid is 40, but .* only 3\d examples to validate; set tasks.valid to at most 3"),
        ({"tasks.test": 40}, r"tasks.test is 40, but .* only 3\d examples to test; set tasks.test to at most 3\d"),
        ({"tasks.source_images": 999}, r"tasks.source_images is 999, but of class '\d' of the task source-000"),
        ({"tasks.classes_per_task": 1, "targets.unseen_at_least": 1}, "classes_per_task is 1, but a task tells at le"),
        ({"tasks.classes_per_task": 9}, r"classes_per_task is 9, .* digits has 8 that are not unseen"),
        ({"pretrain.classes": 10}, r"pretrain.classes is 10, but digits has 10 classes less the 2 .* set it to 1 to 8"),
        ({"pretrain.classes": 11, "data.unseen_classes": 0, "targets.unseen_at_least": 0}, "is 11, but digits has 10"),
        ({"pretrain.batch": 9999}, r"pretrain.batch is 9999, of 5\d\d training images; lower it"),
        ({"data.unseen_classes": 10}, r"data.unseen_classes is 10, but digits has 10 classes, .* set it to at most 9"),
        ({"data.unseen_classes": 0}, r"targets.unseen_at_least is 2, but there are 0 unseen classes"),
        ({"targets.unseen_at_least": 3}, r"targets.unseen_at_least is 3, but there are 2 unseen classes .* at most 2"),
        ({"targets.count": 9}, "targets.count=9: 9 distinct tasks of 3 classes asked for, but only 8 exist"),
        ({"bank.tasks": 57}, "bank.tasks=57: 57 distinct tasks of 3 classes asked for, but only 56 exist"),
        ({"data.fractions": (0.5, 0.001, 0.2, 0.2)}, r"data.fractions=\(0.5, 0.001, 0.2, 0.2\): class 0 has 178 disti"),
        ({"data.fractions": (0.5, 0.5, 0.2, 0.2)}, r"data.fractions=.*together at most 1"),
    ],
)
def test_few_shot_jobs(tmp_path, fields, message):
    refused(few_shot(**fields), message, tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tasks.shots": 99999}, "tasks.shots is 99999, but of class"),
        ({"pretrain.classes": 7}, "pretrain.classes is 7, but digits has 10 classes less the 4 that are to be unseen"),
        ({"targets.unseen_at_least": 5}, "targets.unseen_at_least is 5, but there are 4 unseen classes"),
        ({"tasks.classes_per_task": 11}, "tasks.classes_per_task is 11, .* digits has 10$"),
    ],
)
def test_jobs_for_a_sparsity(tmp_path, fields, message):
    refused(sparsity(**fields), message, tmp_path)


def test_pre_training(tmp_path):
    refused(pretraining(**{"pretrain.classes": 9}), "pretrain.classes is 9, but digits has 10", tmp_path)
    refused(pretraining(**{"pretrain.batch": 900}), r"pretrain.batch is 900, of 5\d\d training images", tmp_path)


def test_every_point_of_a_sweep_comes_before_the_first(tmp_path):
    config = sweep.over(few_shot(), {"tasks.shots": (5, 99999)})
    refused(config, r"point tasks.shots=99999: tasks.shots is 99999, but of class", tmp_path)


def test_what_is_just_there_is_given():
    """The counts are those that the tasks really have: one less than refused is enough for every target and seed."""
    plan = planning.few_shot_plan(few_shot(**{"targets.count": 8}))
    found, setting = [], plan.setting
    for name, uses in (("target", setting.targets), ("source", setting.bank_tasks)):
        y = getattr(setting.pools, name).y
        found.append(min(sum(1 for label in y if label == c) for task in uses for c in task.classes))
    good = {"targets.count": 8, "tasks.shots": found[0], "tasks.source_images": found[1]}
    plan = planning.few_shot_plan(few_shot(**good))
    for target in plan.setting.targets:
        for seed in range(3):
            own = tasks.materialise(target, plan.setting.pools.target, shots=found[0], seed=seed)
            assert len(own.train.y) == 3 * found[0]
    for field, most in (("tasks.shots", found[0]), ("tasks.source_images", found[1])):
        with pytest.raises(ValueError, match=rf"{field} is {most + 1}, but .* at most {most}, or"):
            planning.few_shot_plan(few_shot(**good | {field: most + 1}))


def test_a_folder_of_two_classes(tmp_path):
    per = {"cat": 20, "dog": 20}
    classes(tmp_path / "pets" / "train", per, (8, 8, 3))
    classes(tmp_path / "pets" / "test", per, (8, 8, 3), seed=1)
    own = {"data.name": "folder", "data.path": str(tmp_path / "pets"), "data.fractions": (0.5, 0.5)}
    own |= {"tasks.classes_per_task": 2, "tasks.shots": 4, "tasks.valid": 4, "tasks.test": 4, "pretrain.batch": 8}
    refused(sparsity(**own), "data.unseen_classes is 4, but .* has 2 classes, .* at most 1", tmp_path)
    own |= {"data.unseen_classes": 0, "targets.unseen_at_least": 0}
    refused(sparsity(**own), "pretrain.classes is 6, but .* has 2 classes; set it to 1 to 2", tmp_path)
    plan = planning.sparsity_plan(sparsity(**own | {"pretrain.classes": 2}))
    assert plan.setting.pretrain_classes == plan.setting.targets[0].classes == (0, 1)


def test_a_class_that_a_pool_lacks(tmp_path):
    x, y = pixels(120), np.arange(120) % 6
    for lacking, split in ((2, "test"), (4, "train")):
        content = {"train_images": x, "train_labels": y, "test_images": pixels(60, seed=1), "test_labels": y[:60]}
        keep = content[f"{split}_labels"] != lacking
        content |= {f"{split}_{what}": content[f"{split}_{what}"][keep] for what in ("images", "labels")}
        np.savez(tmp_path / "toy.npz", **content)
        own = {"data.name": "npz", "data.path": str(tmp_path / "toy.npz"), "data.fractions": (0.5, 0.5)}
        own |= {"data.unseen_classes": 0, "targets.unseen_at_least": 0, "tasks.classes_per_task": 6}
        own |= {"tasks.shots": 3, "tasks.valid": 3, "tasks.test": 3, "pretrain.classes": 6, "pretrain.batch": 8}
        refused(sparsity(**own), rf"there are no examples to [\w -]* of class '{lacking}' of the ", tmp_path)


def setting_of(**fields):
    empty = sources.Arrays(np.zeros((0, 2, 2, 1), np.uint8), np.zeros(0, np.int32))
    given = {"pretrain_classes": (), "bank_tasks": (), "targets": ()} | fields
    return setup.Setting(setup.Pools(*[empty] * 4), (2, 2, 1), ("a", "b", "c"), **given)


def test_unseen_classes_are_asserted():
    bank = (tasks.Task(name="t", classes=(0, 2)),)
    checks.unseen(setting_of(pretrain_classes=(0, 1), bank_tasks=bank, unseen=()), pretrained_here=True)
    with pytest.raises(ValueError, match=r"classes that are to be unseen are in the bank's tasks: \['c'\]"):
        checks.unseen(setting_of(bank_tasks=bank, unseen=(1, 2)), pretrained_here=False)
    both = setting_of(pretrain_classes=(0, 1), unseen=(1,))
    with pytest.raises(ValueError, match=r"are in the pre-training: \['b'\]"):
        checks.unseen(both, pretrained_here=True)
    checks.unseen(both, pretrained_here=False)  # what a checkpoint has seen is its own affair


def test_pools_share_no_picture():
    parts = [sources.Arrays(pixels(4, seed=s), np.arange(4) % 2) for s in range(4)]
    checks.pools(setup.Pools(*parts))
    parts[3] = sources.Arrays(np.concatenate([parts[3].x, parts[0].x[1:3]]), np.arange(6) % 2)
    with pytest.raises(ValueError, match=re.escape("2 pictures are both among the examples to pre-train on")):
        checks.pools(setup.Pools(*parts))
    parts[3] = sources.Arrays(parts[3].x[:0], parts[3].y[:0])
    with pytest.raises(ValueError, match=r"there are no examples to test; give them a share in data.fractions"):
        checks.pools(setup.Pools(*parts))
