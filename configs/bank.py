"""Builds a bank of pruned models, or adds tasks to one, for use by `configs/mvp.py:bank=DIR,target=FOLDER`.

    python -m mvp_jax.main --config=configs/bank.py --workdir=DIR
    python -m mvp_jax.main --config=configs/bank.py:bank=BANK,tasks=FOLDER --workdir=DIR
    python -m mvp_jax.main --config=configs/bank.py:bank=BANK,tasks=FOLDER,checkpoint=MODEL --workdir=DIR
    python -m mvp_jax.main --config=configs/bank.py:runlocal --workdir=DIR

Without `tasks`, tasks are drawn from the classes of a data set (`data=digits` or another one of `configs/mvp.py`), and
the model is pre-trained here (`model=resnet|vit|NAME`) or read from `checkpoint`. A larger `bank.tasks` adds more
tasks. With `tasks`, each folder in FOLDER is a task of pictures by class, and each table (`.csv`, `.tsv`, `.jsonl`) is
a task of texts. The model is then the one that the bank holds or, for a new bank, the one in `checkpoint`, which is a
folder that `transformers` or `mvp_jax.pretrained.save` wrote.

Tasks that the bank already has are skipped, and the same command continues a build that was killed. `bank` is a folder
or an address in a bucket; without it, the bank is in the folder `bank` of the workdir. The bank also holds the
pre-trained model, unless `bank.store_model=False`. `python -m mvp_jax.bank BANK` lists, verifies, exports and imports
it.

Lab note. The times are for two CPU cores that were shared with other work (a load of about 10). Twelve tasks of digits
(`--config.bank.tasks=12`) took five and a half minutes from an empty folder, with 2:00 minutes of CPU time, mostly for
compilation. Adding two folders of 180 pictures took two minutes (0:56 of CPU time). `configs/mvp.py` then pruned for a
new task of 120 pictures in 2:17 minutes (1:07 of CPU time). For a second new task, with all programs compiled, it took
38 seconds (10 of CPU time).
"""

from ml_collections import ConfigDict

from mvp_jax.experiments import bank_job, presets


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config of the job; `arg` is the argument described above, `None` for the default."""
    given = presets.arguments(arg, ("bank", "tasks", "checkpoint", "data", "model", "runlocal"))
    config = bank_job.config(
        given.get("data", "digits"),
        given.get("model", "resnet"),
        bank=given.get("bank", ""),
        tasks=given.get("tasks", ""),
        checkpoint=given.get("checkpoint", ""),
    )
    if "runlocal" in given:
        config.pretrain.steps = 20
        config.bank.tasks = 4
        config.bank.rounds, config.bank.steps_per_round, config.bank.final_steps = 2, 2, 2
        if config.model.name == "resnet8":
            config.model.options.width = 4
    return config
