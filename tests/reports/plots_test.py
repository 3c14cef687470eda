"""Pictures hold the numbers they should; how they look was judged by eye."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from mvp_jax import graph, reports
from mvp_jax.reports import model_plots, plots


@pytest.fixture
def drawn(monkeypatch):
    """The figure that a plot function saves."""
    kept = []
    save = plots.save
    monkeypatch.setattr(plots, "save", lambda figure, path: (kept.append(figure), save(figure, path)))
    return kept


def note(figure):
    """The text below a figure."""
    return figure.get_supxlabel()


def test_overlap_has_a_line_a_bin_and_chance_and_layers_in_words(drawn, tmp_path):
    table = [
        {"group": f"stages/{d}/blocks/0/conv1", "depth": d, "bin": b, "label": f"{b} to 9", "pairs": 3 - 2 * b}
        | {"chance": 0.2 + 0.01 * d, "overlap": 0.8 - 0.1 * d + 0.05 * b, "low": float("nan"), "high": float("nan")}
        for d in range(4)
        for b in range(2)
    ]
    reports.plot_overlap_against_depth(table[::-1], tmp_path / "a.png", binned="number of shared classes")
    axes, keys = drawn[0].axes
    assert [t.get_text() for t in axes.get_yticklabels()] == [f"stage {d}, block 1" for d in (1, 2, 3, 4)]
    assert axes.get_ylabel() == "from input to output\n(convolution 1)"
    assert axes.get_ylim()[0] > axes.get_ylim()[1], "the input is at the top"
    want = [[0.8, 0.7, 0.6, 0.5], [0.85, 0.75, 0.65, 0.55], [0.2, 0.21, 0.22, 0.23]]
    np.testing.assert_allclose([line.get_xdata() for line in axes.lines], want)
    assert axes.lines[-1].get_linestyle() == "--"
    named = [t.get_text() for t in keys.get_legend().get_texts()]
    assert named[0] == "number of shared classes: 0 to 9, 3 pairs"
    assert named[1:] == ["number of shared classes: 1 to 9, 1 pair", "chance (random units)"]
    assert "no intervals" in note(drawn[0])
    with pytest.raises(ValueError, match="empty table"):
        reports.plot_overlap_against_depth([], tmp_path / "b.png")


def test_cost_shows_what_all_rows_know(drawn, tmp_path):
    costs = [
        {"name": "dense", "params": 2e6, "flops": 5e9, "bytes": 8e6},
        {"name": "slim", "params": 5e5, "flops": 1e9},
    ]
    model_plots.plot_cost(costs, tmp_path / "a.png")
    assert [p.get_title(loc="left") for p in drawn[0].axes] == ["parameters", "FLOPs an example"]
    assert [t.get_text() for t in drawn[0].axes[0].texts] == ["2 M", "500 k (25 %)"]
    assert note(drawn[0]) == ""
    for bad in ([], [{"name": "dense"}]):
        with pytest.raises(ValueError, match="nothing to draw"):
            model_plots.plot_cost(bad, tmp_path / "b.png")


@pytest.mark.parametrize(
    ("known", "shown", "says"),
    [
        (
            {"latency_quartiles_ms": (18.0, 22.0), "latency_clear": True},
            "20 (50 %) [18, 22]",
            "median and, in brackets",
        ),
        ({"latency_quartiles_ms": (15.0, 45.0), "latency_clear": False}, "20 [15, 45]", "quartiles overlap, or"),
        ({}, "20", "spread was not measured"),
    ],
)
def test_a_share_of_latency_is_claimed_only_where_it_is_clear(drawn, tmp_path, known, shown, says):
    dense = {"name": "dense", "latency_ms": 40.0} | ({"latency_quartiles_ms": (39.0, 41.0)} if known else {})
    model_plots.plot_cost([dense, {"name": "slim", "latency_ms": 20.0} | known], tmp_path / "a.png")
    (panel,) = drawn[0].axes
    assert [t.get_text() for t in panel.texts] == ["40 [39, 41]" if known else "40", shown]
    assert [tuple(line.get_xdata()) for line in panel.lines] == (
        [(39.0, 41.0), known["latency_quartiles_ms"]] if known else []
    )
    assert says in " ".join(note(drawn[0]).split())


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
    assert [t.get_text() for t in axes.get_xticklabels()] == ["1", "2"]
    assert [t.get_text() for t in axes.texts] == ["1: a, 4 units", "2: b, 5 units"]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["a", "b", "c"]
    marks = {
        (x, y, line.get_markerfacecolor() == "white")
        for line in axes.lines
        if line.get_marker() == "o"
        for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)
    }
    assert marks == {(1, 0, False), (1, 1, True), (2, 1, False), (2, 2, True)}
    nothing = graph.explain(lambda p, x: jax.nn.softmax(x @ p["a"]), params, jnp.ones((1, 3)))
    with pytest.raises(ValueError, match="no groups to draw"):
        model_plots.plot_coupling(nothing, tmp_path / "none.png")
