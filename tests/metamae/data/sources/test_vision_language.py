"""Captioned images in every accepted layout: prepared, opened, and joined to 228 tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from metamae import DataError, load_dataset, make_config
from metamae.data.preparing.prepared import Prepared
from metamae.data.sources.captioned.sets import VOCABULARY
from metamae.methods.building import build_method
from metamae.randomness import generator
from tests.metamae.data import making, packing
from tests.metamae.data.making import reds, skipping
from tests.metamae.data.packing import pack

PROBES = ("mismatched_caption", "vqa")


def place(name: str, layout: str, data_dir: Path) -> Path:
    """The made archives, or the folders that they are unpacked to."""
    pack({VOCABULARY: packing.vocabulary()}, data_dir)
    archives = packing.vqa() if name == "vqa" else packing.coco()
    folder = {"dabs": "captioned_images/mscoco", "metamae": "COCO", "unpacked": "."}
    if name == "vqa":
        folder = {"dabs": "captioned_images/vqa/coco-vqa", "unpacked": "vqa"}
    for archive, contents in archives.items():
        pack(contents, data_dir / (archive if layout == "published" else folder[layout]))
    return data_dir


def made(name: str, data_dir: Path, layout: str = "published", **options: str) -> Prepared:
    return making.made(name, place(name, layout, data_dir), options=options)


@pytest.mark.parametrize("layout", ["published", "dabs", "metamae", "unpacked"])
def test_mscoco_is_pretrained_on(layout: str, tmp_path: Path) -> None:
    found = made("mscoco", tmp_path, layout)
    data = load_dataset("mscoco", data_dir=tmp_path)
    assert found.manifest["layout"] == layout
    assert data.task is None
    pretrain = data.need("pretrain")
    assert (len(pretrain), pretrain.labels) == (22, None)
    batch = pretrain.batch([0, 21])
    assert batch["image"].shape == (2, 3, 224, 224)
    np.testing.assert_allclose(reds(pretrain)[[0, 21]], [18, 207], atol=2)
    assert batch["text"][:, :7].tolist() == [
        [101, 2000, 2002, 2009, 2011, 102, 0],  # a cat 0 2
        [101, 2000, 2002, 2011, 2012, 102, 0],  # a cat 2 3
    ]


@pytest.mark.parametrize("layout", ["published", "dabs"])
def test_mismatched_captions(layout: str, tmp_path: Path) -> None:
    """A row is labelled 1 just when its caption names its image."""
    found = made("mismatched_caption", tmp_path, layout, seed="3")
    data = found.dataset()
    assert found.manifest["options"] == {"seed": "3"}
    task = data.need_task()
    assert (task.outputs, task.classes) == (1, ("mismatched", "matched"))
    original = made("mscoco", tmp_path / "own").dataset().need("pretrain")
    train = data.need("train")
    own = (train.batch(slice(None))["text"] == original.batch(slice(None))["text"]).all(dim=1)
    assert own.long().tolist() == np.asarray(train.labels).tolist()
    assert torch.equal(train.batch([0])["image"], original.batch([0])["image"])
    assert len(data.need("test")) == 10


def test_vqa_looks_images_up(tmp_path: Path) -> None:
    found = made("vqa", tmp_path)
    data = found.dataset()
    train, test = data.need("train"), data.need("test")
    assert (len(train), len(test)) == (7, 7)
    assert found.array("image_train").shape == (4, 3, 224, 224)  # stored once each
    np.testing.assert_allclose(reds(train), [9, 18, 18, 27, 27, 36, 36], atol=2)
    again = made("vqa", tmp_path / "unpacked", "unpacked").dataset().need("train")
    assert torch.equal(again.batch(slice(None))["text"], train.batch(slice(None))["text"])
    assert np.array_equal(again.labels, train.labels)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", PROBES)
def test_draws_depend_on_the_seed(name: str, tmp_path: Path) -> None:
    texts = []
    for number, seed in enumerate(("42", "42", "0", "1", "2")):
        data = made(name, tmp_path / str(number), seed=seed).dataset()
        texts.append(data.need("train").batch(slice(None))["text"])
    assert torch.equal(texts[0], texts[1])
    assert not all(torch.equal(texts[0], other) for other in texts[2:])


@pytest.mark.parametrize("name", ["mscoco", *PROBES])
def test_a_damaged_image_takes_its_texts_along(name: str, tmp_path: Path) -> None:
    place(name, "published", tmp_path)
    archive = "train2014.zip" if name == "vqa" else "train2017.zip"
    contents = (packing.vqa() if name == "vqa" else packing.coco())[archive]
    bad = next(file for file in contents if file.endswith("03.jpg"))
    pack(contents | {bad: b"<html>"}, tmp_path / archive)
    done, skipped = skipping(name, tmp_path, r"\w+\.jpg: expected an image in \w+\.jpg")
    assert len(skipped) == 1
    rows = done.dataset().need("pretrain" if name == "mscoco" else "train")
    assert len(rows) == (5 if name == "vqa" else 21)
    assert not np.isclose(reds(rows), 27, atol=2).any()


def test_a_missing_vocabulary_says_where_it_belongs(tmp_path: Path) -> None:
    place("mscoco", "published", tmp_path)
    (tmp_path / VOCABULARY).unlink()
    with pytest.raises(DataError, match=r"missing .*bert-base-uncased-vocab\.txt.*; get train2017"):
        making.made("mscoco", tmp_path)


def test_a_joint_model_trains_on_228_tokens(tmp_path: Path) -> None:
    """The paper's preset, made narrow: 98 + 16 visible tokens, and one loss of both inputs."""
    data = made("mscoco", tmp_path).dataset()
    narrow = [
        f"{part}.{key}={value}"
        for part in ("encoder", "decoder")
        for key, value in (("width", 16), ("depth", 1), ("heads", 2))
    ]
    config = make_config("mscoco", preset="paper", overrides=[*narrow, "training.batch_size=2"])
    method = build_method(config, data.inputs)
    masking = method.network.masking
    assert (masking.support_counts, masking.query_counts) == ((98, 16), (98, 16))
    split = method.draw(2, generator(0, "masks", 0))
    assert split.support_idx.shape == (2, 114)
    batch = data.need("pretrain").batch([0, 1])
    result = method(batch, split)
    result.loss.backward()
    network = method.network
    targets = network.tokenizer.targets(batch)
    assert {name: tuple(x.shape) for name, x in targets.items()} == {
        "image": (2, 196, 768),
        "text": (2, 32),
    }
    assert network.tokenizer.symbol_table(1).shape == (30_522, 16)
    for vectors in (network.tokenizer.type_vectors, network.decoder.type_vectors):
        assert vectors is not None
        assert vectors.grad is not None
        assert bool((vectors.grad.abs().sum(1) > 0).all())
    assert method.features(batch).shape == (2, 16)
