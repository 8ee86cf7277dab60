"""Tiny archives in the layouts in which the full data sets are published."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.io import savemat

from metamae.data.dataset import Array

Contents = Mapping[str, bytes]


def pack(contents: Contents, place: Path) -> Path:
    """Write files below a folder, or into an archive of the kind that the name says."""
    place.parent.mkdir(parents=True, exist_ok=True)
    kind = place.name.partition(".")[2]
    if kind == "zip":
        with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in contents.items():
                archive.writestr(name, content)
    elif kind in ("tar", "tar.gz", "tar.bz2", "tar.xz", "tgz"):
        packing = kind.rpartition(".")[2].replace("tgz", "gz").replace("tar", "")
        place.write_bytes(tar(contents, packing))
    else:
        for name, content in contents.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(content)
    return place


def tar(contents: Contents, packing: str = "") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=f"w:{packing}") as archive:  # type: ignore[call-overload]
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


def encode_picture(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def picture(
    value: int, kind: str = "JPEG", mode: str = "RGB", size: tuple[int, int] = (40, 30)
) -> bytes:
    """An image of one colour; ``value`` is its red or gray."""
    colours = {
        "L": value,
        "RGB": (value, value // 2, value // 2),
        "CMYK": (value, 0, 255 - value, 0),
    }
    return encode_picture(Image.new(mode, size, colours[mode]), kind)


def encode_sound(wave: Array, rate: int = 16_000, kind: str = "WAV") -> bytes:
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, wave, rate, format=kind, subtype="PCM_16")
    return file.getvalue()


def sound(value: int, *, samples: int = 4_000, rate: int = 16_000, kind: str = "WAV") -> bytes:
    """A tone whose pitch tells clips apart."""
    wave = 0.3 * np.sin(2 * np.pi * (200 + 100 * value) / rate * np.arange(samples))
    return encode_sound(wave, rate, kind)


def text(*lines: str) -> bytes:
    return "".join(line + "\n" for line in lines).encode()


def batch(values: list[int], labels: list[int]) -> bytes:
    """A pickled batch of 32 x 32 images of one colour each, as Python 2 wrote them."""
    data = np.repeat(np.array(values, np.uint8)[:, None], 3072, axis=1)
    content = pickle.dumps({"data": data, "labels": labels}, 2)
    return content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


class _Module:
    """Pickles as a class or function of a library that is not installed."""

    def __init__(self, module: str, name: str, args: tuple[Any, ...], state: Any = None) -> None:
        self.told = (module, name, args, state)


class _Pickler(pickle._Pickler):  # type: ignore[name-defined]
    """Writes the pickles of an old pandas, opcode by opcode."""

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if not isinstance(obj, _Module):
            super().save(obj, save_persistent_id)
            return
        module, name, args, state = obj.told
        self.write(pickle.GLOBAL + f"{module}\n{name}\n".encode())
        super().save(args)
        self.write(pickle.REDUCE)
        if state is not None:
            self.save(state)
            self.write(pickle.BUILD)


def old_table(columns: dict[str, list[Any]]) -> bytes:
    """As pandas 0.14 to 0.25 pickled: a block manager whose state holds axes and blocks."""
    index = {
        "axes": [
            _Module("pandas.indexes.base", "_new_Index", (None, {"data": _objects([*columns])})),
            _Module("pandas.indexes.range", "RangeIndex", ()),
        ],
        "blocks": [
            {"values": _objects(values)[None], "mgr_locs": slice(place, place + 1, 1)}
            for place, values in enumerate(columns.values())
        ],
    }
    state = ([], [], [], {"0.14.1": index})
    manager = _Module("pandas.core.internals", "BlockManager", (), state)
    frame = _Module("pandas.core.frame", "DataFrame", (), {"_data": manager, "_typ": "dataframe"})
    file = io.BytesIO()
    _Pickler(file, 2).dump(frame)
    return file.getvalue()


def _objects(values: list[Any]) -> Array:
    array = np.empty(len(values), object)
    array[:] = values
    return array


def cub() -> dict[str, bytes]:
    root = "CUB_200_2011"
    names = ["001.Albatross/a.jpg", "001.Albatross/b.jpg", "002.Auklet/c.jpg", "002.Auklet/d.jpg"]
    numbered = [(n, name) for n, name in enumerate(names, start=1)]
    return {
        "attributes.txt": b"1 has_bill\n",
        f"{root}/images.txt": text(*(f"{n} {name}" for n, name in numbered)),
        f"{root}/image_class_labels.txt": text("1 1", "2 1", "3 2", "4 2"),
        f"{root}/train_test_split.txt": text("1 1", "2 0", "3 0", "4 1"),
        f"{root}/images/{names[0]}": picture(10),
        f"{root}/images/{names[1]}": picture(20, mode="L"),
        f"{root}/images/{names[2]}": picture(30, mode="CMYK"),
        f"{root}/images/{names[3]}": picture(40),
    }


def flowers() -> dict[str, bytes]:
    labels = io.BytesIO()
    savemat(labels, {"labels": np.array([[2, 1] * 5], np.uint8)})
    images = {f"jpg/image_{n:05d}.jpg": picture(10 * n) for n in range(1, 11)}
    return images | {"imagelabels.mat": labels.getvalue()}


def dtd() -> dict[str, bytes]:
    parts = {"train": ["woven/w_1.jpg"], "val": ["banded/b_1.jpg"], "test": ["banded/b_2.jpg"]}
    files = {f"dtd/labels/{part}1.txt": text(*names) for part, names in parts.items()}
    files |= {f"dtd/labels/{part}2.txt": text("wrong/x.jpg") for part in parts}
    for number, name in enumerate(name for names in parts.values() for name in names):
        files[f"dtd/images/{name}"] = picture(50 + 50 * number)
    return files


def traffic() -> dict[str, bytes]:
    root = "GTSRB/Final_Training/Images"
    files = {f"{root}/{c:05d}/GT-{c:05d}.csv": b"Filename;Width\n" for c in range(2)}
    for sign in range(2):
        for track in range(5):
            for frame in range(2):
                name = f"{root}/{sign:05d}/{track:05d}_{frame:05d}.ppm"
                files[name] = picture(100 * sign + 10 * track + frame, "PPM")
    return files


def aircraft() -> dict[str, bytes]:
    root = "fgvc-aircraft-2013b/data"
    half = np.zeros((40, 60, 3), np.uint8)
    half[10:30, 20:50] = 200
    return {
        f"{root}/images_variant_trainval.txt": text("0034309 707-320", "0034958 Tu-154"),
        f"{root}/images_variant_test.txt": text("1514522 707-320"),
        f"{root}/images_box.txt": text(
            "0034309 20 10 50 30", "0034958 1 1 60 40", "1514522 1 1 60 40"
        ),
        f"{root}/images/0034309.jpg": encode_picture(Image.fromarray(half), "PNG"),
        f"{root}/images/0034958.jpg": picture(90),
        f"{root}/images/1514522.jpg": picture(120),
    }


def cifar10() -> dict[str, bytes]:
    root = "cifar-10-batches-py"
    files = {f"{root}/data_batch_{n}": batch([n, 10 * n], [n, 9]) for n in range(1, 6)}
    return files | {f"{root}/test_batch": batch([77], [9]), f"{root}/batches.meta": b"x"}


def librispeech(
    subset: str, speakers: tuple[int, ...] = (84, 251), clips: int = 5
) -> dict[str, bytes]:
    """Clips of different pitch; the first of every speaker is long."""
    files = {f"LibriSpeech/{subset}/84/7/84-7.trans.txt": b"84-7-0000 WORDS\n"}
    for speaker in speakers:
        for clip in range(clips):
            name = f"LibriSpeech/{subset}/{speaker}/7/{speaker}-7-{clip:04d}.flac"
            files[name] = sound(
                speaker % 50 + clip, samples=4_000 if clip else 160_000, kind="FLAC"
            )
    return files | {"LibriSpeech/SPEAKERS.TXT": b";\n"}


def audiomnist() -> dict[str, bytes]:
    return {
        f"data/{speaker:02d}/{digit}_{speaker:02d}_0.wav": sound(digit, rate=48_000)
        for speaker in (1, 5)
        for digit in range(10)
    } | {"data/audioMNIST_meta.txt": b"{}"}


def fluent() -> dict[str, bytes]:
    root = "fluent_speech_commands_dataset"
    header = ",path,speakerId,transcription,action,object,location"
    rows = {
        "train": [
            "0,wavs/speakers/a/1.wav,a,Lights on,activate,lights,kitchen",
            '1,wavs/speakers/a/2.wav,a,"Off, now",deactivate,none,none',
        ],
        "valid": ["0,wavs/speakers/b/3.wav,b,Louder,increase,volume,bedroom"],
        "test": ["0,wavs/speakers/c/4.wav,c,Lights,activate,lights,none"],
    }
    files = {f"{root}/data/{part}_data.csv": text(header, *lines) for part, lines in rows.items()}
    for number, lines in enumerate(rows.values()):
        for line in lines:
            files[f"{root}/{line.split(',')[1]}"] = sound(number)
    return files | {f"{root}/data/speaker_demographics.csv": b"speakerId\n"}


def google_speech() -> dict[str, bytes]:
    words = [
        "cat/a_nohash_0.wav",
        "cat/b_nohash_0.wav",
        "bird/a_nohash_0.wav",
        "bird/c_nohash_1.wav",
    ]
    files = {f"./{name}": sound(number) for number, name in enumerate(words)}
    return files | {
        "./_background_noise_/pink_noise.wav": sound(9, samples=170_000),
        "./_background_noise_/README.md": b"",
        "./testing_list.txt": text(words[1], words[3]),
        "./validation_list.txt": text(words[2]),
    }


def voxceleb1() -> dict[str, bytes]:
    paths = [f"id1000{who}/video{v}/0000{v}.wav" for who in (1, 2) for v in (1, 2, 3)]
    lines = [f"{path.split('/')[1][-1]} {path}" for path in paths]
    return {"iden_split.txt": text(*lines)} | {
        f"wav/{path}": sound(number) for number, path in enumerate(paths)
    }


def coco(year: str = "2017") -> dict[str, dict[str, bytes]]:
    """Archives by name; the first image of a part has no caption, the last no object."""
    archives: dict[str, dict[str, bytes]] = {}
    annotations = archives[f"annotations_trainval{year}.zip"] = {}
    for part, ids in ((f"train{year}", range(1, 25)), (f"val{year}", range(11, 23))):
        prefix = "" if year == "2017" else f"COCO_{part}_"
        names = {n: f"{prefix}{n:012d}.jpg" for n in ids}
        captions = [
            {"image_id": n, "id": n, "caption": f"a {w} {n // 10} {n % 10}"}
            for n in ids
            for w in ("dog", "cat")
        ]
        objects = [
            {"image_id": n, "category_id": 1 if n % 2 else 90, "segmentation": [[1.5, 2]]}
            for n in ids
        ]
        common = {"images": [{"id": n, "file_name": name} for n, name in names.items()]}
        categories = [{"id": 1, "name": "person"}, {"id": 90, "name": "toothbrush"}]
        annotations[f"annotations/captions_{part}.json"] = as_json(
            common | {"annotations": captions[2:]}
        )
        annotations[f"annotations/instances_{part}.json"] = as_json(
            common | {"annotations": objects[:-1], "categories": categories}
        )
        archives[f"{part}.zip"] = {f"{part}/{name}": picture(9 * n) for n, name in names.items()}
    return archives


def vqa() -> dict[str, dict[str, bytes]]:
    """The archives of COCO 2014 and of VQA: eight questions a part about four images."""
    archives = coco("2014")
    for part, short, first in (("train2014", "Train", 1), ("val2014", "Val", 11)):
        questions = [
            {
                "image_id": first + n // 2,
                "question": f"Is it a dog {n}?",
                "multiple_choices": ["yes", "no", "2", "cat"] if n else ["2"],
                "question_id": 10 * first + n,
            }
            for n in range(8)
        ]
        answers = [
            {"question_id": one["question_id"], "multiple_choice_answer": "yes", "answers": []}
            for one in questions
        ]
        archives[f"Questions_{short}_mscoco.zip"] = {
            f"MultipleChoice_mscoco_{part}_questions.json": as_json({"questions": questions}),
            f"OpenEnded_mscoco_{part}_questions.json": b"{}",
        }
        archives[f"Annotations_{short}_mscoco.zip"] = {
            f"mscoco_{part}_annotations.json": as_json({"annotations": answers})
        }
    return archives


def vocabulary() -> bytes:
    """As many entries as bert-base-uncased has, its special ones where they belong."""
    entries = [f"[unused{n}]" for n in range(30_522)]
    entries[0], entries[100:104] = "[PAD]", ["[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    entries[2000:2019] = ["a", "dog", "cat", "is", "it", "?", "yes", "no", "##s", *"0123456789"]
    return text(*entries)
