"""One file for a bank: what comes out is what went in, and nothing else is ever written."""

import hashlib
import os
import pathlib
import stat
import zipfile

import jax
import numpy as np
import pytest

from mvp_jax import bank, models

MODEL = models.create("resnet8", width=4, image_size=8, channels=1, classes=3)
VARIABLES = MODEL.init(jax.random.key(0))
MARK = bank.fingerprint(VARIABLES)


def filled(folder, tasks=("a", "b/c", "ä .")):
    about = bank.BankDescription(title="A test", licence="CC0")
    store = bank.create(folder, fingerprint=MARK, settings={"ratio": 0.5}, about=about, dense=(MODEL, VARIABLES))
    for i, task in enumerate(tasks):
        entry = bank.BankEntry(task=task, classes=(0, 1), fingerprint=MARK, ratio=0.5, accuracy=0.5)
        bank.add(store, entry, {"units": {}, "other": np.arange(50 + i)})
    return store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return filled(tmp_path_factory.mktemp("bank"))


@pytest.fixture(scope="module")
def archive(store, tmp_path_factory):
    return bank.pack(store, tmp_path_factory.mktemp("archive") / "bank.zip")


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_what_comes_out_is_what_went_in(store, archive, tmp_path):
    bank.write_readme(store)
    out = bank.unpack(archive, tmp_path / "new" / "bank")
    assert contents(out.path) == contents(store.path)
    assert bank.verify(out) == 3
    assert [e.task for e in bank.entries(out)] == ["a", "b/c", "ä ."]
    assert bank.load_model(out)[0] is MODEL
    assert not out.write
    again = bank.pack(out, tmp_path / "again.zip")
    assert again.read_bytes() == archive.read_bytes()  # no dates, no order of the file system
    with zipfile.ZipFile(archive) as opened:
        lines = opened.read("SHA256SUMS").decode().splitlines()
        listed = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    assert listed == {name: hashlib.sha256(content).hexdigest() for name, content in contents(store.path).items()}


def test_a_bank_in_a_bucket_is_packed_here(remote, tmp_path):
    archive = bank.pack(filled(remote), tmp_path / "bank.zip")
    assert bank.verify(bank.unpack(archive, tmp_path / "copy")) == 3
    with pytest.raises(ValueError, match="is an address"):
        bank.pack(bank.open(remote), "gs://bucket/bank.zip")
    with pytest.raises(ValueError, match="from and to this machine"):
        bank.unpack(archive, "gs://bucket/copy")


def test_nothing_is_overwritten(store, archive, tmp_path):
    with pytest.raises(ValueError, match="is there already"):
        bank.pack(store, archive)
    (tmp_path / "mine.txt").write_text("mine")
    for where in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(ValueError, match="not an empty folder"):
            bank.unpack(archive, where)
    assert contents(tmp_path) == {"mine.txt": b"mine"}


def test_a_damaged_entry_is_not_packed(tmp_path):
    store = filled(tmp_path / "bank", ["a"])
    file = tmp_path / "bank" / "entries" / "a" / "arrays.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    with pytest.raises(ValueError, match=r"entries/a: .*checksum"):
        bank.pack(store, tmp_path / "bank.zip")
    assert os.listdir(tmp_path) == ["bank"]


def changed(archive, target, change):
    """An archive with the same files but for what `change` does to `[(ZipInfo, content)]`; sums are made to fit."""
    with zipfile.ZipFile(archive) as source:
        members = [(info, source.read(info)) for info in source.infolist()]
    with zipfile.ZipFile(target, "w") as made:
        for info, content in change(members):
            made.writestr(info, content)
    return target


def with_sums(members):
    members = [(info, content) for info, content in members if info.filename != "SHA256SUMS"]
    text = "".join(f"{hashlib.sha256(content).hexdigest()}  {info.filename}\n" for info, content in members)
    return [*members, (plain("SHA256SUMS"), text.encode())]


def plain(name, mode=stat.S_IFREG | 0o644):
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


def deflated(members):
    for info, _ in members:
        info.compress_type = zipfile.ZIP_DEFLATED
    return members


def without(name):
    return lambda members: with_sums([x for x in members if x[0].filename != name])


def rewritten(name, old, new):
    def change(members):
        found = [(i, c.replace(old, new) if i.filename == name else c) for i, c in members]
        assert found != members
        return with_sums(found)

    return change


