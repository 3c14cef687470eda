"""Opening checkpoints: what is read is what was written, and hostile files are refused before anything is read."""

import builtins
import json
import os
import sys
import types

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from mvp_jax.pretrained import tensor_files

TENSORS = {
    "b": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a": np.linspace(-1, 1, 5).astype(np.float16),
    "c": np.array(2.5, np.float64),
    "steps": np.array([7], np.int64),
    "empty": np.zeros((0, 4), np.float32),
}


def written(path, header, data=b"", length=None):
    """A safetensors file by hand."""
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(head) if length is None else length).to_bytes(8, "little") + head + data)
    return path


def test_what_is_read_is_what_was_written(tmp_path):
    safetensors.numpy.save_file(TENSORS, tmp_path / "m.safetensors", metadata={"format": "pt"})
    source = tensor_files.open(tmp_path / "m.safetensors")
    assert source.described is None
    assert {n: (e.shape, e.dtype) for n, e in source.entries.items()} == {
        "a": ((5,), "F16"),
        "b": ((2, 3), "F32"),
        "c": ((), "F64"),
        "steps": ((1,), "I64"),
        "empty": ((0, 4), "F32"),
    }
    for name in ("a", "b", "c", "empty"):
        got = source.get(name)
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, TENSORS[name].astype(np.float32))
    with pytest.raises(ValueError, match="steps is stored as I64; weights are"):
        source.get("steps")
    with pytest.raises(ValueError, match="no tensor 'd'"):
        source.get("d")


def test_bfloat16_bit_by_bit(tmp_path):
    bits = np.array([0x3F80, 0xC000, 0x4049, 0x0001], "<u2")
    header = {"x": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [0, 8]}}
    path = written(tmp_path / "m.safetensors", header, bits.tobytes())
    expected = (bits.astype(np.uint32) << 16).view(np.float32).reshape(2, 2)
    assert expected[0].tolist() == [1.0, -2.0]
    np.testing.assert_array_equal(tensor_files.open(path).get("x"), expected)


def test_arrays_in_memory_are_copied():
    arrays = {"x": np.ones(3, np.float32), "n": np.array(3), "h": np.ones(2, ml_dtypes.bfloat16), "f": np.array(True)}
    source = tensor_files.in_memory(arrays)
    assert [e.dtype for e in source.entries.values()] == ["F32", "I64", "BF16", "BOOL"]
    source.get("x")[:] = 0
    assert arrays["x"].sum() == 3
    assert source.get("h").dtype == np.float32


def entry(begin=0, end=8, shape=(2,), dtype="F32", **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end], **more}


