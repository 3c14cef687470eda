"""What the configs share: the default settings of each job, and how a config file's argument is read.

A config file is read by its path, wherever that is, so the pieces that several of them need are in the package.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from ml_collections import ConfigDict, config_dict

from mvp_jax.data.datasets import catalog
from mvp_jax.experiments import data_presets, rates

TEXTS = ("docstrings",)
"""The texts that come with the installed packages; they and the tasks of GLUE, `glue/TASK`, are read as token ids."""

TRANSFORMERS = ("vit", "deit", "bert", "roberta", "distilbert", "clip", "checkpoint")
"""The beginnings of the names of transformers, which are trained by AdamW and whose units are heads and neurons."""


_LOOKS = ("", "blurry ", "black and white ", "low contrast ", "high contrast ", "bad ", "good ")
TEMPLATES = {
    "cifar": tuple(
        sentence
        for article in ("a", "the")
        for sentence in (
            *(f"a {look}photo of {article} {{}}." for look in _LOOKS),
            *(f"a photo of {article} {size} {{}}." for size in ("small", "big")),
        )
    ),
    "mnist": ('a photo of the number: "{}".',),
    "gtsrb": tuple(f'a {view} photo of a "{{}}" traffic sign.' for view in ("zoomed in", "centered", "close up")),
    "cars": (
        *(f"a photo of {whose} {{}}." for whose in ("a", "the", "my")),
        "i love my {}!",
        *(f"a photo of my {state} {{}}." for state in ("dirty", "clean", "new", "old")),
    ),
}
"""Sentences for CLIP's zero-shot head, by data set, with `{}` for a class's name, as its authors published them:
Radford et al. 2021, arXiv:2103.00020, and the list of prompts with the code."""

ISP_LINES = (
    "unpruned",
    "magnitude",
    "gradual_main",
    "gradual",
    "imp",
    "isp",
    "isp_one",
    "isp_score",
    "isp_union",
    "isp_majority",
    "isp_soup",
    "isp_published",
    "instant_soup",
)
"""The methods that a study of Instant Soup Pruning runs: the vote and its rules, controls, soups, and baselines."""


DEFAULT_LINES = (
    "dense",
    "mvp",
    "mvp_select",
    "copy_nearest",
    "vote_universal",
    "vote_farthest",
    "vote_pretrained_weights",
    "reptile_iht",
    "ifp",
    "oneshot_fisher",
    "oneshot_magnitude",
    "random_units",
)
"""The methods that `configs/mvp.py` runs unless it is told others: Meta-Vote Pruning, controls and baselines."""


def arguments(arg: str | None, allowed: Sequence[str] = ("data", "model", "runlocal")) -> dict[str, str]:
    """Returns the parts of a config file's argument by name.

    Args:
        arg: the argument, such as `data=npz,model=vit,runlocal`; `None`: there is none.
        allowed: the names that may be given; all take a value but `runlocal`.

    Raises:
        ValueError: for a name that is not allowed, a missing value, or a value of `runlocal`.

    >>> arguments("data=npz,runlocal")
    {'data': 'npz', 'runlocal': 'yes'}
    """
    given = {}
    for part in filter(None, (arg or "").split(",")):
        key, _, value = part.partition("=")
        if key not in allowed or (key == "runlocal") == bool(value):
            words = [a if a == "runlocal" else f"{a}=NAME" for a in allowed]
            raise ValueError(f"unknown config argument {part!r}; allowed are {', '.join(words)}")
        given[key] = value or "yes"
    return given


def one_of(what: str, value: str, allowed: Iterable[str]) -> str:
    """Returns the `value` of the argument called `what`, if it is one of those allowed.

    Raises:
        ValueError: if it is not.
    """
    allowed = list(allowed)
    if value not in allowed:
        raise ValueError(f"unknown {what}={value}; choose one of {', '.join(allowed)}")
    return value


def number(what: str, value: str, kind: type) -> Any:
    """Returns the text `value` of the argument called `what` as a number of a kind, `int` or `float`.

    Raises:
        ValueError: if the text is not such a number.
    """
    try:
        return kind(value)
    except ValueError as error:
        raise ValueError(f"{what}={value} is no number; give one, as {what}={kind(1)}") from error


def local(data: str, model: str) -> tuple[str, str]:
    """Returns the data set and the model that `runlocal` uses for others: embedded data, the family's smallest network.

    >>> local("imagenet", "deit_small")
    ('digits', 'vit')
    """
    families = {"vit": "vit", "deit": "vit", "clip": "clip", "bert": "bert", "roberta": "bert", "distilbert": "bert"}
    small = next((name for begin, name in families.items() if model.startswith(begin)), "resnet")
    return "docstrings" if is_text(data) else "digits", small


def job(kind: str, data: str, model: str) -> ConfigDict:
    """Returns a config with the settings that all jobs have, up to the pre-trained model, for small embedded data.

    Args:
        kind: the name of the job: `mvp`, `sparsity` or `pretrain`.
        data: `glyphs`, `digits`, `docstrings`, `npz` or `folder` (with `data.path`), a name of `data.datasets.catalog`,
            or `glue/TASK`.
        model: the name of a model, or `resnet`, `vit`, `bert` or `clip` for the small one of a family; `checkpoint`:
            the model that the folder `model.checkpoint` holds.
    """
    attention = model.startswith(TRANSFORMERS)
    config = ConfigDict()
    config.job = kind
    config.seed = 0
    config.mapping = "vmap"
    config.chunk = 6  # more do not fit into the caches of a CPU
    config.devices = 0
    config.tensorboard = False
    config.compilation_cache = "auto"

    config.multihost = False
    config.distributed = ConfigDict()
    config.distributed.coordinator = ""
    config.distributed.processes = config_dict.placeholder(int)
    config.distributed.process = config_dict.placeholder(int)

    config.data = ConfigDict()
    config.data.name = data
    config.data.path = ""
    config.data.upsample = 1
    config.data.size = config_dict.placeholder(int)
    config.data.stream = False
    config.data.tasks = "subsets"
    config.data.targets = ""
    config.data.held_out_faces = ""
    config.data.length = 32
    config.data.mean = config_dict.placeholder(tuple)
    config.data.std = config_dict.placeholder(tuple)
    config.data.fractions = (0.5, 0.08, 0.21, 0.21)
    config.data.unseen_classes = 2

    config.model = ConfigDict()
    config.model.name = {
        "resnet": "resnet8",
        "vit": "vit_micro",
        "bert": "bert_micro",
        "clip": "clip_vision_micro",
    }.get(model, model)
    config.model.options = ConfigDict() if attention else ConfigDict({"width": 16})
    config.model.conv = "auto"
    config.model.classes = 0
    config.model.checkpoint = ""

    config.pretrain = ConfigDict()
    config.pretrain.classes = 6
    config.pretrain.steps = 600
    config.pretrain.learning_rate = 1e-3 if attention else 0.05
    config.pretrain.optimizer = "adamw" if attention else "sgd"
    config.pretrain.weight_decay = 1e-4
    config.pretrain.batch = 64
    config.pretrain.augment = "none" if is_text(data) else "shift"
    config.pretrain.save_every = 200
    if data in catalog.CATALOG:
        data_presets.pictures(config, data)
    if data == "glyphs":
        data_presets.glyphs(config)
    return config


def is_text(data: str) -> bool:
    """Returns whether a data set's examples are token ids.

    >>> is_text("glue/mrpc"), is_text("digits")
    (True, False)
    """
    return data in TEXTS or data.startswith("glue/")


def meta_vote(data: str, model: str) -> ConfigDict:
    """Returns the config of the job `mvp`: Meta-Vote Pruning beside its baselines, sized for small embedded data.

    `data` and `model` name the data set and the model, as in `job`. The config's checked form is `plans.FewShotPlan`.
    """
    # Long, as it is the one list of a job's settings; `descriptions.SETTINGS` says what each means.
    vit = model.startswith(TRANSFORMERS)
    config = job("mvp", data, model)

    config.tasks = ConfigDict()
    config.tasks.classes_per_task = 3
    config.tasks.source_images = config_dict.placeholder(int)
    config.tasks.shots = 5
    # As many to validate as to test, so that one compiled evaluation serves both.
    config.tasks.valid = 36
    config.tasks.test = 36

    config.prune = ConfigDict()
    config.prune.ratio = 0.875
    config.prune.kinds = ("head", "qk", "value", "neuron") if vit else ("filter",)
    config.prune.min_units = 1

    config.bank = ConfigDict()
    config.bank.tasks = 42
    config.bank.similarity = "leep"
    config.bank.rounds = 2
    config.bank.steps_per_round = 40
    config.bank.final_steps = 60
    config.bank.schedule = "geometric"
    config.bank.score = "fisher"
    config.bank.learning_rate = 1e-3 if vit else 0.02
    config.bank.batch = 64

    config.tune = ConfigDict()
    config.tune.learning_rate = 3e-4 if vit else 0.02
    config.tune.optimizer = "adamw" if vit else "sgd"
    config.tune.weight_decay = 0.0
    config.tune.batch = 32
    config.tune.probe_l2 = 1e-2
    config.tune.probe_examples = 1024
    config.tune.norm_examples = 512
    config.tune.augment = "none"

    config.vote = ConfigDict()
    config.vote.k = 5
    config.vote.temperature = 0.0
    config.vote.similarity_temperature = 0.1
    config.vote.outside = "mean"
    config.vote.doubt = 0.25

    config.select = ConfigDict({"candidates": 16, "shares": (0.3, 0.6, 1.0), "ridge": 0.1})

    config.weak = ConfigDict()
    config.weak.members = 3
    config.weak.steps = 20
    config.weak.subset = 0.5
    config.weak.learning_rate = (0.5, 2.0)

    config.reptile = ConfigDict()
    config.reptile.outer_steps = 20
    config.reptile.tasks = 5
    config.reptile.inner_steps = 10
    config.reptile.outer_rate = 0.5
    config.reptile.threshold_every = 5

    config.targets = ConfigDict()
    config.targets.count = 6
    config.targets.seeds = 3
    config.targets.unseen_at_least = min(2, config.data.unseen_classes)
    rates.fill(config)
    config.steps = (0, 10, 25, 50)
    config.methods = ("all",)
    config.deliver = ""
    if data == "glyphs":
        data_presets.few_shot_glyphs(config)
    return config


def votes_briefly(config: ConfigDict) -> None:
    """Shrinks a config made by `meta_vote`, in place, so that the job runs in a moment, for a test that it works."""
    config.pretrain.steps = 20
    config.bank.tasks = 4
    config.bank.rounds, config.bank.steps_per_round, config.bank.final_steps = 2, 2, 2
    config.targets.count, config.targets.seeds = 2, 1
    config.steps = (0, 2)
    config.vote.k = 2
    config.weak.members, config.weak.steps = 2, 2
    config.reptile.outer_steps, config.reptile.tasks, config.reptile.inner_steps = 2, 2, 2
    if config.model.name == "resnet8":
        config.model.options.width = 4


def sparsity(data: str, model: str) -> ConfigDict:
    """Returns the config of the job `sparsity`: methods compared at given sparsities, sized for small embedded data.

    `data` and `model` name the data set and the model, as in `job`. The config's checked form is `plans.SparsityPlan`.
    """
    # Long, as it is the one list of a job's settings; `descriptions.SETTINGS` says what each means.
    attention, text = model.startswith(TRANSFORMERS), is_text(data)
    config = job("sparsity", data, model)
    config.data.fractions = (0.35, 0.35, 0.15, 0.15)
    config.data.unseen_classes = 10 if text else 4
    config.pretrain.classes = 16 if text else 6
    if text:
        config.pretrain.steps, config.pretrain.learning_rate = 500, 3e-3
        config.model.options.dropout = 0.1

    config.tasks = ConfigDict()
    config.tasks.classes_per_task = 8 if text else 5
    config.tasks.shots = 60
    config.tasks.valid = 24
    config.tasks.test = 24

    config.targets = ConfigDict()
    config.targets.count = 1
    config.targets.seeds = 3
    config.targets.unseen_at_least = 4
    rates.fill(config)

    config.pattern = ConfigDict()
    config.pattern.name = "weights"
    config.pattern.allocation = "global"
    config.pattern.kinds = ("head", "qk", "value", "neuron") if attention else ("filter",)

    config.sparsities = (0.8, 0.9)
    config.methods = ("all",)
    config.reference = "imp"
    config.ours = "isp"
    config.keep_rounds = False
    config.masks_alone = True
    config.templates = ()

    config.train = ConfigDict()
    config.train.steps = 150
    config.train.learning_rate = 1e-3 if attention else 0.02
    config.train.optimizer = "adamw" if attention else "sgd"
    config.train.weight_decay = 1e-4
    config.train.batch = 32
    config.train.decay = "cosine"
    config.train.warmup = 0
    config.train.clip = config_dict.placeholder(float)
    config.train.augment = "none" if text else "shift"
    config.train.norm_examples = 512
    config.round_steps = 100
    config.gradual = ConfigDict()
    config.gradual.steps = config_dict.placeholder(int)
    config.gradual.events = config_dict.placeholder(int)
    config.gradual.rank = "magnitude"
    config.gradual.outer_momentum = config.gradual.souped_from = 0.0
    config.examples = 256

    config.isp = ConfigDict()
    config.isp.members = 5
    config.isp.round_sparsity = 0.2
    config.isp.vote = "mean"
    config.isp.epochs = 1.0  # the data are small; the paper's data, of long epochs, take 0.2 and 0.1 (weak)
    config.isp.weak_epochs = 0.5
    config.isp.growth = "constant"
    config.isp.inherit = True
    config.isp.rank = "magnitude"
    config.isp.examples = 256
    config.isp.soup = "none"
    config.isp.landing = config_dict.placeholder(float)
    config.isp.diversity = ConfigDict()
    config.isp.diversity.subset = 0.5
    config.isp.diversity.learning_rate = (0.5, 2.0)
    config.isp.diversity.law = "log"
    for name in ("weight_decay", "label_smoothing", "dropout", "augment"):
        config.isp.diversity[name] = config_dict.placeholder(tuple)  # (low, high)
    config.isp.diversity.sgd = 0.0
    if data == "glyphs":
        data_presets.sparse_glyphs(config)
    return config


def briefly(config: ConfigDict) -> None:
    """Shrinks a config made by `sparsity`, in place, so that the job runs in a moment, for a test that it works."""
    config.pretrain.steps = 20
    config.targets.count = config.targets.seeds = 1
    config.tasks.shots, config.tasks.valid, config.tasks.test = 8, 8, 8
    config.sparsities = (0.5, 0.75)
    config.train.steps, config.round_steps, config.examples = 2, 2, 16
    config.isp.members, config.isp.round_sparsity, config.isp.examples = 2, 0.4, 16
