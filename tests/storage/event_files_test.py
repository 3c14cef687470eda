"""Event files hold what was written, as TensorBoard reads them, and a resumed run says nothing twice."""

import struct
import sys

import numpy as np
import pytest

from mvp_jax.storage import event_files, records


def crc(data):
    """Castagnoli's checksum, bit by bit, masked as TensorFlow's record format has it."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    value ^= 0xFFFFFFFF
    return ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF


def varint(data, at):
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        shift, at = shift + 7, at + 1
        if data[at - 1] < 128:
            return value, at


def fields(data):
    """A protocol buffer's fields, `[(number, value)]`, by the wire format."""
    at, found = 0, []
    while at < len(data):
        key, at = varint(data, at)
        if key & 7 == 0:
            value, at = varint(data, at)
        else:
            size, at = {1: (8, at), 5: (4, at)}.get(key & 7) or varint(data, at)
            value, at = data[at : at + size], at + size
        found.append((key >> 3, value))
    return found


def events(folder):
    """What TensorBoard shows: {tag: {step: value}}, files in the order of their names, restarts forgetting the rest."""
    shown = {}
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        data, at = file.read_bytes(), 0
        while at < len(data):
            head = data[at : at + 8]
            (size,) = struct.unpack("<Q", head)
            body = data[at + 12 : at + 12 + size]
            assert struct.unpack("<I", data[at + 8 : at + 12])[0] == crc(head)
            assert struct.unpack("<I", data[at + 12 + size : at + 16 + size])[0] == crc(body)
            at += 16 + size
            event = dict(fields(body))
            step = event.get(2, 0)
            if 7 in event and dict(fields(event[7])).get(1) == 1:  # session_log, status START
                shown = {tag: {s: v for s, v in points.items() if s < step} for tag, points in shown.items()}
            for number, value in fields(event.get(5, b"")):
                assert number == 1
                one = dict(fields(value))
                points = shown.setdefault(one[1].decode(), {})
                assert step not in points, "a step is told once"
                points[step] = struct.unpack("<f", one[2])[0]
    return shown


def test_scalars_are_written_as_tensorboard_reads_them(tmp_path):
    with event_files.Board(tmp_path / "run") as board:
        board.write(step=1, loss=0.5, of={"a": np.float32(0.25)}, rates=np.ones(3), note="text", none=None)
        board.write(step=300, loss=np.array(0.125))
        assert len(events(tmp_path)["loss"]) == 2, "each is there at once"
    assert events(tmp_path) == {"loss": {1: 0.5, 300: 0.125}, "of/a": {1: 0.25}}
    assert "tensorflow" not in sys.modules


def test_a_resumed_run_says_nothing_twice(tmp_path):
    for after, steps in ((0, (100, 200, 300)), (200, (300, 400)), (200, (300,))):
        with (
            event_files.Board(tmp_path / "board", after=after) as board,
            records.MetricsWriter(tmp_path / "metrics.jsonl", after=after, board=board) as metrics,
        ):
            for step in steps:
                metrics.write(step=step, loss=step / 1000 + after / 64)
    assert len(list((tmp_path / "board").iterdir())) == 3
    shown = events(tmp_path / "board")["loss"]
    assert list(shown) == [100, 200, 300]
    assert shown == pytest.approx(
        {line["step"]: line["loss"] for line in records.read_metrics(tmp_path / "metrics.jsonl")}
    )
    assert shown[300] == pytest.approx(0.3 + 200 / 64)


def test_tables_become_curves_and_replace_one_another(tmp_path):
    row = {"target": "a", "seed": 0, "method": "mvp", "ratio": 0.5, "steps": 0, "split": "test", "accuracy": 0.5}
    rows = [row, {**row, "target": "b", "accuracy": 0.25}, {**row, "steps": 25, "accuracy": 0.75, "split": "valid"}]
    for _ in range(2):
        event_files.write_rows(rows, tmp_path / "steps", "steps")
    assert events(tmp_path / "steps") == {"test/mvp": {0: 0.375}, "valid/mvp": {25: 0.75}}
    for share in ("ratio", "sparsity"):
        event_files.write_rows([{**row, share: 0.9, "view": "mask"}], tmp_path / share, share)
        assert events(tmp_path / share) == {"test/mvp (mask)": {90: 0.5}}


def test_without_the_package_it_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(event_files.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"need tensorboardX; pip install -e '\.\[tensorboard\]'"):
        event_files.Board(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_tensorboards_own_reader_agrees(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for after, steps in ((None, (1, 2, 3)), (2, (3, 4))):
        with event_files.Board(tmp_path, after=after) as board:
            for step in steps:
                board.write(step=step, loss=step / 8 + (after or 0))
    found = accumulator.EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in found.Scalars("loss")] == [(1, 0.125), (2, 0.25), (3, 2.375), (4, 2.5)]
