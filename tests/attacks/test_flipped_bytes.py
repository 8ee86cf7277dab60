"""One bit of a file is flipped, or its end is missing: refused by name, or the very same data."""

from __future__ import annotations

import gzip
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metamae.config.presets import make_config
from metamae.data import load_dataset, pocket
from metamae.data.formats.archives import intact, open_bundle
from metamae.data.preparing.prepared import Prepared
from metamae.errors import CheckpointError, DataError
from metamae.evaluation.feature_cache import run_features
from metamae.files import write_json
from metamae.report.rows import read_results, write_results
from metamae.training.checkpoint import Checkpoint
from metamae.training.pretraining import pretrain
from metamae.training.run_folder import check_same_run, read_config, read_history
from tests.attacks.harness import Attack, cuts, damage, flips
from tests.metamae.data.formats.test_tables import higgs_line
from tests.metamae.data.making import made, put
from tests.metamae.data.packing import aircraft, as_json, cifar10, tar, traffic
from tests.metamae.data.sources.test_genomics import raw_members
from tests.metamae.data.sources.test_pamap2 import archive as pamap2
from tests.metamae.data.sources.test_proteins import task
from tests.metamae.report.test_tables import row

MANY, FEW = 200, 25


def homology(packing: str) -> bytes:
    """A task of TAPE; the validation file lies last, and another one behind it."""
    records = {part: as_json(task("fold_label", [3, 7, 9, 1])) for part in ("train", "valid")}
    files = {f"remote_homology/remote_homology_{part}.json": r for part, r in records.items()}
    return tar(files | {"remote_homology/remote_homology_test.json": b"[]"}, packing)


def higgs() -> bytes:
    return "".join(higgs_line(i % 2, i) for i in range(100)).encode()


def place(name: str, folder: Path) -> Path:
    """Raw files of a set in one archive, by the kind that is attacked."""
    if name == "gz":
        return put(folder / "HIGGS.csv.gz", higgs())
    if name.startswith("tar of JSON"):
        path = folder / "remote_homology.tar.gz"
        path.write_bytes(homology(name.rpartition(" ")[2]))
        return path
    if name == "zip of recordings":
        return pamap2(folder / "PAMAP2_Dataset.zip")
    contents: dict[str, tuple[str, dict[str, bytes]]] = {
        "tar.gz of pictures": ("fgvc-aircraft-2013b.tar.gz", aircraft()),
        "tar.gz of pickles": ("cifar-10-python.tar.gz", cifar10()),
        "zip of tables": ("genomics_ood.zip", raw_members()),
        "zip of pictures": ("GTSRB_Final_Training_Images.zip", traffic()),
    }
    file, members = contents[name]
    return put(folder / file, members)


ARCHIVES = {
    "gz": "higgs",
    "tar of JSON gz": "scop",
    "tar of JSON bz2": "scop",
    "tar of JSON xz": "scop",
    "tar.gz of pictures": "aircraft",
    "tar.gz of pickles": "cifar10",
    "zip of tables": "genomics",
    "zip of pictures": "traffic_sign",
    "zip of recordings": "pamap2",
}


def contents(prepared: Prepared) -> Any:
    """All that a prepared set holds, by its own checksums."""
    manifest = prepared.manifest
    arrays = {name: (a["shape"], a["sha256"]) for name, a in manifest["arrays"].items()}
    return arrays, manifest["partitions"], manifest["facts"], manifest["skipped"]


def raw_attack(kind: str, folder: Path) -> tuple[Attack, Path]:
    path, name = place(kind, folder), ARCHIVES[kind]
    expected = contents(made(name, folder))

    def prepare_again() -> Any:
        return contents(made(name, folder, again=True))

    return Attack(f"raw: {kind}", prepare_again, expected), path


@pytest.mark.parametrize("kind", ARCHIVES)
def test_an_archive_with_a_flipped_bit(kind: str, tmp_path: Path, whole: bool) -> None:
    attack, path = raw_attack(kind, tmp_path)
    count = (MANY if whole else FEW) if kind != "zip of recordings" else (MANY if whole else 5)
    found = damage(attack, path, flips(path.read_bytes(), count, seed=14))
    assert found["refused"] > count // 5


@pytest.mark.parametrize("kind", ARCHIVES)
def test_an_archive_that_ends_early(kind: str, tmp_path: Path, whole: bool) -> None:
    """By 8 bytes, the checksum of gzip, by 40, or at the end of a block."""
    attack, path = raw_attack(kind, tmp_path)
    found = damage(attack, path, cuts(path.read_bytes()))
    assert found["unaffected"] == 0


