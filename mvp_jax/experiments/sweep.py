"""Runs a job at many settings, one after the other in one process, and makes one table of all runs.

    python -m mvp_jax.main --config=configs/sweep.py --workdir=DIR
    python -m mvp_jax.experiments.sweep RUN RUN ... --out=DIR

    DIR/points/NAME/                   the run of one point (one combination of settings), as if it ran by itself
    DIR/summary.csv, .md, .png         settings and accuracies, a row for each point and method

Runs of one process share compiled programs, so what is traced in this library (learning rates, sparsities, numbers of
steps, seeds) compiles once for all points. The second command makes the table of any finished runs.
"""

import argparse
import collections
import functools
import itertools
import json
import math
import os
import pathlib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from mvp_jax.experiments import command_line, sweep_report
from mvp_jax.parallel import processes
from mvp_jax.storage import files, json_files, records

_LATER = {
    "pretrain": (
        "bank",
        "chunk",
        "examples",
        "gradual",
        "isp",
        "keep_rounds",
        "masks_alone",
        "methods",
        "ours",
        "pattern",
        "prune",
        "rates",
        "reference",
        "reptile",
        "round_steps",
        "select",
        "sparsities",
        "steps",
        "targets",
        "templates",
        "train",
        "tune",
        "vote",
        "weak",
    ),
    "bank": ("bank.similarity", "methods", "rates", "reptile", "select", "steps", "targets", "vote", "weak"),
}
"""Settings that are used only after the pre-training, or the bank, is made: runs that differ in no others share it."""

_FINISHED = "finished.json"


def over(config: ConfigDict, values: Mapping[str, Sequence[Any]], *, apart: Sequence[str] = ()) -> ConfigDict:
    """Makes the config of a job that of a sweep over all combinations of some values, in place, and returns it.

    Args:
        config: the config of any job.
        values: by path, as `{"train.learning_rate": (1e-3, 3e-3), "seed": (0, 1)}`. Points that differ in `seed` alone
            are repetitions.
        apart: paths whose values do not compete: the best point is chosen for each of their values.

    >>> points(over(ConfigDict({"job": "mvp", "vote": {"k": 1}, "seed": 0}), {"vote.k": (1, 5)}))
    {'vote.k=1': {'vote.k': 1}, 'vote.k=5': {'vote.k': 5}}
    """
    config.sweep = ConfigDict()
    config.sweep.job = config.job
    config.sweep.over = tuple((path, tuple(those)) for path, those in values.items())
    config.sweep.apart = tuple(apart)
    config.job = "sweep"
    return config


def points(config: ConfigDict) -> dict[str, dict[str, Any]]:
    """Returns the values of every point of a sweep's config, `{point: {path: value}}`.

    Raises:
        ValueError: if `sweep.over` is no tuple of `(path, (value, ...))` or repeats a path or a value, or `sweep.apart`
            names a path that is not in it.
    """
    given = config.sweep.over
    shaped = all(isinstance(p, tuple | list) and len(p) == 2 and isinstance(p[0], str) for p in given)
    if not given or not shaped or not all(isinstance(v, tuple | list) and v for _, v in given):
        raise ValueError(f"sweep.over is {given!r}; give (path, (value, ...)) pairs, as (('seed', (0, 1)),)")
    paths = [path for path, _ in given]
    combined = [dict(zip(paths, found, strict=True)) for found in itertools.product(*(v for _, v in given))]
    named = {_name(values): values for values in combined}
    if len(set(paths)) < len(paths) or len(named) < len(combined):
        raise ValueError(f"sweep.over repeats a path or a value: {given!r}")
    if strange := sorted(set(config.sweep.apart) - set(paths)):
        raise ValueError(f"sweep.apart names {strange}, which sweep.over does not vary; it has {paths}")
    return named


def _name(values: Mapping[str, Any]) -> str:
    """Returns the name of a point's folder; it does not depend on other points.

    >>> _name({"seed": 0, "sparsities": (0.5, 0.9), "model.name": "a/b"})
    'seed=0,sparsities=0.5-0.9,model.name=a_b'
    """

    def text(value: Any) -> str:
        found = "-".join(map(text, value)) if isinstance(value, tuple | list) else str(value)
        return re.sub(r"[^\w.+-]", "_", found) or "none"

    return ",".join(f"{path}={text(value)}" for path, value in values.items())


