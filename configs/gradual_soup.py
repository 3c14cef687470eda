"""The gradual soup beside gradual pruning at its serial steps, with its K-fold batch, and at its total cost.

    python -m mvp_jax.main --config=configs/gradual_soup.py --workdir=DIR
    python -m mvp_jax.main --config=configs/gradual_soup.py:data=npz,model=resnet20 --config.data.path=FILE \
        --config.model.checkpoint=FILE --workdir=DIR
    python -m mvp_jax.main --config=configs/gradual_soup.py:data=mrpc,checkpoint=FOLDER --config.data.path=FOLDER \
        --workdir=DIR
    python -m mvp_jax.main --config=configs/gradual_soup.py:runlocal --workdir=DIR

Members train at once, so a method costs twice: the steps of all members together, and the steps that follow one
another if every member has a device of its own (`cost_serial_steps` in `results.csv`, and `serial.png`). All lines with
the gradual soup have 100 serial steps in 10 rounds (`gradual.steps`, `gradual.events`) but `gradual_long`, which takes
as many steps as all members together. `gradual_wide` divides a batch of K times the examples among K devices, never
more than there are, and puts their gradients together in every step (`cost_collectives`), which the soup does once a
round. Instant Soup Pruning stands beside them with its own rounds. Every method then fine-tunes for 60 steps. Each
chooses among four learning rates (`rates.factors`) on targets that are not reported.

`data` is `glyphs` (the default, four targets of 20 unseen characters, ten images each), `digits`, `npz` (CIFAR, as in
`configs/compare.py`), or a task of GLUE such as `mrpc`, as in `configs/isp_bert.py`, with a `checkpoint` in a folder.

Lab note. `:runlocal` was resolved here; neither the whole job nor another data set has been run. A trial on one
target of all 40 unseen glyphs (97 % of the weights, 5 members, a ResNet-8 pre-trained to 71.9 %; the settings are
those of `--config.rates.factors="()" --config.targets.count=1 --config.tasks.classes_per_task=40
--config.targets.unseen_at_least=40 --config.sparsities="(0.97,)" --config.mapping=loop` and `train.learning_rate`)
gave, in test accuracy with the deviation of 3 seeds, each line at the better of the rates 0.08 and 0.16 on
validation: gradual pruning 66.1 +- 2.3 (0.08; validation 67.3), with a five-fold batch 68.1 +- 1.1 (0.16; 69.2), the
gradual soup 70.6 +- 1.7 (0.16; 70.8) with 10 collectives for 100. Over seeds, the soup is 4.5 +- 3.0 points (95 %)
ahead of gradual pruning and 2.5 +- 6.9 ahead of the five-fold batch, which shows nothing yet; seeds are other images
of one target. One seed each: gradual pruning at 0.04 and 0.32 has 64.4 and 60.6 on validation, the five-fold batch at
0.32 has 63.2 (three seeds), the soup there 71.6 (test 72.4), more than at 0.16, so that its best rate may lie higher
still. Five times the steps (0.08) reach 78.2, 73.8 and 76.6 on the test images where the soup (0.16) has 71.9, 71.4
and 68.6: at equal total cost the soup is behind. At 0.16, members that differ in their batches alone have 70.9 on
validation, 5 rounds 70.3, and the default 70.0. Outer momentum, votes and a late start were not tried.
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
        # Of the 40 unseen characters, so that there are other targets on which rates are chosen.
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
