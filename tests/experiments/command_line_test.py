"""A misspelt setting ends the command with one line that names the nearest ones, before any work."""

import pathlib
import subprocess
import sys

import pytest
from absl import flags
from ml_collections import ConfigDict, config_dict, config_flags

from mvp_jax.experiments import command_line

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # how ml_collections reads a file
ROOT = pathlib.Path(__file__).resolve().parents[2]
FILE = """
from ml_collections import ConfigDict, config_dict

def get_config(arg=None):
    if arg == "bug":
        return nothing
    return ConfigDict({
        "job": arg or "none", "fast": False, "steps": (0, 5), "names": (), "size": config_dict.placeholder(int),
        "train": {"steps": 3, "rate": 0.5, "name": "sgd"},
    })
"""


def parsed(tmp_path, *words, arg=""):
    """What is left of a command line, and the config it gives."""
    (tmp_path / "small.py").write_text(FILE)
    argv = ["main", f"--config={tmp_path / 'small.py'}{arg}", *words]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    return command_line.parse(argv, values), values.config


def test_good_settings_arrive(tmp_path):
    words = ["--config.train.steps=7", "--config.steps=(1,2,3)", "--config.names=('a',)", "--config.fast=true"]
    rest, config = parsed(tmp_path, *words, "--config.size=4", "--config.train.rate=2", "more", arg=":mvp")
    assert rest == ["main", "more"]
    assert config.to_dict() == {
        "job": "mvp",
        "fast": True,
        "steps": (1, 2, 3),
        "names": ("a",),
        "size": 4,
        "train": {"steps": 7, "rate": 2.0, "name": "sgd"},
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config.tran.steps=3"], "the config has no 'tran.steps'; did you mean 'train.steps' or 'steps'?"),
        (["--config.train.stps=3"], "the config has no 'train.stps'; did you mean 'train.steps'?"),
        (["--config.rate=3"], "the config has no 'rate'; did you mean 'train.rate'?"),
        (["--config.train.lr=3"], "the config has no 'train.lr'; did you mean 'train.rate' or 'train'?"),
        (["--config.whatever=3"], "the config has no 'whatever'; there are fast, job, names, size, steps, train"),
        (["--noconfig.fats"], "the config has no 'fats'; did you mean 'fast'?"),
        (["--config.train.steps.x=3"], "the config has no 'train.steps.x'; did you mean 'train.steps'?"),
        (["--config.train.steps=abc"], "flag --config.train.steps=abc: invalid literal for int()"),
        (["--config.train.steps=1.5"], "flag --config.train.steps=1.5: invalid literal for int()"),
        (["--config.train.rate=fast"], "flag --config.train.rate=fast: could not convert string to float"),
        (["--config.fast=perhaps"], "flag --config.fast=perhaps: ('Non-boolean argument to boolean flag'"),
        (["--config.size=big"], "flag --config.size=big: invalid literal for int()"),
        (["--config.steps=(0,'x')"], "'steps' is a tuple of int, as (0, 5); got (0, 'x')"),
        (["--config.steps[7]=1"], "the config has no 'steps[7]'; set 'steps' as a whole"),
        (["--config.train=3"], "flag --config.train=3: Failed to parse '3' as a ConfigDict"),
        (["--config.train.steps"], "Missing value for flag --config.train.steps"),
        (["--wrokdir=x"], "Unknown command line flag 'wrokdir'. Did you mean: workdir ?"),
        (["--config.train.steps=4", "--config.tran=4"], "the config has no 'tran'; did you mean 'train'?"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, words, message):
    with pytest.raises(SystemExit) as caught:
        parsed(tmp_path, *words)
    text = caught.value.code
    assert isinstance(text, str), "absl exits with 1 and prints it"
    assert text.startswith(f"error: {message}")
    assert "\n" not in text


def test_a_file_that_is_no_config_is_named(tmp_path):
    (tmp_path / "small.py").write_text(FILE)
    (tmp_path / "empty.py").write_text("x = 1\n")
    with pytest.raises(ValueError, match=r"no config file '.*smal.py'; did you mean '.*small.py'\?"):
        command_line.load(tmp_path / "smal.py")
    with pytest.raises(ValueError, match=r"no config file '.*nowhere/zzz.py'"):
        command_line.load(tmp_path / "nowhere" / "zzz.py")
    with pytest.raises(ValueError, match="has no function get_config"):
        command_line.load(tmp_path / "empty.py")
    assert command_line.load(tmp_path / "small.py", "x").job == "x"
    with pytest.raises(SystemExit, match=r"error: --config.train.steps needs --config=FILE.py"):
        command_line.parse(["main", "--config.train.steps=3"], flags.FlagValues())


def test_a_fault_in_the_config_file_keeps_its_traceback(tmp_path):
    with pytest.raises(NameError, match="nothing"):
        parsed(tmp_path, arg=":bug")


def test_a_dict_of_settings_is_checked_alike():
    config = ConfigDict({"steps": 3, "rate": 0.5, "fast": False, "of": {"ratios": (0.5, 0.9)}})
    config.size = config_dict.placeholder(int)
    config.lock()
    found = command_line.changed(config, {"rate": 1, "of.ratios": (0, 0.25), "size": 2, "fast": True})
    assert (found.rate, found.of.ratios, found.size, found.fast) == (1.0, (0, 0.25), 2, True)
    assert (config.rate, config.size) == (0.5, None), "the config itself is left as it is"
    assert command_line.changed(found, {"size": None}).size is None
    for path, value, message in [
        ("stesp", 1, "did you mean 'steps'"),
        ("steps", 0.5, "'steps' is of type int, as 3; got 0.5"),
        ("steps", True, "'steps' is of type int, as 3; got True"),
        ("rate", "x", "'rate' is of type float, as 0.5; got 'x'"),
        ("fast", 1, "'fast' is of type bool, as False; got 1"),
        ("of", 1, "'of' is a group of settings; got 1; set one of of.ratios"),
        ("of.ratios", ("a",), "'of.ratios' is a tuple of float"),
        ("of.ratios", 0.5, "'of.ratios' is of type tuple, as"),
    ]:
        with pytest.raises(ValueError, match=message):
            command_line.changed(config, {path: value})


def test_the_command_ends_with_one_line_and_status_1(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mvp_jax.main",
            "--config=configs/mvp.py:runlocal",
            "--config.pretrain.stps=3",
            f"--workdir={tmp_path / 'run'}",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: the config has no 'pretrain.stps'; did you mean 'pretrain.steps'")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()
