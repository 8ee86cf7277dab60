"""Gradients through gradients: encode a support set, refine its latent, learn from both.

The package knows nothing of masks, modalities or files. Its parts compose:

* :mod:`metalearn.encoding` - a support set becomes a latent in one pass (amortisation);
* :mod:`metalearn.adaptation` - :class:`LatentAdapter` refines a latent by gradient steps;
* :mod:`metalearn.differentiation`, :mod:`metalearn.recompute`, :mod:`metalearn.finite_difference`,
  :mod:`metalearn.implicit` - how gradients flow through those steps;
* :mod:`metalearn.step_sizes`, :mod:`metalearn.updates`, :mod:`metalearn.torch_optimisers` -
  how far and in which direction a step goes;
* :mod:`metalearn.attention` - attention with a second derivative;
* :mod:`metalearn.contrast` - pulls a task's latent and its refinement together;
* :mod:`metalearn.objective` - the whole meta-objective in one module;
* :mod:`metalearn.multilevel` - multilevel optimisation on Betty (imported on demand).
"""

from metalearn.adaptation import Adaptation, LatentAdapter, Trace
from metalearn.attention import plain_attention
from metalearn.contrast import MeanPool, Projector, TaskContrastiveLoss
from metalearn.differentiation import (
    FirstOrder,
    GradientPolicy,
    Truncated,
    Unrolled,
)
from metalearn.encoding import SetEncoder, SupportEncoder
from metalearn.errors import (
    DisconnectedLossError,
    LatentError,
    MetalearnError,
    MissingBettyError,
    MultilevelError,
    NonFiniteLossError,
    SecondDerivativeError,
    SupportLossShapeError,
)
from metalearn.finite_difference import FiniteDifference
from metalearn.implicit import Implicit
from metalearn.objective import MetaLoss, MetaObjective
from metalearn.recompute import Checkpointed
from metalearn.step_sizes import FixedStepSize, LearnedStepSize, StepSize
from metalearn.torch_optimisers import TorchOptimiser
from metalearn.updates import (
    ClipGradient,
    GradientDescent,
    Momentum,
    NormaliseGradient,
    UpdateRule,
)

__all__ = [
    "Adaptation",
    "Checkpointed",
    "ClipGradient",
    "DisconnectedLossError",
    "FiniteDifference",
    "FirstOrder",
    "FixedStepSize",
    "GradientDescent",
    "GradientPolicy",
    "Implicit",
    "LatentAdapter",
    "LatentError",
    "LearnedStepSize",
    "MeanPool",
    "MetaLoss",
    "MetaObjective",
    "MetalearnError",
    "MissingBettyError",
    "Momentum",
    "MultilevelError",
    "NonFiniteLossError",
    "NormaliseGradient",
    "Projector",
    "SecondDerivativeError",
    "SetEncoder",
    "StepSize",
    "SupportEncoder",
    "SupportLossShapeError",
    "TaskContrastiveLoss",
    "TorchOptimiser",
    "Trace",
    "Truncated",
    "Unrolled",
    "UpdateRule",
    "plain_attention",
]
