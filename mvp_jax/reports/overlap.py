"""How much the units that two tasks keep overlap, by depth and by how similar the tasks are."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mvp_jax.reports.tables import FEWEST_PAIRS


def overlap_table(
    units_by_task: Mapping[str, Any],
    similarity: Any,
    bins: int | Sequence[float] = 3,
    *,
    order: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """How much the kept units of two tasks overlap, by depth and by how similar the tasks are.

    `|Ω_i ∩ Ω_j| / |Ω_i ∪ Ω_j|` for every pair of tasks. The interval is a jackknife over *tasks* (each task is
    left out with all of its pairs), because pairs that share a task are not independent. `chance` is the expected
    overlap of random sets of the same sizes: `E[X / (a + b - X)]`, `X` hypergeometric.

    Args:
        units_by_task: `{group: bool[T, C]}`.
        similarity: `[T, T]`, higher = nearer; an asymmetric one counts as the mean of both directions.
        bins: how many bins with equally many pairs, or the similarities that part them (a pair on a border
            belongs to the bin above).
        order: the groups from the input to the output (default: as in the mapping).

    Returns:
        Rows `group`, `depth` (from 0), `units`, `bin` (from 0, the least similar), `label`, `overlap` (mean), `sd`
        (over pairs), `low`, `high` (95 %; `nan` for fewer than 3 tasks or pairs), `pairs`, `chance`.

    Raises:
        ValueError: for shapes that do not fit, or fewer than 2 tasks.

    >>> rows = overlap_table({"fc": np.array([[1, 1, 0], [1, 1, 0], [0, 1, 1]], bool)}, np.eye(3), 1)
    >>> rows[0]["pairs"], f"{rows[0]['overlap']:.3f}", f"{rows[0]['chance']:.3f}"
    (3, '0.556', '0.556')

    Reference: Zhao et al., "Learning to Prune by Meta-Vote", 2023, arXiv:2301.11560, section 3.
    """
    kept = {name: np.asarray(u, bool) for name, u in units_by_task.items()}
    names = list(order) if order is not None else list(kept)
    near = np.asarray(similarity, float)
    t = near.shape[0]
    if near.shape != (t, t) or t < 2 or not kept or any(u.ndim != 2 or len(u) != t for u in kept.values()):
        raise ValueError(
            f"units of shapes { {n: u.shape for n, u in kept.items()} } and similarity of shape {near.shape}; "
            "give [T, C] for each group and [T, T], with at least 2 tasks"
        )
    if set(names) != set(kept):
        raise ValueError(f"`order` differs from the groups: {sorted(set(names) ^ set(kept))}")
    i, j = np.triu_indices(t, 1)
    pair_similarity = (near + near.T)[i, j] / 2
    cuts = np.quantile(pair_similarity, np.arange(1, bins) / bins) if isinstance(bins, int) else np.asarray(bins, float)
    place = np.digitize(pair_similarity, np.unique(cuts))
    present = np.unique(place)
    words = {2: ["less similar", "more similar"], 3: ["least similar", "middle", "most similar"]}.get(len(present))

    found = []
    for depth, name in enumerate(names):
        u = kept[name]
        both, sizes = u.astype(np.int64) @ u.T.astype(np.int64), u.sum(1)
        union = sizes[:, None] + sizes[None, :] - both
        iou = np.where(union > 0, both / np.maximum(union, 1), 1.0)[i, j]
        chance = _chance(sizes[i], sizes[j], u.shape[1])
        for rank, b in enumerate(present):
            inside = place == b
            mean, half = _jackknife(iou[inside], i[inside], j[inside], t)
            ends = pair_similarity[inside]
            low_end, high_end = f"{ends.min():.3g}", f"{ends.max():.3g}"
            span = low_end if low_end == high_end else f"{low_end} to {high_end}"
            found.append(
                {
                    "group": name,
                    "depth": depth,
                    "units": u.shape[1],
                    "bin": rank,
                    "label": f"{words[rank]} ({span})" if words else span,
                    "overlap": mean,
                    "sd": float(iou[inside].std(ddof=1)) if inside.sum() > 1 else None,
                    "low": max(mean - half, 0.0),
                    "high": min(mean + half, 1.0),
                    "pairs": int(inside.sum()),
                    "chance": float(chance[inside].mean()),
                }
            )
    return found


def _jackknife(values: np.ndarray, i: np.ndarray, j: np.ndarray, tasks: int) -> tuple[float, float]:
    """The mean over pairs and half of its 95 % interval, leaving out one task at a time."""
    total, count = values.sum(), len(values)
    sums = np.bincount(i, values, tasks) + np.bincount(j, values, tasks)
    counts = np.bincount(i, minlength=tasks) + np.bincount(j, minlength=tasks)
    useful = (counts > 0) & (counts < count)
    if min(useful.sum(), count) < FEWEST_PAIRS:
        return float(total / count), float("nan")
    left = (total - sums[useful]) / (count - counts[useful])
    variance = (len(left) - 1) * np.mean(np.square(left - left.mean()))
    return float(total / count), float(1.96 * np.sqrt(variance))


def _chance(a: np.ndarray, b: np.ndarray, size: int) -> np.ndarray:
    from scipy import stats

    found = np.zeros(len(a))
    for x, y in {(int(p), int(q)) for p, q in zip(a, b, strict=True)}:
        shared = np.arange(max(0, x + y - size), min(x, y) + 1)
        share = shared / np.maximum(x + y - shared, 1) if x + y else np.ones(1)
        found[(a == x) & (b == y)] = np.sum(stats.hypergeom.pmf(shared, size, x, y) * share)
    return found
