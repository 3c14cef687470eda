"""Instant Soup Pruning of BERT and its kin, for texts.

    python -m mvp_jax.main --config=configs/isp_bert.py:checkpoint=FOLDER --workdir=DIR
    python -m mvp_jax.main --config=configs/isp_bert.py --workdir=DIR

`checkpoint` is a folder as `transformers` writes it (BERT, RoBERTa or DistilBERT, with the tokeniser's files), or the
id of one on the Hugging Face hub; it gets a new head. Without one a small BERT is pre-trained here. The texts are those
that come with the installed packages (`data.text`).

Lab note. Run here: `:runlocal`, with and without a small random checkpoint. No published checkpoint yet.
"""

from ml_collections import ConfigDict

from mvp_jax import fragments


def get_config(arg: str | None = None) -> ConfigDict:
    given = fragments.arguments(arg, ("checkpoint", "runlocal"))
    folder = given.get("checkpoint", "")
    config = fragments.trials("docstrings", "checkpoint" if folder else "bert")
    config.methods = fragments.ISP_LINES
    if folder:
        fragments.checkpoint(config, folder)
        config.model.options = ConfigDict()
    if "runlocal" in given:
        fragments.briefly(config)
    return config
