"""What the jobs for a person's own data share: settings of the data, how they are read, the rows of their results."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict, config_dict

from mvp_jax.data.datasets import labelled
from mvp_jax.data.datasets.labelled import LabelledData
from mvp_jax.reports.model_report import ModelReport

_READ = ("path", "test", "text", "pair", "label", "regression", "valid_share", "test_share", "limit")


def settings(made: ConfigDict, data: str, share: float) -> None:
    """Adds to a config, in place, what says which data are read, and what all jobs have.

    Args:
        made: the config of a job.
        data: the data, as `labelled.read` takes them.
        share: the share of the examples for validation, and as many for the test.
    """
    made.data = ConfigDict()
    made.data.name = data
    made.data.path = ""
    made.data.test = ""
    for name in ("text", "pair", "label"):
        made.data[name] = ""
    made.data.valid_share = made.data.test_share = share
    for name in ("limit", "length", "size"):
        made.data[name] = config_dict.placeholder(int)
    made.compilation_cache = "auto"
    made.multihost = False
    made.distributed = ConfigDict()
    made.distributed.coordinator = ""
    made.distributed.processes = config_dict.placeholder(int)
    made.distributed.process = config_dict.placeholder(int)


def read(config: ConfigDict) -> LabelledData:
    """Returns the data that a config names.

    Args:
        config: a resolved config; its group `data` and its seed are read.

    Raises:
        ValueError: for data that cannot be read; what the message asks for is named as a setting too.
    """
    given = config.data
    try:
        return labelled.read(given.name, **{name: given[name] for name in _READ if name in given}, seed=config.seed)
    except ValueError as error:
        asked = [name for name in _READ if f"{name}=" in str(error)]
        if not asked:
            raise
        raise ValueError(f"{error} (as {', '.join(f'--config.data.{name}=...' for name in asked)})") from error


def rows(
    report: ModelReport, valid: Mapping[str, float], dense: Mapping[str, Any], pruned: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Returns the first metric of the dense and the pruned model on both parts, as rows of a table of results.

    Args:
        report: what was measured on the test examples.
        valid: the metric on the validation examples, of the `dense` and of the `pruned` model.
        dense: the other columns of the dense model's rows: `target`, `seed`, `method`, how much was removed, `steps`.
        pruned: those of the pruned model's rows.
    """
    versions = {version.name: version for version in report.versions}
    return [
        {
            **more,
            "split": split,
            "accuracy": valid[name] if split == "valid" else versions[name].scores[0].value,
            "params": versions[name if name == "dense" else "slim"].nonzero,
            "flops": versions[name if name == "dense" else "slim"].flops,
        }
        for name, more in (("dense", dense), ("pruned", pruned))
        for split in ("valid", "test")
    ]
