"""Instant Soup Pruning beside its controls: a pre-trained transformer pruned by many weak masks at once.

    python -m mvp_jax.main --config=configs/isp.py --workdir=DIR
    python -m mvp_jax.main --config=configs/isp.py:data=docstrings --workdir=DIR
    python -m mvp_jax.main --config=configs/isp.py:runlocal --workdir=DIR

The default is a small vision transformer on the digits, `data=docstrings` a small BERT on English texts that come with
the installed packages; both are pre-trained here. The argument is as in `configs/compare.py`.

The lines: the vote, its rules, a single member (`isp_one`), no vote (`isp_score`), soups, the published settings, and
what they have to beat: gradual pruning at the main cost and at the total cost, iterative pruning, one-shot.

Lab note. See `docs/results/`.
"""

from ml_collections import ConfigDict

from mvp_jax import fragments

METHODS = (
    "unpruned", "magnitude", "gradual_main", "gradual", "imp", "isp", "isp_one", "isp_score", "isp_union",
    "isp_majority", "isp_soup", "isp_published", "instant_soup",
)  # fmt: skip


def get_config(arg: str | None = None) -> ConfigDict:
    given = fragments.arguments(arg)
    data = given.get("data", "digits")
    model = given.get("model", "bert" if data in fragments.TEXTS else "vit")
    config = fragments.trials(data, model)
    config.methods = METHODS
    if "runlocal" in given:
        fragments.briefly(config)
    return config
