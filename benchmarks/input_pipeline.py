"""Does a training step wait for its data, and how fast are pictures read beside plain Grain and tf.data?

    pip install -e '.[data]' tensorflow            # without TensorFlow its rows are left out
    python benchmarks/input_pipeline.py [--batch 128] [--steps 30] [--rounds 5] [--pictures 256] [--epochs 2] [--quick]

Waiting: a ResNet-18 on uint8 images of 32 pixels, normalised, cropped and flipped on the device. Steps on a batch that
lies on the device alternate with steps whose batch comes from `to_device(stream(...))`. Each step is waited for before
the next batch is asked for; the share is the time between asking and getting, of all the time. The ratio of the two
kinds of steps shows what reading takes away from the computation besides, where both share the same cores.

Pictures: JPEGs of 500×375 pixels in a temporary folder are read, decoded whole, cropped at random, resized to 224 with
an antialiased bilinear filter, mirrored at random and batched, on the host. All three do that work: `streams.stream`
with `cropping.resized_crop`; Grain by itself with the same function; tf.data with TensorFlow's operations. They take
turns, every other round backwards; a ratio comes from two times of one round, and the median is given (least to most).
The machine must be idle. The tables are followed by one line of JSON.
"""

import argparse
import functools
import io
import json
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from PIL import Image