HOSTILE = {
    "up": (lambda m: with_sums([*m, (plain("../outside"), b"x")]), "'../outside': a bank has no such file"),
    "deep up": (lambda m: with_sums([*m, (plain("entries/../../x/entry.json"), b"")]), "a bank has no such file"),
    "longer": (lambda m: with_sums([*m, (plain("entries/a/entry.json/../../../x"), b"")]), "a bank has no such file"),
    "dots": (lambda m: with_sums([*m, (plain("entries/../entry.json"), b"")]), "a bank has no such file"),
    "absolute": (lambda m: with_sums([*m, (plain("/tmp/entry.json"), b"")]), "a bank has no such file"),
    "backslash": (lambda m: with_sums([*m, (plain("entries\\x\\entry.json"), b"")]), "a bank has no such file"),
    "program": (lambda m: with_sums([*m, (plain("model/setup.py"), b"")]), "a bank has no such file"),
    "pickle": (lambda m: with_sums([*m, (plain("model/pytorch_model.bin"), b"")]), "a bank has no such file"),
    "folder": (lambda m: with_sums([*m, (plain("entries/d/"), b"")]), "a bank has no such file"),
    "newline": (lambda m: with_sums([*m, (plain("entries/a\nb/entry.json"), b"")]), "a bank has no such file"),
    "hidden": (lambda m: with_sums([*m, (plain("entries/.a/entry.json"), b"")]), "a bank has no such file"),
    "link": (lambda m: [(plain("README.md", stat.S_IFLNK | 0o777), b"/etc/passwd"), *m[1:]], "a link or another"),
    "device": (lambda m: [(plain("README.md", stat.S_IFIFO | 0o777), b""), *m[1:]], "a link or another"),
    "compressed": (deflated, "compressed or encrypted"),
    "no manifest": (
        lambda m: with_sums([x for x in m if x[0].filename != "manifest.json"]),
        r"lacks \['manifest.json'\]",
    ),
    "no sums": (lambda m: [x for x in m if x[0].filename != "SHA256SUMS"], r"lacks \['SHA256SUMS'\]"),
    "not listed": (lambda m: [*m, (plain("entries/x/entry.json"), b"{}")], "does not list each of its files"),
    "half an entry": (lambda m: with_sums([*m, (plain("entries/x/entry.json"), b"{}")]), "lacks .'entries/x/arrays"),
    "half a model": (
        lambda m: with_sums([x for x in m if x[0].filename != "model/model.json"]),
        "lacks .'model/model.json",
    ),
    "wrong sum": (lambda m: [(i, c + b" " * (i.filename == "README.md")) for i, c in m], "README.md has the checksum"),
    "another format": (rewritten("manifest.json", b"mvp_jax bank", b"something"), "is not a bank of version 1"),
    "another model": (rewritten("entries/a/entry.json", MARK[:8].encode(), b"x" * 8), "another pre-trained model"),
    "other arrays": (rewritten("entries/a/arrays.safetensors", b"\x07", b"\x08"), "are not those that it was written"),
    "other weights": (rewritten("model/weights.safetensors", b"\x00\x00", b"\x00\x01"), "weights are not those"),
    "another task": (rewritten("entries/a/entry.json", b'"task": "a"', b'"task": "b"'), "in the folder 'a' of another"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_no_bank_has_is_refused_and_nothing_is_written(archive, tmp_path, case):
    change, message = HOSTILE[case]
    bad = changed(archive, tmp_path / "bad.zip", change)
    with pytest.raises(ValueError, match=message):
        bank.unpack(bad, tmp_path / "out")
    assert os.listdir(tmp_path) == ["bad.zip"]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_twice_is_refused(archive, tmp_path):
    bad = changed(archive, tmp_path / "bad.zip", lambda m: [*m, (plain("README.md"), b"again")])
    with pytest.raises(ValueError, match="occurs twice"):
        bank.unpack(bad, tmp_path / "out")


def test_sizes_are_limited(archive, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="at most 1,000 and its own size"):
        bank.unpack(archive, tmp_path / "out", limit=1000)
    large = changed(archive, tmp_path / "large.zip", lambda m: [(plain("README.md"), b" " * (2**26 + 1)), *m[1:]])
    with pytest.raises(ValueError, match="more than the 67,108,864 of a description"):
        bank.unpack(large, tmp_path / "out")
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 5}))
    with pytest.raises(ValueError, match="has room for 5"):
        bank.unpack(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_any_damage_is_refused_or_changes_nothing(store, archive, tmp_path):
    """Bytes are flipped and the end is cut off: what is unpacked, if anything, is the bank."""
    content, rng, refused = archive.read_bytes(), np.random.default_rng(0), 0
    cases = [bytes(content[:n]) for n in rng.integers(0, len(content), 10)]
    for at in rng.integers(0, len(content), 60):
        flipped = bytearray(content)
        flipped[at] ^= 1 << int(rng.integers(8))
        cases.append(bytes(flipped))
    want = contents(store.path)
    for i, case in enumerate(cases):
        bad, out = tmp_path / f"{i}.zip", pathlib.Path(tmp_path / f"{i}")
        bad.write_bytes(case)
        try:
            bank.unpack(bad, out)
        except ValueError:
            refused += 1
            assert not out.exists()
        else:
            got = contents(out)
            assert got | {"README.md": b""} == want | {"README.md": b""}
    assert refused > 60
    for bad, message in ((tmp_path / "none.zip", "no file"), (tmp_path, "cannot be read")):
        with pytest.raises(ValueError, match=message):
            bank.unpack(bad, tmp_path / "out")
