"""Losses in float32 at least, whatever the precision of the network."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor


def at_least_float32(values: Tensor) -> Tensor:
    """Half precision to float32; others as they are."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def without_autocast(values: Tensor) -> AbstractContextManager[object]:
    """A context in which products of similarities keep their precision."""
    return torch.autocast(device_type=values.device.type, enabled=False)
