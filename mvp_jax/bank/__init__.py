"""The bank: a directory of pruned models, all made from one pre-trained model, and who of them votes for a new task."""

from mvp_jax.bank.directory import (
    Bank,
    BankEntry,
    add,
    ballots,
    create,
    entries,
    fingerprint,
    has,
    load,
    open,
    stacked,
    verify,
    weights,
)
from mvp_jax.bank.voters import (
    Neighbours,
    SimilarityFn,
    in_dense_shapes,
    leep_to_all,
    neighbours,
    prototypes,
    prototypes_to_all,
)

__all__ = [
    "Bank",
    "BankEntry",
    "Neighbours",
    "SimilarityFn",
    "add",
    "ballots",
    "create",
    "entries",
    "fingerprint",
    "has",
    "in_dense_shapes",
    "leep_to_all",
    "load",
    "neighbours",
    "open",
    "prototypes",
    "prototypes_to_all",
    "stacked",
    "verify",
    "weights",
]
