"""A job at many settings, in one process, and one table of them.

    python -m mvp_jax.main --config=configs/sweep.py --workdir=DIR
    python -m mvp_jax.main --config=configs/sweep.py:base=mvp,model=vit --workdir=DIR
    python -m mvp_jax.main --config=configs/sweep.py --config.sweep.over="(('isp.members',(3,5,9)),('seed',(0,1)))" ...

The argument names the file in this folder whose job is swept (`base=isp`), and is that file's own otherwise. All its
settings can be given as ever; `sweep.over` pairs paths with values, whose combinations are the points. The settings of
a point are chosen on the validation split; the table shows test accuracy for the chosen alone. Points that differ only
in what comes after the pre-training, or the bank, share it.

Lab note. Run here: `:runlocal`.
"""

import pathlib

from ml_collections import ConfigDict

from mvp_jax.experiments import command_line, sweep

_RATES = {"mvp": "tune.learning_rate"}


def get_config(arg: str | None = None) -> ConfigDict:
    words = [word for word in (arg or "").split(",") if word]
    base = next((word.removeprefix("base=") for word in words if word.startswith("base=")), "isp")
    rest = ",".join(word for word in words if not word.startswith("base="))
    config = command_line.load(pathlib.Path(__file__).with_name(f"{base}.py"), rest or None)
    path = _RATES.get(config.job, "train.learning_rate")
    *parents, last = path.split(".")
    node = config
    for name in parents:
        node = node[name]
    rates = tuple(float(f"{node[last] * factor:.3g}") for factor in (0.3, 1, 3))
    return sweep.over(config, {path: rates[1:] if "runlocal" in words else rates})
