"""Sweeps over what Meta-Vote Pruning depends on: neighbours, similarity, ratio, the number of classes.

    python -m mvp_jax.main --config=configs/mvp_ablations.py:study=neighbours --workdir=DIR
    python -m mvp_jax.main --config=configs/mvp_ablations.py:study=ratio,data=cifar100,checkpoint=P/model --workdir=DIR
    python -m mvp_jax.main --config=configs/mvp_ablations.py:study=ratio,runlocal --workdir=DIR

The argument `study` is `neighbours` (1 to 20 voters), `similarity` (LEEP or class prototypes; the method
`vote_farthest` is the control), `ratio` (the fraction of units removed), or `classes` (the number of classes of each
task). `data=digits` selects the job of `configs/mvp.py`, and `data=cifar100` selects the job of
`configs/mvp_cifar100.py` with its `checkpoint`. Points share a bank if their settings permit it. `summary.md` has a row
for each point and method, and the best point is chosen on the validation split. The study of overlap is part of every
job.

Lab note. `:runlocal` of each study was run here (digits, a ResNet-8, four bank tasks); no study was run at full length.
In a first study (ResNet-8, CIFAR-100, 75 % of the filters removed, 32 bank tasks, one seed), 3 voters were as good as
5, and the number of shared classes predicted the overlap better than LEEP did.
"""

from ml_collections import ConfigDict

from mvp_jax.experiments import papers, presets, sweep

_METHODS = ("mvp", "copy_nearest", "vote_farthest", "vote_universal", "ifp")


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config of the job; `arg` is the argument described above, `None` for the default."""
    given = presets.arguments(arg, ("study", "data", "checkpoint", "runlocal"))
    local, data = "runlocal" in given, given.get("data", "digits")
    if local or data == "digits":
        config = presets.meta_vote("digits", "resnet")
    elif data == "cifar100":
        config = papers.meta_vote_cifar100()
        config.model.checkpoint = given.get("checkpoint", "runs/pretrain_supervised/model")
    else:
        raise ValueError(f"unknown data {data!r}; choose 'digits' or 'cifar100'")
    if local:
        presets.votes_briefly(config)
    config.methods = _METHODS
    small = config.data.name == "digits"
    studies = {
        "neighbours": {"vote.k": (1, 2, 3, 5, 10, 20)},
        "similarity": {"bank.similarity": ("leep", "prototype")},
        "ratio": {"prune.ratio": (0.5, 0.75, 0.875) if small else (0.5, 0.75, 0.85, 0.9)},
        "classes": {"tasks.classes_per_task": (3, 4, 5) if small else (5, 10, 20)},
    }
    name = presets.one_of("study", given.get("study", "neighbours"), studies)
    values = {path: those[:2] if local else those for path, those in studies[name].items()}
    return sweep.over(config, values, apart=("prune.ratio",) if name == "ratio" else ())
