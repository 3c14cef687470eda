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
    from mvp_jax import compact as compact
    from mvp_jax import data as data
    from mvp_jax import delivery as delivery
    from mvp_jax import experiments as experiments
    from mvp_jax import graph as graph
    from mvp_jax import methods as methods
    from mvp_jax import models as models
    from mvp_jax import pretrained as pretrained
    from mvp_jax import reports as reports
    from mvp_jax import saliency as saliency
    from mvp_jax import train as train
    from mvp_jax.compact import budget as budget
    from mvp_jax.compact import cost as cost
    from mvp_jax.compact import sensitivity as sensitivity
    from mvp_jax.core import masks as masks
    from mvp_jax.core import patterns as patterns
    from mvp_jax.core import prune as prune
    from mvp_jax.core import schedules as schedules
    from mvp_jax.core import similarity as similarity
    from mvp_jax.core import trees as trees
    from mvp_jax.core import types as types
    from mvp_jax.core import units as units
    from mvp_jax.core import vote as vote
    from mvp_jax.core.types import Variables as Variables
    from mvp_jax.core.units import Group as Group
    from mvp_jax.core.units import Slot as Slot
    from mvp_jax.delivery.bank_pruning import prune_from_bank as prune_from_bank
    from mvp_jax.delivery.checkpoint_pruning import prune_checkpoint as prune_checkpoint
    from mvp_jax.parallel import processes as processes
    from mvp_jax.pretrained import export as export
    from mvp_jax.pretrained import formats as formats
    from mvp_jax.storage import checkpoint as checkpoint
    from mvp_jax.storage import records as records
    from mvp_jax.train import evaluation as evaluation
    from mvp_jax.train import metrics as metrics
    from mvp_jax.train import population as population
    from mvp_jax.train import probe as probe
    from mvp_jax.train import simsiam as simsiam
    from mvp_jax.train import transforms as transforms

__version__ = "0.1.0"

_PLACES = {
    "bank": "bank",
    "budget": "compact.budget",
    "checkpoint": "storage.checkpoint",
    "compact": "compact",
    "cost": "compact.cost",
    "data": "data",
    "delivery": "delivery",
    "evaluation": "train.evaluation",
    "experiments": "experiments",
    "export": "pretrained.export",
    "formats": "pretrained.formats",
    "graph": "graph",
    "masks": "core.masks",
    "methods": "methods",
    "metrics": "train.metrics",
    "models": "models",
    "patterns": "core.patterns",
    "population": "train.population",
    "pretrained": "pretrained",
    "probe": "train.probe",
    "processes": "parallel.processes",
    "prune": "core.prune",
    "records": "storage.records",
    "reports": "reports",
    "saliency": "saliency",
    "schedules": "core.schedules",
    "sensitivity": "compact.sensitivity",
    "similarity": "core.similarity",
    "simsiam": "train.simsiam",
    "train": "train",
    "transforms": "train.transforms",
    "trees": "core.trees",
    "types": "core.types",
    "units": "core.units",
    "vote": "core.vote",
}
"""Where each module stands that is offered here: what a researcher imports, whichever folder it lives in."""

_NAMES = {
    "Group": "core.units",
    "Slot": "core.units",
    "Variables": "core.types",
    "prune_checkpoint": "delivery.checkpoint_pruning",
    "prune_from_bank": "delivery.bank_pruning",
}


def __getattr__(name: str) -> Any:
    """Imports what is asked for the first time it is asked for."""
    if name in _PLACES:
        value = importlib.import_module(f"{__name__}.{_PLACES[name]}")
    elif name in _NAMES:
        value = getattr(importlib.import_module(f"{__name__}.{_NAMES[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


__all__ = [
    "Group",
    "Slot",
    "Variables",
    "__version__",
    "prune_checkpoint",
    "prune_from_bank",
    *_PLACES,
]
