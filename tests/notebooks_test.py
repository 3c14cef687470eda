"""The notebooks open in Colab and install themselves; `.ci/run` executes them."""

import importlib.metadata
import importlib.util
import json
import os
import pathlib
import tomllib

import pytest

import mvp_jax
from colabs import heads

NOTEBOOKS = sorted((heads.ROOT / "colabs").glob("*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request):
    return request.param


def _read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_badge_and_the_install_cell_are_those_of_pyproject(path):
    url = tomllib.loads((heads.ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
    text = ["".join(cell["source"]) for cell in _read(path)["cells"]]
    place = url.removeprefix("https://github.com/")
    assert f"https://colab.research.google.com/github/{place}/blob/main/colabs/{path.name})" in text[0]
    assert f'"git+{url}@main"' in text[1]
    assert f'version("mvp-jax") == "{mvp_jax.__version__}"' in text[1]
    assert heads.rewritten(_read(path), path.stem) == _read(path), "run python colabs/heads.py"


def test_an_address_that_changes_is_found_and_written(tmp_path, monkeypatch, capsys):
    (tmp_path / "colabs").mkdir()
    for name in ("quickstart", "research_loop"):
        text = (heads.ROOT / "colabs" / f"{name}.ipynb").read_text(encoding="utf-8")
        (tmp_path / "colabs" / f"{name}.ipynb").write_text(text, encoding="utf-8")
    monkeypatch.setattr(heads, "__file__", str(tmp_path / "colabs" / "heads.py"))
    assert heads.main(["--check"]) == 0
    monkeypatch.setattr(heads, "address", lambda: "https://github.com/some/body")
    assert heads.main(["--check"]) == 1
    assert "quickstart.ipynb research_loop.ipynb" in capsys.readouterr().out
    assert heads.main([]) == 0
    assert heads.main(["--check"]) == 0
    cells = _read(tmp_path / "colabs" / "quickstart.ipynb")["cells"]
    assert "".join(cells[0]["source"]).count("/some/body/blob/main/colabs/quickstart.ipynb") == 1
    assert "git+https://github.com/some/body@main" in "".join(cells[1]["source"])
    assert "mvp-jax/mvp_jax" not in json.dumps(cells[:2])


@pytest.mark.parametrize(
    "cells", [[], [("code", "1")], [("markdown", "no title"), ("code", "1")], [("markdown", "# A"), ("markdown", "b")]]
)
def test_a_notebook_of_another_form_is_refused(cells):
    notebook = {"cells": [{"cell_type": kind, "source": [text]} for kind, text in cells]}
    with pytest.raises(ValueError, match=r"new\.ipynb does not begin with a title"):
        heads.rewritten(notebook, "new")


def test_notebooks_are_kept_without_outputs(path):
    cells = [cell for cell in _read(path)["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)


def _installed(name, folder, monkeypatch, *, there=(), version=None, source=None):
    """What the install cell of a notebook hands to pip in a folder, or `None`: nothing."""
    code = heads.install(name)
    (line,) = [line.strip() for line in code.splitlines() if line.strip().startswith("%pip ")]
    code = code.replace(line, f"pip(f'''{line.removeprefix('%pip ')}''')")
    asked = []

    def known(_):
        if version is None:
            raise importlib.metadata.PackageNotFoundError("mvp-jax")
        return version

    monkeypatch.chdir(folder)
    monkeypatch.delenv("MVP_JAX_SOURCE", raising=False)
    if source is not None:
        monkeypatch.setenv("MVP_JAX_SOURCE", source)
    monkeypatch.setattr(importlib.metadata, "version", known)
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: object() if module in there else None)
    exec(code, {"pip": asked.append})
    assert len(asked) <= 1
    return asked[0] if asked else None


@pytest.fixture
def clone(tmp_path):
    (tmp_path / "a clone" / "mvp_jax").mkdir(parents=True)
    (tmp_path / "a clone" / "mvp_jax" / "__init__.py").touch()
    (tmp_path / "a clone" / "colabs").mkdir()
    return tmp_path / "a clone"


@pytest.mark.parametrize("below", ["", "colabs"])
def test_in_a_clone_the_clone_is_installed(clone, monkeypatch, below):
    asked = _installed("quickstart", clone / below, monkeypatch, source="file:///elsewhere.whl")
    assert asked == f'install -q "mvp-jax @ file://{str(clone).replace(" ", "%20")}"'


def test_without_a_clone_the_repository_is_installed(tmp_path, monkeypatch):
    asked = _installed("quickstart", tmp_path, monkeypatch)
    assert asked == f'install -q "mvp-jax @ git+{heads.address()}@main"'
    asked = _installed("research_loop", tmp_path, monkeypatch)
    assert asked == f'install -q "mvp-jax[export] @ git+{heads.address()}@main" equinox'


def test_another_source_may_stand_for_the_repository(tmp_path, monkeypatch):
    asked = _installed("quickstart", tmp_path, monkeypatch, source="file:///room/mvp_jax.whl")
    assert asked == 'install -q "mvp-jax @ file:///room/mvp_jax.whl"'


@pytest.mark.parametrize(
    ("name", "there", "version", "installs"),
    [
        ("quickstart", ("mvp_jax",), mvp_jax.__version__, False),
        ("quickstart", ("mvp_jax",), "0.0.1", True),
        ("quickstart", (), mvp_jax.__version__, True),
        ("research_loop", ("mvp_jax",), mvp_jax.__version__, True),
        ("research_loop", ("mvp_jax", "flatbuffers", "equinox"), mvp_jax.__version__, False),
    ],
)
def test_what_is_there_in_this_version_is_left_alone(tmp_path, monkeypatch, name, there, version, installs):
    asked = _installed(name, tmp_path, monkeypatch, there=there, version=version)
    assert (asked is not None) == installs


def test_extras_of_notebooks_are_extras_of_the_project():
    extras = tomllib.loads((heads.ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for name, (wanted, _) in heads.EXTRAS.items():
        assert (heads.ROOT / "colabs" / f"{name}.ipynb").exists()
        assert set(wanted) <= extras.keys() & heads.MODULES.keys()


def test_links_between_files_exist(path):
    for cell in _read(path)["cells"]:
        if cell["cell_type"] == "markdown":
            text = "".join(cell["source"])
            for link in [part.split(")")[0] for part in text.split("](")[1:]]:
                if not link.startswith("https://"):
                    assert os.path.exists(path.parent / pathlib.PurePath(link.split("#")[0])), link
