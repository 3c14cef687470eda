"""Folders of checkpoints: indices, configurations, steps, links."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

from tests.hostile import samples
from tests.hostile.cases import CASES, DEEP, DEEP_OBJECT, HUGE, LATIN, LONG, case, changed, config, elsewhere

# Folders of checkpoints


def shard(folder, change):
    samples.shards(folder)
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    found = change(folder, content["weight_map"])
    content["weight_map"] = content["weight_map"] if found is None else found
    index.write_text(json.dumps(content))
    return folder


def into(folder, mapping, where):
    elsewhere(folder)
    return dict.fromkeys(mapping, where)


SHARDS: dict[str, Callable[[pathlib.Path, dict[str, str]], Any]] = {
    "a path above": lambda f, m: into(f, m, "../outside/secret.safetensors"),
    "an absolute path": lambda f, m: dict.fromkeys(m, str(elsewhere(f))),
    "a path of backslashes": lambda f, m: into(f, m, "..\\outside\\secret.safetensors"),
    "a missing shard": lambda f, m: dict.fromkeys(m, "model-00009-of-00009.safetensors"),
    "a NUL in a name": lambda f, m: dict.fromkeys(m, "model\0.safetensors"),
    "a name of 5,000 letters": lambda f, m: dict.fromkeys(m, "x" * 5000 + ".safetensors"),
    "a shard of code": lambda f, m: dict.fromkeys(m, "pytorch_model.bin"),
    "shards of numbers": lambda f, m: dict.fromkeys(m, 3),
    "no mapping": lambda f, m: [],
    "a tensor that is not there": lambda f, m: m | {"more": next(iter(m.values()))},
}

for _name, _change in SHARDS.items():
    case(f"index of shards: {_name}", "index of shards", "load")(lambda folder, change=_change: shard(folder, change))


@case("index of shards: a link out of the folder", "links", "load")
def _(folder):
    samples.shards(folder)
    first = sorted(folder.glob("model-*.safetensors"))[0]
    first.unlink()
    first.symlink_to(elsewhere(folder))
    return folder


TEXTS = {
    "nested deeply": DEEP,
    "objects nested deeply": DEEP_OBJECT,
    "a list": "[1, 2]",
    "a number": "7",
    "cut short": '{"model_type": "bert", "hidden',
    "a number of 5,000 digits": f'{{"hidden_size": {LONG}}}',
    "not UTF-8": LATIN,
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "empty": "",
    "NULs": b"\0" * 100,
}

for _name, _text in TEXTS.items():
    case(f"config.json: {_name}", "JSON", "load", "config.json")(lambda folder, text=_text: config(folder, text))
    case(f"model.json: {_name}", "JSON", "load", "model.json")(
        lambda folder, text=_text: config(folder, text, "model.json", samples.saved)
    )
    case(f"manifest.json: {_name}", "JSON", "whole_bank")(
        lambda folder, text=_text: config(folder, text, "manifest.json", samples.a_bank)
    )
    case(f"entry.json: {_name}", "JSON", "whole_bank", "entries/cats")(
        lambda folder, text=_text: config(folder, text, "entries/cats/entry.json", samples.a_bank)
    )
    case(f"tokenizer_config.json: {_name}", "JSON", "tokenizer", "tokenizer_config.json")(
        lambda folder, text=_text: config(folder, text, "tokenizer_config.json", samples.words)
    )
    case(f"tokenizer.json: {_name}", "JSON", "tokenizer")(
        lambda folder, text=_text: config(folder, text, "tokenizer.json", samples.tokenizer_json)
    )
    case(f"vocab.json: {_name}", "JSON", "tokenizer")(
        lambda folder, text=_text: config(folder, text, "vocab.json", samples.byte_pairs)
    )
    case(f"preprocessor_config.json: {_name}", "JSON", "processor", "preprocessor_config.json")(
        lambda folder, text=_text: config(folder, text, "preprocessor_config.json", samples.processor)
    )
    case(f"copied tokenizer.json: {_name}", "JSON", "copied", "tokenizer.json")(
        lambda folder, text=_text: config(folder, text, "tokenizer.json", samples.tokenizer_json)
    )
    if _name != "a list":
        case(f"modules.json: {_name}", "JSON", "load", "modules.json")(
            lambda folder, text=_text: config(folder, text, "modules.json", samples.sentences)
        )

        @case(f"rows of a run: {_name}", "run folders", "run_json")
        def _(folder, text=_text):
            path = samples.run_json(folder)
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
            return path

    case(f"config.json of a run: {_name}", "run folders", "claimed", "config.json")(
        lambda folder, text=_text: config(folder, text, "config.json", samples.run)
    )
    case(f"config.json of a swept run: {_name}", "run folders", "swept", "config.json")(
        lambda folder, text=_text: config(folder, text, "config.json", samples.run)
    )
    case(f"class names: {_name}", "JSON", "class_names", "config.json")(lambda folder, text=_text: config(folder, text))

CASES.pop("rows of a run: a number")  # which is a value like any other

FIELDS: dict[str, dict[str, Any]] = {
    "a million layers": {"num_hidden_layers": 1_000_000},
    "a negative number of layers": {"num_hidden_layers": -1},
    "layers of text": {"num_hidden_layers": "2"},
    "a width of 10^30": {"hidden_size": 10**30},
    "a width of 10^400": {"hidden_size": HUGE},
    "no heads": {"num_attention_heads": 0},
    "heads of a list": {"num_attention_heads": [2]},
    "a vocabulary of 10^15": {"vocab_size": 10**15},
    "an epsilon of NaN": {"layer_norm_eps": float("nan")},
    "an activation of a list": {"hidden_act": ["gelu"]},
    "a type of a list": {"model_type": ["bert"]},
    "labels of a list": {"id2label": [1, 2]},
}

for _name, _fields in FIELDS.items():
    case(f"config.json: {_name}", "configurations", "load")(lambda folder, fields=_fields: changed(folder, **fields))


def reconfigured(folder, **more):
    samples.saved(folder)
    described = json.loads((folder / "model.json").read_text())
    described["config"] |= more
    (folder / "model.json").write_text(json.dumps(described))
    return folder


SAVED: dict[str, dict[str, Any]] = {
    "100,000 blocks": {"inner_widths": [[[4]] * 100_000, [[4]], [[4]]]},
    "a width of 10^30": {"stem_width": 10**30},
    "a width of 10^400": {"stem_width": HUGE},
    "a width that is text": {"stem_width": "4"},
    "a width of half a unit": {"stem_width": 4.5},
    "unhashable widths": {"stage_widths": {"a": 1}},
    "no family": {"family": "../../etc"},
    "a family of a list": {"family": []},
    "an unknown field": {"__class__": "os.system"},
    "images of 10^12 pixels": {"image_size": 10**12},
    "a dropout of text": {"dropout": "much"},
    "a computation that is no dtype": {"compute": "object"},
}

for _name, _fields in SAVED.items():
    case(f"model.json: {_name}", "configurations", "load")(
        lambda folder, fields=_fields: reconfigured(folder, **fields)
    )

DESCRIBED: dict[str, dict[str, Any]] = {
    "a configuration of text": {"config": "resnet"},
    "a checksum of a number": {"sha256": 7},
    "sparse shapes of 10^30": {"format": 2, "sparse": {"params/stem/kernel": [10**30, 10**30]}},
    "sparse shapes of text": {"format": 2, "sparse": {"params/stem/kernel": "3"}},
    "a format of a list": {"format": []},
}

for _name, _fields in DESCRIBED.items():
    case(f"model.json: {_name}", "configurations", "load")(
        lambda folder, fields=_fields: changed(folder, samples.saved, "model.json", **fields)
    )

case("model.json: labels of numbers", "configurations", "class_names")(
    lambda folder: changed(folder, samples.saved, "model.json", extra={"labels": [1, 2, 3]})
)


@case("model.json: a link to endless zeros", "links", "load")
def _(folder):
    samples.saved(folder)
    (folder / "model.json").unlink()
    (folder / "model.json").symlink_to("/dev/zero")
    return folder


@case("config.json: a folder", "folders for files", "load", "config.json")
def _(folder):
    samples.hugging_face(folder)
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    return folder


@case("modules.json: a path above", "path escapes", "load", "modules.json")
def _(folder):
    samples.sentences(folder)
    elsewhere(folder)
    (folder.parent / "outside" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    listed = json.loads((folder / "modules.json").read_text())
    listed[1]["path"] = "../outside"
    (folder / "modules.json").write_text(json.dumps(listed))
    return folder


@case("modules.json: an absolute path", "path escapes", "load", "modules.json")
def _(folder):
    samples.sentences(folder)
    outside = elsewhere(folder).parent
    (outside / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    listed = json.loads((folder / "modules.json").read_text())
    listed[1]["path"] = str(outside)
    (folder / "modules.json").write_text(json.dumps(listed))
    return folder


@case("modules.json: paths that are numbers", "configurations", "load", "modules.json")
def _(folder):
    samples.sentences(folder)
    listed = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps([step | {"path": 3} for step in listed]))
    return folder


@case("modules.json: steps of unhashable kinds", "configurations", "load", "modules.json")
def _(folder):
    samples.sentences(folder)
    (folder / "modules.json").write_text('[{"type": ["a"], "path": {}}]')
    return folder
