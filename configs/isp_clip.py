"""Instant Soup Pruning of CLIP's image tower, for images of one's own.

    python -m mvp_jax.main --config=configs/isp_clip.py:checkpoint=FOLDER --workdir=DIR
    python -m mvp_jax.main --config=configs/isp_clip.py:checkpoint=FOLDER,data=npz --config.data.path=FILE --workdir=DIR
    python -m mvp_jax.main --config=configs/isp_clip.py --workdir=DIR

`checkpoint` is a folder as `transformers` writes it (`config.json`, `model.safetensors`, `preprocessor_config.json` and
the tokeniser's files), or the id of one on the Hugging Face hub. Its zero-shot head, made of the names of the classes,
stays frozen (`templates`: `fragments.TEMPLATES` has those published for CIFAR, MNIST, GTSRB and Cars); images pass
through its processor. Without a checkpoint a small tower is pre-trained here on the digits, under a logistic head, so
that the path can be tried.

Lab note. Run here: `:runlocal`, with and without a small random checkpoint. No published checkpoint yet.
"""

from ml_collections import ConfigDict

from mvp_jax import fragments


def get_config(arg: str | None = None) -> ConfigDict:
    given = fragments.arguments(arg, ("data", "checkpoint", "runlocal"))
    folder = given.get("checkpoint", "")
    data = given.get("data", "digits")
    config = fragments.trials(data, "checkpoint" if folder else "clip")
    config.methods = fragments.ISP_LINES
    if folder:
        fragments.checkpoint(config, folder)
        config.templates = fragments.TEMPLATES["mnist" if data == "digits" else "cifar"]
    if "runlocal" in given:
        fragments.briefly(config)
    return config
