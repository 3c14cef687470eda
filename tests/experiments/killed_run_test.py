"""The main job as a person starts it: wrong settings end in one line, and a killed run goes on."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mvp_jax.storage import records

ROOT = Path(__file__).resolve().parents[2]


def command(work, *flags):
    """The job as a person starts it."""
    fields = [
        "--config.model.options.width=4",
        "--config.pretrain.steps=6",
        "--config.pretrain.save_every=3",
        "--config.bank.tasks=3",
        "--config.bank.rounds=1",
        "--config.mapping=loop",
        "--config.methods=('mvp','dense')",
    ]
    main = [sys.executable, "-m", "mvp_jax.main", "--config=configs/mvp.py:runlocal", f"--workdir={work}"]
    return [*main, *fields, *flags]


def test_the_command_says_what_is_wrong_in_one_line(tmp_path):
    done = subprocess.run(
        command(tmp_path / "run", "--config.model.name=resnet9"), cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "error: unknown model 'resnet9'; choose 'checkpoint' or one of" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_as_an_uninterrupted_one(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command(whole), cwd=ROOT, capture_output=True, check=True, timeout=1200)
    ends = {signal.SIGKILL: -9, signal.SIGINT: 130}  # nothing is tidied up; Ctrl-C
    for awaited, how in (
        ("pretrain/states/3", signal.SIGKILL),
        ("bank/entries/source-0000", signal.SIGINT),
        ("rows/mvp-0000.json", signal.SIGKILL),
    ):
        run = subprocess.Popen(command(killed), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            until = time.monotonic() + 1200
            while not (killed / awaited).exists():
                assert run.poll() is None, f"the run ended before {awaited} was there"
                assert time.monotonic() < until
                time.sleep(0.01)
        finally:
            run.send_signal(how)
            ended = run.wait()
        assert ended == ends[how]
    assert not (killed / "results.csv").exists()
    subprocess.run(command(killed), cwd=ROOT, capture_output=True, check=True, timeout=1200)
    assert (killed / "results.csv").read_bytes() == (whole / "results.csv").read_bytes()
    assert len(records.read_csv(killed / "results.csv")) == 16
    for folder in sorted((whole / "bank" / "entries").iterdir()):
        file = Path("bank/entries") / folder.name / "arrays.safetensors"
        assert (killed / file).read_bytes() == (whole / file).read_bytes()
