"""How `sentence-transformers` makes embeddings of what an encoder computes: its files, read and written.

`modules.json` lists the steps, here an encoder, pooling and maybe normalisation; `1_Pooling/config.json` says how
tokens are pooled.
"""

import json
import pathlib
from typing import Any, Literal, NamedTuple

from mvp_jax.models import bert
from mvp_jax.storage import foreign_files, json_files

_POOLING = "1_Pooling"
_KNOWN: dict[str, Literal["first", "mean"]] = {"cls_token": "first", "mean_tokens": "mean"}
_OTHERS = ("max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")


class Pooling(NamedTuple):
    """How the embedding of a text is made of what an encoder gives for its tokens.

    Attributes:
        pool: the `first` token, or the `mean` of all but padding.
        normalise: whether embeddings are divided by their Euclidean norm.
    """

    pool: Literal["first", "mean"] = "first"
    normalise: bool = False


def read(folder: pathlib.Path) -> Pooling:
    """Reads how a checkpoint pools.

    Args:
        folder: the checkpoint's folder.

    Returns:
        The pooling; the first token without normalisation if the folder says nothing.

    Raises:
        ValueError: for files that are no JSON, and steps or poolings that the models here do not have.

    >>> read(pathlib.Path("nowhere"))
    Pooling(pool='first', normalise=False)
    """
    steps = _steps(folder / "modules.json")
    kinds = [kind for kind, _ in steps]
    if kinds not in ([], ["Transformer"], ["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise ValueError(
            f"{folder / 'modules.json'} lists {foreign_files.told(kinds, 300)}; an encoder here is "
            "followed by Pooling and maybe Normalize alone. `classes` gives the encoder a head instead"
        )
    where = folder / dict(steps).get("Pooling", _POOLING) / "config.json"
    described = json_files.read_json(where, missing={})
    if not described:
        if "Pooling" in kinds:
            raise ValueError(f"{folder / 'modules.json'} lists Pooling, but {where} is missing or empty")
        return Pooling()
    chosen = [mode for mode in (*_KNOWN, *_OTHERS) if described.get(f"pooling_mode_{mode}")]
    newer = described.get("pooling_mode")
    chosen += [{"cls": "cls_token", "mean": "mean_tokens"}.get(newer, newer)] if isinstance(newer, str) else []
    if len(chosen) != 1 or chosen[0] not in _KNOWN:
        raise ValueError(
            f"{where} pools by {chosen}; the models here take one of {list(_KNOWN)}. `classes` gives the encoder a "
            "head instead"
        )
    return Pooling(_KNOWN[chosen[0]], "Normalize" in kinds)


def _steps(path: pathlib.Path) -> list[tuple[str, str]]:
    """The kind and the folder of each step; empty without a file."""
    if not path.exists():
        return []
    listed = foreign_files.parsed(foreign_files.text(path), path)
    try:
        steps = [(step["type"].rpartition(".")[2], step["path"]) for step in listed]
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is no readable list of steps with `type` and `path`: {foreign_files.told(error)}"
        ) from error
    if not steps:
        raise ValueError(f"{path} lists no steps; remove it, or download it again")
    for _, where in steps:
        if not isinstance(where, str) or where in (".", "..") or set("/\\\0") & set(where) or len(where) > 255:
            raise ValueError(f"{path} names the folder {where!r:.80}; the files of a step lie in a folder beside it")
    return steps


def written(config: bert.BertConfig, given: dict[str, bytes]) -> dict[str, bytes]:
    """The files that say how a model pools, as `sentence-transformers` reads them.

    Args:
        config: the configuration of a model that gives embeddings.
        given: the files that are there already, by name; what they say of lengths and versions stays.

    Returns:
        The content of each file, by name.
    """
    steps = ["Transformer", "Pooling", *(["Normalize"] if config.normalise else [])]
    modules = [
        {
            "idx": i,
            "name": str(i),
            "path": f"{i}_{kind}" if i else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for i, kind in enumerate(steps)
    ]
    modes = {f"pooling_mode_{mode}": pool == config.pool for mode, pool in _KNOWN.items()}
    modes |= {f"pooling_mode_{mode}": False for mode in _OTHERS}
    files: dict[str, Any] = {
        "modules.json": modules,
        f"{_POOLING}/config.json": {"word_embedding_dimension": config.dim, **modes},
    }
    if "sentence_bert_config.json" not in given:
        files["sentence_bert_config.json"] = {"max_seq_length": config.positions, "do_lower_case": False}
    return {name: json.dumps(content, indent=2).encode() for name, content in files.items()}
