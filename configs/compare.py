"""Compares methods that prune to a sparsity (methods x sparsities x targets x seeds), and their costs.

    python -m mvp_jax.main --config=configs/compare.py --workdir=DIR
    python -m mvp_jax.main --config=configs/compare.py:data=docstrings,model=bert --workdir=DIR
    python -m mvp_jax.main --config=configs/compare.py --config.methods="('isp','gradual','imp')" --workdir=DIR

The argument is a comma-separated list of `data=digits|glyphs|docstrings|npz`, `model=vit|bert|resnet|NAME` and
`runlocal`.
`config.methods` names those methods of `mvp_jax.methods.METHODS` that prune to a sparsity; `all`, or an empty tuple,
runs all of them.

Lab note. Thirteen methods were run on CIFAR (a ResNet-20 pre-trained on CIFAR-10, ten classes of CIFAR-100, 3 seeds,
four sparsities), which took 65 minutes on two cores. Eleven methods were run on the digits. The tables are in
`docs/results`. No run has included all methods.
"""

from ml_collections import ConfigDict

from mvp_jax.experiments import data_presets, presets


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config of the job; `arg` is the argument described above, `None` for the default."""
    given = presets.arguments(arg)
    data = given.get("data", "digits")
    model = given.get("model", "bert" if data in presets.TEXTS else "vit")
    config = presets.sparsity(data, model)
    if data == "npz":
        data_presets.sparse_cifar(config, "distiller" in model)
    if "runlocal" in given:
        presets.briefly(config)
    return config
