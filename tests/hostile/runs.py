"""Folders of runs: results, rows, metrics, states, programs."""

from typing import Any

from tests.hostile import samples
from tests.hostile.cases import DEEP, LATIN, LONG, case, plain

# Results and folders of runs


def csv_of(folder, text, name="results.csv", make=samples.run):
    made = make(folder)
    path = made / name if made.is_dir() else made
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


HEAD = "target,seed,method,ratio,steps,split,accuracy,cost_examples,params,flops\n"
SOUND_ROW = "t0,0,mvp,0.5,0,test,0.5,,,\n"
RESULTS: dict[str, Any] = {
    "not UTF-8": b"\xff\xfe",
    "NULs": HEAD.encode() + b"t0,0,mvp\0,0.5,0,test,0.5,,,\n",
    "too many cells": HEAD + "t0,0,mvp,0.5,0,test,0.5,,,,1,2,3\n",
    "too few cells": HEAD + "t0,0\n",
    "a cell of 200,000 letters": HEAD + f"{'t' * 200_000},0,mvp,0.5,0,test,0.5,,,\n",
    "steps of text": HEAD + "t0,0,mvp,0.5,many,test,0.5,,,\n",
    "no accuracy": HEAD + "t0,0,mvp,0.5,0,test,,,,\n",
    "an accuracy of text": HEAD + "t0,0,mvp,0.5,0,test,good,,,\n",
    "an accuracy of infinity": HEAD + "t0,0,mvp,0.5,0,test,1e999,,,\n",
    "steps of 5,000 digits": HEAD + f"t0,0,mvp,0.5,{LONG},test,0.5,,,\n",
    "other columns": "a,b\n1,2\n",
    "no rows": HEAD,
    "a column twice": HEAD.replace("params", "seed") + "t0,0,mvp,0.5,0,test,0.5,,,\n",
    "empty": "",
}

for _name, _text in RESULTS.items():
    if _name != "no rows":
        case(f"results.csv: {_name}", "run folders", "results")(lambda folder, text=_text: csv_of(folder, text))
    for _reader in ("compared", "ordered"):
        case(f"results.csv, {_reader}: {_name}", "run folders", _reader)(
            lambda folder, text=_text: csv_of(folder, text)
        )
    case(f"results.csv, swept: {_name}", "run folders", "swept")(lambda folder, text=_text: csv_of(folder, text).parent)

case("results.csv: absent", "run folders", "results")(lambda folder: folder / "results.csv")
case("results.csv, ordered: absent", "run folders", "ordered")(lambda folder: folder / "results.csv")


@case("results.csv: a folder", "folders for files", "compared")
def _(folder):
    (folder / "results.csv").mkdir(parents=True)
    return folder / "results.csv"


@case("results.csv: a link to itself", "links", "compared")
def _(folder):
    folder.mkdir()
    (folder / "results.csv").symlink_to("results.csv")
    return folder / "results.csv"


@case("rows of a run: a folder", "folders for files", "run_json")
def _(folder):
    (folder / "rows.json").mkdir(parents=True)
    return folder / "rows.json"


@case("config.json of a run: a folder", "folders for files", "claimed")
def _(folder):
    (folder / "config.json").mkdir(parents=True)
    return folder


for _name, _text in {
    "no JSON": b'{"step": 1}\n{"step": \n{"step": 2}\n',
    "not UTF-8": b'{"step": 1}\n\xff\n',
    "nested deeply": f'{{"step": 1}}\n{DEEP}\n'.encode(),
    "lists": b"[1]\n[2]\n",
    "lines without steps": b'{"loss": 1}\n{"loss": 2}\n',
    "steps of text": b'{"step": "a"}\n',
}.items():
    for _reader in ("metrics_lines", "continued_metrics"):
        if _reader == "metrics_lines" and _name in ("lines without steps", "steps of text"):
            continue  # which are read as they are, and only continued ones need a step
        case(f"metrics.jsonl, {_reader}: {_name}", "run folders", _reader)(
            lambda folder, text=_text: csv_of(folder, text, make=samples.metrics_lines)
        )

for _name, _text in {
    "not UTF-8": b"\xff",
    "empty": b"",
    "other columns": b"a,b\n1,2\n",
    "a head alone": b"method,ratio,factor,learning_rate,accuracy,n,chosen,try_besides\n",
    "numbers of text": b"method,ratio,factor,learning_rate,accuracy,n,chosen,try_besides\nmvp,a,b,c,d,e,1,\n",
    "nothing chosen": b"method,ratio,factor,learning_rate,accuracy,n,chosen,try_besides\nmvp,0.5,1,0.1,0.5,3,0,\n",
}.items():
    case(f"rates.csv: {_name}", "run folders", "rate_section", "rates.csv")(
        lambda folder, text=_text: csv_of(folder, text, "rates.csv", samples.rate_table).parent
    )


# States of a run


def orbax(folder, name, content):
    samples.state(folder)
    paths = [p for p in folder.rglob(name) if p.is_file()]
    assert paths, sorted(p.name for p in folder.rglob("*"))
    for path in paths:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


STATES = {
    "nested deeply": DEEP,
    "a list": "[]",
    "foreign": '{"custom_metadata": {"leaves": "a"}, "tree_metadata": {"x": {"value_metadata": {"value_type": "os"}}}}',
    "leaves of numbers": '{"custom_metadata": {"leaves": [1]}, "init_timestamp_nsecs": 1, "commit_timestamp_nsecs": 2}',
    "not UTF-8": LATIN,
    "empty": "",
}

for _name, _text in STATES.items():
    for _file in ("_CHECKPOINT_METADATA", "_METADATA"):
        case(f"state, {_file}: {_name}", "Orbax", "state")(
            lambda folder, text=_text, file=_file: orbax(folder, file, text)
        )


@case("state: steps that are files", "Orbax", "state")
def _(folder):
    folder.mkdir()
    (folder / "7").write_text("no folder")
    return folder


@case("state: a step without anything", "Orbax", "state")
def _(folder):
    (folder / "7").mkdir(parents=True)
    return folder


@case("state: another library's folder", "Orbax", "state")
def _(folder):
    samples.hugging_face(folder / "7")
    return folder


@case("state: a file", "folders for files", "state")
def _(folder):
    return plain(folder, b"no folder", "states")


@case("state: a step that is a link to itself", "links", "state")
def _(folder):
    folder.mkdir()
    (folder / "7").symlink_to("7")
    return folder


@case("state: a step of 5,000 digits", "Orbax", "state")
def _(folder):
    (folder / ("9" * 200)).mkdir(parents=True)
    return folder


# Exported programs


@case("program: text", "programs", "program")
def _(folder):
    made = samples.program(folder)
    (made / "program.stablehlo").exists()
    for path in made.iterdir():
        path.write_bytes(b"no program")
    return made
