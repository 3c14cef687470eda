"""Runs a job with many settings in one process, and writes one table of all runs.

    python -m mvp_jax.main --config=configs/sweep.py --workdir=DIR
    python -m mvp_jax.main --config=configs/sweep.py:base=mvp,model=vit --workdir=DIR
    python -m mvp_jax.main --config=configs/sweep.py --config.sweep.over="(('isp.members',(3,5,9)),('seed',(0,1)))" ...

In the argument, `base=NAME` names the file in this folder whose job is run with many settings (the default is `isp`).
The rest is the argument of that file, and all of its settings can be given as in a single run. `config.sweep.over`
pairs paths of settings with values, and all combinations of the values are run. The best settings are chosen on the
validation split, and the table shows the test accuracy for these only. Runs share a pre-training, or a bank, if they
differ only in settings that do not affect it.

Lab note. `:runlocal` was run here.
"""

import pathlib

from ml_collections import ConfigDict

from mvp_jax.experiments import command_line, sweep

_RATES = {"mvp": "tune.learning_rate"}


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config of the job; `arg` is the argument described above, `None` for the default."""
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
