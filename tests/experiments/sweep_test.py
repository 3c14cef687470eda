"""Sweeps: every combination once, refused before any starts, programs shared, and a table chosen on validation."""

import csv
import json
import pathlib

import jax
import matplotlib.image
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import isp, mvp
from mvp_jax.experiments import command_line, planning, run, sweep_report
from mvp_jax.experiments import sweep as sweeping
from mvp_jax.storage import records

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"


def tiny(values, **options):
    config = isp.get_config("runlocal")
    config.methods, config.masks_alone = ("magnitude", "gradual"), False
    config.ours = "gradual"
    config.model.options.update({"dim": 16, "heads": 2, "layers": 1})
    config.pretrain.steps = config.pretrain.save_every = 2
    config.sparsities = (0.5,)
    return sweeping.over(config, values, **options)


class Compilations:
    """How many programs were compiled since the last look."""

    def __init__(self):
        self.count = 0

    def __call__(self, event, duration, **_):
        self.count += event == "/jax/core/compile/backend_compile_duration"

    def since(self):
        found, self.count = self.count, 0
        return found


@pytest.fixture(scope="module")
def compilations():
    listener = Compilations()
    jax.monitoring.register_event_duration_secs_listener(listener)
    yield listener
    jax.monitoring.unregister_event_duration_listener(listener)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory, compilations):
    """A sweep over a rate, its rows, and the programs that each point compiled."""
    work, compiled, begun = tmp_path_factory.mktemp("sweep"), [], []

    def job(config, folder, made):
        compilations.since()
        begun.append((folder.name, {stage: at.name for stage, at in made.items()}))
        rows = run._job(config, folder, made)
        compiled.append(compilations.since())
        return rows

    rates = {"train.learning_rate": (1e-4, 3e-2)}
    rows = sweeping.run(tiny(rates), work, check=lambda point, _: planning.plan(point), job=job)
    return work, rows, compiled, begun


def test_what_is_traced_compiles_once_for_all_points(sweep):
    _, _, compiled, _ = sweep
    assert compiled[0] > 20, "the count sees compilations"
    assert compiled[1] == 0


def test_points_share_what_was_made_before_they_differ(sweep):
    work, _, _, begun = sweep
    names = ["train.learning_rate=0.0001", "train.learning_rate=0.03"]
    assert begun == [(name, {"pretrain": names[0], "bank": name}) for name in names]
    assert (work / "points" / names[0] / "pretrain").is_dir()
    assert not (work / "points" / names[1] / "pretrain").exists()


def test_the_summary_is_that_of_the_points_tables(sweep):
    work, rows, _, _ = sweep
    assert len(rows) == 4  # two rates, two methods
    for row in rows:
        own = records.read_csv(work / "points" / f"train.learning_rate={row['train.learning_rate']:g}" / "results.csv")
        want = {
            split: [r["accuracy"] for r in own if r["method"] == row["method"] and r["split"] == split]
            for split in ("valid", "test")
        }
        assert len(want["valid"]) == 1
        assert row["valid"] == pytest.approx(want["valid"][0])
        if row["chosen"]:
            assert row["test"] == pytest.approx(want["test"][0])
        else:
            assert row["test"] is None
    assert sum(r["chosen"] for r in rows) == 2
    with (work / "summary.csv").open(newline="") as file:
        read = list(csv.DictReader(file))
    assert [(r["method"], float(r["train.learning_rate"])) for r in read] == [
        (r["method"], r["train.learning_rate"]) for r in rows
    ]
    assert (work / "summary.md").read_text().startswith("| train.learning_rate | method | sparsity | steps | valid |")
    assert matplotlib.image.imread(work / "summary.png").std() > 0.01


@pytest.mark.slow
def test_points_that_share_a_bank_end_as_runs_of_their_own(tmp_path):
    def config():
        found = mvp.get_config("runlocal")
        found.model.options.width, found.bank.rounds, found.methods = 4, 1, ("mvp", "dense")
        return found

    run.run(sweeping.over(config(), {"vote.k": (1, 2)}), tmp_path / "sweep")
    run.run(command_line.changed(config(), {"vote.k": 2}), tmp_path / "alone")
    point = tmp_path / "sweep" / "points" / "vote.k=2"
    assert not (point / "bank").exists()
    assert (point / "results.csv").read_bytes() == (tmp_path / "alone" / "results.csv").read_bytes()