def configs(config: ConfigDict) -> dict[str, ConfigDict]:
    """Returns the config of every point of a sweep's config, by the point's name.

    Raises:
        ValueError: for a wrong form of `sweep.over` or `sweep.apart`, an unknown path, or a value of another type.
    """
    base = ConfigDict(config.copy_and_resolve_references())
    with base.unlocked():
        base.job = base.sweep.job
        del base.sweep
    return {name: command_line.changed(base, values) for name, values in points(config).items()}


def run(
    config: ConfigDict,
    work: pathlib.Path,
    *,
    check: Callable[[ConfigDict, pathlib.Path], Any],
    job: Callable[[ConfigDict, pathlib.Path, Mapping[str, pathlib.Path]], list[dict[str, Any]]],
) -> list[dict[str, Any]]:
    """Runs every point that is not finished, writes the summary, and returns its rows.

    Args:
        config: the config of the sweep.
        work: the sweep's folder; a sweep may be continued there with more points.
        check: raises `ValueError` for a config that cannot run in a folder; called for all points before any runs.
        job: `(config, folder, made) -> rows`: runs a config in a folder; `made` gives the folders of the runs whose
            pre-training and bank it shares, `{"pretrain": folder, "bank": folder}`.

    Raises:
        ValueError: for a point whose config cannot run; the message names the point.
    """
    found = configs(config)
    for name, own in found.items():
        try:
            check(own, work / "points" / name)
        except ValueError as error:
            raise ValueError(f"point {name}: {error}") from error
    folders = {name: work / "points" / name for name in found}
    shared = sharing(found)
    processes.only_first("sweep", lambda: files.writable(work))
    for number, (name, own) in enumerate(found.items(), 1):
        if files.exists(folders[name] / _FINISHED):
            continue
        if processes.first():
            records.say(f"point {number} of {len(found)}: {name}")
        job(own, folders[name], {stage: folders[first] for stage, first in shared[name].items()})
        processes.only_first("point", functools.partial(records.write_json, folders[name] / _FINISHED, {"point": name}))
    rows = summarise(list(folders.values()), [path for path, _ in config.sweep.over], apart=config.sweep.apart)
    processes.only_first("summary", lambda: sweep_report.write(rows, work))
    return rows


def sharing(found: Mapping[str, ConfigDict]) -> dict[str, dict[str, str]]:
    """Returns for every point the first one with the same pre-training, and with the same bank.

    Args:
        found: the config of every point, by the point's name.

    Returns:
        `{point: {"pretrain": point, "bank": point}}`; a point that shares with no earlier one names itself.
    """
    flat = {name: _flat(json.loads(own.to_json_best_effort())) for name, own in found.items()}

    def alike(a: str, b: str, later: Sequence[str]) -> bool:
        differ = [path for path in flat[a] | flat[b] if flat[a].get(path) != flat[b].get(path)]
        return all(any(path == p or path.startswith(f"{p}.") for p in later) for path in differ)

    return {
        name: {stage: next(f for f in found if alike(f, name, later)) for stage, later in _LATER.items()}
        for name in found
    }


