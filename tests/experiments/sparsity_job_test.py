"""Methods at given sparsities as one job: every file it promises, budgets by hand, and that it can be continued."""

import dataclasses
import itertools
import json

import jax
import matplotlib.image
import numpy as np
import pytest

from configs import compare
from configs import isp as isp_config
from mvp_jax.core import patterns, trees
from mvp_jax.experiments import planning, presets, run, sparsity_job, sparsity_report
from mvp_jax.methods import registry, sparse
from mvp_jax.methods.sparse import gradual_soup, lines
from mvp_jax.storage import checkpoint, records
from tests import mlp
from tests.methods.sparse import contract_test as contract

METHODS = ("unpruned", "magnitude", "gradual_main", "imp", "isp_one", "gradual_soup", "gradual_wide")


def config(arg="runlocal", file=compare, **fields):
    c = file.get_config(arg)
    if "data" not in arg:
        c.model.options.update({"dim": 16, "heads": 2, "layers": 1})
        c.pretrain.steps, c.pretrain.save_every, c.pretrain.learning_rate = 400, 400, 3e-3
    c.methods, c.ours = METHODS, "isp_one"
    c.targets.seeds = 2
    c.update_from_flattened_dict(fields)
    return c


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    work = tmp_path_factory.mktemp("trials")
    return work, run.run(config(), work)


def test_the_rows_are_those_of_every_method_sparsity_and_seed(job):
    work, rows = job
    got = {(r["method"], r["sparsity"], r["seed"], r["view"], r["split"]) for r in rows}
    pruned = itertools.product(METHODS[1:], (0.5, 0.75), (0, 1), ("whole",), ("valid", "test"))
    alone = itertools.product(METHODS[2:], (0.5, 0.75), (0, 1), ("mask",), ("valid", "test"))
    level = itertools.product(("unpruned",), (0.0,), (0, 1), ("whole",), ("valid", "test"))
    assert got == {*pruned, *alone, *level}
    assert len(rows) == len(got)
    assert len({r["accuracy"] for r in rows}) > 3
    assert np.mean([r["accuracy"] for r in rows if r["method"] == "unpruned"]) > 0.5  # chance is a fifth
    read = records.read_csv(work / "results.csv")
    assert [r["accuracy"] for r in read] == pytest.approx([r["accuracy"] for r in rows])
    assert {r["cost_steps"] for r in rows if r["method"] == "magnitude"} == {2}
    # 50 %: one round of 2 and 1 steps for `isp_one` and as much after it (40 examples, batches of 32).
    assert {r["cost_steps"] for r in rows if r["method"] == "isp_one" and r["sparsity"] == 0.5} == {1 + 1 + 2}
    # 40 % of the rest in a round reach 50 % in two, of one step of the main weights and one of the members each: so
    # many serial steps has the gradual soup, and its two members take each of them.
    serial = {(r["method"], r["sparsity"]): (r["cost_steps"], r["cost_serial_steps"]) for r in rows}
    assert serial["gradual_soup", 0.5] == (2 * 4 + 2, 4 + 2)
    assert serial["isp_one", 0.5] == (4, 4)
    collectives = {(r["method"], r["sparsity"]): r["cost_collectives"] for r in read}
    assert (collectives["gradual_soup", 0.5], collectives["gradual_wide", 0.5], collectives["imp", 0.5]) == (2, 4, 0)
    assert all(r["cost_flops"] == pytest.approx(3 * r["flops"] * r["cost_examples"]) for r in rows)
    text = (work / "results.md").read_text()
    assert "masks alone" in text
    assert text.startswith("## End to end\n\n| sparsity | steps | method |")
    titles = registry.titles("sparse")
    assert all(f"| {titles[m]} |" in text for m in METHODS)
    assert all(f"| {titles[m]} | `{m}` |" in text for m in METHODS if titles[m] != m)
    assert text.count("- `sparsity`: ") == 1
    assert "| serial steps | collectives |" in text
    for name in ("accuracy.png", "accuracy_all.png", "cost.png", "cost_all.png", "serial.png", "serial_all.png"):
        assert matplotlib.image.imread(work / name).std() > 0.01


