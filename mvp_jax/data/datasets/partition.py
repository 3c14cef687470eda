"""Cutting examples into parts to learn from, to choose by and to report on, so that equal ones stay together."""

import collections
from collections.abc import Hashable, Sequence

import numpy as np


def cut(keys: Sequence[Hashable], strata: np.ndarray, shares: Sequence[float], seed: int = 0) -> list[np.ndarray]:
    """Cuts examples into parts by seeded shares of each stratum; equal examples come into one part.

    Of each stratum every further part gets its share of the examples, rounded but at least one, and the first part the
    rest. With equal examples in a stratum a part may miss its count by as many as are equal. What a stratum gives
    depends on its own examples and the seed alone.

    Args:
        keys: for each of N examples what it is equal by; equal keys never stand in two parts.
        strata: `int[N]`, the class of each example; one stratum for all: zeros. Equal examples of several classes count
            as the most frequent of these.
        shares: the share of each further part, between 0 and 1, less than 1 together.
        seed: the seed of the choice.

    Returns:
        The sorted numbers of the examples of the first part, then of each further part.

    Raises:
        ValueError: for shares that do not fit, or a stratum with fewer different examples than there are parts.

    >>> rest, tenth = cut(["a", "b", "c", "d", "d"], np.zeros(5, int), [0.2])
    >>> len(rest), len(tenth), {3, 4} <= set(rest.tolist()) or {3, 4} <= set(tenth.tolist())
    (4, 1, True)
    """
    check_shares(shares)
    members: dict[Hashable, list[int]] = collections.defaultdict(list)
    for i, key in enumerate(keys):
        members[key].append(i)
    of = np.asarray(strata).tolist()
    groups: dict[int, list[list[int]]] = collections.defaultdict(list)
    for group in members.values():
        groups[_stratum_of([of[i] for i in group])].append(group)
    parts: list[list[int]] = [[] for _ in range(len(shares) + 1)]
    for stratum, own in sorted(groups.items()):
        if len(own) < len(parts):
            raise ValueError(
                f"stratum {stratum} has {len(own)} different examples for {len(parts)} parts; give at least one a part"
            )
        for part, chosen in zip(parts, _stratum(own, shares, np.random.default_rng([seed, stratum])), strict=True):
            part += [i for group in chosen for i in group]
    return [np.sort(np.array(part, np.int64)) for part in parts]


def _stratum_of(strata: list[int]) -> int:
    """Returns the most frequent stratum of equal examples, the first of several."""
    if len(strata) == 1:
        return strata[0]
    counts = collections.Counter(strata)
    return min(counts, key=lambda k: (-counts[k], k))


def check_shares(shares: Sequence[float]) -> None:
    """Refuses shares of parts that are not above 0, or that leave nothing for the first part.

    Raises:
        ValueError: for such shares.
    """
    if not all(0 < share < 1 for share in shares) or sum(shares) >= 1:
        raise ValueError(
            f"shares {list(shares)} of the parts that are cut off; give numbers above 0 that are less than 1 together, "
            "such as 0.1"
        )


def _stratum(groups: list[list[int]], shares: Sequence[float], rng: np.random.Generator) -> list[list[list[int]]]:
    """Returns the groups of each part; those of several examples are placed while there is room for them."""
    total = sum(map(len, groups))
    wanted = [max(1, round(share * total)) for share in shares]
    room = np.array([max(total - sum(wanted), 1), *wanted])
    parts: list[list[list[int]]] = [[] for _ in room]
    order = [groups[i] for i in rng.permutation(len(groups))]
    for group in (g for g in order if len(g) > 1):
        fits = np.where(room >= len(group), room, 0)
        at = int(rng.choice(len(room), p=fits / fits.sum())) if fits.sum() else 0
        parts[at].append(group)
        room[at] -= len(group)
    singles = [g for g in order if len(g) == 1]
    for at in range(1, len(parts)):
        count = max(int(room[at]), 0)
        parts[at] += singles[:count]
        singles = singles[count:]
    parts[0] += singles
    for part in parts:
        if not part:
            donor = parts[0] if len(parts[0]) > 1 else max(parts, key=len)
            donor.sort(key=len, reverse=True)
            part.append(donor.pop())
    return parts


def limited(strata: np.ndarray, limit: int, seed: int = 0) -> np.ndarray:
    """Draws some of the examples, of each stratum its share and at least one.

    Args:
        strata: `int[N]`, the class of each example.
        limit: how many examples are drawn at most; N or more: all are.
        seed: the seed of the choice.

    Returns:
        The sorted numbers of the drawn examples.

    Raises:
        ValueError: if the limit is less than the number of strata.

    >>> chosen = limited(np.array([0] * 8 + [1] * 2), 5)
    >>> np.bincount(np.array([0] * 8 + [1] * 2)[chosen]).tolist()
    [4, 1]
    """
    strata = np.asarray(strata)
    names, counts = np.unique(strata, return_counts=True)
    if limit < len(names):
        raise ValueError(f"limit is {limit}; give at least {len(names)}, one training example for each class")
    if limit >= len(strata):
        return np.arange(len(strata))
    exact = counts * (limit / len(strata))
    given = np.maximum(np.floor(exact).astype(int), 1)
    while given.sum() < limit:  # by the largest remainder
        given[int(np.argmax(np.where(given < counts, exact - given, -np.inf)))] += 1
    while given.sum() > limit:  # where the one that is sure came on top
        given[int(np.argmax(np.where(given > 1, given - exact, -np.inf)))] -= 1
    chosen = [
        np.random.default_rng([seed, int(name), 1]).permutation(np.flatnonzero(strata == name))[:count]
        for name, count in zip(names, given, strict=True)
    ]
    return np.sort(np.concatenate(chosen))
