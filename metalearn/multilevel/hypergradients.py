r"""Hypergradients: how a change of the outer parameters moves the solution of an inner level.

Let :math:`w` be the inner parameters, :math:`L(w, \lambda)` the inner loss, :math:`F(w, \lambda)`
the outer one and :math:`v = \nabla_w F`. The total derivative of the outer loss is

.. math:: \frac{dF}{d\lambda} = \nabla_\lambda F + \left(\frac{dw}{d\lambda}\right)^\top v .

The classes below differ in the second term only. They hold settings; Betty does the work.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import ClassVar

from metalearn.errors import MultilevelError


@dataclass(frozen=True, kw_only=True)
class Hypergradient:
    """Base of the ways to take a hypergradient.

    Attributes:
        name: Name under which Betty and a configuration know it.
        exact_inverse: Whether it works with second derivatives of the inner loss; such a level
            may not itself sit above another level.
    """

    name: ClassVar[str]
    exact_inverse: ClassVar[bool] = False

    def betty_fields(self) -> dict[str, float]:
        """The fields of Betty's ``Config`` that differ from :data:`NEUTRAL`."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Darts(Hypergradient):
    r"""One step of plain gradient descent at rate 1 (DARTS, Liu et al. 2019).

    .. math::
        \left(\frac{dw}{d\lambda}\right)^\top v = -\nabla^2_{\lambda w} L\, v \approx
        -\frac{\nabla_\lambda L(w + \epsilon v) - \nabla_\lambda L(w - \epsilon v)}{2\epsilon},
        \qquad \epsilon = \frac{\texttt{perturbation}}{\lVert v \rVert}

    The inverse curvature is taken as the identity, so the direction is that of one unrolled step
    and the length is off by the inner learning rate: use an outer optimiser that does not mind,
    Adam for instance. Where parameter groups have different rates, :math:`v` is multiplied by each
    group's rate over the largest. Two first-order passes; no second derivative is needed.

    Args:
        perturbation: Length of the perturbation of ``w``. The error is of its second order plus
            rounding over it.

    Example:
        >>> from metalearn.multilevel.hypergradients import Darts
        >>> Darts(perturbation=1e-3).name
        'darts'
    """

    name: ClassVar[str] = "darts"
    perturbation: float = 0.01

    def __post_init__(self) -> None:
        """Check the range."""
        _require_positive("Darts", "perturbation", self.perturbation)

    def betty_fields(self) -> dict[str, float]:
        """See the base class."""
        return {"darts_alpha": self.perturbation}


@dataclass(frozen=True, kw_only=True)
class Sama(Hypergradient):
    r"""One step of the inner level's own optimiser (SAMA, Choe et al. 2023).

    :class:`Darts` after :math:`v` was multiplied by the derivative of the update :math:`u` with
    respect to the gradient :math:`g`: for SGD that of each parameter group (rate, dampening, look
    ahead) over the largest, so the identity where groups are alike, and for Adam and AdamW, element
    by element with the moments :math:`m, s` *before* the step,

    .. math::
        \frac{\partial u}{\partial g} \approx \eta\,
        \frac{(1-\beta_1) \beta_2 s - \beta_1 (1-\beta_2) g m}{(\sqrt{s_{new}} + \epsilon)^3} .

    with each group's own :math:`\eta, \beta, \epsilon`. The correction of the moments' start enters
    relative to the largest: alike for all elements, it is left out.

    Args:
        perturbation: Length of the perturbation of ``w``, as in :class:`Darts`.

    Example:
        >>> from metalearn.multilevel.hypergradients import Sama
        >>> Sama()
        Sama(perturbation=0.01)
    """

    name: ClassVar[str] = "sama"
    perturbation: float = 0.01

    def __post_init__(self) -> None:
        """Check the range."""
        _require_positive("Sama", "perturbation", self.perturbation)

    def betty_fields(self) -> dict[str, float]:
        """See the base class."""
        return {"darts_alpha": self.perturbation}  # Betty's difference is that of darts


@dataclass(frozen=True, kw_only=True)
class Neumann(Hypergradient):
    r"""Inverse curvature by a Neumann series (Lorraine et al. 2020).

    .. math::
        \left(\frac{dw}{d\lambda}\right)^\top v = -\nabla^2_{\lambda w} L\;
        a \sum_{k=0}^{K} (I - a H)^k v, \qquad H = \nabla^2_{ww} L

    which tends to the exact :math:`-\nabla^2_{\lambda w} L\, H^{-1} v` at an inner optimum for
    :math:`0 < a < 2 / \lVert H \rVert`, and for finite :math:`K` is :math:`K + 1` unrolled steps of
    gradient descent at rate :math:`a`.

    Args:
        iterations: :math:`K`, the terms after the first.
        step_size: :math:`a`.

    Example:
        >>> from metalearn.multilevel.hypergradients import Neumann
        >>> Neumann(iterations=20, step_size=0.1).betty_fields()
        {'neumann_iterations': 20, 'neumann_alpha': 0.1}
    """

    name: ClassVar[str] = "neumann"
    exact_inverse: ClassVar[bool] = True
    iterations: int = 10
    step_size: float = 0.1

    def __post_init__(self) -> None:
        """Check the ranges."""
        _require_positive("Neumann", "step_size", self.step_size)
        _require_positive("Neumann", "iterations", self.iterations)

    def betty_fields(self) -> dict[str, float]:
        """See the base class."""
        return {"neumann_iterations": self.iterations, "neumann_alpha": self.step_size}


