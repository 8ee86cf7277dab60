"""Made archives of every full data set, in its published layout, as the tests of the readers do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from metamae.data.sources import SOURCES
from tests.metamae.data.formats import test_tables
from tests.metamae.data.making import as_json, put
from tests.metamae.data.packing import pack
from tests.metamae.data.sources import (
    test_genomics,
    test_images,
    test_images_by_table,
    test_pamap2,
    test_proteins,
    test_vision_language,
)

ROWS = 1000
"""Examples of sets whose raw form is lines of text; of the others, as many as the tests make."""


def make(name: str, data_dir: Path) -> None:
    """Put the raw files of a full data set where its reader looks for them."""
    _MAKERS[name](name, data_dir)


def _pamap2(name: str, data_dir: Path) -> None:
    test_pamap2.archive(data_dir / "PAMAP2_Dataset.zip")


def _higgs(name: str, data_dir: Path) -> None:
    lines = "".join(test_tables.higgs_line(number % 2, number) for number in range(ROWS))
    put(data_dir / "HIGGS.csv.gz", lines.encode())


def _eurosat(name: str, data_dir: Path) -> None:
    put(data_dir / "EuroSATallBands.zip", test_images_by_table.eurosat_members())


def _genomics(name: str, data_dir: Path) -> None:
    known, others = list(test_genomics.GENERA), test_genomics.OTHERS
    tables = {
        "before_2011_in_tr": known,
        "between_2011-2016_in_val": known,
        "between_2011-2016_ood_val": others,
    }
    members = {
        f"genomics_ood/{stem}.txt": test_genomics.raw_table(genera, ROWS)
        for stem, genera in tables.items()
    }
    put(data_dir / "genomics_ood.zip", members)


def _pfam(name: str, data_dir: Path) -> None:
    records = as_json(test_proteins.pfam(ROWS))
    put(
        data_dir / "pfam.tar.gz", {f"pfam/pfam_{part}.json": records for part in ("train", "valid")}
    )


def _protein_task(name: str, data_dir: Path) -> None:
    stem, field, value = _PROTEIN_TASKS[name]
    values = [value(number) for number in range(ROWS // 4)]
    records = as_json(test_proteins.task(field, values))
    files = {f"{stem}/{stem}_{part}.json": records for part in ("train", "valid")}
    put(data_dir / f"{stem}.tar.gz", files)


_PROTEIN_TASKS: dict[str, tuple[str, str, Callable[[int], Any]]] = {
    "scop": ("remote_homology", "fold_label", lambda number: number),
    "secondary_structure": ("secondary_structure", "ss3", lambda number: [0, 1] * (number + 1)),
    "stability": ("stability", "stability_score", lambda number: [number / 100]),
    "fluorescence": ("fluorescence", "log_fluorescence", lambda number: [number / 100]),
}


def _wafermap(name: str, data_dir: Path) -> None:
    path = test_images_by_table.matlab(data_dir / "made.mat")
    content = path.read_bytes()
    put(data_dir / "MIR-WM811K.zip", {"MIR-WM811K/MATLAB/WM811K.mat": content})


def _speech(name: str, data_dir: Path) -> None:
    from tests.metamae.data.sources import test_speech  # skips by itself where soundfile is missing

    if name == "librispeech":
        test_speech.librispeech(data_dir, "published")
        return
    _, layouts = test_speech.SETS[name]
    for place, files in layouts["published"].items():
        pack(files, data_dir / place)


def _imagenet32(name: str, data_dir: Path) -> None:
    pack(test_images.class_archives(), data_dir / "ILSVRC2012_img_train.tar")


def _images(name: str, data_dir: Path) -> None:
    test_images.made(name, test_images.SETS[name][0](), data_dir)


def _vision_language(name: str, data_dir: Path) -> None:
    test_vision_language.place(name, "published", data_dir)


_MAKERS: dict[str, Callable[[str, Path], None]] = {
    "pamap2": _pamap2,
    "higgs": _higgs,
    "eurosat": _eurosat,
    "genomics": _genomics,
    "genomics_ood": _genomics,
    "pfam": _pfam,
    **dict.fromkeys(_PROTEIN_TASKS, _protein_task),
    "wafermap": _wafermap,
    **dict.fromkeys(
        (
            "librispeech",
            "audiomnist",
            "fluent_location",
            "fluent_action",
            "fluent_object",
            "google_speech",
            "voxceleb1",
        ),
        _speech,
    ),
    "imagenet32": _imagenet32,
    **dict.fromkeys(test_images.SETS, _images),
    **dict.fromkeys(("mscoco", "mismatched_caption", "vqa"), _vision_language),
}
assert set(_MAKERS) == set(SOURCES), "every full data set is measured"
