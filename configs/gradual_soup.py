"""Compares the gradual soup with gradual pruning at equal serial steps, with a K-fold batch, and at equal total cost.

    python -m mvp_jax.main --config=configs/gradual_soup.py --workdir=DIR
    python -m mvp_jax.main --config=configs/gradual_soup.py:data=npz,model=resnet20 --config.data.path=FILE \
        --config.model.checkpoint=FILE --workdir=DIR
    python -m mvp_jax.main --config=configs/gradual_soup.py:data=mrpc,checkpoint=FOLDER --config.data.path=FOLDER \
        --workdir=DIR
    python -m mvp_jax.main --config=configs/gradual_soup.py:runlocal --workdir=DIR

The members of a soup train at the same time, so that a method has two costs: the steps of all members together, and
the serial steps, which follow one another if every member has its own device (`cost_serial_steps` in `results.csv`, and
`serial.png`). The methods of this comparison have 100 serial steps in 10 rounds (`gradual.steps`, `gradual.events`),
except for `gradual_long`, which takes as many steps as all members together. `gradual_wide` divides a batch of K times
the examples among at most K devices and sums their gradients in every step (`cost_collectives`); the soup averages its
members only once in a round. Instant Soup Pruning is included with its own rounds. After pruning, every method
fine-tunes for 60 steps. Each method chooses among four learning rates (`rates.factors`) on targets that are not
reported.

`data` is `glyphs` (the default, with four targets of 20 unseen characters and ten images for each character), `digits`,
`npz` (CIFAR, as in `configs/compare.py`), or a task of GLUE such as `mrpc` (as in `configs/isp_bert.py`, with a
`checkpoint` in a folder).

Lab note. The whole job has not been run; each sparsity was run by itself, with the methods `gradual_serial`,
`gradual_wide` and `gradual_soup`, five rates (0.04 to 0.64), `mapping=loop` and the seeds 0 and 1: 8 targets, and 10
to 12 minutes of one core for each seed. Test accuracy of the soup, one model and the five-fold batch: 86.0, 85.4 and
85.2 at 80 %; 84.3, 83.4 and 82.7 at 90 %; 81.2, 79.8 and 78.8 at 95 %; 76.4, 73.8 and 74.7 at 97 %. The chosen rates
are 0.04 to 0.16, higher for higher sparsities. On CIFAR-100 (`data=npz,model=resnet20`, 95 %, batch 16, 98 minutes of
one core) it was 65.2, 56.2 and 67.0. `gradual_long`, which takes as many steps as all members together, is above the
soup. `docs/results/sparsity.md` has the intervals.
"""

from ml_collections import ConfigDict

from mvp_jax.experiments import data_presets, papers, presets

LINES = ("unpruned", "magnitude", "gradual_serial", "gradual_wide", "gradual_soup", "gradual_long", "isp", "isp_soup")


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config of the job; `arg` is the argument described above, `None` for the default."""
    given = presets.arguments(arg, ("data", "model", "checkpoint", "runlocal"))
    data, folder, local = given.get("data", "glyphs"), given.get("checkpoint", ""), "runlocal" in given
    texts = data in papers.GLUE_TASKS
    if local:
        data, texts = "digits", False
    config = presets.sparsity(
        "docstrings" if texts else data,
        "checkpoint" if texts and folder else given.get("model", "bert" if texts else "resnet"),
    )
    if texts:
        papers.whole(config, f"glue/{data}")
        if folder:
            papers.checkpoint(config, folder)
            config.model.options = ConfigDict()
        else:
            config.data.fractions, config.data.length = (0.5, 0.5), 32
    elif data == "npz":
        data_presets.sparse_cifar(config, "distiller" in given.get("model", ""))
    elif data == "glyphs":
        # Half of the 40 unseen characters, so that other targets remain on which rates can be chosen.
        config.tasks.classes_per_task = config.targets.unseen_at_least = 20
        config.targets.count = 4
    config.methods, config.ours, config.reference = LINES, "gradual_soup", "gradual_serial"
    config.sparsities = (0.8, 0.9, 0.95, 0.97)
    config.train.steps = 60
    config.gradual.steps, config.gradual.events = 100, 10
    config.rates.factors = (1.0, 2.0, 4.0, 8.0)
    if local:
        presets.briefly(config)
        config.gradual.steps, config.gradual.events, config.rates.factors = 4, 2, ()
    return config
