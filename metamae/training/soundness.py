"""Whether a state can be trained on and used: every number in it is finite."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


def all_finite(state: Any) -> bool:
    """Whether all floating-point tensors of a nested state are finite; the host waits once.

    Example:
        >>> import torch
        >>> from metamae.training.soundness import all_finite
        >>> all_finite({"a": torch.ones(2), "b": [torch.tensor(3)]})
        True
        >>> all_finite({"a": {"b": torch.tensor([1.0, float("nan")])}})
        False
    """
    checks = [torch.isfinite(x).all() for x in _tensors(state) if x.is_floating_point()]
    by_device: dict[torch.device, list[Tensor]] = {}
    for check in checks:
        by_device.setdefault(check.device, []).append(check)
    return all(bool(torch.stack(found).all()) for found in by_device.values())


def _tensors(state: Any) -> Iterator[Tensor]:
    if isinstance(state, Tensor):
        state = state.detach()
        yield state.to_local() if hasattr(state, "to_local") else state  # of a shard, this one
    elif isinstance(state, Mapping):
        for value in state.values():
            yield from _tensors(value)
    elif isinstance(state, list | tuple):
        for value in state:
            yield from _tensors(value)
