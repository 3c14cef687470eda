"""Compares the methods of several finished runs: one table of their targets together, with paired differences.

    python -m mvp_jax.experiments.comparison --ours=mvp_select DIR [DIR ...]

Each DIR is the workdir of a run of `configs/mvp.py` or `configs/compare.py`, or its `results.csv`. A target of one run
is another than that of the same name in another run: runs with other seeds have classes, banks and targets of their
own.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mvp_jax import reports
from mvp_jax.methods import registry
from mvp_jax.storage import foreign_files, records


def rows_of_runs(runs: Sequence[str | os.PathLike[str]]) -> list[dict[str, Any]]:
    """Returns the rows of several runs' results, whose targets are told apart by the run.

    Args:
        runs: workdirs of finished runs, or their files `results.csv`.

    Returns:
        The rows, with targets such as `0/target-0003`, of run 0.

    Raises:
        ValueError: for a run without results, or one that is given twice.
    """
    files = [Path(run) if Path(run).suffix == ".csv" else Path(run) / "results.csv" for run in runs]
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        raise ValueError(f"there is no {missing[0]}; give workdirs of finished runs, or their results.csv")
    if len({file.resolve() for file in files}) < len(files):
        raise ValueError(f"a run is given twice among {[str(run) for run in runs]}; its results would count twice")
    return [
        {**row, "target": f"{number}/{row['target']}"}
        for number, file in enumerate(files)
        for row in records.read_csv(file)
    ]


def table(rows: Sequence[dict[str, Any]], ours: str) -> str:
    """Returns a Markdown table of all methods, and of how far `ours` is ahead of each.

    Args:
        rows: results, as `rows_of_runs` returns them.
        ours: the method whose advantage over the others is asked for.

    Raises:
        ValueError: if no row is of this method.
    """
    there = sorted({str(row["method"]) for row in rows})
    if ours not in there:
        raise ValueError(f"no row is of {ours!r}; the runs have {there}")
    shown = [row for row in rows if row.get("view", "whole") == "whole"]
    return reports.to_markdown(reports.summary(shown, ours), ours, registry.titles())


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table of the runs that the command line names.

    Args:
        arguments: of the command line; `None`: those of the process.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="+", help="workdirs of finished runs, or their results.csv")
    parser.add_argument("--ours", default="mvp", help="the method that the others are compared with")
    given = parser.parse_args(arguments)
    try:
        with foreign_files.named(", ".join(given.runs)):
            sys.stdout.write(table(rows_of_runs(given.runs), given.ours))
    except ValueError as error:
        sys.stderr.write(f"error: {foreign_files.told(error)}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
