"""Instant Soup Pruning beside its controls: a pre-trained transformer pruned by many weak masks at once.

    python -m mvp_jax.main --config=configs/isp.py --workdir=DIR
    python -m mvp_jax.main --config=configs/isp.py:data=docstrings --workdir=DIR
    python -m mvp_jax.main --config=configs/isp.py:runlocal --workdir=DIR

The default is a small vision transformer on the digits, `data=docstrings` a small BERT on English texts that come with
the installed packages; both are pre-trained here. The argument is as in `configs/compare.py`.

The lines: the vote, its rules, a single member (`isp_one`), no vote (`isp_score`), soups, the published settings, and
what they have to beat: gradual pruning at the main cost and at the total cost, iterative pruning, one-shot.

Lab note. The default takes about 20 minutes on two busy cores. Test accuracy at 80 and 90 % pruned, 3 seeds: gradual at
the total cost 94.2 and 94.7 %, the published settings 91.9 and 94.2 (their growing intervals train longest at 90 %),
iterative with rewinding 91.7 and 90.8, instant soup 90.3 and 90.6, one-shot 89.4 and 90.0, gradual at the main cost
88.3 and 88.9, a single member 87.2 and 87.8, the vote 86.9 and 87.5, not pruned 84.4. One target of 300 training
images: what prunes while it trains longest is ahead. The table and what it means: `docs/results`. `data=docstrings`
has not been run at full length.
"""

from ml_collections import ConfigDict

from mvp_jax.experiments import presets


def get_config(arg: str | None = None) -> ConfigDict:
    given = presets.arguments(arg)
    data = given.get("data", "digits")
    model = given.get("model", "bert" if data in presets.TEXTS else "vit")
    config = presets.trials(data, model)
    config.methods = presets.ISP_LINES
    if "runlocal" in given:
        presets.briefly(config)
    return config
