"""A bank on the command line: what is in it, whether it is sound, and to and from one file.

    python -m mvp_jax.bank DIR                    list the entries, and say whose pre-trained model the bank needs
    python -m mvp_jax.bank DIR verify             read all of it; exit status 1 and a line for each problem
    python -m mvp_jax.bank DIR export FILE.zip    write it into one file
    python -m mvp_jax.bank DIR import FILE.zip    unpack one into the new folder DIR
    python -m mvp_jax.bank DIR rank DATA          the entries nearest to a task

DIR is a folder or, for all but `import`, an address in a bucket; no bank is ever changed. DATA is a folder of pictures
by class, a table of texts, or an `.npz` archive of `x`, examples as the model reads them, and `y`, classes from 0.
"""

import argparse
import os
import sys
from collections.abc import Sequence

import numpy as np

from mvp_jax.bank import archive, dense, directory, examples, ranking, verification
from mvp_jax.bank.directory import BankEntry
from mvp_jax.bank.manifest import Bank
from mvp_jax.storage import records


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns the exit status: 0, or 1 after an error or for a bank that is not sound.

    Args:
        argv: the words of the command line, without the program's name; `None`: those of this process.
    """
    given = _parser().parse_args(argv)
    try:
        return int(given.run(given))
    except ValueError as error:
        records.say(f"error: {' '.join(str(error).split())}")
        return 1
    except BrokenPipeError:  # whoever reads, such as `head`, has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mvp_jax.bank",
        description="Lists, verifies, exports, imports and ranks the entries of a bank of pruned models.",
    )
    parser.add_argument("bank", metavar="DIR", help="the bank: a folder, or an address such as gs://bucket/bank")
    parser.set_defaults(run=_list, first=None)
    commands = parser.add_subparsers(metavar="COMMAND", title="commands (list, if none is given)")
    listed = commands.add_parser("list", help="the entries, and whose pre-trained model the bank needs")
    listed.add_argument("--first", type=int, metavar="N", help="only the first N entries, in the order of their names")
    listed.set_defaults(run=_list)
    commands.add_parser("verify", help="read all of it and compare checksums and shapes").set_defaults(run=_verify)
    exported = commands.add_parser("export", help="write the bank into one file")
    exported.add_argument("file", metavar="FILE", help="the archive, a new file")
    exported.set_defaults(run=_export)
    imported = commands.add_parser("import", help="unpack an archive into the new folder DIR")
    imported.add_argument("file", metavar="FILE", help="the archive, as `export` wrote it")
    imported.set_defaults(run=_import)
    ranked = commands.add_parser("rank", help="the entries that are nearest to a task")
    ranked.add_argument(
        "data", metavar="DATA", help="pictures by class, a table of texts, or x and y in an .npz archive"
    )
    ranked.add_argument("--k", type=int, default=10, help="how many entries are listed (default: 10)")
    ranked.add_argument(
        "--similarity", choices=("leep", "prototype"), default="leep", help="what they are ranked by (default: leep)"
    )
    ranked.set_defaults(run=_rank)
    return parser


def _list(given: argparse.Namespace) -> int:
    bank = directory.open(given.bank)
    entries = directory.entries(bank)
    _say(f"{bank.path}: {bank.about.title or 'a bank of pruned models'}")
    _say(f"{len(entries)} entries; {dense.needs(bank)}")
    if bank.about.licence:
        _say(f"licence: {bank.about.licence}")
    _table(bank, entries[: given.first])
    return 0


def _verify(given: argparse.Namespace) -> int:
    bank, count = directory.open(given.bank), 0
    for problem in verification.problems(bank):
        _say(problem)
        count += 1
    if count:
        return 1
    _say(f"{bank.path}: {len(directory.folders(bank))} entries are sound; {dense.needs(bank)}")
    return 0


def _export(given: argparse.Namespace) -> int:
    file = archive.pack(directory.open(given.bank), given.file)
    _say(f"{file}: {file.stat().st_size:,} bytes")
    return 0


def _import(given: argparse.Namespace) -> int:
    bank = archive.unpack(given.file, given.bank)
    _say(f"{bank.path}: {len(directory.folders(bank))} entries; {dense.needs(bank)}")
    return 0


def _rank(given: argparse.Namespace) -> int:
    bank = directory.open(given.bank)
    model, variables = dense.load_model(bank)
    if given.k < 1:
        raise ValueError(f"--k={given.k}; list at least 1 entry")
    data = examples.read(bank, model, given.data)
    entries, target = directory.entries(bank), model.with_classes(int(data["y"].max()) + 1)
    near = np.asarray(
        ranking.similarities_to(entries, target, variables, data, similarity=given.similarity), dtype=np.float64
    )
    order = np.argsort(-near, kind="stable")[: given.k]
    _table(bank, [entries[i] for i in order], {given.similarity: [f"{near[i]:.4f}" for i in order]})
    return 0


def _say(text: str) -> None:
    # A bank may be anybody's: what steers a terminal is not passed on.
    sys.stdout.write("".join(c if c.isprintable() else "?" for c in text) + "\n")
    sys.stdout.flush()


def _table(bank: Bank, entries: Sequence[BankEntry], more: dict[str, list[str]] | None = None) -> None:
    """Prints entries in columns, and after them more columns by name."""
    columns = {
        "task": [e.task for e in entries],
        "removed": [f"{e.ratio:.1%}" for e in entries],
        "accuracy": [f"{e.accuracy:.1%}" for e in entries],
        **(more or {}),
        "classes": [", ".join(directory.class_names(bank, e)) for e in entries],
    }
    rows = list(zip(*([name, *values] for name, values in columns.items()), strict=True))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows if entries else ():
        _say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


if __name__ == "__main__":
    raise SystemExit(main())
