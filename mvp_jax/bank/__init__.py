"""The bank: a directory of pruned models, all made from one pre-trained model."""

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
    nearest,
    open,
    stacked,
    verify,
    weights,
)

__all__ = [
    "Bank",
    "BankEntry",
    "add",
    "ballots",
    "create",
    "entries",
    "fingerprint",
    "has",
    "load",
    "nearest",
    "open",
    "stacked",
    "verify",
    "weights",
]
