"""From dense to physically smaller: cut arrays, slim models and functions, what they cost, how many units to keep."""

from mvp_jax.compact.copies import ArrayCuts, TreeCuts
from mvp_jax.compact.cutting import cut, embed, sizes
from mvp_jax.compact.slimming import Verification, check, mask, rebuild, slim, verify

__all__ = [
    "TreeCuts",
    "ArrayCuts",
    "Verification",
    "check",
    "cut",
    "embed",
    "mask",
    "rebuild",
    "sizes",
    "slim",
    "verify",
]
