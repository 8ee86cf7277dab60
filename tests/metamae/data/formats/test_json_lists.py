"""Lists in JSON files are streamed record by record."""

from __future__ import annotations

import io
import json

import pytest

from metamae import DataError
from metamae.data.formats import tables
from metamae.data.formats.tables import json_records

DOCUMENT = {
    "info": {"annotations": "not the list"},
    "images": [{"id": 1}],
    "annotations": [
        {"id": n, "text": f'säy "annotations": [{n}]', "nested": {"x": [1, {"y": "]"}]}}
        for n in range(50)
    ],
    "last": [],
}


@pytest.mark.parametrize("chunk", [1, 7, 64, 1 << 20])
@pytest.mark.parametrize("indent", [None, 1])
def test_json_lists_are_streamed(
    chunk: int, indent: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "_CHUNK", chunk)
    text = json.dumps(DOCUMENT, indent=indent, ensure_ascii=False).encode()
    for key in ("images", "annotations", "last"):
        assert list(json_records(io.BytesIO(text), "x.json", key=key)) == DOCUMENT[key]


def test_streaming_holds_a_part_of_the_file() -> None:
    """The first records come before the end of the file was read."""
    file = io.BytesIO(b'{"annotations": [' + b'{"id": 1}, ' * 1_000_000)
    records = json_records(file, "x.json", key="annotations")
    assert [next(records)["id"] for _ in range(3)] == [1, 1, 1]
    assert file.tell() < 2_000_000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "expected a list 'annotations' in x.json, found none"),
        ('{"annotations": 3}', "expected a list 'annotations' in x.json, found none"),
        (
            '{"annotations": [{"id": 1}, {"id"',
            "expected a whole JSON list in x.json, it breaks after",
        ),
        ('{"annotations": [{"id": 1}', "expected a whole JSON list in x.json, it breaks after"),
    ],
)
def test_a_damaged_list_is_named(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        list(json_records(io.BytesIO(text.encode()), "x.json", key="annotations"))
