"""A step size that is held where a refinement takes a given share off the support loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from metalearn.checks import refuse_tensors
from metalearn.errors import NonFiniteLossError
from metalearn.steps.sizes import StepSize


class HeldStepSize(StepSize):
    r"""A step size for which refinement takes off a given share of the support loss.

    A raw step size means another thing in every unit of the data: gradients of squared errors grow
    with the square of the scale. What it takes off does not. A slow controller moves the size by

    .. math::
        \log \alpha \leftarrow \log \alpha + \rho\, e, \qquad
        e = \mathrm{clip}(1 - r(\alpha) / r^*,\, -2,\, 1), \qquad
        r(\alpha) = 1 - \frac{\sum_b L_b(z'_b)}{\sum_b L_b(z_b)}

    each time that :meth:`observe` looks at a batch; by :math:`e = -1` where half the size takes off
    more, for then it overshoots; and not at all where the losses are 0 before any step, of which no
    share can be taken off. So it comes to rest where :math:`r^*` is met, or, where no
    size takes off so much, a little beyond the best one. Between two observations it is a constant
    without a gradient of its own, and part of the module's state.

    Args:
        initial: Where the size starts; positive.
        reduction: :math:`r^*`, the share to take off, in (0, 1).
        rate: :math:`\rho`, in (0, 1]: the share of a relative error that one observation mends.

    Raises:
        ValueError: a value out of its range.

    Example:
        >>> import torch
        >>> from metalearn import HeldStepSize, LatentAdapter
        >>> size = HeldStepSize(0.001, reduction=0.5, rate=0.5)
        >>> adapter = LatentAdapter(size)
        >>> for _ in range(60):
        ...     size.observe(adapter, torch.ones(2, 1), lambda z: 50 * z.square().sum(1))
        >>> round(float(size(0, 0)), 5)  # (1 - 100 a)^2 = 0.5
        0.00293
    """

    log_value: Tensor

    def __init__(self, initial: float, reduction: float, *, rate: float = 0.2) -> None:
        """See the class."""
        super().__init__()
        refuse_tensors("HeldStepSize", initial=initial, reduction=reduction, rate=rate)
        if not 0 < initial < math.inf:
            raise ValueError(f"expected a positive, finite initial step size, got {initial}")
        if not 0 < reduction < 1:
            raise ValueError(f"expected a reduction between 0 and 1, got {reduction}")
        if not 0 < rate <= 1:
            raise ValueError(f"expected a rate in (0, 1], got {rate}")
        self.reduction, self.rate, self.share = float(reduction), float(rate), 1.0
        self.register_buffer("log_value", torch.tensor(initial, dtype=torch.float32).log())

    def forward(self, step: int, leaf: int) -> Tensor:
        """The size, the same for all steps and leaves, a scalar."""
        return self.log_value.exp() * self.share

    @torch.no_grad()
    def observe(
        self, adapter: Callable[..., Any], latent: Any, support_loss: Callable[..., Tensor]
    ) -> None:
        """Refine a batch by the whole size and by half of it, and move the size.

        Args:
            adapter: The :class:`~metalearn.LatentAdapter` whose step size this is.
            latent: What it refines.
            support_loss: Of a latent, ``(B,)``.

        Raises:
            NonFiniteLossError: losses that are not finite before any step. After it they count as
                gone too far.
        """
        before, whole = self._losses(adapter, latent, support_loss, 1.0)
        if not before.isfinite():  # of an adapter that does not look
            raise NonFiniteLossError(
                f"expected finite support losses before any step, got a sum of {before.item()}; "
                "look at the data and the weights"
            )
        _, half = self._losses(adapter, latent, support_loss, 0.5)
        error = 1 - (1 - whole / before) / self.reduction
        overshoots = (half < whole) | ~whole.isfinite()
        error = torch.where(overshoots, -1.0, error.clamp(-2.0, 1.0))
        error = torch.where(before == 0, 0.0, error)
        self.log_value += self.rate * error.to(self.log_value)

    def _losses(
        self,
        adapter: Callable[..., Any],
        latent: Any,
        support_loss: Callable[..., Tensor],
        share: float,
    ) -> tuple[Tensor, Tensor]:
        """Sums of the losses before and after refinement by a share of the size."""
        self.share = share
        try:
            losses = adapter(latent, support_loss, final_loss=True).losses.double()
        except NonFiniteLossError:
            before = support_loss(latent).double().sum()
            if not before.isfinite():
                raise
            return before, before.new_tensor(math.inf)  # it went too far
        finally:
            self.share = 1.0
        return losses[0].sum(), losses[-1].sum()

    def extra_repr(self) -> str:
        """Show the target and where it stands."""
        value = math.exp(float(self.log_value))
        return f"{value:.4g}, reduction={self.reduction}, rate={self.rate}"
