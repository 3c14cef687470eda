"""Checkpoints on disk and on a hub, opened safely and read one tensor at a time.

A header is believed only after all of it was checked, nothing in a file is executed, and a tensor is read when it is
asked for, straight into an array of its own: a memory map would die of a file that shrinks meanwhile, and its pages
would count as memory used.
"""

import dataclasses
import functools
import json
import math
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from mvp_jax.storage import dtypes, foreign_files

_LONGEST_HEADER = 100_000_000  # bytes, as in the reference implementation
_FLOATS: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_OTHERS = {"BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "U32": 4, "I32": 4, "U64": 8, "I64": 8} | {
    **{f"F8_{kind}": 1 for kind in ("E4M3", "E4M3FNUZ", "E5M2", "E5M2FNUZ", "E8M0")},
    "C64": 8,
}
_SIZES = {name: kind.itemsize for name, kind in _FLOATS.items()} | _OTHERS
_PICKLES = (".bin", ".pth", ".pt")
_SAFETENSORS = ".safetensors"
_NOTICES = ("README.md", "LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "NOTICE.txt", "NOTICE.md")


class TensorEntry(NamedTuple):
    """One tensor of a checkpoint, which is not read yet.

    Attributes:
        shape: its shape in the checkpoint.
        dtype: its dtype by safetensors' names: `F32`, `BF16`, `I64`, ...
        read: reads the values and returns them as an array of that shape.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]


@dataclasses.dataclass(frozen=True)
class TensorSource:
    """An opened checkpoint, whose tensors are read one at a time.

    Attributes:
        name: where it lies, for messages.
        entries: its tensors by their names.
        described: the content of its `config.json`; `None` if it has none.
        folder: the folder in which it lies with its other files; `None`: in no folder of its own.
    """

    name: str
    entries: Mapping[str, TensorEntry]
    described: dict[str, Any] | None = None
    folder: pathlib.Path | None = None

    def get(self, name: str) -> np.ndarray:
        """Reads one tensor and returns it in float32.

        Raises:
            ValueError: if there is none of that name, it does not hold floats, or the file changed meanwhile.
        """
        if name not in self.entries:
            raise ValueError(f"{self.name} has no tensor {name!r}")
        entry = self.entries[name]
        if entry.dtype not in _FLOATS:
            raise ValueError(
                f"{self.name}: {name} is stored as {entry.dtype}; weights are {sorted(_FLOATS)}, quantised ones must "
                "be expanded first"
            )
        return entry.read().astype(np.float32, copy=False)


def is_float(entry: TensorEntry) -> bool:
    """Whether a tensor is of a float dtype that is read as weights: float64, float32, float16 or bfloat16."""
    return entry.dtype in _FLOATS


def in_memory(tensors: Mapping[str, Any], name: str = "these tensors") -> TensorSource:
    """Arrays in memory as an opened checkpoint; reading a tensor copies it.

    Args:
        tensors: arrays by their names in the other library.
        name: what messages call them.

    Returns:
        A checkpoint without `config.json`.

    >>> in_memory({"fc.bias": np.zeros(3)}).entries["fc.bias"].dtype
    'F64'
    """

    def entry(a: np.ndarray) -> TensorEntry:
        return TensorEntry(a.shape, dtypes.safetensors_name(a.dtype) or a.dtype.name, a.copy)

    return TensorSource(name, {key: entry(np.asarray(a)) for key, a in tensors.items()})


def open(source: str | os.PathLike[str], *, revision: str | None = None) -> TensorSource:
    """Opens a checkpoint: names, shapes and dtypes are known and checked afterwards, no tensor is read.

    Args:
        source: a `.safetensors` file; a folder with `config.json` and `model.safetensors` or
            `model.safetensors.index.json` and its shards; PyTorch's `pytorch_model.bin`, `.bin`, `.pth` or `.pt`, a
            file or in a folder, if torch is installed; or `organisation/name` on the Hugging Face hub, if nothing of
            that name lies here and huggingface_hub is installed. Safetensors are preferred where both exist.
        revision: on the hub, a branch, tag or commit.

    Returns:
        The opened checkpoint.

    Raises:
        ValueError: with file and reason, for anything that is missing, truncated, contradictory or out of place.
    """
    path = local(source, revision=revision)
    try:
        return _folder(path) if path.is_dir() else TensorSource(str(path), _entries(path))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def local(source: str | os.PathLike[str], *, revision: str | None = None) -> pathlib.Path:
    """The path of a checkpoint with its tokeniser's and processor's files; if it is on the hub, it is downloaded first.

    Args:
        source: a file, a folder, or `organisation/name` on the Hugging Face hub, as `open` takes it.
        revision: on the hub, a branch, tag or commit.

    Returns:
        The file or folder on this machine.

    Raises:
        ValueError: if there is no such file or folder, and it is no id on the hub or cannot be had.
    """
    path = pathlib.Path(source)
    try:
        if path.is_dir() or path.is_file():
            return path
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    here = path.suffix in (_SAFETENSORS, *_PICKLES) or not isinstance(source, str)
    if here or not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", os.fspath(source)):
        raise ValueError(f"no weights at {path}; give a file, a folder or an id `organisation/name` on the hub")
    return _download(os.fspath(source), revision)


def _download(name: str, revision: str | None) -> pathlib.Path:
    lost = f"no file or folder {name}, and it cannot be had from the Hugging Face hub"
    try:
        import huggingface_hub
    except ImportError as error:
        raise ValueError(
            f"{lost}: huggingface_hub is not installed; pip install -e '.[hub]', or give a local path"
        ) from error
    wanted = ["*.json", f"*{_SAFETENSORS}", "*.txt", "*.model", *_NOTICES]
    try:
        # Files of subfolders are other exports of the same model, except how `sentence-transformers` pools.
        folder = huggingface_hub.snapshot_download(
            name, revision=revision, allow_patterns=wanted, ignore_patterns=["[!12]*/*", "[12][!_]*/*"]
        )
    except Exception as error:  # what a network can raise has no common type
        raise ValueError(
            f"{lost} ({type(error).__name__}: {error}); check the name, the revision and the network, or give the "
            "path of a download"
        ) from error
    return pathlib.Path(folder)


def _folder(folder: pathlib.Path) -> TensorSource:
    described = _json(_inside(folder, "config.json")) if (folder / "config.json").exists() else None
    for single in ("model.safetensors", "pytorch_model.bin"):
        if (folder / single).exists():
            return TensorSource(str(folder), _entries(_inside(folder, single)), described, folder)
        if (folder / f"{single}.index.json").exists():
            return TensorSource(str(folder), _shards(folder, f"{single}.index.json"), described, folder)
    if (folder / "model.json").exists():
        raise ValueError(f"{folder} holds a model that `pretrained.save` wrote; read it by `pretrained.load`")
    found = sorted(p for p in folder.iterdir() if p.suffix in (_SAFETENSORS, *_PICKLES))
    if len(found) == 1:
        return TensorSource(str(folder), _entries(_inside(folder, found[0].name)), described, folder)
    if not found:
        there = sorted(p.name for p in folder.iterdir())[:5]
        raise ValueError(f"{folder} holds no file of weights, but {there}; give the folder of a checkpoint")
    raise ValueError(
        f"{folder} has neither model.safetensors nor an index of its shards, but {[p.name for p in found[:5]]}; give "
        "one file, or convert to safetensors"
    )


def _inside(folder: pathlib.Path, name: str) -> pathlib.Path:
    """The file of that name, if it lies in the folder itself, or where a hub's cache keeps what it links to."""
    if not name or name in (".", "..") or set("/\\\0") & set(name) or len(name) > 255:
        raise ValueError(f"{folder} names the file {name!r:.80}; files of a checkpoint lie in its own folder")
    try:
        home, real = folder.resolve(), (folder / name).resolve()
    except RuntimeError as error:  # a link to itself
        raise ValueError(f"{folder / name} leads nowhere: {error}") from error
    allowed = [home] + ([home.parents[1] / "blobs"] if home.parent.name == "snapshots" else [])
    if real.parent not in allowed:
        raise ValueError(f"{folder / name} is a link to {real}, which lies outside the folder; copy it there")
    if not real.is_file():
        raise ValueError(f"{folder / name} is missing or not a file; the checkpoint is incomplete")
    return folder / name


def _shards(folder: pathlib.Path, index: str) -> dict[str, TensorEntry]:
    where = folder / index
    listed = _json(_inside(folder, index)).get("weight_map")
    if not isinstance(listed, dict) or not listed or not all(isinstance(shard, str) for shard in listed.values()):
        raise ValueError(f"{where} has no `weight_map` of tensors to files")
    kinds = (_SAFETENSORS,) if _SAFETENSORS in index else _PICKLES
    wrong = sorted({shard for shard in listed.values() if not shard.endswith(kinds)})
    if wrong:
        raise ValueError(f"{where} names {wrong[:3]}, whose kind is not {' or '.join(kinds)}")
    shards = {shard: _inside(folder, shard) for shard in sorted(set(listed.values()))}
    entries: dict[str, TensorEntry] = {}
    for shard, path in shards.items():
        found = _entries(path)
        twice = sorted(set(found) & set(entries))
        if twice:
            raise ValueError(f"{folder / shard} holds {twice[:5]}, which another shard holds already")
        absent = sorted(name for name, of in listed.items() if of == shard and name not in found)
        if absent:
            raise ValueError(f"{where} puts {absent[:5]} into {shard}, which does not hold them")
        entries |= found
    return entries


def _shown(name: str) -> str:
    """The name of a tensor as a message has it: a file may give any text as one."""
    return foreign_files.told(name, 80)


def _entries(path: pathlib.Path) -> dict[str, TensorEntry]:
    foreign_files.plain_file(path)
    return _pickled(path) if path.suffix in _PICKLES else _safetensors(path)


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name!r:.80} is given twice")
        found[name] = value
    return found


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _parse(content: bytes, what: str) -> dict[str, Any]:
    try:
        parsed = json.loads(content.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what} is not readable JSON: {foreign_files.told(error, 300)}") from error
    if not isinstance(parsed, dict):
        raise ValueError(f"{what} is a JSON {type(parsed).__name__}, not an object")
    return parsed


