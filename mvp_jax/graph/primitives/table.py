"""Every primitive that is understood, in one table. What is not in it freezes every axis that touches it."""

from mvp_jax.graph import rules
from mvp_jax.graph.primitives.contractions import CONTRACTIONS
from mvp_jax.graph.primitives.indexing import INDEXING
from mvp_jax.graph.primitives.passing import PASSING
from mvp_jax.graph.primitives.shaping import SHAPING
from mvp_jax.graph.rules import PrimitiveRule

_ZERO_AT_ZERO = (
    "abs neg sign sqrt cbrt square tanh tan sin asin atan sinh asinh atanh erf erf_inv expm1 log1p floor ceil round "
    "convert_element_type reduce_precision copy copy_p stop_gradient sharding_constraint reshard add sub "
    "add_any or xor real imag conj name population_count"
)
_NEVER_ZERO = "exp exp2 cos cosh acos logistic erfc not eq ne lt le gt ge is_finite nextafter clz threefry2x32"
_SHIFTS = ("shift_left", "shift_right_logical", "shift_right_arithmetic")

RULES: dict[str, PrimitiveRule] = {
    **{name: PrimitiveRule(rules.same, rules.where_all) for name in _ZERO_AT_ZERO.split()},
    **{name: PrimitiveRule(rules.same, rules.never) for name in _NEVER_ZERO.split()},
    **{name: PrimitiveRule(rules.same, rules.where_any) for name in ("mul", "and")},
    **{name: PrimitiveRule(rules.same, rules.no_zero_divisor) for name in ("div", "rem")},
    **{name: PrimitiveRule(rules.same, rules.singular) for name in ("log", "rsqrt", "lgamma", "digamma", "acosh")},
    **{name: PrimitiveRule(rules.same, rules.power) for name in ("pow", "integer_pow")},
    "max": PrimitiveRule(rules.same, rules.maximum),
    "min": PrimitiveRule(rules.same, rules.minimum),
    **{name: PrimitiveRule(rules.same, rules.where_first) for name in _SHIFTS},
    # The angle of -1 ± 0i is ±π, and a root of it ±i.
    "atan2": PrimitiveRule(rules.same, rules.never, signed=True),
    "complex": PrimitiveRule(rules.same, rules.where_all, signed=True),
    "select_n": PrimitiveRule(rules.same, rules.select),
    "clamp": PrimitiveRule(rules.same, rules.clamp),
    **SHAPING,
    **CONTRACTIONS,
    **INDEXING,
    **PASSING,
}

ELEMENTWISE = frozenset(name for name, rule in RULES.items() if rule.dims is rules.same)
"""Primitives that treat every entry by itself."""

INLINED = frozenset(
    [
        "jit",
        "pjit",
        "closed_call",
        "core_call",
        "remat",
        "remat2",
        "checkpoint",
        "custom_jvp_call",
        "custom_vjp_call",
        "custom_vjp_call_jaxpr",
    ]
)
"""Primitives that call a program of their own; the analysis walks into it."""
