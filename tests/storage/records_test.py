"""Files appear whole or not at all, metrics survive a kill, and progress is readable anywhere."""

import io
import json
import os

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from mvp_jax.storage import records

ROW = {"target": "a", "seed": 0, "method": "mvp", "ratio": 0.75, "steps": 25, "split": "test", "accuracy": 0.5}


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "a.txt"
    records.write_text(path, "old")

    def fail():
        with records.replacing(path) as temporary:
            temporary.write_text("half")
            assert path.read_text() == "old"
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    records.write_text(path, "new")
    assert path.read_text() == "new"
    assert os.listdir(path.parent) == ["a.txt"]


def test_json_is_strict(tmp_path):
    value = {"a": np.float32(0.5), "b": [np.arange(2), float("inf")], "c": None, "d": (True, tmp_path), 3: np.int64(7)}
    records.write_json(tmp_path / "a.json", value)
    want = {"a": 0.5, "b": [[0, 1], None], "c": None, "d": [True, str(tmp_path)], "3": 7}
    assert json.loads((tmp_path / "a.json").read_text()) == want


def test_metrics_continue_after_a_kill(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with records.MetricsWriter(path) as metrics:
        for step in range(4):
            metrics.write(step=step, loss=np.float32(step) / 4, per_member=np.array([1.0, np.nan]))
            assert len(records.read_metrics(path)) == step + 1, "each line is there at once"
    whole = path.read_text()
    with path.open("a") as file:
        file.write('{"step": 4, "lo')  # the kill
    assert len(records.read_metrics(path)) == 4

    with records.MetricsWriter(path, after=1) as metrics:  # the checkpoint is of step 1
        for step in (2, 3):
            metrics.write(step=step, loss=np.float32(step) / 4, per_member=np.array([1.0, np.nan]))
    assert path.read_text() == whole
    assert records.read_metrics(path)[3] == {"step": 3, "loss": 0.75, "per_member": [1.0, None]}

    path.write_text("nonsense\n" + whole)
    with pytest.raises(ValueError, match="line 1 "):
        records.MetricsWriter(path)


WORDS = st.text(st.characters(exclude_categories=["C"], exclude_characters="\x85\u2028\u2029"), min_size=1, max_size=8)
ROWS = st.fixed_dictionaries(
    {
        "target": WORDS,
        "seed": st.integers(0, 99),
        "method": WORDS,
        "ratio": st.floats(0, 0.99),
        "steps": st.integers(0, 10**6),
        "split": st.sampled_from(["test", "valid"]),
        "accuracy": st.floats(0, 1),
        "cost_examples": st.none() | st.integers(0, 10**12),
        "params": st.none() | st.integers(0, 10**9),
        "flops": st.none() | st.floats(0, 1e15),
        "kept": st.none() | st.integers(0, 99),
    }
)


@hypothesis.given(rows=st.lists(ROWS, max_size=5))
def test_csv_gives_back_what_was_written(rows, tmp_path_factory):
    path = tmp_path_factory.mktemp("csv") / "results.csv"
    records.write_csv(rows, path)
    back = records.read_csv(path)
    assert [{**dict.fromkeys(r), **b} for r, b in zip(rows, back, strict=True)] == rows
    assert path.read_text().startswith(",".join(records.FIELDS))


def test_a_table_of_pruned_weights_has_a_sparsity_instead_of_a_ratio(tmp_path):
    row = {("sparsity" if k == "ratio" else k): v for k, v in ROW.items()}
    records.write_csv([row], tmp_path / "results.csv")
    assert (tmp_path / "results.csv").read_text().startswith("target,seed,method,sparsity,steps,split,accuracy,")
    (back,) = records.read_csv(tmp_path / "results.csv")
    assert "ratio" not in back
    assert records.share(back) == records.share(ROW) == 0.75
    with pytest.raises(ValueError, match=r"row 1 lacks \['sparsity'\]"):
        records.write_csv([row, ROW], tmp_path / "mixed.csv")


def test_csv_takes_arrays_scalars_and_refuses_gaps(tmp_path):
    path = tmp_path / "results.csv"
    records.write_csv([{**ROW, "accuracy": np.float32(0.25), "seed": np.int32(3)}], path)
    assert records.read_csv(path)[0]["accuracy"] == 0.25
    assert records.read_csv(path)[0]["seed"] == 3
    with pytest.raises(ValueError, match=r"row 1 lacks \['split', 'accuracy'\]"):
        records.write_csv([ROW, {k: v for k, v in ROW.items() if k not in ("split", "accuracy")}], path)
    assert records.read_csv(path)[0]["accuracy"] == 0.25
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="lacks the columns"):
        records.read_csv(path)


def test_plain_progress_prints_a_line_a_tenth():
    stream = io.StringIO()
    with records.progress(1000, "bank", stream=stream, interval=1e9) as advance:
        for _ in range(1000):
            advance()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 10
    assert lines[0].startswith("bank: 100/1000 (10 %), 0:00 elapsed")
    assert lines[-1].startswith("bank: 1000/1000 (100 %)")
    assert "\x1b" not in stream.getvalue()


def test_plain_progress_prints_slow_steps_and_tells_the_time_left(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(records.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    with records.progress(600, "bank", stream=stream) as advance:
        for _ in range(8):
            now[0] += 6
            advance(note="loss 0.5")
    assert stream.getvalue().splitlines() == [
        "bank: 2/600 (0 %), 0:12 elapsed, 59:48 left, loss 0.5",
        "bank: 4/600 (0 %), 0:24 elapsed, 59:36 left, loss 0.5",
        "bank: 6/600 (1 %), 0:36 elapsed, 59:24 left, loss 0.5",
        "bank: 8/600 (1 %), 0:48 elapsed, 59:12 left, loss 0.5",
    ]


def test_a_terminal_gets_a_bar():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("TERM", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
            patch.delenv(name, raising=False)
        patch.setenv("TERM", "xterm")
        with records.progress(4, "bank", stream=stream) as advance:
            for _ in range(4):
                advance(note="loss 0.5")
    assert "4/4" in stream.getvalue()
    assert "loss 0.5" in stream.getvalue()


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        records.write_csv([ROW], tmp_path / "file" / "results.csv")


def test_lines_and_tables_go_to_people(capsys):
    records.say("pre-trained")
    records.show("a table")
    out, err = capsys.readouterr()
    assert (out.strip(), err) == ("a table", "pre-trained\n")
