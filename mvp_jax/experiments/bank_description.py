"""What a job writes into its bank for whoever uses it later: a description, and the pre-trained model."""

import contextlib
import dataclasses
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mvp_jax import bank as banks
from mvp_jax.bank import BankDescription
from mvp_jax.core.types import Variables
from mvp_jax.experiments.plans import JobPlan
from mvp_jax.models.api import Model
from mvp_jax.pretrained import source_files, tensor_files


def described(plan: JobPlan, given: BankDescription | None = None) -> BankDescription:
    """Returns the description of a job's bank.

    Args:
        plan: the job's plan.
        given: what is known beyond it, such as the licence; `None`: nothing.
    """
    setting, given = plan.setting, given or BankDescription()
    inputs: dict[str, object] = {"length": setting.image_shape[0]}
    if len(setting.image_shape) == 3:
        mean, std = setting.normalised or (None, None)
        inputs = {"size": list(setting.image_shape[:2]), "channels": setting.image_shape[2], "mean": mean, "std": std}
    here = f"pre-trained on {len(setting.pretrain_classes)} classes by the job that made the bank"
    return dataclasses.replace(
        given,
        class_names=setting.class_names,
        inputs=inputs,
        weights=given.weights or (f"checkpoint {Path(plan.checkpoint).name}" if plan.checkpoint else here),
    )


def store(plan: JobPlan, bank: banks.Bank, variables: Variables) -> None:
    """Stores the pre-trained model in a bank, with its processor or tokeniser; nothing if it is there.

    Args:
        plan: the job's plan.
        bank: open for writing.
        variables: the pre-trained variables.
    """
    if banks.has_model(bank):
        return
    setting, labels = plan.setting, None
    if not plan.checkpoint and plan.model.num_classes == len(setting.pretrain_classes):
        labels = [setting.class_names[c] for c in setting.pretrain_classes]
    with _inputs(plan) as source:
        banks.store_model(bank, plan.model, variables, source=source, labels=labels)


@contextlib.contextmanager
def _inputs(plan: JobPlan) -> Iterator[Path | None]:
    """A folder with the files by which examples are prepared as the job prepared them; `None`: there are none."""
    own = tensor_files.local(plan.checkpoint) if plan.checkpoint and plan.setting.normalised is None else None
    known = (*source_files.TOKENIZER, *source_files.PROCESSOR)
    if own is not None and any((own / name).is_file() for name in known):
        yield own
    elif len(plan.setting.image_shape) == 3:
        with tempfile.TemporaryDirectory() as room:
            folder = Path(room) / "pretrained"
            folder.mkdir()
            (folder / "preprocessor_config.json").write_text(processor(plan.model, plan.setting.normalised))
            yield folder
    else:
        yield None


def processor(model: Model, normalised: tuple[tuple[float, ...], tuple[float, ...]] | None) -> str:
    """Returns a `preprocessor_config.json` that makes the model's input of pictures of any size.

    Args:
        model: a model of pictures.
        normalised: the mean and the standard deviation of each channel; `None`: pictures stay in [0, 1].

    >>> from mvp_jax import models
    >>> json.loads(processor(models.create("resnet8", image_size=8, channels=1, classes=2), None))["size"]
    {'height': 8, 'width': 8}
    """
    height, width, channels = model.input_shape
    mean, std = normalised or ([0.0] * channels, [1.0] * channels)
    return json.dumps(
        {
            "image_processor_type": "ViTImageProcessor",
            "do_resize": True,
            "size": {"height": height, "width": width},
            "resample": 2,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": normalised is not None,
            "image_mean": list(mean),
            "image_std": list(std),
        },
        indent=1,
    )
