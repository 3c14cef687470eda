"""What is known of a traced function: its arrays, its equations and its programs, each with expressions for its axes.

`reading` makes these records of a jaxpr, `zeros` writes into them what it finds, `replay` runs them on smaller arrays.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

from mvp_jax.graph.dims import Axes, Dim, Expr, Prod, resolve, roots
from mvp_jax.graph.rules import Seen

T = TypeVar("T")
Kind = Literal["constant", "plain", "call", "scan", "cond", "while", "shard_map", "opaque", "custom"]
Role = Literal["make", "touch", "read", "head", "qk", "value", "summed"]


class Value(NamedTuple):
    """What is known of one array.

    Attributes:
        dims: an expression an axis; `None` for a constant, which has none of its own.
        shape: in the dense function.
        fill: the number that all entries equal, if it is known.
        steady: of a constant, the axes along which its entries are known not to vary.
        sources: paths of the parameters that it is made of alone.
        active: whether it depends on the inputs.
        compute: of a constant, how to compute it.
        given: whether it is made of inputs and constants alone. It stays as it is and is cut where it meets something
            else, each time by itself, so that a table that is cut out at an input's place ties no layers together.
    """

    dims: Axes | None
    shape: tuple[int, ...]
    fill: float | None = None
    sources: frozenset[str] = frozenset()
    active: bool = False
    steady: frozenset[int] = frozenset()
    compute: Callable[[], Any] | None = None
    given: bool = False

    @property
    def own(self) -> bool:
        """Whether it is cut for each use: a constant, or a given array with units that nothing keeps yet."""
        return self.dims is None or (self.given and any(not d.why for e in self.dims for d in roots(e)))


class Note(NamedTuple):
    """That somebody makes, touches or reads units along an axis; `how` is what makes them."""

    role: Role
    axis: Expr
    sources: frozenset[str]
    how: str = ""


def layer_of(source: str) -> str:
    """The module that a source of a note lies in; an array that lies in none is its own.

    >>> layer_of("params:block/fc/kernel"), layer_of("params:scale")
    ('block/fc', 'scale')
    """
    path = source.partition(":")[2] or source
    return path.rpartition("/")[0] or path


@dataclasses.dataclass(kw_only=True)
class Facts:
    """What the second pass found out about one equation; the replay reads it.

    Attributes:
        zeros: for each result, where it is zero once units are removed.
        folded: sets of units whose removed entries, all alike, are counted where this equation combines entries.
        skipped: sets of units whose removed entries are left out of a mean, which is taken over the kept ones.
        absent: of constant operands, the sets of units whose removed entries count as zero, as those of parameters.
    """

    zeros: tuple[Any, ...] = ()
    folded: frozenset[Dim] = frozenset()
    skipped: frozenset[Dim] = frozenset()
    absent: Mapping[int, frozenset[Dim]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Node:
    """One equation with its axes.

    Attributes:
        eqn: the equation.
        kind: how it is read and written again.
        seen: its axes, the way rules see them; a constant operand has axes of its own for this one use.
        constants: which operands are constants.
        inner: the programs that it calls.
        steady: of each constant operand, the axes along which it does not vary.
        active: whether an operand depends on the inputs.
        at: how many notes were taken before it.
        facts: what the second pass found out, written there.
        derivative: the rule of a function whose own derivative is kept.
    """

    eqn: Any
    kind: Kind
    seen: Seen
    constants: tuple[bool, ...]
    inner: tuple["Program", ...] = ()
    steady: tuple[frozenset[int], ...] = ()
    active: bool = False
    at: int = 0
    facts: Facts = dataclasses.field(default_factory=Facts, compare=False, repr=False)
    derivative: Any = None

    @property
    def remat(self) -> bool:
        """Whether it is a call whose values are computed again for the derivative."""
        return self.seen.name in ("remat", "remat2", "checkpoint")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """A jaxpr with its equations read.

    Attributes:
        jaxpr: as JAX traced it.
        consts: values of its constant variables.
        nodes: one an equation.
        ins: axes of its arguments; `None` where a constant comes in.
        outs: values of its results.
        constants: which of the results are constants, in the shape that they had.
    """

    jaxpr: Any
    consts: tuple[Any, ...]
    nodes: tuple[Node, ...]
    ins: tuple[Axes | None, ...]
    outs: tuple[Value, ...]
    constants: tuple[bool, ...]


def scan_split(params: Mapping[str, Any]) -> tuple[int, int]:
    """Numbers of constants and carries of a `scan`; JAX 0.11 packs them into one tree."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()
    return len(consts), len(carry)


def while_parts(params: Mapping[str, Any], operands: Sequence[T]) -> tuple[list[T], list[T], list[T]]:
    """What a `while` hands to its condition, to its body, and from step to step."""
    first, second = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
    return list(operands[:first]), list(operands[first:second]), list(operands[second:])


def split_axes(mesh: Any, spec: Any) -> frozenset[int]:
    """The axes of an array of which the devices of a mesh hold different parts.

    >>> import jax
    >>> split_axes(jax.make_mesh((1,), ("data",)), jax.sharding.PartitionSpec(None, "data"))
    frozenset()
    """
    names = [(entry,) if isinstance(entry, str) else entry if isinstance(entry, tuple) else () for entry in spec]
    return frozenset(a for a, several in enumerate(names) if math.prod(mesh.shape[name] for name in several) > 1)


def open_jaxpr(jaxpr: Any) -> tuple[Any, tuple[Any, ...]]:
    """A jaxpr, closed or not, and its constants."""
    return (jaxpr.jaxpr, tuple(jaxpr.consts)) if hasattr(jaxpr, "consts") else (jaxpr, ())


def called(params: Mapping[str, Any]) -> Any:
    """The program that an inlined primitive calls."""
    return next(params[k] for k in ("jaxpr", "call_jaxpr", "fun_jaxpr") if k in params)


def merged(program: Program) -> Iterator[Prod]:
    """The axes of a program, and of those that it calls, that a reshape made of several."""
    for node in program.nodes:
        if node.seen.name == "reshape":
            yield from (e for axes in node.seen.outs for e in map(resolve, axes) if isinstance(e, Prod))
        for inner in node.inner:
            yield from merged(inner)
