"""Meta-Vote Pruning on CIFAR-100 as in the paper: a bank of 1,000 ten-class tasks, pruned from one ResNet-18.

    python -m mvp_jax.main --config=configs/pretrain.py:data=cifar100,model=resnet18 --workdir=PRE
    python -m mvp_jax.main --config=configs/mvp_cifar100.py:checkpoint=PRE/model --workdir=DIR
    python -m mvp_jax.main --config=configs/mvp_cifar100.py:checkpoint=PRE/model,targets=cub200 --workdir=DIR
    python -m mvp_jax.main --config=configs/mvp_cifar100.py:runlocal --workdir=DIR

Without `checkpoint` the network is looked for in `runs/pretrain_supervised/model`, or with `pretraining=simsiam` in
`runs/pretrain_simsiam/model`, where `configs/pretrain.py:...,method=simsiam` may have written it. Further arguments are
`model=NAME`; `classes=5|10|20`, the number of classes of a task; `ratio=0.75`, the fraction of the filters to remove;
and `targets=cifar100|cub200|pets`, the data set of the targets: the last two are seen by neither the bank nor the
pre-training, and their images are resized to 32 pixels. The data are read as tensorflow-datasets prepared them
(`--config.data.path`).

Lab note. The default has not been run here: 1,000 searches of a ResNet-18 take an accelerator. A smaller bank with the
ResNet-8 and ResNet-20 was run (`configs/mvp.py:data=npz`, `docs/results`): MVP is 3 to 14 points above what starts from
pre-trained weights; with the neighbours' mean outside the pruned groups, as it is now, it is 2.5 points above a copy of
the nearest entry on the ResNet-20 at 75 %, and with pre-trained values there it was level. The paper finds more overlap
between similar tasks, the more so the deeper the layer (the study of overlap is part of every run:
`overlap_by_similarity.png`), and MVP ahead of pruning from scratch at the same few iterations. Its numbers are not
repeated here, as bank, budgets and splits are our own. `:runlocal` was run here: digits, a ResNet-8, four bank tasks.
"""

from ml_collections import ConfigDict

from mvp_jax.experiments import papers, presets

_PRETRAININGS = ("supervised", "simsiam")


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config of the job; `arg` is the argument described above, `None` for the default."""
    allowed = ("model", "pretraining", "checkpoint", "targets", "classes", "ratio", "runlocal")
    given = presets.arguments(arg, allowed)
    how, ratio = given.get("pretraining", "supervised"), given.get("ratio")
    if how not in _PRETRAININGS:
        raise ValueError(f"unknown pretraining {how!r}; choose one of {_PRETRAININGS}")
    if "runlocal" in given:
        config = presets.meta_vote("digits", "resnet")
        presets.votes_briefly(config)
    else:
        config = papers.meta_vote_cifar100(
            given.get("model", "resnet18"),
            given.get("targets", "cifar100"),
            presets.number("classes", given.get("classes", "10"), int),
        )
        config.model.checkpoint = given.get("checkpoint", f"runs/pretrain_{how}/model")
    if ratio is not None:
        config.prune.ratio = presets.number("ratio", ratio, float)
    return config
