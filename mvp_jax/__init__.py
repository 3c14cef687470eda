"""Structured and unstructured pruning of pre-trained models by votes.

Everything here is loaded on first use (PEP 562), so `import mvp_jax` costs milliseconds and a program pays only for
the parts it touches:

>>> import mvp_jax as mvp
>>> mvp.prune.keep_count(100, 0.75)
25
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mvp_jax import bank as bank
    from mvp_jax import budget as budget
    from mvp_jax import checkpoint as checkpoint
    from mvp_jax import compact as compact
    from mvp_jax import comparison as comparison
    from mvp_jax import connections as connections
    from mvp_jax import cost as cost
    from mvp_jax import data as data
    from mvp_jax import evaluation as evaluation
    from mvp_jax import experiment as experiment
    from mvp_jax import export as export
    from mvp_jax import formats as formats
    from mvp_jax import graph as graph
    from mvp_jax import masks as masks
    from mvp_jax import methods as methods
    from mvp_jax import models as models
    from mvp_jax import patterns as patterns
    from mvp_jax import population as population
    from mvp_jax import pretrained as pretrained
    from mvp_jax import probe as probe
    from mvp_jax import processes as processes
    from mvp_jax import prune as prune
    from mvp_jax import reports as reports
    from mvp_jax import saliency as saliency
    from mvp_jax import schedules as schedules
    from mvp_jax import sensitivity as sensitivity
    from mvp_jax import similarity as similarity
    from mvp_jax import train as train
    from mvp_jax import transforms as transforms
    from mvp_jax import trees as trees
    from mvp_jax import types as types
    from mvp_jax import units as units
    from mvp_jax import vote as vote
    from mvp_jax.types import Variables as Variables
    from mvp_jax.units import Group as Group
    from mvp_jax.units import Slot as Slot

__version__ = "0.1.0"

_MODULES = frozenset(
    {
        "bank",
        "budget",
        "checkpoint",
        "compact",
        "comparison",
        "connections",
        "cost",
        "data",
        "evaluation",
        "experiment",
        "export",
        "formats",
        "graph",
        "masks",
        "methods",
        "metrics",
        "models",
        "patterns",
        "population",
        "pretrained",
        "probe",
        "processes",
        "prune",
        "reports",
        "saliency",
        "schedules",
        "sensitivity",
        "similarity",
        "simsiam",
        "train",
        "transforms",
        "trees",
        "types",
        "units",
        "vote",
    }
)
_NAMES = {"Group": "units", "Slot": "units", "Variables": "types"}


def __getattr__(name: str) -> Any:
    """Imports what is asked for the first time it is asked for."""
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _NAMES:
        value = getattr(importlib.import_module(f"{__name__}.{_NAMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted(__all__)


__all__ = [
    "Group",
    "Slot",
    "Variables",
    "__version__",
    "bank",
    "budget",
    "checkpoint",
    "compact",
    "comparison",
    "connections",
    "cost",
    "data",
    "evaluation",
    "experiment",
    "export",
    "formats",
    "graph",
    "masks",
    "methods",
    "metrics",
    "models",
    "patterns",
    "population",
    "pretrained",
    "probe",
    "processes",
    "prune",
    "reports",
    "saliency",
    "schedules",
    "sensitivity",
    "similarity",
    "simsiam",
    "train",
    "transforms",
    "trees",
    "types",
    "units",
    "vote",
]