from mvp_jax import models, train
from mvp_jax.data import augment, sources
from mvp_jax.data.augment import cropping
from mvp_jax.data.loading import lazy, streams


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=128, help="of the ResNet-18")
    parser.add_argument("--steps", type=int, default=30, help="of each kind")
    parser.add_argument("--conv", default="native", choices=("native", "im2col"))
    parser.add_argument("--pictures", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=2, help="of the pictures, read in a round by each")
    parser.add_argument("--picture-batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="that decode")
    parser.add_argument("--quick", action="store_true", help="only show that it runs")
    args = parser.parse_args()
    if args.quick:
        args.batch, args.steps, args.pictures, args.picture_batch, args.rounds = 8, 4, 16, 4, 2
    if args.pictures % args.picture_batch:
        parser.error("the pictures must fill their batches, or some would be read and not counted")
    here = {"cores": os.cpu_count(), "device": jax.devices()[0].device_kind, "jax": jax.__version__}
    print(f"{here}, load average before {os.getloadavg()[0]:.1f}", flush=True)
    print(json.dumps(here | {"waiting": waiting(args), "pictures": pictures(args)}))


def waiting(args: argparse.Namespace) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    examples = max(8 * args.batch, 50_000 // (100 if args.quick else 1))
    data = sources.Arrays(
        rng.integers(0, 256, (examples, 32, 32, 3), np.uint8), rng.integers(0, 10, examples).astype(np.int32)
    )
    more = {"width": 4} if args.quick else {}
    model = models.create(
        "resnet8" if args.quick else "resnet18", image_size=32, channels=3, classes=10, conv=args.conv, **more
    )
    fns = (augment.crop, augment.flip)

    def varied(key: jax.Array, x: jax.Array) -> jax.Array:
        return augment.apply(key, augment.normalise(x, 0.5, 0.25), fns)

    tx = train.optimizer("sgd", momentum=0.9)
    step = jax.jit(train.make_step(model, train.cross_entropy, tx, augment=varied), donate_argnums=0)
    settings = train.RunSettings(learning_rate=0.01)
    state = train.create(model.init(jax.random.key(0)), tx, jax.random.key(1), settings=settings)
    times: dict[str, list[float]] = {"resident": [], "streamed": [], "waited": []}
    with streams.to_device(streams.stream(data, batch=args.batch, seed=0)) as batches:
        resident = next(batches)
        for i in range(args.steps + 2):
            kinds = ("resident", "streamed") if i % 2 else ("streamed", "resident")
            for kind in kinds:
                start = time.perf_counter()
                batch = jax.block_until_ready(next(batches)) if kind == "streamed" else resident
                got = time.perf_counter()
                state, _ = jax.block_until_ready(step(state, batch))
                end = time.perf_counter()
                if i >= 2:  # the first compile
                    times[kind].append(end - start)
                    if kind == "streamed":
                        times["waited"].append(got - start)
    share = sum(times["waited"]) / sum(times["streamed"])
    ratios = [a / b for a, b in zip(times["streamed"], times["resident"], strict=True)]
    found = {
        "batch": args.batch,
        "step_ms": 1000 * statistics.median(times["streamed"]),
        "waited_ms": 1000 * statistics.median(times["waited"]),
        "share": share,
        "streamed_by_resident": statistics.median(ratios),
    }
    print("\n| batch | ms a step | ms waited | share waited | a streamed step by one on resident data |")
    print("|--:|--:|--:|--:|--:|")
    print(
        f"| {args.batch} | {found['step_ms']:.1f} | {found['waited_ms']:.2f} | {share:.2%} "
        f"| {found['streamed_by_resident']:.3f} ({min(ratios):.3f} to {max(ratios):.3f}) |",
        flush=True,
    )
    return found


def pictures(args: argparse.Namespace) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        files = write_pictures(pathlib.Path(folder), args.pictures)
        mean = sum(f.stat().st_size for f in files) / len(files) / 1024
        contenders = {"mvp_jax": with_streams(files, args), "grain": with_grain(files, args)}
        try:
            contenders["tf.data"] = with_tensorflow(files, args)
        except ImportError:
            print("tf.data left out: TensorFlow is not installed")
        times: dict[str, list[float]] = {name: [] for name in contenders}
        for i in range(args.rounds + 1):
            for name in sorted(contenders, reverse=bool(i % 2)):
                start = time.perf_counter()
                seen = 0
                for batch in contenders[name]():
                    assert batch.shape[1:] == (224, 224, 3), batch.shape
                    assert batch.dtype == np.uint8, batch.dtype
                    seen += len(batch)
                assert seen == args.pictures * args.epochs, seen
                if i:  # the first fills caches, and builds the graph
                    times[name].append((time.perf_counter() - start) / seen)
    print(f"\n{len(files)} JPEGs of 500×375 pixels, {mean:.0f} KiB each, {args.threads} threads\n")
    print("| reader | images/s | times mvp_jax's speed |\n|---|--:|--:|")
    rows = []
    for name, spent in times.items():
        ratios = [a / b for a, b in zip(times["mvp_jax"], spent, strict=True)]
        speed = 1 / statistics.median(spent)
        rows.append({"reader": name, "images_per_second": speed, "ratios": ratios})
        print(f"| {name} | {speed:.0f} | {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |")
    return rows


def write_pictures(folder: pathlib.Path, count: int) -> list[pathlib.Path]:
    """Pictures with large shapes and fine grain, so that their files are as large as those of photographs."""
    rng = np.random.default_rng(0)
    files = []
    for i in range(count):
        shapes = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize(
            (500, 375), Image.Resampling.BICUBIC
        )
        grain = rng.normal(0, 12, (375, 500, 1))
        stream = io.BytesIO()
        Image.fromarray(np.clip(np.asarray(shapes) + grain, 0, 255).astype(np.uint8)).save(stream, "JPEG", quality=90)
        files.append(folder / f"{i:04}.jpg")
        files[-1].write_bytes(stream.getvalue())
    return files


def with_streams(files: list[pathlib.Path], args: argparse.Namespace) -> Callable[[], Iterator[np.ndarray]]:
    x = lazy.pictures(lambda i: files[i].read_bytes(), len(files), size=224)
    source = sources.Arrays(x, np.zeros(len(files), np.int32))
    make = functools.partial(
        streams.stream, batch=args.picture_batch, seed=0, epochs=args.epochs, threads=args.threads,
        transform=cropping.resized_crop(224), full=True,
    )  # fmt: skip

    def read() -> Iterator[np.ndarray]:
        one = make(source)
        try:
            yield from (batch["x"] for batch in one)
        finally:
            one.close()

    return read


def with_grain(files: list[pathlib.Path], args: argparse.Namespace) -> Callable[[], Iterator[np.ndarray]]:
    import grain

    crop = cropping.resized_crop(224)

    def load(path: pathlib.Path, rng: np.random.Generator) -> np.ndarray:
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            return crop(np.asarray(image.convert("RGB")), rng)

    made = grain.MapDataset.source(files).seed(0).shuffle().repeat(args.epochs).random_map(load)
    # As Grain's guide has it: threads read examples, which are batched afterwards.
    options = grain.ReadOptions(num_threads=args.threads, prefetch_buffer_size=2 * args.picture_batch)
    batches = made.to_iter_dataset(options).batch(args.picture_batch)

    def read() -> Iterator[np.ndarray]:
        found = iter(batches)
        try:
            yield from found
        finally:
            found.close()

    return read


def with_tensorflow(files: list[pathlib.Path], args: argparse.Namespace) -> Callable[[], Iterator[np.ndarray]]:
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")
    tf.config.threading.set_intra_op_parallelism_threads(1)

    def load(path: Any, seed: Any) -> Any:
        image = tf.io.decode_jpeg(tf.io.read_file(path), channels=3)
        seeds = tf.stack([seed, 0])
        start, size, _ = tf.image.stateless_sample_distorted_bounding_box(
            tf.shape(image), tf.zeros((1, 0, 4)), seeds, min_object_covered=0, aspect_ratio_range=(3 / 4, 4 / 3),
            area_range=(0.08, 1.0), max_attempts=10, use_image_if_no_bounding_boxes=True,
        )  # fmt: skip
        cut = tf.image.resize(tf.slice(image, start, size), (224, 224), antialias=True)
        cut = tf.image.stateless_random_flip_left_right(cut, seeds)
        return tf.cast(tf.clip_by_value(tf.round(cut), 0, 255), tf.uint8)

    made = tf.data.Dataset.from_tensor_slices([str(f) for f in files]).shuffle(len(files), seed=0).repeat(args.epochs)
    made = tf.data.Dataset.zip(made, tf.data.Dataset.counter()).map(load, num_parallel_calls=args.threads)
    made = made.batch(args.picture_batch, drop_remainder=True).prefetch(2)
    options = tf.data.Options()
    options.threading.private_threadpool_size = args.threads
    made = made.with_options(options)
    return lambda: made.as_numpy_iterator()


if __name__ == "__main__":
    main()
