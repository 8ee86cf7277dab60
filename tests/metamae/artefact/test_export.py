"""Exported programs give what the encoder gives, for any batch size, or are not written."""

from __future__ import annotations

import io
import json
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metamae import ConfigError, load_dataset
from metamae.artefact import Encoder, checking, export
from metamae.artefact.checking import examples
from metamae.artefact.export import trace
from metamae.data.dataset import Affine, Dataset, Partition
from metamae.errors import ExportError, MissingLibraryError
from metamae.inputs import Image, Signal, Tabular, Tokens
from tests.metamae.artefact.making import config_of, untrained

KINDS = {
    "signal": "basic_motions",
    "image": "digits",
    "tabular": "tabular",
    "tokens": "peptides",
    "two inputs": "captioned",
}


SINGLY = ("signal", "image", "tabular", "tokens", "two inputs", "gaps")
"""An export to ONNX takes seconds: in the fast tests all kinds are the inputs of one encoder."""


def with_gaps() -> Dataset:
    rows = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    inputs = (Tabular(name="row", columns=6, gaps=True),)
    return Dataset(name="gaps", inputs=inputs, pretrain=Partition({"row": rows}, inputs))


def of_every_kind() -> Dataset:
    """A signal, an image, numbers, some of them missing, and symbols as one example."""
    inputs: tuple[Any, ...] = (
        Signal(name="signal", channels=2, length=12, token_length=3),
        Image(name="image", channels=1, height=4, width=8, patch=(2, 2)),
        Tabular(name="row", columns=6, gaps=True),
        Tokens(name="symbols", length=5, vocabulary=7),
    )
    arrays = {spec.name: np.zeros((40, 1)) for spec in inputs}
    scaling = {
        "signal": Affine(np.float32([[3.0], [-1.0]]), np.float32([[2.0], [0.5]])),
        "image": Affine.divide(16),
    }
    return Dataset(name="all", inputs=inputs, pretrain=Partition(arrays, inputs, scaling))


def make(kind: str) -> Encoder:
    if kind == "gaps":
        return untrained(with_gaps(), config_of("tabular"))
    if kind == "every kind":
        return untrained(of_every_kind(), config_of("tabular"))
    return untrained(load_dataset(KINDS[kind]), config_of(KINDS[kind]))


@pytest.mark.parametrize(
    "kind",
    ["every kind", *(pytest.param(k, marks=pytest.mark.slow) for k in SINGLY)],
)
def test_onnx_gives_the_same(kind: str, tmp_path: Path) -> None:
    """Also for a batch size that the export never saw, and from the file alone."""
    onnxruntime: Any = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    encoder = make(kind)
    done = export(encoder, tmp_path / "e.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["e.onnx"]
    assert done.difference < 1e-5
    assert done.output == "features float32 (batch, 16)"
    session = onnxruntime.InferenceSession(str(tmp_path / "e.onnx"))
    names = [spec.name for spec in encoder.inputs]
    assert [value.name for value in session.get_inputs()] == names
    assert all(value.shape[0] == "batch" for value in session.get_inputs())
    assert [value.name for value in session.get_outputs()] == ["features"]
    about = json.loads(session.get_modelmeta().custom_metadata_map["metamae"])
    assert (
        about["data"]["inputs"] == json.loads(json.dumps(encoder.description.to_dict()))["inputs"]
    )
    for size in (1, 2, 5, 7):
        drawn = examples(encoder.description, size)
        fed = {name: x.numpy() for name, x in zip(names, drawn, strict=True)}
        (found,) = session.run(None, fed)
        expected = encoder.embed(fed)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
        assert size == 1 or np.ptp(expected, axis=0).max() > 1e-2


@pytest.mark.parametrize("kind", [*KINDS, "gaps"])
def test_a_traced_program_is_free_in_the_batch(kind: str) -> None:
    encoder = make(kind)
    program = trace(encoder.module, encoder.description).module()
    for size in (1, 2, 7):
        drawn = examples(encoder.description, size)
        np.testing.assert_allclose(
            program(*drawn).detach(), encoder.module(*drawn).detach(), rtol=1e-5, atol=1e-5
        )


def test_a_torch_program_is_loaded_without_the_package(tmp_path: Path) -> None:
    encoder = make("two inputs")
    done = export(encoder, tmp_path / "e.pt2", format="torch", output="tokens")
    assert done.inputs == ("image float32 (batch, 1, 8, 8)", "caption int64 (batch, 8)")
    assert done.output == "tokens float32 (batch, 24, 16)"
    files = {"metamae.json": ""}
    program = torch.export.load(
        io.BytesIO((tmp_path / "e.pt2").read_bytes()), extra_files=files
    ).module()
    drawn = examples(encoder.description, 3)
    fed = {spec.name: x.numpy() for spec, x in zip(encoder.inputs, drawn, strict=True)}
    found = program(*drawn).detach()
    np.testing.assert_allclose(found, encoder.embed_tokens(fed), rtol=1e-5, atol=1e-5)
    assert json.loads(files["metamae.json"])["config"]["encoder"]["width"] == 16


def test_a_program_that_gives_other_numbers_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "e").write_text("earlier")

    def worse(value: Any) -> torch.Tensor:
        return torch.from_numpy(np.asarray(value)) + 1e-3

    monkeypatch.setattr(checking.torch, "as_tensor", worse)
    with pytest.raises(ExportError, match=r"a difference of 0\.001\S* for a batch of 1; nothing"):
        export(make("tabular"), tmp_path / "e", format="torch")
    assert [path.name for path in tmp_path.iterdir()] == ["e"]
    assert (tmp_path / "e").read_text() == "earlier"


def test_what_cannot_be_traced_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = make("tabular")

    def looks(batch: Any) -> torch.Tensor:
        x = batch["row"]
        return x if float(x.sum()) > 0 else -x

    monkeypatch.setattr(encoder.module.network, "features", looks)
    with pytest.raises(ExportError, match=r"^expected an encoder that can be exported \(torch\)"):
        export(encoder, tmp_path / "e.pt2", format="torch")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [({"format": "tf"}, "expected a format among torch, onnx"), ({"output": "x"}, "and 'x'$")],
)
def test_unknown_formats_are_refused(options: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        export(make("tabular"), tmp_path / "e", **options)


def test_onnx_is_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.setitem(sys.modules, "onnx", io)
    with pytest.raises(MissingLibraryError, match=r"onnxscript.*pip install 'metamae\[onnx\]'"):
        export(make("tabular"), tmp_path / "e.onnx")


def test_logging_and_warnings_are_as_before() -> None:
    before = logging.root.manager.disable
    with checking.quiet():
        warnings.warn("not shown", FutureWarning, stacklevel=1)
    assert logging.root.manager.disable == before
    with pytest.warns(FutureWarning):
        warnings.warn("shown", FutureWarning, stacklevel=1)


def test_eager_checks_stay() -> None:
    """Batches of two sizes, or of none, are refused where nothing is traced."""
    encoder = make("two inputs")
    image, caption = examples(encoder.description, 3)
    with pytest.raises(ValueError, match=r"expected one batch size .*'image': 3, 'caption': 2"):
        encoder.module(image, caption[:2])
    with pytest.raises(ValueError, match="expected one batch size of at least 1"):
        encoder.module(image[:0], caption[:0])
