"""Every config: all of its arguments resolve, no field is misspelt, the full ones fit their data, `runlocal` runs."""

import importlib
import itertools
import pathlib

import numpy as np
import pytest
from ml_collections import ConfigDict

from mvp_jax.data import sources
from mvp_jax.data.datasets import catalog, glue, joined
from mvp_jax.experiments import bank_job, papers, planning, pools, presets, prune_job, sweep
from mvp_jax.experiments import run as experiment
from mvp_jax.methods import registry

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "configs"
NAMES = sorted(p.stem for p in FOLDER.glob("*.py") if p.stem != "__init__")


def of(name, arg=""):
    return importlib.import_module(f"configs.{name}").get_config(arg or None)


STUDIES = {
    "mvp_ablations": ("neighbours", "similarity", "ratio", "classes"),
    "isp_ablations": ("members", "vote", "interval", "diversity"),
}
FULL = [
    ("bank", ""),
    ("bank", "model=vit"),
    ("compare", ""),
    ("compare", "data=docstrings"),
    ("compare", "data=npz,model=resnet8_distiller"),
    ("gradual_soup", ""),
    ("gradual_soup", "data=npz,model=resnet20"),
    ("gradual_soup", "data=mrpc"),
    ("isp", ""),
    ("isp", "data=docstrings"),
    ("isp_bert", ""),
    ("isp_clip", ""),
    ("mvp", ""),
    ("mvp", "model=vit"),
    ("mvp", "data=digits"),
    ("mvp", "held_out=mono"),
    ("bank", "data=glyphs"),
    ("compare", "data=glyphs"),
    ("mvp", "data=npz,model=resnet8_distiller"),
    ("mvp_imagenet", ""),
    ("mvp_imagenet", "model=deit_small,classes=20,ratio=0.5"),
    ("mvp_imagenet", "data=tiny_imagenet,model=resnet18"),
    ("prune", ""),
    ("pretrain", ""),
    ("pretrain", "model=vit"),
    ("pretrain", "method=simsiam"),
    ("pretrain", "recipe=vit,model=vit"),
    ("pretrain", "data=cifar100,model=resnet18"),
    ("pretrain", "data=cifar100,model=resnet18,method=simsiam"),
    ("pretrain", "data=imagenet,model=deit_small,recipe=vit"),
    ("pretrain", "data=imagenet,model=resnet50"),
    ("pretrain", "data=eurosat,model=resnet18"),
    *(("isp_bert", f"data={task}") for task in papers.GLUE_TASKS),
    *(("isp_clip", f"data={data}") for data in papers.CLIP_TEMPLATES),
    *(
        ("mvp_cifar100", f"pretraining={how},targets={where},classes={classes},ratio=0.9")
        for how, where, classes in itertools.product(("supervised", "simsiam"), ("cifar100", "cub200", "pets"), (5, 10))
    ),
    ("mvp_cifar100", "classes=20"),
    *((name, f"study={study}") for name, studies in STUDIES.items() for study in studies),
    *(("mvp_ablations", f"data=cifar100,study={study}") for study in STUDIES["mvp_ablations"]),
]
LOCAL = [
    ("bank", "runlocal"),
    ("compare", "runlocal"),
    ("gradual_soup", "runlocal"),
    ("isp", "runlocal"),
    ("isp_bert", "data=mrpc,runlocal"),
    ("isp_clip", "data=svhn,runlocal"),
    ("mvp", "runlocal"),
    ("mvp_cifar100", "targets=cub200,runlocal"),
    ("mvp_imagenet", "model=deit_small,runlocal"),
    ("prune", "runlocal"),
    ("pretrain", "data=cifar100,model=resnet18,runlocal"),
    ("pretrain", "data=imagenet,model=deit_small,runlocal"),
    ("pretrain", "data=cifar100,model=resnet18,method=simsiam,runlocal"),
    *((name, f"study={study},runlocal") for name, studies in STUDIES.items() for study in studies),
]


def flat(config, before=""):
    found = {}
    for key in config:
        value = config[key]
        found |= flat(value, f"{before}{key}.") if isinstance(value, ConfigDict) else {before + key: value}
    return found


def base(job):
    """All fields of a job's config."""
    if job == "prune":
        return set(flat(prune_job.config()))
    if job == "bank":
        return {path for path in flat(bank_job.config()) if not path.startswith("model.options")}
    made = {"mvp": presets.meta_vote, "sparsity": presets.sparsity, "pretrain": papers.pretraining}[job]
    return {path for path in flat(made("digits", "resnet")) if not path.startswith("model.options")}


def jobs(config):
    """The config itself, or those of a sweep's points."""
    return list(sweep.configs(config).values()) if config.job == "sweep" else [config]


def test_the_default_lines_are_methods_and_all_can_be_asked_for():
    assert of("mvp").data.name == "glyphs"
    assert of("mvp").methods == presets.DEFAULT_LINES
    assert set(presets.DEFAULT_LINES) < set(registry.TABLES["few_shot"])
    assert set(presets.ISP_LINES) < set(registry.TABLES["sparse"])
    for name, arg in (("mvp", "data=npz"), ("compare", ""), ("mvp_cifar100", "")):
        assert of(name, arg).methods == ("all",)


