"""The one table of methods: names, settings, the nearest names for a misspelt one, and a new method in one line."""

import dataclasses
import inspect
import json
import pathlib
import typing

import jax
import pytest

from configs import mvp as config_file
from mvp_jax import models
from mvp_jax.core import units
from mvp_jax.experiments import run
from mvp_jax.methods import METHODS, few_shot, registry
from mvp_jax.methods import line as lines
from mvp_jax.methods.few_shot import ifp, oneshot
from mvp_jax.methods.line import Line, fixed
from tests import mlp
from tests.methods.few_shot import contract_test

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_a_name_that_a_config_accepts_is_a_name_that_METHODS_knows():
    assert {"magnitude", "snip", "imp_rate", "copy_nearest", "mvp", "isp", "ifp_10x", "gradual_main"} <= set(METHODS)
    assert len(METHODS) == len(list(METHODS)) == len(set(METHODS)) == sum(map(len, registry.TABLES.values()))
    for kind, table in registry.TABLES.items():
        for name, line in table.items():
            assert METHODS[name] is line.run
            assert name in METHODS
            assert line.kind == kind
            assert line.needs <= {"neighbours", "universal"}
            assert list(inspect.signature(line.run).parameters)[:3] == ["problem", "settings", "key"], name
            assert line.summary


@pytest.mark.parametrize(
    ("name", "near"),
    [("mpv", "'mvp'"), ("copy_nearst", "'copy_nearest'"), ("magnitud", "'magnitude'"), ("zzz", "There")],
)
def test_an_unknown_name_gives_the_nearest_names(name, near):
    assert name not in METHODS
    with pytest.raises(KeyError, match=f"unknown method '{name}'.*{near}"):
        METHODS[name]
    with pytest.raises(ValueError, match=near):
        registry.line(name)
    with pytest.raises(ValueError, match="it is a method for sparse problems"):
        registry.line("magnitude", "few_shot")


def test_all_methods_of_a_kind_are_those_that_suit_the_model():
    resnet, vit = models.create("resnet8", width=4), models.create("vit_micro")
    few, sparse = (set(registry.TABLES[kind]) for kind in ("few_shot", "sparse"))
    assert set(registry.suited("few_shot", resnet)) == few
    assert few - set(registry.suited("few_shot", vit)) == {"oneshot_batch_norm_scale"}
    assert set(registry.suited("sparse", resnet)) == sparse
    assert sparse - set(registry.suited("sparse", vit)) == {"synflow"}
    assert list(registry.chosen("sparse", ("snip", "imp"), vit)) == ["snip", "imp"]
    assert set(registry.chosen("few_shot", (), vit)) == few - {"oneshot_batch_norm_scale"}
    with pytest.raises(ValueError, match=r"'synflow' does not suit this model: it cannot be made linear"):
        registry.chosen("sparse", ("synflow",), vit)


def test_a_narrower_name_overrules_the_settings():
    assert METHODS["ifp"] is ifp.ifp
    given, key = contract_test.problem(), jax.random.key(0)
    settings = oneshot.Settings(score="random", examples=16, tuning=contract_test.TUNING)
    got = METHODS["oneshot_magnitude"](given, settings, key)
    want = oneshot.oneshot(given, dataclasses.replace(settings, score="magnitude"), key)
    other = oneshot.oneshot(given, settings, key)
    kept = [{n: u.tolist() for n, u in pruned.units.items()} for pruned in (got, want, other)]
    assert kept[0] == kept[1] != kept[2]
    assert fixed(ifp.ifp, ifp.Settings, budget=10).__name__ == "ifp"


def test_the_slots_of_the_controls_are_what_their_names_say():
    given = dataclasses.replace(contract_test.problem())
    near = given.neighbours
    order = [int(i) for i in jax.numpy.argsort(-near.similarity)]
    for name, entry in (("copy_nearest", order[0]), ("copy_farthest", order[-1])):
        method, settings = contract_test.CASES[name]
        kept = method(given, settings, jax.random.key(0)).units
        for group, got in kept.items():
            assert got.tolist() == near.units[group][entry].tolist()
    assert near.units["a"][order[0]].tolist() != near.units["a"][order[-1]].tolist()


# -- a new method: one function, one line of a table


def last_units(problem, settings, key):
    """Keeps the last units of each group, whatever they do."""
    kept = {name: units.full(problem.groups)[name].at[: -problem.sizes[name]].set(False) for name in problem.sizes}
    return few_shot.Start(problem.variables, kept)


@pytest.fixture
def registered(monkeypatch):
    method = few_shot.method(last_units, oneshot.Settings)
    line = Line(
        method,
        lambda given: oneshot.Settings(tuning=given.tuning),
        "the last units",
        kind="few_shot",
        title="last units",
    )
    monkeypatch.setitem(registry.TABLES["few_shot"], "last_units", line)
    return line


def test_a_new_method_is_one_line_for_METHODS_the_contract_the_job_and_the_docs(registered, tmp_path):
    settings = registered.settings(contract_test.DEFAULTS)
    given = contract_test.problem()
    own = METHODS["last_units"](given, settings, jax.random.key(0))
    contract_test.assert_contract(own, given)
    assert "| `last_units` | last units | the last units |" in registry.to_markdown()
    assert "last_units" in registry.suited("few_shot", mlp.mlp())

    config = config_file.get_config("runlocal,model=vit")
    config.methods = ("last_units", "copy_nearest")
    config.deliver = "last_units"
    config.bank.tasks = 2
    config.targets.count = 1
    rows = run.run(config, tmp_path)
    assert {row["method"] for row in rows} == {"last_units", "copy_nearest"}
    # The slim models that are delivered are the named method's, though Meta-Vote Pruning did not run.
    (slim,) = (tmp_path / "slim").iterdir()
    described = json.loads((slim / "model.json").read_text())
    assert described["extra"]["method"] == "last_units"
    for group in described["kept"].values():
        assert group["kept"] == list(range(group["of"] - len(group["kept"]), group["of"]))
    assert (tmp_path / "cost.json").exists()


def test_titles_are_short_and_each_methods_own():
    titles = registry.titles()
    assert list(titles) == list(METHODS)
    assert len(set(titles.values())) == len(titles), "two methods of one title cannot be told apart in a picture"
    for name, title in titles.items():
        assert 0 < len(title) <= lines.MAX_TITLE, f"{name}: {title!r} does not fit beside a picture"
        assert "_" not in title, f"{name}: {title!r} is a name for a config, not for a reader"
    assert registry.titles("sparse") | registry.titles("few_shot") == titles


def test_every_kind_of_problem_has_a_reference_proposed_methods_and_one_at_random():
    assert {n for n, r in registry.roles().items() if r == "proposed"} == {"mvp", "mvp_select", "isp", "gradual_soup"}
    for kind in registry.TABLES:
        roles = list(registry.roles(kind).values())
        assert [roles.count(role) for role in ("reference", "random")] == [1, 1]
        assert set(roles) <= set(typing.get_args(lines.ComparisonRole))
        controls = {n for n, found in registry.TABLES[kind].items() if found.summary.startswith("control")}
        assert controls <= {n for n, r in registry.roles(kind).items() if r == "control"}


def test_the_page_of_the_documentation_is_the_table():
    page = (ROOT / "docs" / "methods.md").read_text()
    assert registry.to_markdown() in page, "write docs/methods.md anew: python -m mvp_jax.methods.registry"
