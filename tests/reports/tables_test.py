"""Statistics against scipy and loops, tables by what they say, pictures by what is drawn."""

import itertools
import re

import hypothesis
import numpy as np
import pytest
import rich.console
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from mvp_jax import reports

METHODS = ("mvp", "ifp", "random")


def table(targets=4, seeds=3, ratios=(0.5,), steps=(0, 25), methods=METHODS, seed=0):
    rng = np.random.default_rng(seed)
    of_target = rng.normal(0, 0.05, targets)
    return [
        {
            "target": f"t{t}",
            "seed": s,
            "method": m,
            "ratio": r,
            "steps": j,
            "split": "test",
            "accuracy": 0.6 + of_target[t] - 0.05 * methods.index(m) + 0.001 * j + rng.normal(0, 0.02),
            "cost_examples": 64 * j,
            "params": 1000,
            "flops": None,
        }
        for t, s, m, r, j in itertools.product(range(targets), range(seeds), methods, ratios, steps)
    ]


def test_paired_is_a_t_test_over_targets_not_over_rows():
    rows = table()
    got = reports.paired(rows, "mvp", "ifp", steps=25, ratio=0.5)

    def mean(method, target):
        return np.mean([r["accuracy"] for r in rows if (r["method"], r["target"], r["steps"]) == (method, target, 25)])

    a, b = (np.array([mean(m, f"t{t}") for t in range(4)]) for m in ("mvp", "ifp"))
    want = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert got.mean == pytest.approx(np.mean(a - b))
    assert (got.low, got.high) == pytest.approx((want.low, want.high))
    assert got[3:] == (12, 4, int(np.sum(a > b)))
    assert got.high - got.low > 0.005
    # Writing every seed down twice as often must not make the interval narrower.
    more = rows + [{**r, "seed": r["seed"] + 100} for r in rows]
    assert reports.paired(more, "mvp", "ifp", steps=25)[:3] == pytest.approx(got[:3])
    swapped = reports.paired(rows, "ifp", "mvp", steps=25)
    assert (swapped.mean, swapped.low) == pytest.approx((-got.mean, -got.high))


def test_paired_uses_pairs_only():
    rows = [r for r in table() if not (r["method"] == "ifp" and r["target"] == "t0" and r["seed"] > 0)]
    got = reports.paired(rows, "mvp", "ifp", steps=0)
    assert (got.n, got.targets) == (10, 4)
    one = reports.paired([r for r in rows if r["target"] == "t1"], "mvp", "ifp", steps=0)
    assert (one.n, one.targets) == (3, 1), "three seeds of one target are no three independent pairs"
    assert np.isfinite(one.mean)
    assert np.isnan(one.low)
    later = reports.paired(rows, "mvp", "ifp", steps=0, their_steps=25)
    assert later.mean < got.mean
    with pytest.raises(ValueError, match="two rows of 'mvp'"):
        reports.paired(rows, "mvp", "ifp")
    with pytest.raises(ValueError, match="no target and seed with both 'mvp' and 'imp'"):
        reports.paired(rows, "mvp", "imp", steps=0)


def test_summary_by_hand():
    def row(method, target, seed, accuracy):
        return {"method": method, "target": target, "seed": seed, "accuracy": accuracy, "ratio": 0.5, "steps": 0}

    rows = [
        {**row(m, t, s, a), "split": "test", "cost_examples": c}
        for m, c, values in (("mvp", 640, (0.5, 0.7, 0.6, 0.8, 0.7, 0.9)), ("ifp", 320, (0.4, 0.5, 0.6, 0.7, 0.7, 0.9)))
        for (t, s), a in zip(itertools.product("abc", (0, 1)), values, strict=True)
    ]
    best, other = reports.summary([*rows, {**rows[0], "split": "valid", "accuracy": 0.0}])
    assert (best["method"], other["method"]) == ("mvp", "ifp")
    assert best["accuracy"] == pytest.approx(0.7)
    assert best["sd"] == pytest.approx(np.std([0.6, 0.8], ddof=1))
    assert (best["n"], best["targets"], best["seeds"], best["cost_examples"]) == (6, 3, 2, 640)
    assert best["difference"] is best["wins"] is best["params"] is None
    mean = (0.15 + 0.05 + 0.0) / 3  # a: (.1 + .2)/2, b: (0 + .1)/2, c: 0
    assert other["difference"] == pytest.approx(mean)
    half = 4.302653 * np.std([0.15, 0.05, 0.0], ddof=1) / np.sqrt(3)
    assert (other["low"], other["high"]) == pytest.approx((mean - half, mean + half), abs=1e-6)
    assert other["wins"] == 2
    with pytest.raises(ValueError, match=r"there are \['test'\]"):
        reports.summary(rows, split="valid")


