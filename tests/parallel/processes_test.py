"""Two real processes of two CPU devices each, over TCP on this machine: they train, vote, save, and stop together."""

import contextlib
import itertools
import os
import pathlib
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import mvp
from mvp_jax.experiments import run, run_folder
from mvp_jax.parallel import processes
from mvp_jax.storage import checkpoint
from mvp_jax.train import population
from tests import processes_worker as worker

ROOT = pathlib.Path(__file__).resolve().parents[2]


def launch(what, folder, count=2, devices=2, timeout=180):
    """Runs a worker in several processes; returns their exit codes, outputs and the seconds they took."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    # Most of the time goes into compiling; what is computed is small.
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    start = time.monotonic()
    running = []
    logs = [folder / f"{what}-{i}.log" for i in range(count)]
    try:
        for i, log in enumerate(logs):
            command = [sys.executable, "-m", "tests.processes_worker", what, str(i), str(count), str(port), str(folder)]
            with log.open("w") as out:
                running.append(subprocess.Popen(command, cwd=ROOT, env=env, stdout=out, stderr=out))
        for p in running:
            # One that hangs shows as killed, with what it had said.
            with contextlib.suppress(subprocess.TimeoutExpired):
                p.wait(max(timeout - (time.monotonic() - start), 1))
    finally:
        for p in running:
            p.kill()
    return [p.wait() for p in running], [log.read_text() for log in logs], time.monotonic() - start


def check(what, folder, **how):
    codes, outputs, _ = launch(what, folder, **how)
    for code, output in zip(codes, outputs, strict=True):
        assert code == 0, output[-4000:]
        assert "all well" in output


def test_two_processes_train_vote_and_save_as_one(tmp_path):
    check("fit", tmp_path)
    first, second = (checkpoint.load_arrays(tmp_path / f"vote-{i}") for i in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    half = worker.apart(worker.HALF)
    expected = jax.tree.map(lambda leaf: leaf.mean(0), half)
    assert worker.far(first["soup"], expected) < 1e-5
    assert worker.far(first["soup"], jax.tree.map(lambda leaf: leaf[0], half)) > 1e-2
    votes = jax.tree.map(lambda leaf: (leaf > 0).sum(0) / worker.K, half)
    assert worker.far(first["support"], votes) < 1e-6
    assert {round(float(v), 3) for leaf in jax.tree.leaves(votes) for v in leaf.ravel()} >= {0, 0.333, 1}

    whole = worker.apart(worker.STEPS)
    for mesh in (None, population.mesh(devices=jax.devices()[:2])):
        assert worker.far(worker.continued(tmp_path / "half", mesh), whole) < 1e-5
    assert worker.far(half, whole) > 1e-2
    check("eight", tmp_path, count=1, devices=8)


def test_processes_talk_and_a_state_of_one_is_saved(tmp_path):
    check("talk", tmp_path)
    # One process reads what process 0 of two saved alone.
    state = {"a": np.zeros(3, np.float32), "half": jax.numpy.zeros(2, "bfloat16"), "key": jax.random.key(0), "n": 0}
    with checkpoint.Checkpoints(tmp_path / "alone", alone=True) as saved:
        found = saved.restore(state | {"a": jax.numpy.zeros(3)})
        assert (found["a"].tolist(), found["n"], found["key"].dtype) == ([0, 1, 2], 3, state["key"].dtype)
        saved.save(4, found)
        assert saved.steps() == [3, 4]


def test_where_one_process_fails_the_other_stops(tmp_path):
    codes, outputs, seconds = launch("fail", tmp_path, timeout=60)
    assert codes == [1, 1], outputs
    assert "ValueError: on purpose" in outputs[0]
    assert "ValueError: process 0 stopped: ValueError: on purpose; mend that" in outputs[1]
    assert seconds < 40  # starting both is most of it; left alone the second would wait for ever


@given(items=st.lists(st.integers(), max_size=20), count=st.integers(1, 7))
def test_shares_are_even_and_leave_nothing_out(items, count):
    parts = [processes.part(items, i, count) for i in range(count)]
    sizes = [len(p) for p in parts]
    assert max(sizes) - min(sizes) <= 1
    assert sorted(itertools.chain(*parts)) == sorted(items)
    assert [p[0] for p in parts if p] == items[:count]


def test_one_process_has_nobody_to_wait_for():
    done = []
    processes.barrier("alone")
    processes.only_first("alone", lambda: done.append(1))
    processes.together("alone", lambda: done.append(2))
    processes.same("alone", "a", "b")
    assert (done, processes.first(), processes.share([3, 4])) == ([1, 2], True, [3, 4])
    with pytest.raises(ValueError, match="own"), processes.guarded():
        raise ValueError("own")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("h:1",), r"\['count', 'index'\] missing; give coordinator, count and index, or none"),
        (("", 2, 0), r"\['coordinator'\] missing"),
        (("host", 2, 0), "coordinator is 'host'; give host:port"),
        (("h:x", 2, 0), "coordinator is 'h:x'"),
        (("h:1", 2, 2), "process 2 of 2"),
        (("h:1", 0, 0), "process 0 of 0"),
        (("h:1", 2, -1), "process -1 of 2"),
    ],
)
def test_what_cannot_be_joined_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        processes.initialize(*arguments)


def test_the_main_job_joins_processes_and_shares_a_folder(tmp_path, monkeypatch):
    config, asked = mvp.get_config("runlocal"), []
    monkeypatch.setattr(processes, "initialize", lambda *arguments: asked.append(arguments))
    run.join(config)
    config.distributed.update(coordinator="h:1", processes=2, process=0)
    with pytest.raises(ValueError, match="multihost is False"):
        run.join(config)
    config.multihost = True
    run.join(config)
    assert asked == [("h:1", 2, 0)]

    with pytest.raises(ValueError, match="does not hold what process 0 wrote"):
        run_folder.claimed(tmp_path, config)
    run_folder.claim(tmp_path, config)
    config.distributed.process = 1
    run_folder.claimed(tmp_path, config)
    run_folder.claim(tmp_path, config)  # continued by others: where it runs is not part of what is computed
    config.seed = 1
    with pytest.raises(ValueError, match="does not hold what process 0 wrote"):
        run_folder.claimed(tmp_path, config)


def test_devices_in_use_are_refused():
    jax.devices()
    with pytest.raises(ValueError, match=r"cannot be joined.*before anything that uses a device"):
        processes.initialize("127.0.0.1:9", 2, 0)
    assert not jax.distributed.is_initialized()
