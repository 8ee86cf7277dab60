"""MetaMAE: modality-agnostic self-supervised learning with a meta-learned masked autoencoder.

The packages, from the ground up; each imports from those before it only:

* :mod:`metamae.config` - what determines a run;
* :mod:`metamae.data` - data sets, embedded or prepared from published archives;
* :mod:`metamae.model` - tokens, masks, transformer, decoder, losses of an example;
* :mod:`metamae.methods` - MAE, MetaMAE and the baselines behind one contract;
* :mod:`metamae.training` - pretraining, checkpoints, run folders;
* :mod:`metamae.evaluation` - frozen features and the protocols that judge them;
* :mod:`metamae.report` - result rows, tables, figures;
* :mod:`metamae.artefact` - a trained encoder, loaded: embed, save, export;
* :mod:`metamae.estimator` - the same as a scikit-learn transformer;
* :mod:`metamae.experiments` - many runs from one file;
* :mod:`metamae.cli` - the ``metamae`` command.
"""

from typing import TYPE_CHECKING, Any

from metamae.config.presets import make_config
from metamae.config.schema import Config
from metamae.data import load_dataset
from metamae.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    InputError,
    MetamaeError,
    TrainingError,
)
from metamae.methods.building import build_method
from metamae.methods.mae import MAE
from metamae.methods.metamae import MetaMAE
from metamae.version import __version__

if TYPE_CHECKING:
    from metamae.artefact import load
    from metamae.estimator import MetaMAEEncoder

__all__ = [
    "MAE",
    "CheckpointError",
    "Config",
    "ConfigError",
    "DataError",
    "InputError",
    "MetaMAE",
    "MetaMAEEncoder",
    "MetamaeError",
    "TrainingError",
    "__version__",
    "build_method",
    "load",
    "load_dataset",
    "make_config",
]


def __getattr__(name: str) -> Any:
    """What is imported when it is first used: few programs need all it needs."""
    if name == "load":
        from metamae.artefact import load

        return load
    if name == "MetaMAEEncoder":
        from metamae.estimator import MetaMAEEncoder

        return MetaMAEEncoder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