@dataclass(frozen=True, kw_only=True)
class ConjugateGradient(Hypergradient):
    r"""Inverse curvature by conjugate gradients (Pedregosa 2016; Rajeswaran et al. 2019).

    .. math::
        \left(\frac{dw}{d\lambda}\right)^\top v = -\nabla^2_{\lambda w} L\, x, \qquad
        \nabla^2_{ww} L\, x = v

    Exact at an inner optimum with positive definite curvature after as many iterations as ``w``
    has elements, usually far sooner; a direction without positive curvature is an error. Betty's
    own conjugate gradients are wrong from the second iteration on, so the recursion is ours
    (:mod:`metalearn.multilevel.conjugate`); Betty calls it. What is left of the system,
    :math:`\lVert v - H x \rVert / \lVert v \rVert`, is reported with the level above, as the term
    ``"residual"``.

    Args:
        iterations: Number of conjugate gradient steps.
        max_residual: Warn (:class:`~metalearn.ConvergenceWarning`) of what is left where it is
            more; ``inf`` for never. At 1 nothing is gained over a solution of zero.

    Example:
        >>> from metalearn.multilevel.hypergradients import ConjugateGradient
        >>> ConjugateGradient(iterations=5).name
        'cg'
    """

    name: ClassVar[str] = "cg"
    exact_inverse: ClassVar[bool] = True
    iterations: int = 5
    max_residual: float = 0.5

    def __post_init__(self) -> None:
        """Check the ranges."""
        _require_positive("ConjugateGradient", "iterations", self.iterations)
        if not self.max_residual > 0:
            raise MultilevelError(
                f"expected ConjugateGradient(max_residual=...) to be positive, or inf for no "
                f"warning, got {self.max_residual}"
            )

    def betty_fields(self) -> dict[str, float]:
        """See the base class."""
        return {"cg_iterations": self.iterations}


HYPERGRADIENTS: dict[str, type[Hypergradient]] = {
    kind.name: kind for kind in (Darts, Neumann, ConjugateGradient, Sama)
}
"""The classes by the name that a configuration uses."""

NEUTRAL: dict[str, float] = {
    "darts_alpha": 0.01,
    "sama_adam_alpha": 0.01,
    "neumann_iterations": 1,
    "neumann_alpha": 1.0,
    "cg_iterations": 1,
    "cg_alpha": 1.0,
}
"""What Betty is told about methods that are not in use."""

_REFUSED = {
    "unrolled": (
        "exact unrolling is not Betty's to do (its IterativeProblem is broken): put the inner loop "
        "into metalearn.LatentAdapter with Unrolled() or Checkpointed(), where a parameter dict "
        "is a latent (examples/maml_sine.py), or use Neumann, which is unrolling near an optimum"
    ),
    "reinforce": (
        "Betty's reinforce is empty: put the score function into the inner loss, as "
        "docs/multilevel.md does for mask ratios"
    ),
}


def resolve(method: str | Hypergradient) -> Hypergradient:
    """A method by its name, with default settings; an object is returned as it is.

    Raises:
        MultilevelError: an unknown name (the nearest is shown), or one that is refused.

    Example:
        >>> from metalearn.multilevel.hypergradients import resolve
        >>> resolve("cg")
        ConjugateGradient(iterations=5, max_residual=0.5)
    """
    if isinstance(method, Hypergradient):
        return method
    if method in HYPERGRADIENTS:
        return HYPERGRADIENTS[method]()
    names = ", ".join(HYPERGRADIENTS)
    if method in _REFUSED:
        raise MultilevelError(
            f"expected a hypergradient among {names}, got {method!r}: {_REFUSED[method]}"
        )
    matches = difflib.get_close_matches(str(method), HYPERGRADIENTS, n=1)
    hint = f"; did you mean {matches[0]!r}?" if matches else ""
    raise MultilevelError(f"expected a hypergradient among {names}, got {method!r}{hint}")


def _require_positive(owner: str, name: str, value: float) -> None:
    if not 0 < value < float("inf"):
        raise MultilevelError(f"expected {owner}({name}=...) to be positive, got {value}")
