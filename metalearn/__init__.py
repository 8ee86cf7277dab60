"""Gradients through gradients: encode a support set, refine its latent, learn from both.

The package knows nothing of masks, modalities or files. Its parts compose:

* :mod:`metalearn.encoding` - a support set becomes a latent in one pass (amortisation);
* :mod:`metalearn.adaptation` - :class:`LatentAdapter` refines a latent by gradient steps;
* :mod:`metalearn.policies` - how gradients flow through those steps;
* :mod:`metalearn.steps` - how far and in which direction a step goes;
* :mod:`metalearn.functional` - any module as a latent: a copy of its parameters a task;
* :mod:`metalearn.attention` - attention with a second derivative, and
  :mod:`metalearn.blockwise` - the same without stored maps;
* :mod:`metalearn.recomputation` - results that are cheap to compute again and need not be kept;
* :mod:`metalearn.contrast` - pulls a task's latent and its refinement together;
* :mod:`metalearn.uniformity` - pushes rows apart, without pairs;
* :mod:`metalearn.vicreg` and :mod:`metalearn.isotropy` - equal views without negatives;
* :mod:`metalearn.gathering` - rows of all ranks as one batch;
* :mod:`metalearn.objective` - the whole meta-objective in one module;
* :mod:`metalearn.multilevel` - multilevel optimisation on Betty (imported on demand).
"""

from metalearn.adaptation import LatentAdapter
from metalearn.attention import plain_attention
from metalearn.blockwise import recomputed_attention
from metalearn.contrast import MeanPool, Projector, TaskContrastiveLoss
from metalearn.encoding import SetEncoder, SupportEncoder
from metalearn.errors import (
    ChangedLossError,
    ConvergenceWarning,
    CurvatureError,
    CurvatureWarning,
    DisconnectedLossError,
    LatentError,
    MetalearnError,
    MissingBettyError,
    ModuleError,
    MultilevelError,
    NonFiniteLossError,
    PrecisionError,
    SecondDerivativeError,
    SettingError,
    SupportLossShapeError,
)
from metalearn.functional import FunctionalModule, functional
from metalearn.gathering import gather_rows
from metalearn.isotropy import Isotropy
from metalearn.objective import MetaLoss, MetaObjective
from metalearn.policies.checkpointed import Checkpointed
from metalearn.policies.finite_difference import FiniteDifference
from metalearn.policies.implicit import Implicit
from metalearn.policies.policy import GradientPolicy
from metalearn.policies.unrolled import FirstOrder, Truncated, Unrolled
from metalearn.recomputation import recomputed, recomputed_gelu
from metalearn.result import Adaptation, Convergence, Trace
from metalearn.steps.elementwise import ElementwiseStepSize
from metalearn.steps.held import HeldStepSize
from metalearn.steps.line_search import LineSearch
from metalearn.steps.rules import (
    ClipGradient,
    GradientDescent,
    Momentum,
    NormaliseGradient,
    UpdateRule,
)
from metalearn.steps.sizes import FixedStepSize, LearnedStepSize, StepSize
from metalearn.steps.torch_optimisers import TorchOptimiser
from metalearn.uniformity import uniformity
from metalearn.version import __version__
from metalearn.vicreg import vicreg

__all__ = [
    "Adaptation",
    "ChangedLossError",
    "Checkpointed",
    "ClipGradient",
    "Convergence",
    "ConvergenceWarning",
    "CurvatureError",
    "CurvatureWarning",
    "DisconnectedLossError",
    "ElementwiseStepSize",
    "FiniteDifference",
    "FirstOrder",
    "FixedStepSize",
    "FunctionalModule",
    "GradientDescent",
    "GradientPolicy",
    "HeldStepSize",
    "Implicit",
    "Isotropy",
    "LatentAdapter",
    "LatentError",
    "LearnedStepSize",
    "LineSearch",
    "MeanPool",
    "MetaLoss",
    "MetaObjective",
    "MetalearnError",
    "MissingBettyError",
    "ModuleError",
    "Momentum",
    "MultilevelError",
    "NonFiniteLossError",
    "NormaliseGradient",
    "PrecisionError",
    "Projector",
    "SecondDerivativeError",
    "SetEncoder",
    "SettingError",
    "StepSize",
    "SupportEncoder",
    "SupportLossShapeError",
    "TaskContrastiveLoss",
    "TorchOptimiser",
    "Trace",
    "Truncated",
    "Unrolled",
    "UpdateRule",
    "__version__",
    "functional",
    "gather_rows",
    "plain_attention",
    "recomputed",
    "recomputed_attention",
    "recomputed_gelu",
    "uniformity",
    "vicreg",
]
