"""What the overhead and scaling benchmarks measure: settings, training steps, the straight version.

The nine settings of the paper (Table 8) have its model and token shapes, and random values: time
depends on shapes alone. On a CPU the batch is smaller than published and stated in every row.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from metalearn.randomness import seeded
from metamae import build_method, load_dataset, make_config
from metamae.config.schema import Config
from metamae.inputs import Image, Inputs, Signal, Tabular, Tokens
from metamae.model.masking import Split
from metamae.model.transformer import Attention
from metamae.randomness import generator
from metamae.training.compiling import CompiledLoss
from metamae.training.devices import autocast
from tests.metamae.model.straight import straighten

SHAPES: dict[str, tuple[Inputs, int]] = {
    "higgs": ((Tabular(name="row", columns=28),), 32),
    "genomics": ((Tokens(name="dna", length=250, vocabulary=4),), 8),
    "pamap2": ((Signal(name="watch", channels=52, length=320, token_length=5),), 32),
    "eurosat": ((Image(name="image", channels=13, height=64, width=64, patch=(8, 8)),), 32),
    "imagenet32": ((Image(name="image", channels=3, height=32, width=32, patch=(4, 4)),), 32),
    "librispeech": ((Image(name="mel", channels=1, height=224, width=224, patch=(16, 16)),), 16),
    "pfam": ((Tokens(name="protein", length=128, vocabulary=26),), 16),
    "wafermap": ((Image(name="wafer", channels=3, height=32, width=32, patch=(4, 4)),), 16),
    "mscoco": (
        (
            Image(name="image", channels=3, height=224, width=224, patch=(16, 16)),
            Tokens(name="caption", length=32, vocabulary=30522),
        ),
        8,
    ),
}
"""Inputs and the CPU's batch of every setting, those that compile fastest first."""


CHUNKS = 4


@dataclass(frozen=True)
class Variant:
    """How a step is computed.

    Policy ``chunked`` is ``checkpointed`` in quarters of the batch, decoder ``cross-25`` is
    ``cross`` on a quarter of the masked tokens. A step on a CPU takes ``batches`` times the batch
    of ``SHAPES``.
    """

    mode: str = "eager"
    dtype: str = "float32"
    decoder: str = "self"
    policy: str = "unrolled"
    batches: int = 1

    def __str__(self) -> str:
        return f"{self.mode}-{self.decoder}-{self.dtype}-{self.policy}"

    @property
    def differentiation(self) -> tuple[str, int]:
        """The gradient policy, and into how many chunks it cuts the batch."""
        return ("checkpointed", CHUNKS) if self.policy == "chunked" else (self.policy, 1)

    @property
    def decoding(self) -> tuple[str, float]:
        """The decoder's attention, and the share of masked tokens that are decoded."""
        return ("cross", 0.25) if self.decoder == "cross-25" else (self.decoder, 1.0)


@dataclass(frozen=True)
class Side:
    """One training step to run, and what is known of it."""

    run: Callable[[], None]
    config: Config
    flops: Callable[[], int]
    compile_seconds: float


def configure(setting: str, method: str, variant: Variant, device: torch.device) -> Config:
    """The preset's configuration in one variant."""
    preset, name = setting.split("/")
    policy, chunks = variant.differentiation
    attention, share = variant.decoding
    overrides = [
        f"decoder.attention={attention}",
        f"decoder.query_fraction={share}",
        f"adaptation.differentiation={policy}",
        f"training.autocast={'bfloat16' if variant.dtype == 'bfloat16' else 'off'}",
        f"training.compile={'on' if variant.mode == 'compiled' else 'off'}",
    ]
    graphs = variant.mode == "compiled" and device.type == "cuda"
    overrides.append(f"training.cuda_graphs={'on' if graphs else 'off'}")
    if preset == "paper" and device.type == "cpu":
        overrides.append(f"training.batch_size={variant.batches * SHAPES[name][1]}")
    config = make_config(name, preset=preset, method=method, overrides=overrides)
    if chunks == 1:
        return config
    size = -(-config.training.batch_size // chunks)
    return replace(config, adaptation=replace(config.adaptation, chunk_size=size))


def inputs_of(setting: str) -> Inputs:
    """Of a setting such as ``paper/higgs`` or ``pocket/sensors``."""
    preset, name = setting.split("/")
    return SHAPES[name][0] if preset == "paper" else load_dataset(name).inputs


def values(inputs: Inputs, size: int, device: torch.device) -> dict[str, Tensor]:
    """A random batch."""
    batch, draw = {}, generator(0, "values")
    for spec in inputs:
        match spec:
            case Signal():
                x = torch.randn(size, spec.channels, spec.length, generator=draw)
            case Image():
                x = torch.randn(size, spec.channels, spec.height, spec.width, generator=draw)
            case Tabular():
                x = torch.randn(size, spec.columns, generator=draw)
            case Tokens():
                x = torch.randint(spec.vocabulary, (size, spec.length), generator=draw)
        batch[spec.name] = x.to(device)
    return batch


def training_step(
    config: Config, inputs: Inputs, device: torch.device, *, straight: bool = False
) -> Side:
    """One full step, always on the same batch: forward, backward, update."""
    size = config.training.batch_size
    method = build_method(config, inputs).to(device).train()
    if straight:
        straighten(method.network)
    batch = values(inputs, size, device)
    split = method.draw(size, generator(0, "benchmark")).to(device)
    optimiser = torch.optim.AdamW(
        method.parameters(), lr=1e-4, weight_decay=1e-4, fused=None if straight else True
    )
    compiled = None
    if config.compiles:
        graphs = config.training.cuda_graphs == "on"
        compiled = CompiledLoss(
            method, size, device, cuda_graphs=graphs, memory=config.training.compile_memory
        )
        with autocast(config, device), seeded(0, device):
            compiled.prepare(batch, split)
        assert not compiled.failure, compiled.failure
    loss: Any = compiled or method

    def run() -> None:
        optimiser.zero_grad(set_to_none=True)
        with compiled.repeatable() if compiled else nullcontext():
            with autocast(config, device):
                value = loss(batch, split).loss
            value.backward()
        optimiser.step()

    return Side(
        run,
        config,
        lambda: count_flops(method, batch, split),
        compiled.seconds if compiled else 0.0,
    )


class _NoModules:
    """A tracker for which everything happens in one place."""

    parents: ClassVar[set[str]] = {"Global"}

    def __enter__(self) -> None: ...

    def __exit__(self, *fault: object) -> None: ...


def count_flops(method: Any, batch: dict[str, Tensor], split: Split) -> int:
    """Of products in the loss and its gradient; fused attention is counted as plain attention."""
    attentions = [m for m in method.modules() if isinstance(m, Attention) and m.fused]
    for attention in attentions:
        attention.fused = False
    counter = FlopCounterMode(display=False)
    # Its tracker asks autograd for the module of every node, which a gradient taken inside the
    # backward pass (`Checkpointed`) does not allow; one total is all that is wanted.
    counter.mod_tracker = _NoModules()  # type: ignore[assignment]
    with counter:
        method(batch, split).loss.backward()
    for attention in attentions:
        attention.fused = True
    return int(counter.get_total_flops())