def _json(path: pathlib.Path) -> dict[str, Any]:
    if path.stat().st_size > foreign_files.LONGEST:
        raise ValueError(f"{path} has {path.stat().st_size} bytes; a configuration is far shorter")
    return _parse(path.read_bytes(), str(path))


def _safetensors(path: pathlib.Path) -> dict[str, TensorEntry]:
    """The format: 8 bytes that hold the header's length, the header in JSON, the tensors without gaps."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise ValueError(
                f"{path} is not a complete safetensors file: {size} bytes, its header alone needs {length}; it may be "
                "truncated"
            )
        if length > _LONGEST_HEADER:
            raise ValueError(f"{path} has a header of {length} bytes; no safetensors file needs {_LONGEST_HEADER}")
        content = file.read(length)
    header = _parse(content, f"the header of {path}")
    header.pop("__metadata__", None)
    start, end = 8 + length, 0
    entries: dict[str, TensorEntry] = {}
    for name, entry in sorted(header.items(), key=lambda item: _offsets(path, *item)):
        dtype, shape, (begin, stop) = entry.get("dtype"), entry.get("shape"), entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in _SIZES:
            raise ValueError(f"{path}: {_shown(name)} is stored as {dtype!r:.40}; known are {sorted(_SIZES)}")
        if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape) or len(shape) > 32:
            raise ValueError(f"{path}: {_shown(name)} has the shape {shape!r:.80}, which is no list of up to 32 sizes")
        if math.prod(shape) * _SIZES[dtype] != stop - begin:
            raise ValueError(
                f"{path}: {_shown(name)} of {dtype}{shape!s:.80} does not fill its bytes {begin!s:.40} to {stop!s:.40}"
            )
        if begin != end:
            raise ValueError(
                f"{path}: {_shown(name)} begins at byte {begin!s:.40}, where {end} is next: tensors overlap "
                "or leave gaps"
            )
        end = stop
        read = functools.partial(_array, path, name, dtype, tuple(shape), start + begin)
        entries[name] = TensorEntry(tuple(shape), dtype, read)
    if start + end != size:
        raise ValueError(
            f"{path} is not a complete safetensors file: {size} bytes, its header tells of {start + end!s:.40}; it may "
            "be truncated"
        )
    return entries


def _offsets(path: pathlib.Path, name: str, entry: Any) -> tuple[int, int]:
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(n) is int for n in offsets):
        raise ValueError(f"{path}: {_shown(name)} has no pair of `data_offsets` in the header: {entry!r:.80}")
    begin, stop = offsets
    if not 0 <= begin <= stop:
        raise ValueError(f"{path}: {_shown(name)} lies from byte {begin!s:.40} to {stop!s:.40}, out of bounds")
    return begin, stop


def _array(path: pathlib.Path, name: str, dtype: str, shape: tuple[int, ...], offset: int) -> np.ndarray:
    try:
        flat = np.fromfile(path, _FLOATS[dtype], math.prod(shape), offset=offset)
    except OSError as error:
        raise ValueError(f"{path} cannot be read any more: {error}") from error
    if flat.size != math.prod(shape):
        raise ValueError(f"{path} became shorter while it was read; {name} is cut off")
    return flat.reshape(shape)


def _pickled(path: pathlib.Path) -> dict[str, TensorEntry]:
    """PyTorch's own files. Its restricted unpickler makes tensors and plain containers, and runs nothing else."""
    advice = f"convert it to safetensors ({path.with_suffix(_SAFETENSORS).name}), which are preferred where both exist"
    try:
        import torch
    except ImportError as error:
        raise ValueError(f"{path} is a pickle, which needs torch: install torch, or {advice}") from error
    if tuple(int(n) for n in re.findall(r"\d+", torch.__version__)[:2]) < (2, 6):
        # CVE-2025-32434: before 2.6 the restricted unpickler could be made to run code.
        raise ValueError(
            f"{path} is a pickle, which torch {torch.__version__} cannot read safely; use 2.6, or {advice}"
        )
    try:
        loaded = _unpickled(torch, path)
    except Exception as error:  # whatever a broken or hostile file makes torch raise
        reason = str(error).strip().partition("\n")[0][:300]
        raise ValueError(f"{path} is refused, it may hold code or be cut off ({reason}); {advice}") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    if not isinstance(loaded, dict) or not loaded:
        raise ValueError(f"{path} holds a {type(loaded).__name__} and no state dict; {advice}")
    strange = sorted(
        str(n) for n, t in loaded.items() if not isinstance(n, str) or not isinstance(t, torch.Tensor) or t.is_meta
    )
    if strange:
        raise ValueError(f"{path} holds {strange[:5]}, which are no tensors by name; {advice}")
    return {name: _tensor(torch, path, name, tensor) for name, tensor in loaded.items()}


def _unpickled(torch: Any, path: pathlib.Path) -> Any:
    import zipfile

    # Only the newer of PyTorch's two containers can be mapped, so that a tensor comes in when it is read.
    return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


def _tensor(torch: Any, path: pathlib.Path, name: str, tensor: Any) -> TensorEntry:
    kinds = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
    kind = kinds.get(tensor.dtype, str(tensor.dtype).removeprefix("torch."))
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise ValueError(f"{path}: {name} is sparse or quantised; store it as a plain tensor")
    return TensorEntry(tuple(tensor.shape), kind, lambda: tensor.detach().to(torch.float32).numpy().copy())
