"""The rules of all primitives that are understood, in one table: `RULES`."""

from mvp_jax.graph.primitives.table import ELEMENTWISE, INLINED, RULES

__all__ = ["ELEMENTWISE", "INLINED", "RULES"]