def test_a_sweep_goes_on_with_what_is_missing_and_takes_more_points(sweep, tmp_path):
    work, rows, _, _ = sweep
    times = {p: p.stat().st_mtime_ns for p in work.glob("points/*/rows/*")}
    assert times

    def never(*_):
        raise AssertionError("all points are finished")

    again = sweeping.run(tiny({"train.learning_rate": (1e-4, 3e-2)}), work, check=lambda *_: None, job=never)
    assert again == rows
    begun = []

    def note(config, folder, made):
        begun.append((folder.name, config.train.learning_rate))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweeping.run(tiny({"train.learning_rate": (1e-4, 3e-2, 0.1)}), work, check=lambda *_: None, job=note)
    assert begun == [("train.learning_rate=0.1", 0.1)]
    assert {p: p.stat().st_mtime_ns for p in work.glob("points/*/rows/*")} == times


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"train.learning_rat": (1e-3,)},
            r"the config has no 'train.learning_rat'; did you mean 'train.learning_rate'",
        ),
        ({"train.steps": (2, 0.5)}, "'train.steps' is of type int, as 2; got 0.5"),
        ({"train.steps": (2, -1)}, r"point train.steps=-1: steps must be >= 0"),
        ({"sparsities": ((0.5,), (0.9, 0.5))}, r"point sparsities=0.9-0.5: sparsities must rise"),
        ({"train.steps": ()}, r"sweep.over is .*; give \(path, \(value, ...\)\) pairs"),
        ({"train.steps": (2, 2)}, "sweep.over repeats a path or a value"),
    ],
)
def test_bad_points_are_refused_before_any_runs(tmp_path, values, message):
    with pytest.raises(ValueError, match=message):
        run.run(tiny(values), tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()


def test_only_points_that_are_equal_up_to_a_stage_share_it():
    base = ConfigDict({"job": "mvp", "seed": 0, "vote": {"k": 1}, "bank": {"rounds": 1, "similarity": "leep"}})

    def shared(**values):
        config = ConfigDict(base.to_dict())
        return sweeping.sharing(
            sweeping.configs(sweeping.over(config, {k.replace("__", "."): v for k, v in values.items()}))
        )

    base.gradual = ConfigDict({"steps": 10})
    assert shared(gradual__steps=(10, 20))["gradual.steps=20"]["pretrain"] == "gradual.steps=10"
    assert shared(vote__k=(1, 5))["vote.k=5"] == {"pretrain": "vote.k=1", "bank": "vote.k=1"}
    assert shared(bank__rounds=(1, 2))["bank.rounds=2"] == {"pretrain": "bank.rounds=1", "bank": "bank.rounds=2"}
    assert shared(seed=(0, 1))["seed=1"] == {"pretrain": "seed=1", "bank": "seed=1"}
    both = shared(seed=(0, 1), bank__similarity=("leep", "prototype"))
    assert both["seed=1,bank.similarity=prototype"]["bank"] == "seed=1,bank.similarity=leep"
    with pytest.raises(ValueError, match=r"sweep.apart names \['vote.k'\], which sweep.over does not vary"):
        sweeping.points(sweeping.over(ConfigDict(base.to_dict()), {"seed": (0,)}, apart=("vote.k",)))


def written(folder, settings, accuracies, ratio=0.5):
    """A finished run: `accuracies` by (method, split), one for each target and seed."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(settings))
    records.write_csv(
        [
            {
                "target": f"t{t}",
                "seed": s,
                "method": m,
                "ratio": ratio,
                "steps": steps,
                "split": split,
                "accuracy": value if steps else 0.0,
            }
            for (m, split), table in accuracies.items()
            for t, row in enumerate(table)
            for s, value in enumerate(row)
            for steps in (0, 10)
        ],
        folder / "results.csv",
    )
    return folder


def test_spread_is_over_seeds_and_choice_is_by_validation(tmp_path):
    # Targets in rows, seeds in columns. By hand: the mean of a seed is that of its column.
    runs = [
        written(
            tmp_path / "a",
            {"seed": 0, "train": {"rate": 1}},
            {("m", "valid"): [[0.1, 0.3], [0.3, 0.5]], ("m", "test"): [[0.9, 0.9], [0.9, 0.9]]},
        ),
        written(
            tmp_path / "b",
            {"seed": 1, "train": {"rate": 1}},
            {("m", "valid"): [[0.6, 0.6], [0.6, 0.6]], ("m", "test"): [[0.9, 0.9], [0.9, 0.9]]},
        ),
        written(
            tmp_path / "c",
            {"seed": 0, "train": {"rate": 2}},
            {("m", "valid"): [[0.5, 0.6], [0.7, 0.6]], ("m", "test"): [[0.1, 0.2], [0.3, 0.2]]},
        ),
    ]
    best, other = sweeping.summarise(runs)
    assert (best["train.rate"], best["chosen"], best["seeds"]) == (2, True, 2)
    assert best["valid"] == pytest.approx(0.6)
    assert best["test"] == pytest.approx(0.2), "the test split is not what is chosen by"
    assert (other["train.rate"], other["chosen"], other["test"], other["seeds"]) == (1, False, None, 4)
    assert other["valid"] == pytest.approx(0.45)  # seeds' means 0.2, 0.4, 0.6, 0.6
    assert other["sd"] == pytest.approx(np.sqrt((0.25**2 + 0.05**2 + 0.15**2 + 0.15**2) / 3))
    assert other["steps"] == 10
    apart = sweeping.summarise(runs, ["train.rate", "seed"], apart=["train.rate"])
    assert [r["test"] is not None for r in apart] == [True, True]
    assert "| **60.0** |" in sweep_report.to_markdown([best, other])


def test_finished_runs_are_summarised_by_command(tmp_path, capsys):
    valid = {("m", "valid"): [[0.5]], ("m", "test"): [[0.25]]}
    runs = [str(written(tmp_path / n, {"seed": 0, "rate": i}, valid)) for i, n in enumerate("ab")]
    sweeping.main([*runs, f"--out={tmp_path / 'out'}"])
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["summary.csv", "summary.md", "summary.png"]
    assert "| rate | method |" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"error: .*none is no finished run: it lacks config.json and results.csv"):
        sweeping.main([str(tmp_path / "none")])


def test_the_config_file_takes_any_other(tmp_path):
    config = command_line.load(CONFIGS / "sweep.py", "base=mvp,model=vit,runlocal")
    assert (config.job, config.sweep.job) == ("sweep", "mvp")
    assert dict(config.sweep.over) == {"tune.learning_rate": (3e-4, 9e-4)}
    assert list(sweeping.points(command_line.load(CONFIGS / "sweep.py"))) == [
        "train.learning_rate=0.0003",
        "train.learning_rate=0.001",
        "train.learning_rate=0.003",
    ]
    changed = command_line.changed(config, {"sweep.over": (("vote.k", (1, 2)), ("seed", (0, 1)))})
    assert len(sweeping.configs(changed)) == 4
    with pytest.raises(ValueError, match="no config file"):
        command_line.load(CONFIGS / "sweep.py", "base=mpv")
