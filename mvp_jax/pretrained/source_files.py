"""What a pruned model takes over of the checkpoint it came from: tokeniser, processor, licence, README, class names.

Only files of known names are copied. Weights and code of the checkpoint never are.
"""

import json
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from mvp_jax.data.checkpoint_inputs import images
from mvp_jax.pretrained import tensor_files
from mvp_jax.storage import files as storage
from mvp_jax.storage import foreign_files, json_files

TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "sentencepiece.bpe.model",
    "spiece.model",
    "tokenizer.model",
)
"""The files of a tokeniser, by the names that `transformers` gives them."""
PROCESSOR = ("preprocessor_config.json", "processor_config.json")
"""The files of an image processor."""
SENTENCES = ("sentence_bert_config.json", "config_sentence_transformers.json")
"""The files in which `sentence-transformers` keeps lengths and versions; how to pool follows from the model."""

_VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "sentencepiece.bpe.model", "spiece.model")
_LEGAL = re.compile(r"(licen[cs]e|notice|copying)[\w.-]*", re.IGNORECASE)
_LEGAL_KINDS = ("", ".txt", ".md", ".rst")
_LONGEST = 100_000_000  # bytes; the largest tokenisers have a fifth of it
_DROPPED = re.compile(
    # How and where the source was stored, and what `transformers` is to return: not about this model.
    r"_.*|transformers_version|auto_map|custom_pipelines|quantization_config|num_labels|finetuning_task|output_.*"
    r"|return_dict|torchscript|use_bfloat16|pruned_heads|id2label|label2id|problem_type"
)
_FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---\s*(?:\n|\Z)", re.DOTALL)
_KEPT_MATTER = re.compile(r"(license\w*|language)\s*:")

Problem = Literal["single_label_classification", "multi_label_classification", "regression"]
"""What a model's outputs are trained for, by the names of `problem_type` in `transformers`."""


class SourceFiles(NamedTuple):
    """What is taken over of a checkpoint's folder.

    Attributes:
        name: the name of the folder.
        files: the content of the files that are copied unchanged, by their names.
        described: the content of its `config.json`; empty if it has none.
        class_names: the names of its classes; `None` if it names none.
        readme: the text of its README; empty if it has none.
        notes: what is missing there, a sentence each.
    """

    name: str
    files: dict[str, bytes]
    described: dict[str, Any]
    class_names: tuple[str, ...] | None
    readme: str
    notes: tuple[str, ...]


def gather(source: str | os.PathLike[str], *configs: Any) -> SourceFiles:
    """Reads what a model takes over of the checkpoint that it came from.

    Args:
        source: the checkpoint's folder, as `tensor_files.local` takes it, or a folder that `pretrained.save` wrote.
        configs: our configurations of the models that are written: a tokeniser is copied for a model of texts, a
            processor for a model of pictures, both for a pair of two.

    Returns:
        The files and what else is known of the checkpoint.

    Raises:
        ValueError: if there is no such folder, a file is a link out of it or too large or no JSON where it must be, or
            the tokeniser has ids that the model has no embedding for, or the processor makes pictures of another size.
    """
    folder = tensor_files.local(source)
    if not folder.is_dir():
        raise ValueError(f"source={folder} is a file; give the folder that holds the tokeniser or the processor too")
    names: list[str] = []
    notes = []
    for config in configs:
        wanted = TOKENIZER if hasattr(config, "vocab") else PROCESSOR
        names += wanted
        needed = _VOCABULARIES if wanted is TOKENIZER else PROCESSOR
        if not any((folder / name).exists() for name in needed):
            kind = "tokeniser" if wanted is TOKENIZER else "image processor"
            notes.append(
                f"{folder} has no {kind} ({', '.join(needed)}), so none was copied; put one beside the weights"
            )
        if getattr(config, "task", None) == "embed":
            names += SENTENCES
    names += sorted(p.name for p in folder.iterdir() if _LEGAL.fullmatch(p.name) and p.suffix.lower() in _LEGAL_KINDS)
    copied = {name: content for name in dict.fromkeys(names) if (content := _content(folder, name)) is not None}
    for config in configs:
        if hasattr(config, "vocab") and "tokenizer_config.json" in copied:
            _parsed(folder, copied, "tokenizer_config.json")
        if hasattr(config, "vocab"):
            _check_vocabulary(folder, copied, config)
        elif hasattr(config, "patch"):
            _check_size(folder, config)
    readme = next((text for name in ("README.md", "README", "README.txt") if (text := _content(folder, name))), b"")
    return SourceFiles(
        name=folder.resolve().name,
        files=copied,
        described=json_files.read_json(folder / "config.json", missing={}),
        class_names=class_names(folder),
        readme=readme.decode("utf-8", errors="replace"),
        notes=tuple(notes),
    )


