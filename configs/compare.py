"""Compares every way to reach a sparsity: methods x sparsities x targets x seeds, with what each costs.

    python -m mvp_jax.main --config=configs/compare.py --workdir=DIR
    python -m mvp_jax.main --config=configs/compare.py:data=docstrings,model=bert --workdir=DIR
    python -m mvp_jax.main --config=configs/compare.py --config.methods="('isp','gradual','imp')" --workdir=DIR

The argument is a comma-separated list of `data=digits|docstrings|npz`, `model=vit|bert|resnet|NAME` and `runlocal`.
`config.methods` names methods of `mvp_jax.methods.METHODS` for a sparsity; if it is empty, all of them run.

Lab note. Thirteen methods were run on CIFAR (ResNet-20 from CIFAR-10, ten classes of CIFAR-100, 3 seeds, four
sparsities, 65 minutes of two cores), and eleven on the digits; the tables are in `docs/results`. All methods together
have not been run.
"""

from ml_collections import ConfigDict

from mvp_jax.experiments import data_presets, presets


def _cifar(config: ConfigDict, model: str) -> None:
    """Sets a config to ten classes of CIFAR-100; give `data.path` (the archive) and `model.checkpoint` (safetensors).

    A network trained on CIFAR-10 (or on CIFAR-100, if the model's name has `distiller` in it) is pruned for them. Half
    of the official test split validates, and the other half is for the reported accuracy.
    """
    data_presets.cifar(config, "distiller" in model)
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


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config of the job; `arg` is the argument described above, `None` for the default."""
    given = presets.arguments(arg)
    data = given.get("data", "digits")
    model = given.get("model", "bert" if data in presets.TEXTS else "vit")
    config = presets.sparsity(data, model)
    if data == "npz":
        _cifar(config, model)
    if "runlocal" in given:
        presets.briefly(config)
    return config
