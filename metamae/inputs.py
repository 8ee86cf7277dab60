"""Input specifications: what one input of an example looks like, and how it becomes tokens.

An example has one or several named inputs; a batch is a dict from input name to tensor. Each kind
of input knows its token grid, checks its own batches and cuts them into tokens:

========= ======================== ============ ==========================
kind      batch                    grid         target of one token
========= ======================== ============ ==========================
Signal    ``(B, C, T)`` real       ``(L,)``     ``t * C`` values
Image     ``(B, C, H, W)`` real    ``(H', W')`` ``ph * pw * C`` values
Tabular   ``(B, columns)`` real    ``(L,)``     1 value, and whether it is there
Tokens    ``(B, L)`` integers      ``(L,)``     an index below ``vocabulary``
========= ======================== ============ ==========================
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from einops import rearrange
from torch import Tensor

from metamae.arguments import is_whole
from metamae.errors import InputError

Batch: TypeAlias = Mapping[str, Tensor]
"""Input name -> tensor with the example axis first."""


class LabelledBatch(dict[str, Tensor]):
    """A batch whose labels travel beside its inputs, never among them.

    Example:
        >>> import torch
        >>> from metamae.inputs import LabelledBatch
        >>> batch = LabelledBatch({"row": torch.zeros(2, 6)}, labels=torch.tensor([0, 1]))
        >>> list(batch), batch.labels
        (['row'], tensor([0, 1]))
    """

    def __init__(self, inputs: Mapping[str, Tensor], labels: Tensor) -> None:
        """See the class."""
        super().__init__(inputs)
        self.labels = labels


def to_device(batch: Batch, device: torch.device | str) -> Batch:
    """The same batch on another device, with its labels if it has some."""
    moved = {name: x.to(device, non_blocking=True) for name, x in batch.items()}
    if isinstance(batch, LabelledBatch):
        return LabelledBatch(moved, batch.labels.to(device, non_blocking=True))
    return moved


def _check_divides(what: str, size: int, by: int) -> None:
    if not is_whole(size) or not is_whole(by) or size < 1 or by < 1 or size % by:
        raise InputError(
            f"expected {what} to be a positive multiple of the token size, got {size!r} and "
            f"{by!r}; choose a token size that divides it, or crop the data"
        )


def _check_positive(name: str, **sizes: int) -> None:
    for what, size in sizes.items():
        if not is_whole(size) or size < 1:
            raise InputError(f"expected {what} >= 1 of input {name!r}, got {size!r}")


def _check_tensor(name: str, x: object) -> None:
    if not isinstance(x, Tensor):
        raise InputError(f"expected input {name!r} as a tensor, got {type(x).__name__}")


def _check_real(name: str, x: Tensor, shape: Sequence[int | None]) -> None:
    _check_tensor(name, x)
    expected = "(B, " + ", ".join("any" if s is None else str(s) for s in shape) + ")"
    fits = x.ndim == len(shape) + 1 and all(
        want is None or want == have for want, have in zip(shape, x.shape[1:], strict=True)
    )
    if not fits:
        raise InputError(f"expected input {name!r} of shape {expected}, got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise InputError(
            f"expected input {name!r} to be floating point, got {x.dtype}; convert with .float()"
        )


class InputSpec(Protocol):
    """What the rest of the package needs of a kind of input; the kinds below are examples of it.

    Tokens of a kind that is none of these hold real numbers: they are embedded by a linear map, and
    their loss is the mean squared error. ``docs/extending.md`` adds a kind.
    """

    @property
    def name(self) -> str:
        """Name of the input in a batch."""
        ...

    @property
    def grid(self) -> tuple[int, ...]:
        """Tokens along each axis; neighbours on the grid touch."""
        ...

    @property
    def tokens(self) -> int:
        """Tokens per example, ``L``: the product of the grid."""
        ...

    @property
    def values(self) -> int:
        """Numbers that predict one token."""
        ...

    def check(self, x: Tensor) -> None:
        """Raise ``InputError`` unless a batch can be cut into tokens."""
        ...

    def patchify(self, x: Tensor) -> Tensor:
        """Cut a batch into tokens ``(B, L, values)``; of symbols, indices ``(B, L)``."""
        ...

    def grid_of(self, x: Tensor) -> tuple[int, ...]:
        """Grid of an actual batch, which may be shorter or longer than in pretraining."""
        ...

    def describe_token(self) -> str:
        """What has to be equal for an encoder to read other data of this kind, in words."""
        ...


Inputs: TypeAlias = tuple[InputSpec, ...]


@dataclass(frozen=True, kw_only=True)
class Signal:
    """A multichannel series ``(B, channels, length)``; a token is ``token_length`` steps.

    Example:
        >>> import torch
        >>> from metamae.inputs import Signal
        >>> spec = Signal(name="watch", channels=6, length=128, token_length=4)
        >>> spec.tokens, spec.values, spec.patchify(torch.zeros(2, 6, 128)).shape
        (32, 24, torch.Size([2, 32, 24]))
    """

    name: str
    channels: int
    length: int
    token_length: int
    channel_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check sizes."""
        _check_positive(self.name, channels=self.channels)
        _check_divides(f"the length of signal {self.name!r}", self.length, self.token_length)

    @property
    def grid(self) -> tuple[int, ...]:
        """Number of tokens along time."""
        return (self.length // self.token_length,)

    @property
    def tokens(self) -> int:
        """Tokens per example."""
        return self.grid[0]

    @property
    def values(self) -> int:
        """Values per token."""
        return self.channels * self.token_length

    def check(self, x: Tensor) -> None:
        """Raise ``InputError`` unless a batch can be cut into tokens; any length passes."""
        _check_real(self.name, x, (self.channels, None))
        _check_divides(f"the length of signal {self.name!r}", x.shape[-1], self.token_length)

    def patchify(self, x: Tensor) -> Tensor:
        """Cut ``(B, C, T)`` into ``(B, L, t * C)``, time-major inside a token."""
        self.check(x)
        return rearrange(x, "b c (l t) -> b l (t c)", t=self.token_length)

    def unpatchify(self, tokens: Tensor) -> Tensor:
        """Inverse of :meth:`patchify`."""
        return rearrange(tokens, "b l (t c) -> b c (l t)", t=self.token_length)

    def grid_of(self, x: Tensor) -> tuple[int, ...]:
        """Grid of an actual batch, which may be shorter or longer than in pretraining."""
        return (x.shape[-1] // self.token_length,)

    def describe_token(self) -> str:
        """Channels and steps."""
        return f"signal of {self.channels} channels, {self.token_length} steps a token"


@dataclass(frozen=True, kw_only=True)
class Image:
    """An image ``(B, channels, height, width)``, square or not; a token is one patch.

    Example:
        >>> import torch
        >>> from metamae.inputs import Image
        >>> spec = Image(name="image", channels=3, height=8, width=4, patch=(2, 2))
        >>> spec.grid, spec.patchify(torch.zeros(1, 3, 8, 4)).shape
        ((4, 2), torch.Size([1, 8, 12]))
    """

    name: str
    channels: int
    height: int
    width: int
    patch: tuple[int, int]
    channel_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check sizes."""
        _check_positive(self.name, channels=self.channels)
        if not isinstance(self.patch, tuple) or len(self.patch) != 2:
            raise InputError(f"expected patch (height, width) of {self.name!r}, got {self.patch!r}")
        _check_divides(f"the height of image {self.name!r}", self.height, self.patch[0])
        _check_divides(f"the width of image {self.name!r}", self.width, self.patch[1])

    @property
    def grid(self) -> tuple[int, ...]:
        """Patches along height and width."""
        return (self.height // self.patch[0], self.width // self.patch[1])

    @property
    def tokens(self) -> int:
        """Tokens per example."""
        return math.prod(self.grid)

    @property
    def values(self) -> int:
        """Values per token."""
        return self.channels * self.patch[0] * self.patch[1]

    def check(self, x: Tensor) -> None:
        """Raise ``InputError`` unless a batch can be cut into patches; any size passes."""
        _check_real(self.name, x, (self.channels, None, None))
        _check_divides(f"the height of image {self.name!r}", x.shape[-2], self.patch[0])
        _check_divides(f"the width of image {self.name!r}", x.shape[-1], self.patch[1])

    def patchify(self, x: Tensor) -> Tensor:
        """Cut ``(B, C, H, W)`` into ``(B, H' W', ph * pw * C)``, row-major."""
        self.check(x)
        ph, pw = self.patch
        return rearrange(x, "b c (h p) (w q) -> b (h w) (p q c)", p=ph, q=pw)

    def unpatchify(self, tokens: Tensor) -> Tensor:
        """Inverse of :meth:`patchify` for images of this specification's size."""
        (h, _), (ph, pw) = self.grid, self.patch
        return rearrange(tokens, "b (h w) (p q c) -> b c (h p) (w q)", h=h, p=ph, q=pw)

    def grid_of(self, x: Tensor) -> tuple[int, ...]:
        """Grid of an actual batch."""
        return (x.shape[-2] // self.patch[0], x.shape[-1] // self.patch[1])

    def describe_token(self) -> str:
        """Channels and patch."""
        return f"image of {self.channels} channels, patches of {self.patch[0]} x {self.patch[1]}"


@dataclass(frozen=True, kw_only=True)
class Tabular:
    """A row of numbers ``(B, columns)``; a token is one column, all embedded by one map.

    With ``gaps`` a cell may be missing, which NaN says. A token is then the pair (value, 1), or
    (0, 0) where nothing is there: whatever stood in a missing cell, the network sees the same, and
    :func:`scored` leaves the value out of every loss.

    Example:
        >>> import torch
        >>> from metamae.inputs import Tabular
        >>> Tabular(name="row", columns=10).patchify(torch.zeros(2, 10)).shape
        torch.Size([2, 10, 1])
        >>> row = torch.tensor([[2.0, float("nan")]])
        >>> Tabular(name="row", columns=2, gaps=True).patchify(row)
        tensor([[[2., 1.],
                 [0., 0.]]])
    """

    name: str
    columns: int
    column_names: tuple[str, ...] = ()
    gaps: bool = False

    def __post_init__(self) -> None:
        """Check sizes."""
        _check_positive(self.name, columns=self.columns)

    @property
    def grid(self) -> tuple[int, ...]:
        """Number of columns."""
        return (self.columns,)

    @property
    def tokens(self) -> int:
        """Tokens per example."""
        return self.columns

    @property
    def values(self) -> int:
        """Values per token: its number, and with gaps whether it is there."""
        return 2 if self.gaps else 1

    def check(self, x: Tensor) -> None:
        """Raise ``InputError`` unless a batch has these columns."""
        _check_real(self.name, x, (self.columns,))

    def patchify(self, x: Tensor) -> Tensor:
        """Give every column a token: ``(B, columns)`` to ``(B, columns, 1)``, or 2 with gaps."""
        self.check(x)
        if not self.gaps:
            return x.unsqueeze(-1)
        there = ~x.isnan()
        return torch.stack([torch.where(there, x, torch.zeros_like(x)), there.to(x.dtype)], dim=-1)

    def unpatchify(self, tokens: Tensor) -> Tensor:
        """Inverse of :meth:`patchify`; NaN where a token says rather that nothing is there."""
        if not self.gaps:
            return tokens.squeeze(-1)
        value, there = tokens.unbind(-1)
        return torch.where(there > 0.5, value, torch.full_like(value, torch.nan))

    def grid_of(self, x: Tensor) -> tuple[int, ...]:
        """Grid of an actual batch."""
        return (x.shape[-1],)

    def describe_token(self) -> str:
        """Number of columns: each has its own position."""
        return f"{self.columns} columns" + (", some cells missing" if self.gaps else "")


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """A sequence of symbols ``(B, length)`` given as indices below ``vocabulary``.

    Example:
        >>> import torch
        >>> from metamae.inputs import Tokens
        >>> spec = Tokens(name="dna", length=4, vocabulary=4, alphabet=("A", "C", "G", "T"))
        >>> spec.patchify(torch.tensor([[0, 3, 2, 1]], dtype=torch.uint8))
        tensor([[0, 3, 2, 1]])
    """

    name: str
    length: int
    vocabulary: int
    alphabet: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check sizes, and that the alphabet, when given, names every symbol."""
        _check_positive(self.name, length=self.length, vocabulary=self.vocabulary)
        if self.alphabet and len(self.alphabet) != self.vocabulary:
            raise InputError(
                f"expected {self.vocabulary} names in the alphabet of {self.name!r}, "
                f"got {len(self.alphabet)}"
            )

    @property
    def grid(self) -> tuple[int, ...]:
        """Length of the sequence."""
        return (self.length,)

    @property
    def tokens(self) -> int:
        """Tokens per example."""
        return self.length

    @property
    def values(self) -> int:
        """Logits that predict one token, one for every symbol."""
        return self.vocabulary

    def check(self, x: Tensor) -> None:
        """Raise ``InputError`` unless a batch holds indices; their range is checked on the CPU."""
        _check_tensor(self.name, x)
        if x.ndim != 2:
            raise InputError(f"expected input {self.name!r} of shape (B, L), got {tuple(x.shape)}")
        if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
            raise InputError(f"expected input {self.name!r} to hold integers, got {x.dtype}")
        # On an accelerator this would wait for the device; data are checked before they go there.
        if x.device.type == "cpu" and x.numel() and not torch.compiler.is_compiling():
            low, high = int(x.min()), int(x.max())
            if low < 0 or high >= self.vocabulary:
                raise InputError(
                    f"expected symbols from 0 to {self.vocabulary - 1} in input {self.name!r}, "
                    f"got {low if low < 0 else high}"
                )

    def patchify(self, x: Tensor) -> Tensor:
        """Check the indices and return them as int64 ``(B, L)``."""
        self.check(x)
        return x.long()

    def grid_of(self, x: Tensor) -> tuple[int, ...]:
        """Grid of an actual batch."""
        return (x.shape[-1],)

    def describe_token(self) -> str:
        """Vocabulary, and the names of its symbols."""
        digest = hashlib.sha256(repr(self.alphabet).encode()).hexdigest()[:8]
        alphabet = digest if self.alphabet else "-"
        return f"symbols of a vocabulary of {self.vocabulary} (alphabet {alphabet})"


def scored(spec: InputSpec, prediction: Tensor, target: Tensor) -> Tensor:
    """Predictions ``(B, N, values)`` in which the value of a missing cell counts as met.

    No loss and no gradient comes from it: nothing is learned from a number that nobody measured.

    Example:
        >>> import torch
        >>> from metamae.inputs import Tabular, scored
        >>> row = Tabular(name="row", columns=1, gaps=True)
        >>> scored(row, torch.tensor([[[7.0, 0.5]]]), row.patchify(torch.tensor([[torch.nan]])))
        tensor([[[0.0000, 0.5000]]])
    """
    if not isinstance(spec, Tabular) or not spec.gaps:
        return prediction
    there = target[..., 1:] > 0  # (B, N, 1)
    keep = torch.cat([there, torch.ones_like(there)], dim=-1)
    return torch.where(keep, prediction, target.to(prediction.dtype))


def check_inputs(inputs: Inputs) -> None:
    """Raise ``InputError`` unless there is at least one input and their names differ."""
    names = [spec.name for spec in inputs]
    if not names or len(set(names)) < len(names):
        raise InputError(f"expected one or more inputs with different names, got {names}")


def check_batch(inputs: Inputs, batch: Batch, *, exact: bool = False) -> int:
    """Check that a batch holds every input with one batch size, and return that size.

    With ``exact`` the token grids must equal those of ``inputs``; otherwise other lengths pass
    (features of longer or shorter series).

    Raises:
        InputError: a missing or unknown input, differing batch sizes, or another grid.
    """
    names = [spec.name for spec in inputs]
    if not isinstance(batch, Mapping) or sorted(batch) != sorted(names):
        found = list(batch) if isinstance(batch, Mapping) else type(batch).__name__
        raise InputError(f"expected a batch with inputs {names}, got {found}")
    for spec in inputs:
        spec.check(batch[spec.name])
    sizes = {name: batch[name].shape[0] for name in names}
    # A traced batch has no number of examples yet, and comparing it would fix one.
    traced = torch.compiler.is_compiling()
    if not traced and (len(set(sizes.values())) != 1 or min(sizes.values()) < 1):
        raise InputError(f"expected one batch size of at least 1 for all inputs, got {sizes}")
    for spec in inputs:
        if exact and spec.grid_of(batch[spec.name]) != spec.grid:
            raise InputError(
                f"expected input {spec.name!r} with token grid {spec.grid}, got "
                f"{spec.grid_of(batch[spec.name])} from shape {tuple(batch[spec.name].shape)}"
            )
    return sizes[names[0]]


def check_transfer(source: Inputs, target: Inputs, *, names: tuple[str, str]) -> None:
    """Refuse to use an encoder on data it cannot read: other kinds of input, or other tokens.

    Lengths and image sizes may differ, what one token holds may not.

    Args:
        source: Inputs the encoder was trained on.
        target: Inputs it is to read.
        names: Names of the two data sets, for the error.

    Raises:
        InputError: naming what differs.

    Example:
        >>> from metamae.inputs import Signal, check_transfer
        >>> long = Signal(name="signal", channels=6, length=128, token_length=4)
        >>> short = Signal(name="signal", channels=6, length=100, token_length=4)
        >>> check_transfer((long,), (short,), names=("sensors", "basic_motions"))
    """
    ours, theirs = ([spec.describe_token() for spec in inputs] for inputs in (source, target))
    if ours != theirs:
        raise InputError(
            f"expected inputs as those of {names[0]!r} ({'; '.join(ours)}), which the encoder was "
            f"trained on, got those of {names[1]!r} ({'; '.join(theirs)}); probe on a data set "
            "with equal tokens"
        )
