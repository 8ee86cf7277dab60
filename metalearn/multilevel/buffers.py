"""Buffers of levels, running statistics for instance: a level's own steps move them, nothing else.

Hypergradients evaluate losses again, and outer losses evaluate the modules of lower levels; both in
training mode, in which batch normalisation counts what it sees.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

from torch import nn

from metalearn.multilevel.levels import Level

Slot: TypeAlias = tuple[nn.Module, str]
"""A module and the name of one of its own buffers, which may be replaced as well as changed."""


def all_slots(levels: Iterable[Level]) -> list[Slot]:
    """The buffers of all these levels."""
    return [slot for level in levels for slot in _slots(level).values()]


def slots_below(level: Level, levels: Sequence[Level]) -> list[Slot]:
    """The buffers that a step of ``level`` has to leave alone: those of the levels below it.

    A module may hold that of another level. Its buffers are then those of the level whose module
    is the smaller one.
    """
    below = levels[: levels.index(level)]
    own = _slots(level) if below else {}
    return [
        slot
        for lower in map(_slots, below)
        for key, slot in lower.items()
        if key not in own or len(lower) <= len(own)
    ]


@contextmanager
def set_aside(slots: Sequence[Slot]) -> Iterator[None]:
    """Lend copies of buffers to what is evaluated inside, and put the buffers back after it.

    Copies, so that a graph that has saved one finds the values that it has used.
    """
    kept = [(module, name, module._buffers[name]) for module, name in slots]
    tensors = {id(tensor): tensor for *_, tensor in kept if tensor is not None}
    lent = {key: tensor.detach().clone() for key, tensor in tensors.items()}
    # Whoever holds a buffer itself may have changed it all the same.
    before = {key: (tensor._version, tensor.detach().clone()) for key, tensor in tensors.items()}
    for module, name, tensor in kept:
        module._buffers[name] = None if tensor is None else lent[id(tensor)]
    try:
        yield
    finally:
        for module, name, tensor in kept:
            module._buffers[name] = tensor
        for key, (version, values) in before.items():
            if tensors[key]._version != version:
                # Through `data`: a graph that has saved it and does not use it stays valid.
                tensors[key].data.copy_(values)


def _slots(level: Level) -> dict[tuple[int, str], Slot]:
    return {
        (id(module), name): (module, name)
        for module in level.module.modules()
        for name in module._buffers
    }
