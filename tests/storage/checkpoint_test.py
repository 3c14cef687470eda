"""What a run leaves on disk: it comes back as it was, and a kill or a full disk never leaves half of it."""

import os
import pathlib
import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvp_jax.core import trees
from mvp_jax.core.types import Variables
from mvp_jax.storage import checkpoint, files


class State(NamedTuple):
    step: jax.Array
    variables: Variables
    opt_state: optax.OptState
    masks: dict
    key: jax.Array


def state_of(step, seed=0):
    params = {"fc": {"kernel": jax.random.normal(jax.random.key(seed), (3, 4)) + step, "bias": jnp.zeros(4)}}
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
    rest = {"bn": {"mean": jnp.full(4, step, jnp.bfloat16)}}
    masks = {"fc": {"kernel": jnp.arange(12).reshape(3, 4) % 3 > 0, "bias": jnp.ones((), bool)}}
    return State(jnp.int32(step), Variables(params, rest), tx.init(params), masks, jax.random.key(step))


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, left), right in zip(trees.flatten(a).items(), jax.tree.leaves(b), strict=True):
        assert left.dtype == right.dtype, path
        if jax.dtypes.issubdtype(left.dtype, jax.dtypes.prng_key):
            left, right = jax.random.key_data(left), jax.random.key_data(right)
        np.testing.assert_array_equal(left, right, err_msg=path)


def test_states_come_back_with_their_containers(tmp_path):
    with checkpoint.Checkpoints(tmp_path / "run") as saved:
        assert saved.latest() is None
        for step in (1, 2, 5):
            saved.save(step, state_of(step))
        assert saved.steps() == [2, 5]
        assert_same(saved.restore(state_of(0, seed=9)), state_of(5))
        assert_same(saved.restore(state_of(0), step=2), state_of(2))
    with checkpoint.Checkpoints(tmp_path / "run") as again:
        assert again.latest() == 5
        found = again.restore(jax.eval_shape(lambda: state_of(0)))
        assert_same(found, state_of(5))
        np.testing.assert_array_equal(jax.random.uniform(found.key), jax.random.uniform(jax.random.key(5)))


def test_numbers_and_numpy_come_back(tmp_path):
    state = {"n": 3, "f": 2.5, "np": np.arange(3, dtype=np.int32), "none": None}
    with checkpoint.Checkpoints(tmp_path) as saved:
        saved.save(0, state)
        found = saved.restore(state)
    assert (found["n"], found["f"], found["none"]) == (3, 2.5, None)
    np.testing.assert_array_equal(found["np"], [0, 1, 2])


def test_a_state_that_does_not_fit_is_named(tmp_path):
    with checkpoint.Checkpoints(tmp_path) as saved:
        with pytest.raises(ValueError, match=r"no checkpoint of step None; there are \[\]"):
            saved.restore(state_of(0))
        saved.save(3, state_of(3))
        with pytest.raises(ValueError, match=r"no checkpoint of step 2; there are \[3\]"):
            saved.restore(state_of(0), step=2)
        with pytest.raises(ValueError, match="step 3 is not after the last one saved, 3"):
            saved.save(3, state_of(3))
        other = state_of(0)._replace(masks={"fc": {"kernel": jnp.ones((3, 5), bool), "extra": jnp.ones(())}})
        with pytest.raises(ValueError, match="of another state: masks/fc/bias is bool") as caught:
            saved.restore(other)
        assert "masks/fc/kernel is bool[3, 4], bool[3, 5] wanted" in str(caught.value)
        assert "masks/fc/extra is missing, float32[] wanted" in str(caught.value)
        with pytest.raises(ValueError, match=r"step is int32\[\], float32\[\] wanted"):
            saved.restore(state_of(0)._replace(step=jnp.float32(0)))


DAMAGED = """
import pathlib, sys
import numpy as np
from mvp_jax import checkpoint
folder = pathlib.Path(sys.argv[1])
state = {"a": np.ones(3, np.float32)}
with checkpoint.Checkpoints(folder) as saved:
    saved.save(1, state)
    saved.save(2, state)
    files = [p for p in (folder / "2" / "state" / "d").iterdir()]
    assert files
    for p in files:
        p.write_bytes(p.read_bytes()[: p.stat().st_size // 2])
    try:
        saved.restore(state)
    except ValueError as error:
        print(error)
    assert saved.restore(state, step=1)["a"].tolist() == [1, 1, 1]
"""


