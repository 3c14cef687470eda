"""Curves against a plain loop that masks with NumPy; what they cost; the table and the picture made of them."""

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest

from mvp_jax.compact import sensitivity
from mvp_jax.core.types import Variables
from mvp_jax.core.units import Group, Slot
from mvp_jax.reports import model_plots, plots

PAIRS = Group(  # unit c is the columns 2c and 2c + 1
    name="pairs",
    size=4,
    slots=(
        Slot(path="one/kernel", axis=1, scored=True, step=2, repeats=((2, 1),), length=8),
        Slot(path="one/bias", axis=0, scored=True, step=2, repeats=((2, 1),), length=8),
        Slot(path="scale", axis=0, step=2, repeats=((2, 1),), length=8, collection="rest"),
        Slot(path="two/kernel", axis=0, step=2, repeats=((2, 1),), length=8),
    ),
    kind="head",
)
OUTER = Group(
    name="outer",
    size=10,
    slots=(Slot(path="two/kernel", axis=1, scored=True), Slot(path="three/kernel", axis=0)),
    kind="neuron",
)
GROUPS = (PAIRS, OUTER)
SHAPES = {"one/kernel": (3, 8), "one/bias": (8,), "two/kernel": (8, 10), "three/kernel": (10, 2), "scale": (8,)}
X = np.random.default_rng(9).normal(size=(16, 3))
RATIOS = (0.5, 0.0, 0.8, 0.04, 0.25, 0.5)


def arrays(seed=0):
    rng = np.random.default_rng(seed)
    return {path: rng.normal(size=shape).astype(np.float32) for path, shape in SHAPES.items()}


def variables(flat):
    nested = {}
    for path in ("one/kernel", "one/bias", "two/kernel", "three/kernel"):
        layer, name = path.split("/")
        nested.setdefault(layer, {})[name] = jnp.asarray(flat[path])
    return Variables(nested, {"scale": jnp.asarray(flat["scale"])})


def metric(v):
    h = jax.nn.relu(v.rest["scale"] * (X @ v.params["one"]["kernel"] + v.params["one"]["bias"]))
    return jnp.mean(jnp.square(jnp.tanh(h @ v.params["two"]["kernel"]) @ v.params["three"]["kernel"]))


def by_numpy(flat):
    a = {path: x.astype(np.float64) for path, x in flat.items()}
    h = np.maximum(a["scale"] * (X @ a["one/kernel"] + a["one/bias"]), 0)
    return np.mean((np.tanh(h @ a["two/kernel"]) @ a["three/kernel"]) ** 2)


def scores(seed=1):
    rng = np.random.default_rng(seed)  # with ties
    return {g.name: jnp.asarray(rng.integers(0, 4, g.size), jnp.float32) for g in GROUPS} | {"other": jnp.ones(3)}


def plain_loop(flat, score, ratios, min_units=1):
    found = {"pairs": [], "outer": []}
    for name in found:
        size = len(score[name])
        for ratio in ratios:
            order = sorted(range(size), key=lambda c, s=score[name]: (s[c], -c))  # of equals the first stays
            masked = {path: x.copy() for path, x in flat.items()}
            for c in order[: min(round(ratio * size), size - min_units)]:
                if name == "pairs":
                    for i in (2 * c, 2 * c + 1):
                        masked["one/kernel"][:, i] = 0
                        masked["one/bias"][i] = 0
                        masked["two/kernel"][i, :] = 0
                else:
                    masked["two/kernel"][:, c] = 0
                    masked["three/kernel"][c, :] = 0
            found[name].append(by_numpy(masked))
    return found


@pytest.mark.parametrize("chunk", [None, 1, 2, 3, 100])
def test_curves_are_those_of_a_plain_loop(chunk):
    flat, score = arrays(), scores()
    got = sensitivity.curves(metric, variables(flat), GROUPS, score, RATIOS, chunk=chunk)
    want = plain_loop(flat, {k: np.asarray(v) for k, v in score.items()}, RATIOS)
    assert list(got) == ["pairs", "outer"]
    for name, values in want.items():
        np.testing.assert_allclose(got[name], values, rtol=1e-5)
        assert np.std(values) > 0.01 * np.mean(values)
    assert want["outer"][4] != want["outer"][0]


def test_any_tree_of_arrays_and_the_floor_of_units():
    flat, score = arrays(3), scores(4)
    plain = {path: jnp.asarray(x) for path, x in flat.items()}  # no entry `params`: all of it are parameters

    def of_plain(v):
        return metric(variables(v))

    group = Group(name="pairs", size=4, slots=tuple(s for s in PAIRS.slots if s.collection == "params"))
    got = sensitivity.curves(of_plain, plain, [group], score, np.array([0.75, 0.9]), min_units=3)
    want = plain_loop(flat, {k: np.asarray(v) for k, v in score.items()}, (0.25, 0.25))
    np.testing.assert_allclose(got["pairs"], want["pairs"], rtol=1e-5)
    assert sensitivity.curves(metric, variables(flat), (), {}, (0.5,)) == {}


