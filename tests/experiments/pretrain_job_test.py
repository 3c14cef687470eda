"""The job `pretrain` on digits: what it writes, that it goes on where it was stopped, that others take its model."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest

from configs import mvp, pretrain
from mvp_jax import models, pretrained, train
from mvp_jax.data import sources, tasks
from mvp_jax.data.augment import named
from mvp_jax.experiments import dense_model, planning, pretrain_job, run, setup
from mvp_jax.storage import records
from mvp_jax.train import evaluation, pretraining

VIT = {"dim": 16, "heads": 2, "layers": 1}


def config(arg="model=vit,runlocal", **fields):
    c = pretrain.get_config(arg)
    if "vit" in arg:
        c.model.options.update(VIT)
    # Fewer steps would leave features that hardly depend on the image.
    c.pretrain.steps, c.pretrain.save_every, c.pretrain.learning_rate, c.pretrain.batch = 300, 100, 5e-3, 64
    c.update_from_flattened_dict(fields)
    return c


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    work = tmp_path_factory.mktemp("pretrain")
    return work, run.run(config(), work)


def test_a_run_leaves_what_it_promises(job):
    work, rows = job
    assert {(r["split"], r["method"], r["steps"]) for r in rows} == {
        ("valid", "supervised", 300),
        ("test", "supervised", 300),
    }
    lines = records.read_metrics(work / "metrics.jsonl")
    assert [line["step"] for line in lines] == [100, 200, 300]
    assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]
    assert [line["rate"] for line in lines] == pytest.approx(
        [5e-3 * 0.5 * (1 + np.cos(np.pi * t / 300)) for t in (99, 199, 299)], rel=1e-3
    )
    image = matplotlib.image.imread(work / "pretraining.png")
    assert image.std() > 0.01
    plan = planning.pretrain_plan(config())
    model, variables = pretrained.reload(work / "model")
    for split in ("valid", "test"):
        pool = tasks.subset(getattr(plan.setting.pools, split), plan.setting.pretrain_classes)
        expected = evaluation.evaluate(model, variables, setup.batch_of(pool))["accuracy"]
        (got,) = [r["accuracy"] for r in rows if r["split"] == split]
        assert got == pytest.approx(float(expected), abs=1e-6)
        assert got > 0.4  # chance is a sixth
    assert json.loads((work / "config.json").read_text())["job"] == "pretrain"


def test_a_second_run_reads_the_rows_back_and_a_killed_one_ends_as_an_uninterrupted(job, tmp_path, monkeypatch):
    work, rows = job
    assert run.run(config(), work) == rows
    looks = []

    def killed(*args, found=pretrain_job._judge):
        looks.append(args)
        if len(looks) == 2:
            raise KeyboardInterrupt  # after step 200, which has not been saved
        return found(*args)

    with monkeypatch.context() as patch:
        patch.setattr(pretrain_job, "_judge", killed)
        with pytest.raises(KeyboardInterrupt):
            run.run(config(), tmp_path)
    assert not (tmp_path / "results.csv").exists()
    assert run.run(config(), tmp_path) == rows
    for name in ("metrics.jsonl", "model/weights.safetensors", "results.csv"):
        assert (tmp_path / name).read_bytes() == (work / name).read_bytes(), name


def test_other_jobs_start_from_the_model(job, tmp_path):
    work, _ = job
    c = mvp.get_config("model=vit,runlocal")
    c.model.options.update(VIT)
    c.model.checkpoint = str(work / "model")
    plan = planning.few_shot_plan(c)
    variables = dense_model.dense_model(plan, tmp_path)
    model, own = pretrained.reload(work / "model")
    assert plan.model is model
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, variables, own)))
    c.model.classes = 9
    wider = dense_model.dense_model(planning.few_shot_plan(c), tmp_path)
    assert wider.params["head"]["kernel"].shape[-1] == 9
    assert jnp.array_equal(wider.params["patch"]["kernel"], own.params["patch"]["kernel"])
    c.model.options.update({"dim": 32})
    with pytest.raises(
        ValueError, match=r"holds ViTConfig.*the config asks for ViTConfig.*set model.name, model.options"
    ):
        dense_model.dense_model(planning.few_shot_plan(c), tmp_path)


def test_what_it_learns_from_and_is_judged_on_are_the_other_jobs_pools():
    ours, theirs = planning.pretrain_plan(config()), planning.few_shot_plan(mvp.get_config("model=vit,runlocal"))
    assert ours.setting.pretrain_classes == theirs.setting.pretrain_classes
    for a, b in zip(ours.setting.pools, theirs.setting.pools, strict=True):
        assert np.array_equal(a.x, b.x)


def test_streamed_and_shared_out_it_learns_too_and_goes_on(tmp_path, monkeypatch):
    pytest.importorskip("grain")
    fields = {"data.stream": True, "devices": 2, "pretrain.steps": 20, "pretrain.save_every": 10}
    rows = run.run(config(**fields), tmp_path / "whole")
    losses = [line["loss"] for line in records.read_metrics(tmp_path / "whole" / "metrics.jsonl")]
    assert losses[1] < losses[0]
    judge = pretrain_job._judge

    def killed(plan, trained, state, valid):
        if int(state.step) == 20:
            raise KeyboardInterrupt
        return judge(plan, trained, state, valid)

    with monkeypatch.context() as patch:
        patch.setattr(pretrain_job, "_judge", killed)
        with pytest.raises(KeyboardInterrupt):
            run.run(config(**fields), tmp_path / "killed")
    assert run.run(config(**fields), tmp_path / "killed") == rows
    assert (tmp_path / "killed" / "metrics.jsonl").read_text() == (tmp_path / "whole" / "metrics.jsonl").read_text()


def test_two_devices_compute_what_one_does():
    found = []
    for devices in (1, 2):
        plan = planning.pretrain_plan(config(devices=devices))
        recipe, state = pretraining.begin(plan.model, plan.settings, jax.random.key(0), mesh=plan.mesh)
        data = setup.batch_of(plan.pool("source"))
        state, metrics = train.fit(recipe, state, data, 3, total=plan.settings.steps)
        found.append((state.variables.params, metrics["loss"]))
    assert float(found[0][1]) == pytest.approx(float(found[1][1]), rel=1e-4)
    for a, b in zip(*(jax.tree.leaves(params) for params, _ in found), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.slow
def test_simsiam_and_the_recipe_of_transformers_run(tmp_path):
    """SimSiam with a head fitted afterwards; and mixed, smoothed labels, warm-up, decay of kernels alone."""
    c = config("model=vit,method=simsiam,runlocal", **{"pretrain.keep": "best", "pretrain.steps": 80})
    c.pretrain.save_every = 40
    rows = run.run(c, tmp_path / "simsiam")
    assert {r["method"] for r in rows} == {"simsiam"}
    lines = records.read_metrics(tmp_path / "simsiam" / "metrics.jsonl")
    assert all(-1 <= line["loss"] <= 1 for line in lines)
    assert lines[-1]["spread"] > 0.25 / c.pretrain.dim**0.5
    assert "accuracy" not in lines[0]
    best = max(lines, key=lambda line: line["valid"])
    kept = pretrained.describe(tmp_path / "simsiam" / "model")["extra"]
    assert (kept["step"], kept["valid"]) == (best["step"], best["valid"])
    assert rows[0]["steps"] == best["step"]
    assert max(line["valid"] for line in lines) > 0.3  # of a fitted head; chance is a sixth

    mixed = {
        "pretrain.mixup": 0.8,
        "pretrain.cutmix": 1.0,
        "pretrain.label_smoothing": 0.1,
        "pretrain.warmup": 5,
        "pretrain.augment": "crop_rand",
        "pretrain.decayed": "kernels",
        "pretrain.steps": 20,
    }
    run.run(config(**mixed), tmp_path / "vit")
    lines = records.read_metrics(tmp_path / "vit" / "metrics.jsonl")
    assert 1.0 < lines[0]["loss"] < 2.5  # of six classes, smoothed and mixed


def test_mixing_without_effect_is_plain_training():
    """Shares of 0 leave images and labels as they are: the same steps as by `train.fit` with smoothing."""
    pool = sources.digits().train
    data = {"x": jnp.asarray(pool.x[:64]), "y": jnp.asarray(pool.y[:64])}
    model = models.create("vit_micro", **VIT)
    settings = pretraining.Settings(
        method="supervised",
        steps=4,
        batch=32,
        learning_rate=0.1,
        optimizer="sgd",
        mixup=1.0,
        label_smoothing=0.1,
    )
    recipe, state = pretraining.begin(model, settings, jax.random.key(0))
    assert (recipe.prepare.mixup, recipe.prepare.cutmix) == (1.0, None)
    without = dataclasses.replace(recipe, prepare=dataclasses.replace(recipe.prepare, mixup=0.0))
    mixed, _ = train.fit(without, state, data, 4)
    plain, _ = train.fit(train.Recipe(model=model, tx=recipe.tx, batch=32, decay="cosine"), state, data, 4)
    other, metrics = train.fit(recipe, state, data, 4)
    assert np.isnan(metrics["accuracy"])  # labels are no classes any more

    def apart(a, b):
        return max(jax.tree.leaves(jax.tree.map(lambda x, y: float(jnp.abs(x - y).max()), a.variables, b.variables)))

    assert apart(plain, mixed) < 1e-5
    assert apart(plain, other) > 1e-3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pretrain.method": "mae"}, "unknown method 'mae'; choose one of"),
        ({"pretrain.optimizer": "lion"}, "unknown optimizer 'lion'"),
        ({"pretrain.keep": "first"}, "unknown keep 'first'"),
        ({"pretrain.warmup": 300}, "warmup is 300 of 300 steps"),
        ({"pretrain.batch": 0}, "batch is 0"),
        ({"pretrain.batch": 4096}, r"pretrain.batch is 4096, of \d+ training images; lower it"),
        ({"pretrain.batch": 33, "devices": 2}, "a batch of 33 cannot be shared out over 2 devices"),
        ({"pretrain.label_smoothing": 1.0}, r"label_smoothing lies in \[0, 1\)"),
        ({"pretrain.learning_rate": 0.0}, "learning_rate and clip are positive"),
        ({"pretrain.augment": "mixup"}, "unknown augmentation 'mixup'; choose 'none', 'shift'"),
        ({"pretrain.augment": "none", "pretrain.method": "simsiam"}, "two views need an augmentation"),
        ({"pretrain.method": "simsiam", "pretrain.mixup": 0.1}, "simsiam needs views of images and looks at no labels"),
    ],
)
def test_a_bad_config_is_refused_before_anything_is_written(tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        run.run(config(**fields), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_colours_need_to_know_how_images_were_normalised(monkeypatch):
    c = config(**{"pretrain.augment": "rand"})
    chosen = planning.pretrain_plan(c).setting
    c.data.name = "npz"
    with pytest.raises(ValueError, match=r"'rand' changes colours, .* give data.mean and data.std"):
        pretrain_job.check(c, chosen, models.create("vit_micro", **VIT))
    c.data.mean, c.data.std = (0.5,), (0.25,)
    assert pretrain_job.check(c, chosen, models.create("vit_micro", **VIT)).settings.augment is not None


def test_divergence_is_said_and_leaves_no_model(tmp_path):
    with pytest.raises(ValueError, match=r"pre-training diverged after step .*; lower pretrain.learning_rate"):
        run.run(config(**{"pretrain.learning_rate": 1e30, "pretrain.optimizer": "sgd"}), tmp_path)
    assert not (tmp_path / "model").exists()


def test_named_augmentations_are_cached_and_do_what_they_say():
    x = jax.random.uniform(jax.random.key(0), (8, 8, 8, 3))
    key = jax.random.key(1)
    for name in ("shift", "crop", "flip", "resized_flip", "crop_flip_rand", "shift_noisy"):
        fn = named.augmentation(name)
        assert fn is named.augmentation(name)
        assert fn(key, x).shape == x.shape
        assert not jnp.array_equal(fn(key, x), x)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    m, s = jnp.array(mean), jnp.array(std)
    for name in ("simsiam", "simsiam_sharp", "shift"):
        a, b = named.views(name, mean, std)(key, (x - m) / s)
        assert not jnp.array_equal(a, b)
    a, b = named.views("simsiam", mean, std)(key, (x - m) / s)
    for own, bare in zip((a, b), named.views("simsiam")(key, x), strict=True):
        # Where a grey pixel has a hue is a matter of rounding.
        assert float(jnp.mean(jnp.abs(own * s + m - bare))) < 1e-3
