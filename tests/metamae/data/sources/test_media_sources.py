"""The media sets as a whole: shapes of the paper, and no library before it is needed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from metamae.config.presets import list_presets
from metamae.data.sources import get_source
from metamae.inputs import Tokens

# Tokens, values a token (or vocabulary), and outputs known before the files are read.
SPEECH, PIXELS, CAPTIONED = [(196, 256)], [(64, 48)], [(196, 768), (32, 30_522)]
SHAPES: dict[str, tuple[list[tuple[int, int]], int | None]] = {
    **dict.fromkeys(("librispeech", "voxceleb1"), (SPEECH, 0)),
    "audiomnist": (SPEECH, 10),
    "fluent_location": (SPEECH, 4),
    "fluent_action": (SPEECH, 6),
    "fluent_object": (SPEECH, 14),
    "google_speech": (SPEECH, 36),
    "imagenet32": (PIXELS, None),
    "cifar10": (PIXELS, 10),
    **dict.fromkeys(("cub", "vgg_flowers", "dtd", "traffic_sign", "aircraft"), (PIXELS, 0)),
    "mscoco": (CAPTIONED, None),
    **dict.fromkeys(("mismatched_caption", "vqa"), (CAPTIONED, 1)),
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
