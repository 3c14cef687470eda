"""The main job on a tiny transformer: every file it promises, and that it goes on where it was stopped."""

import json
import os
import shutil

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest

from configs import mvp as config_file
from mvp_jax import bank as banks
from mvp_jax import pretrained
from mvp_jax.core import units
from mvp_jax.data import tasks
from mvp_jax.experiments import bank_build, dense_model, planning, run_folder, setup, universal
from mvp_jax.experiments import run as experiment
from mvp_jax.methods import registry
from mvp_jax.models.api import replace_head
from mvp_jax.storage import checkpoint, records
from mvp_jax.train import evaluation

METHODS = ("mvp", "copy_farthest", "ifp", "dense")


def config(arg="model=vit,runlocal", **fields):
    c = config_file.get_config(arg)
    if "vit" in arg:
        c.model.options.update({"dim": 16, "heads": 2, "layers": 1})
        # A hundred steps would leave features that hardly depend on the image.
        c.pretrain.steps, c.pretrain.save_every, c.pretrain.learning_rate = 600, 300, 3e-3
    c.bank.tasks, c.bank.rounds = 3, 1
    c.prune.ratio = 0.5
    c.chunk = 2  # the bank's last chunk is a smaller one
    c.methods = METHODS
    c.update_from_flattened_dict(fields)
    return c


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """The folder of one run, and the rows it returned."""
    work = tmp_path_factory.mktemp("run")
    return work, experiment.run(config(), work)


def state_of(folder, pattern="**/*"):
    return {p.relative_to(folder).as_posix(): (p.stat().st_mtime_ns, p.stat().st_size) for p in folder.glob(pattern)}


def by_name(rows):
    return {(r["target"], r["seed"], r["method"], r["steps"], r["split"]): r["accuracy"] for r in rows}


def test_the_rows_are_those_of_every_method_target_and_step(job):
    work, rows = job
    targets = [t.name for t in tasks.load(work / "targets.json")]
    assert len(targets) == 2
    looks = {m: {(s, split) for s in (0, 2) for split in ("valid", "test")} for m in METHODS}
    looks["ifp"] = {(2, "valid"), (2, "test")}
    assert set(by_name(rows)) == {(t, 0, m, *at) for t in targets for m in METHODS for at in looks[m]}
    assert len(by_name(rows)) == len(rows) == 28
    read = records.read_csv(work / "results.csv")
    assert by_name(read) == pytest.approx(by_name(rows))
    assert all(0 <= r["accuracy"] <= 1 for r in rows)
    assert np.mean([r["accuracy"] for r in rows if r["method"] == "dense"]) > 0.5  # chance is a third
    assert len({r["accuracy"] for r in rows}) > 5
    dense, slim = ({r["params"] for r in rows if (r["method"] == "dense") == is_dense} for is_dense in (True, False))
    assert len(dense) == len(slim) == 1
    assert max(slim) < 0.8 * max(dense)
    assert np.mean([r["accuracy"] for r in rows if r["method"] == "mvp"]) > 0.4
    cost = {(r["method"], r["steps"]): r["cost_examples"] for r in rows}
    assert cost["dense", 0] == 0 < cost["mvp", 0] < cost["mvp", 2]
    table = (work / "results.md").read_text()
    assert all(f"| {title} |" in table for name, title in registry.titles().items() if name in METHODS)


def test_config_tasks_and_neighbours_are_on_file(job):
    work, _ = job
    there, whole = json.loads((work / "config.json").read_text()), json.loads(config().to_json_best_effort())
    # Where it runs is no part of what is run, so that other processes and devices may go on with it.
    assert set(whole) - set(there) == {"multihost", "distributed", "devices", "compilation_cache"}
    assert there == {name: whole[name] for name in there}
    bank_tasks, targets = (tasks.load(work / f"{n}.json") for n in ("bank_tasks", "targets"))
    plan = planning.few_shot_plan(config())
    assert (bank_tasks, targets) == (plan.setting.bank_tasks, plan.setting.targets)
    assert not {frozenset(t.classes) for t in bank_tasks} & {frozenset(t.classes) for t in targets}
    classes = {t.name: {plan.setting.class_names[c] for c in t.classes} for t in (*bank_tasks, *targets)}
    found = json.loads((work / "neighbours.json").read_text())
    assert [f["target"] for f in found] == [t.name for t in targets]
    for f in found:
        near = [n["similarity"] for n in f["nearest"]]
        assert near == sorted(near, reverse=True)
        assert len(near) == 2
        assert all(-5 < s < 0 for s in near)
        assert all(n["shared"] == len(classes[n["task"]] & classes[f["target"]]) for n in f["nearest"])


