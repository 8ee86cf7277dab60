"""Step sizes: how far an inner step goes. Fixed, or learned by the outer optimiser."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from metalearn.checks import refuse_tensors
from metalearn.errors import LatentError
from metalearn.norms import at_least_float32
from metalearn.pytrees import Structure, leaf_names


class StepSize(nn.Module):
    """Base of step sizes. ``step_size(step, leaf)`` broadcasts against leaf number ``leaf``.

    Example:
        >>> from metalearn import StepSize
        >>> class Halving(StepSize):
        ...     def forward(self, step, leaf):
        ...         return 0.5**step
        >>> Halving()(step=2, leaf=0)
        0.25
    """

    def forward(self, step: int, leaf: int) -> Tensor | float:
        """Size of step number ``step`` (from 0) for leaf number ``leaf`` of the latent."""
        raise NotImplementedError

    def sizes(self, step: int, leaves: int) -> Sequence[Tensor | float]:
        """Sizes of step number ``step`` for all leaves."""
        return [self(step, leaf) for leaf in range(leaves)]

    def of_latent(
        self, step: int, leaves: Sequence[Tensor], structure: Structure
    ) -> Sequence[Tensor | float]:
        """Sizes of step number ``step`` for the leaves of a latent of this structure.

        Leaves are numbered as the latent holds them. A step size that tells them apart should do
        so by their names, :func:`metalearn.pytrees.leaf_names`, and override this method.
        """
        return self.sizes(step, len(leaves))


class NamedStepSize(StepSize):
    """Base of step sizes whose saved state knows the leaves that its sizes belong to by name.

    The order of the leaves may be another where the state is loaded.
    """

    names: tuple[str, ...] = ()
    """Of the leaves, in the order of the sizes; none where all leaves share one."""
    stored: ClassVar[str]
    """Name of the list of parameters that holds the sizes."""
    remedy: ClassVar[str]
    """What to do where a state is of leaves with other names."""

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.names:
            destination[f"{prefix}{self.stored}_names"] = list(self.names)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        key = prefix + self.stored
        saved = state_dict.pop(f"{key}_names", None)  # states of before the names go by place
        if saved is not None and self.names:
            if sorted(saved) != sorted(self.names):
                raise LatentError(
                    f"expected a state of step sizes for {_shown(self.names)}, got one for "
                    f"{_shown(saved)}; {self.remedy}"
                )
            keys = [f"{key}.{place}" for place in range(len(saved))]
            found = {name: state_dict[place] for name, place in zip(saved, keys, strict=True)}
            state_dict.update({k: found[name] for k, name in zip(keys, self.names, strict=True)})
        super()._load_from_state_dict(state_dict, prefix, *args)


class FixedStepSize(StepSize):
    """One constant for all steps, leaves and channels.

    Example:
        >>> from metalearn import FixedStepSize
        >>> FixedStepSize(0.5)(step=0, leaf=0)
        0.5
    """

    def __init__(self, value: float) -> None:
        """Raises ``ValueError`` unless ``value`` is a finite number that is not negative."""
        super().__init__()
        refuse_tensors("FixedStepSize", value=value)
        if not 0.0 <= value < float("inf"):
            raise ValueError(f"expected a finite step size >= 0, got {value}")
        self.value = float(value)

    def forward(self, step: int, leaf: int) -> float:
        """Return the constant."""
        return self.value

    def sizes(self, step: int, leaves: int) -> Sequence[float]:
        """The constant, without a call for each leaf."""
        return [self.value] * leaves

    def extra_repr(self) -> str:
        """Show the constant."""
        return f"{self.value}"


class LearnedStepSize(NamedStepSize):
    r"""A positive step size that the outer optimiser learns (Meta-SGD, Li et al. 2017).

    The parameter is its logarithm, :math:`\alpha = \exp(\beta)`, so every value stays positive and
    steps of the outer optimiser act on its relative size. It is computed in float32 at least.

    Args:
        initial: Value of every step size at the start; positive.
        channels: Size of the last axis for one step size per channel; ``None`` for a scalar. For
            a pytree latent whose leaves differ in width, a pytree of the same structure holding
            each leaf's width (``None`` for a scalar). Its leaves then find their step sizes by
            their names, ``['mean']`` or ``[0].scale``, in whatever order the latent holds them.
        steps: Number of inner steps for one step size per step; ``None`` to share it.

    Shape:
        ``log_value[leaf]`` is ``(steps or 1, channels or 1)``, in the order of ``channels``.

    Raises:
        ValueError: if ``initial`` is not positive and finite, a width or a number of steps is not
            a positive integer, or more steps are asked for than there are step sizes.
        LatentError: a latent whose leaves have other names than those of ``channels``, or
            another width.

    Example:
        >>> from metalearn import LearnedStepSize
        >>> size = LearnedStepSize(0.5, channels=4, steps=2)
        >>> size(step=1, leaf=0).shape
        torch.Size([4])
        >>> sum(p.numel() for p in size.parameters())
        8
    """

    stored = "log_value"
    remedy = "make LearnedStepSize with the `channels` it was saved with"

    def __init__(self, initial: float, *, channels: Any = None, steps: int | None = None) -> None:
        """See the class."""
        super().__init__()
        if not 0.0 < initial < float("inf"):
            raise ValueError(
                f"expected a positive, finite initial step size, got {initial}; "
                "a step size of exactly 0 cannot be learned: use a small positive value"
            )
        widths, structure = _pytree.tree_flatten(channels)
        if not widths or not all(width is None or _is_count(width) for width in widths):
            raise ValueError(f"expected positive channel counts, got {channels}")
        if steps is not None and not _is_count(steps):
            raise ValueError(f"expected steps as a positive number or None, got {steps}")
        self.shared = structure.is_leaf()
        self.names = () if self.shared else leaf_names(structure)
        self.widths: tuple[int | None, ...] = tuple(widths)
        self.steps = steps
        start = torch.tensor(initial).log()
        self.log_value = nn.ParameterList(
            nn.Parameter(start.repeat(steps or 1, width or 1)) for width in widths
        )

    def forward(self, step: int, leaf: int) -> Tensor:
        """Step sizes of one step, shape ``(channels or 1,)``."""
        if self.steps is not None and step >= self.steps:
            raise ValueError(
                f"expected at most {self.steps} inner steps (one learned size each), asked for "
                f"step {step + 1}; construct LearnedStepSize(steps=...) with as many as you take"
            )
        if not self.shared and leaf >= len(self.log_value):
            raise ValueError(
                f"expected a latent with {len(self.log_value)} leaves, asked for leaf {leaf + 1}; "
                "`channels` must have the structure of the latent"
            )
        value = self.log_value[0 if self.shared else leaf]
        chosen: Tensor = value[0 if self.steps is None else step]
        return at_least_float32(chosen).exp()

    def sizes(self, step: int, leaves: int) -> Sequence[Tensor | float]:
        """A size that all leaves share is computed once."""
        return [self(step, 0)] * leaves if self.shared else super().sizes(step, leaves)

    def of_latent(
        self, step: int, leaves: Sequence[Tensor], structure: Structure
    ) -> Sequence[Tensor | float]:
        """Sizes of step number ``step``, found by the names of the leaves."""
        if self.shared:
            for leaf in leaves:
                _refuse_other_width(leaf, self.widths[0], "the latent")
            return self.sizes(step, len(leaves))
        names = leaf_names(structure, len(leaves))
        if sorted(names) != sorted(self.names):
            raise LatentError(
                f"expected a latent with {len(self.names)} leaves, asked for leaf {len(names)}: "
                f"step sizes were made for {_shown(self.names)}, the latent has {_shown(names)}; "
                "`channels` must have the structure of the latent"
            )
        places = [self.names.index(name) for name in names]
        for leaf, place, name in zip(leaves, places, names, strict=True):
            _refuse_other_width(leaf, self.widths[place], f"leaf {name}")
        return [self(step, place) for place in places]

    def extra_repr(self) -> str:
        """Show which axes have sizes of their own."""
        return f"steps={self.steps}, shapes={[tuple(v.shape) for v in self.log_value]}"


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _refuse_other_width(leaf: Tensor, width: int | None, name: str) -> None:
    """Sizes per channel would broadcast over the task axis, or not at all."""
    if width is None or (leaf.ndim > 1 and leaf.shape[-1] == width):
        return
    raise LatentError(
        f"expected {name} to have {width} channels in its last axis after the task axis, as its "
        f"step sizes do, got shape {tuple(leaf.shape)}; `channels` is the size of the last axis"
    )


def _shown(names: Sequence[str]) -> str:
    return ", ".join(sorted(names))
