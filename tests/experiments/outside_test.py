"""What a person sees of the command: first lines, compilation, folders, Ctrl-C, and hints that work from a clone."""

import json
import os
import pathlib
import re
import subprocess
import sys
import time
import tomllib
import types

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from mvp_jax import main
from mvp_jax.experiments import compilation, outline, planning, presets, run, run_folder
from mvp_jax.storage import records

ROOT = pathlib.Path(__file__).resolve().parents[2]


def config(**fields):
    found = presets.meta_vote("digits", "resnet")
    presets.votes_briefly(found)
    found.unlock()
    found.update_from_flattened_dict(fields)
    return found


# The folder of a run.


def begun(folder, **fields):
    """The folder of a run that has begun and written something."""
    run_folder.claim(folder, config(**fields))
    for name in ("rows/mvp-0000.json", "bank/manifest.json", "pretrain/model/model.json", "results.md", "overlap.json"):
        records.write_text(folder / name, name)
    return folder


def names(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_differences_are_told_one_by_one_with_both_values(tmp_path):
    folder = begun(tmp_path / "run")
    before = names(folder)
    many = {"seed": 1, "tasks.shots": 4, "data.name": "npz", "steps": (0, 1), "vote.k": 3, "bank.tasks": 5, "chunk": 2}
    for fields, message in (
        (
            {"steps": (0, 1)},
            "steps is (0, 2) there and (0, 1) here; continue it with the same config, or choose an empt",
        ),
        ({"data.name": "npz", "seed": 1}, "data.name is 'digits' there and 'npz' here, seed is 0 there and 1 here;"),
        ({"pretrain.steps": 30}, "here; .* falls over all of its steps, so a longer one begins anew"),
        ({"steps": (0, 9), "seed": 1}, "seed is 0 there and 1 here, steps is (0, 2) there and (0, 9) here;"),
        (many, "and 1 more settings differ;"),
    ):
        with pytest.raises(ValueError, match=message if ".*" in message else re.escape(message)):
            run_folder.claim(folder, config(**fields))
    assert names(folder) == before


def test_where_it_runs_is_no_difference(tmp_path):
    folder = begun(tmp_path / "run")
    before = (folder / "config.json").read_bytes()
    run_folder.claim(folder, config(**{"devices": 2, "compilation_cache": "off", "distributed.process": 1}))
    assert (folder / "config.json").read_bytes() == before


def test_a_longer_run_keeps_the_bank_and_puts_the_rest_aside(tmp_path, capsys):
    folder = begun(tmp_path / "run")
    longer = config(steps=(0, 2, 9))
    run_folder.claim(folder, longer)
    assert "continuing a shorter run: steps is (0, 2) there and (0, 2, 9) here" in capsys.readouterr().err
    assert json.loads((folder / "config.json").read_text())["steps"] == [0, 2, 9]
    assert json.loads((folder / "until-2" / "config.json").read_text())["steps"] == [0, 2]
    kept = ["bank/manifest.json", "config.json", "overlap.json", "pretrain/model/model.json"]
    assert names(folder) == [*kept, *(f"until-2/{n}" for n in ("config.json", "results.md", "rows/mvp-0000.json"))]
    run_folder.claim(folder, longer)
    assert capsys.readouterr().err == ""


def config_of(values):
    """A config of settings given by path."""
    found = ConfigDict()
    for path, value in values.items():
        group, _, name = path.rpartition(".")
        if group and group not in found:
            found[group] = ConfigDict()
        (found[group] if group else found)[name] = value
    return found


def test_what_may_grow_depends_on_the_job(tmp_path):
    grown = {
        "sparsity": {"sparsities": (0.5, 0.75, 0.9), "targets.seeds": 2, "methods": ()},
        "bank": {"bank.tasks": 9},
        "mvp": {"steps": (0, 3)},
    }
    start = {"sparsities": (0.5, 0.9), "targets.seeds": 1, "methods": ("mvp",), "bank.tasks": 4, "steps": (0, 2)}
    for job in grown:
        old = config_of({"job": job} | start)
        for path, value in ((p, v) for fields in grown.values() for p, v in fields.items()):
            new = config_of({"job": job} | start | {path: value})
            folder = tmp_path / f"{job}-{path}"
            run_folder.claim(folder, old)
            if path in grown[job]:
                run_folder.claim(folder, new)
            with pytest.raises(ValueError, match=f"{path} is .* there and .* here"):  # what has grown shrinks no more
                run_folder.claim(folder, old if path in grown[job] else new)
    run_folder.claim(tmp_path / "first", ConfigDict({"job": "sparsity", "sparsities": (0.5, 0.9)}))
    with pytest.raises(ValueError, match="sparsities is"):  # the first is that of the unpruned model's rows
        run_folder.claim(tmp_path / "first", ConfigDict({"job": "sparsity", "sparsities": (0.1, 0.5, 0.9)}))


def test_a_killed_continuation_is_begun_again(tmp_path, monkeypatch):
    folder = begun(tmp_path / "run")
    replace = os.replace

    def killed(source, target):
        replace(source, target)
        if pathlib.Path(source).name == "results.md":
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            run_folder.claim(folder, config(steps=(0, 9)))
    assert json.loads((folder / "config.json").read_text())["steps"] == [0, 2], "it is still the shorter run"
    run_folder.claim(folder, config(steps=(0, 9)))
    assert json.loads((folder / "config.json").read_text())["steps"] == [0, 9]
    assert not (folder / "rows").exists()
    assert {"until-2/results.md", "until-2-2/rows/mvp-0000.json"} <= set(names(folder))


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    (tmp_path / "full").mkdir()
    for name in ("thesis.tex", "a.png", "b.png", "c.png", "d.png"):
        (tmp_path / "full" / name).write_text("")
    with pytest.raises(ValueError, match=r"holds no run .* but a.png, b.png, c.png and 2 more\); choose an empty"):
        run.run(config(), tmp_path / "full")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"architectures": ["BertModel"]}')
    with pytest.raises(ValueError, match=r"holds no run \(its config.json is of something else\)"):
        run_folder.check(tmp_path / "model", config())
    with pytest.raises(ValueError, match=r"holds no sweep \(there is no folder 'points' in it, but config.json\)"):
        run_folder.check_sweep(tmp_path / "model")
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / ".DS_Store").write_text("")
    run_folder.claim(tmp_path / "hidden", config())


