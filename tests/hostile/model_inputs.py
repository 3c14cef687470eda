"""Tokenisers and processors of checkpoints."""

import gzip
import json
from typing import Any

from tests.hostile import samples
from tests.hostile.cases import DEEP, HUGE, case, changed, config, elsewhere

# Tokenisers and processors

case("vocab.txt: not UTF-8", "tokenisers", "tokenizer")(
    lambda folder: config(folder, b"[PAD]\n\xff\xfe\n", "vocab.txt", samples.words)
)
case("vocab.txt: empty", "tokenisers", "tokenizer")(lambda folder: config(folder, "", "vocab.txt", samples.words))
case("merges.txt: not UTF-8", "tokenisers", "tokenizer")(
    lambda folder: config(folder, b"#version: 0.2\na \xff\n", "merges.txt", samples.byte_pairs)
)
case("vocab.json: ids that are no numbers", "tokenisers", "tokenizer")(
    lambda folder: config(folder, '{"a": "0"}', "vocab.json", samples.byte_pairs)
)
case("vocab.json: ids above 2^32", "tokenisers", "tokenizer")(
    lambda folder: config(folder, '{"a": 99999999999}', "vocab.json", samples.byte_pairs)
)
case("tokenizer_config.json: tokens of numbers", "tokenisers", "tokenizer")(
    lambda folder: config(folder, '{"pad_token": 3, "cls_token": []}', "tokenizer_config.json", samples.words)
)
case("tokenizer_config.json: added tokens of a list", "tokenisers", "tokenizer")(
    lambda folder: config(folder, '{"added_tokens_decoder": [1]}', "tokenizer_config.json", samples.words)
)
case("copied vocab.json: ids that are no numbers", "tokenisers", "copied")(
    lambda folder: only(folder, "vocab.json", '{"a": "0"}')
)
case("copied tokenizer.json: a vocabulary of text", "tokenisers", "copied")(
    lambda folder: only(folder, "tokenizer.json", '{"model": {"vocab": "abc"}}')
)
case("copied tokenizer.json: a vocabulary of numbers", "tokenisers", "copied")(
    lambda folder: only(folder, "tokenizer.json", '{"model": {"vocab": [1, 2]}}')
)
case("copied tokenizer.json: added tokens that are unhashable", "tokenisers", "copied")(
    lambda folder: only(folder, "tokenizer.json", '{"model": {}, "added_tokens": [{"content": [], "id": 1}]}')
)
case("copied tokenizer.json: added tokens of a number", "tokenisers", "copied")(
    lambda folder: only(folder, "tokenizer.json", '{"model": {}, "added_tokens": 7}')
)
case("copied tokenizer_config.json: a list", "tokenisers", "copied")(
    lambda folder: only(folder, "tokenizer_config.json", "[]", vocab='{"a": 0}')
)
case("copied tokenizer_config.json: nested deeply", "tokenisers", "copied")(
    lambda folder: only(folder, "tokenizer_config.json", DEEP, vocab='{"a": 0}')
)


def only(folder, name, text, vocab=""):
    samples.words(folder)
    (folder / "vocab.txt").unlink()
    described = json.loads((folder / "config.json").read_text())
    if vocab:
        (folder / "vocab.json").write_text(vocab)
        (folder / "config.json").write_text(json.dumps(described | {"model_type": "roberta"}))
    (folder / name).write_text(text)
    return folder


@case("copied licence: a link out of the folder", "links", "copied", "LICENSE")
def _(folder):
    samples.words(folder)
    (folder / "LICENSE").unlink()
    (folder / "LICENSE").symlink_to(elsewhere(folder))
    return folder


@case("copied licence: a link to endless zeros", "links", "copied", "LICENSE")
def _(folder):
    samples.words(folder)
    (folder / "LICENSE").unlink()
    (folder / "LICENSE").symlink_to("/dev/zero")
    return folder


@case("tokenizer_config.json: a link to endless zeros", "links", "tokenizer", "tokenizer_config.json")
def _(folder):
    samples.words(folder)
    (folder / "tokenizer_config.json").unlink()
    (folder / "tokenizer_config.json").symlink_to("/dev/zero")
    return folder


@case("vocab.txt: a link to endless zeros", "links", "tokenizer")
def _(folder):
    samples.words(folder)
    (folder / "vocab.txt").unlink()
    (folder / "vocab.txt").symlink_to("/dev/zero")
    return folder


@case("merges: a bomb of one line", "compressed bombs", "merges")
def _(folder):
    folder.mkdir()
    path = folder / "bpe.txt.gz"
    with gzip.open(path, "wb", compresslevel=9) as stream:
        for _ in range(256):
            stream.write(bytes(2**20))
    return path


@case("merges: cut short", "compressed bombs", "merges")
def _(folder):
    path = samples.merges(folder)
    path.write_bytes(path.read_bytes()[:20])
    return path


PROCESSORS: dict[str, dict[str, Any]] = {
    "a picture of 10^12 pixels": {"size": {"height": 10**6, "width": 10**6}},
    "a crop of 10^12 pixels": {"do_center_crop": True, "crop_size": {"height": 10**6, "width": 10**6}},
    "a size of text": {"size": "large"},
    "a mean of text": {"image_mean": ["a", "b", "c"]},
    "a factor of text": {"rescale_factor": "much"},
    "a factor of 10^400": {"rescale_factor": HUGE},
    "a mean of 10^400": {"image_mean": [HUGE, 0, 0]},
    "a kind of a list": {"image_processor_type": []},
    "a share of text": {"image_processor_type": "ConvNextImageProcessor", "size": 8, "crop_pct": "much"},
    "a share close to 0": {"image_processor_type": "ConvNextImageProcessor", "size": 8, "crop_pct": 1e-300},
}

for _name, _fields in PROCESSORS.items():
    case(f"preprocessor_config.json: {_name}", "processors", "processor")(
        lambda folder, fields=_fields: changed(folder, samples.processor, "preprocessor_config.json", **fields)
    )
