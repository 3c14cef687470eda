"""Pre-trains the dense network that other jobs prune, with labels or, by SimSiam, without labels.

    python -m mvp_jax.main --config=configs/pretrain.py --workdir=DIR
    python -m mvp_jax.main --config=configs/pretrain.py:data=cifar100,model=resnet18 --workdir=DIR
    python -m mvp_jax.main --config=configs/pretrain.py:data=cifar100,model=resnet18,method=simsiam --workdir=DIR
    python -m mvp_jax.main --config=configs/pretrain.py:data=imagenet,model=deit_small,recipe=vit --workdir=DIR
    python -m mvp_jax.main --config=configs/pretrain.py:method=simsiam,runlocal --workdir=DIR

The other jobs read the result with `--config.model.checkpoint=DIR/model` and the same `model.name` and `model.options`.
If they also have the same data, seed and `data.fractions`, their targets contain only images on which the network was
not trained.

The argument is a comma-separated list of `data=digits|npz|folder|NAME` (a name of `mvp_jax.data.datasets.catalog`;
`--config.data.path` says where the data are), `model=resnet|vit|NAME`, `method=supervised|simsiam`,
`recipe=resnet|vit|simsiam` (published settings, in `mvp_jax/experiments/papers.py`) and `runlocal`. The default is a
ResNet-8 on six of the ten digits, which `configs/mvp.py:data=digits` prunes. Images that do not fit into memory are
read during training. All accelerators share each batch.

`recipe=vit` has DeiT's settings: AdamW, 5 epochs of warm-up, a cosine learning rate, RandAugment, mixup or cutmix, and
label smoothing. It leaves out random erasing, repeated augmentation, stochastic depth and distillation. Masked
autoencoders are not implemented.

Lab note. `:runlocal` was run here for both methods and their recipes, and only on the digits. SimSiam's authors report
an accuracy of 91.8 % with a linear classifier for CIFAR-10 and ResNet-18 at these settings (arXiv:2011.10566, section
D).
"""

from ml_collections import ConfigDict

from mvp_jax.experiments import papers, presets


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config of the job; `arg` is the argument described above, `None` for the default."""
    given = presets.arguments(arg, ("data", "model", "method", "recipe", "runlocal"))
    data, model, local = given.get("data", "digits"), given.get("model", "resnet"), "runlocal" in given
    if local:
        data, model = presets.local(data, model)
    config = papers.pretraining(data, model, given.get("method", "supervised"), given.get("recipe", ""))
    if local:
        config.pretrain.steps, config.pretrain.save_every, config.pretrain.batch = 4, 2, 32
        config.pretrain.examples = 64
        if config.model.name == "resnet8":
            config.model.options.width = 4
    return config
