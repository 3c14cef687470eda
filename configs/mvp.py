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

from ml_collections import ConfigDict, config_dict

from mvp_jax import fragments


def _cifar(config: ConfigDict, model: str) -> None:
    """Ten-class tasks of CIFAR-100; give `data.path` (the archive) and `model.checkpoint` (safetensors).

    20 classes stay out of the bank. Targets take their training images from a part of the training split that the bank
    does not see; half of the official test split validates, the other half reports.
    """
    fragments.cifar(config, "distiller" in model)
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
    given = fragments.arguments(arg)
    data, model = given.get("data", "digits"), given.get("model", "resnet")
    vit = model.startswith("vit")

    config = fragments.job("mvp", data, model)

    config.tasks = ConfigDict()
    config.tasks.classes_per_task = 3
    config.tasks.source_images = config_dict.placeholder(int)  # a class; none: all there are
    config.tasks.shots = 5
    # As many to validate as to test: one compiled evaluation serves both.
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
    config.vote.ballots = "uniform"
    config.vote.similarity_temperature = 0.1
    config.vote.weights = "neighbours"
    config.vote.outside = "pretrained"
    config.vote.doubt = 0.25

    config.weak = ConfigDict()  # members of the target itself, which vote in the meta-soup
    config.weak.members = 3
    config.weak.steps = 20
    config.weak.subset = 0.5
    config.weak.learning_rate = (0.5, 2.0)

    config.reptile = ConfigDict()  # the one pruned model for all tasks; rate and batch are the bank's
    config.reptile.outer_steps = 20
    config.reptile.tasks = 5
    config.reptile.inner_steps = 10
    config.reptile.outer_rate = 0.5
    config.reptile.threshold_every = 5

    config.targets = ConfigDict()
    config.targets.count = 6
    config.targets.seeds = 3
    config.targets.unseen_at_least = 2
    config.steps = (0, 10, 25, 50)  # fine-tuning steps after which to look
    config.methods = ()  # empty: all

    if data == "npz":
        _cifar(config, model)

    if "runlocal" in given:
        config.pretrain.steps = 20
        config.bank.tasks = 4
        config.bank.rounds, config.bank.steps_per_round, config.bank.final_steps = 2, 2, 2
        config.targets.count, config.targets.seeds = 2, 1
        config.steps = (0, 2)
        config.vote.k = 2
        config.weak.members, config.weak.steps = 2, 2
        config.reptile.outer_steps, config.reptile.tasks, config.reptile.inner_steps = 2, 2, 2
        if not vit:
            config.model.name, config.model.options.width = "resnet8", 4
    return config
