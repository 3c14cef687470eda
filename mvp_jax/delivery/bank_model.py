"""The pre-trained model of a bank, on this machine: the one that the bank holds, or a folder of the person's."""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator

from mvp_jax import bank as banks
from mvp_jax import pretrained
from mvp_jax.bank import Bank
from mvp_jax.core.types import Variables
from mvp_jax.pretrained import tensor_files
from mvp_jax.storage import files


@contextlib.contextmanager
def located(bank: Bank, checkpoint: str | os.PathLike[str] = "") -> Iterator[tuple[pathlib.Path, Variables]]:
    """A context that gives the folder of a bank's pre-trained model, and its variables, checked by the fingerprint.

    Args:
        bank: an open bank; of one in a bucket the model is copied to this machine for as long as the context lasts.
        checkpoint: the folder of the model or its id on the Hugging Face hub, for a bank that does not hold it.

    Yields:
        The folder, with the processor's or the tokeniser's files, as `inputs.read` takes it; and the variables under
        the head that the fingerprint was taken with.

    Raises:
        ValueError: if the bank holds no model and no checkpoint is given, or the model is not the bank's.
    """
    if not banks.has_model(bank):
        if not checkpoint:
            raise ValueError(
                f"the bank {bank.path} does not hold its pre-trained model: {banks.needs(bank)}; give the folder of "
                "that model as the checkpoint"
            )
        folder = tensor_files.local(checkpoint)
        yield folder, _variables(bank, folder)
    elif files.is_remote(bank.path):
        with tempfile.TemporaryDirectory() as room:
            folder = pathlib.Path(room) / "model"
            files.download(bank.path / "model", folder)
            yield folder, _variables(bank, folder)
    else:
        yield bank.path / "model", _variables(bank, bank.path / "model")


def _variables(bank: Bank, folder: str | os.PathLike[str]) -> Variables:
    variables = pretrained.load(folder)[1]
    mark = banks.fingerprint(variables)
    if mark != bank.fingerprint:
        raise ValueError(
            f"{folder} is not the pre-trained model of the bank {bank.path}: its fingerprint is {mark[:12]}, the "
            f"bank's {bank.fingerprint[:12]}"
        )
    return variables
