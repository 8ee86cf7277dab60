"""One row: the features of a run under one protocol."""

from __future__ import annotations

import time

import torch

from metamae.config.sections import ProbeConfig
from metamae.evaluation.features import Features
from metamae.evaluation.protocols import evaluate
from metamae.progress import Reporter
from metamae.report.rows import Result, describe_data
from metamae.training.checkpoint import Checkpoint
from metamae.training.provenance import device_name, revision


def probe_row(
    trained: Checkpoint,
    features: Features,
    protocol: str,
    *,
    transfer: str,
    variant: str,
    device: torch.device,
    probe: ProbeConfig,
    probe_seed: int | None = None,
    data: str = "",
    reporter: Reporter | None = None,
) -> Result:
    """Evaluate features of a checkpoint under one protocol; the result as a row.

    ``data`` is the fingerprint of the data set that the features are of.
    """
    config = trained.config
    seed = config.seed if probe_seed is None else probe_seed
    start = time.perf_counter()
    title = f"{transfer} {config.method} #{config.seed}: {protocol}"
    measured = evaluate(protocol, features, probe, seed=seed, reporter=reporter, title=title)
    return Result(
        **(vars(measured) | {"predictions": None}),
        dataset=config.dataset,
        transfer=transfer,
        method=config.method,
        variant=variant,
        seed=config.seed,
        probe_seed=seed,
        preset=config.preset,
        steps=trained.step,
        batch_size=config.training.batch_size,
        pretrain_seconds=round(trained.seconds, 3),
        probe_seconds=round(time.perf_counter() - start, 3),
        device=device.type,
        hardware=device_name(device),
        torch=str(torch.__version__),
        revision=revision(),
        data=describe_data(trained.data, data) if data else "",
    )
