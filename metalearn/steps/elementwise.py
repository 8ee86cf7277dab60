"""A learned step size for every element of a latent: Meta-SGD as published."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from metalearn.checks import refuse_tensors
from metalearn.errors import LatentError, SettingError
from metalearn.pytrees import Latent, Structure, flatten, leaf_names
from metalearn.steps.sizes import NamedStepSize


class ElementwiseStepSize(NamedStepSize):
    r"""A learned step size for every element of a latent (Meta-SGD, Li et al. 2017).

    .. math:: z_{t+1} = z_t - \alpha \circ \nabla_z L(z_t)

    with :math:`\alpha` of the shape of one task's latent. As published it is learned as it is, so
    elements may become negative: it learns direction and length of a step.
    :class:`~metalearn.LearnedStepSize` has positive sizes, of a channel each or of all.

    Args:
        initial: Where every size starts; finite and positive.
        like: The latent of one task, or what it is made of: tensors without the task axis, such as
            ``functional(module).params``.

    Shape:
        ``value[leaf]`` has the shape of that leaf of ``like``; leaves are found by their names.

    Raises:
        ValueError: an initial size that is not positive and finite.
        LatentError: a latent whose leaves have other names or shapes.

    Example:
        >>> import torch
        >>> from metalearn import ElementwiseStepSize, LatentAdapter
        >>> sizes = ElementwiseStepSize(0.5, torch.zeros(3))
        >>> adapter = LatentAdapter(sizes)
        >>> adapter(torch.zeros(2, 3), lambda z: z.sum(1)).latent.sum().backward()
        >>> sizes.value[0].grad  # two tasks, gradient 1
        tensor([-2., -2., -2.])
    """

    stored = "value"
    remedy = "make ElementwiseStepSize with the latent that it was saved with"

    def __init__(self, initial: float, like: Latent) -> None:
        """See the class."""
        super().__init__()
        refuse_tensors("ElementwiseStepSize", initial=initial)
        if not 0.0 < initial < float("inf"):
            raise ValueError(f"expected a positive, finite initial step size, got {initial}")
        leaves, structure = flatten(like)
        if not leaves:
            raise SettingError("expected tensors to have step sizes for, got an empty pytree")
        self.names = leaf_names(structure, len(leaves))
        self.value = nn.ParameterList(
            nn.Parameter(torch.full_like(leaf.detach(), initial)) for leaf in leaves
        )

    def forward(self, step: int, leaf: int) -> Tensor:
        """Sizes of leaf number ``leaf`` of ``like``, the same in every step."""
        size: Tensor = self.value[leaf]
        return size

    def of_latent(
        self, step: int, leaves: Sequence[Tensor], structure: Structure
    ) -> Sequence[Tensor | float]:
        """Sizes of the leaves, found by their names."""
        found: dict[str, Any] = dict(zip(self.names, self.value, strict=True))
        asked = dict(zip(leaf_names(structure, len(leaves)), leaves, strict=True))
        shapes = {name: tuple(size.shape) for name, size in found.items()}
        given = {name: tuple(leaf.shape[1:]) for name, leaf in asked.items()}
        if shapes != given:
            raise LatentError(
                f"expected a latent of the shapes that step sizes were made for, {shapes} after "
                f"the task axis, got {given}; make ElementwiseStepSize(initial, like) of this one"
            )
        return [found[name] for name in asked]

    def extra_repr(self) -> str:
        """Show the shapes."""
        return f"shapes={[tuple(value.shape) for value in self.value]}"
