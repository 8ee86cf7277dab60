"""torch's own optimisers as inner update rules, made differentiable by `higher`."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from metalearn.checks import in_transform
from metalearn.errors import MetalearnError
from metalearn.norms import at_least_float32

_NUMBERS: dict[Any, set[str]] = {
    torch.optim.SGD: {"momentum", "dampening", "weight_decay"},
    torch.optim.Adam: {"betas", "eps", "weight_decay"},
}
_SWITCHES: dict[Any, set[str]] = {torch.optim.SGD: {"nesterov"}, torch.optim.Adam: {"amsgrad"}}
_REFUSED = {
    "AdamW": "higher has no differentiable version of it; use Adam with weight_decay",
    "RMSprop": "higher's version warns of wrong gradients at zero; use Adam",
    "LBFGS": "it evaluates the loss several times a step; use Implicit() for long inner loops",
}


class TorchOptimiser:
    r"""An inner step taken by ``torch.optim.SGD`` or ``torch.optim.Adam``, differentiably.

    The step size of the adapter is the optimiser's learning rate, so that it can be learned. All
    of the optimiser's arithmetic is elementwise: tasks never mix. It moves like torch's own, to
    rounding, with every option that is accepted; statistics are kept in float32 at least. Adam's
    first step has length :math:`\alpha` in every coordinate and a derivative of about zero in the
    gradient, so it needs more than one step to learn anything from second-order terms.

    ``momentum``, ``dampening``, ``weight_decay``, ``eps`` and the two ``betas`` may be tensors of
    one element, through which gradients flow. They stay yours: hand them to the outer optimiser,
    as the adapter does not count them among its parameters.

    ``higher`` takes the step. Adam's is written here: its epsilon is added to the root of the
    second moment before the bias of that is corrected, torch's after, which matters wherever
    gradients are as small as epsilon.

    Args:
        kind: ``torch.optim.SGD`` or ``torch.optim.Adam``.
        options: The optimiser's other arguments: ``momentum``, ``dampening``, ``nesterov`` and
            ``weight_decay``, or ``betas``, ``eps``, ``weight_decay`` and ``amsgrad``.

    Raises:
        ValueError: any other optimiser, with the reason; a learning rate or any other option; a
            value that torch refuses, now or, of a tensor, in a later step; a learned momentum of
            exactly 0, which would never be learned.

    Example:
        >>> import torch
        >>> from metalearn import LatentAdapter, TorchOptimiser
        >>> adapter = LatentAdapter(0.1, steps=2, update=TorchOptimiser(torch.optim.Adam))
        >>> adapter(torch.zeros(1, 1), lambda z: 3 * z.sum(1)).latent
        tensor([[-0.2000]])
    """

    def __init__(self, kind: Callable[..., torch.optim.Optimizer], **options: Any) -> None:
        """See the class."""
        self.name = getattr(kind, "__name__", repr(kind))
        if kind not in _NUMBERS:
            reason = _REFUSED.get(self.name, "it has no tested differentiable version")
            raise ValueError(f"expected torch.optim.SGD or Adam, got {self.name}: {reason}")
        if "lr" in options:
            raise ValueError("expected no lr: the adapter's step_size is the learning rate")
        known = _NUMBERS[kind] | _SWITCHES[kind]
        if unknown := sorted(set(options) - known):
            raise ValueError(
                f"expected options of {self.name} among {', '.join(sorted(known))}, got "
                f"{', '.join(unknown)}: it would not be obeyed"
            )
        if "betas" in options:
            options["betas"] = tuple(options["betas"])  # of a tensor, its elements
        for name, value in options.items():
            _refuse_other_tensors(name, value, switch=name in _SWITCHES[kind])
        self.kind, self.options = kind, options
        _differentiable()  # imports `higher` now rather than in the first step
        self._checked()

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
            after, statistics = self._step(leaf, at_least_float32(gradient), size, statistics)
            moved.append(after.to(leaf.dtype))
            following.append(statistics)
        return moved, following

    def _step(
        self, leaf: Tensor, gradient: Tensor, size: Tensor | float, statistics: dict[str, Any]
    ) -> tuple[Tensor, dict[str, Any]]:
        """One leaf moved, and its statistics."""
        whole = at_least_float32(leaf)
        rate = size.to(whole.dtype) if isinstance(size, Tensor) else size
        options = dict(self.options)
        if isinstance(decay := options.get("weight_decay"), Tensor):
            gradient = gradient + decay.reshape(()) * whole  # `higher` would leave out one of 0
            options["weight_decay"] = 0.0
        stand_in, template = self._checked()
        optimiser = _differentiable()[self.kind](template, [stand_in])
        optimiser.state[0][0] = copy.copy(statistics)
        (moved,) = optimiser.step(
            torch.ones((), requires_grad=True),  # its gradient is replaced by ours
            params=[whole],
            override={"lr": [rate], **{name: [_scalars(x)] for name, x in options.items()}},
            grad_callback=lambda _: [gradient],
        )
        return moved, dict(optimiser.state[0][0])

    def _checked(self) -> tuple[Tensor, torch.optim.Optimizer]:
        """An optimiser of torch itself for a stand-in: it refuses what is out of range."""
        stand_in = torch.zeros(1, requires_grad=True)
        numbers = {name: _number(value) for name, value in self.options.items()}
        momentum = self.options.get("momentum")
        if isinstance(momentum, Tensor) and momentum.requires_grad and numbers["momentum"] == 0:
            raise ValueError(
                "expected a learned momentum other than 0, got exactly 0, at which no buffer is "
                "kept and nothing is learned; start from a small positive value"
            )
        return stand_in, self.kind([stand_in], lr=1.0, **numbers)

    def __repr__(self) -> str:
        """Constructor call."""
        options = "".join(f", {name}={value!r}" for name, value in self.options.items())
        return f"TorchOptimiser({self.name}{options})"


def _refuse_other_tensors(name: str, value: Any, *, switch: bool) -> None:
    """Tensors are numbers: one element each, and never a switch."""
    for one in value if isinstance(value, tuple) else (value,):
        if not isinstance(one, Tensor):
            continue
        if switch or one.numel() != 1 or not one.is_floating_point():
            raise ValueError(
                f"expected {name} as {'True or False' if switch else 'numbers'}, got a tensor of "
                f"shape {tuple(one.shape)} and {one.dtype}; tensors of one floating-point element "
                "may stand for numbers, and are learned if they require a gradient"
            )


def _number(value: Any) -> Any:
    """The option as torch's constructor takes it."""
    if isinstance(value, tuple):
        return tuple(map(_number, value))
    return value.detach().item() if isinstance(value, Tensor) else value


