"""The job `pretrain`: trains a dense network with labels or without, to be pruned afterwards. It writes

    DIR/model/         the network that other jobs read            DIR/states/           the state to go on from
    DIR/results.csv    accuracy on validation and test images      DIR/metrics.jsonl     loss, accuracy, learning rate
    DIR/pretraining.png

Jobs that prune pre-train their model by `learn` too, in `DIR/pretrain/`. Data that fit into memory are put on the
device as a whole; of others each batch is read by `data.loading.streams` while the step before it runs.
"""

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from mvp_jax import pretrained, train
from mvp_jax.compact import cost
from mvp_jax.core.types import Batch, Variables
from mvp_jax.data import sources, tasks
from mvp_jax.data.augment import cropping, named
from mvp_jax.data.datasets import catalog
from mvp_jax.data.loading import lazy, streams
from mvp_jax.experiments.setup import Setting, batch_of
from mvp_jax.models.api import Model, replace_head
from mvp_jax.parallel import processes
from mvp_jax.reports import plots
from mvp_jax.storage import checkpoint, event_files, files, records
from mvp_jax.train import evaluation, learning_rates, pretraining, probe, simsiam


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainPlan:
    """The plan of the job `pretrain`: its checked config.

    Attributes:
        setting: the pools and classes; training images are those of `setting.pools.source`.
        model: the dense network.
        settings: how it is trained.
        seed: the seed of weights, batches and augmentation.
        streamed: whether batches are read from the host during training; if not, all images are on the device.
        host: `(image, rng) -> image`, applied to each image on the host when it is read, for images of many sizes;
            `None`: nothing is.
        mesh: the devices that share each batch; `None`: one device.
        tensorboard: whether curves are also written for TensorBoard.

    Raises:
        ValueError: if a batch cannot be divided evenly among the devices.
    """

    setting: Setting
    model: Model
    settings: pretraining.Settings
    seed: int
    streamed: bool = False
    host: streams.HostTransform | None = None
    mesh: Mesh | None = None
    tensorboard: bool = False

    def __post_init__(self) -> None:
        if self.mesh is not None and self.settings.batch % self.mesh.size:
            raise ValueError(f"a batch of {self.settings.batch} cannot be shared out over {self.mesh.size} devices")

    def pool(self, name: Literal["source", "valid", "test"]) -> sources.Arrays:
        """Returns the images of the pre-training classes in the pool of a given name, with their labels."""
        return tasks.subset(getattr(self.setting.pools, name), self.setting.pretrain_classes)


def check(config: ConfigDict, chosen: Setting, model: Model, mesh: Mesh | None = None) -> PretrainPlan:
    """Returns the plan of a pre-training, after checks of its settings.

    Args:
        config: a resolved config; its fields `pretrain`, `data`, `seed` and `tensorboard` are read.
        chosen: the data, as `pools.load` returns them.
        model: the dense network.
        mesh: the devices that share each batch; `None`: one device.

    Raises:
        ValueError: for settings that are out of range or do not fit together.
    """
    given, data = config.pretrain.to_dict(), config.data
    del given["classes"]
    name, host, x = given.pop("augment"), None, chosen.pools.source.x
    if given["method"] == "simsiam":
        given["views"] = named.views(name, *_normalised(name, data))
    else:
        if isinstance(x, lazy.Lazy) and name.startswith("resized_flip"):
            # Boxes are cut from the whole picture when it is read; the rest is done on the device.
            host, name = cropping.resized_crop(chosen.image_shape[0]), name.removeprefix("resized_flip").strip("_")
        given["augment"] = augmentation(name or "none", data)
    if config.tensorboard:
        event_files.check()
    return PretrainPlan(
        setting=chosen,
        model=model,
        settings=pretraining.Settings(**given),
        seed=config.seed,
        host=host,
        mesh=mesh,
        streamed=data.stream or not isinstance(x, np.ndarray),
        tensorboard=config.tensorboard,
    )


def augmentation(name: str, data: ConfigDict) -> train.Augment | None:
    """Returns an augmentation, `(key, images) -> images`, by its name; `None` for the name `none`.

    Args:
        name: the name, as `data.augment.named.augmentation` takes it, such as `crop_flip`.
        data: the config's group `data`, which says how images are normalised.

    Raises:
        ValueError: for an unknown name, or if the augmentation has to know the normalisation and it is not given.
    """
    return named.augmentation(name, *_normalised(name, data))


