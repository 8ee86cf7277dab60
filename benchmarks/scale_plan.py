"""What larger models would take, on paper: products are counted, the rest follows from data sheets.

    python benchmarks/scale_plan.py

prints the table of docs/scale.md. Products are those of one step as torch's own counter sees them,
the inner gradient and its derivative included.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils.flop_counter import FlopCounterMode

from metamae import build_method, make_config
from metamae.inputs import Image
from metamae.methods.method import Method

IMAGE = Image(name="image", channels=3, height=224, width=224, patch=(16, 16))
PRODUCTS = 989e12
"""Products and sums a second of an H100 SXM in bfloat16, by its data sheet."""
FLOAT32 = 67e12
"""The same in float32."""
COPIES = 4
"""Matrices of similarities that a contrast holds at its peak."""
SHARE = 0.35
"""Of either, what a transformer in eager bfloat16 is taken to reach; not measured here."""
LINK, NETWORK = 450e9, 50e9
"""Bytes a second of a GPU one way: NVLink 4 in a machine of 8, and 400 Gb/s between machines."""
MEMORY = 80e9
COUNTED = 2
"""Examples whose products are counted."""


@dataclass(frozen=True)
class Size:
    """An encoder, a decoder, and the batch that one GPU takes."""

    name: str
    width: int
    depth: int
    heads: int
    decoder: int
    share: int


SIZES = (
    Size("paper", 256, 12, 8, 128, 512),
    Size("base", 768, 12, 12, 384, 128),
    Size("large", 1024, 24, 16, 512, 64),
    Size("huge", 1280, 32, 16, 512, 32),
)


@dataclass(frozen=True)
class Count:
    """What was counted of a size: of one example, and of the model."""

    products: float
    weights: int
    kept: float


def count(size: Size) -> Count:
    """Products of an example, weights, and bytes kept for the backward pass of an example."""
    config = make_config(
        "digits",
        preset="pocket",
        overrides=[
            *(f"encoder.width={size.width}", f"encoder.depth={size.depth}"),
            *(f"encoder.heads={size.heads}", f"decoder.width={size.decoder}"),
            *("decoder.depth=4", "decoder.heads=8", "masking.mask_ratio=0.75"),
            *("contrast.hidden=1024", "contrast.out=128"),
        ],
    )
    with FakeTensorMode(allow_non_fake_inputs=True):  # shapes without numbers
        return _count(build_method(config, (IMAGE,)))


def _count(method: Method[Any]) -> Count:
    weights = sum(p.numel() for p in method.parameters())
    draw = _draw(method)
    batch = {"image": torch.zeros(COUNTED, 3, 224, 224)}
    kept: dict[int, torch.Tensor] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        if not isinstance(x, torch.nn.Parameter):
            kept[x.untyped_storage()._cdata] = x  # held, so that its number stays its own
        return x

    for module in method.modules():
        if hasattr(module, "check_finite"):
            module.check_finite = False
    with FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            loss = method(batch, draw).loss
        loss.backward()
    bytes_kept = 2 * sum(x.numel() for x in kept.values()) / COUNTED  # bfloat16
    return Count(counter.get_total_flops() / COUNTED, weights, bytes_kept)


def _draw(method: Method[Any]) -> Any:
    """Real indices: how many tokens are nearby is read from them."""
    with unset_fake_temporarily():
        return method.draw(COUNTED, torch.Generator().manual_seed(0))


def row(size: Size, counted: Count, gpus: int) -> str:
    """A line of the table."""
    batch = size.share * gpus
    compute = size.share * counted.products / (SHARE * PRODUCTS)
    # A ring sends twice its bytes, but for the share of one rank.
    sent = 2 * 4 * counted.weights * (gpus - 1) / gpus
    exchange = sent / (LINK if gpus <= 8 else NETWORK)
    # Every rank takes the contrast of the joint batch, in float32, forward and backward.
    pairs = (2 * batch) ** 2
    contrast = 3 * 2 * pairs * 128 / (SHARE * FLOAT32)
    step = max(compute, exchange) + contrast  # gradients are exchanged while others are computed
    memory = 16 * counted.weights + size.share * counted.kept + COPIES * 4 * pairs
    return (
        f"| {size.name} | {counted.weights / 1e6:.0f} M | {gpus} | {batch} | {memory / 1e9:.1f} "
        f"| {counted.products / 1e9:.0f} | {1e3 * compute:.0f} | {1e3 * exchange:.1f} "
        f"| {1e3 * contrast:.1f} | {1e3 * step:.0f} |"
    )


def main() -> None:
    """Print the table."""
    print(
        "| encoder | weights | GPUs | batch | GB a GPU | GFLOP an example | ms computing "
        "| ms exchanging | ms contrast | ms a step |\n|---|---|---|---|---|---|---|---|---|---|"
    )
    for size in SIZES:
        counted = count(size)
        for gpus in (1, 8, 64):
            print(row(size, counted, gpus))


if __name__ == "__main__":
    main()
