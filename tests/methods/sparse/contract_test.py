"""One contract for every method that prunes to a sparsity."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mvp_jax import train
from mvp_jax.core import masks, patterns, trees
from mvp_jax.methods import METHODS, registry, sparse, weak_members
from mvp_jax.methods.sparse import dynamic, gradual, gradual_soup, imp, isp, movement, oneshot, soup
from mvp_jax.models import functions
from mvp_jax.storage import checkpoint
from tests import mlp

TRAINING = sparse.SparsityTraining(steps=3, learning_rate=0.05, batch=8, optimizer="adamw", weight_decay=0.1)
ISP = isp.Settings(members=3, round_sparsity=0.4, epochs=0.7, weak_epochs=0.7, training=TRAINING)
SOUPS = soup.SparseSoupSettings(members=2, rounds=1, steps=3, training=TRAINING)
GRADUAL_SOUP = gradual_soup.Settings(members=2, steps=7, events=3, training=TRAINING)
CASES = {
    **{
        f"once_{s}": ("once", oneshot.Settings(score=s, examples=12, rounds=5, batch=5, training=TRAINING))
        for s in oneshot.SCORES
    },
    "gradual": ("gradual", gradual.Settings(steps=7, events=3, training=TRAINING)),
    "movement_hard": ("movement", movement.Settings(steps=6, events=3, training=TRAINING)),
    "movement_soft": ("movement", movement.Settings(kind="soft", steps=6, events=3, training=TRAINING)),
    "rigl": ("dynamic", dynamic.Settings(steps=6, events=3, training=TRAINING)),
    "set": ("dynamic", dynamic.Settings(grow="random", initial="random", steps=6, events=3, training=TRAINING)),
    "imp_finetuned": ("imp", imp.Settings(rounds=3, steps=3, rewind="none", training=TRAINING)),
    "imp_rewound": ("imp", imp.Settings(rounds=3, steps=3, rewind_steps=1, training=TRAINING)),
    "imp_rate": ("imp", imp.Settings(rounds=3, steps=3, rewind="rate", training=TRAINING)),
    "isp": ("isp", ISP),
    **{f"isp_{v}": ("isp", dataclasses.replace(ISP, vote=v)) for v in ("union", "intersection", "majority", "score")},
    "isp_taylor": ("isp", dataclasses.replace(ISP, rank="taylor", soup="kept")),
    "isp_stability": ("isp", dataclasses.replace(ISP, rank="stability", soup="mean")),
    "isp_published": ("isp", isp.Settings.published(dataclasses.replace(TRAINING, warmup=2, clip=1.0), epochs=0.5)),
    "sparse_soups": ("sparse_soups", soup.SparseSoupSettings(members=2, rounds=2, first=2, steps=3, training=TRAINING)),
    "greedy_soups": (
        "sparse_soups",
        soup.SparseSoupSettings(members=2, rounds=1, steps=3, recipe="greedy", training=TRAINING),
    ),
    "learned_soups": (
        "sparse_soups",
        soup.SparseSoupSettings(members=2, rounds=1, steps=3, recipe="learned", training=TRAINING),
    ),
    "instant_soup": ("instant_soup", soup.InstantSoupSettings(members=2, rounds=2, training=TRAINING)),
    "gradual_wide": ("gradual", gradual.Settings(steps=7, events=3, workers=2, training=TRAINING)),
    "gradual_wider": ("gradual", gradual.Settings(steps=7, events=3, workers=4, training=TRAINING)),
    "gradual_soup": ("gradual_soup", GRADUAL_SOUP),
    "gradual_soup_votes": (
        "gradual_soup",
        dataclasses.replace(GRADUAL_SOUP, rank="votes", members=3, outer_momentum=0.5, outer_rate=0.7),
    ),
    "gradual_soup_late": ("gradual_soup", dataclasses.replace(GRADUAL_SOUP, souped_from=0.4, inherit=False)),
}
FUNCTIONS = {
    "once": oneshot.oneshot,
    "gradual": gradual.gradual,
    "gradual_soup": gradual_soup.gradual_soup,
    "movement": movement.movement,
    "dynamic": dynamic.dynamic,
    "imp": imp.imp,
    "isp": isp.isp,
    "sparse_soups": soup.sparse_soups,
    "instant_soup": soup.instant_soup,
}
SPARSITY = 0.7
ENTRIES = 5 * 8 + 8 * 6
KEPT = 26  # of 88, 70 % pruned
BY_OUTPUT = 8 * 1 + 6 * 2  # Wanda: of the 5 and 8 inputs of each output, 1 and 2 stay
DRAWS = ("once_random", "set")


def relu_net(variables, x, **_):
    """Linear where SynFlow looks at it; the MLP's shapes and names."""
    p = variables.params
    h = jax.nn.relu(x @ p["one"]["kernel"] + p["one"]["bias"])
    h = jax.nn.relu(h @ p["two"]["kernel"] + p["two"]["bias"])
    return h @ p["head"]["kernel"] + p["head"]["bias"], variables.rest