def test_the_bank_is_sound_and_of_this_model(job):
    work, _ = job
    plan = planning.few_shot_plan(config())
    variables = dense_model.dense_model(plan, work)
    bank = banks.open(work / "bank", fingerprint=banks.fingerprint(variables))
    assert banks.verify(bank) == 3
    entries = banks.entries(bank)
    assert [(e.task, e.classes) for e in entries] == [(t.name, t.classes) for t in plan.setting.bank_tasks]
    for group, ballots in banks.ballots(entries).items():
        assert ballots.sum(1).tolist() == [dict(plan.keep)[group]] * 3
    assert np.mean([e.accuracy for e in entries]) > 0.5  # chance is a third


def test_overlap_and_pictures(job):
    work, _ = job
    overlap = json.loads((work / "overlap.json").read_text())
    for name in ("similarity", "shared_classes"):
        values = [row["overlap"] for row in overlap[name]]
        assert values
        assert all(0 <= v <= 1 for v in values)
        assert {row["group"] for row in overlap[name]} == {g.name for g in planning.few_shot_plan(config()).groups}
    for name in ("overlap_by_similarity", "overlap_by_shared_classes", "accuracy", "accuracy_all", "cost"):
        image = matplotlib.image.imread(work / f"{name}.png")
        assert min(image.shape[:2]) > 150
        assert image.std() > 0.01


def test_the_slim_models_on_file_have_the_accuracy_of_their_rows(job):
    work, rows = job
    plan, accuracy = planning.few_shot_plan(config()), by_name(rows)
    costs = json.loads((work / "cost.json").read_text())
    assert max(costs["masked_minus_slim"].values()) < 1e-4
    assert max(costs["random_cuts"]["differences"]) < 1e-5
    assert min(costs["random_cuts"]["changes"]) > 1e-2
    dense, slim = costs["models"]
    assert all(slim[name] < dense[name] for name in ("params", "flops", "bytes"))
    times = [(*m["latency_quartiles_ms"], m["latency_ms"]) for m in (dense, slim)]
    assert all(0 < low <= median <= high for low, high, median in times)
    for target in plan.setting.targets:
        folder = work / "slim" / target.name
        model, variables = pretrained.reload(folder)
        assert model is plan.slim
        kept = {n: len(k["kept"]) for n, k in pretrained.describe(folder)["kept"].items()}
        assert kept == dict(plan.keep)
        sizes, pools = plan.sizes, plan.setting.pools
        data = tasks.materialise(
            target,
            pools.target,
            shots=sizes.shots,
            valid=sizes.valid,
            test=sizes.test,
            valid_from=pools.valid,
            test_from=pools.test,
            seed=0,
        )
        for split in ("valid", "test"):
            got = evaluation.evaluate(model, variables, setup.batch_of(getattr(data, split)))["accuracy"]
            assert float(got) == pytest.approx(accuracy[target.name, 0, "mvp", 2, split])
        with checkpoint.Checkpoints(folder / "orbax") as saved:
            again = saved.restore(jax.tree.map(jnp.zeros_like, variables), step=2)
        assert all(jax.tree.leaves(jax.tree.map(np.array_equal, again, variables)))


def test_a_second_run_reads_everything_back(job):
    work, rows = job
    before = {p: state_of(work, p) for p in ("rows/*.json", "bank/**/*", "slim/*/*.safetensors", "pretrain/**/*")}
    assert len(before["rows/*.json"]) == len(METHODS)
    assert experiment.run(config(), work) == rows
    assert {p: state_of(work, p) for p in before} == before


