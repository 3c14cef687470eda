"""Sentiment of sentences (SST-2) by a small BERT from random initialisation: what the text pipeline gives, how fast.

    python benchmarks/sst2.py --data FOLDER
    python benchmarks/sst2.py --quick

`FOLDER` has GLUE's tables, see `mvp_jax.data.glue`. The vocabulary is made of the words of the training split; texts
are tokenised once, kept, and read in buckets of length. A part of the training split chooses the epoch, and the
development split is read once at the end, for each seed. The held-out part has phrases of the same sentences as the
rest, so it is far easier than the development split; it serves to choose only.

Printed too: how long tokenising takes the first time and the second, and what an epoch costs with all texts padded
to one length instead of in buckets.
"""

import argparse
import functools
import itertools
import pathlib
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

from mvp_jax import train
from mvp_jax.core.types import Variables
from mvp_jax.data.checkpoint_inputs import buckets
from mvp_jax.data.datasets import glue
from mvp_jax.models import bert
from mvp_jax.models.api import Model
from mvp_jax.train import evaluation, metrics

WORDS = {1: ("fine", "moving", "a delight"), 0: ("dull", "a mess", "bland")}


def made_up(folder: pathlib.Path) -> pathlib.Path:
    """A table that takes a moment: one word of the sentence decides."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 600), ("dev", 100)):
        rows = []
        for _ in range(count):
            y = int(rng.integers(2))
            around = [f"word{i}" for i in rng.integers(0, 20, rng.integers(1, 24))]
            around.insert(int(rng.integers(len(around))), WORDS[y][rng.integers(3)])
            rows.append(f"{y}\t{' '.join(around)}\n")
        (folder / f"sst2_{split}.tsv").write_text("label\tsentence1\n" + "".join(rows))
    return folder


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def step(model: Model, tx: object, state: train.TrainState, batch: dict, rate: jax.Array) -> tuple:
    state = state._replace(settings=state.settings._replace(learning_rate=rate))
    return train.make_step(model, train.cross_entropy, tx)(state, batch)


def learn(model: Model, data: dict, valid: tuple, args: argparse.Namespace, seed: int) -> tuple[Variables, float, int]:
    """The variables of the epoch that is best on the held-out part."""
    tx = train.optimizer("adamw", weight_decay=0.01, clip=1.0)
    init, key = jax.random.split(jax.random.key(seed))
    state = train.create(model.init(init), tx, key, settings=train.RunSettings(learning_rate=jnp.zeros(())))
    per_epoch = len(data["y"]) // args.batch
    total, best = per_epoch * args.epochs, (None, -1.0, 0)
    steps = buckets.batches(data["x"], data["y"], args.lengths, batch=args.batch, seed=seed)
    for epoch in range(args.epochs):
        for i, batch in enumerate(itertools.islice(steps, per_epoch), epoch * per_epoch):
            warm = min(1.0, (i + 1) / (0.1 * total))
            rate = np.float32(args.rate * warm * 0.5 * (1 + np.cos(np.pi * i / total)))
            state, _ = step(model, tx, state, batch, rate)
        logits, _ = buckets.predict(
            functools.partial(evaluation.infer, model, state.variables), valid[0], args.lengths, batch=args.batch
        )
        accuracy = metrics.score(("accuracy",), logits, valid[1])["accuracy"]
        if accuracy > best[1]:
            best = (jax.tree.map(np.asarray, state.variables), accuracy, epoch + 1)
    return best


def seconds(model: Model, data: dict, args: argparse.Namespace, lengths: tuple[int, ...], count: int) -> float:
    """Of processors, for a training step on average, everything compiled; other work beside it does not count."""
    tx = train.optimizer("adamw", weight_decay=0.01, clip=1.0)
    state = train.create(
        model.init(jax.random.key(0)), tx, jax.random.key(1), settings=train.RunSettings(learning_rate=jnp.zeros(()))
    )
    for part in ("compile", "measure"):
        steps = buckets.batches(data["x"], data["y"], lengths, batch=args.batch, seed=0)
        seen: set[int] = set()
        start = time.process_time()
        for batch in itertools.islice(steps, count):
            if part == "measure" or batch["x"].shape[1] not in seen:
                seen.add(batch["x"].shape[1])
                state, _ = step(model, tx, state, batch, np.float32(1e-3))
        jax.block_until_ready(state)
    return (time.process_time() - start) / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a folder with GLUE's tables")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--vocabulary", type=int, default=10_000)
    parser.add_argument("--lengths", type=int, nargs="+", default=[8, 16, 32, 64])
    parser.add_argument("--held-out", type=int, default=3000, help="training examples that choose the epoch")
    parser.add_argument("--quick", action="store_true", help="only show that it runs: a made-up table")
    args = parser.parse_args()
    args.lengths = tuple(args.lengths)
    with tempfile.TemporaryDirectory() as place:
        folder = pathlib.Path(place)
        if args.quick:
            args.data, args.seeds, args.epochs, args.batch, args.held_out = made_up(folder), 1, 8, 32, 100
            args.dim, args.layers, args.lengths, args.dropout, args.rate = 16, 1, (8, 16, 32), 0.0, 1e-2
        elif not args.data:
            parser.error("give --data, or --quick")
        options = {"length": args.lengths[-1], "vocabulary": args.vocabulary}
        texts = glue.read("sst2", args.data)
        tokenizer = glue.encoded.words(texts.train.first, args.vocabulary)
        took = []
        for _ in range(2):
            start = time.perf_counter()
            glue.encoded.encoded(texts.train.first, tokenizer, args.lengths[-1], folder / "ids")
            took.append(time.perf_counter() - start)
        source = glue.source("sst2", args.data, tokenizer, cache=folder / "ids", **options)
        x, y = np.array(source.train.x), source.train.y
        test = source.test._replace(x=np.array(source.test.x))  # copies, as the folder goes
    print(
        f"{len(y):,} texts tokenised in {took[0]:.2f} s, read back in {took[1]:.3f} s ({took[0] / took[1]:.0f} times)"
    )
    order = np.random.default_rng(0).permutation(len(y))
    held, rest = order[: args.held_out], order[args.held_out :]
    data = {"x": x[rest], "y": y[rest]}
    model = bert.build(
        bert.micro(
            len(tokenizer.vocab), positions=args.lengths[-1], dim=args.dim, layers=args.layers, mlp=2 * args.dim,
            classes=2, dropout=args.dropout, attention_dropout=0.0,
        )
    )  # fmt: skip
    count = min(40, len(rest) // args.batch)
    one, many = seconds(model, data, args, args.lengths[-1:], count), seconds(model, data, args, args.lengths, count)
    print(
        f"a step of {args.batch}: {1e3 * one:.1f} ms of CPU at length {args.lengths[-1]}, {1e3 * many:.1f} ms in "
        f"buckets {args.lengths} ({one / many:.1f} times faster)"
    )
    found = []
    for seed in range(args.seeds):
        start = time.process_time()
        variables, valid, epoch = learn(model, data, (x[held], y[held]), args, seed)
        logits, _ = buckets.predict(
            functools.partial(evaluation.infer, model, variables), test.x, args.lengths, batch=args.batch
        )
        found.append(metrics.score(("accuracy", "f1", "matthews"), logits, test.y))
        print(
            f"seed {seed}: held-out phrases {valid:.1%} (epoch {epoch}), development split "
            + ", ".join(f"{name} {value:.3f}" for name, value in found[-1].items())
            + f", {time.process_time() - start:.0f} s of CPU",
            flush=True,
        )
    accuracies = np.array([f["accuracy"] for f in found])
    majority = np.bincount(test.y).max() / len(test.y)
    spread = f" ± {accuracies.std(ddof=1):.1%}" if len(found) > 1 else ""
    print(
        f"accuracy {accuracies.mean():.1%}{spread} (sd of {len(found)} seeds), always the larger class {majority:.1%}"
    )


if __name__ == "__main__":
    main()