def test_masks_on_file_have_the_sparsity_and_their_likeness_is_numpys(job):
    work, _ = job
    config_ = config()
    plan = planning.sparsity_plan(config_)
    bits = {}
    for method, ratio, seed in itertools.product(METHODS[1:], (0.5, 0.75), (0, 1)):
        with np.load(work / "masks" / f"{method}-{ratio:g}-target-0000-{seed}.npz") as file:
            leaves = {n: np.unpackbits(file[n]) for n in file.files}
        assert sum(v.sum() for v in leaves.values()) == round(sum(v.size for v in leaves.values()) * (1 - ratio))
        assert set(leaves) == {p for p, yes in prunable(plan.task_model).items() if yes}
        bits[method, ratio, seed] = leaves
    table = json.loads((work / "similarity.json").read_text())
    assert {r["method"] for r in table} == set(METHODS) - {"unpruned", "imp"}
    for row in table:
        a = [bits[row["method"], row["sparsity"], s] for s in (0, 1)]
        b = [bits["imp", row["sparsity"], s] for s in (0, 1)]
        names = list(a[0]) if row["leaf"] == "total" else [row["leaf"]]
        cosines = []
        for x, y in zip(a, b, strict=True):
            p = np.concatenate([x[n] for n in names]).astype(float)
            q = np.concatenate([y[n] for n in names]).astype(float)
            cosines.append(p @ q / np.linalg.norm(p) / np.linalg.norm(q))
        assert row["cosine"] == pytest.approx(np.mean(cosines))
        assert 0 < row["iou"] <= row["cosine"] <= 1
    assert len({round(r["cosine"], 6) for r in table}) > 5
    dense = json.loads((work / "density.json").read_text())
    one = next(r for r in dense if r["method"] == "imp" and r["sparsity"] == 0.5 and r["kind"] == "fc1")
    fc1 = [v[n].mean() for (m, s, _), v in bits.items() if (m, s) == ("imp", 0.5) for n in v if "fc1" in n]
    assert one["kept"] == pytest.approx(np.mean(fc1))


def test_rows_of_before_serial_steps_were_counted_are_read_and_drawn(job, tmp_path):
    _, rows = job
    old = [{k: v for k, v in r.items() if k not in ("cost_serial_steps", "cost_collectives")} for r in rows]
    plan = planning.sparsity_plan(config())
    sparsity_report.report(dataclasses.replace(plan, methods=()), old, tmp_path)
    assert "serial steps" not in (tmp_path / "results.md").read_text()
    assert (tmp_path / "cost.png").exists()
    assert not (tmp_path / "serial.png").exists()
    mixed = [*old[: len(old) // 2], *rows[len(old) // 2 :]]
    sparsity_report.report(dataclasses.replace(plan, methods=()), mixed, tmp_path)
    read = records.read_csv(tmp_path / "results.csv")
    assert {r["cost_serial_steps"] is None for r in read} == {True, False}
    assert (tmp_path / "serial.png").exists()


def test_a_run_of_the_model_that_is_not_pruned_alone_ends_without_pictures_of_costs(job, tmp_path):
    _, rows = job
    level = [r for r in rows if r["method"] == "unpruned"]
    plan = dataclasses.replace(planning.sparsity_plan(config(ours="unpruned")), methods=())
    sparsity_report.report(plan, level, tmp_path)
    assert len(records.read_csv(tmp_path / "results.csv")) == len(level) > 0
    assert (tmp_path / "accuracy.png").exists()
    assert not (tmp_path / "cost.png").exists()


def prunable(model):
    params = jax.eval_shape(model.init, jax.random.key(0)).params
    return trees.flatten(trees.select(params, model.prunable))


def test_more_cases_continue_a_run_of_fewer(job, tmp_path):
    short = {"methods": ("unpruned", "magnitude"), "sparsities": (0.5,), "targets.seeds": 1, "reference": "magnitude"}
    long = {"methods": ("unpruned", "magnitude", "imp"), "sparsities": (0.5, 0.75), "targets.seeds": 2}
    run.run(config(**short), tmp_path)
    first = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "rows").iterdir()}
    rows = run.run(config(**short | long), tmp_path)
    assert len(first) == 2 < len(list((tmp_path / "rows").iterdir()))
    assert all((tmp_path / "rows" / name).stat().st_mtime_ns == at for name, at in first.items())

    def results(found):
        names = ("method", "sparsity", "seed", "view", "split", "accuracy", "params", "cost_examples")
        return sorted(tuple(row[name] for name in names) for row in found if row["method"] in long["methods"])

    assert results(rows) == results(job[1]), "the cases of the job that ran in one go"
    with pytest.raises(ValueError, match=r"targets.seeds is 2 there and 1 here"):
        run.run(config(**short | long | {"targets.seeds": 1}), tmp_path)


