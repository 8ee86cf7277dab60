r"""Gradient policies that differentiate the steps as they are written out.

The inner loop computes :math:`z_{t+1} = U(z_t, g_t)` with
:math:`g_t = \nabla_z L(z_t; \theta)`. A policy runs that loop and decides which derivatives of
:math:`g_t` an outer ``backward()`` sees, and when they are computed. Policies hold settings only,
so one object can be shared.

========================================= ======== ================== =========================
policy                                    exact    memory in steps    second derivatives needed
========================================= ======== ================== =========================
:class:`Unrolled`                         yes      grows              yes
:class:`~metalearn.Checkpointed`          yes      latents only       yes
:class:`Truncated`                        partly   grows up to ``k``  yes
:class:`FirstOrder`                       no       none               no
:class:`~metalearn.FiniteDifference`      to 1e-3  latents only       no
:class:`~metalearn.Implicit`              at optimum  none            yes
========================================= ======== ================== =========================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metalearn.inner import InnerLoop
from metalearn.policies.policy import Refinement, run


@dataclass(frozen=True)
class Unrolled:
    r"""Exact: differentiates through every inner step, as if the loop were written out.

    For one step :math:`z' = z - \alpha \nabla_z L(z; \theta)` the outer gradient is

    .. math::
        \frac{dz'}{d\theta} = \Big(I - \alpha \nabla^2_{zz} L\Big)\frac{dz}{d\theta}
            - \alpha \nabla^2_{z\theta} L ,

    applied to :math:`\partial L_{out} / \partial z'` by automatic differentiation of the gradient,
    never by forming a matrix (paper, section 2.2, Eq. 2). Memory grows with the number of steps.

    Args:
        recompute: Keep for the backward pass how to compute results of
            :func:`~metalearn.recomputed` and :func:`~metalearn.recomputed_gelu`, not the results:
            less memory and the same numbers. Not for losses that call ``torch.func`` inside, which
            torch does not allow there; one without such results is only slowed down.

    Example:
        >>> import torch
        >>> from metalearn import LatentAdapter, Unrolled
        >>> adapter = LatentAdapter(0.25, steps=2, differentiation=Unrolled())
        >>> z = torch.ones(1, 1, requires_grad=True)
        >>> adapter(z, lambda z: z.square().sum(1)).latent.sum().backward()
        >>> z.grad  # (1 - 2 * 0.25) ** 2
        tensor([[0.2500]])
    """

    recompute: bool = False
    needs_second_derivative = True

    def refine(self, inner: InnerLoop, leaves: Sequence[Tensor]) -> Refinement:
        """See :class:`GradientPolicy`."""
        inner.recompute = self.recompute
        return run(inner, leaves, exact=[torch.is_grad_enabled()] * inner.steps)


@dataclass(frozen=True)
class FirstOrder:
    r"""Treats every inner gradient as a constant: :math:`dz'/dz = I` (first-order MAML).

    The refined latent has the same value as with :class:`Unrolled`; only the outer gradient
    differs, by the terms in :math:`\nabla^2 L`. Cheapest, and works with kernels that have no
    second derivative.

    Example:
        >>> import torch
        >>> from metalearn import FirstOrder, LatentAdapter
        >>> adapter = LatentAdapter(0.25, steps=2, differentiation=FirstOrder())
        >>> z = torch.ones(1, 1, requires_grad=True)
        >>> adapter(z, lambda z: z.square().sum(1)).latent.sum().backward()
        >>> z.grad
        tensor([[1.]])
    """

    needs_second_derivative = False

    def refine(self, inner: InnerLoop, leaves: Sequence[Tensor]) -> Refinement:
        """See :class:`GradientPolicy`."""
        return run(inner, leaves, exact=[False] * inner.steps)


@dataclass(frozen=True)
class Truncated:
    r"""Exact through the last ``last`` steps, first-order through the ones before.

    With :math:`J_t = \partial z_{t+1} / \partial z_t` the outer gradient in the initial latent is
    :math:`J_{T-1} \cdots J_{T-k}`: earlier factors are replaced by the identity rather than by
    zero, so that an encoder still learns. ``Truncated(0)`` is :class:`FirstOrder`,
    ``Truncated(steps)`` is :class:`Unrolled`; memory grows with ``last`` only.

    Args:
        last: Number of steps at the end to differentiate, not negative.

    Example:
        >>> import torch
        >>> from metalearn import LatentAdapter, Truncated
        >>> adapter = LatentAdapter(0.25, steps=5, differentiation=Truncated(1))
        >>> z = torch.ones(1, 1, requires_grad=True)
        >>> adapter(z, lambda z: z.square().sum(1)).latent.sum().backward()
        >>> z.grad
        tensor([[0.5000]])
    """

    last: int
    needs_second_derivative = True

    def __post_init__(self) -> None:
        """Check the setting."""
        if self.last < 0:
            raise ValueError(f"expected a number of steps >= 0, got {self.last}")

    def refine(self, inner: InnerLoop, leaves: Sequence[Tensor]) -> Refinement:
        """See :class:`GradientPolicy`."""
        enabled = torch.is_grad_enabled()
        exact = [enabled and step >= inner.steps - self.last for step in range(inner.steps)]
        return run(inner, leaves, exact=exact)