@pytest.mark.parametrize("kind", ["zip of tables", "zip of pictures"])
def test_the_directory_of_a_zip(kind: str, tmp_path: Path, whole: bool) -> None:
    """Nothing protects it: every byte of it, in turn."""
    attack, path = raw_attack(kind, tmp_path)
    attack.kind = "raw: zip, its directory"
    content = path.read_bytes()
    start = int.from_bytes(content[-6:-2], "little")

    def copies() -> Any:
        places = range(start, len(content))
        for at in places if whole and kind == "zip of tables" else places[:: len(places) // 25]:
            for bit in range(8) if whole else (at % 8,):
                damaged = bytearray(content)
                damaged[at] ^= 1 << bit
                yield f"bit {bit} of byte {at} of the directory", bytes(damaged)

    assert damage(attack, path, copies())["refused"]


def pocket_attack(monkeypatch: pytest.MonkeyPatch) -> tuple[Attack, Callable[[bytes], None]]:
    read, current = pocket._read, {}

    def load() -> Any:
        data = pocket.load_pocket("basic_motions")
        return [data.need(part).batch(slice(None))["signal"] for part in ("pretrain", "test")]

    monkeypatch.setattr(pocket, "_read", lambda name: current.get(name) or read(name))
    attack = Attack("embedded .npz", load, load(), same_tensors)
    return attack, lambda content: current.update({"basic_motions.npz": content})


def same_tensors(found: Any, expected: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_an_embedded_set(monkeypatch: pytest.MonkeyPatch, whole: bool) -> None:
    content = pocket._read("basic_motions.npz")
    attack, put_in_place = pocket_attack(monkeypatch)
    for what, copy in flips(content, MANY if whole else FEW, seed=1):
        put_in_place(copy)
        assert attack.try_once(what) == "refused"


@pytest.mark.parametrize("name", ["rows.npy", "labels.npy", "train_index.npy", "manifest.json"])
def test_a_prepared_set(name: str, tmp_path: Path, whole: bool) -> None:
    put(tmp_path / "HIGGS.csv.gz", higgs())
    path = made("higgs", tmp_path).folder / name

    def load() -> Any:
        data = load_dataset("higgs", data_dir=tmp_path)
        parts = [data.need(part) for part in ("pretrain", "train", "test")]
        rows = [part.batch(slice(None))["row"] for part in parts]
        card = {key: value for key, value in data.card.items() if key != "arrays"}
        return rows, [np.asarray(part.labels) for part in parts[1:]], card

    def same(found: Any, expected: Any) -> bool:
        return (
            same_tensors(found[0], expected[0])
            and all(map(np.array_equal, found[1], expected[1]))
            and found[2] == expected[2]
        )

    kind = "prepared .npy" if name.endswith(".npy") else "prepared manifest.json"
    attack = Attack(kind, load, load(), same)
    count = MANY if whole else FEW
    assert damage(attack, path, flips(path.read_bytes(), count, seed=2))["refused"] > count // 2
    assert damage(attack, path, cuts(path.read_bytes()))["refused"] >= 4


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    config = make_config(
        "basic_motions", method="mae", overrides=["training.steps=2", "encoder.width=8"]
    )
    pretrain(config, load_dataset("basic_motions"), folder)
    run_features(folder, load_dataset("basic_motions"))
    return folder


def test_a_checkpoint(run_dir: Path, whole: bool) -> None:
    path = run_dir / "checkpoint.pt"

    def load() -> Any:
        found = Checkpoint.load(path)
        return found.config, found.step, found.history, found.model

    def same(found: Any, expected: Any) -> bool:
        weights = zip(found[3].values(), expected[3].values(), strict=True)
        return bool(found[:3] == expected[:3]) and all(torch.equal(*pair) for pair in weights)

    attack = Attack("checkpoint.pt", load, load(), same)
    assert damage(attack, path, flips(path.read_bytes(), MANY if whole else 60, seed=3))["refused"]
    assert damage(attack, path, cuts(path.read_bytes()))["unaffected"] == 0
    content = path.read_bytes()
    start = int.from_bytes(content[-6:-2], "little")
    directory = content[start:]
    attack.kind = "checkpoint.pt, its directory"
    copies = flips(directory, MANY if whole else 60, seed=4)
    damage(attack, path, ((what, content[:start] + copy) for what, copy in copies))


def test_a_feature_cache_is_made_again(run_dir: Path, whole: bool) -> None:
    """Its damage is no loss: the very same features come out."""
    path, dataset = run_dir / "features-basic_motions.pt", load_dataset("basic_motions")

    def load() -> Any:
        found = run_features(run_dir, dataset)
        return found.train, found.test

    attack = Attack("feature cache", load, load(), same_tensors)
    content = path.read_bytes()
    found = damage(attack, path, flips(content, MANY if whole else 15, seed=5))
    found += damage(attack, path, cuts(content))
    assert found["refused"] == 0
    start = int.from_bytes(content[-6:-2], "little")
    attack.kind = "feature cache, its directory"
    copies = flips(content[start:], MANY if whole else 15, seed=6)
    assert damage(attack, path, ((w, content[:start] + c) for w, c in copies))["refused"] == 0


def test_result_rows_and_history(tmp_path: Path, run_dir: Path, whole: bool) -> None:
    rows = [row(seed=1, value=1 / 3), row(method="metamae", pretrain_seconds=0.125)]
    path, history = tmp_path / "results.json", run_dir / "history.json"
    write_results(path, rows)
    count = MANY if whole else 60
    attack = Attack("results.json, probes.json", lambda: read_results(path), rows)
    assert damage(attack, path, flips(path.read_bytes(), count, seed=7))["refused"] > count // 2
    damage(attack, path, cuts(path.read_bytes()))
    attack = Attack("history.json", lambda: read_history(history), read_history(history))
    assert damage(attack, history, flips(history.read_bytes(), count, seed=8))["refused"]


def test_a_configuration(run_dir: Path, whole: bool) -> None:
    """What may be changed when a run is resumed may be changed by damage too, and does nothing."""
    path = run_dir / "config.yaml"
    wanted = read_config(run_dir)
    attack = Attack(
        "config.yaml", lambda: check_same_run(read_config(run_dir), wanted, run_dir), None
    )
    assert damage(attack, path, flips(path.read_bytes(), MANY if whole else 60, seed=9))["refused"]
    damage(attack, path, cuts(path.read_bytes()))


def test_a_file_changed_by_hand_says_how_to_keep_it(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_results(path, [row()])
    text = path.read_text().replace("0.5", "0.6")
    path.write_text(text)
    with pytest.raises(Exception, match="remove the blanks at its end"):
        read_results(path)
    path.write_text(text.rstrip())
    assert read_results(path)[0].value == 0.6
    write_json(path, [])
    assert json.loads(path.read_text()) == []


def test_a_checksum_behind_what_nobody_reads(tmp_path: Path) -> None:
    """Another file, and a megabyte of padding, lie between the last row and the end."""
    rest = np.random.default_rng(0).bytes(1 << 20)
    parts = {part: as_json(task("fold_label", [3, 7])) for part in ("train", "valid")}
    files = {f"remote_homology/remote_homology_{part}.json": r for part, r in parts.items()}
    path = tmp_path / "remote_homology.tar.gz"
    packed = tar(files | {"remote_homology/other": rest}) + bytes(1 << 20)  # of a tape's block
    path.write_bytes(gzip.compress(packed))
    expected = contents(made("scop", tmp_path))
    attack = Attack(
        "raw: tar of JSON gz", lambda: contents(made("scop", tmp_path, again=True)), expected
    )
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[-5] ^= 1  # of the checksum itself
    copies = [("8 bytes short", content[:-8]), ("40 bytes short", content[:-40])]
    copies.append(("another checksum", bytes(flipped)))
    assert damage(attack, path, iter(copies)) == {"refused": 3}


def test_a_comment_that_swallows_the_next_entry(tmp_path: Path) -> None:
    """The directory is well-formed then, and one row shorter."""
    path = put(tmp_path / "x.zip", {f"{n}.txt": b"x" for n in range(3)})
    content = bytearray(path.read_bytes())
    start = int.from_bytes(content[-6:-2], "little")
    content[start + 32 : start + 34] = (46 + len("1.txt")).to_bytes(2, "little")
    path.write_bytes(content)
    with zipfile.ZipFile(path) as archive:
        assert len(archive.namelist()) == 2
    with pytest.raises(DataError, match="its directory has 2 entries, its end says 3"):
        open_bundle(path)


@pytest.mark.parametrize("packed", [False, True])
def test_a_damaged_header_is_no_end(packed: bool, tmp_path: Path) -> None:
    """Not even in a tar that has no checksum, where Python's reader would stop without a word."""
    content = bytearray(tar({f"{n}.txt": bytes(600) for n in range(3)}))
    content[1536 + 150] ^= 1  # the checksum of the second header
    path = tmp_path / "x.tar"
    path.write_bytes(gzip.compress(content) if packed else content)
    for act in (lambda: open_bundle(path).names(), lambda: list(open_bundle(path).walk("*"))):
        with pytest.raises(DataError, match="bad checksum at byte 1536"), intact(path):
            act()


def test_a_member_marked_as_a_folder(run_dir: Path) -> None:
    """One bit of a zip's directory: torch would go on with what was in memory."""
    path = run_dir / "checkpoint.pt"
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        place, infos = archive.start_dir, archive.infolist()
    for info in infos:
        damaged = bytearray(content)
        damaged[place + 38] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="is marked as a folder"):
            Checkpoint.load(path)
        place += 46 + len(info.filename) + len(info.extra) + len(info.comment)
    path.write_bytes(content)
