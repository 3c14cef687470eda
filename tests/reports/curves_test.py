"""Accuracy against steps, sparsity and cost: pictures hold the numbers they should, and only seven names."""

import itertools

import matplotlib.image
import matplotlib.text
import numpy as np
import pytest

from mvp_jax import reports
from mvp_jax.reports import plots

ROLES = {"dense": "reference", "dice": "random"}


@pytest.fixture
def drawn(monkeypatch):
    """The figure that a plot function saves."""
    kept = []
    save = plots.save
    monkeypatch.setattr(plots, "save", lambda figure, path: (kept.append(figure), save(figure, path)))
    return kept


def rows(methods, shares=(0.5, 0.75), steps=(0, 25, 100), *, share="ratio", seeds=2):
    for (k, m), t, s, r, j in itertools.product(enumerate(methods), range(2), range(seeds), shares, steps):
        yield {
            "target": t,
            "seed": s,
            "method": m,
            share: r,
            "steps": j,
            "split": "test",
            "accuracy": 0.8 - 0.01 * k - 0.2 * r + 0.001 * j + 0.1 * t + 0.01 * s,
            "cost_flops": 1e9 * (1 + (k - 2) ** 2),
        }


def texts(axes):
    return [" ".join(t.get_text().split()) for t in axes.texts]


def overlapping(figure):
    """Texts of a figure that reach over its edge, and pairs of texts that lie on each other; ticks' labels left out."""
    figure.draw_without_rendering()
    words = [
        t for panel in figure.axes for t in (*panel.texts, panel._left_title, panel.xaxis.label, panel.yaxis.label)
    ]
    words += [t for panel in figure.axes if panel.get_legend() for t in panel.get_legend().get_texts()]
    words += [figure._suptitle, figure._supxlabel]
    # Of a name with a line to its point, only the name itself.
    boxes = [
        (t.get_text(), matplotlib.text.Text.get_window_extent(t)) for t in words if t.get_text() and t.get_visible()
    ]
    edge = figure.bbox
    outside = [name for name, b in boxes if b.x0 < -1 or b.x1 > edge.x1 + 1 or b.y0 < -1 or b.y1 > edge.y1 + 1]
    pairs = [
        (a, b)
        for (a, x), (b, y) in itertools.combinations(boxes, 2)
        if min(x.x1, y.x1) - max(x.x0, y.x0) > 1 and min(x.y1, y.y1) - max(x.y0, y.y0) > 2
    ]
    return outside, pairs


METHODS = ["mvp", "dense", *(f"method_{k}" for k in range(17)), "dice"]
NAMES = {"mvp": "MVP", "method_0": "iterative filter pruning, ten", "dice": "random units"}


def test_seven_methods_are_named_and_the_axis_is_zoomed_to_them(drawn, tmp_path):
    # One method without a name has collapsed: the axis is not stretched to show it.
    found = [r | {"accuracy": 0.1 if r["method"] == "method_16" else r["accuracy"]} for r in rows(METHODS)]
    reports.plot_accuracy_against_steps(found, tmp_path / "a.png", names=NAMES, roles=ROLES, chance=0.1)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    assert matplotlib.image.imread(tmp_path / "a.png").shape[1] == plots.WIDTH * 160
    panels = drawn[0].axes
    assert [p.get_title(loc="left") for p in panels] == ["50 % of the units pruned", "75 % of the units pruned"]
    for panel, ratio in zip(panels, (0.5, 0.75), strict=True):
        assert len(panel.lines) == len(METHODS)
        last = panel.lines[-1]
        assert last.get_linewidth() == max(line.get_linewidth() for line in panel.lines), "ours is on top"
        want = [100 * (0.8 - 0.2 * ratio + 0.001 * j + 0.05 + 0.005) for j in (0, 25, 100)]
        np.testing.assert_allclose(last.get_ydata(), want)
        # No method is without a role of its own but these: all are baselines, of which the first are the best.
        called = ["MVP", "dense", "iterative filter pruning, ten", *(f"method_{k}" for k in (1, 2, 3)), "random units"]
        ends = [100 * (0.8 - 0.01 * k - 0.2 * ratio + 0.1 + 0.05 + 0.005) for k in (0, 1, 2, 3, 4, 5, 19)]
        assert sorted(texts(panel)) == sorted(f"{n} {e:.1f}" for n, e in zip(called, ends, strict=True))
        low, high = panel.get_ylim()
        assert min(ends) - 10 - 4 < low < min(ends) - 10, "at 0 steps every method is 10 points below its end"
        assert max(ends) < high < max(ends) + 4
    assert "chance: 10 %, below the picture" in drawn[0].get_supxlabel()
    assert "thin grey: the 13 other methods, 1 of them below the picture" in drawn[0].get_supxlabel().replace("\n", " ")
    assert "band" not in drawn[0].get_supxlabel(), "the spread of two seeds is none"
    assert overlapping(drawn[0]) == ([], [])


