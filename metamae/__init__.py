"""MetaMAE: modality-agnostic self-supervised learning with a meta-learned masked autoencoder.

The pipeline, one file per stage: :mod:`~metamae.inputs` and :mod:`~metamae.tokenizer` (sample to
tokens), :mod:`~metamae.masking` (support/query split), :mod:`~metamae.transformer` and
:mod:`~metamae.autoencoder` (latent, decoder, losses), :mod:`~metamae.objective` (MAE, MetaMAE),
:mod:`~metamae.training`, :mod:`~metamae.checkpoint`, :mod:`~metamae.features`,
:mod:`~metamae.probe`, :mod:`~metamae.report`.
"""

import os

# How long threads that wait for work spin before they sleep (GNU OpenMP, torch's on Linux). Its own
# choice makes a step several times slower beside other busy threads, sleeping at once up to 2.4
# times slower on an idle machine (docs/performance.md). Read when torch is loaded: import metamae
# first.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")

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
