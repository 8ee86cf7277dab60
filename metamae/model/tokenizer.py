"""Tokenizer: a batch becomes embedded, positioned tokens ``(B, L, D)`` and raw targets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import lru_cache

import torch
from torch import Tensor, nn

from metamae.inputs import Batch, Inputs, InputSpec, Tokens, check_batch, check_inputs


def sincos_positions(grid: tuple[int, ...], width: int) -> Tensor:
    r"""Fixed sine-cosine positions of a token grid, float32 ``(L, width)``.

    1-D, position ``t``: :math:`[\sin(t w_0), \ldots, \cos(t w_0), \ldots]` with
    :math:`w_i = 10000^{-2i/width}`. 2-D: the first half of the channels encodes the column, the
    second half the row, each by the 1-D rule of half the width.

    Example:
        >>> from metamae.model.tokenizer import sincos_positions
        >>> sincos_positions((2,), 4)
        tensor([[0.0000, 0.0000, 1.0000, 1.0000],
                [0.8415, 0.0100, 0.5403, 0.9999]])
    """
    return _sincos_positions(grid, width).clone()


@lru_cache(maxsize=64)
def _sincos_positions(grid: tuple[int, ...], width: int) -> Tensor:
    if width % (2 * len(grid)):
        raise ValueError(
            f"expected a width divisible by {2 * len(grid)} for positions on a {len(grid)}-D grid, "
            f"got {width}"
        )
    # On the CPU whatever the default device: the table is cached.
    ranges = (torch.arange(size, device="cpu") for size in grid)
    axes = torch.meshgrid(*ranges, indexing="ij")
    share = width // len(grid)
    # axes is (row, column) for images: reversed, so that the column comes first.
    return torch.cat([_sincos(axis.flatten(), share) for axis in reversed(axes)], dim=1)


def _sincos(position: Tensor, width: int) -> Tensor:
    exponent = torch.arange(0, width, 2, dtype=torch.float64, device="cpu") / width
    angle = position.double().unsqueeze(1) * 10000.0**-exponent
    return torch.cat([angle.sin(), angle.cos()], dim=1).float()


class Tokenizer(nn.Module):
    """Embeds every input, adds positions, and joins the inputs along the token axis.

    Real tokens are embedded linearly, symbols by a lookup table. With several inputs a learned
    type vector tells them apart.

    Args:
        inputs: Specifications of the inputs, in the order in which their tokens are joined.
        width: Embedding size ``D``.
        content_scale: ``published``, or ``positions`` to multiply contents by
            :func:`content_factor`.

    Shape:
        ``forward(batch)`` is ``(B, L, D)`` with ``L`` the sum of the inputs' tokens.
        ``targets(batch)`` has per input ``(B, L_i, values)`` reals or ``(B, L_i)`` indices.

    Raises:
        InputError: a batch that does not fit the inputs.

    Example:
        >>> import torch
        >>> from metamae.inputs import Signal
        >>> from metamae.model.tokenizer import Tokenizer
        >>> spec = Signal(name="watch", channels=6, length=128, token_length=4)
        >>> Tokenizer((spec,), width=16)({"watch": torch.zeros(2, 6, 128)}).shape
        torch.Size([2, 32, 16])
    """

    def __init__(self, inputs: Inputs, width: int, content_scale: str = "published") -> None:
        """See the class."""
        super().__init__()
        check_inputs(inputs)
        self.inputs, self.width = inputs, width
        scaled = content_scale == "positions"
        self.factors = [content_factor(spec, width) if scaled else 1.0 for spec in inputs]
        self.embed = nn.ModuleList(_embedding(spec, width) for spec in inputs)
        for number, spec in enumerate(inputs):
            table = sincos_positions(spec.grid, width)
            self.register_buffer(f"positions_{number}", table, persistent=False)
        self.type_vectors = (
            nn.Parameter(torch.empty(len(inputs), width)) if len(inputs) > 1 else None
        )
        if self.type_vectors is not None:
            nn.init.normal_(self.type_vectors, std=0.02)

    def targets(self, batch: Batch) -> dict[str, Tensor]:
        """Raw tokens of a batch: what a decoder has to predict."""
        return {spec.name: spec.patchify(batch[spec.name]) for spec in self.inputs}

    def symbol_table(self, number: int) -> Tensor:
        """Embedding table ``(vocabulary, D)`` of token input ``number``, which its head shares."""
        table = self.embed[number]
        assert isinstance(table, nn.Embedding)
        return table.weight

    def forward(self, batch: Batch, visible: Sequence[Tensor] | None = None) -> Tensor:
        """Embedded tokens with positions; token grids may differ from pretraining's.

        With ``visible``, joint indices ``(B, S_i)`` per input, only these tokens are embedded.
        """
        check_batch(self.inputs, batch)
        joined, offset = [], 0
        for number, spec in enumerate(self.inputs):
            index = None if visible is None else visible[number] - offset
            joined.append(self._place(number, batch, self._content(number, batch, index), index))
            offset += spec.tokens
        return torch.cat(joined, dim=1)

    def contents(self, batch: Batch) -> Tensor:
        """Embedded tokens ``(B, L, D)`` without positions and types: what they hold."""
        check_batch(self.inputs, batch)
        return torch.cat([self._content(n, batch) for n in range(len(self.inputs))], dim=1)

    def place(self, contents: Tensor, batch: Batch) -> Tensor:
        """Add what a token's place alone decides, its position and type, to contents.

        ``place(contents(batch), batch)`` equals ``forward(batch)``. Methods that corrupt contents
        do so in between: a token that was zeroed still tells where it stands.
        """
        counts = [math.prod(spec.grid_of(batch[spec.name])) for spec in self.inputs]
        parts = contents.split(counts, dim=1)
        return torch.cat([self._place(n, batch, part) for n, part in enumerate(parts)], dim=1)

    def _content(self, number: int, batch: Batch, index: Tensor | None = None) -> Tensor:
        """Embedded tokens of one input; only those at ``index`` (B, S_i) where it is given."""
        spec = self.inputs[number]
        raw = spec.patchify(batch[spec.name])
        content: Tensor = self.embed[number](raw if index is None else select(raw, index))
        factor = self.factors[number]
        return content if factor == 1 else content * factor

    def _place(
        self, number: int, batch: Batch, content: Tensor, index: Tensor | None = None
    ) -> Tensor:
        spec = self.inputs[number]
        positions = self._positions(number, spec.grid_of(batch[spec.name]))
        placed = content + (positions if index is None else positions[index]).to(content)
        return placed if self.type_vectors is None else placed + self.type_vectors[number]

    def _positions(self, number: int, grid: tuple[int, ...]) -> Tensor:
        if grid == self.inputs[number].grid:
            table: Tensor = self.get_buffer(f"positions_{number}")
            return table
        return sincos_positions(grid, self.width)


def select(tokens: Tensor, rows: Tensor | slice) -> Tensor:
    """Tokens ``(B, L, ...)`` at a slice, or at indices ``(B, N)``: ``(B, N, ...)``."""
    if isinstance(rows, slice):
        return tokens[:, rows]
    if tokens.ndim == 2:
        return tokens.gather(1, rows)
    # Whole rows of a matrix: faster than a gather of single values, and more so in the
    # backward passes.
    size, length = tokens.shape[:2]
    first = torch.arange(size, device=rows.device).unsqueeze(1) * length
    chosen = tokens.reshape(size * length, -1).index_select(0, (rows + first).flatten())
    return chosen.view(size, rows.shape[1], -1)


def content_factor(spec: InputSpec, width: int) -> float:
    r"""What brings a token's content to the norm of its position.

    Positions have the norm :math:`\sqrt{D / 2}`. Under Xavier's weights the content of ``v``
    independent standardised values has a mean square norm of :math:`2 D v / (v + D)`, and a symbol
    of a vocabulary of ``v`` one of :math:`2 D / (v + D)`: with one value a token, a sixth of it.

    Example:
        >>> from metamae.inputs import Tabular
        >>> from metamae.model.tokenizer import content_factor
        >>> round(content_factor(Tabular(name="row", columns=10), 128), 2)  # sqrt(64 * 129 / 256)
        5.68
    """
    symbols = isinstance(spec, Tokens)
    values = spec.vocabulary if isinstance(spec, Tokens) else spec.values
    square = 2 * width * (1 if symbols else values) / (values + width)
    return math.sqrt(width / 2 / square)


def _embedding(spec: InputSpec, width: int) -> nn.Module:
    if isinstance(spec, Tokens):
        table = nn.Embedding(spec.vocabulary, width)
        nn.init.xavier_uniform_(table.weight)
        return table
    return xavier_linear(spec.values, width)


def xavier_linear(inputs: int, outputs: int, *, bias: bool = True) -> nn.Linear:
    """A linear map with Xavier-uniform weights and zero bias."""
    layer = nn.Linear(inputs, outputs, bias=bias)
    nn.init.xavier_uniform_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def at_least_float32(values: Tensor) -> Tensor:
    """Half precision to float32; others as they are."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def without_autocast(values: Tensor) -> AbstractContextManager[object]:
    """A context in which products of similarities keep their precision."""
    return torch.autocast(device_type=values.device.type, enabled=False)
