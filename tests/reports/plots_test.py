"""Pictures hold the numbers they should; how they look was judged by eye."""

import itertools

import hypothesis
import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest
from hypothesis import strategies as st

from mvp_jax import graph
from mvp_jax.reports import model_plots, plots


@pytest.fixture
def drawn(monkeypatch):
    """The figure that a plot function saves."""
    kept = []
    save = plots.save
    monkeypatch.setattr(plots, "save", lambda figure, path: (kept.append(figure), save(figure, path)))
    return kept


def rows(methods, steps=(0, 25, 100), ratios=(0.5, 0.75)):
    for (k, m), t, s, r, j in itertools.product(enumerate(methods), range(2), range(2), ratios, steps):
        accuracy = 0.8 - 0.01 * k - 0.2 * r + 0.001 * j + 0.1 * t + 0.01 * s
        yield {"target": t, "seed": s, "method": m, "ratio": r, "steps": j, "split": "test", "accuracy": accuracy}


def test_every_method_has_its_line_and_name(drawn, tmp_path):
    methods = ["mvp", *(f"method_{k}" for k in range(19))]
    plots.plot_accuracy_against_steps(list(rows(methods)), tmp_path / "a.png", chance=0.1)
    assert matplotlib.image.imread(tmp_path / "a.png").std() > 0.01
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    panels = drawn[0].axes
    assert [p.get_title() for p in panels] == ["50 % of the units pruned", "75 % of the units pruned"]
    for panel, ratio in zip(panels, (0.5, 0.75), strict=True):
        assert len(panel.lines) == len(panel.texts) == 20
        last = panel.lines[-1]
        assert last.get_linewidth() == max(line.get_linewidth() for line in panel.lines), "ours is on top"
        want = [100 * (0.8 - 0.2 * ratio + 0.001 * j + 0.05 + 0.005) for j in (0, 25, 100)]
        np.testing.assert_allclose(last.get_ydata(), want)
        assert {t.get_text().split()[0] for t in panel.texts} == set(methods)
        coloured = {line.get_color() for line in panel.lines} - {plots.GREY}
        assert len(coloured) == 6
        heights = sorted(t.xyann[1] for t in panel.texts)
        assert np.diff(heights).min() > 0.5


def test_odd_results_are_drawn_too(drawn, tmp_path):
    plots.plot_accuracy_against_steps(list(rows(["mvp"], (0,), (0.5,)))[:1], tmp_path / "one.png", chance=0.5)
    long = [r for r in rows(["ifp", "slow"]) if (r["method"] == "slow") == (r["steps"] == 100)]
    plots.plot_accuracy_against_steps(long, tmp_path / "two.svg", highlight=["slow"])
    assert len(drawn[1].axes[0].lines) == 2
    assert (tmp_path / "two.svg").read_text().startswith("<?xml")
    with pytest.raises(ValueError, match="no rows of split 'valid'"):
        plots.plot_accuracy_against_steps(long, tmp_path / "three.png", split="valid")
    with pytest.raises(ValueError, match="'imp'"):
        plots.plot_accuracy_against_steps(long, tmp_path / "three.png", highlight=["imp"])
    assert not (tmp_path / "three.png").exists()


def test_overlap_has_a_line_a_bin_and_chance(drawn, tmp_path):
    table = [
        {"group": f"g{d}", "depth": d, "bin": b, "label": f"bin {b}", "pairs": 3, "chance": 0.2 + 0.01 * d}
        | {"overlap": 0.8 - 0.1 * d + 0.05 * b, "low": float("nan"), "high": float("nan")}
        for d in range(4)
        for b in range(2)
    ]
    plots.plot_overlap_against_depth(table[::-1], tmp_path / "a.png")
    axes = drawn[0].axes[0]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["g0", "g1", "g2", "g3"]
    want = [[0.8, 0.7, 0.6, 0.5], [0.85, 0.75, 0.65, 0.55], [0.2, 0.21, 0.22, 0.23]]
    np.testing.assert_allclose([line.get_ydata() for line in axes.lines], want)
    assert axes.lines[-1].get_linestyle() == "--"
    with pytest.raises(ValueError, match="empty table"):
        plots.plot_overlap_against_depth([], tmp_path / "b.png")


def test_cost_shows_what_all_rows_know(drawn, tmp_path):
    costs = [
        {"name": "dense", "params": 2e6, "flops": 5e9, "bytes": 8e6},
        {"name": "slim", "params": 5e5, "flops": 1e9},
    ]
    model_plots.plot_cost(costs, tmp_path / "a.png")
    assert [p.get_title() for p in drawn[0].axes] == ["parameters", "FLOPs an example"]
    assert [t.get_text() for t in drawn[0].axes[0].texts] == ["2 M", "500 k (25 %)"]
    for bad in ([], [{"name": "dense"}]):
        with pytest.raises(ValueError, match="nothing to draw"):
            model_plots.plot_cost(bad, tmp_path / "b.png")


@hypothesis.given(wanted=st.lists(st.floats(0, 1), min_size=1, max_size=25))
def test_labels_keep_their_order_and_distance(wanted):
    places = plots.spread(wanted, 0.04, 0.0, 1.0)
    order = np.argsort(wanted, kind="stable")
    assert np.all(np.diff(np.array(places)[order]) >= 0.04 - 1e-9)
    assert min(places) >= -1e-9
    assert max(places) <= 1 + 1e-9
    if len(wanted) == 1 or np.diff(np.sort(wanted)).min() >= 0.04:
        np.testing.assert_allclose(places, wanted, atol=1e-9)


def test_the_coupling_shows_who_makes_and_who_reads(drawn, tmp_path):
    def apply(params, x):
        return jax.nn.relu(jax.nn.relu(x @ params["a"]) @ params["b"]) @ params["c"]

    params = {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 5)), "c": jnp.ones((5, 2))}
    explanation = graph.explain(apply, params, jnp.ones((1, 3)))
    model_plots.plot_coupling(explanation, tmp_path / "coupling.png")
    axes = drawn[0].axes[0]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["a (4)", "b (5)"]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["a", "b", "c"]
    marks = {
        (x, y, line.get_markerfacecolor() == "white")
        for line in axes.lines
        if line.get_marker() == "o"
        for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)
    }
    assert marks == {(0, 0, False), (0, 1, True), (1, 1, False), (1, 2, True)}
    nothing = graph.explain(lambda p, x: jax.nn.softmax(x @ p["a"]), params, jnp.ones((1, 3)))
    with pytest.raises(ValueError, match="no groups to draw"):
        model_plots.plot_coupling(nothing, tmp_path / "none.png")
