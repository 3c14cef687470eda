"""Meta-Vote Pruning beside its baselines and controls: a pre-trained model is pruned for new few-shot tasks.

    python -m mvp_jax.main --config=configs/mvp.py --workdir=DIR
    python -m mvp_jax.main --config=configs/mvp.py:model=vit --workdir=DIR
    python -m mvp_jax.main --config=configs/mvp.py:runlocal --workdir=DIR
    python -m mvp_jax.main --config=configs/mvp.py:bank=BANK,target=FOLDER --workdir=DIR

With `bank` and `target` there is no study: the pre-trained model of a bank that is there, such as `configs/bank.py`
makes one, is pruned for the one new task in FOLDER (pictures by class, or a table of texts), in seconds to a minute.
`--workdir` gets `model/`, `slim/` and `report.html`; the setting `method` names another method than `mvp`.

Otherwise the argument is a comma-separated list of `data=glyphs|digits|npz|NAME`, `model=resnet|vit|NAME`,
`held_out=FAMILY` and `runlocal`. Every field of the config can be overridden as `--config.field=value`; as
`--config.methods=all`, which runs every method in the place of the dozen that run by default.

`glyphs` are characters of six alphabets in sixteen typefaces. `held_out=serif` validates and tests in typefaces that no
training picture has (`sans`, `mono` or `serif`; several as `mono+serif`). `--config.data.tasks=superclasses` draws each
task within one alphabet, and `--config.data.targets=armenian` draws the targets from an alphabet that neither the
pre-training nor the bank has seen.

Lab note. All figures are for two CPU cores, and nothing is downloaded. The default (glyphs, ResNet-8, 87.5 % of the
filters removed, 48 bank tasks, 10 targets of 10 classes and 5 shots, a dozen methods) takes 7 minutes and 23 seconds
from an empty folder and with an empty compilation cache, 131 s of it compiling. The model is at 73 % on the 64 classes
that it is pre-trained on. After 50 steps: dense 89.8, `mvp_select` 69.4, copy of the nearest 69.3, vote of the whole
bank 67.2, `mvp` 65.1, farthest 61.7, Reptile 50.5, and what starts without a bank 35.3 to 46.1. `data=digits` with all
methods and 6 targets × 3 seeds takes about four and a half minutes, most of it compiling; so does
`model=vit,data=digits`. CIFAR-100 is `data=npz,model=resnet8_distiller`, with `--config.data.path` and
`--config.model.checkpoint`; it takes one to two hours on two cores (bank 12, table 60 minutes of one core for the
ResNet-8, about three times that for the ResNet-20), and every finished bank entry and (method, target) is kept. The
learning rate and the batch of the fine-tuning were chosen on validation images. The results, and what they do not show,
are in `docs/results/`.
"""

from ml_collections import ConfigDict

from mvp_jax.experiments import data_presets, from_bank_job, presets


def _cifar(config: ConfigDict, model: str) -> None:
    """Sets a config to ten-class tasks of CIFAR-100; give `data.path` (archive), `model.checkpoint` (safetensors).

    20 classes stay out of the bank. Targets take their training images from a part of the training split that the bank
    does not see. Half of the official test split validates, and the other half is for the reported accuracy.
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
