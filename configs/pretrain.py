"""Pre-training of the dense network that is pruned afterwards: with labels, or by SimSiam without.

    python -m mvp_jax.main --config=configs/pretrain.py --workdir=DIR
    python -m mvp_jax.main --config=configs/pretrain.py:data=cifar100,model=resnet18 --workdir=DIR
    python -m mvp_jax.main --config=configs/pretrain.py:data=cifar100,model=resnet18,method=simsiam --workdir=DIR
    python -m mvp_jax.main --config=configs/pretrain.py:data=imagenet,model=deit_small,recipe=vit --workdir=DIR
    python -m mvp_jax.main --config=configs/pretrain.py:method=simsiam,runlocal --workdir=DIR

The other jobs take the result by `--config.model.checkpoint=DIR/model`, with the same `model.name` and `model.options`;
with the same data, seed and `data.fractions` they keep targets to images that it was not trained on. The argument:
`data=digits|npz|folder|NAME` (of `mvp_jax.data.catalog`; `--config.data.path` says where it is),
`model=resnet|vit|NAME`, `method=supervised|simsiam`, `recipe=resnet|vit|simsiam` (see
`mvp_jax/experiments/papers.py`), `runlocal`.
The default is a ResNet-8 on six of the ten digits, as `configs/mvp.py` wants it. Pictures that do not fit into memory
are read as training goes; all accelerators share each batch.

`recipe=vit` is DeiT's: AdamW, 5 epochs of warm-up, cosine, RandAugment, mixup or cutmix, label smoothing; without
random erasing, repeated augmentation, stochastic depth and distillation. No masked autoencoding.

Lab note. Run here: `:runlocal` for both methods and recipes. Not run here: any data but the digits. Expected of
CIFAR-10, ResNet-18, SimSiam at these settings (arXiv:2011.10566, section D): 91.8 % by a linear classifier.
"""

from ml_collections import ConfigDict

from mvp_jax.experiments import papers, presets


def get_config(arg: str | None = None) -> ConfigDict:
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
