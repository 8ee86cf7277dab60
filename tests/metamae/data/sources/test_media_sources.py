"""The media sets as a whole: shapes of the paper, and no library before it is needed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from metamae.config.presets import list_presets
from metamae.data.sources import get_source
from metamae.inputs import Tokens

# Tokens, values a token (or vocabulary), and outputs known before the files are read.
SHAPES: dict[str, tuple[list[tuple[int, int]], int | None]] = {
    "librispeech": ([(196, 256)], 0),
    "audiomnist": ([(196, 256)], 10),
    "fluent_location": ([(196, 256)], 4),
    "fluent_action": ([(196, 256)], 6),
    "fluent_object": ([(196, 256)], 14),
    "google_speech": ([(196, 256)], 36),
    "voxceleb1": ([(196, 256)], 0),
    "imagenet32": ([(64, 48)], None),
    "cifar10": ([(64, 48)], 10),
    "cub": ([(64, 48)], 0),
    "vgg_flowers": ([(64, 48)], 0),
    "dtd": ([(64, 48)], 0),
    "traffic_sign": ([(64, 48)], 0),
    "aircraft": ([(64, 48)], 0),
    "mscoco": ([(196, 768), (32, 30_522)], None),
    "mismatched_caption": ([(196, 768), (32, 30_522)], 1),
    "vqa": ([(196, 768), (32, 30_522)], 1),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_and_outputs_are_those_of_the_paper(name: str) -> None:
    source, (shapes, outputs) = get_source(name), SHAPES[name]
    inputs = source.specify(())
    sizes = [
        (one.tokens, one.vocabulary if isinstance(one, Tokens) else one.values) for one in inputs
    ]
    assert sizes == shapes
    assert (None if source.task is None else source.task.outputs) == outputs
    assert source.pretrained_on in list_presets("paper")
    assert source.scaling.keys() <= {one.name for one in inputs}
    assert "published" in [layout.name for layout in source.layouts]
    finer = source.specify((4, 2))[0]
    assert finer.grid == (finer.height // 4, finer.width // 2)


def test_no_reader_is_imported_before_it_is_asked_for() -> None:
    """Nor any library of its formats; without soundfile the speech sets are still listed."""
    code = (
        "import sys; sys.modules['soundfile'] = None; import metamae.data as d; "
        "assert not [m for m in sys.modules if m.startswith(('metamae.data.sources.', 'PIL'))]; "
        "print([d.get_source(n).modality for n in ('voxceleb1', 'vqa')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['speech', 'vision-language']"