def test_where_nothing_goes_the_value_is_the_dense_one():
    v = variables(arrays())
    got = sensitivity.curves(metric, v, GROUPS, scores(), RATIOS)
    for name, at in (("pairs", (1, 3)), ("outer", (1, 3))):
        assert [float(got[name][i]) for i in at] == [float(metric(v))] * 2
        assert float(got[name][0]) != float(metric(v))
        assert float(got[name][0]) == float(got[name][5])
    whole = sensitivity.curves(metric, v, GROUPS, scores(), (0.0, 0.01))
    assert all(np.array_equal(line, [metric(v)] * 2) for line in whole.values())


def test_a_group_of_zeros_is_flat():
    flat = arrays()
    for path in ("one/kernel", "one/bias"):
        flat[path][...] = 0
    v = variables(flat)
    flat["one/bias"][...] = 1.0  # beside it the same network with life in it
    ratios = (0, 0.25, 0.5, 0.75)
    dead, alive = (sensitivity.curves(metric, w, [PAIRS], scores(), ratios)["pairs"] for w in (v, variables(flat)))
    np.testing.assert_array_equal(dead, dead[0])
    assert np.ptp(alive) > 0.1
    flat["two/kernel"][:, [1, 4, 7]] = 0  # three dead neurons of ten, and the scores know it
    score = {"outer": jnp.asarray(np.linalg.norm(flat["two/kernel"], axis=0))}
    part = sensitivity.curves(metric, variables(flat), [OUTER], score, (0, 0.1, 0.3, 0.6))["outer"]
    np.testing.assert_allclose(part[:3], part[0], rtol=1e-6)
    assert abs(part[3] / part[0] - 1) > 0.01


def test_one_program_a_group_serves_all_scores_and_weights():
    traced = []

    def counted(v):
        traced.append(isinstance(v.params["one"]["bias"], jax.core.Tracer))
        return metric(v)

    first = sensitivity.curves(counted, variables(arrays()), GROUPS, scores(), (0, 0.25, 0.5, 0.75))
    assert sensitivity._program(counted)._cache_size() == len(GROUPS)
    assert sum(traced) == 1 + len(GROUPS)  # once to see what it returns
    other = sensitivity.curves(counted, variables(arrays(1)), GROUPS, scores(5), (0.7, 0.25, 0, 0.5))
    assert not np.allclose(first["outer"], other["outer"])
    assert sensitivity._program(counted)._cache_size() == len(GROUPS)
    many = sensitivity.curves(counted, variables(arrays()), GROUPS, scores(), np.linspace(0, 0.9, 8), chunk=3)
    assert len(np.unique(many["outer"])) > 5
    assert sensitivity._program(counted)._cache_size() == len(GROUPS), "chunks of 3 are the programs for 3 ratios"


