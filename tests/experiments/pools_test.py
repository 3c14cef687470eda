"""What a config's data are: which source is read, how it is cut and normalised, and which tasks it gives."""

import functools

import numpy as np
import pytest

from mvp_jax.data import groups, sources, tasks
from mvp_jax.data.datasets import catalog, glue, glyphs
from mvp_jax.data.loading import lazy
from mvp_jax.experiments import data_presets, pools, presets
from tests.pictures_on_disk import classes, pixels


def config(**data):
    """Of a small job with a bank, of which only the data matter."""
    found = presets.sparsity("digits", "resnet")
    found.bank = {"tasks": 4}
    found.tasks.classes_per_task = 2
    found.targets.count, found.targets.unseen_at_least = 3, 1
    found.data.unseen_classes = 2
    for field in ("tasks", "size", "targets"):
        if field not in found.data:
            found.data[field] = None
    found.data.tasks = "subsets"
    found.data.update(data)
    found.unlock()
    return found


def folder(root, name="pets", count=6, per_class=8, shape=(8, 8, 3), test=True):
    per = {f"{name}{i}": per_class for i in range(count)}
    classes(root / name / "train", per, shape)
    if test:
        classes(root / name / "test", per, shape, seed=1)
    return str(root / name)


def test_digits_are_cut_and_drawn_as_ever():
    wanted = config(fractions=(0.4, 0.3, 0.2, 0.1))
    found = pools.load(wanted)
    source = sources.digits()
    for pool, expected in zip(found.pools, tasks.split(source, seed=0, fractions=(0.4, 0.3, 0.2, 0.1)), strict=True):
        np.testing.assert_array_equal(pool.x, expected.x)
    order = np.random.default_rng(0).permutation(10)
    assert found.pretrain_classes == tuple(sorted(order[: wanted.pretrain.classes].tolist()))
    seen, unseen = sorted(order[:8].tolist()), sorted(order[8:].tolist())
    assert found.bank_tasks == tasks.draw(seen, 4, 2, 0, prefix="source")
    targets = tasks.draw(10, 3, 2, 1, must_include=unseen, at_least=1, exclude=found.bank_tasks, prefix="target")
    assert found.targets == targets
    del wanted.bank, wanted.targets
    without = pools.load(wanted)
    assert (without.bank_tasks, without.targets, without.unseen) == ((), (), tuple(unseen))


