"""A JSON file is an object, or it is refused by name."""

import pytest

from mvp_jax.storage import json_files


def test_an_object_comes_back(tmp_path):
    (tmp_path / "a.json").write_text('{"a": [1, null]}', encoding="utf-8")
    assert json_files.read_json(tmp_path / "a.json") == {"a": [1, None]}
    assert json_files.read_json(str(tmp_path / "b.json"), missing={"b": 1}) == {"b": 1}
    with pytest.raises(ValueError, match=r"no file .*b\.json"):
        json_files.read_json(tmp_path / "b.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", r"a\.json is not readable JSON"),
        (b"\xff", r"a\.json is not readable JSON"),
        (b"[" * 100_000, r"a\.json is not readable JSON"),
        (b"[1]", r"a\.json is a JSON list, not an object"),
        (b"null", r"a\.json is a JSON NoneType, not an object"),
    ],
)
def test_anything_else_is_refused(tmp_path, content, message):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        json_files.read_json(tmp_path / "a.json")


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is not readable JSON"):
        json_files.read_json(tmp_path)
