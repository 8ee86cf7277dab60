"""The baselines of DABS, and a supervised upper bound: one encoder, one probe, other objectives.

What DABS's code got wrong is put right by default; a setting named for it brings the published
behaviour back (:class:`metamae.config.BaselineConfig`). Encoder, positions, normalisation and
pooling are those of MetaMAE for all methods.
"""

from __future__ import annotations

from typing import Any

from metamae.backbone import Backbone
from metamae.baselines.capri import Capri
from metamae.baselines.emix import EMix
from metamae.baselines.mae_linear import LinearMAE
from metamae.baselines.shed import ShED
from metamae.baselines.supervised import Supervised
from metamae.config import Config
from metamae.data.dataset import Task
from metamae.errors import ConfigError
from metamae.inputs import Inputs
from metamae.method import Method

BASELINES = ("emix", "shed", "capri", "mae_linear", "supervised")
"""Methods without a decoder, by the name that a configuration uses."""

__all__ = ["BASELINES", "Capri", "EMix", "LinearMAE", "ShED", "Supervised", "build_baseline"]


def build_baseline(config: Config, inputs: Inputs, task: Task | None = None) -> Method[Any]:
    """Build one of :data:`BASELINES`; the weights come from torch's global generator.

    Raises:
        ConfigError: a task is needed and missing, or settings that do not fit the inputs.
    """
    network, width = Backbone(inputs, config.encoder), config.encoder.width
    baseline = config.baseline
    match config.method:
        case "emix":
            return EMix(network, width, baseline.emix)
        case "shed":
            return ShED(network, width, baseline.corruption)
        case "capri":
            return Capri(network, width, baseline.corruption, baseline.capri)
        case "mae_linear":
            return LinearMAE(
                network, width, baseline.corruption, reconstruction=baseline.reconstruction
            )
        case "supervised":
            if task is None:
                raise ConfigError(
                    "expected a task for method supervised, whose head it shapes, got none; "
                    "pass the data set's task"
                )
            return Supervised(network, width, task)
        case other:
            raise ConfigError(f"expected a baseline among {', '.join(BASELINES)}, got {other!r}")