def test_what_is_done_is_not_done_again(job, monkeypatch):
    work, rows = job
    lost = work / "rows" / "magnitude-0.75-target-0000-1.json"
    before = json.loads(lost.read_text())
    lost.unlink()
    ran = []
    one = sparsity_job._one
    monkeypatch.setattr(
        sparsity_job, "_one", lambda plan, made, case, *rest: (ran.append(case), one(plan, made, case, *rest))[1]
    )
    again = run.run(config(), work)
    assert ran == [("magnitude", 0.75, "target-0000", 1)]
    assert [{**r, "seconds": 0} for r in again] == [{**r, "seconds": 0} for r in rows]
    assert json.loads(lost.read_text())["kept"] == before["kept"]


def test_texts_run_too_and_rounds_are_kept_until_the_end(tmp_path, monkeypatch):
    save, kept = checkpoint.Checkpoints.save, []
    monkeypatch.setattr(
        checkpoint.Checkpoints, "save", lambda self, *given: (kept.append(self.directory), save(self, *given))
    )
    c = config("data=docstrings,runlocal", isp_config)
    c.model.options.update({"dim": 16, "heads": 2, "layers": 1})
    c.targets.seeds, c.sparsities, c.masks_alone, c.keep_rounds = 1, (0.5,), False, True
    c.methods, c.ours, c.reference = ("magnitude",), "magnitude", "magnitude"
    rows = run.run(c, tmp_path / "run")
    assert {r["method"] for r in rows} == {"magnitude"}
    assert tmp_path / "run" / "running" / "magnitude-0.5-target-0000-0" in kept
    assert not (tmp_path / "run" / "running").exists()


