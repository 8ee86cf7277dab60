"""Small levels that the reports on multilevel optimisation share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from metalearn.multilevel.levels import Level


def holder(value: Any) -> nn.ParameterDict:
    """A module of one parameter, `v`, in float64."""
    return nn.ParameterDict({"v": nn.Parameter(torch.as_tensor(value, dtype=torch.float64))})


def level(
    name: str, module: nn.Module, loss: Callable[[Any], Any], rate: float, **how: Any
) -> Level:
    """A level that steps by SGD; its batches are the numbers of its steps."""
    how = {"optimiser": torch.optim.SGD(module.parameters(), lr=rate), **how}
    return Level(name=name, module=module, loss=loss, batches=lambda step: step, **how)


def movement(level: Level, run: Callable[[], None]) -> Tensor:
    """How far a level's parameters move."""
    before = torch.cat([p.detach().clone().flatten() for p in level.parameters])
    run()
    return torch.cat([p.detach().flatten() for p in level.parameters]) - before


Names = Mapping[str, Sequence[str]]
