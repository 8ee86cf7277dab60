"""Pretraining methods: each a loss of a batch under a draw, and features of unmasked examples.

:mod:`~metamae.methods.method` is the contract, :mod:`~metamae.methods.mae` Eq. 1 of the paper,
:mod:`~metamae.methods.metamae` Eq. 2 to 4, :mod:`~metamae.methods.baselines` the methods of DABS,
:mod:`~metamae.methods.learning` MetaMAE with settings that are learned, and
:mod:`~metamae.methods.building` makes any of them from a configuration.
"""

from metamae.methods.building import BASELINES, build_method, register_method
from metamae.methods.mae import MAE
from metamae.methods.metamae import MetaMAE
from metamae.methods.method import Method, NoDraw, PretextLoss
from metamae.methods.objective import POLICIES, build_adapter

__all__ = [
    "BASELINES",
    "MAE",
    "POLICIES",
    "MetaMAE",
    "Method",
    "NoDraw",
    "PretextLoss",
    "build_adapter",
    "build_method",
    "register_method",
]
