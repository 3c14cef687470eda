"""Whole jobs in which every method chooses its own learning rate."""

import csv
import json

import numpy as np
import pytest

from configs import bank, compare, pretrain
from mvp_jax.experiments import run, run_folder
from mvp_jax.storage import records
from tests.experiments.rates_test import FACTORS, tiny


def test_the_few_shot_job_reports_every_method_at_its_own_rate(tmp_path):
    c = tiny(**{"bank.tasks": 2, "bank.rounds": 1, "rates.targets": 1, "targets.count": 1})
    c.methods, c.pretrain.steps, c.chunk = ("mvp", "dense"), 60, 1
    got = run.run(c, tmp_path)
    table = list(csv.DictReader((tmp_path / "rates.csv").read_text().splitlines()))
    assert [(r["method"], float(r["factor"])) for r in table] == [(m, f) for m in c.methods for f in FACTORS]
    picked = {}
    for method in c.methods:
        means = []
        for factor in FACTORS:
            seen = json.loads((tmp_path / "rates" / f"{method}-{factor:g}-0000.json").read_text())
            assert {(r["target"], r["seed"], r["steps"]) for r in seen} == {("rates-0000", 1000, 2)}
            means.append(np.mean([r["accuracy"] for r in seen]))
        own = [r for r in table if r["method"] == method]
        assert [float(r["accuracy"]) for r in own] == pytest.approx(means)
        picked[method] = FACTORS[int(np.argmax(means))]
        assert [float(r["factor"]) for r in own if r["chosen"] == "1"] == [picked[method]]
    assert {(r["target"], r["method"]) for r in got} == {("target-0000", m) for m in c.methods}
    for row in records.read_csv(tmp_path / "results.csv"):
        assert row["learning_rate"] == pytest.approx(c.tune.learning_rate * picked[row["method"]])
    assert "## Learning rates" in (tmp_path / "results.md").read_text()
    # A folder of a run before there were rates, whose rows do not say them.
    old = [{k: v for k, v in row.items() if k != "learning_rate"} for row in got]
    records.write_csv([*old[:1], *got[1:]], tmp_path / "old.csv")
    assert records.read_csv(tmp_path / "old.csv")[0]["learning_rate"] is None


def test_the_sparsity_job_reports_every_method_at_its_own_rate(tmp_path):
    c = tiny(compare, sparsities=(0.5,), **{"rates.targets": 1})
    c.methods, c.ours, c.reference = ("unpruned", "magnitude", "gradual_main"), "magnitude", "magnitude"
    c.pretrain.steps = 60
    got = run.run(c, tmp_path)
    table = list(csv.DictReader((tmp_path / "rates.csv").read_text().splitlines()))
    assert [(r["method"], float(r["sparsity"])) for r in table] == [
        (m, 0.0 if m == "unpruned" else 0.5) for m in c.methods for _ in FACTORS
    ]
    for method in c.methods:
        seen = [
            json.loads((tmp_path / "rates" / f"{method}-0.5-{f:g}-rates-0000-1000.json").read_text())["accuracy"]
            for f in FACTORS
        ]
        assert [float(r["accuracy"]) for r in table if r["method"] == method] == pytest.approx(seen)
        rate = c.train.learning_rate * FACTORS[int(np.argmax(seen))]
        whole = [r for r in got if r["method"] == method and r["view"] == "whole"]
        assert [r["learning_rate"] for r in whole] == pytest.approx([rate] * len(whole))
        assert whole
    alone = {r["learning_rate"] for r in got if r["view"] == "mask"}
    assert alone == {c.train.learning_rate}, "masks alone differ in nothing else"
    assert {r["target"] for r in got} == {"target-0000"}
    assert "## Learning rates" in (tmp_path / "results.md").read_text()


def test_a_folder_from_before_there_were_rates_is_continued(tmp_path):
    c = tiny(**{"rates.factors": (), "rates.targets": 3})
    run_folder.claim(tmp_path, c)
    old = json.loads((tmp_path / "config.json").read_text())
    del old["rates"]
    records.write_json(tmp_path / "config.json", old)
    run_folder.check(tmp_path, c)
    run_folder.claim(tmp_path, c)
    with pytest.raises(ValueError, match=r"rates.factors is \(\) there and \(0.5, 1, 2\) here"):
        run_folder.check(tmp_path, tiny())


LATER = ("rates", "gradual", "select", "data.held_out_faces")
"""What a config did not have before methods had rates of their own."""


def from_before(config, folder, methods):
    """Makes a folder of a run as it was made before there were rates."""
    run_folder.claim(folder, config)
    old = json.loads((folder / "config.json").read_text())
    for path in LATER:
        *above, last = path.split(".")
        (old[above[0]] if above else old).pop(last, None)
    if "methods" in old:
        old["methods"] = list(methods)
    records.write_json(folder / "config.json", old)


@pytest.mark.parametrize(
    ("file", "methods"), [(bank, ()), (pretrain, ()), (compare, ()), (compare, ("isp",))], ids=lambda v: str(v)[:20]
)
def test_folders_of_other_jobs_from_before_are_continued(file, methods, tmp_path):
    c = file.get_config()
    from_before(c, tmp_path, methods)
    run_folder.check(tmp_path, c)
    run_folder.claim(tmp_path, c)
    assert (tmp_path / "config.json").read_text() == run_folder.described(c)


def test_all_methods_are_the_same_in_either_spelling_and_more_than_one(tmp_path):
    c = compare.get_config()
    c.methods = ("isp",)
    run_folder.claim(tmp_path, c)
    for methods in (("all",), (), ("all",)):
        c.methods = methods
        run_folder.check(tmp_path, c)
        run_folder.claim(tmp_path, c)
    c.methods = ("isp",)
    with pytest.raises(ValueError, match=r"methods is \(\) there and \('isp',\) here"):
        run_folder.check(tmp_path, c)


def test_a_few_shot_table_of_unequal_parts_is_not_made(tmp_path):
    c = tiny(**{"rates.factors": (), "rates.targets": 3})
    from_before(c, tmp_path, c.methods)
    with pytest.raises(ValueError, match=r"select\.candidates is not set there and 16 here"):
        run_folder.check(tmp_path, c)
