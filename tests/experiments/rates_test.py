"""Every method's own learning rate: what is chosen, on which targets, and that nothing reported depends on it."""

import csv
import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import compare
from configs import isp as isp_config
from configs import mvp as mvp_config
from mvp_jax.core.types import Variables
from mvp_jax.data import sources
from mvp_jax.experiments import few_shot_job, outline, planning, pools, presets, rates, run, sparsity_job
from mvp_jax.methods import registry, sparse
from mvp_jax.methods.few_shot import oneshot as few_shot_oneshot
from mvp_jax.methods.sparse import lines
from mvp_jax.train import population
from tests import mlp
from tests.experiments import few_shot_job_test
from tests.methods.sparse import contract_test as contract

FACTORS = (0.5, 1, 2)


def tiny(file=mvp_config, **fields):
    """A job of either kind on a transformer of one layer."""
    c = file.get_config("model=vit,runlocal")
    c.model.options.update({"dim": 16, "heads": 2, "layers": 1})
    c.rates.factors, c.rates.targets = FACTORS, 2
    c.update_from_flattened_dict(fields)
    return c


# What is chosen.


def rows(**accuracy):
    return [{"target": name, "seed": 0, "accuracy": a} for name, a in accuracy.items()]


def test_the_highest_mean_is_chosen_and_of_several_the_smallest_factor():
    tried = {0.5: rows(a=0.2, b=0.6), 1: rows(a=0.5, b=0.5), 2: rows(a=0.9, b=0.1)}
    found = rates.choose("mvp", 0.5, tried, learning_rate=0.1)
    assert found.accuracies == pytest.approx((0.4, 0.5, 0.5))
    assert (found.factor, found.learning_rate, found.members, found.outside) == (1, 0.1, 2, None)
    assert found.learning_rates == pytest.approx((0.05, 0.1, 0.2))
    # Thirds that add up to the same number in another order.
    assert rates.best({2.0: float(np.mean([0.1, 0.2, 0.3])), 1.0: float(np.mean([0.3, 0.2, 0.1]))}) == 1.0
    # What is not finite is below all.
    assert rates.best({0.5: float("nan"), 1.0: 0.0}) == 1.0
    assert rates.choose("mvp", 0.5, {1: rows(a=None), 2: rows(a=0.1)}, learning_rate=1.0).factor == 2


@pytest.mark.parametrize(
    ("accuracies", "outside"),
    [((0.9, 0.5, 0.1), 0.25), ((0.1, 0.5, 0.9), 9.0), ((0.1, 0.9, 0.5), None), ((0.3, 0.3, 0.3), None)],
)
def test_a_choice_at_the_edge_says_what_to_try(accuracies, outside, tmp_path):
    one = rates.RateChoice("mvp", 0.875, (0.5, 1, 3), (0.01, 0.02, 0.06), accuracies, 4)
    assert one.outside == outside  # the last step goes on: 0.5 / 2, and 3 x 3
    rates.write([one], tmp_path, "ratio")
    text = rates.section(tmp_path, {"mvp": "MVP"})
    line = next(line for line in text.splitlines() if line.startswith("| MVP"))
    assert "| 0.875 |" in line
    assert f"**{100 * max(accuracies):.1f}**" in line
    assert line.count("**") == 2
    assert ("the best may lie outside; add" in line) == (outside is not None)
    assert ("all factors do alike" in line) == (len(set(accuracies)) == 1)
    found = list(csv.DictReader((tmp_path / "rates.csv").read_text().splitlines()))
    assert [float(r["accuracy"]) for r in found] == list(accuracies)
    assert [r["chosen"] for r in found] == [str(int(a == one.factor)) for a in one.factors]
    assert "n = 4" in text


