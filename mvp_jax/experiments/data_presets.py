"""The settings that go with a data set, which the default settings of a job take over for it."""

from ml_collections import ConfigDict

from mvp_jax.data.datasets import catalog, glyph_outlines


def pictures(config: ConfigDict, name: str) -> None:
    """Sets a config to a data set of images: normalised as published, with a tenth of the training split for targets.

    Half of the official test split validates, and the other half is for the reported accuracy.

    Args:
        config: a config made by `presets.job`; it is changed in place.
        name: a name of `data.datasets.catalog`.

    Raises:
        ValueError: for an unknown name.
    """
    known = catalog.find(name)
    config.data.name = name
    if known.mean and known.std:
        config.data.mean, config.data.std = known.mean, known.std
    config.data.fractions = (0.9, 0.1) if known.test else (0.6, 0.1, 0.15, 0.15)
    config.data.unseen_classes = 0
    config.pretrain.classes = known.classes
    config.model.options = ConfigDict()


def cifar(config: ConfigDict, of_cifar100: bool) -> None:
    """Sets a config, in place, to an archive of CIFAR images (`data.path`) and a network trained on CIFAR.

    The network is read from `model.checkpoint`; it was trained on CIFAR-100 if `of_cifar100`, else on CIFAR-10.
    """
    config.mapping = "loop"
    config.data.mean = (0.507, 0.487, 0.441) if of_cifar100 else (0.485, 0.456, 0.406)
    config.data.std = (0.267, 0.256, 0.276) if of_cifar100 else (0.229, 0.224, 0.225)
    config.data.unseen_classes = 20
    config.model.options = ConfigDict()
    config.model.classes = 100 if of_cifar100 else 10


def sparse_cifar(config: ConfigDict, of_cifar100: bool) -> None:
    """Sets a config to ten classes of CIFAR-100, as `cifar` does, with two targets of 200 training images a class.

    Half of the official test split validates, and the other half is for the reported accuracy.

    Args:
        config: a config made by `presets.sparsity`; it is changed in place.
        of_cifar100: whether the network was trained on CIFAR-100, else on CIFAR-10.
    """
    cifar(config, of_cifar100)
    config.mapping = "auto"
    config.data.fractions = (0.1, 0.9)
    config.tasks.classes_per_task = 10
    config.tasks.shots = 200
    config.tasks.valid = 20
    config.tasks.test = 48  # what the scarcest class has left once duplicates are dropped
    config.targets.count, config.targets.seeds, config.targets.unseen_at_least = 2, 3, 0
    config.sparsities = (0.5, 0.8, 0.9, 0.95)
    config.train.batch, config.train.steps, config.train.augment = 64, 150, "crop_flip"
    config.round_steps = 150
    config.isp.epochs, config.isp.weak_epochs = 0.5, 0.25
    config.keep_rounds = True


def glyphs(config: ConfigDict) -> None:
    """Sets a config to the drawn characters: 178 classes of 160 pictures, of which 40 are unseen by model and bank.

    Args:
        config: a config made by `presets.job`; it is changed in place.
    """
    config.data.fractions = (0.5, 0.16, 0.17, 0.17)
    config.data.unseen_classes = 40
    config.pretrain.classes = 64
    config.pretrain.steps = 500
    config.pretrain.augment = "none"  # the pictures are distorted already
    if config.pretrain.optimizer == "adamw":  # a transformer needs more steps, and pictures that move
        config.pretrain.steps, config.pretrain.learning_rate, config.pretrain.augment = 3000, 3e-3, "shift"


def held_out_faces(config: ConfigDict, families: str) -> None:
    """Sets a config to validate and to test on characters in typefaces that no training picture has.

    Args:
        config: a config for the data `glyphs`; it is changed in place.
        families: names of `data.datasets.glyph_outlines.FAMILIES`, as `serif` or `mono+serif`.

    Raises:
        ValueError: for other data, or an unknown name.
    """
    if config.data.name != "glyphs":
        raise ValueError(f"held_out={families} is for data=glyphs, whose typefaces are known, not {config.data.name}")
    glyph_outlines.families_of(families.split("+"))
    config.data.held_out_faces = families
    config.data.fractions = (0.75, 0.25)


def few_shot_glyphs(config: ConfigDict) -> None:
    """Sets a config to tasks of ten characters: a bank of 48 with 40 images a class, targets of 5 shots.

    Args:
        config: a config made by `presets.meta_vote`; it is changed in place.
    """
    config.mapping = "loop"  # pictures of this size keep two cores busy one member at a time, and compile sooner
    config.tasks.classes_per_task = 10
    config.tasks.source_images = 40
    config.tasks.valid = config.tasks.test = 24
    config.bank.tasks = 48
    config.bank.batch = 32
    if config.pretrain.optimizer == "adamw":  # a transformer learns too little in the steps of a ResNet
        config.bank.steps_per_round, config.bank.final_steps, config.bank.learning_rate = 150, 300, 3e-3
    config.targets.count, config.targets.seeds, config.targets.unseen_at_least = 10, 1, 5
    config.steps = (0, 10, 50)


def sparse_glyphs(config: ConfigDict) -> None:
    """Sets a config to one target of the 40 unseen characters, with ten training images each.

    Args:
        config: a config made by `presets.sparsity`; it is changed in place.
    """
    glyphs(config)  # the job has other fractions and classes of its own
    config.tasks.classes_per_task = config.targets.unseen_at_least = 40
    config.tasks.shots = 10
    config.tasks.valid = config.tasks.test = 24
