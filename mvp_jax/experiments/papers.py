"""What the configs of the papers' experiments share: real data sets, published recipes, and published sizes.

The papers are Meta-Vote Pruning (arXiv:2301.11560) and Instant Soup Pruning (arXiv:2306.10460). The recipes are those
of He et al. (arXiv:1512.03385), with what has become common for CIFAR since; of Touvron et al. (arXiv:2012.12877,
table 9), without random erasing, repeated augmentation and stochastic depth; and of Chen & He (arXiv:2011.10566,
sections 4 and D).
"""

from ml_collections import ConfigDict, config_dict

from mvp_jax.data.datasets import catalog, glue
from mvp_jax.experiments import data_presets, presets

CLIP_TEMPLATES = {
    "mnist": "mnist",
    "svhn": "mnist",
    "cars": "cars",
    "gtsrb": "gtsrb",
    "cifar10": "cifar",
    "cifar100": "cifar",
}
"""The key of `presets.TEMPLATES` for each of the paper's data sets for CLIP."""

SHOTS = {"mnist": 500, "svhn": 500, "gtsrb": 150, "cars": None, "cifar10": 500, "cifar100": 100}
"""The number of training images of each class for CLIP, so few that all fit on a device at 224 pixels a side; `None`:
all."""

LARGE = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
"""Networks made for ImageNet: for images of 32 or 64 pixels they get a small stem."""

GLUE_TASKS = ("mnli", "qnli", "qqp", "sst2", "rte", "mrpc")
"""The tasks of GLUE that the paper prunes for."""


def meta_vote_cifar100(model: str = "resnet18", targets: str = "cifar100", classes: int = 10) -> ConfigDict:
    """Returns the config of Meta-Vote Pruning on CIFAR-100 as in the paper: a bank of 1,000 tasks, from one network.

    The network is read from the checkpoint `model.checkpoint`, which the caller sets.

    Args:
        model: the name of a model for small images.
        targets: the data set that targets are drawn from: `cifar100`, or another one, whose images are resized to 32
            pixels and which only targets see.
        classes: the number of classes of each task.

    Raises:
        ValueError: for an unknown data set.
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
        config.data.unseen_classes, config.targets.unseen_at_least = 20, 2  # no task of the bank has them
    if model in LARGE:
        config.model.options = ConfigDict({"stem": "small"})
    config.model.classes = 100
    config.tasks.classes_per_task = classes
    config.bank.tasks = 1000
    return config


def many(config: ConfigDict, model: str) -> None:
    """Gives a config of Meta-Vote Pruning the paper's sizes, with the same training budget for all networks.

    Args:
        config: a config made by `presets.meta_vote`; it is changed in place.
        model: the name of the model, which decides the learning rate.
    """
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
    """Returns the config of a job that pre-trains a dense network, to be pruned later.

    Args:
        data: `digits`, `npz` or `folder` (with `data.path`), or a name of `data.datasets.catalog`.
        model: a name of a model, or `resnet` or `vit` for the small one of a family.
        method: `supervised` (with labels) or `simsiam` (without).
        recipe: `resnet`, `vit` or `simsiam`: which published learning rate, length, batch and augmentation are used for
            data of the catalogue; empty: the recipe that goes with the method and the model.

    Raises:
        ValueError: for an unknown recipe.
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
    """Gives a config one target of all classes of a data set, and the sparsities 0.1, 0.2, ..., 0.9.

    It is for networks that are pre-trained already: nearly all of the training split is the target's.

    Args:
        config: a config made by `presets.sparsity`; it is changed in place.
        data: a name of `data.datasets.catalog`, or `glue/TASK`.
        shots: the number of training examples of each class; `None`: as many as the scarcest class has.

    Raises:
        ValueError: for an unknown data set.
    """
    if data.startswith("glue/"):
        config.data.name, config.data.length = data, 128
        classes = glue.task(data).classes
    else:
        data_presets.pictures(config, data)
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
    """Gives a config a checkpoint to start from, and the training of the published code (arXiv:2306.10460).

    Args:
        config: a config made by `presets.sparsity`; it is changed in place.
        folder: the checkpoint's folder, or the id of one on the Hugging Face hub.
    """
    config.model.checkpoint = folder
    config.train.learning_rate, config.train.weight_decay, config.train.clip = 1e-5, 0.1, 1.0
    config.train.batch, config.train.warmup = 128, 500
    config.isp.epochs, config.isp.weak_epochs = 0.2, 0.1
