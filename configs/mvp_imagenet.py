"""Meta-Vote Pruning on ImageNet as in the paper: a bank of 300 tasks, pruned from a ResNet-50 or a DeiT-S.

    python -m mvp_jax.main --config=configs/mvp_imagenet.py:checkpoint=FILE --workdir=DIR
    python -m mvp_jax.main --config=configs/mvp_imagenet.py:model=deit_small,checkpoint=FILE --workdir=DIR
    python -m mvp_jax.main --config=configs/mvp_imagenet.py:model=deit_small,runlocal --workdir=DIR

`checkpoint` is a file or folder of torchvision, timm or Hugging Face, an id on the hub (`microsoft/resnet-50`,
`facebook/deit-small-patch16-224`), or the folder `model` that `configs/pretrain.py:data=imagenet,...` wrote. `classes`
is the number of classes of a task, and `ratio` is the fraction of the units to remove. `data=tiny_imagenet` reads Tiny
ImageNet (64 pixels) from a folder (`--config.data.path`) and needs a network that was pre-trained on it.
tensorflow-datasets prepares ImageNet from the archives, which you can download after you accept their terms. The job
decodes only the images of its tasks.

Lab note. The job was not run here, because the data and an accelerator were not available. `:runlocal` was run (digits,
a ResNet-8 or a small ViT, four bank tasks). The number of tasks is the paper's. The number of classes of a task (10)
and all budgets are our own.
"""

from ml_collections import ConfigDict

from mvp_jax.data.datasets import catalog
from mvp_jax.experiments import papers, presets


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config of the job; `arg` is the argument described above, `None` for the default."""
    given = presets.arguments(arg, ("data", "model", "checkpoint", "classes", "ratio", "runlocal"))
    data, model = given.get("data", "imagenet"), given.get("model", "resnet50")
    if "runlocal" in given:
        config = presets.meta_vote(*presets.local("digits", model))
        presets.votes_briefly(config)
    else:
        config = presets.meta_vote(data, model)
        papers.many(config, model)
        small = catalog.find(data).size <= 64
        config.model.options = ConfigDict({"stem": "small"} if small and model in papers.LARGE else {})
        config.model.classes = config.pretrain.classes
        config.model.checkpoint = given.get("checkpoint", "runs/pretrain_supervised/model")
        config.data.unseen_classes = config.pretrain.classes // 5  # no task of the bank has them
        config.targets.unseen_at_least = 2
        config.bank.tasks = 300
        config.tasks.classes_per_task = presets.number("classes", given.get("classes", "10"), int)
    if "ratio" in given:
        config.prune.ratio = presets.number("ratio", given["ratio"], float)
    return config
