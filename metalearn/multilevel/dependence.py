r"""Which loss depends on which level's parameters: looked at, not assumed.

Let levels :math:`1 \dots n` have parameters :math:`w_k` and losses :math:`L_k`. A change of
:math:`w_n` moves the solutions of those levels whose loss it enters, and reaches :math:`L_n`
through every chain of losses that reads them:

.. math::
    \frac{dL_n}{dw_n} = \nabla_{w_n} L_n + \sum_{n > k_1 > \dots > k_m}
    \nabla_{k_1} L_n\; \frac{dw_{k_1}}{dw_{k_2}} \cdots \frac{dw_{k_m}}{dw_n} .

A chain counts if each of its losses depends on the parameters of the next. Several inner problems
side by side are chains of one level each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metalearn.errors import DisconnectedLossError, MultilevelError


@dataclass(frozen=True)
class Dependence:
    """What the losses of a level and of those below it depend on.

    Attributes:
        level: Name of the level that learns through the others.
        below: Names of the levels below it, lowest first.
        reads: For each of them, and for the level, the levels below it whose parameters its loss
            depends on.
        entered: Levels whose loss depends on the parameters of the level.
    """

    level: str
    below: Sequence[str]
    reads: Mapping[str, set[str]]
    entered: set[str]

    def chains(self, influenced: Sequence[str]) -> list[list[str]]:
        """All chains from below the level down to one that it influences.

        Raises:
            DisconnectedLossError: two consecutive levels of which the upper's loss does not depend
                on the lower's parameters, or a level that is not influenced.
            MultilevelError: a level that is influenced and not named.

        Example:
            >>> from metalearn.multilevel.dependence import Dependence
            >>> reads = {"a": set(), "b": {"a"}, "top": {"a", "b"}}
            >>> Dependence("top", ["a", "b"], reads, {"a"}).chains(["a"])
            [['a'], ['b', 'a']]
        """
        self._refuse_unread(influenced)
        self._refuse_not_entered(influenced)
        self._refuse_unnamed(influenced)
        return [chain for chain in self._walk(self.level) if chain[-1] in influenced]

    def _walk(self, name: str) -> list[list[str]]:
        """Every chain that begins below a level."""
        found = []
        for lower in self.below:
            if lower in self.reads[name]:
                found += [[lower], *([lower, *chain] for chain in self._walk(lower))]
        return found

    def _refuse_unread(self, influenced: Sequence[str]) -> None:
        """Every level from the lowest that is influenced upwards has to be read by one above."""
        reached = {name for chain in self._walk(self.level) for name in chain}
        upper = self.level
        for name in reversed(self.below[min(map(self.below.index, influenced)) :]):
            if name not in reached:
                raise _disconnected(
                    upper,
                    name,
                    f"then nothing that happens to level {name!r} reaches level {self.level!r}: "
                    "read its module inside the loss (not detached, not copied), or leave out the "
                    "level",
                )
            upper = name

    def _refuse_not_entered(self, influenced: Sequence[str]) -> None:
        for name in influenced:
            if name not in self.entered:
                raise _disconnected(
                    name,
                    self.level,
                    "read them inside the loss (not detached, not copied), or name another level "
                    "in `influences`",
                )

    def _refuse_unnamed(self, influenced: Sequence[str]) -> None:
        reached = {name for chain in self._walk(self.level) for name in chain}
        if unnamed := sorted((self.entered & reached) - set(influenced)):
            raise MultilevelError(
                f"expected `influences` to name every level whose loss depends on the parameters "
                f"of level {self.level!r}, got {', '.join(influenced)} without "
                f"{', '.join(unnamed)}, whose part of the hypergradient would be lost; add it, or "
                "detach the parameters inside that loss"
            )


def depends(
    loss: Tensor, parameters: Mapping[str, Sequence[Tensor]], *, keep_graph: bool = False
) -> set[str]:
    """Names of those sets of parameters of which a loss depends on one at least.

    Example:
        >>> import torch
        >>> from metalearn.multilevel.dependence import depends
        >>> one, other = torch.ones(1, requires_grad=True), torch.ones(1, requires_grad=True)
        >>> depends(one.square().sum(), {"one": [one], "other": [other]})
        {'one'}
    """
    flat = [(name, parameter) for name, some in parameters.items() for parameter in some]
    if not flat:
        return set()
    found = torch.autograd.grad(
        loss, [parameter for _, parameter in flat], allow_unused=True, retain_graph=keep_graph
    )
    return {name for (name, _), one in zip(flat, found, strict=True) if one is not None}


def _disconnected(upper: str, lower: str, remedy: str) -> DisconnectedLossError:
    return DisconnectedLossError(
        f"expected the loss of level {upper!r} to depend on the parameters of level {lower!r}, it "
        f"depends on none of them; {remedy}"
    )
