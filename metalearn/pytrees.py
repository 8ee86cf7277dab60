"""Latents as pytrees: the one place that touches torch's pytree functions.

A *latent* is a tensor, or any nesting of dicts, lists, tuples and named tuples of tensors.
Every leaf has the task axis first: shape ``(B, ...)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias, cast

from torch import Tensor
from torch.utils import _pytree

from metalearn.errors import LatentError

Latent: TypeAlias = (
    "Tensor | dict[str, Latent] | list[Latent] | tuple[Latent, ...]"  # any pytree of tensors
)
Structure: TypeAlias = "_pytree.TreeSpec | type[Tensor] | type[list[Tensor]]"


def flatten(latent: Latent) -> tuple[list[Tensor], Structure]:
    """Split a latent into its tensors and its structure."""
    # A tensor, and a list as of a module's parameters, need no walk; it costs more than a step's
    # kernels on small latents.
    if isinstance(latent, Tensor):
        return [latent], Tensor
    if type(latent) is list and all(isinstance(leaf, Tensor) for leaf in latent):
        return cast("list[Tensor]", [*latent]), list
    return _pytree.tree_flatten(latent)


def unflatten(leaves: Sequence[Tensor], structure: Structure) -> Latent:
    """Inverse of :func:`flatten`."""
    if structure is Tensor:
        return leaves[0]
    if structure is list:
        return [*leaves]
    latent: Latent = _pytree.tree_unflatten(list(leaves), cast(_pytree.TreeSpec, structure))
    return latent


def detach(latent: Latent) -> Latent:
    """The same values, cut off from the graph."""
    leaves, structure = flatten(latent)
    return unflatten([leaf.detach() for leaf in leaves], structure)


def flat_tasks(leaf: Tensor) -> Tensor:
    """``(B, ...)`` as ``(B, n)``; unlike a reshape, also for no tasks."""
    return leaf.flatten(1) if leaf.ndim > 1 else leaf.unsqueeze(1)


def check_latent(latent: Latent) -> tuple[list[Tensor], Structure, int]:
    """Validate a latent; return its leaves, its structure and the number of tasks ``B``.

    Raises:
        LatentError: no leaves, a leaf that is not a floating-point tensor, a leaf without a
            task axis, or leaves that disagree on the number of tasks.
    """
    leaves, structure = flatten(latent)
    if not leaves:
        raise LatentError(
            "expected a latent with at least one tensor, got an empty pytree; "
            "pass a tensor of shape (B, ...) or a pytree of such tensors"
        )
    for position, leaf in enumerate(leaves):
        if not isinstance(leaf, Tensor):
            raise LatentError(
                f"expected every leaf of the latent to be a tensor, got {type(leaf).__name__} at "
                f"leaf {position}; convert it with torch.as_tensor or leave it out of the latent"
            )
        if not leaf.is_floating_point():
            raise LatentError(
                f"expected floating-point latents, got {leaf.dtype} at leaf {position}; "
                "gradient steps need real values: convert it with .float()"
            )
        if leaf.ndim == 0:
            raise LatentError(
                f"expected the task axis first, shape (B, ...), got a scalar at leaf {position}; "
                "add the axis with .unsqueeze(0) for a single task"
            )
    tasks = leaves[0].shape[0]
    if len(leaves) > 1 and any(leaf.shape[0] != tasks for leaf in leaves):
        raise LatentError(
            "expected all leaves to share the first (task) axis, got shapes "
            f"{[tuple(leaf.shape) for leaf in leaves]}; "
            "give every leaf the shape (B, ...), expanding shared ones over the tasks"
        )
    return leaves, structure, tasks
