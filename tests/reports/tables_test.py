"""Statistics against scipy and loops, tables by what they say, pictures by what is drawn."""

import itertools

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
    assert one.targets == 1
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
        for m, c, values in (("mvp", 640, (0.5, 0.7, 0.6, 0.8)), ("ifp", 320, (0.4, 0.5, 0.6, 0.7)))
        for (t, s), a in zip((("a", 0), ("a", 1), ("b", 0), ("b", 1)), values, strict=True)
    ]
    best, other = reports.summary([*rows, {**rows[0], "split": "valid", "accuracy": 0.0}])
    assert (best["method"], other["method"]) == ("mvp", "ifp")
    assert best["accuracy"] == pytest.approx(0.65)
    assert best["sd"] == pytest.approx(np.std([0.55, 0.75], ddof=1))
    assert (best["n"], best["targets"], best["seeds"], best["cost_examples"]) == (4, 2, 2, 640)
    assert best["difference"] is best["wins"] is best["params"] is None
    assert other["difference"] == pytest.approx(0.1)  # a: (.1 + .2)/2, b: (0 + .1)/2
    half = 12.706 * np.std([0.15, 0.05], ddof=1) / np.sqrt(2)
    assert (other["low"], other["high"]) == pytest.approx((0.1 - half, 0.1 + half), abs=1e-4)
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
    assert lines[0] == "| ratio | steps | method | accuracy % | sd | mvp − it [95 %] | wins | n | examples | params |"
    assert len(lines[2:-2]) == 6
    assert {line.count("|") for line in lines[:-2]} == {11}
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