def test_what_is_missing_is_made_again_to_the_same_bits(job, tmp_path):
    work, rows = job
    part = tmp_path / "part"
    shutil.copytree(work, part)
    (part / "rows" / "mvp-0000.json").unlink()
    (part / "rows" / "copy_farthest-0000.json").unlink()
    # As a kill in the middle of writing leaves it: one entry and one model less, a half-written one hidden beside.
    entry = part / "bank" / "entries" / "source-0001"
    gone = (entry / "arrays.safetensors").read_bytes()
    shutil.rmtree(entry)
    shutil.rmtree(part / "slim" / "target-0000")
    (part / "slim" / ".target-0000-x").mkdir()
    for name in ("results.csv", "accuracy.png", "cost.json"):
        (part / name).unlink()
    assert experiment.run(config(), part) == rows
    assert (entry / "arrays.safetensors").read_bytes() == gone
    weights = "slim/target-0000/weights.safetensors"
    assert (part / weights).read_bytes() == (work / weights).read_bytes()
    assert (part / "results.csv").read_bytes() == (work / "results.csv").read_bytes()
    assert (part / "cost.json").exists()


def test_another_config_in_the_same_folder_is_refused_and_changes_nothing(job):
    work, _ = job
    before = state_of(work)
    with pytest.raises(ValueError, match=r": seed is 0 there and 1 here, vote.k is 2 there and 3 here;"):
        experiment.run(config(**{"seed": 1, "vote.k": 3}), work)
    assert state_of(work) == before


def continued(job, where):
    """A longer run, in a copy of the folder of the shorter one."""
    work, _ = job
    shutil.copytree(work, where)
    before = {p: state_of(where, p) for p in ("bank/**/*", "pretrain/**/*")}
    rows = experiment.run(config(steps=(0, 2, 4)), where)
    assert {p: state_of(where, p) for p in before} == before
    return rows


def test_more_steps_continue_a_shorter_run(job, tmp_path):
    work, rows = job
    longer = by_name(continued(job, tmp_path / "run"))
    assert {at[3] for at in longer} == {0, 2, 4}
    # The learning rate is constant, so the longer run passes through the shorter one.
    shorter = {at: value for at, value in by_name(rows).items() if at in longer}
    assert len({at[3] for at in shorter}) == 2
    assert {at: longer[at] for at in shorter} == pytest.approx(shorter)
    aside = tmp_path / "run" / "until-2"
    assert (aside / "results.csv").read_bytes() == (work / "results.csv").read_bytes()
    assert json.loads((aside / "config.json").read_text())["steps"] == [0, 2]
    assert len(list((aside / "rows").iterdir())) == len(METHODS)
    with pytest.raises(ValueError, match=r"steps is \(0, 2, 4\) there and \(0, 2\) here; .* higher last number would"):
        experiment.run(config(), tmp_path / "run")


@pytest.mark.slow
def test_a_continued_run_is_that_of_one_long_run(job, tmp_path):
    whole = experiment.run(config(steps=(0, 2, 4)), tmp_path / "whole")
    assert continued(job, tmp_path / "run") == whole
    assert (tmp_path / "run" / "results.csv").read_bytes() == (tmp_path / "whole" / "results.csv").read_bytes()


