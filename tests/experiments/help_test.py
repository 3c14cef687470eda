"""`--help` says what there is to run, and of a config every setting, its value and what it means."""

import pathlib
import subprocess
import sys

import pytest
from ml_collections import ConfigDict

from mvp_jax.experiments import descriptions, help_text
from tests.experiments import command_line_test, configs_test

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # how ml_collections reads a file
ROOT = pathlib.Path(__file__).resolve().parents[2]
CASES = {
    *configs_test.FULL,
    *configs_test.LOCAL,
    *((name, "") for name in configs_test.NAMES),
    ("mvp", "bank=BANK,target=FOLDER"),
    ("sweep", "base=mvp"),
}


def test_every_setting_has_a_sentence_and_every_sentence_a_setting():
    found = {path for name, arg in CASES for path, _ in help_text.paths(configs_test.of(name, arg))}
    assert len(found) > 150
    assert found - set(descriptions.SETTINGS) == set(), "add them to mvp_jax/experiments/descriptions.py"
    assert set(descriptions.SETTINGS) - found == set(), "no config has these settings; take them out"


def test_sentences_are_whole_and_fit():
    for path, sentence in descriptions.SETTINGS.items():
        assert sentence[0].isupper() or sentence[0].isdigit() or sentence.startswith("'"), path
        assert sentence.endswith("."), path
        assert "\n" not in sentence, path
        assert 10 < len(sentence) <= 120, path


def printed(capsys, tmp_path, *words, arg=""):
    with pytest.raises(SystemExit) as caught:
        command_line_test.parsed(tmp_path, *words, arg=arg)
    assert caught.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("word", ["--help", "-h", "-help"])
def test_the_values_are_those_of_the_command(capsys, tmp_path, word):
    text = printed(capsys, tmp_path, "--config.train.steps=7", word, "--config.names=('a',)", arg=":mvp")
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert any(line.startswith("train.steps=7 The number of steps") for line in lines)
    assert any(line.startswith("steps=(0, 5) The numbers of fine-tuning steps") for line in lines)
    assert any(line.startswith("names=('a',)") for line in lines), "a setting without a sentence is shown too"
    assert any(line.startswith("job='mvp'") for line in lines)
    assert any(line.startswith("train: How every method trains") for line in lines)


def test_a_misspelt_setting_is_told_with_help_too(tmp_path):
    with pytest.raises(SystemExit, match=r"the config has no 'train\.stps'"):
        command_line_test.parsed(tmp_path, "--help", "--config.train.stps=7")


def test_files_are_listed_with_their_first_line(tmp_path):
    (tmp_path / "one.py").write_text('"""Prunes one thing.\n\nMore."""\nraise RuntimeError("must not be executed")\n')
    text = help_text.of_files(tmp_path, width=200)
    assert "one.py" in text
    assert "Prunes one thing." in text
    assert "More" not in text
    assert help_text.USAGE in text
    assert "no config files" in help_text.of_files(tmp_path / "nothing")


def test_long_values_have_their_sentence_below_and_lines_keep_the_width(tmp_path):
    (tmp_path / "c.py").write_text('"""A note."""\n')
    config = ConfigDict({"methods": tuple(f"method_{i}" for i in range(3)), "seed": 3})
    lines = help_text.of_settings(config, tmp_path / "c.py", width=70).splitlines()
    assert lines[0] == "A note."
    at = lines.index("  methods=('method_0', 'method_1', 'method_2')")
    assert lines[at + 1].strip().startswith("The names of the methods")
    assert all(len(line) <= 70 for line in lines[3:])


def test_the_command_needs_no_folder_for_help():
    for words, wanted in (
        (["--help"], ["configs/mvp.py", "Meta-Vote Pruning beside"]),
        (["--config=configs/mvp.py:runlocal", "--help"], ["Lab note.", "bank.tasks=4 ", "The number of tasks in the"]),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "mvp_jax.main", *words], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert all(part in done.stdout for part in wanted)
