r"""Which way one step of a level's optimiser moves its parameters, for `darts` and `sama`.

Both differentiate a single step :math:`w' = w - u(g)`, so a vector on :math:`w` is multiplied by
:math:`\partial u / \partial g`, a diagonal, before it meets the mixed derivative of the loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer


@dataclass(frozen=True)
class Step:
    """How a parameter was moved. A scheduler may change the group's rate right after."""

    group: dict[str, Any]
    rate: float
    gain: float


def steps_of(optimiser: Optimizer, parameters: Sequence[Tensor]) -> list[Step]:
    """How each parameter is about to be moved; to be asked before ``optimiser.step()``."""
    groups = _groups(optimiser)
    return [
        Step(
            group := groups[id(parameter)],
            rate=float(group["lr"]),
            gain=_gain(group, optimiser.state.get(parameter, {}))
            if isinstance(optimiser, SGD)
            else 1.0,
        )
        for parameter in parameters
    ]


def seen_gradients(optimiser: Optimizer, parameters: Sequence[Tensor]) -> list[Tensor | None]:
    """The gradients that moments are taken of: with weight decay, unless it is decoupled."""
    groups = _groups(optimiser)
    return [_seen(optimiser, parameter, groups[id(parameter)]) for parameter in parameters]


def _seen(optimiser: Optimizer, parameter: Tensor, group: dict[str, Any]) -> Tensor | None:
    if parameter.grad is None:
        return None
    decay, apart = group.get("weight_decay", 0.0), isinstance(optimiser, torch.optim.AdamW)
    if not decay or group.get("decoupled_weight_decay", apart):
        return parameter.grad.detach().clone()
    seen: Tensor = parameter.grad.detach() + decay * parameter.detach()
    return seen


def _groups(optimiser: Optimizer) -> dict[int, dict[str, Any]]:
    return {id(p): group for group in optimiser.param_groups for p in group["params"]}


def _gain(group: dict[str, Any], state: dict[str, Any]) -> float:
    """Derivative of SGD's direction in the gradient; its first buffer is the gradient itself."""
    momentum, damping = float(group["momentum"]), float(group["dampening"])
    started = state.get("momentum_buffer") is not None
    share = 1.0 - damping if momentum and started else 1.0
    return 1.0 + momentum * share if group["nesterov"] else share


def by_rates(vector: Sequence[Tensor], level: Any) -> list[Tensor]:
    """A step of gradient descent in which the rates of parameter groups stand to each other."""
    return _weighted(vector, [step.rate for step in level.steps_taken])


def by_update(vector: Sequence[Tensor], level: Any) -> list[Tensor]:
    r"""The derivative of the optimiser's own update, for SGD up to a common factor.

    Of Adam, whose bias correction matters only where parameters disagree about it,

    .. math::
        \frac{\partial u}{\partial g} \approx \eta\,
        \frac{(1-\beta_1) \beta_2 s - \beta_1 (1-\beta_2) g m}{(\sqrt{s_{new}} + \epsilon)^3} .
    """
    steps = level.steps_taken
    if isinstance(level.optimizer, SGD):
        return _weighted(vector, [step.rate * step.gain for step in steps])
    states = [level.optimizer.state.get(p, {}) for p in level.trainable_parameters()]
    corrections = [_correction(s, step.group) for s, step in zip(states, steps, strict=True)]
    largest = max((one for one in corrections if one is not None), default=1.0)
    # Without a gradient so far there is no moment, and no part in the direction.
    weighted = _weighted(vector, [largest if one is None else one for one in corrections])
    return [
        v * _adam_derivative(v, state, step) * step.rate
        for v, state, step in zip(weighted, states, steps, strict=True)
    ]


def _correction(state: dict[str, Any], group: dict[str, Any]) -> float | None:
    """Adam's bias correction of the ratio of its moments; ``None`` before the first step."""
    step, (beta1, beta2) = float(state.get("step", 0)), map(float, group["betas"])
    return float((1 - beta2**step) ** 0.5 / (1 - beta1**step)) if step else None


def _adam_derivative(v: Tensor, state: dict[str, Any], step: Step) -> Tensor:
    (beta1, beta2), eps = step.group["betas"], step.group["eps"]
    zero = torch.zeros_like(v)
    last = state.get("last_grad", zero)
    first, second = state.get("exp_avg", zero), state.get("exp_avg_sq", zero)
    first_before = (first - (1 - beta1) * last) / beta1 if beta1 != 0 else 0
    second_before = (second - (1 - beta2) * last * last) / beta2 if beta2 != 0 else 0
    scale = (1 - beta1) * beta2 * second_before - beta1 * (1 - beta2) * last * first_before
    derivative: Tensor = scale / (torch.sqrt(second) + eps) ** 3
    return derivative


def _weighted(vector: Sequence[Tensor], weights: Sequence[float]) -> list[Tensor]:
    """Relative to the largest weight; as it is if all are alike, zero rates included."""
    largest = max(weights)
    if largest <= 0 or min(weights) == largest:
        return list(vector)
    return [v * (weight / largest) for v, weight in zip(vector, weights, strict=True)]
