"""Gradients through gradients: encode a support set, refine its latent, learn from both.

The package knows nothing of masks, modalities or files. Its parts compose:

* :mod:`metalearn.encoding` - a support set becomes a latent in one pass (amortisation);
* :mod:`metalearn.adaptation` - :class:`LatentAdapter` refines a latent by gradient steps;
* :mod:`metalearn.differentiation` - how gradients flow through those steps;
* :mod:`metalearn.updates` - step sizes and update rules of the steps;
* :mod:`metalearn.contrast` - pulls a task's latent and its refinement together;
* :mod:`metalearn.objective` - the whole meta-objective in one module;
* :mod:`metalearn.multilevel` - multilevel optimisation on Betty (imported on demand).
"""

from metalearn.adaptation import Adaptation, LatentAdapter
from metalearn.contrast import MeanPool, Projector, TaskContrastiveLoss
from metalearn.differentiation import FirstOrder, GradientPolicy, Unrolled
from metalearn.encoding import SetEncoder, SupportEncoder
from metalearn.errors import (
    DisconnectedLossError,
    LatentError,
    MetalearnError,
    MissingBettyError,
    NonFiniteLossError,
    SecondDerivativeError,
    SupportLossShapeError,
)
from metalearn.objective import MetaLoss, MetaObjective
from metalearn.updates import FixedStepSize, GradientDescent, LearnedStepSize, UpdateRule

__all__ = [
    "Adaptation",
    "DisconnectedLossError",
    "FirstOrder",
    "FixedStepSize",
    "GradientDescent",
    "GradientPolicy",
    "LatentAdapter",
    "LatentError",
    "LearnedStepSize",
    "MeanPool",
    "MetaLoss",
    "MetaObjective",
    "MetalearnError",
    "MissingBettyError",
    "NonFiniteLossError",
    "Projector",
    "SecondDerivativeError",
    "SetEncoder",
    "SupportEncoder",
    "SupportLossShapeError",
    "TaskContrastiveLoss",
    "Unrolled",
    "UpdateRule",
]