def test_a_finished_point_of_other_settings_is_not_taken_for_this_one(tmp_path, monkeypatch):
    from mvp_jax.experiments import sweep

    monkeypatch.setattr(run, "_job", lambda *_: pytest.fail("a point began"))
    run_folder.claim(tmp_path / "points" / "seed=0", config(**{"vote.k": 1}))
    records.write_json(tmp_path / "points" / "seed=0" / "finished.json", {})
    with pytest.raises(ValueError, match=r"point seed=0: .* vote.k is 1 there and 2 here"):
        run.run(sweep.over(config(), {"seed": (0, 1)}), tmp_path)


# The first lines.


def test_the_first_lines_say_what_will_be_done(tmp_path):
    plan = planning.few_shot_plan(config())
    device, data, model, work, where = outline.lines(plan, config(), tmp_path)
    assert re.fullmatch(r"device: CPU, \d+ cores", device)
    numbers = [int(n.replace(",", "")) for n in re.findall(r"([\d,]+) (?:for|to)", data)]
    assert numbers == [len(pool.y) for pool in plan.setting.pools]
    assert data.startswith("data: digits, 10 classes, examples of 8 x 8 x 1: ")
    shapes = [leaf.shape for leaf in jax.tree.leaves(plan.model.init(jax.random.key(0)).params)]
    count = sum(int(np.prod(shape)) for shape in shapes)
    assert (
        model == f"model: resnet8, {count:,} parameters, pre-trained here on 6 classes; 2 are unseen until the targets"
    )
    assert "20 steps of pre-training; a bank of 4 tasks; " in work
    assert f"{len(plan.lines)} methods on 2 targets with 1 seed each, 87.5% of the units removed" in work
    assert str(tmp_path) in where
    assert "not done again" not in where
    assert "not done again" in outline.lines(plan, config(), tmp_path, again=True)[-1]
    other = types.SimpleNamespace()
    assert len(outline.lines(other, config(), tmp_path)) == 2, "a job that is not known here says device and folder"


# Compilation.


