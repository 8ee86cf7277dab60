"""torch's own optimisers as inner update rules, made differentiable by `higher`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import higher
import torch
from torch import Tensor

from metalearn.checks import in_transform
from metalearn.errors import MetalearnError
from metalearn.steps.rules import in_dtype_of

_DIFFERENTIABLE: dict[Any, Any] = {
    torch.optim.SGD: higher.optim.DifferentiableSGD,
    torch.optim.Adam: higher.optim.DifferentiableAdam,
}
_OPTIONS: dict[Any, set[str]] = {
    torch.optim.SGD: {"momentum", "dampening", "nesterov", "weight_decay"},
    torch.optim.Adam: {"betas", "eps", "weight_decay", "amsgrad"},
}
_REFUSED = {
    "AdamW": "higher has no differentiable version of it; use Adam with weight_decay",
    "RMSprop": "higher's version warns of wrong gradients at zero; use Adam",
    "LBFGS": "it evaluates the loss several times a step; use Implicit() for long inner loops",
}


class TorchOptimiser:
    r"""An inner step taken by ``torch.optim.SGD`` or ``torch.optim.Adam``, differentiably.

    The step size of the adapter is the optimiser's learning rate, so that it can be learned. All
    of the optimiser's arithmetic is elementwise: tasks never mix. Adam's first step has length
    :math:`\alpha` in every coordinate and a derivative of about zero in the gradient, so it needs
    more than one step to learn anything from second-order terms.

    ``higher`` adds Adam's epsilon to the root of the second moment before its bias is corrected,
    torch after: with the default of 1e-8 the two moves differ by up to about 1e-6 of the step
    where gradients are of order one, and more where they are tiny. A smaller ``eps`` closes the
    gap.

    Args:
        kind: ``torch.optim.SGD`` or ``torch.optim.Adam``.
        options: The optimiser's other arguments: ``momentum``, ``betas``, ``weight_decay``, ...

    Raises:
        ValueError: any other optimiser, with the reason; a learning rate among the options.

    Example:
        >>> import torch
        >>> from metalearn import LatentAdapter, TorchOptimiser
        >>> adapter = LatentAdapter(0.1, steps=2, update=TorchOptimiser(torch.optim.Adam))
        >>> adapter(torch.zeros(1, 1), lambda z: 3 * z.sum(1)).latent
        tensor([[-0.2000]])
    """

    def __init__(self, kind: Callable[..., torch.optim.Optimizer], **options: Any) -> None:
        """See the class."""
        name = getattr(kind, "__name__", repr(kind))
        if kind not in _DIFFERENTIABLE:
            reason = _REFUSED.get(name, "it has no tested differentiable version")
            raise ValueError(f"expected torch.optim.SGD or Adam, got {name}: {reason}")
        if "lr" in options:
            raise ValueError("expected no lr: the adapter's step_size is the learning rate")
        unknown = sorted(set(options) - _OPTIONS[kind])
        if unknown:
            raise ValueError(
                f"expected options of {name} among {', '.join(sorted(_OPTIONS[kind]))}, got "
                f"{', '.join(unknown)}: higher does not know them and would ignore them"
            )
        self.kind, self.name, self.options = kind, name, options
        # Checks the options now rather than in the first step.
        kind([torch.zeros(1, requires_grad=True)], lr=1.0, **options)

    def initial_state(self, leaves: Sequence[Tensor]) -> list[dict[str, Any]]:
        """Empty statistics of every leaf."""
        return [{} for _ in leaves]

    def __call__(
        self,
        leaves: Sequence[Tensor],
        gradients: Sequence[Tensor],
        sizes: Sequence[Tensor | float],
        state: list[dict[str, Any]],
    ) -> tuple[list[Tensor], list[dict[str, Any]]]:
        """One step; the given state is left as it was."""
        if in_transform():
            raise MetalearnError(
                "expected an update rule that can be traced, got an optimiser of torch under "
                "torch.compile or torch.func; use GradientDescent or Momentum there"
            )
        moved, following = [], []
        for leaf, gradient, size, statistics in zip(leaves, gradients, sizes, state, strict=True):
            optimiser = self._optimiser(statistics)
            (result,) = optimiser.step(
                torch.ones((), requires_grad=True),  # its gradient is replaced by ours
                params=[leaf],
                override={"lr": [in_dtype_of(leaf, size)]},
                grad_callback=lambda _, gradient=gradient: [gradient],
            )
            moved.append(result)
            following.append(dict(optimiser.state[0][0]))
        return moved, following

    def _optimiser(self, statistics: dict[str, Any]) -> Any:
        """A fresh differentiable optimiser for one leaf that continues from ``statistics``."""
        stand_in = torch.zeros(1, requires_grad=True)
        template = self.kind([stand_in], lr=1.0, **self.options)
        optimiser = _DIFFERENTIABLE[self.kind](template, [stand_in])
        optimiser.state[0][0] = copy.copy(statistics)
        return optimiser

    def __repr__(self) -> str:
        """Constructor call."""
        options = "".join(f", {name}={value!r}" for name, value in self.options.items())
        return f"TorchOptimiser({self.name}{options})"
