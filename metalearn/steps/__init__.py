"""How far and in which direction an inner step goes."""

from metalearn.steps.elementwise import ElementwiseStepSize
from metalearn.steps.held import HeldStepSize
from metalearn.steps.rules import (
    ClipGradient,
    GradientDescent,
    Momentum,
    NormaliseGradient,
    UpdateRule,
)
from metalearn.steps.sizes import FixedStepSize, LearnedStepSize, StepSize
from metalearn.steps.torch_optimisers import TorchOptimiser

__all__ = [
    "ClipGradient",
    "ElementwiseStepSize",
    "FixedStepSize",
    "GradientDescent",
    "HeldStepSize",
    "LearnedStepSize",
    "Momentum",
    "NormaliseGradient",
    "StepSize",
    "TorchOptimiser",
    "UpdateRule",
]