def test_a_damaged_state_is_named(tmp_path):
    # On its own, because Orbax's background threads go on complaining about what they could not read.
    done = subprocess.run([sys.executable, "-c", DAMAGED, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"cannot read the checkpoint of step 2 in {tmp_path} (damaged?)" in done.stdout
    assert "local file" in done.stdout
    assert "there are [1]" in done.stdout


def test_a_place_that_cannot_be_written_is_refused_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    for call in (
        lambda p: checkpoint.Checkpoints(p),
        lambda p: checkpoint.save_arrays(p / "a.safetensors", {"a": 1}),
        files.writable,
    ):
        with pytest.raises(ValueError, match=r"cannot write to .*choose a folder that can be written"):
            call(tmp_path / "file" / "run")
    with pytest.raises(ValueError, match="keep is 0"):
        checkpoint.Checkpoints(tmp_path, keep=0)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is read-only to the superuser")
def test_a_read_only_folder_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match="cannot write to"):
        checkpoint.Checkpoints(tmp_path)


KILLED = """
import sys, os, signal, threading, time, pathlib
import numpy as np
from mvp_jax import checkpoint
folder = pathlib.Path(sys.argv[1])
def watch():
    while not any("tmp" in p.name for p in folder.iterdir()):
        time.sleep(0.0002)
    os.kill(os.getpid(), signal.SIGKILL)
with checkpoint.Checkpoints(folder) as saved:
    saved.save(1, {"a": np.ones(3, np.float32)})
    threading.Thread(target=watch, daemon=True).start()
    saved.save(2, {"a": np.random.default_rng(0).normal(size=1 << 22).astype(np.float32)})
print("not killed")
"""


def test_a_kill_during_a_save_leaves_the_step_before(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    assert any("tmp" in p.name for p in tmp_path.iterdir())
    with checkpoint.Checkpoints(tmp_path) as saved:
        assert saved.steps() == [1]
        np.testing.assert_array_equal(saved.restore({"a": np.zeros(3, np.float32)})["a"], np.ones(3))
        assert not any("tmp" in p.name for p in tmp_path.iterdir())
        saved.save(2, {"a": np.zeros(3, np.float32)})
        assert saved.latest() == 2


KEYS = st.text(st.sampled_from("ab/%.é_ 0"), min_size=1, max_size=4)
DTYPES = st.sampled_from(["bool", "int32", "uint8", "float32", "float16", "bfloat16"])
LEAVES = st.builds(
    lambda d, shape, seed: np.random.default_rng(seed).integers(0, 2, shape).astype(jnp.dtype(d)),
    DTYPES,
    st.lists(st.integers(0, 3), max_size=3),
    st.integers(0, 99),
)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.dictionaries(KEYS, inner, max_size=3),
        st.builds(Variables, st.dictionaries(KEYS, inner, max_size=2), st.dictionaries(KEYS, inner, max_size=2)),
    ),
    max_leaves=6,
)


@given(arrays=st.dictionaries(KEYS, TREES, min_size=1, max_size=3))
def test_arrays_come_back_as_they_were(tmp_path_factory, arrays):
    file = tmp_path_factory.mktemp("arrays") / "a.safetensors"
    assert len(checkpoint.save_arrays(file, arrays)) == 64
    assert_same(checkpoint.load_arrays(file), arrays)
    name = min(arrays)
    assert_same(checkpoint.load_arrays(file, only=[name]), {name: arrays[name]})


def test_strided_and_jax_arrays_come_back(tmp_path):
    arrays = {"a": jnp.arange(6).reshape(2, 3).T, "b": np.arange(12).reshape(3, 4)[:, ::2].T, "c": 2.5, "d": {}}
    checkpoint.save_arrays(tmp_path / "x", arrays)
    found = checkpoint.load_arrays(tmp_path / "x")
    np.testing.assert_array_equal(found["a"], [[0, 3], [1, 4], [2, 5]])
    np.testing.assert_array_equal(found["b"], [[0, 4, 8], [2, 6, 10]])
    assert found["c"] == 2.5
    assert found["d"] == {}
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": {1: np.ones(2)}}, "'a' has the key 1"),
        ({"a": {"b": [np.ones(2)]}}, "'a/b' is a list"),
        ({"a": jax.random.key(0)}, "random key"),
        ({"a": np.array(["x"])}, "holds <U1"),
        ({"a": np.ones(2, complex)}, "holds complex128"),
        ({"a": None}, "'a' is a NoneType"),
    ],
)
def test_what_cannot_be_written_is_named(tmp_path, arrays, message):
    with pytest.raises(ValueError, match=message):
        checkpoint.save_arrays(tmp_path / "x", arrays)
    assert list(tmp_path.iterdir()) == []


def test_damaged_arrays_are_named(tmp_path):
    file = tmp_path / "x"
    checkpoint.save_arrays(file, {"a": np.arange(100)})
    content = file.read_bytes()
    for n in (0, 5, 60, len(content) - 1):
        file.write_bytes(content[:n])
        with pytest.raises(ValueError, match=r"cannot read .*cut short"):
            checkpoint.load_arrays(file)
    with pytest.raises(ValueError, match="cannot read"):
        checkpoint.load_arrays(tmp_path / "none")
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"nothing named \['b'\]; it has \['a'\]"):
        checkpoint.load_arrays(file, only=["b"])
    import safetensors.numpy

    safetensors.numpy.save_file({"a": np.ones(2)}, file)
    with pytest.raises(ValueError, match="not written by `save_arrays`"):
        checkpoint.load_arrays(file)


def test_a_failed_write_keeps_the_file_before(tmp_path, monkeypatch):
    file = tmp_path / "x"
    checkpoint.save_arrays(file, {"a": 1})

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ValueError, match="No space left"):
        checkpoint.save_arrays(file, {"a": 2})
    assert checkpoint.load_arrays(file)["a"] == 1
    assert [p.name for p in pathlib.Path(tmp_path).iterdir()] == ["x"]


def test_a_bucket_that_does_not_answer_is_no_damage(tmp_path, monkeypatch):
    with checkpoint.Checkpoints(tmp_path) as saved:
        saved.save(1, {"a": np.arange(3)})

        def silent(*_):
            raise TimeoutError("the bucket did not answer in time")

        monkeypatch.setattr(saved._store, "load", silent)
        with pytest.raises(ValueError, match="did not answer in time; try again when the network answers") as error:
            saved.restore({"a": np.zeros(3, int)})
        assert "delete" not in str(error.value)