def _scalars(value: Any) -> Any:
    """Tensors without axes, which promote no latent."""
    if isinstance(value, tuple):
        return tuple(map(_scalars, value))
    return value.reshape(()) if isinstance(value, Tensor) else value


@cache
def _differentiable() -> dict[Any, Any]:
    """The differentiable versions of `higher`, which is imported when it is first needed."""
    optim = importlib.import_module("higher.optim")
    adam = type("Adam", (optim.DifferentiableAdam,), {"_update": _update_adam})
    return {torch.optim.SGD: optim.DifferentiableSGD, torch.optim.Adam: adam}


def _update_adam(self: Any, grouped_gradients: list[list[Tensor]], **_: Any) -> None:
    """Adam's step of the one parameter, in the place of `higher`'s."""
    (group,), ((gradient,),) = self.param_groups, grouped_gradients
    (parameter,) = group["params"]
    self.state[0][0], group["params"][0] = _adam(parameter, gradient, self.state[0][0], group)


def _adam(
    parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]
) -> tuple[dict[str, Any], Tensor]:
    r"""Statistics and parameter after a step, as ``torch.optim.Adam`` takes it.

    .. math::
        m_t = \beta_1 m_{t-1} + (1 - \beta_1) g, \quad s_t = \beta_2 s_{t-1} + (1 - \beta_2) g^2,
        \quad z' = z - \frac{\alpha}{1 - \beta_1^t}
            \frac{m_t}{\sqrt{s_t} / \sqrt{1 - \beta_2^t} + \epsilon}
    """
    (beta1, beta2), step = group["betas"], state.get("step", 0) + 1
    zero = torch.zeros_like(parameter)
    if group["weight_decay"] != 0:
        gradient = gradient + group["weight_decay"] * parameter
    first = beta1 * state.get("exp_avg", zero) + (1 - beta1) * gradient
    second = beta2 * state.get("exp_avg_sq", zero) + (1 - beta2) * gradient.square()
    following = {"step": step, "exp_avg": first, "exp_avg_sq": second}
    if group["amsgrad"]:
        second = torch.maximum(state.get("max_exp_avg_sq", zero), second)
        following["max_exp_avg_sq"] = second
    # The root has no derivative at zero: none is taken there.
    moved = second > 0
    root = torch.where(moved, torch.where(moved, second, 1.0).sqrt(), 0.0)
    denominator = root / (1 - beta2**step) ** 0.5 + group["eps"]
    return following, parameter - group["lr"] / (1 - beta1**step) * first / denominator
