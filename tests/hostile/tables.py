"""Tables of texts and labels."""

from typing import Any

from tests.hostile import samples
from tests.hostile.cases import DEEP, DEEP_OBJECT, LATIN, LONG, case, config, elsewhere

# Tables


def rewritten(folder, content, ending):
    path = samples.table(folder, ending)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


TABLES: dict[str, tuple[str, Any]] = {
    "NULs": (".csv", b"text,label\na\0b,x\n"),
    "NULs in a TSV": (".tsv", b"text\tlabel\na\0b\tx\n"),
    "columns of unequal number": (".csv", "text,label\na,b,c\nd\n"),
    "columns of unequal number in a TSV": (".tsv", "text\tlabel\na\tb\tc\nd\n"),
    "not UTF-8": (".csv", b"text,label\n\xff\xfe\xfa,x\n"),
    "not UTF-8 in JSON lines": (".jsonl", LATIN),
    "UTF-16": (".csv", "text,label\na,b\n".encode("utf-16")),
    "quotation marks that do not close": (".csv", 'text,label\n"a,b\n' + "c,d\n" * 1000),
    "a name twice": (".csv", "text,text\na,b\n"),
    "a head alone": (".csv", "text,label\n"),
    "blanks": (".csv", " \n" * 1000),
    "a list nested deeply": (".json", DEEP),
    "lines nested deeply": (".jsonl", DEEP + "\n"),
    "objects nested deeply": (".jsonl", DEEP_OBJECT + "\n"),
    "a number": (".json", "7"),
    "a list of numbers": (".json", "[1, 2, 3]"),
    "a number of 5,000 digits": (".jsonl", f'{{"text": {LONG}, "label": 1}}\n'),
    "texts that are lists": (".jsonl", '{"text": ["a"], "label": "x"}\n' * 9 + '{"text": ["b"], "label": "y"}\n' * 9),
    "labels that are objects": (
        ".jsonl",
        "".join(f'{{"text": "a{i}", "label": {{"a": {i % 2}}}}}\n' for i in range(20)),
    ),
    "labels of NaN": (".jsonl", "".join(f'{{"text": "a{i}", "label": NaN}}\n' for i in range(20))),
    "labels of infinity": (".csv", "text,label\n" + "".join(f"a{i},{i}.5\n" for i in range(20)) + "b,1e999\n"),
    "a name of a column that steers the terminal": (".csv", "te\x1b[2Jxt,te\x1b[2Jxt\na,b\n"),
}

for _name, (_ending, _content) in TABLES.items():
    case(f"table: {_name}", "tables", "data")(
        lambda folder, content=_content, ending=_ending: rewritten(folder, content, ending)
    )


@case("table: a folder", "folders for files", "data")
def _(folder):
    (folder / "reviews.csv").mkdir(parents=True)
    return folder / "reviews.csv"


@case("table: a link to itself", "links", "data")
def _(folder):
    folder.mkdir()
    (folder / "reviews.csv").symlink_to("reviews.csv")
    return folder / "reviews.csv"


@case("table: a link to endless zeros", "links", "data")
def _(folder):
    folder.mkdir()
    (folder / "reviews.csv").symlink_to("/dev/zero")
    return folder / "reviews.csv"


for _name, _content in {
    "NULs": b"label\tsentence1\n1\ta\0b\n",
    "not UTF-8": b"label\tsentence1\n1\t\xff\n",
    "columns of unequal number": b"label\tsentence1\n1\ta\tb\n",
    "a label that is none": b"label\tsentence1\n7\ta\n",
    "empty": b"",
}.items():
    case(f"glue: {_name}", "tables", "glue_task", "sst2_train.tsv")(
        lambda folder, content=_content: config(folder, content, "sst2_train.tsv", samples.glue_task)
    )


@case("street signs: a table of pictures above", "path escapes", "street_signs")
def _(folder):
    elsewhere(folder)
    root = samples.street_signs(folder) / "GTSRB"
    rows = (
        "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId\n../../../outside/secret.safetensors;8;8;0;0;8;8;0\n"
    )
    (root / "GT-final_test.csv").write_text(rows)
    return folder