BAD = [
    ({"ratios": ()}, "give a sequence of at least one"),
    ({"ratios": 0.5}, "give a sequence of at least one"),
    ({"ratios": (0.5, 1.0)}, r"must lie in \[0, 1\)"),
    ({"chunk": 0}, "chunk is 0"),
    ({"min_units": -1}, "not negative"),
    ({"groups": (PAIRS, PAIRS)}, r"one name: \['pairs'\]"),
    ({"scores": {"pairs": jnp.ones(4)}}, r"no scores for group 'outer'.*\['pairs'\]"),
    ({"scores": {"pairs": jnp.ones(8), "outer": jnp.ones(10)}}, r"'pairs' have shape \(8,\), its units \(4,\)"),
    ({"groups": (Group(name="pairs", size=4, slots=(Slot(path="tow", axis=0),)),)}, "'tow': there are .*'two/kernel'"),
    ({"groups": (Group(name="pairs", size=4, slots=(Slot(path="one/bias", axis=0),)),)}, r"its shape is \(8,\)"),
    ({"metric": lambda v: float(metric(v))}, "cannot be traced"),
    ({"metric": lambda v: np.mean(v.params["one"]["bias"].__array__())}, "cannot be traced"),
    ({"metric": lambda v: v.params["one"]["bias"]}, r"shapes \[\(8,\)\]; it must return one number"),
    ({"metric": lambda v: {"loss": metric(v)}}, "must return one number"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_errors_come_before_any_work(change, message):
    calls = []

    def watched(v):
        calls.append(1)
        return metric(v)

    given = {"metric": watched, "groups": GROUPS, "scores": scores(), "ratios": RATIOS} | change
    with pytest.raises(ValueError, match=message):
        sensitivity.curves(variables=variables(arrays()), **given)
    assert not calls


def test_the_table_has_a_row_for_each_group_and_ratio():
    values = {"pairs": jnp.array([0.5, 0.25, 0.75]), "outer": jnp.array([1.0, 0.0, 0.75])}
    rows = sensitivity.table(values, (0.5, 0.9, 0.0), GROUPS)
    assert [(r["group"], r["depth"], r["kind"], r["units"], r["kept"]) for r in rows] == [
        *(("pairs", 0, "head", 4, kept) for kept in (2, 1, 4)),
        *(("outer", 1, "neuron", 10, kept) for kept in (5, 1, 10)),
    ]
    assert [r["value"] for r in rows] == [0.5, 0.25, 0.75, 1.0, 0.0, 0.75]
    assert [r["change"] for r in rows] == [-0.25, -0.5, 0.0, 0.25, -0.75, 0.0]
    assert {r["ratio"] for r in rows} == {0.5, 0.9, 0.0}
    alone = sensitivity.table({"outer": [0.5]}, (0.9,), [OUTER], min_units=4)
    assert [(r["kept"], r["change"]) for r in alone] == [(4, None)]
    for ratios, groups in (((0.5,), GROUPS), ((0.5, 0.9, 0.0), [OUTER])):
        with pytest.raises(ValueError, match="give what went into `curves`"):
            sensitivity.table(values, ratios, groups)


@pytest.fixture
def drawn(monkeypatch):
    """The figure that a plot function saves."""
    kept = []
    save = plots.save
    monkeypatch.setattr(plots, "save", lambda figure, path: (kept.append(figure), save(figure, path)))
    return kept


def test_the_picture_has_a_line_a_group_or_a_row_a_group(drawn, tmp_path):
    ratios = (0.9, 0.0, 0.5)
    few = {f"layer{k}": [0.1 * k, 0.9, 0.5] for k in range(5)} | {"lost": [np.nan, 0.9, np.nan]}
    model_plots.plot_sensitivity(few, ratios, tmp_path / "few.png", quantity="validation accuracy")
    assert matplotlib.image.imread(tmp_path / "few.png").std() > 0.01
    axes = drawn[0].axes[0]
    np.testing.assert_allclose([line.get_xdata() for line in axes.lines[:6]], [[0, 50, 90]] * 6)
    np.testing.assert_allclose(axes.lines[3].get_ydata(), [0.9, 0.5, 0.3])
    assert axes.lines[6].get_linestyle() == "--", "the dense value"
    assert [t.get_text() for t in axes.texts] == ["dense", *few]
    assert axes.get_ylabel() == "validation accuracy"

    many = {f"layer{k}": [0.01 * k, 0.9, 0.5] for k in range(30)}
    model_plots.plot_sensitivity(many, ratios, tmp_path / "many.png", quantity="loss")
    axes, bar = drawn[1].axes
    np.testing.assert_allclose(axes.images[0].get_array(), [[0.9, 0.5, 0.01 * k] for k in range(30)])
    assert [t.get_text() for t in axes.get_xticklabels()] == ["0", "50", "90"]
    assert [t.get_text() for t in axes.get_yticklabels()] == list(many)
    assert bar.get_ylabel() == "loss"

    model_plots.plot_sensitivity({"only": [2.0]}, [0.5], tmp_path / "one.svg")
    assert len(drawn[2].axes[0].lines) == 1, "no dense value without ratio 0"
    for curves, at in (({}, ratios), ({"a": [1.0]}, ratios), ({"a": [1.0]}, 0.5)):
        with pytest.raises(ValueError, match="give at least one, with a value a ratio"):
            model_plots.plot_sensitivity(curves, at, tmp_path / "bad.png")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["few.png", "many.png", "one.svg"]


def test_units_without_finite_score_go_first():
    flat = arrays()
    score = {k: np.asarray(v).copy() for k, v in scores().items()}
    score["outer"][[3, 6]], score["pairs"][1] = (np.inf, np.nan), -np.inf
    with pytest.warns(RuntimeWarning, match="1 of 4 units of 'pairs', 2 of 10 units of 'outer'$") as told:
        got = sensitivity.curves(metric, variables(flat), GROUPS, {k: jnp.asarray(v) for k, v in score.items()}, RATIOS)
    assert [w.filename for w in told] == [__file__]
    # Of two broken units the one with the lower index stays longer.
    score["outer"][6], score["outer"][3], score["pairs"][1] = -2, -1, -1
    for name, values in plain_loop(flat, score, RATIOS).items():
        np.testing.assert_allclose(got[name], values, rtol=1e-5)
    with pytest.raises(ValueError, match="not one score of"):
        sensitivity.curves(metric, variables(flat), [PAIRS], {"pairs": jnp.full(4, jnp.nan)}, RATIOS)