def test_further_metrics_stand_beside_accuracy(tmp_path, monkeypatch):
    c = config(**{"tasks.classes_per_task": 2, "targets.unseen_at_least": 1, "sparsities": (0.5,)})
    c.methods, c.ours, c.targets.seeds, c.masks_alone = ("magnitude",), "magnitude", 1, False
    c.train.steps, c.train.learning_rate = 60, 3e-3
    plan = dataclasses.replace(planning.sparsity_plan(c), metrics=("accuracy", "f1", "matthews"))
    seen, infer = [], sparsity_job.evaluation.infer
    monkeypatch.setattr(
        sparsity_job.evaluation,
        "infer",
        lambda *a, **kw: (seen.append(np.asarray(infer(*a, **kw)[0])), infer(*a, **kw))[1],
    )
    (tmp_path / "run").mkdir()
    body = plan.model.init(jax.random.key(1))
    rows = sparsity_job.run(plan, body, tmp_path / "run")
    judged = seen[-len(rows) :]
    ((problem, data),) = sparsity_job.problems(plan, body).values()
    assert [r["split"] for r in rows] == ["valid", "test"]
    for row, logits, part in zip(rows, judged, (data.valid, data.test), strict=True):
        guess = logits.argmax(-1)
        tp, fp, fn = (((guess == g) & (part.y == y)).sum() for g, y in ((1, 1), (1, 0), (0, 1)))
        assert row["accuracy"] == pytest.approx(np.mean(guess == part.y))
        assert row["f1"] == pytest.approx(2 * tp / (2 * tp + fp + fn))
        assert row["matthews"] == pytest.approx(np.corrcoef(guess, part.y)[0, 1])
        assert 0 < row["accuracy"] < 1
        assert row["f1"] != row["accuracy"]
    sparsity_report.report(plan, rows, tmp_path / "run")
    assert [r["f1"] for r in records.read_csv(tmp_path / "run" / "results.csv")] == [r["f1"] for r in rows]
    assert (
        f"| {100 * rows[1]['matthews']:.1f} |" in (tmp_path / "run" / "results.md").read_text().split("matthews\n")[1]
    )
    assert problem.model.num_classes == 2
    for wrong, message in ((("f2",), "no metrics"), (("pearson",), "predicted numbers")):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(plan, metrics=wrong)
    with pytest.raises(ValueError, match="f1 is of two classes, and here are 5"):
        dataclasses.replace(planning.sparsity_plan(config()), metrics=("f1",))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"methods": ("isp", "best")}, "unknown method 'best'; .*There are unpruned, magnitude"),
        ({"ours": "best"}, "ours: unknown method 'best'"),
        ({"sparsities": (0.9, 0.5)}, "sparsities must rise"),
        ({"gradual.steps": 3, "gradual.events": 4}, "events must be 1 to steps"),
        ({"gradual.rank": "size"}, "unknown rank 'size'"),
        ({"gradual.outer_momentum": 1.0}, "outer_momentum and souped_from lie in"),
        ({"sparsities": (0.5, 1.0)}, "sparsities must rise"),
        ({"pattern.name": "letters"}, "unknown pattern"),
        ({"pattern.allocation": "fair"}, "unknown allocation"),
        ({"isp.vote": "loud"}, "unknown vote"),
        ({"isp.diversity.subset": 0.0}, "subset"),
        ({"train.decay": "steps"}, "decay"),
        ({"job": "nothing"}, "unknown job"),
        ({"model.name": "bert_micro"}, "does not read"),
        ({"data.name": "letters"}, "unknown data"),
        ({"targets.seeds": 0}, "targets.seeds"),
    ],
)
def test_a_wrong_config_is_refused_before_anything_is_written(fields, message, tmp_path):
    c = config()
    with c.unlocked():
        c.update_from_flattened_dict(fields)
    with pytest.raises(ValueError, match=message):
        run.run(c, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_arguments_of_configs():
    assert presets.arguments(None) == {}
    for wrong in ("size=3", "runlocal=yes", "data"):
        with pytest.raises(ValueError, match="allowed are"):
            presets.arguments(wrong)
    assert compare.get_config("data=npz,model=resnet20").keep_rounds
    assert compare.get_config("data=docstrings").model.name == "bert_micro"
    assert isp_config.get_config().methods == presets.ISP_LINES


def test_every_line_is_a_method_with_the_budget_of_the_soup():
    problem = contract.problem(0.9)
    base = dataclasses.replace(contract.ISP, round_sparsity=0.2, members=4, epochs=1.0, weak_epochs=1 / 3)
    given = sparse.SparsityDefaults(problem=problem, base=base, round_steps=5)
    spent = given.spend
    # 0.8 ** 11 is the first below a tenth; an epoch of 24 examples has 3 steps.
    assert spent == (11, 33, 11 * (3 + 4), 11 * (3 + 1))
    assert lines.budget(contract.problem(0.2), base).rounds == 1
    table = {name: line.settings(given) for name, line in lines.LINES.items()}
    assert table["gradual"].steps == table["rigl"].steps == spent.total
    assert table["gradual_main"].steps == spent.main
    for name, times, workers in (("gradual_serial", 1, 1), ("gradual_wide", 1, 4), ("gradual_long", 4, 1)):
        assert (table[name].steps, table[name].events, table[name].workers) == (times * 44, 11, workers)
    assert (table["gradual_soup"].steps, table["gradual_soup"].events, table["gradual_soup"].members) == (44, 11, 4)
    late = gradual_soup.Settings(rank="votes", outer_momentum=0.5, souped_from=0.2)
    asked = dataclasses.replace(given, serial_steps=100, events=10, averaging=late)
    table_asked = {name: line.settings(asked) for name, line in lines.LINES.items() if name.startswith("gradual")}
    asked_soup = table_asked["gradual_soup"]
    assert (asked_soup.steps, asked_soup.events, asked_soup.members) == (100, 10, 4)
    assert (asked_soup.rank, asked_soup.outer_momentum, asked_soup.singles) == ("votes", 0.5, 2)
    assert (table_asked["gradual_long"].steps, table_asked["gradual_main"].steps) == (400, spent.main)
    assert table["imp"].rounds == 11
    assert table["isp"] == table["isp_one"] == base  # its name says how many members vote
    assert set(presets.ISP_LINES) <= set(table)


def test_likeness_by_hand():
    a = {"x": np.array([1, 1, 0, 0], bool), "y": np.array([0, 0], bool)}
    b = {"x": np.array([1, 0, 1, 0], bool), "y": np.array([0, 0], bool)}
    x, y, total = sparsity_report.alike(a, b)
    assert (x["cosine"], x["iou"]) == (0.5, pytest.approx(1 / 3))
    assert (y["cosine"], y["iou"]) == (1.0, 1.0)
    assert (total["leaf"], total["iou"]) == ("total", pytest.approx(1 / 3))


def test_patterns_of_the_config():
    c = config()
    model = mlp.mlp()
    assert planning.pattern(c, model) == patterns.Weights()
    c.pattern.name = "channels"
    assert planning.pattern(c, model) == patterns.Channels(allocation="global")
    c.pattern.name, c.pattern.kinds = "units", ("filter",)
    assert planning.pattern(c, model) == patterns.WholeUnits(model.groups)