def _normalised(name: str, data: ConfigDict) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Returns the mean and deviation that images are normalised by; `None` if the augmentation need not know them."""
    known = catalog.CATALOG.get(data.name)
    mean, std = (known.mean, known.std) if known and data.mean is None else (data.mean, data.std)
    if not named.needs_range(name) or (data.name == "digits" and mean is None):
        return None, None
    if mean is None or std is None:
        raise ValueError(
            f"the augmentation {name!r} changes colours, and has to know how images are normalised; give data.mean and "
            "data.std"
        )
    return tuple(mean), tuple(std)


def predict(
    model: Model, variables: Variables, pair: sources.Arrays, batch: int = 256
) -> tuple[np.ndarray, np.ndarray]:
    """Returns logits `[N, Y]` and features `[N, F]` of images on the host, in evaluation mode.

    Args:
        model: the model.
        variables: its variables.
        pair: `N` images and their labels on the host.
        batch: the number of images that are on the device at a time.
    """
    logits, features = evaluation.infer(model, variables, pair.x, batch=batch, read=sources.to_float)
    return np.asarray(logits), np.asarray(features)


def accuracy(model: Model, variables: Variables, pair: sources.Arrays) -> float:
    """Returns the accuracy on images on the host, in [0, 1]: the fraction whose label has the highest logit.

    Args:
        model: the model.
        variables: its variables.
        pair: images and their labels on the host.
    """
    return float(np.mean(predict(model, variables, pair)[0].argmax(-1) == pair.y))


def classifier(plan: PretrainPlan, variables: Variables) -> Variables:
    """Returns the trained network's variables as a classifier.

    A network trained with labels has a head of its own. One trained without gets a head fitted by logistic regression
    to the features of `plan.settings.examples` labelled training images.

    Args:
        plan: the job's plan.
        variables: the trained variables.
    """
    if plan.settings.method == "supervised":
        return variables
    pool, body = plan.pool("source"), simsiam.body(variables)
    chosen = np.random.default_rng(plan.seed).permutation(len(pool.y))[: plan.settings.examples]
    few = sources.Arrays(pool.x[np.sort(chosen)], pool.y[np.sort(chosen)])
    _, features = predict(plan.model, body, few)
    kernel, bias = probe.logistic(jnp.asarray(features), jnp.asarray(few.y), plan.model.num_classes)
    return replace_head(body, plan.model, kernel=kernel, bias=bias)


def run(plan: PretrainPlan, folder: Path) -> list[dict[str, Any]]:
    """Trains the network, or goes on where a killed run stopped, and returns the rows of `results.csv`.

    Args:
        plan: the job's plan.
        folder: the folder of the run.

    Raises:
        ValueError: if training diverges, or the folder holds states of another model.
    """
    if not files.exists(folder / "results.csv"):
        processes.only_first("pre-training", lambda: learn(plan, folder))
        processes.only_first("results", lambda: _finish(plan, folder))
    return records.read_csv(folder / "results.csv")


def learn(plan: PretrainPlan, folder: Path) -> None:
    """Trains to the end, or goes on where a killed run stopped, and writes `folder/model`.

    Only one of several processes calls it.

    Args:
        plan: the job's plan.
        folder: the folder of the run; states and metrics are written there too.

    Raises:
        ValueError: if training diverges, or the folder holds states of another model.
    """
    settings = plan.settings
    if settings.keep == "last" and files.complete(folder / "model", "model.json"):
        return
    recipe, state = pretraining.begin(plan.model, settings, jax.random.key(plan.seed), mesh=plan.mesh)
    pool, valid = plan.pool("source"), plan.pool("valid")
    stream = _stream(plan, pool) if plan.streamed else None
    with checkpoint.Checkpoints(folder / "states", alone=True) as saved:
        if saved.latest() is not None:
            state, position = saved.restore((state, stream.state() if stream else {}))
            stream = stream.at(position) if stream else None
        done = int(state.step)
        board = event_files.Board(folder / "board", after=done) if plan.tensorboard else contextlib.nullcontext()
        with (
            board as curves,
            _data(plan, pool, stream) as data,
            records.progress(settings.steps, f"pre-training, {settings.method}") as advanced,
            records.MetricsWriter(folder / "metrics.jsonl", after=done, board=curves) as written,
        ):
            advanced(done)
            while done < settings.steps:
                count = min(settings.save_every - done % settings.save_every, settings.steps - done)
                state, metrics = train.fit(recipe, state, data, count, total=settings.steps)
                if not bool(state.alive):
                    raise ValueError(
                        f"pre-training diverged after step {int(state.step)}: a loss or a weight is not finite; lower "
                        "pretrain.learning_rate, or give pretrain.warmup or pretrain.clip"
                    )
                done += count
                judged, variables = _judge(plan, recipe.model, state, valid)
                seen = {"accuracy": metrics["accuracy"]} if settings.judged else {}
                now = learning_rates.at(done - 1, settings.learning_rate, steps=settings.steps, warmup=settings.warmup)
                # The line comes first: lines of later steps than the saved state are written again after a kill. Then
                # the model, as the last one says that nothing is left to do.
                written.write(step=done, loss=metrics["loss"], rate=now, **seen, **judged)
                written.flush()
                _keep(plan, variables, done, judged["valid"], folder / "model")
                saved.save(done, (state, stream.state() if stream else {}))
                advanced(count, f"loss {float(metrics['loss']):.3f}, held out {judged['valid']:.1%}")


def _stream(plan: PretrainPlan, pool: sources.Arrays) -> streams.Stream:
    return streams.stream(
        pool, batch=plan.settings.batch, seed=plan.seed, transform=plan.host, full=plan.host is not None
    )


@contextlib.contextmanager
def _data(plan: PretrainPlan, pool: sources.Arrays, stream: streams.Stream | None) -> Iterator[Batch | Iterator[Batch]]:
    """Gives all images on the device, or an iterator over their batches as they are read."""
    if stream is None:
        whole = None if plan.mesh is None else NamedSharding(plan.mesh, PartitionSpec())
        yield jax.device_put(batch_of(pool), whole)
        return
    with streams.to_device(
        stream, sharding=None if plan.mesh is None else NamedSharding(plan.mesh, pretraining.SHARED)
    ) as found:
        yield found


def _judge(
    plan: PretrainPlan, trained: Model, state: train.TrainState, valid: sources.Arrays
) -> tuple[dict[str, float], Variables]:
    """Returns accuracy on validation images and, without labels, the spread of projections; and the classifier."""
    variables = classifier(plan, state.variables)
    judged = {"valid": accuracy(plan.model, variables, valid)}
    if plan.settings.method == "simsiam":
        few = sources.Arrays(valid.x[: plan.settings.examples], valid.y[: plan.settings.examples])
        judged["spread"] = float(simsiam.spread(jnp.asarray(predict(trained, state.variables, few)[0])))
    return judged, variables


def _keep(plan: PretrainPlan, variables: Variables, step: int, valid: float, kept: Path) -> None:
    """Saves the model if it is due: the last one, or the best so far."""
    if step == plan.settings.steps if plan.settings.keep != "best" else valid > _so_far(kept):
        extra = {"method": plan.settings.method, "step": step, "valid": valid}
        pretrained.save(kept, plan.model, variables, extra=extra)


def _so_far(kept: Path) -> float:
    return float(pretrained.describe(kept)["extra"]["valid"]) if files.exists(kept / "model.json") else -1.0


def _finish(plan: PretrainPlan, folder: Path) -> None:
    """Judges the model on the test images, once, and writes `results.csv` and `pretraining.png`."""
    model, variables = pretrained.reload(folder / "model")
    extra, settings = pretrained.describe(folder / "model")["extra"], plan.settings
    spent = cost.of(model, variables)
    shared = {
        "target": "pretraining",
        "seed": plan.seed,
        "method": settings.method,
        "ratio": 0.0,
        "steps": extra["step"],
        "cost_examples": settings.steps * settings.batch,
        "params": spent.params,
        "flops": spent.flops,
    }
    found = {"valid": extra["valid"], "test": accuracy(model, variables, plan.pool("test"))}
    plot(
        records.read_metrics(folder / "metrics.jsonl"),
        folder / "pretraining.png",
        title=f"Pre-training, {settings.method}",
    )
    records.write_csv(
        [shared | {"split": split, "accuracy": value} for split, value in found.items()], folder / "results.csv"
    )
    records.say(
        f"pre-trained on {len(plan.setting.pretrain_classes)} classes: {found['test']:.1%} on test images, "
        f"{found['valid']:.1%} on validation images; --config.model.checkpoint={folder / 'model'} prunes it"
    )


def plot(lines: Sequence[Mapping[str, Any]], path: str | os.PathLike[str], *, title: str = "Pre-training") -> None:
    """Draws loss and accuracy against steps and writes the picture.

    Args:
        lines: the lines of `metrics.jsonl`, each with `step`, `loss`, `valid` (accuracy on validation images, in
            [0, 1]) and, if known, `accuracy` (on the training batches) and `spread` (of the projections).
        path: the file of the picture.
        title: the text above it.

    Raises:
        ValueError: if there are no lines.
    """
    if not lines:
        raise ValueError("no lines of metrics to draw; give those of metrics.jsonl")
    figure = plots.make_figure(plots.WIDTH, 3.4)
    left, right = figure.subplots(1, 2)
    steps = [line["step"] for line in lines]
    left.plot(steps, [line["loss"] for line in lines], color=plots.COLOURS[0], marker="o", markersize=3)
    left.set_ylabel("loss (mean since the last look)")
    shown = {"valid": "validation", "accuracy": "training batches", "spread": "spread of projections"}
    ends = []
    for k, (name, called) in enumerate(shown.items()):
        if name in lines[0]:
            factor = 1 if name == "spread" else 100
            values = [np.nan if line[name] is None else factor * line[name] for line in lines]
            axes = right if name != "spread" else left.twinx()
            axes.plot(steps, values, color=plots.COLOURS[k], marker=plots.MARKERS[k], markersize=3)
            if axes is right:
                ends.append((float(steps[-1]), float(values[-1]), called, plots.COLOURS[k], name == "valid"))
            else:
                axes.set_ylabel(called, color=plots.COLOURS[k])
    right.set_ylabel("accuracy, %")
    for axes in (left, right):
        axes.set_xlabel("steps")
        plots.tidy(axes)
    plots.name_lines(right, ends, 3.4)
    plots.head(figure, title)
    plots.save(figure, path)


__all__ = ["PretrainPlan", "accuracy", "augmentation", "check", "classifier", "plot", "predict", "run"]