def test_without_factors_nothing_is_written(tmp_path):
    rates.write([], tmp_path, "ratio")
    assert rates.section(tmp_path, {}) == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"factors": (1, 0.5)}, r"rates.factors must rise and differ, as \(0.5, 1, 2\), got \(1, 0.5\)"),
        ({"factors": (1, 1)}, "must rise and differ"),
        ({"factors": (1.0, 1.0000001)}, "must rise and differ"),
        ({"factors": (0, 1)}, "must be positive numbers"),
        ({"factors": (1, float("inf"))}, "must be positive numbers"),
        ({"factors": ("a", 1)}, "must be positive numbers"),
        ({"factors": (1,)}, "leaves nothing to choose; give at least two"),
        ({"factors": (1, 2), "targets": -1}, "but rates.targets is -1 and rates.seeds 1"),
        ({"factors": (1, 2), "seeds": 0}, "but rates.targets is 3 and rates.seeds 0"),
    ],
)
@pytest.mark.parametrize("file", [mvp_config, compare], ids=["mvp", "sparsity"])
def test_wrong_settings_are_refused_before_anything_is_written(file, fields, message, tmp_path):
    c = tiny(file)
    c.rates.targets = 3
    c.rates.update(fields)
    with pytest.raises(ValueError, match=message):
        run.run(c, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_more_targets_than_can_be_drawn_are_refused_by_name():
    with pytest.raises(
        ValueError, match=r"rates.targets=5000 \(0 takes the reported ones .*\): 5000 distinct tasks .* only \d+ exist"
    ):
        pools.load(tiny(**{"rates.targets": 5000}))


def test_configs_take_factors():
    for file in (mvp_config, isp_config, compare):
        assert (tuple(file.get_config().rates.factors), file.get_config().rates.targets) == ((), 3)
    assert rates.read(tiny(isp_config)).factors == FACTORS
    without = presets.job("pretrain", "digits", "resnet")
    assert rates.read(without) == rates.RateSearch()


# On which targets.


@pytest.mark.parametrize("file", [mvp_config, compare], ids=["mvp", "sparsity"])
def test_reported_targets_are_the_same_and_the_others_are_none_of_them(file):
    plain, tuned = (pools.load(tiny(file, **{"rates.factors": f})) for f in ((), FACTORS))
    assert plain.tuning == ()
    assert (tuned.targets, tuned.bank_tasks) == (plain.targets, plain.bank_tasks)
    assert [t.name for t in tuned.tuning] == ["rates-0000", "rates-0001"]
    sets = [frozenset(t.classes) for t in (*tuned.bank_tasks, *tuned.targets, *tuned.tuning)]
    assert len(set(sets)) == len(sets)
    least = tiny(file).targets.unseen_at_least
    assert all(len(set(t.classes) & set(tuned.unseen)) >= least for t in tuned.tuning)
    more = pools.load(tiny(file, **{"rates.targets": 3}))
    assert more.targets == plain.targets


class Forbidden:
    """Examples that nobody may look at."""

    def __init__(self, like):
        self.shape, self.dtype = like.shape, like.dtype

    def __getitem__(self, _):
        raise AssertionError("test examples were looked at")


def without_test(plan):
    test = plan.setting.pools.test
    hidden = plan.setting.pools._replace(test=sources.Arrays(Forbidden(test.x), test.y))
    return dataclasses.replace(plan, setting=plan.setting._replace(pools=hidden))


def test_test_examples_of_these_targets_are_never_read(monkeypatch):
    monkeypatch.setattr(few_shot_job, "similarities", lambda *_: jnp.zeros(2))
    plan = planning.few_shot_plan(tiny(**{"rates.seeds": 2}))
    plain = planning.few_shot_plan(tiny(**{"rates.factors": ()}))
    names, members = few_shot_job.members_of(without_test(plan), None, None, tuning=True)
    assert names == [(t, s) for t in ("rates-0000", "rates-0001") for s in (1000, 1001)]
    assert members.test["x"].shape[1] == 0
    with pytest.raises(AssertionError, match="were looked at"):
        few_shot_job.members_of(without_test(plan), None, None)
    # What is reported is drawn as ever, and shares no random key with the others.
    (reported, one), (same, other) = (few_shot_job.members_of(p, None, None) for p in (plan, plain))
    assert reported == same
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, one[:4], other[:4])))
    keys = [np.asarray(jax.random.key_data(m.key)) for m in (one, other, members)]
    np.testing.assert_array_equal(keys[0], keys[1])
    assert not {tuple(k) for k in keys[0].tolist()} & {tuple(k) for k in keys[2].tolist()}
    # Training and validation examples have the reported ones' shapes, so that nothing compiles anew.
    for a, b in zip(members[:2], one[:2], strict=True):
        assert {n: (v.shape[1:], v.dtype) for n, v in a.items()} == {n: (v.shape[1:], v.dtype) for n, v in b.items()}


def test_the_sparsity_job_reads_none_either(monkeypatch):
    monkeypatch.setattr(sparsity_job.probe, "fit_head", lambda model, body, data: body)
    plan = planning.sparsity_plan(tiny(compare))
    body = plan.model.init(jax.random.key(0))
    made = sparsity_job.problems(without_test(plan), body, tuning=True)
    assert set(made) == {("rates-0000", 1000), ("rates-0001", 1000)}
    assert all(len(data.test.y) == 0 < len(data.valid.y) for _, data in made.values())
    with pytest.raises(AssertionError, match="were looked at"):
        sparsity_job.problems(without_test(plan), body)