def summarise(
    folders: Sequence[str | os.PathLike[str]], paths: Sequence[str] | None = None, *, apart: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Returns a summary of finished runs: a row for each setting, ratio (or sparsity) and method.

    Args:
        folders: the runs' folders, each with `config.json` and `results.csv`.
        paths: the settings to show; `None`: those in which the runs differ. Runs that differ in `seed` alone are
            repetitions.
        apart: the settings whose values do not compete: the best row is chosen for each of their values.

    Returns:
        Rows with the settings, `method`, `ratio` or `sparsity` (whichever the runs have), `steps` (the last number of
        fine-tuning steps), `valid` (accuracy on the validation split, in [0, 1], mean over targets and seeds), `sd` (of
        the seeds' means; `None` for one seed), `seeds` (their number), `chosen` (whether the row is the best on
        validation among all settings of its method and ratio), and, for chosen rows only, `test` and `test_sd` on the
        test split.

    Raises:
        ValueError: if a folder holds no finished run, or the runs share no settings to compare.
    """
    runs = [_read(files.path(folder)) for folder in folders]
    if not runs:
        raise ValueError("no runs to summarise; give the folders of finished ones")
    if paths is None:
        every = dict.fromkeys(path for settings, _ in runs for path in settings)
        paths = [p for p in every if len({json.dumps(settings.get(p)) for settings, _ in runs}) > 1]
    shown = [path for path in paths if path != "seed"]
    groups: dict[tuple[Any, ...], list[tuple[Any, records.Row]]] = collections.defaultdict(list)
    for settings, rows in runs:
        last: dict[tuple[Any, ...], int] = {}
        for row in rows:
            at = (records.share(row), row["method"])
            last[at] = max(last.get(at, 0), row["steps"])
        own = tuple(json.dumps(settings.get(path)) for path in shown)
        for row in rows:
            at = (records.share(row), row["method"])
            if row["steps"] == last[at] and row.get("view", "whole") == "whole":
                groups[own, *at].append((settings.get("seed"), row))
    removed = records.share_name([row for _, rows in runs for row in rows])
    table = [_line(shown, own, {removed: share}, method, members) for (own, share, method), members in groups.items()]
    best: dict[Any, dict[str, Any]] = {}
    for line in table:
        among = (line[removed], line["method"], *(json.dumps(line[path]) for path in apart))
        if among not in best or line["valid"] > best[among]["valid"]:
            best[among] = line
    for line in table:
        line["chosen"] = any(line is b for b in best.values())
        if not line["chosen"]:
            line["test"] = line["test_sd"] = None
    return sorted(table, key=lambda r: (r[removed], r["method"], -r["valid"]))


def _read(folder: pathlib.Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    lacking = [name for name in ("config.json", "results.csv") if not files.exists(folder / name)]
    if lacking:
        raise ValueError(
            f"{folder} is no finished run: it lacks {' and '.join(lacking)}; run it first, or leave it out"
        )
    rows = records.read_csv(folder / "results.csv")
    if not rows:
        raise ValueError(f"{folder / 'results.csv'} has no rows; run it again, or leave it out")
    return _flat(json_files.read_json(folder / "config.json")), rows


def _flat(tree: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Returns the leaves of a nested dict by path.

    >>> _flat({"a": {"b": 1}, "c": 2})
    {'a.b': 1, 'c': 2}
    """
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= _flat(value, f"{before}{name}.") if isinstance(value, Mapping) else {before + name: value}
    return found


def _line(
    shown: Sequence[str],
    own: tuple[str, ...],
    removed: Mapping[str, float],
    method: str,
    members: Sequence[tuple[Any, records.Row]],
) -> dict[str, Any]:
    line = dict(zip(shown, map(json.loads, own), strict=True)) | {"method": method, **removed}
    line["steps"] = members[0][1]["steps"]
    for split, name, spread in (("valid", "valid", "sd"), ("test", "test", "test_sd")):
        by_seed: dict[Any, list[float]] = collections.defaultdict(list)
        for seed, row in members:
            if row["split"] == split:
                by_seed[seed, row["seed"]].append(row["accuracy"])
        means = [float(np.mean(v)) for v in by_seed.values()]
        line[name] = float(np.mean(means)) if means else math.nan
        line[spread] = float(np.std(means, ddof=1)) if len(means) > 1 else None
        if split == "valid":
            line["seeds"] = len(means)
    return line


def main(argv: Sequence[str] | None = None) -> None:
    """Makes the summary of finished runs, as a command: shows it, and writes it if `--out` names a folder."""
    parser = argparse.ArgumentParser(
        prog="python -m mvp_jax.experiments.sweep", description="One table of finished runs."
    )
    parser.add_argument("runs", nargs="+", help="folders of finished runs")
    parser.add_argument(
        "--out", default="", help="where to write summary.csv, .md and .png; without it the table is shown"
    )
    given = parser.parse_args(argv)
    try:
        rows = summarise(given.runs)
        if given.out:
            sweep_report.write(rows, given.out)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    sys.stdout.write(sweep_report.to_markdown(rows))


if __name__ == "__main__":
    main()


__all__ = ["configs", "over", "points", "run", "sharing", "summarise"]
