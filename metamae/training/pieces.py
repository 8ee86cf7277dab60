"""The loss of a batch that is computed in pieces: by several processes, one after the other, both.

A loss is a mean over examples, plus, of some methods, a function of rows of all of them: of
MetaMAE the contrast of its pooled latents. The mean is a sum over pieces. The function is taken of
all rows at once: those of other processes are gathered. Those of other pieces of the same process
are computed twice, as in GradCache (Gao et al. 2021): first without graphs, which gives the
function's gradient in every row; then piece by piece with a graph, into which that gradient flows.
Both are the same mathematics as the whole batch at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from metamae.inputs import Batch
from metamae.methods.method import Draw, Method
from metamae.training.ranks import Ranks

T = TypeVar("T")


@dataclass(frozen=True)
class Piece:
    """Some examples of a batch: which, what a method needs of the batch, and their draw."""

    rows: slice
    batch: Batch
    draw: Draw


@dataclass(frozen=True)
class Pieces:
    """A process's share of a batch, in pieces, and the draw of the whole batch."""

    pieces: tuple[Piece, ...]
    draw: Draw


class PieceResult(NamedTuple):
    """What a piece adds: a tuple, in which FSDP finds the tensors.

    Attributes:
        loss: To call ``backward()`` on. Sums over pieces, averaged over processes, have the
            gradient of the batch's loss.
        own: The piece's share of the part that is a mean over examples.
        terms: Shares of what that consists of.
        joint: The rest of the loss, and what it consists of, which are the whole batch's; where
            this piece is the one to compute it.
    """

    loss: Tensor
    own: Tensor
    terms: dict[str, Tensor]
    joint: tuple[Tensor, dict[str, Tensor]] | None = None


@dataclass(frozen=True)
class Cached:
    """The joint part of a loss at rows that are known, and its gradients there.

    Attributes:
        joint: Its value and terms.
        rows: Gradient in the rows of every piece, for each of the method's kinds of rows.
        parameters: Gradient in the method's joint parameters.
    """

    joint: tuple[Tensor, dict[str, Tensor]]
    rows: tuple[tuple[Tensor, ...], ...]
    parameters: tuple[Tensor, ...]


class PieceLoss(nn.Module):
    """The loss of one piece of a batch, as ``DistributedDataParallel`` needs it: by ``forward``.

    Args:
        method: Whose loss.
        ranks: The processes.
        batch_size: Examples of a batch, of all processes.
    """

    def __init__(self, method: Method[Any], ranks: Ranks, batch_size: int) -> None:
        """See the class."""
        super().__init__()
        self.method, self.ranks, self.batch_size = method, ranks, batch_size
        self.counts = ranks.counts(batch_size)

    def forward(
        self,
        piece: Piece,
        draw: Draw,
        gradients: Sequence[Tensor] | None = None,
        parameters: Sequence[Tensor] = (),
    ) -> PieceResult:
        """Loss of a piece.

        Args:
            piece: The piece.
            draw: Draw of the whole batch.
            gradients: What is cached of its rows; ``None`` where it is its process's only piece.
            parameters: Cached gradients of the joint parameters, in one of the pieces.
        """
        share = (piece.rows.stop - piece.rows.start) / self.batch_size
        parts = self.method.parts(piece.batch, piece.draw)
        terms = {name: term * share for name, term in parts.terms.items()}
        own = parts.own * share
        loss = own * self.ranks.size  # averaging divides by it
        if gradients is not None:
            # Values of no meaning, whose gradients are those of the joint part.
            loss = loss + _inner(parts.rows, gradients)
            if parameters:
                loss = loss + _inner(self.method.joint_parameters(), parameters)
            return PieceResult(loss, own.detach(), terms)
        if not parts.rows:
            return PieceResult(loss, own.detach(), terms)
        joint, joint_terms = self.method.joint(self.gathered(parts.rows), draw)
        return PieceResult(loss + joint, own.detach(), terms, (joint.detach(), joint_terms))

    def evaluate(self, action: Callable[[], T]) -> T:
        """What an action comes to that uses the method's weights outside of ``forward``.

        Weights that lie in shards are put together for it (:mod:`metamae.training.sharded`).
        """
        return action()

    def gathered(self, rows: Sequence[Tensor]) -> list[Tensor]:
        """Rows of all processes, every kind of them by one exchange."""
        if self.ranks.size == 1:
            return list(rows)
        flat = [one.reshape(len(one), -1) for one in rows]  # (b, ...) -> (b, w)
        joined = self.ranks.gather(torch.cat(flat, 1), self.counts)  # (B, sum of w)
        parts = joined.split([one.shape[1] for one in flat], 1)
        return [
            part.reshape(-1, *one.shape[1:]).to(one.dtype)
            for part, one in zip(parts, rows, strict=True)
        ]

    def cache(self, rows: Sequence[tuple[Tensor, ...]], draw: Draw) -> Cached:
        """The joint part at the rows of all pieces of this process, and its gradients.

        Args:
            rows: Of every piece, without graphs.
            draw: Draw of the whole batch.
        """
        leaves = [torch.cat(same).requires_grad_() for same in zip(*rows, strict=True)]
        parameters = self.method.joint_parameters()
        with torch.enable_grad():
            joint, terms = self.method.joint(self.gathered(leaves), draw)
            found = torch.autograd.grad(joint, [*leaves, *parameters])
        sizes = [len(piece[0]) for piece in rows]
        by_piece = zip(*(gradient.split(sizes) for gradient in found[: len(leaves)]), strict=True)
        return Cached((joint.detach(), terms), tuple(by_piece), found[len(leaves) :])


def _inner(tensors: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    products = ((x * g).sum().float() for x, g in zip(tensors, gradients, strict=True))
    return torch.stack(list(products)).sum()
