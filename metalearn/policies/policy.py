"""The contract of gradient policies, and the plain loop that most of them run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from metalearn.checks import in_transform
from metalearn.errors import MetalearnError
from metalearn.inner import InnerLoop, Record
from metalearn.result import SolverReport


class Refinement(NamedTuple):
    """What a policy returns: the refined leaves, a record per step, the loop it ran."""

    leaves: list[Tensor]
    records: list[Record]
    inner: InnerLoop
    report: SolverReport | None = None  # of a policy that solves for something


class GradientPolicy(Protocol):
    """Runs an inner loop and owns the question of what is differentiated."""

    @property
    def needs_second_derivative(self) -> bool:
        """Whether the graph it leaves holds derivatives of gradients."""
        ...

    def refine(self, inner: InnerLoop, leaves: Sequence[Tensor]) -> Refinement:
        """Run the loop."""
        ...


def run(inner: InnerLoop, leaves: Sequence[Tensor], *, exact: Sequence[bool]) -> Refinement:
    """The plain loop; ``exact[t]`` says whether step ``t`` is differentiated through."""
    current, state, records = list(leaves), inner.update.initial_state(leaves), []
    for number in range(inner.steps):
        step = inner.step(current, state, number, create_graph=exact[number])
        current, state = step.leaves, step.state
        records.append(step.record)
    return Refinement(current, records, inner)


def refuse_transforms(policy: object) -> None:
    """Policies with a backward pass of their own cannot be traced.

    Raises:
        MetalearnError: under ``torch.compile`` or a ``torch.func`` transform.
    """
    if in_transform():
        raise MetalearnError(
            f"expected a policy that can be traced, got {policy} under torch.compile or "
            "torch.func; use Unrolled(), Truncated() or FirstOrder() there, or keep the adapter "
            "out of what is compiled: torch.compiler.disable(adapter)"
        )
