"""Supervised training of the same encoder on the training labels: an upper bound."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from metamae.data.dataset import Task
from metamae.errors import InputError
from metamae.inputs import Batch, LabelledBatch
from metamae.methods.method import Method, NoDraw, PretextLoss
from metamae.model.backbone import Backbone
from metamae.model.tokenizer import at_least_float32, xavier_linear

KINDS = ("classification", "binary", "regression", "token_classification")


class Supervised(Method[NoDraw]):
    """Encoder and a linear head on its pooled features, trained end to end on labels.

    Cross-entropy for classes, binary cross-entropy of one logit for two classes, squared error for
    numbers; where every token has a class, cross-entropy of its own features. It sees the labelled
    training partition that the probe is fitted on, and no other.

    Args:
        network: Tokenizer and encoder.
        width: Width of the encoder.
        task: What to predict.
    """

    needs_labels = True
    mean_of_examples = True
    kind: Tensor

    def __init__(self, network: Backbone, width: int, task: Task) -> None:
        """See the class."""
        super().__init__(network)
        self.head = xavier_linear(width, task.outputs)
        self.register_buffer("kind", torch.tensor(KINDS.index(task.kind)))
        self.task_kind: str = task.kind

    def draw(self, batch_size: int, generator: torch.Generator) -> NoDraw:
        """Nothing is random."""
        return NoDraw(batch_size)

    def forward(self, batch: Batch, draw: NoDraw) -> PretextLoss:
        """Loss of a labelled batch.

        Raises:
            InputError: no labels, or not one for every example.
        """
        self.check(batch, len(draw))
        by_token = self.task_kind == "token_classification"
        features = self.network.token_features(batch) if by_token else self.features(batch)
        if not isinstance(batch, LabelledBatch) or batch.labels.shape != features.shape[:-1]:
            shape = tuple(batch.labels.shape) if isinstance(batch, LabelledBatch) else "none"
            raise InputError(
                f"expected a LabelledBatch with labels {tuple(features.shape[:-1])}, got {shape}; "
                "see metamae.data.dataset.labelled_batch"
            )
        outputs = at_least_float32(self.head(features))
        return PretextLoss(self._loss(outputs, batch.labels), {})

    def _loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        if self.task_kind.endswith("classification"):
            return F.cross_entropy(outputs.flatten(0, -2), labels.flatten().long())
        outputs, labels = outputs.squeeze(1), labels.to(outputs.dtype)
        if self.task_kind == "binary":
            return F.binary_cross_entropy_with_logits(outputs, labels)
        return F.mse_loss(outputs, labels)


def stored_task(state: dict[str, Any]) -> Task:
    """The task whose head is in a state dict; its classes are numbered, not named."""
    kind = KINDS[int(state["kind"])]
    classes = range(len(state["head.bias"])) if kind.endswith("classification") else ()
    return Task(kind=kind, metric="accuracy", classes=tuple(map(str, classes)))  # type: ignore[arg-type]