@functools.cache
def plain():
    return functions.from_apply(relu_net, input_shape=(5,), num_classes=3, prunable=("(one|two)/kernel",))


def problem(sparsity=SPARSITY, **changes):
    given = {"model": plain(), "variables": mlp.variables(), "train": mlp.data(), "valid": mlp.data(seed=7)}
    return sparse.SparsityProblem(sparsity=sparsity, **(given | changes))


def run(case, key=0, saved=None, **changes):
    name, settings = CASES[case]
    return FUNCTIONS[name](problem(**changes), settings, jax.random.key(key), saved=saved)


@functools.cache
def result(case):
    return run(case)


def same(a, b):
    return all(
        np.array_equal(np.asarray(x), np.asarray(y))
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


@pytest.mark.parametrize("case", CASES)
def test_the_sparsity_is_exact_and_pruned_weights_are_zero(case):
    got = result(case)
    assert int(masks.count({n: got.masks[n]["kernel"] for n in ("one", "two")})) == (
        BY_OUTPUT if case == "once_wanda" else KEPT
    )
    for path, mask in trees.flatten(got.masks).items():
        leaf = np.asarray(trees.flatten(got.variables.params)[path])
        assert np.all(np.isfinite(leaf))
        gone = ~np.broadcast_to(np.asarray(mask), leaf.shape)
        assert not leaf[gone].any()
        if "kernel" not in path or "head" in path:
            assert not gone.any()
        else:
            assert gone.any()
            # None lost; what grew behind a dead unit is still 0.
            assert np.count_nonzero(leaf[~gone]) >= (~gone).sum() - (2 if case in ("rigl", "set") else 0)
    assert bool(got.alive)


@pytest.mark.parametrize("case", CASES)
def test_further_training_keeps_them_zero(case):
    got, tx = result(case), train.optimizer("sgd", weight_decay=0.1)
    state = train.create(got.variables, tx, jax.random.key(5), masks=got.masks)
    recipe = train.Recipe(model=plain(), tx=tx, batch=8)
    state, _ = train.fit(recipe, state, mlp.data(), 5, learning_rate=0.1)
    after = trees.flatten(state.variables.params)
    moved = 0.0
    for path, mask in trees.flatten(got.masks).items():
        assert not np.asarray(after[path])[~np.broadcast_to(mask, after[path].shape)].any()
        moved = max(moved, float(jnp.max(jnp.abs(after[path] - trees.flatten(got.variables.params)[path]))))
    assert moved > 1e-3


@pytest.mark.parametrize("name", registry.suited("sparse", plain()))
def test_every_name_of_the_registry_prunes_to_the_sparsity(name):
    """With the settings that a comparison gives it; what each does more is tested above and in its own file."""
    given = problem()
    defaults = sparse.SparsityDefaults(problem=given, base=ISP, round_steps=3, examples=12, soups=2)
    got = METHODS[name](given, registry.line(name, "sparse").settings(defaults), jax.random.key(0))
    kept = int(masks.count({n: got.masks[n]["kernel"] for n in ("one", "two")}))
    assert kept == {"wanda": BY_OUTPUT, "unpruned": ENTRIES}.get(name, KEPT)
    for path, mask in trees.flatten(got.masks).items():
        leaf = np.asarray(trees.flatten(got.variables.params)[path])
        assert np.all(np.isfinite(leaf)), path
        assert not leaf[~np.broadcast_to(np.asarray(mask), leaf.shape)].any(), path
    assert bool(got.alive)
    assert got.spent.steps >= TRAINING.steps
    assert got.spent.examples >= 8 * TRAINING.steps


@pytest.mark.parametrize("case", CASES)
def test_the_same_key_gives_the_same_bits_and_another_one_others(case):
    assert same(result(case), run(case))
    other = run(case, key=1)
    assert not same(result(case).variables, other.variables)  # batches differ
    if case in DRAWS:
        assert not same(result(case).masks, other.masks)


@pytest.mark.parametrize(
    "case",
    [
        "once_synflow",
        "once_wanda",
        "gradual",
        "movement_soft",
        "rigl",
        "imp_rewound",
        "isp_union",
        "greedy_soups",
        "instant_soup",
        "gradual_soup",
        "gradual_soup_votes",
        "gradual_soup_late",
    ],
)
def test_a_killed_run_goes_on_to_the_same_result(case, tmp_path, monkeypatch):
    saves = []

    class Killed(checkpoint.Checkpoints):
        def save(self, step, state):
            super().save(step, state)
            saves.append(step)
            if len(saves) == 2 and len(kills) < 1:
                kills.append(step)
                raise KeyboardInterrupt

    kills = []
    with Killed(tmp_path / "run") as saved, pytest.raises(KeyboardInterrupt):
        run(case, saved=saved)
    assert kills
    with Killed(tmp_path / "run") as saved:
        again = run(case, saved=saved)
    assert saves[:2] == [1, 2]
    assert 1 not in saves[2:]  # nothing was done again
    whole = result(case)
    assert again.spent == whole.spent
    assert same(again._replace(spent=None), whole._replace(spent=None))


@pytest.mark.parametrize("case", CASES)
def test_costs_count_what_was_trained(case):
    spent = result(case).spent
    assert spent.steps >= 3
    assert spent.examples >= spent.steps * 8


def test_costs_by_hand():
    assert result("once_magnitude").spent == (3, 24, 3, 0)
    assert result("once_snip").spent == (3, 24 + 12, 3, 0)
    assert result("gradual").spent == (10, 80, 10, 0)
    # Three steps, twice the two after the first, and the fine-tuning.
    assert result("imp_rewound").spent == (3 + 2 * 2 + 3, (3 + 2 * 2 + 3) * 8, 3 + 2 * 2 + 3, 0)
    # 88 -> 53 -> 32; another 40 % would go past 26. Main: 2 rounds of 2 steps, 3 members of 2, the fine-tuning.
    # On a device for each member the members of a round take 2 steps; they vote once a round.
    assert result("isp").spent == (2 * (2 + 3 * 2) + 3, (2 * (2 + 3 * 2) + 3) * 8, 2 * (2 + 2) + 3, 2)
    assert result("sparse_soups").spent == (2 + 2 * 2 * 3 + 3, (2 + 2 * 2 * 3 + 3) * 8, 2 + 2 * 3 + 3, 2)
    # 24 examples by 8 are 3 steps an epoch: main 0.2 of it (1), members 0.1 (1), twice, and the fine-tuning.
    assert result("instant_soup").spent == (2 * (1 + 2) + 3, (2 * (1 + 2) + 3) * 8, 2 * (1 + 1) + 3, 2)
    # 7 serial steps of 2 members in 3 rounds; of three rounds a third is one, of 2 steps, with a single model.
    assert result("gradual_soup").spent == (2 * 7 + 3, (2 * 7 + 3) * 8, 7 + 3, 3)
    assert result("gradual_soup_late").spent == (2 + 2 * 5 + 3, (2 + 2 * 5 + 3) * 8, 7 + 3, 2)
    # A batch of 2 workers is 16 examples, of 4 it would be 32, and there are 24; a collective in every step.
    assert result("gradual_wide").spent == (7 + 3, 7 * 16 + 3 * 8, 7 + 3, 7)
    assert result("gradual_wider").spent == (7 + 3, 7 * 24 + 3 * 8, 7 + 3, 7)


class Counter:
    """How many programs XLA compiles."""

    def __enter__(self):
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._note)
        return self

    def _note(self, name, *_, **__):
        self.count += name == "/jax/core/compile/backend_compile_duration"

    def __exit__(self, *_):
        from jax._src import monitoring

        monitoring.unregister_event_duration_listener(self._note)


