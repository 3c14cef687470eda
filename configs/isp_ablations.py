"""Sweeps over what Instant Soup Pruning depends on: number of members, vote, intervals, diversity of the members.

    python -m mvp_jax.main --config=configs/isp_ablations.py:study=members --workdir=DIR
    python -m mvp_jax.main --config=configs/isp_ablations.py:study=diversity,data=docstrings --workdir=DIR
    python -m mvp_jax.main --config=configs/isp_ablations.py:study=vote,runlocal --workdir=DIR

The argument `study` is `members` (1 to 9 weak masks; the method `isp_one` has a single mask), `vote` (the rule that
combines the masks), `interval` (how long the main weights and the members train before each cut; `gradual` gets the
same number of steps), or `diversity` (the fraction of the data that a member sees, and the range of its learning rate).
Each point of a study is a job of `configs/isp.py`, with the same `data` and `model`. `summary.md` has a row for each
point, sparsity and method.

Lab note. `:runlocal` of each study was run here; no study was run at full length. In a first study a single member was
as good as five, and the mean weights of the members (`isp_soup`) gained 0.9 to 1.5 points. `docs/results` has the table
of one full run of `configs/isp.py`.
"""

from ml_collections import ConfigDict

from mvp_jax.experiments import presets, sweep


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config of the job; `arg` is the argument described above, `None` for the default."""
    given = presets.arguments(arg, ("study", "data", "model", "runlocal"))
    data = given.get("data", "digits")
    model = given.get("model", "bert" if presets.is_text(data) else "vit")
    if "runlocal" in given:
        data, model = presets.local(data, model)
    config = presets.sparsity(data, model)
    config.methods = ("isp", "isp_one", "isp_soup", "gradual")
    if "runlocal" in given:
        presets.briefly(config)
    studies = {
        "members": {"isp.members": (2, 3, 5, 9)},
        "vote": {"isp.vote": ("mean", "union", "majority", "intersection", "score")},
        "interval": {"isp.epochs": (0.5, 1.0, 2.0), "isp.weak_epochs": (0.25, 0.5, 1.0)},
        "diversity": {"isp.diversity.subset": (0.25, 0.5, 1.0),
                      "isp.diversity.learning_rate": ((1.0, 1.0), (0.5, 2.0), (0.25, 4.0))},
    }  # fmt: skip
    name = presets.one_of("study", given.get("study", "members"), studies)
    values = {path: those[:2] if "runlocal" in given else those for path, those in studies[name].items()}
    return sweep.over(config, values)