def test_summary_is_sorted_and_says_when_nothing_is_paired():
    rows = table(ratios=(0.75, 0.5))
    rows += [{**r, "method": "long", "steps": 1000} for r in rows if r["method"] == "ifp" and r["steps"] == 25]
    got = reports.summary(rows)
    assert len(got) == 2 * (3 * 2 + 1)
    assert [(r["ratio"], r["steps"]) for r in got] == sorted((r["ratio"], r["steps"]) for r in got)
    for r, after in itertools.pairwise(got):
        assert (r["ratio"], r["steps"]) != (after["ratio"], after["steps"]) or r["accuracy"] >= after["accuracy"]
    assert all((r["difference"] is None) == (r["method"] in ("mvp", "long")) for r in got)


def test_tables_say_the_same(tmp_path):
    rows = reports.summary(table())
    lines = reports.to_markdown(rows).splitlines()
    headings = ["ratio", "steps", "method", "accuracy %", "sd", "mvp − it [95 %]", "wins", "n", "examples", "params"]
    assert lines[0] == f"| {' | '.join(headings)} |"
    assert lines[8] == ""
    assert {line.count("|") for line in lines[:8]} == {11}
    # Every column but the methods' is explained below the table, in order.
    explained = [line.split("`")[1] for line in lines[9:]]
    assert explained == ["ratio", "steps", "accuracy %", "sd", "mvp − it", "wins", "n", "examples", "params"]
    worst = next(r for r in rows if r["method"] == "random" and r["steps"] == 0)
    assert worst["low"] > 0, "the planted difference of 10 points"
    shown = f"**{100 * worst['difference']:+.1f}** [{100 * worst['low']:+.1f}, {100 * worst['high']:+.1f}] | 4/4"
    assert shown in next(line for line in lines if "random" in line)

    console = rich.console.Console(width=80, record=True, file=(tmp_path / "out").open("w"))
    console.print(reports.to_terminal(rows, title="digits"))
    text = console.export_text()
    console.file.close()
    assert shown.split(" |")[0].replace("*", "") in text
    assert "…" not in text


@pytest.mark.parametrize("targets", [1, 2, 3])
def test_an_interval_needs_three_targets(targets, tmp_path):
    """Of two targets Student's interval is 12.7 standard errors wide each way: tables printed +-158 points."""
    rows = reports.summary(table(targets=targets, seeds=5, steps=(0,)))
    others = [r for r in rows if r["method"] != "mvp"]
    assert [np.isfinite(r["low"]) for r in others] == [targets == 3] * 2
    assert all(np.isfinite(r["difference"]) for r in others)
    text = reports.to_markdown(rows)
    console = rich.console.Console(width=80, record=True, file=(tmp_path / "out").open("w"))
    console.print(reports.to_terminal(rows))
    shown = console.export_text()
    console.file.close()
    assert "…" not in shown
    if targets == 3:
        assert "| mvp − it [95 %] |" in text
        assert "no interval" not in text + shown
    else:
        assert f"| mvp − it ({targets} target{'s' * (targets > 1)}, no interval) |" in text
        assert not re.search(r"\d \[", text), "a number with an interval"
        assert "an interval needs at least 3 targets" in text


def test_a_row_of_too_few_targets_says_so_where_others_have_an_interval():
    rows = [r for r in table(steps=(0,)) if r["method"] != "ifp" or r["target"] in ("t0", "t1")]
    lines = {
        line.split(" | ")[2]: line for line in reports.to_markdown(reports.summary(rows)).splitlines() if "|" in line
    }
    assert "(2 targets, no interval)" in lines["ifp"]
    assert "[" in lines["random"]


def test_methods_have_their_names_and_a_table_says_how_to_type_them(tmp_path):
    rows = [{("sparsity" if k == "ratio" else k): v for k, v in r.items()} for r in table(steps=(25,))]
    names = {"mvp": "MVP", "ifp": "IFP, same steps"}
    found = reports.summary(rows)
    assert {r["sparsity"] for r in found} == {0.5}
    text = reports.to_markdown(found, names=names)
    assert text.startswith("| sparsity | steps | method | accuracy % | sd | MVP − it [95 %] |")
    for name in ("MVP", "IFP, same steps", "random"):
        assert f"| 25 | {name} |" in text
    assert text.count("`mvp`") == 1
    assert "| method | its name in a config |\n|:--|:--|\n| MVP | `mvp` |\n| IFP, same steps | `ifp` |\n" in text
    assert "`random`" not in text, "a name that is no other than its title needs no line"
    assert "- `sparsity`: the share of the weights" in text
    assert "explained" not in reports.to_markdown(found, names=names, explained=False)
    assert "`mvp`" not in reports.to_markdown(found, names=names, explained=False)
    assert reports.to_markdown(found, value="100 × f1").startswith("| sparsity | steps | method | 100 × f1 |")
    shown = [str(cell) for column in reports.to_terminal(found, names=names).columns for cell in column.cells]
    assert "IFP, same steps" in shown
    got = reports.paired(rows, "mvp", "ifp", sparsity=0.5)
    assert got.n == 12
    with pytest.raises(ValueError, match=r"at steps None, sparsity 0.9, split 'test'; .*\(method, sparsity, steps"):
        reports.paired(rows, "mvp", "ifp", sparsity=0.9)


