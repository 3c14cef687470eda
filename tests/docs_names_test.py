"""The tables that translate other libraries' names give names of ours that exist, and the pages link to what exists."""

import importlib
import inspect
import pathlib
import re

import pytest

import mvp_jax

ROOT = pathlib.Path(__file__).parents[1]
TABLES = [*sorted((ROOT / "docs" / "howto").glob("from_*.md")), ROOT / "docs" / "research_code.md"]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs" / "howto").glob("*.md"))]
_NAME = re.compile(r"(?<![\w./])([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+)")


def right_cells(text):
    """The last cell of every row of every table."""
    rows = [line for line in text.splitlines() if line.startswith("| ") and not re.fullmatch(r"[|:\- ]+", line)]
    return [re.split(r"(?<!\\)\|", row.strip().strip("|"))[-1] for row in rows]


def names(cell):
    """The dotted names of this package in the code of a cell, and those of Flax's, JAX's and others left out."""
    ours = {"mvp_jax", *mvp_jax.__all__}
    found = [name for code in re.findall(r"`([^`]+)`", cell) for name in _NAME.findall(code)]
    return [name for name in found if name.partition(".")[0] in ours]


def resolve(name):
    """What a dotted name stands for, `transforms.rigl` or `mvp_jax.core.prune.by_leaf`."""
    parts = name.removeprefix("mvp_jax.").split(".")
    here, at = mvp_jax, "mvp_jax"
    for part in parts:
        at = f"{at}.{part}"
        if not hasattr(here, part) and inspect.ismodule(here):
            importlib.import_module(f"{here.__name__}.{part}")
        here = getattr(here, part)
    return here


@pytest.mark.parametrize("page", TABLES, ids=lambda page: page.name)
def test_every_name_in_a_right_column_exists(page):
    found = [name for cell in right_cells(page.read_text()) for name in names(cell)]
    assert len(found) >= 10, f"{page.name} has no table of names"
    missing = []
    for name in found:
        try:
            resolve(name)
        except (AttributeError, ImportError) as error:
            missing.append(f"{name}: {error}")
    assert not missing, f"{page.name} names what does not exist: {missing}"


@pytest.mark.parametrize("page", TABLES, ids=lambda page: page.name)
def test_every_keyword_of_a_call_in_a_right_column_exists(page):
    unknown = []
    for cell in right_cells(page.read_text()):
        for code in re.findall(r"`([^`]+)`", cell):
            call = re.match(r"([A-Za-z_][\w.]*)\((.*)\)$", code)
            if call and names(f"`{call[1]}`"):
                parameters = inspect.signature(resolve(call[1])).parameters
                keywords = re.findall(r"(?:^|, )(\w+)=", call[2])
                unknown += [f"{call[1]}({k}=)" for k in keywords if k not in parameters]
    assert not unknown, f"{page.name} gives keywords that do not exist: {unknown}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_to_a_file(page):
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL)
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"[a-z]+:|#", link)]
    broken = [link for link in links if not (page.parent / link.partition("#")[0]).exists()]
    assert not broken, f"{page.name} links to what is not there: {broken}"


def test_a_name_that_does_not_exist_is_seen():
    cell = "`transforms.prune_on_schedule(tx, sparsity=0.5)`, `jax.tree.map`, `masks.no_such_name`, or `name=value`"
    assert names(cell) == ["transforms.prune_on_schedule", "masks.no_such_name"]
    with pytest.raises((AttributeError, ImportError)):
        resolve("masks.no_such_name")
    assert right_cells("| a | b |\n|:--|:-:|\n| `x` | `masks.apply` |\n\ntext") == [" b ", " `masks.apply` "]