HOSTILE = {
    "empty file": (lambda p: p.write_bytes(b""), "truncated"),
    "seven bytes": (lambda p: p.write_bytes(b"\x02\0\0\0\0\0\0"), "truncated"),
    "header longer than the file": (lambda p: written(p, {"x": entry()}, bytes(8), length=10_000), "truncated"),
    "header of 2^64-1": (lambda p: written(p, {"x": entry()}, bytes(8), length=2**64 - 1), "truncated"),
    "no JSON": (lambda p: written(p, b"PK\x03\x04 this is something else"), "JSON"),
    "not UTF-8": (lambda p: written(p, b'{"\xff": 1}'), "JSON"),
    "a list": (lambda p: written(p, b"[]"), "not an object"),
    "deeply nested": (lambda p: written(p, b'{"x":' + b"[" * 200_000 + b"]" * 200_000 + b"}"), "JSON"),
    "a name twice": (
        lambda p: written(p, b'{"x":%b,"x":%b}' % ((json.dumps(entry()).encode(),) * 2), bytes(8)),
        "'x' is given twice",
    ),
    "no offsets": (lambda p: written(p, {"x": {"dtype": "F32", "shape": [2]}}, bytes(8)), "data_offsets"),
    "an entry that is text": (lambda p: written(p, {"x": "F32"}), "data_offsets"),
    "offsets of text": (lambda p: written(p, {"x": entry("0", "8")}, bytes(8)), "data_offsets"),
    "offsets of floats": (lambda p: written(p, {"x": entry(0.0, 8.0)}, bytes(8)), "data_offsets"),
    "negative offsets": (lambda p: written(p, {"x": entry(-8, 0)}, bytes(8)), "out of bounds"),
    "offsets backwards": (lambda p: written(p, {"x": entry(8, 0)}, bytes(8)), "out of bounds"),
    "beyond the end": (lambda p: written(p, {"x": entry(0, 80, [20])}, bytes(8)), "truncated"),
    "bytes left over": (lambda p: written(p, {"x": entry()}, bytes(12)), "header tells of"),
    "overlap": (lambda p: written(p, {"x": entry(), "y": entry(4, 12)}, bytes(12)), "overlap or leave gaps"),
    "the same bytes twice": (lambda p: written(p, {"x": entry(), "y": entry()}, bytes(8)), "overlap or leave gaps"),
    "a gap": (lambda p: written(p, {"x": entry(), "y": entry(12, 20)}, bytes(20)), "overlap or leave gaps"),
    "shape and bytes differ": (lambda p: written(p, {"x": entry(shape=(3,))}, bytes(8)), "does not fill"),
    "huge shape": (lambda p: written(p, {"x": entry(shape=(2**62, 2**62, 0, 2))}, bytes(8)), "does not fill"),
    "negative shape": (lambda p: written(p, {"x": entry(shape=(-1, -2))}, bytes(8)), "no list of up to 32 sizes"),
    "boolean shape": (lambda p: written(p, {"x": entry(0, 4, [True])}, bytes(4)), "no list of up to 32 sizes"),
    "too many axes": (lambda p: written(p, {"x": entry(shape=(1,) * 40 + (2,))}, bytes(8)), "up to 32 sizes"),
    "unknown dtype": (lambda p: written(p, {"x": entry(dtype="F31")}, bytes(8)), "stored as 'F31'"),
    "dtype of a list": (lambda p: written(p, {"x": entry(dtype=["F32"])}, bytes(8)), "stored as"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_files_are_refused(kind, tmp_path):
    make, message = HOSTILE[kind]
    make(tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match=message) as error:
        tensor_files.open(tmp_path / "m.safetensors")
    assert "m.safetensors" in str(error.value)


def test_every_cut_is_seen(tmp_path):
    whole = safetensors.numpy.save({"x": np.ones((2, 3), np.float32), "y": np.ones(2, np.float32)})
    path = tmp_path / "m.safetensors"
    path.write_bytes(whole)
    assert set(tensor_files.open(path).entries) == {"x", "y"}
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"m\.safetensors"):
            tensor_files.open(path)


def test_a_file_that_shrinks_after_it_was_opened(tmp_path):
    path = tmp_path / "m.safetensors"
    safetensors.numpy.save_file({"x": np.ones(1000, np.float32)}, path)
    source = tensor_files.open(path)
    os.truncate(path, 2000)
    with pytest.raises(ValueError, match="became shorter"):
        source.get("x")
    path.unlink()
    with pytest.raises(ValueError, match="cannot be read any more"):
        source.get("x")


@given(st.data())
def test_random_damage_is_refused_or_harmless(tmp_path_factory, data):
    """Whatever bytes change, there is an answer or a ValueError."""
    whole = bytearray(safetensors.numpy.save({"x": np.ones((2, 3), np.float32), "y": np.ones(2, np.float32)}))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damage") / "m.safetensors"
    path.write_bytes(whole)
    try:
        source = tensor_files.open(path)
    except ValueError:
        return
    for name, found in source.entries.items():
        if tensor_files.is_float(found):
            assert source.get(name).shape == found.shape


def sharded(folder, parts, weight_map=None, **described):
    folder.mkdir(exist_ok=True)
    for shard, tensors in parts.items():
        safetensors.numpy.save_file(tensors, folder / shard)
    listed = {n: s for s, tensors in parts.items() for n in tensors} if weight_map is None else weight_map
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": listed}))
    (folder / "config.json").write_text(json.dumps({"model_type": "vit", **described}))
    return folder


PARTS = {"one.safetensors": {"x": np.ones(2, np.float32)}, "two.safetensors": {"y": np.full(3, 2.0, np.float32)}}


def test_shards_and_description(tmp_path):
    source = tensor_files.open(sharded(tmp_path / "m", PARTS, hidden_size=8))
    assert source.described == {"model_type": "vit", "hidden_size": 8}
    assert set(source.entries) == {"x", "y"}
    assert source.get("y").tolist() == [2, 2, 2]
    # One file is preferred over an index beside it, and safetensors over pickles.
    safetensors.numpy.save_file({"z": np.ones(1, np.float32)}, tmp_path / "m" / "model.safetensors")
    (tmp_path / "m" / "pytorch_model.bin").write_bytes(b"not opened")
    assert set(tensor_files.open(str(tmp_path / "m")).entries) == {"z"}


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"x": "../one.safetensors"}, "lie in its own folder"),
        ({"x": "/etc/passwd.safetensors"}, "lie in its own folder"),
        ({"x": "..\\one.safetensors"}, "lie in its own folder"),
        ({"x": "deeper/one.safetensors"}, "lie in its own folder"),
        ({"x": "one.safetensors\0"}, "whose kind is not|lie in its own folder"),
        ({"x": "/etc/passwd"}, "whose kind is not"),
        ({"x": "one.bin"}, "whose kind is not"),
        ({"x": ""}, "whose kind is not"),
        ({"x": "three.safetensors"}, "missing or not a file"),
        ({"x": "link.safetensors"}, "lies outside the folder"),
        ({"x": "loop.safetensors"}, "leads nowhere|cannot be read|missing"),
        ({"x": "pipe.safetensors"}, "missing or not a file"),
        ({"x": "one.safetensors", "q": "one.safetensors"}, r"puts \['q'\] into one.safetensors"),
        ({"x": "one.safetensors", "y": "again.safetensors"}, "which another shard holds already"),
        ({"x": 3}, "weight_map"),
        ({}, "weight_map"),
        ([], "weight_map"),
    ],
)
def test_hostile_indices_are_refused(weight_map, message, tmp_path):
    folder = sharded(tmp_path / "m", PARTS, weight_map)
    safetensors.numpy.save_file({"x": np.ones(2, np.float32)}, tmp_path / "one.safetensors")
    safetensors.numpy.save_file({"x": np.ones(2, np.float32), "y": np.ones(1)}, folder / "again.safetensors")
    (folder / "link.safetensors").symlink_to(tmp_path / "one.safetensors")
    (folder / "loop.safetensors").symlink_to(folder / "loop.safetensors")
    os.mkfifo(folder / "pipe.safetensors")
    with pytest.raises(ValueError, match=message):
        tensor_files.open(folder)


