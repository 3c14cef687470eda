"""Meta-Vote Pruning beside its baselines and controls: a pre-trained model is pruned for new few-shot tasks.

    python -m mvp_jax.main --config=configs/mvp.py --workdir=DIR
    python -m mvp_jax.main --config=configs/mvp.py:model=vit --workdir=DIR
    python -m mvp_jax.main --config=configs/mvp.py:runlocal --workdir=DIR
    python -m mvp_jax.main --config=configs/mvp.py:bank=BANK,target=FOLDER --workdir=DIR

With `bank` and `target` there is no comparison of methods. The job prunes the pre-trained model of an existing bank,
for example one that `configs/bank.py` made, for the one new task in FOLDER (pictures by class, or a table of texts).
This takes seconds to a few minutes. The job writes `model/`, `slim/` and `report.html` to `--workdir`. The setting
`method` selects another method than `mvp`.

Otherwise the argument is a comma-separated list of `data=glyphs|digits|npz|NAME`, `model=resnet|vit|NAME`,
`held_out=FAMILY` and `runlocal`. Every field of the config can be overridden with `--config.field=value`. For example,
`--config.methods=all` runs every method instead of the twelve default methods.

`glyphs` are characters of six alphabets in sixteen typefaces. With `held_out=serif`, validation and test use typefaces
that no training picture has (`sans`, `mono` or `serif`, or several, as in `mono+serif`).
`--config.data.tasks=superclasses` draws each task within one alphabet, and `--config.data.targets=armenian` draws the
targets from an alphabet that neither the pre-training nor the bank has seen.

Lab note. All figures are for two CPU cores, and nothing is downloaded. The default job (glyphs, ResNet-8, 87.5 % of the
filters removed, 48 bank tasks, 10 targets of 10 classes and 5 shots, twelve methods) takes 7 minutes and 23 seconds
with an empty folder and an empty compilation cache; 131 seconds of this are compilation. The pre-trained model has an
accuracy of 73 % on its 64 classes. After 50 steps the test accuracies in % are: dense model 89.8, `mvp_select` 69.4,
copy of the nearest entry 69.3, vote of the whole bank 67.2, `mvp` 65.1, vote of the farthest entries 61.7, Reptile
50.5, and methods that use no bank 35.3 to 46.1. `data=digits` with all methods and 6 targets × 3 seeds takes about
four and a half minutes, mostly for compilation, and so does `model=vit,data=digits`. `model=vit` on the glyphs reaches
67.5 % on its 64 classes; at `prune.ratio=0.5`, with three seeds and three rates for each method, it took 35 minutes of
a shared core (dense 74.1, vote of the whole bank 46.7, `mvp` 43.2, copy of the nearest 39.3). For CIFAR-100, use
`data=npz,model=resnet8_distiller` with `--config.data.path` and `--config.model.checkpoint`. This job takes one to two
hours on two cores: 12 minutes of one core for the bank and 60 minutes for the comparison with the ResNet-8, and about
three times as long with the ResNet-20. Every finished bank entry and every finished pair of method and target is kept.
The learning rate and the batch size of the fine-tuning were chosen on validation images. `docs/results/` has the
results and their limits.
"""

from ml_collections import ConfigDict

from mvp_jax.experiments import data_presets, from_bank_job, presets


def _cifar(config: ConfigDict, model: str) -> None:
    """Sets a config to ten-class tasks of CIFAR-100; give `data.path` (archive), `model.checkpoint` (safetensors).

    The bank does not contain 20 of the classes. Targets take their training images from a part of the training split
    that the bank does not see. Half of the official test split is for validation, and the other half is for the
    reported accuracy.
    """
    data_presets.cifar(config, "distiller" in model)
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
    """Returns the config of the job; `arg` is the argument described above, `None` for the default."""
    given = presets.arguments(arg, ("data", "model", "held_out", "bank", "target", "runlocal"))
    if "bank" in given or "target" in given:
        if set(given) != {"bank", "target"}:
            raise ValueError(f"got {sorted(given)}; give bank=BANK and target=FOLDER together, and nothing beside them")
        return from_bank_job.config(given["bank"], given["target"])
    local = "runlocal" in given
    data, model = given.get("data", "digits" if local else "glyphs"), given.get("model", "resnet")
    config = presets.meta_vote(data, model)
    if data == "npz":
        _cifar(config, model)
    else:
        config.methods = presets.DEFAULT_LINES
    if "held_out" in given:
        data_presets.held_out_faces(config, given["held_out"])
    if local:
        presets.votes_briefly(config)
    return config
