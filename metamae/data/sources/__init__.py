"""The full data sets by name. Modules are imported when a name of theirs is asked for.

To add one, write a file here that defines ``SOURCES``, a tuple of
:class:`~metamae.data.preparing.source.Source` (a small one to copy is ``genomics.py``): where the
raw files may lie (a role has several names; packing and folders are taken care of), what they hold
and how many examples were published, the function that reads them with
:mod:`metamae.data.formats` and writes arrays, and what a probe predicts.
Importing it must not need optional libraries: readers import them when they run. Then name it in
``_MODULES`` below, and in ``published.yaml``; a set to pretrain on has a preset
``presets/paper/NAME.yaml`` too. Its test,
``tests/metamae/data/sources/test_NAME.py``, makes tiny raw files in every layout
(``tests/metamae/data/packing.py``) and reads them back;
``benchmarks/made_sets.py`` asks for such files of every set.
"""

from __future__ import annotations

import importlib

from metamae.data.preparing.source import Source
from metamae.errors import DataError, suggest

_MODULES: dict[str, tuple[str, ...]] = {
    "pamap2": ("pamap2",),
    "higgs": ("higgs",),
    "eurosat": ("eurosat",),
    "genomics": ("genomics", "genomics_ood"),
    "proteins": ("pfam", "scop", "secondary_structure", "stability", "fluorescence"),
    "wafermap": ("wafermap",),
    "speech.sets": (
        "librispeech",
        "audiomnist",
        "fluent_location",
        "fluent_action",
        "fluent_object",
        "google_speech",
        "voxceleb1",
    ),
    "images.imagenet32": ("imagenet32",),
    "images.sets": ("cifar10", "cub", "vgg_flowers", "dtd", "traffic_sign", "aircraft"),
    "captioned.sets": ("mscoco", "mismatched_caption", "vqa"),
}
"""Module in this folder to the names it defines."""

SOURCES = tuple(name for names in _MODULES.values() for name in names)
"""Names of the full data sets."""


def get_source(name: str) -> Source:
    """The full data set of a name.

    Raises:
        DataError: an unknown name.

    Example:
        >>> from metamae.data.sources import get_source
        >>> get_source("higgs").task.metric
        'accuracy'
    """
    for module, names in _MODULES.items():
        if name in names:
            sources = importlib.import_module(f"metamae.data.sources.{module}").SOURCES
            source: Source = next(source for source in sources if source.name == name)
            return source
    raise DataError(f"expected a data set among {', '.join(SOURCES)}, {suggest(name, SOURCES)}")