def class_names(folder: str | os.PathLike[str]) -> tuple[str, ...] | None:
    """The names of a model's classes, as its folder gives them.

    Args:
        folder: a checkpoint with `config.json`, or a folder that `pretrained.save` wrote.

    Returns:
        The names in the order of the model's logits; `None` if the folder names none, or only `LABEL_0`, `LABEL_1`,
        ..., which stand for names that are not known.

    Raises:
        ValueError: if a file is no JSON, or the names are not one string for each class.
    """
    where = storage.path(folder)
    saved = json_files.read_json(where / "model.json", missing={})
    described = json_files.read_json(where / "config.json", missing={})
    if saved and not described:
        extra = saved.get("extra")
        found: Any = extra.get("labels") if isinstance(extra, dict) else None
    elif described.get("id2label"):
        table = described["id2label"]
        keys = [str(i) for i in range(len(table))] if isinstance(table, dict) else []
        if not keys or set(table) != set(keys):
            raise ValueError(f"id2label in {where / 'config.json'} is {table!r:.80}; it must number classes from 0 on")
        found = [table[key] for key in keys]
    else:
        found = described.get("label_names")  # timm's
    if found is None:
        return None
    names = tuple(found) if isinstance(found, list) else ()
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"the names of classes in {where} are {found!r:.80}; they must be a string for each class")
    return None if names == tuple(f"LABEL_{i}" for i in range(len(names))) else names


def checked_labels(labels: Sequence[str] | None, classes: int | None) -> tuple[str, ...] | None:
    """The names of classes, if they are as many as the classes and differ from one another.

    Args:
        labels: the names, in the order of the logits; `None`: there are none.
        classes: how many classes the model has; `None`: it does not classify.

    Raises:
        ValueError: if names are missing, twice there, or no strings.

    >>> checked_labels(["bad", "good"], 2)
    ('bad', 'good')
    """
    if labels is None:
        return None
    names = (labels,) if isinstance(labels, str) else tuple(labels)
    if classes is None:
        raise ValueError(f"labels={names!r:.80}, but this model does not classify; leave labels out")
    if not all(isinstance(name, str) and name for name in names) or len(set(names)) != classes or len(names) != classes:
        raise ValueError(f"labels={names!r:.200}; give {classes} different strings, one for each class of the model")
    return names


def merged(described: Mapping[str, Any], source: SourceFiles) -> dict[str, Any]:
    """A `config.json` with those fields of the source's that ours does not have and that are about the model.

    Args:
        described: what `Format.describe` gives; its fields win.
        source: the checkpoint's files.

    Returns:
        The content of a `config.json`. Left out are the source's classes, where and how it was stored, and settings of
        what `transformers` returns; the dtype is float32, as the weights are.

    Raises:
        ValueError: if the source is a model of another type.
    """
    theirs, ours = source.described.get("model_type"), described.get("model_type")
    if theirs is None or ours is None:
        return dict(described)
    if theirs == "clip" and str(ours).startswith("clip_"):
        return dict(described)  # theirs has the fields of each tower apart
    if theirs != ours:
        raise ValueError(
            f"source={source.name} holds a model of type {theirs!r}, the model that is written is a {ours!r}; give the "
            "folder that the model was loaded from"
        )
    more = {k: v for k, v in source.described.items() if k not in described and not _DROPPED.fullmatch(k)}
    more |= {name: "float32" for name in ("torch_dtype", "dtype") if name in more}
    return {**described, **more}


def self_contained(source: SourceFiles) -> dict[str, bytes]:
    """The files that are copied into a folder without a `config.json`.

    A tokeniser of `vocab.json` and `merges.txt` is RoBERTa's or CLIP's. Where only the source's `config.json` says
    which, `tokenizer_config.json` says it here.
    """
    kinds = {"roberta": "RobertaTokenizer", "clip": "CLIPTokenizer", "clip_text_model": "CLIPTokenizer"}
    kind = kinds.get(str(source.described.get("model_type")))
    if kind is None or "vocab.json" not in source.files or "tokenizer.json" in source.files:
        return dict(source.files)
    settings = json.loads(source.files.get("tokenizer_config.json", b"{}"))
    return {**source.files, "tokenizer_config.json": json.dumps({"tokenizer_class": kind, **settings}).encode()}


def readme(source: SourceFiles, about: str, copied: Sequence[str]) -> bytes:
    """A README that says what a folder is, above the text of the source's README.

    Args:
        source: the checkpoint's files.
        about: what the model is, in Markdown.
        copied: the names of the files that were copied.

    Returns:
        The text. Of the front matter of the source's README, licence and language are kept; the rest, such as measured
        accuracies and what a hub lists it under, is about the source.
    """
    front, text = _split_front_matter(source.readme)
    lines = [f"# Made from {source.name}", "", about.strip()]
    lines += ["", f"Copied unchanged from the source: {', '.join(sorted(copied)) or 'no files'}."]
    if text.strip():
        lines += ["", "---", "", f"What follows is the README of the source, `{source.name}`. What it says about", ""]
        lines[-2] += " accuracy, size and speed is about the source and not about the model in this folder."
        lines += [text.strip()]
    return ("\n".join([*front, *lines]) + "\n").encode()