def test_all_methods_are_named_if_asked_and_no_name_lies_on_another(drawn, tmp_path):
    found = list(rows(METHODS, (0.5,), seeds=3))
    names = {m: f"{m} with a long name, {k}" for k, m in enumerate(METHODS)}
    reports.plot_accuracy_against_steps(found, tmp_path / "a.png", names=names, roles=ROLES, every=True, chance=0.6)
    (panel,) = drawn[0].axes
    assert {t.rpartition(" ")[0] for t in texts(panel)} == {*names.values(), "chance: 60"}
    assert panel.lines[-1].get_linestyle() == "--", "chance is in view"
    assert "band: standard deviation over seeds, of mvp with a long name" in drawn[0].get_supxlabel().replace("\n", " ")
    assert overlapping(drawn[0]) == ([], [])


def test_odd_results_are_drawn_too(drawn, tmp_path):
    reports.plot_accuracy_against_steps(list(rows(["mvp"], (0.5,), (0,)))[:1], tmp_path / "one.png", chance=0.5)
    long = [r for r in rows(["ifp", "slow"]) if (r["method"] == "slow") == (r["steps"] == 100)]
    reports.plot_accuracy_against_steps(long, tmp_path / "two.svg", highlight=["slow"])
    assert len(drawn[1].axes[0].lines) == 2
    assert (tmp_path / "two.svg").read_text().startswith("<?xml")
    with pytest.raises(ValueError, match="no rows of split 'valid'"):
        reports.plot_accuracy_against_steps(long, tmp_path / "three.png", split="valid")
    with pytest.raises(ValueError, match="'imp'"):
        reports.plot_accuracy_against_steps(long, tmp_path / "three.png", highlight=["imp"])
    assert not (tmp_path / "three.png").exists()


def pruned_weights():
    found = list(rows(["isp", *(f"method_{k}" for k in range(8))], (0.5, 0.9), (10,), share="sparsity", seeds=3))
    level = rows(["unpruned"], (0.0,), (10,), share="sparsity", seeds=3)
    return [*found, *level]


def test_accuracy_against_sparsity_counts_the_unpruned_level_among_the_seven(drawn, tmp_path):
    found = pruned_weights()
    reports.plot_accuracy_against_sparsity(found, tmp_path / "a.png", chance=0.1, names={"isp": "ISP"})
    (axes,) = drawn[0].axes
    ours = max(axes.lines[:9], key=lambda line: line.get_linewidth())
    np.testing.assert_allclose(ours.get_ydata(), [100 * (0.86 - 0.2 * r + 0.01) for r in (0.5, 0.9)])
    called = {t.rpartition(" ")[0] for t in texts(axes)}
    assert called == {"ISP", "unpruned", *(f"method_{k}" for k in range(5))}
    assert axes.get_xlabel() == "weights removed, not to scale"
    assert "band: standard deviation over seeds, of ISP" in drawn[0].get_supxlabel().replace("\n", " ")
    assert overlapping(drawn[0]) == ([], [])
    with pytest.raises(ValueError, match="no rows of split"):
        reports.plot_accuracy_against_sparsity(found, tmp_path / "b.png", split="valid")
    with pytest.raises(ValueError, match="highlight"):
        reports.plot_accuracy_against_sparsity(found, tmp_path / "b.png", highlight=["none"])


def test_the_front_joins_what_no_method_of_its_cost_beats(drawn, tmp_path):
    found = pruned_weights()
    reports.plot_accuracy_against_cost(found, tmp_path / "c.png", names={"isp": "ISP"})
    *panels, keys = drawn[0].axes
    assert [p.get_title(loc="left") for p in panels] == ["50 % of the weights removed", "90 % of the weights removed"]
    front = panels[0].lines[0].get_xydata()
    # Methods 2, 1, 0 are ever better and ever dearer; the others are both worse and dearer. It ends at the dearest.
    np.testing.assert_allclose(front[:, 0], [1e9, 2e9, 5e9, 37e9])
    assert np.all(np.diff(front[:3, 1]) > 0)
    assert front[3, 1] == front[2, 1]
    named = [t.get_text() for t in keys.get_legend().get_texts()]
    assert named == ["ISP", *(f"method_{k}" for k in range(6)), "other methods", "Pareto front"]
    assert "the best accuracy that any method reaches at no more than" in drawn[0].get_supxlabel().replace("\n", " ")
    assert overlapping(drawn[0]) == ([], [])
    reports.plot_accuracy_against_cost(found, tmp_path / "all.png", every=True)
    assert set(texts(drawn[1].axes[0])) == {"isp", *(f"method_{k}" for k in range(8))}
    with pytest.raises(ValueError, match="cost"):
        reports.plot_accuracy_against_cost([{**r, "cost_flops": None} for r in found], tmp_path / "b.png")
