"""A bank of pruned models: built, or given more tasks, so that `configs/mvp.py:bank=DIR,target=FOLDER` can use it.

    python -m mvp_jax.main --config=configs/bank.py --workdir=DIR
    python -m mvp_jax.main --config=configs/bank.py:bank=BANK,tasks=FOLDER --workdir=DIR
    python -m mvp_jax.main --config=configs/bank.py:bank=BANK,tasks=FOLDER,checkpoint=MODEL --workdir=DIR
    python -m mvp_jax.main --config=configs/bank.py:runlocal --workdir=DIR

Without `tasks`, tasks are drawn from the classes of a data set (`data=digits`, and the others of `configs/mvp.py`), and
the model is pre-trained here (`model=resnet|vit|NAME`) or read from `checkpoint`. More of them are added by a higher
`bank.tasks`. With `tasks`, each folder in FOLDER is a task of pictures by class, and each table (`.csv`, `.tsv`,
`.jsonl`) a task of texts; the model is the one that the bank holds or, for a new bank, `checkpoint`: a folder as
`transformers` or `mvp_jax.pretrained.save` writes it.

A task that the bank has already is skipped, and a killed build goes on. `bank` is a folder or an address in a bucket;
without it the bank is in the folder `bank` of the workdir. It holds the pre-trained model too, unless
`bank.store_model=False`. `python -m mvp_jax.bank BANK` lists, verifies, exports and imports it.

Lab note. On two CPU cores with other work beside it (a load of about 10): twelve tasks of digits
(`--config.bank.tasks=12`) took five and a half minutes from an empty folder, 2:00 of CPU, most of it compiling. Adding
two folders of 180 pictures took two minutes, 0:56 of CPU. `configs/mvp.py` then pruned for a new task of 120 pictures
in 2:17, 1:07 of CPU, and for a second one, with all programs compiled, in 38 seconds, 10 of CPU.
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
