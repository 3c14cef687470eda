"""The manifest of a bank: whose pruned models it holds, how they were made, and what a person needs to use them."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from mvp_jax.core import trees
from mvp_jax.core.types import PyTree
from mvp_jax.storage import files, foreign_files

NAME = "manifest.json"
"""The file in a bank's folder that makes it a bank."""

_FORMAT, _VERSION = "mvp_jax bank", 1
_KINDS = {"title": str, "model": dict, "class_names": list, "inputs": dict, "weights": str, "licence": str}


@dataclasses.dataclass(frozen=True, kw_only=True)
class BankDescription:
    """What a person who gets a bank has to know of it, beyond its settings.

    Attributes:
        title: what the bank is, in a line.
        model: the configuration of the pre-trained (dense) model, as `models.to_json` gives it; `{}`: not known.
        class_names: the names of the classes that the entries' numbers stand for; an entry that has names of its own
            needs none here.
        inputs: how examples are prepared for the model, plain JSON values: of pictures `size`, `channels`, `scale`,
            `mean` and `std`, of texts `length`; or `files`, the names of the processor's or tokeniser's files that lie
            beside the pre-trained model.
        weights: where the pre-trained weights came from.
        licence: what is known of the licence of the weights and of the data.
    """

    title: str = ""
    model: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    class_names: tuple[str, ...] = ()
    inputs: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    weights: str = ""
    licence: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bank:
    """An open bank.

    Attributes:
        path: its folder.
        fingerprint: that of the pre-trained model from which all its entries are made; see the function `fingerprint`.
        settings: how its entries are made, plain JSON values.
        write: whether entries may be added.
        about: what a person has to know to use it; empty in a bank that was made without.
    """

    path: pathlib.Path
    fingerprint: str
    settings: Mapping[str, Any] = dataclasses.field(hash=False)
    write: bool = False
    about: BankDescription = BankDescription()


def fingerprint(variables: PyTree) -> str:
    """The identity of a pre-trained model: sha256 (hexadecimal) over the paths, dtypes, shapes and bytes of its arrays.

    It does not depend on the kinds of containers in the tree.

    >>> fingerprint({"a": np.zeros(2, np.float32)})[:8], fingerprint({"a": np.ones(2, np.float32)})[:8]
    ('a0025d8c', '404ca05b')
    """
    digest = hashlib.sha256()
    for path, leaf in sorted(trees.flatten(variables).items()):
        leaf = np.asarray(leaf)
        digest.update(json.dumps([path, str(leaf.dtype), leaf.shape]).encode())
        digest.update(leaf.tobytes())
    return digest.hexdigest()


def parse(text: str | bytes, path: pathlib.Path, *, write: bool = False) -> Bank:
    """The bank that the text of a manifest describes.

    Args:
        text: the content of `manifest.json`.
        path: the bank's folder.
        write: whether entries may be added.

    Raises:
        ValueError: if the text is not the manifest of a bank of this version, saying what it is.
    """
    try:
        content = foreign_files.parsed(text, NAME)
        if content["format"] != _FORMAT or content["version"] != _VERSION:
            raise ValueError(f"its manifest says {content['format']!r}, version {content['version']!r}")
        mark, settings, about = content["fingerprint"], content["settings"], content.get("about", {})
        if not (isinstance(mark, str) and isinstance(settings, dict) and isinstance(about, dict)):
            raise ValueError("its manifest has a field of the wrong type")
        # Banks of later releases may say more; what this one does not know it leaves out.
        known = {name: about[name] for name in _KINDS if name in about}
        wrong = [name for name, value in known.items() if not isinstance(value, _KINDS[name])]
        if wrong:
            raise ValueError(f"its manifest has a field of the wrong type: {wrong}")
        known["class_names"] = tuple(map(str, known.get("class_names", ())))
        return Bank(path=path, fingerprint=mark, settings=settings, write=write, about=BankDescription(**known))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not a bank of version {_VERSION} (`bank.create` makes one): {foreign_files.told(error)}"
        ) from error


def read(directory: pathlib.Path, *, write: bool = False) -> Bank:
    """The bank in a folder.

    Args:
        directory: its folder, or an address in a bucket.
        write: whether entries may be added.

    Raises:
        ValueError: if there is none.
    """
    try:
        text = foreign_files.text(directory / NAME)
    except ValueError as error:
        raise ValueError(
            f"{directory} is not a bank of version {_VERSION} (`bank.create` makes one): {error}"
        ) from error
    return parse(text, directory, write=write)


def write(bank: Bank) -> None:
    """Writes a bank's manifest, whole or not at all.

    Raises:
        ValueError: if the folder cannot be written, or values are not plain JSON.
    """
    content = {"format": _FORMAT, "version": _VERSION, "fingerprint": bank.fingerprint, "settings": dict(bank.settings)}
    if bank.about != BankDescription():
        content["about"] = plain("about", dataclasses.asdict(bank.about))
    with files.writing(bank.path):
        files.write_bytes(bank.path / NAME, json.dumps(content, indent=1).encode())


def plain(what: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as JSON gives them back: arrays as lists, tuples as lists.

    Args:
        what: their name in the error.
        values: a mapping of values.

    Raises:
        ValueError: for anything that is not plain JSON, numbers that are not finite included.
    """

    def number(value: Any) -> Any:
        if not isinstance(value, np.generic | np.ndarray | jax.Array):
            raise TypeError(f"{type(value).__name__} {value!r}")
        return value.tolist()

    try:
        return dict(json.loads(json.dumps(dict(values), default=number, allow_nan=False)))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what} must be plain JSON values (finite numbers, text, lists, dicts): {error}") from error


def differences(asked: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """What differs between the settings that are asked for and a bank's, a text for each.

    >>> differences({"ratio": 0.5, "rounds": 2}, {"ratio": 0.75, "rounds": 2})
    ['ratio is 0.75 in the bank, 0.5 asked for']
    """

    def flat(values: Any) -> dict[str, Any]:
        pairs = jax.tree_util.tree_leaves_with_path(values, is_leaf=lambda v: not isinstance(v, dict))
        return {trees.path_of(keys): value for keys, value in pairs}

    left, right = flat(asked), flat(found)
    return [
        f"{name} is {right.get(name, 'missing')!r} in the bank, {left.get(name, 'missing')!r} asked for"
        for name in sorted({*left, *right})
        if left.get(name, left) != right.get(name, right)
    ]