def _split_front_matter(text: str) -> tuple[list[str], str]:
    """The lines of the front matter that are kept, between `---`, and what follows it."""
    found = _FRONT_MATTER.match(text)
    if found is None:
        return [], text
    kept: list[str] = []
    keeping = False
    for line in found[1].splitlines():
        if line and not line[0].isspace() and line[0] not in "-#":  # a field begins
            keeping = _KEPT_MATTER.match(line) is not None
        if keeping:
            kept.append(line)
    return (["---", *kept, "---", ""] if kept else []), text[found.end() :]


def _content(folder: pathlib.Path, name: str) -> bytes | None:
    """The content of a file that lies in the folder, or where a hub's cache keeps what it links to."""
    path = folder / name
    try:
        if not path.exists():
            return None
        home, real = folder.resolve(), path.resolve()
        allowed = [home] + ([home.parents[1] / "blobs"] if home.parent.name == "snapshots" else [])
        if not any(real.is_relative_to(place) for place in allowed):
            raise ValueError(f"{path} is a link to {real}, which lies outside the folder; copy it there")
        if not real.is_file() or real.stat().st_size > _LONGEST:
            raise ValueError(f"{path} is no file of at most {_LONGEST} bytes; it is not copied")
        return real.read_bytes()
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _check_vocabulary(folder: pathlib.Path, copied: Mapping[str, bytes], config: Any) -> None:
    """Raises if the tokeniser has ids without an embedding, or pads with another id than the model."""
    with foreign_files.named(folder):
        ids = _ids(folder, copied)
    if not ids:
        return
    last = max(ids.values())
    if last >= config.vocab:
        raise ValueError(
            f"the tokeniser in {folder} has ids up to {last}, the model has embeddings for 0 to {config.vocab - 1}; "
            "give the folder that the model was loaded from"
        )
    settings = _parsed(folder, copied, "tokenizer_config.json") if "tokenizer_config.json" in copied else {}
    names = _parsed(folder, copied, "special_tokens_map.json") if "special_tokens_map.json" in copied else {}
    named = settings.get("pad_token") or names.get("pad_token")
    pad = ids.get(str(named.get("content") if isinstance(named, dict) else named))
    own = getattr(config, "pad", None)
    if pad is not None and own is not None and pad != own:
        raise ValueError(
            f"the tokeniser in {folder} pads with id {pad}, the model takes id {own} for padding; give the folder that "
            "the model was loaded from"
        )


def _check_size(folder: pathlib.Path, config: Any) -> None:
    """Raises if an image processor of a known kind makes pictures of another size than the model's."""
    try:
        made = images.processor(folder)
    except ValueError:
        return
    size = made.crop or made.size
    if isinstance(size, tuple) and size != (config.image_size, config.image_size):
        raise ValueError(
            f"the image processor in {folder} makes pictures of {size[0]} x {size[1]} pixels, the model takes "
            f"{config.image_size} x {config.image_size}; give the folder that the model was loaded from"
        )


def _ids(folder: pathlib.Path, copied: Mapping[str, bytes]) -> dict[str, int]:
    """The id of each token, as far as the files say it without another package; empty if they do not."""
    found: dict[str, int] = {}
    if "tokenizer.json" in copied:
        parsed = _parsed(folder, copied, "tokenizer.json")
        model = parsed.get("model")
        vocab = model.get("vocab") if isinstance(model, dict) else None
        if isinstance(vocab, list):  # of pieces with scores
            vocab = {str(piece[0]): i for i, piece in enumerate(vocab) if piece}
        found = dict(vocab or {})
        added = [a for a in parsed.get("added_tokens") or () if isinstance(a, dict)]
        found |= {a["content"]: a["id"] for a in added if "content" in a and "id" in a}
    elif "vocab.txt" in copied:
        # Not str.splitlines, as some tokens are line separators of Unicode.
        lines = copied["vocab.txt"].decode("utf-8", errors="replace").removesuffix("\n").split("\n")
        found = {line: i for i, line in enumerate(lines)}
    elif "vocab.json" in copied:
        found = _parsed(folder, copied, "vocab.json")
    if found and "added_tokens.json" in copied:
        found |= _parsed(folder, copied, "added_tokens.json")
    if not all(type(i) is int for i in found.values()):
        raise ValueError(f"the vocabulary of the tokeniser in {folder} has ids that are no whole numbers")
    return found


def _parsed(folder: pathlib.Path, copied: Mapping[str, bytes], name: str) -> dict[str, Any]:
    parsed = foreign_files.parsed(copied[name], folder / name)
    if not isinstance(parsed, dict):
        raise ValueError(f"{folder / name} is a JSON {type(parsed).__name__}, not an object")
    return parsed