def test_there_is_a_test_for_every_file():
    assert {name for name, _ in FULL} | {"sweep"} == set(NAMES)
    assert {name for name, _ in LOCAL} | {"sweep"} == set(NAMES)


@pytest.mark.parametrize(("name", "arg"), [*FULL, *LOCAL])
def test_the_fields_are_those_of_the_job(name, arg):
    for config in jobs(of(name, arg)):
        fields = {path for path in flat(config) if not path.startswith("model.options")}
        assert fields == base(config.job)


@pytest.mark.parametrize("name", NAMES)
def test_a_lab_note_says_what_was_run(name):
    note = importlib.import_module(f"configs.{name}").__doc__
    assert f"--config=configs/{name}.py" in note
    assert "Lab note." in note
    for wrong in ("modle=vit", "runlocal=1"):
        with pytest.raises(ValueError, match=r"unknown config argument .*; allowed are|no config file"):
            of(name, wrong)


def stand_in(name, *, classes, size, channels=3, test=True, each=40):
    """A data set of the right classes and shape, whose images differ in a corner."""
    rng = np.random.default_rng(list(name.encode()))

    def part(n):
        y = np.repeat(np.arange(classes), n).astype(np.int32)
        x = np.zeros((len(y), size, size, channels), np.uint8)
        x[:, :8, :8] = rng.integers(0, 256, (len(y), 8, 8, channels))
        return x, y

    return sources.arrays(name, part(each), part(each) if test else None)


@pytest.fixture
def faked(monkeypatch):
    """Data of the right number of classes in the place of those on disk."""

    def picture(name, path, config):
        if name == "digits":
            return sources.digits(upsample=config.data.upsample)
        if name == "glyphs":
            test = bool(config.data.held_out_faces)
            return stand_in(name, classes=178, size=16, channels=1, test=test, each=160)
        if name == "npz":
            return stand_in(name, classes=100, size=32, each=160)
        known = catalog.find(name)
        # Their small copies: neither fields nor classes depend on the size.
        return stand_in(
            name,
            classes=known.classes,
            size=min(known.size, 32),
            channels=known.channels,
            test=known.test is not None,
            each=10 if known.classes > 100 else 40,
        )

    def texts(name, path, tokenizer, *, length, vocabulary):
        assert vocabulary > 90  # what the model has embeddings for
        y = (np.arange(400) % glue.task(name).classes).astype(np.int32)
        x = np.random.default_rng(0).integers(5, 90, (400, length)).astype(np.int32)
        return sources.Source(
            name=name,
            train=sources.Arrays(x, y),
            test=sources.Arrays(x[:200] + 1, y[:200]),
            class_names=glue.task(name).labels,
        )

    monkeypatch.setattr(pools, "_pictures", picture)
    monkeypatch.setattr(pools.glue, "source", texts)
    join = joined.join
    monkeypatch.setattr(pools.joined, "join", lambda parts, size: join(parts, size=8))


SEEN = (
    "data=npz",
    "data=docstrings",
    "model=resnet50",
    "pretraining=simsiam",
    "targets=cifar100",
    "recipe=vit,model=vit",
)
"""What other cases, or the tests of the jobs, look at already."""


@pytest.mark.parametrize(
    ("name", "arg"),
    [case for case in FULL if not any(part in ":".join(case) for part in SEEN) and case != ("isp_bert", "")],
)
def test_the_full_config_fits_its_data(name, arg, faked):
    """What can be wrong with it is found before work starts; here nothing is, but for what the stand-ins lack."""
    config = jobs(of(name, arg))[-1]
    with config.unlocked():
        if config.job == "mvp" and config.data.name not in ("glyphs", "digits"):
            config.data.fractions = (0.5, 0.5)
            config.tasks.source_images, config.tasks.shots = 5, 5
            config.tasks.valid = config.tasks.test = 5
        if config.job == "sparsity" and config.data.tasks == "whole":
            config.data.fractions = (0.5, 0.5)
            config.tasks.shots = 5
        if config.job == "pretrain":
            config.pretrain.batch = 64
    planning.plan(config)


@pytest.mark.parametrize(("name", "arg"), LOCAL)
def test_the_brief_config_needs_no_data(name, arg):
    for config in jobs(of(name, arg)):
        assert config.data.name in ("digits", "docstrings")
        if config.job == "prune":
            continue
        assert config.model.name in ("resnet8", "vit_micro", "bert_micro", "clip_vision_micro")
        assert not config.model.checkpoint
        planning.plan(config)


def run(config, work):
    """Whole jobs of two lines, one sparsity; of a sweep two points of one line."""
    config.unlock()
    if config.job == "sweep":
        config.sweep.over = tuple((path, values[:2]) for path, values in config.sweep.over[:1])
    if "methods" in config:
        config.methods = ("mvp", "dense") if "bank" in config else ("isp", "magnitude")
    if "sparsities" in config:
        config.reference, config.sparsities = "isp", (0.5,)
    config.lock()
    rows = experiment.run(config, work)
    assert rows
    assert list(work.glob("*.csv"))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "arg"), LOCAL)
def test_it_runs_in_a_moment(name, arg, tmp_path):
    run(of(name, arg), tmp_path)
