"""Meta-Vote Pruning on CIFAR-100 as in the paper: a bank of 1,000 ten-class tasks, pruned from one ResNet-18.

    python -m mvp_jax.main --config=configs/pretrain.py:data=cifar100,model=resnet18 --workdir=PRE
    python -m mvp_jax.main --config=configs/mvp_cifar100.py:checkpoint=PRE/model --workdir=DIR
    python -m mvp_jax.main --config=configs/mvp_cifar100.py:checkpoint=PRE/model,targets=cub200 --workdir=DIR
    python -m mvp_jax.main --config=configs/mvp_cifar100.py:runlocal --workdir=DIR

Without `checkpoint`, the network is read from `runs/pretrain_supervised/model`, or with `pretraining=simsiam` from
`runs/pretrain_simsiam/model`; `configs/pretrain.py` writes it there with `--workdir=runs/pretrain_supervised` or
`--workdir=runs/pretrain_simsiam`. Further arguments are `model=NAME`; `classes=5|10|20`, the number of classes of a
task;
`ratio=0.75`, the fraction of the filters to remove; and `targets=cifar100|cub200|pets`, the data set of the targets.
Neither the bank nor the pre-training sees `cub200` or `pets`, and their images are resized to 32 pixels. The data must
have been prepared by tensorflow-datasets (`--config.data.path`).

Lab note. The default has not been run here, because 1,000 searches of a ResNet-18 need an accelerator. A smaller bank
with the ResNet-8 and the ResNet-20 was run (`configs/mvp.py:data=npz`, `docs/results`). With 75 % of the filters
removed, MVP is 3 to 14 points above the methods that start from pre-trained weights and take the same number of steps;
with 50 %, the difference to iterative pruning is 0.4 and 2.3 points. On the ResNet-20 at 75 %, MVP is 2.5 points above
a copy of the nearest entry with the present default, in which parameters outside the pruned groups start from the
neighbours' mean; with pre-trained values there, the two were equal. The paper finds more overlap between similar tasks,
above all in deep layers (the study of overlap is part of every run: `overlap_by_similarity.png`). It also finds MVP
ahead of pruning from scratch at the same small number of iterations. Its numbers are not repeated here, because bank,
budgets and splits are our own. `:runlocal` was run here (digits, a ResNet-8, four bank tasks).
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
