"""The same network without pretraining: trained from scratch on the few labels there are."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from metalearn.randomness import fold, seeded
from metamae.config.schema import Config
from metamae.data.dataset import Array, Dataset, Partition, labelled_batch
from metamae.errors import TrainingError
from metamae.inputs import LabelledBatch
from metamae.methods.baselines.supervised import Supervised
from metamae.methods.building import build_method
from metamae.methods.method import NoDraw
from metamae.randomness import generator

PASSES, FEWEST_STEPS, MOST_STEPS = 30, 60, 300
BATCH = 64


def count_steps(rows: int) -> int:
    """Steps of training: 30 passes over the labelled rows, from 60 to 300 steps.

    A fixed rule is the only early stopping that takes no labels away from those there are.

    Example:
        >>> from metamae.evaluation.scratch import count_steps
        >>> count_steps(20), count_steps(256), count_steps(5000)
        (60, 120, 300)
    """
    per_pass = -(-rows // BATCH)
    return min(max(PASSES * per_pass, FEWEST_STEPS), MOST_STEPS)


def learn_from_scratch(
    config: Config,
    dataset: Dataset,
    rows: Array,
    judged: Partition,
    judged_rows: Array | None = None,
    *,
    seed: int = 0,
) -> Array:
    """Train encoder and head on some labelled training rows, and predict others.

    AdamW at the configuration's learning rate for :func:`count_steps` steps of up to 64 rows;
    cross-entropy for classes, squared error for (standardised) numbers.

    Args:
        config: Sizes of the network, learning rate and weight decay.
        dataset: Where the labelled rows are.
        rows: Training rows whose labels are known.
        judged: Where the rows to predict are.
        judged_rows: Which of them; all when absent.
        seed: Seed of weights and order.

    Example:
        >>> import numpy as np
        >>> from metamae import load_dataset, make_config
        >>> from metamae.evaluation.scratch import learn_from_scratch
        >>> data = load_dataset("basic_motions")
        >>> config = make_config("basic_motions", overrides=["encoder.depth=1"])
        >>> learn_from_scratch(config, data, np.arange(8), data.test, np.arange(3)).shape
        (3,)
    """
    task, train = dataset.need_task(), dataset.need("train")
    assert train.labels is not None
    own = replace(config, method="supervised", seed=fold(seed, "from scratch"))
    method = build_method(own, dataset.inputs, task)
    assert isinstance(method, Supervised)
    centre, scale = 0.0, 1.0
    if task.kind == "regression":
        known = np.asarray(train.labels[rows], np.float64)
        centre, scale = float(known.mean()), float(known.std()) or 1.0
    optimiser = torch.optim.AdamW(
        method.parameters(),
        lr=config.training.learning_rate,
        weight_decay=config.training.weight_decay,
    )
    method.train()
    with seeded(fold(seed, "scratch dropout")):
        for step in range(count_steps(len(rows))):
            picked = rows[_batch(len(rows), seed, step)]
            batch = labelled_batch(train, torch.from_numpy(picked))
            if task.kind == "regression":
                batch = LabelledBatch(batch, (batch.labels - centre) / scale)
            loss = method(batch, NoDraw(len(picked))).loss
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            if not math.isfinite(loss.item()):
                raise TrainingError(
                    "expected a finite loss of a network trained from scratch, got "
                    f"{loss.item()} at step {step + 1}; lower training.learning_rate, or leave "
                    "scratch out"
                )
    outputs = _outputs(method.eval(), judged, judged_rows)
    if task.kind.endswith("classification"):
        predictions: Array = outputs.argmax(-1).numpy()
        return predictions
    single = outputs.squeeze(1)
    if task.kind == "binary":
        return np.asarray((single > 0).long().numpy())
    return np.asarray(single.double().numpy() * scale + centre)


def _batch(rows: int, seed: int, step: int) -> Array:
    """Rows of a step: shuffled passes, of each the last partial batch left out."""
    if rows <= BATCH:
        return np.arange(rows)
    per_pass = rows // BATCH
    turn, place = divmod(step, per_pass)
    order = torch.randperm(rows, generator=generator(seed, "scratch order", turn))
    return np.asarray(order[place * BATCH : (place + 1) * BATCH].numpy())


@torch.no_grad()
def _outputs(method: Supervised, data: Partition, rows: Array | None) -> Tensor:
    index = torch.arange(len(data)) if rows is None else torch.from_numpy(rows)
    parts = [method.head(method.features(data.batch(part))) for part in index.split(256)]
    return torch.cat(parts).float()
