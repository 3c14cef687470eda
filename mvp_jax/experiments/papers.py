"""What the configs of the papers' experiments share: real data sets, published recipes, sizes as published.

Meta-Vote Pruning: arXiv:2301.11560; Instant Soup Pruning: arXiv:2306.10460. Recipes: He et al. (arXiv:1512.03385) and
what became common for CIFAR since; Touvron et al. (arXiv:2012.12877), table 9, without random erasing, repeated
augmentation and stochastic depth; Chen & He (arXiv:2011.10566), sections 4 and D.
"""

from ml_collections import ConfigDict, config_dict

from mvp_jax.data.datasets import catalog, glue
from mvp_jax.experiments import presets

CLIP_TEMPLATES = {
    "mnist": "mnist",
    "svhn": "mnist",
    "cars": "cars",
    "gtsrb": "gtsrb",
    "cifar10": "cifar",
    "cifar100": "cifar",
}
"""Which of `presets.TEMPLATES` go with the paper's data sets for CLIP."""

SHOTS = {"mnist": 500, "svhn": 500, "gtsrb": 150, "cars": None, "cifar10": 500, "cifar100": 100}
"""Training images of each class for CLIP, whose pixels (224 a side) lie on the device; `None`: all."""

LARGE = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
"""Networks for ImageNet, whose stem is made small for images of 32 or 64 pixels."""

GLUE_TASKS = ("mnli", "qnli", "qqp", "sst2", "rte", "mrpc")
"""Tasks of GLUE."""


def meta_vote_cifar100(model: str = "resnet18", targets: str = "cifar100", classes: int = 10) -> ConfigDict:
    """The paper's setting on CIFAR-100: a bank of 1,000 tasks, pruned from one network (`model.checkpoint`).

    Args:
        model: a preset for small images.
        targets: `cifar100`, or another data set, whose images are brought to 32 pixels and which only targets see.
        classes: of each task.
    """
    config = presets.meta_vote("cifar100", model)
    many(config, model)
    if targets != "cifar100":
        catalog.find(targets)
        config.data.name, config.data.targets, config.data.size = f"cifar100+{targets}", targets, 32
        config.data.fractions = (0.5, 0.5)
        config.tasks.shots, config.tasks.valid, config.tasks.test = 10, 5, 5  # the scarcest birds have few images
        config.targets.unseen_at_least = 0
    else:
        config.data.unseen_classes = 20  # no task of the bank has them
    if model in LARGE:
        config.model.options = ConfigDict({"stem": "small"})
    config.model.classes = 100
    config.tasks.classes_per_task = classes
    config.bank.tasks = 1000
    return config


def many(config: ConfigDict, model: str) -> None:
    """Meta-Vote Pruning at the size of the paper: with one budget for all networks."""
    vit = model.startswith(presets.TRANSFORMERS)
    config.mapping = "auto"
    config.prune.ratio = 0.75
    config.bank.rounds, config.bank.steps_per_round, config.bank.final_steps = 3, 60, 120
    config.bank.batch = 64
    config.tasks.source_images = 60
    config.tasks.shots, config.tasks.valid, config.tasks.test = 20, 20, 20
    config.targets.count, config.targets.seeds = 20, 3
    config.steps = (0, 25, 50, 100)
    config.tune.learning_rate = 3e-4 if vit else 0.02


def pretraining(data: str, model: str, method: str = "supervised", recipe: str = "") -> ConfigDict:
    """A dense network to be pruned later: a config of `pretraining.Plan`.

    Args:
        data: see `job`.
        model: see `job`.
        method: `supervised` or `simsiam`.
        recipe: `resnet`, `vit` or `simsiam`: published rates and lengths, for data of `data.catalog`; by default
            that of method and model.
    """
    config = presets.job("pretrain", data, model)
    attention = model.startswith(presets.TRANSFORMERS)
    recipe = recipe or (method if method == "simsiam" else "vit" if attention else "resnet")
    given = config.pretrain
    given.method = method
    given.optimizer = "adamw" if recipe == "vit" else "nesterov" if recipe == "resnet" else "sgd"
    given.warmup = 0  # steps
    given.decayed = "kernels" if recipe == "vit" else "all"
    given.clip = config_dict.placeholder(float)
    given.label_smoothing = given.mixup = given.cutmix = 0.0
    given.keep = "last"  # or "best" on the validation images
    given.examples = 5000  # of SimSiam: labelled training images for the head that is judged
    given.dim, given.hidden, given.projector_layers = 64, 16, 3
    if method == "simsiam":
        given.augment, given.batch, given.learning_rate = "shift_noisy", 128, 1e-3 if attention else 0.1
    if data not in catalog.CATALOG:
        return config

    known = catalog.find(data)
    small = known.size <= 64
    published = {  # epochs, batch, rate for a batch of 256, decay, augmentation
        "resnet": (200, 128, 0.2, 5e-4, "crop_flip") if small else (90, 256, 0.1, 1e-4, "resized_flip"),
        "vit": (300, 1024, 2.5e-4, 0.05, "crop_flip_rand" if small else "resized_flip_rand"),
        "simsiam": (800, 512, 0.03, 5e-4, "simsiam_sharp") if small else (100, 512, 0.05, 1e-4, "simsiam"),
    }
    if recipe not in published:
        raise ValueError(f"unknown recipe {recipe!r}; choose one of {sorted(published)}")
    epochs, given.batch, base, given.weight_decay, given.augment = published[recipe]
    an_epoch = known.counts[0] * config.data.fractions[0] / given.batch
    given.steps = round(epochs * an_epoch)
    given.learning_rate = base * given.batch / 256
    given.save_every = max(1, round(5 * an_epoch))
    given.dim, given.hidden, given.projector_layers = 2048, 512, 2 if small else 3
    if recipe == "vit":
        given.warmup = round(5 * an_epoch)
        given.label_smoothing, given.mixup, given.cutmix = 0.1, 0.8, 1.0
    if small and model in LARGE:
        config.model.options = ConfigDict({"stem": "small"})
    return config


def whole(config: ConfigDict, data: str, shots: int | None = None) -> None:
    """One target of all classes of a data set, for a network that is pre-trained already; every tenth sparsity.

    Args:
        config: of `trials`.
        data: a name of `data.catalog`, or `glue/TASK`.
        shots: training images of each class; all that the scarcest has, by default.
    """
    if data.startswith("glue/"):
        config.data.name, config.data.length = data, 128
        classes = glue.task(data).classes
    else:
        presets.pictures(config, data)
        classes = catalog.find(data).classes
    config.data.tasks = "whole"
    config.data.fractions = (0.05, 0.95)  # the first part is for pre-training, of which there is none
    config.data.unseen_classes = 0
    config.pretrain.classes = classes
    config.targets.unseen_at_least = 0
    config.tasks = ConfigDict()
    config.tasks.classes_per_task = classes
    for name in ("shots", "valid", "test"):  # none: as many of each class as there are of the scarcest
        config.tasks[name] = config_dict.placeholder(int)
    config.tasks.shots = shots
    config.sparsities = tuple(n / 10 for n in range(1, 10))
    config.keep_rounds = True


def checkpoint(config: ConfigDict, folder: str) -> None:
    """Starts from what a folder holds, with the training of the published code (arXiv:2306.10460)."""
    config.model.checkpoint = folder
    config.train.learning_rate, config.train.weight_decay, config.train.clip = 1e-5, 0.1, 1.0
    config.train.batch, config.train.warmup = 128, 500
    config.isp.epochs, config.isp.weak_epochs = 0.2, 0.1