def test_a_hub_s_cache_links_to_its_own_blobs(tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    safetensors.numpy.save_file({"x": np.ones(2, np.float32)}, blobs / "0123")
    (blobs / "4567").write_text("{}")
    (snapshot / "model.safetensors").symlink_to("../../blobs/0123")
    (snapshot / "config.json").symlink_to("../../blobs/4567")
    assert tensor_files.open(snapshot).get("x").tolist() == [1, 1]
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to("../../other")
    (tmp_path / "other").write_bytes((blobs / "0123").read_bytes())
    with pytest.raises(ValueError, match="lies outside the folder"):
        tensor_files.open(snapshot)


@pytest.mark.parametrize(
    "content", [b'{"a": "\xff"}', b"[" * 100_000, b"[]", b"{", b"", b'{"a": 1, "a": 2}', b"9" * 10_000]
)
def test_hostile_configurations_are_refused(content, tmp_path):
    folder = sharded(tmp_path / "m", PARTS)
    (folder / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"config\.json is"):
        tensor_files.open(folder)


def test_what_is_not_there_is_refused(tmp_path, monkeypatch):
    def never(*_, **__):
        raise AssertionError("asked a hub")

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(snapshot_download=never))
    for missing in (
        tmp_path / "none.safetensors",
        "runs/none.safetensors",
        "a/b/c",
        "none",
        tmp_path / "a" / "b",
        "../b",
    ):
        with pytest.raises(ValueError, match="no weights at"):
            tensor_files.open(missing)
    with pytest.raises(ValueError, match="holds no file of weights"):
        tensor_files.open(tmp_path)
    (tmp_path / "model.json").write_text("{}")
    with pytest.raises(ValueError, match=r"pretrained\.load"):
        tensor_files.open(tmp_path)


def test_an_id_goes_to_the_hub(tmp_path, monkeypatch):
    folder, asked = sharded(tmp_path / "m", PARTS), []

    def download(name, **how):
        asked.append((name, how))
        if name == "org/lost":
            raise ConnectionError("no route to host")
        return str(folder)

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(snapshot_download=download))
    assert set(tensor_files.open("org/name.v2", revision="main").entries) == {"x", "y"}
    name, how = asked[0]
    assert (name, how["revision"]) == ("org/name.v2", "main")
    assert not [pattern for pattern in how["allow_patterns"] if pattern.endswith(("bin", "pth", "py", "*"))]
    with pytest.raises(ValueError, match=r"no file or folder org/lost, .*no route to host"):
        tensor_files.open("org/lost")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match="huggingface_hub is not installed"):
        tensor_files.open("org/name")


def test_pickles_need_torch(tmp_path, monkeypatch):
    def without(name, *args, **kwargs):
        if name == "torch":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    real = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", without)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    for source in (tmp_path, tmp_path / "pytorch_model.bin"):
        with pytest.raises(ValueError, match=r"install torch, or convert it to safetensors"):
            tensor_files.open(source)


def test_an_old_torch_is_not_trusted(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(__version__="2.5.1+cpu"))
    (tmp_path / "m.pth").write_bytes(b"")
    with pytest.raises(ValueError, match="cannot read safely"):
        tensor_files.open(tmp_path / "m.pth")