def test_overlap_of_tasks_by_hand():
    units = {
        "late": np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 1, 1, 0]], bool),
        "early": np.ones((4, 3), bool),
    }
    similarity = np.full((4, 4), -1.0)
    similarity[0, 1], similarity[1, 0] = 3.0, 1.0  # asymmetric: counts as 2
    similarity[2, 3] = similarity[3, 2] = 2.0
    got = reports.overlap_table(units, similarity, [0.5], order=["early", "late"])
    assert [(r["group"], r["depth"], r["bin"], r["pairs"]) for r in got] == [
        ("early", 0, 0, 4),
        ("early", 0, 1, 2),
        ("late", 1, 0, 4),
        ("late", 1, 1, 2),
    ]
    assert [r["overlap"] for r in got] == pytest.approx([1, 1, (0 + 1 / 3 + 0 + 1 / 3) / 4, (1 + 1 / 3) / 2])
    # Two of four at random: 0, 1 or 2 shared with probabilities 1/6, 4/6, 1/6.
    assert [r["chance"] for r in got] == pytest.approx([1, 1, 4 / 6 / 3 + 1 / 6, 4 / 6 / 3 + 1 / 6])
    assert got[3]["label"].startswith("more similar")
    assert [np.isfinite(r["low"]) for r in got] == [True, False, True, False], "two pairs have no interval"


@hypothesis.given(
    kept=hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=7)), bins=st.integers(1, 4)
)
def test_overlap_equals_a_loop_over_pairs(kept, bins):
    t = len(kept)
    near = np.random.default_rng(0).permutation(t * t).reshape(t, t).astype(float)
    near = near + near.T
    got = reports.overlap_table({"g": kept}, near, bins)
    pairs = [
        (near[i, j], (kept[i] & kept[j]).sum() / (kept[i] | kept[j]).sum() if (kept[i] | kept[j]).any() else 1.0)
        for i, j in itertools.combinations(range(t), 2)
    ]
    assert sum(r["pairs"] for r in got) == len(pairs)
    assert sum(r["pairs"] * r["overlap"] for r in got) == pytest.approx(sum(o for _, o in pairs))
    in_order = [o for _, o in sorted(pairs)]
    first = got[0]["pairs"]
    assert len(set(near[np.triu_indices(t, 1)])) < len(pairs) or got[0]["overlap"] == pytest.approx(
        np.mean(in_order[:first])
    )
    for r in got:
        assert np.isnan(r["low"]) or 0 <= r["low"] <= r["overlap"] + 1e-9 <= r["high"] + 2e-9 <= 1 + 3e-9


def test_overlap_of_random_units_is_at_chance_and_its_interval_covers_it():
    """Bands must not pretend that the pairs of one task are independent."""
    rng = np.random.default_rng(0)
    covered, naive = 0, 0
    for _ in range(100):
        # Tasks keep different numbers of units, which ties all pairs of a task together.
        share = rng.uniform(0.2, 0.8, (12, 1))
        r = reports.overlap_table({"g": rng.uniform(size=(12, 400)) < share}, np.eye(12), 1)[0]
        assert r["overlap"] == pytest.approx(r["chance"], abs=0.03)
        p = rng.uniform(0.2, 0.8, (2, 20000))
        true = np.mean(p[0] * p[1] / (p[0] + p[1] - p[0] * p[1]))
        covered += r["low"] <= true <= r["high"]
        naive += abs(r["overlap"] - true) <= 1.96 * r["sd"] / np.sqrt(r["pairs"])
    assert covered >= 85
    assert naive <= 75


def test_overlap_refuses_what_does_not_fit():
    kept = {"g": np.ones((3, 4), bool)}
    for units, near in ((kept, np.ones((2, 2))), ({"g": np.ones(3, bool)}, np.ones((3, 3))), ({}, np.ones((3, 3)))):
        with pytest.raises(ValueError, match="units of shapes"):
            reports.overlap_table(units, near)
    with pytest.raises(ValueError, match="order"):
        reports.overlap_table(kept, np.ones((3, 3)), order=["h"])
