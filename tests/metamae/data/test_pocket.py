"""Data: the embedded sets are what their cards say, and damage of any kind has a clear error."""

from __future__ import annotations

import hashlib
import json
import shutil
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from metamae import ConfigError, DataError, InputError, load_dataset
from metamae.config.presets import list_presets
from metamae.data import pocket
from metamae.data.dataset import Affine, Array, Dataset, Partition, Task
from metamae.data.pocket import POCKET, read_card, stands_for
from metamae.data.sources import SOURCES
from metamae.inputs import Image, Signal, Tabular, Tokens

SPLITS = ("pretrain", "train", "test")
FILES = Path(pocket.__file__).parent / "pocket"
STANDARDISED = {  # name -> axes of the statistics, examples first
    "sensors": (0, 2),
    "basic_motions": (0, 2),
    "tabular": (0,),
    "multispectral_spatial": (0, 2, 3),
    "vowels": (0, 2),
    "diamonds": (0,),
    "jobs": (0,),
    "pens": (0, 2),
    "voices": (0, 2),
}


@cache
def raw(name: str) -> dict[str, Array]:
    """The archive as it is, read without the package."""
    with np.load(FILES / f"{name}.npz", allow_pickle=False) as archive:
        return dict(archive)


@cache
def loaded(name: str) -> Dataset:
    return load_dataset(name)


def rows(name: str, split: str) -> set[bytes]:
    """Each example of a split as bytes, all its inputs together."""
    arrays = [
        raw(name)[f"{key}_{split}"] for key in ("x", "tokens") if f"{key}_{split}" in raw(name)
    ]
    return set(map(bytes, np.concatenate([a.reshape(len(a), -1) for a in arrays], axis=1)))


@pytest.mark.parametrize("name", POCKET)
def test_a_set_is_what_its_card_says(name: str) -> None:
    """Rows, classes, shapes and labels; nothing but finite float32 and valid int64 comes out."""
    data, card = loaded(name), read_card(name)
    assert (data.name, data.card, data.stands_for) == (name, card, stands_for(name))
    assert stands_for(name) in list_presets("paper")
    assert data.task.classes == tuple(card["classes"])
    assert data.task.kind == ("binary" if len(card["classes"]) == 2 else "classification")
    assert data.task.outputs == (1 if len(card["classes"]) == 2 else len(card["classes"]))
    assert data.pretrain.labels is None
    for split in SPLITS:
        part = getattr(data, split)
        assert len(part) == card["rows"][split]
        batch = part.batch(slice(None))
        assert list(batch) == [spec.name for spec in data.inputs]
        for spec in data.inputs:
            x = batch[spec.name]
            assert spec.grid_of(x) == spec.grid
            assert x.dtype == (torch.int64 if isinstance(spec, Tokens) else torch.float32)
            assert bool(torch.isfinite(x).all())
            if isinstance(spec, Tokens):
                assert 0 <= int(x.min()) <= int(x.max()) < spec.vocabulary
        if split != "pretrain":
            counts = np.bincount(part.labels, minlength=len(card["classes"])).tolist()
            assert part.labels.dtype == np.int64
            assert counts == card["class_counts"][split]
            assert all(counts)
            assert np.array_equal(part.labels, raw(name)[f"y_{split}"])