def test_where_no_others_can_be_drawn_the_reported_targets_are_repeated_with_other_seeds():
    found = pools.load(tiny(**{"rates.targets": 0}))
    assert [t.classes for t in found.tuning] == [t.classes for t in found.targets]
    assert not {t.name for t in found.tuning} & {t.name for t in found.targets}
    assert found.tunes_on_targets


@pytest.mark.parametrize(("targets", "said"), [(0, "the same with other seeds"), (2, "2 other targets")])
def test_what_is_written_says_on_which_targets_rates_were_chosen(targets, said, tmp_path):
    plan = planning.few_shot_plan(tiny(**{"rates.targets": targets}))
    assert plan.setting.tunes_on_targets == (targets == 0)
    work = outline.lines(plan, tiny(), tmp_path)[3]
    assert f"(each method at the best of 3 learning rates, chosen on {said})" in work
    rates.write([rates.RateChoice("mvp", 0.5, (1, 2), (0.1, 0.2), (0.3, 0.4), 2)], tmp_path, "ratio")
    text = rates.section(tmp_path, {}, on_targets=plan.setting.tunes_on_targets)
    assert ("on targets that are not reported" in text) == (targets > 0)
    assert ("on the reported targets with other seeds" in text) == (targets == 0)


def test_a_target_of_all_classes_is_repeated_with_other_seeds():
    c = tiny(compare, **{"tasks.classes_per_task": 10, "rates.seeds": 2, "targets.unseen_at_least": 0})
    c.data.tasks, c.data.unseen_classes = "whole", 0
    plan = planning.sparsity_plan(c)
    assert [t.classes for t in plan.setting.tuning] == [t.classes for t in plan.setting.targets]
    assert plan.setting.tuning[0].name != plan.setting.targets[0].name
    assert list(sparsity_job._tuning_seeds(plan)) == [1000, 1001]


# How it is chosen: on a method whose accuracy is known.


def broken_but_at(best):
    """A few-shot method that is right at one rate only: elsewhere its head is 0, which always says the first class."""

    def run_(problem, settings, key):
        got = few_shot_oneshot.dense(problem, settings, key)
        right = jnp.abs(settings.tuning.learning_rate / best - 1) < 1e-3

        def spoil(variables):
            head = jax.tree.map(lambda p: jnp.where(right, p, 0.0), variables.params["head"])
            return Variables({**variables.params, "head": head}, variables.rest)

        return got._replace(
            looks={at: look._replace(variables=spoil(look.variables)) for at, look in got.looks.items()}
        )

    return registry.line("dense")._replace(run=run_)


def small(lines_, factors=FACTORS):
    """What `choose_rates` reads of a plan, for the multilayer perceptron of the other tests."""
    return types.SimpleNamespace(
        rates=rates.RateSearch(factors=factors, targets=1, seeds=2),
        lines=lines_,
        defaults=few_shot_job_test.DEFAULTS,
        ratio=0.5,
        mapping="vmap",
        mesh=None,
    )


def chosen(monkeypatch, plan, work, size=2):
    members = few_shot_job_test.members()
    names = [("rates-0000", 1000), ("rates-0000", 1001)]
    empty = {name: leaf[:, :0] for name, leaf in members.test.items()}
    monkeypatch.setattr(few_shot_job, "members_of", lambda *_, tuning: (names, members._replace(test=empty)))
    return few_shot_job.choose_rates(plan, None, None, few_shot_job_test.template(), size, work)


@pytest.mark.parametrize("best", [0.5, 1, 2])
def test_a_method_whose_best_rate_is_known_chooses_it(best, monkeypatch, tmp_path):
    rate = few_shot_job_test.DEFAULTS.tuning.learning_rate
    plan = small({"dense": broken_but_at(best * rate)})
    (one,) = chosen(monkeypatch, plan, tmp_path, size=3)  # a chunk that two members do not fill
    assert (one.factor, one.learning_rate, one.members) == (best, pytest.approx(best * rate), 2)
    valid = np.asarray(few_shot_job_test.members().valid["y"])
    for factor, accuracy in zip(one.factors, one.accuracies, strict=True):
        if factor != best:
            assert accuracy == pytest.approx(np.mean(valid == 0))
    seen = json.loads((tmp_path / "rates" / f"dense-{best:g}-0000.json").read_text())
    assert {r["steps"] for r in seen} == {2, 5}, "accuracies above 0 steps count, and no others"
    assert one.accuracies[FACTORS.index(best)] == pytest.approx(np.mean([r["accuracy"] for r in seen]))


