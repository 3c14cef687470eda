"""What `prune_checkpoint` hands on, read by `transformers` alone: tokeniser, processor, names and answers agree."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from PIL import Image

from mvp_jax.data.datasets import labelled
from mvp_jax.delivery import DeliverySettings, DeliveryTraining, PruningGoal, inputs, prune_checkpoint, sample
from tests import folders, own_data

BRIEF = DeliveryTraining(steps=12, batch=16, looks=2, learning_rate=3e-3)


@pytest.mark.parametrize("goal", [PruningGoal(amount=0.5), PruningGoal(name="ratio", amount=0.5)])
def test_texts(goal, tmp_path):
    bert = folders.bert_encoder(tmp_path / "bert")
    table = own_data.reviews(tmp_path / "reviews.csv", count=100)
    found = prune_checkpoint(bert, table, out=tmp_path / "out", settings=DeliverySettings(goal=goal, training=BRIEF))
    test = labelled.read(table).test
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out" / "model")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out" / "model").eval()
    assert theirs.config.id2label == {0: "bad", 1: "good"}
    read = tokenizer(list(test.x), padding=True, return_tensors="pt")
    assert len(set(read["input_ids"].flatten().tolist())) > 10, "words became unknown"
    with torch.no_grad():
        logits = theirs(**read).logits.numpy()
    task = inputs.read(tmp_path / "out" / "model", labelled.read(table))
    np.testing.assert_allclose(logits, found.model.apply(found.variables, task.test["x"])[0], atol=1e-4)
    names = [theirs.config.id2label[int(i)] for i in logits.argmax(-1)]
    truth = [labelled.read(table).class_names[int(i)] for i in test.y]
    accuracy = np.mean([a == b for a, b in zip(names, truth, strict=True)])
    assert accuracy == pytest.approx(found.report.versions[1].scores[0].value)
    assert float(np.ptp(logits)) > 0.01


def test_pictures(tmp_path):
    photos = own_data.pictures(tmp_path / "photos")
    vit = sample.sample_checkpoint(tmp_path / "vit", own_data.squares(), steps=20)
    settings = DeliverySettings(goal=PruningGoal(name="ratio", amount=0.5), training=BRIEF)
    found = prune_checkpoint(vit, photos, out=tmp_path / "out", settings=settings)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out" / "model")
    theirs = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "out" / "model").eval()
    files = sorted(photos.rglob("*.jpg"))[::7]
    with torch.no_grad():
        logits = theirs(**processor([Image.open(f) for f in files], return_tensors="pt")).logits.numpy()
    task = inputs.read(tmp_path / "out" / "model", labelled.read(photos))
    process, _ = inputs._processor(tmp_path / "out" / "model", found.model, None)
    ours = found.model.apply(found.variables, process([np.asarray(Image.open(f).convert("RGB")) for f in files]))[0]
    # The fast processors of transformers round resized pictures another way.
    np.testing.assert_allclose(logits, ours, atol=0.05)
    assert theirs.config.id2label == dict(enumerate(task.class_names))
