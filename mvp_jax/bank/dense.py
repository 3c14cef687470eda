"""The pre-trained (dense) model of a bank: stored in it, so that the bank can be used alone, and checked on loading."""

import os
import pathlib
from collections.abc import Sequence
from typing import Any

from mvp_jax import models, pretrained
from mvp_jax.bank import manifest
from mvp_jax.bank.manifest import Bank
from mvp_jax.core.types import Variables
from mvp_jax.models.api import Model
from mvp_jax.storage import files

FOLDER = "model"
"""The folder in a bank that holds the pre-trained model."""

MARKER = "model.json"
"""The file in it that says that it is complete."""

WEIGHTS = "weights.safetensors"
"""The file in it that holds the arrays."""


def configuration(model: Model) -> dict[str, Any]:
    """The configuration of a model as plain JSON.

    Raises:
        ValueError: if the model is of none of this package's families, and so cannot be stored.
    """
    return manifest.plain("the model's configuration", models.to_json(model.config))


def check(mark: str, variables: Variables) -> None:
    """Checks that variables are those of a fingerprint.

    Raises:
        ValueError: if they are another model's.
    """
    found = manifest.fingerprint(variables)
    if found != mark:
        raise ValueError(
            f"these variables are not the bank's pre-trained model: their fingerprint is {found[:12]}, the bank's "
            f"{mark[:12]}; give the variables that its entries were made from, under the head they had then"
        )


def store_model(
    bank: Bank,
    model: Model,
    variables: Variables,
    *,
    source: str | os.PathLike[str] | None = None,
    labels: Sequence[str] | None = None,
) -> pathlib.Path:
    """Stores the pre-trained model in the bank, in the folder `model/`, whole or not at all.

    Args:
        bank: open for writing.
        model: the dense model.
        variables: its variables, those of the bank's fingerprint.
        source: the checkpoint's folder, from which the files of its processor or tokeniser and its licence are copied;
            `None`: there are none.
        labels: the names of the classes of the model's own head; `None`: those of the source, if it has any.

    Returns:
        The folder, for `pretrained.load`.

    Raises:
        ValueError: if the bank is read-only, or the variables are not those of its fingerprint.
    """
    if not bank.write:
        raise ValueError(f"the bank {bank.path} is open for reading; pass write=True to `bank.open`")
    check(bank.fingerprint, variables)
    return pretrained.save(bank.path / FOLDER, model, variables, source=source, labels=labels)


def has_model(bank: Bank) -> bool:
    """Whether the bank holds its pre-trained model."""
    return files.exists(bank.path / FOLDER / MARKER)


def load_model(bank: Bank) -> tuple[Model, Variables]:
    """The pre-trained model that a bank holds, checked against the bank's fingerprint.

    Args:
        bank: an open bank.

    Returns:
        The dense model and its variables, as NumPy arrays or on the device, as `pretrained.reload` gives them.

    Raises:
        ValueError: if the bank holds no model, with whose model it needs; if the files are damaged, or hold another
            model.

    >>> import tempfile
    >>> import jax
    >>> from mvp_jax import bank
    >>> model = models.create("resnet8", width=4, image_size=8, channels=1, classes=3)
    >>> variables = model.init(jax.random.key(0))
    >>> made = bank.create(
    ...     tempfile.mkdtemp(), fingerprint=bank.fingerprint(variables), settings={}, dense=(model, variables)
    ... )
    >>> load_model(bank.open(made.path))[0] is model
    True
    """
    if not has_model(bank):
        raise ValueError(f"the bank {bank.path} does not hold its pre-trained model: {needs(bank)}")
    model, variables = pretrained.reload(bank.path / FOLDER)
    try:
        check(bank.fingerprint, variables)
    except ValueError as error:
        raise ValueError(f"{bank.path / FOLDER} holds another model than the bank's: {error}") from error
    return model, variables


def needs(bank: Bank) -> str:
    """Says, in a sentence, whose pre-trained model a bank needs and whether it holds it.

    >>> about = manifest.BankDescription(model={"family": "resnet"}, weights="timm, resnet18.a1_in1k")
    >>> needs(Bank(path=pathlib.Path("none"), fingerprint="0123456789abcdef", settings={}, about=about))
    'it needs the resnet with the fingerprint 0123456789ab (timm, resnet18.a1_in1k)'
    """
    family = bank.about.model.get("family", "pre-trained model")
    origin = f" ({bank.about.weights})" if bank.about.weights else ""
    if has_model(bank):
        return f"it holds its pre-trained model, the {family} with the fingerprint {bank.fingerprint[:12]}{origin}"
    return f"it needs the {family} with the fingerprint {bank.fingerprint[:12]}{origin}"
