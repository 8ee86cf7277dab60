"""Task-contrastive learning: a task's latent and its refinement belong together."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metalearn.norms import at_least_float32


class MeanPool(nn.Module):
    """Mean over the token axis of ``(B, T, D)``, leaving out the first ``skip`` tokens.

    ``skip=1`` leaves out a class token. The result is ``(B, D)``.

    Raises:
        ValueError: a negative ``skip``, or a latent of another shape or without other tokens.

    Example:
        >>> import torch
        >>> from metalearn import MeanPool
        >>> MeanPool(skip=1)(torch.tensor([[[9.0], [1.0], [3.0]]]))
        tensor([[2.]])
    """

    def __init__(self, skip: int = 0) -> None:
        """See the class."""
        super().__init__()
        if not isinstance(skip, int) or skip < 0:
            raise ValueError(
                f"expected a number of tokens to leave out, 0 or more, got skip={skip}; it counts "
                "from the start"
            )
        self.skip = skip

    def forward(self, latent: Tensor) -> Tensor:
        """Pool ``(B, T, D)`` to ``(B, D)``."""
        if latent.ndim != 3 or latent.shape[1] <= self.skip:
            raise ValueError(
                f"expected a latent of shape (B, T, D) with more than {self.skip} tokens, "
                f"got {tuple(latent.shape)}"
            )
        return latent[:, self.skip :].mean(dim=1)

    def extra_repr(self) -> str:
        """Show the setting."""
        return f"skip={self.skip}"


class Projector(nn.Sequential):
    """Two-layer projection head with batch normalisation, ``(B, width)`` to ``(B, out)``.

    ``Linear(no bias) -> BatchNorm -> ReLU -> Linear(no bias)``. It is applied to each view on its
    own, so batch statistics are those of one view.

    Example:
        >>> import torch
        >>> from metalearn import Projector
        >>> Projector(width=16)(torch.randn(4, 16)).shape
        torch.Size([4, 128])
    """

    def __init__(self, width: int, hidden: int = 1024, out: int = 128) -> None:
        """See the class."""
        super().__init__(
            nn.Linear(width, hidden, bias=False),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Linear(hidden, out, bias=False),
        )


class TaskContrastiveLoss(nn.Module):
    r"""NT-Xent between amortised and refined latents (paper, section 2.2, Eq. 3-4).

    With :math:`h_b = p(\mathrm{pool}(z_b))`, :math:`h'_b = p(\mathrm{pool}(z'_b))`, cosine
    similarity :math:`s` and the set :math:`H` of all :math:`2B` projections,

    .. math::
        \ell(h, h') = -\log \frac{\exp(s(h, h')/\tau)}
            {\sum_{k \in H \setminus \{h\}} \exp(s(h, k)/\tau)}, \qquad
        L = \frac{1}{2B} \sum_b \ell(h_b, h'_b) + \ell(h'_b, h_b) .

    Negatives are the other tasks' rows of both views; gradients flow into both views.
    Similarities are computed in float32 at least, under autocast too. A row of zeros is similar to
    nothing (:func:`directions`). Under several processes ``gather=gather_rows`` makes batch
    statistics and negatives those of the joint batch; without it every rank contrasts its own rows,
    which is another loss: a warning says so.

    Args:
        projector: Maps pooled latents ``(B, D)`` to ``(B, P)``; ``nn.Identity()`` for none.
        temperature: :math:`\tau`, positive; 0.5 where none is given. No other term has one.
        term: Compares the projected views ``(B, P)`` by something else than NT-Xent:
            :func:`metalearn.vicreg`, :class:`metalearn.Isotropy`, or your own.
        pool: Maps a latent to ``(B, D)``; the mean over tokens by default.
        gather: Maps the pooled latents of a rank to those of all ranks:
            :func:`metalearn.gather_rows`, which does nothing in one process.

    Shape:
        both latents ``(B, T, D)`` with the default ``pool``; the result is a scalar.

    Raises:
        ValueError: a temperature that is not positive, or beside another term; fewer than two tasks
            (there would be no negatives), or views that disagree in shape.

    Warns:
        UserWarning: under several processes, without ``gather``.

    Example:
        >>> import torch
        >>> from metalearn import Projector, TaskContrastiveLoss
        >>> loss = TaskContrastiveLoss(Projector(8), temperature=0.5)
        >>> loss(torch.randn(4, 3, 8), torch.randn(4, 3, 8)).shape
        torch.Size([])
    """

    def __init__(
        self,
        projector: nn.Module,
        *,
        temperature: float | None = None,
        term: Callable[[Tensor, Tensor], Tensor] | None = None,
        pool: Callable[[Tensor], Tensor] | None = None,
        gather: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """See the class."""
        super().__init__()
        if temperature is not None and not temperature > 0:
            raise ValueError(f"expected a positive temperature, got {temperature}")
        if temperature is not None and term is not None:
            raise ValueError(
                f"expected no temperature beside a term of its own, got {temperature}: NT-Xent "
                "alone has one; leave out either"
            )
        self.projector = projector
        self.temperature = 0.5 if temperature is None else temperature
        self.term = term
        self.pool = MeanPool() if pool is None else pool
        self.gather = gather

    def forward(self, latent: Tensor, refined: Tensor) -> Tensor:
        """Loss of a batch of amortised latents and their refinements."""
        if self.gather is None:
            _warn_of_ranks()
        return self._compare(*(self._project(self._pooled(view)) for view in (latent, refined)))

    def compare(self, first: Tensor, second: Tensor) -> Tensor:
        """Loss of latents ``(B, D)`` that are pooled, and gathered where they have to be."""
        return self._compare(self._project(first), self._project(second))

    def _pooled(self, latent: Tensor) -> Tensor:
        pooled = self.pool(latent)
        return pooled if self.gather is None else self.gather(pooled)

    def _compare(self, first: Tensor, second: Tensor) -> Tensor:
        if first.shape != second.shape:
            raise ValueError(
                "expected both views to project to one shape, got "
                f"{tuple(first.shape)} and {tuple(second.shape)}"
            )
        if self.term is not None:
            return self.term(first, second)
        return _nt_xent(first, second, self.temperature)

    def _project(self, pooled: Tensor) -> Tensor:
        if pooled.ndim != 2 or len(pooled) < 2:
            raise ValueError(
                "expected pooled latents of shape (B, D) with B >= 2 tasks, got "
                f"{tuple(pooled.shape)}; a contrast needs other tasks as negatives: use a larger "
                "batch, or leave the contrast out"
            )
        projected: Tensor = self.projector(pooled)
        return projected

    def extra_repr(self) -> str:
        """Show the setting."""
        return f"temperature={self.temperature}" if self.term is None else f"term={self.term}"


def nt_xent(first: Tensor, second: Tensor, temperature: float | Tensor) -> Tensor:
    """NT-Xent of two aligned views ``(B, P)``: see :class:`TaskContrastiveLoss`.

    Warns:
        UserWarning: under several processes, whose rows are not gathered.

    Example:
        >>> import torch
        >>> from metalearn.contrast import nt_xent
        >>> one = torch.eye(2)  # orthogonal tasks, equal views: one positive, two zeros
        >>> round(nt_xent(one, one, 1.0).item(), 4)  # log(e + 2) - 1
        0.5514
    """
    _warn_of_ranks()
    return _nt_xent(first, second, temperature)


def _nt_xent(first: Tensor, second: Tensor, temperature: float | Tensor) -> Tensor:
    with torch.autocast(device_type=first.device.type, enabled=False):
        rows = directions(at_least_float32(torch.cat([first, second])))
        logits = rows @ rows.T / temperature
        itself = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
        logits = logits.masked_fill(itself, float("-inf"))
        positive = torch.arange(len(rows), device=rows.device).roll(len(first))
        return F.cross_entropy(logits, positive)


def directions(rows: Tensor) -> Tensor:
    r"""Rows ``(N, P)`` divided by their norms.

    A row of zeros, or one that is rounding noise beside the longest, has no direction. It is
    divided by the norm of the longest instead (by 1 if all are zeros), which leaves it at about
    zero, similar to nothing, with a gradient of the size of the others' by which it can grow.
    ``F.normalize`` would give it one of 1e12.

    Example:
        >>> import torch
        >>> from metalearn.contrast import directions
        >>> directions(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    numbers = torch.finfo(rows.dtype)
    peak = rows.detach().abs().amax()
    # Where squares would leave the range of the dtype, not elsewhere: bits stay as they are.
    extreme = (peak > numbers.max**0.4) | ((peak < numbers.tiny**0.4) & (peak > 0))
    rows = rows / torch.where(extreme, peak, 1.0)
    norms = rows.norm(dim=1, keepdim=True)
    longest = norms.detach().amax()
    longest = torch.where(longest > 0, longest, 1.0)
    return rows / torch.where(norms > numbers.eps * longest, norms, longest)


def _warn_of_ranks() -> None:
    """Every rank contrasts its own rows; silence would make the loss depend on their number."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return
    if (ranks := distributed.get_world_size()) > 1:
        warnings.warn(
            f"expected one process, got {ranks}: the contrast takes its negatives from the rows "
            "of its own rank, so loss and gradient are not those of the joint batch. Pass "
            "TaskContrastiveLoss(gather=metalearn.gather_rows), or train in one process for these; "
            "if negatives of each rank alone are meant, silence this by "
            'warnings.filterwarnings("ignore", message="expected one process")',
            UserWarning,
            stacklevel=3,
        )


# Said when it is traced: what torch.compiler.assume_constant_result sets, whose import of the
# compiler takes longer than that of torch.
_warn_of_ranks.__dict__["_dynamo_marked_constant"] = True
