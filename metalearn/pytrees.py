"""Latents as pytrees: the one place that touches torch's pytree functions.

A *latent* is a tensor, or any nesting of dicts, lists, tuples and named tuples of tensors.
Every leaf has the task axis first: shape ``(B, ...)``.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict, namedtuple
from collections.abc import Iterator, Sequence
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


def leaf_names(structure: Structure, leaves: int = 1) -> tuple[str, ...]:
    """The path to every leaf, in the order in which :func:`flatten` gives them.

    Args:
        structure: What :func:`flatten` found.
        leaves: Number of leaves, which a plain list does not tell.

    Example:
        >>> import torch
        >>> from metalearn.pytrees import flatten, leaf_names
        >>> leaf_names(flatten({"mean": torch.ones(1), "maps": [torch.ones(1)] * 2})[1])
        ("['mean']", "['maps'][0]", "['maps'][1]")
    """
    if structure is Tensor:
        return ("",)
    if structure is list:
        return tuple(f"[{number}]" for number in range(leaves))
    return tuple(_paths(cast(_pytree.TreeSpec, structure)))


def _paths(structure: _pytree.TreeSpec) -> Iterator[str]:
    """Depth first, as leaves are flattened."""
    if structure.is_leaf():
        yield ""
        return
    # Where a structure is not asked for its children, by the attribute that this replaced.
    children = structure.children() if hasattr(structure, "children") else structure.children_specs
    for key, child in zip(_keys(structure), children, strict=True):
        for path in _paths(child):
            yield key + path


def _keys(structure: _pytree.TreeSpec) -> list[str]:
    """How each child of a node is reached; by its number where its kind has no names."""
    kind, context = structure.type, structure.context
    if kind is dict or kind is OrderedDict:
        return [f"[{key!r}]" for key in context]
    if kind is defaultdict:
        return [f"[{key!r}]" for key in context[1]]
    if names := getattr(kind if kind is not namedtuple else context, "_fields", ()):
        return [f".{name}" for name in names]
    return [f"[{number}]" for number in range(structure.num_children)]


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
