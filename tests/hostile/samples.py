"""Small sound files of every kind that is read, made in a folder: what a reader must take, and what is then damaged."""

import functools
import gzip
import io
import json
import pathlib
import shutil
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from PIL import Image

from mvp_jax import bank, models, pretrained
from mvp_jax.storage import checkpoint, event_files, records
from tests.hostile import readers

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
MODEL = models.create("resnet8", width=4, image_size=8, channels=1, classes=3)
VOCAB = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "##c", "prune", "net")
ROW = {"target": "t0", "seed": 0, "method": "mvp", "ratio": 0.5, "steps": 0, "split": "test", "accuracy": 0.5}


@functools.cache
def variables():
    return MODEL.init(jax.random.key(0))


def hugging_face(folder, name="bert"):
    """A golden checkpoint as a folder of `transformers`."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(GOLDEN / f"{name}.safetensors", folder / "model.safetensors")
    described = GOLDEN / f"{name}.json"
    with np.load(GOLDEN / f"{name}.npz") as found:
        text = described.read_text() if described.exists() else str(found["config"])
    (folder / "config.json").write_text(text)
    return folder


def shards(folder):
    hugging_face(folder)
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    index = {}
    for number, own in enumerate((names[::2], names[1::2]), 1):
        file = f"model-{number:05d}-of-00002.safetensors"
        safetensors.numpy.save_file({n: tensors[n] for n in own}, folder / file)
        index |= dict.fromkeys(own, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder


def words(folder):
    """BERT with its tokeniser, as the source of a model that is saved."""
    hugging_face(folder)
    (folder / "vocab.txt").write_text("\n".join(VOCAB) + "\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True})
    )
    (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": "[PAD]"}))
    (folder / "added_tokens.json").write_text("{}")
    (folder / "LICENSE").write_text("CC0\n")
    (folder / "README.md").write_text("---\nlicense: cc0-1.0\n---\n\n# A model\n")
    return folder


def tokenizer_json(folder):
    from mvp_jax.data.checkpoint_inputs import tokens

    words(folder)
    tokens.tokenizer(folder).backend.save(str(folder / "tokenizer.json"))
    (folder / "vocab.txt").unlink()
    return folder


def byte_pairs(folder):
    folder.mkdir(parents=True, exist_ok=True)
    names = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "a", "b", "ab", "\u0120"]
    (folder / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))
    (folder / "merges.txt").write_text("#version: 0.2\na b\n")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "RobertaTokenizer"}')
    return folder


def sentences(folder):
    """An encoder of `sentence-transformers`."""
    tensors = safetensors.numpy.load_file(GOLDEN / "bert.safetensors")
    hugging_face(folder)
    own = {n.removeprefix("bert."): a for n, a in tensors.items() if n.startswith("bert.") and "pooler" not in n}
    safetensors.numpy.save_file(own, folder / "model.safetensors")
    described = json.loads((folder / "config.json").read_text()) | {"architectures": ["BertModel"]}
    (folder / "config.json").write_text(json.dumps(described))
    steps = [("Transformer", ""), ("Pooling", "1_Pooling")]
    listed = [{"idx": i, "name": str(i), "path": at, "type": f"st.models.{kind}"} for i, (kind, at) in enumerate(steps)]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    return folder


def processor(folder):
    folder.mkdir(parents=True, exist_ok=True)
    fields = {"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 8}, "resample": 2}
    fields |= {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "rescale_factor": 0.00392}
    (folder / "preprocessor_config.json").write_text(json.dumps(fields))
    return folder


def merges(folder):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "bpe.txt.gz"
    path.write_bytes(gzip.compress(b"#version: 0.2\na b\n", mtime=0))
    return path


def saved(folder):
    return pretrained.save(folder, MODEL, variables(), extra={"labels": ["a", "b", "c"]})


def sparse(folder):
    zeros = jax.tree.map(lambda a: a * (jnp.arange(a.size).reshape(a.shape) % 4 == 0), variables())
    return pretrained.save(folder, MODEL, zeros, sparse=True)


def a_bank(folder, tasks=("cats", "dogs")):
    mark = bank.fingerprint(variables())
    about = bank.BankDescription(title="Pets", class_names=("ant", "bee", "cat"), licence="CC0")
    made = bank.create(folder, fingerprint=mark, settings={"ratio": 0.5}, about=about, dense=(MODEL, variables()))
    for i, task in enumerate(tasks):
        entry = bank.BankEntry(
            task=task, classes=(0, i + 1), fingerprint=mark, ratio=0.5, accuracy=0.5, cost={"steps": 3}
        )
        bank.add(made, entry, {"other": {"x": np.arange(5 + i), "y": jnp.ones(3, jnp.bfloat16)}, "empty": {}})
    return folder


def archive(folder):
    a_bank(folder / "bank")
    return bank.pack(bank.open(folder / "bank"), folder / "bank.zip")


def table(folder, ending=".csv"):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"reviews{ending}"
    rows = [(f"review {i}", ("dull", "fine")[i % 2]) for i in range(20)]
    if ending == ".json":
        path.write_text(json.dumps([{"text": a, "label": b} for a, b in rows]))
    elif ending == ".jsonl":
        path.write_text("".join(json.dumps({"text": a, "label": b}) + "\n" for a, b in rows))
    else:
        mark = "\t" if ending == ".tsv" else ","
        path.write_text("".join(f"{a}{mark}{b}\n" for a, b in [("text", "label"), *rows]))
    return path


def glue_task(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "dev"):
        (folder / f"sst2_{split}.tsv").write_text("label\tsentence1\n1\tfine work\n0\tdull\n")
    return folder


def png(folder, name="0.png", level=0, **more):
    folder.mkdir(parents=True, exist_ok=True)
    x = (np.arange(8 * 8 * 3).reshape(8, 8, 3) + level) % 256
    Image.fromarray(x.astype(np.uint8)).save(folder / name, **more)
    return folder / name


def pictures(folder):
    for kind in ("ant", "bee"):
        for i in range(4):
            png(folder / kind, f"{i}.png", level=7 * i + (kind == "bee"))
    return folder


def street_signs(folder):
    root = folder / "GTSRB"
    for part in ("Final_Training", "Final_Test"):
        png(root / part / "Images" / "00000", "0.ppm")
    return folder


def npz(folder, **arrays):
    folder.mkdir(parents=True, exist_ok=True)
    x = np.arange(20 * 16, dtype=np.uint8).reshape(20, 4, 4)
    held = arrays or {"train_images": x, "train_labels": np.arange(20) % 2, "class_names": np.array(["ant", "bee"])}
    np.savez(folder / "toy.npz", **held)
    return folder / "toy.npz"


def results(folder):
    rows = [
        {**ROW, "seed": seed, "method": method, "accuracy": 0.5 + 0.1 * seed + 0.05 * i, "split": split}
        for seed in (0, 1)
        for i, method in enumerate(("ifp", "mvp"))
        for split in ("valid", "test")
    ]
    records.write_csv(rows, folder / "results.csv")
    return folder / "results.csv"


def run(folder):
    results(folder)
    records.write_json(folder / "config.json", {"job": "mvp", "seed": 0, "steps": [0, 2]})
    return folder


def run_json(folder):
    records.write_json(folder / "rows.json", [ROW])
    return folder / "rows.json"


def metrics_lines(folder):
    with records.MetricsWriter(folder / "metrics.jsonl") as writer:
        writer.write(step=1, loss=0.5)
        writer.write(step=2, loss=0.25)
    return folder / "metrics.jsonl"


def rate_table(folder):
    folder.mkdir(parents=True, exist_ok=True)
    head = "method,ratio,factor,learning_rate,accuracy,n,chosen,try_besides"
    (folder / "rates.csv").write_text(f"{head}\nmvp,0.5,1,0.1,0.5,3,1,\nmvp,0.5,2,0.2,0.4,3,0,\n")
    return folder


def mask(folder):
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "mask.npz", w=np.array([255, 1], np.uint8))
    return folder / "mask.npz"


def arrays(folder):
    held = {"variables": models_variables(), "units": {"a/b": np.array([True, False])}, "empty": {}}
    checkpoint.save_arrays(folder / "arrays.safetensors", held)
    return folder / "arrays.safetensors"


def models_variables():
    from mvp_jax.core.types import Variables

    return Variables({"fc": {"kernel": jnp.ones((2, 3), jnp.bfloat16)}}, {"empty": {}})


def state(folder):
    with checkpoint.Checkpoints(folder) as store:
        store.save(7, readers.STATE)
    return folder


def program(folder):
    return pretrained.export.program(folder, MODEL, variables()).path


def events(folder):
    with event_files.Board(folder) as board:
        board.write(step=1, loss=0.5)
    return next(folder.iterdir())


def content(arrays, **metadata):
    """The bytes of a safetensors file."""
    return safetensors.numpy.save(arrays, metadata=metadata or None)


def npy(array, **more):
    stream = io.BytesIO()
    np.save(stream, array, **more)
    return stream.getvalue()


def in_room(make, *given):
    """A sample in a folder of its own, for a look at one."""
    return make(pathlib.Path(tempfile.mkdtemp()) / "it", *given)


SOUND = {
    "load": [hugging_face, shards, saved, sparse, sentences, lambda f: hugging_face(f, "deit")],
    "from_config": [hugging_face, saved],
    "weights": [lambda f: hugging_face(f) / "model.safetensors"],
    "copied": [words],
    "class_names": [hugging_face, saved],
    "tokenizer": [words, tokenizer_json, byte_pairs],
    "merges": [merges],
    "processor": [processor],
    "whole_bank": [a_bank],
    "continued_bank": [a_bank],
    "verified_bank": [a_bank],
    "archive": [archive],
    "imported": [archive],
    "data": [
        table,
        lambda f: table(f, ".tsv"),
        lambda f: table(f, ".json"),
        lambda f: table(f, ".jsonl"),
        pictures,
        npz,
    ],
    "npz": [npz],
    "picture": [png, lambda f: png(f, "0.jpg"), lambda f: png(f, "0.gif"), lambda f: png(f, "0.webp")],
    "picture_folder": [pictures],
    "glue_task": [glue_task],
    "results": [results],
    "run_json": [run_json],
    "metrics_lines": [metrics_lines],
    "continued_metrics": [metrics_lines],
    "json_object": [lambda f: run(f) / "config.json"],
    "arrays": [arrays],
    "state": [state],
    "compared": [results, run],
    "ordered": [results],
    "swept": [run],
    "claimed": [run],
    "rate_section": [rate_table],
    "mask": [mask],
    "program": [program],
}
"""Sound files by the reader that takes them."""
