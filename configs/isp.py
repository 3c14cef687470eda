"""Instant Soup Pruning beside its controls: a pre-trained transformer pruned by many weak masks at once.

    python -m mvp_jax.main --config=configs/isp.py --workdir=DIR
    python -m mvp_jax.main --config=configs/isp.py:data=docstrings --workdir=DIR
    python -m mvp_jax.main --config=configs/isp.py:runlocal --workdir=DIR

The default is a small vision transformer on the digits, `data=docstrings` a small BERT on English texts that come with
the installed packages; both are pre-trained here. The argument is as in `configs/compare.py`.

The lines: the vote, its rules, a single member (`isp_one`), no vote (`isp_score`), soups, the published settings, and
what they have to beat: gradual pruning at the main cost and at the total cost, iterative pruning, one-shot.

Lab note. Only a pilot of the default has been run, with 60 steps of fine-tuning instead of 150, after which even the
unpruned model was not done learning (80.6 %). Test accuracy at 80 % (2 or 3 seeds) and 90 % pruned (2 seeds): gradual
at the total cost 94.1 and 95.0 %, gradual at the main cost 90.3 and 88.4, the vote 89.2 and 88.4, a single member 88.6
and 87.1, iterative with rewinding 89.4 and 85.8, the published settings 89.6 and 95.0 (their growing intervals train
longest at 90 %), instant soup 89.2 and 92.5, one-shot 81.6 and 79.2. One target of 120 test images: what trains longer
is ahead, and nothing finer can be read from it.
"""

from ml_collections import ConfigDict

from mvp_jax import fragments


def get_config(arg: str | None = None) -> ConfigDict:
    given = fragments.arguments(arg)
    data = given.get("data", "digits")
    model = given.get("model", "bert" if data in fragments.TEXTS else "vit")
    config = fragments.trials(data, model)
    config.methods = fragments.ISP_LINES
    if "runlocal" in given:
        fragments.briefly(config)
    return config