MORE_ROUNDS = {
    "gradual": {"events": 5, "steps": 9},
    "movement_hard": {"events": 5},
    "rigl": {"events": 5},
    "imp_rewound": {"rounds": 5},
    "imp_rate": {"rounds": 5},
    "isp": {"round_sparsity": 0.2},
    "isp_union": {"round_sparsity": 0.2},
    "sparse_soups": {"rounds": 4},
    "instant_soup": {"rounds": 4},
    "gradual_soup": {"events": 5, "steps": 9, "outer_momentum": 0.3, "outer_rate": 1.5},
    "gradual_soup_votes": {"events": 5, "outer_momentum": 0.0},
    "gradual_soup_late": {"events": 5, "steps": 9},
}


@pytest.mark.parametrize("case", MORE_ROUNDS)
def test_more_rounds_and_other_sparsities_compile_nothing(case):
    name, settings = CASES[case]
    result(case)
    run(case, key=3)  # arrays that only the first call lacks
    longer = dataclasses.replace(settings, **MORE_ROUNDS[case])
    with Counter() as counter:
        FUNCTIONS[name](problem(0.85), longer, jax.random.key(2))
    assert counter.count == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: problem(1.0), "sparsity is 1.0"),
        (lambda: problem(train=mlp.data() | {"y": jnp.full(24, 3)}), "labels must be"),
        (lambda: problem(rules=("nothing",)), "match no leaf"),
        (lambda: problem(rules=()), "nothing is prunable"),
        (lambda: oneshot.Settings(score="best"), "unknown score"),
        (lambda: gradual.Settings(steps=3, events=4), "events must be"),
        (lambda: gradual.Settings(schedule="steep"), "unknown schedule"),
        (lambda: gradual.Settings(workers=0), "workers"),
        (lambda: gradual_soup.Settings(steps=3, events=4), "events must be"),
        (lambda: gradual_soup.Settings(schedule="steep"), "unknown schedule"),
        (lambda: gradual_soup.Settings(members=0), "members"),
        (lambda: gradual_soup.Settings(rank="size"), "unknown rank"),
        (lambda: gradual_soup.Settings(outer_momentum=1.0), "outer_momentum"),
        (lambda: gradual_soup.Settings(outer_rate=0.0), "outer_rate"),
        (lambda: gradual_soup.Settings(souped_from=1.0), "souped_from"),
        (lambda: run("gradual_soup_votes", sparsity=0.5, pattern=patterns.NofM(2, axis=1)), "N of every M"),
        (lambda: movement.Settings(kind="weak"), "unknown kind"),
        (lambda: movement.Settings(threshold=1.0), "threshold"),
        (lambda: dynamic.Settings(grow="up"), "grow is"),
        (lambda: dynamic.Settings(drop_fraction=1.0), "drop_fraction"),
        (lambda: imp.Settings(rewind="twice"), "unknown rewind"),
        (lambda: imp.Settings(steps=3, rewind_steps=3), "rewind_steps"),
        (lambda: isp.Settings(vote="loudest"), "unknown vote"),
        (lambda: isp.Settings(round_sparsity=0.0), "round_sparsity"),
        (lambda: isp.Settings(rank="stability", members=1), "no deviation"),
        (lambda: weak_members.Diversity(subset=0.0), "subset"),
        (lambda: weak_members.Diversity(dropout=(0.5, 0.1)), "dropout"),
        (lambda: weak_members.Diversity(label_smoothing=(0.5, 1.0)), "high < 1"),
        (lambda: weak_members.Diversity(learning_rate=(0.0, 1.0)), "logarithm"),
        (lambda: soup.SparseSoupSettings(recipe="secret"), "unknown recipe"),
        (lambda: soup.InstantSoupSettings(rounds=0), "at least 1"),
        (lambda: sparse.SparsityTraining(decay="steps"), "decay"),
        (lambda: sparse.SparsityTraining(clip=0.0), "clip"),
        (lambda: run("greedy_soups", valid=None), "held-out"),
        (lambda: run("movement_hard", pattern=patterns.Weights("erk")), "single weights"),
        (lambda: run("once_snip", pattern=patterns.Channels()), "single weights"),
        (lambda: run("once_synflow", model=mlp.mlp()), "linear"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
