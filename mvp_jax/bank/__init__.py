"""The bank: pruned models, all made from one pre-trained model, and who of them votes for a new task.

A bank is a folder or an address in a bucket. `python -m mvp_jax.bank DIR` lists, verifies, exports and imports one.
"""

from mvp_jax.bank.archive import pack, unpack
from mvp_jax.bank.dense import has_model, load_model, needs, store_model
from mvp_jax.bank.directory import (
    BankEntry,
    add,
    class_names,
    create,
    entries,
    has,
    load,
    open,
    write_readme,
)
from mvp_jax.bank.manifest import Bank, BankDescription, fingerprint
from mvp_jax.bank.ranking import (
    EntrySimilarity,
    SimilarityFn,
    prototypes,
    prototypes_to_all,
    similarities_to,
    similarity_to_all,
)
from mvp_jax.bank.stacking import ballots, stacked, weights
from mvp_jax.bank.verification import problems, verify
from mvp_jax.bank.voters import Neighbours, in_dense_shapes, neighbours

__all__ = [
    "Bank",
    "BankDescription",
    "BankEntry",
    "EntrySimilarity",
    "Neighbours",
    "SimilarityFn",
    "add",
    "ballots",
    "class_names",
    "create",
    "entries",
    "fingerprint",
    "has",
    "has_model",
    "in_dense_shapes",
    "load",
    "load_model",
    "needs",
    "neighbours",
    "open",
    "pack",
    "problems",
    "prototypes",
    "prototypes_to_all",
    "similarities_to",
    "similarity_to_all",
    "stacked",
    "store_model",
    "unpack",
    "verify",
    "weights",
    "write_readme",
]
