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
from typing import Protocol

import torch
from torch import Tensor

from metalearn.errors import MetalearnError
from metalearn.inner import InnerLoop, Record, in_transform


@dataclass(frozen=True)
class Refinement:
    """What a policy returns: the refined leaves, a record per step, the loop it ran."""

    leaves: list[Tensor]
    records: list[Record]
    inner: InnerLoop


class GradientPolicy(Protocol):
    """Runs an inner loop and owns the question of what is differentiated."""

    @property
    def needs_second_derivative(self) -> bool:
        """Whether the graph it leaves holds derivatives of gradients."""
        ...

    def refine(self, inner: InnerLoop, leaves: Sequence[Tensor]) -> Refinement:
        """Run the loop."""
        ...


@dataclass(frozen=True)
class Unrolled:
    r"""Exact: differentiates through every inner step, as if the loop were written out.

    For one step :math:`z' = z - \alpha \nabla_z L(z; \theta)` the outer gradient is

    .. math::
        \frac{dz'}{d\theta} = \Big(I - \alpha \nabla^2_{zz} L\Big)\frac{dz}{d\theta}
            - \alpha \nabla^2_{z\theta} L ,

    applied to :math:`\partial L_{out} / \partial z'` by automatic differentiation of the gradient,
    never by forming a matrix (paper, section 2.2, Eq. 2). Memory grows with the number of steps.

    Example:
        >>> import torch
        >>> from metalearn import LatentAdapter, Unrolled
        >>> adapter = LatentAdapter(0.25, steps=2, differentiation=Unrolled())
        >>> z = torch.ones(1, 1, requires_grad=True)
        >>> adapter(z, lambda z: z.square().sum(1)).latent.sum().backward()
        >>> z.grad  # (1 - 2 * 0.25) ** 2
        tensor([[0.2500]])
    """

    needs_second_derivative = True

    def refine(self, inner: InnerLoop, leaves: Sequence[Tensor]) -> Refinement:
        """See :class:`GradientPolicy`."""
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


def run(inner: InnerLoop, leaves: Sequence[Tensor], *, exact: Sequence[bool]) -> Refinement:
    """The plain loop; ``exact[t]`` says whether step ``t`` is differentiated through."""
    current, state, records = list(leaves), inner.update.initial_state(leaves), []
    for number in range(inner.steps):
        step = inner.step(current, state, number, create_graph=exact[number])
        current, state = step.leaves, step.state
        records.append(step.record)
    return Refinement(current, records, inner)


def refuse_transforms(policy: object) -> None:
    """Policies with a backward pass of their own cannot be traced.

    Raises:
        MetalearnError: under ``torch.compile`` or a ``torch.func`` transform.
    """
    if in_transform():
        raise MetalearnError(
            f"expected a policy that can be traced, got {policy} under torch.compile or "
            "torch.func; use Unrolled(), Truncated() or FirstOrder() there"
        )
