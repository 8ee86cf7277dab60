"""Multilevel optimisation on Betty: learn what would otherwise be tuned.

A :class:`Level` is parameters, an optimiser, a loss and batches; :class:`Multilevel` puts levels
over each other. How an upper level differentiates through a lower one's solution is an object:
:class:`Darts`, :class:`Neumann`, :class:`ConjugateGradient`, :class:`Sama`. docs/multilevel.md
holds the mathematics and what is mended of Betty.
"""

from metalearn.multilevel.bridge import INSTALL_COMMAND, REQUIRED_VERSION, import_betty
from metalearn.multilevel.hypergradients import (
    HYPERGRADIENTS,
    ConjugateGradient,
    Darts,
    Hypergradient,
    Neumann,
    Sama,
)
from metalearn.multilevel.levels import Level
from metalearn.multilevel.problem import Multilevel, Progress
from metalearn.multilevel.ranges import Bounded, Positive

__all__ = [
    "HYPERGRADIENTS",
    "INSTALL_COMMAND",
    "REQUIRED_VERSION",
    "Bounded",
    "ConjugateGradient",
    "Darts",
    "Hypergradient",
    "Level",
    "Multilevel",
    "Neumann",
    "Positive",
    "Progress",
    "Sama",
    "import_betty",
]
