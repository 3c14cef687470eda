"""The jobs that are killed: those of `configs/`, so small that each takes seconds once its programs are compiled."""

from configs import bank, compare, isp, pretrain, prune, sweep
from mvp_jax.experiments import command_line

_SPARSE = {"pretrain.steps": 4, "pretrain.save_every": 2, "keep_rounds": True, "masks_alone": False}
_FEW = {"model.options.width": 4, "pretrain.steps": 4, "pretrain.save_every": 2, "bank.rounds": 1}


def _with(config, values):
    if "model" in config and config.model.name == "vit_micro":
        config.model.options.update({"dim": 16, "heads": 2, "layers": 1})
    return command_line.changed(config, values)


def _isp():
    return _with(isp.get_config("runlocal"), {**_SPARSE, "methods": ("isp", "gradual", "magnitude"), "ours": "isp"})


def _compare():
    given = {"methods": ("gradual", "imp"), "ours": "gradual", "rates.factors": (0.5, 1.0), "rates.targets": 1}
    return _with(compare.get_config("runlocal"), {**_SPARSE, **given, "sparsities": (0.5,)})


def _sweep():
    config = sweep.get_config("runlocal")
    return _with(config, {**_SPARSE, "methods": ("isp", "magnitude"), "ours": "isp", "sparsities": (0.5,)})


JOBS = {
    "bank": lambda: _with(bank.get_config("runlocal"), {**_FEW, "mapping": "loop", "chunk": 1}),
    "isp": _isp,
    "compare": _compare,
    "pretrain": lambda: _with(pretrain.get_config("runlocal"), {"pretrain.steps": 12}),
    "prune": lambda: _with(prune.get_config("runlocal"), {"data.limit": 200}),
    "sweep": _sweep,
}
"""The config of each job by name."""
