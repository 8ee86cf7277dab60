"""How gradients flow through the inner steps: one class a policy, its mathematics in its docstring.

:mod:`~metalearn.policies.policy` is the contract.
"""

from metalearn.policies.checkpointed import Checkpointed
from metalearn.policies.finite_difference import FiniteDifference
from metalearn.policies.implicit import Implicit
from metalearn.policies.policy import GradientPolicy, Refinement
from metalearn.policies.unrolled import FirstOrder, Truncated, Unrolled

__all__ = [
    "Checkpointed",
    "FiniteDifference",
    "FirstOrder",
    "GradientPolicy",
    "Implicit",
    "Refinement",
    "Truncated",
    "Unrolled",
]
