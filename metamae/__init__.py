"""MetaMAE: modality-agnostic self-supervised learning with a meta-learned masked autoencoder.

The pipeline, one file per stage: :mod:`~metamae.inputs` and :mod:`~metamae.tokenizer` (sample to
tokens), :mod:`~metamae.masking` (support/query split), :mod:`~metamae.transformer` and
:mod:`~metamae.autoencoder` (latent, decoder, losses), :mod:`~metamae.objective` (MAE, MetaMAE),
:mod:`~metamae.training`, :mod:`~metamae.checkpoint`, :mod:`~metamae.features`,
:mod:`~metamae.probe`, :mod:`~metamae.report`.
"""

import os

# Threads that wait must sleep, not spin: beside another busy process that is twenty times faster.
# It is read when torch is loaded, so it has no effect where torch was imported before.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from metamae.config import Config, make_config
from metamae.data import load_dataset
from metamae.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    InputError,
    MetamaeError,
    TrainingError,
)
from metamae.objective import MAE, MetaMAE, build_method

__version__ = "0.1.0"

__all__ = [
    "MAE",
    "CheckpointError",
    "Config",
    "ConfigError",
    "DataError",
    "InputError",
    "MetaMAE",
    "MetamaeError",
    "TrainingError",
    "build_method",
    "load_dataset",
    "make_config",
]
