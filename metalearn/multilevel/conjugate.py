"""Inverse curvature in the shape of Betty's hypergradient functions.

Betty 0.2.1's conjugate gradients build their second direction from the old residual instead of the
new one and so are wrong from the second iteration on; a test shows it. Its Neumann series fails on
parameters that a loss ignores where several levels are learned through.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from metalearn.errors import NonFiniteLossError

Vector = list[Tensor]


def indirect_gradient(
    vector: Sequence[Tensor], curr: Any, prev: Any, sync: bool
) -> list[Tensor | None] | None:
    r"""The indirect gradient :math:`-\nabla^2_{\lambda w} L\, H^{-1} v`, by conjugate gradients.

    Args:
        vector: :math:`v`, in the order of the parameters of ``curr``.
        curr: The level that was solved.
        prev: The level whose parameters enter its loss.
        sync: Whether to add the result to the gradients of ``prev`` instead of returning it.
    """
    iterations, name = curr.config.cg_iterations, curr.level.name

    def inverse(curvature: Callable[[Vector], Vector], v: Vector) -> Vector:
        solution, curr.residual = solve(curvature, v, iterations, name)
        return solution

    return _indirect(inverse, vector, curr, prev, sync)


def neumann_gradient(
    vector: Sequence[Tensor], curr: Any, prev: Any, sync: bool
) -> list[Tensor | None] | None:
    """The same by the Neumann series of :class:`~metalearn.multilevel.Neumann`."""
    iterations, step = curr.config.neumann_iterations, curr.config.neumann_alpha
    return _indirect(lambda h, v: series(h, v, iterations, step), vector, curr, prev, sync)


def _indirect(
    inverse: Callable[[Callable[[Vector], Vector], Vector], Vector],
    vector: Sequence[Tensor],
    curr: Any,
    prev: Any,
    sync: bool,
) -> list[Tensor | None] | None:
    above = prev.trainable_parameters()
    loss = curr.training_step_exec(curr.cur_batch)
    # What the loss ignores has no curvature and no mixed derivative: it takes no part.
    found = torch.autograd.grad(
        loss, curr.trainable_parameters(), create_graph=True, allow_unused=True
    )
    bent = [
        (parameter, slope, part)
        for parameter, slope, part in zip(curr.trainable_parameters(), found, vector, strict=True)
        if slope is not None and slope.requires_grad
    ]
    parameters, slopes = [p for p, _, _ in bent], [s for _, s, _ in bent]

    def curvature(p: Vector) -> Vector:
        rows = torch.autograd.grad(slopes, parameters, p, retain_graph=True, allow_unused=True)
        return [torch.zeros_like(x) if r is None else r for r, x in zip(rows, p, strict=True)]

    mixed: Sequence[Tensor | None] = [None] * len(above)
    if bent:
        solution = inverse(curvature, [part for *_, part in bent])
        mixed = torch.autograd.grad(slopes, above, solution, allow_unused=True)
    result = [None if part is None else -part for part in mixed]
    if not sync:
        return [torch.zeros_like(p) if g is None else g for p, g in zip(above, result, strict=True)]
    prev.set_grads(above, result)
    return None


def series(
    curvature: Callable[[Vector], Vector], vector: Vector, iterations: int, step: float
) -> Vector:
    r"""The sum :math:`a \sum_{k \le K} (I - aH)^k v`.

    Example:
        >>> import torch
        >>> from metalearn.multilevel.conjugate import series
        >>> series(lambda p: [2 * p[0]], [torch.ones(1)], 40, 0.25)
        [tensor([0.5000])]
    """
    term, total = vector, vector
    for _ in range(iterations):
        term = [t - step * h for t, h in zip(term, curvature(term), strict=True)]
        total = [t + whole for t, whole in zip(term, total, strict=True)]
    return [step * whole for whole in total]


def solve(
    curvature: Callable[[Vector], Vector], vector: Vector, iterations: int, name: str
) -> tuple[Vector, float]:
    r"""Solve :math:`H x = v` by conjugate gradients from :math:`x = 0`; also what is left of it.

    The second result is :math:`\lVert v - H x \rVert / \lVert v \rVert`. Stops early at a residual
    of exactly zero.

    Raises:
        NonFiniteLossError: a direction without positive curvature.

    Example:
        >>> import torch
        >>> from metalearn.multilevel.conjugate import solve
        >>> scale = torch.tensor([2.0, 4.0])
        >>> solution, left = solve(lambda p: [scale * p[0]], [torch.ones(2)], 2, "weights")
        >>> solution, left < 1e-6
        ([tensor([0.5000, 0.2500])], True)
    """
    solution = [torch.zeros_like(part) for part in vector]
    residual = [part.clone() for part in vector]
    direction, size = residual, _dot(residual, residual)
    start = size
    for _ in range(iterations):
        if size == 0:
            break
        bent = curvature(direction)
        along = _dot(direction, bent)
        if not along > 0:
            raise NonFiniteLossError(
                f"expected positive curvature of the loss of level {name!r}, got "
                f"{float(along):.3g} along a direction of conjugate gradients; nothing was updated "
                "above it. Take fewer iterations, add a quadratic penalty to that loss, or use "
                "darts, which needs no curvature"
            )
        step = size / along
        solution = _add(solution, step, direction)
        residual = _add(residual, -step, bent)
        size, before = _dot(residual, residual), size
        direction = _add(residual, size / before, direction)
    return solution, float((size / start).sqrt()) if start > 0 else 0.0


def _dot(one: Vector, other: Vector) -> Tensor:
    total = torch.stack([(a * b).sum() for a, b in zip(one, other, strict=True)]).sum()
    return total


def _add(one: Vector, factor: Tensor, other: Vector) -> Vector:
    return [a + factor * b for a, b in zip(one, other, strict=True)]
