"""The contract of every pretraining method: what training and evaluation need of it.

A method draws its own randomness from a generator, computes a loss from a batch and that draw
alone, and gives features of unmasked data. Nothing else about it is known outside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from metamae.errors import ConfigError, InputError
from metamae.inputs import Batch, check_batch
from metamae.model.backbone import Backbone
from metamae.model.transformer import Block


@dataclass(frozen=True)
class PretextLoss:
    """A loss to minimise and the terms it consists of, all scalars.

    ``support`` holds the inner losses ``(steps, B)`` of a method that refines; compiled, nobody
    has looked yet whether they are finite.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    support: Tensor | None = None


@dataclass(frozen=True)
class Parts:
    """The loss of some examples of a batch, in two: what is their own, and what is joint.

    Attributes:
        own: Mean over these examples of a loss that knows nothing of the others, a scalar.
        terms: What it consists of, means over these examples too.
        rows: What the rest of the loss is a function of, once all examples' rows are together
            (:meth:`Method.joint`): ``(b, ...)`` each. Empty where there is no rest.
    """

    own: Tensor
    terms: dict[str, Tensor]
    rows: tuple[Tensor, ...] = ()


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

    def __getitem__(self, examples: slice) -> NoDraw:
        """The draw of some of the examples."""
        return NoDraw(len(range(self.examples)[examples]))

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
    needs_gradients: ClassVar[bool] = False
    """Whether features take a gradient, for which no exported program has a place."""
    mean_of_examples: ClassVar[bool] = False
    """Whether the loss is a mean over examples that know nothing of each other."""

    def __init__(self, network: Backbone) -> None:
        """See the class."""
        super().__init__()
        self.network = network

    def draw(self, batch_size: int, generator: torch.Generator) -> D:
        """Everything random about one step apart from dropout, on the CPU."""
        raise NotImplementedError

    def draw_at(self, batch_size: int, generator: torch.Generator, progress: float) -> D:
        """The draw of a training step, ``progress`` of the way through training, from 0 to 1."""
        return self.draw(batch_size, generator)

    def complete(self, batch: Batch, draw: D) -> D:
        """The draw of a training step once its examples are known, on their device.

        What of it depends on them and on the weights is computed here, each example for itself.
        """
        return draw

    def forward(self, batch: Batch, draw: D) -> PretextLoss:
        """Loss of a batch under a draw."""
        raise NotImplementedError

    @property
    def is_joint(self) -> bool:
        """Whether a part of the loss is a function of all examples together."""
        return False

    def cut(self, draw: D, rows: slice) -> tuple[Tensor, D]:
        """What the examples ``rows`` of a batch need: places in the batch, and their draw.

        :meth:`parts` is given the examples at these places, which may be more than ``rows``.
        """
        chosen: Any = draw
        return torch.arange(rows.start, rows.stop), chosen[rows]

    def check_divisible(self) -> None:
        """Raise ``ConfigError`` unless the class that defines the loss says how it is divided.

        By ``mean_of_examples``, or by :meth:`parts` and :meth:`joint`.
        """
        for kind in type(self).__mro__:
            if kind is not Method and ("parts" in vars(kind) or vars(kind).get("mean_of_examples")):
                return
            if "forward" in vars(kind):
                break
        raise ConfigError(
            "expected a method that says how its loss is divided among processes or pieces of a "
            f"batch, got {type(self).__name__}; set mean_of_examples, or define parts and joint, "
            "or train it in one process and in whole batches (training.micro_batch=0)"
        )

    def parts(self, batch: Batch, draw: D) -> Parts:
        """The loss of the examples that a draw was cut to; sums of parts make that of a batch.

        ``forward`` is this and :meth:`joint` for all examples at once. Several processes, and
        batches that are computed in pieces, take it apart. Of a loss that is a mean over examples
        this is all of it.
        """
        result: PretextLoss = self(batch, draw)
        return Parts(result.loss, result.terms)

    def joint(self, rows: Sequence[Tensor], draw: D) -> tuple[Tensor, dict[str, Tensor]]:
        """The rest of a batch's loss, of the rows of all its parts in order; and its terms."""
        raise NotImplementedError

    def shard_units(self) -> list[nn.Module]:
        """Modules whose weights FSDP puts together for their own calls alone, one by one.

        Those of all others are whole from the beginning of a step to its end. No gradient that
        another gradient is taken of may run through a unit: an inner step's is taken of what is
        whole.
        """
        return [module for module in self.modules() if isinstance(module, Block)]

    def joint_parameters(self) -> list[nn.Parameter]:
        """Parameters that :meth:`joint` uses."""
        return []

    def gradient_groups(self) -> list[list[nn.Parameter]]:
        """Parameters whose gradient ``training.clip_norm`` bounds together: all of them.

        What descends a loss of its own is a group of its own, or one would shorten the other's
        steps.
        """
        return [list(self.parameters())]

    def features(self, batch: Batch) -> Tensor:
        """Features ``(B, D)`` of unmasked examples."""
        return self.network.features(batch)

    @property
    def observes_every(self) -> int:
        """Steps between two calls of :meth:`observe`; 0 for none."""
        return 0

    def observe(self, batch: Batch, draw: D) -> None:
        """Look at a step that was just taken, to hold a setting where it belongs."""

    def after_step(self) -> None:
        """The weights have just moved: what follows them follows now."""

    of_whole_batches: ClassVar[frozenset[str]] = frozenset()
    """Numbers of :meth:`monitor` that say nothing of a piece of a batch: no means over examples."""

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
