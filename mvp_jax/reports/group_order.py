"""Checks that some methods of a table of results stand above others: the order of their means, not the figures.

    python -m mvp_jax.reports.group_order runs/mvp/results.csv

prints the mean test accuracy of both groups after the last fine-tuning step, and ends with status 1 if a method of the
first group is not above all of the second. Means move by some points between machines and versions; the order is what
the methods claim.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mvp_jax.storage import foreign_files, records

ABOVE = ("mvp", "mvp_select")
"""The methods that are to stand above: Meta-Vote Pruning, with a start that is voted or chosen."""

BELOW = ("vote_pretrained_weights", "ifp", "oneshot_fisher", "oneshot_magnitude", "random_units")
"""The methods that start from the pre-trained weights, without those of a bank."""


def last_means(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Returns the mean test accuracy of each method after the last fine-tuning step, best first.

    Args:
        rows: of `results.csv`, with the columns `method`, `steps`, `split` and `accuracy`.

    >>> row = {"method": "mvp", "split": "test"}
    >>> last_means([row | {"steps": 0, "accuracy": 0.1}, row | {"steps": 9, "accuracy": 0.5}])
    {'mvp': 0.5}
    """
    last = max((row["steps"] for row in rows), default=0)
    found: dict[str, list[float]] = {}
    for row in rows:
        if row["split"] == "test" and row["steps"] == last:
            found.setdefault(row["method"], []).append(float(row["accuracy"]))
    means = {method: float(np.mean(values)) for method, values in found.items()}
    return dict(sorted(means.items(), key=lambda item: -item[1]))


def misplaced(means: Mapping[str, float], above: Sequence[str] = ABOVE, below: Sequence[str] = BELOW) -> list[str]:
    """Returns a sentence for each pair of methods that are not in the order that they should be in.

    Args:
        means: the mean accuracy of each method.
        above: the methods that should be above; those without a mean are left out.
        below: the methods that should be below; those without a mean are left out.

    Raises:
        ValueError: if a group has no mean at all, so that there is nothing to check.

    >>> misplaced({"mvp": 0.7, "ifp": 0.6, "random_units": 0.75})
    ['mvp (70.0 %) is not above random_units (75.0 %)']
    """
    for group in (above, below):
        if not any(name in means for name in group):
            raise ValueError(f"there are no results of {list(group)}, only of {sorted(means)}; run some of them")
    return [
        f"{one} ({100 * means[one]:.1f} %) is not above {other} ({100 * means[other]:.1f} %)"
        for one in above
        for other in below
        if one in means and other in means and not means[one] > means[other]
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the means and what is not in order, and returns the exit status: 1 if something is not, 2 after an error.

    Args:
        arguments: of the command line; `None`: those of the process.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("results", help="results.csv of a run of configs/mvp.py")
    parser.add_argument("--above", default=",".join(ABOVE), help="methods that should be above, with commas")
    parser.add_argument("--below", default=",".join(BELOW), help="methods that should be below, with commas")
    given = parser.parse_args(arguments)
    above, below = given.above.split(","), given.below.split(",")
    try:
        with foreign_files.named(given.results):
            means = last_means(records.read_csv(given.results))
            wrong = misplaced(means, above, below)
    except ValueError as error:
        sys.stderr.write(f"error: {foreign_files.told(error)}\n")
        return 2
    lines = [f"{100 * mean:6.1f} %  {name}" for name, mean in means.items() if name in (*above, *below)]
    verdict = wrong or [f"{', '.join(n for n in above if n in means)}: above all others, as they should be"]
    sys.stdout.write("\n".join(["mean test accuracy after the last fine-tuning step", *lines, *verdict]) + "\n")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
