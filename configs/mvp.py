"""Meta-Vote Pruning, its baselines and controls: a pre-trained model pruned for new few-shot tasks.

    python -m mvp_jax.main --config=configs/mvp.py --workdir=DIR
    python -m mvp_jax.main --config=configs/mvp.py:model=vit --workdir=DIR
    python -m mvp_jax.main --config=configs/mvp.py:runlocal --workdir=DIR

The argument is a comma-separated list of `data=digits|npz`, `model=resnet|vit|NAME` and `runlocal`; every field below
can be overridden as `--config.field=value`.

Lab note. Two CPU cores, nothing downloaded. Default (digits, ResNet-8, 87.5 % of the filters, 42 bank tasks, 6
targets × 3 seeds, 22 methods): about four and a half minutes from an empty folder, most of it compiling;
`model=vit`: the same. CIFAR-100: `data=npz,model=resnet8_distiller`, with `--config.data.path` and
`--config.model.checkpoint`; one to two hours on two cores (bank 12, table 60 minutes of one core for the ResNet-8,
about three times that for the ResNet-20), every finished bank entry and (method, target) is kept. Fine-tuning's rate
and batch were chosen on validation images. Results, with what they do not show, in `docs/results/`.
"""

from ml_collections import ConfigDict

from mvp_jax.experiments import presets


def _cifar(config: ConfigDict, model: str) -> None:
    """Ten-class tasks of CIFAR-100; give `data.path` (the archive) and `model.checkpoint` (safetensors).

    20 classes stay out of the bank. Targets take their training images from a part of the training split that the bank
    does not see; half of the official test split validates, the other half reports.
    """
    presets.cifar(config, "distiller" in model)
    config.prune.ratio = 0.75
    config.data.fractions = (0.7, 0.3)
    config.tasks.classes_per_task = 10
    config.tasks.source_images = 60
    config.tasks.shots = 20
    config.tasks.valid = 20
    config.tasks.test = 48  # what the scarcest class has left once duplicates are dropped
    config.bank.tasks = 60
    config.bank.rounds, config.bank.steps_per_round, config.bank.final_steps = 3, 40, 80
    config.bank.batch = 32
    config.tune.batch = 32
    config.targets.count = 10
    config.targets.seeds = 2
    config.steps = (0, 10, 50)


def get_config(arg: str | None = None) -> ConfigDict:
    given = presets.arguments(arg)
    data, model = given.get("data", "digits"), given.get("model", "resnet")
    config = presets.meta_vote(data, model)
    if data == "npz":
        _cifar(config, model)
    if "runlocal" in given:
        presets.votes_briefly(config)
    return config
