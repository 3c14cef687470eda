"""A bank's pre-trained model is found and checked, and a person's folders and tables are its tasks."""

import jax
import numpy as np
import pytest

from mvp_jax import bank, models, pretrained
from mvp_jax.delivery import bank_model, bank_tasks
from tests.bank import conftest

remote = conftest.remote

MODEL = models.create("resnet8", width=4, image_size=8, channels=1, classes=3)
VARIABLES = MODEL.init(jax.random.key(0))


def made(folder, dense):
    return bank.create(
        folder,
        fingerprint=bank.fingerprint(VARIABLES),
        settings={},
        dense=(MODEL, VARIABLES) if dense else None,
    )


def test_the_model_is_the_banks_or_the_persons(tmp_path):
    pretrained.save(tmp_path / "own", MODEL, VARIABLES)
    pretrained.save(tmp_path / "other", MODEL, MODEL.init(jax.random.key(1)))
    holding, bare = made(tmp_path / "a", True), made(tmp_path / "b", False)
    for store, checkpoint, folder in (
        (holding, "", holding.path / "model"),
        (bare, tmp_path / "own", tmp_path / "own"),
    ):
        with bank_model.located(store, checkpoint) as (found, variables):
            assert found == folder
            jax.tree.map(np.testing.assert_array_equal, variables, VARIABLES)
    wrong = "other is not the pre-trained model of the bank"
    with pytest.raises(ValueError, match=wrong), bank_model.located(bare, tmp_path / "other"):
        pass
    missing = r"does not hold its pre-trained model: it needs .* as the checkpoint"
    with pytest.raises(ValueError, match=missing), bank_model.located(bare):
        pass


def test_the_model_of_a_bank_in_a_bucket_is_copied_here(remote):
    store = made(remote, True)
    with bank_model.located(bank.open(remote)) as (folder, variables):
        assert (folder / "model.json").is_file()
        assert bank.fingerprint(variables) == store.fingerprint
    assert not folder.exists()


def test_each_folder_and_table_is_a_task(tmp_path):
    for name in ("dogs", ".cache"):
        (tmp_path / name).mkdir()
    for name in ("reviews.CSV", "mails.jsonl", "notes.md"):
        (tmp_path / name).write_text("")
    assert list(bank_tasks.tasks_in(tmp_path)) == ["dogs", "mails", "reviews"]
    (tmp_path / "dogs.tsv").write_text("")
    with pytest.raises(ValueError, match="are both a task 'dogs'; rename one"):
        bank_tasks.tasks_in(tmp_path)


def test_numbers_to_estimate_are_no_task(tmp_path):
    rows = [f"text {i},{i / 7}" for i in range(30)]
    (tmp_path / "scores.csv").write_text("\n".join(["text,label", *rows]))
    with pytest.raises(ValueError, match=r"scores\.csv has numbers to estimate"):
        bank_tasks.check_task(tmp_path / "scores.csv", 0)


def test_a_bank_that_was_made_by_hand_says_not_how(tmp_path):
    with pytest.raises(ValueError, match=r"do not say how entries are pruned: .*'rounds'.* add entries by `bank.add`"):
        bank_tasks.search_of({"ratio": 0.5})
    given = {"ratio": 0.5, "groups": [], "rounds": 2, "steps_per_round": 3, "schedule": "cubic", "score": "fisher"}
    search = bank_tasks.search_of(given | {"final_steps": 7, "learning_rate": 0.1, "batch": 5, "optimizer": "adamw"})
    assert (search.total_steps, search.schedule, search.tuning.optimizer, search.min_units) == (13, "cubic", "adamw", 1)
