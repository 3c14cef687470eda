"""Several runs in one table: what is paired with what."""

import csv

import numpy as np
import pytest
from scipy import stats

from mvp_jax.experiments import comparison

FIELDS = ("target", "seed", "method", "ratio", "steps", "split", "accuracy", "cost_examples", "params", "flops")


def run(folder, seed):
    """A run of two methods on three targets with two seeds; the same targets' names as in any other run."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    rows = [
        (
            f"target-{t}",
            s,
            method,
            0.5,
            10,
            split,
            round(float(rng.uniform(0.4, 0.6)) + 0.1 * (method == "mvp"), 4),
            10,
            20,
            30,
        )
        for t in range(3)
        for s in range(2)
        for method in ("mvp", "ifp")
        for split in ("valid", "test")
    ]
    with (folder / "results.csv").open("w", newline="") as file:
        csv.writer(file).writerows([FIELDS, *rows])
    return rows


def test_targets_of_several_runs_are_targets_of_their_own(tmp_path, capsys):
    made = [run(tmp_path / name, i) for i, name in enumerate("ab")]
    assert comparison.main([str(tmp_path / "a"), str(tmp_path / "b" / "results.csv"), "--ours=mvp"]) == 0
    printed = capsys.readouterr().out
    differences = []
    for rows in made:
        of = {(r[0], r[1], r[2]): r[6] for r in rows if r[5] == "test"}
        differences += [
            np.mean([of[f"target-{t}", s, "mvp"] - of[f"target-{t}", s, "ifp"] for s in (0, 1)]) for t in range(3)
        ]
    d = 100 * np.array(differences)
    half = stats.t.ppf(0.975, 5) * d.std(ddof=1) / np.sqrt(6)
    assert f"{d.mean():+.1f}" in printed
    assert f"[{d.mean() - half:+.1f}, {d.mean() + half:+.1f}]" in printed
    assert f"{int(np.sum(d > 0))}/6" in printed
    assert abs(d.mean()) > 1


def test_what_cannot_be_compared_is_said(tmp_path, capsys):
    run(tmp_path / "a", 0)
    for arguments, message in (
        ([str(tmp_path / "none")], "there is no"),
        ([str(tmp_path / "a"), str(tmp_path / "a" / "results.csv")], "given twice"),
        ([str(tmp_path / "a"), "--ours=mvp_select"], "no row is of 'mvp_select'"),
    ):
        assert comparison.main(arguments) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(ValueError, match="no row is of"):
        comparison.table(comparison.rows_of_runs([tmp_path / "a"]), "dense")