def test_a_damaged_checkpoint_is_refused(job, tmp_path):
    shutil.copytree(job[0], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "pretrain" / "model")  # or the states would not be looked at
    files = [p for p in (tmp_path / "run" / "pretrain" / "states" / "600" / "state").rglob("*") if p.is_file()]
    largest = max(files, key=lambda p: p.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    with pytest.raises(ValueError, match=r"cannot read the checkpoint of step 600 .*damaged"):
        experiment.run(config(), tmp_path / "run")


def test_a_bank_of_another_pretrained_model_is_refused(job, tmp_path):
    shutil.copytree(job[0], tmp_path / "run")
    manifest = tmp_path / "run" / "bank" / "manifest.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(content | {"fingerprint": "0" * 64}))
    with pytest.raises(ValueError, match="belongs to another pre-trained model"):
        experiment.run(config(), tmp_path / "run")
    manifest.write_text(json.dumps(content | {"settings": content["settings"] | {"ratio": 0.25}}))
    with pytest.raises(ValueError, match=r"made with other settings: ratio is 0.25 in the bank, 0.5 asked for"):
        experiment.run(config(), tmp_path / "run")


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot write to .*run: .*; choose a folder that can be written"):
        experiment.run(config(), tmp_path / "file" / "run")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"methods": ("mvp", "magic")}, r"unknown method 'magic'; .*There are dense, mvp"),
        ({"model.name": "resnet9"}, r"unknown model 'resnet9'; choose 'checkpoint' or one of"),
        ({"data.name": "mnits"}, "unknown data 'mnits'; choose 'glyphs', 'digits', 'docstrings' or 'npz'"),
        ({"prune.ratio": 1.0}, "1.0"),
        ({"prune.kinds": ("filter",)}, r"names no group of 'vit_micro'; it has \['head', 'neuron', 'qk', 'value'\]"),
        ({"steps": (2, 5)}, r"steps must rise from 0"),
        ({"steps": (0,)}, r"steps must rise from 0"),
        ({"steps": (0, 5, 5)}, r"steps must rise from 0"),
        ({"targets.seeds": 0}, "targets.seeds must be >= 1, got 0"),
        ({"bank.similarity": "cosine"}, "unknown bank.similarity 'cosine'"),
        ({"bank.schedule": "linear"}, "unknown schedule 'linear'"),
        ({"tune.optimizer": "lion"}, "unknown optimizer 'lion'"),
        ({"tune.augment": "mixup"}, "unknown augmentation 'mixup'"),
        ({"vote.k": 0}, "k must be >= 1, got 0"),
        ({"weak.members": 0}, "members and steps must be at least 1"),
        ({"methods": (), "reptile.tasks": 9}, "reptile.tasks is 9, but the bank has 3 tasks"),
        ({"methods": ("mvp_select",), "reptile.tasks": 9}, r"reptile.tasks is 9, .* leave out \['mvp_select'\]"),
    ],
)
def test_a_bad_config_is_refused_before_anything_is_written(tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        experiment.run(config(**fields), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_config_arguments():
    assert config_file.get_config().model.name == "resnet8"
    assert config_file.get_config("model=vit").model.name == "vit_micro"
    assert config_file.get_config("model=vit").tune.optimizer == "adamw"
    assert config_file.get_config("model=resnet20").model.name == "resnet20"
    assert config_file.get_config("data=npz,model=resnet8_distiller").tasks.classes_per_task == 10
    assert config_file.get_config("data=npz").data.name == "npz"
    small, full = config_file.get_config("runlocal"), config_file.get_config("")
    assert small.bank.tasks < full.bank.tasks
    assert len(small.steps) < len(full.steps)
    for wrong in ("runlocal=1", "model", "modell=vit", "vit", "data=digits,fast"):
        with pytest.raises(ValueError, match=r"unknown config argument .*; allowed are data=NAME, model=NAME, "):
            config_file.get_config(wrong)


@pytest.mark.slow
def test_the_job_prunes_a_residual_network_by_every_method(tmp_path):
    c = config("runlocal", methods=())
    c.model.options.width = 4
    rows = experiment.run(c, tmp_path)
    assert len({r["method"] for r in rows}) == len(planning.few_shot_plan(c).lines) > 15
    costs = json.loads((tmp_path / "cost.json").read_text())
    assert max(costs["masked_minus_slim"].values()) < 1e-4


def test_one_model_is_learned_for_all_targets_and_kept(job, tmp_path):
    work, _ = job
    c = config(methods=("mvp", "reptile_iht"))
    run_folder.claim(tmp_path, c)  # a folder with parts and no config is somebody else's
    for part in ("pretrain", "bank"):
        shutil.copytree(work / part, tmp_path / part)
    rows = experiment.run(c, tmp_path)
    assert {(r["target"], r["steps"]) for r in rows if r["method"] == "reptile_iht"} == {
        (r["target"], r["steps"]) for r in rows if r["method"] == "mvp"
    }
    found, plan = state_of(tmp_path / "universal"), planning.few_shot_plan(c)
    kept = pretrained.describe(tmp_path / "universal")["kept"]
    assert {name: len(group["kept"]) for name, group in kept.items()} == dict(plan.keep)
    variables = dense_model.dense_model(plan, tmp_path)
    learned = universal.learn(plan, variables, bank_build.build_bank(plan, variables, tmp_path), tmp_path)
    assert {n: np.flatnonzero(u).tolist() for n, u in learned.units.items()} == {
        n: group["kept"] for n, group in kept.items()
    }
    body = replace_head(variables, plan.task_model).params
    apart = jax.tree.map(lambda a, b: jnp.abs(a - b), learned.variables.params, body)
    moved = jax.tree.map(lambda a, m: float(jnp.max(a * m)), apart, units.expand(learned.units, plan.groups, body))
    assert max(jax.tree.leaves(moved)) > 1e-4  # it learned
    assert state_of(tmp_path / "universal") == found  # and was not learned anew


def test_a_bank_is_the_same_on_several_devices_and_by_other_mappings(job, tmp_path):
    work, _ = job
    expected = banks.entries(banks.open(work / "bank"))
    for name, fields in (("devices", {"devices": 2, "chunk": 1}), ("auto", {"mapping": "auto"})):
        plan = planning.few_shot_plan(config(**fields))
        folder = tmp_path / name
        shutil.copytree(work / "pretrain", folder / "pretrain")
        got = bank_build.build_bank(plan, dense_model.dense_model(plan, folder), folder)
        for a, b in zip(got.entries, expected, strict=True):
            assert (a.task, a.classes) == (b.task, b.classes)
            assert a.accuracy == pytest.approx(b.accuracy, abs=0.05)
            arrays = [banks.load(e, only=["saliency"])["saliency"] for e in (a, b)]
            for x, y in zip(*map(jax.tree.leaves, arrays), strict=True):
                np.testing.assert_allclose(x, y, rtol=0.05, atol=0.05 * np.abs(y).max())
                assert np.ptp(y) > 0


def test_a_task_that_diverges_is_reported_and_left_out_for_good(job, tmp_path, monkeypatch, capsys):
    work, _ = job
    plan = planning.few_shot_plan(config())
    shutil.copytree(work / "pretrain", tmp_path / "pretrain")
    variables = dense_model.dense_model(plan, tmp_path)
    lost = jax.random.key_data(jax.random.fold_in(jax.random.key(plan.seed + 1), 1))
    search = bank_build.ifp.search

    def breaking(problem, settings, key):
        return search(problem, settings, key)._replace(alive=jnp.any(jax.random.key_data(key) != lost))

    monkeypatch.setattr(bank_build.ifp, "search", breaking)
    bank = bank_build.build_bank(plan, variables, tmp_path)
    assert [e.task for e in bank.entries] == ["source-0000", "source-0002"]
    assert "source-0001 diverged" in capsys.readouterr().err
    monkeypatch.setattr(bank_build.ifp, "search", None)  # nothing is tried again
    assert [e.task for e in bank_build.build_bank(plan, variables, tmp_path).entries] == ["source-0000", "source-0002"]


def test_devices_are_those_that_there_are():
    assert planning.few_shot_plan(config()).mesh is None
    assert dict(planning.few_shot_plan(config(devices=2)).mesh.shape) == {"member": 2, "data": 1}
    with pytest.raises(ValueError, match="devices is 9, but this process has 2"):
        planning.few_shot_plan(config(devices=9))


def test_the_pre_trained_model_keeps_its_fingerprint_where_sums_round_otherwise(tmp_path, monkeypatch):
    # A bank is refused for another model; on another machine, re-estimated statistics would differ in the last digits.
    plan = planning.plan(config("data=digits,runlocal"))
    first = dense_model.dense_model(plan, tmp_path)

    def rounded(model, variables, x):
        found = reestimate(model, variables, x)
        return found._replace(rest=jax.tree.map(lambda leaf: leaf * (1 + 1e-6), found.rest))

    reestimate = dense_model.evaluation.reestimate
    monkeypatch.setattr(dense_model.evaluation, "reestimate", rounded)
    assert banks.fingerprint(dense_model.dense_model(plan, tmp_path)) == banks.fingerprint(first)
    assert jax.tree.leaves(first.rest)
    assert banks.fingerprint(dense_model.dense_model(plan, tmp_path / "other")) != banks.fingerprint(first)
