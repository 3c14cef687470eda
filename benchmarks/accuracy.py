"""Top-1 accuracy of a PyTorch checkpoint, read by its names and run in JAX, on the test split of an archive.

    python benchmarks/accuracy.py --data cifar100_full.npz --model resnet8_distiller --checkpoint FILE.safetensors

The published accuracy of a checkpoint tests a loader: names, layouts, padding, normalisation must all be right. With
`--prune 0.1` that share of the filters of smallest norm goes too: the masked model is exported under its old names and
loaded again, the slim one saved and reloaded, and both must be as accurate as the masked one in memory.
"""

import argparse
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

from mvp_jax import compact, models, pretrained
from mvp_jax.core import prune, units
from mvp_jax.core.types import Variables
from mvp_jax.data import sources
from mvp_jax.models.api import Model
from mvp_jax.pretrained import export
from mvp_jax.train import evaluation

STATISTICS = {
    "distiller": ((0.507, 0.487, 0.441), (0.267, 0.256, 0.276)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="an .npz archive with a test split")
    parser.add_argument("--model", default="resnet8_distiller", choices=sorted(models.PRESETS))
    parser.add_argument("--checkpoint", help="safetensors with PyTorch's names")
    parser.add_argument("--prune", type=float, default=0.0, help="share of the filters, for the way out and in again")
    parser.add_argument("--quick", action="store_true", help="only show that it runs: a fresh model on digits")
    args = parser.parse_args()

    if args.quick:
        source = sources.digits()
        args.model, args.prune = "resnet8 (fresh)", 0.5
        model = models.create("resnet8", image_size=8, channels=1, classes=10)
        test, variables = source.train, model.init(jax.random.key(0))
    else:
        if not args.data or not args.checkpoint:
            parser.error("give --data and --checkpoint")
        source = sources.npz(args.data)
        mean, std = STATISTICS["distiller" if "distiller" in args.model else "imagenet"]
        test = sources.normalise(source, mean, std).test or parser.error(f"{args.data} has no test split")
        model = models.create(args.model, image_size=source.image_shape[0], channels=3, classes=source.num_classes)
        _, variables = pretrained.load(args.checkpoint, model)

    def accuracy(model: Model, variables: Variables) -> str:
        correct = 0
        for start in range(0, len(test.y), 500):
            x, y = test.x[start : start + 500], test.y[start : start + 500]
            logits, _ = evaluation.infer(model, variables, jnp.asarray(x), batch=500)
            correct += int(np.sum(np.argmax(np.asarray(logits), -1) == y))
        return f"{correct / len(test.y):.2%}"

    print(f"{args.model}: {accuracy(model, variables)} of {len(test.y)} images of {source.name}")
    if args.prune:
        groups = tuple(g for g in model.groups if g.kind == "filter")
        counts = prune.keep_counts({g.name: g.size for g in groups}, args.prune)
        kept = prune.by_leaf(units.reduce(variables.params, groups), counts)
        masked = compact.mask(variables, groups, kept)
        slim_model, slim = compact.rebuild(model, variables, kept)
        with tempfile.TemporaryDirectory() as place:
            folder = pathlib.Path(place)
            written = export.checkpoint(folder / "masked", model, masked, origin="CIFAR")
            again = pretrained.load(written.path / "model.safetensors", model)
            saved = pretrained.reload(pretrained.save(folder / "slim", slim_model, slim, units=kept))
        for name, pair in (("masked", (model, masked)), ("exported and loaded", again), ("slim, reloaded", saved)):
            print(f"  {args.prune:.0%} of the filters gone, {name}: {accuracy(*pair)}")


if __name__ == "__main__":
    main()