@pytest.mark.parametrize("late", [False, True])
def test_a_folder(tmp_path, monkeypatch, late):
    if late:
        monkeypatch.setattr(catalog, "SMALL", 10)
    path = folder(tmp_path, count=8)
    found = pools.load(config(name="folder", path=path, fractions=(0.5, 0.5), size=6))
    assert (found.image_shape, found.class_names) == ((6, 6, 3), tuple(f"pets{i}" for i in range(8)))
    assert [len(p.y) for p in found.pools] == [32] * 4
    assert all(isinstance(p.x, lazy.Lazy) == late for p in found.pools)
    x = np.concatenate([np.asarray(p.x) for p in found.pools[:2]])
    assert x.dtype == np.float32
    np.testing.assert_allclose(x.mean((0, 1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(x.std((0, 1, 2)), 1, atol=1e-4)
    task = tasks.materialise(found.targets[0], found.pools.target, shots=2, valid_from=found.pools.valid, seed=0)
    assert isinstance(task.train.x, np.ndarray)
    given = pools.load(config(name="folder", path=path, fractions=(0.5, 0.5), mean=(0.5,) * 3, std=(0.25,) * 3))
    part = np.asarray(given.pools.test.x)
    assert part.min() == -2 and part.max() == 2  # noqa: PT018


def test_a_known_data_set_is_normalised_as_the_catalogue_says(monkeypatch):
    x, y = pixels(40, (32, 32, 3)), np.arange(40) % 10
    opened = []

    def fake(name, **kwargs):
        opened.append((name, kwargs))
        return sources.arrays(name, (x, y), (np.concatenate([pixels(20, (32, 32, 3), seed=1), x[:1]]), [*y[:20], 0]))

    monkeypatch.setattr(pools.prepared, "open", fake)
    found = pools.load(config(name="cifar10", path="/data", fractions=(0.5, 0.5)))
    assert opened == [("cifar10", {"data_dir": "/data", "size": None})]
    entry = catalog.CATALOG["cifar10"]
    scaled = (x / 255 - np.array(entry.mean)) / entry.std
    got = np.concatenate([found.pools.source.x, found.pools.target.x])
    np.testing.assert_allclose(np.sort(got.ravel()), np.sort(scaled.ravel()), atol=1e-5)
    assert len(found.pools.valid.y) + len(found.pools.test.y) == 20  # without the one that is trained on
    pools.load(config(name="cifar10", fractions=(0.5, 0.5), size=16))
    assert opened[1][1] == {"data_dir": None, "size": 16}


def test_what_is_not_prepared_says_how(tmp_path):
    with pytest.raises(ValueError, match=r"cifar100 is not prepared in .*prepare it once: pip install"):
        pools.load(config(name="cifar100", path=str(tmp_path), fractions=(0.5, 0.5)))


def test_joined_data_sets(tmp_path):
    path = folder(tmp_path, "birds", 5, per_class=12, shape=(20, 20, 3), test=False)
    wanted = config(name="digits+folder", path=f"+{path}", fractions=(0.25,) * 4)
    found = pools.load(wanted)
    assert found.image_shape == (8, 8, 3)
    assert found.class_names[9:11] == ("digits/9", "birds/birds0")
    of = [name.partition("/")[0] for name in found.class_names]
    for task in found.bank_tasks + found.targets:
        assert len({of[c] for c in task.classes}) == 1
    assert {of[t.classes[0]] for t in found.bank_tasks} == {"digits", "birds"}

    wanted.data.targets = "birds"
    wanted.pretrain.classes = 10
    apart = pools.load(wanted)
    assert apart.pretrain_classes == tuple(range(10))
    assert {of[c] for t in apart.bank_tasks for c in t.classes} == {"digits"}
    assert {of[c] for t in apart.targets for c in t.classes} == {"birds"}
    for wrong in ("fish", "digits+birds"):
        wanted.data.targets = wrong
        with pytest.raises(ValueError, match=r"or of the data sets .*\['digits', 'birds'\]; at least one is left"):
            pools.load(wanted)
    wanted.data.path = f"{path}+{path}+{path}"
    with pytest.raises(ValueError, match=r"data.path has 3 parts"):
        pools.load(wanted)


def test_superclasses(tmp_path):
    x, y = pixels(120), np.arange(120) % 12
    np.savez(
        tmp_path / "toy.npz",
        train_images=x,
        train_labels=y,
        test_images=pixels(48, seed=1),
        test_labels=np.arange(48) % 12,
        train_coarse_labels=y // 4,
    )
    wanted = config(name="npz", path=str(tmp_path / "toy.npz"), fractions=(0.5, 0.5), tasks="superclasses")
    found = pools.load(wanted)
    assert all(len({c // 4 for c in t.classes}) == 1 for t in found.bank_tasks + found.targets)
    assert not {t.classes for t in found.bank_tasks} & {t.classes for t in found.targets}
    hidden = set(range(12)) - {c for t in pools.load(wanted).bank_tasks for c in t.classes}
    assert len(hidden) >= 2
    wanted.data.tasks, wanted.data.name = "superclasses", "digits"
    wanted.data.fractions = (0.25,) * 4
    with pytest.raises(ValueError, match="digits has no superclasses"):
        pools.load(wanted)


@pytest.fixture
def drawn(monkeypatch):
    """Few pictures of each drawn character, which no cache keeps."""
    monkeypatch.setattr(pools.glyphs, "glyphs", functools.partial(glyphs.glyphs, per_class=24, keep=False))

    def made(**data):
        found = presets.meta_vote("glyphs", "resnet")
        found.data.update(data)
        return found

    return made


def test_drawn_characters(drawn):
    wanted = drawn()
    found = pools.load(wanted)
    assert (len(found.class_names), found.image_shape) == (178, (16, 16, 1))
    assert (len(found.pretrain_classes), len(found.unseen)) == (64, 40)
    assert (len(found.bank_tasks), len(found.targets)) == (48, 8)
    bank = {c for t in found.bank_tasks for c in t.classes}
    assert not (bank | set(found.pretrain_classes)) & set(found.unseen)
    assert all(len(set(t.classes) & set(found.unseen)) >= 5 for t in found.targets)
    x = np.concatenate([np.asarray(pool.x) for pool in found.pools])
    np.testing.assert_allclose((x.mean(), x.std()), (0, 1), atol=1e-3)
    np.testing.assert_allclose(found.normalised, [[0.26], [0.25]], atol=0.02)


def test_drawn_characters_by_alphabet(drawn):
    wanted = drawn(tasks="superclasses")
    found, coarse = pools.load(wanted), glyphs.glyphs(per_class=1, keep=False).coarse
    assert all(len({coarse[c] for c in t.classes}) == 1 for t in found.bank_tasks + found.targets)
    assert all(len(set(t.classes) & set(found.unseen)) >= 5 for t in found.targets)

    for how in ("subsets", "superclasses"):
        found = pools.load(drawn(targets="armenian", tasks=how))
        armenian = {i for i, b in enumerate(coarse) if b == 4}
        assert set(found.unseen) == armenian
        assert all(set(t.classes) <= armenian for t in found.targets)
        assert not armenian & (set(found.pretrain_classes) | {c for t in found.bank_tasks for c in t.classes})
    with pytest.raises(ValueError, match=r"data.targets is 'hebrew'; .* here \['digits', 'latin', "):
        pools.load(drawn(targets="hebrew"))


def test_drawn_characters_by_typeface(drawn):
    wanted = drawn()
    data_presets.held_out_faces(wanted, "serif")
    found = pools.load(wanted)
    source = glyphs.glyphs(per_class=24, held_out=("serif",), keep=False)
    sizes = [len(pool.y) for pool in found.pools]
    assert sizes == [178 * 18, 178 * 6, 178 * 12, 178 * 12]
    mean, std = found.normalised[0][0], found.normalised[1][0]
    for pool, split in ((found.pools.source, source.train), (found.pools.test, source.test)):
        levels = np.round((np.asarray(pool.x) * std + mean) * 255).astype(np.uint8)
        assert set(sources.hashes(levels)) <= set(sources.hashes(split.x))
    with pytest.raises(ValueError, match=r"unknown families of typefaces \['comic'\]"):
        data_presets.held_out_faces(drawn(), "comic")
    with pytest.raises(ValueError, match=r"held_out=serif is for data=glyphs, .* not digits"):
        data_presets.held_out_faces(presets.meta_vote("digits", "resnet"), "serif")


def test_the_whole_data_set_is_one_task():
    wanted = config(tasks="whole", fractions=(0.25,) * 4)
    with pytest.raises(ValueError, match="one target of all classes, and no bank"):
        pools.load(wanted)
    del wanted.bank
    with pytest.raises(ValueError, match="classes_per_task is 2, but digits as a whole has 10 classes; set it to 10"):
        pools.load(wanted)
    wanted.tasks.classes_per_task = 10
    assert pools.load(wanted).targets == (groups.whole(sources.digits()),)


def test_glue_is_read_by_its_own_reader(monkeypatch):
    asked = []
    ids = np.arange(1, 161, dtype=np.int32).reshape(40, 4)

    def fake(*args, **kwargs):
        asked.append((args, kwargs))
        return sources.arrays("glue/rte", (ids, np.arange(40) % 2), (ids + 500, np.arange(40) % 2))

    monkeypatch.setattr(glue, "source", fake)
    wanted = config(name="glue/rte", path="/glue", tasks="whole", fractions=(0.5, 0.5), length=4, unseen_classes=0)
    wanted.pretrain.classes, wanted.targets.unseen_at_least = 2, 0
    del wanted.bank
    wanted.model.options = {"vocab": 700}
    found = pools.load(wanted)
    assert asked == [(("rte", "/glue", None), {"length": 4, "vocabulary": 700})]
    assert found.image_shape == (4,)
    assert found.targets[0].classes == (0, 1)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"name": "letters"}, "unknown data 'letters'; choose 'glyphs', 'digits', 'docstrings' or 'npz'"),
        ({"name": "digits+letters"}, "unknown data 'letters'"),
        ({"tasks": "all"}, r"unknown data.tasks 'all'; choose one of \['subsets', "),
        ({"fractions": (0.5, 0.5)}, "digits has no test split: give four"),
        ({"targets": "digits"}, "data.targets is 'digits'; it names some of the superclasses, .* digits has neither"),
        ({"held_out_faces": "serif"}, "data.held_out_faces is 'serif', but digits has no typefaces; leave it empty"),
        ({"name": "gtsrb"}, "gtsrb is read from a folder"),
        ({"name": "folder"}, "no folder ''"),
    ],
)
def test_refusals(data, message):
    with pytest.raises(ValueError, match=message) as caught:
        pools.load(config(**data))
    assert "\n" not in str(caught.value)


def test_shares_beside_a_test_split(tmp_path):
    with pytest.raises(ValueError, match="has a test split, which gives the valid and test pools: give two"):
        pools.load(config(name="folder", path=folder(tmp_path), fractions=(0.25,) * 4))