@pytest.fixture
def cache():
    """JAX's settings of the cache, put back afterwards."""
    those = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in those}
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.mark.usefixtures("cache")
def test_programs_are_kept_where_the_setting_says(tmp_path, monkeypatch, capsys):
    assert compilation.keep("off") == ""
    assert jax.config.jax_compilation_cache_dir is None
    (tmp_path / "file").write_text("")
    assert compilation.keep(str(tmp_path / "file" / "cache")) == ""
    said = capsys.readouterr().err
    assert said.startswith("compiled programs are not kept for later runs: ")
    assert said.count("\n") == 1
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert compilation.keep("auto") == str(tmp_path / "mvp_jax" / "jax") == jax.config.jax_compilation_cache_dir
    assert compilation.keep(str(tmp_path / "other")) == str(tmp_path / "mvp_jax" / "jax"), "what is set already stays"
    assert not (tmp_path / "other").exists()
    with pytest.raises(ValueError, match="compilation_cache is empty; give 'auto', 'off', or a folder"):
        compilation.keep("")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert compilation.folder_of("auto") == tmp_path / "home" / ".cache" / "mvp_jax" / "jax"


def test_only_the_command_switches_the_cache_on(tmp_path):
    program = (
        "import jax; from mvp_jax.experiments import compilation, run; print(jax.config.jax_compilation_cache_dir);"
        "compilation.keep('auto'); jax.jit(lambda x: x + 1)(1.0)"
    )
    given = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_COMP", "JAX_PERS"))}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=given | {"XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "None\n"
    assert list((tmp_path / "mvp_jax" / "jax").iterdir()), "the program is kept"


def test_a_long_compilation_is_announced_and_a_short_one_is_not(capsys):
    event = compilation._COMPILE

    def compile_for(seconds, told):
        jax.monitoring.record_scalar(event, 0.0, fun_name="jit(steps)")
        until = time.monotonic() + 20
        while told and told not in (text := capsys.readouterr().err) and time.monotonic() < until:
            time.sleep(0.005)
        jax.monitoring.record_event_duration_secs(event, seconds, fun_name="jit(steps)")
        return text if told else ""

    with compilation.announced("CACHE", after=0.01):
        assert compile_for(40.0, "compiling") == "compiling jit(steps) (once; kept in CACHE) ...\n"
        assert compile_for(30.0, "compiling") == "compiling jit(steps) ...\n"
    assert re.fullmatch(
        r"\d+ s, of which 70 s were for compiling programs or reading .* CACHE.*\n", capsys.readouterr().err
    )
    with compilation.announced("", after=60.0, least=0.0):
        compile_for(1.0, "")
        jax.jit(lambda x: x * 3 + 1)(2.0)  # a real one: the events are those of this JAX
    said = re.fullmatch(r"\d+ s, of which (\d+) s were for compiling programs\n", capsys.readouterr().err)
    assert said is not None
    compile_for(90.0, "")
    assert capsys.readouterr().err == "", "nothing listens afterwards"


def test_a_real_compilation_is_heard(monkeypatch):
    heard = []
    monkeypatch.setattr(compilation._Watch, "begins", lambda self, event, value, **about: heard.append(event))
    with compilation.announced("", least=1e9):
        jax.jit(lambda x: x * 5 - 1)(2.0)
    assert compilation._COMPILE in heard


# How it ends.


def test_ctrl_c_ends_in_one_line(tmp_path, monkeypatch, capsys):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "run", stopped)
    monkeypatch.setattr(main, "_CONFIG", types.SimpleNamespace(value=ConfigDict({"compilation_cache": "off"})))
    monkeypatch.setattr(main, "_WORKDIR", types.SimpleNamespace(value=str(tmp_path)))
    with pytest.raises(SystemExit) as caught:
        main.main(["main"])
    assert caught.value.code == 130
    assert caught.value.__suppress_context__
    assert capsys.readouterr().err == "\nstopped; the same command goes on from what is saved\n"


def test_hints_name_commands_that_work_from_a_clone():
    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    found = []
    for file in [*(ROOT / "mvp_jax").rglob("*.py"), *(ROOT / "docs").glob("*.md"), ROOT / "README.md"]:
        text = file.read_text()
        assert "mvp-jax[" not in text, f"{file} names a package that is on no index; write pip install -e '.[EXTRA]'"
        found += re.findall(r"-e ['\"]\.\[(\w+)\]", text)
    assert len(found) > 8
    assert set(found) <= extras
