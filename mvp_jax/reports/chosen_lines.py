"""Which methods a picture names, in which colours: at most seven lines can be told apart.

Each has a colour and a marker of its own, and its name beside it. All other methods are thin and grey, without a name.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mvp_jax.reports import plots

MOST = 7
"""The most methods that a picture names."""

_BASELINES, _CONTROLS = 2, 2


class LineStyle(NamedTuple):
    """How a method is drawn.

    Attributes:
        colour: of its line or point.
        marker: of its points, as matplotlib names it.
        width: of its line, in points.
        ours: whether it is the method that the picture is about; its name is bold.
        named: whether its name stands beside it.
    """

    colour: str
    marker: str
    width: float
    ours: bool
    named: bool


def choose(
    accuracies: Mapping[str, float], ours: str, roles: Mapping[str, str] | None = None, *, most: int = MOST
) -> list[str]:
    """Returns the methods that a picture names, the most important first.

    They are chosen in this order, until there are `most`:

    1. `ours`, the method that the picture is about;
    2. any other method that is proposed;
    3. the reference, in which nothing is pruned;
    4. the two most accurate baselines: the rivals;
    5. the two most accurate controls: those that could explain the method's accuracy away;
    6. what is kept at random: what any method must beat;
    7. whatever else is most accurate.

    Args:
        accuracies: the accuracy of every method in the picture, on average, `{method: accuracy}`.
        ours: the method that the picture is about; it may be absent.
        roles: what each method is, `{method: role}`: `proposed`, `reference`, `baseline`, `control`, `random`, or any
            other word; a method without a role is a baseline. `methods.registry.roles` gives them.
        most: the most methods to choose.

    >>> roles = {"dense": "reference", "mvp_soup": "variant", "copy": "control", "dice": "random"}
    >>> accuracies = {"mvp": 0.8, "mvp_soup": 0.9, "a": 0.6, "b": 0.7, "c": 0.5, "copy": 0.8, "dice": 0.1, "dense": 0.9}
    >>> choose(accuracies, "mvp", roles)
    ['mvp', 'dense', 'b', 'a', 'copy', 'dice', 'mvp_soup']
    >>> choose(accuracies, "mvp", most=3)
    ['mvp', 'dense', 'mvp_soup']
    """
    ranked = sorted((m for m in accuracies if m != ours), key=lambda m: (-accuracies[m], m))
    role = {m: (roles or {}).get(m, "baseline") for m in ranked}

    def best(wanted: str, count: int) -> list[str]:
        return [m for m in ranked if role[m] == wanted][:count]

    first = [ours] if ours in accuracies else []
    first += best("proposed", most) + best("reference", 1)
    first += best("baseline", _BASELINES) + best("control", _CONTROLS) + best("random", 1)
    return [*first, *(m for m in ranked if m not in first)][:most]


def given(
    accuracies: Mapping[str, float],
    ours: str,
    roles: Mapping[str, str] | None = None,
    *,
    highlight: Sequence[str] | None = None,
    most: int = MOST,
) -> list[str]:
    """Returns the methods that a picture names: `ours` and those that a caller highlights, or those of `choose`.

    Args:
        accuracies: the accuracy of every method in the picture, `{method: accuracy}`.
        ours: the method that the picture is about.
        roles: what each method is, as `choose` takes it.
        highlight: the methods to name besides `ours`; `None`: as `choose` chooses.
        most: the most methods to name.

    Raises:
        ValueError: if a highlighted method is not in the picture, or there are too many.
    """
    if highlight is None:
        return choose(accuracies, ours, roles, most=most)
    unknown = sorted(set(highlight) - set(accuracies))
    if unknown:
        raise ValueError(f"no rows of {unknown} to highlight; there are {sorted(accuracies)}")
    chosen = [*([ours] if ours in accuracies else []), *(m for m in highlight if m != ours)]
    if len(chosen) > most:
        raise ValueError(f"{len(chosen)} methods to name, {chosen}; at most {most} lines can be told apart")
    return chosen


def styles(
    methods: Sequence[str],
    chosen: Sequence[str],
    ours: str,
    roles: Mapping[str, str] | None = None,
    *,
    every: bool = False,
) -> dict[str, LineStyle]:
    """Returns how each method is drawn, in the order of drawing: what is named last, `ours` on top of all.

    Args:
        methods: all methods of the picture.
        chosen: those in colour, as `given` returns them: at most one more than there are `plots.COLOURS`.
        ours: the method that the picture is about: blue, thick.
        roles: what each method is; the `reference` is black.
        every: whether the grey methods are named too.
    """
    black = [m for m in chosen if (roles or {}).get(m) == "reference"][:1]
    coloured = [m for m in chosen if m not in black]
    colours, markers = [*plots.COLOURS, plots.BLACK], [*plots.MARKERS, "X"]
    found = {m: LineStyle(plots.PALE, ".", 0.9, False, every) for m in methods if m not in chosen}
    for method in reversed([*coloured, *black]):
        if method in black:
            found[method] = LineStyle(plots.BLACK, "X", 1.5, False, True)
        else:
            k = coloured.index(method)
            found[method] = LineStyle(colours[k], markers[k], 2.6 if method == ours else 1.5, method == ours, True)
    return found
