"""The readme that a bank carries, made from its manifest, for a person who gets the folder and nothing else."""

import json

from mvp_jax.bank.manifest import Bank

NAME = "README.md"
"""The file in a bank's folder."""

_FEW = 40  # names of classes that are written out


def text(bank: Bank, count: int, has_model: bool) -> str:
    """The content of a bank's readme, in Markdown.

    Args:
        bank: an open bank.
        count: the number of entries that it has.
        has_model: whether it holds its pre-trained model.

    >>> import pathlib
    >>> pets = Bank(path=pathlib.Path("pets"), fingerprint="0" * 64, settings={"ratio": 0.75})
    >>> print(text(pets, 3, False).splitlines()[0])
    # A bank of pruned models
    """
    about, settings = bank.about, bank.settings
    family = about.model.get("family", "")
    ratio = f", each with {settings['ratio']:.1%} of its units removed" if _is_share(settings.get("ratio")) else ""
    lines = [
        f"# {about.title or 'A bank of pruned models'}",
        "",
        f"This folder is a bank of `mvp_jax`: pruned models, each for a task of its own, all made from one pre-trained "
        f"model{ratio}. A new task with few examples is pruned for by a vote of the entries that are nearest to it "
        "(Meta-Vote Pruning, arXiv:2301.11560).",
        "",
        f"- Entries when this page was written: {count}; `python -m mvp_jax.bank FOLDER` lists those there now.",
        f"- Pre-trained model: {family or 'not described'}, fingerprint `{bank.fingerprint[:12]}`"
        + (", stored in `model/`." if has_model else ", **not stored here**: whoever uses the bank must have it."),
        f"- Where its weights came from: {about.weights or 'not recorded'}.",
        f"- Licence: {about.licence or 'not recorded; ask whoever gave you the bank'}.",
    ]
    if about.class_names:
        more = f" and {len(about.class_names) - _FEW} more" if len(about.class_names) > _FEW else ""
        lines.append(f"- Classes: {', '.join(about.class_names[:_FEW])}{more}.")
    if about.inputs:
        lines.append(f"- How examples are prepared: `{json.dumps(dict(about.inputs))}`.")
    lines += [
        "",
        "## Use",
        "",
        "```bash",
        "python -m mvp_jax.bank FOLDER                 # list the entries",
        "python -m mvp_jax.bank FOLDER verify          # read all of it and compare checksums",
        "python -m mvp_jax.bank FOLDER export BANK.zip # one file; `NEW import BANK.zip` unpacks it",
        "python -m mvp_jax.main --config=configs/mvp.py:bank=FOLDER,target=PICTURES --workdir=OUT",
        "```",
        "",
        "```python",
        "from mvp_jax import bank",
        "",
        'pets = bank.open("FOLDER")                    # or an address in a bucket, gs://...',
        "model, variables = bank.load_model(pets)      # if it is stored here; the fingerprint is checked",
        "near = bank.neighbours(bank.entries(pets), model.with_classes(2), variables, data, k=5)",
        "```",
        "",
        "## Settings of the entries",
        "",
        "```json",
        json.dumps(dict(settings), indent=1),
        "```",
    ]
    return "\n".join(lines) + "\n"


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
