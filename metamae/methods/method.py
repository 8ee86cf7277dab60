"""The contract of every pretraining method: what training and evaluation need of it.

A method draws its own randomness from a generator, computes a loss from a batch and that draw
alone, and gives features of unmasked data. Nothing else about it is known outside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from metamae.errors import InputError
from metamae.inputs import Batch, check_batch
from metamae.model.backbone import Backbone


@dataclass(frozen=True)
class PretextLoss:
    """A loss to minimise and the terms it consists of, all scalars.

    ``support`` holds the inner losses ``(steps, B)`` of a method that refines; compiled, nobody
    has looked yet whether they are finite.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    support: Tensor | None = None


class Draw(Protocol):
    """Everything random about one step: a small frozen dataclass of tensors."""

    def to(self, device: torch.device | str) -> Any:
        """The same draw on another device."""
        ...


D = TypeVar("D", bound=Draw)


@dataclass(frozen=True)
class NoDraw:
    """The draw of a method without randomness of its own (dropout apart).

    Attributes:
        examples: Number of examples it stands for.
    """

    examples: int

    def to(self, device: torch.device | str) -> NoDraw:
        """Itself: it holds no tensor."""
        return self

    def __len__(self) -> int:
        """Number of examples."""
        return self.examples


class Method(nn.Module, Generic[D]):
    """Base of all methods.

    A method whose ``needs_labels`` is true is trained on the labelled training partition, and is
    called with a :class:`metamae.inputs.LabelledBatch`. No method ever sees the test partition.

    Args:
        network: Tokenizer and encoder; what is kept after pretraining.
    """

    needs_labels: ClassVar[bool] = False

    def __init__(self, network: Backbone) -> None:
        """See the class."""
        super().__init__()
        self.network = network

    def draw(self, batch_size: int, generator: torch.Generator) -> D:
        """Everything random about one step apart from dropout, on the CPU."""
        raise NotImplementedError

    def forward(self, batch: Batch, draw: D) -> PretextLoss:
        """Loss of a batch under a draw."""
        raise NotImplementedError

    def features(self, batch: Batch) -> Tensor:
        """Features ``(B, D)`` of unmasked examples."""
        return self.network.features(batch)

    @property
    def observes_every(self) -> int:
        """Steps between two calls of :meth:`observe`; 0 for none."""
        return 0

    def observe(self, batch: Batch, draw: D) -> None:
        """Look at a step that was just taken, to hold a setting where it belongs."""

    def monitor(self, batch: Batch, draw: D) -> dict[str, float]:
        """Numbers worth a curve that training itself does not need."""
        return {}

    def check(self, batch: Batch, drawn: int) -> None:
        """Raise ``InputError`` unless a batch fits the inputs and the number of drawn examples."""
        size = check_batch(self.network.inputs, batch, exact=True)
        if size != drawn:
            raise InputError(
                f"expected a draw for {size} examples, as in the batch, got one for {drawn}; "
                "draw it for this batch size"
            )
