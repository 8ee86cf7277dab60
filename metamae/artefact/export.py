"""Export: the encoder as a program that runs without this package, checked before it is kept."""

from __future__ import annotations

import copy
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from metamae.arguments import as_path
from metamae.artefact.checking import Run, blamed, check_program, examples, inputs_in_words, quiet
from metamae.artefact.encoder import Encoder
from metamae.artefact.module import EncoderModule, Output
from metamae.data.description import Description
from metamae.data.formats.libraries import need_module
from metamae.errors import ConfigError, ExportError
from metamae.files import replacing

FORMATS = ("torch", "onnx")


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: The file.
        inputs: Name, type and shape of every input, in words.
        output: The same of the output.
        difference: Largest difference to the encoder in eager mode, over all checks.
    """

    path: Path
    inputs: tuple[str, ...]
    output: str
    difference: float


def export(
    encoder: Encoder,
    path: str | Path,
    *,
    format: Literal["torch", "onnx"] | str = "onnx",
    output: Output = "features",
) -> Exported:
    """Write the encoder, scaling included, as a program with a free batch size.

    It takes raw values as :attr:`Encoder.module` does: float32 for real inputs, int64 for symbols,
    in the order of the inputs. The file gets its name after its program gave what the encoder gives
    to 1e-5, for batches of 1, 2 and 7 drawn examples. It holds what ``config.json`` holds, under
    ``metamae`` in the metadata of ONNX, and as the extra file ``metamae.json`` of torch.

    Args:
        encoder: The encoder.
        path: The file.
        format: ``torch`` (``torch.export``, a ``.pt2`` file) or ``onnx``.
        output: ``features`` (B, D), or ``tokens`` for those of every token (B, L, D).

    Raises:
        ExportError: features that take a gradient, the exporter cannot express it, or the program
            gives other numbers.
        MissingLibraryError: ONNX without the extra ``onnx``.

    Example:
        >>> import metamae
        >>> from metamae.artefact import export
        >>> from metamae.training import pretrain
        >>> config = metamae.make_config(
        ...     "basic_motions", overrides=["training.steps=1", "encoder.depth=1"]
        ... )
        >>> _ = pretrain(config, metamae.load_dataset("basic_motions"), "run")
        >>> export(metamae.load("run"), "encoder.pt2", format="torch").output
        'features float32 (batch, 128)'
    """
    path = as_path(path, "a file")
    if format not in FORMATS or output not in ("features", "tokens"):
        raise ConfigError(
            f"expected a format among {', '.join(FORMATS)} and an output among features, tokens, "
            f"got {format!r} and {output!r}"
        )
    if encoder.module.needs_gradients:
        raise ExportError(
            f"expected a method with an encoder to export, got {encoder.config.method}, whose "
            "features take a gradient of its decoder, for which an exported program has no place; "
            "use Encoder.embed or metamae embed"
        )
    if format == "onnx":
        for name in ("onnx", "onnxscript", "onnxruntime"):
            need_module(name, "onnx")
    module = _on_cpu(encoder.module, output)
    about = json.dumps(encoder.record.to_dict())
    with blamed(format), quiet():
        program = trace(module, encoder.description)
    with replacing(path) as temporary:
        with blamed(format), quiet():
            write, read = _FORMATS[format]
            write(program, temporary, [spec.name for spec in encoder.inputs], output, about)
            run = read(temporary)
        difference = check_program(run, module, encoder.description)
    with torch.no_grad():
        shape = module(*examples(encoder.description, 1)).shape
    sizes = ", ".join(["batch", *map(str, shape[1:])])
    return Exported(
        path,
        inputs_in_words(encoder.description),
        f"{output} float32 ({sizes})",
        difference,
    )


class _Part(nn.Module):
    """One of the two outputs as a module of its own."""

    def __init__(self, module: EncoderModule, output: Output) -> None:
        super().__init__()
        self.module, self.output = module, output

    def forward(self, *inputs: Tensor) -> Tensor:
        if self.output == "tokens":
            return self.module.token_features(*inputs)
        features: Tensor = self.module(*inputs)
        return features


def _on_cpu(module: EncoderModule, output: Output) -> nn.Module:
    return _Part(copy.deepcopy(module).cpu().float().eval(), output).eval()


def trace(module: nn.Module, description: Description) -> torch.export.ExportedProgram:
    """The module as a graph, for any batch size."""
    inputs = tuple(examples(description, 2))
    with torch.no_grad():
        return torch.export.export(
            module, inputs, dynamic_shapes=_free_batch(len(inputs)), strict=False
        )


def _free_batch(count: int) -> tuple[tuple[dict[int, Any], ...]]:
    batch = torch.export.Dim("batch", min=1)
    return (tuple({0: batch} for _ in range(count)),)


def _write_torch(
    program: torch.export.ExportedProgram, path: Path, names: list[str], output: str, about: str
) -> None:
    content = io.BytesIO()
    torch.export.save(program, content, extra_files={"metamae.json": about})
    path.write_bytes(content.getvalue())


def _read_torch(path: Path) -> Run:
    module = torch.export.load(io.BytesIO(path.read_bytes())).module()

    def run(*inputs: Tensor) -> Any:
        with torch.no_grad():
            return module(*inputs)

    return run


def _write_onnx(
    program: torch.export.ExportedProgram, path: Path, names: list[str], output: str, about: str
) -> None:
    made = torch.onnx.export(
        program,
        (),
        dynamo=True,
        input_names=names,
        output_names=[output],
        dynamic_shapes=_free_batch(len(names)),
        verbose=False,
    )
    assert made is not None
    made.model.metadata_props["metamae"] = about
    made.save(str(path), external_data=False)


def _read_onnx(path: Path) -> Run:
    onnxruntime: Any = need_module("onnxruntime", "onnx")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]

    def run(*inputs: Tensor) -> Any:
        fed = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
        return session.run(None, fed)[0]

    return run


_FORMATS = {"torch": (_write_torch, _read_torch), "onnx": (_write_onnx, _read_onnx)}
