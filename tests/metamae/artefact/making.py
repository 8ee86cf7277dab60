"""Tiny encoders to load."""

from __future__ import annotations

from pathlib import Path

from metamae import build_method, load_dataset, make_config
from metamae.artefact import Encoder
from metamae.config.schema import Config
from metamae.data.dataset import Dataset
from metamae.data.description import Description
from metamae.training.pretraining import pretrain
from metamae.training.record import ModelRecord
from tests.tiny import SIZES

TINY = (*SIZES, "training.batch_size=20", "training.log_every=1", "training.checkpoint_every=2")


def config_of(name: str, *overrides: str, method: str = "metamae") -> Config:
    return make_config(name, method=method, overrides=[*TINY, *overrides])


def train(name: str, folder: Path, *overrides: str, method: str = "metamae") -> Path:
    """A run of two steps."""
    config = config_of(name, "training.steps=2", *overrides, method=method)
    pretrain(config, load_dataset(name), folder)
    return folder


def untrained(dataset: Dataset, config: Config) -> Encoder:
    """An encoder that never saw a run folder."""
    record = ModelRecord(config=config, description=Description.of(dataset), step=0)
    return Encoder(build_method(config, dataset.inputs, dataset.task), record)
