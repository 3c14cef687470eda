"""The generator of the reference covers the package, and the check of links sees what is broken."""

import doctest
import importlib
import inspect
import pathlib
import pkgutil
import sys

import pytest

import mvp_jax

ROOT = pathlib.Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "docs"), str(ROOT / "docs" / "_ext")]

import check_links
import docstrings
import package_names
import reference_pages


@pytest.fixture(scope="module")
def names():
    return package_names.collect(ROOT)


@pytest.fixture(scope="module")
def pages(names):
    return reference_pages.pages(names)


def imported_modules():
    """The package's modules as Python finds them, imported; the generator reads files instead."""
    found = [m.name for m in pkgutil.walk_packages(mvp_jax.__path__, "mvp_jax.")]
    return [importlib.import_module(name) for name in found if not name.endswith("__main__")]


def test_every_module_has_a_page_that_is_in_a_toctree(names, pages):
    listed = {line for text in pages.values() for line in text.split("\n")}
    for module in imported_modules():
        shown = names.targets[module.__name__]
        text = pages[f"reference/{shown}.md"]
        assert f"```{{py:module}} {shown}\n" in text
        assert shown in listed, f"no page lists {shown} in its toctree"


def test_every_public_name_has_an_entry_on_the_page_of_its_module(names, pages):
    missing, count = [], 0
    for module in imported_modules():
        for name, value in vars(module).items():
            if name.startswith("_") or not (inspect.isclass(value) or inspect.isfunction(inspect.unwrap(value))):
                continue
            if getattr(value, "__module__", "") != module.__name__ or value.__name__ != name:
                continue
            count += 1
            entry = names.entries.get(names.targets.get(f"{module.__name__}.{name}", ""))
            last = entry.shown.rpartition(".")[2] if entry else name
            heads = [f"{{py:{kind}}} {last}" for kind in ("function", "class", "exception", "data")]
            text = pages[f"reference/{entry.home}.md"] if entry else ""
            lines = [line.lstrip("`") for line in text.split("\n")]
            if not any(line == head or line.startswith(f"{head}(") for line in lines for head in heads):
                missing.append(f"{module.__name__}.{name}")
    assert count > 1000
    assert not missing


@pytest.mark.parametrize("name", sorted(set(mvp_jax.__all__) - {"__version__"}))
def test_what_the_package_offers_is_shown_under_a_short_name(names, name):
    shown = names.targets[f"mvp_jax.{name}"]
    if inspect.ismodule(getattr(mvp_jax, name)):
        assert shown in names.modules
        assert shown == f"mvp_jax.{name}"
    else:  # a class stays with its module, as `mvp_jax.units.Slot`
        assert shown in names.entries
        assert names.entries[shown].home in {"mvp_jax", *(f"mvp_jax.{module}" for module in mvp_jax.__all__)}


def test_a_name_is_reached_by_its_file_and_by_its_short_form(names):
    for alias in ("mvp_jax.core.prune.by_leaf", "mvp_jax.prune.by_leaf"):
        assert names.targets[alias] == "mvp_jax.prune.by_leaf"
    assert names.entries["mvp_jax.prune.by_leaf"].text.startswith(mvp_jax.prune.by_leaf.__doc__.split("\n")[0])


def test_a_docstring_becomes_fields_examples_and_links():
    text = """Sums <b>, see arXiv:2301.11063.

    Args:
        x, y: what to sum,
            of one shape.

    Returns:
        The sum.

    >>> 1 + 1
    2
    """
    assert docstrings.to_myst(text) == [
        "Sums \\<b>, see [arXiv:2301.11063](https://arxiv.org/abs/2301.11063).",
        "",
        ":param x, y: what to sum,",
        "    of one shape.",
        ":returns: The sum.",
        "",
        "```pycon",
        ">>> 1 + 1",
        "2",
        "```",
        "",
    ]


@pytest.mark.parametrize("module", [docstrings, reference_pages], ids=lambda module: module.__name__)
def test_the_examples_of_the_generator_hold(module):
    done = doctest.testmod(module)
    assert done.attempted
    assert not done.failed


def test_a_link_that_leads_nowhere_is_found(tmp_path, capsys):
    with pytest.raises(ValueError, match=r"has no index\.html"):
        check_links.broken(tmp_path)
    (tmp_path / "sub").mkdir()
    page = '<a href="sub/a.html#here">1</a><a href="https://example.org/x">2</a><a href="#top">3</a><p id="top">'
    (tmp_path / "index.html").write_text(page)
    (tmp_path / "sub" / "a.html").write_text('<p id="here"><a href="../index.html?q=1#top">up</a>')
    assert check_links.main([str(tmp_path)]) == 0
    (tmp_path / "sub" / "a.html").write_text('<a href="../none.html">up</a><img src="none.png"><a href="#away">x</a>')
    assert check_links.main([str(tmp_path)]) == 1
    lines = capsys.readouterr().out.splitlines()[1:]
    assert lines == [
        "index.html: sub/a.html#here names no place in that page",
        "sub/a.html: #away names no place in that page",
        "sub/a.html: ../none.html is not there",
        "sub/a.html: none.png is not there",
    ]