@pytest.mark.parametrize(
    ("name", "kind", "grid", "shape"),
    [
        ("sensors", Signal, (32,), (6, 128)),
        ("basic_motions", Signal, (25,), (6, 100)),
        ("tabular", Tabular, (10,), (10,)),
        ("multispectral_spatial", Image, (3, 3), (4, 3, 3)),
        ("genomes", Tokens, (250,), (250,)),
        ("peptides", Tokens, (64,), (64,)),
        ("vowels", Signal, (25,), (12, 25)),
        ("digits", Image, (4, 4), (1, 8, 8)),
        ("captioned", Image, (4, 4), (1, 8, 8)),
        ("diamonds", Tabular, (9,), (9,)),
        ("jobs", Tabular, (19,), (19,)),
        ("pens", Signal, (8,), (2, 8)),
        ("voices", Signal, (16,), (16, 32)),
    ],
)
def test_the_modality_of_every_set(
    name: str, kind: type, grid: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    spec = loaded(name).inputs[0]
    assert isinstance(spec, kind)
    assert spec.grid == grid
    assert loaded(name).test.batch([0])[spec.name].shape == (1, *shape)
    if name == "captioned":
        caption = loaded(name).inputs[1]
        assert isinstance(caption, Tokens)
        assert (caption.grid, caption.vocabulary) == ((8,), 35)
        words = [caption.alphabet[i] for i in loaded(name).test.batch([0])["caption"][0]]
        assert sum(word in caption.alphabet[-10:] for word in words) == 1  # it names one digit
    else:
        assert len(loaded(name).inputs) == 1


@pytest.mark.parametrize("name", STANDARDISED)
def test_values_are_standardised_by_the_pretraining_rows_alone(name: str) -> None:
    """Per channel, mean 0 and deviation 1 there; test rows get the same map, not their own."""
    axes, arrays = STANDARDISED[name], {s: raw(name)[f"x_{s}"].astype(np.float64) for s in SPLITS}
    mean = arrays["pretrain"].mean(axes, keepdims=True)
    scale = arrays["pretrain"].std(axes, keepdims=True)
    for split in SPLITS:
        (x,) = getattr(loaded(name), split).batch(slice(None)).values()
        np.testing.assert_allclose(x.numpy(), (arrays[split] - mean) / scale, rtol=1e-4, atol=1e-5)
        if split == "pretrain":
            np.testing.assert_allclose(x.double().mean(axes), 0, atol=1e-3)
            np.testing.assert_allclose(x.double().std(axes, correction=0), 1, atol=1e-3)
    shift = np.abs(((arrays["test"] - mean) / scale).mean(axes)).max()
    assert shift > 1e-3  # own statistics would have made it 0


@pytest.mark.parametrize("name", ["digits", "captioned"])
def test_pixels_lie_between_0_and_1(name: str) -> None:
    x = loaded(name).pretrain.batch(slice(None))["image"]
    assert (x.min().item(), x.max().item()) == (0.0, 1.0)
    assert np.array_equal(16 * x.squeeze(1).numpy(), raw(name)["x_pretrain"])


@pytest.mark.parametrize("name", POCKET)
def test_no_test_row_is_a_training_row(name: str) -> None:
    """Byte for byte; training rows lie in pretrain exactly where the card says so."""
    test, train, pretrain = (rows(name, split) for split in ("test", "train", "pretrain"))
    assert not test & pretrain
    assert not test & train
    if name != "captioned":  # its pretraining captions are all true
        inside = read_card(name)["train_rows_in_pretrain"]
        assert train <= pretrain if inside else not train & pretrain


def test_sensors_are_split_by_subject() -> None:
    subjects = {split: set(raw("sensors")[f"subject_{split}"].tolist()) for split in SPLITS}
    assert subjects["test"] == {8, 9, 10}
    assert subjects["pretrain"] == subjects["train"] == set(range(1, 8))


def test_peptides_are_split_by_cluster() -> None:
    clusters = {split: set(raw("peptides")[f"cluster_{split}"].tolist()) for split in SPLITS}
    assert len(clusters["test"]) > 50
    assert not clusters["test"] & (clusters["train"] | clusters["pretrain"])


def test_tabular_is_split_by_source_line() -> None:
    lines = {split: set(raw("tabular")[f"row_{split}"].tolist()) for split in SPLITS}
    assert len(lines["test"]) == 4000
    assert not lines["test"] & lines["pretrain"]
    assert lines["train"] < lines["pretrain"]


def test_diamonds_of_test_are_no_stones_of_training() -> None:
    """Weight, colour, clarity and the three lengths in any order tell a stone listed twice."""
    names = read_card("diamonds")["columns"]
    stone = [names.index(name) for name in ("carat", "color", "clarity")]
    lengths = [names.index(name) for name in ("x", "y", "z")]
    stones = {}
    for split in SPLITS:
        x = raw("diamonds")[f"x_{split}"]
        stones[split] = set(map(bytes, np.hstack([x[:, stone], np.sort(x[:, lengths], axis=1)])))
        assert len(stones[split]) == len(x)
    assert not stones["test"] & (stones["train"] | stones["pretrain"])


def test_jobs_have_one_protocol_each_and_no_column_that_never_changes() -> None:
    columns = read_card("jobs")["columns"]
    protocols = [i for i, name in enumerate(columns) if name.startswith("protocol ")]
    assert len(protocols) == 13
    for split in SPLITS:
        assert (raw("jobs")[f"x_{split}"][:, protocols].sum(axis=1) == 1).all()
    assert (raw("jobs")["x_pretrain"].std(axis=0) > 0).all()


def test_pens_are_split_by_the_published_counts() -> None:
    """UCI's training and test file, of different writers; the first way of each is known."""
    card, arrays = read_card("pens"), raw("pens")
    assert (card["rows"]["train"], card["rows"]["test"]) == (7494, 3498)
    assert card["class_counts"]["test"] == [363, 364, 364, 336, 364, 335, 336, 364, 336, 336]
    assert arrays["x_train"][0].tolist() == [
        [47, 27, 57, 26, 0, 56, 100, 40],
        [100, 81, 37, 0, 23, 53, 90, 98],
    ]
    assert arrays["x_test"][0].tolist() == [
        [88, 2, 16, 94, 70, 0, 42, 100],
        [92, 99, 66, 37, 0, 24, 65, 100],
    ]


def test_voices_are_split_by_prompt_in_all_languages() -> None:
    prompts = {split: set(raw("voices")[f"prompt_{split}"].tolist()) for split in SPLITS}
    assert len(prompts["test"]) > 50
    assert not prompts["test"] & prompts["pretrain"]
    assert prompts["train"] <= prompts["pretrain"]
    data = loaded("voices")
    assert np.array_equal(data.train.groups, raw("voices")["prompt_train"])


def test_satellite_patches_of_test_share_no_pixel_with_others() -> None:
    """Patches are 3 x 3, so places of different splits are at least 3 apart in one direction."""
    arrays = raw("multispectral_spatial")
    taken = set(map(tuple, arrays["position_pretrain"].tolist()))
    taken |= set(map(tuple, arrays["position_train"].tolist()))
    around = [(a, b) for a in range(-2, 3) for b in range(-2, 3)]
    shared = {
        (x, y)
        for x, y in arrays["position_test"].tolist()
        for a, b in around
        if (x + a, y + b) in taken
    }
    assert not shared


def test_genome_blocks_of_50_kb_stay_in_one_split() -> None:
    arrays = raw("genomes")
    blocks = {}
    for split in SPLITS:
        source = arrays["source_pretrain" if split == "pretrain" else f"y_{split}"]
        place = (source, arrays[f"sequence_{split}"], arrays[f"start_{split}"] // 50_000)
        blocks[split] = set(zip(*(part.tolist() for part in place), strict=True))
    assert len(blocks["test"]) > 50
    assert not blocks["test"] & (blocks["train"] | blocks["pretrain"])
    assert not blocks["train"] & blocks["pretrain"]


def test_genome_windows_of_test_share_no_24_mer_with_pretraining_or_training() -> None:
    """On either strand: a 24-mer and its reverse complement count as one; a share of all rows."""

    def kmers(split: str, every: int = 1) -> Array:
        bases = raw("genomes")[f"x_{split}"][::every].astype(np.int64)
        forward = np.zeros((len(bases), 227), np.int64)
        reverse = np.zeros_like(forward)
        for place in range(24):
            letter = bases[:, place : place + 227]
            forward |= letter << (2 * (23 - place))
            reverse |= (3 - letter) << (2 * place)
        return np.minimum(forward, reverse).ravel()

    test = np.sort(kmers("test", every=2))
    for split, every in (("pretrain", 10), ("train", 2)):
        other = kmers(split, every)
        place = np.searchsorted(test, other).clip(max=len(test) - 1)
        assert not (test[place] == other).any()


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of one embedded set that the reader is led to, to be damaged."""
    folder = tmp_path / "pocket"
    folder.mkdir()
    for suffix in ("npz", "json"):
        shutil.copy(FILES / f"basic_motions.{suffix}", folder)
    monkeypatch.setattr(pocket, "resources", SimpleNamespace(files=lambda package: tmp_path))
    assert len(load_dataset("basic_motions").test) == 40
    return folder


def load_error() -> str:
    """The message of the DataError that loading raises: one line that names the set."""
    with pytest.raises(DataError) as caught:
        load_dataset("basic_motions")
    message = str(caught.value)
    assert "\n" not in message
    assert "basic_motions" in message
    return message


@pytest.mark.parametrize("place", [0, 1000, -1])
def test_a_flipped_bit_is_found(copy: Path, place: int) -> None:
    content = bytearray((copy / "basic_motions.npz").read_bytes())
    content[place] ^= 1
    (copy / "basic_motions.npz").write_bytes(bytes(content))
    assert "SHA-256" in load_error()


@pytest.mark.parametrize("size", [0, 1, 5000])
def test_a_truncated_file_is_found(copy: Path, size: int) -> None:
    content = (copy / "basic_motions.npz").read_bytes()
    (copy / "basic_motions.npz").write_bytes(content[:size])
    message = load_error()
    assert f"({size} bytes): the file is damaged; reinstall the package" in message


@pytest.mark.parametrize("file", ["basic_motions.npz", "basic_motions.json"])
def test_a_missing_file_is_named(copy: Path, file: str) -> None:
    (copy / file).unlink()
    assert f"expected the embedded file {file}, which is missing" in load_error()


def test_an_archive_that_is_none_is_refused_even_with_a_fitting_checksum(copy: Path) -> None:
    card = json.loads((copy / "basic_motions.json").read_text())
    card["sha256"] = hashlib.sha256(b"not an archive").hexdigest()
    (copy / "basic_motions.npz").write_bytes(b"not an archive")
    (copy / "basic_motions.json").write_text(json.dumps(card))
    assert "expected a NumPy archive in basic_motions.npz" in load_error()


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"{}"])
def test_a_damaged_card_is_found(copy: Path, content: bytes) -> None:
    (copy / "basic_motions.json").write_bytes(content)
    assert "damaged" in load_error()


def signal(rows: Array, **settings: Any) -> Partition:
    spec = Signal(name="signal", channels=rows.shape[1], length=rows.shape[2], token_length=1)
    return Partition(arrays={"signal": rows}, inputs=(spec,), **settings)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_value_that_is_not_finite_names_its_row(value: float, dtype: type) -> None:
    """The row of the partition, however the batch was asked for."""
    values = np.zeros((9, 2, 4), dtype)
    values[7, 1, 3] = values[5, 0, 0] = value
    data = signal(values)
    expected = rf"expected finite values in input 'signal', got {value} in row "
    for index in (torch.tensor([3, 7, 2]), [3, 7, 2], slice(6, 9)):
        with pytest.raises(DataError, match=expected + r"7 \(1 such rows"):
            data.batch(index)
    with pytest.raises(DataError, match=expected + r"5 \(2 such rows"):
        data.batch(slice(None))
    assert data.batch([0, 1, 8])["signal"].shape == (3, 2, 4)


def test_a_finite_value_that_float32_cannot_hold_names_its_row() -> None:
    values = np.zeros((4, 1, 2))
    values[2, 0, 1] = 1e300
    with pytest.raises(DataError, match="row 2"):
        signal(values).batch([0, 2])


@pytest.mark.parametrize(("dtype", "symbol"), [(np.uint8, 4), (np.int16, -1), (np.int64, 99)])
def test_a_symbol_outside_the_vocabulary_names_its_row(dtype: type, symbol: int) -> None:
    values = np.ones((5, 6), dtype)
    values[3, 2] = symbol
    spec = Tokens(name="dna", length=6, vocabulary=4)
    data = Partition(arrays={"dna": values}, inputs=(spec,))
    expected = rf"expected symbols below 4 in input 'dna', got {symbol} in row 3 \(1 such rows"
    with pytest.raises(DataError, match=expected):
        data.batch([0, 3])
    assert data.batch([0, 1])["dna"].tolist() == [[1] * 6] * 2


def test_a_batch_leaves_the_raw_rows_alone() -> None:
    """Scaling is applied to a copy, every time anew."""
    values = np.arange(12, dtype=np.float32).reshape(3, 2, 2)
    before = values.copy()
    data = signal(values, scaling={"signal": Affine.standardise(values, (0, 2))})
    first = data.batch(slice(None))["signal"]
    first.zero_()
    again = data.batch(slice(None))["signal"]
    assert np.array_equal(values, before)
    assert again.std() > 0.5
    with pytest.raises(DataError, match="as many rows in every array"):
        signal(values, labels=np.zeros(4, np.int64))


def test_a_constant_column_does_not_divide_by_zero() -> None:
    values = np.full((5, 1, 2), 3.0, np.float32)
    data = signal(values, scaling={"signal": Affine.standardise(values, (0, 2))})
    assert data.batch(slice(None))["signal"].abs().max() == 0


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("sensor", "sensors"), ("digit", "digits"), ("pamap", "pamap2"), ("genome", "genomes")],
)
def test_an_unknown_name_suggests_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(DataError, match=rf"got '{name}'; did you mean '{nearest}'\?") as caught:
        load_dataset(name)
    assert all(known in str(caught.value) for known in (*POCKET, *SOURCES))


@pytest.mark.parametrize("name", SOURCES)
def test_a_full_data_set_that_is_not_prepared_names_the_command(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"run: metamae data prepare {name} --data-dir {tmp_path}"):
        load_dataset(name, data_dir=tmp_path)
    with pytest.raises(DataError, match="expected --data-dir"):
        load_dataset(name)


def dataset(train: list[int], test: list[int], classes: tuple[str, ...]) -> Dataset:
    def part(labels: list[int] | None, count: int) -> Partition:
        given = None if labels is None else np.array(labels)
        return signal(np.zeros((count, 1, 2), np.float32), labels=given)

    unlabelled = part(None, 3)
    return Dataset(
        name="made",
        inputs=unlabelled.inputs,
        task=Task(kind="classification", metric="accuracy", classes=classes),
        pretrain=unlabelled,
        train=part(train, len(train)),
        test=part(test, len(test)),
        stands_for="pamap2",
    )


def test_a_tested_class_without_training_rows_is_named() -> None:
    assert len(dataset([0, 1, 2], [2, 1], ("walk", "run", "row")).test) == 2
    with pytest.raises(DataError, match=r"none is there for: run, row; add labelled rows"):
        dataset([0, 0], [2, 1, 0], ("walk", "run", "row"))


@pytest.mark.parametrize("labels", [[0, 3], [-1, 0]])
def test_a_label_that_is_no_class_is_named(labels: list[int]) -> None:
    unknown = [label for label in labels if label not in range(3)]
    with pytest.raises(DataError, match=rf"labels from 0 to 2, got \[{unknown[0]}\]"):
        dataset(labels, [0], ("walk", "run", "row"))


def test_missing_labels_are_refused() -> None:
    made = dataset([0], [0], ("walk",))
    with pytest.raises(DataError, match="expected labels in the test partition of 'made'"):
        Dataset(**{**vars(made), "test": made.pretrain})


@pytest.mark.parametrize(
    ("name", "size", "grid", "values"),
    [
        ("sensors", (8,), (16,), 48),
        ("vowels", (5,), (5,), 60),
        ("digits", (4,), (2, 2), 16),
        ("digits", (1, 8), (8, 1), 8),
        ("captioned", (8, 4), (1, 2), 32),
    ],
)
def test_the_token_size_can_be_chosen(
    name: str, size: tuple[int, ...], grid: tuple[int, ...], values: int
) -> None:
    spec = load_dataset(name, token_size=size).inputs[0]
    assert isinstance(spec, Signal | Image)
    assert (spec.grid, spec.values) == (grid, values)


@pytest.mark.parametrize(
    ("name", "size", "error", "expected"),
    [
        ("sensors", (5,), InputError, "got 128 and 5; choose a token size that divides it"),
        ("sensors", (0,), InputError, "got 128 and 0"),
        ("sensors", (-4,), InputError, "got 128 and -4"),
        ("digits", (2, 3), InputError, "width of image 'image'"),
        ("sensors", (4, 4), ConfigError, r"expected 1 numbers as the token size of 'sensors'"),
        ("tabular", (1,), ConfigError, r"expected 0 numbers as the token size of 'tabular'"),
        ("genomes", (2,), ConfigError, r"expected 0 numbers as the token size of 'genomes'"),
    ],
)
def test_a_token_size_that_does_not_fit_is_refused(
    name: str, size: tuple[int, ...], error: type[Exception], expected: str
) -> None:
    with pytest.raises(error, match=expected):
        load_dataset(name, token_size=size)