def test_a_killed_choice_goes_on(monkeypatch, tmp_path):
    plan, ran = small({"dense": broken_but_at(1.0), "mvp": registry.line("mvp")}), []

    def dying(plan, method, factor, *rest):
        if len(ran) == 4:
            raise KeyboardInterrupt
        ran.append((method, factor))
        return [{"target": "a", "seed": 0, "steps": 2, "accuracy": factor}]

    monkeypatch.setattr(few_shot_job, "_tried", dying)
    with pytest.raises(KeyboardInterrupt):
        chosen(monkeypatch, plan, tmp_path)
    assert not (tmp_path / "rates.csv").exists()
    ran.append(None)  # the place that was reached
    got = chosen(monkeypatch, plan, tmp_path)
    assert ran == [*(("dense", f) for f in FACTORS), ("mvp", 0.5), None, ("mvp", 1), ("mvp", 2)]
    assert [(c.method, c.factor) for c in got] == [("dense", 2), ("mvp", 2)]
    monkeypatch.setattr(few_shot_job, "_tried", lambda *_: pytest.fail("nothing is tried again"))
    assert chosen(monkeypatch, plan, tmp_path) == got


# That only rates change, and nothing compiles.


def differing(a, b, path=""):
    """The paths of the fields in which two settings differ, with both values."""
    if dataclasses.is_dataclass(a) and type(a) is type(b):
        found = {}
        for field in dataclasses.fields(a):
            found |= differing(getattr(a, field.name), getattr(b, field.name), f"{path}.{field.name}")
        return found
    return {} if a == b else {path: (a, b)}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_factor_changes_the_rate_of_every_sparsity_line_and_nothing_else(optimizer):
    base = dataclasses.replace(contract.ISP, training=dataclasses.replace(contract.TRAINING, optimizer=optimizer))
    given = sparse.SparsityDefaults(problem=contract.problem(0.9), base=base, round_steps=5)
    for name, line in lines.LINES.items():
        one, two = (line.settings(dataclasses.replace(given, rate=rate)) for rate in (1.0, 2.0))
        ((path, (a, b)),) = differing(one, two).items()
        assert path == ".training.learning_rate", name
        own = 1e-3 if name.startswith("movement") and optimizer == "sgd" else 0.05
        assert (a, b) == pytest.approx((own, 2 * own)), name
    with pytest.raises(ValueError, match="rate must be positive"):
        dataclasses.replace(given, rate=0.0)


@pytest.mark.parametrize("name", registry.suited("few_shot", mlp.mlp()))
def test_a_factor_changes_the_rate_of_every_few_shot_line_and_nothing_else(name):
    one = few_shot_job_test.DEFAULTS
    two = few_shot_job._at_rate(one, 2 * one.tuning.learning_rate)
    found = differing(*(registry.line(name, "few_shot").settings(given) for given in (one, two)))
    ((path, (a, b)),) = found.items()
    assert path.endswith("tuning.learning_rate")
    assert b == 2 * a


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("mvp", {"mapping": "vmap"}),
        ("metasoup", {"mapping": "vmap"}),
        ("ifp", {"mapping": "loop"}),
        ("dense", {"mapping": "map"}),
        ("mvp", {"mapping": "map"}),
        ("mvp", {"mapping": "vmap", "mesh": 2}),
    ],
    ids=str,
)
def test_another_rate_compiles_nothing(name, how):
    if "mesh" in how:
        how = how | {"mesh": population.mesh(devices=jax.devices()[:2])}
    accuracies = []
    for factor in (0.5, 0.5, 4.0):
        defaults = few_shot_job._at_rate(few_shot_job_test.DEFAULTS, factor)
        with contract.Counter() as counter:
            got = few_shot_job_test.run(name, defaults=defaults, test=False, **how)
        accuracies.append(jax.tree.leaves(got.pruned.looks[5].variables))
        assert {split for _, split in got.accuracy} == {"valid"}
    assert counter.count == 0
    assert not all(map(np.array_equal, accuracies[1], accuracies[2])), "the rate reached the training"


@pytest.mark.parametrize("name", ["unpruned", "magnitude", "gradual", "movement", "rigl", "imp", "sms", "isp_soup"])
def test_another_rate_compiles_nothing_in_the_sparsity_methods(name):
    line, problem = registry.line(name, "sparse"), contract.problem()
    given = sparse.SparsityDefaults(problem=problem, base=contract.ISP, round_steps=3, soups=2)
    ends = []
    for rate, seed in ((1.0, 0), (1.0, 1), (3.0, 1)):
        settings = line.settings(dataclasses.replace(given, rate=rate))
        with contract.Counter() as counter:
            ends.append(line.run(problem, settings, jax.random.key(seed)).variables.params)
    assert counter.count == 0
    assert not all(jax.tree.leaves(jax.tree.map(np.array_equal, ends[1], ends[2])))
